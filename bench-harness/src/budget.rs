//! How much memory a server needs for some records, and how a memory limit is divided.

use crate::configuration::ItemHeaders;
use crate::units::{KIB, MIB};
use crate::value_sizes::{Part, ValueSizes};

pub const PAGE_BYTES: u64 = 4 * KIB;

/// Item header, CAS number, longest key with its end, value with its line end.
pub fn item_bytes(value_size: usize) -> u64 {
    48 + 8 + 24 + value_size as u64 + 2
}

/// Whole slab pages of 1 MiB for this many items of one size: chunks waste up to a quarter, and what is left of a page when no further chunk fits.
fn slab_pages(items: u64, value_size: usize) -> u64 {
    let chunk_bytes = item_bytes(value_size) * 5 / 4 + 8;
    items.div_ceil((MIB / chunk_bytes).max(1))
}

/// `-m`, in MiB, so that nothing is evicted; inserts may add up to a tenth.
pub fn server_memory_mib(records: u64, value_sizes: &ValueSizes) -> u64 {
    let pages: u64 = value_sizes.parts().iter().map(|part| slab_pages((records * u64::from(part.percent)).div_ceil(100) + 100, part.size)).sum();
    pages * 11 / 10 + 64
}

/// The values of Redis in MiB: strings with their headers or hashes with the names of their fields, rounded up to size classes; inserts may add up to a tenth.
pub fn redis_values_mib(records: u64, value_sizes: &ValueSizes) -> u64 {
    const NAMES_AND_HEADERS: u64 = 160;
    let part_bytes = |part: &Part| (records * u64::from(part.percent)).div_ceil(100) * (part.size as u64 + NAMES_AND_HEADERS) * 5 / 4;
    value_sizes.parts().iter().map(part_bytes).sum::<u64>() * 11 / 10 / MIB + 64
}

/// Room for all pages of a Redis, each of them twice: while a dump is written, the pages of its moment stay beside the newer ones.
pub fn redis_backend_bytes(values_mib: u64) -> u64 {
    2 * backend_bytes(values_mib)
}

/// What a Redis with Lightswap keeps in memory beside its local memory, measured with all records.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fixed {
    pub bytes: u64,
    /// How much each further key adds.
    pub bytes_per_key: f64,
}

impl Fixed {
    /// Of what all records and a part of them took.
    pub fn of((records, bytes): (u64, u64), (fewer_records, fewer_bytes): (u64, u64)) -> Self {
        let per_key = bytes.saturating_sub(fewer_bytes) as f64 / records.saturating_sub(fewer_records).max(1) as f64;
        Self { bytes, bytes_per_key: per_key }
    }

    /// With what a resident set does not show, such as page tables and sockets, what comes with inserts, and the answers to scans.
    pub fn with_margin(&self, connections: usize, is_indexed: bool) -> u64 {
        let answers = if is_indexed { connections as u64 * 128 * KIB } else { 0 };
        self.bytes + self.bytes / 50 + 4 * MIB + answers
    }
}

/// Local memory of such a Redis within a limit, in whole MiB.
pub fn redis_local_memory_bytes(limit_bytes: u64, fixed_bytes: u64) -> Option<u64> {
    /// Less makes no sense, and the pager refuses it.
    const LEAST: u64 = 8 * MIB;
    let left = limit_bytes.checked_sub(fixed_bytes)? / MIB * MIB;
    (left >= LEAST).then_some(left)
}

/// Buckets of the hash table as a power of two, at least 1.5 a record, so that few lookups walk over a neighbour: with kernel swap every item
/// walked over may be a page fault.
pub fn hash_power(records: u64) -> u32 {
    (records * 3 / 2).max(1).next_power_of_two().ilog2().clamp(12, 32)
}

/// Room for every page of the server: a swap file, or the file behind a backend. A slab class may take one slab page beyond `-m`.
pub fn backend_bytes(server_memory_mib: u64) -> u64 {
    (server_memory_mib + 128) * MIB
}

/// What a Lightswap server keeps in memory beside its local memory.
#[derive(Debug, Clone, Copy)]
pub struct FixedOverhead {
    pub server_memory_mib: u64,
    pub records: u64,
    pub hash_power: u32,
    pub connections: usize,
    pub server_threads: u32,
    pub item_headers: ItemHeaders,
}

