//! The public types: an instance (local memory, backend, workers), its regions, and the worker handle.

use crate::backend::Health;
use crate::config::{Config, FaultReturn, Notifier, Waiting};
use crate::error::{Error, ErrorKind, Result};
use crate::evict;
use crate::failure;
use crate::fault_table;
use crate::fork;
use crate::lwt;
use crate::notifier::{ebpf, monitor, sigbus};
use crate::pager::Pager;
use crate::region::{self, Contract, RegionInner};
use crate::shrink;
use crate::size::{PAGE_SIZE, bytes_of, format_size, round_up};
use crate::stats::{Counters, Histogram, Stats, Steps, buckets, percentile_ns};
use crate::worker::{self, Role, Worker, WorkerShared};
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// What keeps an instance running: the pager, and the thread that serves ordinary threads.
#[derive(Debug)]
pub(crate) struct Instance {
    pager: Arc<Pager>,
    thread: Option<JoinHandle<()>>,
}

impl Instance {
    pub(crate) fn pager(&self) -> &Arc<Pager> {
        &self.pager
    }

    fn open(mut config: Config) -> Result<Self> {
        config.backend_name = failure::intern(&config.backend_url);
        if config.notifier == Notifier::Ebpf
            && let Err(cause) = ebpf::open()
        {
            tracing::warn!("the notifier \"ebpf\" cannot be used, \"sigbus\" is: {cause}");
            config.notifier = Notifier::Sigbus;
        }
        let pager = Arc::new(Pager::open(config)?);
        sigbus::install()?;
        fault_table::publish();
        fork::install(&pager);
        let (sender, receiver) = mpsc::channel();
        let of_thread = pager.clone();
        let thread = std::thread::Builder::new()
            .name("lsw-pager".into())
            .spawn(move || serve_threads(&of_thread, &sender))
            .map_err(|cause| Error::io(ErrorKind::NoMemory, "cannot start the pager thread", &cause))?;
        receiver.recv().map_err(|_| Error::new(ErrorKind::NoMemory, "the pager thread died at its start"))??;
        Ok(Self { pager, thread: Some(thread) })
    }
}

/// Body of the pager thread.
fn serve_threads(pager: &Arc<Pager>, ready: &mpsc::Sender<Result<()>>) {
    let worker = match Worker::enter(pager, Role::PagerThread) {
        Ok(worker) => worker,
        Err(error) => return ready.send(Err(error)).unwrap_or_default(),
    };
    let _ = pager.pager_thread.set(worker.shared());
    let watched = if pager.config.faults_sleep() { worker.fd().map(Some) } else { Ok(None) };
    match watched {
        Err(error) => ready.send(Err(error)).unwrap_or_default(),
        Ok(wake_fd) if ready.send(Ok(())).is_ok() => match wake_fd {
            None => serve(pager, worker),
            Some(wake_fd) => monitor::serve(pager, worker, wake_fd),
        },
        Ok(_) => {}
    }
    let _ = Worker::leave();
}

