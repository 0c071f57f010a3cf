//! Frames for pages that come in. Whoever finds none free reclaims, or waits for those who do; but not for ever: while nothing can leave (writes fail, or are stuck
//! in the device) an access ends with an error after the time limit of a request.

use super::{Progress, RETRY_PAUSE, reclaim};
use crate::failure::RawCause;
use crate::lwt;
use crate::sys;
use crate::worker::Worker;

/// Takes a frame for the calling LWT, which has wanted one since `start_ns`: at once if one is free, otherwise by reclaiming, otherwise by waiting, until the
/// time limit has passed. Async-signal-safe.
pub(crate) fn take_frame(worker: &Worker, start_ns: u64) -> Result<(), RawCause> {
    let pager = worker.pager();
    if pager.budget.try_take_in_turn() {
        return Ok(());
    }
    let counters = &worker.stats().counters;
    if !worker.reclaims() {
        counters.frame_waits.add(1);
        return poll_for_frame(worker, start_ns);
    }
    counters.direct_reclaims.add(1);
    let mut wait = pager.budget.begin_wait();
    loop {
        let progress = reclaim(worker);
        if pager.budget.try_take() {
            return Ok(());
        }
        if progress == Progress::Freed {
            continue;
        }
        expect_time_left(worker, start_ns)?;
        counters.frame_waits.add(1);
        if pager.is_failing() {
            lwt::sleep(RETRY_PAUSE);
        } else {
            // What everybody waits for then is I/O, and that has a time limit: who finds it overdue ends this wait.
            wait.park();
        }
    }
}

/// The same where only the pager thread reclaims.
fn poll_for_frame(worker: &Worker, start_ns: u64) -> Result<(), RawCause> {
    let pager = worker.pager();
    let _wait = pager.budget.begin_wait();
    while !pager.budget.try_take() {
        expect_time_left(worker, start_ns)?;
        pager.pager_thread().nudge();
        if pager.is_failing() {
            // Not by suspending this LWT: others of this worker may poll for the page it owns.
            std::thread::sleep(RETRY_PAUSE / 10);
        }
        worker.poll_in_place();
    }
    Ok(())
}

fn expect_time_left(worker: &Worker, start_ns: u64) -> Result<(), RawCause> {
    let pager = worker.pager();
    if sys::now_ns() <= start_ns.saturating_add(pager.io_timeout_ns()) {
        return Ok(());
    }
    // Others that are parked for a frame may have waited as long.
    pager.budget.notify(usize::MAX);
    Err(RawCause::TIMED_OUT)
}
