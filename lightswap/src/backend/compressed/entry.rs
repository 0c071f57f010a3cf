//! What the slot table says of a slot, in 8 bytes.

use crate::size::PAGE_SIZE;

const KIND_BITS: u32 = 2;
const LEN_BITS: u32 = PAGE_SIZE.trailing_zeros();
const OFFSET_SHIFT: u32 = KIND_BITS + LEN_BITS;

const EMPTY: u64 = 0;
const SAME: u64 = 1;
const OBJECT: u64 = 2;
const WORD: u64 = 3;

/// Where the content of a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Empty,
    /// Nowhere else: the page repeats this word, which [`fits`].
    Same(u64),
    /// At `offset` of the pool's memory; of a page's length: as it is, else compressed.
    Object {
        offset: u64,
        len: usize,
    },
    /// The page repeats the word at `offset`.
    Word {
        offset: u64,
    },
}

/// Whether an entry can hold `word` itself: its highest bits are alike, as are those of zeroes, ones, small numbers of either sign, and addresses.
pub(super) fn fits(word: u64) -> bool {
    (word << KIND_BITS) as i64 >> KIND_BITS == word as i64
}

impl Entry {
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Empty => EMPTY,
            Self::Same(word) => word << KIND_BITS | SAME,
            Self::Object { offset, len } => offset << OFFSET_SHIFT | (len as u64 - 1) << KIND_BITS | OBJECT,
            Self::Word { offset } => offset << OFFSET_SHIFT | WORD,
        }
    }

    /// Offset and length of the object that it has.
    pub(super) fn place(self) -> Option<(u64, usize)> {
        match self {
            Self::Empty | Self::Same(_) => None,
            Self::Object { offset, len } => Some((offset, len)),
            Self::Word { offset } => Some((offset, size_of::<u64>())),
        }
    }

    pub(super) fn decode(bits: u64) -> Self {
        let offset = bits >> OFFSET_SHIFT;
        match bits & ((1 << KIND_BITS) - 1) {
            EMPTY => Self::Empty,
            SAME => Self::Same((bits as i64 >> KIND_BITS) as u64),
            OBJECT => Self::Object { offset, len: (bits >> KIND_BITS) as usize % PAGE_SIZE + 1 },
            _ => Self::Word { offset },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive() {
        let offset_max = (1 << (u64::BITS - OFFSET_SHIFT)) - 1;
        let mut entries = vec![Entry::Empty, Entry::Word { offset: 0 }, Entry::Word { offset: offset_max }];
        entries.extend([1, 26, 3640, 4095, 4096].map(|len| Entry::Object { offset: 12345, len }));
        entries.extend([0, offset_max].map(|offset| Entry::Object { offset, len: PAGE_SIZE }));
        entries.extend([0, 1, u64::MAX, u64::MAX << 61, u64::MAX >> 3, 0x7fff_1234_5678].map(Entry::Same));
        for entry in entries {
            assert_eq!(Entry::decode(entry.encode()), entry);
        }
        assert_eq!(Entry::decode(0), Entry::Empty, "a table that was never written is empty");
    }

    #[test]
    fn words_that_do_not_fit_are_told() {
        for word in [0, 7, u64::MAX, u64::MAX << 61, u64::MAX >> 3] {
            assert!(fits(word), "{word:x}");
        }
        for word in [1 << 61, 1 << 63, u64::MAX >> 1, 0xaaaa_aaaa_aaaa_aaaa] {
            assert!(!fits(word), "{word:x}");
        }
    }
}
