//! The CLOCK hand: where eviction looks next, and who is evicting where.
//!
//! The hand sweeps all regions of an instance in address order, a span at a time, so that victims lie near each other: one ranged
//! write-protection covers them, and their slots are adjacent. An evictor claims its span; claims never overlap, so a page is
//! in one eviction at a time and a span is write-protected by one evictor only.

use crate::pager::Pager;
use crate::parking::SpinLock;
use crate::region::{self, MAX_REGIONS, Page, RegionInner};
use crate::residency::CHUNK_PAGES;
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::Relaxed;

/// Pages of one claim.
pub(crate) const SPAN_PAGES: usize = 2 * CHUNK_PAGES;
/// Where fewer than so many of them are resident, a claim goes on to the next chunks with resident pages, or batches would be small in sparse regions,
const SPARSE_PAGES: usize = 16;
/// up to so many chunks.
const SPARSE_CHUNKS: usize = 16;
/// Most claims at a time.
const MAX_CLAIMS: usize = 256;
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

    /// Claims just these pages, so that nobody evicts in them; `None` while somebody does, or there are too many claims.
    pub(crate) fn claim_pages(&self, region: &'static RegionInner, start: usize, end: usize) -> Option<Claim> {
        self.with(|state| {
            if state.is_claimed(region, start, end) {
                return None;
            }
            let place = state.claims.iter().position(Option::is_none)?;
            let claim = Claim { region, start, end };
            state.claims[place] = Some(claim);
            Some(claim)
        })
    }

    /// The page at `address` of a region of `pager`, which is not destroyed until its `num_swapping_in` is decremented again.
    pub(crate) fn enter_page(&self, address: usize, pager: &Pager) -> Option<Page<'static>> {
        self.with(|_| {
            let region = (0..MAX_REGIONS).filter_map(|place| region::in_place(place, pager)).find(|region| region.contains(address))?;
            region.num_swapping_in.fetch_add(1, Relaxed);
            Some(region.page_at(address))
        })
    }

    /// The region registered in `place`, if it is one of `pager`; likewise.
    pub(crate) fn enter_region(&self, place: usize, pager: &Pager) -> Option<&'static RegionInner> {
        self.with(|_| {
            let region = region::in_place(place, pager)?;
            region.num_swapping_in.fetch_add(1, Relaxed);
            Some(region)
        })
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

    /// How far a claim of `start..end` goes.
    fn reach(&self, region: &RegionInner, start: usize, mut end: usize) -> usize {
        let residency = &region.residency;
        let mut num_resident = (start..end).step_by(CHUNK_PAGES).map(|index| residency.in_chunk(index)).sum::<usize>();
        for _ in 0..SPARSE_CHUNKS {
            let Some(next) = residency.next(end).filter(|_| num_resident < SPARSE_PAGES) else { break };
            let next_end = ((next / CHUNK_PAGES + 1) * CHUNK_PAGES).min(region.num_pages());
            if self.is_claimed(region, end, next_end) {
                break;
            }
            num_resident += residency.in_chunk(next);
            end = next_end;
        }
        end
    }

    /// Moves the hand over the next span worth a look; at most once around.
    fn sweep(&mut self, pager: &Pager) -> Option<Claim> {
        let (first_place, first_index) = (self.place, self.index);
        let mut wrapped = false;
        loop {
            if let Some(region) = region::in_place(self.place, pager) {
                while let Some(start) = region.residency.next(self.index) {
                    // Spans end at multiples of the chunk, so that empty chunks are skipped whole.
                    let end = (start / CHUNK_PAGES * CHUNK_PAGES + SPAN_PAGES).min(region.num_pages());
                    if wrapped && self.place == first_place && start >= first_index {
                        return None;
                    }
                    self.index = end;
                    if !self.is_claimed(region, start, end) {
                        self.index = self.reach(region, start, end);
                        return Some(Claim { region, start, end: self.index });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Contract;
    use crate::size::PAGE_SIZE;
    use crate::{Lightswap, Region};
    use proptest::prelude::*;

    /// An instance with far more local memory than `num_regions` regions of `num_pages` pages, so that nobody but the test moves its hand. Page
    /// `index` is resident if `is_resident(index)`. `None` where the kernel cannot.
    fn open(num_regions: usize, num_pages: usize, is_resident: impl Fn(usize) -> bool) -> Option<(Lightswap, Vec<Region>)> {
        let size = num_regions * num_pages * PAGE_SIZE;
        let swap = Lightswap::builder().local_memory(4 * size as u64).backend(format!("memory:?size={size}")).open().ok()?;
        let regions: Vec<Region> = (0..num_regions).map(|_| swap.create_region(num_pages * PAGE_SIZE, Contract::Cooperative).unwrap()).collect();
        for region in &regions {
            let page = |index: usize| region.as_ptr().wrapping_add(index * PAGE_SIZE);
            (0..num_pages).filter(|index| is_resident(*index)).for_each(|index| crate::touch(page(index), 1).unwrap());
        }
        Some((swap, regions))
    }

    fn inner(region: &Region) -> &'static RegionInner {
        region::find(region.as_ptr() as usize).unwrap()
    }

    fn claim_all(pager: &Pager) -> Vec<Claim> {
        std::iter::from_fn(|| pager.hand.claim(pager)).collect()
    }

    fn overlap(one: &Claim, two: &Claim) -> bool {
        one.overlaps(two.region, two.start, two.end)
    }

    #[test]
    fn a_sweep_sees_every_resident_page_once() {
        // One chunk in three has none.
        let Some((_swap, regions)) = open(3, 6 * CHUNK_PAGES + 77, |index| index % 5 == 0 && index / CHUNK_PAGES % 3 != 1) else { return };
        let pager = &*inner(&regions[0]).pager;
        for _ in 0..3 {
            let claims = claim_all(pager);
            for (number, claim) in claims.iter().enumerate() {
                assert!(claim.start < claim.end && claim.end <= claim.region.num_pages());
                assert!(!claims[..number].iter().any(|earlier| overlap(claim, earlier)), "{number}");
            }
            for region in regions.iter().map(inner) {
                let resident = (0..region.num_pages()).filter(|index| region.page(*index).entry().load().is_mapped());
                let is_claimed = |index: usize| claims.iter().any(|claim| claim.overlaps(region, index, index + 1));
                assert!(resident.into_iter().all(is_claimed));
                assert!(
                    !(CHUNK_PAGES..2 * CHUNK_PAGES)
                        .step_by(64)
                        .any(|index| claims.iter().any(|claim| claim.overlaps(region, index, index + 1) && claim.start >= CHUNK_PAGES))
                );
            }
            claims.iter().for_each(|claim| pager.hand.release(claim));
        }
    }

    #[test]
    fn what_was_not_used_of_a_claim_is_the_next() {
        let Some((_swap, regions)) = open(1, 4 * CHUNK_PAGES, |_| true) else { return };
        let pager = &*inner(&regions[0]).pager;
        let mut first = pager.hand.claim(pager).unwrap();
        let (start, end) = (first.start, first.end);
        pager.hand.shorten(&mut first, start + 10);
        let second = pager.hand.claim(pager).unwrap();
        assert_eq!((first.end, second.start), (start + 10, start + 10));
        assert!(second.end <= end && !overlap(&first, &second));
        [first, second].iter().for_each(|claim| pager.hand.release(claim));
    }

    #[test]
    fn cold_ranges_come_first_and_go_with_their_region() {
        let Some((_swap, mut regions)) = open(2, 4 * CHUNK_PAGES, |_| true) else { return };
        let (one, two) = (inner(&regions[0]), inner(&regions[1]));
        let pager = &*one.pager;
        pager.hand.advise_cold(two, 700, 720);
        let claim = pager.hand.claim(pager).unwrap();
        assert_eq!((claim.start, claim.end, std::ptr::eq(claim.region, two)), (700, 720, true));
        // While it is claimed, the same advice is dropped and its region cannot go.
        pager.hand.advise_cold(two, 710, 730);
        let next = pager.hand.claim(pager).unwrap();
        assert!(!overlap(&claim, &next));
        pager.hand.release(&next);
        assert!(!pager.hand.forget(two) && pager.hand.forget(one));
        pager.hand.release(&claim);
        pager.hand.advise_cold(two, 0, two.num_pages());
        assert!(pager.hand.forget(two));
        drop(regions.pop());
        let claims = claim_all(pager);
        assert!(!claims.is_empty() && claims.iter().all(|claim| std::ptr::eq(claim.region, one)));
        claims.iter().for_each(|claim| pager.hand.release(claim));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]

        /// Whatever evictors do, their claims never overlap, and when all are released everything can be claimed again.
        #[test]
        fn claims_never_overlap(steps in prop::collection::vec((0..4u8, any::<prop::sample::Index>()), 1..60)) {
            let Some((_swap, regions)) = open(2, 3 * CHUNK_PAGES, |index| index % 97 == 0) else { return Ok(()) };
            let pager = &*inner(&regions[0]).pager;
            let mut claims: Vec<Claim> = Vec::new();
            for (what, index) in steps {
                match what {
                    0 | 1 => {
                        if let Some(claim) = pager.hand.claim(pager) {
                            prop_assert!(claim.start < claim.end && !claims.iter().any(|other| overlap(&claim, other)), "{claims:?} {claim:?}");
                            claims.push(claim);
                        }
                    }
                    2 if !claims.is_empty() => {
                        let number = index.index(claims.len());
                        pager.hand.release(&claims.swap_remove(number));
                    }
                    3 if !claims.is_empty() => {
                        let number = index.index(claims.len());
                        let middle = claims[number].start.midpoint(claims[number].end);
                        if middle > claims[number].start && middle < claims[number].end {
                            pager.hand.shorten(&mut claims[number], middle);
                        }
                    }
                    _ => pager.hand.advise_cold(inner(&regions[index.index(2)]), index.index(1000), index.index(1000) + 30),
                }
            }
            claims.drain(..).for_each(|claim| pager.hand.release(&claim));
            let all = claim_all(pager);
            prop_assert!(!all.is_empty() && all.len() <= MAX_CLAIMS);
            all.iter().for_each(|claim| pager.hand.release(claim));
        }
    }
}
