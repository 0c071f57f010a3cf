//! Bringing pages in: from a fault, a touch, a pin or a prefetch to the mapped page.
//!
//! On an LWT the caller submits the read and is suspended until the page is there. An ordinary thread does what needs no waiting itself, and
//! hands the rest to the instance's pager thread, where an LWT serves it; only that thread blocks. With [`crate::Notifier::Monitor`] all threads of the program do
//! so, and what they ask for comes without a pin: the LWT that is to drop it may not run before another one's fault, which needs a frame, is over.
//!
//! Whoever asked gets the page with a pin that it drops when it has been resumed: with a tiny local memory the page would otherwise be
//! gone again before its LWT ran, forever.
//!
//! A read that fails is begun again at once, a few times. If that does not help, the page is Failed, and those who wait for it learn why. The next who
//! asks for the page tries again: what was wrong may be over by then.

use crate::backend::Now;
use crate::buffers::{Asker, Outcome, PendingRead};
use crate::evict;
use crate::failure::RawCause;
use crate::io_queue::{Completion, Source};
use crate::lwt;
use crate::page_table::{PageState, Pinned, Word};
use crate::pager::{Pager, ZERO_PAGE};
use crate::parking;
use crate::region::Page;
use crate::size::PAGE_SIZE;
use crate::snapshot::child;
use crate::stats::Counters;
use crate::sys;
use crate::worker::{self, Worker};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr};

/// Times that a read which fails is begun again before its page is given up.
pub(crate) const MAX_RETRIES: u32 = 2;

/// Makes a page resident and adds a pin to it, suspending the LWT or blocking the thread as long as it takes. Async-signal-safe.
pub(crate) fn make_resident(page: Page<'static>) -> Result<Pinned, RawCause> {
    if page.region.is_inherited() {
        return child::make_resident(page);
    }
    let entry = page.entry();
    // Who waited for a read gets the error it ended with: that many should try again one after the other helps nobody.
    let mut waiting_since_ns = None;
    loop {
        let word = match entry.pin(page.region.pager.budget.tick()) {
            Ok(pinned) => return Ok(pinned),
            Err(word) => word,
        };
        match word.state() {
            PageState::Untouched | PageState::SwappedOut => {
                // Those who brought it in for others have given up, after the time limit: that each should wait as long once more helps nobody either.
                let limit_ns = page.region.pager.io_timeout_ns();
                if waiting_since_ns.is_some_and(|since_ns| sys::now_ns() - since_ns > limit_ns) {
                    return Err(RawCause::TIMED_OUT);
                }
                if try_bring_in(page, word)? {
                    return Ok(Pinned::Resident);
                }
            }
            PageState::SwappingIn | PageState::Removing => {
                if word.state() == PageState::SwappingIn {
                    waiting_since_ns.get_or_insert_with(sys::now_ns);
                }
                parking::park_for_pager(page.key(), || entry.set_waiters());
            }
            PageState::Failed if word.has_frame() => return Err(RawCause::POISONED),
            PageState::Failed if waiting_since_ns.is_some() => return Err(RawCause(entry.cause())),
            PageState::Failed => {
                if try_bring_in(page, word)? {
                    return Ok(Pinned::Resident);
                }
            }
            PageState::Resident | PageState::Evicting => {}
        }
    }
}

/// Drops a pin; `false` if there is none.
pub(crate) fn unpin(page: Page<'_>) -> bool {
    let was_last = page.entry().unpin();
    if was_last == Some(true) && !page.region.is_inherited() {
        page.region.pager.budget.notify(1);
    }
    was_last.is_some()
}

/// Brings in a page whose word was `word` with one pin; `false` if there is no pin: somebody else was faster, or the pager thread has brought it in.
fn try_bring_in(page: Page<'static>, word: Word) -> Result<bool, RawCause> {
    let pager = &*page.region.pager;
    match worker::current_of(pager) {
        Some(worker) if worker.swaps_in() && lwt::on_lwt() => {
            if !page.entry().begin_swap_in(word) {
                return Ok(false);
            }
            bring_in(worker, page, word).map(|()| true)
        }
        _ => bring_in_on_thread(page, word),
    }
}

