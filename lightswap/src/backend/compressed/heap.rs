//! Places for objects: allocating and freeing them.
//!
//! A group belongs to its size class, whose lock guards it, or has no class and is guarded by the lock of the spare ones. Locks are held for the time of a
//! search, touch no region memory, and are taken in one order: class, then spare.

use super::classes::{Class, ClassIndex, GROUP_BYTES, NUM_CLASSES, class};
use super::group::{Group, NIL, NO_CLASS, NO_LIST};
use crate::error::Result;
use crate::parking::SpinLock;
use crate::size::{PAGE_SIZE, bytes_of, round_up};
use crate::sys::mapping::Mapping;
use crate::sys::removal::Remover;
use std::cell::Cell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Lists of a class: its groups with free objects, by how full they are.
const NUM_LISTS: usize = 4;
/// Groups that are searched for room in pages that are backed already, once no more may be.
const SEARCH_MAX: usize = 8;
/// Groups for each group's worth of whole pages. When lengths drift from class to class while pages are replaced at random, groups keep a few objects
/// each for long: up to 1 + ln(32) times as many groups are in use then as if they were full. Address space costs nothing.
const SPARENESS: usize = 5;

/// Groups of one class.
#[derive(Debug)]
#[repr(align(64))]
struct Shelf {
    lock: SpinLock,
    heads: [Cell<u32>; NUM_LISTS],
    num_live: AtomicU64,
}

/// Groups of no class.
#[derive(Debug)]
struct Spare {
    lock: SpinLock,
    head: Cell<u32>,
    /// Groups from this one on were never used.
    num_started: AtomicU32,
}

#[derive(Debug)]
pub(super) struct Heap {
    pub(super) memory: Mapping,
    /// An array of [`Group`].
    groups: Mapping,
    num_groups: u32,
    shelves: [Shelf; NUM_CLASSES],
    spare: Spare,
    /// DRAM in use: backed pages of `memory`, `groups` as far as they were ever used, and what else was reserved.
    used_bytes: AtomicU64,
    /// Backed pages that no object overlaps, but for those being given back.
    pub(super) num_idle: AtomicU64,
    /// Groups with idle pages, a bit each.
    pub(super) with_idle: Box<[AtomicU64]>,
    /// Where the next search for idle pages begins in `with_idle`.
    pub(super) trim_at: AtomicU32,
    pub(super) remover: Remover,
    /// DRAM that may be used.
    pub(super) limit_bytes: Option<u64>,
}

// SAFETY: cells of groups and shelves are accessed under the lock that guards them only.
unsafe impl Sync for Heap {}

/// Holds a lock.
pub(super) struct Locked<'a>(&'a SpinLock);

