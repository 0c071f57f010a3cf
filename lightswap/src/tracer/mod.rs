//! A tracer of page faults, with the feature `ebpf`: a BPF program on the tracepoint `exceptions:page_fault_user` counts and times the faults of one process in its regions,
//! whether Lightswap's handler or the kernel deals with them.
//!
//! It needs root, or CAP_BPF and CAP_PERFMON (and CAP_SYS_PTRACE for another process than its own); Linux 5.8 on x86-64 with BTF. It attaches by the tracepoint's name, so
//! tracefs need not be mounted. The traced process needs nothing: see [`crate::fault_table`]. What is measured, and what it costs: docs/tracing.md.

mod error;
mod histogram;
mod layout;
mod memory;
mod process;

pub use error::TraceError;
pub use histogram::Latencies;
pub use layout::Sample;

use crate::sys;
use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use aya::programs::RawTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use layout::{CELL_SHIFT, MAX_RANGES, NO_CELL, Range, Ranges, Thread};
use memory::Counts;
use process::Process;
use std::time::Duration;

/// Empty where there was no clang when this was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/faults.bpf.o"));
const TRACEPOINT: &str = "page_fault_user";
/// Of the heat map, at least: enough for 128 GiB of regions.
const NUM_CELLS_MIN: u64 = 1 << 16;
const NUM_CELLS_MAX: u64 = 1 << 24;
/// A fault whose handler has not begun for so long does not get to it.
const GIVEN_UP: Duration = Duration::from_millis(10);

/// Bytes of a region that a cell of the heat map stands for.
pub const CELL_BYTES: u64 = 1 << CELL_SHIFT;

/// A region of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedRegion {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Its first cell in the heat map; None when that was full.
    first_cell: Option<u32>,
}

impl TracedRegion {
    fn num_cells(&self) -> u64 {
        (self.end - self.start).div_ceil(CELL_BYTES)
    }
}

/// Faults by what the access was and what it met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Of a page that was not there.
    pub reads: u64,
    /// The same, to write.
    pub writes: u64,
    /// Reads of a page that was there by then: another thread was faster.
    pub reads_of_present: u64,
    /// Writes to a page that was there: write protection, or copy-on-write.
    pub writes_to_present: u64,
}

impl Kinds {
    fn of(counts: [u64; 4]) -> Self {
        let [reads, reads_of_present, writes, writes_to_present] = counts;
        Self { reads, writes, reads_of_present, writes_to_present }
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.reads + self.writes + self.reads_of_present + self.writes_to_present
    }

    fn add(&mut self, error: u64) {
        *match error & 3 {
            0 => &mut self.reads,
            1 => &mut self.reads_of_present,
            2 => &mut self.writes,
            _ => &mut self.writes_to_present,
        } += 1;
    }
}

/// What was counted since the tracer was attached. Exact for threads that do not fault while it is taken.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All faults in the regions.
    pub faults: u64,
    /// Those that Lightswap's handler got.
    pub handled: Kinds,
    /// Those that the kernel dealt with by itself: first touches, copy-on-write, pages that had come meanwhile.
    pub by_kernel: Kinds,
    /// From the kernel's entry to the handler's first instruction, of those that the handler got.
    pub latencies: Latencies,
    /// Samples that were lost because nobody fetched them.
    pub lost_samples: u64,
}

impl Snapshot {
    /// Faults of which it cannot be said yet, or not at all, who has dealt with them.
    pub fn open(&self) -> u64 {
        self.faults.saturating_sub(self.handled.sum() + self.by_kernel.sum())
    }
}

/// Traces one process until it is dropped.
pub struct Tracer {
    process: Process,
    // What follows is detached and freed with it.
    ebpf: Ebpf,
    ranges: Array<MapData, Ranges>,
    threads: HashMap<MapData, u32, Thread>,
    samples: RingBuf<MapData>,
    heat: Counts,
    latencies: Counts,
    counters: Counts,
    regions: Vec<TracedRegion>,
    /// Memory that is no region; see [`Self::watch`].
    watched: Option<TracedRegion>,
    num_cells_used: u64,
}

