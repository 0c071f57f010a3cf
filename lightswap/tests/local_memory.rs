//! Local memory that is changed while the instance runs: a limit at every moment, and nothing is lost.

mod common;

use common::pages::Pages;
use common::{Backend, MODES, PAGE, Random, Watchdog, builder, kernel_is_able, stat, wait_until};
use lightswap::{Contract, ErrorKind, Lightswap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

fn watchdog() -> Watchdog {
    Watchdog::new("a test of local_memory.rs", Duration::from_secs(60))
}

fn bytes(num_pages: usize) -> u64 {
    (num_pages * PAGE) as u64
}

/// Pages that may be resident now, and are.
fn limit_and_resident(swap: &Lightswap) -> (u64, u64) {
    (stat(swap, "resident_limit_bytes"), stat(swap, "resident_bytes"))
}

/// Waits until the limit is as it was set.
fn wait_for_limit(swap: &Lightswap, limit: u64) {
    wait_until("the limit is reached", || {
        let (now, resident) = limit_and_resident(swap);
        assert!(now >= limit);
        resident <= limit && now == limit
    });
}

#[test]
fn it_shrinks_and_grows_under_load() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    const NUM_THREADS: usize = 3;
    const NUM_PAGES: usize = 900;
    for (backend, mode) in [Backend::Memory, Backend::File].into_iter().flat_map(|backend| MODES.map(|mode| (backend, mode))) {
        let swap = mode.set(builder(1000, backend.url(4000)).max_workers(NUM_THREADS)).open().unwrap();
        let region = swap.create_region(NUM_THREADS * NUM_PAGES * PAGE, Contract::Transparent).unwrap();
        let (pages, ends) = (Pages::of(&region), Arc::new(AtomicBool::new(false)));
        let (full, buffers) = (stat(&swap, "resident_limit_bytes"), bytes(1000) - stat(&swap, "resident_limit_bytes"));
        std::thread::scope(|scope| {
            for thread in 0..NUM_THREADS {
                let (swap, ends) = (swap.clone(), ends.clone());
                // One on an LWT of a worker, the others on ordinary threads.
                let load = move || {
                    let mut random = Random::new(thread as u64);
                    let first = thread * NUM_PAGES;
                    let mut seeds = vec![0u64; NUM_PAGES];
                    (0..NUM_PAGES).for_each(|page| pages.fill(first + page, 0));
                    while !ends.load(Relaxed) {
                        let page = random.below(NUM_PAGES);
                        pages.check(first + page, seeds[page]);
                        if random.below(2) == 0 {
                            seeds[page] += 1;
                            pages.fill(first + page, seeds[page]);
                        }
                    }
                    (0..NUM_PAGES).for_each(|page| pages.check(first + page, seeds[page]));
                };
                scope.spawn(move || {
                    if thread > 0 {
                        return load();
                    }
                    let worker = swap.enter_worker().unwrap();
                    worker.start(load).unwrap();
                    worker.run();
                });
            }
            let mut random = Random::new(77);
            for _ in 0..12 {
                let (before, _) = limit_and_resident(&swap);
                let num_pages = 200 + random.below(1200);
                let wanted = bytes(num_pages) - buffers;
                swap.set_local_memory(bytes(num_pages)).unwrap();
                assert_eq!(stat(&swap, "local_memory_bytes"), bytes(num_pages));
                let (now, resident) = limit_and_resident(&swap);
                assert!(
                    if wanted >= before { now == wanted } else { (wanted..=before).contains(&now) && resident <= before },
                    "{before} {wanted} {now}"
                );
                wait_for_limit(&swap, wanted);
            }
            ends.store(true, Relaxed);
        });
        swap.set_local_memory(bytes(1000)).unwrap();
        wait_for_limit(&swap, full);
    }
}

