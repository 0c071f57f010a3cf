//! Where a region has resident pages: counts that find the next ones without looking at every page, however large the region is.
//!
//! Two levels: resident pages of each chunk, and chunks with such pages of each group. The upper one changes only when a chunk gets its first resident page or loses
//! its last. Both may be off for a moment while they are updated; whoever looks takes them for hints. Memory is touched only where the region is.

use crate::error::Result;
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use std::ops::Range;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::Relaxed;

/// Pages per chunk: what one page of the kernel's page table maps.
pub(crate) const CHUNK_PAGES: usize = 512;
/// Chunks per group: 1 GiB.
const GROUP_CHUNKS: usize = 512;

/// The counts of one region.
#[derive(Debug)]
pub(crate) struct Residency {
    num_pages: usize,
    chunks: Mapping,
    groups: Box<[AtomicU16]>,
}

impl Residency {
    pub(crate) fn new(num_pages: usize) -> Result<Self> {
        let num_chunks = num_pages.div_ceil(CHUNK_PAGES);
        let num_bytes = round_up(num_chunks * size_of::<AtomicU16>(), PAGE_SIZE).expect("smaller than the region");
        let groups = (0..num_chunks.div_ceil(GROUP_CHUNKS)).map(|_| AtomicU16::new(0)).collect();
        Ok(Self { num_pages, chunks: Mapping::new(num_bytes, PAGE_SIZE)?, groups })
    }

    fn num_chunks(&self) -> usize {
        self.num_pages.div_ceil(CHUNK_PAGES)
    }

    fn chunk(&self, chunk: usize) -> &AtomicU16 {
        assert!(chunk < self.num_chunks());
        // SAFETY: the mapping has a count for each chunk, zero at first, which is a valid atomic.
        unsafe { &*self.chunks.base().cast::<AtomicU16>().add(chunk) }
    }

    /// Page `index` is resident from now on.
    pub(crate) fn add(&self, index: usize) {
        let chunk = index / CHUNK_PAGES;
        if self.chunk(chunk).fetch_add(1, Relaxed) == 0 {
            self.groups[chunk / GROUP_CHUNKS].fetch_add(1, Relaxed);
        }
    }

    /// Page `index` is not resident any more.
    pub(crate) fn remove(&self, index: usize) {
        let chunk = index / CHUNK_PAGES;
        if self.chunk(chunk).fetch_sub(1, Relaxed) == 1 {
            self.groups[chunk / GROUP_CHUNKS].fetch_sub(1, Relaxed);
        }
    }

    /// Resident pages of the chunk that page `index` is in.
    pub(crate) fn in_chunk(&self, index: usize) -> usize {
        usize::from(self.chunk(index / CHUNK_PAGES).load(Relaxed))
    }

    /// The first page from `index` on whose chunk has resident pages. Async-signal-safe.
    pub(crate) fn next(&self, index: usize) -> Option<usize> {
        let first = index / CHUNK_PAGES;
        if index < self.num_pages && self.chunk(first).load(Relaxed) > 0 {
            return Some(index);
        }
        self.chunks_from(first + 1).next().map(|chunk| chunk * CHUNK_PAGES)
    }

    /// Resident pages of the region.
    pub(crate) fn total(&self) -> usize {
        self.chunks_from(0).map(|chunk| usize::from(self.chunk(chunk).load(Relaxed))).sum()
    }

    /// The chunks from `first` on that have resident pages.
    fn chunks_from(&self, first: usize) -> impl Iterator<Item = usize> {
        let of_group = move |group: usize| -> Range<usize> {
            if self.groups[group].load(Relaxed) == 0 {
                return 0..0;
            }
            first.max(group * GROUP_CHUNKS)..((group + 1) * GROUP_CHUNKS).min(self.num_chunks())
        };
        (first / GROUP_CHUNKS..self.groups.len()).flat_map(of_group).filter(|chunk| self.chunk(*chunk).load(Relaxed) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_empty_region_has_nothing_to_find() {
        for num_pages in [1, CHUNK_PAGES, CHUNK_PAGES * GROUP_CHUNKS, 1 << 28] {
            let residency = Residency::new(num_pages).unwrap();
            assert_eq!((residency.next(0), residency.next(num_pages - 1), residency.next(num_pages), residency.total()), (None, None, None, 0));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

        /// Whatever comes and goes, the next resident chunk is found from everywhere, as a plain map finds it.
        #[test]
        fn the_next_is_found(num_pages in 1..(5 * CHUNK_PAGES * GROUP_CHUNKS), steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let residency = Residency::new(num_pages).unwrap();
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            for (adds, index) in steps {
                let page = index.index(num_pages);
                if adds || counts.is_empty() {
                    residency.add(page);
                    *counts.entry(page / CHUNK_PAGES).or_default() += 1;
                } else {
                    let chunk = *counts.keys().nth(index.index(counts.len())).unwrap();
                    residency.remove(chunk * CHUNK_PAGES);
                    *counts.get_mut(&chunk).unwrap() -= 1;
                    counts.retain(|_, count| *count > 0);
                }
                let expected = counts.range(page / CHUNK_PAGES..).next().map(|(chunk, _)| page.max(chunk * CHUNK_PAGES));
                prop_assert_eq!(residency.next(page), expected);
                prop_assert_eq!(residency.total(), counts.values().sum::<usize>());
                prop_assert_eq!(residency.in_chunk(page), counts.get(&(page / CHUNK_PAGES)).copied().unwrap_or(0));
            }
        }
    }
}
