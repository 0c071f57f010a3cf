//! Contents survive paging: write, evict, read back and compare, over contracts, removal paths, backends and sizes of local memory.

mod common;

use common::pages::Pages;
use common::{BACKENDS, Backend, LEAST_PAGES, MODES, MONITOR, builder, kernel_is_able, stat};
use lightswap::{Contract, ErrorKind, Lightswap};

const CONTRACTS: [Contract; 2] = [Contract::Transparent, Contract::Cooperative];

/// Rounds of writing every page and reading it back in the next round.
fn rewrite(pages: Pages, first: usize, step: usize) {
    for round in 0..3 {
        for page in (first..pages.len()).step_by(step) {
            if round > 0 {
                pages.check(page, round - 1);
            }
            pages.fill(page, round);
            // The LWTs take turns, so that each finds its next page evicted by the others.
            lightswap::lwt::yield_now();
        }
    }
    (first..pages.len()).step_by(step).for_each(|page| pages.check(page, 2));
}

fn exercise(swap: &Lightswap, contract: Contract, num_pages: usize, num_lwts: usize) {
    let region = swap.create_region(num_pages * common::PAGE, contract).unwrap();
    let pages = Pages::of(&region);
    if num_lwts == 0 {
        rewrite(pages, 0, 1);
    } else {
        let worker = swap.enter_worker().unwrap();
        (0..num_lwts).for_each(|first| worker.start(move || rewrite(pages, first, num_lwts)).unwrap());
        worker.run();
    }
}

/// All combinations, one instance each.
fn matrix(local_pages: u64, num_pages: usize, num_lwts: usize) {
    if !kernel_is_able() {
        return;
    }
    for backend in BACKENDS {
        for contract in CONTRACTS {
            for (mode, vectored) in MODES.into_iter().map(|mode| (mode, true)).chain([(MODES[0], false)]) {
                let swap = mode.set(builder(local_pages, backend.url(num_pages))).vectored_removal(vectored).open().unwrap();
                exercise(&swap, contract, num_pages, num_lwts);
                let (swap_ins, faults) = (stat(&swap, "swap_ins"), stat(&swap, "faults") + stat(&swap, "touch_misses"));
                let what = format!("{mode:?} {backend:?} {contract:?} vectored {vectored}");
                assert!(swap_ins >= num_pages as u64, "{what}: {:?}", swap.stats());
                // With a monitor a page may leave again before the thread that asked for it runs, and is brought in again.
                assert!(faults >= swap_ins || mode == MONITOR, "{what}: {:?}", swap.stats());
                // The option must do what it says, or one of the two paths is never tested.
                assert!(vectored || stat(&swap, "vectored_removal") == 0, "{what}");
            }
        }
    }
}

#[test]
fn patterns_survive_on_a_thread() {
    matrix(128, 512, 0);
}

#[test]
fn patterns_survive_on_lwts() {
    matrix(128, 512, 24);
}

#[test]
fn patterns_survive_in_the_least_memory_on_a_thread() {
    matrix(LEAST_PAGES, 150, 0);
}

#[test]
fn patterns_survive_in_the_least_memory_on_more_lwts_than_frames() {
    matrix(LEAST_PAGES, 150, 40);
}

#[test]
fn nothing_leaves_while_everything_fits() {
    if !kernel_is_able() {
        return;
    }
    for contract in CONTRACTS {
        let swap = builder(2048, Backend::File.url(512)).open().unwrap();
        exercise(&swap, contract, 512, 16);
        for counter in ["clean_evictions", "dirty_evictions", "zero_evictions", "swap_ins"] {
            assert_eq!(stat(&swap, counter), 0, "{counter}");
        }
        assert_eq!(stat(&swap, "zero_fills"), 512);
    }
}

#[test]
fn regions_share_a_budget_and_leave_nothing_behind() {
    if !kernel_is_able() {
        return;
    }
    for backend in BACKENDS {
        let swap = builder(128, backend.url(1000)).open().unwrap();
        let regions: Vec<_> =
            CONTRACTS.into_iter().cycle().take(4).map(|contract| swap.create_region(250 * common::PAGE, contract).unwrap()).collect();
        let mut pages: Vec<Pages> = regions.iter().map(Pages::of).collect();
        for page in 0..250 {
            (0..4).for_each(|region| pages[region].fill(page, region as u64));
        }
        assert_eq!(swap.create_region(common::PAGE, Contract::Transparent).unwrap_err().kind(), ErrorKind::NoSpace);
        // The second one makes place for a new one, which gets its slots: what was in them must not show.
        let mut regions = regions;
        drop(regions.remove(1));
        let fresh = swap.create_region(250 * common::PAGE, Contract::Transparent).unwrap();
        pages[1] = Pages::of(&fresh);
        for page in (0..250).rev() {
            assert_eq!((0..common::pages::WORDS).find(|word| pages[1].word(page, *word) != 0), None, "{backend:?} page {page}");
            [0, 2, 3].into_iter().for_each(|region| pages[region].check(page, region as u64));
        }
        assert!(stat(&swap, "resident_bytes") <= stat(&swap, "resident_limit_bytes"));
        drop((regions, fresh));
        assert_eq!(stat(&swap, "resident_bytes"), 0, "destroyed regions give all frames back");
    }
}

