//! The tracer beside the clock of the code that faults. The tracer sees a fault from the kernel's entry on; the code from before the access. What lies between, the
//! processor's way into the kernel and the reading of the clock, is measured by itself, on first touches of memory that has nothing to do with Lightswap.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, ensure};
use lightswap::tracer::{Sample, Snapshot, Tracer};
use lightswap::{Contract, Lightswap, PAGE_SIZE};

use super::floor::Memory;
use super::notify::REGION_BYTES;
use super::pages::Pages;
use super::{latency_ns, now_ns, quantile_us};

/// First touches for a median; a power of two.
const NUM_ENTRIES: usize = 8192;
/// After so many, samples are fetched: before the ring is full.
const FETCH_EVERY: usize = 4096;
/// An odd multiplier visits every page of a power of two once, and far apart.
const STEP: usize = 0x9E37_79B1;

/// Traces this process.
pub fn attach() -> Result<Tracer> {
    Ok(Tracer::attach(std::process::id(), 0)?)
}

/// Median time from before an access to the kernel's entry. An error says why nothing can be traced here.
///
/// Before each first touch an LWT has a fault of the usual kind, so that the processor finds as little of its way in its caches as in the faults that are measured.
pub fn entry_us() -> Result<f64> {
    let backend = format!("memory:?size={REGION_BYTES}");
    let swap = Lightswap::builder().local_memory(REGION_BYTES as u64 / 4).backend(backend).open()?;
    let region = swap.create_region(REGION_BYTES, Contract::Transparent)?;
    let mut tracer = Tracer::attach(std::process::id(), 1)?;
    let memory = Memory::new(REGION_BYTES)?;
    let base = memory.base as u64;
    tracer.watch(base, REGION_BYTES as u64)?;
    let worker = swap.enter_worker()?;
    let pages = Pages::of(&region);
    let touched = Rc::new(RefCell::new(Vec::with_capacity(NUM_ENTRIES)));
    let mut samples = Vec::with_capacity(NUM_ENTRIES);
    for first in (0..NUM_ENTRIES).step_by(FETCH_EVERY) {
        let touched = Rc::clone(&touched);
        let touch = move |index: usize| {
            let page = index.wrapping_mul(STEP) % pages.num_pages;
            // SAFETY: inside the region.
            unsafe { pages.address(page).read_volatile() };
            let address = base + (page * PAGE_SIZE) as u64;
            let start_ns = now_ns();
            // SAFETY: inside the mapping, which outlives the LWT.
            unsafe { (address as *mut u64).write_volatile(1) };
            touched.borrow_mut().push((address, start_ns));
        };
        worker.start(move || (first..first + FETCH_EVERY).for_each(touch))?;
        worker.run();
        samples.extend(std::iter::from_fn(|| tracer.next_sample()).filter(|sample| (base..base + REGION_BYTES as u64).contains(&sample.address)));
    }
    // Of one thread, so both are in the order in which it touched.
    let touched = touched.take();
    let mut waits = touched.iter();
    let entry_ns = |sample: &Sample| {
        let (_, start_ns) = waits.find(|(address, _)| *address == sample.address)?;
        Some(latency_ns(*start_ns, sample.fault_ns))
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
