//! Try blocks: where an access to a page whose content cannot be had leads to, instead of the end of the process.
//!
//! Each LWT, and each thread beside its LWTs, has a chain of open blocks, the innermost first. The SIGBUS handler throws by leaving its frame, and all
//! frames up to the innermost block, as a jump does: for a block of C with longjmp, for one of Rust by restoring what [`call`] saved.
//!
//! Leaving a signal handler so is sound here. It runs on the stack of the access; nothing of it is to be restored but the signal mask, which
//! the handler does not change (SA_NODEFER, and an empty mask), and the floating-point environment, which the kernel resets for handlers: the block
//! has saved its control words.

use crate::failure::SwapFailure;
use crate::lwt;
use crate::notifier::die;
use libc::{c_int, c_void};
use std::arch::{asm, naked_asm};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// An open block, on the stack of the function that has it. C's lsw_try begins like this and goes on with a jmp_buf.
#[repr(C)]
pub(crate) struct Context {
    outer: *mut Context,
    /// Somewhere in the frame of that function: of the frames of a stack, the inner ones have lower addresses.
    frame: usize,
    /// [`mark`], while it is open.
    mark: usize,
    /// What [`call`] saved, or 0 for a block of C.
    resume_at: usize,
    state: State,
    kind: Kind,
    mxcsr: u32,
    x87_control: u32,
    pub(crate) failure: MaybeUninit<SwapFailure>,
}

/// As setjmp.h has it on x86-64, though nothing here depends on its size.
#[allow(non_camel_case_types, reason = "the name is that of C")]
pub(crate) type jmp_buf = [u64; 25];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// It is in its thread's or LWT's chain.
    Open = 1,
    /// Something was thrown to it. Not in the chain any more.
    Caught = 2,
    Closed = 3,
}

/// What becomes of faults in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    /// Pages are brought in, and what cannot be is thrown.
    Paging = 1,
    /// For code that knows its pages to be there and cannot wait: every fault is thrown.
    NotPaging = 2,
}

thread_local! {
    /// The innermost open block of this thread, not of its LWTs. Const and without destructor: for signal handlers.
    static INNERMOST: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
}

/// Whether the order of frames is checked, too: it means nothing where a program switches between stacks of its own.
static CHECKS_FRAMES: AtomicBool = AtomicBool::new(cfg!(debug_assertions));

/// Takes LIGHTSWAP_CHECK_TRY into account.
pub(crate) fn configure() {
    if let Some(value) = std::env::var_os("LIGHTSWAP_CHECK_TRY") {
        CHECKS_FRAMES.store(value != "0", Relaxed);
    }
}

/// Runs `action` with the head of the calling LWT's or thread's chain.
fn with_innermost<R>(action: impl FnOnce(&Cell<*mut Context>) -> R) -> R {
    // SAFETY: the running LWT is alive.
    match unsafe { lwt::current().as_ref() } {
        Some(lwt) => action(lwt.innermost_try()),
        None => INNERMOST.with(action),
    }
}

/// Tells an open block from what else a stack holds.
fn mark(context: *const Context) -> usize {
    context as usize ^ 0x7279_7472_7961_7721
}

/// Opens a block.
///
/// # Safety
/// `context` is valid and stays so until it is closed, or something is thrown to it; then either `resume_at` has been set, or `env` behind it.
pub(crate) unsafe fn begin(context: *mut Context, frame: usize) {
    // SAFETY: the caller's promise.
    unsafe { begin_as(Kind::Paging, context, frame) };
}

unsafe fn begin_as(kind: Kind, context: *mut Context, frame: usize) {
    let (mut mxcsr, mut x87_control) = (0u32, 0u32);
    // SAFETY: they store 4 and 2 bytes.
    unsafe { asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut mxcsr, in(reg) &raw mut x87_control, options(nostack, preserves_flags)) };
    with_innermost(|innermost| {
        let outer = innermost.get();
        check_outer(outer, context, frame);
        let failure = MaybeUninit::uninit();
        // SAFETY: the caller's promise.
        unsafe { context.write(Context { outer, frame, mark: mark(context), resume_at: 0, state: State::Open, kind, mxcsr, x87_control, failure }) };
        innermost.set(context);
    });
}

