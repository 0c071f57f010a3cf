//! The pool: pages by slot, compressed.

use super::classes::{COMPRESSED_LEN_MAX, RAW, class_of};
use super::entry::{Entry, fits};
use super::heap::Heap;
use crate::error::Result;
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use crate::try_catch;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::fmt;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

const WORD_BYTES: usize = size_of::<u64>();
const PAGE_WORDS: usize = PAGE_SIZE / WORD_BYTES;
/// Of the CPU's caches.
const LINE_BYTES: usize = 64;
const TABLE_PAGE_SLOTS: usize = PAGE_SIZE / WORD_BYTES;

/// Compressed pages by slot; see the module above for how they are laid out.
///
/// Everything but `new` is async-signal-safe and for all threads at once, as long as no two of them use the same slot.
#[derive(Debug)]
pub(in crate::backend) struct Pool {
    pub(super) heap: Heap,
    /// The slot table: an [`AtomicU64`] a slot, with an encoded [`Entry`].
    pub(super) table: Mapping,
    num_slots: usize,
    /// Pages of the table that were ever written, a bit each: the others need neither memory nor a look.
    pub(super) table_pages: Box<[AtomicU64]>,
    /// Pages that are in the table alone.
    num_in_table: AtomicU64,
    num_words: AtomicU64,
    /// Bytes of objects, without what their classes add.
    object_bytes: AtomicU64,
}

/// Why a page was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) enum NotStored {
    /// The pool has reached its limit. The slot has nothing any more: what it had is of no use to a page that has changed, and its place may be to others.
    Full,
    /// The memory of the page cannot be read. The slot has what it had before.
    Damaged,
}

/// A slot has nothing, or nothing that decompresses to a page; the target may have been written all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend) struct Corrupt;

/// What a thread needs to store pages.
pub(in crate::backend) struct Scratch(Box<Buffers>);

struct Buffers {
    /// A copy of the page: the original is read once, so that damage to it is met in one place, and the compressor sees it stand still.
    page: [u64; PAGE_WORDS],
    output: [u8; get_maximum_output_size(PAGE_SIZE)],
    table: CompressTable,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

impl Scratch {
    pub(in crate::backend) fn new() -> Self {
        Self(Box::new(Buffers { page: [0; _], output: [0; _], table: CompressTable::small() }))
    }
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct PoolStats {
    /// DRAM that the pool takes: backed pages, idle ones among them, and metadata.
    pub(in crate::backend) used_bytes: u64,
    /// DRAM that it may take.
    pub(in crate::backend) limit_bytes: Option<u64>,
    /// Pages stored; times the page size, over `used_bytes`, is the ratio.
    pub(in crate::backend) pages: u64,
    /// Those that repeat one word.
    pub(in crate::backend) same_filled_pages: u64,
    /// Those stored as they are.
    pub(in crate::backend) incompressible_pages: u64,
    /// What all pages came to, without the loss in classes, groups and metadata.
    pub(in crate::backend) compressed_bytes: u64,
    /// Backed pages of the pool in which nothing is stored; the system gets them back in batches.
    pub(in crate::backend) idle_bytes: u64,
}

/// The form in which a page is stored.
enum Form {
    Same(u64),
    Word(u64),
    Compressed(usize),
    Raw,
}

impl Pool {
    /// An empty pool of so many slots that takes at most `limit_bytes` of DRAM.
    pub(in crate::backend) fn new(num_slots: usize, limit_bytes: Option<u64>) -> Result<Self> {
        let table_bytes = num_slots.max(1).checked_mul(WORD_BYTES).and_then(|len| round_up(len, PAGE_SIZE)).unwrap_or(usize::MAX & !(PAGE_SIZE - 1));
        let table = Mapping::new(table_bytes, PAGE_SIZE)?;
        table.advise(libc::MADV_DONTFORK);
        table.advise(libc::MADV_NOHUGEPAGE);
        let heap = Heap::new(num_slots, limit_bytes)?;
        let table_pages = (0..(table_bytes / PAGE_SIZE).div_ceil(u64::BITS as usize)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            heap,
            table,
            num_slots,
            table_pages,
            num_in_table: AtomicU64::new(0),
            num_words: AtomicU64::new(0),
            object_bytes: AtomicU64::new(0),
        })
    }

