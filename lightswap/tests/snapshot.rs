//! Forks with `snapshots`, as the parent sees them: children read all that regions held at the fork, whatever it does with its pages meanwhile, and it loses nothing by
//! it.

mod common;
mod snapshot_support;

use common::child::fork;
use common::pages::{Pages, WORDS, pattern};
use common::{Backend, DEFAULT_MODE, Mode, PAGE, POLL, Random, builder, kernel_is_able, stat};
use lightswap::{Contract, ErrorKind, Region};
use snapshot_support::*;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

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

/// Tells others to end, whatever this thread ends by.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Several snapshots, one after the other, of a parent whose threads and LWTs never stop to change pages but for the moment of the fork.
fn under_load(mode: Mode, url: &str, seed: u64) {
    with_region(mode, url, Duration::from_secs(30), |swap, pages| {
        let (contents, forking, is_over) = (Contents::new(), RwLock::new(()), AtomicBool::new(false));
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
            let _ends_them = OnDrop(&is_over);
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
    under_load_tiered: DEFAULT_MODE, format!("tier({}&compress=lz4&limit=1MiB,{})", memory(), file("tiered"));
    under_load_in_memory: DEFAULT_MODE, memory();
    under_load_in_a_file: DEFAULT_MODE, file("load");
    under_load_with_polling_workers: POLL, file("polled");
    under_load_compressed: DEFAULT_MODE, format!("{}&compress=lz4", memory());
    under_load_encrypted: DEFAULT_MODE, format!("encrypted({})", memory());
    under_load_mirrored: DEFAULT_MODE, format!("mirror({},{})", memory(), file("mirrored"));
    under_load_striped: DEFAULT_MODE, format!("stripe({},{})", memory(), memory());
    under_load_delayed: DEFAULT_MODE, format!("faulty(read%0.2=delay:2;write%0.2=delay:2):{}", memory());
}

/// Nobody stops for the fork here: pages are written, removed and brought in as it happens, and in the child each has one content or another.
#[test]
fn forks_amid_evictions() {
    alone("forks_amid_evictions", || {
        with_region(DEFAULT_MODE, &memory(), Duration::from_secs(30), |swap, pages| {
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let is_over = &is_over;
                    scope.spawn(move || {
                        let mut random = Random::new(thread);
                        while !is_over.load(SeqCst) {
                            let page = random.below(NUM_PAGES);
                            pages.set_word(page, 0, pages.word(page, 0) + 1);
                        }
                    });
                }
                let _ends_them = OnDrop(&is_over);
                for round in 0..40 {
                    let pid = fork_aside(|| {
                        for page in 0..NUM_PAGES {
                            let is_right = (1..WORDS).all(|word| pages.word(page, word) == pattern(page, word, 1));
                            exit_unless(is_right, &format!("round {round}: page {page}"));
                            let num_changes = pages.word(page, 0).wrapping_sub(pattern(page, 0, 1));
                            exit_unless(num_changes < 1 << 32, &format!("round {round}: page {page} word 0"));
                        }
                    });
                    expect_exit(wait_for(pid), 0);
                }
            });
            assert_eq!((stat(swap, "snapshots"), stat(swap, "snapshots_refused")), (40, 0));
        });
    });
}

