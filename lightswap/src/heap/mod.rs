//! A heap over a region: objects of any size in memory bigger than DRAM.
//!
//! What it knows of its objects is in ordinary memory: at most [`Heap::METADATA_BYTES_PER_PAGE`] a page of the region, committed where the heap has been used. So
//! [`Heap::free`] and [`Heap::usable_size`] never access the region, and freeing what is swapped out reads nothing back. Objects of up to 32 KiB are in [`slabs`] of 72 [size
//! classes](classes), larger ones are [`runs`] of pages.
//!
//! **What allocations cost.** A new object is usually written at once. So it goes where that takes no read: to a slab with room on resident pages, the fuller ones first; else
//! to one that was never touched or is empty. Fresh slabs make the heap sparser, as the holes in swapped-out slabs stay. So they are taken without limit only while more than a
//! quarter of the region is free (or the class has hardly any holes); after that, holes are filled even where a page must be read for it. What is
//! fresh was reserved in the backend: where that is full, or its writes fail, an allocation fails that finds no room in the slabs there are.
//!
//! **What goes back.** A slab without objects (but for one a class, while it is resident) and a freed run become untouched again: out of local memory and, where the backend
//! can, out of that. Nobody waits for it: it happens in batches, at later calls, and what is pinned or being evicted then is left for the next time. [`Heap::trim`] tries it at
//! once.
//!
//! Locks are held for the time of a few list operations, one for each class and one for the runs; never while memory of the region is accessed or anything waits.
//!
//! ```
//! # fn main() -> lightswap::Result<()> {
//! use lightswap::{Contract, Heap, Lightswap};
//! let swap = Lightswap::builder().local_memory(1 << 20).backend("memory:?size=64MiB").open()?;
//! let heap = Heap::new(swap.create_region(16 << 20, Contract::Transparent)?)?;
//! let object = heap.alloc(100)?;
//! assert!(heap.contains(object.as_ptr()) && heap.usable_size(object.as_ptr()) >= 100);
//! // SAFETY: the object is ours, and has room for 100 bytes; it is freed once.
//! unsafe {
//!     object.as_ptr().write_bytes(7, 100);
//!     let larger = heap.realloc(object.as_ptr(), 100_000)?;
//!     assert_eq!(larger.as_ptr().add(99).read(), 7);
//!     heap.free(larger.as_ptr());
//! }
//! # Ok(())
//! # }
//! ```

mod classes;
mod fork;
mod runs;
mod slabs;
mod statistics;
mod table;