/// Whether the block is open: `false` after something was thrown to it.
///
/// # Safety
/// [`begin`] was given it.
pub(crate) unsafe fn is_open(context: *const Context) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*context).state == State::Open }
}

/// Closes a block, whether something was thrown to it or not.
///
/// # Safety
/// [`begin`] was given it.
pub(crate) unsafe fn end(context: *mut Context) {
    // SAFETY: the caller's promise.
    unsafe {
        if (*context).mark != mark(context) || (*context).state == State::Closed {
            die(format_args!("try block {context:p} is ended but not open: it was ended twice, or overwritten"));
        }
        if (*context).state == State::Open {
            with_innermost(|innermost| {
                if innermost.get() != context {
                    misuse_at_end(context, innermost.get());
                }
                innermost.set((*context).outer);
            });
        }
        (*context).state = State::Closed;
    }
}

/// What was thrown to a block.
///
/// # Safety
/// It is not open, and something was.
pub(crate) unsafe fn caught(context: *const Context) -> *const SwapFailure {
    // SAFETY: the caller's promise.
    unsafe { (*context).failure.as_ptr() }
}

/// Whether the running code has asked for every fault to be thrown. Async-signal-safe.
pub(crate) fn refuses_paging() -> bool {
    let innermost = with_innermost(Cell::get);
    // SAFETY: blocks in the chain are alive, or the program has broken the rules.
    !innermost.is_null() && unsafe { (*innermost).kind == Kind::NotPaging }
}

/// Whether a failure has somewhere to go. Async-signal-safe.
pub(crate) fn is_any_open() -> bool {
    !with_innermost(Cell::get).is_null()
}

/// The calling thread runs an LWT's code as its own from now on, in a child of fork: the LWT's blocks are the thread's.
pub(crate) fn become_thread(of_lwt: &Cell<*mut Context>) {
    INNERMOST.set(of_lwt.get());
}

/// Leaves the calling code for the innermost open block; without one, says why and ends the process. For the SIGBUS handler only: no frame up to the
/// block may have something to clean up. The interrupted code had this stack pointer. Async-signal-safe.
pub(crate) fn throw(failure: SwapFailure, stack_pointer: usize) -> ! {
    let context = with_innermost(Cell::get);
    if context.is_null() {
        die(format_args!("{failure}"));
    }
    check_is_marked(context);
    check_order(context, stack_pointer);
    // SAFETY: an open block, so its function has not returned. What it resumes with was saved by that function: `call`, or setjmp in LSW_TRY. The frames
    // in between have nothing to clean up, as the rules of try blocks and of this function demand.
    unsafe {
        with_innermost(|innermost| innermost.set((*context).outer));
        (*context).failure.write(failure);
        (*context).state = State::Caught;
        let (mxcsr, x87_control) = (&raw const (*context).mxcsr, &raw const (*context).x87_control);
        asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) mxcsr, in(reg) x87_control, options(nostack, preserves_flags, readonly));
        match (*context).resume_at {
            0 => _longjmp(context.add(1).cast(), 1),
            resume_at => resume(resume_at),
        }
    }
}

// SAFETY: as libc has it on Linux.
unsafe extern "C" {
    /// longjmp that leaves the signal mask alone, in any C library. (longjmp itself does so in glibc and musl.)
    fn _longjmp(env: *mut c_void, value: c_int) -> !;
}

