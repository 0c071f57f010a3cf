//! A worker's io_uring: requests of the backend's nodes, timeouts, the alarm, and the wake-up from other threads; and what ends without the kernel.
//!
//! Only the worker's thread uses the ring (SINGLE_ISSUER); completions are processed when it asks for them (DEFER_TASKRUN), never as an
//! interruption.
//!
//! The worker sleeps in the ring, which polls the eventfd that other threads write to. If an event loop is to sleep instead, it watches that
//! eventfd, and the ring signals its completions to it as well: the ring's own descriptor is not woken by deferred completions, and an eventfd
//! polled by a ring that signals another eventfd is woken only once (both seen on 6.18).

use crate::error::{Error, ErrorKind, Result};
use crate::lwt::Lwt;
use crate::sys;
use io_uring::types::{Fd, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
    /// A request that a node of the backend has made for itself.
    Node { node: usize, index: u32 },
    /// One that is made for the child of a snapshot.
    Snapshot { index: u32 },
    /// Another thread left something in the worker's inbox.
    Wake,
    /// Time to look for requests that take too long.
    Alarm,
}

/// Of the number of a write, next to the kind of token; above it is that of the batch.
const RUN_BITS: u32 = 10;
const _: () = assert!(crate::budget::MAX_BATCH_PAGES <= 1 << RUN_BITS);
/// Of what is no read and no write of the worker's, next to the kind of token: what it is, or the number of a node after those.
const NODE_SHIFT: u32 = 2;
const INDEX_SHIFT: u32 = NODE_SHIFT + 8;
const FIRST_NODE: u64 = 3;
/// Most nodes that a backend can have.
pub(crate) const MAX_NODES: usize = (1 << (INDEX_SHIFT - NODE_SHIFT)) - FIRST_NODE as usize;
/// Nobody waits for this.
const TIMER: u64 = 1 << 63;

impl Token {
    pub(crate) fn lwt(lwt: *mut Lwt) -> Self {
        debug_assert!((lwt as u64).trailing_zeros() >= 2);
        Self(lwt as u64)
    }

    pub(crate) fn read(buffer: usize) -> Self {
        Self((buffer as u64) << 2 | 1)
    }

    pub(crate) fn write(batch: usize, run: usize) -> Self {
        Self((batch as u64) << (RUN_BITS + 2) | (run as u64) << 2 | 2)
    }

    /// Request `index` of a node.
    pub(crate) fn node(node: usize, index: u32) -> Self {
        debug_assert!(node < MAX_NODES);
        Self(u64::from(index) << INDEX_SHIFT | (node as u64 + FIRST_NODE) << NODE_SHIFT | 3)
    }

    /// Request `index` for the child of a snapshot.
    pub(crate) fn snapshot(index: u32) -> Self {
        Self(u64::from(index) << INDEX_SHIFT | 2 << NODE_SHIFT | 3)
    }

    const WAKE: Self = Self(3);
    const ALARM: Self = Self(TIMER | 1 << NODE_SHIFT | 3);

    pub(crate) fn purpose(self) -> Purpose {
        let number = (self.0 >> 2) as usize;
        match self.0 & 3 {
            0 => Purpose::Lwt(self.0 as *mut Lwt),
            1 => Purpose::Read { buffer: number },
            2 => Purpose::Write { batch: number >> RUN_BITS, run: number & ((1 << RUN_BITS) - 1) },
            _ => match (self.0 >> NODE_SHIFT) & ((1 << (INDEX_SHIFT - NODE_SHIFT)) - 1) {
                0 => Purpose::Wake,
                1 => Purpose::Alarm,
                2 => Purpose::Snapshot { index: (self.0 >> INDEX_SHIFT) as u32 },
                node => Purpose::Node { node: (node - FIRST_NODE) as usize, index: (self.0 >> INDEX_SHIFT) as u32 },
            },
        }
    }

    /// Its number if it is a request of this node.
    pub(crate) fn index_of(self, node: usize) -> Option<u32> {
        match self.purpose() {
            Purpose::Node { node: of, index } if of == node => Some(index),
            _ => None,
        }
    }

    fn is_counted(self) -> bool {
        self.0 & TIMER == 0 && self != Self::WAKE
    }
}

