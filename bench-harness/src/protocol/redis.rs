//! Records in Redis, as YCSB's binding has them: strings or hashes, and a sorted set of all keys' names where ranges are scanned.

use super::resp::{Frame, Items, append_array, append_bulk, append_bulk_length, append_key, parse};
use super::{DataType, NUM_FIELDS, Parsed, Reply, Value};
use crate::values::{ValueKind, append_value, key_in, verify_value};
use crate::ycsb::{append_decimal, append_key as append_key_text};

/// The sorted set's name in YCSB.
pub const INDEX: &[u8] = b"_indices";
const FIELD: &[u8] = b"field";

/// The fields of a value share it equally; the last has what is left.
fn field_size(value_size: usize, field: u8) -> usize {
    let count = usize::from(NUM_FIELDS);
    value_size / count + if field + 1 == NUM_FIELDS { value_size % count } else { 0 }
}

/// What a field's value is made of in place of the record's key: no two fields are alike.
fn field_key(key: u64, field: u8) -> u64 {
    key.wrapping_mul(u64::from(NUM_FIELDS)).wrapping_add(u64::from(field))
}

fn append_field_name(field: u8, to: &mut Vec<u8>) {
    append_bulk_length(FIELD.len() + 1, to);
    to.extend_from_slice(FIELD);
    to.push(b'0' + field);
    to.extend_from_slice(b"\r\n");
}

fn append_value_word(kind: ValueKind, key: u64, version: u32, size: usize, to: &mut Vec<u8>) {
    append_bulk_length(size, to);
    append_value(kind, key, version, size, to);
    to.extend_from_slice(b"\r\n");
}

#[inline]
pub fn append_read(data_type: DataType, field: u8, append_name: impl FnOnce(&mut Vec<u8>), to: &mut Vec<u8>) {
    match data_type {
        DataType::Strings => {
            to.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
            append_name(to);
        }
        DataType::Hashes => {
            to.extend_from_slice(b"*2\r\n$7\r\nHGETALL\r\n");
            append_name(to);
        }
        DataType::Fields => {
            to.extend_from_slice(b"*3\r\n$4\r\nHGET\r\n");
            append_name(to);
            append_field_name(field, to);
        }
    }
}

#[inline]
pub fn append_write(data_type: DataType, key: u64, version: u32, kind: ValueKind, size: usize, to: &mut Vec<u8>) {
    match data_type {
        DataType::Strings => {
            to.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
            append_key(key, to);
            append_value_word(kind, key, version, size, to);
        }
        DataType::Hashes | DataType::Fields => {
            append_array(2 + 2 * u64::from(NUM_FIELDS), to);
            append_bulk(b"HSET", to);
            append_key(key, to);
            for field in 0..NUM_FIELDS {
                append_field_name(field, to);
                append_value_word(kind, field_key(key, field), version, field_size(size, field), to);
            }
        }
    }
}

/// A name's place in the sorted set: Java's hash of a string, as YCSB has it.
fn score(name: &[u8]) -> i32 {
    name.iter().fold(0i32, |hash, &byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)))
}

fn append_score(score: i32, to: &mut Vec<u8>) {
    let mut text = Vec::with_capacity(11);
    if score < 0 {
        text.push(b'-');
    }
    append_decimal(u64::from(score.unsigned_abs()), &mut text);
    append_bulk(&text, to);
}

/// Puts the key's name into the sorted set.
pub fn append_index(key: u64, to: &mut Vec<u8>) {
    let mut name = Vec::with_capacity(crate::ycsb::KEY_LENGTH_MAX);
    append_key_text(key, &mut name);
    append_array(4, to);
    append_bulk(b"ZADD", to);
    append_bulk(INDEX, to);
    append_score(score(&name), to);
    append_bulk(&name, to);
}

