//! Size classes: how long the place of an object is.

use crate::size::{PAGE_SIZE, bytes_of};

/// Pages of address space of a group. More of them waste less at the end of a group, and allow finer classes.
pub(super) const GROUP_PAGES: usize = 32;
pub(super) const GROUP_BYTES: usize = bytes_of(GROUP_PAGES);
/// What a group's bitmap has room for. A group of smaller objects than 512 bytes leaves the end of its address space unused.
pub(super) const GROUP_OBJECTS_MAX: usize = 256;
/// Longer objects are not worth decompressing: their pages are stored as they are.
pub(super) const COMPRESSED_LEN_MAX: usize = GROUP_BYTES / 36;

const STEP: usize = 16;
const NUM_STEPS: usize = PAGE_SIZE / STEP;

/// Number of a size class.
pub(super) type ClassIndex = u8;

/// Objects of up to `size` bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub(super) size: u32,
    /// In a group.
    pub(super) num_objects: u32,
}

impl Class {
    /// The pages of a group that an object overlaps, a bit each.
    pub(super) fn pages_of_object(self, object: u32) -> u32 {
        let start = object * self.size;
        let first = start / PAGE_SIZE as u32;
        let last = (start + self.size - 1) / PAGE_SIZE as u32;
        1 << first | 1 << last
    }

    /// The objects of a group that overlap a page: from the first, up to but without the second.
    pub(super) fn objects_of_page(self, page: u32) -> (u32, u32) {
        let start = page * PAGE_SIZE as u32;
        let end = (start + PAGE_SIZE as u32 - 1) / self.size + 1;
        (start / self.size, end.min(self.num_objects))
    }
}

/// The size that follows `size`: a step more, and what else the same number of objects leaves of a group; last, whole pages.
const fn next_size(size: usize) -> usize {
    let next = GROUP_BYTES / (GROUP_BYTES / (size + STEP));
    if next > COMPRESSED_LEN_MAX { PAGE_SIZE } else { next }
}

const fn count() -> usize {
    let (mut size, mut num_classes) = (STEP, 1);
    while size < PAGE_SIZE {
        size = next_size(size);
        num_classes += 1;
    }
    num_classes
}

pub(super) const NUM_CLASSES: usize = count();
/// The class of whole pages.
pub(super) const RAW: ClassIndex = NUM_CLASSES as ClassIndex - 1;
// One number is left for groups without a class.
const _: () = assert!(NUM_CLASSES < ClassIndex::MAX as usize);

const CLASSES: [Class; NUM_CLASSES] = {
    let mut classes = [Class { size: 0, num_objects: 0 }; NUM_CLASSES];
    let (mut size, mut index) = (STEP, 0);
    while index < NUM_CLASSES {
        let fitting = GROUP_BYTES / size;
        let num_objects = if fitting < GROUP_OBJECTS_MAX { fitting } else { GROUP_OBJECTS_MAX };
        classes[index] = Class { size: size as u32, num_objects: num_objects as u32 };
        size = next_size(size);
        index += 1;
    }
    classes
};

/// For each number of whole steps, the class of the shortest object with so many: for the longer ones it may be the next, as classes are a step apart.
const FIRST_OF_STEP: [ClassIndex; NUM_STEPS + 1] = {
    let mut first = [0; NUM_STEPS + 1];
    let mut step = 0;
    while step <= NUM_STEPS {
        let mut index = 0;
        while (CLASSES[index].size as usize) < step * STEP {
            index += 1;
        }
        first[step] = index as ClassIndex;
        step += 1;
    }
    first
};

pub(super) fn class(index: ClassIndex) -> Class {
    CLASSES[usize::from(index)]
}

/// The class for objects of `len` bytes, 1 to 4096.
pub(super) fn class_of(len: usize) -> ClassIndex {
    let index = FIRST_OF_STEP[len / STEP];
    index + ClassIndex::from((class(index).size as usize) < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_the_smallest_class_that_holds_it() {
        for len in 1..=PAGE_SIZE {
            let expected = CLASSES.iter().position(|class| class.size as usize >= len).unwrap();
            assert_eq!(usize::from(class_of(len)), expected, "{len} bytes");
        }
        assert_eq!(usize::from(class_of(COMPRESSED_LEN_MAX)), NUM_CLASSES - 2);
        assert_eq!(class(RAW).size as usize, PAGE_SIZE);
    }

    #[test]
    fn classes_waste_little() {
        for pair in CLASSES.windows(2) {
            let (small, large) = (pair[0].size as usize, pair[1].size as usize);
            assert!(large - small <= STEP + small / 32 || large == PAGE_SIZE, "{small} is followed by {large}");
        }
        for class in CLASSES {
            let used = (class.size * class.num_objects) as usize;
            assert!(used <= GROUP_BYTES);
            assert!(class.num_objects as usize == GROUP_OBJECTS_MAX || GROUP_BYTES - used < class.size as usize);
        }
    }

    #[test]
    fn objects_and_pages_agree() {
        for class in CLASSES {
            for page in 0..GROUP_PAGES as u32 {
                let (first, end) = class.objects_of_page(page);
                for object in 0..class.num_objects {
                    let overlaps = class.pages_of_object(object) & 1 << page != 0;
                    assert_eq!(overlaps, (first..end).contains(&object), "object {object} of {class:?}, page {page}");
                }
            }
        }
    }
}
