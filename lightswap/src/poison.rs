//! For tests: memory errors without broken memory.

use crate::pager::ZERO_PAGE;
use crate::ranges::{pin, unpin};
use crate::region;
use crate::size::PAGE_SIZE;
use linux_raw_sys::general::{uffdio_poison, uffdio_range};
use std::io;

/// _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison), as linux/userfaultfd.h has it.
const UFFDIO_POISON: libc::c_ulong = 3 << 30 | (size_of::<uffdio_poison>() as libc::c_ulong) << 16 | 0xAA << 8 | 8;

/// Makes the memory of a page unusable, as a hardware memory error would: whoever accesses it gets SIGBUS, with BUS_MCEERR_AR if the kernel is built for
/// memory errors. The content is lost.
///
/// # Errors
/// That of the kernel, which must have UFFDIO_POISON (Linux 6.6): the page is zeroed then.
pub fn poison(address: *const u8) -> io::Result<()> {
    let found = region::find(address as usize).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let page = found.page_at(address as usize);
    pin(address, 1).map_err(io::Error::other)?;
    let range = uffdio_range { start: page.address() as u64, len: PAGE_SIZE as u64 };
    let mut request = uffdio_poison { range, mode: 0, updated: 0 };
    let uffd = &found.pager.uffd;
    // SAFETY: the page is the region's, pinned, and its content given up; the struct belongs to the request.
    let result = unsafe {
        libc::madvise(page.address() as *mut libc::c_void, PAGE_SIZE, libc::MADV_DONTNEED);
        libc::ioctl(uffd.as_raw_fd(), UFFDIO_POISON, &raw mut request)
    };
    let result = if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    if result.is_err() {
        // SAFETY: the source is a page of zeroes; the page is missing.
        let _ = unsafe { uffd.copy_page(page.address(), ZERO_PAGE.0.as_ptr()) };
    }
    unpin(address, 1).map_err(io::Error::other)?;
    result
}
