//! `encrypted(x)`: pages leave the process only encrypted, and what comes back is what was written there last, or is found not to be.
//!
//! A slot of the backend below holds 4096 bytes of ciphertext and nothing else; its nonce and tag are in a record in this process ([`records`]), which the slot
//! cannot be read without: that makes an older ciphertext of the same slot as wrong as one of another slot. A record is forgotten when a write of its slot begins
//! and set when that has succeeded. See [`cipher`] for the key and why no nonce comes twice.
//!
//! The pager's pages do not change when they are written: a write is copied into [`staging`] pages of its worker, encrypted there and written from there, cut into
//! parts of as many pages as are free. What finds none free waits until another part has ended.
//!
//! Reads are decrypted where they lie. One whose tag is wrong ends as [`WRONG_CONTENT`] with the mirror's member that it came from, so that a mirror below is asked
//! for another copy.

mod cipher;
mod records;
mod staging;

use super::parts::PartWrites;
use super::slab::Slab;
use super::{Backend, BackendQueue, Now, QueueBuilder, Read, Write, WriteRequest};
use crate::error::Result;
use crate::failure::{RawCause, WRONG_CONTENT};
use crate::io_queue::{Completion, IoQueue, Token};
use crate::size::{PAGE_SIZE, bytes_of, pages_in};
use crate::try_catch;
use cipher::{Cipher, TAG_BYTES, Tag, Tampered};
use records::Records;
use staging::Staging;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Pages that are encrypted before the backend below gets them: it works on some while others are being encrypted.
const MAX_PART_PAGES: usize = 32;

#[derive(Debug)]
pub(super) struct EncryptedBackend {
    inner: Arc<dyn Backend>,
    cipher: Cipher,
    records: Records,
    num_decrypted: AtomicU64,
    num_tampered: AtomicU64,
}

impl EncryptedBackend {
    pub(super) fn new(inner: Arc<dyn Backend>) -> Result<Self> {
        let records = Records::new(inner.num_slots())?;
        Ok(Self { inner, cipher: Cipher::new()?, records, num_decrypted: AtomicU64::new(0), num_tampered: AtomicU64::new(0) })
    }

    /// Decrypts what a slot held.
    ///
    /// # Safety
    /// The page at `content` is the caller's.
    unsafe fn open(&self, slot: usize, content: *mut u8) -> std::result::Result<(), Tampered> {
        // SAFETY: the caller's promise.
        let content = unsafe { std::slice::from_raw_parts_mut(content, PAGE_SIZE) };
        let record = self.records.get(slot).ok_or(Tampered);
        let result = record.and_then(|(nonce, tag)| self.cipher.open(nonce, slot, content, tag));
        let counter = if result.is_ok() { &self.num_decrypted } else { &self.num_tampered };
        counter.fetch_add(1, Relaxed);
        result
    }
}

impl Backend for EncryptedBackend {
    fn num_slots(&self) -> usize {
        self.inner.num_slots()
    }

    fn members(&self) -> Vec<&dyn Backend> {
        vec![&*self.inner]
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        // A worker without buffers does not write, either; but a page costs nothing before it is used.
        let staging = Staging::new(builder.num_reads.max(1))?;
        let (num_reads, num_writes, num_parts) = (builder.num_reads, builder.num_writes, staging.num_pages());
        let inner = builder.child(&self.inner, num_reads, num_parts)?;
        let node = EncryptedQueue {
            number,
            encrypted: self,
            inner,
            tags: (0..num_parts).map(|_| Cell::new([0; TAG_BYTES])).collect(),
            staging,
            requests: Slab::new(num_reads + num_parts),
            wholes: PartWrites::new(num_writes),
            waiting: RefCell::new(VecDeque::with_capacity(num_writes)),
        };
        Ok(builder.add(number, Rc::new(node)))
    }

    fn is_readable_now(&self, slot: usize) -> bool {
        self.inner.is_readable_now(slot)
    }

