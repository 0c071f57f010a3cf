//! System calls that may be given region memory.
//!
//! The kernel raises no SIGBUS for its own accesses: a call on missing pages fails with EFAULT or stops short. These wrappers pin a bounded
//! window first, so that the call finds its pages; touching without pinning could livelock, since a tiny local memory may lose the first page while the
//! last is coming in. The window never takes more pins than local memory can spare: on streams a call may then transfer less than was
//! asked, as it may anyway. What cannot be done so goes through a bounce buffer: a datagram that is larger than the window, or is to be
//! received where the kernel's write might fail half way, and any call while all pins are taken, perhaps for long.

use crate::access::PageRange;
use crate::copies;
use crate::error::ErrorKind;
use crate::failure::{self, SwapFailure};
use crate::lwt;
use crate::region;
use crate::size::PAGE_SIZE;
use crate::sys;
use libc::{c_int, c_void, iovec, msghdr, ssize_t};
use std::cell::Cell;

/// Most bytes of region memory one call is given.
const WINDOW_BYTES: usize = 64 << 10;
/// Most vector entries one call is given.
const MAX_ENTRIES: usize = 64;
/// A page of a transparent region can be write-protected once between the pin and the call; more often means something else is wrong.
const MAX_ATTEMPTS: usize = 8;
/// Largest datagram that is bounced.
const MAX_BOUNCE_BYTES: usize = 16 << 20;
/// Attempts to get a single pin before the call is bounced: others may hold theirs as long as they wait for input.
const MAX_PIN_ATTEMPTS: usize = 32;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// Out of memory: write, send.
    Out,
    /// Into memory: read, receive.
    In,
}

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
    /// EFAULT: memory behind the end of a region.
    Outside,
    /// EIO: a page cannot be had.
    Lost(Option<SwapFailure>),
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

    /// The first of the pinned pages that cannot be read.
    fn damage(&self) -> Option<SwapFailure> {
        self.pinned().find_map(|range| range.damage())
    }
}

fn pin(entry: &iovec) -> Result<(), NoWindow> {
    let range = PageRange::find(entry.iov_base as usize, entry.iov_len).map_err(|_| NoWindow::Outside)?;
    range.pin().map_err(|error| match error.kind() {
        ErrorKind::PinLimit => NoWindow::Retry,
        _ => NoWindow::Lost(error.failure().copied()),
    })
}

