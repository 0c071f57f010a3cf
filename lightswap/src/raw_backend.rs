//! A backend without any paging around it, for measurements: how fast its pages come.

use crate::backend::{self, Backend, QueueBuilder, Queues, Read, Write, WriteRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{Completion, IoQueue, Purpose, Source, Token};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use crate::worker::WorkerShared;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pages of one write while a backend is filled.
const FILL_PAGES: usize = 64;

/// An open backend, with the queue of one worker.
pub struct RawBackend {
    backend: Arc<dyn Backend>,
    shared: Vec<&'static WorkerShared>,
    depth: usize,
}

/// What [`RawBackend::random_reads`] came to.
#[derive(Clone, Copy, Debug)]
pub struct RawReads {
    /// Pages read.
    pub num_reads: u64,
    /// In so much time.
    pub elapsed: Duration,
    /// Those whose content was not what had been written.
    pub num_wrong: u64,
    /// Those that failed.
    pub num_failed: u64,
}

impl std::fmt::Debug for RawBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawBackend").field("backend", &self.backend).finish_non_exhaustive()
    }
}

struct Session<'a> {
    io: IoQueue,
    queues: Queues,
    buffers: &'a Mapping,
}

impl Session<'_> {
    /// Submits, waits, and hands on what has ended.
    fn turn(&self, mut ended: impl FnMut(Purpose, Completion)) {
        self.queues.flush(&self.io);
        let mut handle = |token: Token, completion| match token.purpose() {
            Purpose::Node { node, index } => self.queues.complete(&self.io, node, index, completion),
            purpose => ended(purpose, completion),
        };
        let mut drain = |first: Option<(Token, Completion)>| {
            first.into_iter().for_each(|(token, completion)| handle(token, completion));
            while let Some((token, completion)) = self.io.take_finished() {
                handle(token, completion);
            }
        };
        self.io.poll(!self.io.has_work(), |token, result| drain(Some((token, Completion::of(result)))));
        drain(None);
    }

    fn page(&self, number: usize) -> *mut u8 {
        self.buffers.base().wrapping_add(bytes_of(number))
    }
}

impl RawBackend {
    /// Opens the backend at `url`, for `depth` requests at a time.
    ///
    /// # Errors
    /// As [`crate::Builder::open`].
    pub fn open(url: &str, depth: usize) -> Result<Self> {
        if !(1..=4096).contains(&depth) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("a depth of {depth}: there can be 1 to 4096")));
        }
        Ok(Self { backend: backend::open(url)?, shared: Vec::new(), depth })
    }

    /// Bytes that it holds.
    pub fn num_bytes(&self) -> usize {
        bytes_of(self.backend.num_slots())
    }

    /// Writes its first `num_slots` slots, then reads random ones of them for `duration`, always as many as its depth at a time.
    ///
    /// # Errors
    /// A backend that is too small, or that cannot be written.
    pub fn random_reads(&mut self, num_slots: usize, duration: Duration, seed: u64) -> Result<RawReads> {
        if num_slots == 0 || num_slots > self.backend.num_slots() {
            return Err(Error::new(ErrorKind::NoSpace, format!("{num_slots} slots are more than the backend has, or none")));
        }
        self.backend.reserve(0, num_slots).map_err(|cause| Error::io(ErrorKind::NoSpace, "cannot reserve room in the backend", &cause))?;
        let shared = WorkerShared::take(&mut self.shared)?;
        let buffers = Mapping::new(bytes_of(self.depth.max(FILL_PAGES)), PAGE_SIZE)?;
        // As the pager thread: it has what the backend does in the background.
        let mut builder = QueueBuilder::new(self.depth, 1, true, shared);
        let queues = Queues::new(&self.backend, &mut builder)?;
        let registered = libc::iovec { iov_base: buffers.base().cast(), iov_len: buffers.len() };
        let io = IoQueue::new(shared.wake_fd.as_raw_fd(), Some(registered), builder.files(), self.depth, false, builder.num_finished())?;
        let session = Session { io, queues, buffers: &buffers };
        fill(&session, num_slots)?;
        let reads = self.read(&session, num_slots, duration, seed);
        session.queues.close(&session.io);
        while session.io.num_in_flight() > 0 {
            session.turn(|_, _| {});
        }
        Ok(reads)
    }

    fn read(&self, session: &Session<'_>, num_slots: usize, duration: Duration, seed: u64) -> RawReads {
        let start = Instant::now();
        let mut reads = RawReads { num_reads: 0, elapsed: Duration::ZERO, num_wrong: 0, num_failed: 0 };
        let mut random = seed | 1;
        let mut slots = vec![0; self.depth];
        let mut idle: Vec<usize> = (0..self.depth).collect();
        let mut num_pending = 0;
        let mut must_end = false;
        while num_pending > 0 || !must_end {
            while let Some(buffer) = idle.pop_if(|_| !must_end) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                slots[buffer] = random as usize % num_slots;
                let (slot, target) = (slots[buffer], session.page(buffer));
                session.queues.read(&session.io, Read { slot, target, token: Token::read(buffer), is_retry: false, suspect: Source(None) });
                num_pending += 1;
            }
            session.turn(|purpose, completion| {
                let Purpose::Read { buffer } = purpose else { return };
                let content = if completion.content.is_null() { session.page(buffer) } else { completion.content };
                reads.num_reads += 1;
                num_pending -= 1;
                idle.push(buffer);
                if completion.result != PAGE_SIZE as i32 {
                    reads.num_failed += 1;
                // SAFETY: a page was read there.
                } else if unsafe { content.cast::<u64>().read_unaligned() } != slots[buffer] as u64 {
                    reads.num_wrong += 1;
                }
            });
            must_end = start.elapsed() >= duration;
        }
        reads.elapsed = start.elapsed();
        reads
    }
}

/// Writes the slots, the number of each at its start.
fn fill(session: &Session<'_>, num_slots: usize) -> Result<()> {
    for first in (0..num_slots).step_by(FILL_PAGES) {
        let len = FILL_PAGES.min(num_slots - first);
        for page in 0..len {
            // SAFETY: a page of the buffers, which nothing uses now.
            let words = unsafe { std::slice::from_raw_parts_mut(session.page(page).cast::<u64>(), PAGE_SIZE / 8) };
            words
                .iter_mut()
                .enumerate()
                .for_each(|(index, word)| *word = ((first + page) as u64).wrapping_add((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        }
        let write = WriteRequest { slot: first, source: session.page(0), num_bytes: bytes_of(len), token: Token::write(0, 0) };
        let mut result = match session.queues.write(&session.io, write) {
            Write::Done => Some(write.num_bytes as i32),
            Write::Pending => None,
            Write::Failed => Some(-libc::EIO),
        };
        while result.is_none() {
            session.turn(|purpose, completion| {
                if matches!(purpose, Purpose::Write { .. }) {
                    result = Some(completion.result);
                }
            });
        }
        if result != Some(write.num_bytes as i32) {
            return Err(Error::new(ErrorKind::Backend, format!("a write to the backend failed with {result:?}")));
        }
    }
    Ok(())
}

impl Drop for RawBackend {
    fn drop(&mut self) {
        WorkerShared::give_back(&mut self.shared);
    }
}
