//! The state of every page of a region: one atomic word and one content hash a page, 16 bytes.
//!
//! ```text
//!              begin_swap_in            finish_swap_in
//! Untouched ──────────────► SwappingIn ───────────────► Resident ◄──────────────┐
//!     ▲                      ▲      │ fail_swap_in        │ select_victim       │ pin, reference,
//!     │ (all zero)           │      ▼                     ▼                     │ a write fault:
//!     │        begin_swap_in ├─── Failed               Evicting ────────────────┘ cancelled
//!     │                      │                            │ begin_removal
//!     │                  SwappedOut ◄──────────────── Removing
//!     └───────────────────────────────────────────────────┘ finish_removal
//! ```
//! Beside that, `begin_discard` takes a page that nobody owns or pins to Removing, from where it becomes Untouched: its content is given up.
//!
//! Failed is not for ever: the last read failed, which is what those are told who waited for it; the next that asks tries again. Only where memory
//! was damaged (`lose`) there is nothing to read again: such a page is Failed without STORED, and has its damaged frame until it is discarded.
//!
//! A page is mapped in Resident and Evicting, and only then may it be read. Whoever moves a page to SwappingIn or Evicting owns it
//! until it leaves that state (from Evicting anybody may take it back to Resident); everybody else waits for SwappingIn and Removing,
//! having set the WAITERS bit so that the owner knows to wake them. A page with pins stays Resident.
//!
//! References tell the CLOCK hand which pages are used again and again. All references within one tick of the eviction clock (a sixteenth of local memory
//! evicted) count once: a request touches a page several times in a row, and a page that is used by one request only should leave at the
//! hand's first pass, as in S3-FIFO.
//!
//! The word also says whether the backend holds the page's content as of the recorded hash (STORED): set at a removal, cleared before a write
//! to the slot starts. An Evicting page that is STORED and still has that hash is clean.
//!
//! In an instance with snapshots (see [`crate::snapshot`]) a page has two slots. ALTERNATE says that the second is the one all this is about, MOVED that it was not when
//! the snapshot began that is alive, or is being ended. Both change only under a claim of the page, by its evictor or by who discards it; and MOVED is cleared when the
//! snapshot has ended.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Where a page is in its life; see the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum PageState {
    /// Never had content: reads as zeroes, no slot is used.
    Untouched = 0,
    /// Its owner is bringing it in.
    SwappingIn = 1,
    /// Mapped.
    Resident = 2,
    /// Mapped, chosen as a victim: being hashed or written. Any access takes it back.
    Evicting = 3,
    /// Being unmapped: there is no way back.
    Removing = 4,
    /// In its slot of the backend.
    SwappedOut = 5,
    /// The last attempt to read its content back failed, or (not STORED) its memory was damaged.
    Failed = 6,
}

const STATE_MASK: u32 = 0b111;
const REF_ONE: u32 = 1 << 3;
const REF_MASK: u32 = 0b11 << 3;
const STORED: u32 = 1 << 5;
const WAITERS: u32 = 1 << 6;
const ALTERNATE: u32 = 1 << 7;
const MOVED: u32 = 1 << 8;
const TICK_SHIFT: u32 = 9;
const TICK_MASK: u32 = (Tick::NUM as u32 - 1) << TICK_SHIFT;
const PIN_ONE: u32 = 1 << 16;
const PIN_MASK: u32 = !0 << 16;

/// The time of the eviction clock, as far as a page remembers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tick(u8);

impl Tick {
    /// After so many the clock begins again.
    pub(crate) const NUM: usize = 128;

    /// The tick after so many others.
    pub(crate) const fn after(num_ticks: usize) -> Self {
        Self((num_ticks % Self::NUM) as u8)
    }

    /// For a clock that all threads read.
    pub(crate) const fn as_u8(self) -> u8 {
        self.0
    }
}

/// A snapshot of a page's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u32);

impl Word {
    pub(crate) fn state(self) -> PageState {
        match self.0 & STATE_MASK {
            0 => PageState::Untouched,
            1 => PageState::SwappingIn,
            2 => PageState::Resident,
            3 => PageState::Evicting,
            4 => PageState::Removing,
            5 => PageState::SwappedOut,
            _ => PageState::Failed,
        }
    }

    /// The page can be read without a fault (unless it is evicted meanwhile).
    pub(crate) fn is_mapped(self) -> bool {
        matches!(self.state(), PageState::Resident | PageState::Evicting)
    }

    pub(crate) fn num_pins(self) -> u32 {
        self.0 >> 16
    }

    /// The backend holds the content whose hash is recorded.
    pub(crate) fn is_stored(self) -> bool {
        self.0 & STORED != 0
    }

    /// Its second slot is the current one.
    pub(crate) fn is_alternate(self) -> bool {
        self.0 & ALTERNATE != 0
    }

    /// The other slot was the current one when the snapshot began.
    pub(crate) fn is_moved(self) -> bool {
        self.0 & MOVED != 0
    }

