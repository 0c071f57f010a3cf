//! `faulty(SCHEDULE):URL`: any other backend, and faults on purpose: errors, short transfers, flipped bits, pages of other slots, torn writes, delays.
//!
//! What goes wrong follows from the [`Schedule`], the number of the I/O and a seed. It is decided when the I/O is started, and what is left to do at its
//! completion travels with its token ([`Mark`]): nothing is kept for an I/O in flight, and those that nothing befalls go as they would without this backend.
//!
//! Around a backend without I/O, reads and writes complete through the queue all the same, with a request that does nothing.

use super::mark::{Flips, Mark, Outcome};
use super::schedule::{Fault, Misfit, Operation, Schedule};
use super::{Backend, Write};
use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{IoQueue, Token};
use crate::parking::SpinLock;
use crate::size::{PAGE_SIZE, pages_in};
use crate::sys;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

/// What torn and short writes are cut to: the least that devices take.
const SECTOR_BYTES: usize = 512;
/// Slots remembered for reads that go astray.
const NUM_RECENT: usize = 16;
const NO_SLOT: usize = usize::MAX;
/// What lies in a buffer where a short read has not put anything.
const JUNK: u8 = 0xE5;

/// What was injected; places of [`FaultyBackend::injected`].
#[derive(Clone, Copy, Debug)]
enum Injected {
    ReadErrors,
    WriteErrors,
    ShortReads,
    ShortWrites,
    Flips,
    Misdirects,
    TornWrites,
    Delays,
    /// I/Os that failed because the backend was dead.
    Dead,
}

const INJECTED_NAMES: [&str; 9] = [
    "injected_read_errors",
    "injected_write_errors",
    "injected_short_reads",
    "injected_short_writes",
    "injected_flips",
    "injected_misdirects",
    "injected_torn_writes",
    "injected_delays",
    "injected_dead",
];

#[derive(Debug)]
pub(super) struct FaultyBackend {
    inner: Box<dyn Backend>,
    schedule: Schedule,
    /// The inner backend copies at once; otherwise it has a file, and takes requests.
    is_immediate: bool,
    /// Around copies of an immediate backend: a read that goes astray may meet a write. No region memory that could be missing is touched meanwhile.
    copying: SpinLock,
    num_reads: AtomicU64,
    num_writes: AtomicU64,
    /// Everything fails until then; 0: nothing did, u64::MAX: for ever.
    dead_until_ns: AtomicU64,
    is_stopped: AtomicBool,
    /// Slots that were written, or NO_SLOT.
    recent: [AtomicUsize; NUM_RECENT],
    injected: [AtomicU64; INJECTED_NAMES.len()],
}

/// Takes the schedule off a URL that begins with `faulty(`; `None` for others.
pub(super) fn split(url: &str) -> Result<Option<(Schedule, &str)>> {
    const START: &str = "faulty(";
    let refused = |at: usize, what: &str| Err(explain(url, at, what));
    if url == "faulty" || url.starts_with("faulty:") {
        return refused("faulty".len(), "\"(\" is expected: faulty(read%0.01=EIO):memory:?size=64MiB");
    }
    let Some(rest) = url.strip_prefix(START) else { return Ok(None) };
    let Some(len) = rest.find(')') else { return refused(url.len(), "the schedule has no end: \")\" is expected") };
    let schedule = Schedule::parse(&rest[..len]).map_err(|Misfit { at, what }| explain(url, START.len() + at, &what))?;
    let end = START.len() + len + 1;
    let Some(inner) = url[end..].strip_prefix(':') else { return refused(end, "\":\" and the URL of another backend are expected") };
    if inner.starts_with("faulty(") {
        return refused(end + 1, "faulty cannot wrap itself: put all rules into one schedule");
    }
    Ok(Some((schedule, inner)))
}

