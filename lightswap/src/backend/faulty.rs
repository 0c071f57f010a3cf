//! `faulty(SCHEDULE):URL`: any other backend, and faults on purpose: errors, short transfers, flipped bits, pages of other slots, torn writes, delays.
//!
//! What goes wrong follows from the [`Schedule`], the number of the I/O and a seed. It is decided when the I/O is started; what is left to do at its
//! completion is kept for it ([`Pending`]), and those that nothing befalls go as they would without this backend.
//!
//! Around a backend without I/O, reads and writes complete through the worker's queue all the same.

use super::schedule::{Fault, MAX_FLIPPED_BITS, Misfit, Operation, Schedule};
use super::slab::Slab;
use super::{Backend, BackendQueue, QueueBuilder, Read, Write, WriteRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{Completion, IoQueue, Token};
use crate::parking::SpinLock;
use crate::size::{PAGE_SIZE, pages_in};
use crate::sys;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
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
    inner: Arc<dyn Backend>,
    schedule: Schedule,
    /// The inner backend copies at once.
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
    pub(super) fn new(inner: Arc<dyn Backend>, schedule: Schedule) -> Self {
        Self {
            is_immediate: inner.is_readable_now(0),
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

    /// Runs `action`, which copies at once if the inner backend does so: a read that goes astray must not meet a write.
    fn copying<R>(&self, action: impl FnOnce() -> R) -> R {
        if !self.is_immediate {
            return action();
        }
        self.copying.lock();
        let result = action();
        self.copying.unlock();
        result
    }
}

impl Backend for FaultyBackend {
    fn num_slots(&self) -> usize {
        self.inner.num_slots()
    }

    fn members(&self) -> Vec<&dyn Backend> {
        vec![&*self.inner]
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        let inner = builder.child(&self.inner, builder.num_reads, builder.num_writes)?;
        let pending = Slab::new(builder.num_reads + builder.num_writes);
        Ok(builder.add(number, Rc::new(FaultyQueue { number, faulty: self, inner, pending })))
    }

    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        self.inner.reserve(slot, num_slots)
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.copying(|| self.inner.discard(slot, num_slots));
    }

    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = vec![("faulty_reads", self.num_reads.load(Relaxed)), ("faulty_writes", self.num_writes.load(Relaxed))];
        stats.extend(INJECTED_NAMES.into_iter().zip(&self.injected).map(|(name, count)| (name, count.load(Relaxed))));
        stats
    }

    fn stop_faults(&self) {
        self.is_stopped.store(true, Relaxed);
        self.dead_until_ns.store(0, Relaxed);
        self.inner.stop_faults();
    }
}

/// What is made of an I/O when it completes.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Its result.
    AsItIs,
    /// This result: bytes, or a negative errno.
    Report(i32),
    /// Its result, and some bits of the page read are flipped.
    Flip(Flips),
    /// How it has ended, some time ago.
    Late(Completion),
}

/// An I/O that something befalls.
#[derive(Clone, Copy, Debug)]
struct Pending {
    token: Token,
    /// Of a read.
    target: Option<*mut u8>,
    outcome: Outcome,
    /// How much later it completes.
    delay_ms: u32,
}

struct FaultyQueue {
    number: usize,
    faulty: Arc<FaultyBackend>,
    inner: Rc<dyn BackendQueue>,
    pending: Slab<Pending>,
}

impl FaultyQueue {
    /// The token for the inner backend: the parent's own if nothing befalls the I/O.
    fn token(&self, pending: Pending) -> Token {
        if matches!(pending, Pending { outcome: Outcome::AsItIs, delay_ms: 0, .. }) {
            return pending.token;
        }
        Token::node(self.number, self.pending.insert(pending))
    }

    /// An I/O that does not reach the inner backend, or is over there.
    fn skip(&self, io: &IoQueue, pending: Pending, result: i32) {
        let index = self.pending.insert(pending);
        self.complete(io, index, Completion::of(result));
    }
}

