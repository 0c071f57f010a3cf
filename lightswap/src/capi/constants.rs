//! Statuses, and the values that arguments can have.

use crate::config::{FaultReturn, Notifier, Waiting};
use crate::error::ErrorKind;
use crate::failure::Cause;
use crate::region::Contract;
use libc::c_int;

/// Success; every failure is negative.
pub const LSW_OK: c_int = 0;
/// An argument is out of range.
pub const LSW_ERR_INVALID_ARGUMENT: c_int = -1;
/// The backend URL does not parse.
pub const LSW_ERR_BACKEND_URL: c_int = -2;
/// The backend cannot be opened, or failed.
pub const LSW_ERR_BACKEND: c_int = -3;
/// The kernel offers no suitable userfaultfd.
pub const LSW_ERR_NO_USERFAULTFD: c_int = -4;
/// The kernel offers no suitable io_uring.
pub const LSW_ERR_NO_IO_URING: c_int = -5;
/// The machine gave no memory or address space.
pub const LSW_ERR_NO_MEMORY: c_int = -6;
/// The backend has no room left (the disk is full, or writes fail).
pub const LSW_ERR_NO_SPACE: c_int = -7;
/// More pages would be pinned than local memory can spare.
pub const LSW_ERR_PIN_LIMIT: c_int = -8;
/// The range is not wholly inside one region.
pub const LSW_ERR_NOT_IN_REGION: c_int = -9;
/// The calling thread is not a worker.
pub const LSW_ERR_NOT_A_WORKER: c_int = -10;
/// The object is in use.
pub const LSW_ERR_BUSY: c_int = -11;
/// A page's content could not be read back.
pub const LSW_ERR_SWAP_IN: c_int = -12;

/// Cause of an lsw_error: the backend returned an error.
pub const LSW_CAUSE_IO: u32 = 1;
/// The read took longer than the time limit; or there was no room in local memory for so long, because writes fail or take too long.
pub const LSW_CAUSE_TIMEOUT: u32 = 2;
/// What was read is not what was written.
pub const LSW_CAUSE_HASH: u32 = 3;
/// The backend returned less than a page.
pub const LSW_CAUSE_SHORT: u32 = 4;
/// The backend is gone: the device was removed, the connection lost.
pub const LSW_CAUSE_LOST_BACKEND: u32 = 5;
/// The memory of the page was damaged (a hardware memory error).
pub const LSW_CAUSE_POISON: u32 = 6;

/// Any code may write any page of the region at any time.
pub const LSW_TRANSPARENT: c_int = 0;
/// Code pins pages of the region before it writes them.
pub const LSW_COOPERATIVE: c_int = 1;

/// Faults raise a signal in the faulting thread; only its LWT waits. The default.
pub const LSW_NOTIFIER_SIGBUS: u32 = 0;
/// For comparison: classic userfaultfd. The faulting thread sleeps in the kernel, and one thread of the instance does all paging.
pub const LSW_NOTIFIER_MONITOR: u32 = 1;
/// As LSW_NOTIFIER_SIGBUS, without the signal: needs the kernel module of integrations/kernel, CAP_BPF and CAP_PERFMON; without, it is LSW_NOTIFIER_SIGBUS.
pub const LSW_NOTIFIER_EBPF: u32 = 2;

/// The handler of a fault loads the registers itself and so goes back to the access without a system call, where it can. The default.
pub const LSW_FAULT_RETURN_USER: u32 = 0;
/// For comparison, and for tools that must see it: by rt_sigreturn.
pub const LSW_FAULT_RETURN_KERNEL: u32 = 1;

/// An LWT that waits for a page is suspended, and its worker runs the others. The default.
pub const LSW_WAITING_SUSPEND: u32 = 0;
/// For comparison: the worker polls its I/O queue until the page is in, and one thread of the instance does all reclaim. With LSW_NOTIFIER_SIGBUS only.
pub const LSW_WAITING_POLL: u32 = 1;

// Numbers above, as the header must show them; the same as in Rust.
const _: () = {
    assert!(LSW_ERR_INVALID_ARGUMENT == ErrorKind::InvalidArgument as c_int);
    assert!(LSW_ERR_BACKEND_URL == ErrorKind::BackendUrl as c_int);
    assert!(LSW_ERR_BACKEND == ErrorKind::Backend as c_int);
    assert!(LSW_ERR_NO_USERFAULTFD == ErrorKind::NoUserfaultfd as c_int);
    assert!(LSW_ERR_NO_IO_URING == ErrorKind::NoIoUring as c_int);
    assert!(LSW_ERR_NO_MEMORY == ErrorKind::NoMemory as c_int);
    assert!(LSW_ERR_NO_SPACE == ErrorKind::NoSpace as c_int);
    assert!(LSW_ERR_PIN_LIMIT == ErrorKind::PinLimit as c_int);
    assert!(LSW_ERR_NOT_IN_REGION == ErrorKind::NotInRegion as c_int);
    assert!(LSW_ERR_NOT_A_WORKER == ErrorKind::NotAWorker as c_int);
    assert!(LSW_ERR_BUSY == ErrorKind::Busy as c_int);
    assert!(LSW_ERR_SWAP_IN == ErrorKind::SwapIn as c_int);
    assert!(LSW_CAUSE_IO == Cause::Io as u32 && LSW_CAUSE_TIMEOUT == Cause::TimedOut as u32 && LSW_CAUSE_HASH == Cause::WrongHash as u32);
    assert!(LSW_CAUSE_SHORT == Cause::ShortRead as u32 && LSW_CAUSE_LOST_BACKEND == Cause::LostBackend as u32);
    assert!(LSW_CAUSE_POISON == Cause::Poisoned as u32);
    assert!(LSW_NOTIFIER_SIGBUS == Notifier::Sigbus as u32 && LSW_NOTIFIER_MONITOR == Notifier::Monitor as u32);
    assert!(LSW_NOTIFIER_EBPF == Notifier::Ebpf as u32);
    assert!(LSW_FAULT_RETURN_USER == FaultReturn::User as u32 && LSW_FAULT_RETURN_KERNEL == FaultReturn::Kernel as u32);
    assert!(LSW_WAITING_SUSPEND == Waiting::Suspend as u32 && LSW_WAITING_POLL == Waiting::Poll as u32);
    assert!(LSW_TRANSPARENT == Contract::Transparent as c_int && LSW_COOPERATIVE == Contract::Cooperative as c_int);
};