impl<'a> Locked<'a> {
    fn new(lock: &'a SpinLock) -> Self {
        lock.lock();
        Self(lock)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl Heap {
    /// Room for as many objects, of any length.
    pub(super) fn new(num_objects: usize, limit_bytes: Option<u64>) -> Result<Self> {
        let num_groups = num_objects.div_ceil(GROUP_BYTES / PAGE_SIZE).saturating_mul(SPARENESS).saturating_add(2 * NUM_CLASSES);
        // So many cannot be mapped, which the mapping says.
        let num_groups = num_groups.min(NIL as usize);
        let memory = Mapping::new(num_groups.saturating_mul(GROUP_BYTES), PAGE_SIZE)?;
        let groups = Mapping::new(round_up(num_groups * size_of::<Group>(), PAGE_SIZE).unwrap_or(usize::MAX), PAGE_SIZE)?;
        for mapping in [&memory, &groups] {
            mapping.advise(libc::MADV_DONTFORK);
            mapping.advise(libc::MADV_NOHUGEPAGE);
        }
        Ok(Self {
            memory,
            groups,
            num_groups: num_groups as u32,
            shelves: std::array::from_fn(|_| Shelf {
                lock: SpinLock::new(),
                heads: [const { Cell::new(NIL) }; NUM_LISTS],
                num_live: AtomicU64::new(0),
            }),
            spare: Spare { lock: SpinLock::new(), head: Cell::new(NIL), num_started: AtomicU32::new(0) },
            used_bytes: AtomicU64::new(0),
            num_idle: AtomicU64::new(0),
            with_idle: (0..num_groups.div_ceil(u64::BITS as usize)).map(|_| AtomicU64::new(0)).collect(),
            trim_at: AtomicU32::new(0),
            remover: Remover::new(true),
            limit_bytes,
        })
    }

    pub(super) fn group(&self, index: u32) -> &Group {
        debug_assert!(index < self.num_groups);
        // SAFETY: `groups` is an array of so many, which are valid when zeroed; they are shared through cells and atomics only.
        unsafe { &*self.groups.base().cast::<Group>().add(index as usize) }
    }

    /// DRAM in use.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    /// Accounts for DRAM that is going to be used; false if that would be more than the limit.
    pub(super) fn reserve(&self, num_bytes: u64) -> bool {
        let limit = self.limit_bytes.unwrap_or(u64::MAX);
        let add = |used: u64| used.checked_add(num_bytes).filter(|&sum| sum <= limit);
        self.used_bytes.fetch_update(Relaxed, Relaxed, add).is_ok()
    }

    /// Accounts for DRAM that is not used any more.
    pub(super) fn release(&self, num_bytes: u64) {
        self.used_bytes.fetch_sub(num_bytes, Relaxed);
    }

    /// Objects of a class.
    pub(super) fn num_live(&self, class: ClassIndex) -> u64 {
        self.shelves[usize::from(class)].num_live.load(Relaxed)
    }

    pub(super) fn num_objects(&self) -> u64 {
        self.shelves.iter().map(|shelf| shelf.num_live.load(Relaxed)).sum()
    }

    /// A place for an object, as its offset in `memory`; `None`: that would take more memory than allowed.
    pub(super) fn allocate(&self, index: ClassIndex) -> Option<u64> {
        let place = self.try_allocate(index);
        if place.is_some() || self.num_idle.load(Relaxed) == 0 {
            return place;
        }
        // What keeps other classes from growing may be of use here.
        self.trim(0);
        self.try_allocate(index)
    }

    fn try_allocate(&self, index: ClassIndex) -> Option<u64> {
        let shelf = &self.shelves[usize::from(index)];
        let class = class(index);
        let _lock = Locked::new(&shelf.lock);
        let place = self.place_in_fullest(shelf, class).or_else(|| self.place_in_spare(index, class));
        // No memory may be added: what there is may do.
        let (number, object) = place.or_else(|| self.place_in_committed(shelf, class))?;
        let group = self.group(number);
        group.flip(object);
        group.num_live.set(group.num_live.get() + 1);
        shelf.num_live.store(shelf.num_live.load(Relaxed) + 1, Relaxed);
        self.relist(shelf, class, number);
        Some(u64::from(number) * GROUP_BYTES as u64 + u64::from(object * class.size))
    }

    /// Fuller groups first: the others have a chance of becoming empty.
    fn place_in_fullest(&self, shelf: &Shelf, class: Class) -> Option<(u32, u32)> {
        let number = shelf.heads.iter().rev().map(Cell::get).find(|&head| head != NIL)?;
        Some((number, self.place_in(number, class, true)?))
    }

    /// Where no page has to be added.
    fn place_in_committed(&self, shelf: &Shelf, class: Class) -> Option<(u32, u32)> {
        let mut num_searched = 0;
        for head in shelf.heads.iter().rev() {
            let mut number = head.get();
            while number != NIL && num_searched < SEARCH_MAX {
                if let Some(object) = self.place_in(number, class, false) {
                    return Some((number, object));
                }
                number = self.group(number).next.get();
                num_searched += 1;
            }
        }
        None
    }

    /// In a group that gets this class.
    fn place_in_spare(&self, index: ClassIndex, class: Class) -> Option<(u32, u32)> {
        let _lock = Locked::new(&self.spare.lock);
        let (head, num_started) = (self.spare.head.get(), self.spare.num_started.load(Relaxed));
        if head != NIL
            && let Some(object) = self.place_in(head, class, true)
        {
            self.spare.head.set(self.group(head).next.get());
            self.group(head).class.store(index + 1, Release);
            return Some((head, object));
        }
        // The first of the spare ones may be about to be given back.
        if num_started == self.num_groups || !self.reserve(size_of::<Group>() as u64) {
            return None;
        }
        let Some(object) = self.place_in(num_started, class, true) else {
            self.release(size_of::<Group>() as u64);
            return None;
        };
        self.spare.num_started.store(num_started + 1, Relaxed);
        self.group(num_started).class.store(index + 1, Release);
        Some((num_started, object))
    }

    /// `may_commit`: also where pages have to be added.
    fn place_in(&self, number: u32, class: Class, may_commit: bool) -> Option<u32> {
        let group = self.group(number);
        let forbidden = group.releasing.get() | if may_commit { 0 } else { !group.committed.get() };
        group.find_free(class, forbidden).filter(|&object| self.commit(group, class, object))
    }

    /// Accounts for the pages of an object that is going to live; false if that would be too many.
    fn commit(&self, group: &Group, class: Class, object: u32) -> bool {
        let pages = class.pages_of_object(object);
        let committed = group.committed.get();
        let num_added = (pages & !committed).count_ones() as usize;
        if num_added > 0 {
            if !self.reserve(bytes_of(num_added) as u64) {
                return false;
            }
            group.committed.set(committed | pages);
        }
        let num_idle = group.without_objects(class, pages & committed).count_ones();
        if num_idle > 0 {
            self.num_idle.fetch_sub(u64::from(num_idle), Relaxed);
        }
        true
    }

    /// Frees the place of an object.
    pub(super) fn free(&self, offset: u64) {
        let (number, start) = ((offset / GROUP_BYTES as u64) as u32, (offset % GROUP_BYTES as u64) as u32);
        let group = self.group(number);
        // It has an object, hence keeps its class.
        let index = group.class.load(Acquire) - 1;
        let (shelf, class) = (&self.shelves[usize::from(index)], class(index));
        let object = start / class.size;
        let lock = Locked::new(&shelf.lock);
        debug_assert!(group.is_live(object) && object * class.size == start);
        group.flip(object);
        group.num_live.set(group.num_live.get() - 1);
        shelf.num_live.store(shelf.num_live.load(Relaxed) - 1, Relaxed);
        let num_idle = group.without_objects(class, class.pages_of_object(object)).count_ones();
        if num_idle > 0 {
            self.num_idle.fetch_add(u64::from(num_idle), Relaxed);
            self.note_idle(number);
        }
        self.relist(shelf, class, number);
        drop(lock);
        self.trim_beyond_reserve();
    }

    /// Puts a group whose number of objects has changed into the list where it belongs.
    fn relist(&self, shelf: &Shelf, class: Class, number: u32) {
        let group = self.group(number);
        let num_live = u32::from(group.num_live.get());
        let list = if num_live == 0 || num_live == class.num_objects { NO_LIST } else { 1 + (num_live * NUM_LISTS as u32 / class.num_objects) as u8 };
        if list != group.list.get() {
            self.unlink(shelf, group);
            self.link(shelf, number, list);
        }
        if num_live == 0 {
            let _lock = Locked::new(&self.spare.lock);
            group.class.store(NO_CLASS, Release);
            group.next.set(self.spare.head.replace(number));
        }
    }

    fn unlink(&self, shelf: &Shelf, group: &Group) {
        let list = group.list.replace(NO_LIST);
        if list == NO_LIST {
            return;
        }
        let (next, previous) = (group.next.get(), group.previous.get());
        match previous {
            NIL => shelf.heads[usize::from(list) - 1].set(next),
            _ => self.group(previous).next.set(next),
        }
        if next != NIL {
            self.group(next).previous.set(previous);
        }
    }

    fn link(&self, shelf: &Shelf, number: u32, list: u8) {
        if list == NO_LIST {
            return;
        }
        let group = self.group(number);
        let next = shelf.heads[usize::from(list) - 1].replace(number);
        if next != NIL {
            self.group(next).previous.set(number);
        }
        group.next.set(next);
        group.previous.set(NIL);
        group.list.set(list);
    }

    /// Groups that were ever used.
    #[cfg(test)]
    pub(super) fn num_started(&self) -> u32 {
        self.spare.num_started.load(Relaxed)
    }

    #[cfg(test)]
    pub(super) fn groups_memory(&self) -> &Mapping {
        &self.groups
    }

    /// Runs `action` with a group under the lock that guards it, and its class.
    pub(super) fn with_group<R>(&self, number: u32, action: impl FnOnce(&Group, Option<Class>) -> R) -> R {
        let group = self.group(number);
        loop {
            let index = group.class.load(Acquire);
            let lock = if index == NO_CLASS { &self.spare.lock } else { &self.shelves[usize::from(index) - 1].lock };
            let _lock = Locked::new(lock);
            if group.class.load(Relaxed) == index {
                return action(group, (index != NO_CLASS).then(|| class(index - 1)));
            }
        }
    }
}
