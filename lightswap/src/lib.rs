//! Lightswap: memory bigger than DRAM for in-memory servers, paged in user space.
//!
//! A [`Region`] is ordinary memory to the program; at most the instance's *local memory* of it is in DRAM, the rest lives in a *backend* such as a file on
//! an SSD. An access to a page that is not there raises SIGBUS in the accessing thread; Lightswap's handler reads the page with io_uring and lets the access
//! go on. On a lightweight thread ([LWT](lwt)) only that LWT waits: its *worker* runs the others meanwhile. A program that knows what it will
//! use asks first ([`touch`], [`pin`]) and saves the signal.
//!
//! ```
//! # fn main() -> lightswap::Result<()> {
//! use lightswap::{Contract, Lightswap};
//! let swap = Lightswap::builder().local_memory(1 << 20).backend("memory:?size=64MiB").open()?;
//! let region = swap.create_region(16 << 20, Contract::Transparent)?;
//! let bytes = region.as_ptr();
//! for offset in (0..region.len()).step_by(4096) {
//!     // SAFETY: inside the region, and no other thread uses it.
//!     unsafe { bytes.add(offset).write(7) };
//! }
//! assert!(region.resident_bytes() <= 1 << 20);
//! # Ok(())
//! # }
//! ```
//!
//! # Rules for programs
//! * SIGBUS must not be blocked in a thread that touches a region, and its handler must not be replaced after an instance was opened.
//! * The kernel does not fault pages in for system calls: pass region memory through [`syscalls`]. (Pinning it is enough for calls that only read it; a
//!   page of a transparent region may be write-protected for a moment even while it is pinned.)
//! * LWTs of a worker share its thread: thread-local storage, and locks that the thread holds. Code that touches a region under a lock needs [`sync`].
//! * Handlers of other signals must not touch region memory.
//! * Any access to a region may run other LWTs of the worker. So what LWTs share is not read before such an access and written after it:
//!   `total += array[i]` loses what others add.
//! * An access to a page whose content cannot be had (the backend failed, memory is damaged) ends the process with a message, unless it is made in a block of
//!   [`try_catch`]. Explicit requests ([`touch`], [`pin`], [`copy`]) return it as an error.
//! * A child of fork() may read pages that were resident; a missing one ends the child with a message. With [`Builder::snapshots`] it may read all that the regions held at
//!   the fork ([`in_snapshot`] tells): its parent reads for it, and must live on. One such child at a time; a fork while there is one, or one of the child's own, gets a
//!   child as without snapshots. The child may write its pages, too: those it then keeps, while of what it only reads it keeps a bounded number of pages. It is no worker and
//!   has no LWTs; one that was forked on an LWT must end by `_exit` or exec. A page that cannot be had is an error or is thrown, as ever, but without a block it ends the
//!   child with exit code 1. It cannot discard. What other threads change while one forks, the child may see or not, page by page, as with any memory.
//!
//! # Data flow
//! fault ([`notifier`]) or touch ([`access`]) → pager ([`swap_in`], [`page_table`], [`hand`], [`evict`]) → [`backend`] → completion
//! ([`io_queue`], [`worker`]) → wake-up ([`parking`], [`lwt`]).
#![deny(missing_docs)]
#![allow(rustdoc::private_intra_doc_links, reason = "the map above is for readers of the source, too")]
#![cfg_attr(loom, allow(dead_code, unused_imports))]
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("Lightswap runs on Linux on x86-64 only");

mod access;
mod backend;
mod budget;
mod buffers;
#[doc(hidden)]
pub mod capi;
mod config;
mod copies;
mod discard;
mod error;
mod evict;
mod failure;
mod fault_table;
mod fork;
mod hand;
pub mod heap;
mod instance;
mod io_queue;
pub mod lwt;
mod notifier;
mod page_table;
mod pager;
mod parking;
mod poison;
mod ranges;
#[doc(hidden)]
pub mod raw_backend;
mod region;
mod residency;
mod shrink;
mod size;
mod slot_runs;
mod snapshot;
mod stack;
mod stats;
mod swap_in;
pub mod sync;
mod sys;
pub mod syscalls;
#[cfg(feature = "ebpf")]
pub mod tracer;
mod try_catch;
mod worker;

pub use config::{FaultReturn, Notifier, Waiting};
pub use error::{Error, ErrorKind, Result};
pub use failure::{Cause, SwapFailure};
pub use heap::Heap;
pub use instance::{Builder, Lightswap, Region, WorkerHandle};
#[doc(hidden)]
pub use poison::poison;
pub use ranges::{advise_cold, compare, copy, discard, is_resident, pin, pin_resident, prefetch, reserve, touch, unpin};
pub use region::Contract;
pub use size::{PAGE_SIZE, format_size, parse_size};
pub use snapshot::in_snapshot;
pub use try_catch::try_catch;

/// For measurements: the monotonic time (ns) of the fault handler's first instruction at the last fault of the calling thread; with [`Notifier::Monitor`], of
/// the pager thread's reading of the last fault of the process.
#[doc(hidden)]
pub fn last_notification_ns() -> u64 {
    notifier::last_notification_ns()
}

/// For tests of the parsers: whether a backend URL parses, as far as that can be said without opening anything.
///
/// # Errors
/// [`ErrorKind::BackendUrl`].
#[doc(hidden)]
pub fn check_backend_url(url: &str) -> Result<()> {
    backend::check(url)
}
