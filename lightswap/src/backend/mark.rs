//! What a faulty backend writes on the token of an I/O, so that its completion says what is to become of it: nothing has to be remembered elsewhere.

use crate::size::PAGE_SIZE;

const KIND_BITS: u32 = 2;
const VALUE_BITS: u32 = 23;
const DELAY_BITS: u32 = 18;
const VALUE_MASK: u32 = (1 << VALUE_BITS) - 1;
/// Bits of a page, as a power of two.
const PAGE_BITS_SHIFT: u32 = PAGE_SIZE.trailing_zeros() + 3;

/// Longest delay of a completion; some way below what there is room for.
pub(super) const MAX_DELAY_MS: u32 = 200_000;
/// Most bits of a page that one fault flips.
pub(super) const MAX_FLIPPED_BITS: u32 = 255;

const _: () = assert!(KIND_BITS + VALUE_BITS + DELAY_BITS <= crate::io_queue::MARK_BITS);
const _: () = assert!(MAX_DELAY_MS < 1 << DELAY_BITS && (MAX_FLIPPED_BITS + 1) << PAGE_BITS_SHIFT <= 1 << VALUE_BITS);
// Results are signed.
const _: () = assert!(crate::budget::MAX_BATCH_PAGES * PAGE_SIZE < 1 << (VALUE_BITS - 1));

/// What the completion of an I/O is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its result.
    AsItIs,
    /// This result: bytes, or a negative errno.
    Report(i32),
    /// Its result, and some bits of the page read are flipped.
    Flip(Flips),
}

/// Some bits of a page, all different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flips {
    first: u32,
    count: u32,
}

impl Flips {
    /// `count` bits, at most [`MAX_FLIPPED_BITS`], from one that `random` chooses on.
    pub(super) fn new(random: u64, count: u32) -> Self {
        debug_assert!(count <= MAX_FLIPPED_BITS);
        Self { first: (random >> 20) as u32 & ((1 << PAGE_BITS_SHIFT) - 1), count }
    }

    /// Flips them.
    pub(super) fn apply(self, page: &mut [u8]) {
        // An odd step comes back to the first bit only after all of them.
        const STEP: u32 = 4099;
        for index in 0..self.count {
            let bit = (self.first + index * STEP) as usize % (8 * PAGE_SIZE);
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// What is to be made of an I/O when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) outcome: Outcome,
    /// How much later.
    pub(super) delay_ms: u32,
}

impl Mark {
    /// Whether the I/O may as well go without a mark.
    pub(super) fn is_plain(self) -> bool {
        self.outcome == Outcome::AsItIs && self.delay_ms == 0
    }

    /// As a number that is never 0.
    pub(super) fn encode(self) -> u64 {
        debug_assert!(self.delay_ms <= MAX_DELAY_MS);
        let (kind, value) = match self.outcome {
            Outcome::AsItIs => (1, 0),
            Outcome::Report(result) => (2, result as u32 & VALUE_MASK),
            Outcome::Flip(Flips { first, count }) => (3, count << PAGE_BITS_SHIFT | first),
        };
        kind | u64::from(value) << KIND_BITS | u64::from(self.delay_ms) << (KIND_BITS + VALUE_BITS)
    }

    pub(super) fn decode(mark: u64) -> Self {
        let value = (mark >> KIND_BITS) as u32 & VALUE_MASK;
        let outcome = match mark & ((1 << KIND_BITS) - 1) {
            2 => Outcome::Report(((value << (32 - VALUE_BITS)) as i32) >> (32 - VALUE_BITS)),
            3 => Outcome::Flip(Flips { first: value & ((1 << PAGE_BITS_SHIFT) - 1), count: value >> PAGE_BITS_SHIFT }),
            _ => Outcome::AsItIs,
        };
        Self { outcome, delay_ms: (mark >> (KIND_BITS + VALUE_BITS)) as u32 & ((1 << DELAY_BITS) - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io_queue::Token;

    #[test]
    fn marks_round_trip_on_tokens() {
        let flips = Flips::new(u64::MAX, MAX_FLIPPED_BITS);
        let results = [0, 1, 4096, 128 * 4096, -1, -libc::EIO, -4095].map(Outcome::Report);
        for outcome in results.into_iter().chain([Outcome::AsItIs, Outcome::Flip(flips), Outcome::Flip(Flips::new(0, 1))]) {
            for delay_ms in [0, 1, MAX_DELAY_MS] {
                let mark = Mark { outcome, delay_ms };
                for token in [Token::read(255), Token::write(3, 127)] {
                    let marked = token.marked(mark.encode());
                    assert_ne!(marked.mark(), 0);
                    assert_eq!((Mark::decode(marked.mark()), marked.unmarked()), (mark, token));
                }
            }
        }
    }

    #[test]
    fn as_many_bits_are_flipped_as_were_asked_for() {
        for (random, count) in [(0, 1), (u64::MAX, 1), (7 << 30, 2), (u64::MAX, MAX_FLIPPED_BITS)] {
            let mut page = [0; PAGE_SIZE];
            Flips::new(random, count).apply(&mut page);
            assert_eq!(page.iter().map(|byte| byte.count_ones()).sum::<u32>(), count);
            Flips::new(random, count).apply(&mut page);
            assert_eq!(page, [0; PAGE_SIZE]);
        }
    }
}
