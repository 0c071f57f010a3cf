//! Atomic numbers by slot, zero at first, that take memory only where one was written.

use crate::error::Result;
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use std::marker::PhantomData;
use std::ops::{Index, Range};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// An atomic number.
///
/// # Safety
/// All zeroes are a value of the type, its alignment is at most a page's, and it has nothing to drop.
pub(super) unsafe trait Atomic: Sync {}

// SAFETY: as asked for.
unsafe impl Atomic for AtomicU8 {}
// SAFETY: as asked for.
unsafe impl Atomic for AtomicU32 {}
// SAFETY: as asked for.
unsafe impl Atomic for AtomicU64 {}

/// As many as were announced. Children of fork do not get them.
#[derive(Debug)]
pub(super) struct Table<A> {
    memory: Mapping,
    len: usize,
    holds: PhantomData<A>,
}

impl<A: Atomic> Table<A> {
    pub(super) fn new(len: usize) -> Result<Self> {
        let num_bytes = len.max(1).checked_mul(size_of::<A>()).and_then(|num_bytes| round_up(num_bytes, PAGE_SIZE));
        // More than there is: that is an error with a sentence.
        let memory = Mapping::new(num_bytes.unwrap_or(usize::MAX & !(PAGE_SIZE - 1)), PAGE_SIZE)?;
        memory.advise(libc::MADV_DONTFORK);
        // A huge page would take memory for a million slots at a time.
        memory.advise(libc::MADV_NOHUGEPAGE);
        Ok(Self { memory, len, holds: PhantomData })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes all of them in whole pages of this range zero, and gives the pages back; what range that was. Nobody else may use them meanwhile.
    pub(super) fn discard(&self, range: Range<usize>) -> Range<usize> {
        debug_assert!(range.start <= range.end && range.end <= self.len);
        let per_page = PAGE_SIZE / size_of::<A>();
        let (start, end) = (range.start.div_ceil(per_page) * per_page, range.end / per_page * per_page);
        if start >= end {
            return range.start..range.start;
        }
        self.memory.discard(start * size_of::<A>(), (end - start) * size_of::<A>());
        start..end
    }
}

impl<A: Atomic> Index<usize> for Table<A> {
    type Output = A;

    fn index(&self, index: usize) -> &A {
        assert!(index < self.len, "{index} of {}", self.len);
        // SAFETY: inside the mapping, which is aligned to a page, began as zeroes, and is only used as an array of this type.
        unsafe { &*self.memory.base().cast::<A>().add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn whole_pages_are_given_back_and_nothing_else() {
        let table = Table::<AtomicU64>::new(2000).unwrap();
        assert!((0..2000).all(|index| table[index].swap(index as u64 + 1, Relaxed) == 0));
        for (range, discarded) in [(3..500, 3..3), (0..512, 0..512), (513..1535, 513..513), (600..1999, 1024..1536), (2000..2000, 2000..2000)] {
            assert_eq!(table.discard(range), discarded);
        }
        let is_zero = |index: usize| (0..512).contains(&index) || (1024..1536).contains(&index);
        assert!((0..2000).all(|index| table[index].load(Relaxed) == if is_zero(index) { 0 } else { index as u64 + 1 }));
        assert!(std::panic::catch_unwind(|| table[2000].load(Relaxed)).is_err());
        assert!(Table::<AtomicU32>::new(usize::MAX).is_err() && Table::<AtomicU8>::new(usize::MAX).is_err());
    }
}
