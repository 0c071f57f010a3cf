//! Waiting for an address: the one place where LWTs are suspended and OS threads sleep.
//!
//! A parking lot in the manner of WebKit's: waiters hang off a fixed table of buckets, keyed by address, so that the things waited for (pages,
//! locks, frames, buffers) need no room for a list. A waiter first queues itself, then checks that waiting is still needed; a waker first changes
//! the state, then looks at the queue: with a full fence on both sides no wake-up is lost.
//!
//! Signal safety: a bucket's lock is held for a few instructions that touch no region memory, so a fault handler never finds it taken
//! by the code it interrupted. Handlers of other asynchronous signals must not touch region memory nor park.

use crate::lwt::{self, Lwt};
use crate::sys::futex;
use crate::worker::{self, Worker};
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};

const NUM_BUCKETS: usize = 512;

struct Waiter {
    key: usize,
    next: Cell<*const Waiter>,
    how: How,
    woken: AtomicU32,
}

/// How a waiter waits.
#[derive(Clone, Copy)]
enum How {
    /// Suspended.
    Lwt(*mut Lwt),
    /// An OS thread that sleeps on `woken`.
    Thread,
    /// Looking at `woken` again and again.
    Polling(&'static Worker),
}

#[repr(align(64))]
struct Bucket {
    lock: SpinLock,
    num_waiters: AtomicU32,
    head: Cell<*const Waiter>,
    tail: Cell<*const Waiter>,
}

// SAFETY: head and tail are accessed under the lock only.
unsafe impl Sync for Bucket {}

static BUCKETS: [Bucket; NUM_BUCKETS] =
    [const { Bucket { lock: SpinLock::new(), num_waiters: AtomicU32::new(0), head: Cell::new(ptr::null()), tail: Cell::new(ptr::null()) } };
        NUM_BUCKETS];

fn bucket(key: usize) -> &'static Bucket {
    // Fibonacci hashing; addresses differ in their middle bits.
    &BUCKETS[key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (usize::BITS - NUM_BUCKETS.trailing_zeros())]
}

/// Suspends the calling LWT, or blocks the calling OS thread, until an unpark of `key`; a late unpark for an earlier use of the address ends it, too, so
/// callers look again.
///
/// `still_needed` runs after the caller is queued, under the bucket's lock; if it returns `false` there is no wait. It must not suspend, park,
/// unpark or touch region memory.
pub(crate) fn park(key: usize, still_needed: impl FnOnce() -> bool) {
    let lwt = lwt::current();
    park_as(if lwt.is_null() { How::Thread } else { How::Lwt(lwt) }, key, still_needed);
}

/// The same for pages and buffers, which come without any LWT of this worker running: on a worker that polls, the LWT keeps the thread.
pub(crate) fn park_for_pager(key: usize, still_needed: impl FnOnce() -> bool) {
    match worker::current() {
        Some(worker) if worker.polls() && lwt::on_lwt() => park_as(How::Polling(worker), key, still_needed),
        _ => park(key, still_needed),
    }
}

fn park_as(how: How, key: usize, still_needed: impl FnOnce() -> bool) {
    let bucket = bucket(key);
    let waiter = Waiter { key, next: Cell::new(ptr::null()), how, woken: AtomicU32::new(0) };
    bucket.lock.lock();
    bucket.num_waiters.fetch_add(1, SeqCst);
    fence(SeqCst);
    if !still_needed() {
        bucket.num_waiters.fetch_sub(1, Relaxed);
        bucket.lock.unlock();
        return;
    }
    if bucket.tail.get().is_null() {
        bucket.head.set(&waiter);
    } else {
        // SAFETY: queued waiters live on the stacks of their suspended owners until they are dequeued, which needs the lock.
        unsafe { (*bucket.tail.get()).next.set(&waiter) };
    }
    bucket.tail.set(&waiter);
    bucket.lock.unlock();
    if matches!(how, How::Lwt(_)) {
        // Exactly once, even if the wake-up has come already: the waker puts this LWT into its worker's inbox in any case, and from there
        // it is resumed only after it was suspended.
        lwt::suspend();
        debug_assert_eq!(waiter.woken.load(Acquire), 1);
        return;
    }
    while waiter.woken.load(Acquire) == 0 {
        match (how, worker::current()) {
            (How::Polling(worker), _) => worker.poll_in_place(),
            // A worker's own stack must not sleep on what one of its LWTs may be about to do: it runs them meanwhile. Not a path for speed.
            (_, Some(worker)) => {
                worker.turn(false);
                std::thread::yield_now();
            }
            _ => futex::wait(&waiter.woken, 0),
        }
    }
}

