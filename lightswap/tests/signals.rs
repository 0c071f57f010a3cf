//! Signals: SIGBUS of others is passed on; errno, registers and flags survive a fault; an LWT that overflows its stack dies at its guard page.

mod common;

use common::child::{fork, in_child};
use common::pages::Pages;
use common::{Backend, PAGE, builder, kernel_is_able, new_path};
use lightswap::{Contract, Lightswap, Region};
use std::arch::asm;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicUsize, fence};

fn open() -> (Lightswap, Region, Pages) {
    let swap = builder(32, Backend::File.url(200)).open().unwrap();
    let region = swap.create_region(200 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..200).for_each(|page| pages.fill(page, 1));
    (swap, region, pages)
}

/// Address of a mapped page that raises SIGBUS: it lies behind the end of its file.
fn beyond_the_end_of_a_file() -> usize {
    let path = new_path("empty");
    let file = std::fs::File::create_new(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let file = std::fs::File::options().read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(address, libc::MAP_FAILED);
    address as usize
}

fn read(address: usize) -> u8 {
    // SAFETY: the address is mapped; the access raises SIGBUS, whose handler maps something readable there.
    unsafe { (address as *const u8).read_volatile() }
}

static FOREIGN: AtomicUsize = AtomicUsize::new(0);
static NUM_CALLS: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicUsize = AtomicUsize::new(0);

/// Makes the faulting access succeed.
fn repair() {
    NUM_CALLS.fetch_add(1, SeqCst);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: replaces the page that `beyond_the_end_of_a_file` mapped for this.
    unsafe { libc::mmap(FOREIGN.load(SeqCst) as *mut _, PAGE, libc::PROT_READ, flags, -1, 0) };
}

extern "C" fn with_info(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo, passed on.
    SEEN.store(unsafe { (*info).si_addr() } as usize, SeqCst);
    repair();
}

extern "C" fn without_info(_: libc::c_int) {
    repair();
}

/// Installs a SIGBUS handler, or a disposition.
fn install(handler: usize, flags: libc::c_int) {
    // SAFETY: an all-zero sigaction is valid; the handler has the signature that the flags promise.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()), 0);
    }
}

fn pass_on_to(handler: usize, flags: libc::c_int) {
    // The check that opens an instance must come later than the handler.
    install(handler, flags);
    if !kernel_is_able() {
        return;
    }
    let (_swap, _region, pages) = open();
    for call in 1..=3 {
        FOREIGN.store(beyond_the_end_of_a_file(), SeqCst);
        assert_eq!(read(FOREIGN.load(SeqCst) + 5), 0);
        assert_eq!(NUM_CALLS.load(SeqCst), call);
        (0..200).for_each(|page| pages.check(page, 1));
        assert_eq!(NUM_CALLS.load(SeqCst), call, "our own faults are not passed on");
    }
}

