//! A worker's io_uring: reads into registered buffers, writes from pages, timeouts, the alarm, and the wake-up from other threads.
//!
//! Only the worker's thread uses the ring (SINGLE_ISSUER); completions are processed when it asks for them (DEFER_TASKRUN), never as an
//! interruption.
//!
//! The worker sleeps in the ring, which polls the eventfd that other threads write to. If an event loop is to sleep instead, it watches that
//! eventfd, and the ring signals its completions to it as well: the ring's own descriptor is not woken by deferred completions, and an eventfd
//! polled by a ring that signals another eventfd is woken only once (both seen on 6.18).

use crate::error::{Error, ErrorKind, Result};
use crate::lwt::Lwt;
use crate::read_runs::{ReadRuns, Target};
use crate::size::PAGE_SIZE;
use crate::sys;
use io_uring::types::{Fd, Fixed, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What a completion is for; travels through the kernel as user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

/// A [`Token`] taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The LWT slept long enough.
    Lwt(*mut Lwt),
    /// The read into this buffer of the worker.
    Read { buffer: usize },
    /// Write number `run` of this evict batch of the worker.
    Write { batch: usize, run: usize },
    /// A read or write that the backend has marked.
    Marked(Token),
    /// Another thread left something in the worker's inbox.
    Wake,
    /// Time to look for requests that take too long.
    Alarm,
}

/// Bits of a token that a backend can use for itself.
pub(crate) const MARK_BITS: u32 = u64::BITS - MARK_SHIFT;
const MARK_SHIFT: u32 = 20;
/// Of the number of a write, next to the kind of token; above it is that of the batch.
const RUN_BITS: u32 = 10;
const _: () = assert!(crate::budget::MAX_BATCH_PAGES <= 1 << RUN_BITS && crate::evict::MAX_BATCHES <= 1 << (MARK_SHIFT - RUN_BITS - 2));

impl Token {
    pub(crate) fn lwt(lwt: *mut Lwt) -> Self {
        debug_assert!((lwt as u64).trailing_zeros() >= 2);
        Self(lwt as u64)
    }

    pub(crate) fn read(buffer: usize) -> Self {
        debug_assert!(buffer < 1 << (MARK_SHIFT - 2));
        Self((buffer as u64) << 2 | 1)
    }

    pub(crate) fn write(batch: usize, run: usize) -> Self {
        Self((batch as u64) << (RUN_BITS + 2) | (run as u64) << 2 | 2)
    }

    const WAKE: Self = Self(3);
    const ALARM: Self = Self(1 << 2 | 3);

    /// The token of a read or write with a mark of the backend's, which must not be 0: [`crate::backend::Backend::settle`] will get its completion.
    pub(crate) fn marked(self, mark: u64) -> Self {
        debug_assert!(mark > 0 && mark >> MARK_BITS == 0 && self.mark() == 0 && matches!(self.0 & 3, 1 | 2));
        Self(self.0 | mark << MARK_SHIFT)
    }

    pub(crate) fn mark(self) -> u64 {
        self.0 >> MARK_SHIFT
    }

    pub(crate) fn unmarked(self) -> Self {
        Self(self.0 & ((1 << MARK_SHIFT) - 1))
    }

    pub(crate) fn purpose(self) -> Purpose {
        let number = (self.0 >> 2) as usize;
        match self.0 & 3 {
            0 => Purpose::Lwt(self.0 as *mut Lwt),
            1 | 2 if self.mark() != 0 => Purpose::Marked(self),
            1 => Purpose::Read { buffer: number },
            2 => Purpose::Write { batch: number >> RUN_BITS, run: number & ((1 << RUN_BITS) - 1) },
            _ if self == Self::ALARM => Purpose::Alarm,
            _ => Purpose::Wake,
        }
    }
}

/// Requests that may wait for their submission, and completions the ring holds before the kernel has to buffer them; what is tried in turn.
const RING_ENTRIES: [(u32, u32); 3] = [(1024, 4096), (256, 1024), (64, 256)];
/// Requests gathered before they are submitted without waiting for the scheduler's next turn.
const SUBMIT_BATCH: usize = 8;