impl Tracer {
    /// Attaches to a process that has an instance of Lightswap. Each `sample_every`th fault is kept as a [`Sample`]; 0 for none.
    ///
    /// # Errors
    /// One sentence for each: no such process, none with Lightswap, no privilege, a kernel without BTF or the tracepoint, a verifier that refuses, no clang at build time.
    pub fn attach(pid: u32, sample_every: u32) -> Result<Self, TraceError> {
        let process = Process::find(pid)?;
        if OBJECT.is_empty() {
            return Err(TraceError::new("the tracer was left out of this build because clang was missing: install clang and build again"));
        }
        let btf = Btf::from_sys_fs().map_err(|_| {
            TraceError::new("this kernel does not describe its types (no /sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF): the tracer needs that, all else does not")
        })?;
        let regions = process.regions()?;
        let num_cells: u64 = regions.iter().map(|(start, end)| (end - start).div_ceil(CELL_BYTES)).sum();
        let num_cells = (2 * num_cells).clamp(NUM_CELLS_MIN, NUM_CELLS_MAX);
        let records = process.records();
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .map_max_entries("heat", num_cells as u32)
            .override_global("NAMESPACE_DEVICE", &process.namespace_device, true)
            .override_global("NAMESPACE_INODE", &process.namespace_inode, true)
            .override_global("PID", &process.own_pid, true)
            .override_global("RECORDS", &records, true)
            .override_global("SAMPLE_EVERY", &sample_every, true)
            .load(OBJECT)
            .map_err(|cause| TraceError::loading(&cause))?;
        let mut map = |name: &str| ebpf.take_map(name).ok_or_else(|| TraceError::new(format!("the BPF program has no map {name}")));
        let mut tracer = Self {
            ranges: Array::try_from(map("ranges")?).map_err(|cause| TraceError::loading(&cause))?,
            threads: HashMap::try_from(map("threads")?).map_err(|cause| TraceError::loading(&cause))?,
            samples: RingBuf::try_from(map("samples")?).map_err(|cause| TraceError::loading(&cause))?,
            heat: counts(map("heat")?, num_cells as usize)?,
            latencies: counts(map("latencies")?, histogram::NUM_BUCKETS)?,
            counters: counts(map("counters")?, layout::NUM_COUNTERS)?,
            regions: Vec::new(),
            watched: None,
            num_cells_used: 0,
            process,
            ebpf,
        };
        tracer.refresh()?;
        tracer.start()?;
        Ok(tracer)
    }

    /// Lets faults reach the program.
    fn start(&mut self) -> Result<(), TraceError> {
        let missing = || TraceError::new("the BPF program is not in its object");
        let program: &mut RawTracePoint =
            self.ebpf.program_mut(TRACEPOINT).ok_or_else(missing)?.try_into().map_err(|cause| TraceError::loading(&cause))?;
        program.load().map_err(|cause| TraceError::loading(&cause))?;
        program.attach(TRACEPOINT).map_err(|cause| TraceError::attaching(&cause))?;
        Ok(())
    }

