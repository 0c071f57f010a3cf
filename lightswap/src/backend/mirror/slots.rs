//! What a mirror knows of each slot: which members' copies are stale, and who is at work on it.

use crate::backend::table::Table;
use crate::error::Result;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Members that a mirror can have.
pub(super) const MAX_MEMBERS: usize = 4;

/// A set of members, a bit each.
pub(super) type Members = u8;

/// The members in a set.
pub(super) fn each(members: Members) -> impl Iterator<Item = usize> {
    (0..MAX_MEMBERS).filter(move |member| members & (1 << member) != 0)
}

/// The state of a slot. All zero before it is first written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Word(u32);

impl Word {
    const STALE: u32 = (1 << MAX_MEMBERS) - 1;
    /// It was written and not discarded since.
    const HAS_CONTENT: u32 = 1 << 4;
    /// Its page's owner is writing it.
    const WRITING: u32 = 1 << 5;
    /// The copier is bringing a stale copy up to date. Until it has finished, no other stale copy becomes good: what it writes may arrive late.
    const COPYING: u32 = 1 << 6;
    /// Changes with every write and discard; above the rest.
    const VERSION: u32 = 1 << 7;

    /// Members that do not have the content.
    pub(super) fn stale(self) -> Members {
        (self.0 & Self::STALE) as Members
    }

    /// Those of them that are to get it.
    fn wanting(self) -> Members {
        if self.has(Self::HAS_CONTENT) { self.stale() } else { 0 }
    }

    fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    fn is_same_version(self, other: Self) -> bool {
        self.0 / Self::VERSION == other.0 / Self::VERSION
    }

    fn with(self, bits: u32) -> Self {
        Self(self.0 | bits)
    }

    fn without(self, bits: u32) -> Self {
        Self(self.0 & !bits)
    }

    fn next_version(self) -> Self {
        Self(self.0.wrapping_add(Self::VERSION))
    }
}

/// Of all slots. Those that were never written take no memory.
///
/// A slot is written and discarded by its page's owner only, copied by the copier only, and may be found stale by anybody who has read it, even late.
#[derive(Debug)]
pub(super) struct Slots {
    words: Table<AtomicU32>,
    all: Members,
    /// Stale copies of slots with content, by member.
    num_stale: [AtomicU64; MAX_MEMBERS],
}

