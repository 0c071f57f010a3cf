//! Faults outside LWTs (ordinary threads, a worker's own stack), and instances, workers and regions that come and go.

mod common;

use common::pages::Pages;
use common::{BACKENDS, Backend, DEFAULT_MODE, LEAST_PAGES, MODES, Mode, Watchdog, builder, kernel_is_able, stat, wait_until};
use lightswap::{Contract, ErrorKind, Lightswap};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

const CONTRACT: Contract = Contract::Transparent;

/// Every backend in every mode.
fn backends_and_modes() -> impl Iterator<Item = (Backend, Mode)> {
    BACKENDS.into_iter().flat_map(|backend| MODES.map(|mode| (backend, mode)))
}

fn watchdog() -> Watchdog {
    Watchdog::new("a test of threads.rs", Duration::from_secs(40))
}

fn open(mode: Mode, backend: Backend, local_pages: u64, num_pages: usize) -> (Lightswap, lightswap::Region, Pages) {
    let swap = mode.set(builder(local_pages, backend.url(num_pages))).open().unwrap();
    let region = swap.create_region(num_pages * common::PAGE, CONTRACT).unwrap();
    let pages = Pages::of(&region);
    (swap, region, pages)
}

#[test]
fn ordinary_threads_page_side_by_side() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (backend, mode) in backends_and_modes() {
        let (swap, _region, pages) = open(mode, backend, LEAST_PAGES, 160);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for round in 0..4 {
                        for page in (thread..160).step_by(8) {
                            if round > 0 {
                                pages.check(page, round - 1);
                            }
                            pages.fill(page, round);
                        }
                    }
                });
            }
        });
        (0..160).for_each(|page| pages.check(page, 3));
        assert!(stat(&swap, "swap_ins") >= 4 * 140);
    }
}

#[test]
fn threads_that_read_the_same_page_share_one_read() {
    if !kernel_is_able() {
        return;
    }
    let (swap, _region, pages) = open(DEFAULT_MODE, Backend::File, 64, 400);
    (0..400).for_each(|page| pages.fill(page, 1));
    for page in 0..40 {
        let before = stat(&swap, "swap_ins");
        let barrier = std::sync::Barrier::new(6);
        std::thread::scope(|scope| {
            (0..6).for_each(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    pages.check(page, 1);
                });
            });
        });
        assert_eq!(stat(&swap, "swap_ins") - before, 1, "page {page}");
    }
}

/// The own stack of a worker faults while its LWTs hold pages in all states: it must run them, or it would wait for itself.
#[test]
fn a_workers_own_stack_pages_amid_its_lwts() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (backend, mode) in backends_and_modes() {
        let (swap, _region, pages) = open(mode, backend, LEAST_PAGES, 160);
        let worker = swap.enter_worker().unwrap();
        for lwt in 0..12 {
            let work = move || {
                for round in 0..3 {
                    for page in (lwt..120).step_by(12) {
                        pages.fill(page, round);
                        lightswap::lwt::yield_now();
                        pages.check(page, round);
                    }
                }
            };
            worker.start(work).unwrap();
        }
        for round in 0..3 {
            (120..160).for_each(|page| pages.fill(page, round));
            worker.poll();
            (120..160).for_each(|page| pages.check(page, round));
        }
        worker.run();
        (0..160).for_each(|page| pages.check(page, 2));
        assert!(worker.start(|| ()).is_ok() && worker.num_lwts() == 0, "an LWT that needs no waiting ends at once");
    }
}

/// An LWT of one instance may fault on a region of another.
#[test]
fn instances_are_independent() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (mode_of_one, mode_of_two) in MODES.into_iter().flat_map(|one| MODES.map(|two| (one, two))) {
        run_two(mode_of_one, mode_of_two);
    }
}

fn run_two(mode_of_one: Mode, mode_of_two: Mode) {
    let (one, region_of_one, pages_of_one) = open(mode_of_one, Backend::File, 32, 200);
    let (two, _region_of_two, pages_of_two) = open(mode_of_two, Backend::Memory, 64, 300);
    let worker = one.enter_worker().unwrap();
    assert_eq!(two.enter_worker().unwrap_err().kind(), ErrorKind::Busy, "a thread is a worker of one instance");
    for lwt in 0..10 {
        let work = move || {
            for page in (lwt..200).step_by(10) {
                pages_of_one.fill(page, 1);
                pages_of_two.fill(page, 2);
                // Where nothing else makes them take turns, all would find their pages still there.
                lightswap::lwt::yield_now();
            }
            for page in (lwt..200).step_by(10) {
                pages_of_one.check(page, 1);
                pages_of_two.check(page, 2);
            }
        };
        worker.start(work).unwrap();
    }
    worker.run();
    drop(worker);
    assert!(stat(&one, "swap_ins") >= 160 && stat(&two, "swap_ins") >= 130);
    drop((region_of_one, one));
    (0..200).for_each(|page| pages_of_two.check(page, 2));
}