/// On an LWT: brings in a page that the caller has moved to SwappingIn from `word`, and pins it.
fn bring_in(worker: &Worker, page: Page<'static>, word: Word) -> Result<(), RawCause> {
    let pager = &*page.region.pager;
    let start_ns = sys::now_ns();
    if let Err(cause) = evict::take_frame(worker, start_ns) {
        fail(page, cause, 1);
        return Err(cause);
    }
    let stats = worker.stats();
    let framed_ns = pager.step_clock();
    if !word.is_stored() {
        install_zeroes(page, 1)?;
        stats.counters.zero_fills.add(1);
    } else if let Some(result) = install_now(page, 1) {
        result?;
        stats.counters.swap_ins.add(1);
        if pager.config.step_times {
            stats.steps.queue.record(framed_ns - start_ns);
            stats.steps.map.record(sys::now_ns() - framed_ns);
        }
    } else {
        let (mapped_ns, outcome) = (Cell::new(0), Outcome::new(None));
        if let Err(cause) = worker.start_read(page, 1, Some(Asker { start_ns, outcome: &outcome, mapped_ns: &mapped_ns })) {
            return finish(page, Err(cause), 1);
        }
        loop {
            if let Some(result) = outcome.get() {
                result?;
                break;
            }
            // While there is no outcome, the swap-in is ours, and the page in that state.
            parking::park_for_pager(page.key(), || outcome.get().is_none() && page.entry().set_waiters());
        }
        if pager.config.step_times {
            stats.steps.resume.record(sys::now_ns() - mapped_ns.get());
        }
    }
    stats.fault_handling.record(sys::now_ns() - start_ns);
    if !worker.reclaims() && pager.budget.is_low() {
        pager.pager_thread().nudge();
    }
    Ok(())
}

/// On a thread that is no worker, or on a worker's own stack.
fn bring_in_on_thread(page: Page<'static>, word: Word) -> Result<bool, RawCause> {
    let pager = &*page.region.pager;
    let entry = page.entry();
    let may_swap_in = !pager.config.faults_sleep();
    if may_swap_in && (!word.is_stored() || pager.backend.is_readable_now(page.slot())) && pager.budget.try_take_in_turn() {
        if !entry.begin_swap_in(word) {
            pager.budget.give_back(1);
            return Ok(false);
        }
        let counters = &pager.thread_stats.counters;
        if !word.is_stored() {
            install_zeroes(page, 1)?;
            counters.zero_fills.add_shared(1);
        } else if let Some(result) = install_now(page, 1) {
            result?;
            counters.swap_ins.add_shared(1);
        } else {
            give_up(page);
            return Ok(false);
        }
        if pager.budget.is_low() {
            pager.pager_thread().nudge();
        }
        return Ok(true);
    }
    let request = Request::new(page, false);
    pager.pager_thread().push_request(&request);
    // Not once: the wake-up for an earlier request at this address of the stack may still be on its way.
    while !request.done.load(Acquire) {
        parking::park(request.key(), || !request.done.load(Acquire));
    }
    match request.cause.load(Acquire) {
        // The pin that the server took, if it left us one, is ours now.
        0 => Ok(may_swap_in),
        cause => Err(RawCause(cause)),
    }
}

/// Maps a zeroed page; on failure gives the frame back.
fn install_zeroes(page: Page<'_>, pins: u32) -> Result<(), RawCause> {
    let pager = &*page.region.pager;
    let reserved = page.region.reserve(page.index, 1);
    let result = match reserved {
        // SAFETY: the source is a page of zeroes; the page is ours in SwappingIn, so it is registered and missing.
        Ok(()) => unsafe { pager.uffd.copy_page(page.address(), ZERO_PAGE.0.as_ptr()) }.map_err(RawCause::of_mapping),
        Err(cause) => Err(RawCause(cause.raw_os_error().unwrap_or(libc::EIO))),
    };
    finish(page, result, pins)
}

/// Verifies and maps a page whose content can be had without I/O; on failure gives the frame back. `None` if it takes I/O.
fn install_now(page: Page<'_>, pins: u32) -> Option<Result<(), RawCause>> {
    let mut buffer = MaybeUninit::<[u8; PAGE_SIZE]>::uninit();
    let result = match page.region.pager.backend.read_now(page.slot(), buffer.as_mut_ptr().cast()) {
        Now::Content(content) => map(page, content),
        Now::Failed(cause) => Err(cause),
        Now::NeedsIo => return None,
    };
    Some(finish(page, result, pins))
}

