//! Writes to the backend that fail while running lose nothing: pages stay resident, fresh memory is refused, and all goes on when they work again.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::{Backend, MODES, Mode, PAGE, Watchdog, builder, kernel_is_able, stat, wait_until};
use lightswap::{Contract, ErrorKind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Makes writes to files fail with EFBIG, all of them or those behind `num_bytes`.
fn limit_file_size(num_bytes: u64) {
    let limit = libc::rlimit { rlim_cur: num_bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid for the call; ignoring the signal makes the write fail instead.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

fn lift_the_limit() {
    limit_file_size(libc::RLIM_INFINITY);
}

fn fail_and_recover(mode: Mode, contract: Contract, limit: u64) {
    let swap = mode.set(builder(128, Backend::File.url(400))).open().unwrap();
    let region = swap.create_region(400 * PAGE, contract).unwrap();
    let pages = Pages::of(&region);
    (0..400).for_each(|page| pages.fill(page, 1));
    limit_file_size(limit);
    // Changes as many pages as can stay resident beside those that come and go.
    let lifted = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Needs more frames than there are: waits in the middle until writes work again, and is right in the end.
            (0..400).for_each(|page| pages.fill(page, 2));
            assert!(lifted.load(Relaxed), "400 changed pages cannot all have been kept in 128 frames");
        });
        wait_until("a write fails", || stat(&swap, "swap_out_errors") > 0);
        // Many attempts later the process still lives, within its memory.
        wait_until("writes are tried again", || stat(&swap, "swap_out_errors") > 10);
        if limit == 0 {
            // Otherwise a write that succeeds may follow at any time. Those that were on their way before the limit are over by now.
            assert_eq!(stat(&swap, "swap_out_failing"), 1);
            let error = lightswap::reserve(pages.address(0), PAGE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        }
        assert!(stat(&swap, "resident_bytes") <= stat(&swap, "resident_limit_bytes"));
        lifted.store(true, Relaxed);
        lift_the_limit();
    });
    (0..400).for_each(|page| pages.check(page, 2));
    assert_eq!(stat(&swap, "swap_in_errors"), 0);
    assert_eq!(stat(&swap, "swap_out_failing"), 0);
    lightswap::reserve(pages.address(0), PAGE).unwrap();
}

fn run(test: &str, body: impl FnOnce()) {
    let ended = in_child(test, || {
        if kernel_is_able() {
            let _watchdog = Watchdog::new("a test of write_errors.rs", Duration::from_secs(40));
            body();
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn all_writes_fail_for_a_while() {
    run("all_writes_fail_for_a_while", || {
        for contract in [Contract::Transparent, Contract::Cooperative] {
            MODES.into_iter().for_each(|mode| fail_and_recover(mode, contract, 0));
        }
    });
}

/// The limit lies inside the file, and inside a page: some writes succeed, some come out short, some fail.
#[test]
fn some_writes_fail_or_are_short() {
    run("some_writes_fail_or_are_short", || {
        MODES.into_iter().for_each(|mode| fail_and_recover(mode, Contract::Transparent, (150 * PAGE + 2048) as u64));
    });
}

#[test]
fn lwts_wait_for_writes_that_fail() {
    run("lwts_wait_for_writes_that_fail", || MODES.into_iter().for_each(let_lwts_wait));
}

fn let_lwts_wait(mode: Mode) {
    let swap = mode.set(builder(64, Backend::File.url(400))).open().unwrap();
    let region = swap.create_region(400 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..400).for_each(|page| pages.fill(page, 1));
    limit_file_size(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let worker = swap.enter_worker().unwrap();
            (0..20).for_each(|lwt| worker.start(move || (lwt..400).step_by(20).for_each(|page| pages.fill(page, 2))).unwrap());
            worker.run();
        });
        wait_until("writes fail", || stat(&swap, "swap_out_errors") > 20);
        lift_the_limit();
    });
    (0..400).for_each(|page| pages.check(page, 2));
}

/// Nobody may need a frame when the trouble is over: then it must be found out otherwise, or fresh memory would be refused for ever.
#[test]
fn fresh_memory_is_handed_out_again_when_writes_work() {
    run("fresh_memory_is_handed_out_again_when_writes_work", || MODES.into_iter().for_each(hand_out_again));
}

fn hand_out_again(mode: Mode) {
    let swap = mode.set(builder(1024, Backend::File.url(2000))).open().unwrap();
    let region = swap.create_region(2000 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    let limit = stat(&swap, "resident_limit_bytes") as usize / PAGE;
    limit_file_size(0);
    // Only what is reclaimed ahead of demand: frames stay free, and nobody waits for one.
    let mut num_pages = 0;
    while stat(&swap, "swap_out_failing") == 0 {
        assert!(num_pages < limit, "nothing is reclaimed ahead of demand");
        pages.fill(num_pages, 1);
        num_pages += 1;
        if num_pages > limit / 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(lightswap::reserve(pages.address(0), PAGE).unwrap_err().kind(), ErrorKind::NoSpace);
    lift_the_limit();
    wait_until("fresh memory is handed out again", || lightswap::reserve(pages.address(num_pages), PAGE).is_ok());
    (num_pages..2000).for_each(|page| pages.fill(page, 1));
    (0..2000).for_each(|page| pages.check(page, 1));
}
