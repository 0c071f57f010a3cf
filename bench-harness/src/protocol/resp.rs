//! RESP, the protocol of Redis: commands written into a buffer, replies parsed in place.

use super::Parsed;
use crate::ycsb::{append_decimal, append_key_name, fnv_hash};

/// Longest line: a length, a status, or an error's text.
const LINE_LENGTH_MAX: usize = 4096;
/// Redis's own limit of a string.
const BULK_LENGTH_MAX: usize = 512 * 1024 * 1024;
/// More than any reply to what is asked here.
const ARRAY_LENGTH_MAX: usize = 1 << 20;
/// Arrays in arrays; replies to what is asked here have none.
const DEPTH_MAX: u32 = 4;

/// A reply, borrowed from the input buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
    Array(Items<'a>),
}

/// The elements of an array, all of which are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items<'a> {
    left: usize,
    bytes: &'a [u8],
}

impl Items<'_> {
    pub fn len(&self) -> usize {
        self.left
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        self.left = self.left.checked_sub(1)?;
        match parse(self.bytes) {
            Parsed::Complete(frame, length) => {
                self.bytes = &self.bytes[length..];
                Some(frame)
            }
            Parsed::Incomplete | Parsed::Garbled => None,
        }
    }
}

/// A line behind the type's character, without its end, and where the next begins.
#[inline]
fn line(input: &[u8]) -> Parsed<&[u8]> {
    let window = &input[..input.len().min(LINE_LENGTH_MAX)];
    match memchr::memchr(b'\n', window) {
        Some(end) if end > 1 && window[end - 1] == b'\r' => Parsed::Complete(&window[1..end - 1], end + 1),
        Some(_) => Parsed::Garbled,
        None if input.len() < LINE_LENGTH_MAX => Parsed::Incomplete,
        None => Parsed::Garbled,
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses the reply at the start of the input.
#[inline]
pub fn parse(input: &[u8]) -> Parsed<Frame<'_>> {
    parse_in(input, 0)
}

fn parse_in(input: &[u8], depth: u32) -> Parsed<Frame<'_>> {
    let Some(&kind) = input.first() else {
        return Parsed::Incomplete;
    };
    if !b"+-:$*".contains(&kind) {
        return Parsed::Garbled;
    }
    let (text, header_length) = match line(input) {
        Parsed::Complete(text, length) => (text, length),
        Parsed::Incomplete => return Parsed::Incomplete,
        Parsed::Garbled => return Parsed::Garbled,
    };
    match kind {
        b'+' => return Parsed::Complete(Frame::Status(text), header_length),
        b'-' => return Parsed::Complete(Frame::Error(text), header_length),
        _ => {}
    }
    let Some(number) = number(text) else {
        return Parsed::Garbled;
    };
    match (kind, number, usize::try_from(number)) {
        (b':', ..) => Parsed::Complete(Frame::Integer(number), header_length),
        (_, -1, _) => Parsed::Complete(Frame::Null, header_length),
        (b'$', _, Ok(length)) if length <= BULK_LENGTH_MAX => parse_bulk(input, header_length, length),
        (b'*', _, Ok(length)) if length <= ARRAY_LENGTH_MAX && depth < DEPTH_MAX => parse_array(input, header_length, length, depth),
        _ => Parsed::Garbled,
    }
}

#[inline]
fn parse_bulk(input: &[u8], header_length: usize, length: usize) -> Parsed<Frame<'_>> {
    let end = header_length + length;
    match input.get(end..end + 2) {
        None => Parsed::Incomplete,
        Some(b"\r\n") => Parsed::Complete(Frame::Bulk(&input[header_length..end]), end + 2),
        Some(_) => Parsed::Garbled,
    }
}

fn parse_array(input: &[u8], header_length: usize, length: usize, depth: u32) -> Parsed<Frame<'_>> {
    let mut end = header_length;
    for _ in 0..length {
        match parse_in(&input[end..], depth + 1) {
            Parsed::Complete(_, used) => end += used,
            Parsed::Incomplete => return Parsed::Incomplete,
            Parsed::Garbled => return Parsed::Garbled,
        }
    }
    Parsed::Complete(Frame::Array(Items { left: length, bytes: &input[header_length..end] }), end)
}

/// Begins a command of so many words, which follow.
#[inline]
pub fn append_array(length: u64, to: &mut Vec<u8>) {
    append_header(b'*', length, to);
}

#[inline]
pub fn append_bulk(bytes: &[u8], to: &mut Vec<u8>) {
    append_bulk_length(bytes.len(), to);
    to.extend_from_slice(bytes);
    to.extend_from_slice(b"\r\n");
}

/// Begins a word of so many bytes, which follow, and then a line end.
#[inline]
pub fn append_bulk_length(length: usize, to: &mut Vec<u8>) {
    append_header(b'$', length as u64, to);
}

fn append_header(kind: u8, number: u64, to: &mut Vec<u8>) {
    to.push(kind);
    append_decimal(number, to);
    to.extend_from_slice(b"\r\n");
}

/// A key's name as a word.
#[inline]
pub fn append_key(key: u64, to: &mut Vec<u8>) {
    let hash = fnv_hash(key);
    append_bulk_length("user".len() + hash.checked_ilog10().unwrap_or(0) as usize + 1, to);
    append_key_name(hash, to);
    to.extend_from_slice(b"\r\n");
}

