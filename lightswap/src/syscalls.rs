//! System calls that may be given region memory.
//!
//! The kernel raises no SIGBUS for its own accesses: a call on missing pages fails with EFAULT or stops short. These wrappers pin a bounded
//! window first, so that the call finds its pages; touching without pinning could livelock, since a tiny local memory may lose the first page while the
//! last is coming in. The window never takes more pins than local memory can spare: on streams a call may then transfer less than was
//! asked, as it may anyway; a datagram that is larger goes through a bounce buffer.

use crate::access::PageRange;
use crate::error::ErrorKind;
use crate::lwt;
use crate::region;
use crate::size::PAGE_SIZE;
use crate::sys;
use libc::{c_int, c_void, iovec, msghdr, ssize_t};

/// Most bytes of region memory one call is given.
const WINDOW_BYTES: usize = 64 << 10;
/// Most vector entries one call is given.
const MAX_ENTRIES: usize = 64;
/// A page of a transparent region can be write-protected once between the pin and the call; more often means something else is wrong.
const MAX_ATTEMPTS: usize = 8;
/// Largest datagram that is bounced.
const MAX_BOUNCE_BYTES: usize = 16 << 20;

fn in_region(entry: &iovec) -> bool {
    entry.iov_len > 0 && region::find(entry.iov_base as usize).is_some()
}

/// The front of a vector, as much as one call may take, with its region memory pinned.
struct Window {
    entries: [iovec; MAX_ENTRIES],
    num_entries: usize,
    is_whole: bool,
}

/// Why there is no window.
enum NoWindow {
    /// Pins are scarce right now.
    Retry,
    /// EFAULT, EIO.
    Errno(c_int),
}

impl Window {
    /// Clips `vector` to `limit` bytes of region memory, and pins those.
    fn pin(vector: &[iovec], limit: usize) -> Result<Self, NoWindow> {
        let mut window = Self { entries: [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_ENTRIES], num_entries: 0, is_whole: true };
        let mut left = limit;
        for entry in vector {
            if window.num_entries == MAX_ENTRIES || left == 0 {
                window.is_whole = false;
                break;
            }
            let mut clipped = *entry;
            if in_region(entry) {
                // Whole pages count, as pins do.
                let offset = entry.iov_base as usize % PAGE_SIZE;
                clipped.iov_len = entry.iov_len.min(left.saturating_sub(offset));
                if clipped.iov_len == 0 {
                    window.is_whole = false;
                    break;
                }
                if let Err(error) = pin(&clipped) {
                    window.unpin();
                    return Err(error);
                }
                left = left.saturating_sub((offset + clipped.iov_len).next_multiple_of(PAGE_SIZE));
            }
            window.entries[window.num_entries] = clipped;
            window.num_entries += 1;
            if clipped.iov_len < entry.iov_len {
                window.is_whole = false;
                break;
            }
        }
        Ok(window)
    }

    fn pinned(&self) -> impl Iterator<Item = PageRange> {
        self.entries[..self.num_entries]
            .iter()
            .filter(|entry| in_region(entry))
            .filter_map(|entry| PageRange::find(entry.iov_base as usize, entry.iov_len).ok())
    }

    fn unpin(&self) {
        self.pinned().for_each(|range| range.unpin().unwrap_or_default());
    }

    fn unprotect(&self) {
        self.pinned().for_each(|range| range.unprotect());
    }
}

fn pin(entry: &iovec) -> Result<(), NoWindow> {
    let range = PageRange::find(entry.iov_base as usize, entry.iov_len).map_err(|_| NoWindow::Errno(libc::EFAULT))?;
    range.pin().map_err(|error| match error.kind() {
        ErrorKind::PinLimit => NoWindow::Retry,
        _ => NoWindow::Errno(libc::EIO),
    })
}

/// Makes `call` with as much of `vector` as can be pinned. With `needs_whole`, `None` when that is not all of it.
fn with_window(vector: &[iovec], needs_whole: bool, call: impl Fn(&mut [iovec]) -> ssize_t) -> Option<ssize_t> {
    let mut limit = WINDOW_BYTES;
    loop {
        let mut window = match Window::pin(vector, limit) {
            Ok(window) => window,
            Err(NoWindow::Errno(errno)) => {
                sys::set_errno(errno);
                return Some(-1);
            }
            Err(NoWindow::Retry) => {
                // Others hold the pins, for the time of a call. Ask for less, down to a page, and let them end.
                limit = (limit / 2).max(PAGE_SIZE);
                lwt::yield_now();
                continue;
            }
        };
        if needs_whole && !window.is_whole {
            window.unpin();
            return None;
        }
        let num_entries = window.num_entries;
        let mut result = call(&mut window.entries[..num_entries]);
        for _ in 0..MAX_ATTEMPTS {
            if result >= 0 || sys::errno() != libc::EFAULT {
                break;
            }
            window.unprotect();
            result = call(&mut window.entries[..num_entries]);
        }
        let errno = sys::errno();
        window.unpin();
        sys::set_errno(errno);
        return Some(result);
    }
}

/// Does the call directly when no region memory is involved.
fn transfer(vector: &[iovec], call: impl Fn(&mut [iovec]) -> ssize_t, direct: impl FnOnce() -> ssize_t) -> ssize_t {
    if vector.iter().any(in_region) { with_window(vector, false, call).unwrap_or(-1) } else { direct() }
}

