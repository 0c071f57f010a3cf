//! Giving local memory up while an instance runs: an LWT of the pager thread evicts, and brings the capacity down as frames become free. Others go on meanwhile, and reclaim
//! for themselves as they always do.

use crate::evict::{self, Progress, RETRY_PAUSE};
use crate::lwt;
use crate::worker::Worker;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Pause while all batches of the pager thread wait for their writes.
const WRITE_PAUSE: Duration = Duration::from_millis(1);

/// Pager thread, after each turn: sees to it that the capacity comes down if it has to. True if an LWT has begun to.
pub(crate) fn begin(worker: &'static Worker) -> bool {
    let pager = worker.pager();
    let begins = pager.budget.is_shrinking() && !pager.is_shrinking.swap(true, Relaxed);
    if begins && lwt::start(move || shrink(worker)).is_err() {
        // No stack for it now: at a later turn.
        pager.is_shrinking.store(false, Relaxed);
    }
    begins
}

fn shrink(worker: &Worker) {
    let pager = worker.pager();
    while pager.budget.is_shrinking() && !worker.must_stop() {
        pager.budget.shrink();
        // Frames that nobody uses go first: perhaps nothing has to be evicted.
        if pager.budget.has_many_free() {
            lwt::yield_now();
            continue;
        }
        let progress = if !pager.is_failing() || pager.may_retry() { evict::reclaim(worker) } else { Progress::Nothing };
        match progress {
            Progress::Freed => lwt::yield_now(),
            Progress::Pending => lwt::sleep(WRITE_PAUSE),
            Progress::Nothing => lwt::sleep(RETRY_PAUSE),
        }
    }
    pager.is_shrinking.store(false, Relaxed);
}
