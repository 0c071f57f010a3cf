//! Local memory: the count of frames in use, which never exceeds the capacity.
//!
//! A frame is taken before a page is mapped and given back after it is unmapped. I/O buffers are taken out of the capacity at the start.

use crate::parking;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};

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
    num_waiting: AtomicUsize,
}

/// Most pages of one evict batch.
pub(crate) const MAX_BATCH_PAGES: usize = 256;

impl Budget {
    pub(crate) fn new(capacity: usize) -> Self {
        // A batch pays one TLB flush for all its pages, so it is large; but it must not take a noticeable part of a small memory.
        let batch_pages = (capacity / 16).clamp(1, MAX_BATCH_PAGES);
        Self { num_used: AtomicUsize::new(0), capacity, low_watermark: batch_pages / 2, batch_pages, num_waiting: AtomicUsize::new(0) }
    }

    /// Takes a frame if one is free.
    pub(crate) fn try_take(&self) -> bool {
        if self.num_used.fetch_add(1, AcqRel) < self.capacity {
            return true;
        }
        self.num_used.fetch_sub(1, AcqRel);
        false
    }

    /// Gives frames back.
    pub(crate) fn give_back(&self, num_frames: usize) {
        self.num_used.fetch_sub(num_frames, AcqRel);
        self.notify();
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

    pub(crate) fn is_low(&self) -> bool {
        self.num_used() + self.low_watermark >= self.capacity
    }

    /// Something changed that those who wait for a frame should look at: a frame is free, or a page became evictable.
    pub(crate) fn notify(&self) {
        if self.num_waiting.load(SeqCst) > 0 {
            parking::unpark_all(self.key());
        }
    }

    /// Waits until [`Self::notify`], unless `still_needed` says otherwise after the wait was announced.
    pub(crate) fn wait(&self, still_needed: impl FnOnce() -> bool) {
        self.num_waiting.fetch_add(1, SeqCst);
        parking::park(self.key(), || self.num_used() >= self.capacity && still_needed());
        self.num_waiting.fetch_sub(1, SeqCst);
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
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
}
