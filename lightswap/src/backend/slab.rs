//! Records of requests in flight, by number: as many as were announced, without any allocation.

use std::cell::{Cell, RefCell};

/// For one thread.
pub(super) struct Slab<T> {
    records: Box<[Cell<Option<T>>]>,
    /// Numbers of the unused ones; never grows past its capacity.
    free: RefCell<Vec<u32>>,
}

impl<T: Copy> Slab<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { records: (0..capacity).map(|_| Cell::new(None)).collect(), free: RefCell::new((0..capacity as u32).rev().collect()) }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.borrow().is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.borrow().len() == self.records.len()
    }

    /// Keeps a record; its number.
    ///
    /// # Panics
    /// If there are more than were announced.
    pub(super) fn insert(&self, record: T) -> u32 {
        let index = self.free.borrow_mut().pop().expect("no more requests than were announced");
        self.records[index as usize].set(Some(record));
        index
    }

    /// The record with this number, if there is one.
    pub(super) fn get(&self, index: u32) -> Option<T> {
        self.records.get(index as usize)?.get()
    }

    /// Changes the record of a number in use.
    pub(super) fn set(&self, index: u32, record: T) {
        debug_assert!(self.get(index).is_some());
        self.records[index as usize].set(Some(record));
    }

    /// Ends the record of a number in use.
    pub(super) fn remove(&self, index: u32) -> T {
        let record = self.records[index as usize].take().expect("the record is in use");
        self.free.borrow_mut().push(index);
        record
    }

    /// Numbers of all that are in use.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> {
        (0..self.records.len() as u32).filter(|index| self.get(*index).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_and_go() {
        let slab = Slab::new(2);
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert!(!slab.has_room() && a != b);
        slab.set(a, 'c');
        assert_eq!((slab.get(a), slab.get(b), slab.get(7)), (Some('c'), Some('b'), None));
        assert_eq!((slab.remove(a), slab.get(a)), ('c', None));
        assert_eq!(slab.indices().collect::<Vec<_>>(), [b]);
        assert_eq!(slab.insert('d'), a);
    }
}