/// The ring; all methods are for the worker's thread only.
pub(crate) struct IoQueue {
    ring: UnsafeCell<IoUring>,
    /// Buffers are registered (RLIMIT_MEMLOCK may forbid it).
    has_fixed_buffers: bool,
    wake_fd: RawFd,
    /// The ring polls `wake_fd`.
    is_armed: Cell<bool>,
    /// An event loop watches `wake_fd`.
    is_watched: Cell<bool>,
    /// Requests not completed yet, the poll of `wake_fd` and the alarm not counted.
    num_in_flight: Cell<usize>,
    is_alarm_set: Cell<bool>,
    num_idle_polls: Cell<u32>,
    read_clock: Option<ReadClock>,
    read_runs: ReadRuns,
}

/// When reads were submitted, by the number of their buffer.
struct ReadClock {
    submitted_ns: Box<[Cell<u64>]>,
    /// Buffers whose reads wait for submission; never grows past its capacity.
    waiting: RefCell<Vec<usize>>,
}

impl ReadClock {
    fn new(num_buffers: usize) -> Self {
        Self { submitted_ns: (0..num_buffers).map(|_| Cell::new(0)).collect(), waiting: RefCell::new(Vec::with_capacity(num_buffers)) }
    }

    /// All that wait are being submitted.
    fn submit(&self) {
        let now_ns = sys::now_ns();
        self.waiting.borrow_mut().drain(..).for_each(|buffer| self.submitted_ns[buffer].set(now_ns));
    }
}

/// Completions handled by one poll: few, so that the LWTs they make ready ask for their next pages before the device runs dry; and fewer than
/// the kernel takes out of its deferred work in one call (20), since it does not say that there are more.
const COMPLETIONS_PER_POLL: usize = 16;

/// For a watched queue, an idle poll clears the eventfd only now and then: a signal can overtake the poll that it is for, which costs some empty
/// turns of the event loop, while clearing costs a system call.
const IDLE_POLLS_PER_CLEAR: u32 = 16;

impl IoQueue {
    /// Makes the ring of the calling thread; `wake_fd` is the eventfd other threads write to, `buffers` is registered when the limits allow it.
    /// They are `num_buffers`; `times_reads` remembers when their reads are submitted.
    pub(crate) fn new(wake_fd: RawFd, buffers: Option<libc::iovec>, file: Option<RawFd>, num_buffers: usize, times_reads: bool) -> Result<Self> {
        let ring = build_ring()?;
        // SAFETY: the caller keeps the buffers alive longer than this queue.
        let registered = buffers.map_or(Ok(()), |buffers| unsafe { ring.submitter().register_buffers(&[buffers]) });
        if let Err(cause) = &registered {
            tracing::debug!(%cause, "I/O buffers are not registered (RLIMIT_MEMLOCK?): reads pin them one by one");
        }
        if let Some(fd) = file {
            ring.submitter()
                .register_files(&[fd])
                .map_err(|cause| Error::io(ErrorKind::NoIoUring, "cannot register the swap file with io_uring", &cause))?;
        }
        Ok(Self {
            ring: UnsafeCell::new(ring),
            has_fixed_buffers: registered.is_ok(),
            wake_fd,
            is_armed: Cell::new(false),
            is_watched: Cell::new(false),
            num_in_flight: Cell::new(0),
            is_alarm_set: Cell::new(false),
            num_idle_polls: Cell::new(0),
            read_clock: times_reads.then(|| ReadClock::new(num_buffers)),
            read_runs: ReadRuns::new(num_buffers),
        })
    }

    /// The descriptor that is readable when [`Self::poll`] has something to do, for an event loop to watch.
    pub(crate) fn fd(&self) -> Result<RawFd> {
        if !self.is_watched.get() {
            // SAFETY: only this thread uses the ring, and no other borrow of it is alive outside a method of this type.
            let registered = unsafe { (*self.ring.get()).submitter().register_eventfd(self.wake_fd) };
            registered.map_err(|cause| Error::io(ErrorKind::NoIoUring, "cannot register an eventfd with io_uring", &cause))?;
            self.is_watched.set(true);
        }
        Ok(self.wake_fd)
    }

