//! `tier(fast,slow)`: pages go to the fast backend, compressed memory usually, as long as it has room; what it has no room for, and what has not been used for
//! long, is in the slow one.
//!
//! Slot `i` is slot `i` of both members, and its content in one of them; [`slots`] says in which. The size of the fast one is address space
//! if it is compressed memory, whose limit is what counts.
//!
//! - **Writes** ([`queue`]) go to the fast member, and page by page to the slow one where that failed: a pool that is full, usually. The pages of a run that are
//!   stored stay where they are. The content of a slot is given up when a write of it begins (the pager needs it no more), so nothing has to be kept in case the
//!   write fails, and a slot is nowhere while it is being written. What the other member still has of it is discarded then.
//! - **Reads** go where the content is.
//! - **Cold pages** ([`mover`]) go from the fast to the slow member when the fast one is nearly full ([`Backend::fill`]) or had no room for a page. The pager
//!   thread goes round the slots like the hand of a clock and takes those that were not used since it came by last.
//!
//! The mover copies a slot and writes the copy while the owner may do with the slot what it likes. It is the owner's content that counts: when the mover's write
//! has ended and the slot was rewritten, discarded or read meanwhile, it forgets what it wrote. Only one order would be wrong, the owner's newer content
//! written to the slow member before the mover's older one: such a write of the owner waits until the mover's has ended.

mod mover;
mod queue;
mod slots;
#[cfg(test)]
mod tests;

use super::{Backend, BackendQueue, Now, QueueBuilder};
use crate::error::Result;
use crate::failure::RawCause;
use crate::size::{PAGE_SIZE, bytes_of, format_size};
use crate::slot_runs::SlotRuns;
use crate::worker::WorkerShared;
use queue::TierQueue;
use slots::{Change, Place, Slots, State};
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Of the fast member's limit: from there on pages are moved,
const HIGH_PERCENT: u64 = 90;
/// until no more than so much is used,
const LOW_PERCENT: u64 = 85;
/// and at least this part of what it holds has gone: where content is spread badly, it has no room for a page long before its limit.
const LEAST_PART: u64 = 16;

#[derive(Debug)]
pub(super) struct TierBackend {
    fast: Arc<dyn Backend>,
    slow: Arc<dyn Backend>,
    slots: Slots,
    /// Pages move out of the fast member: it has a limit, and its slots are read without I/O.
    can_move: bool,
    /// There is too much in the fast member, and the mover knows.
    is_pressed: AtomicBool,
    pager_thread: OnceLock<&'static WorkerShared>,
    /// Workers whose writes may have to wait for the mover; a worker that has gone may get a nudge too many.
    workers: Mutex<Vec<&'static WorkerShared>>,
    num_waiting: AtomicUsize,
    num_demoted: AtomicU64,
    num_overflown: AtomicU64,
    num_fast_reads: AtomicU64,
    num_slow_reads: AtomicU64,
}

impl TierBackend {
    /// Of two members.
    pub(super) fn new(members: Vec<Arc<dyn Backend>>, text: &str) -> Result<Self> {
        let [fast, slow] = <[_; 2]>::try_from(members).expect("the parser knows how many there are");
        let num_slots = fast.num_slots().min(slow.num_slots());
        if fast.num_slots() != slow.num_slots() {
            let used = format_size(bytes_of(num_slots) as u64);
            tracing::warn!(backend = text, used, "members of different sizes: so much of each is used");
        }
        let [num_demoted, num_overflown, num_fast_reads, num_slow_reads] = Default::default();
        Ok(Self {
            can_move: fast.fill().is_some(),
            fast,
            slow,
            slots: Slots::new(num_slots)?,
            is_pressed: AtomicBool::new(false),
            pager_thread: OnceLock::new(),
            workers: Mutex::default(),
            num_waiting: AtomicUsize::new(0),
            num_demoted,
            num_overflown,
            num_fast_reads,
            num_slow_reads,
        })
    }

