//! Reads of neighbouring slots, asked for one after the other, go to the device as one request: a value that lies across two pages costs one read, not two.
//!
//! A run is open while the next read may continue it, and is pushed before anything else is, and before the queue is submitted. Its completion is that of
//! each of its buffers.

use crate::size::PAGE_SIZE;
use std::cell::{Cell, RefCell};

/// Pages of one request.
const MAX_RUN_PAGES: usize = 16;
/// Requests of several pages that may wait for their submission: the kernel reads their vectors then, and not after.
const MAX_RUNS_WAITING: usize = 16;
const NONE: u32 = u32::MAX;

/// Reads of a worker's queue; for its thread only. Allocates nothing after it was made.
#[derive(Debug)]
pub(crate) struct ReadRuns {
    open: RefCell<OpenRun>,
    /// For each buffer: the next of its run, or NONE.
    followers: Box<[Cell<u32>]>,
    vectors: RefCell<Box<[[libc::iovec; MAX_RUN_PAGES]]>>,
    num_waiting: Cell<usize>,
}

#[derive(Debug)]
struct OpenRun {
    offset: u64,
    /// Number and address of each; never grows past its capacity.
    buffers: Vec<(usize, *mut u8)>,
}

/// A request to push.
#[derive(Debug)]
pub(crate) struct Run {
    /// The first of its buffers, whose completion it has.
    pub(crate) buffer: usize,
    pub(crate) offset: u64,
    pub(crate) target: Target,
}

/// Where a run goes.
#[derive(Debug)]
pub(crate) enum Target {
    /// One piece of memory, a part of the registered buffers.
    Contiguous(*mut u8, u32),
    /// Vectors that stay until [`ReadRuns::submitted`].
    Scattered(*const libc::iovec, u32),
}

