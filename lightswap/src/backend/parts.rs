//! Writes that a node passes on in parts: the whole is over with the last of them, and good if all are.

use super::Write;
use super::slab::Slab;
use crate::io_queue::Token;

#[derive(Clone, Copy, Debug)]
struct Whole {
    token: Token,
    num_pending: usize,
    /// Bytes that were written, or the error of a part.
    result: i32,
}

/// Those of a worker's node; for its thread only.
pub(super) struct PartWrites(Slab<Whole>);

impl PartWrites {
    /// For so many writes at a time.
    pub(super) fn new(num_writes: usize) -> Self {
        Self(Slab::new(num_writes))
    }

    /// A write that will be reported to `token`; its number, by which the parts' completions are to come back.
    pub(super) fn begin(&self, token: Token) -> u32 {
        // One more than there are, until the end: a part may be over before the next begins.
        self.0.insert(Whole { token, num_pending: 1, result: 0 })
    }

    /// A part of so many bytes was begun, and that is what became of it.
    pub(super) fn add(&self, index: u32, num_bytes: usize, write: Write) {
        let mut whole = self.get(index);
        match write {
            Write::Done => whole.note(num_bytes as i32),
            Write::Pending => whole.num_pending += 1,
            Write::Failed => whole.note(-libc::EIO),
        }
        self.0.set(index, whole);
    }

    /// All parts were begun.
    pub(super) fn end(&self, index: u32) -> Write {
        let mut whole = self.get(index);
        whole.num_pending -= 1;
        self.0.set(index, whole);
        if whole.num_pending > 0 {
            return Write::Pending;
        }
        self.0.remove(index);
        if whole.result < 0 { Write::Failed } else { Write::Done }
    }

    /// A part has ended with `result`; of the last one, whom to tell what.
    pub(super) fn complete(&self, index: u32, result: i32) -> Option<(Token, i32)> {
        let mut whole = self.get(index);
        whole.num_pending -= 1;
        whole.note(result);
        self.0.set(index, whole);
        (whole.num_pending == 0).then(|| {
            self.0.remove(index);
            (whole.token, whole.result)
        })
    }

    fn get(&self, index: u32) -> Whole {
        self.0.get(index).expect("it has not ended")
    }
}

impl Whole {
    fn note(&mut self, result: i32) {
        self.result = if self.result < 0 || result < 0 { self.result.min(result) } else { self.result + result };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_the_sum_of_its_parts() {
        let (writes, token) = (PartWrites::new(1), Token::write(1, 2));
        let begin = |parts: &[Write]| {
            let index = writes.begin(token);
            parts.iter().for_each(|part| writes.add(index, 4096, *part));
            (index, writes.end(index))
        };
        assert_eq!(begin(&[Write::Done, Write::Done]).1, Write::Done);
        assert_eq!(begin(&[Write::Done, Write::Failed]).1, Write::Failed);
        for (result, expected) in [(4096, 8192), (100, 4196), (-5, -5)] {
            let (index, write) = begin(&[Write::Done, Write::Pending]);
            assert_eq!((write, writes.complete(index, result)), (Write::Pending, Some((token, expected))));
        }
        let (index, _) = begin(&[Write::Pending, Write::Failed, Write::Pending]);
        assert_eq!((writes.complete(index, 4096), writes.complete(index, 4096)), (None, Some((token, -libc::EIO))));
    }
}
