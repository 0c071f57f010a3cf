//! Workers: OS threads with a scheduler of LWTs, an I/O queue, buffers and evict batches of their own.
//!
//! Nothing of a worker is shared but [`WorkerShared`]: the inbox through which other threads wake its LWTs, and its statistics. One turn of the
//! scheduler: take in remote wake-ups, reap completions (map what was read), run every ready LWT once, reclaim ahead of demand, submit.

mod shared;

use crate::backend::{QueueBuilder, Queues, Read, Write, WriteRequest};
use crate::budget::MAX_BATCH_PAGES;
use crate::buffers::{Asker, Buffers, PendingRead};
use crate::config::Waiting;
use crate::error::{Error, ErrorKind, Result};
use crate::evict::{self, Batch, MAX_BATCHES};
use crate::failure::RawCause;
use crate::io_queue::{Completion, IoQueue, Purpose, Source, Token};
use crate::lwt::{self, Lwt, ReadyQueue};
use crate::pager::Pager;
use crate::parking;
use crate::region::Page;
use crate::snapshot::Server;
use crate::stack::StackPool;
use crate::stats::Stats;
use crate::swap_in;
use crate::sys;
use crate::try_catch;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::Duration;

pub(crate) use shared::{WorkerShared, push_to_stack, unused};

thread_local! {
    /// The worker that this thread is, or null. Const and without destructor: reading it in a signal handler is safe.
    static CURRENT: Cell<*const Worker> = const { Cell::new(ptr::null()) };
}

/// The worker that the calling thread is. Async-signal-safe.
pub(crate) fn current() -> Option<&'static Worker> {
    // SAFETY: set by `enter`, cleared by `leave` before the worker is freed, and used on this thread only.
    unsafe { CURRENT.get().as_ref() }
}

/// The same if it is a worker of `pager`.
pub(crate) fn current_of(pager: &Pager) -> Option<&'static Worker> {
    current().filter(|worker| ptr::eq(worker.pager(), pager))
}

/// In a child of fork: the calling thread, its only one, is no worker. What an LWT had, it has now.
pub(crate) fn become_child() {
    // SAFETY: the running LWT is alive.
    if let Some(lwt) = unsafe { lwt::current().as_ref() } {
        try_catch::become_thread(lwt.innermost_try());
    }
    CURRENT.set(ptr::null());
}

/// What a worker is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The program's own LWTs.
    Application,
    /// Serving threads that are no workers. Where the program's workers may not page or reclaim (see [`Worker::enter`]), this one does it for them.
    PagerThread,
}

/// A worker; for its thread only.
pub(crate) struct Worker {
    pager: Arc<Pager>,
    shared: &'static WorkerShared,
    queue: IoQueue,
    backend: Queues,
    buffers: Buffers,
    batches: [UnsafeCell<Batch>; MAX_BATCHES],
    ready: ReadyQueue,
    current_lwt: Cell<*mut Lwt>,
    num_lwts: Cell<usize>,
    stacks: RefCell<StackPool>,
    /// For children that are snapshots; of the pager thread.
    server: Option<Server>,
    swaps_in: bool,
    reclaims: bool,
    polls: bool,
    busy_poll_ns: u64,
}

impl Worker {
    /// Makes the calling thread a worker.
    pub(crate) fn enter(pager: &Arc<Pager>, role: Role) -> Result<&'static Self> {
        if current().is_some() {
            return Err(Error::new(ErrorKind::Busy, "this thread is a worker already"));
        }
        // Held to the end, so that no more enter than were announced.
        let mut workers = pager.workers();
        let num_entered = workers.iter().filter(|worker| worker.is_entered.load(Relaxed)).count();
        // One of them is the pager thread.
        if num_entered > pager.config.max_workers {
            let message = format!("there are {} workers already; set max_workers higher", num_entered - 1);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let shared = WorkerShared::take(&mut workers)?;
        let num_buffers = pager.num_buffers(role);
        let buffers = Buffers::new(num_buffers)?;
        let times_reads = pager.config.step_times;
        let is_pager_thread = role == Role::PagerThread;
        let mut builder = QueueBuilder::new(num_buffers, MAX_BATCHES * MAX_BATCH_PAGES, is_pager_thread, shared);
        let backend = Queues::new(&pager.backend, &mut builder)?;
        let wake_fd = shared.wake_fd.as_raw_fd();
        let queue = IoQueue::new(wake_fd, buffers.as_iovec(), builder.files(), num_buffers, times_reads, builder.num_finished())?;
        shared.ring_fd.store(queue.ring_fd(), Relaxed);
        shared.is_entered.store(true, Relaxed);
        let (faults_sleep, waiting) = (pager.config.faults_sleep(), pager.config.waiting);
        let worker = Self {
            pager: pager.clone(),
            shared,
            queue,
            backend,
            buffers,
            batches: std::array::from_fn(|_| UnsafeCell::new(Batch::new())),
            ready: ReadyQueue::new(),
            current_lwt: Cell::new(ptr::null_mut()),
            num_lwts: Cell::new(0),
            stacks: RefCell::new(StackPool::new(pager.config.lwt_stack_bytes)),
            server: (is_pager_thread && pager.snapshots.is_some()).then(|| Server::new(num_buffers)),
            // With a monitor a fault of the program's blocks the whole thread: what it has begun would have to wait.
            swaps_in: is_pager_thread || !faults_sleep,
            reclaims: is_pager_thread || (!faults_sleep && waiting == Waiting::Suspend),
            polls: !is_pager_thread && waiting == Waiting::Poll,
            busy_poll_ns: pager.backend.busy_poll_us() * 1000,
        };
        let worker: &'static Self = Box::leak(Box::new(worker));
        CURRENT.set(worker);
        Ok(worker)
    }

