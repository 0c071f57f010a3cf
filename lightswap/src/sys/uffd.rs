//! userfaultfd in the forms Lightswap uses it: SIGBUS in the faulting thread, or messages to a monitor; user-mode faults only, so no privilege.

use crate::error::{Error, ErrorKind, Result};
use crate::size::{PAGE_SIZE, bytes_of};
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An open userfaultfd.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    /// Faulting threads sleep in the kernel until they are woken, instead of getting SIGBUS.
    faults_sleep: bool,
}

/// A fault that a thread sleeps on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) address: usize,
    /// A write to a page that is there, but write-protected.
    pub(crate) is_write_protect: bool,
}

/// Messages read in one call.
const MESSAGES_PER_READ: usize = 64;

impl Uffd {
    /// Opens and configures one: with `faults_sleep` its faults are read with [`Self::read`], otherwise they raise SIGBUS.
    pub(crate) fn open(faults_sleep: bool) -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | raw::UFFD_USER_MODE_ONLY as i32;
        // SAFETY: userfaultfd takes flags only and returns a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            let what = "userfaultfd is not available (Linux 5.11 or newer with CONFIG_USERFAULTFD, and no seccomp filter against it, is needed)";
            return Err(Error::os(ErrorKind::NoUserfaultfd, what));
        }
        // SAFETY: the descriptor is new and ours.
        let uffd = Self { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) }, faults_sleep };
        let sigbus = if faults_sleep { 0 } else { raw::UFFD_FEATURE_SIGBUS };
        let features = sigbus | raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP;
        let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features: features.into(), ioctls: 0 };
        uffd.ioctl(ioctl::UFFDIO_API, &mut api).map_err(|errno| {
            let cause = std::io::Error::from_raw_os_error(errno);
            Error::io(
                ErrorKind::NoUserfaultfd,
                "this kernel's userfaultfd lacks SIGBUS or write-protect mode (Linux 5.11 or newer is needed)",
                &cause,
            )
        })?;
        Ok(uffd)
    }

    /// One ioctl; on failure its errno. Async-signal-safe.
    fn ioctl<T>(&self, request: u32, argument: &mut T) -> std::result::Result<(), i32> {
        // SAFETY: each caller passes the struct that belongs to the request, valid for the call.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request as libc::c_ulong, argument as *mut T) };
        if result < 0 { Err(super::errno()) } else { Ok(()) }
    }

    /// Registers `[start, start + len)` for missing pages and, if asked, write protection.
    pub(crate) fn register(&self, start: usize, len: usize, write_protect: bool) -> Result<()> {
        let wp = if write_protect { raw::UFFDIO_REGISTER_MODE_WP } else { 0 };
        let mode = (raw::UFFDIO_REGISTER_MODE_MISSING | wp).into();
        let mut register = raw::uffdio_register { range: range(start, len), mode, ioctls: 0 };
        self.ioctl(ioctl::UFFDIO_REGISTER, &mut register).map_err(|errno| {
            let cause = std::io::Error::from_raw_os_error(errno);
            Error::io(ErrorKind::NoUserfaultfd, "cannot register a region with userfaultfd", &cause)
        })
    }

    /// Undoes [`Self::register`].
    pub(crate) fn unregister(&self, start: usize, len: usize) {
        let _ = self.ioctl(ioctl::UFFDIO_UNREGISTER, &mut range(start, len));
    }

    /// Maps one page at `page` (missing so far) with the content at `source`. On failure the errno. Async-signal-safe.
    ///
    /// # Safety
    /// `source` is readable for a page and `page` lies in a range registered here.
    pub(crate) unsafe fn copy_page(&self, page: usize, source: *const u8) -> std::result::Result<(), i32> {
        loop {
            let mut copy = raw::uffdio_copy {
                dst: page as u64,
                src: source as u64,
                len: PAGE_SIZE as u64,
                // With SIGBUS nobody sleeps in the kernel: there is no wait queue to wake.
                mode: if self.faults_sleep { 0 } else { raw::UFFDIO_COPY_MODE_DONTWAKE.into() },
                copy: 0,
            };
            match self.ioctl(ioctl::UFFDIO_COPY, &mut copy) {
                // The address space is changing (a fork or mmap in another thread): try again.
                Err(libc::EAGAIN) => std::hint::spin_loop(),
                result => return result,
            }
        }
    }

    /// Maps a page of zeroes at `page` (missing so far, in a range registered here) that takes no memory before it is written. On failure the errno. Async-signal-safe.
    pub(crate) fn zero_page(&self, page: usize) -> std::result::Result<(), i32> {
        loop {
            let mode = if self.faults_sleep { 0 } else { raw::UFFDIO_ZEROPAGE_MODE_DONTWAKE.into() };
            let mut zero = raw::uffdio_zeropage { range: range(page, PAGE_SIZE), mode, zeropage: 0 };
            match self.ioctl(ioctl::UFFDIO_ZEROPAGE, &mut zero) {
                Err(libc::EAGAIN) => std::hint::spin_loop(),
                result => return result,
            }
        }
    }

    /// In a child of fork: what this descriptor stands for is this process's address space from now on, not its parent's.
    pub(crate) fn replace(&self) -> Result<()> {
        let ours = Self::open(self.faults_sleep)?;
        // SAFETY: two open descriptors; nobody of this process, which has one thread, uses ours meanwhile.
        let result = unsafe { libc::dup3(ours.as_raw_fd(), self.as_raw_fd(), libc::O_CLOEXEC) };
        if result < 0 { Err(Error::os(ErrorKind::NoUserfaultfd, "cannot replace the userfaultfd of a parent")) } else { Ok(()) }
    }

    /// Write-protects (or un-protects) the present pages of a range; un-protecting wakes who sleeps on them. On failure the errno. Async-signal-safe.
    pub(crate) fn write_protect(&self, start: usize, num_pages: usize, protect: bool) -> std::result::Result<(), i32> {
        loop {
            // Mode bit 0 protects, bit 1 (DONTWAKE) is for the other direction.
            let mode = match (protect, self.faults_sleep) {
                (true, _) => 1,
                (false, true) => 0,
                (false, false) => 2,
            };
            let mut wp = raw::uffdio_writeprotect { range: range(start, bytes_of(num_pages)), mode };
            match self.ioctl(ioctl::UFFDIO_WRITEPROTECT, &mut wp) {
                Err(libc::EAGAIN) => std::hint::spin_loop(),
                result => return result,
            }
        }
    }

    /// Wakes whoever sleeps on a fault of the page at `page`: the access is tried again.
    pub(crate) fn wake(&self, page: usize) {
        let _ = self.ioctl(ioctl::UFFDIO_WAKE, &mut range(page, PAGE_SIZE));
    }

    /// For poll(2): readable when there are messages.
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reads messages without blocking, some of those there are, and hands each to `receive`.
    pub(crate) fn read(&self, receive: impl FnMut(Message)) {
        // SAFETY: all zero is a valid message.
        let mut messages: [raw::uffd_msg; MESSAGES_PER_READ] = unsafe { std::mem::zeroed() };
        // SAFETY: the array is valid for its size.
        let num_bytes = unsafe { libc::read(self.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        // Negative: nobody sleeps any more, or the call was interrupted; poll tells if there is more.
        let num_messages = usize::try_from(num_bytes).unwrap_or(0) / size_of::<raw::uffd_msg>();
        messages[..num_messages].iter().filter_map(Message::of).for_each(receive);
    }
}

impl Message {
    fn of(message: &raw::uffd_msg) -> Option<Self> {
        if u32::from(message.event) != raw::UFFD_EVENT_PAGEFAULT {
            return None;
        }
        // SAFETY: the event says which variant it is.
        let (flags, address) = unsafe { (message.arg.pagefault.flags, message.arg.pagefault.address) };
        Some(Self { address: address as usize, is_write_protect: flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WP) != 0 })
    }
}

fn range(start: usize, len: usize) -> raw::uffdio_range {
    raw::uffdio_range { start: start as u64, len: len as u64 }
}
