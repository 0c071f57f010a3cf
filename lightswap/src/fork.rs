//! fork(): a child inherits the memory but not the userfaultfd, so a missing page would silently read as zeroes there.
//!
//! An atfork hook registers all regions again in the child before anything else runs: pages that were resident at the fork read as they were (the
//! child has its own copy-on-write view), a missing one stops the child with a message. Serving such faults is for a later version. What a
//! child does with the userfaultfd of an instance that it has from its parent would be done to the parent's memory, so it can use none, and ends none when it drops
//! it. A child may open instances of its own. Processes made by a bare clone system call bypass the hook.

use crate::region;
use crate::sys::uffd::Uffd;
use std::sync::Once;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

static INSTALL: Once = Once::new();
/// Forks between this process and the first of its ancestors that installed the hook.
static NUM_FORKS: AtomicU64 = AtomicU64::new(0);

/// The same for things of the same process, another one for those that a child has from its parent.
pub(crate) fn generation() -> u64 {
    NUM_FORKS.load(Relaxed)
}

/// Installs the hook, once per process.
pub(crate) fn install() {
    INSTALL.call_once(|| {
        // SAFETY: the hook is a plain function and does only what is safe between fork and exec.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

extern "C" fn in_child() {
    NUM_FORKS.fetch_add(1, Relaxed);
    let mut num_regions = 0;
    region::for_each(|_| num_regions += 1);
    if num_regions == 0 {
        return;
    }
    region::for_each(region::RegionInner::set_inherited);
    match Uffd::open(false) {
        Ok(uffd) => {
            region::for_each(|region| {
                if uffd.register(region.start(), region.num_bytes(), false).is_err() {
                    forbid(region);
                }
            });
            // Stays open for the life of the child: closing it would end the registration.
            std::mem::forget(uffd);
        }
        Err(_) => region::for_each(forbid),
    }
}

/// Without a registration no access may succeed: the child dies of SIGSEGV instead of reading zeroes.
fn forbid(region: &region::RegionInner) {
    // SAFETY: the range is the region's.
    unsafe { libc::mprotect(region.base().cast(), region.num_bytes(), libc::PROT_NONE) };
}