use crate::access::PageRange;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Region;
use crate::notifier::die;
use crate::parking::SpinLock;
use crate::ranges;
use crate::region::{self, RegionInner};
use crate::size::{PAGE_SIZE, bytes_of, format_size, pages_in};
use classes::{NUM_CLASSES, SMALL_MAX, class, class_of};
use runs::Runs;
use slabs::{Place, Shelf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use table::{Kind, PageInfo, Table};

/// The part of a region that is kept for runs and for classes without holes: a class whose slabs have holes takes fresh ones only while more is free.
const SPARE_PART: usize = 4;
/// Batches of freed pages that an allocation without room discards: usually all there are.
const MAX_BATCHES: usize = 8;

/// An allocator that owns a region; see the [module](self). For any thread and LWT; in a child of fork(), which cannot page, it gives out what was resident at the fork.
#[derive(Debug)]
pub struct Heap {
    parts: Box<Parts>,
}

/// What does not move while the heap is there.
#[derive(Debug)]
struct Parts {
    _owner: Arc<Region>,
    region: &'static RegionInner,
    table: Table,
    runs: Runs,
    shelves: [Shelf; NUM_CLASSES],
    /// Large objects, their pages, and how many there ever were.
    num_runs: AtomicU64,
    run_pages: AtomicU64,
    run_allocations: AtomicU64,
    num_failed: AtomicU64,
}

/// What an address that is given to the heap belongs to.
enum Object {
    Small { class: usize, place: Place },
    Large { first: u32, num_pages: u32 },
}

impl Heap {
    /// Bytes of DRAM that a heap keeps for a page of its region, at most. (Half of it only for pages with objects of 16 bytes.)
    pub const METADATA_BYTES_PER_PAGE: usize = 2 * PageInfo::BYTES;

    /// A heap over a region, which is its own from here on; nothing in it is accessed. With an [`Arc`], others can ask the region how it is.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the region has a heap; [`ErrorKind::NoMemory`]; [`ErrorKind::InvalidArgument`] for a region of 16 TiB or more.
    pub fn new(region: impl Into<Arc<Region>>) -> Result<Self> {
        let owner = region.into();
        let region = region::find(owner.as_ptr() as usize).expect("a region is found until it is dropped");
        let num_pages = u32::try_from(region.num_pages()).ok().filter(|num_pages| *num_pages < table::NIL);
        let too_large = || Error::new(ErrorKind::InvalidArgument, "a heap cannot have a region of 16 TiB or more: give it a smaller one");
        let table = Table::new(num_pages.ok_or_else(too_large)?)?;
        let runs = Runs::new(&table);
        let shelves = [const { Shelf::new() }; NUM_CLASSES];
        let [num_runs, run_pages, run_allocations, num_failed] = [0; 4].map(AtomicU64::new);
        let parts = Box::new(Parts { _owner: owner, region, table, runs, shelves, num_runs, run_pages, run_allocations, num_failed });
        fork::register(&parts)?;
        Ok(Self { parts })
    }

    /// Room for `size` bytes, aligned to 16; of no certain content. (For 0 bytes as for 1.)
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]: the region is full, or the backend is, or writes to it fail.
    pub fn alloc(&self, size: usize) -> Result<NonNull<u8>> {
        let result = if size <= SMALL_MAX { self.parts.alloc_small(class_of(size.max(1))) } else { self.parts.alloc_large(size) };
        self.parts.discard_batch();
        if result.is_err() {
            self.parts.num_failed.fetch_add(1, Relaxed);
        }
        result
    }

    /// Frees an object. Accesses no memory of the region. A pointer that is not one that the heap gave out, or was freed, ends the process with a message.
    ///
    /// # Safety
    /// Nobody uses the object any more.
    pub unsafe fn free(&self, object: *mut u8) {
        self.parts.free(object);
        self.parts.discard_batch();
    }

    /// Gives an object the size `size`: in place if its class or the pages behind it allow that, otherwise as a copy elsewhere. A null pointer is no object: as [`Self::alloc`].
    ///
    /// # Errors
    /// The object stays as it was. As [`Self::alloc`]; [`ErrorKind::SwapIn`] if its content cannot be read.
    ///
    /// # Safety
    /// Nobody uses the object meanwhile, nor its old address after a success.
    pub unsafe fn realloc(&self, object: *mut u8, size: usize) -> Result<NonNull<u8>> {
        let Some(old) = NonNull::new(object) else { return self.alloc(size) };
        if self.parts.resize(object, size) {
            self.parts.discard_batch();
            return Ok(old);
        }
        let new = match self.alloc(size) {
            // A smaller place would have been better, no more.
            Err(_) if size <= self.usable_size(object) => return Ok(old),
            result => result?,
        };
        // SAFETY: both are objects of at least so many bytes, and nobody uses them.
        let copied = unsafe { ranges::copy(new.as_ptr(), object, size.min(self.usable_size(object))) };
        // SAFETY: the caller gives the old one up; the new one is known to nobody yet.
        unsafe { self.free(if copied.is_ok() { object } else { new.as_ptr() }) };
        copied.map(|()| new)
    }

    /// Bytes that an object has room for, at least as many as were asked for. A pointer that is not an object ends the process with a message.
    pub fn usable_size(&self, object: *const u8) -> usize {
        match self.parts.object_at(object) {
            Object::Small { class: index, .. } => class(index).size as usize,
            Object::Large { num_pages, .. } => bytes_of(num_pages as usize),
        }
    }

    /// Whether an address lies in the heap's region.
    pub fn contains(&self, address: *const u8) -> bool {
        (address as usize).wrapping_sub(self.parts.region.start()) < self.parts.region.num_bytes()
    }

    /// For those who move objects to make the heap denser: whether the object's slab is less full than those of its class that have room are on average, so that
    /// a new object would probably come to lie in a fuller one, and freeing this one helps to empty its slab. A pointer that is not an object ends the process.
    pub fn is_sparse(&self, object: *const u8) -> bool {
        match self.parts.object_at(object) {
            Object::Small { class: index, place: (slab, _) } => {
                let num_used = self.parts.table.info(slab).num_used.load(Relaxed);
                self.parts.shelves[index].is_sparse(slab, num_used.into(), class(index))
            }
            Object::Large { .. } => false,
        }
    }

    /// Gives back everything that holds no object, as far as that needs no waiting. (Other calls do so by and by.)
    pub fn trim(&self) {
        self.parts.trim(usize::MAX);
    }

    /// Counters and gauges by name; units are in the names.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        self.parts.stats()
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        fork::unregister(&self.parts);
    }
}