    /// Makes the eventfd unreadable until it is written again.
    pub(crate) fn clear_wake(&self) {
        let mut count = 0u64;
        // SAFETY: `count` takes the 8 bytes an eventfd gives; it is non-blocking.
        unsafe { libc::read(self.wake_fd, (&raw mut count).cast(), 8) };
    }

    fn push(&self, entry: &squeue::Entry) {
        self.push_read_run();
        self.push_entry(entry);
    }

    /// Sees to it that the next entry can be pushed.
    fn make_room(&self) {
        // SAFETY: as in `fd`.
        while unsafe { (*self.ring.get()).submission().is_full() } {
            self.submit_entries();
        }
    }

    fn push_entry(&self, entry: &squeue::Entry) {
        // SAFETY: as in `fd`: each borrow of the ring ends before the next; what the entry points to lives until its completion (each caller's duty).
        while unsafe { (*self.ring.get()).submission().push(entry).is_err() } {
            self.submit_entries();
        }
        self.num_in_flight.set(self.num_in_flight.get() + 1);
        // SAFETY: as above.
        if unsafe { (*self.ring.get()).submission().len() } >= SUBMIT_BATCH {
            self.submit_entries();
        }
    }

    /// Pushes the reads that were gathered: those that follow are of another request.
    pub(crate) fn push_read_run(&self) {
        while !self.read_runs.is_empty() {
            // Before the vectors are taken: a submission between that and the push would free them too early.
            self.make_room();
            if self.read_runs.must_submit() {
                self.submit_entries();
            }
            let Some(run) = self.read_runs.take() else { return };
            let entry = match run.target {
                Target::Contiguous(target, len) if self.has_fixed_buffers => {
                    opcode::ReadFixed::new(Fixed(0), target, len, 0).offset(run.offset).build()
                }
                Target::Contiguous(target, len) => opcode::Read::new(Fixed(0), target, len).offset(run.offset).build(),
                Target::Scattered(vectors, num_pages) => opcode::Readv::new(Fixed(0), vectors, num_pages).offset(run.offset).build(),
            };
            self.push_entry(&entry.user_data(Token::read(run.buffer).0));
        }
    }

    /// Reads the page at `offset` of the registered file into buffer number `buffer`, which is at `target`. Async-signal-safe, as all pushes.
    pub(crate) fn push_read(&self, buffer: usize, target: *mut u8, offset: u64) {
        self.note_read(buffer);
        if !self.read_runs.add(buffer, target, offset) {
            self.push_read_run();
            self.read_runs.add(buffer, target, offset);
        }
    }

    fn note_read(&self, buffer: usize) {
        if let Some(clock) = &self.read_clock {
            clock.waiting.borrow_mut().push(buffer);
        }
    }

    /// The same with a marked token: a request of its own.
    pub(crate) fn push_marked_read(&self, token: Token, target: *mut u8, offset: u64) {
        if let Purpose::Read { buffer } = token.unmarked().purpose() {
            self.note_read(buffer);
        }
        self.push(&opcode::Read::new(Fixed(0), target, PAGE_SIZE as u32).offset(offset).build().user_data(token.0));
    }

    /// Completes without any I/O, with 0: for a marked read or write that is over already.
    pub(crate) fn push_nothing(&self, token: Token) {
        if let Purpose::Read { buffer } = token.unmarked().purpose() {
            self.note_read(buffer);
        }
        self.push(&opcode::Nop::new().build().user_data(token.0));
    }

    /// Writes `len` bytes at `source` to `offset` of the registered file.
    pub(crate) fn push_write(&self, token: Token, source: *const u8, len: u32, offset: u64) {
        self.push(&opcode::Write::new(Fixed(0), source, len).offset(offset).build().user_data(token.0));
    }

