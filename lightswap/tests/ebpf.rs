//! The notifier `ebpf`: faults come without signals where the kernel module is loaded, and as signals where it is not. With LIGHTSWAP_TEST_NOTIFIER=ebpf, which
//! demands the module, all other tests run with it, too.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::{Backend, PAGE, builder, default_notifier, kernel_is_able, skip, stat};
use lightswap::{Contract, Lightswap, Notifier, Region};
use std::path::Path;

const NUM_PAGES: usize = 400;

/// An instance with 64 pages of local memory and a region of 400 pages that hold patterns.
fn open() -> (Lightswap, Region, Pages) {
    let swap = builder(64, Backend::Memory.url(NUM_PAGES)).notifier(Notifier::Ebpf).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
    (swap, region, pages)
}

fn is_loaded() -> bool {
    let is_there = Path::new("/dev/lightswap").exists();
    assert!(is_there || default_notifier() != Notifier::Ebpf, "the kernel module lightswap is not loaded");
    is_there
}

#[test]
fn without_the_module_it_is_sigbus() {
    if !kernel_is_able() || is_loaded() {
        return;
    }
    let (swap, _region, pages) = open();
    assert_eq!(swap.notifier(), Notifier::Sigbus);
    (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
    assert!(swap.stats().iter().all(|(name, _)| *name != "redirected_faults"));
}

/// Redirected faults are of the whole process, so this test has one of its own.
#[test]
fn all_but_the_first_fault_of_a_thread_are_redirected() {
    let ended = in_child("all_but_the_first_fault_of_a_thread_are_redirected", || {
        if !kernel_is_able() || !(is_loaded() || skip("the kernel module lightswap is not loaded")) {
            return;
        }
        let (swap, _region, pages) = open();
        assert_eq!(swap.notifier(), Notifier::Ebpf);
        let of_thread = |num_signals: u64| {
            let before = (stat(&swap, "faults"), stat(&swap, "redirected_faults"));
            (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
            let (faults, redirected) = (stat(&swap, "faults") - before.0, stat(&swap, "redirected_faults") - before.1);
            assert!(faults > 300 && redirected == faults - num_signals, "{redirected} of {faults}");
        };
        // This thread has had its first.
        of_thread(0);
        // More than there are slots at a time.
        for _ in 0..20 {
            std::thread::scope(|scope| scope.spawn(|| of_thread(1)).join().unwrap());
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// What the module knows of a parent is not its child's; that has an instance of its own.
#[test]
fn a_child_of_fork_has_a_setup_of_its_own() {
    let ended = in_child("a_child_of_fork_has_a_setup_of_its_own", || {
        if !kernel_is_able() || !(is_loaded() || skip("the kernel module lightswap is not loaded")) {
            return;
        }
        let (swap, _region, pages) = open();
        (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
        // SAFETY: the child runs code that takes no lock which another thread of this process, made by the instance only, holds for long.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let before = stat(&swap, "redirected_faults");
            let (own, _region, pages) = open();
            (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
            let is_right = own.notifier() == Notifier::Ebpf && before > 0 && stat(&own, "redirected_faults") > 300;
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        let before = stat(&swap, "redirected_faults");
        (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
        assert!(stat(&swap, "redirected_faults") > before + 300);
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}
