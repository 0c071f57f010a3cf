//! What a heap counts.

use super::Parts;
use super::classes::class;
use super::slabs::{Found, Shelf};
use crate::size::bytes_of;
use std::sync::atomic::Ordering::Relaxed;

impl Parts {
    /// All counters and gauges. Stops nobody, so values may be of slightly different moments.
    pub(super) fn stats(&self) -> Vec<(&'static str, u64)> {
        let sum = |of: &dyn Fn(usize, &Shelf) -> u64| self.shelves.iter().enumerate().map(|(index, shelf)| of(index, shelf)).sum::<u64>();
        let pages = |num_pages: usize| bytes_of(num_pages) as u64;
        let run_bytes = pages(self.run_pages.load(Relaxed) as usize);
        let found = |found: Found| sum(&|_, shelf| shelf.num_allocations(found));
        vec![
            ("heap_region_bytes", self.region.num_bytes() as u64),
            ("heap_allocated_bytes", sum(&|index, shelf| shelf.num_used() * u64::from(class(index).size)) + run_bytes),
            ("heap_objects", sum(&|_, shelf| shelf.num_used()) + self.num_runs.load(Relaxed)),
            ("heap_slab_bytes", sum(&|index, shelf| shelf.num_slabs() * pages(class(index).num_pages as usize))),
            ("heap_run_bytes", run_bytes),
            ("heap_free_slabs", sum(&|_, shelf| shelf.num_empty())),
            ("heap_free_bytes", pages(self.runs.num_free())),
            ("heap_leaving_bytes", pages(self.runs.num_leaving())),
            ("heap_allocations_resident", found(Found::Resident)),
            ("heap_allocations_fresh", found(Found::Fresh) + self.run_allocations.load(Relaxed)),
            ("heap_allocations_cold", found(Found::Cold)),
            ("heap_allocations_failed", self.num_failed.load(Relaxed)),
        ]
    }
}
