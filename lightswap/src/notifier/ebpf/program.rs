//! The BPF program that decides which faults are redirected, and its maps.
//!
//! It is a dozen lines, written as the instructions themselves: so it needs neither a compiler at build time nor a loader at run time. In C it would be
//! ```c
//! int decide(u64 *args)
//! {
//!     struct range *range = lookup(&ranges, args[LIGHTSWAP_ARG_RANGE]);
//!     struct thread *thread = lookup(&threads, args[LIGHTSWAP_ARG_SLOT]);
//!     u64 address = args[LIGHTSWAP_ARG_ADDRESS];
//!
//!     if (!range || address < range->start || address >= range->end || !thread || !thread->is_admitted)
//!         return 0;
//!     thread->num_redirected++;
//!     return LIGHTSWAP_REDIRECT;
//! }
//! ```
//! Both maps are arrays that are mapped into this process, which needs no system call to change or read them.

use crate::error::{Error, ErrorKind, Result};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// A range whose faults are redirected; empty where there is none.
#[repr(C)]
struct Range {
    start: AtomicU64,
    end: AtomicU64,
}

/// What the program knows of the thread with a slot.
#[repr(C)]
struct Thread {
    is_admitted: AtomicU64,
    /// Changed by the program, and only while that thread faults.
    num_redirected: AtomicU64,
}

/// The loaded program.
pub(super) struct Program {
    fd: OwnedFd,
    ranges: Map<Range>,
    threads: Map<Thread>,
}

