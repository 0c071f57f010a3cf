//! The C ABI; `include/lightswap.h` is generated from this file (tests/header.rs).
//!
//! Functions return LSW_OK (0) or a negative status, and leave a sentence about a failure for `lsw_last_error`.
#![allow(non_camel_case_types, reason = "the names are those of the C header")]
#![allow(clippy::missing_safety_doc, reason = "every pointer must be valid for its use, as in C; the header says what for")]

use crate::config::{Notifier, Waiting};
use crate::error::{Error, ErrorKind};
use crate::instance::{Lightswap, Region, WorkerHandle};
use crate::region::{self, Contract};
use crate::sync::{Condvar, RawMutex};
use crate::{instance, lwt, parking, size, syscalls, worker};
use libc::{c_char, c_int, c_void, iovec, msghdr, size_t, ssize_t};
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Success; every failure is negative.
pub const LSW_OK: c_int = 0;
/// An argument is out of range.
pub const LSW_ERR_INVALID_ARGUMENT: c_int = -1;
/// The backend URL does not parse.
pub const LSW_ERR_BACKEND_URL: c_int = -2;
/// The backend cannot be opened, or failed.
pub const LSW_ERR_BACKEND: c_int = -3;
/// The kernel offers no suitable userfaultfd.
pub const LSW_ERR_NO_USERFAULTFD: c_int = -4;
/// The kernel offers no suitable io_uring.
pub const LSW_ERR_NO_IO_URING: c_int = -5;
/// The machine gave no memory or address space.
pub const LSW_ERR_NO_MEMORY: c_int = -6;
/// The backend has no room left (the disk is full, or writes fail).
pub const LSW_ERR_NO_SPACE: c_int = -7;
/// More pages would be pinned than local memory can spare.
pub const LSW_ERR_PIN_LIMIT: c_int = -8;
/// The range is not wholly inside one region.
pub const LSW_ERR_NOT_IN_REGION: c_int = -9;
/// The calling thread is not a worker.
pub const LSW_ERR_NOT_A_WORKER: c_int = -10;
/// The object is in use.
pub const LSW_ERR_BUSY: c_int = -11;
/// A page's content could not be read back.
pub const LSW_ERR_SWAP_IN: c_int = -12;

/// Any code may write any page of the region at any time.
pub const LSW_TRANSPARENT: c_int = 0;
/// Code pins pages of the region before it writes them.
pub const LSW_COOPERATIVE: c_int = 1;

/// Faults raise a signal in the faulting thread; only its LWT waits. The default.
pub const LSW_NOTIFIER_SIGBUS: u32 = 0;
/// For comparison: classic userfaultfd. The faulting thread sleeps in the kernel, and one thread of the instance does all paging.
pub const LSW_NOTIFIER_MONITOR: u32 = 1;

/// An LWT that waits for a page is suspended, and its worker runs the others. The default.
pub const LSW_WAITING_SUSPEND: u32 = 0;
/// For comparison: the worker polls its I/O queue until the page is in, and one thread of the instance does all reclaim. With LSW_NOTIFIER_SIGBUS only.
pub const LSW_WAITING_POLL: u32 = 1;

// Numbers above, as the header must show them; the same as in Rust.
const _: () = {
    assert!(LSW_ERR_INVALID_ARGUMENT == ErrorKind::InvalidArgument as c_int);
    assert!(LSW_ERR_BACKEND_URL == ErrorKind::BackendUrl as c_int);
    assert!(LSW_ERR_BACKEND == ErrorKind::Backend as c_int);
    assert!(LSW_ERR_NO_USERFAULTFD == ErrorKind::NoUserfaultfd as c_int);
    assert!(LSW_ERR_NO_IO_URING == ErrorKind::NoIoUring as c_int);
    assert!(LSW_ERR_NO_MEMORY == ErrorKind::NoMemory as c_int);
    assert!(LSW_ERR_NO_SPACE == ErrorKind::NoSpace as c_int);
    assert!(LSW_ERR_PIN_LIMIT == ErrorKind::PinLimit as c_int);
    assert!(LSW_ERR_NOT_IN_REGION == ErrorKind::NotInRegion as c_int);
    assert!(LSW_ERR_NOT_A_WORKER == ErrorKind::NotAWorker as c_int);
    assert!(LSW_ERR_BUSY == ErrorKind::Busy as c_int);
    assert!(LSW_ERR_SWAP_IN == ErrorKind::SwapIn as c_int);
    assert!(LSW_NOTIFIER_SIGBUS == Notifier::Sigbus as u32 && LSW_NOTIFIER_MONITOR == Notifier::Monitor as u32);
    assert!(LSW_WAITING_SUSPEND == Waiting::Suspend as u32 && LSW_WAITING_POLL == Waiting::Poll as u32);
    assert!(LSW_TRANSPARENT == Contract::Transparent as c_int && LSW_COOPERATIVE == Contract::Cooperative as c_int);
};

