//! Explicit paging: touch, pin, prefetch and advice for address ranges. Cheaper than faults: no signal, and on an LWT all reads of a range go out
//! together.

use crate::copies;
use crate::discard;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::SwapFailure;
use crate::lwt;
use crate::notifier::die;
use crate::pager::Pager;
use crate::region::{self, Page, RegionInner};
use crate::size::pages_in;
use crate::snapshot::child;
use crate::stats::{Counter, Counters};
use crate::swap_in;
use crate::worker;
use std::ops::Range;

/// Pages that a child asks for at a time.
const LOOK_AHEAD_PAGES: usize = 8;

/// Pages of one region.
#[derive(Clone, Debug)]
pub(crate) struct PageRange {
    region: &'static RegionInner,
    indices: Range<usize>,
}

impl PageRange {
    /// The pages that `len` bytes at `address` lie in.
    pub(crate) fn find(address: usize, len: usize) -> Result<Self> {
        let outside = || Error::new(ErrorKind::NotInRegion, format!("{len} bytes at {address:#x} are not inside one region"));
        let region = region::find(address).ok_or_else(outside)?;
        let first = pages_in(address - region.start());
        if len == 0 {
            return Ok(Self { region, indices: first..first });
        }
        let last_byte = address.checked_add(len - 1).ok_or_else(outside)?;
        let last = pages_in(last_byte - region.start());
        if last >= region.num_pages() { Err(outside()) } else { Ok(Self { region, indices: first..last + 1 }) }
    }

