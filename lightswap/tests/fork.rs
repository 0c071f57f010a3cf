//! A child of fork() reads what was resident, and is stopped with a message at a page that was not. It never reads zeroes for content.

mod common;

use common::child::{fork, in_child};
use common::pages::{Pages, pattern};
use common::{Backend, DEFAULT_MODE, MODES, MONITOR, Mode, Watchdog, builder, kernel_is_able};
use lightswap::Contract;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

fn swapped_out_page(pages: Pages) -> usize {
    (0..pages.len()).find(|page| !pages.is_resident(*page)).expect("local memory is smaller than the region")
}

/// In a process of its own: opens, fills, and forks children in all kinds of ways.
fn with_region(test: &str, mode: Mode, contract: Contract, body: impl FnOnce(Pages)) -> Option<common::child::Ended> {
    in_child(test, || {
        if !kernel_is_able() {
            return;
        }
        let swap = mode.set(builder(100, Backend::File.url(400))).open().unwrap();
        let region = swap.create_region(400 * common::PAGE, contract).unwrap();
        let pages = Pages::of(&region);
        (0..400).for_each(|page| pages.fill(page, 3));
        body(pages);
        (0..400).for_each(|page| pages.check(page, 3));
        println!("the parent is well");
    })
}

/// In a child: nothing of the harness may run, so a failure is an exit code.
fn exit_unless(is_right: bool) {
    if !is_right {
        // SAFETY: ends the process.
        unsafe { libc::_exit(1) };
    }
}

fn stops_the_child(test: &str, mode: Mode, contract: Contract) {
    let ended = with_region(test, mode, contract, |pages| {
        let page = swapped_out_page(pages);
        let by_access = fork(|| exit_unless(pages.word(page, 9) == pattern(page, 9, 3)));
        assert!(libc::WIFSIGNALED(by_access) && libc::WTERMSIG(by_access) == libc::SIGABRT, "status {by_access:#x}");
        let by_write = fork(|| pages.set_word(page, 9, 1));
        assert!(libc::WIFSIGNALED(by_write) && libc::WTERMSIG(by_write) == libc::SIGABRT, "status {by_write:#x}");
        let by_touch = fork(|| pages.touch(page, 1));
        assert!(libc::WIFSIGNALED(by_touch) && libc::WTERMSIG(by_touch) == libc::SIGABRT, "status {by_touch:#x}");
    });
    let Some(ended) = ended else { return };
    ended.expect_success();
    if ended.stdout.contains("the parent is well") {
        let messages = ended.stderr.lines().filter(|line| line.contains("lightswap: fatal: ") && line.contains("fork")).count();
        assert_eq!(messages, 3, "one clear message for each child: {ended:?}");
    }
}

#[test]
fn a_swapped_out_page_stops_the_child() {
    stops_the_child("a_swapped_out_page_stops_the_child", DEFAULT_MODE, Contract::Transparent);
}

#[test]
fn a_swapped_out_page_of_a_cooperative_region_stops_the_child() {
    stops_the_child("a_swapped_out_page_of_a_cooperative_region_stops_the_child", DEFAULT_MODE, Contract::Cooperative);
}

#[test]
fn a_swapped_out_page_stops_the_child_with_a_monitor() {
    stops_the_child("a_swapped_out_page_stops_the_child_with_a_monitor", MONITOR, Contract::Transparent);
}

#[test]
fn resident_pages_read_right_in_the_child() {
    let ended = with_region("resident_pages_read_right_in_the_child", DEFAULT_MODE, Contract::Transparent, |pages| {
        // The parent pages on while the child reads: what it evicts and overwrites must not show in the child.
        let (mut told, tell) = std::io::pipe().unwrap();
        // SAFETY: the child does system calls and memory accesses only, and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(tell);
            let _ = std::io::Read::read(&mut told, &mut [0]);
            // The child's copy of the page table says what was resident at the fork.
            let resident = || (0..400).filter(|page| pages.is_resident(*page));
            exit_unless(resident().count() > 50);
            exit_unless(resident().all(|page| (0..512).all(|word| pages.word(page, word) == pattern(page, word, 3))));
            // Writing is allowed, too, and private.
            resident().for_each(|page| pages.set_word(page, 0, 77));
            // SAFETY: ends the child.
            unsafe { libc::_exit(42) };
        }
        (0..400).for_each(|page| pages.fill(page, 8));
        drop(tell);
        let mut status = 0;
        // SAFETY: waits for our child.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 42, "status {status:#x}");
        (0..400).for_each(|page| pages.check(page, 8));
        (0..400).for_each(|page| pages.fill(page, 3));
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// As one does that returns from main.
#[test]
fn a_child_that_drops_its_copy_of_a_region_leaves_the_parents_alone() {
    let ended = in_child("a_child_that_drops_its_copy_of_a_region_leaves_the_parents_alone", || {
        if !kernel_is_able() {
            return;
        }
        let swap = builder(100, Backend::File.url(400)).open().unwrap();
        let region = swap.create_region(400 * common::PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..400).for_each(|page| pages.fill(page, 3));
        // SAFETY: the child's copy, which it uses no more.
        assert_eq!(fork(|| drop(unsafe { std::ptr::read(&raw const region) })), 0);
        (0..400).for_each(|page| pages.check(page, 3));
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// What a child drops, as when it returns from where it was forked, or asks of the instance, does nothing to its parent, and does not hang.
#[test]
fn a_child_ends_nothing_of_its_parent() {
    let ended = in_child("a_child_ends_nothing_of_its_parent", || {
        if !kernel_is_able() {
            return;
        }
        let _watchdog = Watchdog::new("a child that drops what is its parent's", Duration::from_secs(60));
        for (url, mode) in
            ["memory:?size=4MiB", "encrypted(memory:?size=4MiB&compress=lz4)"].into_iter().flat_map(|url| MODES.map(|mode| (url, mode)))
        {
            let swap = mode.set(builder(100, url)).open().unwrap();
            let region = swap.create_region(400 * common::PAGE, Contract::Transparent).unwrap();
            let handle = swap.enter_worker().unwrap();
            let pages = Pages::of(&region);
            (0..400).for_each(|page| pages.fill(page, 3));
            let mut parts = Some((swap, region, handle));
            let status = fork(|| {
                let (swap, region, handle) = parts.take().unwrap();
                exit_unless(swap.create_region(common::PAGE, Contract::Transparent).is_err_and(|error| error.to_string().contains("fork")));
                exit_unless(swap.set_local_memory(200 * common::PAGE as u64).is_err() && !swap.stats().is_empty());
                drop(handle);
                exit_unless(swap.enter_worker().is_err());
                drop(region);
                drop(swap);
            });
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{url} {mode:?}: status {status:#x}");
            for version in [3, 4, 5] {
                (0..400).for_each(|page| pages.check(page, version));
                (0..400).for_each(|page| pages.fill(page, version + 1));
            }
            let (swap, region, handle) = parts.unwrap();
            drop((handle, region, swap));
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn other_programs_start_as_ever() {
    let ended = with_region("other_programs_start_as_ever", DEFAULT_MODE, Contract::Transparent, |_| {
        // The standard library uses posix_spawn for the first, and fork and exec for the second.
        assert!(Command::new("true").status().unwrap().success());
        let mut command = Command::new("true");
        // SAFETY: the hook does nothing.
        unsafe { command.pre_exec(|| Ok(())) };
        assert!(command.status().unwrap().success());
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}