impl FixedOverhead {
    /// Headers of items, and a page of them that is begun for each slab page. None where they are swapped like values.
    pub fn headers_bytes(&self) -> u64 {
        match self.item_headers {
            ItemHeaders::Memory => self.records * 56 + self.server_memory_mib * PAGE_BYTES / 2,
            ItemHeaders::Region => 0,
        }
    }

    /// memcached's buffers of a connection, the touched part of an LWT's stack, the kernel's socket buffers: 46 KB were measured.
    pub fn connections_bytes(&self) -> u64 {
        self.connections as u64 * 48 * KIB
    }

    pub fn threads_bytes(&self) -> u64 {
        u64::from(self.server_threads) * 512 * KIB
    }

    /// An upper estimate, some 5 MB above what was measured (17 to 19.5 MB without headers for 500,000 records, 64 connections and 2 threads). Too low
    /// and the cgroup's limit kills the server; too high and Lightswap gets less memory than kernel swap.
    pub fn bytes(&self) -> u64 {
        let region_pages = self.server_memory_mib * MIB / PAGE_BYTES;
        let hash_table = 8u64 << self.hash_power;
        // Page word and content hash, 24 bytes at most, and the kernel's own page table entry.
        let page_metadata = region_pages * (24 + 8);
        // Program, libraries, allocator, and what the kernel charges for the process itself.
        let process = 4 * MIB;
        hash_table + page_metadata + self.headers_bytes() + self.connections_bytes() + self.threads_bytes() + process
    }
}

/// Local memory within a limit, in whole MiB.
pub fn local_memory_bytes(limit_bytes: u64, overhead: FixedOverhead) -> Option<u64> {
    let left = limit_bytes.checked_sub(overhead.bytes())? / MIB * MIB;
    (left > 0).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_million_records_fit() {
        let mib = server_memory_mib(500_000, &ValueSizes::fixed(1_000));
        // Stock memcached holds them in 592 MB of 1,184-byte chunks.
        assert!((650..900).contains(&mib), "{mib}");
        assert_eq!(hash_power(500_000), 20);
        assert_eq!(hash_power(1), 12);
    }

    #[test]
    fn what_redis_needs_beside_it_comes_off_the_limit() {
        let mib = redis_values_mib(500_000, &ValueSizes::fixed(1_000));
        assert!((650..1_000).contains(&mib), "{mib}");
        assert!(redis_backend_bytes(mib) > 2 * mib * MIB);
        let fixed = Fixed::of((500_000, 70 * MIB), (10_000, 10 * MIB));
        assert!((128.0..129.0).contains(&fixed.bytes_per_key), "{fixed:?}");
        let beside = fixed.with_margin(64, false);
        assert!(beside > 75 * MIB && beside < 78 * MIB && fixed.with_margin(64, true) > beside, "{beside}");
        let local = redis_local_memory_bytes(150 * MIB, beside).unwrap();
        assert!(local.is_multiple_of(MIB) && local + beside <= 150 * MIB && local + beside > 148 * MIB);
        assert_eq!([80 * MIB, 10 * MIB].map(|limit| redis_local_memory_bytes(limit, beside)), [None, None]);
        assert_eq!(Fixed::of((100, 5), (100, 7)).bytes_per_key, 0.0);
    }

    #[test]
    fn the_overhead_comes_off_the_limit() {
        let item_headers = ItemHeaders::Memory;
        let overhead = FixedOverhead { server_memory_mib: 800, records: 500_000, hash_power: 20, connections: 64, server_threads: 2, item_headers };
        let local = local_memory_bytes(150 * MIB, overhead).unwrap();
        assert!(local.is_multiple_of(PAGE_BYTES));
        assert!(local + overhead.bytes() <= 150 * MIB);
        assert_eq!(local_memory_bytes(10 * MIB, overhead), None);
        // The promise of the project: below 64 MiB + 1 % of the region, beside headers.
        assert!(overhead.bytes() - overhead.headers_bytes() < 64 * MIB + 8 * MIB);
        // Where headers lie in the region, their memory is local memory.
        let in_region = FixedOverhead { item_headers: ItemHeaders::Region, ..overhead };
        assert_eq!(in_region.bytes(), overhead.bytes() - overhead.headers_bytes());
        assert!(local_memory_bytes(150 * MIB, in_region).unwrap() > local + 27 * MIB);
    }
}
