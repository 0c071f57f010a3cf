//! Taking pages out of the address space in batches, with one TLB flush a batch where the kernel can.
//!
//! Every unmap while another thread runs costs an interrupt to its CPU; `process_madvise` over a vector of scattered ranges pays it once.
//! Kernels before 6.13 refuse MADV_DONTNEED there even for the caller itself: they get one `madvise` per contiguous run.

use crate::size::PAGE_SIZE;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A contiguous run of pages; laid out as the `iovec` the kernel reads, so that a batch is passed without copying.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Run {
    /// Address of the first page.
    pub(crate) start: usize,
    /// Length in bytes.
    pub(crate) num_bytes: usize,
}

const _: () = assert!(size_of::<Run>() == size_of::<libc::iovec>());

/// The kernel's limit on the vector of one call.
const MAX_RUNS_PER_CALL: usize = 1024;

/// How pages are removed on this kernel; found out once, at open.
#[derive(Debug)]
pub(crate) struct Remover {
    /// This process as `process_madvise` wants it; `None` selects one madvise per run.
    pidfd: Option<OwnedFd>,
}

impl Remover {
    /// Probes the kernel. `vectored = false` forces the fallback.
    pub(crate) fn new(vectored: bool) -> Self {
        Self { pidfd: if vectored { probe() } else { None } }
    }

    /// Whether one call removes a whole batch.
    pub(crate) fn is_vectored(&self) -> bool {
        self.pidfd.is_some()
    }

    /// In a child of fork: it is this process whose pages are removed from now on. If that cannot be arranged, the descriptor stands for nothing any more, and each run
    /// gets its call.
    pub(crate) fn become_child(&self) {
        let Some(pidfd) = &self.pidfd else { return };
        // SAFETY: pidfd_open takes a pid and flags and returns a new descriptor, which dup3 puts where the parent's was; the process has one thread.
        unsafe {
            let ours = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as i32;
            if ours < 0 || libc::dup3(ours, pidfd.as_raw_fd(), libc::O_CLOEXEC) < 0 {
                libc::close(pidfd.as_raw_fd());
            }
            if ours >= 0 {
                libc::close(ours);
            }
        }
    }

    /// Removes all `runs`. Async-signal-safe.
    ///
    /// # Safety
    /// All runs lie in regions, and their owner has put every page into the state Removing: their contents are given up.
    pub(crate) unsafe fn remove(&self, runs: &[Run]) {
        for chunk in runs.chunks(MAX_RUNS_PER_CALL) {
            let done = match &self.pidfd {
                Some(pidfd) => process_madvise(pidfd.as_raw_fd(), chunk),
                None => 0,
            };
            self.remove_each(chunk, done);
        }
    }

    /// madvise per run, for what follows the first `skip_bytes` bytes.
    fn remove_each(&self, runs: &[Run], mut skip_bytes: usize) {
        for run in runs {
            let len = run.num_bytes;
            if skip_bytes >= len {
                skip_bytes -= len;
                continue;
            }
            // SAFETY: the caller of `remove` vouches for the runs.
            let result = unsafe { libc::madvise((run.start + skip_bytes) as *mut _, len - skip_bytes, libc::MADV_DONTNEED) };
            assert!(result == 0, "madvise(MADV_DONTNEED) on a region failed: was it unmapped or locked by someone else?");
            skip_bytes = 0;
        }
    }
}

/// One vectored call; the number of bytes the kernel has removed (0 when it refuses).
fn process_madvise(pidfd: i32, runs: &[Run]) -> usize {
    // SAFETY: a slice of runs is a valid vector of iovecs (same layout); the callers vouch for the ranges.
    let done = unsafe { libc::syscall(libc::SYS_process_madvise, pidfd, runs.as_ptr(), runs.len(), libc::MADV_DONTNEED, 0) };
    usize::try_from(done).unwrap_or(0)
}

fn probe() -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes a pid and flags and returns a new descriptor (close-on-exec by default).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor is new and ours.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let scratch = super::mapping::Mapping::new(PAGE_SIZE, PAGE_SIZE).ok()?;
    // SAFETY: the scratch page is ours and mapped.
    unsafe { scratch.base().write_volatile(1) };
    let run = Run { start: scratch.base() as usize, num_bytes: PAGE_SIZE };
    let removed = process_madvise(pidfd.as_raw_fd(), &[run]) == PAGE_SIZE;
    // SAFETY: as above.
    let is_zero = unsafe { scratch.base().read_volatile() } == 0;
    (removed && is_zero).then_some(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::bytes_of;
    use crate::sys::mapping::Mapping;

    #[test]
    fn both_ways_remove_exactly_the_runs() {
        for vectored in [true, false] {
            let remover = Remover::new(vectored);
            let num_pages = 4096;
            let memory = Mapping::new(bytes_of(num_pages), PAGE_SIZE).unwrap();
            let page = |index: usize| memory.base().wrapping_add(bytes_of(index));
            // SAFETY: all accesses are to pages of `memory`.
            unsafe {
                (0..num_pages).for_each(|index| page(index).write_volatile(1));
                // More runs than one vector takes, of one and two pages.
                let runs: Vec<Run> = (0..num_pages)
                    .step_by(3)
                    .map(|index| Run { start: page(index) as usize, num_bytes: bytes_of(1 + (index % 2).min(num_pages - 1 - index)) })
                    .collect();
                remover.remove(&runs);
                for index in 0..num_pages {
                    let removed = index % 3 == 0 || (index % 3 == 1 && (index - 1) % 2 == 1);
                    assert_eq!(page(index).read_volatile() == 0, removed, "page {index} vectored {vectored}");
                }
            }
        }
    }
}