    /// Where it is to be written next: whether to its second slot, if those that a snapshot needs are spared.
    pub(crate) fn is_alternate_next(self, spares_slots: bool) -> bool {
        if spares_slots && !self.is_moved() { self.moved().is_alternate() } else { self.is_alternate() }
    }

    /// With the other slot as the current one, from a snapshot on that needs the one that is.
    fn moved(self) -> Self {
        Self((self.0 ^ ALTERNATE) | MOVED)
    }

    /// Some local memory is taken by it: mapped, or damaged.
    pub(crate) fn has_frame(self) -> bool {
        self.is_mapped() || (self.state() == PageState::Failed && !self.is_stored())
    }

    fn with_state(self, state: PageState) -> Self {
        Self(self.0 & !STATE_MASK | state as u32)
    }

    /// One more reference, unless there was one in this tick; saturating. A page survives as many passes of the CLOCK hand as it has references.
    fn referenced(self, tick: Tick) -> Self {
        if (self.0 & TICK_MASK) >> TICK_SHIFT == u32::from(tick.0) {
            return self;
        }
        let more = if self.0 & REF_MASK == REF_MASK { 0 } else { REF_ONE };
        self.at(tick, more)
    }

    /// With `more` added, and the tick of its last reference set.
    fn at(self, tick: Tick, more: u32) -> Self {
        Self(((self.0 & !TICK_MASK) | u32::from(tick.0) << TICK_SHIFT) + more)
    }

    /// Somebody waits for the page to leave its state.
    pub(crate) fn has_waiters(self) -> bool {
        self.0 & WAITERS != 0
    }
}

/// What became of a pin request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// The page was Resident.
    Resident,
    /// The page was Evicting; the eviction is cancelled. In a transparent region it may still be write-protected.
    Cancelled,
}

/// One page's entry.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct PageEntry {
    word: AtomicU32,
    /// The errno-like cause of state Failed.
    cause: AtomicU32,
    /// Hash of the content in the slot, valid while STORED. Written only by the page's owner.
    hash: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<PageEntry>() == 16);

