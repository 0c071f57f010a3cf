//! How an instance is set up.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::CStr;
use std::time::Duration;

/// How a faulting access reaches Lightswap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub enum Notifier {
    /// A signal in the faulting thread itself, whose LWT alone waits.
    #[default]
    Sigbus = 0,
    /// Classic userfaultfd, for comparison: the faulting thread sleeps in the kernel while the instance's pager thread reads the message and brings the
    /// page in. That thread does all paging: a thread that sleeps could not see to its own I/O. LWTs are allowed, but a fault blocks their whole worker.
    Monitor = 1,
    /// A BPF program in the fault path sends the faulting thread to the handler without a signal: the same as [`Notifier::Sigbus`] otherwise, and cheaper. Needs the kernel
    /// module of integrations/kernel, and CAP_BPF and CAP_PERFMON when the instance is opened; without, a warning says so and it is [`Notifier::Sigbus`] (see
    /// [`crate::Lightswap::notifier`]).
    Ebpf = 2,
}

/// How the handler of [`Notifier::Sigbus`] goes back to the access, once the page is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub enum FaultReturn {
    /// It loads the registers itself, which saves a system call. Where it cannot (an access that is stepped through, a shadow stack, an alternate stack with
    /// `SS_AUTODISARM`), it does as with [`FaultReturn::Kernel`]. A signal mask or alternate stack that other LWTs set while the LWT was suspended stays.
    #[default]
    User = 0,
    /// By `rt_sigreturn`, as other handlers: for comparison, and for tools that must see it (emulators and tracers of programs).
    Kernel = 1,
}

/// What a worker does while a page it needs is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub enum Waiting {
    /// It suspends the LWT and runs the others.
    #[default]
    Suspend = 0,
    /// It polls its I/O queue until the page is in, as Fastswap does in the kernel, for comparison: a fault or touch switches to no other LWT, prefetches are not waited
    /// for, and the instance's pager thread is the only one that reclaims. (Locks still suspend the LWT, or one that sleeps with a lock could not go on.)
    Poll = 1,
}

/// What `lightswap::Builder` gathers.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) local_memory_bytes: u64,
    pub(crate) backend_url: String,
    /// The same for failures, which outlive the instance; set when that is opened.
    pub(crate) backend_name: &'static CStr,
    pub(crate) max_workers: usize,
    pub(crate) lwt_stack_bytes: usize,
    pub(crate) vectored_removal: bool,
    pub(crate) notifier: Notifier,
    pub(crate) fault_return: FaultReturn,
    pub(crate) waiting: Waiting,
    pub(crate) step_times: bool,
    pub(crate) io_timeout: Duration,
    pub(crate) snapshots: bool,
}

/// How long a request to the backend may take.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

impl Default for Config {
    fn default() -> Self {
        Self {
            local_memory_bytes: 0,
            backend_url: String::new(),
            backend_name: c"",
            max_workers: 1,
            lwt_stack_bytes: 64 << 10,
            vectored_removal: true,
            notifier: Notifier::default(),
            fault_return: FaultReturn::default(),
            waiting: Waiting::default(),
            step_times: false,
            io_timeout: IO_TIMEOUT,
            snapshots: false,
        }
    }
}

impl Config {
    /// Refuses what does not go together.
    pub(crate) fn check(&self) -> Result<()> {
        if self.io_timeout < Duration::from_millis(1) {
            let message = format!("a time limit of {:?} for I/O would end every read: give at least a millisecond, better seconds", self.io_timeout);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if self.snapshots && self.notifier == Notifier::Monitor {
            let message = "snapshots cannot be combined with the notifier \"monitor\": a child has no thread that could serve its faults; choose one of the two";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        match (self.notifier, self.waiting) {
            (Notifier::Monitor, Waiting::Poll) => Err(Error::new(
                ErrorKind::InvalidArgument,
                "the notifier \"monitor\" cannot be combined with waiting by \"poll\": a thread that sleeps in the kernel cannot poll; choose one of the two",
            )),
            _ => Ok(()),
        }
    }

    /// Whether faulting threads sleep in the kernel until they are woken through the userfaultfd.
    pub(crate) fn faults_sleep(&self) -> bool {
        self.notifier == Notifier::Monitor
    }
}