impl Program {
    pub(super) fn load(num_ranges: usize, num_threads: usize) -> Result<Self> {
        let (ranges, threads) = (Map::new(num_ranges)?, Map::new(num_threads)?);
        let code = code(ranges.fd.as_raw_fd(), threads.fd.as_raw_fd());
        let attributes = ProgramAttributes {
            program_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
            num_instructions: code.len() as u32,
            instructions: code.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            ..ProgramAttributes::default()
        };
        let fd = bpf(BPF_PROG_LOAD, &attributes, "the kernel refuses the BPF program that redirects faults (it takes CAP_BPF and CAP_PERFMON)")?;
        Ok(Self { fd, ranges, threads })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Faults in `start..end` are redirected, if they come with this number.
    pub(super) fn set_range(&self, id: usize, start: usize, end: usize) {
        let range = self.ranges.of(id);
        // Never more than the old or the new one.
        range.end.store(0, Release);
        range.start.store(start as u64, Release);
        range.end.store(end as u64, Release);
    }

    /// Faults of the thread with this slot are redirected. Async-signal-safe.
    pub(super) fn admit(&self, slot: usize) {
        self.threads.of(slot).is_admitted.store(1, Release);
    }

    pub(super) fn num_redirected(&self) -> u64 {
        (0..self.threads.num).map(|slot| self.threads.of(slot).num_redirected.load(Relaxed)).sum()
    }
}

/// An array map of the kernel, mapped here for as long as the process lives.
struct Map<T> {
    fd: OwnedFd,
    values: *const T,
    num: usize,
}

// SAFETY: the values consist of atomics.
unsafe impl<T> Sync for Map<T> {}
// SAFETY: as above; the mapping belongs to no thread.
unsafe impl<T> Send for Map<T> {}

impl<T> Map<T> {
    /// All values are 0.
    fn new(num: usize) -> Result<Self> {
        let attributes = MapAttributes {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_bytes: size_of::<u32>() as u32,
            value_bytes: size_of::<T>() as u32,
            num_entries: num as u32,
            flags: BPF_F_MMAPABLE,
        };
        let fd = bpf(BPF_MAP_CREATE, &attributes, "the kernel refuses a BPF map (it takes CAP_BPF)")?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let values = unsafe { libc::mmap(std::ptr::null_mut(), num * size_of::<T>(), protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if values == libc::MAP_FAILED {
            return Err(Error::os(ErrorKind::NoMemory, "cannot map a BPF map"));
        }
        Ok(Self { fd, values: values.cast(), num })
    }

    fn of(&self, index: usize) -> &T {
        assert!(index < self.num);
        // SAFETY: within the mapping, which is never unmapped; zeroed memory is a valid value.
        unsafe { &*self.values.add(index) }
    }
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    num_entries: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct ProgramAttributes {
    program_type: u32,
    num_instructions: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
}

/// A call that makes something, with attributes that belong to it.
fn bpf<A>(command: libc::c_int, attributes: &A, failure: &str) -> Result<OwnedFd> {
    // SAFETY: the kernel reads so many bytes of the attributes, and what they point to; both live in the callers.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    if fd < 0 {
        return Err(Error::io(ErrorKind::InvalidArgument, failure, &io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// An instruction as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Target, and source times 16.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Arguments of the program; see integrations/kernel/lightswap.h.
const ARG_ADDRESS: i16 = 0;
const ARG_RANGE: i16 = 3;
const ARG_SLOT: i16 = 4;
const REDIRECT: i32 = 1;

const LOOKUP: i32 = 1;
const STACK: u8 = 10;

const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: target | source << 4, offset, immediate }
}

/// `target = *(u64 *)(source + offset)`
const fn load(target: u8, source: u8, offset: i16) -> Instruction {
    instruction(0x79, target, source, offset, 0)
}

/// `*(u64 *)(target + offset) = source`
const fn store(target: u8, offset: i16, source: u8) -> Instruction {
    instruction(0x7b, target, source, offset, 0)
}

const fn copy(target: u8, source: u8) -> Instruction {
    instruction(0xbf, target, source, 0, 0)
}

const fn set(target: u8, value: i32) -> Instruction {
    instruction(0xb7, target, 0, 0, value)
}

const fn add(target: u8, value: i32) -> Instruction {
    instruction(0x07, target, 0, 0, value)
}

/// `if (target == 0) skip so many instructions`
const fn skip_if_zero(target: u8, num: i16) -> Instruction {
    instruction(0x15, target, 0, num, 0)
}

/// `if (target < source) ...`
const fn skip_if_less(target: u8, source: u8, num: i16) -> Instruction {
    instruction(0xad, target, source, num, 0)
}

/// `if (target >= source) ...`
const fn skip_if_not_less(target: u8, source: u8, num: i16) -> Instruction {
    instruction(0x3d, target, source, num, 0)
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// `r0 = lookup(map, (u32)args[argument])`, with the arguments at r6.
fn lookup(map: RawFd, argument: i16) -> [Instruction; 7] {
    [
        load(1, 6, 8 * argument),
        instruction(0x63, STACK, 1, -4, 0),
        copy(2, STACK),
        add(2, -4),
        // r1 = map, as a constant of 64 bits.
        instruction(0x18, 1, 1, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, LOOKUP),
    ]
}

fn code(ranges: RawFd, threads: RawFd) -> Vec<Instruction> {
    let mut code = vec![copy(6, 1), load(7, 6, 8 * ARG_ADDRESS)];
    code.extend(lookup(ranges, ARG_RANGE));
    // Each skip leads to the instruction after the first EXIT.
    code.extend([skip_if_zero(0, 19), load(1, 0, 0), skip_if_less(7, 1, 17), load(1, 0, 8), skip_if_not_less(7, 1, 15)]);
    code.extend(lookup(threads, ARG_SLOT));
    code.extend([skip_if_zero(0, 7), load(1, 0, 0), skip_if_zero(1, 5), load(1, 0, 8), add(1, 1), store(0, 8, 1), set(0, REDIRECT), EXIT]);
    code.extend([set(0, 0), EXIT]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a skip passes by is the rest of the deciding, no more and no less.
    #[test]
    fn every_skip_leads_to_the_refusal() {
        let code = code(3, 4);
        let refusal = code.len() - 2;
        assert_eq!((code[refusal], code[refusal - 1]), (set(0, 0), EXIT));
        let is_skip = |instruction: &Instruction| [0x15, 0xad, 0x3d].contains(&instruction.code);
        let skips: Vec<usize> = (0..code.len()).filter(|place| is_skip(&code[*place])).collect();
        assert_eq!(skips.len(), 5);
        skips.iter().for_each(|place| assert_eq!(place + 1 + code[*place].offset as usize, refusal, "from {place}"));
    }
}