#[test]
fn what_is_not_used_goes_first() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let swap = mode.set(builder(20_000, Backend::Memory.url(1000))).open().unwrap();
        let region = swap.create_region(800 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..800).for_each(|page| pages.fill(page, 1));
        let buffers = bytes(20_000) - stat(&swap, "resident_limit_bytes");
        swap.set_local_memory(bytes(2000) + buffers).unwrap();
        wait_for_limit(&swap, bytes(2000));
        assert_eq!(stat(&swap, "resident_bytes"), bytes(800));
        assert_eq!(stat(&swap, "dirty_evictions") + stat(&swap, "clean_evictions"), 0, "there was room for all of them");
        swap.set_local_memory(bytes(500) + buffers).unwrap();
        wait_for_limit(&swap, bytes(500));
        (0..800).for_each(|page| pages.check(page, 1));
    }
}

#[test]
fn idle_memory_is_given_up_without_anybody_asking_for_pages() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let swap = mode.set(builder(1000, Backend::File.url(1000))).open().unwrap();
        let region = swap.create_region(800 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..800).for_each(|page| pages.fill(page, 1));
        let buffers = bytes(1000) - stat(&swap, "resident_limit_bytes");
        swap.set_local_memory(bytes(100) + buffers).unwrap();
        wait_for_limit(&swap, bytes(100));
        assert!(region.resident_bytes() <= 100 * PAGE);
        (0..800).for_each(|page| pages.check(page, 1));
    }
}

#[test]
fn what_is_too_small_is_refused_with_the_reason() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(1000, Backend::Memory.url(1000)).open().unwrap();
    let region = swap.create_region(900 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    let (limit, _) = limit_and_resident(&swap);
    let buffers = bytes(1000) - limit;
    pages.pin(0, 100).unwrap();
    let refused = |num_bytes: u64, kind: ErrorKind, text: &str| {
        let error = swap.set_local_memory(num_bytes).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(text), "{error}");
        assert_eq!((stat(&swap, "local_memory_bytes"), stat(&swap, "resident_limit_bytes")), (bytes(1000), limit));
    };
    refused(buffers + bytes(199), ErrorKind::PinLimit, "100 pages that are pinned");
    refused(buffers + bytes(15), ErrorKind::InvalidArgument, "at least");
    refused(bytes(1), ErrorKind::InvalidArgument, "at least");
    refused(0, ErrorKind::InvalidArgument, "0");
    refused(bytes(500) + 1, ErrorKind::InvalidArgument, "multiple");
    refused(u64::MAX / PAGE as u64 * PAGE as u64, ErrorKind::InvalidArgument, "machine");
    pages.pin(100, 300).unwrap();
    pages.unpin(0, 400);
    // The least there can be, with the limit of pins that belongs to it.
    pages.pin(0, 8).unwrap();
    swap.set_local_memory(buffers + bytes(16)).unwrap();
    assert_eq!(pages.pin(8, 1).unwrap_err().kind(), ErrorKind::PinLimit);
    wait_for_limit(&swap, bytes(16));
    (0..900).for_each(|page| pages.fill(page, 1));
    (0..900).for_each(|page| pages.check(page, 1));
    swap.set_local_memory(bytes(1000)).unwrap();
    pages.pin(8, 400).unwrap();
    pages.unpin(0, 408);
}

#[test]
fn while_writes_fail_it_waits_and_loses_nothing() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let swap = mode.set(builder(1000, format!("faulty(write@1+=EIO):{}", Backend::Memory.url(1000)))).open().unwrap();
        let region = swap.create_region(800 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..800).for_each(|page| pages.fill(page, 1));
        let buffers = bytes(1000) - stat(&swap, "resident_limit_bytes");
        swap.set_local_memory(bytes(100) + buffers).unwrap();
        wait_until("some writes failed", || stat(&swap, "swap_out_errors") > 2);
        let (limit, resident) = limit_and_resident(&swap);
        assert!(resident == bytes(800) && limit >= resident, "{limit} {resident}");
        (0..800).for_each(|page| pages.check(page, 1));
        swap.stop_faults();
        wait_for_limit(&swap, bytes(100));
        (0..800).for_each(|page| pages.check(page, 1));
    }
}
