//! What a child and its parent say to each other: the child asks for a slot, and gets a page, in any order. One message each, on a pair of sockets that keep
//! messages apart. Async-signal-safe.

use crate::size::PAGE_SIZE;
use crate::sys;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Requests that a child has under way at most: so many answers fit into the socket, so that the parent need not wait for it.
pub(super) const WINDOW: usize = 16;

/// A child asks for the content of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Request {
    /// The child's name for the request.
    pub(super) tag: u64,
    pub(super) slot: u64,
    /// What the content is to have.
    pub(super) hash: u64,
}

/// What precedes the page; without one, that is all.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Answer {
    pub(super) tag: u64,
    /// 0, or why there is no page: a [`crate::failure::RawCause`].
    pub(super) cause: i64,
}

/// How it goes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Done,
    /// Not now.
    Later,
    /// The other side is gone, or does not speak this language.
    Over,
}

/// Two connected sockets that no program inherits. They do not block.
pub(super) fn pair() -> Option<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: two new descriptors come into the array.
    let result = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0, fds.as_mut_ptr()) };
    // SAFETY: the descriptors are new and ours.
    (result == 0).then(|| unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Waits until `fd` is ready for one of `events`, or has nobody at its other end, or the time has passed; what it is ready for.
pub(super) fn wait(fd: RawFd, events: i16, limit_ns: u64) -> i16 {
    let end_ns = sys::now_ns().saturating_add(limit_ns);
    loop {
        let left_ms = end_ns.saturating_sub(sys::now_ns()).div_ceil(1_000_000).min(i32::MAX as u64);
        let mut polled = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one valid pollfd.
        let result = unsafe { libc::poll(&mut polled, 1, left_ms as i32) };
        if result >= 0 || sys::errno() != libc::EINTR {
            return polled.revents;
        }
    }
}

pub(super) fn send_request(fd: RawFd, request: Request) -> Sent {
    send(fd, &mut [part((&raw const request).cast(), size_of::<Request>())])
}

/// Sends a page, or why there is none.
pub(super) fn send_answer(fd: RawFd, tag: u64, page: Result<*const u8, i32>) -> Sent {
    let answer = Answer { tag, cause: page.map_or_else(i64::from, |_| 0) };
    let head = part((&raw const answer).cast(), size_of::<Answer>());
    match page {
        Ok(page) => send(fd, &mut [head, part(page, PAGE_SIZE)]),
        Err(_) => send(fd, &mut [head]),
    }
}

/// The next request.
pub(super) fn receive_request(fd: RawFd) -> Result<Request, Sent> {
    let mut request = MaybeUninit::<Request>::uninit();
    match receive(fd, &mut [part(request.as_mut_ptr().cast(), size_of::<Request>())])? {
        // SAFETY: it is whole, and consists of numbers.
        len if len == size_of::<Request>() => Ok(unsafe { request.assume_init() }),
        _ => Err(Sent::Over),
    }
}

/// The next answer; the page, if there is one, is at `page`, which has room for one.
pub(super) fn receive_answer(fd: RawFd, page: *mut u8) -> Result<Answer, Sent> {
    let mut answer = MaybeUninit::<Answer>::uninit();
    let len = receive(fd, &mut [part(answer.as_mut_ptr().cast(), size_of::<Answer>()), part(page, PAGE_SIZE)])?;
    if len < size_of::<Answer>() {
        return Err(Sent::Over);
    }
    // SAFETY: it is whole, and consists of numbers.
    let answer = unsafe { answer.assume_init() };
    let has_page = len == size_of::<Answer>() + PAGE_SIZE;
    if has_page == (answer.cause == 0) { Ok(answer) } else { Err(Sent::Over) }
}

fn part(start: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len }
}

fn message(parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zero is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message
}

fn send(fd: RawFd, parts: &mut [libc::iovec]) -> Sent {
    loop {
        // SAFETY: the parts are the callers', readable for their lengths.
        let sent = unsafe { libc::sendmsg(fd, &message(parts), libc::MSG_NOSIGNAL) };
        match sys::errno() {
            _ if sent >= 0 => return Sent::Done,
            libc::EINTR => {}
            libc::EAGAIN | libc::ENOBUFS => return Sent::Later,
            _ => return Sent::Over,
        }
    }
}

fn receive(fd: RawFd, parts: &mut [libc::iovec]) -> Result<usize, Sent> {
    loop {
        // SAFETY: the parts are the callers', writable for their lengths.
        let len = unsafe { libc::recvmsg(fd, &mut message(parts), 0) };
        match sys::errno() {
            _ if len > 0 => return Ok(len as usize),
            libc::EINTR if len < 0 => {}
            libc::EAGAIN if len < 0 => return Err(Sent::Later),
            _ => return Err(Sent::Over),
        }
    }
}