/// What is wrong at a byte of a URL, with the text there.
fn explain(url: &str, at: usize, what: &str) -> Error {
    const NUM_SHOWN: usize = 20;
    let num_before = url[..at].chars().count();
    let before: String = url[..at].chars().skip(num_before.saturating_sub(NUM_SHOWN)).collect();
    let after: String = url[at..].chars().take(NUM_SHOWN).collect();
    let place = if after.is_empty() { "at its end".into() } else { format!("before {after:?}") };
    Error::new(ErrorKind::BackendUrl, format!("the backend URL does not parse at byte {at}, after {before:?}, {place}: {what}"))
}

impl FaultyBackend {
    pub(super) fn new(inner: Box<dyn Backend>, schedule: Schedule) -> Self {
        Self {
            is_immediate: inner.file().is_none(),
            inner,
            schedule,
            copying: SpinLock::new(),
            num_reads: AtomicU64::new(0),
            num_writes: AtomicU64::new(0),
            dead_until_ns: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            recent: [const { AtomicUsize::new(NO_SLOT) }; NUM_RECENT],
            injected: [const { AtomicU64::new(0) }; INJECTED_NAMES.len()],
        }
    }

    fn count(&self, kind: Injected) {
        self.injected[kind as usize].fetch_add(1, Relaxed);
    }

    /// What befalls the next I/O of its kind: fault, delay in milliseconds, and a random number for the rest.
    fn next(&self, operation: Operation) -> (Option<Fault>, u32, u64) {
        let counter = if operation == Operation::Read { &self.num_reads } else { &self.num_writes };
        let number = counter.fetch_add(1, Relaxed) + 1;
        if self.is_stopped.load(Relaxed) {
            return (None, 0, 0);
        }
        let verdict = self.schedule.verdict(operation, number);
        let mut fault = verdict.fault;
        if let Some(Fault::Dead { duration_ms }) = fault {
            let until_ns = duration_ms.map_or(u64::MAX, |duration_ms| sys::now_ns() + u64::from(duration_ms) * 1_000_000);
            self.dead_until_ns.fetch_max(until_ns, Relaxed);
        } else if self.is_dead() {
            fault = Some(Fault::Dead { duration_ms: None });
        }
        if verdict.delay_ms > 0 {
            self.count(Injected::Delays);
        }
        (fault, verdict.delay_ms, verdict.random)
    }

    fn is_dead(&self) -> bool {
        let until_ns = self.dead_until_ns.load(Relaxed);
        until_ns > 0 && sys::now_ns() < until_ns
    }

    /// The slot that a read of `slot` reads when it goes astray; `slot` itself if there is no other.
    fn other_slot(&self, slot: usize, random: u64) -> usize {
        let candidate = |step: usize| self.recent[(random as usize).wrapping_add(step) % NUM_RECENT].load(Relaxed);
        let written = (0..NUM_RECENT).map(candidate).find(|other| *other != NO_SLOT && *other != slot);
        written.unwrap_or((slot + 1) % self.num_slots())
    }

    /// Reads a slot of an immediate backend.
    fn copy_out(&self, slot: usize, target: *mut u8) {
        let content = self.inner.content(slot).expect("a backend without a file has its slots in memory");
        self.copying.lock();
        // SAFETY: the slot and the worker's buffer are a page each; no slot is written without the lock, and the buffer is of the caller alone.
        unsafe { std::ptr::copy_nonoverlapping(content, target, PAGE_SIZE) };
        self.copying.unlock();
    }
}

impl Backend for FaultyBackend {
    fn num_slots(&self) -> usize {
        self.inner.num_slots()
    }

    fn file(&self) -> Option<RawFd> {
        self.inner.file()
    }

