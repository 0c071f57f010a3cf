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

/// In a child: reads all pages.
fn check_all(pages: Pages, seed: u64) {
    (0..NUM_PAGES).for_each(|page| exit_unless(is_right(pages, page, seed), &format!("page {page}")));
}

#[test]
fn from_a_worker_and_from_an_lwt() {
    for url in [memory(), file("worker")] {
        alone("from_a_worker_and_from_an_lwt", || {
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
        });
    }
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
fn what_a_child_fetches_is_bounded() {
    alone("what_a_child_fetches_is_bounded", || {
        with_region(DEFAULT_MODE, &file("bounded"), Duration::from_secs(30), |_, pages| {
            let status = fork(|| {
                let before = resident_kb();
                // Pages that it has in common with its parent are counted in both, when they are used.
                let mut most = 0;
                for round in 0..2 {
                    for page in 0..NUM_PAGES {
                        exit_unless(is_right(pages, page, 1), "content");
                        if page % 100 == 0 {
                            most = most.max(resident_kb());
                        }
                    }
                    exit_unless((0..NUM_PAGES).filter(|page| pages.is_resident(*page)).count() <= LOCAL_PAGES as usize + MOST_FETCHED, "resident");
                    exit_unless(
                        most < before + (LOCAL_PAGES + MOST_FETCHED as u64 + 64) * 4,
                        &format!("{before} kB, then {most} kB in round {round}"),
                    );
                }
            });
            expect_exit(status, 0);
        });
    });
}

#[test]
fn what_a_child_changes_or_pins_stays() {
    alone("what_a_child_changes_or_pins_stays", || {
        with_region(DEFAULT_MODE, &memory(), Duration::from_secs(30), |_, pages| {
            let status = fork(|| {
                // More than it keeps of those that it only reads.
                for page in (0..NUM_PAGES).step_by(4) {
                    pages.set_word(page, 5, 77);
                }
                let pinned = (0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap();
                exit_unless(pages.pin(pinned, 1).is_ok() && pages.is_resident(pinned), "pin");
                for page in 0..NUM_PAGES {
                    let changed = page % 4 == 0;
                    exit_unless(pages.word(page, 5) == if changed { 77 } else { pattern(page, 5, 1) }, "changed content");
                    exit_unless(pages.word(page, 6) == pattern(page, 6, 1), "content");
                }
                exit_unless(pages.is_resident(pinned), "still pinned");
                pages.unpin(pinned, 1);
            });
            expect_exit(status, 0);
            (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
        });
    });
}

#[test]
fn untouched_and_discarded_pages_are_zeroes() {
    alone("untouched_and_discarded_pages_are_zeroes", || {
        let swap = open(DEFAULT_MODE, &memory(), Duration::from_secs(30));
        let region = swap.create_region(NUM_PAGES * PAGE, Contract::Cooperative).unwrap();
        let pages = Pages::of(&region);
        (0..NUM_PAGES).step_by(2).for_each(|page| pages.fill(page, 1));
        (0..NUM_PAGES).step_by(8).for_each(|page| pages.discard(page, 1));
        let seed_of = |page: usize| if page % 2 == 1 || page % 8 == 0 { 0 } else { 1 };
        let pid = fork_aside(|| {
            for page in 0..NUM_PAGES {
                exit_unless(holds(pages, page, seed_of(page)), &format!("page {page}"));
            }
            // They are its own.
            exit_unless(pages.pin(1, 1).is_ok(), "pin");
            pages.set_word(1, 0, 5);
            exit_unless(pages.word(1, 0) == 5 && pages.word(1, 1) == 0, "written");
        });
        (0..NUM_PAGES).for_each(|page| pages.discard(page, 1));
        (0..NUM_PAGES).for_each(|page| pages.fill(page, 2));
        expect_exit(wait_for(pid), 0);
        (0..NUM_PAGES).for_each(|page| pages.check(page, 2));
    });
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

/// In a child: of a pipe's ends it keeps one, or it would never see that the parent has closed the other.
fn close(fd: i32) {
    // SAFETY: the child's own descriptor.
    unsafe { libc::close(fd) };
}

#[test]
fn a_child_that_is_killed_ends_the_snapshot() {
    alone("a_child_that_is_killed_ends_the_snapshot", || {
        // Reads that take long, so that it is killed in the midst of one.
        let url = format!("faulty(read%0.5=stall:20):{}", memory());
        with_region(DEFAULT_MODE, &url, Duration::from_secs(30), |swap, pages| {
            for round in 0..3 {
                let pid = fork_aside(|| check_all(pages, 1));
                std::thread::sleep(Duration::from_millis(30 + 7 * round));
                // SAFETY: a child of ours.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                wait_for(pid);
                wait_for_the_end(swap);
            }
            swap.stop_faults();
            expect_exit(fork(|| check_all(pages, 1)), 0);
            (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
            assert_eq!((stat(swap, "snapshots"), stat(swap, "snapshots_refused")), (4, 0));
        });
    });
}

#[test]
fn without_its_parent_a_child_ends_as_failed() {
    alone("without_its_parent_a_child_ends_as_failed", || {
        let (mut results, result) = std::io::pipe().unwrap();
        let parent = fork_aside(|| {
            with_region(DEFAULT_MODE, &file("orphan"), Duration::from_secs(30), |_, pages| {
                let me = std::process::id();
                let pid = fork_aside(|| {
                    // SAFETY: the parent, a child of the test's.
                    unsafe { libc::kill(me as i32, libc::SIGKILL) };
                    let start = Instant::now();
                    let missing = (0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap();
                    let error = lightswap::touch(pages.address(missing), 1).unwrap_err();
                    let is_prompt = start.elapsed() < Duration::from_secs(10);
                    let is_right = error.kind() == ErrorKind::SwapIn && error.failure().unwrap().cause() == lightswap::Cause::LostBackend;
                    let _ = (&result).write_all(&[u8::from(is_prompt && is_right)]);
                    // Nothing catches this.
                    pages.word(missing, 0);
                    let _ = (&result).write_all(&[9]);
                });
                wait_for(pid);
            });
        });
        drop(result);
        let mut told = Vec::new();
        results.read_to_end(&mut told).unwrap();
        assert_eq!(told, [1]);
        assert!(libc::WIFSIGNALED(wait_for(parent)));
    });
}

#[test]
fn failed_reads_end_a_child_or_are_caught() {
    let ended = alone("failed_reads_end_a_child_or_are_caught", || {
        for action in ["EIO", "flip", "short", "misdirect"] {
            let url = format!("faulty(read@1+={action}):{}", memory());
            with_region(DEFAULT_MODE, &url, Duration::from_secs(30), |swap, pages| {
                expect_exit(fork(|| check_all(pages, 1)), 1);
                wait_for_the_end(swap);
                let caught = fork(|| {
                    let mut num_lost = 0;
                    for page in 0..NUM_PAGES {
                        // SAFETY: nothing is to be cleaned up.
                        match unsafe { lightswap::try_catch(|| pages.word(page, 3)) } {
                            Ok(word) => exit_unless(word == pattern(page, 3, 1), "a wrong byte"),
                            Err(_) => num_lost += 1,
                        }
                    }
                    exit_unless(num_lost > NUM_PAGES / 2, "all that is not resident is lost");
                });
                expect_exit(caught, 0);
                wait_for_the_end(swap);
                assert!(stat(swap, "snapshot_failures") > NUM_PAGES as u64 / 2);
                swap.stop_faults();
                (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
            });
        }
    });
    if let Some(ended) = ended.filter(|ended| !ended.stderr.contains("skipped: ")) {
        let messages = ended.stderr.lines().filter(|line| line.starts_with("lightswap: a child of fork(): page ")).count();
        assert_eq!(messages, 4, "{ended:?}");
    }
}

#[test]
fn reads_that_fail_now_and_then_are_tried_again() {
    alone("reads_that_fail_now_and_then_are_tried_again", || {
        for url in [format!("faulty(read%0.05=EIO;read%0.05=flip):{}", memory()), format!("mirror(faulty(read%0.1=flip):{},{})", memory(), memory())]
        {
            with_region(DEFAULT_MODE, &url, Duration::from_secs(30), |swap, pages| {
                let status = fork(|| {
                    let mut num_lost = 0;
                    for page in 0..NUM_PAGES {
                        // SAFETY: nothing is to be cleaned up.
                        match unsafe { lightswap::try_catch(|| is_right(pages, page, 1)) } {
                            Ok(is_right) => exit_unless(is_right, "a wrong byte"),
                            Err(_) => num_lost += 1,
                        }
                    }
                    exit_unless(num_lost < NUM_PAGES / 50, &format!("{num_lost} pages lost"));
                });
                expect_exit(status, 0);
                swap.stop_faults();
            });
        }
    });
}

#[test]
fn a_read_that_hangs_ends_with_the_time_limit() {
    alone("a_read_that_hangs_ends_with_the_time_limit", || {
        let url = format!("faulty(read@1+=stall:3000):{}", memory());
        with_region(DEFAULT_MODE, &url, Duration::from_millis(300), |swap, pages| {
            let status = fork(|| {
                let missing = (0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap();
                let start = Instant::now();
                let error = lightswap::touch(pages.address(missing), 1).unwrap_err();
                exit_unless(error.failure().unwrap().cause() == lightswap::Cause::TimedOut, "cause");
                exit_unless(start.elapsed() < Duration::from_secs(2), "time");
            });
            expect_exit(status, 0);
            swap.stop_faults();
            wait_for_the_end(swap);
            (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
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
fn prefetches_and_requests_in_a_child() {
    alone("prefetches_and_requests_in_a_child", || {
        with_region(DEFAULT_MODE, &file("requests"), Duration::from_secs(30), |_, pages| {
            let status = fork(|| {
                let missing = |from: usize| (from..NUM_PAGES - 4).find(|page| (*page..page + 4).all(|page| !pages.is_resident(page))).unwrap();
                let first = missing(0);
                pages.prefetch(first, 4);
                exit_unless(!pages.is_resident(first), "a prefetch does not wait");
                std::thread::sleep(Duration::from_millis(200));
                // What has arrived is taken in with the next request.
                let other = missing(first + 4);
                exit_unless(lightswap::touch(pages.address(other), PAGE).is_ok(), "touch");
                exit_unless((first..first + 4).all(|page| pages.is_resident(page)), "prefetched");
                exit_unless(lightswap::advise_cold(pages.address(0), PAGE).is_ok() && lightswap::reserve(pages.address(0), PAGE).is_ok(), "advice");
                exit_unless(lightswap::discard(pages.address(0), PAGE).is_err(), "only the parent discards");
                // More than a window, of which the child keeps no more than it may.
                exit_unless(lightswap::touch(pages.address(0), NUM_PAGES * PAGE).is_ok(), "touch of all");
                let mut copied = vec![0u8; 40 * PAGE];
                // SAFETY: both are as long.
                unsafe { exit_unless(lightswap::copy(copied.as_mut_ptr(), pages.address(100), copied.len()).is_ok(), "copy") };
                let words = copied.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
                exit_unless(words.enumerate().all(|(word, found)| found == pattern(100 + word / WORDS, word % WORDS, 1)), "copied content");
                // SAFETY: as above.
                exit_unless(
                    unsafe { lightswap::compare(pages.address(100), copied.as_ptr(), copied.len()) }.is_ok_and(|order| order.is_eq()),
                    "compare",
                );
            });
            expect_exit(status, 0);
        });
    });
}

#[test]
fn system_calls_in_a_child() {
    alone("system_calls_in_a_child", || {
        with_region(DEFAULT_MODE, &file("calls"), Duration::from_secs(30), |_, pages| {
            let mut fds = [0; 2];
            // SAFETY: two descriptors come into the array.
            assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
            let pid = fork_aside(|| {
                let mut done = 0;
                while done < NUM_PAGES * PAGE {
                    // SAFETY: the range is the region's.
                    let result = unsafe { lightswap::syscalls::write(fds[1], pages.address(0).wrapping_add(done).cast(), NUM_PAGES * PAGE - done) };
                    exit_unless(result > 0, "write");
                    done += result as usize;
                }
            });
            close(fds[1]);
            let mut written = Vec::new();
            // SAFETY: ours, and used here only.
            unsafe { std::fs::File::from_raw_fd(fds[0]) }.read_to_end(&mut written).unwrap();
            expect_exit(wait_for(pid), 0);
            assert_eq!(written.len(), NUM_PAGES * PAGE);
            let words = written.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
            assert!(words.enumerate().all(|(word, found)| found == pattern(word / WORDS, word % WORDS, 1)));
        });
    });
}

#[test]
fn several_threads_of_a_child() {
    alone("several_threads_of_a_child", || {
        with_region(DEFAULT_MODE, &file("threads"), Duration::from_secs(30), |_, pages| {
            let status = fork(|| {
                let threads = (0..4).map(|thread| {
                    std::thread::spawn(move || {
                        let mut random = Random::new(thread);
                        for _ in 0..2000 {
                            let page = random.below(NUM_PAGES);
                            // Words of their own: all write while the others make the child drop what it has not changed.
                            let word = 8 + thread as usize;
                            exit_unless(pages.word(page, 0) == pattern(page, 0, 1), "content");
                            if page % 64 == 0 {
                                pages.set_word(page, word, 7);
                            }
                            exit_unless(pages.word(page, word) == if page % 64 == 0 { 7 } else { pattern(page, word, 1) }, "own content");
                        }
                    })
                });
                threads.collect::<Vec<_>>().into_iter().for_each(|thread| exit_unless(thread.join().is_ok(), "a thread"));
            });
            expect_exit(status, 0);
        });
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
