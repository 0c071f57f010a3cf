//! What is known of a group: which of its objects live, which of its pages are backed by memory.

use super::classes::{Class, ClassIndex, GROUP_OBJECTS_MAX, GROUP_PAGES};
use std::cell::Cell;
use std::sync::atomic::AtomicU8;

const NUM_WORDS: usize = GROUP_OBJECTS_MAX / u64::BITS as usize;
const _: () = assert!(GROUP_PAGES == u32::BITS as usize);

/// No group, as the end of a list.
pub(super) const NIL: u32 = u32::MAX;
/// As the [`Group::class`] of a group that has none. That of others is one more than their class.
pub(super) const NO_CLASS: ClassIndex = 0;
/// As the [`Group::list`] of a group in which no object is free.
pub(super) const NO_LIST: u8 = 0;

/// All zeroes is a group that was never used. Its cells belong to the holder of the lock of its class, or of the lock of groups without one.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Group {
    /// A bit an object.
    live: [Cell<u64>; NUM_WORDS],
    /// Pages backed by memory, a bit each: all that living objects overlap, and the idle ones.
    pub(super) committed: Cell<u32>,
    /// Idle pages that are being given back: no object may be put there before they are.
    pub(super) releasing: Cell<u32>,
    pub(super) next: Cell<u32>,
    pub(super) previous: Cell<u32>,
    pub(super) num_live: Cell<u16>,
    /// Which list of its class it is in, counted from 1.
    pub(super) list: Cell<u8>,
    pub(super) class: AtomicU8,
}

impl Group {
    /// The first free object that overlaps none of the `forbidden` pages.
    pub(super) fn find_free(&self, class: Class, forbidden: u32) -> Option<u32> {
        for (index, word) in self.live.iter().enumerate() {
            let mut free = !word.get();
            while free != 0 {
                let object = index as u32 * u64::BITS + free.trailing_zeros();
                if object >= class.num_objects {
                    return None;
                }
                if class.pages_of_object(object) & forbidden == 0 {
                    return Some(object);
                }
                free &= free - 1;
            }
        }
        None
    }

    pub(super) fn is_live(&self, object: u32) -> bool {
        self.live[(object / u64::BITS) as usize].get() >> (object % u64::BITS) & 1 != 0
    }

    /// Lets an object live that did not, or the other way round.
    pub(super) fn flip(&self, object: u32) {
        let word = &self.live[(object / u64::BITS) as usize];
        word.set(word.get() ^ 1 << (object % u64::BITS));
    }

    /// Those of `pages` that no living object overlaps.
    pub(super) fn without_objects(&self, class: Class, mut pages: u32) -> u32 {
        let mut idle = 0;
        while pages != 0 {
            let page = pages.trailing_zeros();
            let (first, end) = class.objects_of_page(page);
            if !self.any_live(first, end) {
                idle |= 1 << page;
            }
            pages &= pages - 1;
        }
        idle
    }

    fn any_live(&self, first: u32, end: u32) -> bool {
        let mut at = first;
        while at < end {
            let in_word = at % u64::BITS;
            let num_bits = (end - at).min(u64::BITS - in_word);
            let bits = self.live[(at / u64::BITS) as usize].get() >> in_word;
            if bits & (u64::MAX >> (u64::BITS - num_bits)) != 0 {
                return true;
            }
            at += num_bits;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::classes::{NUM_CLASSES, class};
    use super::*;

    fn group() -> Group {
        // SAFETY: all zeroes is a group.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn groups_take_a_cache_line() {
        assert_eq!(size_of::<Group>(), 64);
    }

    #[test]
    fn free_objects_and_pages_are_found() {
        for class in (0..NUM_CLASSES).map(|index| class(index as ClassIndex)) {
            let group = group();
            for object in 0..class.num_objects {
                assert_eq!(group.find_free(class, 0), Some(object));
                group.flip(object);
                assert!(group.is_live(object));
                let own = class.pages_of_object(object);
                assert_eq!(group.without_objects(class, own), 0);
                // None of the later pages has any object yet.
                let later = u32::MAX.checked_shl(u32::BITS - own.leading_zeros()).unwrap_or(0);
                assert_eq!(group.without_objects(class, later), later);
            }
            assert_eq!(group.find_free(class, 0), None);
            let last = class.num_objects - 1;
            group.flip(last);
            assert_eq!(group.find_free(class, class.pages_of_object(last)), None);
            assert_eq!(group.find_free(class, 0), Some(last));
        }
    }
}