    /// Reads a slot whose content is in the fast member; `None` if it is there no more.
    fn read_fast(&self, slot: usize, buffer: *mut u8) -> Option<Now> {
        let count = |now| {
            if !matches!(now, Now::NeedsIo) {
                self.num_fast_reads.fetch_add(1, Relaxed);
            }
            Some(now)
        };
        if !self.can_move {
            return count(self.fast.read_now(slot, buffer));
        }
        let mut locked = self.slots.lock(slot);
        if locked.state.place() != Place::Fast {
            return None;
        }
        locked.state = locked.state.referenced();
        let mut now = self.fast.read_now(slot, buffer);
        if let Now::Content(content) = &mut now
            && !std::ptr::eq(*content, buffer)
        {
            // It may go when the lock does.
            // SAFETY: the content is a page that nobody changes while its slot is locked, the buffer another one, which is the caller's.
            unsafe { std::ptr::copy_nonoverlapping(*content, buffer, PAGE_SIZE) };
            *content = buffer;
        }
        drop(locked);
        count(now)
    }

    /// After a write: has the mover make room if that is called for. Async-signal-safe.
    fn look_for_pressure(&self, has_overflown: bool) {
        let is_high = || self.fast.fill().is_some_and(|(used, limit)| used >= limit / 100 * HIGH_PERCENT);
        if self.can_move && (has_overflown || is_high()) && !self.is_pressed.load(Relaxed) && !self.is_pressed.swap(true, Release) {
            self.pager_thread.get().inspect(|pager_thread| pager_thread.poke());
        }
    }

    fn is_pressed(&self) -> bool {
        self.is_pressed.load(Acquire)
    }

    /// What is to be left in the fast member when so much is in it.
    fn goal(used: u64, limit: u64) -> u64 {
        (limit / 100 * LOW_PERCENT).min(used - used.div_ceil(LEAST_PART))
    }

    /// Writes of the mover have ended.
    fn wake_waiting(&self) {
        if self.num_waiting.load(Relaxed) > 0 {
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|worker| worker.poke());
        }
    }
}

impl Backend for TierBackend {
    fn num_slots(&self) -> usize {
        self.slots.len()
    }

    fn members(&self) -> Vec<&dyn Backend> {
        vec![&*self.fast, &*self.slow]
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if !workers.iter().any(|worker| std::ptr::eq(*worker, builder.shared)) {
            workers.push(builder.shared);
        }
        drop(workers);
        if builder.is_pager_thread {
            let _ = self.pager_thread.set(builder.shared);
        }
        let node = Rc::new(TierQueue::new(self, builder)?);
        Ok(builder.add(node.number(), node))
    }

    fn is_readable_now(&self, slot: usize) -> bool {
        match self.slots.load(slot).place() {
            Place::Slow => self.slow.is_readable_now(slot),
            Place::Fast | Place::Nowhere => self.fast.is_readable_now(slot),
        }
    }

    fn read_now(&self, slot: usize, buffer: *mut u8) -> Now {
        if self.slots.load(slot).place() == Place::Fast
            && let Some(now) = self.read_fast(slot, buffer)
        {
            return now;
        }
        match self.slots.load(slot).place() {
            // Where nobody but its owner puts it, and nobody takes it away.
            Place::Slow => {
                let now = self.slow.read_now(slot, buffer);
                if !matches!(now, Now::NeedsIo) {
                    self.num_slow_reads.fetch_add(1, Relaxed);
                }
                now
            }
            Place::Fast | Place::Nowhere => Now::Failed(RawCause::WRONG_HASH),
        }
    }

    /// In the slow member: that is where everything finds room that finds none in the fast one.
    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        self.slow.reserve(slot, num_slots)
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        let mut change = Change::default();
        let mut in_fast = SlotRuns::new(|first, len| self.fast.discard(first, len));
        let mut in_slow = SlotRuns::new(|first, len| {
            self.slow.discard(first, len);
            (first..first + len).for_each(|slot| _ = self.slots.update(slot, State::without_stale));
        });
        for slot in slot..(slot + num_slots).min(self.slots.len()) {
            if self.slots.load(slot) == State::default() {
                continue;
            }
            let old = self.slots.update(slot, State::without_content);
            change.gone_from(old.place());
            if old.place() == Place::Fast {
                in_fast.add(slot);
            }
            if old.place() == Place::Slow || old.is_stale() {
                in_slow.add(slot);
            }
        }
        in_fast.end();
        in_slow.end();
        self.slots.count(change);
    }

    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("tier_fast_pages", self.slots.num_fast()),
            ("tier_slow_pages", self.slots.num_slow()),
            ("tier_demoted_pages", self.num_demoted.load(Relaxed)),
            ("tier_overflow_pages", self.num_overflown.load(Relaxed)),
            ("tier_fast_reads", self.num_fast_reads.load(Relaxed)),
            ("tier_slow_reads", self.num_slow_reads.load(Relaxed)),
        ]
    }
}
