//! What it takes to read a slot: nonce and tag of its content.

use super::cipher::{TAG_BYTES, Tag};
use crate::backend::table::Table;
use crate::error::Result;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Nonce, and the tag's halves.
const WORDS: usize = 3;

/// One record a slot. Those of slots that were never written take no memory.
///
/// Only the owner of a slot's page changes its record, and who takes over from an owner synchronises with it. Whoever else looks (a read that an injected fault
/// leads astray, one that was given up) may get anything, and finds with it that the content is wrong.
#[derive(Debug)]
pub(super) struct Records {
    words: Table<AtomicU64>,
}

impl Records {
    pub(super) fn new(num_slots: usize) -> Result<Self> {
        Ok(Self { words: Table::new(num_slots.saturating_mul(WORDS))? })
    }

    /// The slot holds what was encrypted so. The nonce is not 0.
    pub(super) fn set(&self, slot: usize, nonce: u64, tag: Tag) {
        debug_assert!(nonce != 0);
        let (low, high) = tag.split_at(TAG_BYTES / 2);
        for (offset, half) in [(1, low), (2, high)] {
            let value = u64::from_le_bytes(half.try_into().expect("half a tag is a word"));
            self.words[slot * WORDS + offset].store(value, Relaxed);
        }
        self.words[slot * WORDS].store(nonce, Relaxed);
    }

    /// `None` if the slot cannot be read.
    pub(super) fn get(&self, slot: usize) -> Option<(u64, Tag)> {
        let [nonce, low, high] = [0, 1, 2].map(|offset| self.words[slot * WORDS + offset].load(Relaxed));
        let mut tag = [0; TAG_BYTES];
        tag[..TAG_BYTES / 2].copy_from_slice(&low.to_le_bytes());
        tag[TAG_BYTES / 2..].copy_from_slice(&high.to_le_bytes());
        (nonce != 0).then_some((nonce, tag))
    }

    /// The slots cannot be read any more. Gives memory back where there is a page of it.
    pub(super) fn forget(&self, slot: usize, num_slots: usize) {
        let words = slot * WORDS..(slot + num_slots) * WORDS;
        let given_back = self.words.discard(words.clone());
        self.clear(words.start..given_back.start);
        self.clear(given_back.end..words.end);
    }

    fn clear(&self, words: Range<usize>) {
        // Not without looking: writing would take memory where there is none.
        words.map(|index| &self.words[index]).filter(|word| word.load(Relaxed) != 0).for_each(|word| word.store(0, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_and_forgotten() {
        const NUM_SLOTS: usize = 2000;
        let tag = |slot: usize| std::array::from_fn(|byte| (slot * 31 + byte) as u8);
        for (first, len) in [(0, 1), (1999, 1), (5, 128), (0, 2000), (170, 172), (100, 1000), (170, 171), (341, 683)] {
            let records = Records::new(NUM_SLOTS).unwrap();
            assert!((0..NUM_SLOTS).all(|slot| records.get(slot).is_none()));
            (0..NUM_SLOTS).for_each(|slot| records.set(slot, slot as u64 + 1, tag(slot)));
            records.forget(first, len);
            for slot in 0..NUM_SLOTS {
                let expected = (!(first..first + len).contains(&slot)).then(|| (slot as u64 + 1, tag(slot)));
                assert_eq!(records.get(slot), expected, "{slot} of {first} {len}");
            }
        }
    }
}
