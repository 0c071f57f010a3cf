//! Reads and writes of one worker.

use super::MirrorBackend;
use super::slots::{MAX_MEMBERS, Members, Word, each};
use crate::backend::slab::Slab;
use crate::backend::{BackendQueue, Read, Write, WriteRequest};
use crate::failure::{Cause, RawCause};
use crate::io_queue::{Completion, IoQueue, Source, Token};
use crate::size::PAGE_SIZE;
use crate::sys;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// So many reads a slower member gets one of, that its latency stays known.
const READS_PER_PROBE: u32 = 64;
/// An answer weighs one part of so many in the average latency.
const AVERAGE_PARTS: i64 = 8;
/// A read that no member is there for is tried again after this time, and given up after so many times it.
const RETRY_AFTER: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 50 });
const MAX_TRIES: u32 = 100;

/// The member of a request is the low bits of its number.
const MEMBER_BITS: u32 = MAX_MEMBERS.trailing_zeros();

/// The number under which a member's answer comes back.
pub(super) fn number_of(index: u32, member: usize) -> u32 {
    index << MEMBER_BITS | member as u32
}

/// Whose answer it is, to what.
pub(super) fn answer_of(number: u32) -> (u32, usize) {
    (number >> MEMBER_BITS, number as usize % MAX_MEMBERS)
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Read(PendingRead),
    Write(PendingWrite),
}

#[derive(Clone, Copy, Debug)]
struct PendingRead {
    read: Read,
    /// Of the slot, when the read began.
    seen: Word,
    /// Members that need not be asked any more.
    tried: Members,
    /// Those of them whose copy is not good.
    bad: Members,
    /// How the last of them has failed.
    result: i32,
    /// When the one that is being asked was.
    start_ns: u64,
    num_tries: u32,
    /// Nobody is being asked, it waits for a while.
    is_waiting: bool,
}

#[derive(Clone, Copy, Debug)]
struct PendingWrite {
    write: WriteRequest,
    num_pending: u32,
    /// Members that have it.
    written: Members,
    /// How often each had lost its content when it began.
    content_losses: [u64; MAX_MEMBERS],
    error: i32,
}

/// How a member answers this worker.
#[derive(Debug, Default)]
struct Speed {
    num_in_flight: Cell<u32>,
    /// Of reads.
    average_ns: Cell<i64>,
}

impl Speed {
    fn note(&self, latency_ns: u64) {
        let average_ns = self.average_ns.get();
        let change_ns = latency_ns as i64 - average_ns;
        self.average_ns.set(if average_ns == 0 { change_ns } else { average_ns + change_ns / AVERAGE_PARTS });
    }

    /// About how long one more read takes.
    fn expected_ns(&self) -> i64 {
        self.average_ns.get() * (i64::from(self.num_in_flight.get()) + 1)
    }
}

pub(super) struct MirrorQueue {
    number: usize,
    mirror: Arc<MirrorBackend>,
    members: Rc<[Rc<dyn BackendQueue>]>,
    requests: Slab<Request>,
    speeds: [Speed; MAX_MEMBERS],
    num_chosen: Cell<u32>,
}

impl MirrorQueue {
    pub(super) fn new(number: usize, mirror: Arc<MirrorBackend>, members: Rc<[Rc<dyn BackendQueue>]>, num_reads: usize, num_writes: usize) -> Self {
        let requests = Slab::new(num_reads + num_writes);
        Self { number, mirror, members, requests, speeds: Default::default(), num_chosen: Cell::new(0) }
    }

    /// The member to read from, of those that have the slot.
    fn choose(&self, candidates: Members) -> Option<usize> {
        let present = candidates & self.mirror.team.present();
        // One that was lost may be there again; it has what nobody else does.
        let candidates = if present == 0 { candidates } else { present };
        if candidates.count_ones() < 2 {
            return each(candidates).next();
        }
        let num_chosen = self.num_chosen.replace(self.num_chosen.get().wrapping_add(1));
        if num_chosen.is_multiple_of(READS_PER_PROBE) {
            return each(candidates).nth((num_chosen / READS_PER_PROBE % candidates.count_ones()) as usize);
        }
        each(candidates).min_by_key(|member| self.speeds[*member].expected_ns())
    }

    /// The members that have a slot. If nobody is known to, any may have it: who reads will see.
    fn holders(&self, slot: usize) -> Members {
        let slots = &self.mirror.slots;
        match slots.all() & !slots.get(slot).stale() {
            0 => slots.all(),
            holders => holders,
        }
    }

    /// Asks the next member, or ends the read.
    fn ask(&self, io: &IoQueue, index: u32, mut pending: PendingRead) {
        let holders = self.holders(pending.read.slot);
        let Some(member) = self.choose(holders & !pending.tried) else {
            let is_away = RawCause::of_read(pending.result).cause() == Cause::LostBackend;
            if is_away && pending.num_tries < MAX_TRIES {
                self.requests.set(index, Request::Read(PendingRead { is_waiting: true, ..pending }));
                return io.push_timeout(RETRY_AFTER, Token::node(self.number, number_of(index, 0)));
            }
            self.requests.remove(index);
            return io.finish(pending.read.token, Completion::of(pending.result));
        };
        pending.tried |= 1 << member;
        pending.start_ns = sys::now_ns();
        self.requests.set(index, Request::Read(pending));
        let speed = &self.speeds[member];
        speed.num_in_flight.set(speed.num_in_flight.get() + 1);
        self.members[member].read(io, Read { token: Token::node(self.number, number_of(index, member)), ..pending.read });
    }