    /// Stores the page at `source`, instead of what the slot had.
    pub(in crate::backend) fn store(&self, slot: usize, source: *const u8, scratch: &mut Scratch) -> std::result::Result<(), NotStored> {
        let Buffers { page, output, table } = &mut *scratch.0;
        let target = page.as_mut_ptr().cast::<u8>();
        // Damaged since it was last read: what that leads to must not be the program's try block.
        // SAFETY: the source is a page, mapped and stable; a copy has nothing to clean up.
        let copied = unsafe { try_catch::try_without_paging(|| ptr::copy_nonoverlapping(source, target, PAGE_SIZE)) };
        if copied.is_err() {
            return Err(NotStored::Damaged);
        }
        // SAFETY: as many bytes, all initialised.
        let bytes = unsafe { &*page.as_ptr().cast::<[u8; PAGE_SIZE]>() };
        if !self.reserve_entry(slot) {
            return Err(NotStored::Full);
        }
        let new = match form_of(page, bytes, output, table) {
            Form::Same(word) => Entry::Same(word),
            Form::Word(word) => Entry::Word { offset: self.put_somehow(slot, &word.to_ne_bytes())? },
            Form::Compressed(len) => Entry::Object { offset: self.put_somehow(slot, &output[..len])?, len },
            Form::Raw => Entry::Object { offset: self.put_somehow(slot, bytes)?, len: PAGE_SIZE },
        };
        let old = Entry::decode(self.slot(slot).swap(new.encode(), Release));
        self.count(new, u64::wrapping_add);
        self.give_up(old, Some(new));
        Ok(())
    }

    /// Decompresses the slot's page to `target`.
    pub(in crate::backend) fn load(&self, slot: usize, target: *mut u8) -> std::result::Result<(), Corrupt> {
        // SAFETY: the caller's page, which nobody else uses meanwhile.
        let target = unsafe { &mut *target.cast::<[u8; PAGE_SIZE]>() };
        match Entry::decode(self.slot(slot).load(Acquire)) {
            Entry::Empty => return Err(Corrupt),
            Entry::Same(word) => fill(target, word),
            Entry::Word { offset } => {
                let word = self.object(offset, WORD_BYTES)?;
                fill(target, u64::from_ne_bytes(word.try_into().map_err(|_| Corrupt)?));
            }
            Entry::Object { offset, len: PAGE_SIZE } => target.copy_from_slice(self.object(offset, PAGE_SIZE)?),
            Entry::Object { offset, len } => {
                let object = self.object(offset, len)?;
                prefetch(object);
                match decompress_into(object, target) {
                    Ok(PAGE_SIZE) => {}
                    _ => return Err(Corrupt),
                }
            }
        }
        Ok(())
    }

    /// Forgets what the slots have.
    pub(in crate::backend) fn free(&self, slot: usize, num_slots: usize) {
        let end = (slot + num_slots).min(self.num_slots);
        let mut at = slot;
        while at < end {
            let end_of_page = end.min((at / TABLE_PAGE_SLOTS + 1) * TABLE_PAGE_SLOTS);
            if self.is_written(at) {
                for slot in at..end_of_page {
                    // Not written if it need not be.
                    if self.slot(slot).load(Relaxed) != Entry::Empty.encode() {
                        self.give_up(Entry::decode(self.slot(slot).swap(Entry::Empty.encode(), Acquire)), None);
                    }
                }
            }
            at = end_of_page;
        }
    }

    /// Bytes of what is stored, without the loss in classes, groups and metadata, and the limit if there is one.
    pub(in crate::backend) fn fill(&self) -> Option<(u64, u64)> {
        Some((self.object_bytes.load(Relaxed), self.heap.limit_bytes?))
    }

    pub(in crate::backend) fn stats(&self) -> PoolStats {
        let in_table = self.num_in_table.load(Relaxed);
        PoolStats {
            used_bytes: self.heap.used_bytes(),
            limit_bytes: self.heap.limit_bytes,
            pages: in_table + self.heap.num_objects(),
            same_filled_pages: in_table + self.num_words.load(Relaxed),
            incompressible_pages: self.heap.num_live(RAW),
            compressed_bytes: self.object_bytes.load(Relaxed),
            idle_bytes: self.heap.num_idle.load(Relaxed) * PAGE_SIZE as u64,
        }
    }

    /// [`Self::put`], in the room of what the slot has if there is no other.
    fn put_somehow(&self, slot: usize, object: &[u8]) -> std::result::Result<u64, NotStored> {
        if let Some(offset) = self.put(slot, object) {
            return Ok(offset);
        }
        let has_place = Entry::decode(self.slot(slot).load(Relaxed)).place().is_some();
        self.free(slot, 1);
        has_place.then(|| self.put(slot, object)).flatten().ok_or(NotStored::Full)
    }

