//! The part of a worker that other threads use: what they leave for it, and its statistics.

use crate::error::Result;
use crate::io_queue::event_fd;
use crate::lwt::Lwt;
use crate::stats::Stats;
use crate::swap_in::Request;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Never freed, but used again by later workers: whoever has just woken the last LWT of a worker may still be about to nudge it, and a nudge too many does
/// no harm.
#[derive(Debug)]
pub(crate) struct WorkerShared {
    pub(super) inbox: AtomicPtr<Lwt>,
    pub(super) requests: AtomicPtr<Request>,
    /// Another thread left something with a node of the worker's backend.
    pub(super) is_poked: AtomicBool,
    /// The worker sleeps, or is about to, and wants a write to `wake_fd` when something comes in.
    pub(super) is_sleeping: AtomicBool,
    pub(crate) must_stop: AtomicBool,
    /// Of its io_uring, while it has one; otherwise -1.
    pub(super) ring_fd: AtomicI32,
    /// A thread is this worker now.
    pub(super) is_entered: AtomicBool,
    pub(crate) wake_fd: OwnedFd,
    /// Of all workers of its instance that it was.
    pub(crate) stats: Stats,
}

/// Those that no instance uses.
static UNUSED: Mutex<Vec<&'static WorkerShared>> = Mutex::new(Vec::new());

/// Locks them.
pub(crate) fn unused() -> MutexGuard<'static, Vec<&'static WorkerShared>> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerShared {
    /// One that is not in use, from those of the instance, of earlier instances, or new.
    pub(crate) fn take(of_instance: &mut Vec<&'static Self>) -> Result<&'static Self> {
        if let Some(shared) = of_instance.iter().find(|shared| !shared.is_entered.load(Acquire)) {
            return Ok(shared);
        }
        let shared = match unused().pop() {
            Some(shared) => {
                shared.stats.reset();
                shared
            }
            None => Box::leak(Box::new(Self {
                inbox: AtomicPtr::new(ptr::null_mut()),
                requests: AtomicPtr::new(ptr::null_mut()),
                is_poked: AtomicBool::new(false),
                is_sleeping: AtomicBool::new(false),
                must_stop: AtomicBool::new(false),
                ring_fd: AtomicI32::new(-1),
                is_entered: AtomicBool::new(false),
                wake_fd: event_fd()?,
                stats: Stats::default(),
            })),
        };
        of_instance.push(shared);
        Ok(shared)
    }

    /// An instance ends: its workers, none of them entered any more, are free for others.
    pub(crate) fn give_back(of_instance: &mut Vec<&'static Self>) {
        of_instance.iter().for_each(|shared| shared.must_stop.store(false, Relaxed));
        unused().append(of_instance);
    }

    /// In a child of fork: the ring is the parent's. The rest is memory, of which the child has its own copy, and an eventfd that wakes the parent once too often.
    pub(crate) fn become_child(&self) {
        let ring_fd = self.ring_fd.swap(-1, Relaxed);
        if ring_fd >= 0 {
            // SAFETY: this process's descriptor, and its worker's thread is not among its threads.
            unsafe { libc::close(ring_fd) };
        }
    }

    /// Makes a suspended LWT of this worker ready. Async-signal-safe, from any thread.
    pub(crate) fn push_inbox(&self, lwt: *mut Lwt) {
        // SAFETY: a suspended LWT is alive, and whoever wakes it owns its link.
        push_to_stack(&self.inbox, lwt, unsafe { &(*lwt).next_inbox });
        self.nudge();
    }

    /// Hands a request to the pager thread. Async-signal-safe, from any thread.
    pub(crate) fn push_request(&self, request: &Request) {
        push_to_stack(&self.requests, ptr::from_ref(request).cast_mut(), &request.next);
        self.nudge();
    }

    /// Makes the worker flush its backend's nodes soon. Async-signal-safe, from any thread.
    pub(crate) fn poke(&self) {
        self.is_poked.store(true, Release);
        self.nudge();
    }

    /// Makes the worker take a turn if it sleeps.
    pub(crate) fn nudge(&self) {
        fence(SeqCst);
        if self.is_sleeping.load(Relaxed) && self.is_sleeping.swap(false, SeqCst) {
            // SAFETY: writes 8 bytes of a valid u64 to our eventfd; a full counter means that a wake-up is pending anyway.
            unsafe { libc::write(self.wake_fd.as_raw_fd(), (&raw const ONE).cast(), 8) };
        }
    }

    pub(super) fn has_incoming(&self) -> bool {
        let is_empty = self.inbox.load(Relaxed).is_null() && self.requests.load(Relaxed).is_null();
        !is_empty || self.is_poked.load(Relaxed) || self.must_stop.load(Relaxed)
    }
}

static ONE: u64 = 1;

/// Pushes onto a lock-free stack that its consumer takes whole.
pub(crate) fn push_to_stack<T>(head: &AtomicPtr<T>, node: *mut T, next: &AtomicPtr<T>) {
    let mut old = head.load(Relaxed);
    loop {
        next.store(old, Relaxed);
        match head.compare_exchange_weak(old, node, Release, Relaxed) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
}
