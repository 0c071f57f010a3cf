//! Where swapped-out pages live.
//!
//! A backend is an array of page-sized slots. Requests go through the calling worker's [`IoQueue`]; those that need no I/O are done at once.
//! Regions own contiguous ranges of slots, page `i` of a region always in the same one: no slot table is needed, neighbouring pages are
//! neighbours in the backend, and a batch of victims from one span is written with few, large requests.

mod file;
mod memory;
mod url;

use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{IoQueue, Token};
use crate::size::{bytes_of, format_size, pages_in};
use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;

/// What became of a write request.
pub(crate) enum Write {
    /// The slots hold the pages.
    Done,
    /// They will when the token completes.
    Pending,
}

/// An array of slots. All methods are async-signal-safe; only `reserve` may block, when it has to allocate.
pub(crate) trait Backend: Send + Sync + Debug {
    /// Number of slots.
    fn num_slots(&self) -> usize;

    /// The file that each worker's queue registers.
    fn file(&self) -> Option<RawFd> {
        None
    }

    /// Where the content of a slot can be read without any I/O, until the slot is written again; `None`: it takes [`Self::start_read`].
    fn content(&self, _slot: usize) -> Option<*const u8> {
        None
    }

    /// Starts reading a slot into buffer number `buffer` of the worker, which is at `target`; done when [`Token::read`] of the buffer completes.
    fn start_read(&self, queue: &IoQueue, slot: usize, buffer: usize, target: *mut u8);

    /// Starts writing `num_pages` pages at `source` to the slots from `slot` on. The pages do not change until the write is done.
    fn write(&self, queue: &IoQueue, slot: usize, source: *const u8, num_pages: usize, token: Token) -> Write;

    /// Makes sure that the slots have room; cheap when they have. Reserved once, writing them cannot fail for lack of space.
    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()>;

    /// The content of the slots is not needed any more: a chance to give memory back.
    fn discard(&self, _slot: usize, _num_slots: usize) {}
}

/// Opens the backend that `url` describes; see `docs/backends.md` for the grammar.
pub(crate) fn open(url: &str) -> Result<Box<dyn Backend>> {
    let parsed = url::BackendUrl::parse(url)?;
    let backend: Box<dyn Backend> = match parsed.scheme.as_str() {
        "file" => Box::new(file::FileBackend::open(&parsed)?),
        "memory" => Box::new(memory::MemoryBackend::open(&parsed)?),
        other => {
            let message = format!("backend URL \"{url}\": unknown backend \"{other}\" (there are file: and memory:)");
            return Err(Error::new(ErrorKind::BackendUrl, message));
        }
    };
    Ok(backend)
}

/// Whole slots in a backend of `num_bytes`; refuses one without any.
fn slots_in(num_bytes: u64, url: &str) -> Result<usize> {
    match pages_in(usize::try_from(num_bytes).unwrap_or(usize::MAX)) {
        0 => Err(Error::new(ErrorKind::Backend, format!("backend \"{url}\": a size of {} holds no page", format_size(num_bytes)))),
        num_slots => Ok(num_slots),
    }
}

/// Byte offset of a slot.
fn offset_of(slot: usize) -> u64 {
    bytes_of(slot) as u64
}