/// Runs `body`. If it accesses a page of a region whose content cannot be had (the backend failed, the content is corrupt, memory is damaged), the access and
/// all of `body` that would follow are skipped, and the failure is returned.
///
/// Blocks nest: the innermost on the same LWT, or on the same thread, gets the failure. Without any, such an access ends the process with a message.
/// Only accesses lead here; explicit requests such as [`crate::touch`] return their errors as usual, in a block as outside. With
/// [`crate::Notifier::Monitor`] only damaged memory does: there, failures of the backend end the process.
///
/// # Safety
/// Every access to a region in `body`, or in what it calls, can be the last thing that it does. So between here and there must be
/// * no value whose destructor must run (memory it owns leaks; a guard or lock stays held; a scope that waits for threads would not wait),
/// * no frame of another language that expects to be unwound, and no other function that relies on its callees' return.
///
/// What `body` changes by reference may be found changed or not after a failure, unless it is atomic or volatile. It should do no more than access
/// memory: copy, compare, checksum.
///
/// `body` may suspend its LWT. A panic in it goes on in the caller. `errno` is as it was at the access. Not restored are protection keys (PKRU, which the kernel
/// resets for signal handlers) and shadow stacks: programs that use either must not use try blocks. A thread that ends with a block open is not noticed, as an
/// LWT is.
pub unsafe fn try_catch<R>(body: impl FnOnce() -> R) -> Result<R, SwapFailure> {
    // SAFETY: the caller's promise.
    unsafe { catch(Kind::Paging, body) }
}

/// The same for code that knows its pages to be mapped, and must not be suspended: whatever faults is damaged.
///
/// # Safety
/// As [`try_catch`].
pub(crate) unsafe fn try_without_paging<R>(body: impl FnOnce() -> R) -> Result<R, SwapFailure> {
    // SAFETY: the caller's promise.
    unsafe { catch(Kind::NotPaging, body) }
}

struct Call<F, R> {
    body: Option<F>,
    result: Option<std::thread::Result<R>>,
}

