//! What lies beyond registers when a handler goes back to the access: the signal mask, the alternate stack, code that is stepped through, handlers that pass on to ours.

mod common;

use common::child::in_child;
use common::pages::{Pages, pattern};
use common::{Backend, PAGE, builder, kernel_is_able, stat};
use lightswap::{Contract, FaultReturn, Lightswap, Region};
use std::arch::asm;
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

const NUM_PAGES: usize = 200;
const WAYS: [FaultReturn; 2] = [FaultReturn::User, FaultReturn::Kernel];

fn open(fault_return: FaultReturn) -> (Lightswap, Region, Pages) {
    let swap = builder(32, Backend::Memory.url(NUM_PAGES)).fault_return(fault_return).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
    (swap, region, pages)
}

/// Reads all pages, most of which fault.
fn fault_often(swap: &Lightswap, pages: Pages) {
    let before = stat(swap, "faults");
    (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
    assert!(stat(swap, "faults") - before > NUM_PAGES as u64 / 2);
}

/// In a process of its own: handlers are the process's.
fn in_each_way(test: &str, body: impl Fn(FaultReturn)) {
    let ended = in_child(test, || {
        if kernel_is_able() {
            WAYS.into_iter().for_each(&body);
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

fn install(signal: libc::c_int, handler: usize, flags: libc::c_int) -> libc::sigaction {
    // SAFETY: an all-zero sigaction is valid; the handler has the signature that the flags promise.
    unsafe {
        let (mut action, mut previous): (libc::sigaction, libc::sigaction) = (zeroed(), zeroed());
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &action, &mut previous), 0);
        previous
    }
}

fn signal_mask() -> Vec<bool> {
    // SAFETY: an all-zero set is valid, and there is a place for it.
    unsafe {
        let mut mask: libc::sigset_t = zeroed();
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut mask), 0);
        (1..=64).map(|signal| libc::sigismember(&mask, signal) == 1).collect()
    }
}

#[test]
fn the_signal_mask_stays_as_it_is() {
    in_each_way("the_signal_mask_stays_as_it_is", |way| {
        let (swap, _region, pages) = open(way);
        // SAFETY: an all-zero set is valid; a signal that nobody sends is blocked.
        unsafe {
            let mut mask: libc::sigset_t = zeroed();
            libc::sigaddset(&mut mask, libc::SIGUSR2);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &mask, ptr::null_mut()), 0);
        }
        let before = signal_mask();
        fault_often(&swap, pages);
        assert_eq!(signal_mask(), before, "{way:?}");
        assert!(before[libc::SIGUSR2 as usize - 1]);
    });
}

/// The kernel takes such a stack away for the time of any handler; only rt_sigreturn gives it back.
#[test]
fn an_alternate_stack_that_is_disarmed_comes_back() {
    const SS_AUTODISARM: libc::c_int = 1 << 31;
    in_each_way("an_alternate_stack_that_is_disarmed_comes_back", |way| {
        let (swap, _region, pages) = open(way);
        let memory = Box::leak(vec![0u8; 64 << 10].into_boxed_slice());
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: SS_AUTODISARM, ss_size: memory.len() };
        // SAFETY: the stack is never freed; there is a place for the answer.
        unsafe {
            let mut now: libc::stack_t = zeroed();
            assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
            fault_often(&swap, pages);
            assert_eq!(libc::sigaltstack(ptr::null(), &mut now), 0);
            assert_eq!((now.ss_sp, now.ss_size), (stack.ss_sp, stack.ss_size), "{way:?}");
        }
    });
}

static OURS: AtomicUsize = AtomicUsize::new(0);
static NUM_PASSED_ON: AtomicUsize = AtomicUsize::new(0);

/// Installed so that SIGBUS is blocked meanwhile: if this function is left out on the way back, it stays so, and the next fault ends the process.
extern "C" fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: that was the handler before, installed with SA_SIGINFO.
    let ours: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = unsafe { std::mem::transmute(OURS.load(SeqCst)) };
    ours(signal, info, context);
    NUM_PASSED_ON.fetch_add(1, SeqCst);
}

#[test]
fn a_handler_that_passes_on_to_ours_goes_on_after_it() {
    in_each_way("a_handler_that_passes_on_to_ours_goes_on_after_it", |way| {
        let (swap, _region, pages) = open(way);
        let previous = install(libc::SIGBUS, pass_on as *const () as usize, libc::SA_SIGINFO);
        if previous.sa_sigaction != pass_on as *const () as usize {
            OURS.store(previous.sa_sigaction, SeqCst);
        }
        let before = NUM_PASSED_ON.load(SeqCst);
        fault_often(&swap, pages);
        assert!(NUM_PASSED_ON.load(SeqCst) - before > NUM_PAGES / 2, "{way:?}");
    });
}

static NUM_STEPS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_step(_: libc::c_int) {
    NUM_STEPS.fetch_add(1, SeqCst);
}

/// Loads a word with the trap flag set: a SIGTRAP after each instruction. How many there were.
fn step_through_load(address: *const u64) -> (u64, usize) {
    let loaded: u64;
    let before = NUM_STEPS.load(SeqCst);
    // SAFETY: reads a word of the region. What is pushed is popped; nothing is kept below the stack pointer, as `nostack` is not promised.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "mov {loaded}, [{address}]",
            "nop",
            "pushfq",
            "and qword ptr [rsp], -257",
            "popfq",
            loaded = out(reg) loaded,
            address = in(reg) address,
        );
    }
    (loaded, NUM_STEPS.load(SeqCst) - before)
}

#[test]
fn code_that_is_stepped_through_is_stepped_through_a_fault() {
    in_each_way("code_that_is_stepped_through_is_stepped_through_a_fault", |way| {
        let (swap, _region, pages) = open(way);
        install(libc::SIGTRAP, count_step as *const () as usize, 0);
        let word = |page: usize| step_through_load(pages.address(page).cast());
        pages.check(0, 1);
        let (_, num_steps) = word(0);
        assert!(num_steps >= 6, "{num_steps}");
        let before = stat(&swap, "faults");
        for page in 0..NUM_PAGES {
            assert_eq!(word(page), (pattern(page, 0, 1), num_steps), "{way:?}, page {page}");
        }
        assert!(stat(&swap, "faults") - before > NUM_PAGES as u64 / 2);
    });
}
