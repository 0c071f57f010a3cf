//! The process that is traced, as it shows itself in /proc and in its fault table.

use super::TraceError;
use crate::fault_table::{self, FaultTable};
use std::fs;
use std::mem::offset_of;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;

#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    /// Its number in its own process namespace, and which that is.
    pub(super) own_pid: u32,
    pub(super) namespace_device: u64,
    pub(super) namespace_inode: u64,
    table: u64,
}

/// What a thread's record said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) tid: u64,
    pub(super) num_faults: u64,
    pub(super) address: u64,
    pub(super) notified_ns: u64,
}

impl Process {
    pub(super) fn find(pid: u32) -> Result<Self, TraceError> {
        let file = |name: &str| format!("/proc/{pid}/{name}");
        let refused = |what: &str, cause: &std::io::Error| match cause.kind() {
            std::io::ErrorKind::NotFound => TraceError::new(format!("there is no process {pid}")),
            _ => TraceError::new(format!("cannot read {what}: {cause}; tracing another user's process takes root")),
        };
        let read = |name: &str| fs::read_to_string(file(name)).map_err(|cause| refused(&file(name), &cause));
        let status = read("status")?;
        let own_pid = own_pid(&status).unwrap_or(pid);
        let namespace = fs::metadata(file("ns/pid")).map_err(|cause| refused(&file("ns/pid"), &cause))?;
        let table = table_address(&read("maps")?).ok_or_else(|| {
            TraceError::new(format!(
                "process {pid} has no Lightswap: /proc/{pid}/maps shows no {} (or its Lightswap is older than the tracer)",
                fault_table::NAME
            ))
        })?;
        let process = Self {
            pid,
            own_pid,
            // As the kernel has it, not as stat shows it.
            namespace_device: u64::from(libc::major(namespace.dev())) << 20 | u64::from(libc::minor(namespace.dev())),
            namespace_inode: namespace.ino(),
            table,
        };
        let magic = process.read::<1>(table)?[0];
        if magic != fault_table::MAGIC {
            return Err(TraceError::new(format!("the Lightswap of process {pid} has another version than the tracer; use the two of one build")));
        }
        Ok(process)
    }

    /// Where its threads' records begin.
    pub(super) fn records(&self) -> u64 {
        self.table + offset_of!(FaultTable, records) as u64
    }

    /// Its regions: start and end.
    pub(super) fn regions(&self) -> Result<Vec<(u64, u64)>, TraceError> {
        let numbers = self.read::<{ 2 * fault_table::MAX_RANGES }>(self.table + offset_of!(FaultTable, ranges) as u64)?;
        Ok(numbers.as_chunks().0.iter().map(|&[start, end]| (start, end)).filter(|(start, end)| end > start).collect())
    }

    /// A thread's record, once it stands still for as long as it takes to read it.
    pub(super) fn noted(&self, record: u64) -> Option<Noted> {
        let read = || self.read::<4>(record).ok().map(|[tid, num_faults, address, notified_ns]| Noted { tid, num_faults, address, notified_ns });
        (0..3).find_map(|_| {
            let first = read()?;
            (read()? == first).then_some(first)
        })
    }

    /// That of a thread, wherever it is.
    pub(super) fn record_of(&self, tid: u32) -> Option<Noted> {
        let address = |probe: usize| {
            let place = (tid as usize + probe) % fault_table::NUM_RECORDS;
            self.records() + (place * size_of::<fault_table::Record>()) as u64
        };
        (0..fault_table::NUM_PROBES).find_map(|probe| self.noted(address(probe)).filter(|noted| noted.tid == u64::from(tid)))
    }

    /// Whether any of its threads has had a fault handled by Lightswap's handler.
    pub(super) fn has_records(&self) -> bool {
        const WORDS: usize = fault_table::NUM_RECORDS * size_of::<fault_table::Record>() / size_of::<AtomicU64>();
        self.read::<WORDS>(self.records()).is_ok_and(|words| words.iter().step_by(WORDS / fault_table::NUM_RECORDS).any(|tid| *tid != 0))
    }

    fn read<const N: usize>(&self, address: u64) -> Result<[u64; N], TraceError> {
        let mut words = [0; N];
        let local = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: size_of_val(&words) };
        let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address as usize), iov_len: size_of_val(&words) };
        // SAFETY: `local` is valid for writing; the kernel checks `remote`.
        let num_read = unsafe { libc::process_vm_readv(self.pid as libc::pid_t, &local, 1, &remote, 1, 0) };
        if num_read == size_of_val(&words) as isize {
            return Ok(words);
        }
        let cause = std::io::Error::last_os_error();
        Err(match cause.raw_os_error() {
            Some(libc::ESRCH) => TraceError::new(format!("process {} has ended", self.pid)),
            Some(libc::EPERM) => TraceError::new(format!("cannot read the memory of process {}: {cause}; tracing it takes CAP_SYS_PTRACE", self.pid)),
            _ => TraceError::new(format!("cannot read the memory of process {}: {cause}", self.pid)),
        })
    }
}

/// The number in the innermost namespace, which comes last in /proc/PID/status.
fn own_pid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NStgid:"))?.split_whitespace().last()?.parse().ok()
}

fn table_address(maps: &str) -> Option<u64> {
    let named = format!("/memfd:{}", fault_table::NAME);
    let line = maps.lines().find(|line| line.contains(&named))?;
    u64::from_str_radix(line.split_once('-')?.0, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_number_counts() {
        assert_eq!(own_pid("Name:\tx\nNStgid:\t4711\t12\t1\nNSpid:\t9\n"), Some(1));
        assert_eq!(own_pid("Name:\tx\n"), None);
    }

    #[test]
    fn the_table_is_found_among_mappings() {
        let maps = "55d0-55d1 r--p 0 0:1 7 /usr/bin/x\n7f00aa000000-7f00aa011000 rw-p 0 0:1 7 /memfd:lightswap-faults (deleted)\n";
        assert_eq!(table_address(maps), Some(0x7f00_aa00_0000));
        assert_eq!(table_address("7f00-7f01 rw-p 0 0:1 7 /memfd:other (deleted)\n"), None);
    }

    #[test]
    fn who_has_no_regions_or_does_not_exist_is_told_apart() {
        let of = |pid| Process::find(pid).unwrap_err().to_string();
        assert!(of(u32::MAX / 2).contains("there is no process"), "{}", of(u32::MAX / 2));
        // The first process is no program with a region; without privileges, what it has cannot be seen.
        assert!(of(1).contains("has no Lightswap") || of(1).contains("takes root"), "{}", of(1));
    }
}
