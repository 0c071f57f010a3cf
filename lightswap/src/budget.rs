//! Local memory: the count of frames in use, which never exceeds the capacity.
//!
//! A frame is taken before a page is mapped and given back after it is unmapped. I/O buffers are taken out of the capacity at the start.

use crate::page_table::Tick;
use crate::parking;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicUsize, fence};

/// Frames of one instance.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Budget {
    num_used: AtomicUsize,
    capacity: usize,
    /// Reclaim runs ahead of demand while fewer frames than this are free.
    low_watermark: usize,
    /// Pages an evict batch aims for.
    batch_pages: usize,
    /// Pages in evict batches that are under way.
    num_leaving: AtomicUsize,
    /// LWTs and threads that are short of a frame, reclaiming or parked.
    num_waiting: AtomicUsize,
    /// Counts what those should look at again; see [`Wait`].
    epoch: AtomicUsize,
    num_evicted: AtomicUsize,
    tick: AtomicU8,
}

/// Ticks of the eviction clock while as many pages are evicted as local memory holds.
const TICKS_PER_CAPACITY: usize = 16;

/// Most pages of one evict batch.
pub(crate) const MAX_BATCH_PAGES: usize = 128;

impl Budget {
    pub(crate) fn new(capacity: usize) -> Self {
        // A batch pays one TLB flush for all its pages, so it is large; but it must not take a noticeable part of a small memory.
        let batch_pages = (capacity / 16).clamp(1, MAX_BATCH_PAGES);
        let [num_used, num_leaving, num_waiting, epoch, num_evicted] = [0; 5].map(AtomicUsize::new);
        let tick = AtomicU8::new(0);
        Self { num_used, capacity, low_watermark: batch_pages, batch_pages, num_leaving, num_waiting, epoch, num_evicted, tick }
    }

    /// Takes a frame if one is free and nobody has been waiting for it.
    pub(crate) fn try_take_in_turn(&self) -> bool {
        self.num_waiting.load(Relaxed) == 0 && self.try_take()
    }

    /// Takes a frame if one is free.
    pub(crate) fn try_take(&self) -> bool {
        // Never above the capacity, not even for a moment: the count is shown to users.
        self.num_used.fetch_update(AcqRel, Relaxed, |used| (used < self.capacity).then_some(used + 1)).is_ok()
    }

    /// Gives frames back, and lets as many of those who wait for one try again.
    pub(crate) fn give_back(&self, num_frames: usize) {
        self.num_used.fetch_sub(num_frames, AcqRel);
        self.notify(num_frames);
    }

    /// Time by the eviction clock: what is referenced twice in one tick is referenced once.
    pub(crate) fn tick(&self) -> Tick {
        Tick::after(self.tick.load(Relaxed).into())
    }

    /// Moves the eviction clock on.
    pub(crate) fn count_evicted(&self, num_pages: usize) {
        let num_evicted = self.num_evicted.fetch_add(num_pages, Relaxed) + num_pages;
        self.tick.store(Tick::after(num_evicted / (self.capacity / TICKS_PER_CAPACITY).max(1)).as_u8(), Relaxed);
    }

    /// Pages evicted so far.
    pub(crate) fn num_evicted(&self) -> usize {
        self.num_evicted.load(Relaxed)
    }

    pub(crate) fn num_used(&self) -> usize {
        self.num_used.load(Relaxed)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn batch_pages(&self) -> usize {
        self.batch_pages
    }

    /// Whether reclaim should start another batch ahead of demand.
    pub(crate) fn is_low(&self) -> bool {
        self.num_used() + self.low_watermark >= self.capacity + self.num_leaving.load(Relaxed)
    }

    /// Whether a frame can be taken ahead of use and leave `reserve` (at most a batch) for those who need theirs now.
    pub(crate) fn can_spare(&self, reserve: usize) -> bool {
        !self.has_waiters() && self.num_used() + reserve.min(self.batch_pages) < self.capacity
    }

    /// An evict batch has selected so many victims.
    pub(crate) fn begin_leaving(&self, num_pages: usize) {
        self.num_leaving.fetch_add(num_pages, Relaxed);
    }

    /// That batch is over.
    pub(crate) fn end_leaving(&self, num_pages: usize) {
        self.num_leaving.fetch_sub(num_pages, Relaxed);
    }

    /// Frames are free or pages became evictable: `num_waiters` of those who wait should try again. One load when nobody waits.
    pub(crate) fn notify(&self, num_waiters: usize) {
        fence(SeqCst);
        if self.num_waiting.load(Relaxed) > 0 {
            self.epoch.fetch_add(1, SeqCst);
            parking::unpark(self.key(), num_waiters);
        }
    }

    /// Whether somebody is short of a frame.
    pub(crate) fn has_waiters(&self) -> bool {
        self.num_waiting.load(Relaxed) > 0
    }

    /// Announces that the caller is short of a frame.
    pub(crate) fn begin_wait(&self) -> Wait<'_> {
        self.num_waiting.fetch_add(1, SeqCst);
        Wait { budget: self, epoch: self.epoch.load(SeqCst) }
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

/// The wait for a frame, an event count: what happens after it was announced, or after the last [`Self::park`], ends the next park at once, so
/// that nothing is missed between a vain reclaim and the park.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    budget: &'a Budget,
    epoch: usize,
}

impl Wait<'_> {
    /// Waits until there is something new to look at.
    pub(crate) fn park(&mut self) {
        let Budget { num_used, capacity, epoch, .. } = self.budget;
        parking::park(self.budget.key(), || num_used.load(SeqCst) >= *capacity && epoch.load(SeqCst) == self.epoch);
        self.epoch = epoch.load(SeqCst);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.budget.num_waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_capacity() {
        let budget = Budget::new(2);
        assert!(budget.try_take() && budget.try_take() && !budget.try_take());
        assert_eq!(budget.num_used(), 2);
        budget.give_back(1);
        assert!(budget.try_take() && budget.is_low());
    }

    #[test]
    fn low_frames_can_be_spared_but_not_the_last() {
        let budget = Budget::new(64);
        assert!((0..61).all(|_| budget.try_take()));
        assert!(budget.is_low() && budget.can_spare(2) && !budget.can_spare(3));
        // A reserve for very many workers is no larger than what reclaim keeps free.
        budget.give_back(2);
        assert_eq!((budget.batch_pages(), budget.can_spare(1000)), (4, true));
        let wait = budget.begin_wait();
        assert!(!budget.can_spare(0), "somebody waits for a frame");
        drop(wait);
        assert!(budget.can_spare(0));
    }
}
