//! Neighbours among slots that come one after the other, so that a backend is told of many at a time.

/// Gathers runs: `action` gets the first slot and the length of each, the last one at [`Self::end`] or when this is dropped.
pub(crate) struct SlotRuns<F: FnMut(usize, usize)> {
    start: usize,
    len: usize,
    action: F,
}

impl<F: FnMut(usize, usize)> SlotRuns<F> {
    pub(crate) fn new(action: F) -> Self {
        Self { start: 0, len: 0, action }
    }

    pub(crate) fn add(&mut self, slot: usize) {
        if self.len > 0 && self.start + self.len == slot {
            self.len += 1;
        } else {
            self.end();
            (self.start, self.len) = (slot, 1);
        }
    }

    /// The last run ends.
    pub(crate) fn end(&mut self) {
        if self.len > 0 {
            (self.action)(self.start, self.len);
            self.len = 0;
        }
    }
}

impl<F: FnMut(usize, usize)> Drop for SlotRuns<F> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let mut found = Vec::new();
        let mut runs = SlotRuns::new(|start, len| found.push((start, len)));
        [3, 4, 5, 9, 8, 10, 11].into_iter().for_each(|slot| runs.add(slot));
        runs.end();
        runs.add(12);
        drop(runs);
        assert_eq!(found, [(3, 3), (9, 1), (8, 1), (10, 2), (12, 1)]);
        drop(SlotRuns::new(|_, _| panic!("nothing was added")));
    }
}
