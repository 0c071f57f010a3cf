//! Children of fork() with `snapshots`: they read all that regions held at the fork, whatever the parent does with its pages meanwhile, and the parent loses nothing by it.

mod common;

use common::child::{Ended, fork, in_child};
use common::pages::{Pages, WORDS, pattern};
use common::{Backend, DEFAULT_MODE, Mode, PAGE, POLL, Random, Watchdog, builder, kernel_is_able, new_path, stat, wait_until};
use lightswap::{Contract, ErrorKind, Lightswap, Region};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

const LOCAL_PAGES: u64 = 256;
const NUM_PAGES: usize = 8 * LOCAL_PAGES as usize;
/// Most pages that a child keeps of those it has fetched, with so little local memory.
const MOST_FETCHED: usize = 64;

/// Room for both slots of each page.
fn memory() -> String {
    format!("memory:?size={}", 2 * NUM_PAGES * PAGE)
}

fn file(name: &str) -> String {
    format!("file:{}?size={}", new_path(name).display(), 2 * NUM_PAGES * PAGE)
}

fn open(mode: Mode, url: &str, limit: Duration) -> Lightswap {
    mode.set(builder(LOCAL_PAGES, url)).snapshots(true).io_timeout(limit).open().unwrap()
}

/// Runs `body` in a process of its own, as forks of the harness are none of its business.
fn alone(test: &str, body: impl FnOnce()) -> Option<Ended> {
    let ended = in_child(test, || {
        if kernel_is_able() {
            let _watchdog = Watchdog::new("a test of snapshots", Duration::from_secs(120));
            body();
        }
    });
    if let Some(ended) = &ended {
        ended.expect_success();
    }
    ended
}

/// With a region that is filled with the pattern of seed 1.
fn with_region(mode: Mode, url: &str, limit: Duration, body: impl FnOnce(&Lightswap, Pages)) {
    let swap = open(mode, url, limit);
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
    body(&swap, pages);
}

/// In a child: nothing of the harness may run, so a failure is a line and an exit code.
fn exit_unless(is_right: bool, what: &str) {
    if !is_right {
        let _ = writeln!(std::io::stderr(), "in the child: {what}");
        // SAFETY: ends the process.
        unsafe { libc::_exit(9) };
    }
}

fn is_right(pages: Pages, page: usize, seed: u64) -> bool {
    (0..WORDS).all(|word| pages.word(page, word) == pattern(page, word, seed))
}

/// Forks a child that goes on while this process does.
fn fork_aside(body: impl FnOnce()) -> i32 {
    // SAFETY: the child runs `body`, which tests keep to what is safe there, and then ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        body();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    assert!(pid > 0);
    pid
}

fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waits for a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

fn expect_exit(status: i32, code: i32) {
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code, "status {status:#x} instead of exit code {code}");
}

fn wait_for_the_end(swap: &Lightswap) {
    wait_until("the end of the snapshot", || stat(swap, "snapshot_live") == 0);
}

/// Anonymous memory of this process that is resident.
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What each page holds: the seed of its pattern, or 0 for zeroes.
struct Contents {
    seeds: Vec<Mutex<u64>>,
    next: AtomicU64,
}

impl Contents {
    fn new() -> Self {
        Self { seeds: (0..NUM_PAGES).map(|_| Mutex::new(1)).collect(), next: AtomicU64::new(2) }
    }

    /// Overwrites, changes, reads, discards or evicts a page, as `random` has it.
    fn change(&self, pages: Pages, random: &mut Random) {
        let page = random.below(NUM_PAGES);
        let mut seed = self.seeds[page].lock().unwrap();
        match random.below(10) {
            0 => {
                pages.discard(page, 1);
                *seed = 0;
            }
            1..5 => {
                *seed = self.next.fetch_add(1, SeqCst);
                pages.fill(page, *seed);
            }
            5 => pages.advise_cold(page, 1),
            _ => assert!(holds(pages, page, *seed), "page {page} in the parent, seed {}", *seed),
        }
    }
}

fn holds(pages: Pages, page: usize, seed: u64) -> bool {
    if seed == 0 { pages.is_zero(page) } else { is_right(pages, page, seed) }
}

/// Several snapshots, one after the other, of a parent whose threads and LWTs never stop to change pages but for the moment of the fork.
fn under_load(mode: Mode, url: &str, seed: u64) {
    with_region(mode, url, Duration::from_secs(30), |swap, pages| {
        let (contents, forking, is_over) = (Contents::new(), RwLock::new(()), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (contents, forking, is_over) = (&contents, &forking, &is_over);
                scope.spawn(move || {
                    let mut random = Random::new(seed * 10 + thread);
                    while !is_over.load(SeqCst) {
                        let _not_now = forking.read().unwrap();
                        contents.change(pages, &mut random);
                    }
                });
            }
            // Nobody may stop the others by waiting: these do not know of the fork, and change nothing.
            let is_over_too = &is_over;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !is_over_too.load(SeqCst) {
                    pages.touch(random.below(NUM_PAGES), 1);
                }
            });
            let mut random = Random::new(seed + 77);
            for round in 0..4 {
                let others_wait = forking.write().unwrap();
                let expected: Vec<u64> = contents.seeds.iter().map(|seed| *seed.lock().unwrap()).collect();
                let is_prefetching = round % 2 == 1;
                let start = random.below(NUM_PAGES);
                let pid = fork_aside(|| {
                    exit_unless(lightswap::in_snapshot(), "it should be a snapshot");
                    for step in 0..NUM_PAGES {
                        let page = (start + step * 7) % NUM_PAGES;
                        if is_prefetching {
                            let ahead = (start + (step + 8) * 7) % NUM_PAGES;
                            let _ = lightswap::prefetch(pages.address(ahead), PAGE);
                        }
                        exit_unless(holds(pages, page, expected[page]), &format!("round {round}: page {page}, seed {}", expected[page]));
                    }
                });
                drop(others_wait);
                expect_exit(wait_for(pid), 0);
                wait_for_the_end(swap);
            }
            is_over.store(true, SeqCst);
        });
        assert!(!lightswap::in_snapshot());
        for (page, seed) in contents.seeds.iter().enumerate() {
            let seed = *seed.lock().unwrap();
            assert!(holds(pages, page, seed), "page {page} after all, seed {seed}");
        }
        assert_eq!((stat(swap, "snapshots"), stat(swap, "snapshots_refused"), stat(swap, "snapshot_failures")), (4, 0, 0));
        assert!(stat(swap, "snapshot_pages_moved") > 0 && stat(swap, "snapshot_pages_served") > 0);
    });
}

macro_rules! under_load {
    ($($name:ident: $mode:expr, $url:expr;)*) => {
        $(#[test]
        fn $name() {
            alone(stringify!($name), || under_load($mode, &$url, 1));
        })*
    };
}

under_load! {
    under_load_in_memory: DEFAULT_MODE, memory();
    under_load_in_a_file: DEFAULT_MODE, file("load");
    under_load_with_polling_workers: POLL, file("polled");
    under_load_compressed: DEFAULT_MODE, format!("{}&compress=lz4", memory());
    under_load_encrypted: DEFAULT_MODE, format!("encrypted({})", memory());
    under_load_mirrored: DEFAULT_MODE, format!("mirror({},{})", memory(), file("mirrored"));
    under_load_striped: DEFAULT_MODE, format!("stripe({},{})", memory(), memory());
    under_load_delayed: DEFAULT_MODE, format!("faulty(read%20=delay:2,write%20=delay:2):{}", memory());
}
