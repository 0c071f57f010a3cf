//! Runs of free pages: best fit by a tree in the page table, neighbours merged; and pages on their way back to being untouched.
//!
//! The tree is a treap, ordered by length and then by address, whose nodes are the first pages of free runs: everything takes a time logarithmic in their number, and no
//! memory. Freed pages first join the queue of those that leave. They are discarded in batches, as each removal interrupts the other CPUs, without any lock, and
//! without waiting: those that an evictor or a pin keeps stay in the queue for the next time.

use super::table::{Kind, NIL, Table};
use crate::discard::{self, MAX_RANGES};
use crate::parking::SpinLock;
use crate::region::RegionInner;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// Pages that may wait in the queue, where there is no reason to hurry.
const LEAVING_PAGES_MAX: usize = 256;

/// Free and leaving runs of one heap.
#[derive(Debug)]
pub(super) struct Runs {
    lock: SpinLock,
    root: Cell<u32>,
    oldest: Cell<u32>,
    newest: Cell<u32>,
    /// Pages in the tree.
    num_free: AtomicUsize,
    num_leaving: AtomicUsize,
    /// Runs in the queue, and those that the last attempt could not discard.
    num_queued: AtomicUsize,
    num_stuck: AtomicUsize,
    stuck_pages: AtomicUsize,
}

// SAFETY: the cells are accessed under the lock only.
unsafe impl Sync for Runs {}
// SAFETY: as above.
unsafe impl Send for Runs {}

/// The tree and the queue, locked.
pub(super) struct LockedRuns<'a> {
    runs: &'a Runs,
    table: &'a Table,
}

impl Drop for LockedRuns<'_> {
    fn drop(&mut self) {
        self.runs.lock.unlock();
    }
}

impl Runs {
    /// All of the table is one free run.
    pub(super) fn new(table: &Table) -> Self {
        let [num_free, num_leaving, num_queued, num_stuck, stuck_pages] = [0; 5].map(AtomicUsize::new);
        let [root, oldest, newest] = [NIL; 3].map(Cell::new);
        let runs = Self { lock: SpinLock::new(), root, oldest, newest, num_free, num_leaving, num_queued, num_stuck, stuck_pages };
        runs.lock(table).add(0, table.num_pages());
        runs
    }

    pub(super) fn lock<'a>(&'a self, table: &'a Table) -> LockedRuns<'a> {
        self.lock.lock();
        LockedRuns { runs: self, table }
    }

    /// The lock alone, around a fork.
    pub(super) fn raw_lock(&self) -> &SpinLock {
        &self.lock
    }

    pub(super) fn num_free(&self) -> usize {
        self.num_free.load(Relaxed)
    }

    pub(super) fn num_leaving(&self) -> usize {
        self.num_leaving.load(Relaxed)
    }

    /// Takes the smallest run of at least so many pages.
    pub(super) fn take(&self, table: &Table, num_pages: u32) -> Option<u32> {
        self.lock(table).take(num_pages)
    }

    /// Takes the pages from `first` on, if as many are free there.
    pub(super) fn take_at(&self, table: &Table, first: u32, num_pages: u32) -> bool {
        self.lock(table).take_at(first, num_pages)
    }

    /// Gives pages back that were never used.
    pub(super) fn put_back(&self, table: &Table, first: u32, num_pages: u32) {
        self.lock(table).add(first, num_pages);
    }

    /// Gives pages back that may hold something. They can be taken again when they have been discarded.
    pub(super) fn release(&self, table: &Table, first: u32, num_pages: u32) {
        self.lock(table).enqueue(first, num_pages);
    }

    /// Whether there is enough in the queue for a batch, beside what was stuck the last time.
    pub(super) fn must_discard(&self) -> bool {
        self.num_queued.load(Relaxed) >= self.num_stuck.load(Relaxed) + MAX_RANGES
            || self.num_leaving.load(Relaxed) >= self.stuck_pages.load(Relaxed) + LEAVING_PAGES_MAX
    }