    fn start_read(&self, queue: &IoQueue, slot: usize, buffer: usize, target: *mut u8) {
        let (fault, delay_ms, random) = self.next(Operation::Read);
        let (mut from, mut outcome) = (Some(slot), Outcome::AsItIs);
        match fault {
            // Torn writes are none of ours.
            None | Some(Fault::Torn) => {}
            Some(Fault::Errno(errno)) => {
                self.count(Injected::ReadErrors);
                (from, outcome) = (None, Outcome::Report(-errno));
            }
            Some(Fault::Dead { .. }) => {
                self.count(Injected::Dead);
                (from, outcome) = (None, Outcome::Report(-libc::ENODEV));
            }
            Some(Fault::Short(num_bytes)) => {
                self.count(Injected::ShortReads);
                outcome = Outcome::Report(num_bytes.unwrap_or(PAGE_SIZE as u32 / 2) as i32);
            }
            Some(Fault::Flip(num_bits)) => {
                self.count(Injected::Flips);
                outcome = Outcome::Flip(Flips::new(random, num_bits));
            }
            Some(Fault::Misdirect) => {
                let other = self.other_slot(slot, random);
                if other != slot {
                    self.count(Injected::Misdirects);
                }
                from = Some(other);
            }
        }
        let token = Token::read(buffer);
        match from {
            None => queue.push_nothing(token.marked(Mark { outcome, delay_ms }.encode())),
            Some(from) if self.is_immediate => {
                self.copy_out(from, target);
                // The request that does nothing returns 0, so the flipping is done here.
                if let Outcome::Flip(flips) = outcome {
                    // SAFETY: the buffer is a page, and the caller's alone.
                    flips.apply(unsafe { std::slice::from_raw_parts_mut(target, PAGE_SIZE) });
                }
                let reported = if let Outcome::Report(reported) = outcome { reported } else { PAGE_SIZE as i32 };
                queue.push_nothing(token.marked(Mark { outcome: Outcome::Report(reported), delay_ms }.encode()));
            }
            Some(from) => {
                let mark = Mark { outcome, delay_ms };
                if mark.is_plain() {
                    self.inner.start_read(queue, from, buffer, target);
                } else {
                    self.inner.start_marked_read(queue, from, token.marked(mark.encode()), target);
                }
            }
        }
    }

    fn start_marked_read(&self, _: &IoQueue, _: usize, _: Token, _: *mut u8) {
        unreachable!("no backend is around this one");
    }

    fn write_bytes(&self, queue: &IoQueue, slot: usize, source: *const u8, num_bytes: usize, token: Token) -> Write {
        let (fault, delay_ms, random) = self.next(Operation::Write);
        let to_sector = |num_bytes: usize| num_bytes / SECTOR_BYTES * SECTOR_BYTES;
        // Bytes that reach the slots, and what is said of that.
        let (arriving, outcome) = match fault {
            Some(Fault::Errno(errno)) => {
                self.count(Injected::WriteErrors);
                (0, Outcome::Report(-errno))
            }
            Some(Fault::Dead { .. }) => {
                self.count(Injected::Dead);
                (0, Outcome::Report(-libc::ENODEV))
            }
            Some(Fault::Short(wanted)) => {
                self.count(Injected::ShortWrites);
                let wanted = wanted.map_or(num_bytes / 2, |wanted| wanted as usize).min(num_bytes - 1);
                (to_sector(wanted), Outcome::Report(wanted as i32))
            }
            Some(Fault::Torn) => {
                self.count(Injected::TornWrites);
                (to_sector(random as usize % num_bytes), Outcome::Report(num_bytes as i32))
            }
            // Flips and misdirections are for reads.
            None | Some(Fault::Flip(_) | Fault::Misdirect) => (num_bytes, Outcome::AsItIs),
        };
        let written = slot + random as usize % pages_in(num_bytes).max(1);
        self.recent[(random >> 32) as usize % NUM_RECENT].store(written, Relaxed);
        let mark = Mark { outcome, delay_ms };
        if arriving > 0 && !self.is_immediate {
            let token = if mark.is_plain() { token } else { token.marked(mark.encode()) };
            return self.inner.write_bytes(queue, slot, source, arriving, token);
        }
        if arriving > 0 {
            self.copying.lock();
            let result = self.inner.write_bytes(queue, slot, source, arriving, token);
            self.copying.unlock();
            if matches!(result, Write::Failed) {
                return result;
            }
        }
        let reported = if let Outcome::Report(reported) = outcome { reported } else { num_bytes as i32 };
        queue.push_nothing(token.marked(Mark { outcome: Outcome::Report(reported), delay_ms }.encode()));
        Write::Pending
    }