impl Slots {
    pub(super) fn new(num_slots: usize, num_members: usize) -> Result<Self> {
        debug_assert!((1..=MAX_MEMBERS).contains(&num_members));
        Ok(Self { words: Table::new(num_slots)?, all: (1 << num_members) - 1, num_stale: Default::default() })
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// All members.
    pub(super) fn all(&self) -> Members {
        self.all
    }

    pub(super) fn get(&self, slot: usize) -> Word {
        Word(self.words[slot].load(Acquire))
    }

    /// Changes the word of a slot to what `change` makes of it, and returns what it was; `None` if `change` does not want to.
    fn update(&self, slot: usize, mut change: impl FnMut(Word) -> Option<Word>) -> Option<Word> {
        let mut old = self.get(slot);
        let new = loop {
            let new = change(old)?;
            match self.words[slot].compare_exchange_weak(old.0, new.0, AcqRel, Acquire) {
                Ok(_) => break new,
                Err(now) => old = Word(now),
            }
        };
        for member in each(old.wanting() ^ new.wanting()) {
            // Wraps around while two who change a slot one after the other count in the other order; readers bear it.
            let change = if new.wanting() & (1 << member) != 0 { 1 } else { u64::MAX };
            self.num_stale[member].fetch_add(change, Relaxed);
        }
        Some(old)
    }

    /// Pages whose copy on this member is stale, about.
    pub(super) fn num_stale(&self, member: usize) -> u64 {
        match self.num_stale[member].load(Relaxed) {
            wrapped if wrapped > self.words.len() as u64 => 0,
            num_stale => num_stale,
        }
    }

    /// Its owner begins to write a slot. Returns the members that must not be asked to: what the copier writes there may arrive later.
    pub(super) fn begin_write(&self, slot: usize) -> Members {
        let old = self.update(slot, |word| Some(word.next_version().with(Word::WRITING))).expect("always changed");
        if old.has(Word::COPYING) { old.stale() } else { 0 }
    }

    /// Its owner has written a slot; `written` says on which members. That is asked when the word has been loaded: see [`Self::lose_content`].
    pub(super) fn end_write(&self, slot: usize, mut written: impl FnMut() -> Members) {
        self.update(slot, |word| {
            debug_assert!(word.has(Word::WRITING));
            let written = written();
            let word = word.without(Word::WRITING | Word::STALE).with(u32::from(self.all & !written));
            Some(if written == 0 { word.without(Word::HAS_CONTENT) } else { word.with(Word::HAS_CONTENT) })
        });
    }

    /// A member could not give the content that the slot had at the time of `seen`, and another one could. Whether that was news.
    pub(super) fn mark_stale(&self, slot: usize, seen: Word, member: usize) -> bool {
        let stale = 1 << member;
        let marked = self.update(slot, |word| {
            // Not the last copy: it may be good yet, or nothing is.
            let is_last = u32::from(word.stale()) | stale == u32::from(self.all);
            let is_over = !word.is_same_version(seen) || word.has(Word::WRITING) || !word.has(Word::HAS_CONTENT);
            (!is_over && !is_last && !word.has(stale)).then(|| word.with(stale))
        });
        marked.is_some()
    }

    /// A member has lost its content: what it had is stale. Whether it was the last copy.
    ///
    /// A write under way must not take the member for written that was so before: who ends it loads the word, then asks whether the member lost its content
    /// meanwhile. Here that was announced first, and the word is changed, so one of both sees the other.
    pub(super) fn lose_content(&self, slot: usize, member: usize) -> bool {
        let mut was_last = false;
        self.update(slot, |word| {
            let lost = word.with(1 << member);
            was_last = word.has(Word::HAS_CONTENT) && lost.stale() == self.all;
            let is_used = word.has(Word::HAS_CONTENT) || word.has(Word::WRITING);
            is_used.then(|| if lost.stale() == self.all { lost.without(Word::HAS_CONTENT) } else { lost })
        });
        was_last
    }

    /// The copier begins with a slot, if one of its copies is stale on one of `targets` and good on another member; its word.
    pub(super) fn begin_copy(&self, slot: usize, targets: Members) -> Option<Word> {
        // Without writing to slots that need nothing.
        let is_wanted =
            |word: Word| word.wanting() & targets != 0 && word.stale() != self.all && !word.has(Word::WRITING) && !word.has(Word::COPYING);
        is_wanted(self.get(slot)).then_some(())?;
        self.update(slot, |word| is_wanted(word).then(|| word.with(Word::COPYING)))
    }

    /// The copier has finished with a slot that was as `seen` when it began, and brought `member` up to date or not. Whether that is of use.
    pub(super) fn end_copy(&self, slot: usize, seen: Word, member: Option<usize>) -> bool {
        let mut is_good = false;
        self.update(slot, |word| {
            debug_assert!(word.has(Word::COPYING));
            is_good = member.is_some() && word.is_same_version(seen) && !word.has(Word::WRITING);
            let word = word.without(Word::COPYING);
            // It may have been the last copy that was lost meanwhile.
            Some(if is_good { word.without(1 << member.expect("looked at")).with(Word::HAS_CONTENT) } else { word })
        });
        is_good
    }

    /// The content of a slot is not needed any more.
    pub(super) fn discard(&self, slot: usize) {
        if self.get(slot) == Word::default() {
            return;
        }
        self.update(slot, |word| {
            let word = word.next_version().without(Word::HAS_CONTENT);
            // What the copier writes may still arrive: see `begin_write`.
            Some(if word.has(Word::COPYING) { word } else { word.without(Word::STALE) })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: usize = 0;
    const B: usize = 1;

    fn written(by: Members) -> Slots {
        let slots = Slots::new(3, 2).unwrap();
        assert_eq!(slots.begin_write(1), 0);
        slots.end_write(1, || by);
        slots
    }

    #[test]
    fn members_that_were_not_written_are_stale_until_copied() {
        let slots = written(0b01);
        assert_eq!((slots.get(1).stale(), slots.num_stale(A), slots.num_stale(B)), (0b10, 0, 1));
        assert_eq!(slots.begin_copy(1, 0b01), None);
        let word = slots.begin_copy(1, 0b10).unwrap();
        assert_eq!(slots.begin_copy(1, 0b10), None);
        assert!(!slots.end_copy(1, word, None));
        let word = slots.begin_copy(1, 0b11).unwrap();
        assert!(slots.end_copy(1, word, Some(B)));
        assert_eq!((slots.get(1).stale(), slots.num_stale(B)), (0, 0));
        assert_eq!((slots.get(0), slots.get(2)), (Word::default(), Word::default()));
    }

    /// What the copier writes may arrive after what the owner writes.
    #[test]
    fn a_copy_that_a_write_overtakes_stays_stale() {
        let slots = written(0b01);
        let word = slots.begin_copy(1, 0b10).unwrap();
        assert_eq!(slots.begin_write(1), 0b10);
        slots.end_write(1, || 0b01);
        assert!(!slots.end_copy(1, word, Some(B)));
        assert_eq!((slots.get(1).stale(), slots.num_stale(B)), (0b10, 1));
        // The same with a discard in between.
        let word = slots.begin_copy(1, 0b10).unwrap();
        slots.discard(1);
        assert_eq!((slots.num_stale(B), slots.begin_write(1)), (0, 0b10));
        assert!(!slots.end_copy(1, word, Some(B)));
        slots.end_write(1, || 0b01);
        assert_eq!(slots.get(1).stale(), 0b10);
    }

    #[test]
    fn nothing_is_copied_while_it_is_written() {
        let slots = written(0b01);
        slots.begin_write(1);
        assert_eq!(slots.begin_copy(1, 0b10), None);
        slots.end_write(1, || 0b11);
        assert_eq!((slots.begin_copy(1, 0b10), slots.num_stale(B)), (None, 0));
    }

    #[test]
    fn the_last_copy_does_not_become_stale_by_reading() {
        let slots = written(0b11);
        let word = slots.get(1);
        assert!(slots.mark_stale(1, word, A) && !slots.mark_stale(1, word, A) && !slots.mark_stale(1, word, B));
        slots.begin_write(1);
        assert!(!slots.mark_stale(1, slots.get(1), B));
        slots.end_write(1, || 0b11);
        // A read from before the write.
        assert!(!slots.mark_stale(1, word, B));
        slots.discard(1);
        assert!(!slots.mark_stale(1, slots.get(1), B));
    }

    #[test]
    fn a_member_that_lost_its_content_is_stale_everywhere() {
        let slots = written(0b11);
        assert!(!slots.lose_content(0, B) && !slots.lose_content(1, B));
        assert_eq!((slots.get(0).stale(), slots.get(1).stale(), slots.num_stale(B)), (0, 0b10, 1));
        // The other one, too: there is nothing to copy any more, and nothing to be read.
        assert!(slots.lose_content(1, A));
        assert_eq!((slots.get(1).stale(), slots.num_stale(A), slots.num_stale(B), slots.begin_copy(1, 0b11)), (0b11, 0, 0, None));
        // In the midst of a write that was on its way to both.
        let slots = written(0b11);
        slots.begin_write(1);
        let mut has_lost = false;
        slots.end_write(1, || {
            if !has_lost {
                has_lost = true;
                slots.lose_content(1, B);
                return 0b11;
            }
            0b01
        });
        assert_eq!(slots.get(1).stale(), 0b10);
    }
}
