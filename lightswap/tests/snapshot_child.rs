//! Forks with `snapshots`, as the child sees them: what it may do, what it takes, and how it ends when a page cannot be had.

mod common;
mod snapshot_support;

use common::child::fork;
use common::pages::{Pages, WORDS, pattern};
use common::{DEFAULT_MODE, PAGE, Random, stat};
use lightswap::{Contract, ErrorKind};
use snapshot_support::*;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::time::{Duration, Instant};

/// Anonymous memory of this process that is resident.
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
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
        let seed_of = |page: usize| if page % 2 == 1 || page.is_multiple_of(8) { 0 } else { 1 };
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
                            if page.is_multiple_of(64) {
                                pages.set_word(page, word, 7);
                            }
                            exit_unless(pages.word(page, word) == if page.is_multiple_of(64) { 7 } else { pattern(page, word, 1) }, "own content");
                        }
                    })
                });
                threads.collect::<Vec<_>>().into_iter().for_each(|thread| exit_unless(thread.join().is_ok(), "a thread"));
            });
            expect_exit(status, 0);
        });
    });
}