impl ReadRuns {
    pub(crate) fn new(num_buffers: usize) -> Self {
        let no_vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            open: RefCell::new(OpenRun { offset: 0, buffers: Vec::with_capacity(MAX_RUN_PAGES) }),
            followers: (0..num_buffers).map(|_| Cell::new(NONE)).collect(),
            vectors: RefCell::new(vec![[no_vector; MAX_RUN_PAGES]; MAX_RUNS_WAITING].into_boxed_slice()),
            num_waiting: Cell::new(0),
        }
    }

    /// Adds the read of a page to the open run; `false` if it does not continue it, which then has to be taken first.
    pub(crate) fn add(&self, buffer: usize, target: *mut u8, offset: u64) -> bool {
        let mut open = self.open.borrow_mut();
        let len = open.buffers.len();
        if len == 0 {
            open.offset = offset;
        } else if len == MAX_RUN_PAGES || offset != open.offset + (len * PAGE_SIZE) as u64 {
            return false;
        } else {
            self.followers[open.buffers[len - 1].0].set(buffer as u32);
        }
        open.buffers.push((buffer, target));
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.borrow().buffers.is_empty()
    }

    /// Whether the queue should be submitted before another run is taken: there are no vectors left.
    pub(crate) fn must_submit(&self) -> bool {
        self.num_waiting.get() == MAX_RUNS_WAITING
    }

    /// The kernel has the vectors of all runs.
    pub(crate) fn submitted(&self) {
        self.num_waiting.set(0);
    }

    /// Closes the open run; without vectors for it, only the front of it that needs none, and the rest stays open.
    pub(crate) fn take(&self) -> Option<Run> {
        let mut open = self.open.borrow_mut();
        let &(buffer, first) = open.buffers.first()?;
        let num_open = open.buffers.len();
        let follows = |(index, (_, target)): (usize, &(usize, *mut u8))| *target == first.wrapping_add(index * PAGE_SIZE);
        let num_contiguous = open.buffers.iter().enumerate().take_while(|page| follows(*page)).count();
        let (num_pages, target) = if num_contiguous == num_open || self.must_submit() {
            (num_contiguous, Target::Contiguous(first, (num_contiguous * PAGE_SIZE) as u32))
        } else {
            let number = self.num_waiting.get();
            self.num_waiting.set(number + 1);
            let vectors = &mut self.vectors.borrow_mut()[number];
            for (vector, &(_, target)) in vectors.iter_mut().zip(&open.buffers) {
                *vector = libc::iovec { iov_base: target.cast(), iov_len: PAGE_SIZE };
            }
            (num_open, Target::Scattered(vectors.as_ptr(), num_open as u32))
        };
        let offset = open.offset;
        self.followers[open.buffers[num_pages - 1].0].set(NONE);
        open.buffers.drain(..num_pages);
        open.offset += (num_pages * PAGE_SIZE) as u64;
        Some(Run { buffer, offset, target })
    }

    /// The request of the run that begins with `first` completed with `result`, bytes or a negative errno: what that means for each buffer.
    pub(crate) fn complete(&self, first: usize, result: i32, mut each: impl FnMut(usize, i32)) {
        let mut next = first as u32;
        let mut left = result;
        while next != NONE {
            let buffer = next as usize;
            // Before `each`, which may give the buffer to another read.
            next = self.followers[buffer].replace(NONE);
            each(buffer, left.min(PAGE_SIZE as i32));
            left = if left < 0 { left } else { (left - PAGE_SIZE as i32).max(0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completions(runs: &ReadRuns, first: usize, result: i32) -> Vec<(usize, i32)> {
        let mut all = Vec::new();
        runs.complete(first, result, |buffer, result| all.push((buffer, result)));
        all
    }

    #[test]
    fn neighbours_make_one_request() {
        let mut memory = vec![0u8; 8 * PAGE_SIZE];
        let base = memory.as_mut_ptr();
        let at = |buffer: usize| base.wrapping_add(buffer * PAGE_SIZE);
        let runs = ReadRuns::new(8);
        assert!(runs.is_empty() && runs.take().is_none());

        // One page.
        assert!(runs.add(3, at(3), 4096));
        let run = runs.take().unwrap();
        assert!(matches!(run, Run { buffer: 3, offset: 4096, target: Target::Contiguous(target, 4096) } if target == at(3)));
        assert_eq!(completions(&runs, 3, 4096), [(3, 4096)]);

        // Three, in buffers that lie apart; the fourth read is of another place.
        assert!(runs.add(5, at(5), 8192) && runs.add(1, at(1), 12_288) && runs.add(2, at(2), 16_384) && !runs.add(0, at(0), 8192));
        let run = runs.take().unwrap();
        let Target::Scattered(vectors, 3) = run.target else { panic!("{run:?}") };
        // SAFETY: three vectors, until the run is submitted.
        let vectors = unsafe { std::slice::from_raw_parts(vectors, 3) };
        assert!(vectors.iter().map(|vector| vector.iov_base).eq([at(5), at(1), at(2)].map(|target| target.cast())));
        assert_eq!((run.buffer, run.offset), (5, 8192));
        assert_eq!(completions(&runs, 5, 3 * 4096), [(5, 4096), (1, 4096), (2, 4096)]);

        // In buffers that lie together; a short read, an error.
        for (result, expected) in [(4096 + 100, [(6, 4096), (7, 100)]), (-5, [(6, -5), (7, -5)]), (0, [(6, 0), (7, 0)])] {
            assert!(runs.add(6, at(6), 0) && runs.add(7, at(7), 4096));
            assert!(matches!(runs.take().unwrap().target, Target::Contiguous(_, 8192)));
            assert_eq!(completions(&runs, 6, result), expected);
        }
        // Nothing of that is left over.
        assert_eq!(completions(&runs, 5, 4096), [(5, 4096)]);
    }

    #[test]
    fn runs_have_an_end() {
        let runs = ReadRuns::new(MAX_RUN_PAGES + 1);
        let add = |page: usize| runs.add(page, (0x10_0000 + 2 * page * PAGE_SIZE) as *mut u8, (page * PAGE_SIZE) as u64);
        assert!((0..MAX_RUN_PAGES).all(add));
        assert!(!add(MAX_RUN_PAGES));
        for _ in 0..MAX_RUNS_WAITING {
            assert!(!runs.must_submit());
            runs.take();
            assert!(runs.add(0, std::ptr::null_mut(), 0) && runs.add(1, std::ptr::null_mut(), 4096));
        }
        assert!(runs.must_submit());
        runs.submitted();
        assert!(!runs.must_submit());
    }

    /// Vectors in use are not written again, whatever comes: runs are cut instead.
    #[test]
    fn without_vectors_runs_are_cut() {
        let mut memory = vec![0u8; 8 * PAGE_SIZE];
        let base = memory.as_mut_ptr();
        let at = |buffer: usize| base.wrapping_add(buffer * PAGE_SIZE);
        let runs = ReadRuns::new(8);
        let add_all =
            |buffers: &[usize]| buffers.iter().enumerate().all(|(index, buffer)| runs.add(*buffer, at(*buffer), (index * PAGE_SIZE) as u64));
        let mut vectors = Vec::new();
        while !runs.must_submit() {
            assert!(add_all(&[0, 2]));
            let Target::Scattered(taken, 2) = runs.take().unwrap().target else { panic!("they lie apart") };
            vectors.push(taken);
        }
        assert!(add_all(&[4, 5, 1, 7]));
        for (first, num_pages, slot) in [(4, 2, 0), (1, 1, 2), (7, 1, 3)] {
            let run = runs.take().unwrap();
            assert!(matches!(run.target, Target::Contiguous(target, len) if target == at(first) && len as usize == num_pages * PAGE_SIZE));
            assert_eq!((run.buffer, run.offset), (first, (slot * PAGE_SIZE) as u64));
            let expected: Vec<_> = (first..first + num_pages).map(|buffer| (buffer, 4096)).collect();
            assert_eq!(completions(&runs, first, (num_pages * PAGE_SIZE) as i32), expected);
        }
        assert!(runs.is_empty() && runs.take().is_none());
        // SAFETY: two vectors each, not submitted yet.
        assert!(vectors.iter().all(|taken| unsafe { ((**taken).iov_base, (*taken.add(1)).iov_base) == (at(0).cast(), at(2).cast()) }));
        vectors.dedup();
        assert_eq!(vectors.len(), MAX_RUNS_WAITING);
    }
}
