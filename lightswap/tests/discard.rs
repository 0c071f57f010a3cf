//! Pages whose content is given up are as if they had never been touched.

mod common;

use common::pages::Pages;
use common::swap_file::SwapFile;
use common::{BACKENDS, DEFAULT_MODE, MODES, PAGE, Random, Watchdog, builder, kernel_is_able, stat};
use lightswap::{Contract, ErrorKind, discard, pin, touch, unpin};
use std::time::Duration;

const CONTRACTS: [Contract; 2] = [Contract::Transparent, Contract::Cooperative];

fn watchdog() -> Watchdog {
    Watchdog::new("a test of discard.rs", Duration::from_secs(40))
}

#[test]
fn pages_in_every_state_can_be_discarded() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let backends_and_modes = BACKENDS.into_iter().flat_map(|backend| MODES.map(|mode| (backend, mode)));
    for ((backend, mode), contract) in backends_and_modes.flat_map(|both| CONTRACTS.map(|contract| (both, contract))) {
        let swap = mode.set(builder(40, backend.url(2000))).open().unwrap();
        let region = swap.create_region(1300 * PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        // Of the first 200 some are resident, most are swapped out, and the rest was never touched.
        (0..200).for_each(|page| pages.fill(page, 1));
        let resident = (0..200).rev().find(|page| pages.is_resident(*page)).unwrap();
        pages.discard(resident, 1);
        assert!(!pages.is_resident(resident) && pages.is_zero(resident));
        // More than fits one step, in part to be waited for.
        pages.prefetch(0, 100);
        pages.discard(10, 1200);
        assert!((10..200).all(|page| !pages.is_resident(page)));
        assert!(stat(&swap, "resident_bytes") <= 10 * PAGE as u64);
        assert!((10..1210).all(|page| pages.is_zero(page)));
        (0..10).for_each(|page| pages.check(page, 1));
        // The rest had no content.
        assert!((190..=191).contains(&stat(&swap, "discards")));
        (10..200).for_each(|page| pages.fill(page, 2));
        (10..200).for_each(|page| pages.check(page, 2));
    }
}

#[test]
fn what_is_lost_can_be_used_again() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let file = SwapFile::new(400);
        let swap = mode.set(builder(40, file.url())).open().unwrap();
        let regions = [0, 1].map(|_| swap.create_region(200 * PAGE, Contract::Transparent).unwrap());
        let [pages, others] = regions.each_ref().map(Pages::of);
        (0..200).for_each(|page| pages.fill(page, 1));
        Pages::flush_through(&others);
        file.flip(7);
        assert_eq!(touch(pages.address(7), 1).unwrap_err().kind(), ErrorKind::SwapIn);
        pages.discard(7, 1);
        assert!(pages.is_zero(7));
        pages.fill(7, 3);
        Pages::flush_through(&others);
        (0..200).for_each(|page| pages.check(page, if page == 7 { 3 } else { 1 }));
    }
}

#[test]
fn bad_ranges_and_pages_in_use_are_refused() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(64, "memory:?size=1MiB").open().unwrap();
    let region = swap.create_region(100 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..20).for_each(|page| pages.fill(page, 1));
    let kind = |address: *const u8, len: usize| discard(address, len).unwrap_err().kind();
    assert_eq!(kind(pages.address(0), PAGE - 1), ErrorKind::InvalidArgument);
    assert_eq!(kind(pages.address(0).wrapping_add(1), PAGE), ErrorKind::InvalidArgument);
    assert_eq!(kind(pages.address(99), 2 * PAGE), ErrorKind::NotInRegion);
    assert_eq!(kind(pages.address(0), usize::MAX - PAGE + 1), ErrorKind::NotInRegion);
    assert_eq!(kind(std::ptr::null(), PAGE), ErrorKind::NotInRegion);
    discard(pages.address(0), 0).unwrap();
    pin(pages.address(15), 1).unwrap();
    let error = discard(pages.address(0), 20 * PAGE).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains(&format!("{:#x}", pages.address(15) as usize)), "{error}");
    (0..20).for_each(|page| pages.check(page, 1));
    unpin(pages.address(15), 1).unwrap();
    discard(pages.address(0), 20 * PAGE).unwrap();
    assert!((0..20).all(|page| pages.is_zero(page)) && stat(&swap, "discards") == 20);
}

/// Threads and LWTs discard pages of theirs among pages that others use and evict.
#[test]
fn discards_amid_everything_else() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    const NUM_PAGES: usize = 300;
    const NUM_USERS: usize = 6;
    for (backend, contract) in BACKENDS.into_iter().flat_map(|backend| CONTRACTS.map(|contract| (backend, contract))) {
        let swap = DEFAULT_MODE.set(builder(64, backend.url(NUM_PAGES)).max_workers(2)).open().unwrap();
        let region = swap.create_region(NUM_PAGES * PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        let use_some = move |user: usize| {
            let mut random = Random::new(user as u64);
            let mut seeds = [0u64; NUM_PAGES / NUM_USERS];
            for step in 1..1500 {
                let which = random.below(seeds.len());
                let page = which * NUM_USERS + user;
                match random.below(3) {
                    0 => {
                        pages.fill(page, step);
                        seeds[which] = step;
                    }
                    1 => {
                        discard(pages.address(page), PAGE).unwrap();
                        seeds[which] = 0;
                    }
                    _ if seeds[which] == 0 => assert!(pages.is_zero(page), "page {page}"),
                    _ => pages.check(page, seeds[which]),
                }
            }
        };
        std::thread::scope(|scope| {
            for user in 0..2 {
                scope.spawn(move || use_some(user));
            }
            for worker in 0..2 {
                let swap = &swap;
                scope.spawn(move || {
                    let handle = swap.enter_worker().unwrap();
                    (0..2).for_each(|lwt| handle.start(move || use_some(2 + 2 * worker + lwt)).unwrap());
                    handle.run();
                });
            }
        });
        assert_eq!((stat(&swap, "swap_in_errors"), stat(&swap, "swap_out_errors")), (0, 0));
        discard(pages.address(0), NUM_PAGES * PAGE).unwrap();
        assert_eq!(stat(&swap, "resident_bytes"), 0);
    }
}
