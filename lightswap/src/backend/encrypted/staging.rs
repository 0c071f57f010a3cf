//! Pages of one worker in which the content of writes is made.

use crate::error::Result;
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use std::cell::Cell;
use std::ops::Range;

/// For its worker's thread only. Allocates nothing after it was made.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Mapping,
    is_free: Box<[Cell<bool>]>,
    num_free: Cell<usize>,
    /// Where to look first: behind those that were taken last, as they are used in turn.
    next: Cell<usize>,
}

impl Staging {
    pub(super) fn new(num_pages: usize) -> Result<Self> {
        let memory = Mapping::new(bytes_of(num_pages), PAGE_SIZE)?;
        memory.advise(libc::MADV_DONTFORK);
        memory.advise(libc::MADV_DONTDUMP);
        let is_free = (0..num_pages).map(|_| Cell::new(true)).collect();
        Ok(Self { memory, is_free, num_free: Cell::new(num_pages), next: Cell::new(0) })
    }

    pub(super) fn num_pages(&self) -> usize {
        self.is_free.len()
    }

    /// Takes some neighbouring pages, at most so many; `None` if none is free.
    pub(super) fn take(&self, most: usize) -> Option<Range<usize>> {
        debug_assert!(most > 0);
        if self.num_free.get() == 0 {
            return None;
        }
        let is_free = |page: &usize| self.is_free[*page].get();
        let next = self.next.get();
        let first = (next..self.num_pages()).chain(0..next).find(is_free)?;
        let pages = first..first + (first..self.num_pages()).take(most).take_while(is_free).count();
        pages.clone().for_each(|page| self.is_free[page].set(false));
        self.num_free.set(self.num_free.get() - pages.len());
        self.next.set(pages.end % self.num_pages());
        Some(pages)
    }

    pub(super) fn give_back(&self, pages: Range<usize>) {
        self.num_free.set(self.num_free.get() + pages.len());
        for page in pages {
            let was_free = self.is_free[page].replace(true);
            debug_assert!(!was_free);
        }
    }

    pub(super) fn address(&self, page: usize) -> *mut u8 {
        debug_assert!(page < self.num_pages());
        self.memory.base().wrapping_add(bytes_of(page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_once_and_all_of_them() {
        let staging = Staging::new(5).unwrap();
        assert_eq!(staging.take(2), Some(0..2));
        assert_eq!(staging.take(2), Some(2..4));
        staging.give_back(0..2);
        // What is left at the end, then from the start.
        assert_eq!(staging.take(3), Some(4..5));
        assert_eq!(staging.take(3), Some(0..2));
        assert_eq!(staging.take(1), None);
        staging.give_back(3..4);
        staging.give_back(0..1);
        assert_eq!(staging.take(9), Some(3..4));
        assert_eq!(staging.take(9), Some(0..1));
        assert_eq!(staging.take(9), None);
        assert_eq!(staging.address(4) as usize - staging.address(0) as usize, 4 * PAGE_SIZE);
    }
}
