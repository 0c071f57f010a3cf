//! Pages whose content cannot be had: why, and the blocks that catch it.

use super::error::status;
use crate::failure::{self, SwapFailure};
use crate::ranges;
use crate::try_catch::{self, Context, jmp_buf};
use libc::{c_char, c_int, c_void, size_t};
use std::cell::Cell;
use std::mem::offset_of;

/// Why the content of a page could not be had. lsw_last_failure and LSW_CATCH give it.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_error {
    /// One of LSW_CAUSE_...
    cause: u32,
    /// The error code of the operating system; 0 if none belongs to the cause.
    errno_value: c_int,
    /// What was accessed; for a call such as lsw_touch, the first byte of the page.
    address: *mut c_void,
    /// First byte of the region.
    region: *mut c_void,
    /// Length of the region in bytes.
    region_len: size_t,
    /// URL of the backend; valid for ever.
    backend: *const c_char,
}

/// What a try block needs; see LSW_TRY. On the stack of the function that has the block. All fields are the library's.
#[repr(C)]
pub struct lsw_try {
    outer: *mut lsw_try,
    frame: size_t,
    mark: size_t,
    resume_at: size_t,
    state: u32,
    kind: u32,
    mxcsr: u32,
    x87_control: u32,
    error: lsw_error,
    env: jmp_buf,
}

impl std::fmt::Debug for lsw_try {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("lsw_try").field("outer", &self.outer).field("error", &self.error).finish_non_exhaustive()
    }
}

const _: () = {
    assert!(size_of::<Context>() == offset_of!(lsw_try, env) && offset_of!(Context, failure) == offset_of!(lsw_try, error));
    assert!(size_of::<SwapFailure>() == size_of::<lsw_error>() && align_of::<SwapFailure>() == align_of::<lsw_error>());
};

/// Why this LWT's or thread's last failed call could not have a page; false, and nothing changed, if it failed for another reason, or none has failed.
/// That goes for calls that return a status, and for those that do as a system call does, such as lsw_read: -1 and EIO is a page that could not be had if this says so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_last_failure(error: *mut lsw_error) -> bool {
    let Some(failure) = failure::with_last(Cell::get).filter(|_| !error.is_null()) else { return false };
    // SAFETY: not NULL, and the caller vouches for a writable target; the layouts are the same.
    unsafe { error.cast::<SwapFailure>().write(failure) };
    true
}

/// Gives up what the pages hold, whatever state they are in: they read as zeroes again. It is how a page whose content was lost is used again. Waits for those who
/// bring the pages in or evict them. LSW_ERR_INVALID_ARGUMENT unless the range is of whole pages (4096 bytes); LSW_ERR_BUSY while one is pinned or accessed.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_discard(addr: *const c_void, len: size_t) -> c_int {
    status(ranges::discard(addr.cast(), len))
}

/// For LSW_TRY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_try_begin(block: *mut lsw_try, frame: *const c_void) {
    // SAFETY: LSW_TRY calls it in the function that `block` is a variable of, and fills `env` next.
    unsafe { try_catch::begin(block.cast(), frame as usize) };
}

/// For LSW_TRY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_try_is_open(block: *const lsw_try) -> bool {
    // SAFETY: begun by LSW_TRY.
    unsafe { try_catch::is_open(block.cast()) }
}

/// For LSW_CATCH.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_try_caught(block: *const lsw_try) -> *const lsw_error {
    // SAFETY: LSW_CATCH calls it after something was thrown; the layouts are the same.
    unsafe { try_catch::caught(block.cast()).cast() }
}

/// For LSW_TRY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_try_end(block: *mut lsw_try) {
    // SAFETY: begun by LSW_TRY.
    unsafe { try_catch::end(block.cast()) };
}
