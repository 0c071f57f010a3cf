//! Objects of a heap with patterns in them, as a model of what it must keep.

use crate::common::{Random, mix};
use lightswap::{ErrorKind, Heap};

/// An object that the test holds.
#[derive(Debug)]
pub struct Object {
    address: usize,
    size: usize,
    seed: u64,
}

fn byte_at(seed: u64, index: usize) -> u8 {
    (mix(seed ^ (index / 8) as u64) >> (8 * (index % 8))) as u8
}

impl Object {
    /// `None` if there is no room.
    pub fn new(heap: &Heap, size: usize, seed: u64) -> Option<Self> {
        let address = match heap.alloc(size) {
            Ok(address) => address.as_ptr() as usize,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                return None;
            }
        };
        let object = Self { address, size, seed };
        object.check_place(heap);
        object.fill();
        Some(object)
    }

    pub fn pointer(&self) -> *mut u8 {
        self.address as *mut u8
    }

    fn check_place(&self, heap: &Heap) {
        assert!(
            self.address.is_multiple_of(16) && heap.contains(self.pointer()) && heap.contains((self.address + self.size.max(1) - 1) as *const u8)
        );
        let usable = heap.usable_size(self.pointer());
        assert!(usable >= self.size && (usable < self.size + 16 || usable <= self.size * 8 / 7 + 16), "{usable} bytes for {}", self.size);
    }

    /// Some bytes of each 512, so that every page is written, and all at the start and end.
    fn indices(&self) -> impl Iterator<Item = usize> + use<> {
        let size = self.size;
        (0..size).filter(move |index| index % 512 < 8 || *index < 64 || *index + 64 >= size)
    }

    fn fill(&self) {
        for index in self.indices() {
            // SAFETY: the object is this test's and has so many bytes.
            unsafe { self.pointer().add(index).write_volatile(byte_at(self.seed, index)) };
        }
    }

    fn check_up_to(&self, len: usize) {
        for index in self.indices().filter(|index| *index < len) {
            // SAFETY: as above.
            let found = unsafe { self.pointer().add(index).read_volatile() };
            assert_eq!(found, byte_at(self.seed, index), "byte {index} of {self:?}");
        }
    }

    pub fn check(&self) {
        self.check_up_to(self.size);
    }

    /// Gives it another size; `false` if there is no room, and it is as it was then.
    pub fn resize(&mut self, heap: &Heap, size: usize) -> bool {
        // SAFETY: the object is this test's, which forgets the old address.
        match unsafe { heap.realloc(self.pointer(), size) } {
            Ok(address) => {
                let (old_size, old) = (self.size, self.address);
                self.address = address.as_ptr() as usize;
                self.check_up_to(size.min(old_size));
                self.size = size;
                if old != self.address {
                    self.check_place(heap);
                }
                self.fill();
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                self.check();
                false
            }
        }
    }

    pub fn free(self, heap: &Heap) {
        // SAFETY: the object is this test's, and is forgotten.
        unsafe { heap.free(self.pointer()) };
    }
}

/// Sizes as programs have them: small ones mostly, some of every order of magnitude.
pub fn random_size(random: &mut Random, max: usize) -> usize {
    let order = random.below(max.ilog2() as usize + 1).min(random.below(24));
    (random.below((2 << order).min(max) + 1)).min(max)
}