impl BackendQueue for FaultyQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        let faulty = &*self.faulty;
        let (fault, delay_ms, random) = faulty.next(Operation::Read);
        let (mut from, mut outcome) = (Some(read.slot), Outcome::AsItIs);
        match fault {
            // Torn writes are none of ours.
            None | Some(Fault::Torn) => {}
            Some(Fault::Errno(errno)) => {
                faulty.count(Injected::ReadErrors);
                (from, outcome) = (None, Outcome::Report(-errno));
            }
            Some(Fault::Dead { .. }) => {
                faulty.count(Injected::Dead);
                (from, outcome) = (None, Outcome::Report(-libc::ENODEV));
            }
            Some(Fault::Short(num_bytes)) => {
                faulty.count(Injected::ShortReads);
                outcome = Outcome::Report(num_bytes.unwrap_or(PAGE_SIZE as u32 / 2) as i32);
            }
            Some(Fault::Flip(num_bits)) => {
                faulty.count(Injected::Flips);
                outcome = Outcome::Flip(Flips::new(random, num_bits));
            }
            Some(Fault::Misdirect) => {
                let other = faulty.other_slot(read.slot, random);
                if other != read.slot {
                    faulty.count(Injected::Misdirects);
                }
                from = Some(other);
            }
        }
        let pending = Pending { token: read.token, target: Some(read.target), outcome, delay_ms };
        match from {
            None => self.skip(io, pending, 0),
            Some(slot) => faulty.copying(|| self.inner.read(io, Read { slot, token: self.token(pending), ..read })),
        }
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        let faulty = &*self.faulty;
        let WriteRequest { slot, num_bytes, token, .. } = write;
        let (fault, delay_ms, random) = faulty.next(Operation::Write);
        let to_sector = |num_bytes: usize| num_bytes / SECTOR_BYTES * SECTOR_BYTES;
        // Bytes that reach the slots, and what is said of that.
        let (arriving, outcome) = match fault {
            Some(Fault::Errno(errno)) => {
                faulty.count(Injected::WriteErrors);
                (0, Outcome::Report(-errno))
            }
            Some(Fault::Dead { .. }) => {
                faulty.count(Injected::Dead);
                (0, Outcome::Report(-libc::ENODEV))
            }
            Some(Fault::Short(wanted)) => {
                faulty.count(Injected::ShortWrites);
                let wanted = wanted.map_or(num_bytes / 2, |wanted| wanted as usize).min(num_bytes - 1);
                (to_sector(wanted), Outcome::Report(wanted as i32))
            }
            Some(Fault::Torn) => {
                faulty.count(Injected::TornWrites);
                (to_sector(random as usize % num_bytes), Outcome::Report(num_bytes as i32))
            }
            // Flips and misdirections are for reads.
            None | Some(Fault::Flip(_) | Fault::Misdirect) => (num_bytes, Outcome::AsItIs),
        };
        let written = slot + random as usize % pages_in(num_bytes).max(1);
        faulty.recent[(random >> 32) as usize % NUM_RECENT].store(written, Relaxed);
        let pending = Pending { token, target: None, outcome, delay_ms };
        if arriving == 0 {
            self.skip(io, pending, num_bytes as i32);
            return Write::Pending;
        }
        let token = self.token(pending);
        match faulty.copying(|| self.inner.write(io, WriteRequest { num_bytes: arriving, token, ..write })) {
            Write::Pending => {}
            // Not by way of the list to a request of this node's: it would end behind all that are on the list already, and whether swap-outs fail is told
            // by the last one that has ended.
            Write::Done => match token.index_of(self.number) {
                Some(index) => self.complete(io, index, Completion::of(num_bytes as i32)),
                None => io.finish(token, Completion::of(num_bytes as i32)),
            },
            Write::Failed => {
                if let Some(index) = token.index_of(self.number) {
                    self.pending.remove(index);
                }
                return Write::Failed;
            }
        }
        Write::Pending
    }

    fn complete(&self, io: &IoQueue, index: u32, completion: Completion) {
        let pending = self.pending.get(index).expect("it completes once");
        let mut completion = completion;
        match pending.outcome {
            Outcome::Report(reported) => completion.result = reported,
            Outcome::Late(earlier) => completion = earlier,
            _ => {}
        }
        if let Some(target) = pending.target {
            let content = if completion.content.is_null() { target } else { completion.content };
            // SAFETY: the page just read is the reader's, and the read not over before this returns.
            let page = unsafe { std::slice::from_raw_parts_mut(content, PAGE_SIZE) };
            match pending.outcome {
                Outcome::Flip(flips) if completion.result == PAGE_SIZE as i32 => flips.apply(page),
                Outcome::Report(result @ 0..) => page[(result as usize).min(PAGE_SIZE)..].fill(JUNK),
                _ => {}
            }
            if pending.delay_ms > 0 && content != target {
                // It will be gone by then.
                // SAFETY: as above; the target is another page.
                unsafe { std::ptr::copy_nonoverlapping(content, target, PAGE_SIZE) };
                completion.content = target;
            }
        }
        if pending.delay_ms == 0 {
            self.pending.remove(index);
            return io.finish(pending.token, completion);
        }
        self.pending.set(index, Pending { outcome: Outcome::Late(completion), delay_ms: 0, ..pending });
        io.push_timeout(Duration::from_millis(pending.delay_ms.into()), Token::node(self.number, index));
    }
}

