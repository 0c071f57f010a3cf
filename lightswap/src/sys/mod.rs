//! Thin, safe-as-possible layers over the system calls that Lightswap is built on.

pub(crate) mod futex;
pub(crate) mod mapping;
pub(crate) mod removal;
pub(crate) mod uffd;

/// The current `errno` of this thread. Async-signal-safe.
pub(crate) fn errno() -> i32 {
    // SAFETY: __errno_location always returns this thread's valid errno.
    unsafe { *libc::__errno_location() }
}

/// Sets `errno` of this thread. Async-signal-safe.
pub(crate) fn set_errno(value: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Monotonic time in nanoseconds (vDSO, no system call). Async-signal-safe.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