    /// Discards the oldest of the queue, as far as that needs no waiting; returns how many runs are free now.
    pub(super) fn discard_some(&self, table: &Table, region: &'static RegionInner) -> usize {
        let mut ranges: [Range<usize>; MAX_RANGES] = [const { 0..0 }; MAX_RANGES];
        let mut num_ranges = 0;
        {
            let locked = self.lock(table);
            while num_ranges < MAX_RANGES
                && let Some((first, num_pages)) = locked.dequeue()
            {
                ranges[num_ranges] = first as usize..(first + num_pages) as usize;
                num_ranges += 1;
            }
        }
        let ranges = &ranges[..num_ranges];
        let discarded = discard::try_discard(region, ranges);
        let locked = self.lock(table);
        let (mut num_done, mut stuck_pages) = (0, 0);
        for (number, range) in ranges.iter().enumerate() {
            let (first, num_pages) = (range.start as u32, range.len() as u32);
            if discarded & 1 << number != 0 {
                locked.add(first, num_pages);
                num_done += 1;
            } else {
                locked.enqueue(first, num_pages);
                stuck_pages += range.len();
            }
        }
        self.num_stuck.store(num_ranges - num_done, Relaxed);
        self.stuck_pages.store(stuck_pages, Relaxed);
        num_done
    }

    /// Tries to discard all that is in the queue now; returns how many runs are free now.
    pub(super) fn discard_all(&self, table: &Table, region: &'static RegionInner) -> usize {
        let num_batches = self.num_queued.load(Relaxed).div_ceil(MAX_RANGES);
        (0..num_batches).map(|_| self.discard_some(table, region)).sum()
    }
}

impl LockedRuns<'_> {
    fn len(&self, node: u32) -> u32 {
        self.table.info(node).first.load(Relaxed)
    }

    fn left(&self, node: u32) -> u32 {
        self.table.info(node).previous.load(Relaxed)
    }

    fn right(&self, node: u32) -> u32 {
        self.table.info(node).next.load(Relaxed)
    }

    /// Adds free pages, merged with their neighbours.
    fn add(&self, mut first: u32, mut num_pages: u32) {
        self.runs.num_free.fetch_add(num_pages as usize, Relaxed);
        let next = first + num_pages;
        if next < self.table.num_pages() && self.table.info(next).kind() == Kind::Free {
            num_pages += self.len(next);
            self.unlink(next);
        }
        if first > 0 {
            let last = self.table.info(first - 1);
            let start = match last.kind() {
                Kind::Free => Some(first - 1),
                Kind::FreeLast => Some(last.first.load(Relaxed)),
                _ => None,
            };
            if let Some(start) = start {
                num_pages += self.len(start);
                self.table.info(first).set_kind(Kind::Inner, 0);
                first = start;
                self.unlink(start);
            }
        }
        self.link(first, num_pages);
    }

    fn take(&self, num_pages: u32) -> Option<u32> {
        let (mut best, mut node) = (None, self.runs.root.get());
        while node != NIL {
            if self.len(node) >= num_pages {
                best = Some(node);
                node = self.left(node);
            } else {
                node = self.right(node);
            }
        }
        let first = best?;
        assert!(self.take_at(first, num_pages));
        Some(first)
    }

    fn take_at(&self, first: u32, num_pages: u32) -> bool {
        if first >= self.table.num_pages() || self.table.info(first).kind() != Kind::Free || self.len(first) < num_pages {
            return false;
        }
        let len = self.len(first);
        self.unlink(first);
        if len > num_pages {
            self.link(first + num_pages, len - num_pages);
        }
        self.runs.num_free.fetch_sub(num_pages as usize, Relaxed);
        true
    }

    /// Makes pages a node of the tree.
    fn link(&self, first: u32, num_pages: u32) {
        self.table.info(first + num_pages - 1).set_kind(Kind::FreeLast, first);
        let info = self.table.info(first);
        info.set_kind(Kind::Free, num_pages);
        info.previous.store(NIL, Relaxed);
        info.next.store(NIL, Relaxed);
        let (less, more) = self.split(self.runs.root.get(), (num_pages, first));
        self.runs.root.set(self.merge(self.merge(less, first), more));
    }

    /// Undoes it; the pages say nothing then.
    fn unlink(&self, node: u32) {
        let num_pages = self.len(node);
        let (less, rest) = self.split(self.runs.root.get(), (num_pages, node));
        let (found, more) = self.split(rest, (num_pages, node + 1));
        assert!(found == node, "the tree of free runs is damaged: was region memory's metadata overwritten?");
        self.runs.root.set(self.merge(less, more));
        self.table.info(node + num_pages - 1).set_kind(Kind::Inner, 0);
        self.table.info(node).set_kind(Kind::Inner, 0);
    }

    /// The nodes before `key`, and the others.
    fn split(&self, node: u32, key: (u32, u32)) -> (u32, u32) {
        if node == NIL {
            return (NIL, NIL);
        }
        let info = self.table.info(node);
        if (self.len(node), node) < key {
            let (less, more) = self.split(self.right(node), key);
            info.next.store(less, Relaxed);
            (node, more)
        } else {
            let (less, more) = self.split(self.left(node), key);
            info.previous.store(more, Relaxed);
            (less, node)
        }
    }

    /// One tree of two, all of whose nodes are in order.
    fn merge(&self, less: u32, more: u32) -> u32 {
        if less == NIL || more == NIL {
            return less.min(more);
        }
        if priority(less) > priority(more) {
            let merged = self.merge(self.right(less), more);
            self.table.info(less).next.store(merged, Relaxed);
            less
        } else {
            let merged = self.merge(less, self.left(more));
            self.table.info(more).previous.store(merged, Relaxed);
            more
        }
    }

    fn enqueue(&self, first: u32, num_pages: u32) {
        let info = self.table.info(first);
        info.set_kind(Kind::Leaving, num_pages);
        info.next.store(NIL, Relaxed);
        match self.runs.newest.replace(first) {
            NIL => self.runs.oldest.set(first),
            newest => self.table.info(newest).next.store(first, Relaxed),
        }
        self.runs.num_queued.fetch_add(1, Relaxed);
        self.runs.num_leaving.fetch_add(num_pages as usize, Relaxed);
    }

    fn dequeue(&self) -> Option<(u32, u32)> {
        let first = Some(self.runs.oldest.get()).filter(|first| *first != NIL)?;
        let next = self.right(first);
        self.runs.oldest.set(next);
        if next == NIL {
            self.runs.newest.set(NIL);
        }
        let num_pages = self.len(first);
        self.runs.num_queued.fetch_sub(1, Relaxed);
        self.runs.num_leaving.fetch_sub(num_pages as usize, Relaxed);
        Some((first, num_pages))
    }
}

