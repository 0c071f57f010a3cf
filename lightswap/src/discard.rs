//! Giving up what pages hold: because the program asks for it, or because their memory is damaged.

use crate::error::{Error, ErrorKind, Result};
use crate::failure::Cause;
use crate::hand::Claim;
use crate::lwt;
use crate::page_table::{PageState, Word};
use crate::parking;
use crate::region::{Page, RegionInner};
use crate::size::bytes_of;
use crate::snapshot::{Pass, Runs};
use crate::swap_in;
use crate::sys;
use crate::sys::removal::Run;
use crate::worker;
use std::ops::Range;

/// Most pages that are taken at a time: whoever needs one of them waits that long.
const MAX_TAKEN: usize = 512;

/// The memory of a mapped page is damaged, and what was in it lost: the backend's copy, if there is one, may be of an older content. The page keeps its frame,
/// which is of no use to anybody, until it is discarded. Async-signal-safe.
pub(crate) fn lose(page: Page<'_>) {
    if page.entry().lose() {
        swap_in::counters(&page.region.pager).count_failure(Cause::Poisoned);
    }
}

/// Makes pages as if they had never been touched.
pub(crate) fn discard(region: &'static RegionInner, pages: Range<usize>) -> Result<()> {
    // A look ahead, so that usually nothing is changed if anything is pinned.
    pages.clone().map(|index| region.page(index)).try_for_each(|page| expect_unpinned(page, page.entry().load()))?;
    let mut next = pages.start;
    while next < pages.end {
        let end = pages.end.min(next + MAX_TAKEN);
        let claim = claim(region, next, end)?;
        let (num_taken, result) = discard_first(region, next..end);
        region.pager.hand.release(&claim);
        next += num_taken;
        if let Some(blocked) = result? {
            parking::park_for_pager(blocked.key(), || blocked.entry().set_waiters());
        }
    }
    Ok(())
}

fn expect_unpinned(page: Page<'_>, word: Word) -> Result<()> {
    if word.num_pins() > 0 {
        return Err(Error::new(ErrorKind::Busy, format!("the page at {:#x} cannot be discarded while it is pinned or accessed", page.address())));
    }
    Ok(())
}

/// Keeps evictors out of the pages, waiting for those that are at work there; but not for ever, as a write may be stuck in the device.
fn claim(region: &'static RegionInner, start: usize, end: usize) -> Result<Claim> {
    let start_ns = sys::now_ns();
    for attempt in 0usize.. {
        if let Some(claim) = region.pager.hand.claim_pages(region, start, end) {
            return Ok(claim);
        }
        if sys::now_ns() - start_ns > region.pager.io_timeout_ns() {
            break;
        }
        // They end by themselves; those of this worker when it takes a turn.
        if let Some(worker) = worker::current().filter(|_| !lwt::on_lwt()) {
            worker.turn(false);
        }
        lwt::wait_a_little(attempt);
    }
    let address = region.page(start).address();
    Err(Error::new(ErrorKind::Busy, format!("the pages at {address:#x} cannot be discarded: a write of some of them to the backend does not end")))
}

/// Discards pages of the range, which the caller has claimed, up to one that another owns or that is pinned: how many, and the one to wait for.
fn discard_first(region: &'static RegionInner, pages: Range<usize>) -> (usize, Result<Option<Page<'static>>>) {
    let pager = &*region.pager;
    let pass = pager.enter_change();
    let spares_slots = pass.as_ref().is_some_and(Pass::spares_slots);
    let first = pages.start;
    let mut num_moved = 0;
    let mut num_framed = 0;
    let mut has_slot = false;
    let mut num_used = 0;
    let mut end = pages.end;
    let mut result = Ok(None);
    for index in pages {
        let page = region.page(index);
        match take(page) {
            Taken::Owned(word) => {
                num_framed += usize::from(word.has_frame());
                // Of a page that has a frame, mapped or damaged, the slot may hold an older content.
                let uses_slot = word.is_stored() || word.has_frame();
                has_slot |= uses_slot;
                num_moved += usize::from(uses_slot && spares_slots && page.entry().spare_slot());
                num_used += u64::from(word.state() != PageState::Untouched);
            }
            Taken::Blocked => result = Ok(Some(page)),
            Taken::Pinned(error) => result = Err(error),
        }
        if !matches!(result, Ok(None)) {
            end = index;
            break;
        }
    }
    let num_taken = end - first;
    if num_taken == 0 {
        return (0, result);
    }
    if num_framed > 0 {
        // SAFETY: all these pages are ours in Removing.
        unsafe { pager.remover.remove(&[Run { start: region.page(first).address(), num_bytes: bytes_of(num_taken) }]) };
    }
    if has_slot {
        // Before others can have the pages, and so write to the slots. What a snapshot needs is no page's current slot any more.
        let mut runs = Runs::new(|slot, num_slots| pager.backend.discard(slot, num_slots));
        (first..end).for_each(|index| runs.add(region.page(index).slot()));
    }
    if let Some(pass) = pass.as_ref().filter(|_| num_moved > 0) {
        pass.count_moved(num_moved);
    }
    for page in (first..end).map(|index| region.page(index)) {
        if page.entry().finish_removal(None) {
            parking::unpark_all(page.key());
        }
    }
    if num_framed > 0 {
        pager.budget.give_back(num_framed);
    }
    swap_in::counters(pager).discards.add_shared(num_used);
    (num_taken, result)
}

enum Taken {
    /// It was like this.
    Owned(Word),
    /// It is on its way in or out.
    Blocked,
    Pinned(Error),
}

/// Takes a page to Removing, and out of the resident ones if it has a frame.
fn take(page: Page<'_>) -> Taken {
    loop {
        let word = page.entry().load();
        match word.state() {
            PageState::SwappingIn | PageState::Removing | PageState::Evicting => return Taken::Blocked,
            _ => {}
        }
        if let Err(error) = expect_unpinned(page, word) {
            return Taken::Pinned(error);
        }
        if page.entry().begin_discard(word) {
            if word.has_frame() {
                page.count_resident(false);
            }
            return Taken::Owned(word);
        }
    }
}
