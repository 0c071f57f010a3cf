//! What a server sends: received in as large pieces as there are, and taken apart in place. The content of pages stays here until it is mapped, so the
//! socket's copy is the only one. Within TLS it is decrypted in place, to where the content before it ends, so that each page lies in one piece here, too.

use super::tls::session::Opened;
use super::wire::{REPLY_BYTES, parse_reply};
use crate::error::Result;
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use std::cell::Cell;

/// Most pages of an inbox: more per system call does not pay.
const MAX_PAGES: usize = 64;

/// Received bytes that were not taken yet lie in `start..end`, those that were not decrypted yet in `sealed_start..sealed_end` behind them; for one thread.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Mapping,
    /// Bytes of the longest reply.
    max_reply_bytes: usize,
    start: Cell<usize>,
    end: Cell<usize>,
    sealed_start: Cell<usize>,
    sealed_end: Cell<usize>,
}

/// A whole reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// As the protocol numbers it; 0 for none.
    pub(super) error: u32,
    /// Valid until the next [`Inbox::room`].
    pub(super) payload: *mut u8,
}

/// The server broke the protocol, so that nothing that follows can be understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Violation {
    NoReply,
    UnknownCookie(u64),
}

impl Inbox {
    /// For replies of at most `max_payload_pages`, with room for more of them at a time, in TLS records of at most `max_record_bytes` (0 without TLS).
    pub(super) fn new(num_reads: usize, max_payload_pages: usize, max_record_bytes: usize) -> Result<Self> {
        let num_pages = num_reads.min(MAX_PAGES).max(max_payload_pages) + 1 + max_record_bytes.div_ceil(PAGE_SIZE);
        let memory = Mapping::new(bytes_of(num_pages), PAGE_SIZE)?;
        memory.advise(libc::MADV_DONTFORK);
        let at_start = || Cell::new(0);
        let max_reply_bytes = REPLY_BYTES + bytes_of(max_payload_pages);
        Ok(Self { memory, max_reply_bytes, start: at_start(), end: at_start(), sealed_start: at_start(), sealed_end: at_start() })
    }

    /// Forgets what was received.
    pub(super) fn clear(&self) {
        self.start.set(0);
        self.set_end(0);
    }

    /// Nothing sealed is there.
    fn set_end(&self, end: usize) {
        debug_assert!(end <= self.memory.len());
        [&self.end, &self.sealed_start, &self.sealed_end].iter().for_each(|cell| cell.set(end));
    }

    /// Where to receive to; there is always room for the rest of a reply, and of a record. Payloads that were taken are gone.
    pub(super) fn room(&self) -> (*mut u8, usize) {
        let (start, end, sealed_start, sealed_end) = (self.start.get(), self.end.get(), self.sealed_start.get(), self.sealed_end.get());
        let len = self.memory.len();
        // What is there of a reply is moved only where the rest would not fit, or little more.
        if start == sealed_end || len - start < self.max_reply_bytes || len - sealed_end < len / 4 {
            let base = self.memory.base();
            // SAFETY: all ranges are in the mapping; `copy` allows them to overlap, and the second one is not moved to the left of where the first one ends.
            unsafe {
                std::ptr::copy(base.add(start), base, end - start);
                std::ptr::copy(base.add(sealed_start), base.add(end - start), sealed_end - sealed_start);
            }
            self.start.set(0);
            self.end.set(end - start);
            self.sealed_start.set(end - start);
            self.sealed_end.set(end - start + sealed_end - sealed_start);
        }
        let end = self.sealed_end.get();
        (self.memory.base().wrapping_add(end), len - end)
    }

    /// So many bytes have come there.
    pub(super) fn received(&self, num_bytes: usize) {
        self.set_end(self.end.get() + num_bytes);
    }

    /// So many have come there, of records that are to be opened: `open` gets memory and where in it the next one begins, and leaves its data, if all of the record
    /// is there, at the beginning.
    pub(super) fn received_sealed<E>(
        &self,
        num_bytes: usize,
        mut open: impl FnMut(&mut [u8], usize) -> std::result::Result<Option<Opened>, E>,
    ) -> std::result::Result<(), E> {
        self.sealed_end.set(self.sealed_end.get() + num_bytes);
        debug_assert!(self.sealed_end.get() <= self.memory.len());
        loop {
            let (end, sealed_start) = (self.end.get(), self.sealed_start.get());
            // SAFETY: so much was received there, nothing else refers to it, and what was taken lies before it.
            let memory = unsafe { std::slice::from_raw_parts_mut(self.memory.base().add(end), self.sealed_end.get() - end) };
            let Some(opened) = open(memory, sealed_start - end)? else { return Ok(()) };
            self.end.set(end + opened.data_bytes);
            self.sealed_start.set(sealed_start + opened.record_bytes);
        }
    }