/// Makes `call` with as much of `vector` as can be pinned. `None`, with nothing done, when no pin is to be had, or with `needs_whole` not all of it.
fn with_window(vector: &[iovec], needs_whole: bool, lost: &Lost, call: impl Fn(&mut [iovec]) -> ssize_t) -> Option<ssize_t> {
    let mut limit = WINDOW_BYTES;
    let mut num_attempts = 0;
    loop {
        let mut window = match Window::pin(vector, limit) {
            Ok(window) => window,
            Err(NoWindow::Outside) => {
                sys::set_errno(libc::EFAULT);
                return Some(-1);
            }
            Err(NoWindow::Lost(failure)) => {
                lost.set(failure);
                sys::set_errno(libc::EIO);
                return Some(-1);
            }
            Err(NoWindow::Retry) => {
                // Others hold the pins, most of them for the time of a call. Ask for less, down to a page, and let them end.
                limit = (limit / 2).max(PAGE_SIZE);
                num_attempts += 1;
                if num_attempts > MAX_PIN_ATTEMPTS {
                    return None;
                }
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
        let mut errno = sys::errno();
        if result < 0 && errno == libc::EFAULT {
            // The kernel refuses damaged memory without a word; whoever asks for such a page next shall know.
            if let Some(failure) = window.damage() {
                lost.set(Some(failure));
                errno = libc::EIO;
            }
        }
        window.unpin();
        sys::set_errno(errno);
        return Some(result);
    }
}

/// Does the call directly when no region memory is involved, in a window of it if that will do, or through a bounce buffer.
fn transfer(fd: c_int, direction: Direction, vector: &[iovec], call: impl Fn(&mut [iovec]) -> ssize_t, direct: impl FnOnce() -> ssize_t) -> ssize_t {
    if !vector.iter().any(in_region) {
        let result = direct();
        if result < 0 {
            failure::with_last(|last| last.set(None));
        }
        return result;
    }
    let kind = Transfer::of(fd, direction, vector);
    let lost = Cell::new(None);
    let windowed = if kind == Transfer::Bounced { None } else { with_window(vector, kind == Transfer::Whole, &lost, &call) };
    let result = windowed.unwrap_or_else(|| bounced(direction, vector, kind == Transfer::InParts, &lost, |bounce| call(&mut [bounce])));
    if result < 0 {
        failure::with_last(|last| last.set(lost.get()));
    }
    result
}

/// Why a page could not be had, if that is why a call fails.
type Lost = Cell<Option<SwapFailure>>;

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
    let windowed = |window: &mut [iovec]| unsafe { libc::readv(fd, window.as_ptr(), window.len() as c_int) };
    // SAFETY: as above.
    transfer(fd, Direction::In, &vector, windowed, || unsafe { libc::read(fd, buffer, len) })
}

/// As write(2), for any memory.
///
/// # Safety
/// As for write(2): `buffer` is valid for reading `len` bytes.
pub unsafe fn write(fd: c_int, buffer: *const c_void, len: usize) -> ssize_t {
    let vector = [iovec { iov_base: buffer.cast_mut(), iov_len: len }];
    // SAFETY: as above.
    let windowed = |window: &mut [iovec]| unsafe { libc::writev(fd, window.as_ptr(), window.len() as c_int) };
    // SAFETY: as above.
    transfer(fd, Direction::Out, &vector, windowed, || unsafe { libc::write(fd, buffer, len) })
}

/// As readv(2), for any memory.
///
/// # Safety
/// As for readv(2).
pub unsafe fn readv(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let all = unsafe { entries(vector, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: as above.
    let windowed = |window: &mut [iovec]| unsafe { libc::readv(fd, window.as_ptr(), window.len() as c_int) };
    // SAFETY: as above.
    transfer(fd, Direction::In, all, windowed, || unsafe { libc::readv(fd, vector, count) })
}

/// As writev(2), for any memory.
///
/// # Safety
/// As for writev(2).
pub unsafe fn writev(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let all = unsafe { entries(vector, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: as above.
    let windowed = |window: &mut [iovec]| unsafe { libc::writev(fd, window.as_ptr(), window.len() as c_int) };
    // SAFETY: as above.
    transfer(fd, Direction::Out, all, windowed, || unsafe { libc::writev(fd, vector, count) })
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
    let send = |window: &mut [iovec]| {
        let part = msghdr { msg_iov: window.as_mut_ptr(), msg_iovlen: window.len() as _, ..header };
        // SAFETY: as above.
        unsafe { libc::sendmsg(fd, &part, flags) }
    };
    // SAFETY: as above.
    transfer(fd, Direction::Out, all, send, || unsafe { libc::sendmsg(fd, message, flags) })
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
    // SAFETY: as above.
    transfer(fd, Direction::In, all, receive, || unsafe { libc::recvmsg(fd, message, flags) })
}

/// How a call with region memory can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    /// A part of it will do: the caller goes on with the rest.
    InParts,
    /// One message: all of it or nothing.
    Whole,
    /// One message into pages that an eviction may write-protect at any moment: if the kernel's copy stops there, the message is lost.
    Bounced,
}

impl Transfer {
    fn of(fd: c_int, direction: Direction, vector: &[iovec]) -> Self {
        let is_transparent = |entry: &iovec| region::find(entry.iov_base as usize).is_some_and(region::RegionInner::is_transparent);
        let may_fail = direction == Direction::In && vector.iter().any(is_transparent);
        let num_bytes = total_len(vector);
        // What surely fits the window can be whole in any case, which saves a system call.
        if !may_fail && vector.len() <= 8 && num_bytes <= PAGE_SIZE {
            return Self::Whole;
        }
        match is_stream(fd) {
            true => Self::InParts,
            false if may_fail => Self::Bounced,
            false => Self::Whole,
        }
    }
}

fn total_len(vector: &[iovec]) -> usize {
    vector.iter().fold(0, |sum, entry| sum.saturating_add(entry.iov_len))
}

/// Whether `fd` is no socket, or one that keeps no messages apart.
fn is_stream(fd: c_int) -> bool {
    let mut kind: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `kind` and `len` are valid for the call.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &mut len) };
    result != 0 || kind == libc::SOCK_STREAM
}

/// Makes `call` with ordinary memory instead of the caller's: all of it, or with `may_cut` the front of it.
fn bounced(direction: Direction, vector: &[iovec], may_cut: bool, lost: &Lost, call: impl FnOnce(iovec) -> ssize_t) -> ssize_t {
    let wanted = total_len(vector);
    let num_bytes = if may_cut { wanted.min(WINDOW_BYTES) } else { wanted };
    if num_bytes > MAX_BOUNCE_BYTES || vector.iter().any(is_cut_off) {
        sys::set_errno(if num_bytes > MAX_BOUNCE_BYTES { libc::EMSGSIZE } else { libc::EFAULT });
        return -1;
    }
    let mut bounce = vec![0u8; num_bytes];
    let is_lost = Cell::new(false);
    let copy = |to: *mut u8, from: *const u8, len: usize| {
        // SAFETY: the caller vouches for its memory as for the plain call.
        if let Err(error) = unsafe { copies::copy(to, from, len) } {
            is_lost.set(true);
            lost.set(error.failure().copied());
        }
    };
    if direction == Direction::Out {
        for_each_part(vector, &mut bounce, |theirs, ours| copy(ours.as_mut_ptr(), theirs, ours.len()));
        if is_lost.get() {
            sys::set_errno(libc::EIO);
            return -1;
        }
    }
    let result = call(iovec { iov_base: bounce.as_mut_ptr().cast(), iov_len: num_bytes });
    if direction == Direction::Out || result <= 0 {
        return result;
    }
    for_each_part(vector, &mut bounce[..num_bytes.min(result as usize)], |theirs, ours| copy(theirs, ours.as_ptr(), ours.len()));
    if is_lost.get() {
        sys::set_errno(libc::EIO);
        return -1;
    }
    result
}

/// An entry that begins in a region and ends outside.
fn is_cut_off(entry: &iovec) -> bool {
    in_region(entry) && PageRange::find(entry.iov_base as usize, entry.iov_len).is_err()
}

/// Calls `copy` with each entry's address and its share of `bounce`, in order.
fn for_each_part(vector: &[iovec], mut bounce: &mut [u8], mut copy: impl FnMut(*mut u8, &mut [u8])) {
    for entry in vector {
        let (part, rest) = bounce.split_at_mut(entry.iov_len.min(bounce.len()));
        if !part.is_empty() {
            copy(entry.iov_base.cast(), part);
        }
        bounce = rest;
    }
}