/// A whole command.
pub fn append_command(words: &[&[u8]], to: &mut Vec<u8>) {
    append_array(words.len() as u64, to);
    for word in words {
        append_bulk(word, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn complete(input: &[u8]) -> Frame<'_> {
        match parse(input) {
            Parsed::Complete(frame, length) => {
                assert_eq!(length, input.len());
                frame
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_reply_is_told() {
        assert_eq!(complete(b"+OK\r\n"), Frame::Status(b"OK"));
        assert_eq!(complete(b"-OOM command not allowed\r\n"), Frame::Error(b"OOM command not allowed"));
        assert_eq!(complete(b":-10\r\n"), Frame::Integer(-10));
        assert_eq!(complete(b"$5\r\na\r\nbc\r\n"), Frame::Bulk(b"a\r\nbc"));
        assert_eq!(complete(b"$0\r\n\r\n"), Frame::Bulk(b""));
        assert_eq!([complete(b"$-1\r\n"), complete(b"*-1\r\n")], [Frame::Null, Frame::Null]);
        let Frame::Array(items) = complete(b"*4\r\n$1\r\na\r\n$-1\r\n*1\r\n:7\r\n-ERR no\r\n") else { panic!("no array") };
        assert_eq!(items.len(), 4);
        let items: Vec<Frame<'_>> = items.collect();
        assert_eq!((&items[0], &items[1], &items[3]), (&Frame::Bulk(b"a"), &Frame::Null, &Frame::Error(b"ERR no")));
        assert!(matches!(&items[2], Frame::Array(inner) if inner.clone().collect::<Vec<_>>() == [Frame::Integer(7)]));
        assert!(matches!(complete(b"*0\r\n"), Frame::Array(items) if items.len() == 0));
        // What follows a reply is the next one's.
        assert_eq!(parse(b"+OK\r\n+OK\r\n"), Parsed::Complete(Frame::Status(b"OK"), 5));
    }

    #[test]
    fn every_cut_of_a_reply_is_incomplete() {
        for reply in [&b"*2\r\n$5\r\nhello\r\n*2\r\n:1\r\n$-1\r\n"[..], b"$12\r\nhello\r\nworld\r\n", b"-ERR no\r\n", b":12\r\n", b"*-1\r\n"] {
            for cut in 0..reply.len() {
                assert_eq!(parse(&reply[..cut]), Parsed::Incomplete, "{cut} of {reply:?}");
            }
            assert!(matches!(parse(reply), Parsed::Complete(_, length) if length == reply.len()));
        }
    }

    #[test]
    fn nonsense_is_garbled() {
        let long = [b"+".as_slice(), &[b'x'; 2 * LINE_LENGTH_MAX]].concat();
        let deep = b"*1\r\n".repeat(1_000);
        for bytes in [
            &b"HELLO\r\n"[..],
            b"\r\n",
            b"VALUE a 0 1\r\n",
            b"$\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"$99999999999999999999\r\n",
            b"$9223372036854775807\r\n",
            b"*9223372036854775807\r\n",
            b"*-3\r\n",
            b":\r\n",
            b":1.5\r\n",
            b"+OK\n",
            b"$2\r\nabc\r\n",
            b"*2\r\n:1\r\nx",
            &long,
            &deep,
        ] {
            assert_eq!(parse(bytes), Parsed::Garbled, "{:?}", &bytes[..bytes.len().min(40)]);
        }
    }

    /// Right replies with bytes changed, removed and repeated: whatever comes of it, nothing is read beyond the input.
    #[test]
    fn hostile_input_never_panics() {
        let good = b"*4\r\n$6\r\nfield0\r\n$3\r\nabc\r\n*2\r\n:-12\r\n+OK\r\n-ERR what\r\n$-1\r\n";
        let mut random = Random::new(17);
        let (mut num_complete, mut num_garbled) = (0, 0);
        for _ in 0..200_000 {
            let mut bytes = good.to_vec();
            for _ in 0..=random.below(4) {
                let place = random.below(bytes.len() as u64) as usize;
                match random.below(4) {
                    0 => bytes[place] = b"0123456789-+*$:\r\n\0\xff"[random.below(19) as usize],
                    1 => bytes.truncate(place.max(1)),
                    2 => drop(bytes.remove(place).min(1)),
                    _ => bytes.insert(place, random.below(256) as u8),
                }
                if bytes.is_empty() {
                    bytes.push(b'*');
                }
            }
            match parse(&bytes) {
                Parsed::Complete(frame, length) => {
                    assert!(length <= bytes.len());
                    if let Frame::Array(items) = frame {
                        let announced = items.len();
                        assert_eq!(items.count(), announced);
                    }
                    num_complete += 1;
                }
                Parsed::Garbled => num_garbled += 1,
                Parsed::Incomplete => {}
            }
        }
        assert!(num_complete > 1_000 && num_garbled > 1_000, "{num_complete} {num_garbled}");
    }

    #[test]
    fn commands_have_the_right_bytes() {
        let mut bytes = Vec::new();
        append_command(&[b"INFO", b"memory"], &mut bytes);
        assert_eq!(bytes, b"*2\r\n$4\r\nINFO\r\n$6\r\nmemory\r\n");
        bytes.clear();
        append_key(0, &mut bytes);
        assert_eq!(bytes, b"$23\r\nuser6284781860667377211\r\n");
        for key in 0..10_000 {
            bytes.clear();
            append_key(key, &mut bytes);
            assert!(matches!(parse(&bytes), Parsed::Complete(Frame::Bulk(_), length) if length == bytes.len()), "{key}");
        }
    }
}