    /// Undoes [`Self::enter`] for the calling thread; finishes I/O in flight first.
    pub(crate) fn leave() -> Result<()> {
        let worker = current().ok_or_else(|| Error::new(ErrorKind::NotAWorker, "this thread is not a worker"))?;
        if !worker.current_lwt.get().is_null() || worker.num_lwts.get() > 0 {
            return Err(Error::new(ErrorKind::Busy, format!("{} LWTs of this worker have not ended", worker.num_lwts.get())));
        }
        if let (Some(server), Some(snapshots)) = (&worker.server, &worker.pager.snapshots) {
            server.close(snapshots);
        }
        let sleep = || {
            // What others leave from here on nudges, and what they left before is found by the flush.
            worker.shared.is_sleeping.store(true, SeqCst);
            fence(SeqCst);
            worker.poll(true);
            worker.shared.is_sleeping.store(false, SeqCst);
        };
        while worker.buffers.are_used() || worker.has_busy_batch() {
            sleep();
        }
        worker.backend.close(&worker.queue);
        loop {
            // May begin something: a connection ends in good order when the last request was answered.
            worker.flush();
            if worker.queue.num_in_flight() == 0 {
                break;
            }
            sleep();
        }
        CURRENT.set(ptr::null());
        worker.shared.ring_fd.store(-1, Relaxed);
        worker.shared.is_entered.store(false, Release);
        // SAFETY: leaked by `enter`; no LWT, completion or thread-local refers to it any more.
        drop(unsafe { Box::from_raw(ptr::from_ref(worker).cast_mut()) });
        Ok(())
    }

    /// One turn of the scheduler; with `wait`, sleeps first while there is nothing to do. Returns the number of LWTs that are ready again.
    ///
    /// # Panics
    /// On an LWT: it would schedule itself.
    pub(crate) fn turn(&self, wait: bool) -> usize {
        assert!(self.current_lwt.get().is_null(), "the scheduler runs on the worker's own stack, not on an LWT");
        self.shared.is_sleeping.store(false, SeqCst);
        self.take_in();
        let may_sleep = wait && self.ready.len() == 0 && self.prepare_sleep();
        self.poll(may_sleep);
        self.shared.is_sleeping.store(false, SeqCst);
        if may_sleep {
            self.take_in();
        }
        for _ in 0..self.ready.len() {
            if let Some(lwt) = self.ready.pop() {
                lwt::resume(self, lwt);
            }
        }
        let must_reclaim = self.reclaims && if self.pager.is_failing() { self.pager.may_retry() } else { self.pager.budget.is_low() };
        // The device works while this worker evicts.
        self.submit();
        if must_reclaim {
            evict::reclaim(self);
            self.submit();
        }
        if self.busy_poll_ns > 0 && self.ready.len() == 0 {
            self.spin();
        }
        // The caller may sleep on our descriptor now.
        let must_return = self.ready.len() == 0 && (!self.prepare_sleep() || self.queue.has_work());
        if must_return { 1 } else { self.ready.len() }
    }

    /// Waiting by [`Waiting::Poll`], in the midst of an LWT: takes completions in, and lets another thread have the CPU.
    pub(crate) fn poll_in_place(&self) {
        self.poll(false);
        std::thread::yield_now();
    }

    /// Polls for a while, where reads are under way.
    fn spin(&self) {
        let end_ns = sys::now_ns() + self.busy_poll_ns;
        while self.ready.len() == 0 && self.buffers.are_used() && !self.shared.has_incoming() && sys::now_ns() < end_ns {
            self.poll(false);
            std::hint::spin_loop();
        }
    }

    fn flush(&self) {
        if self.shared.is_poked.load(Relaxed) {
            self.shared.is_poked.swap(false, Acquire);
        }
        self.backend.flush(&self.queue);
    }

    fn submit(&self) {
        self.flush();
        self.queue.submit();
    }