    fn end_read(&self, io: &IoQueue, index: u32, member: usize, mut pending: PendingRead, completion: Completion) {
        if pending.is_waiting {
            return self.ask(io, index, PendingRead { is_waiting: false, tried: 0, num_tries: pending.num_tries + 1, ..pending });
        }
        let (mirror, speed) = (&*self.mirror, &self.speeds[member]);
        speed.num_in_flight.set(speed.num_in_flight.get() - 1);
        if completion.result == PAGE_SIZE as i32 {
            speed.note(sys::now_ns() - pending.start_ns);
            mirror.team.note_success(member);
            self.requests.remove(index);
            if pending.tried != 1 << member {
                self.note_others(&pending, member);
            }
            return io.finish(pending.read.token, Completion { source: Source(Some(member as u8)), ..completion });
        }
        mirror.team.note_failure(member, completion.result);
        // What a lost member has may be good.
        if !mirror.team.member(member).is_lost() {
            pending.bad |= 1 << member;
        }
        self.ask(io, index, PendingRead { result: completion.result, ..pending });
    }

    /// A member gave the content that others could not.
    fn note_others(&self, pending: &PendingRead, member: usize) {
        let (mirror, slot) = (&*self.mirror, pending.read.slot);
        mirror.num_failovers.fetch_add(1, Relaxed);
        let marked = each(pending.bad & !(1 << member)).filter(|bad| mirror.slots.mark_stale(slot, pending.seen, *bad)).count();
        mirror.num_corrupt.fetch_add(marked as u64, Relaxed);
    }

    fn end_write(&self, pending: &PendingWrite) {
        let PendingWrite { write, written, content_losses, .. } = *pending;
        let (team, slots) = (&self.mirror.team, &self.mirror.slots);
        let has_it = |member: &usize| team.member(*member).num_content_losses() == content_losses[*member];
        let num_whole = write.num_bytes / PAGE_SIZE;
        for offset in 0..write.num_bytes.div_ceil(PAGE_SIZE) {
            // Bytes that end within a page, which only tests write, leave it torn.
            let written = if offset < num_whole { written } else { 0 };
            slots.end_write(write.slot + offset, || each(written).filter(has_it).map(|member| 1 << member).sum());
        }
    }
}

impl BackendQueue for MirrorQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        // Who had wrong content is asked again only if nobody else has any.
        let suspect = read.suspect.0.map_or(0, |member| 1 << member);
        let seen = self.mirror.slots.get(read.slot);
        let tried = if self.holders(read.slot) & !suspect == 0 { 0 } else { suspect };
        let result = -libc::ENODEV;
        let pending = PendingRead { read, seen, tried, bad: tried, result, start_ns: 0, num_tries: 0, is_waiting: false };
        self.ask(io, self.requests.insert(Request::Read(pending)), pending);
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        let mirror = &*self.mirror;
        let written_slots = write.slot..write.slot + write.num_bytes.div_ceil(PAGE_SIZE);
        let content_losses = std::array::from_fn(|member| mirror.team.iter().nth(member).map_or(0, |member| member.num_content_losses()));
        let barred = written_slots.map(|slot| mirror.slots.begin_write(slot)).fold(0, |all, members| all | members);
        let mut pending = PendingWrite { write, num_pending: 0, written: 0, content_losses, error: -libc::ENODEV };
        let index = self.requests.insert(Request::Write(pending));
        let (mut num_asked, mut num_failed) = (0, 0);
        for member in each(mirror.team.present() & !barred) {
            num_asked += 1;
            let token = Token::node(self.number, number_of(index, member));
            match self.members[member].write(io, WriteRequest { token, ..write }) {
                Write::Done => pending.written |= 1 << member,
                Write::Pending => pending.num_pending += 1,
                Write::Failed => {
                    num_failed += 1;
                    pending.error = -libc::EIO;
                }
            }
        }
        if pending.num_pending > 0 {
            self.requests.set(index, Request::Write(pending));
            return Write::Pending;
        }
        self.requests.remove(index);
        self.end_write(&pending);
        match pending.written {
            // Nobody is there, and that has a cause to be told.
            0 if num_asked == 0 => io.finish(write.token, Completion::of(pending.error)),
            0 => {
                debug_assert_eq!(num_failed, num_asked);
                return Write::Failed;
            }
            _ => return Write::Done,
        }
        Write::Pending
    }

    fn complete(&self, io: &IoQueue, number: u32, completion: Completion) {
        let (index, member) = answer_of(number);
        let mut pending = match self.requests.get(index).expect("a member answers once") {
            Request::Read(pending) => return self.end_read(io, index, member, pending, completion),
            Request::Write(pending) => pending,
        };
        let mirror = &*self.mirror;
        if completion.result == pending.write.num_bytes as i32 {
            pending.written |= 1 << member;
            mirror.team.note_success(member);
        } else {
            pending.error = if completion.result < 0 { completion.result } else { -libc::EIO };
            mirror.team.note_failure(member, completion.result);
        }
        pending.num_pending -= 1;
        if pending.num_pending > 0 {
            return self.requests.set(index, Request::Write(pending));
        }
        self.requests.remove(index);
        self.end_write(&pending);
        io.finish(pending.write.token, Completion::of(if pending.written == 0 { pending.error } else { pending.write.num_bytes as i32 }));
    }
}
