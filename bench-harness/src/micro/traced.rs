//! The tracer beside the clock of the code that faults. The tracer sees a fault from the kernel's entry on; the code from before the access. What lies between, the
//! processor's way into the kernel and the reading of the clock, is measured by itself, on first touches of memory that has nothing to do with Lightswap.

use anyhow::{Result, ensure};
use lightswap::tracer::{Snapshot, Tracer};
use lightswap::{Lightswap, PAGE_SIZE};

use super::floor::Memory;
use super::notify::REGION_BYTES;
use super::{latency_ns, now_ns, quantile_us};

/// First touches for a median; a power of two.
const NUM_ENTRIES: usize = REGION_BYTES / PAGE_SIZE;
/// After so many, samples are fetched: before the ring is full.
const FETCH_EVERY: usize = 4096;

/// Traces this process.
pub fn attach() -> Result<Tracer> {
    Ok(Tracer::attach(std::process::id(), 0)?)
}

/// Median time from before an access to the kernel's entry. An error says why nothing can be traced here.
pub fn entry_us() -> Result<f64> {
    // A process without an instance has nothing to trace.
    let _instance = Lightswap::builder().local_memory(1 << 20).backend("memory:?size=1MiB").open()?;
    let mut tracer = Tracer::attach(std::process::id(), 1)?;
    let memory = Memory::new(NUM_ENTRIES * PAGE_SIZE)?;
    tracer.watch(memory.base as u64, memory.num_bytes as u64)?;
    // As far apart as the faults that are measured, so that the processor finds as little of its way there in its caches.
    let touch = |index: usize| {
        let address = memory.base + index.wrapping_mul(0x9E37_79B1) % NUM_ENTRIES * PAGE_SIZE;
        let start_ns = now_ns();
        // SAFETY: inside the mapping.
        unsafe { (address as *mut u64).write_volatile(1) };
        (address as u64, start_ns)
    };
    let mut samples = Vec::with_capacity(NUM_ENTRIES);
    let mut touched = Vec::with_capacity(NUM_ENTRIES);
    for first in (0..NUM_ENTRIES).step_by(FETCH_EVERY) {
        touched.extend((first..first + FETCH_EVERY).map(touch));
        samples.extend(std::iter::from_fn(|| tracer.next_sample()));
    }
    // Of one thread, so both are in the order in which it touched.
    let mut waits = touched.iter().copied();
    let entry_ns = |sample: &lightswap::tracer::Sample| {
        let (_, start_ns) = waits.find(|(address, _)| *address == sample.address)?;
        Some(latency_ns(start_ns, sample.fault_ns))
    };
    let mut entries_ns: Vec<u32> = samples.iter().filter_map(entry_ns).collect();
    ensure!(entries_ns.len() > NUM_ENTRIES / 2, "the tracer has seen {} of {NUM_ENTRIES} first touches", entries_ns.len());
    entries_ns.sort_unstable();
    Ok(quantile_us(&entries_ns, 0.5))
}

/// The same faults, seen by both.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    pub entry_us: f64,
    pub traced_p50_us: f64,
    pub traced_p99_us: f64,
    pub in_process_p50_us: f64,
}

impl Comparison {
    pub fn new(entry_us: f64, in_process_ns: &[u32], snapshot: &Snapshot) -> Self {
        let quantile = |q| snapshot.latencies.quantile_ns(q) / 1_000.0;
        Self { entry_us, traced_p50_us: quantile(0.5), traced_p99_us: quantile(0.99), in_process_p50_us: quantile_us(in_process_ns, 0.5) }
    }

    /// What the tracer says over what the code says; 1 is full agreement.
    pub fn agreement(&self) -> f64 {
        (self.traced_p50_us + self.entry_us) / self.in_process_p50_us
    }
}