    fn read_now(&self, slot: usize, buffer: *mut u8) -> Now {
        let content = match self.inner.read_now(slot, buffer) {
            Now::Content(content) => content,
            other => return other,
        };
        if !std::ptr::eq(content, buffer) {
            // SAFETY: the content is a page that nobody changes, the buffer another one, which is the caller's.
            unsafe { std::ptr::copy_nonoverlapping(content, buffer, PAGE_SIZE) };
        }
        // SAFETY: the buffer is the caller's, for this.
        match unsafe { self.open(slot, buffer) } {
            Ok(()) => Now::Content(buffer),
            Err(Tampered) => Now::Failed(RawCause::WRONG_HASH),
        }
    }

    /// One for a write that is on its way.
    fn staging_pages_per_read(&self) -> usize {
        1 + self.inner.staging_pages_per_read()
    }

    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        self.inner.reserve(slot, num_slots)
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.records.forget(slot, num_slots);
        self.inner.discard(slot, num_slots);
    }

    fn fill(&self) -> Option<(u64, u64)> {
        self.inner.fill()
    }

    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            // Each takes a nonce.
            ("encrypted_pages", self.cipher.num_taken()),
            ("decrypted_pages", self.num_decrypted.load(Relaxed)),
            ("tampered_pages", self.num_tampered.load(Relaxed)),
        ]
    }
}

/// A request to the backend below.
#[derive(Clone, Copy, Debug)]
enum Request {
    Read { token: Token, slot: usize, target: *mut u8 },
    Part { whole: u32, part: Part },
}

/// Pages of a write, encrypted.
#[derive(Clone, Copy, Debug)]
struct Part {
    slot: usize,
    /// Of the first; the others follow.
    nonce: u64,
    /// Where they lie.
    first_staged: usize,
    num_pages: usize,
}

impl Part {
    fn staged(&self) -> Range<usize> {
        self.first_staged..self.first_staged + self.num_pages
    }
}

/// What is left of a write.
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// Its number in `wholes`, which counts one part more than were begun as long as there is a rest.
    whole: u32,
    /// As it was asked for.
    token: Token,
    num_bytes: usize,
    /// The pages not begun yet.
    slot: usize,
    source: *const u8,
    num_pages: usize,
}

struct EncryptedQueue {
    number: usize,
    encrypted: Arc<EncryptedBackend>,
    inner: Rc<dyn BackendQueue>,
    staging: Staging,
    /// Of what lies in each page of `staging`.
    tags: Box<[Cell<Tag>]>,
    requests: Slab<Request>,
    wholes: PartWrites,
    /// Writes that there was no room for; never grows past its capacity.
    waiting: RefCell<VecDeque<Rest>>,
}

impl EncryptedQueue {
    /// Begins as much of a write as there is room for.
    fn begin_parts(&self, io: &IoQueue, rest: &mut Rest) {
        while rest.num_pages > 0 {
            let Some(staged) = self.staging.take(rest.num_pages.min(MAX_PART_PAGES)) else { return };
            let num_bytes = bytes_of(staged.len());
            let Some(part) = self.encrypt(rest, staged.clone()) else {
                self.staging.give_back(staged);
                rest.num_pages = 0;
                return self.wholes.add(rest.whole, 0, Write::Failed);
            };
            let request = self.requests.insert(Request::Part { whole: rest.whole, part });
            let (source, token) = (self.staging.address(part.first_staged), Token::node(self.number, request));
            let result = self.inner.write(io, WriteRequest { slot: part.slot, source, num_bytes, token });
            self.wholes.add(rest.whole, num_bytes, result);
            if result != Write::Pending {
                self.requests.remove(request);
                self.end_part(part, if result == Write::Done { num_bytes } else { 0 });
            }
            rest.slot += part.num_pages;
            rest.source = rest.source.wrapping_add(num_bytes);
            rest.num_pages -= part.num_pages;
        }
    }

