//! What the tests on a backend that fails on purpose share: what was injected, and a model of what a page may hold.
#![allow(dead_code, reason = "each test program uses a part of it")]

use crate::common::pages::{Pages, WORDS, pattern};
use crate::common::stat;
use lightswap::{ErrorKind, Lightswap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// `inner` with faults.
pub fn url(schedule: &str, inner: &str) -> String {
    format!("faulty({schedule}):{inner}")
}

/// What was injected, by kind.
pub fn injected(swap: &Lightswap) -> Vec<(&'static str, u64)> {
    let by_kind = |(name, count): (&'static str, u64)| Some((name.strip_prefix("injected_")?, count));
    swap.stats().into_iter().filter_map(by_kind).collect()
}

pub fn num_injected(swap: &Lightswap) -> u64 {
    injected(swap).iter().map(|(_, count)| count).sum()
}

/// Whether reads that failed are tried again; otherwise a page that could not be read once stays lost.
pub fn reads_again(swap: &Lightswap) -> bool {
    swap.stats().iter().any(|(name, _)| *name == "swap_in_retries")
}

/// What the pages of a region hold, if they can be had at all. Each page is used by one thread or LWT at a time.
#[derive(Debug)]
pub struct Model {
    pages: Pages,
    /// Version of each; 0 is all zero.
    versions: Vec<AtomicU64>,
    pub num_errors: AtomicUsize,
}

impl Model {
    pub fn new(pages: Pages) -> Self {
        Self { pages, versions: (0..pages.len()).map(|_| AtomicU64::new(0)).collect(), num_errors: AtomicUsize::new(0) }
    }

    /// Runs `action` with the page pinned; `false` if it cannot be had.
    fn with_pin(&self, page: usize, action: impl FnOnce()) -> bool {
        match self.pages.pin(page, 1) {
            Ok(()) => {
                action();
                self.pages.unpin(page, 1);
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::SwapIn, "{error}");
                self.num_errors.fetch_add(1, Relaxed);
                false
            }
        }
    }

    fn compare(&self, page: usize) {
        let version = self.versions[page].load(Relaxed);
        match version {
            0 => (0..WORDS).for_each(|word| assert_eq!(self.pages.word(page, word), 0, "page {page} was never written")),
            _ => self.pages.check(page, version),
        }
    }

    /// Right, or an error (`false`).
    pub fn check(&self, page: usize) -> bool {
        self.with_pin(page, || self.compare(page))
    }

    /// Checks the page and gives it its next version, if it can be had.
    pub fn change(&self, page: usize) -> bool {
        self.with_pin(page, || {
            self.compare(page);
            let version = self.versions[page].load(Relaxed) + 1;
            (0..WORDS).for_each(|word| self.pages.set_word(page, word, pattern(page, word, version)));
            self.versions[page].store(version, Relaxed);
        })
    }

    /// Checks all pages; how many cannot be had.
    pub fn check_all(&self) -> usize {
        (0..self.pages.len()).filter(|page| !self.check(*page)).count()
    }
}

/// Nothing of what went wrong on purpose is left: no pin, no page too many.
pub fn expect_order(swap: &Lightswap) {
    assert_eq!(stat(swap, "pinned_pages"), 0);
    assert!(stat(swap, "resident_bytes") <= stat(swap, "resident_limit_bytes"));
}
