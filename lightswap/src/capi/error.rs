//! How a failure is reported: a status, and a sentence.

use super::constants::LSW_OK;
use crate::error::{Error, ErrorKind};
use crate::failure;
use libc::{c_char, c_int};
use std::cell::RefCell;
use std::ffi::CString;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

pub(super) fn status(result: crate::Result<()>) -> c_int {
    result.map_or_else(|error| fail(&error), |()| LSW_OK)
}

pub(super) fn fail(error: &Error) -> c_int {
    let text = CString::new(error.to_string().replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with_borrow_mut(|last| *last = text);
    failure::with_last(|last| last.set(error.failure().copied()));
    error.kind() as c_int
}

pub(super) fn null(what: &str) -> c_int {
    fail(&Error::new(ErrorKind::InvalidArgument, format!("{what} is NULL")))
}

/// A few words for a status. Never NULL; valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_status_text(status: c_int) -> *const c_char {
    static TEXTS: std::sync::OnceLock<Vec<CString>> = std::sync::OnceLock::new();
    let texts = TEXTS.get_or_init(|| ErrorKind::ALL.iter().map(|kind| CString::new(kind.text()).unwrap_or_default()).collect());
    let of_kind = ErrorKind::ALL.iter().position(|kind| *kind as c_int == status).map(|index| texts[index].as_c_str());
    of_kind.unwrap_or(if status == LSW_OK { c"success" } else { c"unknown status" }).as_ptr()
}

/// The sentence (what, cause, what to do) of this thread's last failed call. Never NULL; valid until this thread's next failure (so not in the same
/// expression as the call that fails). Of lsw_touch, lsw_pin, lsw_copy and lsw_compare it has all that lsw_last_failure tells.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|last| last.as_ptr())
}