    fn pages(&self) -> impl Iterator<Item = Page<'static>> + use<> {
        let region = self.region;
        self.indices.clone().map(move |index| region.page(index))
    }

    /// Makes each page resident once and marks it referenced.
    pub(crate) fn touch(&self) -> Result<()> {
        let is_counted = self.read_ahead();
        let tick = self.region.pager.budget.tick();
        for page in self.pages() {
            if !page.entry().reference(tick) {
                self.look_ahead(page);
                make_resident(page, is_counted)?;
                swap_in::unpin(page);
            }
        }
        Ok(())
    }

    /// Starts all reads of the range before anybody waits for one, and counts the missing pages; `false`: it did neither.
    fn read_ahead(&self) -> bool {
        if self.indices.len() <= 1 || !lwt::on_lwt() {
            return false;
        }
        let mut num_missing = 0;
        for page in self.pages().filter(|page| !page.entry().load().is_mapped()) {
            swap_in::prefetch(page);
            num_missing += 1;
        }
        count(&self.region.pager, |counters| &counters.missing_pages, num_missing);
        true
    }

    /// In a child that asks its parent for pages: asks for some from `page` on, before it waits for that.
    fn look_ahead(&self, page: Page<'static>) {
        if self.region.is_inherited() {
            (page.index..self.indices.end).take(LOOK_AHEAD_PAGES).for_each(|index| swap_in::prefetch(self.region.page(index)));
        }
    }

    /// Of pages that are pinned the first whose memory is damaged, which is given up then.
    pub(crate) fn damage(&self) -> Option<SwapFailure> {
        let mut byte = 0;
        // SAFETY: a byte of a region.
        let check = |page: Page<'static>| unsafe { copies::copy(&raw mut byte, page.address() as *const u8, 1) };
        self.pages().map(check).find_map(|result| result.err()?.failure().copied())
    }

    /// Makes all pages resident and keeps them so.
    pub(crate) fn pin(&self) -> Result<()> {
        let pager = &self.region.pager;
        let num_pages = self.indices.len();
        if !pager.take_pins(num_pages) {
            let (pinned, limit) = (pager.num_pinned(), pager.pin_limit());
            let message = format!("cannot pin {num_pages} pages: {pinned} are pinned already, and {limit} may be with this local memory");
            return Err(Error::new(ErrorKind::PinLimit, message));
        }
        let is_counted = self.read_ahead();
        let tick = pager.budget.tick();
        for page in self.pages() {
            if page.entry().pin(tick).is_ok() {
                continue;
            }
            self.look_ahead(page);
            if let Err(error) = make_resident(page, is_counted) {
                self.pages().take(page.index - self.indices.start).for_each(|page| assert!(swap_in::unpin(page)));
                pager.give_pins_back(num_pages);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The same without waiting: `false`, and no pins, if a page is not resident or the limit is reached.
    pub(crate) fn pin_resident(&self) -> bool {
        let pager = &self.region.pager;
        let num_pages = self.indices.len();
        // A look first: it can overlap with whatever the caller has not got from memory yet, as a change that all threads see cannot.
        if !self.is_resident() || !pager.take_pins(num_pages) {
            return false;
        }
        let tick = pager.budget.tick();
        match self.pages().position(|page| page.entry().pin(tick).is_err()) {
            None => true,
            Some(num_pinned) => {
                self.pages().take(num_pinned).for_each(|page| assert!(swap_in::unpin(page)));
                pager.give_pins_back(num_pages);
                false
            }
        }
    }

    /// Drops the pins of an earlier [`Self::pin`] of the same range.
    pub(crate) fn unpin(&self) -> Result<()> {
        let mut result = Ok(());
        for page in self.pages() {
            if swap_in::unpin(page) {
                self.region.pager.give_pins_back(1);
            } else {
                result = Err(Error::new(ErrorKind::InvalidArgument, format!("unpin: the page at {:#x} is not pinned", page.address())));
            }
        }
        result
    }

    /// Starts reading the pages that are swapped out, as far as that needs no waiting.
    pub(crate) fn prefetch(&self) {
        self.pages().for_each(swap_in::prefetch);
    }

    /// Makes the pages as if they had never been touched. The range is of whole pages.
    pub(crate) fn discard(&self) -> Result<()> {
        if self.region.is_inherited() {
            let message = "this process is a fork of one with a Lightswap region: only the parent can discard pages of it";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        discard::discard(self.region, self.indices.clone())
    }

    /// Makes the pages the first candidates for eviction.
    pub(crate) fn advise_cold(&self) {
        if self.region.is_inherited() {
            // A child has a policy of its own, and the hand is the parent's.
            return;
        }
        self.pages().for_each(|page| page.entry().forget_references());
        self.region.pager.hand.advise_cold(self.region, self.indices.start, self.indices.end);
    }

    pub(crate) fn is_resident(&self) -> bool {
        self.pages().all(|page| page.entry().load().is_mapped())
    }

    /// Makes sure that the backend has room for the pages.
    pub(crate) fn reserve(&self) -> Result<()> {
        let pager = &self.region.pager;
        if self.region.is_inherited() {
            // A child writes nothing to the backend.
            return Ok(());
        }
        if pager.is_failing() {
            // Nobody may need a frame, so nobody else would find out that writes work again.
            pager.pager_thread().nudge();
            return Err(Error::new(ErrorKind::NoSpace, "writes to the swap backend are failing: no fresh memory until one succeeds"));
        }
        self.region.reserve(self.indices.start, self.indices.len()).map_err(|cause| {
            let url = &pager.config.backend_url;
            Error::io(ErrorKind::NoSpace, format!("backend \"{url}\" has no room for more pages"), &cause)
        })
    }

    /// Lifts write protection off pinned pages of a transparent region, for accesses of the kernel.
    pub(crate) fn unprotect(&self) {
        // In a child of fork nothing is protected, and the userfaultfd is that of the parent's memory.
        if self.region.is_transparent() && !self.indices.is_empty() && !self.region.is_inherited() {
            let _ = self.region.pager.uffd.write_protect(self.region.page(self.indices.start).address(), self.indices.len(), false);
        }
    }
}

/// A pin that does not count towards the limit, for copies that do not suspend while they have it.
pub(crate) fn pin_page(page: Page<'static>) -> Result<()> {
    if page.entry().pin(page.region.pager.budget.tick()).is_err() {
        make_resident(page, false)?;
    }
    Ok(())
}

/// Adds to a counter of the calling worker, or of the other threads.
fn count(pager: &Pager, counter: impl Fn(&Counters) -> &Counter, amount: u64) {
    match worker::current_of(pager) {
        Some(worker) => counter(&worker.stats().counters).add(amount),
        None => counter(&pager.thread_stats.counters).add_shared(amount),
    }
}

fn make_resident(page: Page<'static>, is_counted: bool) -> Result<()> {
    if page.region.is_inherited() && child::of(page.region).is_none() {
        die(format_args!("this process is a fork of one with a Lightswap region and asked for a swapped-out page; only the parent can page it in"));
    }
    let pager = &page.region.pager;
    count(pager, |counters| &counters.touch_misses, 1);
    if !is_counted {
        count(pager, |counters| &counters.missing_pages, 1);
    }
    swap_in::make_resident(page).map(drop).map_err(|cause| SwapFailure::new(cause, page, page.address()).into())
}
