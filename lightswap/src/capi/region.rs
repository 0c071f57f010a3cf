//! Regions, and what a program can ask for pages of them.

use super::constants::{LSW_COOPERATIVE, LSW_ERR_BUSY, LSW_OK, LSW_TRANSPARENT};
use super::error::{fail, null, status};
use super::instance::lsw_instance;
use crate::error::{Error, ErrorKind};
use crate::failure;
use crate::instance::Region;
use crate::ranges;
use crate::region::{self, Contract};
use libc::{c_int, c_void, size_t};
use std::sync::Arc;

/// A range of virtual memory whose pages are swapped.
#[derive(Debug)]
pub struct lsw_region(pub(super) Arc<Region>);

/// Maps a region of at least num_bytes; its pages read as zeroes until they are written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_region_create(instance: *mut lsw_instance, num_bytes: size_t, contract: c_int, region: *mut *mut lsw_region) -> c_int {
    // SAFETY: the caller vouches for the pointers; NULL is checked.
    let Some(instance) = (unsafe { instance.as_ref() }) else { return null("instance") };
    if region.is_null() {
        return null("region");
    }
    let contract = match contract {
        LSW_TRANSPARENT => Contract::Transparent,
        LSW_COOPERATIVE => Contract::Cooperative,
        other => return fail(&Error::new(ErrorKind::InvalidArgument, format!("{other} is no contract"))),
    };
    let created = instance.0.create_region(num_bytes, contract);
    // SAFETY: not NULL, and the caller vouches for a writable target.
    status(created.map(|created| unsafe { *region = Box::into_raw(Box::new(lsw_region(Arc::new(created)))) }))
}

/// Unmaps a region. Nobody may access it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_region_destroy(region: *mut lsw_region) -> c_int {
    if region.is_null() {
        return null("region");
    }
    // SAFETY: made by lsw_region_create, and the caller gives it up.
    drop(unsafe { Box::from_raw(region) });
    LSW_OK
}

/// First byte of a region, aligned to 2 MiB; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_region_base(region: *const lsw_region) -> *mut c_void {
    // SAFETY: NULL or made by lsw_region_create.
    unsafe { region.as_ref() }.map_or(std::ptr::null_mut(), |region| region.0.as_ptr().cast())
}

/// Length of a region in bytes; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_region_len(region: *const lsw_region) -> size_t {
    // SAFETY: as above.
    unsafe { region.as_ref() }.map_or(0, |region| region.0.len())
}

/// Makes the pages of the range resident now (suspending the LWT or blocking the thread) and marks them referenced.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_touch(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::touch(addr.cast(), len))
}

/// Touches the pages and keeps them resident until the same range is unpinned. Pins count. LSW_ERR_PIN_LIMIT beyond half of local memory or 128 MiB.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_pin(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::pin(addr.cast(), len))
}

/// lsw_pin without waiting: LSW_ERR_BUSY, and no pins, if a page is not resident or the limit of pins is reached.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_pin_resident(addr: *const c_void, len: size_t) -> c_int {
    match ranges::pin_resident(addr.cast(), len) {
        Ok(true) => LSW_OK,
        // Not by way of an error: this is asked often, and nobody reads a sentence about it.
        Ok(false) => {
            failure::with_last(|last| last.set(None));
            LSW_ERR_BUSY
        }
        Err(error) => fail(&error),
    }
}

/// Undoes one lsw_pin of the same range.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_unpin(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::unpin(addr.cast(), len))
}

/// Copies len bytes, of which any part may lie in regions; each page of a region is pinned while it is read or written. This is how to write to a
/// cooperative region without pins of one's own. The ranges may overlap only where neither is in a region. LSW_ERR_SWAP_IN if a page cannot be
/// read back; a part may have been copied by then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_copy(to: *mut c_void, from: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise, as for memmove.
    status(unsafe { ranges::copy(to.cast(), from.cast(), len) })
}

/// Compares len bytes as memcmp does, in the manner of lsw_copy: *order becomes negative, 0 or positive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_compare(a: *const c_void, b: *const c_void, len: size_t, order: *mut c_int) -> c_int {
    if order.is_null() {
        return null("order");
    }
    // SAFETY: the caller's promise, as for memcmp.
    match unsafe { ranges::compare(a.cast(), b.cast(), len) } {
        Ok(ordering) => {
            // SAFETY: not NULL, and the caller vouches for a writable target.
            unsafe { *order = ordering as c_int };
            LSW_OK
        }
        Err(error) => fail(&error),
    }
}

/// Starts reading the pages that are swapped out, without waiting; a hint.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_prefetch(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::prefetch(addr.cast(), len))
}

/// Makes the pages the first candidates for eviction; a hint.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_advise_cold(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::advise_cold(addr.cast(), len))
}

/// Whether all pages of the range are resident; false outside regions.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_is_resident(addr: *const c_void, len: size_t) -> bool {
    ranges::is_resident(addr.cast(), len)
}

/// Whether the address lies in a region.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_in_region(addr: *const c_void) -> bool {
    region::find(addr as usize).is_some()
}

/// Makes sure that the backend has room for pages that were never touched; call it before handing fresh memory out. LSW_ERR_NO_SPACE is the moment to
/// report out-of-memory.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_reserve(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::reserve(addr.cast(), len))
}
