//! `encrypted(x)`: what leaves the process says nothing, what comes back is what was written there last or is found not to be, and all else is as without it.

mod common;
mod tree_support;

use common::pages::{Pages, WORDS, pattern};
use common::{BACKENDS, Backend, LEAST_PAGES, MODES, Mode, PAGE, Watchdog, builder, kernel_is_able, new_path, stat, wait_until};
use lightswap::{Cause, Contract, Lightswap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;
use tree_support::NUM_PAGES;

const LOCAL_PAGES: u64 = 60;

/// A file that a test looks into, and changes, behind the back of the instance.
struct SwapFile {
    file: File,
    path: PathBuf,
}

impl SwapFile {
    fn new(num_pages: usize) -> Self {
        let path = new_path("encrypted");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.set_len((num_pages * PAGE) as u64).unwrap();
        Self { file, path }
    }

    fn url(&self) -> String {
        format!("encrypted(file:{})", self.path.display())
    }

    fn slot(&self, slot: usize) -> Vec<u8> {
        let mut content = vec![0; PAGE];
        self.file.read_exact_at(&mut content, (slot * PAGE) as u64).unwrap();
        content
    }

    fn set_slot(&self, slot: usize, content: &[u8]) {
        self.file.write_all_at(content, (slot * PAGE) as u64).unwrap();
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An instance over such a file: region 0 is what the test looks at, region 1 is for evicting it.
struct OverFile {
    swap: Lightswap,
    _regions: [lightswap::Region; 2],
    pages: Pages,
    others: Pages,
    file: SwapFile,
}

impl OverFile {
    fn new() -> Self {
        let file = SwapFile::new(2 * NUM_PAGES);
        let swap = builder(LOCAL_PAGES, file.url()).open().unwrap();
        let regions = [0, 1].map(|_| swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap());
        let [pages, others] = [0, 1].map(|region: usize| Pages::of(&regions[region]));
        Self { swap, _regions: regions, pages, others, file }
    }

    /// Writes all pages with this seed and evicts them.
    fn write(&self, seed: u64) {
        (0..NUM_PAGES).for_each(|page| self.pages.fill(page, seed));
        Pages::flush_through(&self.others);
        assert!((0..NUM_PAGES).all(|page| !self.pages.is_resident(page)));
    }

    fn stat(&self, name: &str) -> u64 {
        stat(&self.swap, name)
    }

    /// Asks for a page that was tampered with.
    fn expect_tampered(&self, page: usize) {
        let error = lightswap::touch(self.pages.address(page), PAGE).expect_err("a page that was tampered with comes in");
        assert_eq!(error.failure().expect("it is about the page").cause(), Cause::WrongHash, "{error}");
        assert!(!self.pages.is_resident(page));
    }
}

fn run(what: &'static str, body: impl FnOnce()) {
    if kernel_is_able() {
        let _watchdog = Watchdog::new(what, Duration::from_secs(100));
        body();
    }
}

#[test]
fn what_is_written_says_nothing() {
    run("what_is_written_says_nothing", || {
        let over = OverFile::new();
        over.write(1);
        let first: Vec<_> = (0..NUM_PAGES).map(|slot| over.file.slot(slot)).collect();
        let plain = |page, seed| -> Vec<u8> { (0..WORDS).flat_map(|word| pattern(page, word, seed).to_le_bytes()).collect() };
        for (slot, content) in first.iter().enumerate() {
            // No word of the page is where it was, and none of the first page's anywhere.
            let is_equal = |word: usize| content[word * 8..][..8] == plain(slot, 1)[word * 8..][..8];
            assert!(!(0..WORDS).any(is_equal), "slot {slot} holds plaintext");
            assert!(!content.windows(8).any(|bytes| bytes == &plain(slot, 1)[..8]), "slot {slot} holds plaintext");
            let num_ones: u32 = content.iter().map(|byte| byte.count_ones()).sum();
            assert!((PAGE as u32 * 4).abs_diff(num_ones) < 700, "slot {slot}: {num_ones} bits are set");
        }
        // The same pages again make other ciphertexts. (Not at once: what has not changed is not written.)
        over.write(2);
        over.write(1);
        assert!((0..NUM_PAGES).all(|slot| over.file.slot(slot) != first[slot]));
        (0..NUM_PAGES).for_each(|page| over.pages.check(page, 1));
        assert_eq!((over.stat("tampered_pages"), over.stat("swap_in_errors")), (0, 0));
        assert!(over.stat("encrypted_pages") >= 2 * NUM_PAGES as u64 && over.stat("decrypted_pages") >= NUM_PAGES as u64);
    });
}

#[test]
fn flips_swaps_and_replays_are_found() {
    run("flips_swaps_and_replays_are_found", || {
        let over = OverFile::new();
        over.write(1);
        let older = over.file.slot(7);
        over.write(2);
        let now: Vec<_> = (0..10).map(|slot| over.file.slot(slot)).collect();
        let mut flipped = now[3].clone();
        flipped[1234] ^= 0x10;
        over.file.set_slot(3, &flipped);
        over.file.set_slot(5, &now[6]);
        over.file.set_slot(6, &now[5]);
        over.file.set_slot(7, &older);
        over.file.set_slot(8, &[0; PAGE]);
        let wrong = [3, 5, 6, 7, 8];
        wrong.iter().for_each(|page| over.expect_tampered(*page));
        assert!(over.stat("tampered_pages") >= 5 && over.stat("swap_in_errors_hash") >= 5);
        (0..NUM_PAGES).filter(|page| !wrong.contains(page)).for_each(|page| over.pages.check(page, 2));
        // Mended, they can be had again; or written anew.
        wrong[..4].iter().for_each(|page| over.file.set_slot(*page, &now[*page]));
        wrong[..4].iter().for_each(|page| over.pages.check(*page, 2));
        over.pages.discard(8, 1);
        over.pages.fill(8, 3);
        Pages::flush_through(&over.others);
        over.pages.check(8, 3);
    });
}

/// Pages begin again as zeroes, and their slots with new records.
#[test]
fn discarded_pages_are_gone() {
    run("discarded_pages_are_gone", || {
        let over = OverFile::new();
        over.write(1);
        over.pages.discard(0, NUM_PAGES);
        assert!((0..NUM_PAGES).all(|page| over.pages.is_zero(page)));
        over.write(2);
        (0..NUM_PAGES).for_each(|page| over.pages.check(page, 2));
    });
}

fn come_and_go(mode: Mode, url: &str, local_pages: u64, num_rounds: usize) {
    tree_support::come_and_go(mode, url, local_pages, num_rounds, |swap| {
        assert_eq!((stat(swap, "swap_in_errors"), stat(swap, "tampered_pages")), (0, 0), "{mode:?} {url}");
        assert!(stat(swap, "decrypted_pages") > 0 && stat(swap, "encrypted_pages") > 0, "{mode:?} {url}");
    });
}

#[test]
fn pages_come_and_go() {
    run("pages_come_and_go", || {
        for mode in MODES {
            for backend in BACKENDS {
                come_and_go(mode, &format!("encrypted({})", backend.url(NUM_PAGES)), LOCAL_PAGES, 500);
            }
        }
    });
}

#[test]
fn pages_come_and_go_through_other_backends() {
    run("pages_come_and_go_through_other_backends", || {
        let url = |backend: Backend| backend.url(NUM_PAGES);
        for tree in [
            format!("stripe(encrypted({}),encrypted({}))", url(Backend::File), url(Backend::Memory)),
            format!("encrypted(stripe({},{}))", url(Backend::Memory), url(Backend::File)),
            format!("encrypted(encrypted({}))", url(Backend::Memory)),
            // Even a backend that copies at once, but answers later.
            format!("encrypted(faulty(read%0.05=delay:1;write%0.2=delay:1):{})", url(Backend::Memory)),
        ] {
            come_and_go(common::DEFAULT_MODE, &tree, LOCAL_PAGES, 300);
        }
    });
}

/// A single page of staging in each worker: writes of many pages are cut into as many parts, which wait for each other.
#[test]
fn the_least_local_memory_is_enough() {
    run("the_least_local_memory_is_enough", || {
        for mode in MODES {
            for backend in BACKENDS {
                let url = format!("encrypted({})", backend.url(NUM_PAGES));
                // One more page of each buffer's, of one more worker.
                come_and_go(mode, &url, LEAST_PAGES + 4, 150);
            }
        }
    });
}

/// Reads that get another slot's content, or flipped bits, are found and tried again; none of it comes to light as content.
#[test]
fn faults_below_are_found() {
    run("faults_below_are_found", || {
        for backend in BACKENDS {
            let url = format!("encrypted(faulty(seed=5;read%0.1=misdirect;read%0.05=flip:1):{})", backend.url(2 * NUM_PAGES));
            let swap = builder(LOCAL_PAGES, url).open().unwrap();
            let regions = [0, 1].map(|_| swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap());
            let [pages, others] = [0, 1].map(|region: usize| Pages::of(&regions[region]));
            (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
            (0..NUM_PAGES).for_each(|page| others.fill(page, 2));
            for _ in 0..3 {
                for page in 0..NUM_PAGES {
                    // Three times in a row it may go wrong, but not for ever.
                    wait_until("the page comes in", || lightswap::touch(pages.address(page), PAGE).is_ok());
                    // SAFETY: it is for the test to say that a page may be gone again: then this access may throw.
                    let _ = unsafe { lightswap::try_catch(|| pages.check(page, 1)) };
                }
            }
            assert!(stat(&swap, "tampered_pages") > 0 && stat(&swap, "swap_in_retries") > 0);
            // Every one of them was found here, before the page's own hash could.
            assert!(stat(&swap, "tampered_pages") >= stat(&swap, "swap_in_errors_hash"));
        }
    });
}

/// Writes that fail, come short, or are torn without a word: the first two lose nothing, the last is found.
#[test]
fn writes_that_fail_lose_nothing() {
    run("writes_that_fail_lose_nothing", || {
        for (schedule, is_torn) in [("seed=3;write%0.2=EIO;write%0.1=short", false), ("seed=3;write%0.2=torn", true)] {
            for backend in BACKENDS {
                for order in ["encrypted(faulty(S):B)", "faulty(S):encrypted(B)"] {
                    let url = order.replace('S', schedule).replace('B', &backend.url(2 * NUM_PAGES));
                    let swap = builder(LOCAL_PAGES, url.clone()).open().unwrap();
                    let regions = [0, 1].map(|_| swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap());
                    let [pages, others] = [0, 1].map(|region: usize| Pages::of(&regions[region]));
                    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
                    (0..NUM_PAGES).for_each(|page| others.fill(page, 2));
                    let mut num_lost = 0;
                    for page in 0..NUM_PAGES {
                        match lightswap::touch(pages.address(page), PAGE) {
                            Ok(()) => pages.check(page, 1),
                            Err(error) => {
                                assert_eq!(error.failure().unwrap().cause(), Cause::WrongHash, "{url}: {error}");
                                num_lost += 1;
                            }
                        }
                    }
                    assert_eq!(num_lost > 0, is_torn, "{url}");
                    assert!(is_torn || stat(&swap, "swap_out_errors") > 0, "{url}");
                }
            }
        }
    });
}

#[test]
fn bad_urls_are_explained() {
    for (url, text) in [
        ("encrypted()", "no scheme"),
        ("encrypted(memory:?size=1MiB,memory:?size=1MiB)", "it takes 1 backends"),
        ("encrypted(memory:?size=1MiB", "is expected at its end"),
        ("encrypted(memory:)", "a size is needed"),
    ] {
        let error = builder(64, url).open().expect_err(url).to_string();
        assert!(error.contains(text) && !error.contains('\n'), "{url}: {error}");
    }
}
