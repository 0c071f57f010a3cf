//! Self-verifying values: the bytes of a value follow from its key number and version, so every byte that is read can be checked.
//!
//! A value is a header (key number, version, in hexadecimal) and a printable pseudo-random body seeded by both. Stale, foreign
//! and mixed values are all told from right ones: the header names the version, the body proves it.

use crate::random::mix;

const KEY_DIGITS: usize = 16;
const VERSION_DIGITS: usize = 8;
const HEADER_LENGTH: usize = KEY_DIGITS + VERSION_DIGITS;

pub const VALUE_SIZE_MIN: usize = 32;
/// Half of memcached's largest item, so that no value is refused or chunked across many slabs.
pub const VALUE_SIZE_MAX: usize = 512 * 1024;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const SIX_BITS: u64 = 0x3f3f_3f3f_3f3f_3f3f;
const FIRST_PRINTABLE: u64 = 0x3030_3030_3030_3030;

/// Eight printable bytes, `0` to `o`: six random bits each.
#[inline(always)]
fn body_word(state: u64) -> [u8; 8] {
    let product = u128::from(state) * 0xd6e8_feb8_6659_fd93;
    let folded = (product as u64) ^ (product >> 64) as u64;
    // No byte overflows: 0x3f + 0x30 is below 0x100.
    ((folded & SIX_BITS) + FIRST_PRINTABLE).to_le_bytes()
}

#[inline]
fn body_seed(key: u64, version: u32) -> u64 {
    mix(key ^ u64::from(version).rotate_left(40))
}

#[inline]
fn header(key: u64, version: u32) -> [u8; HEADER_LENGTH] {
    let mut text = [0; HEADER_LENGTH];
    let number = (u128::from(key) << 32) | u128::from(version);
    for (index, digit) in text.iter_mut().enumerate() {
        let nibble = (number >> (4 * (HEADER_LENGTH - 1 - index))) as u8 & 0xf;
        *digit = b"0123456789abcdef"[usize::from(nibble)];
    }
    text
}

/// Appends the value of `key` at `version`.
#[inline]
pub fn append_value(key: u64, version: u32, size: usize, to: &mut Vec<u8>) {
    debug_assert!(size >= VALUE_SIZE_MIN);
    let start = to.len();
    to.resize(start + size, 0);
    let value = &mut to[start..];
    value[..HEADER_LENGTH].copy_from_slice(&header(key, version));
    let mut state = body_seed(key, version);
    let (words, rest) = value[HEADER_LENGTH..].as_chunks_mut::<8>();
    for word in words {
        state = state.wrapping_add(GOLDEN);
        *word = body_word(state);
    }
    let last = body_word(state.wrapping_add(GOLDEN));
    let rest_length = rest.len();
    rest.copy_from_slice(&last[..rest_length]);
}

/// The version that `value` holds if it is, in every byte, a value of `key` of the given size.
#[inline]
pub fn verify_value(key: u64, size: usize, value: &[u8]) -> Option<u32> {
    if value.len() != size || size < VALUE_SIZE_MIN {
        return None;
    }
    let digits = std::str::from_utf8(&value[KEY_DIGITS..HEADER_LENGTH]).ok()?;
    let version = u32::from_str_radix(digits, 16).ok()?;
    if value[..HEADER_LENGTH] != header(key, version) {
        return None;
    }
    let mut state = body_seed(key, version);
    let mut difference = 0;
    let (words, rest) = value[HEADER_LENGTH..].as_chunks::<8>();
    for word in words {
        state = state.wrapping_add(GOLDEN);
        difference |= u64::from_le_bytes(*word) ^ u64::from_le_bytes(body_word(state));
    }
    let last = body_word(state.wrapping_add(GOLDEN));
    (difference == 0 && *rest == last[..rest.len()]).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(key: u64, version: u32, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        append_value(key, version, size, &mut bytes);
        bytes
    }

    #[test]
    fn a_value_verifies_and_names_its_version() {
        for size in [VALUE_SIZE_MIN, 33, 100, 999, 1_000, 65_537] {
            let bytes = value(42, 7, size);
            assert_eq!(bytes.len(), size);
            assert!(bytes.iter().all(|b| (0x21..0x7f).contains(b)));
            assert_eq!(verify_value(42, size, &bytes), Some(7));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let good = value(3, 9, 1_003);
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            let version = verify_value(3, 1_003, &bad);
            assert_eq!(version, None, "byte {position}");
        }
    }

    #[test]
    fn foreign_short_and_mixed_values_are_wrong() {
        let good = value(3, 9, 1_000);
        assert_eq!(verify_value(4, 1_000, &good), None);
        assert_eq!(verify_value(3, 1_000, &good[..999]), None);
        assert_eq!(verify_value(3, 1_000, b""), None);
        let mut mixed = good.clone();
        mixed[500..].copy_from_slice(&value(3, 10, 1_000)[500..]);
        assert_eq!(verify_value(3, 1_000, &mixed), None);
    }
}