/// So many names, from that of this key on.
pub fn append_scan(key: u64, count: u64, to: &mut Vec<u8>) {
    let mut name = Vec::with_capacity(crate::ycsb::KEY_LENGTH_MAX);
    append_key_text(key, &mut name);
    append_array(7, to);
    append_bulk(b"ZRANGEBYSCORE", to);
    append_bulk(INDEX, to);
    append_score(score(&name), to);
    append_bulk(b"+inf", to);
    append_bulk(b"LIMIT", to);
    append_bulk(b"0", to);
    append_bulk(count.to_string().as_bytes(), to);
}

#[inline]
pub fn parse_read(input: &[u8]) -> Parsed<Reply<'_>> {
    parse(input).map(|frame| {
        Some(match frame {
            Frame::Bulk(data) => Reply::Value(Value::Plain(data)),
            // A hash that is not there is an empty one.
            Frame::Array(items) if items.len() == 0 => Reply::Miss,
            Frame::Array(items) => Reply::Value(Value::Fields(items)),
            Frame::Null => Reply::Miss,
            Frame::Error(text) => Reply::Refused(text),
            Frame::Status(_) | Frame::Integer(_) => return None,
        })
    })
}

pub fn parse_names(input: &[u8]) -> Parsed<Reply<'_>> {
    parse(input).map(|frame| match frame {
        Frame::Array(items) if items.clone().all(|item| matches!(item, Frame::Bulk(_))) => Some(Reply::Names(items)),
        Frame::Error(text) => Some(Reply::Refused(text)),
        _ => None,
    })
}

fn parse_one_write(input: &[u8]) -> Parsed<Reply<'_>> {
    parse(input).map(|frame| match frame {
        Frame::Status(b"OK") | Frame::Integer(_) => Some(Reply::Stored),
        Frame::Error(text) => Some(Reply::Refused(text)),
        _ => None,
    })
}

/// With an index two commands were sent, and both must have been obeyed.
#[inline]
pub fn parse_write(is_indexed: bool, input: &[u8]) -> Parsed<Reply<'_>> {
    let first = parse_one_write(input);
    let Parsed::Complete(reply, length) = first else {
        return first;
    };
    if !is_indexed {
        return Parsed::Complete(reply, length);
    }
    match parse_one_write(&input[length..]) {
        Parsed::Complete(second, more) => Parsed::Complete(if reply == Reply::Stored { second } else { reply }, length + more),
        other => other,
    }
}

/// The version of one field.
#[inline]
pub fn field_version(kind: ValueKind, key: u64, field: u8, value_size: usize, data: &[u8]) -> Option<u32> {
    verify_value(kind, field_key(key, field), field_size(value_size, field), data)
}

/// The version of all fields: each is there once, and all were written together.
pub fn hash_version(kind: ValueKind, key: u64, value_size: usize, mut items: Items<'_>) -> Option<u32> {
    if items.len() != 2 * usize::from(NUM_FIELDS) {
        return None;
    }
    let (mut seen, mut version) = (0u16, None);
    while let (Some(Frame::Bulk(name)), Some(Frame::Bulk(data))) = (items.next(), items.next()) {
        let field = field_of(name)?;
        let found = field_version(kind, key, field, value_size, data)?;
        if seen & 1 << field != 0 || version.is_some_and(|version| version != found) {
            return None;
        }
        seen |= 1 << field;
        version = Some(found);
    }
    if seen == (1 << NUM_FIELDS) - 1 { version } else { None }
}

fn field_of(name: &[u8]) -> Option<u8> {
    match name.strip_prefix(FIELD)? {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        _ => None,
    }
}