/// Wakes the longest waiter of `key`. One load when nobody waits.
pub(crate) fn unpark_one(key: usize) {
    unpark(key, 1);
}

/// Wakes all waiters of `key`.
pub(crate) fn unpark_all(key: usize) {
    unpark(key, usize::MAX);
}

/// Wakes the `limit` longest waiters of `key`.
pub(crate) fn unpark(key: usize, limit: usize) {
    let bucket = bucket(key);
    fence(SeqCst);
    if bucket.num_waiters.load(Relaxed) == 0 {
        return;
    }
    let mut woken: *const Waiter = ptr::null();
    let mut woken_tail: *const Waiter = ptr::null();
    bucket.lock.lock();
    let mut previous: *const Waiter = ptr::null();
    let mut current = bucket.head.get();
    let mut num_woken = 0;
    while !current.is_null() && num_woken < limit {
        // SAFETY: waiters in the list are alive, and only the holder of the lock changes links.
        let waiter = unsafe { &*current };
        let next = waiter.next.get();
        if waiter.key == key {
            if previous.is_null() {
                bucket.head.set(next);
            } else {
                // SAFETY: as above.
                unsafe { (*previous).next.set(next) };
            }
            if bucket.tail.get() == current {
                bucket.tail.set(previous);
            }
            waiter.next.set(ptr::null());
            if woken_tail.is_null() {
                woken = current;
            } else {
                // SAFETY: as above; the woken list is ours until each is woken.
                unsafe { (*woken_tail).next.set(current) };
            }
            woken_tail = current;
            num_woken += 1;
        } else {
            previous = current;
        }
        current = next;
    }
    bucket.num_waiters.fetch_sub(num_woken as u32, Relaxed);
    bucket.lock.unlock();
    while !woken.is_null() {
        // SAFETY: dequeued by us and not yet woken, so its owner still waits. Everything is read before the store that lets it go.
        let (waiter, next, how) = unsafe { (&*woken, (*woken).next.get(), (*woken).how) };
        let word = waiter.woken.as_ptr();
        waiter.woken.store(1, Release);
        match how {
            How::Lwt(lwt) => lwt::wake(lwt),
            How::Thread => futex::wake_one(word),
            How::Polling(_) => {}
        }
        woken = next;
    }
}

/// In a child of fork: threads that held locks or waited are not among its threads.
pub(crate) fn become_child() {
    for bucket in &BUCKETS {
        bucket.head.set(ptr::null());
        bucket.tail.set(ptr::null());
        bucket.num_waiters.store(0, Relaxed);
        bucket.lock.unlock();
    }
}

/// A lock for a few instructions; async-signal-safe as long as no holder touches region memory.
#[derive(Debug)]
pub(crate) struct SpinLock(AtomicU32);

impl SpinLock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn lock(&self) {
        let mut num_spins = 0u32;
        while self.0.compare_exchange_weak(0, 1, Acquire, Relaxed).is_err() {
            num_spins += 1;
            if num_spins.is_multiple_of(128) {
                // The holder may have lost its CPU.
                // SAFETY: sched_yield has no preconditions.
                unsafe { libc::sched_yield() };
            } else {
                std::hint::spin_loop();
            }
        }
    }

    pub(crate) fn unlock(&self) {
        self.0.store(0, Release);
    }
}
