//! Copying and comparing bytes that may lie in regions, page by page: each page is pinned just while it is used, so its content cannot change under
//! an eviction, and one whose content cannot be had is an error instead of a fault.

use crate::access;
use crate::error::{Error, Result};
use crate::region::{self, Page};
use crate::size::PAGE_SIZE;
use crate::swap_in;
use crate::try_catch::try_catch;
use std::cmp::Ordering;

/// Through which bytes go from one region to another: an LWT that waited for a page while it pinned one could, with a tiny local memory, wait for ever.
const BOUNCE_BYTES: usize = 512;

/// A page that stays while this lives. Not to be held across anything that waits.
struct PinnedPage(Option<Page<'static>>);

impl PinnedPage {
    /// The same if that takes no waiting.
    fn try_at(address: usize) -> Option<Self> {
        let page = region::find(address).map(|region| region.page_at(address));
        match page {
            Some(page) if page.entry().pin(page.region.pager.budget.tick()).is_err() => None,
            page => Some(Self(page)),
        }
    }

    /// The page of a region that `address` lies in; of other memory nothing.
    fn at(address: usize) -> Result<Self> {
        let page = region::find(address).map(|region| region.page_at(address));
        if let Some(page) = page {
            access::pin_page(page)?;
        }
        Ok(Self(page))
    }
}

impl Drop for PinnedPage {
    fn drop(&mut self) {
        if let Some(page) = self.0 {
            assert!(swap_in::unpin(page), "somebody dropped a pin that was not theirs");
        }
    }
}

/// As many of `len` bytes at `address` as lie in one page.
fn in_page(address: usize, len: usize) -> usize {
    len.min(PAGE_SIZE - address % PAGE_SIZE)
}

/// Copies `len` bytes; the ranges may overlap only where neither is in a region. After an error a part may have been copied.
///
/// # Safety
/// As `std::ptr::copy`, but the pages may be swapped out.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Result<()> {
    let mut done = 0;
    while done < len {
        let (to, from) = (to.wrapping_add(done), from.wrapping_add(done));
        if region::find(from as usize).is_none() {
            let num_bytes = region::len_outside(from as usize, len - done);
            // SAFETY: the caller's promise.
            unsafe { copy_in(to, from, num_bytes)? };
            done += num_bytes;
            continue;
        }
        let in_to = match region::find(to as usize) {
            Some(_) => in_page(to as usize, len - done),
            None => region::len_outside(to as usize, len - done),
        };
        let num_bytes = in_page(from as usize, in_to);
        let from_page = PinnedPage::at(from as usize)?;
        if let Some(_to_page) = PinnedPage::try_at(to as usize) {
            // SAFETY: inside the caller's ranges and one page each, which are pinned if they are regions'.
            unsafe { copy_caught(to, from, num_bytes)? };
            done += num_bytes;
        } else {
            let mut bounce = [0; BOUNCE_BYTES];
            let num_bytes = num_bytes.min(BOUNCE_BYTES);
            // SAFETY: inside the caller's range and a page that is pinned.
            unsafe { copy_caught(bounce.as_mut_ptr(), from, num_bytes)? };
            drop(from_page);
            // SAFETY: the caller's promise.
            unsafe { copy_in(to, bounce.as_ptr(), num_bytes)? };
            done += num_bytes;
        }
    }
    Ok(())
}

/// The same from ordinary memory.
///
/// # Safety
/// As [`copy`].
unsafe fn copy_in(to: *mut u8, from: *const u8, len: usize) -> Result<()> {
    let mut done = 0;
    while done < len {
        let to = to.wrapping_add(done);
        if region::find(to as usize).is_none() {
            let num_bytes = region::len_outside(to as usize, len - done);
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy(from.wrapping_add(done), to, num_bytes) };
            done += num_bytes;
            continue;
        }
        let num_bytes = in_page(to as usize, len - done);
        let _page = PinnedPage::at(to as usize)?;
        // SAFETY: inside the caller's ranges; the page written is pinned.
        unsafe { copy_caught(to, from.wrapping_add(done), num_bytes)? };
        done += num_bytes;
    }
    Ok(())
}

/// Copies what is pinned. Even then its memory may turn out to be damaged.
///
/// # Safety
/// As `std::ptr::copy`.
unsafe fn copy_caught(to: *mut u8, from: *const u8, num_bytes: usize) -> Result<()> {
    // SAFETY: the caller's promise; a copy has nothing to clean up.
    unsafe { try_catch(|| std::ptr::copy(from, to, num_bytes)) }.map_err(Error::from)
}

/// Compares `len` bytes as memcmp does.
///
/// # Safety
/// Both ranges are readable, but their pages may be swapped out.
pub(crate) unsafe fn compare(a: *const u8, b: *const u8, len: usize) -> Result<Ordering> {
    let mut bounce = [0; BOUNCE_BYTES];
    let mut done = 0;
    while done < len {
        let (a, b) = (a.wrapping_add(done), b.wrapping_add(done));
        let (num_bytes, order) = if region::find(a as usize).is_none() {
            let num_bytes = region::len_outside(a as usize, len - done);
            // SAFETY: the caller's promise; so much of it is in ordinary memory.
            (num_bytes, unsafe { compare_with(a, b, num_bytes)? })
        } else {
            let num_bytes = (len - done).min(BOUNCE_BYTES);
            // SAFETY: the caller's promise.
            let order = unsafe {
                copy(bounce.as_mut_ptr(), a, num_bytes)?;
                compare_with(bounce.as_ptr(), b, num_bytes)?
            };
            (num_bytes, order)
        };
        if order != Ordering::Equal {
            return Ok(order);
        }
        done += num_bytes;
    }
    Ok(Ordering::Equal)
}

/// # Safety
/// As [`compare`]; `a` is in ordinary memory.
unsafe fn compare_with(a: *const u8, b: *const u8, len: usize) -> Result<Ordering> {
    let mut done = 0;
    while done < len {
        let (a, b) = (a.wrapping_add(done), b.wrapping_add(done));
        let num_bytes = in_page(b as usize, len - done);
        let _page = PinnedPage::at(b as usize)?;
        // SAFETY: inside the caller's ranges; the page of the region is pinned.
        let compare = || unsafe { std::slice::from_raw_parts(a, num_bytes).cmp(std::slice::from_raw_parts(b, num_bytes)) };
        // SAFETY: a comparison has nothing to clean up.
        let order = unsafe { try_catch(compare) }.map_err(Error::from)?;
        if order != Ordering::Equal {
            return Ok(order);
        }
        done += num_bytes;
    }
    Ok(Ordering::Equal)
}
