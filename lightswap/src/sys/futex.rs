//! Blocking an OS thread on a word. Async-signal-safe.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` is `expected`; may return early.
pub(crate) fn wait(word: &AtomicU32, expected: u32) {
    // SAFETY: `word` is a live, aligned u32; a null timeout means none.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, expected, std::ptr::null::<libc::timespec>());
    }
}

/// Wakes one thread that waits on the word at `word`, which may be gone already: the address is only a key to the kernel.
pub(crate) fn wake_one(word: *const u32) {
    // SAFETY: FUTEX_WAKE on a private key does not access the memory; a stale address wakes nobody.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) };
}

/// Wakes all threads that wait on the word at `word`, likewise.
pub(crate) fn wake_all(word: *const u32) {
    // SAFETY: as in `wake_one`.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX) };
}

/// [`wait`], but not for longer than `limit`.
pub(crate) fn wait_for(word: &AtomicU32, expected: u32, limit: Duration) {
    let limit = libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    // SAFETY: `word` is a live, aligned u32, and the time lives as long as the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, expected, &raw const limit) };
}
