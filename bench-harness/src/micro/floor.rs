//! The floor of notification: how long the kernel itself takes for the first touch of anonymous memory, from access to access. It allocates and zeroes
//! a page, and tells nobody.

use std::io;

use anyhow::{Context, Result};
use lightswap::PAGE_SIZE;

use super::{latency_ns, now_ns};

/// Pages of 4 KiB that nobody has touched.
pub struct Memory {
    pub base: usize,
    pub num_bytes: usize,
}

impl Memory {
    pub fn new(num_bytes: usize) -> Result<Self> {
        // SAFETY: a new mapping.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), num_bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("no memory for the kernel's own faults");
        }
        // SAFETY: the mapping was just made. A kernel without huge pages refuses, and then there is nothing to forbid.
        unsafe { libc::madvise(memory, num_bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Self { base: memory as usize, num_bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `new`; nobody uses it any more.
        unsafe { libc::munmap(self.base as *mut _, self.num_bytes) };
    }
}

/// Latencies in nanoseconds, sorted: `num_threads` threads fault at the same time, each `num_faults` times (a power of two), in a random order of pages.
pub fn measure(num_threads: usize, num_faults: usize) -> Result<Vec<u32>> {
    let memory = Memory::new(num_threads * num_faults * PAGE_SIZE)?;
    let base = memory.base;
    let measure_part = move |thread: usize| {
        let fault = move |index: usize| {
            // An odd multiplier visits every page of a power of two once.
            let page = index.wrapping_mul(0x9E37_79B1) % num_faults;
            let address = (base + (thread * num_faults + page) * PAGE_SIZE) as *mut u64;
            let start_ns = now_ns();
            // SAFETY: inside the thread's part of the mapping.
            unsafe { address.write_volatile(1) };
            latency_ns(start_ns, now_ns())
        };
        (0..num_faults).map(fault).collect::<Vec<u32>>()
    };
    let mut all: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|thread| scope.spawn(move || measure_part(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a measuring thread does not panic")).collect()
    });
    all.sort_unstable();
    Ok(all)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_first_touch_is_timed() {
        let latencies_ns = super::measure(2, 64).unwrap();
        assert_eq!(latencies_ns.len(), 128);
        assert!(latencies_ns.is_sorted() && latencies_ns[0] > 0);
    }
}
