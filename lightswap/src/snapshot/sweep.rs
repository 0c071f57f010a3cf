//! After a snapshot: slots that only it needed are discarded, and the pages that moved may move again. In pieces, by the pager thread.

use super::Snapshots;
use crate::pager::Pager;
use crate::region::{MAX_REGIONS, RegionInner};
use crate::slot_runs::SlotRuns;
use std::sync::atomic::Ordering::AcqRel;

/// Pages of a piece: a fraction of a millisecond.
const PIECE_PAGES: usize = 1 << 16;

/// Where the sweep is: place of the region among those of the process, and the page in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sweep {
    place: usize,
    index: usize,
}

impl Sweep {
    /// One piece; `false` when there is nothing left.
    pub(super) fn step(&mut self, pager: &Pager, snapshots: &Snapshots) -> bool {
        if snapshots.counters.moved_of_last.get() == 0 || self.place == MAX_REGIONS {
            return false;
        }
        // A region that comes meanwhile has no page that has moved, and that of one that goes need no sweep.
        let Some(region) = pager.hand.enter_region(self.place, pager) else {
            *self = Self { place: self.place + 1, index: 0 };
            return true;
        };
        let end = region.num_pages().min(self.index + PIECE_PAGES);
        sweep(region, self.index.min(end), end);
        *self = if end == region.num_pages() { Self { place: self.place + 1, index: 0 } } else { Self { index: end, ..*self } };
        region.num_swapping_in.fetch_sub(1, AcqRel);
        true
    }
}

fn sweep(region: &RegionInner, start: usize, end: usize) {
    let mut runs = SlotRuns::new(|first, len| region.pager.backend.discard(first, len));
    for page in (start..end).map(|index| region.page(index)) {
        let word = page.entry().load();
        // Nobody moves a page, or uses the slot that is not current, while no snapshot is alive.
        if word.is_moved() {
            page.entry().forget_moved();
            runs.add(page.slot_of(!word.is_alternate()));
        }
    }
}
