//! Stacks of LWTs: mapped with a guard page below, pooled per worker, never swapped.

use crate::error::{Error, ErrorKind, Result};
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use corosensei::stack::{Stack, StackPointer};

/// A stack with a guard page at its low end.
#[derive(Debug)]
pub(crate) struct LwtStack(Mapping);

impl LwtStack {
    fn new(num_bytes: usize) -> Result<Self> {
        let mapping = Mapping::new(num_bytes + PAGE_SIZE, PAGE_SIZE)?;
        // SAFETY: the first page of the fresh mapping holds nothing.
        let result = unsafe { libc::mprotect(mapping.base().cast(), PAGE_SIZE, libc::PROT_NONE) };
        if result != 0 {
            return Err(Error::os(ErrorKind::NoMemory, "cannot protect the guard page of an LWT's stack (see vm.max_map_count)"));
        }
        Ok(Self(mapping))
    }
}

// SAFETY: the lowest page of the mapping is inaccessible, and at least MIN_STACK_SIZE follows (checked by StackPool::new).
unsafe impl Stack for LwtStack {
    fn base(&self) -> StackPointer {
        StackPointer::new(self.0.base() as usize + self.0.len()).expect("a mapping is not at address 0")
    }

    fn limit(&self) -> StackPointer {
        StackPointer::new(self.0.base() as usize).expect("a mapping is not at address 0")
    }
}

/// Stacks for reuse, last in first out: the warmest first.
#[derive(Debug)]
pub(crate) struct StackPool {
    free: Vec<LwtStack>,
    num_bytes: usize,
    num_made: usize,
}

/// Most LWTs of one worker: each stack is two mappings, and vm.max_map_count is 65,530 by default.
pub(crate) const MAX_LWTS_PER_WORKER: usize = 16_384;

impl StackPool {
    /// A pool of stacks with `num_bytes` usable bytes each (rounded up to pages, at least four).
    pub(crate) fn new(num_bytes: usize) -> Self {
        let num_bytes = round_up(num_bytes, PAGE_SIZE).unwrap_or(usize::MAX & !(PAGE_SIZE - 1)).max(4 * PAGE_SIZE);
        Self { free: Vec::new(), num_bytes, num_made: 0 }
    }

    pub(crate) fn take(&mut self) -> Result<LwtStack> {
        if let Some(stack) = self.free.pop() {
            return Ok(stack);
        }
        if self.num_made >= MAX_LWTS_PER_WORKER {
            return Err(Error::new(ErrorKind::Busy, format!("this worker has {MAX_LWTS_PER_WORKER} LWTs, the most it takes")));
        }
        let stack = LwtStack::new(self.num_bytes)?;
        self.num_made += 1;
        Ok(stack)
    }

    pub(crate) fn put(&mut self, stack: LwtStack) {
        self.free.push(stack);
    }
}
