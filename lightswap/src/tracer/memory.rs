//! An array of counters that the BPF program writes and the tracer reads, without a system call.

use super::TraceError;
use aya::maps::MapData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

#[derive(Debug)]
pub(super) struct Counts {
    base: NonNull<AtomicU64>,
    num: usize,
    /// Keeps the map.
    _data: MapData,
}

// SAFETY: mapped for reading and owned by this value; its elements are atomics.
unsafe impl Send for Counts {}
// SAFETY: as above.
unsafe impl Sync for Counts {}

impl Counts {
    /// Maps an array of so many counters (BPF_F_MMAPABLE).
    pub(super) fn map(data: MapData, num: usize) -> Result<Self, TraceError> {
        // SAFETY: a fresh mapping of the map's memory, checked; the kernel refuses one that is longer than the map.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), num * size_of::<u64>(), libc::PROT_READ, libc::MAP_SHARED, data.fd().as_fd().as_raw_fd(), 0) };
        match NonNull::new(memory.cast()) {
            Some(base) if memory != libc::MAP_FAILED => Ok(Self { base, num, _data: data }),
            _ => Err(TraceError::new(format!("cannot map a BPF array: {}", std::io::Error::last_os_error()))),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.num
    }

    pub(super) fn all(&self) -> impl Iterator<Item = u64> {
        // SAFETY: `num` elements are mapped as long as this value lives, aligned to a page.
        let counters = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.num) };
        counters.iter().map(|counter| counter.load(Relaxed))
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; nobody has a reference any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.num * size_of::<u64>()) };
    }
}