    /// Looks whether the process has made regions or dropped some. Their counts begin with this call.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn refresh(&mut self) -> Result<(), TraceError> {
        let found = self.process.regions()?;
        let is_same = found.len() == self.regions.len() && found.iter().zip(&self.regions).all(|(new, old)| *new == (old.start, old.end));
        if is_same && !self.regions.is_empty() {
            return Ok(());
        }
        let known = std::mem::take(&mut self.regions);
        for (start, end) in found {
            let old = known.iter().find(|region| (region.start, region.end) == (start, end)).copied();
            let region = old.unwrap_or_else(|| self.place(start, end));
            self.regions.push(region);
        }
        self.tell()
    }

    /// Counts the faults in this memory of the process, too, although it is no region; one range at a time, none if it is empty. For measurements.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&mut self, start: u64, num_bytes: u64) -> Result<(), TraceError> {
        self.watched = (num_bytes > 0).then_some(TracedRegion { start, end: start + num_bytes, first_cell: None });
        self.tell()
    }

    /// A new region, with cells in the heat map if there are any left.
    fn place(&mut self, start: u64, end: u64) -> TracedRegion {
        let mut region = TracedRegion { start, end, first_cell: None };
        if self.num_cells_used + region.num_cells() <= self.heat.len() as u64 {
            region.first_cell = Some(self.num_cells_used as u32);
            self.num_cells_used += region.num_cells();
        }
        region
    }

    /// Hands the ranges to the program.
    fn tell(&mut self) -> Result<(), TraceError> {
        let mut ranges = Ranges { num: 0, all: [Range::default(); MAX_RANGES] };
        for (region, range) in self.regions.iter().chain(&self.watched).zip(&mut ranges.all) {
            *range = Range { start: region.start, end: region.end, first_cell: region.first_cell.unwrap_or(NO_CELL), padding: 0 };
            ranges.num += 1;
        }
        self.ranges.set(0, ranges, 0).map_err(|cause| TraceError::loading(&cause))
    }

    /// The regions as of the last [`Self::refresh`].
    pub fn regions(&self) -> &[TracedRegion] {
        &self.regions
    }

    /// Faults in each 2 MiB of a region.
    pub fn heat(&self, region: &TracedRegion) -> Vec<u64> {
        let first = region.first_cell.map(|cell| cell as usize);
        first.map_or_else(Vec::new, |first| self.heat.all().skip(first).take(region.num_cells() as usize).collect())
    }

    /// Whether the process notes what its handler gets: as soon as that has got a fault. A process that pages by a monitor thread only does not: then nobody knows who dealt
    /// with a fault, and there are no latencies.
    pub fn takes_part(&self) -> bool {
        self.process.has_records()
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Snapshot {
        let counters: Vec<u64> = self.counters.all().collect();
        let kinds = |first: usize| Kinds::of([counters[first], counters[first + 1], counters[first + 2], counters[first + 3]]);
        let mut snapshot = Snapshot {
            faults: counters[layout::ALL_FAULTS],
            handled: kinds(4),
            by_kernel: kinds(0),
            latencies: Latencies::new(self.latencies.all().collect()),
            lost_samples: counters[layout::LOST_SAMPLES],
        };
        self.threads.iter().filter_map(Result::ok).for_each(|(tid, thread)| self.close_last(tid, &thread, &mut snapshot));
        snapshot
    }

    /// A thread's last fault, which the BPF program closes at the next one only.
    fn close_last(&self, tid: u32, thread: &Thread, snapshot: &mut Snapshot) {
        // The thread may have got its record with this very fault.
        let is_own = |noted: &process::Noted| noted.tid == u64::from(tid);
        let noted = match thread.record {
            0 => self.process.record_of(tid),
            record => self.process.noted(record).filter(is_own),
        };
        let new = noted.filter(|noted| noted.num_faults != thread.num_handled && noted.address == thread.address);
        match new.and_then(|noted| noted.notified_ns.checked_sub(thread.fault_ns)) {
            Some(latency_ns) => {
                snapshot.handled.add(thread.error);
                snapshot.latencies.add(latency_ns);
            }
            None if sys::now_ns().saturating_sub(thread.fault_ns) > GIVEN_UP.as_nanos() as u64 => snapshot.by_kernel.add(thread.error),
            None => {}
        }
    }

    /// The next sample, if there is one.
    pub fn next_sample(&mut self) -> Option<Sample> {
        let item = self.samples.next()?;
        // SAFETY: the program writes whole samples only; a sample consists of numbers, and any bits are one.
        (item.len() == size_of::<Sample>()).then(|| unsafe { item.as_ptr().cast::<Sample>().read_unaligned() })
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").field("process", &self.process).field("regions", &self.regions).finish_non_exhaustive()
    }
}

fn counts(map: Map, num: usize) -> Result<Counts, TraceError> {
    match map {
        Map::Array(data) => Counts::map(data, num),
        _ => Err(TraceError::new("a map of the BPF program is no array")),
    }
}
