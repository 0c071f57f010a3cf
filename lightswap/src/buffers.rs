//! A worker's I/O buffers: page-sized, registered with its io_uring, counted against local memory.

use crate::error::Result;
use crate::failure::RawCause;
use crate::region::Page;
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use std::cell::{Cell, RefCell};

/// The read that a buffer is used for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingRead {
    pub(crate) page: Page<'static>,
    /// Pins the page gets when it is in.
    pub(crate) pins: u32,
    pub(crate) start_ns: u64,
    /// Times that it failed and was begun again.
    pub(crate) num_retries: u32,
    /// `None` for a prefetch.
    pub(crate) asker: Option<Asker>,
}

/// How a read has ended; `None` while it has not.
pub(crate) type Outcome = Cell<Option<std::result::Result<(), RawCause>>>;

/// The LWT that waits for a read. It does so until `outcome` is set, by the thread that both run on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// When it became the owner of the swap-in.
    pub(crate) start_ns: u64,
    /// On its stack. The page's state could not tell it: after a failure others may be trying again already.
    pub(crate) outcome: *const Outcome,
    /// On its stack, for the time when the page was mapped.
    pub(crate) mapped_ns: *const Cell<u64>,
}

/// Buffers of one worker; for its thread only.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// `None` if there are no buffers.
    memory: Option<Mapping>,
    /// Numbers of the free ones; never grows past its capacity.
    free: RefCell<Vec<usize>>,
    reads: Box<[Cell<Option<PendingRead>>]>,
}

impl Buffers {
    pub(crate) fn new(num_buffers: usize) -> Result<Self> {
        let memory = if num_buffers > 0 { Some(Mapping::new(bytes_of(num_buffers), PAGE_SIZE)?) } else { None };
        if let Some(memory) = &memory {
            // A child of fork must not see (nor copy) what the kernel is reading into them.
            memory.advise(libc::MADV_DONTFORK);
        }
        let reads = (0..num_buffers).map(|_| Cell::new(None)).collect();
        Ok(Self { memory, free: RefCell::new((0..num_buffers).rev().collect()), reads })
    }

    /// All buffers as one range for registration, if there are any.
    pub(crate) fn as_iovec(&self) -> Option<libc::iovec> {
        self.memory.as_ref().map(|memory| libc::iovec { iov_base: memory.base().cast(), iov_len: memory.len() })
    }

    pub(crate) fn take(&self, read: PendingRead) -> Option<usize> {
        let number = self.free.borrow_mut().pop()?;
        self.reads[number].set(Some(read));
        Some(number)
    }

    /// One for a read that is no swap-in.
    pub(crate) fn take_for_others(&self) -> Option<usize> {
        self.free.borrow_mut().pop()
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.borrow().is_empty()
    }

    pub(crate) fn address(&self, number: usize) -> *mut u8 {
        assert!(number < self.reads.len());
        self.memory.as_ref().expect("a buffer that exists has memory").base().wrapping_add(bytes_of(number))
    }

    /// The read that completed in a buffer; `None` if it was abandoned.
    pub(crate) fn finish(&self, number: usize) -> Option<PendingRead> {
        self.reads[number].take()
    }

    /// The same buffer is read into again.
    pub(crate) fn resume(&self, number: usize, read: PendingRead) {
        self.reads[number].set(Some(read));
    }

    /// Whether any read has not completed, or been abandoned.
    pub(crate) fn are_used(&self) -> bool {
        self.free.borrow().len() < self.reads.len()
    }

    /// Takes the reads that were begun before `limit_ns` away from their buffers, which stay taken until the kernel is done with them.
    pub(crate) fn abandon(&self, limit_ns: u64, mut abandoned: impl FnMut(PendingRead)) {
        for read in &self.reads {
            if let Some(overdue) = read.get().filter(|read| read.start_ns < limit_ns) {
                read.set(None);
                abandoned(overdue);
            }
        }
    }

    pub(crate) fn release(&self, number: usize) {
        self.free.borrow_mut().push(number);
    }
}
