//! A region as an array of pages of 512 words, for tests: all unsafe accesses are here.

use super::{PAGE, mix};
use lightswap::{Contract, ErrorKind, Region};
use std::time::{Duration, Instant};

pub const WORDS: usize = PAGE / 8;

/// The pages of a region, for any thread. The test keeps the region alive.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    base: usize,
    len: usize,
    contract: Contract,
}

impl Pages {
    pub fn of(region: &Region) -> Self {
        Self { base: region.as_ptr() as usize, len: region.len() / PAGE, contract: region.contract() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn address(&self, page: usize) -> *mut u8 {
        assert!(page <= self.len);
        (self.base + page * PAGE) as *mut u8
    }

    fn word_address(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < self.len && word < WORDS);
        (self.base + page * PAGE + word * 8) as *mut u64
    }

    /// Reads one word, without a pin.
    pub fn word(&self, page: usize, word: usize) -> u64 {
        // SAFETY: inside the region, which the test keeps alive; tests order accesses to a page among themselves.
        unsafe { self.word_address(page, word).read_volatile() }
    }

    /// Writes one word, without a pin: for transparent regions, or pages that are pinned.
    pub fn set_word(&self, page: usize, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.word_address(page, word).write_volatile(value) }
    }

    /// Runs `action`, which writes pages of the range, as the contract of the region demands.
    pub fn writing<R>(&self, first: usize, num_pages: usize, action: impl FnOnce() -> R) -> R {
        if self.contract == Contract::Transparent {
            return action();
        }
        // There may be too many pins for the moment: their owners are others that write.
        let start = Instant::now();
        while let Err(error) = self.pin(first, num_pages) {
            assert!(start.elapsed() < Duration::from_secs(20), "no pin for 20 s: {error}");
            assert_eq!(error.kind(), ErrorKind::PinLimit, "{error}");
            lightswap::lwt::yield_now();
        }
        let result = action();
        self.unpin(first, num_pages);
        result
    }

    pub fn pin(&self, first: usize, num_pages: usize) -> lightswap::Result<()> {
        lightswap::pin(self.address(first), num_pages * PAGE)
    }

    pub fn unpin(&self, first: usize, num_pages: usize) {
        lightswap::unpin(self.address(first), num_pages * PAGE).unwrap();
    }

    pub fn touch(&self, first: usize, num_pages: usize) {
        lightswap::touch(self.address(first), num_pages * PAGE).unwrap();
    }

    pub fn prefetch(&self, first: usize, num_pages: usize) {
        lightswap::prefetch(self.address(first), num_pages * PAGE).unwrap();
    }

    /// Waits while a page is accessed: by the pager thread, for instance, for somebody who has gone on already.
    pub fn discard(&self, first: usize, num_pages: usize) {
        let start = Instant::now();
        while let Err(error) = lightswap::discard(self.address(first), num_pages * PAGE) {
            assert!(start.elapsed() < Duration::from_secs(20) && error.kind() == ErrorKind::Busy, "{error}");
            lightswap::lwt::yield_now();
        }
    }

    pub fn is_zero(&self, page: usize) -> bool {
        (0..WORDS).all(|word| self.word(page, word) == 0)
    }

    pub fn advise_cold(&self, first: usize, num_pages: usize) {
        lightswap::advise_cold(self.address(first), num_pages * PAGE).unwrap();
    }

    pub fn is_resident(&self, page: usize) -> bool {
        lightswap::is_resident(self.address(page), PAGE)
    }

    /// Fills a page with the pattern of `seed`.
    pub fn fill(&self, page: usize, seed: u64) {
        self.writing(page, 1, || self.fill_pinned(page, seed));
    }

    /// The same for a page that needs no pin, or has one.
    pub fn fill_pinned(&self, page: usize, seed: u64) {
        (0..WORDS).for_each(|word| self.set_word(page, word, pattern(page, word, seed)));
    }

    /// Fails the test unless the page holds the pattern of `seed`.
    pub fn check(&self, page: usize, seed: u64) {
        for word in 0..WORDS {
            let (found, expected) = (self.word(page, word), pattern(page, word, seed));
            assert_eq!(found, expected, "page {page} word {word} seed {seed}: found {found:#x}");
        }
    }

    /// Evicts everything: writes as many pages of `other`, a region of the same instance, as pass through all of local memory.
    pub fn flush_through(other: &Self) {
        for round in 0..2 {
            (0..other.len).for_each(|page| other.fill(page, 0xF1 + round));
        }
    }
}

/// Word `word` of page `page` in the pattern of `seed`: unlike in every page and every seed, never all zero.
pub fn pattern(page: usize, word: usize, seed: u64) -> u64 {
    mix((page * WORDS + word) as u64 ^ seed << 40)
}
