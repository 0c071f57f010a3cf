//! Copying and comparing bytes that may lie in regions, page by page: each page is pinned just while it is used, so its content cannot change under
//! an eviction, and one that cannot be read back is an error instead of a fault.

use crate::access;
use crate::error::Result;
use crate::region::{self, Page};
use crate::size::PAGE_SIZE;
use crate::swap_in;
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
    if region::find(from as usize).is_none() {
        // SAFETY: the caller's promise.
        return unsafe { copy_in(to, from, len) };
    }
    let mut done = 0;
    while done < len {
        let (to, from) = (to.wrapping_add(done), from.wrapping_add(done));
        let in_to = if region::find(to as usize).is_some() { in_page(to as usize, len - done) } else { len - done };
        let num_bytes = in_page(from as usize, in_to);
        let from_page = PinnedPage::at(from as usize)?;
        if let Some(_to_page) = PinnedPage::try_at(to as usize) {
            // SAFETY: inside the caller's ranges and one page each, which are pinned if they are regions'.
            unsafe { std::ptr::copy(from, to, num_bytes) };
            done += num_bytes;
        } else {
            let mut bounce = [0; BOUNCE_BYTES];
            let num_bytes = num_bytes.min(BOUNCE_BYTES);
            // SAFETY: inside the caller's range and a page that is pinned.
            unsafe { std::ptr::copy_nonoverlapping(from, bounce.as_mut_ptr(), num_bytes) };
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
        let num_bytes = if region::find(to as usize).is_some() { in_page(to as usize, len - done) } else { len - done };
        let _page = PinnedPage::at(to as usize)?;
        // SAFETY: inside the caller's ranges; the page written, if it is a region's, is pinned.
        unsafe { std::ptr::copy(from.wrapping_add(done), to, num_bytes) };
        done += num_bytes;
    }
    Ok(())
}

/// Compares `len` bytes as memcmp does.
///
/// # Safety
/// Both ranges are readable, but their pages may be swapped out.
pub(crate) unsafe fn compare(a: *const u8, b: *const u8, len: usize) -> Result<Ordering> {
    if region::find(a as usize).is_none() {
        // SAFETY: the caller's promise.
        return unsafe { compare_with(a, b, len) };
    }
    let mut bounce = [0; BOUNCE_BYTES];
    let mut done = 0;
    while done < len {
        let num_bytes = (len - done).min(BOUNCE_BYTES);
        // SAFETY: the caller's promise.
        let order = unsafe {
            copy(bounce.as_mut_ptr(), a.wrapping_add(done), num_bytes)?;
            compare_with(bounce.as_ptr(), b.wrapping_add(done), num_bytes)?
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
        let order = unsafe { std::slice::from_raw_parts(a, num_bytes).cmp(std::slice::from_raw_parts(b, num_bytes)) };
        if order != Ordering::Equal {
            return Ok(order);
        }
        done += num_bytes;
    }
    Ok(Ordering::Equal)
}
