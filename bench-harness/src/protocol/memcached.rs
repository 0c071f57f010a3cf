//! memcached's text protocol: requests written into a buffer, replies parsed in place.

use super::{Parsed, Reply, Store, Value};
use crate::values::{ValueKind, append_value};
use crate::ycsb::{append_decimal, append_key};

#[inline]
pub fn append_get(key: u64, to: &mut Vec<u8>) {
    to.extend_from_slice(b"get ");
    append_key(key, to);
    to.extend_from_slice(b"\r\n");
}

pub fn append_get_named(name: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(b"get ");
    to.extend_from_slice(name);
    to.extend_from_slice(b"\r\n");
}

#[inline]
pub fn append_store(store: Store, key: u64, version: u32, value_kind: ValueKind, value_size: usize, to: &mut Vec<u8>) {
    to.extend_from_slice(match store {
        Store::Load | Store::Update => b"set ",
        Store::Insert => b"add ",
    });
    append_key(key, to);
    to.extend_from_slice(b" 0 0 ");
    append_decimal(value_size as u64, to);
    to.extend_from_slice(b"\r\n");
    append_value(value_kind, key, version, value_size, to);
    to.extend_from_slice(b"\r\n");
}

/// Longest line that a server sends before a value or as an error.
const LINE_LENGTH_MAX: usize = 1024;

/// One line without its line end, and the position behind it.
#[inline]
fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = memchr::memchr(b'\n', &input[..input.len().min(LINE_LENGTH_MAX)])?;
    let text = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
    Some((text, end + 1))
}

fn is_refusal(text: &[u8]) -> bool {
    text.starts_with(b"SERVER_ERROR") || text.starts_with(b"CLIENT_ERROR") || matches!(text, b"ERROR" | b"NOT_STORED" | b"EXISTS" | b"NOT_FOUND")
}

#[inline]
fn parse_length(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses the reply to a `get` of one key.
#[inline]
pub fn parse_get_reply(input: &[u8]) -> Parsed<Reply<'_>> {
    let Some((text, header_length)) = line(input) else {
        return incomplete_or_garbled(input);
    };
    let Some(rest) = text.strip_prefix(b"VALUE ") else {
        return match text {
            b"END" => Parsed::Complete(Reply::Miss, header_length),
            _ if is_refusal(text) => Parsed::Complete(Reply::Refused(text), header_length),
            _ => Parsed::Garbled,
        };
    };
    let mut words = rest.split(|&byte| byte == b' ');
    let (Some(key), Some(_flags), Some(length)) = (words.next(), words.next(), words.next()) else {
        return Parsed::Garbled;
    };
    const TAIL: &[u8] = b"\r\nEND\r\n";
    let Some(data_end) = parse_length(length).and_then(|length| header_length.checked_add(length)) else {
        return Parsed::Garbled;
    };
    match input.get(data_end..data_end.saturating_add(TAIL.len())) {
        None => Parsed::Incomplete,
        Some(TAIL) => {
            let data = &input[header_length..data_end];
            Parsed::Complete(Reply::Value(Value::Named { key, data }), data_end + TAIL.len())
        }
        Some(_) => Parsed::Garbled,
    }
}

/// Parses the reply to a `set` or `add`.
#[inline]
pub fn parse_store_reply(input: &[u8]) -> Parsed<Reply<'_>> {
    match line(input) {
        None => incomplete_or_garbled(input),
        Some((b"STORED", length)) => Parsed::Complete(Reply::Stored, length),
        Some((text, length)) if is_refusal(text) => Parsed::Complete(Reply::Refused(text), length),
        Some(_) => Parsed::Garbled,
    }
}

fn incomplete_or_garbled<'a>(input: &[u8]) -> Parsed<Reply<'a>> {
    if input.len() < LINE_LENGTH_MAX { Parsed::Incomplete } else { Parsed::Garbled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_right_bytes() {
        let mut bytes = Vec::new();
        append_get(0, &mut bytes);
        assert_eq!(bytes, b"get user6284781860667377211\r\n");
        bytes.clear();
        append_store(Store::Update, 0, 1, ValueKind::Random, 40, &mut bytes);
        assert!(bytes.starts_with(b"set user6284781860667377211 0 0 40\r\n0000000000000000"));
        assert_eq!(bytes.len(), 36 + 40 + 2);
        assert!(bytes.ends_with(b"\r\n"));
    }

    #[test]
    fn every_cut_of_a_value_is_incomplete() {
        let reply = b"VALUE user1 0 5\r\nhello\r\nEND\r\n";
        for cut in 0..reply.len() {
            assert_eq!(parse_get_reply(&reply[..cut]), Parsed::Incomplete, "{cut}");
        }
        let expected = Reply::Value(Value::Named { key: b"user1", data: b"hello" });
        assert_eq!(parse_get_reply(reply), Parsed::Complete(expected, reply.len()));
    }

    #[test]
    fn misses_and_refusals_are_told_apart() {
        assert_eq!(parse_get_reply(b"END\r\n"), Parsed::Complete(Reply::Miss, 5));
        assert_eq!(parse_store_reply(b"STORED\r\nSTORED\r\n"), Parsed::Complete(Reply::Stored, 8));
        assert_eq!(parse_store_reply(b"SERVER_ERROR out of memory\r\n"), Parsed::Complete(Reply::Refused(b"SERVER_ERROR out of memory"), 28));
    }

    #[test]
    fn nonsense_is_garbled_and_never_panics() {
        for bytes in [
            &b"VALUE \r\n"[..],
            b"VALUE a 0 -1\r\n",
            b"VALUE a 0 18446744073709551615\r\n",
            b"VALUE a 0 1\r\nxyEND\r\nEND\r\n",
            b"HELLO\r\n",
            &[b'x'; 2_000],
        ] {
            assert_eq!(parse_get_reply(bytes), Parsed::Garbled, "{bytes:?}");
        }
        assert_eq!(parse_store_reply(b"\r\n"), Parsed::Garbled);
    }
}