    /// Submits, and takes completions in; with `wait`, sleeps until there is one.
    fn poll(&self, wait: bool) {
        self.flush();
        self.queue.poll(wait, |token, result| {
            self.complete(token, Completion::of(result));
            self.take_finished();
        });
        self.take_finished();
    }

    fn take_finished(&self) {
        while let Some((token, completion)) = self.queue.take_finished() {
            self.complete(token, completion);
        }
    }

    /// Asks for a nudge; `false` if there is something already.
    fn prepare_sleep(&self) -> bool {
        self.shared.is_sleeping.store(true, SeqCst);
        fence(SeqCst);
        !self.shared.has_incoming()
    }

    fn take_in(&self) {
        lwt::drain_inbox(&self.shared.inbox, &self.ready);
        let mut request = self.shared.requests.swap(ptr::null_mut(), Acquire);
        while !request.is_null() {
            // SAFETY: a request is alive until it is served.
            let next = unsafe { (*request).next.load(Relaxed) };
            if lwt::start(move || swap_in::serve(request)).is_err() {
                // No stack for it now: again at the next turn, when others have ended.
                // SAFETY: as above.
                push_to_stack(&self.shared.requests, request, unsafe { &(*request).next });
            }
            request = next;
        }
    }

    fn complete(&self, token: Token, completion: Completion) {
        match token.purpose() {
            Purpose::Lwt(lwt) => self.push_ready(lwt),
            Purpose::Read { buffer } => swap_in::complete_read(self, buffer, completion),
            Purpose::Write { batch, run } => evict::complete_write(self, batch, run, completion.result),
            Purpose::Node { node, index } => self.backend.complete(&self.queue, node, index, completion),
            Purpose::Snapshot { index } => {
                if let (Some(server), Some(snapshots)) = (&self.server, &self.pager.snapshots) {
                    server.complete(self, snapshots, index, completion);
                }
            }
            Purpose::Alarm => self.look_for_overdue(),
            Purpose::Wake => {}
        }
    }

    /// Sees to it that requests that take too long are found, at most a quarter of the time limit late. For whoever has started one.
    pub(crate) fn watch_time(&self) {
        const MOST: Duration = Duration::from_secs(3600);
        self.queue.set_alarm((self.pager.config.io_timeout / 4).clamp(Duration::from_millis(1), MOST));
    }

    fn look_for_overdue(&self) {
        let limit_ns = sys::now_ns().saturating_sub(self.pager.io_timeout_ns());
        self.buffers.abandon(limit_ns, swap_in::abandon);
        // Those who wait for a buffer look at their own time.
        parking::unpark_all(self.buffers_key());
        for batch in &self.batches {
            // SAFETY: as in `free_batch`; completions, of which the alarm is one, are handled between the functions that use batches.
            evict::check_time(self, unsafe { &mut *batch.get() }, limit_ns);
        }
        // So do those who wait for a frame, of this worker or others.
        self.pager.budget.notify(usize::MAX);
        if self.buffers.are_used() || self.has_busy_batch() {
            self.watch_time();
        }
    }

    /// Takes turns until no LWT of this worker is alive and its evictions are over, or it is told to stop.
    pub(crate) fn run(&self) {
        while (self.num_lwts.get() > 0 || self.has_busy_batch()) && !self.shared.must_stop.load(Relaxed) {
            self.turn(true);
        }
    }

    /// On an LWT: waits for a buffer and starts reading `page` into it. Fails only when the time limit passes before there is a buffer; a prefetch, made
    /// only where one is free, never does.
    pub(crate) fn start_read(&self, page: Page<'static>, pins: u32, asker: Option<Asker>) -> std::result::Result<(), RawCause> {
        page.region.num_swapping_in.fetch_add(1, Relaxed);
        let read = PendingRead { page, pins, start_ns: sys::now_ns(), num_retries: 0, asker };
        let buffer = loop {
            if let Some(buffer) = self.buffers.take(read) {
                break buffer;
            }
            if sys::now_ns() > read.start_ns.saturating_add(self.pager.io_timeout_ns()) {
                page.region.num_swapping_in.fetch_sub(1, Release);
                return Err(RawCause::TIMED_OUT);
            }
            parking::park_for_pager(self.buffers_key(), || !self.buffers.has_free());
        };
        self.watch_time();
        self.read_into(buffer, page, false, Source(None));
        Ok(())
    }

    /// A read failed: starts it again, into the same buffer. `suspect` is who had wrong content.
    pub(crate) fn read_again(&self, buffer: usize, read: PendingRead, suspect: Source) {
        self.buffers.resume(buffer, read);
        self.read_into(buffer, read.page, true, suspect);
    }

