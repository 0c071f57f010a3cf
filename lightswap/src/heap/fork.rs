//! All heaps of the process, for fork(): a child must not find a lock taken by a thread that it does not have.

use super::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::parking::SpinLock;
use crate::region::MAX_REGIONS;
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::Once;

struct Registry {
    lock: SpinLock,
    heaps: UnsafeCell<[*const Parts; MAX_REGIONS]>,
}

// SAFETY: the table is accessed under the lock only.
unsafe impl Sync for Registry {}

static REGISTRY: Registry = Registry { lock: SpinLock::new(), heaps: UnsafeCell::new([ptr::null(); MAX_REGIONS]) };
static INSTALL: Once = Once::new();

fn with_heaps<R>(action: impl FnOnce(&mut [*const Parts; MAX_REGIONS]) -> R) -> R {
    REGISTRY.lock.lock();
    // SAFETY: the lock is held.
    let result = action(unsafe { &mut *REGISTRY.heaps.get() });
    REGISTRY.lock.unlock();
    result
}

/// Makes a heap known, which stays where it is until [`unregister`]. A region has one at most.
pub(super) fn register(heap: &Parts) -> Result<()> {
    INSTALL.call_once(|| {
        // SAFETY: the hooks are plain functions and do only what is safe between fork and exec.
        unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) };
    });
    let is_new = with_heaps(|heaps| {
        // SAFETY: registered heaps are alive.
        let has_same_region = heaps.iter().any(|other| unsafe { other.as_ref() }.is_some_and(|other| ptr::eq(other.region, heap.region)));
        let free = heaps.iter_mut().find(|place| place.is_null()).filter(|_| !has_same_region);
        free.map(|place| *place = heap).is_some()
    });
    if is_new { Ok(()) } else { Err(Error::new(ErrorKind::Busy, "the region has a heap already, which owns all of it")) }
}

/// Undoes [`register`].
pub(super) fn unregister(heap: &Parts) {
    with_heaps(|heaps| heaps.iter_mut().filter(|place| ptr::eq(**place, heap)).for_each(|place| *place = ptr::null()));
}

/// Takes all locks, in the order that nobody else takes two in.
extern "C" fn before() {
    REGISTRY.lock.lock();
    for_each(|heap| heap.locks().for_each(SpinLock::lock));
}

extern "C" fn after() {
    for_each(|heap| heap.locks().for_each(SpinLock::unlock));
    REGISTRY.lock.unlock();
}

/// Between [`before`] and [`after`].
fn for_each(action: impl Fn(&Parts)) {
    // SAFETY: the lock is held, and registered heaps are alive.
    let heaps = unsafe { &*REGISTRY.heaps.get() };
    // SAFETY: as above.
    heaps.iter().filter_map(|heap| unsafe { heap.as_ref() }).for_each(action);
}
