//! Backends that are made of others, or keep pages in another form: workers, ordinary threads and little memory, and every page is what it was.

mod common;
mod faulty_support;
mod nbd_support;

use common::{MODES, PAGE, builder, stat, wait_until};
use lightswap::{Contract, ErrorKind, Lightswap};
use nbd_support::load::{Load, NUM_PAGES, watchdog};

/// Room for the region of a load, and as much again.
const SIZE: &str = "4MiB";

fn memory() -> String {
    format!("memory:?size={SIZE}")
}

fn compressed() -> String {
    format!("memory:?size={SIZE}&compress=lz4")
}

fn late(inner: &str) -> String {
    format!("faulty(read%0.2=delay:2;write%0.2=delay:2):{inner}")
}

#[test]
fn all_pages_are_right() {
    let Some(_watchdog) = watchdog(300) else { return };
    let file = common::new_path("backends");
    let file = format!("file:{}?size={SIZE}", file.display());
    let urls = [
        compressed(),
        late(&compressed()),
        format!("stripe({},{})", memory(), memory()),
        format!("stripe({},{file},{})", late(&memory()), compressed()),
        format!("encrypted({})", compressed()),
        format!("encrypted(stripe({},{file}))", late(&memory())),
        format!("stripe(encrypted({}),encrypted({}))", late(&file.replace("backends", "backends-2")), memory()),
    ];
    for url in urls {
        for mode in MODES {
            for contract in [Contract::Transparent, Contract::Cooperative] {
                let load = Load::open_as(&url, mode, contract);
                assert_eq!(load.work(150), 0, "{url} {mode:?}");
                load.expect_all_right();
                assert!(load.stat("swap_ins") > 0 && load.stat("dirty_evictions") > 0, "{url} {mode:?}: {:?}", load.swap.stats());
                assert_eq!((load.stat("swap_in_errors"), load.stat("swap_out_errors")), (0, 0), "{url} {mode:?}");
            }
        }
    }
}

/// Whatever goes wrong below, a page is right or an error.
#[test]
fn errors_below_are_errors() {
    let Some(_watchdog) = watchdog(300) else { return };
    const FAULTS: &str = "read%0.02=EIO;read%0.02=flip;read%0.02=misdirect;read%0.02=short;write%0.02=EIO;write%0.02=torn;write%0.02=short";
    for inner in [memory(), compressed()] {
        for url in [format!("encrypted(faulty({FAULTS}):{inner})"), format!("stripe(faulty({FAULTS}):{inner},{inner})")] {
            let load = Load::open(&url);
            load.work(300);
            assert!(load.stat("swap_in_retries") > 0 && load.stat("swap_out_errors") > 0, "{url}: {:?}", load.swap.stats());
        }
    }
}

/// What was torn was not written, so the page cannot be had; all else is right.
#[test]
fn tampering_is_found() {
    let Some(_watchdog) = watchdog(100) else { return };
    let load = Load::open(format!("encrypted(faulty(read%0.1=misdirect;read%0.1=flip):{})", memory()));
    load.work(300);
    assert!(load.stat("tampered_pages") > 0 && load.stat("swap_in_errors_hash") == load.stat("swap_in_errors"));
    load.swap.stop_faults();
    load.expect_all_right();
}

fn fill_all(swap: &Lightswap, num_pages: usize) -> usize {
    let region = swap.create_region(num_pages * PAGE, Contract::Transparent).unwrap();
    let pages = common::pages::Pages::of(&region);
    (0..num_pages).for_each(|page| (0..8).for_each(|word| pages.set_word(page, word * 64, page as u64 + 1)));
    (0..num_pages).filter(|page| (0..8).any(|word| pages.word(*page, word * 64) != *page as u64 + 1)).count()
}

#[test]
fn compressed_pages_take_less_and_are_given_back() {
    let Some(_watchdog) = watchdog(100) else { return };
    let swap = builder(64, "memory:?size=16MiB&compress=lz4").open().unwrap();
    assert_eq!(fill_all(&swap, 2000), 0);
    let used = stat(&swap, "compressed_memory_bytes");
    // The region is gone.
    wait_until("nothing is stored any more", || stat(&swap, "compressed_pages") == 0);
    assert!(used < (2000 * PAGE / 4) as u64, "{used} bytes for 2000 pages that are mostly zeroes");
    assert!(stat(&swap, "compressed_content_bytes") == 0 && stat(&swap, "compressed_memory_bytes") <= used);
}

/// A pool that is full is like a disk that is full: nothing is lost, and it goes on when there is room.
#[test]
fn a_limit_holds_pages_back() {
    let Some(_watchdog) = watchdog(100) else { return };
    let swap = builder(64, "memory:?size=16MiB&compress=lz4&limit=256KiB").io_timeout(std::time::Duration::from_secs(1)).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = common::pages::Pages::of(&region);
    // The pattern does not compress: 64 pages of local memory and less than 64 of the pool are not enough for all of them.
    let fill = |page| lightswap::touch(pages.address(page), PAGE).map(|()| pages.fill(page, 1));
    let mut num_filled = 0;
    while num_filled < NUM_PAGES && fill(num_filled).is_ok() {
        num_filled += 1;
    }
    assert!((60..NUM_PAGES).contains(&num_filled), "{num_filled}");
    assert!(stat(&swap, "compressed_memory_bytes") <= 256 << 10 && stat(&swap, "swap_out_errors") > 0);
    pages.discard(0, num_filled / 2);
    (num_filled / 2..num_filled).for_each(|page| pages.check(page, 1));
}

#[test]
fn what_cannot_be_is_refused() {
    for (url, text) in [
        ("stripe(memory:?size=1MiB)", "2 to 16 backends"),
        ("stripe(memory:?size=1MiB,memory:?size=64KiB)", "at least 128 KiB"),
        ("encrypted(memory:?size=1MiB,memory:?size=1MiB)", "it takes 1 backends"),
        ("encrypted(memory:?size=1MiB", "\")\" is expected"),
        ("stripe(memory:?size=1MiB),memory:?size=1MiB)", "do not match"),
        ("stripe(memory:?size=1MiB,)", "no scheme"),
        ("mirrored(memory:?size=1MiB)", "unknown"),
        ("memory:?size=1MiB&compress=gzip", "it takes lz4"),
        ("memory:?size=1MiB&compress=lz4&limit=1", "leaves no room"),
        ("memory:?size=1MiB&limit=1MiB", "add compress=lz4"),
    ] {
        let error = builder(64, url).open().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::BackendUrl | ErrorKind::Backend) && error.to_string().contains(text), "{url}: {error}");
    }
}
