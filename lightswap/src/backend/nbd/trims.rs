//! Slots whose content is not needed any more, on their way to the server as TRIM requests, and kept apart from later writes of the same slots.
//!
//! Anybody may discard slots; the pager thread's connection trims them some time later. Who writes a slot that waits for that takes it off the list; while the
//! request is under way, the write waits, or the server could do them in the wrong order (different connections have none).

use crate::backend::table::Table;
use crate::error::Result;
use crate::parking::SpinLock;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Ranges that wait; more are forgotten, and their memory stays with the server until their slots are written again.
const MAX_RANGES: usize = 256;
/// Slots of one request: 32 MiB.
const MAX_TRIM_SLOTS: usize = 8192;

const NOTHING: u8 = 0;
/// To be trimmed.
const WANTED: u8 = 1;
/// Being trimmed.
const UNDER_WAY: u8 = 2;

/// All of a backend.
#[derive(Debug)]
pub(super) struct Trims {
    slots: Table<AtomicU8>,
    lock: SpinLock,
    ranges: UnsafeCell<Ranges>,
    /// Ranges that wait or are under way. While there is none, writes need not look.
    num_open: AtomicUsize,
}

#[derive(Debug)]
struct Ranges {
    waiting: [(usize, usize); MAX_RANGES],
    len: usize,
}

// SAFETY: `ranges` is used under `lock` only; the rest is for all threads.
unsafe impl Sync for Trims {}

impl Trims {
    pub(super) fn new(num_slots: usize) -> Result<Self> {
        let ranges = UnsafeCell::new(Ranges { waiting: [(0, 0); MAX_RANGES], len: 0 });
        Ok(Self { slots: Table::new(num_slots)?, lock: SpinLock::new(), ranges, num_open: AtomicUsize::new(0) })
    }

    fn with_ranges<R>(&self, action: impl FnOnce(&mut Ranges) -> R) -> R {
        self.lock.lock();
        // SAFETY: under the lock.
        let result = action(unsafe { &mut *self.ranges.get() });
        self.lock.unlock();
        result
    }

    /// These slots are to be trimmed; `false` if that is forgotten. Async-signal-safe.
    pub(super) fn want(&self, slots: Range<usize>) -> bool {
        if self.num_open.load(Relaxed) >= MAX_RANGES {
            return false;
        }
        // Before the slots are marked: from then on writers look.
        self.num_open.fetch_add(1, Acquire);
        let mark = |slot, from, to| _ = self.slots[slot].compare_exchange(from, to, Acquire, Relaxed);
        // One that is being trimmed already stays so.
        slots.clone().for_each(|slot| mark(slot, NOTHING, WANTED));
        let is_added = self.with_ranges(|ranges| {
            let has_room = ranges.len < MAX_RANGES;
            if has_room {
                ranges.waiting[ranges.len] = (slots.start, slots.end);
                ranges.len += 1;
            }
            has_room
        });
        if !is_added {
            // No mark may be left without a range: nobody would look for it.
            slots.for_each(|slot| mark(slot, WANTED, NOTHING));
            self.num_open.fetch_sub(1, Release);
        }
        is_added
    }

    /// Neighbouring slots to trim now: they are under way until [`Self::end`]. For one thread.
    pub(super) fn begin(&self) -> Option<Range<usize>> {
        loop {
            let (start, end) = self.with_ranges(|ranges| (ranges.len > 0).then(|| ranges.waiting[ranges.len - 1]))?;
            let take = |slot: &usize| self.slots[*slot].compare_exchange(WANTED, UNDER_WAY, Acquire, Relaxed).is_ok();
            let first = (start..end).find(take);
            let taken = first.map(|first| first..(first + 1..end.min(first + MAX_TRIM_SLOTS)).take_while(take).count() + first + 1);
            let done = taken.as_ref().map_or(end, |taken| taken.end);
            let is_last = self.with_ranges(|ranges| {
                // Others have only added behind it: this thread is the only one that takes.
                let place = (0..ranges.len).rev().find(|place| ranges.waiting[*place] == (start, end)).expect("nobody else takes ranges");
                ranges.waiting[place].0 = done;
                if done == end {
                    ranges.len -= 1;
                    ranges.waiting.swap(place, ranges.len);
                }
                done == end
            });
            // Ranges that wait, and requests under way.
            match (is_last, taken.is_some()) {
                (true, true) => {}
                (false, true) => _ = self.num_open.fetch_add(1, Relaxed),
                (_, false) => _ = self.num_open.fetch_sub(1, Release),
            }
            if taken.is_some() {
                return taken;
            }
        }
    }

    /// These slots have been trimmed, or not.
    pub(super) fn end(&self, slots: Range<usize>) {
        slots.for_each(|slot| self.slots[slot].store(NOTHING, Release));
        self.num_open.fetch_sub(1, Release);
    }

    /// The slots are about to be written: they are not trimmed any more. `false` if some of them are being trimmed just now. Async-signal-safe.
    pub(super) fn take_back(&self, mut slots: Range<usize>) -> bool {
        if self.num_open.load(Acquire) == 0 {
            return true;
        }
        slots.all(|slot| {
            let slot = &self.slots[slot];
            slot.compare_exchange(WANTED, NOTHING, Acquire, Acquire).is_ok() || slot.load(Acquire) != UNDER_WAY
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_again_is_not_trimmed() {
        let trims = Trims::new(100).unwrap();
        assert!(trims.begin().is_none() && trims.want(10..20) && trims.want(50..51));
        assert!(trims.take_back(12..14));
        assert_eq!(trims.begin(), Some(50..51));
        assert!(!trims.take_back(49..52) && trims.take_back(0..12));
        trims.end(50..51);
        assert!(trims.take_back(50..51));
        // Discarded again while it is being trimmed.
        assert!(trims.want(50..51));
        assert_eq!(trims.begin(), Some(50..51));
        assert!(trims.want(50..51) && !trims.take_back(50..51));
        trims.end(50..51);
        assert!(trims.take_back(50..51));
        assert_eq!(trims.begin(), Some(14..20));
        trims.end(14..20);
        assert!(trims.begin().is_none());
        assert_eq!(trims.num_open.load(Relaxed), 0);
    }

    #[test]
    fn many_are_trimmed_in_parts_and_too_many_forgotten() {
        let trims = Trims::new(3 * MAX_TRIM_SLOTS).unwrap();
        assert!(trims.want(0..2 * MAX_TRIM_SLOTS + 1));
        let mut parts = Vec::new();
        while let Some(part) = trims.begin() {
            parts.push(part.len());
            trims.end(part);
        }
        assert_eq!((parts, trims.num_open.load(Relaxed)), (vec![MAX_TRIM_SLOTS, MAX_TRIM_SLOTS, 1], 0));
        let num_kept = (0..1000).filter(|slot| trims.want(*slot..slot + 1)).count();
        assert_eq!(num_kept, MAX_RANGES);
        // What was forgotten is not in anybody's way.
        assert!(trims.take_back(0..3 * MAX_TRIM_SLOTS));
        assert!(trims.begin().is_none());
        assert_eq!(trims.num_open.load(Relaxed), 0);
    }
}
