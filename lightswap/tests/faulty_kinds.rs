//! Each kind of fault by itself, through the public interface: what it does to a page, what is counted, and which URLs are refused.

mod common;
mod faulty_support;

use common::pages::Pages;
use common::{BACKENDS, Backend, MODES, Mode, PAGE, Watchdog, builder, kernel_is_able, stat};
use faulty_support::{Model, injected, num_injected, url};
use lightswap::{Contract, ErrorKind, Lightswap, Region};
use std::time::Duration;

const NUM_PAGES: usize = 200;

struct Setup {
    swap: Lightswap,
    _region: Region,
    model: Model,
}

fn set_up(mode: Mode, schedule: &str, inner: Backend) -> Setup {
    let swap = mode.set(builder(64, url(schedule, &inner.url(NUM_PAGES)))).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let model = Model::new(Pages::of(&region));
    Setup { swap, _region: region, model }
}

/// Changes all pages and checks them, in every mode and on both backends; `look` looks at what came of it.
fn for_each_setup(schedule: &str, look: impl Fn(&Setup, usize)) {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = Watchdog::new("a test of faulty_kinds.rs", Duration::from_secs(100));
    for mode in MODES {
        for inner in BACKENDS {
            let setup = set_up(mode, schedule, inner);
            let num_unchanged = (0..NUM_PAGES).filter(|page| !setup.model.change(*page)).count();
            assert_eq!(num_unchanged, 0, "fresh pages are not read");
            let num_failed = setup.model.check_all();
            look(&setup, num_failed);
        }
    }
}

/// Only this kind was injected, and not less than so often.
fn expect_only(setup: &Setup, kind: &str, least: u64) {
    for (name, count) in injected(&setup.swap) {
        if name == kind {
            assert!(count >= least, "{count} {name}");
        } else {
            assert_eq!(count, 0, "{name}");
        }
    }
}

#[test]
fn nothing_is_injected_by_an_empty_schedule() {
    for_each_setup("", |setup, num_failed| {
        assert_eq!((num_failed, num_injected(&setup.swap)), (0, 0));
        assert!(stat(&setup.swap, "faulty_reads") >= (NUM_PAGES - 64) as u64 && stat(&setup.swap, "faulty_writes") > 0);
        assert_eq!(stat(&setup.swap, "swap_in_errors"), 0);
    });
}

#[test]
fn errors_of_all_reads() {
    for_each_setup("read@1+=EIO", |setup, num_failed| {
        assert!(num_failed >= NUM_PAGES - 64, "{num_failed}");
        expect_only(setup, "read_errors", num_failed as u64);
        assert!(stat(&setup.swap, "swap_in_errors") > 0);
    });
}

#[test]
fn one_bit_of_a_page() {
    for_each_setup("read@1+=flip", |setup, num_failed| {
        assert!(num_failed >= NUM_PAGES - 64, "{num_failed}");
        expect_only(setup, "flips", num_failed as u64);
    });
}

#[test]
fn pages_of_other_slots() {
    for_each_setup("read@1+=misdirect", |setup, num_failed| {
        assert!(num_failed >= NUM_PAGES - 64, "{num_failed}");
        expect_only(setup, "misdirects", num_failed as u64);
    });
}

#[test]
fn reads_that_end_too_early() {
    for_each_setup("read@1+=short:4095", |setup, num_failed| {
        assert!(num_failed >= NUM_PAGES - 64, "{num_failed}");
        expect_only(setup, "short_reads", num_failed as u64);
    });
}

#[test]
fn torn_writes_are_found_out_when_they_are_read() {
    for_each_setup("write@1+=torn", |setup, num_failed| {
        assert!(num_failed > 0);
        expect_only(setup, "torn_writes", 1);
        assert_eq!(stat(&setup.swap, "swap_out_errors"), 0);
    });
}

#[test]
fn failed_and_short_writes_lose_nothing() {
    for (action, kind) in [("ENOSPC", "write_errors"), ("short", "short_writes"), ("short:512", "short_writes")] {
        for_each_setup(&format!("write@1..3={action}"), |setup, num_failed| {
            assert_eq!(num_failed, 0);
            expect_only(setup, kind, 3);
            assert_eq!(stat(&setup.swap, "swap_out_errors"), 3);
        });
    }
}

