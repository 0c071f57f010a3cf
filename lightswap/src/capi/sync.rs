//! Locks, and the primitive beneath them.

use crate::parking;
use crate::sync::{Condvar, RawMutex};
use libc::c_void;

/// An LWT-aware mutex. All-zero is an unlocked one.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_mutex {
    word: u32,
}

/// A condition variable for lsw_mutex. All-zero is a valid one.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_cond {
    sequence: u32,
}

/// Locks; suspends the LWT or blocks the thread as long as others hold the lock. Not recursive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_mutex_lock(mutex: *mut lsw_mutex) {
    // SAFETY: RawMutex is a transparent u32, as lsw_mutex is; the caller vouches for the pointer.
    unsafe { &*mutex.cast::<RawMutex>() }.lock();
}

/// Locks if that needs no waiting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_mutex_trylock(mutex: *mut lsw_mutex) -> bool {
    // SAFETY: as lsw_mutex_lock.
    unsafe { &*mutex.cast::<RawMutex>() }.try_lock()
}

/// Unlocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_mutex_unlock(mutex: *mut lsw_mutex) {
    // SAFETY: as lsw_mutex_lock.
    unsafe { &*mutex.cast::<RawMutex>() }.unlock();
}

/// Unlocks, waits for a signal, and locks again. May return without a signal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_cond_wait(cond: *mut lsw_cond, mutex: *mut lsw_mutex) {
    // SAFETY: Condvar and RawMutex are transparent u32s; the caller vouches for the pointers.
    unsafe { (*cond.cast::<Condvar>()).wait_raw(&*mutex.cast::<RawMutex>()) };
}

/// Wakes one waiter, if there is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_cond_signal(cond: *mut lsw_cond) {
    // SAFETY: as lsw_cond_wait.
    unsafe { &*cond.cast::<Condvar>() }.notify_one();
}

/// Wakes all waiters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_cond_broadcast(cond: *mut lsw_cond) {
    // SAFETY: as lsw_cond_wait.
    unsafe { &*cond.cast::<Condvar>() }.notify_all();
}

/// The primitive beneath the locks: suspends the LWT (or blocks the thread) until an unpark of the same address. still_needed is called after the
/// caller was queued, under an internal spin lock: false means do not wait. It must not suspend, park, unpark or touch a region.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_park(key: *const c_void, still_needed: Option<extern "C" fn(arg: *mut c_void) -> bool>, arg: *mut c_void) {
    parking::park(key as usize, || still_needed.is_none_or(|still_needed| still_needed(arg)));
}

/// Wakes the longest waiter of an address; a full fence and one load when nobody waits. What the waiter's still_needed looks at must be changed before.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_unpark_one(key: *const c_void) {
    parking::unpark_one(key as usize);
}

/// Wakes all waiters of an address.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_unpark_all(key: *const c_void) {
    parking::unpark_all(key as usize);
}