unsafe fn catch<F: FnOnce() -> R, R>(kind: Kind, body: F) -> Result<R, SwapFailure> {
    let mut to_call = Call { body: Some(body), result: None };
    let to_call = &raw mut to_call;
    let mut context = MaybeUninit::<Context>::uninit();
    let context = context.as_mut_ptr();
    // SAFETY: both live in this frame, which is left after the block has been closed only. Nothing is accessed between `begin` and the call that could fault,
    // so that `resume_at` is set when it is needed.
    unsafe {
        begin_as(kind, context, context as usize);
        call(run::<F, R>, to_call.cast(), &raw mut (*context).resume_at);
        let is_open = is_open(context);
        end(context);
        if !is_open {
            return Err((*context).failure.assume_init());
        }
        match (*to_call).result.take().expect("the body has run") {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// # Safety
/// `to_call` points to a `Call<F, R>` with its body.
unsafe extern "C" fn run<F: FnOnce() -> R, R>(to_call: *mut c_void) {
    // SAFETY: the caller's promise.
    let to_call = unsafe { &mut *to_call.cast::<Call<F, R>>() };
    if let Some(body) = to_call.body.take() {
        to_call.result = Some(catch_unwind(AssertUnwindSafe(body)));
    }
}

/// Calls `body` with `argument`, having saved in `*resume_at` how to come back here without it: see [`resume`].
// SAFETY: keeps to the C calling convention: registers that belong to the caller are saved, and the stack is aligned.
#[unsafe(naked)]
unsafe extern "C" fn call(body: unsafe extern "C" fn(*mut c_void), argument: *mut c_void, resume_at: *mut usize) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // The stack is aligned for the call now: the return address and six registers are 56 bytes.
        "sub rsp, 8",
        "mov [rdx], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}

/// Returns from the [`call`] that saved `resume_at`, instead of its body.
// SAFETY: gives the caller of `call` back what that has saved.
#[unsafe(naked)]
unsafe extern "C" fn resume(resume_at: usize) -> ! {
    naked_asm!("lea rsp, [rdi + 8]", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "cld", "ret",)
}

/// The block that is about to be opened must be none of those that are.
fn check_outer(outer: *mut Context, context: *const Context, frame: usize) {
    if outer.is_null() {
        return;
    }
    check_is_marked(outer);
    let mut open = outer.cast_const();
    while !open.is_null() {
        if open == context {
            die(format_args!("try block {context:p} is begun while it is open already: a context is for one block at a time, or {LEFT_OPEN}"));
        }
        // SAFETY: blocks in the chain are alive, or the program has broken the rules, which the mark shows most often.
        open = if CHECKS_FRAMES.load(Relaxed) { unsafe { (*open).outer } } else { ptr::null() };
    }
    check_order(outer, frame);
}

fn check_is_marked(open: *mut Context) {
    // SAFETY: it was a block's, on this stack: readable, if perhaps overwritten.
    let (found, state) = unsafe { ((*open).mark, ptr::from_ref(&(*open).state).cast::<u32>().read()) };
    if found != mark(open) || state != State::Open as u32 {
        die(format_args!("try block {open:p} is open but overwritten: {LEFT_OPEN}"));
    }
}

/// Code with `frame` runs, so the function that opened a block further down the stack has ended.
fn check_order(open: *mut Context, frame: usize) {
    // SAFETY: as above.
    if CHECKS_FRAMES.load(Relaxed) && frame > unsafe { (*open).frame } {
        die(format_args!("try block {open:p} is open but its function has ended: {LEFT_OPEN}"));
    }
}

/// An LWT ends.
pub(crate) fn check_none_is_open() {
    let innermost = with_innermost(Cell::get);
    if !innermost.is_null() {
        die(format_args!("an LWT has ended with try block {innermost:p} open: {LEFT_OPEN}"));
    }
}

fn misuse_at_end(context: *mut Context, innermost: *mut Context) -> ! {
    let mut open = innermost;
    while !open.is_null() {
        check_is_marked(open);
        // SAFETY: as in `check_outer`.
        open = unsafe { (*open).outer };
        if open == context {
            die(format_args!("try block {context:p} is ended while {innermost:p}, begun in it, is open: {LEFT_OPEN}"));
        }
    }
    die(format_args!("try block {context:p} is ended on another LWT or thread than it was begun on"))
}

const LEFT_OPEN: &str = "a block was left by return, goto, break or longjmp; leave it only at its end";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_panics_come_through() {
        // SAFETY: nothing faults.
        unsafe {
            assert_eq!(try_catch(|| try_catch(|| 5).unwrap() + 1), Ok(6));
            let panicked = catch_unwind(|| try_catch(|| panic!("within")));
            assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"within"));
        }
        assert!(INNERMOST.get().is_null());
    }

    /// What `call` saves must be as it was, whatever the body did before it was left.
    #[test]
    fn what_is_thrown_is_caught_by_the_innermost() {
        let failure = crate::failure::example();
        for depth in 0..5 {
            let floats = [1.5f64, 2.5, depth as f64];
            // SAFETY: no frame in between has anything to clean up.
            let result = unsafe {
                try_catch(|| {
                    let inner = try_catch(|| dig(depth, failure));
                    assert_eq!(inner, Err(failure));
                    assert!(!refuses_paging());
                    assert_eq!(try_without_paging(|| (refuses_paging(), dig(depth, failure)).0), Err(failure));
                    dig(depth, failure)
                })
            };
            assert_eq!(result, Err(failure));
            assert_eq!(floats.iter().sum::<f64>(), 4.0 + depth as f64);
        }
        assert!(INNERMOST.get().is_null());
    }

    #[inline(never)]
    fn dig(depth: usize, failure: SwapFailure) -> usize {
        if depth == 0 {
            throw(failure, ptr::from_ref(&failure) as usize);
        }
        let used = std::hint::black_box([depth; 100]);
        dig(depth - 1, failure) + used[depth]
    }
}
