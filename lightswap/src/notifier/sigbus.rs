//! The `sigbus` notifier: userfaultfd raises SIGBUS in the faulting thread itself, on its own stack. No monitor thread, no wake-up, no privilege.
//!
//! The handler neither allocates nor takes a lock that the interrupted code may hold. It may suspend the LWT it runs on: the signal frame
//! stays on the LWT's stack until the page is in and the handler returns to retry the access. That is why the signal is not blocked while its
//! handler runs (SA_NODEFER) and why it runs on the faulting stack (no SA_ONSTACK).
//!
//! It goes back to the access by loading the registers itself (see [`resume`]), or as other handlers do, by rt_sigreturn.
//!
//! If the page cannot be had, the handler does not return: it throws to the innermost try block. Hardware memory errors come as the same signal and are thrown alike.

use super::{die, ebpf, leave, resume};
use crate::config::{FaultReturn, Notifier};
use crate::discard;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::{RawCause, SwapFailure};
use crate::fault_table;
use crate::region::{self, Page, RegionInner};
use crate::snapshot::child;
use crate::swap_in;
use crate::sys;
use crate::try_catch;
use crate::worker;
use std::arch::naked_asm;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

/// The handler that was there before ours, once ours is installed. Leaked: it may be read at any time.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
static INSTALLING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Address of the last fault, and how often it came in a row.
    static LAST_FAULT: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
    static LAST_NOTIFICATION_NS: Cell<u64> = const { Cell::new(0) };
}

/// So many faults in a row on one address of a thread mean that the page is not in the state Lightswap left it in.
const MAX_REPEATS: u32 = 1_000_000;
/// And so many, that it is worth looking whether its memory can be read at all.
const SUSPICIOUS_REPEATS: u32 = 16;

/// Installs the handler, once per process.
pub(crate) fn install() -> Result<()> {
    let _guard = INSTALLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    try_catch::configure();
    if !PREVIOUS.load(Acquire).is_null() {
        return Ok(());
    }
    // SAFETY: an all-zero sigaction is valid, and so is ours: handler with SA_SIGINFO, empty mask.
    unsafe {
        let previous = Box::into_raw(Box::new(std::mem::zeroed::<libc::sigaction>()));
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_RESTART;
        libc::sigaction(libc::SIGBUS, std::ptr::null(), previous);
        PREVIOUS.store(previous, Release);
        if libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) != 0 {
            PREVIOUS.store(std::ptr::null_mut(), Release);
            return Err(Error::os(ErrorKind::NoUserfaultfd, "cannot install the SIGBUS handler"));
        }
    }
    Ok(())
}

/// Time of the handler's first instruction at the last fault of this thread, for measurements.
pub(crate) fn last_notification_ns() -> u64 {
    LAST_NOTIFICATION_NS.get()
}

/// What the kernel calls: [`handle_signal`] with the address, too, where the kernel has put the context if it was the one that called.
// SAFETY: has the signature of a handler, changes no register but that of the fourth argument, and jumps to a function with its own arguments and that one.
#[unsafe(naked)]
extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    naked_asm!("lea rcx, [rsp + 8]", "jmp {}", sym handle_signal)
}

extern "C" fn handle_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, kernels_context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo and context.
    let (address, code, fault) = unsafe { ((*info).si_addr() as usize, (*info).si_code, Fault::of(context)) };
    // A positive code is a fault; a signal that somebody sent has no address.
    let Some(region) = region::find(address).filter(|_| code > 0) else {
        pass_on(signal, info, context);
        return sys::set_errno(fault.errno);
    };
    let notified_ns = sys::now_ns();
    fault_table::note(address, notified_ns);
    // A handler of the program's that passes signals on to this one has things to do yet.
    let may_resume = region.pager.config.fault_return == FaultReturn::User && context == kernels_context && code != libc::BUS_MCEERR_AO;
    handle(region, address, code, fault);
    // Only now: other LWTs of this thread may have faulted since.
    LAST_NOTIFICATION_NS.set(notified_ns);
    if region.pager.config.notifier == Notifier::Ebpf && !region.is_inherited() {
        ebpf::enter_thread();
    }
    sys::set_errno(fault.errno);
    if may_resume {
        // SAFETY: called by the kernel, with the mask as it was (see `install`), for a synchronous fault, which is handled.
        unsafe { resume::leave_frame(context.cast()) };
    }
}

/// A fault that came without a signal; see [`ebpf`]. Async-signal-safe.
pub(super) fn serve_redirected(address: usize, error: u32, stack_pointer: usize) {
    let fault = Fault { error: error.into(), stack_pointer, errno: sys::errno() };
    // If the region is gone, so is its range: the access that is tried again raises a signal.
    if let Some(region) = region::find(address) {
        let notified_ns = sys::now_ns();
        fault_table::note(address, notified_ns);
        handle(region, address, BUS_ADRERR, fault);
        LAST_NOTIFICATION_NS.set(notified_ns);
    }
    sys::set_errno(fault.errno);
}

/// The code of a SIGBUS that userfaultfd raises.
const BUS_ADRERR: i32 = 2;

/// What the handler is told of the interrupted code.
#[derive(Clone, Copy)]
struct Fault {
    /// The processor's page-fault error code.
    error: u64,
    stack_pointer: usize,
    errno: i32,
}