/// One budget of local memory, one backend, any number of regions and workers.
#[derive(Debug)]
pub struct lsw_instance(Lightswap);

/// A range of virtual memory whose pages are swapped.
#[derive(Debug)]
pub struct lsw_region(Region);

/// How an instance is set up. Zero-initialise it, so that fields of later versions have their defaults.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_config {
    /// Bytes of DRAM that resident pages and I/O buffers together may take; a multiple of the page size.
    local_memory_bytes: u64,
    /// Where swapped-out pages live: "file:/path?size=8GiB" or "memory:?size=8GiB".
    backend_url: *const c_char,
    /// Most threads that will be workers at a time; 0 means 1.
    max_workers: u32,
    /// Usable bytes of an LWT's stack; 0 means 64 KiB.
    lwt_stack_bytes: u32,
    /// How a faulting access reaches the library: LSW_NOTIFIER_SIGBUS (0) or LSW_NOTIFIER_MONITOR.
    notifier: u32,
    /// What a worker does while a page is on its way: LSW_WAITING_SUSPEND (0) or LSW_WAITING_POLL.
    waiting: u32,
    /// Not 0: times the steps of every swap-in and evictions, which lsw_stats_visit then shows as step_...; takes some readings of the clock.
    step_times: u32,
}

/// An LWT-aware mutex. All-zero is an unlocked one.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_mutex {
    word: u32,
}

/// A condition variable for lsw_mutex. All-zero is a valid one.
#[derive(Debug)]
#[repr(C)]
pub struct lsw_cond {
    sequence: u32,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
    static WORKER: RefCell<Option<WorkerHandle>> = const { RefCell::new(None) };
}

fn status(result: crate::Result<()>) -> c_int {
    result.map_or_else(|error| fail(&error), |()| LSW_OK)
}

fn fail(error: &Error) -> c_int {
    let text = CString::new(error.to_string().replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with_borrow_mut(|last| *last = text);
    error.kind() as c_int
}

fn null(what: &str) -> c_int {
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

/// The sentence (what, cause, what to do) of this thread's last failed call. Never NULL; valid until this thread's next failure.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|last| last.as_ptr())
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
    let no_such = |what: &str, value: u32| fail(&Error::new(ErrorKind::InvalidArgument, format!("{value} is no {what}: 0 and 1 are")));
    let notifier = match config.notifier {
        LSW_NOTIFIER_SIGBUS => Notifier::Sigbus,
        LSW_NOTIFIER_MONITOR => Notifier::Monitor,
        other => return no_such("notifier", other),
    };
    let waiting = match config.waiting {
        LSW_WAITING_SUSPEND => Waiting::Suspend,
        LSW_WAITING_POLL => Waiting::Poll,
        other => return no_such("way of waiting", other),
    };
    let mut builder = Lightswap::builder().local_memory(config.local_memory_bytes).backend(url).max_workers(config.max_workers.max(1) as usize);
    builder = builder.notifier(notifier).waiting(waiting).step_times(config.step_times != 0);
    if config.lwt_stack_bytes > 0 {
        builder = builder.lwt_stack(config.lwt_stack_bytes as usize);
    }
    // SAFETY: not NULL, and the caller vouches for a writable target.
    status(builder.open().map(|opened| unsafe { *instance = Box::into_raw(Box::new(lsw_instance(opened))) }))
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
    status(created.map(|created| unsafe { *region = Box::into_raw(Box::new(lsw_region(created))) }))
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
    status(instance::touch(addr.cast(), len))
}

/// Touches the pages and keeps them resident until the same range is unpinned. Pins count. LSW_ERR_PIN_LIMIT beyond half of local memory or 128 MiB.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_pin(addr: *const c_void, len: size_t) -> c_int {
    status(instance::pin(addr.cast(), len))
}