    fn settle(&self, queue: &IoQueue, token: Token, result: i32, target: Option<*mut u8>) -> Option<i32> {
        let Mark { outcome, delay_ms } = Mark::decode(token.mark());
        let result = if let Outcome::Report(reported) = outcome { reported } else { result };
        // SAFETY: the target is a buffer of the calling worker, whose read is not over before this returns.
        let page = target.map(|target| unsafe { std::slice::from_raw_parts_mut(target, PAGE_SIZE) });
        match (outcome, page) {
            (Outcome::Flip(flips), Some(page)) if result == PAGE_SIZE as i32 => flips.apply(page),
            (Outcome::Report(0..), Some(page)) => page[result as usize..].fill(JUNK),
            _ => {}
        }
        if delay_ms == 0 {
            return Some(result);
        }
        let later = Mark { outcome: Outcome::Report(result), delay_ms: 0 };
        queue.push_timeout(Duration::from_millis(delay_ms.into()), token.unmarked().marked(later.encode()));
        None
    }

    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        self.inner.reserve(slot, num_slots)
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.copying.lock();
        self.inner.discard(slot, num_slots);
        self.copying.unlock();
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = vec![("faulty_reads", self.num_reads.load(Relaxed)), ("faulty_writes", self.num_writes.load(Relaxed))];
        stats.extend(INJECTED_NAMES.into_iter().zip(&self.injected).map(|(name, count)| (name, count.load(Relaxed))));
        stats.extend(self.inner.stats());
        stats
    }

    fn stop_faults(&self) {
        self.is_stopped.store(true, Relaxed);
        self.dead_until_ns.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for plain in ["memory:?size=1MiB", "file:/faulty(x):y", "", "faultyx:"] {
            assert!(split(plain).unwrap().is_none(), "{plain}");
        }
        let (schedule, inner) = split("faulty(seed=3;read@1=EIO):file:/a(b):c?size=1").unwrap().unwrap();
        assert_eq!((schedule, inner), (Schedule::parse("seed=3;read@1=EIO").unwrap(), "file:/a(b):c?size=1"));
        assert_eq!(split("faulty():memory:").unwrap().unwrap().1, "memory:");
    }

    #[test]
    fn what_does_not_parse_is_shown_with_its_place() {
        for (url, text) in [
            ("faulty", "at byte 6, after \"faulty\", at its end: \"(\" is expected"),
            ("faulty:memory:", "at byte 6, after \"faulty\", before \":memory:\": \"(\" is expected"),
            ("faulty(", "at byte 7, after \"faulty(\", at its end: the schedule has no end"),
            ("faulty(read@1=EIO", "at byte 17, after \"faulty(read@1=EIO\", at its end"),
            ("faulty()", "at byte 8, after \"faulty()\", at its end: \":\" and"),
            ("faulty()memory:", "at byte 8, after \"faulty()\", before \"memory:\": \":\" and"),
            ("faulty():faulty():memory:", "at byte 9, after \"faulty():\", before \"faulty():memory:\": faulty cannot wrap itself"),
            ("faulty(read@x=EIO):memory:", "at byte 12, after \"faulty(read@\", before \"x=EIO):memory:\": the number of an I/O"),
            ("faulty(seed=1;write@1=flip):memory:?size=1MiB", "at byte 22, after \"ulty(seed=1;write@1=\", before \"flip):memory:?size=1\": flip is"),
            ("faulty(sééd):m", "at byte 7, after \"faulty(\", before \"sééd):m\": a rule"),
            ("faulty(read@1=\n):m", "before \"\\n):m\": \"\" is no action"),
        ] {
            let error = split(url).expect_err(url).to_string();
            assert!(error.contains(text), "{url:?}: {error}");
            assert!(!error.contains('\n') && error.len() < 400, "{error}");
        }
    }
}
