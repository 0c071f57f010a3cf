//! System calls on memory of regions.

use crate::syscalls;
use libc::{c_int, c_void, iovec, msghdr, size_t, ssize_t};

/// As read(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's promise is that of read(2).
    unsafe { syscalls::read(fd, buf, len) }
}

/// As write(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's promise is that of write(2).
    unsafe { syscalls::write(fd, buf, len) }
}

/// As readv(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_readv(fd: c_int, iov: *const iovec, iovcnt: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of readv(2).
    unsafe { syscalls::readv(fd, iov, iovcnt) }
}

/// As writev(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_writev(fd: c_int, iov: *const iovec, iovcnt: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of writev(2).
    unsafe { syscalls::writev(fd, iov, iovcnt) }
}

/// As recvmsg(2), but never EFAULT for a missing page of a region. Name and control data must be in ordinary memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of recvmsg(2).
    unsafe { syscalls::recvmsg(fd, msg, flags) }
}

/// As sendmsg(2), but never EFAULT for a missing page of a region. Name and control data must be in ordinary memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of sendmsg(2).
    unsafe { syscalls::sendmsg(fd, msg, flags) }
}
