//! `tier(fast,slow)` under pressure: compressed memory much smaller than what is swapped out, pages on their way from one member to the other all the time,
//! and every page is what it was.

mod common;
mod faulty_support;
mod nbd_support;

use common::pages::{Pages, WORDS};
use common::{DEFAULT_MODE, MODES, Mode, PAGE, Random, builder, mix, stat, wait_until};
use lightswap::{Contract, ErrorKind, Lightswap};
use nbd_support::load::{Load, NUM_PAGES, watchdog};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

fn memory() -> String {
    "memory:?size=4MiB".into()
}

/// Room for about 50 pages of those that do not compress, which are a sixth of a [`Load`].
fn compressed() -> String {
    "memory:?size=4MiB&compress=lz4&limit=256KiB".into()
}

fn file() -> String {
    format!("file:{}?size=4MiB", common::new_path("tier").display())
}

fn late(inner: &str) -> String {
    format!("faulty(read%0.2=delay:2;write%0.2=delay:2):{inner}")
}

fn tier(fast: &str, slow: &str) -> String {
    format!("tier({fast},{slow})")
}

#[test]
fn all_pages_are_right() {
    let Some(_watchdog) = watchdog(300) else { return };
    let plain = tier(&compressed(), &file());
    let urls = [
        plain.clone(),
        tier(&compressed(), &memory()),
        tier(&compressed(), &late(&memory())),
        tier(&format!("encrypted({})", compressed()), &format!("encrypted({})", file())),
        tier(&format!("stripe({},{})", compressed(), compressed()), &late(&file())),
        format!("stripe({plain},{})", tier(&compressed(), &late(&memory()))),
        format!("encrypted({plain})"),
        late(&plain),
        tier(&compressed(), &tier(&compressed(), &late(&file()))),
        // Nothing moves from these.
        tier(&memory(), &file()),
        tier(&late(&file()), &memory()),
    ];
    let mut num_overflown = 0;
    for (number, url) in urls.iter().enumerate() {
        for mode in MODES {
            for contract in [Contract::Transparent, Contract::Cooperative] {
                let load = Load::open_as(url, mode, contract);
                assert_eq!(load.work(150), 0, "{url} {mode:?}");
                load.expect_all_right();
                assert_eq!((load.stat("swap_in_errors"), load.stat("swap_out_errors")), (0, 0), "{url} {mode:?}");
                assert!(load.stat("tier_fast_reads") > 0);
                if number < 9 {
                    let used = ["tier_slow_reads", "tier_slow_pages"].map(|name| load.stat(name));
                    assert!(!used.contains(&0), "{url} {mode:?}: {:?}", load.swap.stats());
                    wait_until("pages have moved", || load.stat("tier_demoted_pages") > 0);
                    num_overflown += load.stat("tier_overflow_pages");
                } else {
                    assert_eq!((load.stat("tier_overflow_pages"), load.stat("tier_slow_pages")), (0, 0));
                }
            }
        }
    }
    assert!(num_overflown > 0);
}

/// What a page holds: nothing, one word over and over, text, or what does not compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Same,
    Text,
    Random,
}

impl Kind {
    fn word(self, page: usize, word: usize, version: u64) -> u64 {
        const TEXT: [&[u8; 8]; 4] = [b"{\"id\": 1", b", \"name\"", b": \"none\"", b"}, true\n"];
        let random = |at: usize| mix((page * WORDS + at) as u64 ^ version << 40);
        match self {
            Self::Zero => 0,
            Self::Same => random(0),
            // No two pages alike.
            Self::Text if word == 0 => random(0),
            Self::Text => u64::from_ne_bytes(*TEXT[random(word) as usize % TEXT.len()]),
            Self::Random => random(word),
        }
    }

    fn any(random: &mut Random) -> Self {
        [Self::Zero, Self::Same, Self::Text, Self::Text, Self::Random, Self::Random][random.below(6)]
    }
}

/// Pages that are one actor's: what they hold, and how they are changed.
struct Own<'a> {
    pages: &'a Pages,
    content: Vec<(usize, Kind, u64)>,
    random: Random,
    next_version: u64,
}

impl<'a> Own<'a> {
    fn new(pages: &'a Pages, actor: usize, num_actors: usize, seed: u64) -> Self {
        let content = (actor..pages.len()).step_by(num_actors).map(|page| (page, Kind::Zero, 0)).collect();
        Self { pages, content, random: Random::new(seed * 100 + actor as u64), next_version: 1 }
    }

    fn check(&self, index: usize) {
        let (page, kind, version) = self.content[index];
        self.pages.touch(page, 1);
        for word in 0..WORDS {
            let (found, expected) = (self.pages.word(page, word), kind.word(page, word, version));
            assert_eq!(found, expected, "page {page}, {kind:?} {version}, word {word}: {found:#x} {expected:#x}");
        }
    }