#[test]
fn an_earlier_handler_gets_what_is_not_ours() {
    let ended = in_child("an_earlier_handler_gets_what_is_not_ours", || {
        pass_on_to(with_info as *const () as usize, libc::SA_SIGINFO);
        assert!(NUM_CALLS.load(SeqCst) == 0 || SEEN.load(SeqCst) == FOREIGN.load(SeqCst) + 5);
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn an_earlier_handler_without_siginfo_gets_it_too() {
    let ended = in_child("an_earlier_handler_without_siginfo_gets_it_too", || pass_on_to(without_info as *const () as usize, 0));
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn the_default_action_ends_the_process() {
    let ended = in_child("the_default_action_ends_the_process", || {
        install(libc::SIG_DFL, 0);
        if !kernel_is_able() {
            return;
        }
        let (_swap, _region, _pages) = open();
        let expect_sigbus =
            |what: &str, status: i32| assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{what}: {status:#x}");
        expect_sigbus("an access", fork(|| assert_eq!(read(beyond_the_end_of_a_file()), 0)));
        // SAFETY: ends the child.
        expect_sigbus("raise", fork(|| assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0)));
        // SAFETY: as above.
        expect_sigbus("kill", fork(|| assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGBUS) }, 0)));
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let ended = in_child("an_ignored_signal_stays_ignored", || {
        install(libc::SIG_IGN, 0);
        if !kernel_is_able() {
            return;
        }
        let (_swap, _region, pages) = open();
        // SAFETY: the signal is ignored.
        unsafe { libc::raise(libc::SIGBUS) };
        (0..200).for_each(|page| pages.check(page, 1));
        // A synchronous fault cannot be ignored, a signal that was sent can.
        let status = fork(|| assert_eq!(read(beyond_the_end_of_a_file()), 0));
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:#x}");
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

fn errno() -> i32 {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value };
}

#[test]
fn errno_is_each_lwts_own_across_faults() {
    if !kernel_is_able() {
        return;
    }
    let (swap, _region, pages) = open();
    let worker = swap.enter_worker().unwrap();
    for lwt in 0..20 {
        let work = move || {
            for step in 0..50 {
                let value = 1000 + lwt as i32;
                set_errno(value);
                let found = pages.word((lwt * 37 + step * 7) % 200, 3);
                assert_eq!(errno(), value, "after a fault");
                assert_ne!(found, 0);
                if step % 5 == 0 {
                    set_errno(value + 1);
                    pages.touch((lwt * 13 + step) % 200, 1);
                    assert_eq!(errno(), value + 1, "after a touch");
                }
            }
        };
        worker.start(work).unwrap();
    }
    worker.run();
    set_errno(77);
    (0..200).for_each(|page| assert_ne!(pages.word(page, 1), 0));
    assert_eq!(errno(), 77, "on the worker's own stack");
}

/// Loads a word with known values in registers of all kinds and the carry flag set, and compares them afterwards.
fn load_with_full_registers(address: *const u64, seed: u64) -> u64 {
    let loaded: u64;
    let (mut r8, mut r12, mut rcx, mut xmm): (u64, u64, u64, u64) = (seed, !seed, seed ^ 7, seed.rotate_left(9));
    let carry: u8;
    // SAFETY: reads one word of the region; all registers used are named, and nothing else is touched.
    unsafe {
        asm!(
            "movq xmm7, {xmm}",
            "pinsrq xmm7, {xmm}, 1",
            "stc",
            "mov {loaded}, qword ptr [{address}]",
            "setc {carry}",
            "pextrq {xmm}, xmm7, 1",
            address = in(reg) address,
            loaded = out(reg) loaded,
            carry = out(reg_byte) carry,
            xmm = inout(reg) xmm,
            inout("r8") r8,
            inout("r12") r12,
            inout("rcx") rcx,
            out("xmm7") _,
            options(nostack, readonly)
        );
    }
    assert_eq!((r8, r12, rcx, xmm, carry), (seed, !seed, seed ^ 7, seed.rotate_left(9), 1), "registers after a fault");
    loaded
}

#[test]
fn registers_and_flags_survive_faults() {
    if !kernel_is_able() {
        return;
    }
    let (swap, _region, pages) = open();
    let load_all = move |first: usize| {
        for page in (first..200).step_by(10) {
            let mut sum = page as f64 * 1.5;
            let found = load_with_full_registers(pages.address(page).cast(), page as u64 * 0x1234_5678_9ABC);
            sum += 0.25;
            assert_eq!((found, sum), (common::pages::pattern(page, 0, 1), page as f64 * 1.5 + 0.25));
        }
    };
    // Alone on a thread, and on LWTs whose faults interleave on one thread.
    (0..10).for_each(load_all);
    let worker = swap.enter_worker().unwrap();
    (0..10).for_each(|first| worker.start(move || load_all(first)).unwrap());
    worker.run();
}

/// Uses about a page of stack per level.
fn recurse(depth: usize) -> u64 {
    let mut frame = [depth as u64; 500];
    std::hint::black_box(&mut frame);
    fence(SeqCst);
    if depth == 0 { frame[1] } else { recurse(depth - 1) + std::hint::black_box(frame[depth % 500]) }
}

#[test]
fn an_lwt_that_overflows_its_stack_hits_the_guard_page() {
    let ended = in_child("an_lwt_that_overflows_its_stack_hits_the_guard_page", || {
        if !kernel_is_able() {
            return;
        }
        let swap = builder(64, Backend::Memory.url(64)).lwt_stack(256 << 10).open().unwrap();
        let worker = swap.enter_worker().unwrap();
        // Most of the stack can be used; the child must get here.
        worker.start(|| assert_ne!(std::hint::black_box(recurse(40)), 0)).unwrap();
        println!("the stack has the size that was asked for");
        worker.start(|| assert_ne!(std::hint::black_box(recurse(200)), 0)).unwrap();
        println!("overflow went unnoticed");
    });
    let Some(ended) = ended else { return };
    if ended.stderr.contains("skipped: ") {
        return ended.expect_success();
    }
    assert!(ended.stdout.contains("asked for") && !ended.stdout.contains("unnoticed"), "{ended:?}");
    ended.expect_signal(libc::SIGSEGV);
}