/// The caller cannot bring the page in after all: gives it and its frame back.
fn give_up(page: Page<'_>) {
    page.region.pager.budget.give_back(1);
    if page.entry().abort_swap_in() {
        parking::unpark_all(page.key());
    }
}

/// Verifies the content at `content` and maps the page with it.
fn map(page: Page<'_>, content: *const u8) -> Result<(), RawCause> {
    let pager = &*page.region.pager;
    // SAFETY: the content is in a slot or buffer that nobody else uses now.
    if unsafe { pager.hash_page(content) } != page.entry().hash() {
        return Err(RawCause::WRONG_HASH);
    }
    // SAFETY: as above; the page is ours in SwappingIn, so it is registered and missing.
    unsafe { pager.uffd.copy_page(page.address(), content) }.map_err(RawCause::of_mapping)
}

/// The swap-in is over, with this result: the page gets its state, and who waits for it is woken. After a failure its frame is given back.
fn finish(page: Page<'_>, result: Result<(), RawCause>, pins: u32) -> Result<(), RawCause> {
    match result {
        Ok(()) => {
            page.count_resident(true);
            if page.entry().finish_swap_in(pins, page.region.pager.budget.tick()) {
                parking::unpark_all(page.key());
            }
            if pins == 0 {
                page.region.pager.budget.notify(1);
            }
            Ok(())
        }
        Err(cause) => {
            page.region.pager.budget.give_back(1);
            fail(page, cause, pins);
            Err(cause)
        }
    }
}

/// The swap-in failed, and has no frame. A page whose content could not be read when it was needed is Failed; a first touch, or a read that was only
/// ahead of use, may be tried again.
fn fail(page: Page<'_>, cause: RawCause, pins: u32) {
    let pager = &*page.region.pager;
    counters(pager).count_failure(cause.cause());
    let word = page.entry().load();
    // After a time limit, those who wait for a read ahead have waited long enough, too, and the device is stuck: no second read for them.
    let was_needed = pins > 0 || (cause == RawCause::TIMED_OUT && word.has_waiters());
    let has_failed = word.is_stored() && was_needed;
    let has_waiters = if has_failed { page.entry().fail_swap_in(cause.0) } else { page.entry().abort_swap_in() };
    if has_waiters {
        parking::unpark_all(page.key());
    }
}

/// Those of the calling thread. All ordinary threads share a set, so add with [`crate::stats::Counter::add_shared`].
pub(crate) fn counters(pager: &Pager) -> &Counters {
    &worker::current_of(pager).map_or(&pager.thread_stats, Worker::stats).counters
}

/// Starts reading a page if it is swapped out and that needs no waiting. A hint.
pub(crate) fn prefetch(page: Page<'static>) {
    if page.region.is_inherited() {
        return child::prefetch(page);
    }
    let pager = &*page.region.pager;
    let word = page.entry().load();
    if word.state() != PageState::SwappedOut {
        return;
    }
    let Some(worker) = worker::current_of(pager).filter(|worker| worker.swaps_in()) else {
        // The request outlives this call: the pager thread frees it. Until then the region must not go.
        page.region.num_swapping_in.fetch_add(1, AcqRel);
        let request = Box::leak(Box::new(Request::new(page, true)));
        return pager.pager_thread().push_request(request);
    };
    let is_readable = pager.backend.is_readable_now(page.slot());
    if !(is_readable || worker.has_free_buffer()) || !pager.may_prefetch() || !pager.budget.try_take() {
        return;
    }
    if !page.entry().begin_swap_in(word) {
        return pager.budget.give_back(1);
    }
    worker.stats().counters.prefetches.add(1);
    if !worker.reclaims() && pager.budget.is_low() {
        pager.pager_thread().nudge();
    }
    match install_now(page, 0) {
        Some(Ok(())) => worker.stats().counters.swap_ins.add(1),
        // Whoever needs the page will try again.
        Some(Err(_)) => {}
        None if worker.has_free_buffer() => worker.start_read(page, 0, None).expect("there is a free buffer"),
        None => give_up(page),
    }
}

/// What an ordinary thread asks the pager thread for. Lives on the waiting thread's stack, or in a box for a prefetch.
#[derive(Debug)]
pub(crate) struct Request {
    page: Page<'static>,
    is_prefetch: bool,
    done: AtomicBool,
    /// Why it failed, or 0.
    cause: AtomicI32,
    pub(crate) next: AtomicPtr<Request>,
}