#[test]
fn from_a_worker_and_from_an_lwt() {
    alone("from_a_worker_and_from_an_lwt", || {
        for url in [memory(), file("worker")] {
            with_region(DEFAULT_MODE, &url, Duration::from_secs(30), |swap, pages| {
                let worker = swap.enter_worker().unwrap();
                // LWTs that are in the midst of swap-ins and evictions when the worker's own stack forks, and then one of them.
                let round = std::rc::Rc::new(std::cell::Cell::new(1));
                for lwt in 0..16 {
                    let round = round.clone();
                    let start = move || {
                        let mut random = Random::new(lwt);
                        while round.get() > 0 {
                            let page = lwt as usize + 16 * random.below(NUM_PAGES / 16);
                            // The same content: what the child is to find does not depend on when.
                            pages.fill(page, 1);
                            lightswap::lwt::yield_now();
                        }
                    };
                    worker.start(start).unwrap();
                }
                (0..20).for_each(|_| _ = worker.poll());
                let pid = fork_aside(|| {
                    exit_unless(!lightswap::lwt::on_lwt(), "it should be no LWT");
                    check_all(pages, 1);
                });
                let status = AtomicU64::new(u64::MAX);
                let of_lwt = std::rc::Rc::new(std::cell::Cell::new(0));
                while wait_without_hang(pid, &status) {
                    worker.poll();
                }
                expect_exit(status.load(SeqCst) as i32, 0);
                while stat(swap, "snapshot_live") > 0 {
                    worker.poll();
                }
                let by_lwt = of_lwt.clone();
                worker
                    .start(move || {
                        by_lwt.set(fork_aside(|| {
                            exit_unless(!lightswap::lwt::on_lwt() && lightswap::in_snapshot(), "it should be a thread of a snapshot");
                            check_all(pages, 1);
                        }));
                    })
                    .unwrap();
                while of_lwt.get() == 0 || wait_without_hang(of_lwt.get(), &status) {
                    worker.poll();
                }
                expect_exit(status.load(SeqCst) as i32, 0);
                round.set(0);
                worker.run();
                drop(worker);
                (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
            });
        }
    });
}

/// Whether a child of ours has not ended; how it has.
fn wait_without_hang(pid: i32, status: &AtomicU64) -> bool {
    let mut found = 0;
    // SAFETY: asks for a child of ours.
    if unsafe { libc::waitpid(pid, &mut found, libc::WNOHANG) } == 0 {
        return true;
    }
    status.store(found as u64, SeqCst);
    false
}

#[test]
fn slots_that_nobody_needs_are_given_back() {
    alone("slots_that_nobody_needs_are_given_back", || {
        with_region(DEFAULT_MODE, &format!("{}&compress=lz4", memory()), Duration::from_secs(30), |swap, pages| {
            let (tell_end, told) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
            let pid = fork_aside(|| {
                close(tell_end.as_raw_fd());
                let _ = (&told).read(&mut [0]);
                check_all(pages, 1);
            });
            let stored = || stat(swap, "compressed_pages");
            let before = stored();
            (0..NUM_PAGES).for_each(|page| pages.fill(page, 2));
            assert!(stored() > before + NUM_PAGES as u64 / 2, "{before} pages, then {}: both contents are needed", stored());
            (0..NUM_PAGES / 2).for_each(|page| pages.discard(page, 1));
            drop(tell_end);
            expect_exit(wait_for(pid), 0);
            wait_for_the_end(swap);
            assert!(stored() <= NUM_PAGES as u64 / 2, "{} pages of {} are stored", stored(), NUM_PAGES / 2);
            (NUM_PAGES / 2..NUM_PAGES).for_each(|page| pages.check(page, 2));
            (0..NUM_PAGES).for_each(|page| pages.discard(page, 1));
            assert_eq!(stored(), 0);
        });
    });
}

#[test]
fn one_snapshot_at_a_time() {
    let ended = alone("one_snapshot_at_a_time", || {
        with_region(DEFAULT_MODE, &memory(), Duration::from_secs(30), |swap, pages| {
            let (told, tell) = std::io::pipe().unwrap();
            let first = fork_aside(|| {
                close(tell.as_raw_fd());
                let _ = (&told).read(&mut [0]);
                check_all(pages, 1);
                // Its own children are none.
                let status = fork(|| {
                    exit_unless(!lightswap::in_snapshot(), "a grandchild");
                    pages.word((0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap(), 0);
                });
                exit_unless(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT, "a grandchild reads");
                check_all(pages, 1);
            });
            let start = Instant::now();
            let second = fork(|| {
                exit_unless(!lightswap::in_snapshot(), "the second of two");
                exit_unless((0..NUM_PAGES).filter(|page| pages.is_resident(*page)).all(|page| is_right(pages, page, 1)), "resident pages");
                pages.word((0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap(), 0);
            });
            assert!(start.elapsed() < Duration::from_secs(1), "it does not wait for the first");
            assert!(libc::WIFSIGNALED(second) && libc::WTERMSIG(second) == libc::SIGABRT, "status {second:#x}");
            (0..NUM_PAGES).for_each(|page| pages.fill(page, 2));
            drop(tell);
            expect_exit(wait_for(first), 0);
            // One that comes when it has just ended is one.
            expect_exit(fork(|| check_all(pages, 2)), 0);
            assert_eq!((stat(swap, "snapshots"), stat(swap, "snapshots_refused")), (2, 1));
        });
    });
    if let Some(ended) = ended.filter(|ended| !ended.stderr.contains("skipped: ")) {
        assert_eq!(ended.stderr.lines().filter(|line| line.contains("lightswap: fatal: ") && line.contains("fork")).count(), 2, "{ended:?}");
    }
}

#[test]
fn snapshots_follow_each_other_at_once() {
    alone("snapshots_follow_each_other_at_once", || {
        with_region(DEFAULT_MODE, &memory(), Duration::from_secs(30), |swap, pages| {
            for seed in 2..30 {
                let missing = (0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap();
                let pid = fork_aside(|| {
                    exit_unless(is_right(pages, missing, seed - 1), "content");
                });
                (0..NUM_PAGES).step_by(3).chain([missing]).for_each(|page| pages.fill(page, seed));
                (0..NUM_PAGES).for_each(|page| pages.fill(page, seed));
                expect_exit(wait_for(pid), 0);
            }
            assert_eq!((stat(swap, "snapshots"), stat(swap, "snapshots_refused")), (28, 0));
        });
    });
}

#[test]
fn other_programs_start_as_ever() {
    alone("other_programs_start_as_ever", || {
        use std::os::unix::process::CommandExt as _;
        with_region(DEFAULT_MODE, &memory(), Duration::from_secs(30), |swap, pages| {
            for _ in 0..10 {
                let mut command = std::process::Command::new("true");
                // SAFETY: the hook does nothing; it makes the standard library use fork and exec.
                unsafe { command.pre_exec(|| Ok(())) };
                assert!(command.status().unwrap().success());
            }
            // It lives on, but not as a snapshot.
            let mut sleeper = std::process::Command::new("sleep");
            // SAFETY: as above.
            let mut sleeper = unsafe { sleeper.arg("60").pre_exec(|| Ok(())) }.spawn().unwrap();
            wait_for_the_end(swap);
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
            (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
        });
    });
}

#[test]
fn a_fork_does_not_wait_for_the_device() {
    alone("a_fork_does_not_wait_for_the_device", || {
        for action in ["stall:4000", "ENOSPC"] {
            // From somewhere in the second pass on, when all pages are stored.
            let url = format!("faulty(write@200+={action}):{}", memory());
            let swap = open(DEFAULT_MODE, &url, Duration::from_millis(400));
            let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
            let pages = Pages::of(&region);
            let mut num_written = 0;
            // Until a write is stuck, or has failed.
            while stat(&swap, "faulty_writes") < 200 {
                pages.fill(num_written % NUM_PAGES, 1 + (num_written / NUM_PAGES) as u64);
                num_written += 1;
            }
            assert!(num_written > NUM_PAGES);
            let start = Instant::now();
            let pid = fork_aside(|| {
                exit_unless(lightswap::in_snapshot(), "a snapshot");
                for page in 0..NUM_PAGES {
                    exit_unless(is_right(pages, page, 1 + ((num_written - 1 - page) / NUM_PAGES) as u64), &format!("page {page}"));
                }
            });
            assert!(start.elapsed() < Duration::from_secs(1), "{action}: {:?}", start.elapsed());
            expect_exit(wait_for(pid), 0);
            swap.stop_faults();
        }
    });
}

#[test]
fn regions_come_and_go_while_a_snapshot_lives() {
    alone("regions_come_and_go_while_a_snapshot_lives", || {
        let swap = open(DEFAULT_MODE, &memory(), Duration::from_secs(30));
        assert_eq!(swap.room_bytes(), (NUM_PAGES * PAGE) as u64);
        let make = |seed: u64| -> Region {
            let region = swap.create_region(NUM_PAGES / 2 * PAGE, Contract::Transparent).unwrap();
            (0..NUM_PAGES / 2).for_each(|page| Pages::of(&region).fill(page, seed));
            region
        };
        let first = make(1);
        assert_eq!(swap.room_bytes(), (NUM_PAGES / 2 * PAGE) as u64);
        let pages = Pages::of(&first);
        let (told, tell) = std::io::pipe().unwrap();
        let pid = fork_aside(|| {
            close(tell.as_raw_fd());
            let _ = (&told).read(&mut [0]);
            (0..NUM_PAGES / 2).for_each(|page| exit_unless(is_right(pages, page, 1), "content"));
        });
        drop(first);
        let second = make(2);
        let error = swap.create_region(NUM_PAGES / 2 * PAGE, Contract::Transparent).unwrap_err();
        assert_eq!((error.kind(), swap.room_bytes()), (ErrorKind::NoSpace, 0));
        drop(tell);
        expect_exit(wait_for(pid), 0);
        wait_for_the_end(&swap);
        assert_eq!(swap.room_bytes(), (NUM_PAGES / 2 * PAGE) as u64);
        let third = make(3);
        for (region, seed) in [(&second, 2), (&third, 3)] {
            (0..NUM_PAGES / 2).for_each(|page| Pages::of(region).check(page, seed));
        }
    });
}

#[test]
fn several_instances_and_one_of_the_childs_own() {
    alone("several_instances_and_one_of_the_childs_own", || {
        with_region(DEFAULT_MODE, &memory(), Duration::from_secs(30), |_, pages| {
            with_region(DEFAULT_MODE, &file("other"), Duration::from_secs(30), |_, others| {
                let plain = builder(LOCAL_PAGES, Backend::Memory.url(NUM_PAGES)).open().unwrap();
                let _region = plain.create_region(PAGE, Contract::Transparent).unwrap();
                let status = fork(|| {
                    let own = builder(LOCAL_PAGES, Backend::Memory.url(NUM_PAGES)).open().unwrap();
                    let region = own.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
                    let its = Pages::of(&region);
                    (0..NUM_PAGES).for_each(|page| its.fill(page, 4));
                    (0..NUM_PAGES)
                        .for_each(|page| exit_unless(is_right(pages, page, 1) && is_right(others, page, 1) && is_right(its, page, 4), "content"));
                });
                expect_exit(status, 0);
            });
        });
    });
}

#[test]
fn what_cannot_be_combined_is_refused() {
    if kernel_is_able() {
        let error = common::MONITOR.set(builder(LOCAL_PAGES, memory())).snapshots(true).open().unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("snapshots"), "{error}");
    }
}
