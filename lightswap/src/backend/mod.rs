//! Where swapped-out pages live.
//!
//! A backend is an array of page-sized slots. Requests go through the calling worker's [`IoQueue`]; those that need no I/O are done at once.
//! Regions own contiguous ranges of slots, page `i` of a region always in the same one: no slot table is needed, neighbouring pages are
//! neighbours in the backend, and a batch of victims from one span is written with few, large requests.

#[cfg_attr(not(test), expect(dead_code, reason = "no backend uses it yet"))]
mod compressed;
mod faulty;
mod file;
mod mark;
mod memory;
mod schedule;
mod url;

use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{IoQueue, Token};
use crate::size::{bytes_of, format_size, pages_in};
use faulty::FaultyBackend;
use schedule::Schedule;
use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use url::BackendUrl;

/// What became of a write request.
pub(crate) enum Write {
    /// The slots hold the pages.
    Done,
    /// They will when the token completes.
    Pending,
    /// They do not, and nothing completes: the memory of a page is damaged.
    Failed,
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

    /// The same with a token that a backend around this one has marked.
    fn start_marked_read(&self, queue: &IoQueue, slot: usize, token: Token, target: *mut u8);

    /// Starts writing `num_pages` pages at `source` to the slots from `slot` on. The pages do not change until the write is done.
    fn write(&self, queue: &IoQueue, slot: usize, source: *const u8, num_pages: usize, token: Token) -> Write {
        self.write_bytes(queue, slot, source, bytes_of(num_pages), token)
    }

    /// The same for bytes, which may end within a page.
    fn write_bytes(&self, queue: &IoQueue, slot: usize, source: *const u8, num_bytes: usize, token: Token) -> Write;

    /// What the completion of an I/O whose token this backend has marked comes to, from the `result` of its request; `None`: it will complete once
    /// more. Of a read, `target` is the page read.
    fn settle(&self, _queue: &IoQueue, _token: Token, result: i32, _target: Option<*mut u8>) -> Option<i32> {
        Some(result)
    }

    /// Makes sure that the slots have room; cheap when they have. Reserved once, writing them cannot fail for lack of space.
    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()>;

    /// The content of the slots is not needed any more: a chance to give memory back.
    fn discard(&self, _slot: usize, _num_slots: usize) {}

    /// Counters of its own, for the instance's statistics.
    fn stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Ends all faults that are injected.
    fn stop_faults(&self) {}
}

/// A URL taken apart.
struct Parsed {
    /// Of the `faulty(...)` around the rest.
    schedule: Option<Schedule>,
    rest: BackendUrl,
}

impl Parsed {
    fn of(url: &str) -> Result<Self> {
        let (schedule, rest) = match faulty::split(url)? {
            Some((schedule, rest)) => (Some(schedule), rest),
            None => (None, url),
        };
        Ok(Self { schedule, rest: BackendUrl::parse(rest)? })
    }
}

/// Opens the backend that `url` describes; see `docs/backends.md` for the grammar.
pub(crate) fn open(url: &str) -> Result<Box<dyn Backend>> {
    let Parsed { schedule, rest } = Parsed::of(url)?;
    let backend: Box<dyn Backend> = match rest.scheme.as_str() {
        "file" => Box::new(file::FileBackend::open(&rest)?),
        "memory" => Box::new(memory::MemoryBackend::open(&rest)?),
        other => {
            let message = format!("backend URL \"{}\": unknown backend \"{other}\" (there are file:, memory: and faulty(SCHEDULE):)", rest.text);
            return Err(Error::new(ErrorKind::BackendUrl, message));
        }
    };
    Ok(match schedule {
        Some(schedule) => Box::new(FaultyBackend::new(backend, schedule)),
        None => backend,
    })
}

/// Whether `url` parses, as far as that can be said without opening anything.
pub(crate) fn check(url: &str) -> Result<()> {
    Parsed::of(url)?.rest.size().map(drop)
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
