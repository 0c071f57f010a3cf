//! Size classes of small objects: eight steps a doubling, so that an object wastes at most a ninth of its place from 128 bytes on (below, less than 16 bytes).

use crate::size::{PAGE_SIZE, bytes_of};

/// Larger objects are runs of whole pages, which waste at most an eighth.
pub(super) const SMALL_MAX: usize = 32 << 10;
/// The alignment of everything, and the smallest step.
const STEP_BYTES: usize = 16;
const STEPS_PER_DOUBLING: usize = 8;
/// Classes up to here are a smallest step apart.
const FINE_MAX: usize = STEP_BYTES * STEPS_PER_DOUBLING;
pub(super) const NUM_CLASSES: usize = STEPS_PER_DOUBLING * (1 + (SMALL_MAX / FINE_MAX).ilog2() as usize);
/// Most pages of a slab.
const SLAB_PAGES_MAX: usize = 16;
/// The end of a slab that no object fits in is at most this part of it.
const TAIL_PART: usize = 16;

/// Objects of up to `size` bytes, and their slabs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub(super) size: u32,
    /// Of a slab.
    pub(super) num_pages: u32,
    /// In a slab.
    pub(super) num_objects: u32,
}

impl Class {
    /// The pages of a slab that an object overlaps, a bit each.
    pub(super) fn pages_of_object(self, object: u32) -> u32 {
        let start = object * self.size;
        let (first, last) = (start / PAGE_SIZE as u32, (start + self.size - 1) / PAGE_SIZE as u32);
        (2 << last) - (1 << first)
    }
}

const fn size_of_class(index: usize) -> usize {
    let (doubling, step) = (index / STEPS_PER_DOUBLING, index % STEPS_PER_DOUBLING + 1);
    if doubling == 0 { step * STEP_BYTES } else { (STEPS_PER_DOUBLING + step) * (STEP_BYTES << (doubling - 1)) }
}

/// As few pages as waste little: what is read back for one object, or kept by one, is small then.
const fn slab_of(size: usize) -> Class {
    let mut num_pages = 1;
    loop {
        let num_bytes = bytes_of(num_pages);
        if num_bytes >= size && (num_bytes % size) * TAIL_PART <= num_bytes {
            return Class { size: size as u32, num_pages: num_pages as u32, num_objects: (num_bytes / size) as u32 };
        }
        num_pages += 1;
        assert!(num_pages <= SLAB_PAGES_MAX);
    }
}

const CLASSES: [Class; NUM_CLASSES] = {
    let mut classes = [Class { size: 0, num_pages: 0, num_objects: 0 }; NUM_CLASSES];
    let mut index = 0;
    while index < NUM_CLASSES {
        classes[index] = slab_of(size_of_class(index));
        index += 1;
    }
    classes
};

pub(super) fn class(index: usize) -> Class {
    CLASSES[index]
}

/// The class for objects of `size` bytes, 1 to [`SMALL_MAX`].
pub(super) fn class_of(size: usize) -> usize {
    let last = size - 1;
    if last < FINE_MAX {
        return last / STEP_BYTES;
    }
    let doubling = (last / FINE_MAX).ilog2() as usize;
    doubling * STEPS_PER_DOUBLING + last / (STEP_BYTES << doubling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        for size in 1..=SMALL_MAX {
            let expected = CLASSES.iter().position(|class| class.size as usize >= size).unwrap();
            assert_eq!(class_of(size), expected, "{size} bytes");
        }
        assert_eq!((CLASSES[0].size, CLASSES[NUM_CLASSES - 1].size as usize), (16, SMALL_MAX));
    }

    #[test]
    fn classes_and_slabs_waste_little() {
        for pair in CLASSES.windows(2) {
            let (small, large) = (pair[0].size, pair[1].size);
            assert!(small % 16 == 0 && (large - small == 16 || (large - small) * 9 <= large), "{small} is followed by {large}");
        }
        for class in CLASSES {
            let (used, all) = (class.num_objects * class.size, class.num_pages * PAGE_SIZE as u32);
            assert!(class.num_objects > 0 && used <= all && (all - used) * 16 <= all, "{class:?}");
        }
    }

    #[test]
    fn objects_overlap_the_pages_that_their_bytes_are_in() {
        for class in CLASSES {
            for object in 0..class.num_objects {
                let page_of = |byte: u32| byte / PAGE_SIZE as u32;
                let (first, last) = (page_of(object * class.size), page_of((object + 1) * class.size - 1));
                let expected = (first..=last).fold(0, |mask, page| mask | 1 << page);
                assert_eq!(class.pages_of_object(object), expected, "object {object} of {class:?}");
                assert!(last < class.num_pages);
            }
        }
    }
}
