//! The keys that a scan found, whose records are being read.

use crate::protocol::resp::{Frame, Items};

#[derive(Debug, Clone, Default)]
pub struct Scanned {
    /// All names, one behind the other.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    num_read: usize,
    is_refused: bool,
}

impl Scanned {
    /// Takes down the names of a new scan, and tells how many they are.
    pub fn start(&mut self, names: Items<'_>) -> usize {
        self.bytes.clear();
        self.ends.clear();
        (self.num_read, self.is_refused) = (0, false);
        for name in names {
            if let Frame::Bulk(name) = name {
                self.bytes.extend_from_slice(name);
                self.ends.push(self.bytes.len());
            }
        }
        self.ends.len()
    }

    fn name(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len()).filter_map(|index| self.name(index))
    }

    /// The first whose record was not read yet.
    pub fn awaited(&self) -> Option<&[u8]> {
        self.name(self.num_read)
    }

    pub fn advance(&mut self) {
        self.num_read += 1;
    }

    /// The server did not want to read one of them.
    pub fn refuse(&mut self) {
        self.is_refused = true;
    }

    pub fn is_refused(&self) -> bool {
        self.is_refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Parsed;
    use crate::protocol::resp::{append_command, parse};

    #[test]
    fn names_are_read_in_turn_and_a_new_scan_forgets_them() {
        let mut scanned = Scanned::default();
        let mut start = |names: &[&[u8]]| {
            let mut bytes = Vec::new();
            append_command(names, &mut bytes);
            let Parsed::Complete(Frame::Array(items), _) = parse(&bytes) else { panic!("no array") };
            (scanned.start(items), scanned.clone())
        };
        let (count, mut first) = start(&[b"a", b"", b"ccc"]);
        assert_eq!((count, first.names().collect::<Vec<_>>()), (3, vec![&b"a"[..], b"", b"ccc"]));
        first.advance();
        first.advance();
        first.refuse();
        assert_eq!((first.awaited(), first.is_refused()), (Some(&b"ccc"[..]), true));
        first.advance();
        assert_eq!(first.awaited(), None);
        let (count, second) = start(&[]);
        assert_eq!((count, second.awaited(), second.is_refused()), (0, None, false));
    }
}