    /// Where the object of this length is from now on: in place of the slot's old one if that is of the same class, else in a place of its own.
    fn put(&self, slot: usize, object: &[u8]) -> Option<u64> {
        let class = class_of(object.len());
        let offset = match Entry::decode(self.slot(slot).load(Relaxed)).place() {
            Some((offset, len)) if class_of(len) == class => offset,
            _ => self.heap.allocate(class)?,
        };
        let target = self.heap.memory.base().wrapping_add(offset as usize);
        // SAFETY: the place is at least as long as its class, in the heap's memory, and belongs to this slot, which is used by one thread at a time.
        unsafe { ptr::copy_nonoverlapping(object.as_ptr(), target, object.len()) };
        Some(offset)
    }

    /// The bytes of an object, wherever a damaged entry may have it.
    fn object(&self, offset: u64, len: usize) -> std::result::Result<&[u8], Corrupt> {
        if offset > (self.heap.memory.len() - len) as u64 {
            return Err(Corrupt);
        }
        // SAFETY: inside the mapping. The slot's object does not change meanwhile.
        Ok(unsafe { std::slice::from_raw_parts(self.heap.memory.base().add(offset as usize), len) })
    }

    /// What an entry had is not needed, but for a place that the `new` one has taken over.
    fn give_up(&self, old: Entry, new: Option<Entry>) {
        self.count(old, u64::wrapping_sub);
        if let Some((offset, _)) = old.place()
            && new.and_then(Entry::place).is_none_or(|(taken, _)| taken != offset)
        {
            self.heap.free(offset);
        }
    }

    fn count(&self, entry: Entry, change: fn(u64, u64) -> u64) {
        let add = |counter: &AtomicU64, number| counter.fetch_add(change(0, number), Relaxed);
        match entry {
            Entry::Empty => {}
            Entry::Same(_) => drop(add(&self.num_in_table, 1)),
            Entry::Word { .. } => {
                add(&self.num_words, 1);
                add(&self.object_bytes, WORD_BYTES as u64);
            }
            Entry::Object { len, .. } => drop(add(&self.object_bytes, len as u64)),
        }
    }

    pub(super) fn slot(&self, slot: usize) -> &AtomicU64 {
        assert!(slot < self.num_slots, "slot {slot} of a pool of {}", self.num_slots);
        // SAFETY: inside the table, an array of such; zeroes are valid.
        unsafe { &*self.table.base().cast::<AtomicU64>().add(slot) }
    }

    /// The word of `table_pages` for a slot, and its bit there.
    fn table_page(&self, slot: usize) -> (&AtomicU64, u64) {
        let page = slot / TABLE_PAGE_SLOTS;
        (&self.table_pages[page / u64::BITS as usize], 1 << (page % u64::BITS as usize))
    }

    /// Whether anything was ever stored in a slot near this one.
    fn is_written(&self, slot: usize) -> bool {
        let (word, bit) = self.table_page(slot);
        word.load(Relaxed) & bit != 0
    }

    /// Makes sure that the entry of a slot may be written, as far as the limit goes.
    fn reserve_entry(&self, slot: usize) -> bool {
        let (word, bit) = self.table_page(slot);
        if word.load(Relaxed) & bit != 0 {
            return true;
        }
        if !self.heap.reserve(PAGE_SIZE as u64) {
            return false;
        }
        if word.fetch_or(bit, Relaxed) & bit != 0 {
            // Another thread was faster.
            self.heap.release(PAGE_SIZE as u64);
        }
        true
    }
}

/// Asks for all of an object at once: line by line, as it is decompressed, the waits for memory add up (0.1 of 1 us).
fn prefetch(object: &[u8]) {
    for line in object.chunks(LINE_BYTES) {
        // SAFETY: a hint, which accesses nothing as far as the program can see.
        unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) };
    }
}

/// What becomes of a page; compressed, it is in `output`.
fn form_of(page: &[u64; PAGE_WORDS], bytes: &[u8; PAGE_SIZE], output: &mut [u8], table: &mut CompressTable) -> Form {
    let word = page[0];
    // Eight at a time: one comparison after the other would take longer than a copy.
    let (chunks, _) = page.as_chunks::<8>();
    if chunks.iter().all(|chunk| chunk.iter().fold(0, |different, &other| different | (other ^ word)) == 0) {
        return if fits(word) { Form::Same(word) } else { Form::Word(word) };
    }
    match compress_into_with_table(bytes, output, table) {
        Ok(len) if len <= COMPRESSED_LEN_MAX => Form::Compressed(len),
        _ => Form::Raw,
    }
}

fn fill(page: &mut [u8; PAGE_SIZE], word: u64) {
    let (chunks, _) = page.as_chunks_mut();
    chunks.fill(word.to_ne_bytes());
}