/// How a request has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// Bytes, or a negative errno.
    pub(crate) result: i32,
    /// Where the page lies that was read, until the node that read it is flushed; null: where it was to be read to.
    pub(crate) content: *mut u8,
    /// Which member of a mirror it was read from; see [`crate::backend::Read::suspect`].
    pub(crate) source: Source,
}

/// A member of a mirror, or nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source(pub(crate) Option<u8>);

impl Completion {
    pub(crate) fn of(result: i32) -> Self {
        Self { result, content: std::ptr::null_mut(), source: Source(None) }
    }
}

/// Requests that may wait for their submission, and completions the ring holds before the kernel has to buffer them; what is tried in turn.
const RING_ENTRIES: [(u32, u32); 3] = [(1024, 4096), (256, 1024), (64, 256)];
/// Requests gathered before they are submitted without waiting for the scheduler's next turn.
const SUBMIT_BATCH: usize = 8;

/// The ring; all methods are for the worker's thread only.
pub(crate) struct IoQueue {
    ring: UnsafeCell<IoUring>,
    /// Addresses of the buffers, if they are registered (RLIMIT_MEMLOCK may forbid it).
    fixed_buffers: Range<usize>,
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
    /// What has ended without the kernel, or has consequences; never grows past its capacity.
    finished: RefCell<VecDeque<(Token, Completion)>>,
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
    /// They are `num_buffers`; `times_reads` remembers when their reads are submitted. At most `num_finished` requests end without being taken.
    pub(crate) fn new(
        wake_fd: RawFd,
        buffers: Option<libc::iovec>,
        files: &[RawFd],
        num_buffers: usize,
        times_reads: bool,
        num_finished: usize,
    ) -> Result<Self> {
        let ring = build_ring()?;
        // SAFETY: the caller keeps the buffers alive longer than this queue.
        let registered = buffers.map_or(Ok(()), |buffers| unsafe { ring.submitter().register_buffers(&[buffers]) });
        if let Err(cause) = &registered {
            tracing::debug!(%cause, "I/O buffers are not registered (RLIMIT_MEMLOCK?): reads pin them one by one");
        }
        if !files.is_empty() {
            ring.submitter()
                .register_files(files)
                .map_err(|cause| Error::io(ErrorKind::NoIoUring, "cannot register the swap file with io_uring", &cause))?;
        }
        Ok(Self {
            ring: UnsafeCell::new(ring),
            fixed_buffers: buffers.filter(|_| registered.is_ok()).map_or(0..0, |buffers| {
                let start = buffers.iov_base as usize;
                start..start + buffers.iov_len
            }),
            wake_fd,
            is_armed: Cell::new(false),
            is_watched: Cell::new(false),
            num_in_flight: Cell::new(0),
            is_alarm_set: Cell::new(false),
            num_idle_polls: Cell::new(0),
            read_clock: times_reads.then(|| ReadClock::new(num_buffers)),
            finished: RefCell::new(VecDeque::with_capacity(num_finished)),
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

    /// The ring's descriptor.
    pub(crate) fn ring_fd(&self) -> RawFd {
        // SAFETY: as in `fd`.
        unsafe { (*self.ring.get()).as_raw_fd() }
    }

    /// Makes the eventfd unreadable until it is written again.
    pub(crate) fn clear_wake(&self) {
        let mut count = 0u64;
        // SAFETY: `count` takes the 8 bytes an eventfd gives; it is non-blocking.
        unsafe { libc::read(self.wake_fd, (&raw mut count).cast(), 8) };
    }

    /// Queues a request; it goes to the kernel with the next submission. Async-signal-safe.
    ///
    /// # Safety
    /// What the entry points to stays until its completion.
    pub(crate) unsafe fn push(&self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.0);
        // SAFETY: as in `fd`: each borrow of the ring ends before the next; the rest is the caller's promise.
        while unsafe { (*self.ring.get()).submission().push(&entry).is_err() } {
            self.submit();
        }
        if token.is_counted() {
            self.num_in_flight.set(self.num_in_flight.get() + 1);
        }
        // SAFETY: as above.
        if unsafe { (*self.ring.get()).submission().len() } >= SUBMIT_BATCH {
            self.submit();
        }
    }

    /// Whether memory lies in the registered buffers, so that requests for it can say so.
    pub(crate) fn is_fixed(&self, start: *const u8, num_bytes: usize) -> bool {
        let start = start as usize;
        self.fixed_buffers.start <= start && start + num_bytes <= self.fixed_buffers.end
    }

    /// The read into a buffer is about to be begun.
    pub(crate) fn note_read(&self, buffer: usize) {
        if let Some(clock) = &self.read_clock {
            clock.waiting.borrow_mut().push(buffer);
        }
    }

    /// Completes after `duration`.
    pub(crate) fn push_timeout(&self, duration: Duration, token: Token) {
        let time = Timespec::new().sec(duration.as_secs()).nsec(duration.subsec_nanos());
        // SAFETY: the kernel reads `time` at submission, which happens here, while it lives.
        unsafe { self.push(opcode::Timeout::new(&raw const time).build(), token) };
        // SAFETY: as in `fd`.
        while unsafe { !(*self.ring.get()).submission().is_empty() } {
            self.submit();
        }
    }

    /// The same where nobody waits for it: a worker that ends does not.
    pub(crate) fn push_timer(&self, duration: Duration, token: Token) {
        self.push_timeout(duration, Token(token.0 | TIMER));
    }

    /// The request with this token has ended. Async-signal-safe.
    pub(crate) fn finish(&self, token: Token, completion: Completion) {
        let mut finished = self.finished.borrow_mut();
        debug_assert!(finished.len() < finished.capacity());
        finished.push_back((token, completion));
    }

    /// What has ended so.
    pub(crate) fn take_finished(&self) -> Option<(Token, Completion)> {
        self.finished.borrow_mut().pop_front()
    }

    /// Lets [`Purpose::Alarm`] come up after `duration`, unless it will already. One load then. Async-signal-safe.
    pub(crate) fn set_alarm(&self, duration: Duration) {
        if !self.is_alarm_set.replace(true) {
            self.push_timeout(duration, Token::ALARM);
        }
    }

    /// Hands what was pushed to the kernel. Async-signal-safe.
    pub(crate) fn submit(&self) {
        // SAFETY: as in `fd`.
        let ring = unsafe { &mut *self.ring.get() };
        if ring.submission().is_empty() {
            return;
        }
        self.note_submission();
        if let Err(error) = ring.submit() {
            expect_transient(&error);
        }
    }

    /// Submits, lets the kernel post completions, and hands some to `complete`; [`Self::has_work`] tells whether there are more. Does not block unless
    /// `wait` is set: then until there is one.
    pub(crate) fn poll(&self, wait: bool, mut complete: impl FnMut(Token, i32)) {
        self.enter(wait);
        for _ in 0..COMPLETIONS_PER_POLL {
            // SAFETY: as in `fd`; the borrow ends before `complete`, which may push.
            let Some(entry) = (unsafe { (*self.ring.get()).completion().next() }) else { return };
            let token = Token(entry.user_data());
            if token.is_counted() {
                self.num_in_flight.set(self.num_in_flight.get() - 1);
            }
            match token.purpose() {
                Purpose::Wake => {
                    self.is_armed.set(false);
                    self.clear_wake();
                }
                Purpose::Alarm => {
                    self.is_alarm_set.set(false);
                    complete(token, 0);
                }
                _ => complete(token, entry.result()),
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
        deferred || !ring.completion().is_empty() || self.has_finished()
    }

    fn has_finished(&self) -> bool {
        !self.finished.borrow().is_empty()
    }

    fn enter(&self, wait: bool) {
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
            // SAFETY: the entry points to nothing.
            unsafe { self.push(opcode::PollAdd::new(Fd(self.wake_fd), libc::POLLIN as u32).build(), Token::WAKE) };
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
        if let Err(error) = entered {
            expect_transient(&error);
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
        self.num_in_flight.get()
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
        assert_eq!(Token::snapshot(u32::MAX).purpose(), Purpose::Snapshot { index: u32::MAX });
        for (node, index) in [(0, 0), (MAX_NODES - 1, u32::MAX), (1, 7)] {
            for token in [Token::node(node, index), Token(Token::node(node, index).0 | TIMER)] {
                assert_eq!(token.purpose(), Purpose::Node { node, index });
            }
        }
    }
}
