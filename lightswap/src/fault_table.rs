//! What a process shows to those who trace its faults: where its regions are and, for each thread, the last fault that the handler saw and when.
//!
//! It is always kept, with or without the feature `ebpf`, so that a process can be traced at any time without being asked: three stores a fault. A tracer finds the table by its
//! name in `/proc/PID/maps` and reads it from outside, the kernel's half while the thread is stopped in its next fault (ebpf/faults.bpf.c). Where the table cannot be
//! made, nothing is noted, and all else works.
//!
//! A record belongs to the thread whose number is in it. A thread takes one at its first fault, among a few at the place that its number says, so that it can be found without
//! searching; that of a thread that has ended is taken over. A thread that finds none is not traced.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Of the file that the table is a private copy of; `/proc/PID/maps` shows it.
pub(crate) const NAME: &str = "lightswap-faults";
/// First in the table; the last byte counts its versions.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"LSWFLT\0\x01");
pub(crate) const MAX_RANGES: usize = crate::region::MAX_REGIONS;
pub(crate) const NUM_RECORDS: usize = 1024;
/// Records that a thread may take, one after the other from its number on.
pub(crate) const NUM_PROBES: usize = 4;

/// A region; `end` is 0 where there is none.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Range {
    pub(crate) start: AtomicU64,
    pub(crate) end: AtomicU64,
}

/// The last fault of a thread. On a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Record {
    pub(crate) tid: AtomicU64,
    pub(crate) num_faults: AtomicU64,
    pub(crate) address: AtomicU64,
    pub(crate) notified_ns: AtomicU64,
}

/// All of it. Zeroed memory is an empty one but for `magic`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct FaultTable {
    pub(crate) magic: AtomicU64,
    pub(crate) ranges: [Range; MAX_RANGES],
    pub(crate) records: [Record; NUM_RECORDS],
}

static TABLE: OnceLock<Option<&'static FaultTable>> = OnceLock::new();
/// For threads without a record; nobody reads it.
static NOWHERE: Record = Record { tid: AtomicU64::new(0), num_faults: AtomicU64::new(0), address: AtomicU64::new(0), notified_ns: AtomicU64::new(0) };

thread_local! {
    static RECORD: Cell<*const Record> = const { Cell::new(std::ptr::null()) };
}

/// Makes the table, once per process.
pub(crate) fn publish() {
    TABLE.get_or_init(FaultTable::map);
}

fn table() -> Option<&'static FaultTable> {
    TABLE.get().copied().flatten()
}

impl FaultTable {
    /// Mapped for good. A private copy of a file rather than anonymous memory, because that has a name on every kernel; and private so that a child of fork has its own.
    fn map() -> Option<&'static Self> {
        let name = std::ffi::CString::new(NAME).ok()?;
        // SAFETY: a fresh file and a fresh mapping of it, checked; the descriptor is not needed once it is mapped.
        let memory = unsafe {
            let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return None;
            }
            let memory = if libc::ftruncate(fd, size_of::<Self>() as libc::off_t) == 0 {
                libc::mmap(std::ptr::null_mut(), size_of::<Self>(), libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, fd, 0)
            } else {
                libc::MAP_FAILED
            };
            libc::close(fd);
            memory
        };
        if memory == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: zeroed memory, large enough and never unmapped, is a valid table: it consists of atomics.
        let table = unsafe { &*memory.cast::<Self>() };
        table.magic.store(MAGIC, Release);
        Some(table)
    }

    /// A record for a thread. Async-signal-safe.
    fn claim(&self, tid: u64) -> Option<&Record> {
        let at = |probe: usize| &self.records[(tid as usize + probe) % NUM_RECORDS];
        // Left by an earlier thread of the same number, or by this one before its copy of the library's state was lost.
        if let Some(own) = (0..NUM_PROBES).map(at).find(|record| record.tid.load(Relaxed) == tid) {
            return Some(own);
        }
        (0..NUM_PROBES).map(at).find(|record| {
            let owner = record.tid.load(Relaxed);
            (owner == 0 || !is_alive(owner)) && record.tid.compare_exchange(owner, tid, Acquire, Relaxed).is_ok()
        })
    }
}

