//! `memory:?size=8GiB&compress=lz4&limit=1GiB`: the backend around the pool.

use super::pool::{NotStored, Pool, Scratch};
use crate::backend::url::BackendUrl;
use crate::backend::{Backend, BackendQueue, Now, QueueBuilder, Read, Write, WriteRequest, slots_in};
use crate::error::{ErrorKind, Result};
use crate::failure::{RawCause, WRONG_CONTENT};
use crate::io_queue::{Completion, IoQueue};
use crate::size::{PAGE_SIZE, bytes_of, parse_size};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Of `memory:` URLs; the last two belong together.
pub(in crate::backend) const OPTIONS: [&str; 3] = ["size", "compress", "limit"];

/// Slots whose pages are compressed in ordinary memory of this process.
#[derive(Debug)]
pub(in crate::backend) struct CompressedBackend {
    pool: Pool,
    num_slots: usize,
}

impl CompressedBackend {
    /// Whether the URL asks for it.
    pub(in crate::backend) fn is_meant(url: &BackendUrl) -> bool {
        url.option("compress").is_some()
    }

    pub(in crate::backend) fn open(url: &BackendUrl) -> Result<Self> {
        url.expect_only(&OPTIONS)?;
        url.choice("compress", &["lz4"])?;
        if !url.path.is_empty() {
            return Err(url.error(ErrorKind::BackendUrl, "memory: takes no path, only options: memory:?size=8GiB&compress=lz4"));
        }
        let size = url.size()?.ok_or_else(|| url.error(ErrorKind::BackendUrl, "a size is needed: memory:?size=8GiB&compress=lz4"))?;
        let limit = url.option("limit").map(parse_size).transpose().map_err(|error| url.error(ErrorKind::BackendUrl, error))?;
        if limit.is_some_and(|limit| limit < PAGE_SIZE as u64) {
            return Err(url.error(ErrorKind::BackendUrl, "a limit below a page leaves no room for anything"));
        }
        let num_slots = slots_in(size, &url.text)?;
        Ok(Self { pool: Pool::new(num_slots, limit).map_err(|cause| url.too_large(&cause))?, num_slots })
    }
}

impl Backend for CompressedBackend {
    fn num_slots(&self) -> usize {
        self.num_slots
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        Ok(builder.add(number, Rc::new(CompressedQueue { scratch: RefCell::new(Scratch::new()), backend: self })))
    }

    fn is_readable_now(&self, _: usize) -> bool {
        true
    }

    fn read_now(&self, slot: usize, buffer: *mut u8) -> Now {
        match self.pool.load(slot, buffer) {
            Ok(()) => Now::Content(buffer),
            Err(_) => Now::Failed(RawCause::WRONG_HASH),
        }
    }

    fn reserve(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.pool.free(slot, num_slots);
    }

    fn fill(&self) -> Option<(u64, u64)> {
        self.pool.fill()
    }

    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        let stats = self.pool.stats();
        vec![
            ("compressed_pages", stats.pages),
            ("compressed_memory_bytes", stats.used_bytes),
            ("compressed_limit_bytes", stats.limit_bytes.unwrap_or(0)),
            ("compressed_content_bytes", stats.compressed_bytes),
            ("compressed_idle_bytes", stats.idle_bytes),
            ("compressed_same_filled_pages", stats.same_filled_pages),
            ("compressed_incompressible_pages", stats.incompressible_pages),
        ]
    }
}

struct CompressedQueue {
    backend: Arc<CompressedBackend>,
    scratch: RefCell<Scratch>,
}

impl BackendQueue for CompressedQueue {
    /// Only for those around this backend: the pager uses [`Backend::read_now`].
    fn read(&self, io: &IoQueue, read: Read) {
        let result = self.backend.pool.load(read.slot, read.target).map_or(WRONG_CONTENT, |()| PAGE_SIZE as i32);
        io.finish(read.token, Completion::of(result));
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        // Bytes that end within a page, which only tests write, leave its slot as it was.
        for page in 0..write.num_bytes / PAGE_SIZE {
            let source = write.source.wrapping_add(bytes_of(page));
            match self.backend.pool.store(write.slot + page, source, &mut self.scratch.borrow_mut()) {
                Ok(()) => {}
                Err(NotStored::Damaged) => return Write::Failed,
                Err(NotStored::Full) => {
                    // Like a disk that is full: the pages stay resident, and are tried again some time later.
                    io.finish(write.token, Completion::of(-libc::ENOSPC));
                    return Write::Pending;
                }
            }
        }
        Write::Done
    }
}
