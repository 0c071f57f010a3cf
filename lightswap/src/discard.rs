//! Giving up what pages hold: because the program asks for it, or because their memory is damaged.

use crate::error::{Error, ErrorKind, Result};
use crate::failure::Cause;
use crate::hand::Claim;
use crate::lwt;
use crate::page_table::{PageState, Word};
use crate::parking;
use crate::region::{Page, RegionInner};
use crate::size::bytes_of;
use crate::slot_runs::SlotRuns;
use crate::snapshot::Pass;
use crate::swap_in;
use crate::sys;
use crate::sys::removal::Run;
use crate::worker;
use std::ops::Range;

/// Most pages that are taken at a time: whoever needs one of them waits that long.
const MAX_TAKEN: usize = 512;
/// Most ranges of one [`try_discard`].
pub(crate) const MAX_RANGES: usize = 16;

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
    let pass = region.pager.enter_change();
    let (part, result) = take_first(region, pages, pass.as_ref());
    let num_taken = part.pages.len();
    give_up(region, std::slice::from_ref(&part));
    (num_taken, result)
}

/// Pages that were taken to Removing, and what is to be done about them.
#[derive(Clone, Debug, Default)]
struct Part {
    pages: Range<usize>,
    num_framed: usize,
    has_slot: bool,
    num_used: u64,
}

/// Takes pages of the range, which the caller has claimed, up to one that another owns or that is pinned.
fn take_first(region: &'static RegionInner, pages: Range<usize>, pass: Option<&Pass<'_>>) -> (Part, Result<Option<Page<'static>>>) {
    let spares_slots = pass.is_some_and(Pass::spares_slots);
    let mut part = Part { pages: pages.start..pages.start, ..Part::default() };
    for index in pages {
        let page = region.page(index);
        match take(page) {
            Taken::Owned(word) => {
                part.num_framed += usize::from(word.has_frame());
                // Of a page that has a frame, mapped or damaged, the slot may hold an older content.
                let uses_slot = word.is_stored() || word.has_frame();
                part.has_slot |= uses_slot;
                if let Some(pass) = pass
                    && spares_slots
                    && uses_slot
                    && page.entry().spare_slot()
                {
                    pass.count_moved(1);
                }
                part.num_used += u64::from(word.state() != PageState::Untouched);
                part.pages.end += 1;
            }
            Taken::Blocked => return (part, Ok(Some(page))),
            Taken::Pinned(error) => return (part, Err(error)),
        }
    }
    (part, Ok(None))
}

/// Makes pages that were taken untouched. At most [`MAX_RANGES`] parts.
fn give_up(region: &'static RegionInner, parts: &[Part]) {
    let pager = &*region.pager;
    let mut runs = [Run { start: 0, num_bytes: 0 }; MAX_RANGES];
    let mut num_runs = 0;
    for part in parts.iter().filter(|part| part.num_framed > 0) {
        runs[num_runs] = Run { start: region.page(part.pages.start).address(), num_bytes: bytes_of(part.pages.len()) };
        num_runs += 1;
    }
    if num_runs > 0 {
        // SAFETY: all these pages are ours in Removing.
        unsafe { pager.remover.remove(&runs[..num_runs]) };
    }
    for part in parts.iter().filter(|part| !part.pages.is_empty()) {
        if part.has_slot {
            // Before others can have the pages, and so write to the slots. What a snapshot needs is no page's current slot any more.
            let mut runs = SlotRuns::new(|slot, num_slots| pager.backend.discard(slot, num_slots));
            part.pages.clone().for_each(|index| runs.add(region.page(index).slot()));
        }
        for page in part.pages.clone().map(|index| region.page(index)) {
            if page.entry().finish_removal(None) {
                parking::unpark_all(page.key());
            }
        }
        if part.num_framed > 0 {
            pager.budget.give_back(part.num_framed);
        }
        swap_in::counters(pager).discards.add_shared(part.num_used);
    }
}

/// Makes the pages of each range, [`MAX_RANGES`] at most, as if they had never been touched, as far as that needs no waiting; a bit for each range whose
/// pages all are then. Those of other ranges may be in part.
pub(crate) fn try_discard(region: &'static RegionInner, ranges: &[Range<usize>]) -> u64 {
    if region.is_inherited() {
        // By a child of fork, whose parent needs the slots.
        return 0;
    }
    let hand = &region.pager.hand;
    let pass = region.pager.enter_change();
    let mut parts: [(Option<Claim>, Part); MAX_RANGES] = std::array::from_fn(|_| (None, Part::default()));
    let mut num_parts = 0;
    let flush = |parts: &mut [(Option<Claim>, Part)]| {
        let taken: [Part; MAX_RANGES] = std::array::from_fn(|number| parts.get(number).map_or_else(Part::default, |(_, part)| part.clone()));
        give_up(region, &taken);
        parts.iter_mut().filter_map(|(claim, _)| claim.take()).for_each(|claim| hand.release(&claim));
    };
    let mut done = 0;
    for (number, range) in ranges.iter().enumerate() {
        let mut next = range.start;
        while next < range.end {
            let end = range.end.min(next + MAX_TAKEN);
            let Some(claim) = hand.claim_pages(region, next, end) else { break };
            let (part, result) = take_first(region, next..end, pass.as_ref());
            let is_whole = matches!(result, Ok(None));
            parts[num_parts] = (Some(claim), part);
            num_parts += 1;
            if num_parts == MAX_RANGES {
                flush(&mut parts[..num_parts]);
                num_parts = 0;
            }
            if !is_whole {
                break;
            }
            next = end;
        }
        done |= u64::from(next >= range.end) << number;
    }
    flush(&mut parts[..num_parts]);
    done
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