impl Parts {
    /// In the order in which they are taken, where that are several.
    fn locks(&self) -> impl Iterator<Item = &SpinLock> {
        self.shelves.iter().map(Shelf::raw_lock).chain([self.runs.raw_lock()])
    }

    fn address(&self, page: u32) -> usize {
        self.region.start() + bytes_of(page as usize)
    }

    fn pointer(&self, index: usize, (slab, object): Place) -> NonNull<u8> {
        let address = self.address(slab) + (object * class(index).size) as usize;
        NonNull::new(address as *mut u8).expect("a region is not at address 0")
    }

    /// What `address` points to the start of.
    fn object_at(&self, address: *const u8) -> Object {
        let offset = (address as usize).wrapping_sub(self.region.start());
        if offset >= self.region.num_bytes() {
            die(format_args!("heap: {address:p} is not in the heap's region"));
        }
        let page = pages_in(offset) as u32;
        if let Some((slab, index)) = self.table.slab_of(page) {
            let in_slab = (offset - bytes_of(slab as usize)) as u32;
            let class = class(index);
            let object = in_slab / class.size;
            if object * class.size == in_slab && object < class.num_objects {
                let word = self.table.bits(slab, class)[object as usize / 64].load(Relaxed);
                if word & 1 << (object % 64) != 0 {
                    return Object::Small { class: index, place: (slab, object) };
                }
                die(format_args!("heap: there is no object at {address:p}: freed twice?"));
            }
            die(format_args!("heap: {address:p} points into an object or slab, not to the start of an object"));
        }
        let info = self.table.info(page);
        match info.kind() {
            Kind::Run if offset.is_multiple_of(PAGE_SIZE) => Object::Large { first: page, num_pages: info.first.load(Relaxed) },
            Kind::Run => die(format_args!("heap: {address:p} points into an object, not to its start")),
            _ => die(format_args!("heap: no object starts at {address:p}: freed twice, or a pointer into an object?")),
        }
    }

    fn alloc_small(&self, index: usize) -> Result<NonNull<u8>> {
        let lock = || self.shelves[index].lock(&self.table, self.region, index);
        let only_resident = self.region.is_inherited();
        let (warm, is_dense) = {
            let shelf = lock();
            let place = shelf.allocate_warm(only_resident).or_else(|| shelf.allocate_empty(only_resident));
            (place, self.shelves[index].is_dense(class(index)))
        };
        if let Some(place) = warm {
            return Ok(self.pointer(index, place));
        }
        if only_resident {
            return Err(Error::new(ErrorKind::NoSpace, "no resident memory of the heap is free: a child of fork() can use no other"));
        }
        let take = || self.take_pages(class(index).num_pages);
        let is_roomy = self.runs.num_free() + self.runs.num_leaving() > self.region.num_pages() / SPARE_PART;
        let fresh = if is_dense || is_roomy { Some(take()) } else { None };
        if let Some(Ok(slab)) = fresh {
            return Ok(self.pointer(index, lock().allocate_in_new(slab)));
        }
        let cold = lock().allocate_cold();
        if let Some(place) = cold {
            return Ok(self.pointer(index, place));
        }
        let slab = fresh.unwrap_or_else(take)?;
        Ok(self.pointer(index, lock().allocate_in_new(slab)))
    }

