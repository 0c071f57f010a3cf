//! The pager of an instance: what all its workers and threads share.

use crate::backend::{self, Backend};
use crate::budget::Budget;
use crate::config::{Config, Waiting};
use crate::error::{Error, ErrorKind, Result};
use crate::hand::Hand;
use crate::size::{PAGE_SIZE, bytes_of, format_size, pages_in};
use crate::snapshot::Snapshots;
use crate::stats::Stats;
use crate::sys;
use crate::sys::removal::Remover;
use crate::sys::uffd::Uffd;
use crate::worker::{Role, WorkerShared};
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use twox_hash::XxHash3_64;

/// Most workers of an instance.
const MAX_WORKERS: usize = 1024;
/// Fewest pages of local memory: a single instruction can need several at once.
const MIN_LOCAL_PAGES: usize = 16;
/// Buffers of a worker whose LWTs are suspended while they read, where local memory is plentiful: the reads it can have in flight.
const MAX_BUFFERS: usize = 256;
/// Buffers of a worker that polls: it waits for one page at a time, beside what was prefetched or belongs to the same range.
const MAX_BUFFERS_OF_POLLING: usize = 16;
/// All buffers together take at most this part of local memory, beyond the one that each worker that reads must have.
const BUFFER_SHARE: usize = 8;
/// Most pins of all pages together; a page's word has room for twice as many.
const MAX_PINS: usize = 1 << 15;
/// XXH3 takes a secret of at least 136 bytes.
const SECRET_BYTES: usize = 192;

/// What all workers and threads of an instance share.
#[derive(Debug)]
pub(crate) struct Pager {
    pub(crate) config: Config,
    pub(crate) uffd: Uffd,
    pub(crate) remover: Remover,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) budget: Budget,
    pub(crate) hand: Hand,
    /// Of the threads that are no workers.
    pub(crate) thread_stats: Stats,
    num_buffers: NumBuffers,
    /// As it was set last; the budget may still be on its way down.
    local_memory: Mutex<u64>,
    /// The pager thread is seeing to that.
    pub(crate) is_shrinking: AtomicBool,
    /// Keeps hashes unpredictable, so that nobody can make a page whose change goes unnoticed.
    secret: [u8; SECRET_BYTES],
    zero_page_hash: u64,
    num_pinned: AtomicUsize,
    /// The last swap-out failed: writes pause, and no fresh memory is handed out.
    is_failing: AtomicBool,
    /// Evict batches whose writes take too long: that is failing, too, until they end.
    num_overdue: AtomicUsize,
    /// That is to be logged, by the pager thread: it may have come up in a signal handler.
    must_log_failure: AtomicBool,
    must_log_overdue: AtomicBool,
    /// While they fail: when reclaim ahead of demand, or without any, may next try whether they work again.
    retry_at_ns: AtomicU64,
    /// All workers there ever were; they stay for their statistics.
    workers: Mutex<Vec<&'static WorkerShared>>,
    /// The thread that serves faults of threads which are no workers; with some settings it does more, see [`crate::worker::Role`].
    pub(crate) pager_thread: OnceLock<&'static WorkerShared>,
    slots: Mutex<Vec<(usize, usize)>>,
    /// This process is a child of the one that has the instance.
    is_inherited: AtomicBool,
    /// If children of fork are to be snapshots.
    pub(crate) snapshots: Option<Snapshots>,
}

/// A page of zeroes, the source of first-touched pages.
#[repr(align(4096))]
pub(crate) struct ZeroPage(pub(crate) [u8; PAGE_SIZE]);
pub(crate) static ZERO_PAGE: ZeroPage = ZeroPage([0; PAGE_SIZE]);