#[test]
fn delays_are_no_errors() {
    for_each_setup("read%0.1=stall:1;write%0.1=delay:5;read%0.1=delay:1", |setup, num_failed| {
        assert_eq!(num_failed, 0);
        expect_only(setup, "delays", 1);
        assert_eq!((stat(&setup.swap, "swap_in_errors"), stat(&setup.swap, "swap_out_errors")), (0, 0));
    });
}

#[test]
fn dead_backends_fail_until_they_come_back() {
    for_each_setup("read@1=dead", |setup, num_failed| {
        // Checking changes nothing, so that only clean pages leave, and nothing has to be written.
        assert!(num_failed > 0);
        expect_only(setup, "dead", num_failed as u64);
        setup.swap.stop_faults();
        let num_dead = stat(&setup.swap, "injected_dead");
        setup.model.check_all();
        assert_eq!(stat(&setup.swap, "injected_dead"), num_dead, "alive again");
    });
    // One that comes back by itself.
    for_each_setup("write@2=dead:5", |setup, num_failed| {
        assert_eq!(num_failed, 0);
        expect_only(setup, "dead", 1);
    });
}

/// Reads that are asked for together go to the device as one request; one of them that goes wrong must not take others with it.
#[test]
fn a_fault_in_the_midst_of_neighbours() {
    if !kernel_is_able() {
        return;
    }
    for (action, num_bad) in [("stall:3", 0), ("EIO", 1), ("flip", 1), ("misdirect", 1), ("short", 1)] {
        for inner in BACKENDS {
            let swap = builder(64, url(&format!("read@6={action}"), &inner.url(NUM_PAGES))).open().unwrap();
            let region = swap.create_region(NUM_PAGES * PAGE, Contract::Cooperative).unwrap();
            let pages = Pages::of(&region);
            let worker = swap.enter_worker().unwrap();
            let work = move || {
                (0..NUM_PAGES).for_each(|page| pages.fill(page, 3));
                // Prefetches are given up when they fail, and touches of the same pages find out.
                for first in (0..32).step_by(8) {
                    pages.prefetch(first, 8);
                }
                let num_failed = (0..32).filter(|page| lightswap::touch(pages.address(*page), PAGE).is_err()).count();
                assert!(num_failed <= num_bad, "{num_failed} pages failed by one {action}");
                for page in (0..32).filter(|page| pages.pin(*page, 1).is_ok()) {
                    pages.check(page, 3);
                    pages.unpin(page, 1);
                }
            };
            worker.start(work).unwrap();
            worker.run();
            assert_eq!(num_injected(&swap), 1, "{action}");
        }
    }
}

#[test]
fn schedules_that_do_not_parse_are_refused_with_their_place() {
    for (url, part) in [
        ("faulty:memory:?size=1MiB", "at byte 6"),
        ("faulty(read@1=EIO:memory:?size=1MiB", "has no end"),
        ("faulty(read@1=EIO)memory:?size=1MiB", "at byte 18, after \"faulty(read@1=EIO)\", before \"memory:?size=1MiB\""),
        ("faulty(read@=EIO):memory:?size=1MiB", "at byte 12, after \"faulty(read@\", before \"=EIO):memory:?size=1\""),
        ("faulty(write@1=flip):memory:?size=1MiB", "at byte 15"),
        ("faulty(read@1=EIO):tape:/dev/st0", "unknown backend"),
        ("faulty(read@1=EIO):", "no scheme"),
        ("faulty(read@1=EIO):memory:", "a size is needed"),
        ("faulty():faulty():memory:?size=1MiB", "cannot wrap itself"),
    ] {
        let error = builder(64, url).open().expect_err(url);
        assert_eq!(error.kind(), ErrorKind::BackendUrl, "{url}: {error}");
        let text = error.to_string();
        assert!(text.contains(part) && !text.contains('\n') && text.len() < 400, "{url}: {text}");
    }
}
