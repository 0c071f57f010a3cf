//! /dev/lightswap: how a process tells the kernel module about itself. The counterpart of integrations/kernel/lightswap.h.

use crate::error::{Error, ErrorKind, Result};
use crate::sys;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const ABI: u32 = 1;

/// A redirected fault.
#[repr(C)]
pub(super) struct Slot {
    /// Set by the module, which redirects no further fault of the thread before it is cleared.
    pub(super) is_full: u32,
    /// As the processor's error code.
    pub(super) fault: u32,
    pub(super) address: u64,
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) flags: u64,
    /// The register itself has the slot's address.
    pub(super) di: u64,
    reserved: [u64; 2],
}

pub(super) const SLOT_BYTES: usize = size_of::<Slot>();
const _: () = assert!(SLOT_BYTES == 64 && offset_of!(Slot, di) == 40);

#[repr(C)]
struct SetUp {
    abi: u32,
    program_fd: i32,
    entry: u64,
    slots: u64,
    num_slots: u32,
    reserved: u32,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    id: u64,
}

const SET_UP: libc::c_ulong = request_with::<SetUp>(0);
const ADD_RANGE: libc::c_ulong = request_with::<Range>(1);
const REMOVE_RANGE: libc::c_ulong = request_with::<Range>(2);
const ENTER_THREAD: libc::c_ulong = request(3, 0, 0);

/// As the macro _IOC of C.
const fn request(number: libc::c_ulong, direction: libc::c_ulong, num_bytes: usize) -> libc::c_ulong {
    direction << 30 | (num_bytes as libc::c_ulong) << 16 | (b'L' as libc::c_ulong) << 8 | number
}

/// As the macro _IOW of C.
const fn request_with<T>(number: libc::c_ulong) -> libc::c_ulong {
    request(number, 1, size_of::<T>())
}

/// The open device.
#[derive(Debug)]
pub(super) struct Device(OwnedFd);

impl Device {
    pub(super) fn open() -> Result<Self> {
        // SAFETY: a terminated path; returns a new descriptor.
        let fd = unsafe { libc::open(c"/dev/lightswap".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            let what = "cannot open /dev/lightswap (the kernel module lightswap must be loaded; see docs/notifiers.md)";
            return Err(Error::os(ErrorKind::InvalidArgument, what));
        }
        // SAFETY: the descriptor is new and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// On failure its errno. Async-signal-safe.
    fn ioctl<T>(&self, request: libc::c_ulong, argument: *const T) -> std::result::Result<usize, i32> {
        // SAFETY: each caller passes the struct that belongs to the request, valid for the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) };
        usize::try_from(result).map_err(|_| sys::errno())
    }

    pub(super) fn set_up(&self, program_fd: RawFd, entry: usize, slots: usize, num_slots: usize) -> Result<()> {
        let set_up = SetUp { abi: ABI, program_fd, entry: entry as u64, slots: slots as u64, num_slots: num_slots as u32, reserved: 0 };
        self.ioctl(SET_UP, &raw const set_up).map(|_| ()).map_err(|errno| {
            let what = match errno {
                libc::EPROTONOSUPPORT | libc::ENOTTY => {
                    "the kernel module lightswap is of another version than this library: install the one that came with it"
                }
                libc::ENOMEM => "the kernel module lightswap cannot lock 64 KiB of memory (see ulimit -l)",
                _ => "the kernel module lightswap refuses this process",
            };
            Error::io(ErrorKind::InvalidArgument, what, &io::Error::from_raw_os_error(errno))
        })
    }

    pub(super) fn add_range(&self, start: usize, len: usize, id: usize) -> Result<()> {
        let range = Range { start: start as u64, len: len as u64, id: id as u64 };
        self.ioctl(ADD_RANGE, &raw const range).map(|_| ()).map_err(|errno| {
            let what = "the kernel module lightswap refuses a region, whose faults will come as signals";
            Error::io(ErrorKind::InvalidArgument, what, &io::Error::from_raw_os_error(errno))
        })
    }

    pub(super) fn remove_range(&self, start: usize, len: usize) {
        let range = Range { start: start as u64, len: len as u64, id: 0 };
        let _ = self.ioctl(REMOVE_RANGE, &raw const range);
    }

    /// The index of the calling thread's slot; `None` if there is none for it now. Async-signal-safe.
    pub(super) fn enter_thread(&self) -> Option<usize> {
        self.ioctl(ENTER_THREAD, std::ptr::null::<Range>()).ok()
    }
}
