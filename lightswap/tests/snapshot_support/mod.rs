//! What the tests of snapshots share.
#![allow(dead_code, reason = "each test file is a program of its own and uses a part of it")]

use crate::common::child::{Ended, in_child};
use crate::common::pages::{Pages, WORDS, pattern};
use crate::common::{Mode, PAGE, Watchdog, builder, kernel_is_able, new_path, stat, wait_until};
use lightswap::{Contract, Lightswap};
use std::io::Write as _;
use std::time::Duration;

pub const LOCAL_PAGES: u64 = 256;
pub const NUM_PAGES: usize = 8 * LOCAL_PAGES as usize;
/// Most pages that a child keeps of those it has fetched, with so little local memory.
pub const MOST_FETCHED: usize = 64;

/// Room for both slots of each page.
pub fn memory() -> String {
    format!("memory:?size={}", 2 * NUM_PAGES * PAGE)
}

pub fn file(name: &str) -> String {
    format!("file:{}?size={}", new_path(name).display(), 2 * NUM_PAGES * PAGE)
}

pub fn open(mode: Mode, url: &str, limit: Duration) -> Lightswap {
    mode.set(builder(LOCAL_PAGES, url)).snapshots(true).io_timeout(limit).open().unwrap()
}

/// Runs `body` in a process of its own, as forks of the harness are none of its business.
pub fn alone(test: &str, body: impl FnOnce()) -> Option<Ended> {
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
pub fn with_region(mode: Mode, url: &str, limit: Duration, body: impl FnOnce(&Lightswap, Pages)) {
    let swap = open(mode, url, limit);
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
    body(&swap, pages);
}

/// In a child: nothing of the harness may run, so a failure is a line and an exit code.
pub fn exit_unless(is_right: bool, what: &str) {
    if !is_right {
        let _ = writeln!(std::io::stderr(), "in the child: {what}");
        // SAFETY: ends the process.
        unsafe { libc::_exit(9) };
    }
}

pub fn is_right(pages: Pages, page: usize, seed: u64) -> bool {
    (0..WORDS).all(|word| pages.word(page, word) == pattern(page, word, seed))
}

/// Forks a child that goes on while this process does.
pub fn fork_aside(body: impl FnOnce()) -> i32 {
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

pub fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waits for a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

pub fn expect_exit(status: i32, code: i32) {
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code, "status {status:#x} instead of exit code {code}");
}

pub fn wait_for_the_end(swap: &Lightswap) {
    wait_until("the end of the snapshot", || stat(swap, "snapshot_live") == 0);
}

pub fn holds(pages: Pages, page: usize, seed: u64) -> bool {
    if seed == 0 { pages.is_zero(page) } else { is_right(pages, page, seed) }
}

/// In a child: reads all pages.
pub fn check_all(pages: Pages, seed: u64) {
    (0..NUM_PAGES).for_each(|page| exit_unless(is_right(pages, page, seed), &format!("page {page}")));
}

/// In a child: of a pipe's ends it keeps one, or it would never see that the parent has closed the other.
pub fn close(fd: i32) {
    // SAFETY: the child's own descriptor.
    unsafe { libc::close(fd) };
}