/// Undoes one lsw_pin of the same range.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_unpin(addr: *const c_void, len: size_t) -> c_int {
    status(instance::unpin(addr.cast(), len))
}

/// Starts reading the pages that are swapped out, without waiting; a hint.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_prefetch(addr: *const c_void, len: size_t) -> c_int {
    status(instance::prefetch(addr.cast(), len))
}

/// Makes the pages the first candidates for eviction; a hint.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_advise_cold(addr: *const c_void, len: size_t) -> c_int {
    status(instance::advise_cold(addr.cast(), len))
}

/// Whether all pages of the range are resident; false outside regions.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_is_resident(addr: *const c_void, len: size_t) -> bool {
    instance::is_resident(addr.cast(), len)
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
    status(instance::reserve(addr.cast(), len))
}

/// Makes the calling thread a worker: a scheduler of LWTs with an I/O queue. A worker holds two descriptors, an instance seven with its own thread's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_worker_enter(instance: *mut lsw_instance) -> c_int {
    // SAFETY: the caller vouches for the pointer; NULL is checked.
    let Some(instance) = (unsafe { instance.as_ref() }) else { return null("instance") };
    status(instance.0.enter_worker().map(|handle| WORKER.with_borrow_mut(|worker| *worker = Some(handle))))
}

/// The calling thread stops being a worker. LSW_ERR_BUSY while LWTs of it are alive.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_worker_leave() -> c_int {
    WORKER.with_borrow_mut(|worker| match worker {
        None => not_a_worker(),
        Some(handle) if handle.num_lwts() > 0 => {
            fail(&Error::new(ErrorKind::Busy, format!("{} LWTs of this worker have not ended", handle.num_lwts())))
        }
        Some(_) => {
            *worker = None;
            LSW_OK
        }
    })
}

fn not_a_worker() -> c_int {
    fail(&Error::new(ErrorKind::NotAWorker, "the calling thread is not a worker: call lsw_worker_enter first"))
}

/// A descriptor that becomes readable when a completion or another thread gives lsw_worker_poll something to do, for event loops. lsw_worker_poll clears it and
/// submits what LWTs asked for: call it after each turn of the event loop, before that blocks. Negative: a status.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_worker_fd() -> c_int {
    worker::current().map_or_else(not_a_worker, |worker| worker.fd().unwrap_or_else(|error| fail(&error)))
}

/// Reaps completions, runs every LWT that is ready once, reclaims ahead of demand; never blocks. Returns how many LWTs are ready again (then do not
/// block before the next call), or a negative status. From the worker's own stack only.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_worker_poll() -> c_int {
    match worker::current() {
        Some(worker) if !lwt::on_lwt() => worker.turn(false).min(c_int::MAX as usize) as c_int,
        _ => not_a_worker(),
    }
}

/// Runs the scheduler until every LWT of this worker has ended.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_worker_run() -> c_int {
    match worker::current() {
        Some(worker) if !lwt::on_lwt() => {
            worker.run();
            LSW_OK
        }
        _ => not_a_worker(),
    }
}

/// Starts an LWT. From the worker's own stack it runs at once, until it ends (returns 0) or suspends (returns 1); from an LWT it is queued (returns 1).
#[unsafe(no_mangle)]
pub extern "C" fn lsw_lwt_start(entry: Option<extern "C" fn(arg: *mut c_void)>, arg: *mut c_void) -> c_int {
    let Some(entry) = entry else { return null("entry") };
    match lwt::start(move || entry(arg)) {
        Ok(has_ended) => c_int::from(!has_ended),
        Err(error) => fail(&error),
    }
}