/// Scatters the pages, so that the tree is balanced whatever runs are freed (the finaliser of MurmurHash3, which maps different pages to different numbers).
fn priority(page: u32) -> u32 {
    let mixed = (page ^ page >> 16).wrapping_mul(0x85EB_CA6B);
    let mixed = (mixed ^ mixed >> 13).wrapping_mul(0xC2B2_AE35);
    mixed ^ mixed >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// All free runs of the tree, in its order; checks its shape.
    fn runs_of(locked: &LockedRuns<'_>, node: u32, found: &mut Vec<(u32, u32)>) {
        if node != NIL {
            for child in [locked.left(node), locked.right(node)] {
                assert!(child == NIL || priority(child) < priority(node));
            }
            runs_of(locked, locked.left(node), found);
            found.push((locked.len(node), node));
            runs_of(locked, locked.right(node), found);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

        /// As a plain map of free runs: the best fit, the first of several; neighbours merged.
        #[test]
        fn best_fit_with_merging(num_pages in 1u32..300, steps in prop::collection::vec((any::<bool>(), 1u32..40, any::<prop::sample::Index>()), 1..200)) {
            let table = Table::new(num_pages).unwrap();
            let runs = Runs::new(&table);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            let mut is_free = vec![true; num_pages as usize];
            for (takes, len, index) in steps {
                if takes || taken.is_empty() {
                    let mut free: BTreeMap<(u32, u32), ()> = BTreeMap::new();
                    let mut start = None;
                    for page in 0..=num_pages {
                        let free_here = page < num_pages && is_free[page as usize];
                        match (free_here, start) {
                            (true, None) => start = Some(page),
                            (false, Some(first)) => { free.insert((page - first, first), ()); start = None; }
                            _ => {}
                        }
                    }
                    let locked = runs.lock(&table);
                    let mut found = Vec::new();
                    runs_of(&locked, runs.root.get(), &mut found);
                    drop(locked);
                    prop_assert_eq!(&found, &free.keys().copied().collect::<Vec<_>>());
                    let expected = free.range((len, 0)..).next().map(|(&(_, first), ())| first);
                    let got = runs.take(&table, len);
                    prop_assert_eq!(got, expected);
                    if let Some(first) = got {
                        table.info(first).set_kind(Kind::Run, len);
                        is_free[first as usize..(first + len) as usize].fill(false);
                        taken.push((first, len));
                    }
                } else {
                    let (first, len) = taken.swap_remove(index.index(taken.len()));
                    runs.put_back(&table, first, len);
                    is_free[first as usize..(first + len) as usize].fill(true);
                }
                prop_assert_eq!(runs.num_free(), is_free.iter().filter(|free| **free).count());
            }
        }
    }
}
