//! Self-verifying values: the bytes of a value follow from its key number and version, so every byte that is read can be checked.
//!
//! A value is a header (key number, version, in hexadecimal) and a printable pseudo-random body seeded by both. Stale, foreign
//! and mixed values are all told from right ones: the header names the version, the body proves it.

use crate::random::mix;

const KEY_DIGITS: usize = 16;
const VERSION_DIGITS: usize = 8;
/// Bytes of the body that are made at once.
const BLOCK: usize = 16;
const HEADER_LENGTH: usize = KEY_DIGITS + VERSION_DIGITS;

pub const VALUE_SIZE_MIN: usize = 32;
/// Half of memcached's largest item, so that no value is refused or chunked across many slabs.
pub const VALUE_SIZE_MAX: usize = 512 * 1024;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const SIX_BITS: u64 = 0x3f3f_3f3f_3f3f_3f3f;
const FIRST_PRINTABLE: u64 = 0x3030_3030_3030_3030;

/// Sixteen printable bytes, `0` to `o`: six random bits each, of one multiplication.
#[inline(always)]
fn body_block(state: u64) -> [u8; BLOCK] {
    let product = u128::from(state) * 0xd6e8_feb8_6659_fd93;
    let (low, high) = (product as u64, (product >> 64) as u64);
    // No byte overflows: 0x3f + 0x30 is below 0x100.
    let printable = |bits: u64| (bits & SIX_BITS) + FIRST_PRINTABLE;
    let both = u128::from(printable(low ^ high)) | u128::from(printable(low.wrapping_add(high.rotate_left(29)))) << 64;
    both.to_le_bytes()
}

#[inline]
fn body_seed(key: u64, version: u32) -> u64 {
    mix(key ^ u64::from(version).rotate_left(40))
}

/// The hexadecimal digits of a number, high first, all eight at once.
#[inline]
fn hexadecimal(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // One digit a byte.
    let mut digits = u64::from(number);
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // A 1 in each byte that holds 10 to 15.
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    (digits + u64::from(b'0') * ONES + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

#[inline]
fn header(key: u64, version: u32) -> [u8; HEADER_LENGTH] {
    let mut text = [0; HEADER_LENGTH];
    text[..8].copy_from_slice(&hexadecimal((key >> 32) as u32));
    text[8..KEY_DIGITS].copy_from_slice(&hexadecimal(key as u32));
    text[KEY_DIGITS..].copy_from_slice(&hexadecimal(version));
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
    let (blocks, rest) = value[HEADER_LENGTH..].as_chunks_mut::<BLOCK>();
    for block in blocks {
        state = state.wrapping_add(GOLDEN);
        *block = body_block(state);
    }
    let last = body_block(state.wrapping_add(GOLDEN));
    let rest_length = rest.len();
    rest.copy_from_slice(&last[..rest_length]);
}

/// The version that `value` holds if it is, in every byte, a value of `key` of the given size.
#[inline]
pub fn verify_value(key: u64, size: usize, value: &[u8]) -> Option<u32> {
    if value.len() != size || size < VALUE_SIZE_MIN {
        return None;
    }
    // Other characters than digits give some version whose header is another.
    let version = value[KEY_DIGITS..HEADER_LENGTH].iter().fold(0, |number, &digit| number << 4 | digit_value(digit));
    if value[..HEADER_LENGTH] != header(key, version) {
        return None;
    }
    let mut state = body_seed(key, version);
    let mut difference = 0;
    let (blocks, rest) = value[HEADER_LENGTH..].as_chunks::<BLOCK>();
    for block in blocks {
        state = state.wrapping_add(GOLDEN);
        difference |= u128::from_le_bytes(*block) ^ u128::from_le_bytes(body_block(state));
    }
    let last = body_block(state.wrapping_add(GOLDEN));
    (difference == 0 && *rest == last[..rest.len()]).then_some(version)
}

#[inline]
fn digit_value(digit: u8) -> u32 {
    u32::from(digit & 0xf) + if digit > b'9' { 9 } else { 0 }
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
        for size in [VALUE_SIZE_MIN, 33, 100, 999, 1_000, 4_096, 16_384, 65_537, VALUE_SIZE_MAX] {
            let bytes = value(42, 7, size);
            assert_eq!(bytes.len(), size);
            assert!(bytes.iter().all(|b| (0x21..0x7f).contains(b)));
            assert_eq!(verify_value(42, size, &bytes), Some(7));
        }
    }

    #[test]
    fn headers_are_hexadecimal() {
        for (key, version) in [(0, 1), (0x0123_4567_89ab_cdef, 0xfedc_ba98), (u64::MAX, u32::MAX), (9, 0xa)] {
            assert_eq!(header(key, version), *format!("{key:016x}{version:08x}").as_bytes());
            assert_eq!(verify_value(key, 40, &value(key, version, 40)), Some(version));
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