    fn step(&mut self) {
        let index = self.random.below(self.content.len());
        let (page, _, _) = self.content[index];
        match self.random.below(16) {
            0..7 => {
                self.check(index);
                let (kind, version) = (Kind::any(&mut self.random), self.next_version);
                self.next_version += 1;
                (0..WORDS).for_each(|word| self.pages.set_word(page, word, kind.word(page, word, version)));
                self.content[index] = (page, kind, version);
            }
            7..13 => self.check(index),
            13 => {
                self.pages.discard(page, 1);
                self.content[index] = (page, Kind::Zero, 0);
            }
            14 => self.pages.advise_cold(page, 1),
            _ => self.pages.prefetch(page, 1),
        }
    }
}

/// Workers' LWTs and threads that fault, change and discard pages of all kinds, each its own.
fn work(url: &str, mode: Mode, seed: u64, num_steps: usize) -> Lightswap {
    const PAGES: usize = 900;
    const NUM_WORKERS: usize = 2;
    const LWTS: usize = 6;
    const THREADS: usize = 2;
    const ACTORS: usize = NUM_WORKERS * LWTS + THREADS;
    let swap = mode.set(builder(64, url)).max_workers(NUM_WORKERS).open().unwrap();
    let region = swap.create_region(PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    let act = move |actor: usize| {
        let mut own = Own::new(&pages, actor, ACTORS, seed);
        (0..num_steps).for_each(|_| own.step());
        (0..own.content.len()).for_each(|index| own.check(index));
    };
    std::thread::scope(|scope| {
        for worker in 0..NUM_WORKERS {
            let swap = &swap;
            scope.spawn(move || {
                let handle = swap.enter_worker().unwrap();
                (0..LWTS).for_each(|lwt| handle.start(move || act(worker * LWTS + lwt)).unwrap());
                handle.run();
            });
        }
        (ACTORS - THREADS..ACTORS).for_each(|actor| _ = scope.spawn(move || act(actor)));
    });
    drop(region);
    swap
}

#[test]
fn pages_of_all_kinds_are_right_while_others_fault_evict_discard_and_move() {
    let Some(_watchdog) = watchdog(300) else { return };
    let fast = "memory:?size=4MiB&compress=lz4&limit=512KiB";
    for slow in [late(&memory()), file(), memory()] {
        for (number, mode) in (0..).zip(MODES) {
            let url = tier(fast, &slow);
            let swap = work(&url, mode, nbd_support::seed() * 10 + number, 600);
            assert_eq!((stat(&swap, "swap_in_errors"), stat(&swap, "swap_out_errors")), (0, 0), "{url}");
            let used = ["tier_demoted_pages", "tier_slow_reads", "tier_fast_reads"].map(|name| stat(&swap, name));
            assert!(!used.contains(&0), "{url} {mode:?}: {:?}", swap.stats());
            // The region is gone, and what moved meanwhile is, too.
            wait_until("nothing is left", || ["tier_fast_pages", "tier_slow_pages", "compressed_pages"].map(|name| stat(&swap, name)) == [0; 3]);
        }
    }
}

/// Whatever goes wrong in a member, a page is right or an error, and nothing is lost for good that was only read wrongly.
#[test]
fn errors_of_members_are_errors() {
    let Some(_watchdog) = watchdog(300) else { return };
    const FAULTS: &str = "read%0.02=EIO;read%0.02=flip;read%0.02=misdirect;read%0.02=short;write%0.05=EIO;write%0.05=short;write%0.05=ENOSPC";
    let faulty = |inner: &str| format!("faulty({FAULTS}):{inner}");
    let of_slow = [tier(&compressed(), &faulty(&memory())), tier(&compressed(), &faulty(&file()))];
    let of_fast = [tier(&faulty(&memory()), &memory()), tier(&faulty(&compressed()), &file()), tier(&faulty(&file()), &memory())];
    let of_both = [tier(&faulty(&compressed()), &faulty(&file())), faulty(&tier(&compressed(), &late(&memory())))];
    for (number, url) in of_slow.iter().chain(&of_fast).chain(&of_both).enumerate() {
        let load = Load::open(url);
        load.work(300);
        assert!(load.stat("swap_in_retries") > 0, "{url}: {:?}", load.swap.stats());
        let fast_only = (of_slow.len()..of_slow.len() + of_fast.len()).contains(&number);
        // The slow member takes what the fast one does not.
        assert_eq!(load.stat("swap_out_errors") == 0, fast_only, "{url}: {:?}", load.swap.stats());
        assert!(!fast_only || load.stat("tier_overflow_pages") > 0);
        load.swap.stop_faults();
        load.expect_all_right();
    }
}

/// Nothing can be written to the slow member: what fits into the fast one stays there, what is resident stays resident, and there it goes on when it works again.
#[test]
fn a_slow_member_that_takes_nothing_loses_nothing() {
    let Some(_watchdog) = watchdog(100) else { return };
    let url = tier(&compressed(), &format!("faulty(write%1=EIO):{}", file()));
    let swap = builder(64, url).io_timeout(std::time::Duration::from_secs(1)).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    let fill = |page| lightswap::touch(pages.address(page), PAGE).map(|()| pages.fill(page, 1));
    let mut num_filled = 0;
    while num_filled < NUM_PAGES && fill(num_filled).is_ok() {
        num_filled += 1;
    }
    assert!((60..NUM_PAGES).contains(&num_filled), "{num_filled}");
    assert_eq!((stat(&swap, "tier_slow_pages"), stat(&swap, "tier_demoted_pages")), (0, 0));
    assert!(stat(&swap, "tier_fast_pages") > 20 && stat(&swap, "swap_out_errors") > 0);
    // A pause between attempts of the mover, and of those who evict.
    let num_before = stat(&swap, "injected_write_errors");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(stat(&swap, "injected_write_errors") - num_before < 500, "{num_before}, {:?}", swap.stats());
    swap.stop_faults();
    let start = std::time::Instant::now();
    while num_filled < NUM_PAGES {
        match fill(num_filled) {
            Ok(()) => num_filled += 1,
            Err(error) => assert!(start.elapsed() < std::time::Duration::from_secs(20), "{error}"),
        }
    }
    (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
    wait_until("pages have moved", || stat(&swap, "tier_demoted_pages") > 0);
    (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
}

/// With compressed memory alone nothing can be brought in any more when its limit is reached and all that is resident has changed.
#[test]
fn a_pool_that_is_full_stops_nobody() {
    let Some(_watchdog) = watchdog(100) else { return };
    for mode in [DEFAULT_MODE, common::POLL] {
        let swap = mode.set(builder(64, tier("memory:?size=8MiB&compress=lz4&limit=64KiB", &file().replace("4MiB", "8MiB")))).open().unwrap();
        let region = swap.create_region(1500 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        for round in 1..4 {
            for page in 0..pages.len() {
                if round > 1 {
                    pages.check(page, round - 1);
                }
                pages.fill(page, round);
            }
        }
        (0..pages.len()).for_each(|page| pages.check(page, 3));
        assert_eq!((stat(&swap, "swap_out_errors"), stat(&swap, "swap_in_errors"), stat(&swap, "swap_out_failing")), (0, 0, 0));
        assert!(stat(&swap, "compressed_memory_bytes") <= 64 << 10);
    }
}

/// Pages that are used stay in compressed memory, those that are not leave it, and then all is quiet.
#[test]
fn cold_pages_leave_and_then_nothing_moves() {
    let Some(_watchdog) = watchdog(100) else { return };
    let swap = builder(32, tier("memory:?size=8MiB&compress=lz4&limit=1MiB", &late(&file().replace("4MiB", "8MiB")))).open().unwrap();
    let region = swap.create_region(600 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    // 100 pages that are used, and 500 one after the other that are not.
    let warm = |page: usize| page * 6;
    for page in 0..600 {
        pages.fill(page, 1);
        (0..page / 6).step_by(7).for_each(|number| pages.check(warm(number), 1));
    }
    let is_warm = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while is_warm.load(Relaxed) {
                (0..100).for_each(|number| pages.check(warm(number), 1))
            }
        });
        wait_until("pages have moved", || stat(&swap, "tier_demoted_pages") > 300);
        is_warm.store(false, Relaxed);
    });
    let mut last = 0;
    wait_until("nothing moves any more", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        std::mem::replace(&mut last, stat(&swap, "tier_demoted_pages")) == last
    });
    assert!(stat(&swap, "compressed_content_bytes") <= (1 << 20) / 10 * 9 && stat(&swap, "tier_fast_pages") > 100, "{:?}", swap.stats());
    let num_before = stat(&swap, "tier_slow_reads");
    (0..600).for_each(|page| pages.check(page, 1));
    assert!(stat(&swap, "tier_slow_reads") > num_before);
}

#[test]
fn what_cannot_be_is_refused() {
    for (url, text) in [
        ("tier(memory:?size=1MiB)", "it takes 2 backends"),
        ("tier(memory:?size=1MiB,memory:?size=1MiB,memory:?size=1MiB)", "it takes 2 backends"),
        ("tier(memory:?size=1MiB,)", "no scheme"),
        ("tier(memory:?size=1MiB,disk:/x)", "unknown"),
    ] {
        let error = builder(64, url).open().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::BackendUrl) && error.to_string().contains(text), "{url}: {error}");
    }
}
