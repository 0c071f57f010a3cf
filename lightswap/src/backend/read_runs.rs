//! Reads of neighbouring slots, asked for one after the other, go to the device as one request: a value that lies across two pages costs one read, not two.
//!
//! A run is open while the next read may continue it. Its completion is that of each of its reads.

use super::Read;
use crate::io_queue::Token;
use crate::size::PAGE_SIZE;
use std::cell::{Cell, RefCell, UnsafeCell};

/// Pages of one request.
pub(super) const MAX_RUN_PAGES: usize = 16;

/// A request: slots from `slot` on, each to a page of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) slot: usize,
    num_pages: usize,
    tokens: [Token; MAX_RUN_PAGES],
    /// A page each.
    targets: [libc::iovec; MAX_RUN_PAGES],
}

impl Run {
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens[..self.num_pages]
    }

    pub(super) fn targets(&self) -> &[libc::iovec] {
        &self.targets[..self.num_pages]
    }

    /// Where all of it goes, if that is one piece of memory.
    pub(super) fn piece(&self) -> Option<*mut u8> {
        let first = self.targets[0].iov_base.cast::<u8>();
        let is_one = self.targets().iter().enumerate().all(|(page, target)| target.iov_base.cast() == first.wrapping_add(page * PAGE_SIZE));
        is_one.then_some(first)
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.num_pages * PAGE_SIZE
    }
}

/// Reads of a worker's node; for its thread only. Allocates nothing after it was made.
#[derive(Debug)]
pub(super) struct ReadRuns {
    runs: Box<[UnsafeCell<Run>]>,
    /// Numbers of the unused ones; never grows past its capacity.
    free: RefCell<Vec<u32>>,
    open: Cell<Option<u32>>,
}

impl ReadRuns {
    /// For so many reads at a time.
    pub(super) fn new(num_reads: usize) -> Self {
        let no_target = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: PAGE_SIZE };
        let empty = Run { slot: 0, num_pages: 0, tokens: [Token::read(0); MAX_RUN_PAGES], targets: [no_target; MAX_RUN_PAGES] };
        Self {
            runs: (0..num_reads).map(|_| UnsafeCell::new(empty)).collect(),
            free: RefCell::new((0..num_reads as u32).rev().collect()),
            open: Cell::new(None),
        }
    }

    /// Adds a read to the open run; `false` if it does not continue it, which then has to be taken first.
    pub(super) fn add(&self, read: Read) -> bool {
        let index = match self.open.get() {
            Some(index) => index,
            None => {
                let index = self.free.borrow_mut().pop().expect("no more reads than were announced");
                // SAFETY: the run is unused: nobody else refers to it.
                let run = unsafe { &mut *self.runs[index as usize].get() };
                (run.slot, run.num_pages) = (read.slot, 0);
                self.open.set(Some(index));
                index
            }
        };
        // SAFETY: the run is open: no reference to it has been given out.
        let run = unsafe { &mut *self.runs[index as usize].get() };
        if run.num_pages == MAX_RUN_PAGES || read.slot != run.slot + run.num_pages {
            return false;
        }
        run.tokens[run.num_pages] = read.token;
        run.targets[run.num_pages].iov_base = read.target.cast();
        run.num_pages += 1;
        true
    }

    /// Closes the open run: its number, and what it is until [`Self::release`].
    pub(super) fn take(&self) -> Option<(u32, &Run)> {
        let index = self.open.take()?;
        Some((index, self.get(index)))
    }

    /// A run that was taken.
    pub(super) fn get(&self, index: u32) -> &Run {
        debug_assert!(self.open.get() != Some(index));
        // SAFETY: a run that was taken does not change before its release, which is the caller's end of using it.
        unsafe { &*self.runs[index as usize].get() }
    }

    /// A run that was taken is over: what it was.
    pub(super) fn release(&self, index: u32) -> Run {
        let run = *self.get(index);
        self.free.borrow_mut().push(index);
        run
    }
}

/// What `result` (bytes, or a negative errno) of a run means for each of its pages.
pub(super) fn results(result: i32) -> impl Fn(usize) -> i32 {
    move |page| if result < 0 { result } else { (result - (page * PAGE_SIZE) as i32).clamp(0, PAGE_SIZE as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io_queue::Source;

    fn read(slot: usize, target: *mut u8) -> Read {
        Read { slot, target, token: Token::read(slot), is_retry: false, suspect: Source(None) }
    }

    #[test]
    fn neighbours_make_one_request() {
        let mut memory = vec![0u8; 8 * PAGE_SIZE];
        let base = memory.as_mut_ptr();
        let at = |page: usize| base.wrapping_add(page * PAGE_SIZE);
        let runs = ReadRuns::new(3);
        assert!(runs.take().is_none());

        // One page; three in buffers that lie apart; two in buffers that lie together.
        assert!(runs.add(read(1, at(3))) && !runs.add(read(3, at(0))));
        let (one, run) = runs.take().unwrap();
        assert_eq!((run.slot, run.piece(), run.num_bytes(), run.tokens()), (1, Some(at(3)), PAGE_SIZE, &[Token::read(1)][..]));
        assert!(runs.add(read(2, at(5))) && runs.add(read(3, at(1))) && runs.add(read(4, at(2))) && !runs.add(read(4, at(0))));
        let (three, run) = runs.take().unwrap();
        assert_eq!((run.slot, run.piece(), run.num_bytes()), (2, None, 3 * PAGE_SIZE));
        assert!(run.targets().iter().map(|target| (target.iov_base.cast(), target.iov_len)).eq([5, 1, 2].map(|page| (at(page), PAGE_SIZE))));
        assert!(runs.add(read(7, at(6))) && runs.add(read(8, at(7))));
        let (two, run) = runs.take().unwrap();
        assert_eq!((run.slot, run.piece(), run.num_bytes()), (7, Some(at(6)), 2 * PAGE_SIZE));

        // They last until they are released, in any order.
        assert_eq!((runs.get(one).slot, runs.release(three).slot, runs.get(two).slot), (1, 2, 7));
        assert!(runs.add(read(0, at(0))));
        assert_eq!(runs.take().unwrap().0, three);
    }

    #[test]
    fn runs_have_an_end() {
        let runs = ReadRuns::new(2);
        assert!((0..MAX_RUN_PAGES).all(|slot| runs.add(read(slot, std::ptr::null_mut()))));
        assert!(!runs.add(read(MAX_RUN_PAGES, std::ptr::null_mut())));
    }

    #[test]
    fn each_page_has_its_part_of_the_result() {
        for (result, expected) in [(2 * 4096, [4096, 4096, 0]), (4096 + 100, [4096, 100, 0]), (-5, [-5; 3]), (0, [0; 3])] {
            assert_eq!([0, 1, 2].map(results(result)), expected);
        }
    }
}