    fn read_into(&self, buffer: usize, page: Page<'static>, is_retry: bool, suspect: Source) {
        self.queue.note_read(buffer);
        let (token, target) = (Token::read(buffer), self.buffers.address(buffer));
        self.backend.read(&self.queue, Read { slot: page.slot(), target, token, is_retry, suspect });
    }

    /// Pager thread, after a turn: serves the child of a snapshot. Whether there is more to do at once.
    pub(crate) fn serve_snapshot(&self) -> bool {
        match (&self.server, &self.pager.snapshots) {
            (Some(server), Some(snapshots)) => server.step(self, snapshots),
            _ => false,
        }
    }

    /// A free buffer, for a read that is no swap-in: until [`Self::release_buffer`].
    pub(crate) fn take_buffer(&self) -> Option<usize> {
        self.buffers.take_for_others()
    }

    /// Where it is.
    pub(crate) fn buffer(&self, buffer: usize) -> *mut u8 {
        self.buffers.address(buffer)
    }

    /// Starts a read into such a buffer, whatever target it names.
    pub(crate) fn start_slot_read(&self, buffer: usize, read: Read) {
        self.backend.read(&self.queue, Read { target: self.buffer(buffer), ..read });
    }

    /// Starts a write of a batch.
    pub(crate) fn start_write(&self, write: WriteRequest) -> Write {
        self.backend.write(&self.queue, write)
    }

    pub(crate) fn has_free_buffer(&self) -> bool {
        self.buffers.has_free()
    }

    /// What a completed read was for, and its content; `None` if it was abandoned.
    pub(crate) fn finish_read(&self, buffer: usize) -> Option<(PendingRead, *const u8)> {
        Some((self.buffers.finish(buffer)?, self.buffers.address(buffer)))
    }

    pub(crate) fn release_buffer(&self, buffer: usize) {
        self.buffers.release(buffer);
        parking::unpark_one(self.buffers_key());
    }

    fn buffers_key(&self) -> usize {
        ptr::from_ref(&self.buffers) as usize
    }

    /// A batch that is not in flight, and its number.
    #[expect(clippy::mut_from_ref, reason = "each batch is used by one function at a time on this thread; see SAFETY")]
    pub(crate) fn free_batch(&self) -> Option<(usize, &mut Batch)> {
        // SAFETY: batches are used by `reclaim` and `complete_write` only, which run on this thread, never suspend and never nest.
        self.batches.iter().map(|batch| unsafe { &mut *batch.get() }).enumerate().find(|(_, batch)| batch.is_free())
    }

    pub(crate) fn has_busy_batch(&self) -> bool {
        // SAFETY: as above.
        self.batches.iter().any(|batch| unsafe { !(*batch.get()).is_free() })
    }

    #[expect(clippy::mut_from_ref, reason = "as free_batch")]
    pub(crate) fn batch(&self, number: usize) -> &mut Batch {
        // SAFETY: as in `free_batch`.
        unsafe { &mut *self.batches[number].get() }
    }

    pub(crate) fn pager(&self) -> &Pager {
        &self.pager
    }

    /// Whether it brings pages in itself; otherwise it asks the pager thread, as ordinary threads do.
    pub(crate) fn swaps_in(&self) -> bool {
        self.swaps_in
    }

    /// Whether it evicts pages; otherwise the pager thread does.
    pub(crate) fn reclaims(&self) -> bool {
        self.reclaims
    }

    /// Whether its LWTs poll for pages instead of being suspended.
    pub(crate) fn polls(&self) -> bool {
        self.polls
    }

    /// Pager thread: `false` when the instance has ended.
    pub(crate) fn must_go_on(&self) -> bool {
        !self.shared.must_stop.load(Acquire) || self.num_lwts.get() > 0
    }

    /// Pager thread: whether the instance is ending.
    pub(crate) fn must_stop(&self) -> bool {
        self.shared.must_stop.load(Relaxed)
    }

    pub(crate) fn shared(&self) -> &'static WorkerShared {
        self.shared
    }

    pub(crate) fn queue(&self) -> &IoQueue {
        &self.queue
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    pub(crate) fn stacks(&self) -> &RefCell<StackPool> {
        &self.stacks
    }

    pub(crate) fn push_ready(&self, lwt: *mut Lwt) {
        self.ready.push(lwt);
    }

    pub(crate) fn current_lwt(&self) -> *mut Lwt {
        self.current_lwt.get()
    }

    pub(crate) fn set_current_lwt(&self, lwt: *mut Lwt) {
        self.current_lwt.set(lwt);
    }

    pub(crate) fn count_lwt(&self, change: isize) {
        self.num_lwts.set(self.num_lwts.get().wrapping_add_signed(change));
    }

    pub(crate) fn num_lwts(&self) -> usize {
        self.num_lwts.get()
    }

    /// The descriptor an event loop waits for before it calls [`Self::turn`].
    pub(crate) fn fd(&self) -> Result<RawFd> {
        self.queue.fd()
    }
}