fn serve(pager: &Pager, worker: &'static Worker) {
    let mut wait = true;
    while worker.must_go_on() {
        let num_evicted = pager.budget.num_evicted();
        worker.turn(wait);
        let has_more = worker.serve_snapshot();
        pager.log_swap_out_failure();
        shrink::begin(worker);
        wait = !has_more;
        if pager.config.waiting == Waiting::Poll {
            // The only one that reclaims: for those who wait for a frame as well, and until there is room, or nothing more can leave just now.
            if pager.budget.has_waiters() && !pager.is_failing() {
                evict::reclaim(worker);
            }
            wait &= !(pager.budget.is_low() && pager.budget.num_evicted() != num_evicted);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.pager.is_inherited() {
            // A child of fork does not have the thread, and would wait for ever.
            std::mem::forget(self.thread.take());
            return;
        }
        let shared = self.pager.pager_thread();
        shared.must_stop.store(true, Relaxed);
        shared.nudge();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sets up an instance.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder(Config);

impl Builder {
    /// Bytes of DRAM that resident pages and I/O buffers together may take; a multiple of the page size. Required.
    pub fn local_memory(mut self, num_bytes: u64) -> Self {
        self.0.local_memory_bytes = num_bytes;
        self
    }

    /// Where swapped-out pages live, such as `file:/mnt/ssd/swap?size=8GiB`, `memory:?size=8GiB`, or for tests `faulty(read%0.01=EIO):memory:?size=8GiB`.
    /// Required. See docs/backends.md.
    pub fn backend(mut self, url: impl Into<String>) -> Self {
        self.0.backend_url = url.into();
        self
    }

    /// Most threads that will be workers at a time; local memory is divided for so many. Default 1.
    pub fn max_workers(mut self, num_workers: usize) -> Self {
        self.0.max_workers = num_workers;
        self
    }

    /// Usable bytes of an LWT's stack. Default 64 KiB.
    pub fn lwt_stack(mut self, num_bytes: usize) -> Self {
        self.0.lwt_stack_bytes = num_bytes;
        self
    }

    /// Whether pages may be removed with one vectored call, where the kernel can (Linux 6.13). Default true; false is for tests of the
    /// path for older kernels.
    pub fn vectored_removal(mut self, allowed: bool) -> Self {
        self.0.vectored_removal = allowed;
        self
    }

    /// How a faulting access reaches Lightswap; the default is the fastest.
    pub fn notifier(mut self, notifier: Notifier) -> Self {
        self.0.notifier = notifier;
        self
    }

    /// How the handler of a fault goes back to the access; the default is the fastest.
    pub fn fault_return(mut self, way: FaultReturn) -> Self {
        self.0.fault_return = way;
        self
    }

    /// What a worker does while a page is on its way; the default is the fastest. [`Waiting::Poll`] cannot be combined with [`Notifier::Monitor`].
    pub fn waiting(mut self, waiting: Waiting) -> Self {
        self.0.waiting = waiting;
        self
    }

    /// Whether the steps of every swap-in are timed, which [`Lightswap::stats`] then shows as `step_*`. Default false: it takes some readings of the clock.
    pub fn step_times(mut self, timed: bool) -> Self {
        self.0.step_times = timed;
        self
    }

    /// How long a request to the backend may take; default 30 s. A read that takes longer (noticed at most a quarter later) fails for those who wait for it, with
    /// [`crate::Cause::TimedOut`]; while a write does, its pages stay resident, and no fresh memory is handed out. Whoever needs room in local memory, while
    /// none can be made because writes fail or take too long, waits no longer either. The limit is that of each read and of each wait for room: an access that
    /// needs both can take twice as long.
    pub fn io_timeout(mut self, limit: Duration) -> Self {
        self.0.io_timeout = limit;
        self
    }

    /// Whether children of fork() can read all pages of regions, swapped-out ones included, as they were at the fork: see the rules for programs. Each page takes
    /// two slots of the backend then. One such child at a time; default false. Cannot be combined with [`Notifier::Monitor`].
    pub fn snapshots(mut self, wanted: bool) -> Self {
        self.0.snapshots = wanted;
        self
    }

    /// Opens the backend and starts the pager.
    ///
    /// # Errors
    /// One sentence for each: memory that is 0, not a multiple of the page size or more than the machine's; a URL that does not parse; a backend that
    /// cannot be opened; a kernel without userfaultfd or io_uring. Nothing is left half started.
    pub fn open(self) -> Result<Lightswap> {
        Instance::open(self.0).map(|instance| Lightswap { instance: Arc::new(instance) })
    }
}

/// An instance: one budget of local memory, one backend, any number of regions and workers. Clones are handles to the same instance, which ends
/// with the last handle and region.
#[derive(Clone, Debug)]
pub struct Lightswap {
    instance: Arc<Instance>,
}

impl Lightswap {
    /// Starts setting up an instance.
    pub fn builder() -> Builder {
        Builder(Config::default())
    }

    fn pager(&self) -> &Arc<Pager> {
        self.instance.pager()
    }

    /// Maps a region of at least `num_bytes` (rounded up to pages). Its pages read as zeroes until they are written.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a size of 0, [`ErrorKind::NoSpace`] if the backend is too small, [`ErrorKind::NoMemory`] for want of
    /// address space, [`ErrorKind::Busy`] with too many regions.
    pub fn create_region(&self, num_bytes: usize, contract: Contract) -> Result<Region> {
        let rounded = round_up(num_bytes, PAGE_SIZE).filter(|bytes| *bytes > 0);
        let num_bytes = rounded.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("a region cannot have {num_bytes} bytes")))?;
        let pager = self.pager();
        pager.expect_own()?;
        let first_slot = pager.take_slots(num_bytes / PAGE_SIZE * pager.slots_per_page())?;
        let inner = RegionInner::new(self.instance.clone(), num_bytes, first_slot, contract).and_then(|inner| {
            pager.uffd.register(inner.start(), num_bytes, inner.is_transparent())?;
            let inner = Arc::new(inner);
            region::register(&inner)?;
            if pager.config.notifier == Notifier::Ebpf
                && let Err(cause) = ebpf::add_range(inner.start(), num_bytes)
            {
                tracing::warn!("{cause}");
            }
            Ok(inner)
        });
        match inner {
            Ok(inner) => Ok(Region { inner }),
            Err(error) => {
                pager.give_slots_back(first_slot);
                Err(match error.kind() {
                    ErrorKind::NoMemory => {
                        Error::new(error.kind(), format!("a region of {}: {error}; make it smaller", format_size(num_bytes as u64)))
                    }
                    _ => error,
                })
            }
        }
    }

    /// How faulting accesses reach this instance: as it was asked for, or [`Notifier::Sigbus`] where [`Notifier::Ebpf`] cannot be used.
    pub fn notifier(&self) -> Notifier {
        self.pager().config.notifier
    }

    /// Bytes of the largest region that can be made now: with [`Builder::snapshots`] half of what the backend has room for.
    pub fn room_bytes(&self) -> u64 {
        let pager = self.pager();
        bytes_of(pager.room() / pager.slots_per_page()) as u64
    }

    /// Makes the calling thread a worker until the handle is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is one already, [`ErrorKind::NoIoUring`], [`ErrorKind::NoMemory`].
    pub fn enter_worker(&self) -> Result<WorkerHandle> {
        self.pager().expect_own()?;
        Worker::enter(self.pager(), Role::Application).map(|worker| WorkerHandle { worker, _instance: self.instance.clone(), not_send: PhantomData })
    }

    /// Gives the instance more or less local memory while it runs; a multiple of the page size. I/O buffers stay as they are. More can be used at once. Less is reached by and
    /// by, as pages are evicted in the background (`resident_limit_bytes` in the statistics comes down to it): what was allowed before is never exceeded, and while writes fail,
    /// nothing is lost, it takes longer. The limit of pins follows at once.
    ///
    /// # Errors
    /// Nothing is changed: [`ErrorKind::PinLimit`] if more pages are pinned than half of it; [`ErrorKind::InvalidArgument`] if it is too small for the buffers, not a multiple of the page size, or
    /// more than the machine has.
    pub fn set_local_memory(&self, num_bytes: u64) -> Result<()> {
        self.pager().expect_own()?;
        self.pager().set_local_memory(num_bytes)
    }

    /// All counters and gauges by name; units are in the names. Stops nobody, so values may be of slightly different moments.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        let pager = self.pager();
        let workers: Vec<&'static WorkerShared> = pager.workers().clone();
        let sets = || workers.iter().map(|worker| &worker.stats).chain(std::iter::once(&pager.thread_stats));
        // What a child has inherited of the backend is of no use to it, and not in order.
        let is_child = pager.is_inherited();
        let health = if is_child { Health::default() } else { pager.backend.health() };
        let (capacity, num_used) = pager.budget.capacity_and_used();
        let mut stats = vec![
            ("local_memory_bytes", pager.local_memory_bytes()),
            ("resident_bytes", bytes_of(num_used) as u64),
            ("resident_limit_bytes", bytes_of(capacity) as u64),
            ("pinned_pages", pager.num_pinned() as u64),
            ("backend_bytes", bytes_of(pager.backend.num_slots()) as u64),
            ("backend_away", u64::from(health.is_away)),
            ("vectored_removal", u64::from(pager.remover.is_vectored())),
            ("swap_out_failing", u64::from(pager.is_failing())),
        ];
        stats.extend(Counters::sum(sets().map(|set| &set.counters).collect::<Vec<_>>().into_iter()));
        stats.push(("backend_content_losses", health.generation));
        if !is_child {
            stats.extend(pager.backend_stats());
        }
        if pager.config.notifier == Notifier::Ebpf {
            stats.push(("redirected_faults", ebpf::num_redirected()));
        }
        if let Some(snapshots) = &pager.snapshots {
            stats.extend(snapshots.stats());
        }
        let latency = |of: fn(&Stats) -> &Histogram, fraction| percentile_ns(sets().map(of), fraction);
        stats.extend([
            ("fault_handling_p50_ns", latency(|set| &set.fault_handling, 0.5)),
            ("fault_handling_p99_ns", latency(|set| &set.fault_handling, 0.99)),
            ("fault_handling_p999_ns", latency(|set| &set.fault_handling, 0.999)),
            ("swap_in_p50_ns", latency(|set| &set.swap_in, 0.5)),
            ("swap_in_p99_ns", latency(|set| &set.swap_in, 0.99)),
            ("swap_in_p999_ns", latency(|set| &set.swap_in, 0.999)),
        ]);
        if pager.config.step_times {
            let removed = |counters: &Counters| counters.clean_evictions.get() + counters.zero_evictions.get() + counters.dirty_evictions.get();
            let num_removed: u64 = sets().map(|set| removed(&set.counters)).sum();
            let evict_ns: u64 = sets().map(|set| set.steps.evict_ns.get()).sum();
            stats.extend([
                ("step_queue_p50_ns", latency(|set| &set.steps.queue, 0.5)),
                ("step_io_p50_ns", latency(|set| &set.steps.io, 0.5)),
                ("step_map_p50_ns", latency(|set| &set.steps.map, 0.5)),
                ("step_resume_p50_ns", latency(|set| &set.steps.resume, 0.5)),
                ("step_evict_mean_ns", evict_ns / num_removed.max(1)),
            ]);
        }
        stats
    }

    /// For tests: from now on, a backend that injects faults does so no more. Any thread.
    #[doc(hidden)]
    pub fn stop_faults(&self) {
        self.pager().backend.stop_faults();
    }

    /// With [`Builder::step_times`]: the steps queue, io, map and resume of all swap-ins so far, each as a histogram: nanoseconds, rising, the same at
    /// every call, and how many took about so long. So the difference of two calls is what happened between them.
    pub fn step_histograms(&self) -> [(&'static str, Vec<(u64, u64)>); 4] {
        let pager = self.pager();
        let workers: Vec<&'static WorkerShared> = pager.workers().clone();
        let of = |step: fn(&Steps) -> &Histogram| {
            let sets = workers.iter().map(|worker| &worker.stats).chain(std::iter::once(&pager.thread_stats));
            buckets(sets.map(|set| step(&set.steps)))
        };
        [("queue", of(|steps| &steps.queue)), ("io", of(|steps| &steps.io)), ("map", of(|steps| &steps.map)), ("resume", of(|steps| &steps.resume))]
    }
}

/// A range of virtual memory whose pages Lightswap swaps. Unmapped on drop: nobody may access it any more by then. The drop waits for reads and writes of its
/// pages that are in flight, as long as they take: the device uses their memory. (So does the drop of a [`WorkerHandle`] for its own.)
#[derive(Debug)]
pub struct Region {
    inner: Arc<RegionInner>,
}

impl Region {
    /// First byte; aligned to 2 MiB.
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.base()
    }

    /// Length in bytes, a multiple of the page size. Never 0.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.inner.num_bytes()
    }

    /// The contract it was made with.
    pub fn contract(&self) -> Contract {
        self.inner.contract
    }

    /// Bytes of it that are resident now.
    pub fn resident_bytes(&self) -> usize {
        bytes_of(self.inner.residency.total())
    }

    /// Bytes of DRAM that Lightswap keeps for a page of a region, resident or not.
    pub const METADATA_BYTES_PER_PAGE: usize = size_of::<crate::page_table::PageEntry>();
}

