//! Opening and closing an instance.

use super::constants::{
    LSW_FAULT_RETURN_KERNEL, LSW_FAULT_RETURN_USER, LSW_NOTIFIER_EBPF, LSW_NOTIFIER_MONITOR, LSW_NOTIFIER_SIGBUS, LSW_OK, LSW_WAITING_POLL,
    LSW_WAITING_SUSPEND,
};
use super::error::{fail, null, status};
use crate::Lightswap;
use crate::config::{FaultReturn, Notifier, Waiting};
use crate::error::{Error, ErrorKind};
use crate::size;
use crate::snapshot;
use libc::{c_char, c_int};
use std::ffi::CStr;
use std::time::Duration;

/// One budget of local memory, one backend, any number of regions and workers.
#[derive(Debug)]
pub struct lsw_instance(pub(super) Lightswap);

/// How an instance is set up. Zero-initialise it, so that fields of later versions have their defaults.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_config {
    /// Bytes of DRAM that resident pages and I/O buffers together may take; a multiple of the page size.
    local_memory_bytes: u64,
    /// Where swapped-out pages live: "file:/path?size=8GiB" or "memory:?size=8GiB"; in tests "faulty(read%0.01=EIO):memory:?size=8GiB". See docs/backends.md.
    backend_url: *const c_char,
    /// Most threads that will be workers at a time; 0 means 1.
    max_workers: u32,
    /// Usable bytes of an LWT's stack; 0 means 64 KiB.
    lwt_stack_bytes: u32,
    /// How a faulting access reaches the library: LSW_NOTIFIER_SIGBUS (0), LSW_NOTIFIER_MONITOR or LSW_NOTIFIER_EBPF.
    notifier: u32,
    /// What a worker does while a page is on its way: LSW_WAITING_SUSPEND (0) or LSW_WAITING_POLL.
    waiting: u32,
    /// Not 0: times the steps of every swap-in and evictions, which lsw_stats_visit then shows as step_...; takes some readings of the clock.
    step_times: u32,
    /// Milliseconds that a request to the backend may take, after which a read fails with LSW_CAUSE_TIMEOUT; 0 means 30,000.
    io_timeout_ms: u32,
    /// Not 0: children of fork() can read all pages of regions, swapped-out ones included, as they were at the fork; each page takes two slots of the backend then.
    snapshots: u32,
    /// How the handler of a fault goes back to the access: LSW_FAULT_RETURN_USER (0) or LSW_FAULT_RETURN_KERNEL.
    fault_return: u32,
}

/// Parses "8GiB", "512m" or "4096" into bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_parse_size(text: *const c_char, bytes: *mut u64) -> c_int {
    if text.is_null() || bytes.is_null() {
        return null("text or bytes");
    }
    // SAFETY: not NULL, and the caller vouches for a terminated string and a writable target.
    let parsed = size::parse_size(unsafe { CStr::from_ptr(text) }.to_string_lossy().as_ref());
    // SAFETY: as above.
    status(parsed.map(|value| unsafe { *bytes = value }))
}

/// Opens an instance: backend, userfaultfd, and the thread that serves faults of ordinary threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_open(config: *const lsw_config, instance: *mut *mut lsw_instance) -> c_int {
    // SAFETY: the caller vouches for the pointers; NULL is checked.
    let Some(config) = (unsafe { config.as_ref() }) else { return null("config") };
    if config.backend_url.is_null() || instance.is_null() {
        return null("backend_url or instance");
    }
    // SAFETY: not NULL, and the caller vouches for a terminated string.
    let url = unsafe { CStr::from_ptr(config.backend_url) };
    let Ok(url) = url.to_str() else {
        return fail(&Error::new(ErrorKind::BackendUrl, "the backend URL is not UTF-8"));
    };
    let no_such = |what: &str, value: u32, are: &str| fail(&Error::new(ErrorKind::InvalidArgument, format!("{value} is no {what}: {are} are")));
    let notifier = match config.notifier {
        LSW_NOTIFIER_SIGBUS => Notifier::Sigbus,
        LSW_NOTIFIER_MONITOR => Notifier::Monitor,
        LSW_NOTIFIER_EBPF => Notifier::Ebpf,
        other => return no_such("notifier", other, "0 to 2"),
    };
    let waiting = match config.waiting {
        LSW_WAITING_SUSPEND => Waiting::Suspend,
        LSW_WAITING_POLL => Waiting::Poll,
        other => return no_such("way of waiting", other, "0 and 1"),
    };
    let fault_return = match config.fault_return {
        LSW_FAULT_RETURN_USER => FaultReturn::User,
        LSW_FAULT_RETURN_KERNEL => FaultReturn::Kernel,
        other => return no_such("way back from a fault", other, "0 and 1"),
    };
    let mut builder = Lightswap::builder().local_memory(config.local_memory_bytes).backend(url).max_workers(config.max_workers.max(1) as usize);
    builder =
        builder.notifier(notifier).waiting(waiting).step_times(config.step_times != 0).snapshots(config.snapshots != 0).fault_return(fault_return);
    if config.lwt_stack_bytes > 0 {
        builder = builder.lwt_stack(config.lwt_stack_bytes as usize);
    }
    if config.io_timeout_ms > 0 {
        builder = builder.io_timeout(Duration::from_millis(config.io_timeout_ms.into()));
    }
    // SAFETY: not NULL, and the caller vouches for a writable target.
    status(builder.open().map(|opened| unsafe { *instance = Box::into_raw(Box::new(lsw_instance(opened))) }))
}

/// Bytes of the largest region that can be made now: all that the backend has room for, or with snapshots half of it; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_room_bytes(instance: *const lsw_instance) -> u64 {
    // SAFETY: NULL, or the caller vouches for it.
    unsafe { instance.as_ref() }.map_or(0, |instance| instance.0.room_bytes())
}

/// Whether this process is a child of fork() that can read all pages of an inherited region.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_in_snapshot() -> bool {
    snapshot::in_snapshot()
}

/// Gives the instance more or less local memory while it runs; a multiple of the page size. More can be used at once; less is reached by and by, as pages are evicted in the
/// background. Nothing is changed, and the error says why, if it is too small: LSW_ERR_PIN_LIMIT for the pages that are pinned (half of it may be), or
/// LSW_ERR_INVALID_ARGUMENT for the I/O buffers, which stay as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_set_local_memory(instance: *mut lsw_instance, bytes: u64) -> c_int {
    // SAFETY: the caller vouches for the pointer; NULL is checked.
    let Some(instance) = (unsafe { instance.as_ref() }) else { return null("instance") };
    status(instance.0.set_local_memory(bytes))
}

/// Closes an instance. It lives on until its last region is destroyed and its last worker has left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_close(instance: *mut lsw_instance) -> c_int {
    if instance.is_null() {
        return null("instance");
    }
    // SAFETY: made by lsw_open, and the caller gives it up.
    drop(unsafe { Box::from_raw(instance) });
    LSW_OK
}
