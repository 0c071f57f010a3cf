//! Micro-benchmarks of the core library in this process: `micro notify` and `micro fault`.
//!
//! All points of a benchmark are measured in turn, again and again, so that a change of the machine's speed meets all of them; each record is the
//! median over the repetitions.

pub mod bare;
pub mod fault;
pub mod notify;

use crate::random::Random;
use anyhow::{Context, Result};
use lightswap::{Contract, Lightswap, PAGE_SIZE, Region};

/// Median of at least one number.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    if numbers.len() % 2 == 1 { numbers[middle] } else { f64::midpoint(numbers[middle - 1], numbers[middle]) }
}

/// The q-quantile of some latencies in nanoseconds, in microseconds.
fn quantile_us(sorted_ns: &[u32], q: f64) -> f64 {
    let index = ((sorted_ns.len() as f64 * q) as usize).min(sorted_ns.len() - 1);
    f64::from(sorted_ns[index]) / 1_000.0
}

/// Monotonic nanoseconds, on the clock that the library stamps notifications with.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU seconds that this process has used, all threads, user and system.
fn cpu_seconds() -> f64 {
    // SAFETY: an all-zero rusage is valid, and it is valid for writing.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// A region whose every page holds its own number.
struct Filled {
    swap: Lightswap,
    region: Region,
}

impl Filled {
    fn new(swap: Lightswap, num_bytes: usize, contract: Contract) -> Result<Self> {
        let region = swap.create_region(num_bytes, contract)?;
        let pages = Pages::of(&region);
        let worker = swap.enter_worker()?;
        worker.start(move || (0..pages.num_pages).for_each(|page| pages.write(page)))?;
        worker.run();
        drop(worker);
        Ok(Self { swap, region })
    }

    fn statistic(&self, name: &str) -> Result<u64> {
        let stats = self.swap.stats();
        stats.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).with_context(|| format!("the library counts no {name:?}"))
    }
}

/// Where the pages of a filled region are; for LWTs, which outlive no region here.
#[derive(Clone, Copy)]
struct Pages {
    base: usize,
    num_pages: usize,
}

impl Pages {
    fn of(region: &Region) -> Self {
        Self { base: region.as_ptr() as usize, num_pages: region.len() / PAGE_SIZE }
    }

    fn address(self, page: usize) -> *mut u64 {
        (self.base + page * PAGE_SIZE) as *mut u64
    }

    fn write(self, page: usize) {
        let address = self.address(page);
        lightswap::pin(address.cast(), PAGE_SIZE).expect("one page can be pinned");
        // SAFETY: inside the region; pinned, as the cooperative contract wants.
        unsafe { address.write_volatile(page as u64) };
        lightswap::unpin(address.cast(), PAGE_SIZE).expect("just pinned");
    }

    /// Reads a page, by fault if it is not there, and checks that it is the right one.
    fn read(self, page: usize) {
        // SAFETY: inside the region.
        let value = unsafe { self.address(page).read_volatile() };
        assert_eq!(value, page as u64, "a page came back with another content");
    }

    fn draw(self, random: &mut Random) -> usize {
        (random.next_u64() >> 11) as usize % self.num_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
        let sorted: Vec<u32> = (1..=100).map(|number| number * 1_000).collect();
        assert_eq!((quantile_us(&sorted, 0.5), quantile_us(&sorted, 1.0)), (51.0, 100.0));
    }
}