impl Drop for Region {
    fn drop(&mut self) {
        let pager = self.inner.pager.clone();
        if pager.config.notifier == Notifier::Ebpf && !pager.is_inherited() {
            ebpf::remove_range(self.inner.start(), self.inner.num_bytes());
        }
        region::unregister(&self.inner);
        if pager.is_inherited() {
            // What is at work in it is so in the parent.
            return;
        }
        // Evictors and prefetches that are at work in it end by themselves; on a worker, this one must help.
        let mut attempt = 0;
        while !pager.hand.forget(&self.inner) || self.inner.num_swapping_in.load(Acquire) > 0 {
            if let Some(worker) = worker::current_of(&pager).filter(|_| !lwt::on_lwt()) {
                worker.turn(false);
            }
            lwt::wait_a_little(attempt);
            attempt += 1;
        }
        // First out of DRAM, then out of the budget: others take the frames at once.
        self.inner.discard();
        pager.budget.give_back(self.inner.residency.total());
        pager.uffd.unregister(self.inner.start(), self.inner.num_bytes());
        pager.release_slots(self.inner.first_slot, self.inner.num_slots());
        tracing::debug!(size = format_size(self.inner.num_bytes() as u64), "region destroyed");
    }
}

/// The calling thread as a worker; the thread stops being one on drop.
pub struct WorkerHandle {
    worker: &'static Worker,
    _instance: Arc<Instance>,
    not_send: PhantomData<*const ()>,
}

