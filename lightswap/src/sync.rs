//! LWT-aware locks: on contention an LWT is suspended and its worker goes on; an OS thread sleeps.
//!
//! Code that touches swappable memory while it holds a lock needs these: with an ordinary lock, an LWT that waits for it would stop its
//! worker, and with it the LWT that holds the lock and waits for a page.
//!
//! The locks themselves must be in ordinary memory, never in a region: they are looked at where a page fault could not be waited for.

use crate::parking;
use crate::region;
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

const FREE: u32 = 0;
const LOCKED: u32 = 1;
/// Locked, and somebody may be waiting.
const CONTENDED: u32 = 2;

/// A mutex without data; all-zero is an unlocked one. The states are those of Drepper's "Futexes Are Tricky", mutex 2.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct RawMutex(AtomicU32);

impl RawMutex {
    /// An unlocked mutex.
    pub const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Locks if that needs no waiting.
    pub fn try_lock(&self) -> bool {
        self.0.compare_exchange(FREE, LOCKED, Acquire, Relaxed).is_ok()
    }

    /// Locks; suspends the LWT or blocks the thread as long as others hold the lock. Not recursive.
    pub fn lock(&self) {
        if self.try_lock() {
            return;
        }
        debug_assert!(region::find(self.key()).is_none(), "a lock must not be in a region");
        while self.0.swap(CONTENDED, Acquire) != FREE {
            parking::park(self.key(), || self.0.load(SeqCst) == CONTENDED);
        }
    }

    /// Unlocks. The caller must hold the lock, be it on another LWT or thread.
    pub fn unlock(&self) {
        if self.0.swap(FREE, Release) == CONTENDED {
            parking::unpark_one(self.key());
        }
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

/// A mutex around data.
#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    raw: RawMutex,
    data: UnsafeCell<T>,
}

// SAFETY: the lock gives one LWT or thread at a time access to the data.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(data: T) -> Self {
        Self { raw: RawMutex::new(), data: UnsafeCell::new(data) }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Locks; suspends the LWT or blocks the thread as long as others hold the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.raw.lock();
        MutexGuard { mutex: self, data: PhantomData }
    }

    /// Locks if that needs no waiting.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.raw.try_lock().then(|| MutexGuard { mutex: self, data: PhantomData })
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("raw", &self.raw).finish_non_exhaustive()
    }
}

/// Access to the data of a locked [`Mutex`]; unlocks on drop.
#[derive(Debug)]
#[must_use]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    /// The guard is shared between threads only if the data may be.
    data: PhantomData<&'a mut T>,
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.mutex.raw.unlock();
    }
}

/// A condition variable; all-zero is a valid one.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Condvar(AtomicU32);

impl Condvar {
    /// A condition variable nobody waits for.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Unlocks, waits for a notification, and locks again. May return without one.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_raw(&guard.mutex.raw);
    }

    /// The same for a [`RawMutex`] that the caller holds.
    pub fn wait_raw(&self, mutex: &RawMutex) {
        let sequence = self.0.load(Relaxed);
        mutex.unlock();
        parking::park(self.key(), || self.0.load(SeqCst) == sequence);
        mutex.lock();
    }

    /// Wakes one waiter, if there is one.
    pub fn notify_one(&self) {
        self.0.fetch_add(1, SeqCst);
        parking::unpark_one(self.key());
    }

    /// Wakes all waiters.
    pub fn notify_all(&self) {
        self.0.fetch_add(1, SeqCst);
        parking::unpark_all(self.key());
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}
