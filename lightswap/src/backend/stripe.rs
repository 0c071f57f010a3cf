//! `stripe(a,b,...)`: slots spread over several backends, in turn, a chunk of neighbours at a time: the room and the speed of all of them together.
//!
//! Without any redundancy: what one of them loses is lost.

use super::parts::PartWrites;
use super::{Backend, BackendQueue, Now, QueueBuilder, Read, Write, WriteRequest};
use crate::budget::MAX_BATCH_PAGES;
use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{Completion, IoQueue, Token};
use crate::size::{bytes_of, format_size, pages_in};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Neighbouring slots on the same member: a batch of dirty pages makes few requests.
const CHUNK_SLOTS: usize = 32;
/// Parts that a write falls into at most.
const MAX_PARTS: usize = MAX_BATCH_PAGES / CHUNK_SLOTS + 1;

#[derive(Debug)]
pub(super) struct StripeBackend {
    members: Box<[Arc<dyn Backend>]>,
    num_slots: usize,
}

impl StripeBackend {
    pub(super) fn new(members: Vec<Arc<dyn Backend>>, text: &str) -> Result<Self> {
        let chunks = |member: &Arc<dyn Backend>| member.num_slots() / CHUNK_SLOTS;
        let num_chunks = members.iter().map(chunks).min().unwrap_or(0);
        if num_chunks == 0 {
            let least = format_size(bytes_of(CHUNK_SLOTS) as u64);
            return Err(Error::new(ErrorKind::Backend, format!("backend \"{text}\": each of its members must hold at least {least}")));
        }
        let num_slots = num_chunks * CHUNK_SLOTS * members.len();
        let largest = members.iter().map(chunks).max().unwrap_or(0);
        if largest > num_chunks {
            tracing::warn!(backend = text, "members of different sizes: of each only the size of the smallest is used");
        }
        Ok(Self { members: members.into(), num_slots })
    }

    /// The member that has a slot, and its number there.
    fn locate(&self, slot: usize) -> (usize, usize) {
        let (chunk, offset) = (slot / CHUNK_SLOTS, slot % CHUNK_SLOTS);
        (chunk % self.members.len(), chunk / self.members.len() * CHUNK_SLOTS + offset)
    }

    /// The parts of a range of slots that lie together: member, first slot there, number of slots.
    fn parts(&self, slot: usize, num_slots: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let end = slot + num_slots;
        let mut next = slot;
        std::iter::from_fn(move || {
            let len = (CHUNK_SLOTS - next % CHUNK_SLOTS).min(end - next);
            let (member, first) = self.locate(next);
            next += len;
            (len > 0).then_some((member, first, len))
        })
    }
}

impl Backend for StripeBackend {
    fn num_slots(&self) -> usize {
        self.num_slots
    }

    fn members(&self) -> Vec<&dyn Backend> {
        self.members.iter().map(|member| &**member).collect()
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        let (num_reads, num_writes) = (builder.num_reads, builder.num_writes);
        let members = self.members.iter().map(|member| builder.child(member, num_reads, num_writes * MAX_PARTS)).collect::<Result<_>>()?;
        Ok(builder.add(number, Rc::new(StripeQueue { number, writes: PartWrites::new(num_writes), members, stripe: self })))
    }

    fn is_readable_now(&self, slot: usize) -> bool {
        let (member, slot) = self.locate(slot);
        self.members[member].is_readable_now(slot)
    }

    fn read_now(&self, slot: usize, buffer: *mut u8) -> Now {
        let (member, slot) = self.locate(slot);
        self.members[member].read_now(slot, buffer)
    }

    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        self.parts(slot, num_slots).try_for_each(|(member, first, len)| self.members[member].reserve(first, len))
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.parts(slot, num_slots).for_each(|(member, first, len)| self.members[member].discard(first, len));
    }

    fn fill(&self) -> Option<(u64, u64)> {
        self.members.iter().try_fold((0, 0), |(used, limit), member| member.fill().map(|of_member| (used + of_member.0, limit + of_member.1)))
    }
}

struct StripeQueue {
    number: usize,
    stripe: Arc<StripeBackend>,
    members: Box<[Rc<dyn BackendQueue>]>,
    writes: PartWrites,
}

impl BackendQueue for StripeQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        let (member, slot) = self.stripe.locate(read.slot);
        self.members[member].read(io, Read { slot, ..read });
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        let num_slots = pages_in(write.num_bytes + bytes_of(1) - 1);
        let parts = || self.stripe.parts(write.slot, num_slots);
        if parts().nth(1).is_none() {
            let (member, slot) = self.stripe.locate(write.slot);
            return self.members[member].write(io, WriteRequest { slot, ..write });
        }
        let index = self.writes.begin(write.token);
        let mut done = 0;
        for (member, slot, len) in parts() {
            let num_bytes = bytes_of(len).min(write.num_bytes - done);
            let part = WriteRequest { slot, source: write.source.wrapping_add(done), num_bytes, token: Token::node(self.number, index) };
            self.writes.add(index, num_bytes, self.members[member].write(io, part));
            done += num_bytes;
        }
        self.writes.end(index)
    }

    fn complete(&self, io: &IoQueue, index: u32, completion: Completion) {
        if let Some((token, result)) = self.writes.complete(index, completion.result) {
            io.finish(token, Completion::of(result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    /// Every slot has a place of its own, and the parts of a range are where its slots are.
    #[test]
    fn slots_are_spread() {
        let stripe = StripeBackend::new((0..3).map(|_| open("memory:?size=1MiB").unwrap()).collect(), "").unwrap();
        assert_eq!(stripe.num_slots(), 3 * 256);
        let mut places: Vec<_> = (0..stripe.num_slots()).map(|slot| stripe.locate(slot)).collect();
        for (slot, len) in [(0, 1), (0, 768), (31, 2), (5, 128), (767, 1), (40, 0)] {
            let parts = stripe.parts(slot, len).flat_map(|(member, first, len)| (first..first + len).map(move |slot| (member, slot)));
            assert!(parts.eq(places[slot..slot + len].iter().copied()));
        }
        assert!(stripe.parts(31, MAX_BATCH_PAGES).count() == MAX_PARTS);
        places.sort_unstable();
        places.dedup();
        assert!(places.len() == 768 && places.iter().all(|(member, slot)| *member < 3 && *slot < 256));
    }
}
