//! What a heap knows of each page of its region: 32 bytes a page, committed where they are used.
//!
//! Everything is found from an address by its page. Only the first page of a slab or run speaks for it (and the last of a free run, for its neighbour); other pages of a
//! slab name that first one, and what the rest hold is of former times and never believed.

use super::classes::{Class, class};
use crate::error::Result;
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// No page.
pub(super) const NIL: u32 = u32::MAX;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Nothing that speaks for itself.
    Inner = 0,
    /// First page of a slab.
    Slab = 1,
    /// Another page of a slab; `first` names that.
    SlabInner = 2,
    /// First page of a large object of `first` pages.
    Run = 3,
    /// First page of `first` free pages, in the tree of free runs.
    Free = 4,
    /// Last page of more than one; `first` names the first.
    FreeLast = 5,
    /// First page of `first` pages that are to be given back.
    Leaving = 6,
}

const KIND_MASK: u8 = 0b111;
const LIST_SHIFT: u32 = 3;

/// Bits of `PageInfo::bits`.
const INLINE_OBJECTS: u32 = 128;
/// Objects that a slab of the smallest class has: their bits are in a table of their own, so that all other slabs do with less.
const TINY_OBJECTS: u32 = 256;
const TINY_WORDS: usize = TINY_OBJECTS as usize / 64;

/// What is known of one page. All of it is written under the lock of the slab's class, or of the runs; what is read without one is only believed as far as
/// a program that uses pointers rightly goes.
#[derive(Debug)]
#[repr(C)]
pub(super) struct PageInfo {
    /// Kind, and list of a slab.
    tag: AtomicU8,
    class: AtomicU8,
    /// Objects of a slab that are in use.
    pub(super) num_used: AtomicU16,
    /// See [`Kind`].
    pub(super) first: AtomicU32,
    /// Neighbours in a list; the subtrees of a free run.
    pub(super) next: AtomicU32,
    pub(super) previous: AtomicU32,
    bits: [AtomicU64; INLINE_OBJECTS as usize / 64],
}

const _: () = assert!(size_of::<PageInfo>() == PageInfo::BYTES);

impl PageInfo {
    pub(super) const BYTES: usize = 32;

    pub(super) fn kind(&self) -> Kind {
        match self.tag.load(Relaxed) & KIND_MASK {
            1 => Kind::Slab,
            2 => Kind::SlabInner,
            3 => Kind::Run,
            4 => Kind::Free,
            5 => Kind::FreeLast,
            6 => Kind::Leaving,
            _ => Kind::Inner,
        }
    }

    /// Also takes a slab off its list, as far as this page knows.
    pub(super) fn set_kind(&self, kind: Kind, first: u32) {
        self.first.store(first, Relaxed);
        self.tag.store(kind as u8, Relaxed);
    }

    pub(super) fn list(&self) -> usize {
        usize::from(self.tag.load(Relaxed) >> LIST_SHIFT)
    }

    pub(super) fn set_list(&self, list: usize) {
        self.tag.store(self.tag.load(Relaxed) & KIND_MASK | (list as u8) << LIST_SHIFT, Relaxed);
    }

    pub(super) fn class_index(&self) -> usize {
        usize::from(self.class.load(Relaxed))
    }

    pub(super) fn set_class(&self, index: usize) {
        self.class.store(index as u8, Relaxed);
    }
}

/// The pages of one region.
#[derive(Debug)]
pub(super) struct Table {
    infos: Mapping,
    tiny: Mapping,
    num_pages: u32,
}

impl Table {
    pub(super) fn new(num_pages: u32) -> Result<Self> {
        let of = |num_bytes: usize| Mapping::new(round_up(num_bytes, PAGE_SIZE).expect("smaller than the region"), PAGE_SIZE);
        let (infos, tiny) = (of(num_pages as usize * PageInfo::BYTES)?, of(num_pages as usize * TINY_WORDS * size_of::<u64>())?);
        for mapping in [&infos, &tiny] {
            mapping.advise(libc::MADV_NOHUGEPAGE);
        }
        Ok(Self { infos, tiny, num_pages })
    }

    pub(super) fn num_pages(&self) -> u32 {
        self.num_pages
    }

    pub(super) fn info(&self, page: u32) -> &PageInfo {
        assert!(page < self.num_pages);
        // SAFETY: there is one for each page; zeroed memory is a valid one, and they consist of atomics.
        unsafe { &*self.infos.base().cast::<PageInfo>().add(page as usize) }
    }

    /// A bit for each object of the slab that starts at `slab`: set while it is in use.
    pub(super) fn bits(&self, slab: u32, class: Class) -> &[AtomicU64] {
        let info = self.info(slab);
        if class.num_objects <= INLINE_OBJECTS {
            return &info.bits[..class.num_objects.div_ceil(64) as usize];
        }
        // SAFETY: there are as many words for each page, zeroed at first and shared as atomics only.
        unsafe { std::slice::from_raw_parts(self.tiny.base().cast::<AtomicU64>().add(slab as usize * TINY_WORDS), TINY_WORDS) }
    }

    /// The slab that `page` belongs to, and its class.
    pub(super) fn slab_of(&self, page: u32) -> Option<(u32, usize)> {
        let info = self.info(page);
        let slab = match info.kind() {
            Kind::Slab => page,
            Kind::SlabInner => info.first.load(Relaxed),
            _ => return None,
        };
        let first = self.info(slab);
        let index = first.class_index();
        (first.kind() == Kind::Slab && page - slab < class(index).num_pages).then_some((slab, index))
    }
}

#[cfg(test)]
mod tests {
    use super::super::classes::NUM_CLASSES;
    use super::*;

    #[test]
    fn every_class_has_bits_for_its_objects() {
        let table = Table::new(100).unwrap();
        for index in 0..NUM_CLASSES {
            assert!(table.bits(99, class(index)).len() * 64 >= class(index).num_objects as usize, "{:?}", class(index));
        }
    }
}
