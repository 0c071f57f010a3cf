//! Slabs: runs of pages that are divided into objects of one class.
//!
//! Slabs with room hang on lists of their class: *warm* ones by how full they are, *cold* ones, and a few that are empty. Warm means that the last free in it was of an
//! object whose page was resident, or the last allocation put it there; whether it still is gets known when it comes to the head of its list: then the words of its
//! pages are read, and a slab without room that needs no read from the backend goes to the cold ones. Where no warm slab has room, some cold ones are
//! looked at, in turn: accesses to their objects may have brought them in. So an allocation looks at a bounded number of slabs, and usually at one.

use super::classes::{Class, class};
use super::table::{Kind, NIL, Table};
use crate::notifier::die;
use crate::page_table::PageState;
use crate::parking::SpinLock;
use crate::region::RegionInner;
use crate::size::bytes_of;
use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Not on a list: full.
const NO_LIST: usize = 0;
/// The warm lists, from the emptiest slabs to the fullest.
const WARM: std::ops::RangeInclusive<usize> = 1..=4;
const COLD: usize = 5;
const EMPTY: usize = 6;
const NUM_LISTS: usize = 7;
/// Warm slabs that an allocation looks at, and as many cold ones.
const LOOKS: usize = 8;
/// Empty slabs that a class keeps, resident: an object that is freed and allocated again and again should cost no pages.
const EMPTY_MAX: u64 = 1;

/// How an allocation came by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// On pages that were resident.
    Resident = 0,
    /// On pages that were never touched, or were given back since.
    Fresh = 1,
    /// On pages that have to be read from the backend.
    Cold = 2,
}

/// A class and its slabs.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Shelf {
    lock: SpinLock,
    /// Heads; the lists are circular.
    heads: [Cell<u32>; NUM_LISTS],
    num_slabs: AtomicU64,
    num_full: AtomicU64,
    num_empty: AtomicU64,
    /// Objects in use.
    num_used: AtomicU64,
    /// The slab of the last allocation: the next one's too, if it can.
    last: AtomicU32,
    /// Allocations by [`Found`].
    allocations: [AtomicU64; 3],
}

// SAFETY: the cells are accessed under the lock only.
unsafe impl Sync for Shelf {}
// SAFETY: as above.
unsafe impl Send for Shelf {}

/// Adds to a counter that is written under a lock, and read without.
fn add(counter: &AtomicU64, amount: i64) {
    counter.store(counter.load(Relaxed).wrapping_add_signed(amount), Relaxed);
}

/// A place for an object: its slab and number.
pub(super) type Place = (u32, u32);

impl Shelf {
    pub(super) const fn new() -> Self {
        Self {
            lock: SpinLock::new(),
            heads: [const { Cell::new(NIL) }; NUM_LISTS],
            num_slabs: AtomicU64::new(0),
            num_full: AtomicU64::new(0),
            num_empty: AtomicU64::new(0),
            num_used: AtomicU64::new(0),
            last: AtomicU32::new(NIL),
            allocations: [const { AtomicU64::new(0) }; 3],
        }
    }

    pub(super) fn lock<'a>(&'a self, table: &'a Table, region: &'static RegionInner, index: usize) -> LockedShelf<'a> {
        self.lock.lock();
        LockedShelf { shelf: self, table, region, index, class: class(index) }
    }

    /// The lock alone, around a fork.
    pub(super) fn raw_lock(&self) -> &SpinLock {
        &self.lock
    }

    pub(super) fn num_slabs(&self) -> u64 {
        self.num_slabs.load(Relaxed)
    }

    pub(super) fn num_empty(&self) -> u64 {
        self.num_empty.load(Relaxed)
    }

    pub(super) fn num_used(&self) -> u64 {
        self.num_used.load(Relaxed)
    }

    pub(super) fn num_allocations(&self, found: Found) -> u64 {
        self.allocations[found as usize].load(Relaxed)
    }

    /// Whether less than a seventh of all places is free, so that another slab does not make much of a difference.
    pub(super) fn is_dense(&self, class: Class) -> bool {
        let num_places = self.num_slabs() * u64::from(class.num_objects);
        self.num_used() * 8 >= num_places * 7
    }

    /// Whether the slab, of which so many objects are in use, is less full than the slabs with room are on average. An eighth more counts as less, or nothing
    /// would move where all are equally full.
    pub(super) fn is_sparse(&self, slab: u32, num_used: u64, class: Class) -> bool {
        let num_full = self.num_full.load(Relaxed);
        let num_partial = self.num_slabs().saturating_sub(num_full + self.num_empty());
        let in_partial = self.num_used().saturating_sub(num_full * u64::from(class.num_objects));
        num_used < u64::from(class.num_objects) && num_partial > 1 && slab != self.last.load(Relaxed) && num_used * num_partial * 8 <= in_partial * 9
    }
}

