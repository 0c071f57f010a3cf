//! What the modes for comparison promise beyond right contents, and the times of steps.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::{Backend, MODES, MONITOR, Mode, PAGE, POLL, builder, kernel_is_able, stat};
use lightswap::{Contract, Lightswap, last_notification_ns};
use std::cell::Cell;
use std::rc::Rc;

fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An instance with 64 pages of local memory and a region of 400 pages that hold patterns.
fn open(mode: Mode, backend: Backend, step_times: bool) -> (Lightswap, lightswap::Region, Pages) {
    let swap = mode.set(builder(64, backend.url(400))).step_times(step_times).open().unwrap();
    let region = swap.create_region(400 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..400).for_each(|page| pages.fill(page, 1));
    (swap, region, pages)
}

/// In a process of its own: the monitor's time is that of the last fault of the process.
#[test]
fn the_time_of_a_notification_lies_within_its_fault() {
    let ended = in_child("the_time_of_a_notification_lies_within_its_fault", || {
        if !kernel_is_able() {
            return;
        }
        for mode in MODES {
            let (_swap, _region, pages) = open(mode, Backend::Memory, false);
            let mut num_faults = 0;
            for page in 0..400 {
                let (was_missing, start_ns) = (!pages.is_resident(page), now_ns());
                pages.check(page, 1);
                let notified_ns = last_notification_ns();
                assert!(!was_missing || (start_ns..now_ns()).contains(&notified_ns), "{mode:?} {start_ns} {notified_ns}");
                num_faults += u32::from(was_missing);
            }
            assert!(num_faults > 200, "{mode:?} {num_faults}");
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// One LWT of two waits for pages by turns: while the first waits, does the other run?
fn others_run_meanwhile(mode: Mode, use_touch: bool) -> bool {
    let (swap, _region, pages) = open(mode, Backend::File, false);
    let worker = swap.enter_worker().unwrap();
    let (num_turns, has_ended, ran) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    {
        let (num_turns, has_ended, ran) = (num_turns.clone(), has_ended.clone(), ran.clone());
        let work = move || {
            for page in 0..200 {
                let before = num_turns.get();
                if use_touch {
                    pages.touch(page, 1);
                } else {
                    pages.check(page, 1);
                }
                ran.set(ran.get() || num_turns.get() > before);
                lightswap::lwt::yield_now();
            }
            has_ended.set(true);
        };
        worker.start(work).unwrap();
    }
    let other = move || {
        while !has_ended.get() {
            num_turns.set(num_turns.get() + 1);
            lightswap::lwt::yield_now();
        }
    };
    worker.start(other).unwrap();
    worker.run();
    ran.get()
}

#[test]
fn who_waits_for_a_page() {
    if !kernel_is_able() {
        return;
    }
    assert!(others_run_meanwhile(MODES[0], true) && others_run_meanwhile(MODES[0], false), "an LWT waits");
    assert!(others_run_meanwhile(MONITOR, true) && !others_run_meanwhile(MONITOR, false), "an LWT that asks waits, one that faults stops its worker");
    assert!(!others_run_meanwhile(POLL, true) && !others_run_meanwhile(POLL, false), "the worker waits");
}

/// What workers evict when they are short of a frame counts as direct reclaims.
#[test]
fn only_the_pager_thread_reclaims() {
    if !kernel_is_able() {
        return;
    }
    for backend in [Backend::Memory, Backend::File] {
        let (swap, _region, pages) = open(POLL, backend, false);
        let before = stat(&swap, "direct_reclaims");
        let worker = swap.enter_worker().unwrap();
        (0..8).for_each(|lwt| worker.start(move || (lwt..400).step_by(8).for_each(|page| pages.check(page, 1))).unwrap());
        worker.run();
        assert_eq!(stat(&swap, "direct_reclaims"), before);
        assert!(stat(&swap, "swap_ins") >= 300);
    }
}

/// The pager thread works beside those who poll, so frames that it has yet to make are no reason to drop prefetches: only frames that are really out are.
#[test]
fn a_worker_that_polls_prefetches_under_pressure() {
    if !kernel_is_able() {
        return;
    }
    const NUM_PAGES: usize = 8192;
    const NUM_WORKERS: usize = 4;
    let swap = POLL.set(builder(1024, Backend::File.url(NUM_PAGES))).max_workers(NUM_WORKERS).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
    let before = (stat(&swap, "prefetches"), stat(&swap, "swap_ins"));
    // Half of the pages are written, so that evictions have to wait for the device.
    let scan = move |part: std::ops::Range<usize>| {
        for page in part {
            if page % 8 == 0 {
                pages.prefetch(page, 8);
            }
            pages.check(page, 1);
            if page % 2 == 0 {
                pages.fill(page, 2);
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..NUM_WORKERS {
            let swap = &swap;
            scope.spawn(move || {
                let worker = swap.enter_worker().unwrap();
                let part = NUM_PAGES / NUM_WORKERS;
                worker.start(move || scan(number * part..(number + 1) * part)).unwrap();
                worker.run();
            });
        }
    });
    let (prefetches, swap_ins) = (stat(&swap, "prefetches") - before.0, stat(&swap, "swap_ins") - before.1);
    assert!(prefetches > swap_ins / 4, "{prefetches} of {swap_ins}");
}

#[test]
fn steps_are_timed_when_asked_for() {
    if !kernel_is_able() {
        return;
    }
    for mode in MODES {
        for backend in [Backend::Memory, Backend::File] {
            for timed in [true, false] {
                let (swap, _region, pages) = open(mode, backend, timed);
                let worker = swap.enter_worker().unwrap();
                (0..8).for_each(|lwt| worker.start(move || (lwt..400).step_by(8).for_each(|page| pages.check(page, 1))).unwrap());
                worker.run();
                drop(worker);
                let stats = swap.stats();
                let what = format!("{mode:?} {backend:?} {stats:?}");
                let step = |name: &str| stats.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
                if !timed {
                    assert!(!stats.iter().any(|(name, _)| name.starts_with("step_")), "{what}");
                    continue;
                }
                for name in ["step_queue_p50_ns", "step_map_p50_ns", "step_evict_mean_ns"] {
                    assert!(step(name).unwrap() > 0, "{name}: {what}");
                }
                for name in ["step_io_p50_ns", "step_resume_p50_ns"] {
                    assert_eq!(step(name).unwrap() > 0, backend == Backend::File, "{name}: {what}");
                }
                let sum: u64 = ["queue", "io", "map", "resume"].iter().map(|name| step(&format!("step_{name}_p50_ns")).unwrap()).sum();
                assert!(sum < 10_000_000_000, "nothing takes that long: {what}");
            }
        }
    }
}