/// The caller's vector.
///
/// # Safety
/// `count` entries at `vector` are readable, or `count` is not positive.
unsafe fn entries<'a>(vector: *const iovec, count: usize) -> &'a [iovec] {
    if count == 0 || vector.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(vector, count) }
}

/// As read(2), for any memory.
///
/// # Safety
/// As for read(2): `buffer` is valid for writing `len` bytes.
pub unsafe fn read(fd: c_int, buffer: *mut c_void, len: usize) -> ssize_t {
    let vector = [iovec { iov_base: buffer, iov_len: len }];
    // SAFETY: the caller's promise; windows are parts of the caller's memory.
    transfer(&vector, |window| unsafe { libc::readv(fd, window.as_ptr(), window.len() as c_int) }, || unsafe { libc::read(fd, buffer, len) })
}

/// As write(2), for any memory.
///
/// # Safety
/// As for write(2): `buffer` is valid for reading `len` bytes.
pub unsafe fn write(fd: c_int, buffer: *const c_void, len: usize) -> ssize_t {
    let vector = [iovec { iov_base: buffer.cast_mut(), iov_len: len }];
    // SAFETY: as above.
    transfer(&vector, |window| unsafe { libc::writev(fd, window.as_ptr(), window.len() as c_int) }, || unsafe { libc::write(fd, buffer, len) })
}

/// As readv(2), for any memory.
///
/// # Safety
/// As for readv(2).
pub unsafe fn readv(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let all = unsafe { entries(vector, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: as above.
    transfer(all, |window| unsafe { libc::readv(fd, window.as_ptr(), window.len() as c_int) }, || unsafe { libc::readv(fd, vector, count) })
}

/// As writev(2), for any memory.
///
/// # Safety
/// As for writev(2).
pub unsafe fn writev(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let all = unsafe { entries(vector, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: as above.
    transfer(all, |window| unsafe { libc::writev(fd, window.as_ptr(), window.len() as c_int) }, || unsafe { libc::writev(fd, vector, count) })
}

/// As sendmsg(2), for any memory. Name and control data must be in ordinary memory.
///
/// # Safety
/// As for sendmsg(2).
pub unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let header = unsafe { *message };
    // SAFETY: as above.
    let all = unsafe { entries(header.msg_iov, header.msg_iovlen) };
    if !all.iter().any(in_region) {
        // SAFETY: as above.
        return unsafe { libc::sendmsg(fd, message, flags) };
    }
    let send = |window: &mut [iovec]| {
        let part = msghdr { msg_iov: window.as_mut_ptr(), msg_iovlen: window.len() as _, ..header };
        // SAFETY: as above.
        unsafe { libc::sendmsg(fd, &part, flags) }
    };
    with_window(all, !may_split(fd, all), send).unwrap_or_else(|| {
        bounced(all, |bounce| {
            let mut at = 0;
            for entry in all {
                // SAFETY: as above; missing pages fault in, as for any code.
                unsafe { std::ptr::copy_nonoverlapping(entry.iov_base.cast(), bounce.as_mut_ptr().add(at), entry.iov_len) };
                at += entry.iov_len;
            }
            send(&mut [iovec { iov_base: bounce.as_mut_ptr().cast(), iov_len: bounce.len() }])
        })
    })
}

/// As recvmsg(2), for any memory. Name and control data must be in ordinary memory.
///
/// # Safety
/// As for recvmsg(2).
pub unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let header = unsafe { *message };
    // SAFETY: as above.
    let all = unsafe { entries(header.msg_iov, header.msg_iovlen) };
    if !all.iter().any(in_region) {
        // SAFETY: as above.
        return unsafe { libc::recvmsg(fd, message, flags) };
    }
    let receive = |window: &mut [iovec]| {
        let mut part = msghdr { msg_iov: window.as_mut_ptr(), msg_iovlen: window.len() as _, ..header };
        // SAFETY: as above; the lengths and flags that the call sets go back to the caller's header.
        unsafe {
            let result = libc::recvmsg(fd, &mut part, flags);
            (*message).msg_namelen = part.msg_namelen;
            (*message).msg_controllen = part.msg_controllen;
            (*message).msg_flags = part.msg_flags;
            result
        }
    };
    with_window(all, !may_split(fd, all), receive).unwrap_or_else(|| {
        bounced(all, |bounce| {
            let result = receive(&mut [iovec { iov_base: bounce.as_mut_ptr().cast(), iov_len: bounce.len() }]);
            let mut received = &bounce[..usize::try_from(result).unwrap_or(0).min(bounce.len())];
            for entry in all {
                let (part, rest) = received.split_at(entry.iov_len.min(received.len()));
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), entry.iov_base.cast(), part.len()) };
                received = rest;
            }
            result
        })
    })
}

/// Whether a message may be transferred in parts: on a stream, or when it surely fits the window anyway.
fn may_split(fd: c_int, vector: &[iovec]) -> bool {
    let num_bytes: usize = vector.iter().map(|entry| entry.iov_len).sum();
    if vector.len() <= 8 && num_bytes <= PAGE_SIZE {
        return false;
    }
    let mut kind: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `kind` and `len` are valid for the call.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &mut len) };
    result != 0 || kind == libc::SOCK_STREAM
}

fn bounced(vector: &[iovec], call: impl FnOnce(&mut [u8]) -> ssize_t) -> ssize_t {
    let num_bytes: usize = vector.iter().map(|entry| entry.iov_len).sum();
    if num_bytes > MAX_BOUNCE_BYTES {
        sys::set_errno(libc::EMSGSIZE);
        return -1;
    }
    call(&mut vec![0; num_bytes])
}