impl Pager {
    pub(crate) fn open(config: Config) -> Result<Self> {
        config.check()?;
        // Before anything is opened; again when it is known what the backend needs.
        divide_memory(&config, 0)?;
        let uffd = Uffd::open(config.faults_sleep())?;
        let backend = backend::open(&config.backend_url)?;
        let (capacity, num_buffers) = divide_memory(&config, backend.staging_pages_per_read())?;
        let secret = random_secret()?;
        Ok(Self {
            uffd,
            remover: Remover::new(config.vectored_removal),
            backend,
            budget: Budget::new(capacity),
            hand: Hand::new(),
            thread_stats: Stats::default(),
            num_buffers,
            local_memory: Mutex::new(config.local_memory_bytes),
            is_shrinking: AtomicBool::new(false),
            zero_page_hash: hash_with(&secret, &ZERO_PAGE.0),
            secret,
            num_pinned: AtomicUsize::new(0),
            is_failing: AtomicBool::new(false),
            num_overdue: AtomicUsize::new(0),
            must_log_failure: AtomicBool::new(false),
            must_log_overdue: AtomicBool::new(false),
            retry_at_ns: AtomicU64::new(0),
            workers: Mutex::new(Vec::new()),
            pager_thread: OnceLock::new(),
            slots: Mutex::new(Vec::new()),
            is_inherited: AtomicBool::new(false),
            snapshots: if config.snapshots { Some(Snapshots::new(pages_in(config.local_memory_bytes as usize))?) } else { None },
            config,
        })
    }

    /// Hash of a page's content under this process's secret.
    ///
    /// # Safety
    /// The page at `content` is readable, and nobody writes it meanwhile.
    pub(crate) unsafe fn hash_page(&self, content: *const u8) -> u64 {
        // SAFETY: the caller's promise.
        hash_with(&self.secret, unsafe { std::slice::from_raw_parts(content, PAGE_SIZE) })
    }

    pub(crate) fn is_zero_hash(&self, hash: u64) -> bool {
        hash == self.zero_page_hash
    }

    /// Buffers that a worker of this role gets.
    pub(crate) fn num_buffers(&self, role: Role) -> usize {
        match role {
            Role::Application => self.num_buffers.of_worker,
            Role::PagerThread => self.num_buffers.of_pager_thread,
        }
    }

    /// Whether a prefetch may take a frame. Where workers reclaim, frames that are low mean that one of them is about to, and it should not do so for a hint. Where the
    /// pager thread alone does, it makes frames all the time, and they are low whenever it is not ahead: only one for each worker's next fault is kept.
    pub(crate) fn may_prefetch(&self) -> bool {
        match self.config.waiting {
            Waiting::Suspend => !self.budget.is_low(),
            Waiting::Poll => self.budget.can_spare(self.config.max_workers),
        }
    }

    /// The time if steps are timed, otherwise 0.
    pub(crate) fn step_clock(&self) -> u64 {
        if self.config.step_times { sys::now_ns() } else { 0 }
    }

