//! fork(): a child inherits the memory but not the userfaultfd, so a missing page would silently read as zeroes there.
//!
//! Hooks run around every fork. Before it, each instance with [`crate::Builder::snapshots`] begins a snapshot, and what the child will need is in order: no other thread changes
//! a page, or holds a lock of these. In the child, before anything else runs, all regions are registered again, with a userfaultfd of its own, and what is the parent's is let
//! go. Pages that were resident at the fork read as they were (the child has its own copy-on-write view); a missing one is asked of the parent in a snapshot, and otherwise
//! stops the child with a message. The calling thread, the only one of the child, is no worker there, and goes on as an ordinary thread if it was an LWT.
//!
//! A child may open instances of its own; its own children are no snapshots. Processes made by a bare clone system call bypass the hooks.

use crate::fault_table;
use crate::pager::Pager;
use crate::parking;
use crate::region::{self, RegionInner};
use crate::snapshot::Forked;
use crate::worker::{self, WorkerShared};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

static INSTALL: Once = Once::new();
/// Of all instances.
static PAGERS: Mutex<Vec<Weak<Pager>>> = Mutex::new(Vec::new());

fn pagers() -> MutexGuard<'static, Vec<Weak<Pager>>> {
    PAGERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the hooks, once per process; they see to this instance as well.
pub(crate) fn install(pager: &Arc<Pager>) {
    INSTALL.call_once(|| {
        // SAFETY: the hooks are plain functions and do only what is safe around fork.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
    let mut pagers = pagers();
    pagers.retain(|pager| pager.strong_count() > 0);
    pagers.push(Arc::downgrade(pager));
}

/// What is kept from the hook before a fork to the one after it, which the same thread runs. Given back in this order.
struct Held {
    unused_workers: MutexGuard<'static, Vec<&'static WorkerShared>>,
    forking: Vec<Forking>,
    /// Keeps other threads from forking.
    _pagers: MutexGuard<'static, Vec<Weak<Pager>>>,
}

/// An instance of a process that forks.
struct Forking {
    /// The lock in `pager`, given back before that.
    workers: ManuallyDrop<MutexGuard<'static, Vec<&'static WorkerShared>>>,
    pager: Arc<Pager>,
    forked: Forked,
}

impl Forking {
    fn new(pager: Arc<Pager>) -> Self {
        // SAFETY: the guard is dropped before the pager is; see `Drop`.
        let workers = unsafe { std::mem::transmute::<MutexGuard<'_, _>, MutexGuard<'static, _>>(pager.workers()) };
        Self { workers: ManuallyDrop::new(workers), pager, forked: Forked::Plain }
    }
}

impl Drop for Forking {
    fn drop(&mut self) {
        // SAFETY: once, and nobody uses it any more.
        unsafe { ManuallyDrop::drop(&mut self.workers) };
    }
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

extern "C" fn before() {
    let pagers = pagers();
    // The locks first, in the order in which those who enter as workers take them; and snapshots last, as others wait from then on.
    let mut forking: Vec<Forking> = pagers.iter().filter_map(Weak::upgrade).map(Forking::new).collect();
    let unused_workers = worker::unused();
    for forking in &mut forking {
        forking.forked = forking.pager.before_fork();
    }
    HELD.set(Some(Held { unused_workers, forking, _pagers: pagers }));
}

extern "C" fn in_parent() {
    let Some(held) = HELD.take() else { return };
    for forking in &held.forking {
        forking.pager.after_fork(forking.forked);
    }
}

extern "C" fn in_child() {
    let Some(mut held) = HELD.take() else { return };
    worker::become_child();
    parking::become_child();
    fault_table::become_child();
    // They have descriptors in common with the parent's.
    held.unused_workers.clear();
    for forking in &held.forking {
        // It never ends here: what it would end is the parent's.
        std::mem::forget(forking.pager.clone());
        forking.pager.become_child(&forking.workers);
        let replaced = forking.pager.uffd.replace();
        region::for_each(|region| {
            let is_ours = Arc::ptr_eq(&region.pager, &forking.pager);
            if is_ours && (replaced.is_err() || forking.pager.uffd.register(region.start(), region.num_bytes(), region.is_transparent()).is_err()) {
                forbid(region);
            }
        });
    }
}

/// Without a registration no access may succeed: the child dies of SIGSEGV instead of reading zeroes.
fn forbid(region: &RegionInner) {
    // SAFETY: the range is the region's.
    unsafe { libc::mprotect(region.base().cast(), region.num_bytes(), libc::PROT_NONE) };
}