impl Fault {
    /// # Safety
    /// `context` is the third argument of a signal handler.
    unsafe fn of(context: *mut libc::c_void) -> Self {
        // SAFETY: the caller's promise.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        Self { error: registers[libc::REG_ERR as usize] as u64, stack_pointer: registers[libc::REG_RSP as usize] as usize, errno: sys::errno() }
    }

    /// A write to a page that is present: only write protection stops that.
    fn is_write_to_present(self) -> bool {
        const PRESENT: u64 = 1;
        const WRITE: u64 = 2;
        self.error & (PRESENT | WRITE) == PRESENT | WRITE
    }
}

fn handle(region: &'static RegionInner, address: usize, code: i32, fault: Fault) {
    if code == libc::BUS_MCEERR_AO {
        // Nobody has accessed it. When somebody does, it comes again as BUS_MCEERR_AR.
        swap_in::counters(&region.pager).memory_errors_announced.add_shared(1);
        return;
    }
    if region.is_inherited() && child::of(region).is_none() {
        die(format_args!(
            "this process is a fork of one with a Lightswap region and touched a page of it ({address:#x}) that was swapped out; only the parent can page it in"
        ));
    }
    let page = region.page_at(address);
    if try_catch::refuses_paging() {
        throw(RawCause::POISONED, page, address, fault);
    }
    if code == libc::BUS_MCEERR_AR {
        discard::lose(page);
        throw(RawCause::POISONED, page, address, fault);
    }
    let is_write_protect = fault.is_write_to_present();
    let num_repeats = check_progress(address, page.entry().load().is_mapped() && !is_write_protect);
    match worker::current_of(&region.pager) {
        Some(worker) if is_write_protect => worker.stats().counters.write_protect_faults.add(1),
        Some(worker) => worker.stats().counters.faults.add(1),
        None if is_write_protect => region.pager.thread_stats.counters.write_protect_faults.add_shared(1),
        None => region.pager.thread_stats.counters.faults.add_shared(1),
    }
    if let Err(cause) = swap_in::make_resident(page) {
        throw(cause, page, address, fault);
    }
    if is_write_protect {
        // Under our pin, no evictor relies on the protection of this page; see evict.rs.
        let _ = region.pager.uffd.write_protect(page.address(), 1, false);
    } else if num_repeats >= SUSPICIOUS_REPEATS && !is_readable(address) {
        // While it is pinned: afterwards it may have been discarded, and have another content.
        discard::lose(page);
        let _ = swap_in::unpin(page);
        throw(RawCause::POISONED, page, address, fault);
    }
    // A pin that is gone was taken by an unpin too many of the program's.
    let _ = swap_in::unpin(page);
}

/// There is no page for the access to `address`.
fn throw(cause: RawCause, page: Page<'static>, address: usize, fault: Fault) -> ! {
    // As the handler's return would.
    sys::set_errno(fault.errno);
    let failure = SwapFailure::new(cause, page, address);
    if page.region.is_inherited() && !try_catch::is_any_open() {
        leave(format_args!("a child of fork(): {failure}"));
    }
    try_catch::throw(failure, fault.stack_pointer)
}

/// Whether a page that is mapped and pinned can be read. If not, its memory is damaged, although a kernel without support for memory errors does not say so; or
/// other code has taken it away: its content is lost in any case.
fn is_readable(address: usize) -> bool {
    // SAFETY: a byte of a region; there is nothing to clean up.
    unsafe { try_catch::try_without_paging(|| std::ptr::with_exposed_provenance::<u8>(address).read_volatile()) }.is_ok()
}

/// Counts faults on a page that is there already. One may be, when another thread was faster; a thread that faults on one address now and then, and
/// never on another, because the page was evicted meanwhile, is in order.
fn check_progress(address: usize, is_spurious: bool) -> u32 {
    let (last, count) = LAST_FAULT.get();
    let count = if last == address && is_spurious { count + 1 } else { 0 };
    LAST_FAULT.set((address, count));
    if count > MAX_REPEATS {
        die(format_args!("the access to {address:#x} faults again and again: was the region remapped, protected or discarded by other code?"));
    }
    count
}

/// Not ours: to whom it was before.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: set before our handler was installed, and never freed.
    let previous = unsafe { &*PREVIOUS.load(Acquire) };
    // SAFETY: the kernel's siginfo.
    let is_fault = unsafe { (*info).si_code } > 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // A synchronous fault cannot be ignored: the retried access ends the process with the default action.
            // SAFETY: an all-zero sigaction is SIG_DFL.
            unsafe { libc::sigaction(signal, &std::mem::zeroed(), std::ptr::null_mut()) };
            if !is_fault {
                // SAFETY: one that was sent must be sent again: ours is used up.
                unsafe { libc::raise(signal) };
            }
        }
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: installed with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = unsafe { std::mem::transmute(address) };
            handler(signal, info, context);
        }
        address => {
            // SAFETY: installed without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(address) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_on_one_address_for_ever_are_in_order_if_its_page_was_missing() {
        for count in 0..3 * MAX_REPEATS {
            check_progress(4096, count % 2 == 0);
        }
        assert!(LAST_FAULT.get().1 <= 1);
    }
}