    /// The time limit of a request.
    pub(crate) fn io_timeout_ns(&self) -> u64 {
        u64::try_from(self.config.io_timeout.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Remembers how the last swap-out went.
    pub(crate) fn note_swap_out(&self, succeeded: bool) {
        if self.is_failing.load(Relaxed) == succeeded {
            self.is_failing.store(!succeeded, Relaxed);
            self.must_log_failure.store(!succeeded, Relaxed);
            self.wake_for_failure();
        }
    }

    /// The writes of one more batch take too long.
    pub(crate) fn begin_overdue(&self) {
        if self.num_overdue.fetch_add(1, Relaxed) == 0 {
            self.must_log_overdue.store(true, Relaxed);
            self.wake_for_failure();
        }
    }

    /// Those of one such batch have ended.
    pub(crate) fn end_overdue(&self) {
        self.num_overdue.fetch_sub(1, Relaxed);
        self.wake_for_failure();
    }

    /// From now on those who wait for a frame look at the clock, or need to no more.
    fn wake_for_failure(&self) {
        self.pager_thread().nudge();
        self.budget.notify(usize::MAX);
    }

    /// Pager thread: says so once when swap-outs begin to fail.
    pub(crate) fn log_swap_out_failure(&self) {
        let backend = &self.config.backend_url;
        if self.must_log_failure.load(Relaxed) && self.must_log_failure.swap(false, Relaxed) {
            tracing::warn!(backend, "a write to the swap backend failed; its pages stay resident and are tried again");
        }
        if self.must_log_overdue.load(Relaxed) && self.must_log_overdue.swap(false, Relaxed) {
            tracing::warn!(backend, "a write to the swap backend takes longer than the time limit; its pages stay resident until it ends");
        }
    }

    /// While swap-outs fail: whether it is time to try one; true for one caller.
    pub(crate) fn may_retry(&self) -> bool {
        let (now, due) = (sys::now_ns(), self.retry_at_ns.load(Relaxed));
        let next = now + crate::evict::RETRY_PAUSE.as_nanos() as u64;
        now >= due && self.retry_at_ns.compare_exchange(due, next, Relaxed, Relaxed).is_ok()
    }

    /// Whether the last swap-out failed, or any takes too long.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing.load(Relaxed) || self.num_overdue.load(Relaxed) > 0
    }

    pub(crate) fn workers(&self) -> MutexGuard<'_, Vec<&'static WorkerShared>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most pins at a time: half of local memory always stays for those who are on their way, and a page's count of pins cannot overflow.
    pub(crate) fn pin_limit(&self) -> usize {
        (self.budget.goal() / 2).min(MAX_PINS)
    }

    /// Local memory as it was set last.
    pub(crate) fn local_memory_bytes(&self) -> u64 {
        *self.local_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets it anew. Buffers stay as they are, so the difference is one of frames.
    pub(crate) fn set_local_memory(&self, num_bytes: u64) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        let mut local_memory = self.local_memory.lock().unwrap_or_else(PoisonError::into_inner);
        let num_pages = check_size(num_bytes)?;
        let num_buffers = self.num_buffers.total(self.config.max_workers);
        let num_frames = num_pages.saturating_sub(num_buffers);
        if num_frames < MIN_LOCAL_PAGES {
            let (size, least) = (format_size(num_bytes), format_size(bytes_of(MIN_LOCAL_PAGES + num_buffers) as u64));
            return bad(format!(
                "local memory of {size} is too small beside the I/O buffers, which stay as they were at the start: at least {least} is needed"
            ));
        }
        // First the new limit of pins, then a look at them: nobody pins beyond it from here on.
        let before = self.budget.goal();
        self.budget.set_goal(num_frames);
        let num_pinned = self.num_pinned();
        if num_frames < before && num_pinned > self.pin_limit() {
            self.budget.set_goal(before);
            let (size, least) = (format_size(num_bytes), format_size(bytes_of(2 * num_pinned + num_buffers) as u64));
            let message = format!(
                "local memory of {size} is too small for the {num_pinned} pages that are pinned, half of it at most: unpin some, or give it {least}"
            );
            return Err(Error::new(ErrorKind::PinLimit, message));
        }
        *local_memory = num_bytes;
        drop(local_memory);
        self.pager_thread().poke();
        Ok(())
    }

    /// Announces `num_pages` new pins; `false` if that would be too many.
    pub(crate) fn take_pins(&self, num_pages: usize) -> bool {
        if self.num_pinned.fetch_add(num_pages, AcqRel) + num_pages <= self.pin_limit() {
            return true;
        }
        self.num_pinned.fetch_sub(num_pages, AcqRel);
        false
    }

    pub(crate) fn give_pins_back(&self, num_pages: usize) {
        self.num_pinned.fetch_sub(num_pages, AcqRel);
    }

    /// The backend's counters, those of its parts that have the same name added up.
    pub(crate) fn backend_stats(&self) -> Vec<(&'static str, u64)> {
        let mut sums: Vec<(&'static str, u64)> = Vec::new();
        for (name, value) in self.backend.stats() {
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        sums
    }

    /// Whether it came into this process by fork. Async-signal-safe.
    pub(crate) fn is_inherited(&self) -> bool {
        self.is_inherited.load(Relaxed)
    }

    /// A child of fork has neither its thread nor what is known of its backend.
    pub(crate) fn expect_own(&self) -> Result<()> {
        if self.is_inherited() {
            let message = "this process is a fork of the one that opened this Lightswap instance: only that one can do this; open another one here";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(())
    }

    pub(crate) fn set_inherited(&self) {
        self.is_inherited.store(true, Relaxed);
    }

    pub(crate) fn num_pinned(&self) -> usize {
        self.num_pinned.load(Relaxed)
    }

    /// A contiguous range of free slots, first fit.
    pub(crate) fn take_slots(&self, num_slots: usize) -> Result<usize> {
        let mut taken = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first = 0;
        let mut place = 0;
        for (index, &(start, len)) in taken.iter().enumerate() {
            if start - first >= num_slots {
                break;
            }
            first = start + len;
            place = index + 1;
        }
        if self.backend.num_slots() - first < num_slots {
            let (wanted, size) = (format_size((num_slots * PAGE_SIZE) as u64), format_size((self.backend.num_slots() * PAGE_SIZE) as u64));
            let message = format!(
                "backend \"{}\" is too small: it holds {size} in all, and a region that takes {wanted} does not fit beside the others{}",
                self.config.backend_url,
                if self.snapshots.is_some() { " (with snapshots a region takes twice its size)" } else { "" }
            );
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        taken.insert(place, (first, num_slots));
        Ok(first)
    }

    /// Slots of the largest region that can be made now.
    pub(crate) fn room(&self) -> usize {
        let taken = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = taken.iter().map(|&(start, len)| (start, start + len)).chain([(self.backend.num_slots(), 0)]);
        let mut free_from = 0;
        let mut most = 0;
        for (start, end) in ends {
            most = most.max(start - free_from);
            free_from = end;
        }
        most
    }

    /// Slots of each page.
    pub(crate) fn slots_per_page(&self) -> usize {
        if self.snapshots.is_some() { 2 } else { 1 }
    }

    pub(crate) fn give_slots_back(&self, first: usize) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|&(start, _)| start != first);
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        WorkerShared::give_back(&mut self.workers());
    }
}

fn hash_with(secret: &[u8; SECRET_BYTES], content: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_secret(secret, content).expect("the secret is long enough")
}

fn random_secret() -> Result<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    // SAFETY: the buffer is valid; up to 256 bytes come whole once the pool is ready.
    let result = unsafe { libc::getrandom(secret.as_mut_ptr().cast(), SECRET_BYTES, 0) };
    if result == SECRET_BYTES as isize { Ok(secret) } else { Err(Error::os(ErrorKind::NoMemory, "getrandom gave no secret for page hashes")) }
}

/// Buffers for reads, in pages. (Writes need none: they are made from the pages' place.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NumBuffers {
    of_worker: usize,
    of_pager_thread: usize,
    /// Pages that each of them takes: itself, and what the backend needs beside it.
    pages_per_buffer: usize,
}

impl NumBuffers {
    /// Who reads how much at a time depends on the mode, and a buffer that is never used is a page less for the program:
    /// - `Suspend`: each worker reads for all its LWTs, the pager thread for all ordinary threads. Equal parts.
    /// - `Poll`: a worker's LWTs do not run while one waits. The pager thread suspends its LWTs, so its part is as above.
    /// - `Monitor`: the pager thread does all paging (see [`crate::worker::Worker::swaps_in`]), so workers need none, however many there are.
    fn of(config: &Config, num_pages: usize, staging_pages: usize) -> Self {
        let pages_per_buffer = 1 + staging_pages;
        let num_sharing = if config.faults_sleep() { 1 } else { config.max_workers + 1 };
        // Of what the smallest local memory leaves.
        let part = num_pages.saturating_sub(MIN_LOCAL_PAGES) / (BUFFER_SHARE * num_sharing * pages_per_buffer);
        let of_worker = match config.waiting {
            _ if config.faults_sleep() => 0,
            Waiting::Poll => part.clamp(1, MAX_BUFFERS_OF_POLLING),
            Waiting::Suspend => part.clamp(1, MAX_BUFFERS),
        };
        Self { of_worker, of_pager_thread: part.clamp(1, MAX_BUFFERS), pages_per_buffer }
    }

