//! After SQLite's tests: the N-th I/O of a workload goes wrong, once or from then on, for N = 1, 2, ... until a run is clean. Every value is compared with a
//! model: it is right, or there is an error; never wrong, and never a hang.

mod common;
mod faulty_support;

use common::pages::Pages;
use common::{Backend, LEAST_PAGES, PAGE, Watchdog, builder, kernel_is_able, wait_until};
use faulty_support::{Model, expect_order, num_injected, reads_again, url};
use lightswap::Contract;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const NUM_PAGES: usize = 40;
const NUM_LWTS: usize = 4;
/// More I/Os than the workload has.
const MOST: u64 = 2000;
/// Errors after which a device that fails for ever is replaced by one that works.
const PATIENCE: usize = 3;
/// While writes fail for ever, who needs room waits so long before there is an error.
const SHORT_LIMIT: Duration = Duration::from_millis(100);

/// What a fault may cost for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    /// Nothing, as reads that failed are tried again.
    NothingReadAgain,
    /// The pages that it met.
    Pages,
}

#[derive(Clone, Copy, Debug)]
struct Ran {
    num_injected: u64,
    num_errors: usize,
    /// Pages that could not be had even when nothing went wrong any more.
    num_lost: usize,
    reads_again: bool,
}

/// Changes and checks more pages than fit, on LWTs and then on a thread.
fn run(schedule: &str, inner: Backend, contract: Contract) -> Ran {
    let builder = builder(LEAST_PAGES, url(schedule, &inner.url(NUM_PAGES)));
    let swap = if stops_writes(schedule) { builder.io_timeout(SHORT_LIMIT) } else { builder }.open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, contract).unwrap();
    let model = Arc::new(Model::new(Pages::of(&region)));
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let worker = swap.enter_worker().unwrap();
            for lwt in 0..NUM_LWTS {
                let model = model.clone();
                let work = move || {
                    for _ in 0..2 {
                        (lwt..NUM_PAGES).step_by(NUM_LWTS).for_each(|page| _ = model.change(page));
                        (lwt..NUM_PAGES).step_by(NUM_LWTS).for_each(|page| _ = model.check(page));
                    }
                };
                worker.start(work).unwrap();
            }
            worker.run();
            drop(worker);
            model.check_all();
            has_ended.store(true, Relaxed);
        });
        wait_until(schedule, || {
            if stops_writes(schedule) && model.num_errors.load(Relaxed) >= PATIENCE {
                swap.stop_faults();
            }
            std::thread::sleep(Duration::from_micros(200));
            has_ended.load(Relaxed)
        });
    });
    let num_injected = num_injected(&swap);
    let num_errors = model.num_errors.load(Relaxed);
    swap.stop_faults();
    let num_lost = model.check_all();
    expect_order(&swap);
    Ran { num_injected, num_errors, num_lost, reads_again: reads_again(&swap) }
}

/// Whether no write succeeds any more, so that who needs a frame gets an error in the end.
fn stops_writes(schedule: &str) -> bool {
    (schedule.starts_with("write") && schedule.contains("+=") && !schedule.contains("torn") && !schedule.contains("delay"))
        || schedule.ends_with("=dead")
}

/// Lets the N-th of `operation` go wrong for each N; where runs take long, for some of them. Returns the errors that were seen.
fn for_each_n(operation: &str, trigger: &str, action: &str, inner: Backend, loss: Loss) -> usize {
    let mut num_errors = 0;
    let mut number = 0;
    while number < MOST {
        number += 1;
        let schedule = format!("{operation}@{number}{trigger}={action}");
        let contract = if number % 2 == 0 { Contract::Transparent } else { Contract::Cooperative };
        let ran = run(&schedule, inner, contract);
        if loss == Loss::Nothing || (loss == Loss::NothingReadAgain && ran.reads_again) {
            assert_eq!(ran.num_lost, 0, "{schedule}: {ran:?}");
        }
        if stops_writes(&schedule) {
            number += number / 3;
        }
        if ran.num_injected == 0 {
            // With a short limit anything may be late.
            assert!((ran.num_errors == 0 || stops_writes(&schedule)) && ran.num_lost == 0, "{schedule}: {ran:?}");
            assert!(number > 20, "a workload of {number} I/Os is too small");
            return num_errors;
        }
        num_errors += ran.num_errors;
    }
    panic!("no run was clean: {operation} {trigger} {action} {inner:?}");
}

fn once_and_for_ever(operation: &str, actions: &[&str], inner: Backend, loss: Loss) {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = Watchdog::new("a test of faulty_nth.rs", Duration::from_secs(300));
    for action in actions {
        for_each_n(operation, "", action, inner, loss);
        let num_errors = for_each_n(operation, "+", action, inner, loss);
        assert!(num_errors > 0, "no errors were seen when {operation}s had {action} for ever");
    }
}

#[test]
fn reads_that_fail() {
    once_and_for_ever("read", &["EIO", "ENODEV"], Backend::Memory, Loss::NothingReadAgain);
    once_and_for_ever("read", &["ETIMEDOUT"], Backend::File, Loss::NothingReadAgain);
}

#[test]
fn reads_of_wrong_content() {
    once_and_for_ever("read", &["flip", "misdirect"], Backend::Memory, Loss::NothingReadAgain);
}

#[test]
fn reads_of_wrong_content_from_a_file() {
    once_and_for_ever("read", &["flip:9", "misdirect"], Backend::File, Loss::NothingReadAgain);
}

#[test]
fn short_reads() {
    once_and_for_ever("read", &["short:4095"], Backend::Memory, Loss::NothingReadAgain);
    once_and_for_ever("read", &["short:0"], Backend::File, Loss::NothingReadAgain);
}

#[test]
fn writes_that_fail() {
    once_and_for_ever("write", &["EIO"], Backend::Memory, Loss::Nothing);
    once_and_for_ever("write", &["ENOSPC"], Backend::File, Loss::Nothing);
}

#[test]
fn short_writes() {
    once_and_for_ever("write", &["short"], Backend::Memory, Loss::Nothing);
    once_and_for_ever("write", &["short:512"], Backend::File, Loss::Nothing);
}

#[test]
fn torn_writes() {
    once_and_for_ever("write", &["torn"], Backend::Memory, Loss::Pages);
    once_and_for_ever("write", &["torn"], Backend::File, Loss::Pages);
}

#[test]
fn death_and_return() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = Watchdog::new("a test of faulty_nth.rs", Duration::from_secs(300));
    for action in ["dead:3", "dead"] {
        for operation in ["read", "write"] {
            for_each_n(operation, "", action, Backend::Memory, Loss::NothingReadAgain);
        }
    }
}

#[test]
fn stalls_do_no_harm() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = Watchdog::new("a test of faulty_nth.rs", Duration::from_secs(300));
    for inner in [Backend::Memory, Backend::File] {
        for operation in ["read", "write"] {
            assert_eq!(for_each_n(operation, "", "stall:2", inner, Loss::Nothing), 0);
        }
        let ran = run("read@1+=delay:2;write@1+=delay:2", inner, Contract::Transparent);
        assert_eq!((ran.num_errors, ran.num_lost), (0, 0));
        assert!(ran.num_injected > 20, "{ran:?}");
    }
}