/// A class and its slabs, locked.
pub(super) struct LockedShelf<'a> {
    shelf: &'a Shelf,
    table: &'a Table,
    region: &'static RegionInner,
    index: usize,
    class: Class,
}

impl Drop for LockedShelf<'_> {
    fn drop(&mut self) {
        self.shelf.lock.unlock();
    }
}

impl LockedShelf<'_> {
    /// A place that needs no read from the backend; with `only_resident` none that needs a zeroed page, either.
    pub(super) fn allocate_warm(&self, only_resident: bool) -> Option<Place> {
        let mut num_looks = 0;
        for list in WARM.rev() {
            while let Some(slab) = self.head(list).filter(|_| num_looks < LOOKS) {
                if let Some((object, found)) = self.find(slab, only_resident) {
                    return Some(self.take(slab, object, found));
                }
                self.enlist(slab, COLD);
                num_looks += 1;
            }
        }
        for _ in 0..LOOKS {
            let slab = self.head(COLD)?;
            if let Some((object, found)) = self.find(slab, only_resident) {
                return Some(self.take(slab, object, found));
            }
            self.shelf.heads[COLD].set(self.table.info(slab).next.load(Relaxed));
        }
        None
    }

    /// A place in a slab that is kept empty.
    pub(super) fn allocate_empty(&self, only_resident: bool) -> Option<Place> {
        let slab = self.head(EMPTY)?;
        let (object, found) = self.find(slab, only_resident)?;
        Some(self.take(slab, object, found))
    }

    /// A place in any slab that has room, whatever it costs.
    pub(super) fn allocate_cold(&self) -> Option<Place> {
        let slab = [COLD].into_iter().chain(WARM).find_map(|list| self.head(list))?;
        let object = self.first_free(slab)?;
        Some(self.take(slab, object, Found::Cold))
    }

    /// A place in a new slab, made of pages that the caller has taken.
    pub(super) fn allocate_in_new(&self, slab: u32) -> Place {
        let info = self.table.info(slab);
        info.set_class(self.index);
        info.num_used.store(0, Relaxed);
        for word in self.table.bits(slab, self.class) {
            word.store(0, Relaxed);
        }
        for page in slab + 1..slab + self.class.num_pages {
            self.table.info(page).set_kind(Kind::SlabInner, slab);
        }
        info.set_kind(Kind::Slab, slab);
        add(&self.shelf.num_slabs, 1);
        self.take(slab, 0, Found::Fresh)
    }

    /// Frees an object. The slab is returned if it is empty and no longer one: its pages are the caller's.
    pub(super) fn free(&self, (slab, object): Place) -> Option<u32> {
        let info = self.table.info(slab);
        let word = &self.table.bits(slab, self.class)[object as usize / 64];
        let bit = 1 << (object % 64);
        if info.kind() != Kind::Slab || info.class_index() != self.index || word.load(Relaxed) & bit == 0 {
            let address = self.region.start() + bytes_of(slab as usize) + (object * self.class.size) as usize;
            die(format_args!("heap: the object at {address:#x} is freed that is not in use: freed twice?"));
        }
        word.store(word.load(Relaxed) & !bit, Relaxed);
        let num_used = info.num_used.load(Relaxed) - 1;
        info.num_used.store(num_used, Relaxed);
        add(&self.shelf.num_used, -1);
        if info.list() == NO_LIST {
            add(&self.shelf.num_full, -1);
        }
        if num_used == 0 {
            // A child of fork() cannot make slabs of other pages.
            if self.region.is_inherited() || (self.shelf.num_empty() < EMPTY_MAX && self.costs(slab).unmapped == 0) {
                self.enlist(slab, EMPTY);
                add(&self.shelf.num_empty, 1);
                return None;
            }
            return Some(self.dissolve(slab));
        }
        let is_warm = self.costs(slab).unmapped & self.class.pages_of_object(object) == 0;
        if is_warm || WARM.contains(&info.list()) {
            self.enlist(slab, self.warm_list(num_used));
        } else {
            self.enlist(slab, COLD);
        }
        None
    }

    /// Gives up a slab that is kept empty, if there is one.
    pub(super) fn give_up_empty(&self) -> Option<u32> {
        let slab = self.head(EMPTY)?;
        add(&self.shelf.num_empty, -1);
        Some(self.dissolve(slab))
    }

    fn dissolve(&self, slab: u32) -> u32 {
        self.delist(slab);
        self.table.info(slab).set_kind(Kind::Inner, 0);
        add(&self.shelf.num_slabs, -1);
        slab
    }

    fn take(&self, slab: u32, object: u32, found: Found) -> Place {
        let info = self.table.info(slab);
        if info.list() == EMPTY {
            add(&self.shelf.num_empty, -1);
        }
        let word = &self.table.bits(slab, self.class)[object as usize / 64];
        word.store(word.load(Relaxed) | 1 << (object % 64), Relaxed);
        let num_used = info.num_used.load(Relaxed) + 1;
        info.num_used.store(num_used, Relaxed);
        add(&self.shelf.num_used, 1);
        add(&self.shelf.allocations[found as usize], 1);
        if u32::from(num_used) == self.class.num_objects {
            add(&self.shelf.num_full, 1);
            self.delist(slab);
        } else {
            self.enlist(slab, self.warm_list(num_used));
        }
        self.shelf.last.store(slab, Relaxed);
        (slab, object)
    }

    fn warm_list(&self, num_used: u16) -> usize {
        let quarter = (usize::from(num_used) * 4 / self.class.num_objects as usize).min(3);
        WARM.start() + quarter
    }

    fn is_used(&self, slab: u32, object: u32) -> bool {
        self.table.bits(slab, self.class)[object as usize / 64].load(Relaxed) & 1 << (object % 64) != 0
    }

    fn first_free(&self, slab: u32) -> Option<u32> {
        let words = self.table.bits(slab, self.class).iter().map(|word| word.load(Relaxed)).enumerate();
        let first = words.into_iter().find(|(_, word)| *word != u64::MAX).map(|(number, word)| number as u32 * 64 + word.trailing_ones());
        first.filter(|object| *object < self.class.num_objects)
    }

    /// A free object of the slab: the first on resident pages, or else, unless these only will do, on pages that need no read.
    fn find(&self, slab: u32, only_resident: bool) -> Option<(u32, Found)> {
        let costs = self.costs(slab);
        if costs.unmapped == 0 {
            return self.first_free(slab).map(|object| (object, Found::Resident));
        }
        let free = || (0..self.class.num_objects).filter(|object| !self.is_used(slab, *object));
        let on = |bad: u32| free().find(|object| self.class.pages_of_object(*object) & bad == 0);
        let all = (2 << (self.class.num_pages - 1)) - 1;
        if costs.unmapped != all
            && let Some(object) = on(costs.unmapped)
        {
            return Some((object, Found::Resident));
        }
        if only_resident || costs.cold == all {
            return None;
        }
        on(costs.cold).map(|object| (object, Found::Fresh))
    }

    /// Reads the words of the slab's pages.
    fn costs(&self, slab: u32) -> Costs {
        let mut costs = Costs { unmapped: 0, cold: 0 };
        for number in 0..self.class.num_pages {
            let word = self.region.page((slab + number) as usize).entry().load();
            if !word.is_mapped() {
                costs.unmapped |= 1 << number;
                costs.cold |= u32::from(word.state() != PageState::Untouched) << number;
            }
        }
        costs
    }

    fn head(&self, list: usize) -> Option<u32> {
        Some(self.shelf.heads[list].get()).filter(|slab| *slab != NIL)
    }

    /// Moves a slab to a list, unless it is there.
    fn enlist(&self, slab: u32, list: usize) {
        let info = self.table.info(slab);
        if info.list() == list {
            return;
        }
        self.delist(slab);
        info.set_list(list);
        match self.head(list) {
            None => {
                info.next.store(slab, Relaxed);
                info.previous.store(slab, Relaxed);
            }
            Some(head) => {
                let last = self.table.info(head).previous.load(Relaxed);
                info.next.store(head, Relaxed);
                info.previous.store(last, Relaxed);
                self.table.info(last).next.store(slab, Relaxed);
                self.table.info(head).previous.store(slab, Relaxed);
            }
        }
        // The last that was seen resident is the likeliest to be so still; cold ones wait their turn.
        if list != COLD || self.head(list).is_none() {
            self.shelf.heads[list].set(slab);
        }
    }

    fn delist(&self, slab: u32) {
        let info = self.table.info(slab);
        let list = info.list();
        if list == NO_LIST {
            return;
        }
        info.set_list(NO_LIST);
        let (next, previous) = (info.next.load(Relaxed), info.previous.load(Relaxed));
        if next == slab {
            self.shelf.heads[list].set(NIL);
            return;
        }
        self.table.info(previous).next.store(next, Relaxed);
        self.table.info(next).previous.store(previous, Relaxed);
        if self.shelf.heads[list].get() == slab {
            self.shelf.heads[list].set(next);
        }
    }
}

/// Pages of a slab, a bit each.
struct Costs {
    /// Not resident,
    unmapped: u32,
    /// and neither untouched.
    cold: u32,
}
