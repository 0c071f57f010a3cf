//! Self-verifying values: the bytes of a value follow from its key number and version, so every byte that is read can be checked.
//!
//! A value is a header (key number, version, in hexadecimal) and a printable pseudo-random body seeded by both. Stale, foreign
//! and mixed values are all told from right ones: the header names the version, the body proves it.
//!
//! Bodies of random characters do not compress at all by what looks for repetitions. Where that matters there are bodies of text.

use crate::random::mix;

const KEY_DIGITS: usize = 16;
const VERSION_DIGITS: usize = 8;
/// Bytes of the body that are compared at once.
const LINE: usize = 16;
const HEADER_LENGTH: usize = KEY_DIGITS + VERSION_DIGITS;

pub const VALUE_SIZE_MIN: usize = 32;
/// Half of memcached's largest item, so that no value is refused or chunked across many slabs.
pub const VALUE_SIZE_MAX: usize = 512 * 1024;

const ONES: u64 = 0x0101_0101_0101_0101;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const SIX_BITS: u64 = 0x3f3f_3f3f_3f3f_3f3f;
const FIRST_PRINTABLE: u64 = 0x3030_3030_3030_3030;

/// What the bodies of values are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, clap::ValueEnum)]
pub enum ValueKind {
    /// Random characters, which lz4 cannot compress.
    #[default]
    Random,
    /// Fields of records with names and with random contents, as in JSON: lz4 compresses them 2 to 3 times.
    Text,
}

impl ValueKind {
    /// As results name it: empty for the usual kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "",
            Self::Text => "text",
        }
    }
}

type Block<const LINES: usize> = [[u8; LINE]; LINES];

/// Sixteen printable bytes, `0` to `o`: six random bits each, of one multiplication.
#[inline(always)]
fn random_block(state: u64) -> Block<1> {
    let product = u128::from(state) * 0xd6e8_feb8_6659_fd93;
    let (low, high) = (product as u64, (product >> 64) as u64);
    // No byte overflows: 0x3f + 0x30 is below 0x100.
    let printable = |bits: u64| (bits & SIX_BITS) + FIRST_PRINTABLE;
    let both = u128::from(printable(low ^ high)) | u128::from(printable(low.wrapping_add(high.rotate_left(29)))) << 64;
    [both.to_le_bytes()]
}

/// Fields of a record; the contents of eight of them, the places with dots, are random. LZ4 finds the text between them again in the record before.
const RECORD: &[u8; 256] = b", \"recipient\": \"........\", \"lastname\": \"........\", \"valid\": true\
                             , \"warehouse\": \"........\", \"shipment\": \"........\", \"fixed\": null\
                             , \"reference\": \"........\", \"category\": \"........\", \"count\": 1000\
                             , \"character\": \"........\", \"position\": \"........\", \"price\": 25.0";
/// Where the two random contents of a line of it are.
const CONTENTS: [usize; 2] = [16, 40];
const RECORD_LINE: usize = 64;

#[inline(always)]
fn text_block(state: u64) -> Block<16> {
    let mut record = *RECORD;
    for (number, line) in (0..).zip(record.as_chunks_mut::<RECORD_LINE>().0) {
        let bits = mix(state.wrapping_add(number));
        for (place, bits) in CONTENTS.into_iter().zip([bits as u32, (bits >> 32) as u32]) {
            line[place..place + 8].copy_from_slice(&letters(bits));
        }
    }
    let mut block = [[0; LINE]; 16];
    block.as_flattened_mut().copy_from_slice(&record);
    block
}

/// Eight letters, `a` to `p`, of four bits each.
#[inline]
fn letters(bits: u32) -> [u8; 8] {
    (spread(bits) + u64::from(b'a') * ONES).to_be_bytes()
}

#[inline]
fn body_seed(key: u64, version: u32) -> u64 {
    mix(key ^ u64::from(version).rotate_left(40))
}