    /// Takes the next reply, if all of it is there. `payload_bytes` tells how many bytes follow a successful reply with this cookie; `None`: nobody asked for one.
    pub(super) fn take(&self, payload_bytes: impl FnOnce(u64) -> Option<usize>) -> std::result::Result<Option<Reply>, Violation> {
        let (start, num_bytes) = (self.start.get(), self.end.get() - self.start.get());
        if num_bytes < REPLY_BYTES {
            return Ok(None);
        }
        let at = self.memory.base().wrapping_add(start);
        // SAFETY: so many bytes were received there, and nobody writes them.
        let header = unsafe { &*at.cast::<[u8; REPLY_BYTES]>() };
        let (error, cookie) = parse_reply(header).ok_or(Violation::NoReply)?;
        let asked = payload_bytes(cookie).ok_or(Violation::UnknownCookie(cookie))?;
        let len = REPLY_BYTES + if error == 0 { asked } else { 0 };
        debug_assert!(len <= self.max_reply_bytes);
        if num_bytes < len {
            return Ok(None);
        }
        self.start.set(start + len);
        Ok(Some(Reply { cookie, error, payload: at.wrapping_add(REPLY_BYTES) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(cookie: u64, error: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = 0x6744_6698u32.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn receive(inbox: &Inbox, bytes: &[u8]) {
        let (target, room) = inbox.room();
        assert!(bytes.len() <= room);
        // SAFETY: there is room.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        inbox.received(bytes.len());
    }

    #[test]
    fn what_was_not_asked_for_is_a_violation() {
        let inbox = Inbox::new(1, 1, 0).unwrap();
        receive(&inbox, &reply(7, 0, &[]));
        assert_eq!(inbox.take(|_| None), Err(Violation::UnknownCookie(7)));
        inbox.clear();
        receive(&inbox, &[0; REPLY_BYTES]);
        assert_eq!(inbox.take(|_| Some(0)), Err(Violation::NoReply));
    }

    /// A record here is a header with the lengths of its data and of all of it, the data, and something behind.
    fn open(memory: &mut [u8], start: usize) -> std::result::Result<Option<Opened>, ()> {
        let Some(header) = memory[start..].first_chunk::<5>() else { return Ok(None) };
        let data_bytes = usize::from(u16::from_be_bytes([header[1], header[2]]));
        let record_bytes = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if memory.len() < start + record_bytes {
            return Ok(None);
        }
        memory.copy_within(start + 5..start + 5 + data_bytes, 0);
        Ok(Some(Opened { record_bytes, data_bytes }))
    }

    fn seal(stream: &[u8], lengths: &[(usize, usize)]) -> Vec<u8> {
        let (mut sealed, mut rest) = (Vec::new(), stream);
        for (data_bytes, more) in lengths.iter().cycle() {
            let (data, behind) = rest.split_at(rest.len().min(*data_bytes));
            sealed.push(23);
            sealed.extend((data.len() as u16).to_be_bytes());
            sealed.extend(((5 + data.len() + more) as u16).to_be_bytes());
            sealed.extend(data);
            sealed.extend(vec![0xEE; *more]);
            rest = behind;
            if rest.is_empty() {
                return sealed;
            }
        }
        unreachable!("there are lengths");
    }

    const MAX_TEST_RECORD_BYTES: usize = 5 + 5000 + 300;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

        /// However the stream is cut, into records and otherwise, the same replies come out, each as soon as it is whole.
        #[test]
        fn a_stream_is_taken_apart(
            replies in prop::collection::vec((any::<u64>(), 0..2u32, 0..=2usize), 1..60),
            cuts in prop::collection::vec(1..9000usize, 1..20),
            lengths in prop::collection::vec((0..5000usize, 0..300usize), 0..6),
        ) {
            let num_pages = |cookie: u64| replies.iter().find(|(known, _, _)| *known == cookie).map(|(_, _, pages)| pages * PAGE_SIZE);
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (index, (cookie, error, _)) in replies.iter().enumerate() {
                let payload = vec![index as u8; if *error == 0 { num_pages(*cookie).unwrap() } else { 0 }];
                stream.extend(reply(*cookie, *error, &payload));
                expected.push((*cookie, *error, payload));
            }
            let is_sealed = lengths.iter().any(|(data_bytes, _)| *data_bytes > 0);
            let stream = if is_sealed { seal(&stream, &lengths) } else { stream };
            let inbox = Inbox::new(3, 2, if is_sealed { MAX_TEST_RECORD_BYTES } else { 0 }).unwrap();
            let (mut taken, mut done) = (Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let room = inbox.room().1;
                prop_assert!(room > 0);
                let part = &stream[done..stream.len().min(done + *cut.min(&room))];
                if is_sealed {
                    let (target, _) = inbox.room();
                    // SAFETY: there is room.
                    unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), target, part.len()) };
                    inbox.received_sealed(part.len(), open).unwrap();
                } else {
                    receive(&inbox, part);
                }
                done += part.len();
                while let Some(reply) = inbox.take(num_pages).unwrap() {
                    let len = if reply.error == 0 { num_pages(reply.cookie).unwrap() } else { 0 };
                    // SAFETY: a payload of so many bytes is there.
                    taken.push((reply.cookie, reply.error, unsafe { std::slice::from_raw_parts(reply.payload, len) }.to_vec()));
                }
                if done == stream.len() {
                    break;
                }
            }
            prop_assert_eq!(taken, expected);
        }
    }
}
