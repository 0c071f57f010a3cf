//! The `ebpf` notifier: a BPF program in the fault path sends the faulting thread straight to Lightswap. No signal frame, no siginfo, no signal lock.
//!
//! It takes the kernel module of integrations/kernel. Where userfaultfd would raise SIGBUS, the module asks a BPF program of this process; if that finds the fault's range and
//! thread in its maps, the module writes what happened into the thread's slot and sends the thread to [`entry`], which calls the same handler as the signal does, and resumes
//! the access without a system call.
//!
//! The handler of SIGBUS stays: for all faults that are not redirected (of threads that have not entered yet, in restartable sequences, when single-stepping), and for damaged
//! memory. A thread enters at the end of its first signal.

mod device;
mod entry;
mod program;

use self::device::Device;
use self::program::Program;
use super::resume;
use crate::error::{Error, ErrorKind, Result};
use crate::region::MAX_REGIONS;
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use std::cell::Cell;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Threads of a process that can have their faults redirected at a time; others get signals.
const NUM_SLOTS: usize = 1024;

/// What was set up for this process. Leaked: handlers may use it at any time.
static SETUP: AtomicPtr<Setup> = AtomicPtr::new(std::ptr::null_mut());
static SETTING_UP: Mutex<()> = Mutex::new(());

thread_local! {
    /// The setup in which this thread has entered.
    static ENTERED: Cell<*const Setup> = const { Cell::new(std::ptr::null()) };
}

struct Setup {
    /// That of the process that did it. A child of fork starts anew: the module knows the parent's memory.
    process: u32,
    device: Device,
    program: Program,
    /// The module writes to it.
    _slots: Mapping,
    /// First address and bytes by the number that the program knows them by.
    ranges: Mutex<[Option<(usize, usize)>; MAX_REGIONS]>,
}

impl Setup {
    fn new() -> Result<Self> {
        if resume::has_shadow_stack() {
            return Err(Error::new(ErrorKind::InvalidArgument, "the process has shadow stacks, which allow no return that nobody called for"));
        }
        entry::configure()?;
        let device = Device::open()?;
        let program = Program::load(MAX_REGIONS, NUM_SLOTS)?;
        let num_bytes = round_up(NUM_SLOTS * device::SLOT_BYTES, PAGE_SIZE).expect("a few pages");
        let slots = Mapping::new(num_bytes, PAGE_SIZE)?;
        device.set_up(program.fd(), entry::address(), slots.base() as usize, NUM_SLOTS)?;
        Ok(Self { process: std::process::id(), device, program, _slots: slots, ranges: Mutex::new([None; MAX_REGIONS]) })
    }

    fn ranges(&self) -> MutexGuard<'_, [Option<(usize, usize)>; MAX_REGIONS]> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Async-signal-safe.
fn setup() -> Option<&'static Setup> {
    // SAFETY: null, or leaked by `open`.
    unsafe { SETUP.load(Acquire).as_ref() }
}

/// Sets this process up, once.
///
/// # Errors
/// One sentence: why the notifier cannot be used.
pub(crate) fn open() -> Result<()> {
    let _guard = SETTING_UP.lock().unwrap_or_else(PoisonError::into_inner);
    if setup().is_none_or(|setup| setup.process != std::process::id()) {
        SETUP.store(Box::into_raw(Box::new(Setup::new()?)), Release);
    }
    Ok(())
}

/// Faults in a region may be redirected from now on.
pub(crate) fn add_range(start: usize, len: usize) -> Result<()> {
    let Some(setup) = setup() else { return Ok(()) };
    let mut ranges = setup.ranges();
    let Some(id) = ranges.iter().position(Option::is_none) else {
        return Err(Error::new(ErrorKind::Busy, "there is no room for another range"));
    };
    // Before the module asks the program.
    setup.program.set_range(id, start, start + len);
    setup.device.add_range(start, len, id).inspect_err(|_| setup.program.set_range(id, 0, 0))?;
    ranges[id] = Some((start, len));
    Ok(())
}

/// Undoes [`add_range`], if that was done.
pub(crate) fn remove_range(start: usize, len: usize) {
    let Some(setup) = setup() else { return };
    let mut ranges = setup.ranges();
    if let Some(id) = ranges.iter().position(|range| *range == Some((start, len))) {
        setup.program.set_range(id, 0, 0);
        setup.device.remove_range(start, len);
        ranges[id] = None;
    }
}

/// Faults of this thread may be redirected from now on. Async-signal-safe.
pub(super) fn enter_thread() {
    let Some(setup) = setup().filter(|setup| ENTERED.get() != std::ptr::from_ref(*setup)) else { return };
    // If there is no slot, the next signal tries again: a thread may have ended.
    if let Some(slot) = setup.device.enter_thread() {
        setup.program.admit(slot);
        ENTERED.set(setup);
    }
}

/// Faults of this process that were redirected.
pub(crate) fn num_redirected() -> u64 {
    setup().map_or(0, |setup| setup.program.num_redirected())
}
