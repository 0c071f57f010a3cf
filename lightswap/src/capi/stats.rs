//! Statistics.

use super::instance::lsw_instance;
use libc::{c_char, c_void};
use std::ffi::CString;

/// Calls visit once for each counter; units are in the names, and docs/statistics.md says what they count. Stops nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_stats_visit(
    instance: *mut lsw_instance,
    visit: Option<extern "C" fn(ctx: *mut c_void, name: *const c_char, value: u64)>,
    ctx: *mut c_void,
) {
    // SAFETY: the caller vouches for the pointer; NULL is checked.
    let (Some(instance), Some(visit)) = (unsafe { instance.as_ref() }, visit) else { return };
    for (name, value) in instance.0.stats() {
        let name = CString::new(name).unwrap_or_default();
        visit(ctx, name.as_ptr(), value);
    }
}