#[test]
fn pages_of_zeroes_are_never_written() {
    if !kernel_is_able() {
        return;
    }
    for contract in CONTRACTS {
        let swap = builder(64, Backend::File.url(400)).open().unwrap();
        let region = swap.create_region(400 * common::PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        for round in 0..2 {
            for page in 0..400 {
                assert_eq!(pages.word(page, page % 512), 0, "round {round} page {page}");
                pages.writing(page, 1, || pages.set_word(page, 7, 0));
            }
        }
        assert_eq!((stat(&swap, "dirty_evictions"), stat(&swap, "swap_ins")), (0, 0));
        assert!(stat(&swap, "zero_evictions") >= 400);
        // A page that was written and became zero again must not come back from its old slot.
        (0..400).for_each(|page| pages.fill(page, 9));
        (0..400).for_each(|page| pages.writing(page, 1, || (0..512).for_each(|word| pages.set_word(page, word, 0))));
        for page in 0..400 {
            assert!((0..512).all(|word| pages.word(page, word) == 0), "page {page}");
        }
    }
}

/// On one worker, whose LWT is the only one that evicts: between a write and its undoing nobody can look.
#[test]
fn what_is_changed_back_is_clean() {
    if !kernel_is_able() {
        return;
    }
    for contract in CONTRACTS {
        let swap = builder(64, Backend::Memory.url(400)).open().unwrap();
        let region = swap.create_region(400 * common::PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        let worker = swap.enter_worker().unwrap();
        worker.start(move || (0..400).for_each(|page| pages.fill(page, 1))).unwrap();
        // The last pages written leave as dirty ones while these are read.
        worker.start(move || (0..400).for_each(|page| pages.check(page, 1))).unwrap();
        worker.run();
        let (dirty, clean) = (stat(&swap, "dirty_evictions"), stat(&swap, "clean_evictions"));
        assert!(dirty >= 400);
        let reference_count = move |page| {
            pages.touch(page, 1);
            pages.writing(page, 1, || {
                let old = pages.word(page, 3);
                pages.set_word(page, 3, old + 1);
                assert_eq!(pages.word(page, 4), common::pages::pattern(page, 4, 1));
                pages.set_word(page, 3, old);
            });
        };
        worker.start(move || (0..400).for_each(reference_count)).unwrap();
        worker.start(move || (0..400).for_each(|page| pages.check(page, 1))).unwrap();
        worker.run();
        assert_eq!(stat(&swap, "dirty_evictions"), dirty, "{contract:?}");
        assert!(stat(&swap, "clean_evictions") >= clean + 400, "{contract:?}");
    }
}

#[test]
fn pins_hold_and_are_limited() {
    if !kernel_is_able() {
        return;
    }
    for contract in CONTRACTS {
        let swap = builder(66, Backend::Memory.url(400)).open().unwrap();
        let region = swap.create_region(400 * common::PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        let limit = stat(&swap, "resident_limit_bytes") as usize / common::PAGE / 2;
        // With two to spare, one of which the writes below take in turn.
        pages.pin(0, limit - 3).unwrap();
        pages.pin(0, 1).unwrap();
        assert_eq!(pages.pin(100, 3).unwrap_err().kind(), ErrorKind::PinLimit);
        (limit..400).for_each(|page| pages.fill(page, 5));
        assert!((0..limit - 3).all(|page| pages.is_resident(page)), "pinned pages stay");
        // Pins count: the first page has two.
        pages.unpin(0, 1);
        (limit..400).for_each(|page| pages.check(page, 5));
        assert!(pages.is_resident(0));
        pages.unpin(0, limit - 3);
        assert_eq!(lightswap::unpin(pages.address(0), 1).unwrap_err().kind(), ErrorKind::InvalidArgument);
        // As many passes as a page can have references.
        (0..4).for_each(|_| (limit..400).for_each(|page| pages.check(page, 5)));
        assert!(!(0..limit - 3).any(|page| pages.is_resident(page)), "unpinned pages leave");
        assert_eq!(stat(&swap, "pinned_pages"), 0);
    }
}

#[test]
fn advice_is_taken() {
    if !kernel_is_able() {
        return;
    }
    for backend in BACKENDS {
        let swap = builder(256, backend.url(1024)).open().unwrap();
        let region = swap.create_region(1024 * common::PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        let worker = swap.enter_worker().unwrap();
        worker.start(move || (0..1024).for_each(|page| pages.fill(page, 1))).unwrap();
        worker.run();
        worker
            .start(move || {
                // With references on them pages 0..32 would stay; the advice must count for more.
                (0..4).for_each(|_| pages.touch(0, 32));
                (0..4).for_each(|_| pages.touch(32, 32));
                pages.advise_cold(0, 32);
                (512..600).for_each(|page| pages.touch(page, 1));
            })
            .unwrap();
        worker.run();
        let resident = |first: usize| (first..first + 32).filter(|page| pages.is_resident(*page)).count();
        assert!(resident(0) < resident(32), "{backend:?}: {} of the cold pages and {} of the hot ones stayed", resident(0), resident(32));
        worker
            .start(move || {
                // Room first: prefetch takes only what is free.
                pages.advise_cold(0, 1024);
                pages.prefetch(900, 4);
            })
            .unwrap();
        worker.run();
        worker.start(move || (900..904).for_each(|page| pages.check(page, 1))).unwrap();
        worker.run();
    }
}
