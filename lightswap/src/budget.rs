//! Local memory: the count of frames in use, which never exceeds the capacity.
//!
//! A frame is taken before a page is mapped and given back after it is unmapped. I/O buffers are taken out of the capacity at the start.
//!
//! The capacity can be changed. More counts at once. Less is a goal at first, to which the capacity comes down as frames are free, so that those who need one meanwhile
//! find things as usual.

use crate::page_table::Tick;
use crate::parking;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, fence};

/// Frames of one instance.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Budget {
    /// Capacity and frames in use, in one word: the latter is never more, for nobody who looks.
    frames: AtomicU64,
    /// What the capacity is to become, never more than it.
    goal: AtomicUsize,
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

/// Capacity and frames in use.
#[derive(Clone, Copy)]
struct Frames {
    capacity: usize,
    num_used: usize,
}

impl Frames {
    /// More pages do not fit in the word: 16 TiB.
    const MAX: usize = u32::MAX as usize;

    fn of(word: u64) -> Self {
        Self { capacity: (word >> 32) as usize, num_used: (word & u64::from(u32::MAX)) as usize }
    }

    fn word(self) -> u64 {
        (self.capacity as u64) << 32 | self.num_used as u64
    }

    fn num_free(self) -> usize {
        self.capacity - self.num_used
    }

    /// Pages an evict batch aims for. It pays one TLB flush for all of them, so it is large; but it must not take a noticeable part of a small memory.
    fn batch_pages(self) -> usize {
        (self.capacity / 16).clamp(1, MAX_BATCH_PAGES)
    }
}

impl Budget {
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(Frames::MAX);
        let [num_leaving, num_waiting, epoch, num_evicted] = [0; 4].map(AtomicUsize::new);
        let frames = AtomicU64::new(Frames { capacity, num_used: 0 }.word());
        Self { frames, goal: AtomicUsize::new(capacity), num_leaving, num_waiting, epoch, num_evicted, tick: AtomicU8::new(0) }
    }

    fn frames(&self) -> Frames {
        Frames::of(self.frames.load(Relaxed))
    }

    /// Changes the frames unless `next` gives up; what they were.
    fn update(&self, next: impl Fn(Frames) -> Option<Frames>) -> Option<Frames> {
        let next = |word| next(Frames::of(word)).map(Frames::word);
        self.frames.fetch_update(AcqRel, Relaxed, next).ok().map(Frames::of)
    }

    /// What the capacity is, or is to become.
    pub(crate) fn goal(&self) -> usize {
        self.goal.load(Relaxed)
    }

    /// Sets the capacity if it is more than now, or else what it is to become. One caller at a time.
    pub(crate) fn set_goal(&self, goal: usize) {
        let goal = goal.min(Frames::MAX);
        self.goal.store(goal, Relaxed);
        if self.update(|frames| (goal > frames.capacity).then_some(Frames { capacity: goal, ..frames })).is_some() {
            self.notify(usize::MAX);
        }
    }

    /// Whether the capacity has to come down.
    pub(crate) fn is_shrinking(&self) -> bool {
        self.frames().capacity > self.goal()
    }

    /// Brings the capacity down a step, by half of the frames that are free at most: the others are for those who need one now.
    pub(crate) fn shrink(&self) {
        self.update(|frames| {
            let excess = frames.capacity.saturating_sub(self.goal());
            let step = excess.min(frames.num_free().div_ceil(2));
            (step > 0).then(|| Frames { capacity: frames.capacity - step, ..frames })
        });
    }

    /// Whether more frames are free than reclaim aims for.
    pub(crate) fn has_many_free(&self) -> bool {
        let frames = self.frames();
        frames.num_free() > frames.batch_pages()
    }

    /// Takes a frame if one is free and nobody has been waiting for it.
    pub(crate) fn try_take_in_turn(&self) -> bool {
        self.num_waiting.load(Relaxed) == 0 && self.try_take()
    }

    /// Takes a frame if one is free.
    pub(crate) fn try_take(&self) -> bool {
        // Never above the capacity, not even for a moment: the count is shown to users.
        self.update(|frames| (frames.num_free() > 0).then(|| Frames { num_used: frames.num_used + 1, ..frames })).is_some()
    }

    /// Gives frames back, and lets as many of those who wait for one try again.
    pub(crate) fn give_back(&self, num_frames: usize) {
        self.frames.fetch_sub(num_frames as u64, AcqRel);
        self.notify(num_frames);
    }

    /// Time by the eviction clock: what is referenced twice in one tick is referenced once.
    pub(crate) fn tick(&self) -> Tick {
        Tick::after(self.tick.load(Relaxed).into())
    }

    /// Moves the eviction clock on.
    pub(crate) fn count_evicted(&self, num_pages: usize) {
        let num_evicted = self.num_evicted.fetch_add(num_pages, Relaxed) + num_pages;
        self.tick.store(Tick::after(num_evicted / (self.capacity() / TICKS_PER_CAPACITY).max(1)).as_u8(), Relaxed);
    }

    /// Pages evicted so far.
    pub(crate) fn num_evicted(&self) -> usize {
        self.num_evicted.load(Relaxed)
    }

    pub(crate) fn num_used(&self) -> usize {
        self.frames().num_used
    }

    pub(crate) fn capacity(&self) -> usize {
        self.frames().capacity
    }

    /// Capacity and frames in use at one moment.
    pub(crate) fn capacity_and_used(&self) -> (usize, usize) {
        let frames = self.frames();
        (frames.capacity, frames.num_used)
    }

    /// Pages an evict batch aims for.
    pub(crate) fn batch_pages(&self) -> usize {
        self.frames().batch_pages()
    }

    /// Whether reclaim should start another batch ahead of demand: while fewer frames are free than a batch has.
    pub(crate) fn is_low(&self) -> bool {
        let frames = self.frames();
        frames.num_used + frames.batch_pages() >= frames.capacity + self.num_leaving.load(Relaxed)
    }

    /// Whether a frame can be taken ahead of use and leave `reserve` (at most a batch) for those who need theirs now.
    pub(crate) fn can_spare(&self, reserve: usize) -> bool {
        let frames = self.frames();
        !self.has_waiters() && reserve.min(frames.batch_pages()) < frames.num_free()
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
        let Budget { frames, epoch, .. } = self.budget;
        parking::park(self.budget.key(), || Frames::of(frames.load(SeqCst)).num_free() == 0 && epoch.load(SeqCst) == self.epoch);
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

    #[test]
    fn the_capacity_follows_its_goal() {
        let budget = Budget::new(100);
        assert!((0..90).all(|_| budget.try_take()));
        budget.set_goal(50);
        assert_eq!((budget.goal(), budget.capacity_and_used(), budget.is_shrinking()), (50, (100, 90), true));
        assert!(budget.has_many_free());
        // Half of what is free.
        budget.shrink();
        assert_eq!(budget.capacity_and_used(), (95, 90));
        assert!(!budget.has_many_free());
        (0..10).for_each(|_| budget.shrink());
        assert_eq!(budget.capacity_and_used(), (90, 90));
        assert!(!budget.try_take());
        budget.give_back(60);
        (0..20).for_each(|_| budget.shrink());
        assert_eq!((budget.capacity_and_used(), budget.is_shrinking()), ((50, 30), false));
        budget.set_goal(40);
        budget.set_goal(70);
        assert_eq!((budget.goal(), budget.capacity_and_used(), budget.is_shrinking()), (70, (70, 30), false));
        assert!((0..40).all(|_| budget.try_take()) && !budget.try_take());
    }
}