    fn alloc_large(&self, size: usize) -> Result<NonNull<u8>> {
        let num_pages = u32::try_from(size.div_ceil(PAGE_SIZE)).unwrap_or(u32::MAX);
        if self.region.is_inherited() {
            return Err(Error::new(ErrorKind::NoSpace, "a child of fork() can use no fresh memory of the heap"));
        }
        let first = self.take_pages(num_pages)?;
        self.table.info(first).set_kind(Kind::Run, num_pages);
        self.num_runs.fetch_add(1, Relaxed);
        self.run_pages.fetch_add(num_pages.into(), Relaxed);
        self.run_allocations.fetch_add(1, Relaxed);
        Ok(NonNull::new(self.address(first) as *mut u8).expect("a region is not at address 0"))
    }

    /// Takes fresh pages, for which the backend has room.
    fn take_pages(&self, num_pages: u32) -> Result<u32> {
        let take = || self.runs.take(&self.table, num_pages);
        let first = take().or_else(|| {
            // What is on its way back may do.
            self.trim(MAX_BATCHES);
            take()
        });
        let first = first.ok_or_else(|| {
            let (wanted, free) = (bytes_of(num_pages as usize) as u64, bytes_of(self.runs.num_free()) as u64);
            Error::new(ErrorKind::NoSpace, format!("the heap has no {} in a row: {} are free in all", format_size(wanted), format_size(free)))
        })?;
        match self.reserve(first, num_pages) {
            Ok(()) => Ok(first),
            Err(error) => {
                self.runs.put_back(&self.table, first, num_pages);
                Err(error)
            }
        }
    }

    fn reserve(&self, first: u32, num_pages: u32) -> Result<()> {
        PageRange::find(self.address(first), bytes_of(num_pages as usize))?.reserve()
    }

    fn free(&self, object: *const u8) {
        match self.object_at(object) {
            Object::Small { class: index, place } => {
                let emptied = self.shelves[index].lock(&self.table, self.region, index).free(place);
                if let Some(slab) = emptied {
                    self.runs.release(&self.table, slab, class(index).num_pages);
                }
            }
            Object::Large { first, num_pages } => {
                self.num_runs.fetch_sub(1, Relaxed);
                self.run_pages.fetch_sub(num_pages.into(), Relaxed);
                self.runs.release(&self.table, first, num_pages);
            }
        }
    }

    /// Gives an object another size in place, if that is possible.
    fn resize(&self, object: *const u8, size: usize) -> bool {
        match self.object_at(object) {
            Object::Small { class: index, .. } => size <= SMALL_MAX && class_of(size.max(1)) == index,
            Object::Large { first, num_pages } => size > SMALL_MAX && self.resize_large(first, num_pages, size),
        }
    }

    fn resize_large(&self, first: u32, num_pages: u32, size: usize) -> bool {
        let Ok(wanted) = u32::try_from(size.div_ceil(PAGE_SIZE)) else { return false };
        let info = self.table.info(first);
        if wanted < num_pages {
            info.set_kind(Kind::Run, wanted);
            self.run_pages.fetch_sub((num_pages - wanted).into(), Relaxed);
            self.runs.release(&self.table, first + wanted, num_pages - wanted);
        } else if wanted > num_pages {
            let (next, more) = (first + num_pages, wanted - num_pages);
            if self.region.is_inherited() || !self.runs.take_at(&self.table, next, more) {
                return false;
            }
            if self.reserve(next, more).is_err() {
                self.runs.put_back(&self.table, next, more);
                return false;
            }
            info.set_kind(Kind::Run, wanted);
            self.run_pages.fetch_add(more.into(), Relaxed);
        }
        true
    }

    /// Discards freed pages, if there are enough for a batch.
    fn discard_batch(&self) {
        if self.runs.must_discard() && !self.region.is_inherited() {
            self.runs.discard_some(&self.table, self.region);
        }
    }

    fn trim(&self, max_batches: usize) {
        if self.region.is_inherited() {
            return;
        }
        for (index, shelf) in self.shelves.iter().enumerate().filter(|(_, shelf)| shelf.num_empty() > 0) {
            let emptied = shelf.lock(&self.table, self.region, index).give_up_empty();
            if let Some(slab) = emptied {
                self.runs.release(&self.table, slab, class(index).num_pages);
            }
        }
        self.runs.discard_batches(&self.table, self.region, max_batches);
    }
}