    /// Encrypts the first pages of a rest; `None` if their memory is damaged.
    fn encrypt(&self, rest: &Rest, staged: Range<usize>) -> Option<Part> {
        let Self { encrypted, staging, .. } = self;
        let (target, num_bytes) = (staging.address(staged.start), bytes_of(staged.len()));
        // The source may have been damaged since it was hashed: what that leads to must not be the program's try block.
        // SAFETY: the source is the writer's until the write has ended, the target ours until it is given back; a copy has nothing to clean up.
        unsafe { try_catch::try_without_paging(|| std::ptr::copy_nonoverlapping(rest.source, target, num_bytes)) }.ok()?;
        let nonce = encrypted.cipher.take(staged.len())?;
        let part = Part { slot: rest.slot, nonce, first_staged: staged.start, num_pages: staged.len() };
        for (offset, page) in staged.enumerate() {
            // SAFETY: as above, and nothing else refers to it.
            let content = unsafe { std::slice::from_raw_parts_mut(staging.address(page), PAGE_SIZE) };
            self.tags[page].set(encrypted.cipher.seal(nonce + offset as u64, part.slot + offset, content));
        }
        Some(part)
    }

    /// So much of a part has been written: what is whole can be read from now on.
    fn end_part(&self, part: Part, num_bytes: usize) {
        for (offset, page) in part.staged().take(pages_in(num_bytes)).enumerate() {
            self.encrypted.records.set(part.slot + offset, part.nonce + offset as u64, self.tags[page].get());
        }
        self.staging.give_back(part.staged());
    }

    /// There is room again.
    fn begin_waiting(&self, io: &IoQueue) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(rest) = waiting.front_mut() {
            self.begin_parts(io, rest);
            if rest.num_pages > 0 {
                return;
            }
            let Rest { whole, token, num_bytes, .. } = *rest;
            waiting.pop_front();
            match self.wholes.end(whole) {
                Write::Pending => {}
                Write::Done => io.finish(token, Completion::of(num_bytes as i32)),
                Write::Failed => io.finish(token, Completion::of(-libc::EIO)),
            }
        }
    }

    fn end_read(&self, io: &IoQueue, token: Token, slot: usize, target: *mut u8, completion: Completion) {
        let mut completion = completion;
        if completion.result == PAGE_SIZE as i32 {
            let content = if completion.content.is_null() { target } else { completion.content };
            // SAFETY: the page just read is the reader's, and its read not over before this returns.
            if unsafe { self.encrypted.open(slot, content) }.is_err() {
                completion.result = WRONG_CONTENT;
            }
        }
        io.finish(token, completion);
    }
}

impl BackendQueue for EncryptedQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        let request = self.requests.insert(Request::Read { token: read.token, slot: read.slot, target: read.target });
        self.inner.read(io, Read { token: Token::node(self.number, request), ..read });
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        let WriteRequest { slot, source, num_bytes, token } = write;
        self.encrypted.records.forget(slot, num_bytes.div_ceil(PAGE_SIZE));
        let whole = self.wholes.begin(token);
        let mut rest = Rest { whole, token, num_bytes, slot, source, num_pages: pages_in(num_bytes) };
        // A page cannot be encrypted so that the old half of it remains. Its slot cannot be read from now on: writes that end so are made to be found out.
        self.wholes.add(whole, num_bytes - bytes_of(rest.num_pages), Write::Done);
        // The others first: they have waited for room.
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            self.begin_parts(io, &mut rest);
        }
        if rest.num_pages > 0 {
            waiting.push_back(rest);
            return Write::Pending;
        }
        self.wholes.end(whole)
    }

    fn complete(&self, io: &IoQueue, index: u32, completion: Completion) {
        match self.requests.remove(index) {
            Request::Read { token, slot, target } => self.end_read(io, token, slot, target, completion),
            Request::Part { whole, part } => {
                self.end_part(part, usize::try_from(completion.result).unwrap_or(0));
                if let Some((token, result)) = self.wholes.complete(whole, completion.result) {
                    io.finish(token, Completion::of(result));
                }
                self.begin_waiting(io);
            }
        }
    }
}