impl PageEntry {
    #[cfg(any(test, loom))]
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0), cause: AtomicU32::new(0), hash: AtomicU64::new(0) }
    }

    pub(crate) fn load(&self) -> Word {
        Word(self.word.load(Acquire))
    }

    /// One step from exactly `from`; fails when anything changed in between.
    fn step(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange(from.0, to.0, AcqRel, Acquire).is_ok()
    }

    /// Repeats `next` on the current word until its step succeeds; `None` from `next` gives up with the word.
    fn update(&self, next: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        let mut word = self.load();
        loop {
            let Some(to) = next(word) else { return Err(word) };
            match self.word.compare_exchange_weak(word.0, to.0, AcqRel, Acquire) {
                Ok(_) => return Ok(word),
                Err(now) => word = Word(now),
            }
        }
    }

    /// If the page is mapped: notes the reference, cancelling an eviction, and returns `true`. The fast path of touch.
    pub(crate) fn reference(&self, tick: Tick) -> bool {
        let word = self.load();
        if word.state() == PageState::Resident {
            let to = word.referenced(tick);
            // A lost race loses a hint, no more.
            let _ = to == word || self.step(word, to);
            return true;
        }
        word.state() == PageState::Evicting
            && self.update(|word| word.is_mapped().then(|| word.with_state(PageState::Resident).referenced(tick))).is_ok()
    }

    /// If the page is mapped: adds a pin and a reference. Otherwise the current word.
    pub(crate) fn pin(&self, tick: Tick) -> Result<Pinned, Word> {
        let pinned = self.update(|word| word.is_mapped().then(|| Word(word.with_state(PageState::Resident).referenced(tick).0 + PIN_ONE)))?;
        debug_assert!(pinned.0 & PIN_MASK != PIN_MASK, "pin count overflow");
        Ok(if pinned.state() == PageState::Evicting { Pinned::Cancelled } else { Pinned::Resident })
    }

    /// Removes a pin and says whether it was the last; `None` if there is none.
    pub(crate) fn unpin(&self) -> Option<bool> {
        let before = self.update(|word| (word.num_pins() > 0).then(|| Word(word.0 - PIN_ONE))).ok()?;
        Some(before.num_pins() == 1)
    }

    /// Forgets all references: the hand will take the page at its next pass.
    pub(crate) fn forget_references(&self) {
        let _ = self.update(|word| (word.state() == PageState::Resident).then_some(Word(word.0 & !REF_MASK)));
    }

    /// Takes a page that is not resident from exactly `from`; the caller then owns its swap-in.
    pub(crate) fn begin_swap_in(&self, from: Word) -> bool {
        debug_assert!(matches!(from.state(), PageState::Untouched | PageState::SwappedOut | PageState::Failed) && !from.has_frame());
        self.step(from, from.with_state(PageState::SwappingIn))
    }

    /// Owner of the swap-in: the page is mapped now. `pins` are given to those it was brought in for. Returns whether to wake waiters.
    pub(crate) fn finish_swap_in(&self, pins: u32, tick: Tick) -> bool {
        self.leave(PageState::SwappingIn, |word| word.with_state(PageState::Resident).at(tick, pins * PIN_ONE))
    }

    /// Owner of the swap-in: the page could not be brought in. Returns whether to wake waiters.
    pub(crate) fn fail_swap_in(&self, cause: i32) -> bool {
        self.cause.store(cause as u32, Relaxed);
        self.leave(PageState::SwappingIn, |word| word.with_state(PageState::Failed))
    }

    /// Owner of the swap-in: gives it up; the page is as it was before. Returns whether to wake waiters.
    pub(crate) fn abort_swap_in(&self) -> bool {
        let before = |word: Word| if word.is_stored() { PageState::SwappedOut } else { PageState::Untouched };
        self.leave(PageState::SwappingIn, |word| word.with_state(before(word)))
    }

    /// The memory of a mapped page is damaged: its content is lost for good. `false` if the page is not mapped.
    /// No cause is stored: that of pages which have a frame and are Failed is always this one, and another's must not be overwritten.
    pub(crate) fn lose(&self) -> bool {
        self.update(|word| word.is_mapped().then(|| Word(word.with_state(PageState::Failed).0 & !(STORED | REF_MASK)))).is_ok()
    }

    /// Takes a page without pins that nobody owns from exactly `from`, to give its content up; the caller then owns its removal.
    pub(crate) fn begin_discard(&self, from: Word) -> bool {
        debug_assert!(!matches!(from.state(), PageState::SwappingIn | PageState::Evicting | PageState::Removing) && from.num_pins() == 0);
        self.step(from, Word(from.with_state(PageState::Removing).0 & !STORED))
    }

    /// Why the page is Failed, if it has no frame.
    pub(crate) fn cause(&self) -> i32 {
        self.cause.load(Relaxed) as i32
    }

    /// Owner: leaves `from`, where others can only set WAITERS, and says whether they did.
    fn leave(&self, from: PageState, next: impl Fn(Word) -> Word) -> bool {
        let before = self.update(|word| Some(Word(next(word).0 & !WAITERS))).unwrap_or_else(|word| word);
        debug_assert_eq!(before.state(), from);
        before.has_waiters()
    }

    /// Asks to be woken: `true` while there is something to wait for.
    pub(crate) fn set_waiters(&self) -> bool {
        self.update(|word| matches!(word.state(), PageState::SwappingIn | PageState::Removing).then_some(Word(word.0 | WAITERS))).is_ok()
    }

    /// The CLOCK hand passes: a Resident page without pins loses a reference or, if it has none, becomes Evicting. Returns its word if so.
    pub(crate) fn select_victim(&self) -> Option<Word> {
        let word = self.load();
        if word.state() != PageState::Resident || word.num_pins() > 0 {
            return None;
        }
        if word.0 & REF_MASK != 0 {
            self.step(word, Word(word.0 - REF_ONE));
            return None;
        }
        self.step(word, word.with_state(PageState::Evicting)).then_some(word)
    }

    /// Evictor, before the slot is overwritten: the backend's copy is no longer good.
    pub(crate) fn forget_stored(&self) {
        self.word.fetch_and(!STORED, AcqRel);
    }

    /// Who has claimed the page, while a snapshot is alive: if that needs the current slot, the other becomes the current one. `false` if it did not.
    pub(crate) fn spare_slot(&self) -> bool {
        self.update(|word| (!word.is_moved()).then(|| word.moved())).is_ok()
    }

    /// No snapshot needs the other slot any more.
    pub(crate) fn forget_moved(&self) {
        self.word.fetch_and(!MOVED, AcqRel);
    }

    /// Evictor: the content is safe (in the slot, with this hash) or all zero; from here the page goes. `false` if the eviction was cancelled.
    pub(crate) fn begin_removal(&self) -> bool {
        self.update(|word| (word.state() == PageState::Evicting).then(|| word.with_state(PageState::Removing))).is_ok()
    }

    /// Evictor: gives an unfinished eviction up.
    pub(crate) fn cancel_eviction(&self) {
        let _ = self.update(|word| (word.state() == PageState::Evicting).then(|| word.with_state(PageState::Resident)));
    }

    /// Evictor: the page is unmapped; its content has this hash in the slot, or was all zero (`None`). Returns whether to wake waiters.
    pub(crate) fn finish_removal(&self, stored_hash: Option<u64>) -> bool {
        let to = match stored_hash {
            Some(hash) => {
                self.hash.store(hash, Release);
                PageState::SwappedOut as u32 | STORED
            }
            None => PageState::Untouched as u32,
        };
        self.leave(PageState::Removing, |word| Word(word.0 & (ALTERNATE | MOVED) | to))
    }

    /// Hash of the content in the slot; meaningful while STORED.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.load(Acquire)
    }
}

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