/// The key that a value says it is of.
pub fn key_of(data_type: DataType, value: &Value<'_>) -> Option<u64> {
    let of_field = |data: &[u8]| key_in(data).map(|key| key / u64::from(NUM_FIELDS));
    match value {
        Value::Named { data, .. } => key_in(data),
        Value::Plain(data) if data_type == DataType::Fields => of_field(data),
        Value::Plain(data) => key_in(data),
        Value::Fields(items) => match items.clone().nth(1) {
            Some(Frame::Bulk(data)) => of_field(data),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Protocol, Records, Store};
    use crate::value_sizes::ValueSizes;

    fn records(data_type: DataType, is_indexed: bool) -> Records {
        Records { protocol: Protocol::Redis { data_type, is_indexed }, value_sizes: ValueSizes::fixed(1_005), value_kind: ValueKind::Random }
    }

    fn command(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
        let Parsed::Complete(Frame::Array(items), length) = parse(bytes) else { panic!("{:?}", String::from_utf8_lossy(bytes)) };
        let words = items.map(|item| match item {
            Frame::Bulk(word) => word.to_vec(),
            other => panic!("{other:?}"),
        });
        (words.collect(), length)
    }

    /// What HGETALL answers after such a HSET.
    fn as_reply(hset: &[Vec<u8>]) -> Vec<u8> {
        let words: Vec<&[u8]> = hset[2..].iter().map(Vec::as_slice).collect();
        let mut reply = Vec::new();
        super::super::resp::append_command(&words, &mut reply);
        reply
    }

    fn version(records: &Records, key: u64, field: u8, reply: &[u8]) -> Option<u32> {
        let Parsed::Complete(Reply::Value(value), _) = records.parse_read(reply) else { panic!("no value") };
        records.version(key, field, &value, &mut Vec::new())
    }

    #[test]
    fn a_string_is_what_was_set() {
        let records = records(DataType::Strings, false);
        let mut bytes = Vec::new();
        records.append_write(Store::Load, 7, 3, &mut bytes);
        let (words, length) = command(&bytes);
        assert_eq!((words[0].as_slice(), words.len(), length), (&b"SET"[..], 3, bytes.len()));
        let mut reply = Vec::new();
        append_bulk(&words[2], &mut reply);
        assert_eq!(version(&records, 7, 0, &reply), Some(3));
        assert_eq!(version(&records, 8, 0, &reply), None);
        assert_eq!(records.parse_read(b"$-1\r\n"), Parsed::Complete(Reply::Miss, 5));
        assert_eq!(records.parse_read(b"-LSWERR lost\r\n"), Parsed::Complete(Reply::Refused(b"LSWERR lost"), 14));
        assert_eq!(records.parse_read(b"+OK\r\n"), Parsed::Garbled);
        bytes.clear();
        records.append_read(7, 0, &mut bytes);
        assert_eq!(command(&bytes).0, [b"GET".to_vec(), words[1].clone()]);
    }

    #[test]
    fn a_hash_is_right_when_all_its_fields_are_of_one_version() {
        let records = records(DataType::Hashes, false);
        let hset = |version| {
            let mut bytes = Vec::new();
            records.append_write(Store::Update, 5, version, &mut bytes);
            command(&bytes).0
        };
        let (old, new) = (hset(1), hset(2));
        assert_eq!((old[0].as_slice(), old.len(), old[2].as_slice(), old[21].len()), (&b"HSET"[..], 22, &b"field0"[..], 105));
        assert_eq!(version(&records, 5, 0, &as_reply(&new)), Some(2));
        assert_eq!(version(&records, 6, 0, &as_reply(&new)), None);
        // Any order, but every field once.
        let turned: Vec<Vec<u8>> = new[2..].chunks(2).rev().flatten().cloned().collect();
        assert_eq!(version(&records, 5, 0, &as_reply(&[&new[..2], &turned[..]].concat())), Some(2));
        let mut mixed = new.clone();
        mixed[5] = old[5].clone();
        assert_eq!(version(&records, 5, 0, &as_reply(&mixed)), None);
        let mut twice = new.clone();
        (twice[4], twice[5]) = (new[2].clone(), new[3].clone());
        assert_eq!(version(&records, 5, 0, &as_reply(&twice)), None);
        assert_eq!(version(&records, 5, 0, &as_reply(&new[..20])), None);
        assert_eq!(records.parse_read(b"*0\r\n"), Parsed::Complete(Reply::Miss, 4));
    }

    #[test]
    fn one_field_is_told_from_the_others() {
        let records = records(DataType::Fields, false);
        let mut bytes = Vec::new();
        records.append_write(Store::Update, 5, 9, &mut bytes);
        let words = command(&bytes).0;
        let mut reply = Vec::new();
        append_bulk(&words[3 + 2 * 4], &mut reply);
        assert_eq!([4, 5].map(|field| version(&records, 5, field, &reply)), [Some(9), None]);
        bytes.clear();
        records.append_read(5, 4, &mut bytes);
        assert_eq!(command(&bytes).0[..], [b"HGET".to_vec(), words[1].clone(), b"field4".to_vec()]);
    }

    #[test]
    fn new_keys_are_indexed_and_both_answers_count() {
        let records = records(DataType::Strings, true);
        let mut bytes = Vec::new();
        records.append_write(Store::Insert, 3, 1, &mut bytes);
        let (_, length) = command(&bytes);
        let zadd = command(&bytes[length..]).0;
        assert_eq!([&zadd[0][..], &zadd[1][..]], [&b"ZADD"[..], b"_indices"]);
        let update = {
            let mut bytes = Vec::new();
            records.append_write(Store::Update, 3, 1, &mut bytes);
            bytes
        };
        assert_eq!(update.len(), length);

        let of = |input: &'static [u8]| records.parse_write(Store::Insert, input);
        assert_eq!(of(b"+OK\r\n"), Parsed::Incomplete);
        assert_eq!(of(b"+OK\r\n:1\r\n"), Parsed::Complete(Reply::Stored, 9));
        assert_eq!(of(b"-OOM\r\n:1\r\n"), Parsed::Complete(Reply::Refused(b"OOM"), 10));
        assert_eq!(of(b"+OK\r\n-OOM\r\n"), Parsed::Complete(Reply::Refused(b"OOM"), 11));
        assert_eq!(records.parse_write(Store::Update, b"+OK\r\n"), Parsed::Complete(Reply::Stored, 5));
        assert_eq!(of(b"$1\r\nx\r\n"), Parsed::Garbled);
    }

    #[test]
    fn a_scan_tells_each_key_by_its_value() {
        let records = records(DataType::Hashes, true);
        let mut bytes = Vec::new();
        records.append_scan(3, 20, &mut bytes);
        let words = command(&bytes).0;
        assert_eq!([&words[0][..], &words[3][..], &words[6][..]], [&b"ZRANGEBYSCORE"[..], b"+inf", b"20"]);
        assert!(matches!(records.parse_scan(b"*1\r\n$1\r\na\r\n"), Parsed::Complete(Reply::Names(names), 11) if names.len() == 1));
        assert_eq!(records.parse_scan(b"*1\r\n:1\r\n"), Parsed::Garbled);

        bytes.clear();
        records.append_write(Store::Update, 3, 2, &mut bytes);
        let hset = command(&bytes).0;
        let reply = as_reply(&hset);
        let Parsed::Complete(Reply::Value(value), _) = records.parse_read(&reply) else { panic!("no value") };
        assert_eq!(records.key_and_version(&hset[1], &value, &mut Vec::new()), Some((3, 2)));
        assert_eq!(records.key_and_version(b"user1", &value, &mut Vec::new()), None);
    }

    #[test]
    fn scores_are_javas_hashes() {
        // "user6284781860667377211".hashCode() and "abc".hashCode()
        assert_eq!(score(b"abc"), 96_354);
        assert_eq!(score(b""), 0);
        let mut bytes = Vec::new();
        append_score(i32::MIN, &mut bytes);
        assert_eq!(bytes, b"$11\r\n-2147483648\r\n");
    }
}
