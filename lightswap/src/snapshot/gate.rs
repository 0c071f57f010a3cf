//! What keeps changes of pages out while a process forks: those who change them pass, many at a time, and the one who forks closes the gate and waits until they are through.
//!
//! Nobody waits while he is inside, so closing takes microseconds; and those who come meanwhile wait as long as the kernel takes to copy the address space. All waits are
//! bounded: if the one who forks needs something that a thread has which waits here, that thread breaks the gate in the end.

use crate::sys::{self, futex};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

/// The rest is the number of those inside.
const CLOSED: u32 = 1 << 31;
/// Somebody has waited too long, and opened it.
const BROKEN: u32 = 1 << 30;
const NUM_INSIDE: u32 = BROKEN - 1;

/// How long anybody waits to pass.
const MAX_CLOSED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Gate(AtomicU32);

/// Somebody is inside.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

impl Gate {
    pub(super) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Passes, when it is open. Async-signal-safe.
    pub(super) fn enter(&self) -> Inside<'_> {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & CLOSED != 0 {
                self.wait_until_open();
                word = self.0.load(Relaxed);
                continue;
            }
            match self.0.compare_exchange_weak(word, word + 1, Acquire, Relaxed) {
                Ok(_) => return Inside(self),
                Err(now) => word = now,
            }
        }
    }

    fn wait_until_open(&self) {
        let end_ns = sys::now_ns() + MAX_CLOSED.as_nanos() as u64;
        loop {
            let word = self.0.load(Relaxed);
            if word & CLOSED == 0 {
                return;
            }
            let now_ns = sys::now_ns();
            if now_ns >= end_ns {
                let broken = |word: u32| (word & CLOSED != 0).then_some(word & !CLOSED | BROKEN);
                if self.0.fetch_update(AcqRel, Relaxed, broken).is_ok() {
                    futex::wake_all(self.0.as_ptr());
                }
                return;
            }
            futex::wait_for(&self.0, word, Duration::from_nanos(end_ns - now_ns));
        }
    }

    /// Lets nobody in any more, and waits for those inside; `false`, with the gate open, if they take longer than `limit`. For one caller at a time.
    pub(super) fn close(&self, limit: Duration) -> bool {
        let end_ns = sys::now_ns() + limit.as_nanos() as u64;
        let closed = |word: u32| Some(word & !BROKEN | CLOSED);
        let _ = self.0.fetch_update(AcqRel, Relaxed, closed);
        loop {
            let word = self.0.load(Acquire);
            if word & CLOSED == 0 {
                return false;
            }
            if word & NUM_INSIDE == 0 {
                return true;
            }
            let now_ns = sys::now_ns();
            if now_ns >= end_ns {
                self.open();
                return false;
            }
            futex::wait_for(&self.0, word, Duration::from_nanos(end_ns - now_ns));
        }
    }

    /// Lets everybody in again; `false` if somebody was in before.
    pub(super) fn open(&self) -> bool {
        let was = self.0.fetch_and(!(CLOSED | BROKEN), Release);
        futex::wake_all(self.0.as_ptr());
        was & BROKEN == 0
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let was = self.0.0.fetch_sub(1, Release);
        if was & CLOSED != 0 && was & NUM_INSIDE == 1 {
            futex::wake_all(self.0.0.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let (gate, num_inside, rounds) = (Gate::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while rounds.load(Relaxed) < 200 {
                        let inside = gate.enter();
                        num_inside.fetch_add(1, Relaxed);
                        std::hint::spin_loop();
                        num_inside.fetch_sub(1, Relaxed);
                        drop(inside);
                    }
                });
            }
            for _ in 0..200 {
                assert!(gate.close(Duration::from_secs(10)));
                assert_eq!(num_inside.load(Relaxed), 0);
                std::thread::yield_now();
                assert_eq!(num_inside.load(Relaxed), 0);
                assert!(gate.open());
                rounds.fetch_add(1, Relaxed);
            }
        });
    }

    #[test]
    fn who_stays_inside_keeps_it_open() {
        let gate = Gate::new();
        let inside = gate.enter();
        assert!(!gate.close(Duration::from_millis(5)));
        drop((gate.enter(), inside));
        assert!(gate.close(Duration::from_millis(5)) && gate.open());
    }
}