    /// Pages of all.
    fn total(self, num_workers: usize) -> usize {
        (self.of_worker * num_workers + self.of_pager_thread) * self.pages_per_buffer
    }
}

/// Divides local memory into frames for pages, whose number comes first, and buffers for I/O, with `staging_pages` beside each.
fn divide_memory(config: &Config, staging_pages: usize) -> Result<(usize, NumBuffers)> {
    let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    let bytes = config.local_memory_bytes;
    let num_pages = check_size(bytes)?;
    if config.max_workers == 0 || config.max_workers > MAX_WORKERS {
        return bad(format!("{} workers: there can be 1 to {MAX_WORKERS}", config.max_workers));
    }
    let num_buffers = NumBuffers::of(config, num_pages, staging_pages);
    let num_frames = num_pages.saturating_sub(num_buffers.total(config.max_workers));
    if num_frames < MIN_LOCAL_PAGES {
        let least = format_size(((MIN_LOCAL_PAGES + NumBuffers::of(config, 0, staging_pages).total(config.max_workers)) * PAGE_SIZE) as u64);
        return bad(format!("local memory of {} is too small for {} workers: at least {least} is needed", format_size(bytes), config.max_workers));
    }
    Ok((num_frames, num_buffers))
}

/// Pages of a local memory of so many bytes, if it can be.
fn check_size(bytes: u64) -> Result<usize> {
    let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    if bytes == 0 {
        return bad("local memory is 0: give the bytes of DRAM that resident pages may take, such as 512MiB".into());
    }
    if !bytes.is_multiple_of(PAGE_SIZE as u64) {
        return bad(format!("local memory of {bytes} bytes is not a multiple of the page size, {PAGE_SIZE}"));
    }
    let machine = machine_memory_bytes();
    if bytes > machine {
        return bad(format!("local memory of {} is larger than this machine's {}", format_size(bytes), format_size(machine)));
    }
    Ok(pages_in(bytes as usize))
}

fn machine_memory_bytes() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let num_pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(num_pages).map_or(u64::MAX, |num_pages| num_pages * PAGE_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Notifier;

    fn config(local_memory_bytes: u64, max_workers: usize) -> Config {
        Config { local_memory_bytes, max_workers, ..Config::default() }
    }

    #[test]
    fn memory_is_divided_without_remainder_or_refused() {
        for num_pages in [18u64, 19, 64, 100, 10_000, 1 << 18] {
            let (frames, buffers) = divide_memory(&config(num_pages * 4096, 1), 0).unwrap();
            assert_eq!(frames + buffers.total(1), num_pages as usize);
        }
        for (bytes, workers) in [(0, 1), (4097, 1), (1 << 60, 1), (17 * 4096, 1), (1 << 20, 0), (1 << 20, 5000)] {
            assert!(divide_memory(&config(bytes, workers), 0).is_err(), "{bytes} {workers}");
        }
    }

    #[test]
    fn the_least_that_is_asked_for_is_enough() {
        for (notifier, waiting) in [(Notifier::Sigbus, Waiting::Suspend), (Notifier::Sigbus, Waiting::Poll), (Notifier::Monitor, Waiting::Suspend)] {
            for num_workers in [1, 16, MAX_WORKERS] {
                let of = |num_pages: usize| divide_memory(&Config { notifier, waiting, ..config((num_pages * PAGE_SIZE) as u64, num_workers) }, 0);
                let num_readers = if notifier == Notifier::Monitor { 1 } else { num_workers + 1 };
                assert_eq!(of(MIN_LOCAL_PAGES + num_readers).unwrap().0, MIN_LOCAL_PAGES, "{notifier:?} {waiting:?} {num_workers}");
                assert!(of(MIN_LOCAL_PAGES + num_readers - 1).is_err(), "{notifier:?} {waiting:?} {num_workers}");
            }
        }
    }

    #[test]
    fn buffers_are_for_those_who_read() {
        // 100 MiB with 16 threads, as in comparisons.
        let of = |notifier, waiting| NumBuffers::of(&Config { notifier, waiting, ..config(100 << 20, 16) }, 25_600, 0);
        let suspend = of(Notifier::Sigbus, Waiting::Suspend);
        assert_eq!((suspend.of_worker, suspend.of_pager_thread), (188, 188));
        let poll = of(Notifier::Sigbus, Waiting::Poll);
        assert_eq!((poll.of_worker, poll.of_pager_thread), (MAX_BUFFERS_OF_POLLING, 188));
        let monitor = of(Notifier::Monitor, Waiting::Suspend);
        assert_eq!((monitor.of_worker, monitor.of_pager_thread), (0, MAX_BUFFERS));
        // Many threads take no more of local memory than one.
        assert!(poll.total(16) < 25_600 / 50 && monitor.total(16) == monitor.total(1));
    }
}