/// Four bits a byte, in their order.
#[inline]
fn spread(number: u32) -> u64 {
    let mut digits = u64::from(number);
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff;
    (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f
}

/// The hexadecimal digits of a number, high first, all eight at once.
#[inline]
fn hexadecimal(number: u32) -> [u8; 8] {
    let digits = spread(number);
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
pub fn append_value(kind: ValueKind, key: u64, version: u32, size: usize, to: &mut Vec<u8>) {
    debug_assert!(size >= VALUE_SIZE_MIN);
    let start = to.len();
    to.resize(start + size, 0);
    let value = &mut to[start..];
    value[..HEADER_LENGTH].copy_from_slice(&header(key, version));
    let (body, seed) = (&mut value[HEADER_LENGTH..], body_seed(key, version));
    match kind {
        ValueKind::Random => write_body(body, seed, random_block),
        ValueKind::Text => write_body(body, seed, text_block),
    }
}

#[inline(always)]
fn write_body<const LINES: usize>(body: &mut [u8], seed: u64, block_of: impl Fn(u64) -> Block<LINES>) {
    let mut state = seed;
    let whole = body.len() / (LINES * LINE) * (LINES * LINE);
    let (blocks, rest) = body.split_at_mut(whole);
    for block in blocks.as_chunks_mut::<LINE>().0.as_chunks_mut::<LINES>().0 {
        state = state.wrapping_add(GOLDEN);
        *block = block_of(state);
    }
    let last = block_of(state.wrapping_add(GOLDEN));
    let rest_length = rest.len();
    rest.copy_from_slice(&last.as_flattened()[..rest_length]);
}

/// The version that `value` holds if it is, in every byte, a value of `key` of the given kind and size.
#[inline]
pub fn verify_value(kind: ValueKind, key: u64, size: usize, value: &[u8]) -> Option<u32> {
    if value.len() != size || size < VALUE_SIZE_MIN {
        return None;
    }
    // Other characters than digits give some version whose header is another.
    let version = value[KEY_DIGITS..HEADER_LENGTH].iter().fold(0, |number, &digit| number << 4 | digit_value(digit));
    if value[..HEADER_LENGTH] != header(key, version) {
        return None;
    }
    let (body, seed) = (&value[HEADER_LENGTH..], body_seed(key, version));
    let is_right = match kind {
        ValueKind::Random => is_body(body, seed, random_block),
        ValueKind::Text => is_body(body, seed, text_block),
    };
    is_right.then_some(version)
}

/// The key that the header names, whoever wrote it.
pub fn key_in(value: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(value.get(..KEY_DIGITS)?).ok()?, 16).ok()
}

#[inline(always)]
fn is_body<const LINES: usize>(body: &[u8], seed: u64, block_of: impl Fn(u64) -> Block<LINES>) -> bool {
    let mut state = seed;
    let mut difference = 0;
    let (lines, rest) = body.as_chunks::<LINE>();
    let (blocks, last_lines) = lines.as_chunks::<LINES>();
    for block in blocks {
        state = state.wrapping_add(GOLDEN);
        for (line, expected) in block.iter().zip(&block_of(state)) {
            difference |= u128::from_le_bytes(*line) ^ u128::from_le_bytes(*expected);
        }
    }
    let last = block_of(state.wrapping_add(GOLDEN));
    let (expected_lines, expected_rest) = last.as_flattened().split_at(last_lines.len() * LINE);
    difference == 0 && last_lines.as_flattened() == expected_lines && *rest == expected_rest[..rest.len()]
}

#[inline]
fn digit_value(digit: u8) -> u32 {
    u32::from(digit & 0xf) + if digit > b'9' { 9 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ValueKind; 2] = [ValueKind::Random, ValueKind::Text];

    fn value(kind: ValueKind, key: u64, version: u32, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        append_value(kind, key, version, size, &mut bytes);
        bytes
    }

    #[test]
    fn a_value_verifies_and_names_its_version() {
        for kind in KINDS {
            for size in [VALUE_SIZE_MIN, 33, 100, 279, 280, 281, 999, 1_000, 4_096, 16_384, 65_537, VALUE_SIZE_MAX] {
                let bytes = value(kind, 42, 7, size);
                assert_eq!(bytes.len(), size);
                assert!(bytes.iter().all(|b| (0x20..0x7f).contains(b)));
                assert_eq!(verify_value(kind, 42, size, &bytes), Some(7));
            }
            let other = if kind == ValueKind::Text { ValueKind::Random } else { ValueKind::Text };
            assert_eq!(verify_value(other, 42, 100, &value(kind, 42, 7, 100)), None);
        }
    }

    #[test]
    fn headers_are_hexadecimal() {
        for (key, version) in [(0, 1), (0x0123_4567_89ab_cdef, 0xfedc_ba98), (u64::MAX, u32::MAX), (9, 0xa)] {
            assert_eq!(header(key, version), *format!("{key:016x}{version:08x}").as_bytes());
            assert_eq!(verify_value(ValueKind::Random, key, 40, &value(ValueKind::Random, key, version, 40)), Some(version));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for kind in KINDS {
            let good = value(kind, 3, 9, 1_003);
            for position in 0..good.len() {
                let mut bad = good.clone();
                bad[position] ^= 1;
                let version = verify_value(kind, 3, 1_003, &bad);
                assert_eq!(version, None, "byte {position}");
            }
        }
    }

    #[test]
    fn foreign_short_and_mixed_values_are_wrong() {
        for kind in KINDS {
            let good = value(kind, 3, 9, 1_000);
            assert_eq!(verify_value(kind, 4, 1_000, &good), None);
            assert_eq!(verify_value(kind, 3, 1_000, &good[..999]), None);
            assert_eq!(verify_value(kind, 3, 1_000, b""), None);
            let mut mixed = good.clone();
            mixed[500..].copy_from_slice(&value(kind, 3, 10, 1_000)[500..]);
            assert_eq!(verify_value(kind, 3, 1_000, &mixed), None);
        }
    }

    #[test]
    fn text_compresses_two_to_three_times_and_random_values_do_not() {
        // As pages hold them: several values of 1,000 B, each with its key before it and some unused bytes behind it.
        let ratio = |kind: ValueKind, size: usize| {
            let mut pages = Vec::new();
            for key in 0.. {
                pages.extend_from_slice(format!("user{}", mix(key)).as_bytes());
                pages.extend(value(kind, key, 1, size));
                pages.extend_from_slice(&[0; 80]);
                if pages.len() > 64 * 4_096 {
                    break;
                }
            }
            let pages = pages.as_chunks::<4_096>().0;
            let mut output = vec![0; lz4_flex::block::get_maximum_output_size(4_096)];
            let compressed: usize = pages.iter().map(|page| lz4_flex::block::compress_into(page, &mut output).unwrap()).sum();
            (pages.len() * 4_096) as f64 / compressed as f64
        };
        for size in [1_000, 16_384] {
            let (text, random) = (ratio(ValueKind::Text, size), ratio(ValueKind::Random, size));
            assert!((2.0..3.0).contains(&text), "{size}: {text}");
            assert!(random < 1.15, "{size}: {random}");
        }
    }
}