/// Whether the caller runs on an LWT.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_on_lwt() -> bool {
    lwt::on_lwt()
}

/// LWTs of this worker that have not ended.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_num_lwts() -> size_t {
    worker::current().map_or(0, |worker| worker.num_lwts())
}

/// Lets the other LWTs of this worker run; on an ordinary thread, other threads.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_yield() {
    lwt::yield_now();
}

/// Suspends the LWT, or blocks the thread, for a time.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_sleep_us(duration_us: u64) {
    lwt::sleep(Duration::from_micros(duration_us));
}

/// Locks; suspends the LWT or blocks the thread as long as others hold the lock. Not recursive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_mutex_lock(mutex: *mut lsw_mutex) {
    // SAFETY: RawMutex is a transparent u32, as lsw_mutex is; the caller vouches for the pointer.
    unsafe { &*mutex.cast::<RawMutex>() }.lock();
}

/// Locks if that needs no waiting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_mutex_trylock(mutex: *mut lsw_mutex) -> bool {
    // SAFETY: as lsw_mutex_lock.
    unsafe { &*mutex.cast::<RawMutex>() }.try_lock()
}

/// Unlocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_mutex_unlock(mutex: *mut lsw_mutex) {
    // SAFETY: as lsw_mutex_lock.
    unsafe { &*mutex.cast::<RawMutex>() }.unlock();
}

/// Unlocks, waits for a signal, and locks again. May return without a signal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_cond_wait(cond: *mut lsw_cond, mutex: *mut lsw_mutex) {
    // SAFETY: Condvar and RawMutex are transparent u32s; the caller vouches for the pointers.
    unsafe { (*cond.cast::<Condvar>()).wait_raw(&*mutex.cast::<RawMutex>()) };
}

/// Wakes one waiter, if there is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_cond_signal(cond: *mut lsw_cond) {
    // SAFETY: as lsw_cond_wait.
    unsafe { &*cond.cast::<Condvar>() }.notify_one();
}

/// Wakes all waiters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_cond_broadcast(cond: *mut lsw_cond) {
    // SAFETY: as lsw_cond_wait.
    unsafe { &*cond.cast::<Condvar>() }.notify_all();
}

/// The primitive beneath the locks: suspends the LWT (or blocks the thread) until an unpark of the same address. still_needed is called after the
/// caller was queued, under an internal spin lock: false means do not wait. It must not suspend, park, unpark or touch a region.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_park(key: *const c_void, still_needed: Option<extern "C" fn(arg: *mut c_void) -> bool>, arg: *mut c_void) {
    parking::park(key as usize, || still_needed.is_none_or(|still_needed| still_needed(arg)));
}

/// Wakes the longest waiter of an address; a full fence and one load when nobody waits. What the waiter's still_needed looks at must be changed before.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_unpark_one(key: *const c_void) {
    parking::unpark_one(key as usize);
}

/// Wakes all waiters of an address.
#[unsafe(no_mangle)]
pub extern "C" fn lsw_unpark_all(key: *const c_void) {
    parking::unpark_all(key as usize);
}

/// As read(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's promise is that of read(2).
    unsafe { syscalls::read(fd, buf, len) }
}

/// As write(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's promise is that of write(2).
    unsafe { syscalls::write(fd, buf, len) }
}

/// As readv(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_readv(fd: c_int, iov: *const iovec, iovcnt: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of readv(2).
    unsafe { syscalls::readv(fd, iov, iovcnt) }
}

/// As writev(2), but never EFAULT for a missing page of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_writev(fd: c_int, iov: *const iovec, iovcnt: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of writev(2).
    unsafe { syscalls::writev(fd, iov, iovcnt) }
}

/// As recvmsg(2), but never EFAULT for a missing page of a region. Name and control data must be in ordinary memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of recvmsg(2).
    unsafe { syscalls::recvmsg(fd, msg, flags) }
}

/// As sendmsg(2), but never EFAULT for a missing page of a region. Name and control data must be in ordinary memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise is that of sendmsg(2).
    unsafe { syscalls::sendmsg(fd, msg, flags) }
}

/// Calls visit once for each counter; units are in the names. Stops nobody.
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