    /// Completes after `duration`.
    pub(crate) fn push_timeout(&self, duration: Duration, token: Token) {
        let time = Timespec::new().sec(duration.as_secs()).nsec(duration.subsec_nanos());
        self.push(&opcode::Timeout::new(&time).build().user_data(token.0));
        // The kernel reads `time` at submission, so that must happen while it lives.
        // SAFETY: as in `fd`.
        while unsafe { !(*self.ring.get()).submission().is_empty() } {
            self.submit();
        }
    }

    /// Lets [`Purpose::Alarm`] come up after `duration`, unless it will already. One load then. Async-signal-safe.
    pub(crate) fn set_alarm(&self, duration: Duration) {
        if !self.is_alarm_set.replace(true) {
            self.push_timeout(duration, Token::ALARM);
            // Nobody waits for it.
            self.num_in_flight.set(self.num_in_flight.get() - 1);
        }
    }

    /// Hands what was pushed to the kernel. Async-signal-safe.
    pub(crate) fn submit(&self) {
        self.push_read_run();
        self.submit_entries();
    }

    fn submit_entries(&self) {
        // SAFETY: as in `fd`.
        let ring = unsafe { &mut *self.ring.get() };
        if ring.submission().is_empty() {
            return;
        }
        self.note_submission();
        match ring.submit() {
            Ok(_) => self.note_vectors(),
            Err(error) => expect_transient(&error),
        }
    }

    /// Submits, lets the kernel post completions, and hands some to `complete`; [`Self::has_work`] tells whether there are more. Does not block unless
    /// `wait` is set: then until there is one.
    pub(crate) fn poll(&self, wait: bool, mut complete: impl FnMut(Purpose, i32)) {
        self.enter(wait);
        for _ in 0..COMPLETIONS_PER_POLL {
            // SAFETY: as in `fd`; the borrow ends before `complete`, which may push.
            let Some(entry) = (unsafe { (*self.ring.get()).completion().next() }) else { return };
            match Token(entry.user_data()).purpose() {
                Purpose::Wake => {
                    self.is_armed.set(false);
                    self.clear_wake();
                }
                Purpose::Alarm => {
                    self.is_alarm_set.set(false);
                    complete(Purpose::Alarm, 0);
                }
                Purpose::Read { buffer } => {
                    self.num_in_flight.set(self.num_in_flight.get() - 1);
                    self.read_runs.complete(buffer, entry.result(), |buffer, result| complete(Purpose::Read { buffer }, result));
                }
                purpose => {
                    self.num_in_flight.set(self.num_in_flight.get() - 1);
                    complete(purpose, entry.result());
                }
            }
        }
        self.get_events(0, false);
    }

    /// Whether [`Self::poll`] has something to do: completions, or work that makes some.
    pub(crate) fn has_work(&self) -> bool {
        // SAFETY: as in `fd`.
        let ring = unsafe { &mut *self.ring.get() };
        let submission = ring.submission();
        let deferred = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        deferred || !ring.completion().is_empty()
    }

    fn enter(&self, wait: bool) {
        self.push_read_run();
        let mut has_work = self.has_work();
        if self.is_watched.get() {
            if wait && !has_work {
                self.submit();
                self.wait_for_wake();
            }
            let num_idle = if has_work || wait { 0 } else { self.num_idle_polls.get() + 1 };
            self.num_idle_polls.set(num_idle);
            if num_idle.is_multiple_of(IDLE_POLLS_PER_CLEAR) {
                self.clear_wake();
                // What was signalled before the clearing must be seen now: nobody will signal it again.
                has_work = self.has_work();
            }
        } else if wait && !has_work && !self.is_armed.replace(true) {
            let entry = opcode::PollAdd::new(Fd(self.wake_fd), libc::POLLIN as u32).build();
            self.push(&entry.user_data(Token::WAKE.0));
            self.num_in_flight.set(self.num_in_flight.get() - 1);
        }
        // SAFETY: as in `fd`.
        let num_to_submit = unsafe { (*self.ring.get()).submission().len() };
        let wait = wait && !has_work && !self.is_watched.get();
        if has_work || wait || num_to_submit > 0 {
            self.get_events(num_to_submit, wait);
        }
    }