#[test]
fn an_instance_can_be_closed_and_opened_again() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let num_threads = || std::fs::read_dir("/proc/self/task").unwrap().filter(|task| name_of(task.as_ref().unwrap()) == "lsw-pager").count();
    let ours = AtomicUsize::new(0);
    for round in 0..20 {
        let (swap, region, pages) = open(MODES[round % 3], BACKENDS[round % 2], 32, 100);
        ours.fetch_max(num_threads(), Relaxed);
        let worker = swap.enter_worker().unwrap();
        worker.start(move || (0..100).for_each(|page| pages.fill(page, round as u64))).unwrap();
        worker.run();
        // In every order: what is left keeps the rest alive.
        match round % 3 {
            0 => {
                drop(swap);
                pages.check(3, round as u64);
                drop(region);
                drop(worker);
            }
            1 => {
                drop(worker);
                pages.check(3, round as u64);
                drop(region);
            }
            _ => {
                drop(region);
                drop(swap);
                drop(worker);
            }
        }
    }
    assert!(ours.load(Relaxed) > 0, "the pager thread has a name to look for");
}

fn name_of(task: &std::fs::DirEntry) -> String {
    std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn workers_are_limited_and_may_come_back() {
    if !kernel_is_able() {
        return;
    }
    let swap = builder(64, Backend::Memory.url(64)).max_workers(2).open().unwrap();
    let worker = swap.enter_worker().unwrap();
    assert_eq!(swap.enter_worker().unwrap_err().kind(), ErrorKind::Busy);
    let on_another_thread = |swap: &Lightswap| std::thread::scope(|scope| scope.spawn(|| swap.enter_worker().map(drop)).join().unwrap());
    for _ in 0..5 {
        on_another_thread(&swap).unwrap();
    }
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _worker = swap.enter_worker().unwrap();
            barrier.wait();
            barrier.wait();
        });
        barrier.wait();
        assert_eq!(on_another_thread(&swap).unwrap_err().kind(), ErrorKind::InvalidArgument);
        barrier.wait();
    });
    drop(worker);
    assert!(swap.enter_worker().is_ok());
}

/// Prefetches of ordinary threads are requests to the pager thread, which may come to them when the region is gone.
#[test]
fn a_region_is_destroyed_while_prefetches_fly() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (backend, mode) in backends_and_modes() {
        let swap = mode.set(builder(128, backend.url(600))).open().unwrap();
        let stays = swap.create_region(100 * common::PAGE, CONTRACT).unwrap();
        let stays = (Pages::of(&stays), stays);
        (0..100).for_each(|page| stays.0.fill(page, 7));
        for round in 0..60 {
            let region = swap.create_region(400 * common::PAGE, CONTRACT).unwrap();
            let pages = Pages::of(&region);
            (0..400).for_each(|page| pages.set_word(page, 0, round + 1));
            pages.advise_cold(0, 400);
            if round % 2 == 0 {
                pages.prefetch(0, 400);
                drop(region);
            } else {
                let worker = swap.enter_worker().unwrap();
                worker.start(move || pages.prefetch(0, 400)).unwrap();
                drop(region);
                worker.run();
            }
        }
        (0..100).for_each(|page| stays.0.check(page, 7));
        drop(stays);
        wait_until("all frames are free again", || stat(&swap, "resident_bytes") == 0);
    }
}

/// A thread that keeps all resident pages referenced, by touching them without end, must not keep others from getting a frame.
#[test]
fn touches_without_end_starve_nobody() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (contract, mode) in [CONTRACT, Contract::Cooperative].into_iter().flat_map(|contract| MODES.map(|mode| (contract, mode))) {
        let swap = mode.set(builder(LEAST_PAGES, Backend::Memory.url(100))).open().unwrap();
        let region = swap.create_region(100 * common::PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        let num_done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while num_done.load(SeqCst) < 2 {
                    // Only what is resident: this thread needs no frame.
                    (0..100).filter(|page| pages.is_resident(*page)).for_each(|page| pages.touch(page, 1));
                }
            });
            scope.spawn(|| {
                (0..400).for_each(|step| pages.touch(step % 100, 1));
                num_done.fetch_add(1, SeqCst);
            });
            let worker = swap.enter_worker().unwrap();
            worker.start(move || (0..400).for_each(|step| pages.touch(99 - step % 100, 1))).unwrap();
            worker.run();
            num_done.fetch_add(1, SeqCst);
        });
    }
}

/// Many pinned pages between the victims split what an evict batch protects into many ranges, which are limited in number.
#[test]
fn pins_all_over_a_region_do_not_stop_eviction() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (contract, mode) in [CONTRACT, Contract::Cooperative].into_iter().flat_map(|contract| MODES.map(|mode| (contract, mode))) {
        let swap = mode.set(builder(4096, Backend::Memory.url(8192))).open().unwrap();
        let region = swap.create_region(8192 * common::PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        let pinned = || (0..1200).map(|index| index * 2);
        pinned().for_each(|page| pages.pin(page, 1).unwrap());
        for round in 0..3 {
            (0..8192).for_each(|page| pages.writing(page, 1, || pages.set_word(page, 1, page as u64 + round)));
            assert!(pinned().all(|page| pages.is_resident(page)));
        }
        (0..8192).for_each(|page| assert_eq!(pages.word(page, 1), page as u64 + 2));
        pinned().for_each(|page| pages.unpin(page, 1));
    }
}
