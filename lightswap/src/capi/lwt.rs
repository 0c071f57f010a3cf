//! Workers and their LWTs.

use super::constants::LSW_OK;
use super::error::{fail, null, status};
use super::instance::lsw_instance;
use crate::error::{Error, ErrorKind};
use crate::instance::WorkerHandle;
use crate::{lwt, worker};
use libc::{c_int, c_void, size_t};
use std::cell::RefCell;
use std::time::Duration;

thread_local! {
    static WORKER: RefCell<Option<WorkerHandle>> = const { RefCell::new(None) };
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
