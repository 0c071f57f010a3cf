//! A worker's I/O buffers: page-sized, registered with its io_uring, counted against local memory.

use crate::error::Result;
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
    /// For the times of steps; `None` for a prefetch.
    pub(crate) asker: Option<Asker>,
}

/// The LWT that waits for a read, as far as the times of its steps go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// When it became the owner of the swap-in.
    pub(crate) start_ns: u64,
    /// On its stack, for the time when the page was mapped: it looks no earlier than the read's completion was handled, by the same thread.
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

    pub(crate) fn has_free(&self) -> bool {
        !self.free.borrow().is_empty()
    }

    pub(crate) fn address(&self, number: usize) -> *mut u8 {
        assert!(number < self.reads.len());
        self.memory.as_ref().expect("a buffer that exists has memory").base().wrapping_add(bytes_of(number))
    }

    /// The read that completed in a buffer.
    pub(crate) fn finish(&self, number: usize) -> PendingRead {
        self.reads[number].take().expect("a completion for a buffer that is not in use")
    }

    pub(crate) fn release(&self, number: usize) {
        self.free.borrow_mut().push(number);
    }
}