/// Whether this process has a thread of this number.
fn is_alive(tid: u64) -> bool {
    // SAFETY: signal 0 sends nothing.
    let found = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid as libc::pid_t, 0) } == 0;
    found || crate::sys::errno() != libc::ESRCH
}

/// Notes a fault of this thread at `address`, whose handler began at `notified_ns`. Async-signal-safe; the first one of a thread may change errno.
pub(crate) fn note(address: usize, notified_ns: u64) {
    let mut record = RECORD.get();
    if record.is_null() {
        record = first_record();
        RECORD.set(record);
    }
    // SAFETY: in the table, which is never unmapped, or a static.
    let record = unsafe { &*record };
    record.address.store(address as u64, Relaxed);
    record.notified_ns.store(notified_ns, Relaxed);
    // Last: who finds a new number finds what belongs to it. Nobody else writes it, so it takes no atomic addition.
    record.num_faults.store(record.num_faults.load(Relaxed).wrapping_add(1), Release);
}

#[cold]
fn first_record() -> *const Record {
    // SAFETY: no arguments, and it cannot fail.
    let tid = unsafe { libc::gettid() } as u64;
    table().and_then(|table| table.claim(tid)).unwrap_or(&NOWHERE)
}

/// A region was made in this place of the registry.
pub(crate) fn show_region(place: usize, start: usize, end: usize) {
    if let Some(range) = table().map(|table| &table.ranges[place]) {
        range.start.store(start as u64, Relaxed);
        range.end.store(end as u64, Release);
    }
}

/// It is gone.
pub(crate) fn hide_region(place: usize) {
    if let Some(range) = table().map(|table| &table.ranges[place]) {
        range.end.store(0, Release);
    }
}

/// In a child of fork: its only thread has another number than in the parent, and the others are not here.
pub(crate) fn become_child() {
    if let Some(table) = table() {
        table.records.iter().filter(|record| record.tid.load(Relaxed) != 0).for_each(|record| record.tid.store(0, Relaxed));
    }
    RECORD.set(std::ptr::null());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> &'static FaultTable {
        FaultTable::map().unwrap()
    }

    #[test]
    fn a_thread_keeps_its_record_and_the_next_of_its_number_has_it_again() {
        let table = table();
        let own = std::ptr::from_ref(table.claim(77).unwrap());
        assert!(std::ptr::eq(own, &table.records[77]));
        assert!(std::ptr::eq(own, table.claim(77).unwrap()));
        // SAFETY: no arguments.
        let tid = unsafe { libc::gettid() } as u64;
        assert!(table.claim(tid).is_some_and(|record| record.tid.load(Relaxed) == tid));
    }

    #[test]
    fn records_of_threads_that_have_ended_are_taken_over_and_those_of_the_living_are_not() {
        let table = table();
        // SAFETY: no arguments.
        let tid = unsafe { libc::gettid() } as u64;
        let probes = || (0..NUM_PROBES).map(|probe| &table.records[(tid as usize + 1 + probe) % NUM_RECORDS]);
        // Nobody has numbers as large as these.
        probes().zip(1 << 30..).for_each(|(record, dead)| record.tid.store(dead, Relaxed));
        let next = tid + 1;
        assert!(table.claim(next).is_some_and(|record| record.tid.load(Relaxed) == next));
        probes().for_each(|record| record.tid.store(tid, Relaxed));
        assert!(table.claim(tid + 1 + NUM_RECORDS as u64).is_none());
    }

    #[test]
    fn it_is_found_by_its_name() {
        let address = std::ptr::from_ref(table()) as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.lines().any(|line| line.starts_with(&format!("{address:x}-")) && line.contains(NAME)), "{maps}");
    }
}
