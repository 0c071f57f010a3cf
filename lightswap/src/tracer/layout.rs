//! What the tracer and its BPF program share; the same is in ebpf/faults.bpf.c.

use crate::fault_table;

/// One more than the regions that a process can have: for memory that is none.
pub(super) const MAX_RANGES: usize = fault_table::MAX_RANGES + 1;
pub(super) const NO_CELL: u32 = u32::MAX;
pub(super) const CELL_SHIFT: u32 = 21;
/// In `counters`.
pub(super) const ALL_FAULTS: usize = 8;
pub(super) const LOST_SAMPLES: usize = 9;
pub(super) const NUM_COUNTERS: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first_cell: u32,
    pub(super) padding: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Ranges {
    pub(super) num: u64,
    pub(super) all: [Range; MAX_RANGES],
}

/// A thread's last fault.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Thread {
    pub(super) record: u64,
    pub(super) num_handled: u64,
    pub(super) address: u64,
    pub(super) fault_ns: u64,
    pub(super) error: u64,
}

/// A fault as the kernel saw it come.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Sample {
    /// When, on the monotonic clock.
    pub fault_ns: u64,
    /// What was accessed.
    pub address: u64,
    /// Of the code that did.
    pub instruction: u64,
    /// The processor's page-fault error code: bit 0 the page was there, bit 1 a write.
    pub error: u32,
    /// The thread, as numbered in its own process namespace.
    pub tid: u32,
}

// SAFETY: plain numbers without padding that is not named.
unsafe impl aya::Pod for Ranges {}
// SAFETY: as above.
unsafe impl aya::Pod for Thread {}