    /// Sleeps until the eventfd is written; may return early.
    fn wait_for_wake(&self) {
        let mut poll = libc::pollfd { fd: self.wake_fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, -1) };
    }

    fn get_events(&self, num_to_submit: usize, wait: bool) {
        const ENTER_GETEVENTS: u32 = 1;
        if num_to_submit > 0 {
            self.note_submission();
        }
        // SAFETY: as in `fd`; no argument struct is passed.
        let entered = unsafe {
            let submitter = (*self.ring.get()).submitter();
            submitter.enter::<libc::sigset_t>(num_to_submit as u32, u32::from(wait), ENTER_GETEVENTS, None)
        };
        match entered {
            Ok(_) => self.note_vectors(),
            Err(error) => expect_transient(&error),
        }
    }

    /// After a submission: the kernel has read the vectors of what it took.
    fn note_vectors(&self) {
        // SAFETY: as in `fd`.
        if unsafe { (*self.ring.get()).submission().is_empty() } {
            self.read_runs.submitted();
        }
    }

    fn note_submission(&self) {
        if let Some(clock) = &self.read_clock {
            clock.submit();
        }
    }

    /// When the last read into a timed buffer was submitted.
    pub(crate) fn submitted_ns(&self, buffer: usize) -> u64 {
        self.read_clock.as_ref().map_or(0, |clock| clock.submitted_ns[buffer].get())
    }

    /// Requests not completed yet.
    pub(crate) fn num_in_flight(&self) -> usize {
        self.num_in_flight.get() + usize::from(!self.read_runs.is_empty())
    }
}

/// A ring as large as the limit on locked memory (which some kernels charge rings to) allows.
fn build_ring() -> Result<IoUring> {
    let mut cause = io::Error::from_raw_os_error(libc::ENOMEM);
    for (submission_entries, completion_entries) in RING_ENTRIES {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_cqsize(completion_entries);
        match builder.build(submission_entries) {
            Ok(ring) => return Ok(ring),
            Err(error) => cause = error,
        }
        if cause.raw_os_error() != Some(libc::ENOMEM) {
            break;
        }
    }
    let what = if cause.raw_os_error() == Some(libc::ENOMEM) {
        "no memory for io_uring: raise the limit on locked memory (ulimit -l, RLIMIT_MEMLOCK)"
    } else {
        "io_uring is not available (Linux 6.1 or newer with kernel.io_uring_disabled=0 is needed)"
    };
    Err(Error::io(ErrorKind::NoIoUring, what, &cause))
}

/// A new eventfd.
pub(crate) fn event_fd() -> Result<OwnedFd> {
    // SAFETY: eventfd takes two integers and returns a new descriptor.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(Error::os(ErrorKind::NoMemory, "cannot make an eventfd for a worker"));
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Interrupted, or the kernel is short of memory or wants completions reaped first: the requests stay queued and go with the next submit.
fn expect_transient(error: &io::Error) {
    let transient = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME));
    assert!(transient, "io_uring_enter failed: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let lwt = 0x7fff_1234_5670 as *mut Lwt;
        assert_eq!(Token::lwt(lwt).purpose(), Purpose::Lwt(lwt));
        assert_eq!(Token::read(255).purpose(), Purpose::Read { buffer: 255 });
        assert_eq!(Token::write(3, 255).purpose(), Purpose::Write { batch: 3, run: 255 });
        assert_eq!((Token::WAKE.purpose(), Token::ALARM.purpose()), (Purpose::Wake, Purpose::Alarm));
        let most = (1 << MARK_BITS) - 1;
        for token in [Token::read(255), Token::read(0), Token::write(3, 255), Token::write(0, 0)] {
            let marked = token.marked(most);
            assert_eq!((marked.purpose(), marked.mark(), marked.unmarked()), (Purpose::Marked(marked), most, token));
        }
    }
}