impl WorkerHandle {
    /// Starts an LWT: it runs at once, until it ends or is suspended.
    ///
    /// # Errors
    /// [`ErrorKind::NoMemory`] or [`ErrorKind::Busy`] when there is no stack for it.
    pub fn start(&self, entry: impl FnOnce() + 'static) -> Result<()> {
        lwt::start(entry).map(drop)
    }

    /// Runs the scheduler until every LWT of this worker has ended.
    pub fn run(&self) {
        self.worker.run();
    }

    /// One turn of the scheduler, without blocking: reaps completions and runs every LWT that is ready once. Returns how many are ready again. A worker that
    /// has LWTs must keep polling: what it evicts is claimed until then.
    ///
    /// # Panics
    /// On an LWT, as [`Self::run`].
    pub fn poll(&self) -> usize {
        self.worker.turn(false)
    }

    /// LWTs of this worker that have not ended.
    pub fn num_lwts(&self) -> usize {
        self.worker.num_lwts()
    }

    /// A descriptor that becomes readable when a completion or another thread gives [`Self::poll`] something to do, for event loops. It is the poll that
    /// clears it, and the poll that submits what LWTs asked for: call it after each turn of the event loop, before that blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NoMemory`] when there is no descriptor left.
    pub fn fd(&self) -> Result<BorrowedFd<'_>> {
        let fd: RawFd = self.worker.fd()?;
        // SAFETY: the descriptor stays open as long as the worker, which this handle keeps.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }
}

impl std::fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHandle").field("num_lwts", &self.num_lwts()).finish_non_exhaustive()
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        if self.worker.pager().is_inherited() {
            // Not in a child of fork, whose parent's all of that is.
            return;
        }
        // LWTs that have not ended hold pointers into this thread: they must.
        self.run();
        let _ = Worker::leave();
    }
}
