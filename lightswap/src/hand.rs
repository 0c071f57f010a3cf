//! The CLOCK hand: where eviction looks next, and who is evicting where.
//!
//! The hand sweeps all regions of an instance in address order, a span at a time, so that victims lie near each other: one ranged
//! write-protection covers them, and their slots are adjacent. An evictor claims its span; claims never overlap, so a page is
//! in one eviction at a time and a span is write-protected by one evictor only.

use crate::pager::Pager;
use crate::parking::SpinLock;
use crate::region::{self, CHUNK_PAGES, MAX_REGIONS, RegionInner};
use std::cell::UnsafeCell;

/// Pages of one claim.
pub(crate) const SPAN_PAGES: usize = 2 * CHUNK_PAGES;
/// Most claims at a time.
const MAX_CLAIMS: usize = 32;
/// Ranges that were advised cold and wait for the hand.
const MAX_COLD: usize = 64;

/// Pages `start..end` of a region, claimed by one evictor until it is released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) region: &'static RegionInner,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Claim {
    fn overlaps(&self, region: &RegionInner, start: usize, end: usize) -> bool {
        std::ptr::eq(self.region, region) && start < self.end && self.start < end
    }
}

#[derive(Debug)]
struct State {
    /// Place of the region in the registry, and the page in it, where the next sweep starts.
    place: usize,
    index: usize,
    claims: [Option<Claim>; MAX_CLAIMS],
    cold: [Option<Claim>; MAX_COLD],
    num_cold: usize,
}

/// The hand of one instance.
#[derive(Debug)]
pub(crate) struct Hand {
    lock: SpinLock,
    state: UnsafeCell<State>,
}

// SAFETY: the state is accessed under the lock only; regions are Sync.
unsafe impl Sync for Hand {}
// SAFETY: as above.
unsafe impl Send for Hand {}

impl Hand {
    pub(crate) const fn new() -> Self {
        let state = State { place: 0, index: 0, claims: [None; MAX_CLAIMS], cold: [None; MAX_COLD], num_cold: 0 };
        Self { lock: SpinLock::new(), state: UnsafeCell::new(state) }
    }

    /// Runs `action` under the lock, which is a spin lock: short, no region memory. Async-signal-safe.
    fn with<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        self.lock.lock();
        // SAFETY: the lock is held.
        let result = action(unsafe { &mut *self.state.get() });
        self.lock.unlock();
        result
    }

    /// Claims the next span with resident pages: cold ones first, then where the hand is. `None` when there is none that is not claimed.
    pub(crate) fn claim(&self, pager: &Pager) -> Option<Claim> {
        self.with(|state| {
            let place = state.claims.iter().position(Option::is_none)?;
            let claim = state.next_cold().or_else(|| state.sweep(pager))?;
            state.claims[place] = Some(claim);
            Some(claim)
        })
    }

    /// The evictor used only `claim.start..end`: the rest is the next claim's, if the hand is still where the claim ended.
    pub(crate) fn shorten(&self, claim: &mut Claim, end: usize) {
        debug_assert!(end > claim.start, "a claim of no pages");
        let old = *claim;
        claim.end = end;
        self.with(|state| {
            if let Some(place) = state.claims.iter().position(|taken| taken.is_some_and(|taken| taken.overlaps(old.region, old.start, old.end))) {
                state.claims[place] = Some(*claim);
            }
            if state.index == old.end {
                state.index = end;
            }
        });
    }

    /// The eviction is over.
    pub(crate) fn release(&self, claim: &Claim) {
        self.with(|state| {
            for taken in &mut state.claims {
                if taken.is_some_and(|taken| taken.overlaps(claim.region, claim.start, claim.end.max(claim.start + 1))) {
                    *taken = None;
                }
            }
        });
    }

    /// Makes a range the next to be swept. A hint: it is dropped when many wait already.
    pub(crate) fn advise_cold(&self, region: &'static RegionInner, mut start: usize, end: usize) {
        self.with(|state| {
            while start < end && state.num_cold < MAX_COLD {
                let stop = end.min(start + SPAN_PAGES);
                state.cold[state.num_cold] = Some(Claim { region, start, end: stop });
                state.num_cold += 1;
                start = stop;
            }
        });
    }

    /// Forgets a region that is being destroyed; `false` while somebody still evicts in it.
    pub(crate) fn forget(&self, region: &RegionInner) -> bool {
        self.with(|state| {
            let keep = |claim: &Option<Claim>| claim.is_some_and(|claim| !std::ptr::eq(claim.region, region));
            let mut num_kept = 0;
            for i in 0..state.num_cold {
                if keep(&state.cold[i]) {
                    state.cold[num_kept] = state.cold[i];
                    num_kept += 1;
                }
            }
            state.num_cold = num_kept;
            !state.claims.iter().flatten().any(|claim| std::ptr::eq(claim.region, region))
        })
    }
}

impl State {
    fn is_claimed(&self, region: &RegionInner, start: usize, end: usize) -> bool {
        self.claims.iter().flatten().any(|claim| claim.overlaps(region, start, end))
    }

    fn next_cold(&mut self) -> Option<Claim> {
        while self.num_cold > 0 {
            self.num_cold -= 1;
            let claim = self.cold[self.num_cold].take()?;
            if !self.is_claimed(claim.region, claim.start, claim.end) {
                return Some(claim);
            }
        }
        None
    }

    /// Moves the hand over the next span worth a look; at most once around.
    fn sweep(&mut self, pager: &Pager) -> Option<Claim> {
        let (first_place, first_index) = (self.place, self.index);
        let mut wrapped = false;
        loop {
            if let Some(region) = region::in_place(self.place, pager) {
                while self.index < region.num_pages() {
                    let start = self.index;
                    // Spans end at multiples of the chunk, so that empty chunks are skipped whole.
                    let end = (start / CHUNK_PAGES * CHUNK_PAGES + SPAN_PAGES).min(region.num_pages());
                    if wrapped && self.place == first_place && start >= first_index {
                        return None;
                    }
                    if !region.chunk_has_resident(start) {
                        self.index = ((start / CHUNK_PAGES + 1) * CHUNK_PAGES).min(region.num_pages());
                        continue;
                    }
                    self.index = end;
                    if !self.is_claimed(region, start, end) {
                        return Some(Claim { region, start, end });
                    }
                }
            }
            self.index = 0;
            self.place = (self.place + 1) % MAX_REGIONS;
            if self.place == first_place {
                if wrapped || first_index == 0 {
                    return None;
                }
                wrapped = true;
            }
        }
    }
}
