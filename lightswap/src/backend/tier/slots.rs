//! What is known of each slot, in a byte: where its content is, and whether it is on its way.
//!
//! The owner of a slot's page and the mover share the byte. Whoever reads or discards the fast member's copy of a slot whose content is there has it locked
//! meanwhile, a few microseconds; what is nowhere is the owner's alone, so that nothing is locked while it is being written.

use crate::backend::table::Table;
use crate::error::Result;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU64};

/// What there is to know of a slot. Zero: it has no content, and nobody has anything to do with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State(u8);

/// Which member has a slot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    Fast,
    Slow,
}

impl State {
    const FAST: u8 = 1;
    const SLOW: u8 = 2;
    const PLACE: u8 = Self::FAST | Self::SLOW;
    /// It was written or read since the mover came by.
    const REFERENCED: u8 = 4;
    /// What the mover is writing to the slow member is the slot's content.
    const MOVING: u8 = 8;
    /// The mover's write to the slow member has not ended, whatever became of the slot since.
    const MOVER_WRITES: u8 = 16;
    /// The slow member has an older content, which its owner is going to discard.
    const STALE: u8 = 32;
    const LOCKED: u8 = 64;

    /// In the fast member, not referenced lately, and nobody has anything to do with it.
    pub(super) const COLD: Self = Self(Self::FAST);

    pub(super) fn place(self) -> Place {
        match self.0 & Self::PLACE {
            0 => Place::Nowhere,
            Self::FAST => Place::Fast,
            _ => Place::Slow,
        }
    }

    pub(super) fn is_written_by_mover(self) -> bool {
        self.has(Self::MOVER_WRITES)
    }

    pub(super) fn is_stale(self) -> bool {
        self.has(Self::STALE)
    }

    pub(super) fn is_referenced(self) -> bool {
        self.has(Self::REFERENCED)
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// The owner has given the content up, or is about to write another one.
    pub(super) fn without_content(self) -> Self {
        let stale = if self.place() == Place::Slow { Self::STALE } else { 0 };
        Self(self.0 & (Self::MOVER_WRITES | Self::STALE | Self::LOCKED) | stale)
    }

    /// The owner has written the content there.
    pub(super) fn with_content_in(self, place: Place) -> Self {
        debug_assert!(self.place() == Place::Nowhere);
        match place {
            Place::Fast => Self(self.0 | Self::FAST | Self::REFERENCED),
            // What was older there has been overwritten.
            Place::Slow => Self((self.0 | Self::SLOW) & !Self::STALE),
            Place::Nowhere => Self(self.0 & !Self::STALE),
        }
    }

    pub(super) fn referenced(self) -> Self {
        Self(self.0 | Self::REFERENCED)
    }

    pub(super) fn unreferenced(self) -> Self {
        Self(self.0 & !Self::REFERENCED)
    }

    pub(super) fn without_stale(self) -> Self {
        Self(self.0 & !Self::STALE)
    }

    /// The mover writes what it has just copied.
    pub(super) fn moving(self) -> Self {
        debug_assert!(self.place() == Place::Fast);
        Self(self.0 | Self::MOVING | Self::MOVER_WRITES)
    }

    /// The mover's write has ended: `true` if, as far as the slot goes, its content may be in the slow member from now on. A slot that was used meanwhile stays
    /// where it is.
    pub(super) fn moved(self) -> (Self, bool) {
        let rest = self.0 & !(Self::MOVING | Self::MOVER_WRITES);
        (Self(rest), self.has(Self::MOVING) && !self.is_referenced())
    }

    /// Its content has gone from the fast member to the slow one.
    pub(super) fn in_slow(self) -> Self {
        Self(self.0 & !(Self::FAST | Self::REFERENCED) | Self::SLOW)
    }
}

/// Of all slots. Those that were never used take no memory.
#[derive(Debug)]
pub(super) struct Slots {
    states: Table<AtomicU8>,
    num_fast: AtomicU64,
    num_slow: AtomicU64,
}

impl Slots {
    pub(super) fn new(num_slots: usize) -> Result<Self> {
        Ok(Self { states: Table::new(num_slots)?, num_fast: AtomicU64::new(0), num_slow: AtomicU64::new(0) })
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    pub(super) fn load(&self, slot: usize) -> State {
        State(self.states[slot].load(Acquire) & !State::LOCKED)
    }

    /// Async-signal-safe: no holder touches region memory.
    pub(super) fn lock(&self, slot: usize) -> Locked<'_> {
        let byte = &self.states[slot];
        let mut num_spins = 0u32;
        loop {
            let state = byte.load(Relaxed) & !State::LOCKED;
            if byte.compare_exchange_weak(state, state | State::LOCKED, Acquire, Relaxed).is_ok() {
                return Locked { byte, state: State(state) };
            }
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

    /// Locks the slot if it is not, and in this state.
    pub(super) fn try_lock(&self, slot: usize, state: State) -> Option<Locked<'_>> {
        let byte = &self.states[slot];
        byte.compare_exchange(state.0, state.0 | State::LOCKED, Acquire, Relaxed).ok().map(|_| Locked { byte, state })
    }

    /// Changes a slot; what it was.
    pub(super) fn update(&self, slot: usize, change: impl FnOnce(State) -> State) -> State {
        let mut locked = self.lock(slot);
        let old = locked.state;
        locked.state = change(old);
        old
    }

    /// The mover comes by; `true` if the slot was referenced, and is no more. A hint: it does not wait for those who use the slot.
    pub(super) fn pass(&self, slot: usize) -> bool {
        let state = self.load(slot);
        state.is_referenced() && self.states[slot].compare_exchange(state.0, state.unreferenced().0, Relaxed, Relaxed).is_ok()
    }

    /// So many more slots have their content in each member.
    pub(super) fn count(&self, Change { fast, slow }: Change) {
        for (number, change) in [(&self.num_fast, fast), (&self.num_slow, slow)] {
            // All workers share these.
            if change != 0 {
                number.fetch_add(change as u64, Relaxed);
            }
        }
    }

    pub(super) fn num_fast(&self) -> u64 {
        self.num_fast.load(Relaxed)
    }

    pub(super) fn num_slow(&self) -> u64 {
        self.num_slow.load(Relaxed)
    }
}

/// A slot that nobody else changes before this is dropped.
pub(super) struct Locked<'a> {
    byte: &'a AtomicU8,
    pub(super) state: State,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.byte.store(self.state.0 & !State::LOCKED, Release);
    }
}

/// How many more slots have their content in each member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    fast: isize,
    slow: isize,
}

impl Change {
    pub(super) fn gone_from(&mut self, place: Place) {
        self.add(place, -1);
    }

    pub(super) fn come_to(&mut self, place: Place) {
        self.add(place, 1);
    }

    fn add(&mut self, place: Place, number: isize) {
        match place {
            Place::Nowhere => {}
            Place::Fast => self.fast += number,
            Place::Slow => self.slow += number,
        }
    }
}
