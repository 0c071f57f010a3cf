//! Giving idle pages back to the system.
//!
//! A call costs far more than a page of it where other threads run, so that a reserve of idle pages is kept, and many go at once. They are marked first,
//! then removed without any lock, then accounted for: no object is put there meanwhile.

use super::classes::GROUP_BYTES;
use super::heap::Heap;
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::removal::Run;
use std::sync::atomic::Ordering::Relaxed;

/// Pages of one call.
const BATCH_PAGES: usize = 64;
/// Idle pages that are always kept.
const RESERVE_PAGES: u64 = 64;
/// Of so many pages in use, one idle page more is kept.
const USED_PER_RESERVE: u64 = 128;

/// Pages being given back.
struct Batch {
    runs: [Run; BATCH_PAGES],
    num_runs: usize,
    /// Groups and their pages, a bit each.
    groups: [(u32, u32); BATCH_PAGES],
    num_groups: usize,
    num_pages: usize,
}

impl Heap {
    /// A group has got an idle page. Its lock is held.
    pub(super) fn note_idle(&self, number: u32) {
        let (word, bit) = (&self.with_idle[(number / u64::BITS) as usize], 1 << (number % u64::BITS));
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    /// Gives pages back when there are enough of them for it to pay.
    pub(super) fn trim_beyond_reserve(&self) {
        let num_idle = self.num_idle.load(Relaxed);
        if num_idle >= RESERVE_PAGES + BATCH_PAGES as u64 {
            let num_kept = RESERVE_PAGES + self.used_bytes() / (PAGE_SIZE as u64 * USED_PER_RESERVE);
            if num_idle >= num_kept + BATCH_PAGES as u64 {
                self.trim(num_kept);
            }
        }
    }

    /// Gives a batch of idle pages back if there are more than `num_kept`. Several threads may at once: left
    /// to one, what the others free would be too much.
    pub(super) fn trim(&self, num_kept: u64) {
        let mut batch =
            Batch { runs: [Run { start: 0, num_bytes: 0 }; BATCH_PAGES], num_runs: 0, groups: [(0, 0); BATCH_PAGES], num_groups: 0, num_pages: 0 };
        self.collect(&mut batch, num_kept);
        // SAFETY: all pages are of this heap's memory and idle; marked as such they stay so.
        unsafe { self.remover.remove(&batch.runs[..batch.num_runs]) };
        for &(number, pages) in &batch.groups[..batch.num_groups] {
            self.with_group(number, |group, _| {
                group.committed.set(group.committed.get() & !pages);
                group.releasing.set(group.releasing.get() & !pages);
            });
        }
        self.release(bytes_of(batch.num_pages) as u64);
    }

    /// Marks idle pages, going round the groups.
    fn collect(&self, batch: &mut Batch, num_kept: u64) {
        let num_words = self.with_idle.len();
        let start = self.trim_at.load(Relaxed) as usize;
        for index in (0..num_words).map(|step| (start + step) % num_words) {
            let mut groups = self.with_idle[index].load(Relaxed);
            while groups != 0 {
                let wanted = self.num_idle.load(Relaxed).saturating_sub(num_kept).min((BATCH_PAGES - batch.num_pages) as u64);
                if wanted == 0 {
                    self.trim_at.store(index as u32, Relaxed);
                    return;
                }
                let number = index as u32 * u64::BITS + groups.trailing_zeros();
                self.collect_group(batch, number, wanted as u32);
                groups &= groups - 1;
            }
        }
    }

    /// Marks up to `wanted` idle pages of a group.
    fn collect_group(&self, batch: &mut Batch, number: u32, wanted: u32) {
        let pages = self.with_group(number, |group, class| {
            let candidates = group.committed.get() & !group.releasing.get();
            let idle = class.map_or(candidates, |class| group.without_objects(class, candidates));
            let mut taken = idle;
            while taken.count_ones() > wanted {
                taken &= taken - 1;
            }
            if taken == idle {
                self.with_idle[(number / u64::BITS) as usize].fetch_and(!(1 << (number % u64::BITS)), Relaxed);
            }
            group.releasing.set(group.releasing.get() | taken);
            self.num_idle.fetch_sub(u64::from(taken.count_ones()), Relaxed);
            taken
        });
        if pages == 0 {
            return;
        }
        batch.groups[batch.num_groups] = (number, pages);
        batch.num_groups += 1;
        batch.num_pages += pages.count_ones() as usize;
        let base = self.memory.base() as usize + number as usize * GROUP_BYTES;
        let mut rest = pages;
        while rest != 0 {
            let first = rest.trailing_zeros();
            let num_pages = (rest >> first).trailing_ones();
            batch.runs[batch.num_runs] = Run { start: base + bytes_of(first as usize), num_bytes: bytes_of(num_pages as usize) };
            batch.num_runs += 1;
            rest &= !((u32::MAX >> (u32::BITS - num_pages)) << first);
        }
    }
}
