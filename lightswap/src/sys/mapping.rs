//! An owned anonymous memory mapping.

use crate::error::{Error, ErrorKind, Result};
use crate::size::{PAGE_SIZE, format_size, round_up};
use std::ffi::CStr;
use std::ptr::NonNull;

/// Anonymous private memory, zero at first, committed lazily, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory owned by this value; users synchronise their accesses to it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (a multiple of the page size, not 0) whose base is a multiple of `align` (a power of two of at least a page).
    pub(crate) fn new(len: usize, align: usize) -> Result<Self> {
        debug_assert!(len > 0 && len.is_multiple_of(PAGE_SIZE) && align.is_power_of_two() && align >= PAGE_SIZE);
        let failed = || Error::os(ErrorKind::NoMemory, format!("cannot map {} of address space", format_size(len as u64)));
        let padded = len.checked_add(align - PAGE_SIZE).ok_or_else(failed)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        let raw = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                padded,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return Err(failed());
        }
        let start = raw as usize;
        let base = round_up(start, align).unwrap_or(start);
        // SAFETY: both ranges lie inside the mapping just made and outside [base, base + len).
        unsafe {
            if base > start {
                libc::munmap(raw, base - start);
            }
            if start + padded > base + len {
                libc::munmap((base + len) as *mut _, start + padded - base - len);
            }
        }
        Ok(Self { base: NonNull::new(base as *mut u8).expect("mmap returned null"), len })
    }

    /// First byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Applies an madvise flag to the whole mapping; the flag must not discard contents. Unsupported flags are ignored: they are hints.
    pub(crate) fn advise(&self, advice: i32) {
        // SAFETY: the range is ours; callers pass hints only.
        unsafe { libc::madvise(self.base().cast(), self.len, advice) };
    }

    /// Names it in `/proc/PID/maps`, for people; kernels without CONFIG_ANON_VMA_NAME refuse, which does not matter.
    pub(crate) fn name(&self, name: &'static CStr) {
        // SAFETY: the range is ours, the kernel copies the name, and nothing else changes.
        unsafe { libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, self.base(), self.len, name.as_ptr()) };
    }

    /// Gives the memory of a range back to the system; it reads as zeroes afterwards.
    pub(crate) fn discard(&self, offset: usize, len: usize) {
        debug_assert!(offset + len <= self.len);
        // SAFETY: the range is ours; the caller gives its content up.
        unsafe { libc::madvise(self.base().add(offset).cast(), len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping and nobody uses it any more.
        unsafe { libc::munmap(self.base().cast(), self.len) };
    }
}
