//! What a program asks for ranges of addresses, whatever regions they are in.

use crate::access::PageRange;
use crate::copies;
use crate::error::{Error, ErrorKind, Result};
use crate::size::PAGE_SIZE;

/// Makes each page of `len` bytes at `address` resident and marks it referenced; on an LWT all reads go out together. Suspends the LWT or blocks the
/// thread. The pages may leave again any time after.
///
/// # Errors
/// [`ErrorKind::NotInRegion`], [`ErrorKind::SwapIn`].
pub fn touch(address: *const u8, len: usize) -> Result<()> {
    PageRange::find(address as usize, len)?.touch()
}

/// Touches the pages and keeps them resident until the same range is unpinned. Pins count.
///
/// # Errors
/// As [`touch`]; [`ErrorKind::PinLimit`] if more than half of local memory, or 128 MiB, would be pinned.
pub fn pin(address: *const u8, len: usize) -> Result<()> {
    PageRange::find(address as usize, len)?.pin()
}

/// [`pin`] without waiting: `false`, and no pins, if a page is not resident or the limit of pins is reached.
///
/// # Errors
/// [`ErrorKind::NotInRegion`].
pub fn pin_resident(address: *const u8, len: usize) -> Result<bool> {
    Ok(PageRange::find(address as usize, len)?.pin_resident())
}

/// Copies `len` bytes, of which any part may lie in regions. Each page of a region is pinned while it is read or written, so this is how to write to a
/// cooperative region without pins of one's own, and a page that cannot be read back is an error. It waits for pages as [`touch`] does. Ranges may
/// overlap only where neither is in a region.
///
/// # Errors
/// [`ErrorKind::SwapIn`]; a part may have been copied by then.
///
/// # Safety
/// `from` is valid for reads of `len` bytes and `to` for writes, if one takes swapped-out pages as valid; nobody else writes them meanwhile.
pub unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { copies::copy(to, from, len) }
}

/// Compares `len` bytes, of which any part may lie in regions, in the manner of [`copy`].
///
/// # Errors
/// [`ErrorKind::SwapIn`].
///
/// # Safety
/// Both are valid for reads of `len` bytes, if one takes swapped-out pages as valid; nobody writes them meanwhile.
pub unsafe fn compare(a: *const u8, b: *const u8, len: usize) -> Result<std::cmp::Ordering> {
    // SAFETY: the caller's promise.
    unsafe { copies::compare(a, b, len) }
}

/// Undoes one [`pin`] of the same range.
///
/// # Errors
/// [`ErrorKind::NotInRegion`]; [`ErrorKind::InvalidArgument`] if a page of it is not pinned.
pub fn unpin(address: *const u8, len: usize) -> Result<()> {
    PageRange::find(address as usize, len)?.unpin()
}

/// Starts reading the pages that are swapped out, without waiting; a hint.
///
/// # Errors
/// [`ErrorKind::NotInRegion`].
pub fn prefetch(address: *const u8, len: usize) -> Result<()> {
    PageRange::find(address as usize, len).map(|range| range.prefetch())
}

/// Gives up what the pages hold, whatever state they are in: they read as zeroes again, and take no local memory until they are touched (nor, with
/// `memory:`, room in the backend; files keep theirs). It is how a page whose content was lost (see [`SwapFailure`](crate::SwapFailure)) is used again. Waits for those who are bringing the pages in or
/// evicting them; nobody may use them meanwhile.
///
/// # Errors
/// [`ErrorKind::NotInRegion`]; [`ErrorKind::InvalidArgument`] if the range is not of whole pages; [`ErrorKind::Busy`] if a page is pinned or being accessed: with
/// pins as they were at the start, nothing is discarded then. Also if evictors are not done with the pages within [`Builder::io_timeout`](crate::Builder::io_timeout).
pub fn discard(address: *const u8, len: usize) -> Result<()> {
    if !(address as usize).is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
        let message = format!("discard: {len} bytes at {:#x} are not whole pages of {PAGE_SIZE} bytes", address as usize);
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    PageRange::find(address as usize, len)?.discard()
}

/// Makes the pages the first candidates for eviction; a hint.
///
/// # Errors
/// [`ErrorKind::NotInRegion`].
pub fn advise_cold(address: *const u8, len: usize) -> Result<()> {
    PageRange::find(address as usize, len).map(|range| range.advise_cold())
}

/// Whether all pages of the range are resident (at some moment during the call). `false` outside regions.
pub fn is_resident(address: *const u8, len: usize) -> bool {
    PageRange::find(address as usize, len).is_ok_and(|range| range.is_resident())
}

/// Makes sure that the backend has room for pages that were never touched. Call it before handing fresh memory out: the error is the moment to
/// report out-of-memory, while a fault could not.
///
/// # Errors
/// [`ErrorKind::NotInRegion`]; [`ErrorKind::NoSpace`] when the disk is full or writes to it fail.
pub fn reserve(address: *const u8, len: usize) -> Result<()> {
    PageRange::find(address as usize, len)?.reserve()
}