/// Some bits of a page, all different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flips {
    first: u32,
    count: u32,
}

impl Flips {
    /// `count` bits from one that `random` chooses on.
    fn new(random: u64, count: u32) -> Self {
        debug_assert!(count <= MAX_FLIPPED_BITS);
        Self { first: (random >> 20) as u32, count }
    }

    /// Flips them.
    fn apply(self, page: &mut [u8]) {
        // An odd step comes back to the first bit only after all of them.
        const STEP: u32 = 4099;
        for index in 0..self.count {
            let bit = (self.first as usize + (index * STEP) as usize) % (8 * PAGE_SIZE);
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lightswap;
    use crate::region::{self, Contract};
    use crate::worker;

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
    fn as_many_bits_are_flipped_as_were_asked_for() {
        for (random, count) in [(0, 1), (u64::MAX, 1), (7 << 30, 2), (u64::MAX, MAX_FLIPPED_BITS)] {
            let mut page = [0; PAGE_SIZE];
            Flips::new(random, count).apply(&mut page);
            assert_eq!(page.iter().map(|byte| byte.count_ones()).sum::<u32>(), count);
            Flips::new(random, count).apply(&mut page);
            assert_eq!(page, [0; PAGE_SIZE]);
        }
    }

    /// A short write in the midst of a batch is no sign that those after it, which succeed, fail as well.
    #[test]
    fn writes_end_in_the_order_in_which_they_were_started() {
        let schedule = "write@1=short;write@2=EIO;write@3=torn";
        let Ok(swap) = Lightswap::builder().local_memory(1 << 20).backend(format!("faulty({schedule}):memory:?size=1MiB")).open() else { return };
        let of_user = swap.create_region(8 * PAGE_SIZE, Contract::Transparent).unwrap();
        let page = region::find(of_user.as_ptr() as usize).unwrap().page(3);
        let source = page.address() as *const u8;
        crate::touch(source, 1).unwrap();
        let handle = swap.enter_worker().unwrap();
        let worker = worker::current().unwrap();
        let tokens = [0, 1, 2, 3].map(|run| Token::write(0, run));
        for token in tokens {
            assert_eq!(worker.start_write(WriteRequest { slot: page.slot(), source, num_bytes: PAGE_SIZE, token }), Write::Pending);
        }
        let ended = tokens.map(|_| worker.queue().take_finished().map(|(token, completion)| (token, completion.result)));
        assert_eq!(ended, [(tokens[0], 2048), (tokens[1], -libc::EIO), (tokens[2], 4096), (tokens[3], 4096)].map(Some));
        drop(handle);
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