impl Request {
    fn new(page: Page<'static>, is_prefetch: bool) -> Self {
        let next = AtomicPtr::new(std::ptr::null_mut());
        Self { page, is_prefetch, done: AtomicBool::new(false), cause: AtomicI32::new(0), next }
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

/// Pager thread: serves one request, on an LWT of its own.
pub(crate) fn serve(request: *mut Request) {
    // SAFETY: whoever pushed the request waits for `done`, or leaked its box to us.
    let (page, is_prefetch) = unsafe { ((*request).page, (*request).is_prefetch) };
    if is_prefetch {
        // SAFETY: made by `prefetch` with Box::new, and nobody else knows it.
        drop(unsafe { Box::from_raw(request) });
        prefetch(page);
        page.region.num_swapping_in.fetch_sub(1, AcqRel);
        return;
    }
    let result = make_resident(page);
    if result.is_ok() && page.region.pager.config.faults_sleep() {
        unpin(page);
    }
    // SAFETY: as above; after `done` is set it may be gone, its address is still good as a key.
    unsafe {
        (*request).cause.store(result.map_or_else(|cause| cause.0, |_| 0), Release);
        (*request).done.store(true, Release);
    }
    parking::unpark_all(request as usize);
}

/// A read of the worker's queue completed: verifies and maps the page.
pub(crate) fn complete_read(worker: &Worker, buffer: usize, completion: Completion) {
    let Some((read, target)) = worker.finish_read(buffer) else { return worker.release_buffer(buffer) };
    let reaped_ns = worker.pager().step_clock();
    let content = if completion.content.is_null() { target } else { completion.content };
    let is_whole = completion.result == PAGE_SIZE as i32;
    let mapped = if is_whole { map(read.page, content) } else { Err(RawCause::of_read(completion.result)) };
    match mapped {
        Ok(()) => {
            worker.stats().counters.swap_ins.add(1);
            worker.stats().swap_in.record(sys::now_ns() - read.start_ns);
            if worker.pager().config.step_times {
                record_steps(worker, buffer, read.asker, reaped_ns);
            }
        }
        // Not for a prefetch: whoever needs the page has attempts of their own.
        Err(cause) if cause.may_heal() && read.pins > 0 && read.num_retries < MAX_RETRIES => {
            worker.stats().counters.swap_in_retries.add(1);
            let suspect = if cause == RawCause::WRONG_HASH { completion.source } else { Source(None) };
            return worker.read_again(buffer, PendingRead { num_retries: read.num_retries + 1, ..read }, suspect);
        }
        Err(_) => {}
    }
    finish_read(read, mapped);
    worker.release_buffer(buffer);
}

/// A read takes longer than it may: gives it up. Its buffer is not free before it completes.
pub(crate) fn abandon(read: PendingRead) {
    finish_read(read, Err(RawCause::TIMED_OUT));
}

fn finish_read(read: PendingRead, mapped: Result<(), RawCause>) {
    let outcome = finish(read.page, mapped, read.pins);
    if let Some(asker) = read.asker {
        // SAFETY: the LWT, of this thread, waits for this.
        unsafe { (*asker.outcome).set(Some(outcome)) };
    }
    read.page.region.num_swapping_in.fetch_sub(1, AcqRel);
}

/// A read that was handled from `reaped_ns` on has been mapped.
fn record_steps(worker: &Worker, buffer: usize, asker: Option<Asker>, reaped_ns: u64) {
    let (steps, mapped_ns, submitted_ns) = (&worker.stats().steps, sys::now_ns(), worker.queue().submitted_ns(buffer));
    steps.io.record(reaped_ns - submitted_ns);
    steps.map.record(mapped_ns - reaped_ns);
    if let Some(asker) = asker {
        steps.queue.record(submitted_ns - asker.start_ns);
        // SAFETY: the LWT waits until this thread has handled the completion, which it is doing now.
        unsafe { (*asker.mapped_ns).set(mapped_ns) };
    }
}

impl Pager {
    /// The worker that serves ordinary threads.
    pub(crate) fn pager_thread(&self) -> &crate::worker::WorkerShared {
        self.pager_thread.get().expect("the pager thread starts with the instance")
    }
}
