//! The `monitor` notifier: classic userfaultfd, for comparison. A faulting thread sleeps in the kernel; the instance's pager thread reads the message, brings the
//! page in on an LWT of its own, and wakes the thread, which tries the access again.
//!
//! No wake-up is lost. A thread first queues itself in the kernel and then looks once more whether it has to sleep, so that a page mapped (or
//! un-protected) before that is seen, and one mapped after wakes it: the calls that do so wake all sleepers of the page, read or not. Where this LWT
//! finds that somebody else has done it, it wakes the page's sleepers again: one wake-up too many only makes an access fault anew.
//!
//! A page that cannot be had ends the process, try block or not: the thread that sleeps in the kernel cannot be made to leave its access.
//!
//! No deadlock: a thread that sleeps owns no page, frame or buffer that others could wait for, as all paging is done here, where no region memory
//! is ever touched that might be missing.

use super::die;
use crate::failure::SwapFailure;
use crate::lwt;
use crate::page_table::PageState;
use crate::pager::Pager;
use crate::region::Page;
use crate::shrink;
use crate::swap_in;
use crate::sys;
use crate::sys::uffd::Message;
use crate::worker::Worker;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

/// When the message of the last fault of the process was read.
static LAST_NOTIFICATION_NS: AtomicU64 = AtomicU64::new(0);

/// That time.
pub(crate) fn last_notification_ns() -> u64 {
    LAST_NOTIFICATION_NS.load(Relaxed)
}

/// The pager thread: serves faults, and requests of those who ask before they access. `wake_fd` is the worker's descriptor.
pub(crate) fn serve(pager: &Pager, worker: &'static Worker, wake_fd: RawFd) {
    // Messages for which there was no stack yet.
    let mut waiting: Vec<Message> = Vec::new();
    let mut has_work = true;
    while worker.must_go_on() {
        let mut polled = [wake_fd, pager.uffd.as_raw_fd()].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: the array is valid for its length.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, if has_work { 0 } else { -1 }) };
        if polled[0].revents != 0 {
            // Before the turn, which looks at everything that was signalled by now.
            worker.queue().clear_wake();
        }
        std::mem::take(&mut waiting).into_iter().for_each(|message| start(pager, message, &mut waiting));
        if polled[1].revents != 0 {
            pager.uffd.read(|message| {
                LAST_NOTIFICATION_NS.store(sys::now_ns(), Relaxed);
                start(pager, message, &mut waiting);
            });
        }
        has_work = worker.turn(false) > 0 || !waiting.is_empty();
        has_work |= shrink::begin(worker);
        pager.log_swap_out_failure();
    }
}

/// Serves a fault on an LWT.
fn start(pager: &Pager, message: Message, waiting: &mut Vec<Message>) {
    let Some(page) = pager.hand.enter_page(message.address, pager) else {
        // The region is gone; its sleepers were woken by that.
        return pager.uffd.wake(message.address);
    };
    if lwt::start(move || bring_in(page, message.is_write_protect)).is_err() {
        page.region.num_swapping_in.fetch_sub(1, AcqRel);
        waiting.push(message);
    }
}

fn bring_in(page: Page<'static>, is_write_protect: bool) {
    let pager = &*page.region.pager;
    let counters = &pager.pager_thread().stats.counters;
    if is_write_protect { &counters.write_protect_faults } else { &counters.faults }.add(1);
    let was_missing = matches!(page.entry().load().state(), PageState::Untouched | PageState::SwappedOut | PageState::Failed);
    if let Err(cause) = swap_in::make_resident(page) {
        die(format_args!("{}", SwapFailure::new(cause, page, page.address())));
    }
    if is_write_protect {
        // Under our pin, no evictor relies on the protection of this page; see evict.rs.
        let _ = pager.uffd.write_protect(page.address(), 1, false);
    } else if !was_missing {
        pager.uffd.wake(page.address());
    }
    let _ = swap_in::unpin(page);
    // Last: a destruction of the region waits for this. The sleeper may have been woken by another message's LWT long ago.
    page.region.num_swapping_in.fetch_sub(1, AcqRel);
}
