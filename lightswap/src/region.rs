//! Regions: ranges of virtual memory that Lightswap manages, and the table through which a faulting address finds its region.

use crate::error::{Error, ErrorKind, Result};
use crate::fault_table;
use crate::instance::Instance;
use crate::page_table::PageEntry;
use crate::pager::Pager;
use crate::residency::{CHUNK_PAGES, Residency};
use crate::size::{PAGE_SIZE, bytes_of, pages_in, round_up};
use crate::sys::mapping::Mapping;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicUsize};

/// Who may write a page of a region, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Contract {
    /// Any code may write any page at any time. Victims are write-protected while they are hashed and written out.
    Transparent = 0,
    /// Code pins pages before it writes them. No write protection; a write to a page that is not pinned may be lost.
    Cooperative = 1,
}

const REGION_ALIGN: usize = CHUNK_PAGES * PAGE_SIZE;

/// The inside of a region.
#[derive(Debug)]
pub(crate) struct RegionInner {
    pub(crate) pager: Arc<Pager>,
    /// Regions keep their instance alive.
    _instance: Arc<Instance>,
    memory: Mapping,
    table: Mapping,
    num_pages: usize,
    /// Its pages own the slots from here on: one each, and after those a second one each if there are snapshots.
    pub(crate) first_slot: usize,
    has_alternates: bool,
    pub(crate) contract: Contract,
    pub(crate) residency: Residency,
    /// Swap-ins on their way, which a destruction waits for.
    pub(crate) num_swapping_in: AtomicUsize,
}

/// A page of a region: the unit all of the pager works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page<'a> {
    pub(crate) region: &'a RegionInner,
    pub(crate) index: usize,
}

impl<'a> Page<'a> {
    pub(crate) fn entry(self) -> &'a PageEntry {
        self.region.entry(self.index)
    }

    /// First address of the page.
    pub(crate) fn address(self) -> usize {
        self.region.start() + bytes_of(self.index)
    }

    /// What those who wait for the page park on.
    pub(crate) fn key(self) -> usize {
        self.address()
    }

    /// The one that its content is in, if any is, and that it is written to next, unless a snapshot needs it. For the page's owner; for others a hint.
    pub(crate) fn slot(self) -> usize {
        self.slot_of(self.region.has_alternates && self.entry().load().is_alternate())
    }

    pub(crate) fn slot_of(self, is_alternate: bool) -> usize {
        self.region.first_slot + if is_alternate { self.region.num_pages } else { 0 } + self.index
    }

    /// Counts the page in or out of the resident ones of its chunk.
    pub(crate) fn count_resident(self, resident: bool) {
        if resident {
            self.region.residency.add(self.index);
        } else {
            self.region.residency.remove(self.index);
        }
    }
}

impl RegionInner {
    /// Maps memory for a region whose slots start at `first_slot`; not registered yet.
    pub(crate) fn new(instance: Arc<Instance>, num_bytes: usize, first_slot: usize, contract: Contract) -> Result<Self> {
        let num_pages = pages_in(num_bytes);
        let memory = Mapping::new(num_bytes, REGION_ALIGN)?;
        // One page of a huge page cannot leave; and core dumps would trip over missing pages.
        memory.advise(libc::MADV_NOHUGEPAGE);
        memory.advise(libc::MADV_DONTDUMP);
        memory.name(c"lightswap-region");
        let table_bytes = round_up(num_pages * size_of::<PageEntry>(), PAGE_SIZE).expect("smaller than the region");
        let table = Mapping::new(table_bytes, PAGE_SIZE)?;
        let residency = Residency::new(num_pages)?;
        Ok(Self {
            has_alternates: instance.pager().snapshots.is_some(),
            pager: instance.pager().clone(),
            _instance: instance,
            memory,
            table,
            num_pages,
            first_slot,
            contract,
            residency,
            num_swapping_in: AtomicUsize::new(0),
        })
    }

    pub(crate) fn start(&self) -> usize {
        self.memory.base() as usize
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.memory.base()
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.memory.len()
    }

    pub(crate) fn num_pages(&self) -> usize {
        self.num_pages
    }

    pub(crate) fn num_slots(&self) -> usize {
        self.num_pages * self.pager.slots_per_page()
    }

    /// Makes sure that the backend has room for pages, whichever of their slots they will be in. Async-signal-safe.
    pub(crate) fn reserve(&self, first: usize, num_pages: usize) -> std::io::Result<()> {
        let page = self.page(first);
        self.pager.backend.reserve(page.slot_of(false), num_pages)?;
        if self.has_alternates { self.pager.backend.reserve(page.slot_of(true), num_pages) } else { Ok(()) }
    }

    /// Gives all its memory back; it is being destroyed.
    pub(crate) fn discard(&self) {
        self.memory.discard(0, self.memory.len());
    }

    pub(crate) fn contains(&self, address: usize) -> bool {
        (self.start()..self.start() + self.num_bytes()).contains(&address)
    }

    pub(crate) fn is_transparent(&self) -> bool {
        self.contract == Contract::Transparent
    }

    pub(crate) fn page(&self, index: usize) -> Page<'_> {
        Page { region: self, index }
    }

    /// Whether it came into this process by fork. Async-signal-safe.
    pub(crate) fn is_inherited(&self) -> bool {
        self.pager.is_inherited()
    }

    /// The page that holds `address`, which must lie inside.
    pub(crate) fn page_at(&self, address: usize) -> Page<'_> {
        self.page(pages_in(address - self.start()))
    }

    fn entry(&self, index: usize) -> &PageEntry {
        assert!(index < self.num_pages);
        // SAFETY: the table has an entry for each page; zeroed memory is a valid entry (Untouched) and entries consist of atomics.
        unsafe { &*self.table.base().cast::<PageEntry>().add(index) }
    }
}

/// Most regions of a process: every fault looks through the table of them.
pub(crate) const MAX_REGIONS: usize = 64;

/// A registered region; never changed and never freed (32 bytes each), so that readers need only load a pointer.
#[derive(Debug)]
struct Registered {
    start: usize,
    end: usize,
    region: *const RegionInner,
    /// Address of its pager, so that the hand of one need not look into the regions of another.
    pager: usize,
}

// SAFETY: never changed; whoever follows `region` sees to its lifetime.
unsafe impl Sync for Registered {}

static REGISTRY: [AtomicPtr<Registered>; MAX_REGIONS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_REGIONS];
/// One more than the highest place ever used.
static NUM_PLACES: AtomicUsize = AtomicUsize::new(0);
static REGISTERING: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn registered(place: usize) -> Option<&'static Registered> {
    // SAFETY: null, or leaked by `register`.
    unsafe { REGISTRY[place].load(Acquire).as_ref() }
}

fn all_registered() -> impl Iterator<Item = &'static Registered> {
    (0..NUM_PLACES.load(Acquire)).filter_map(registered)
}

/// Makes a region findable.
pub(crate) fn register(region: &Arc<RegionInner>) -> Result<()> {
    let _guard = REGISTERING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let free = REGISTRY.iter().position(|place| place.load(Relaxed).is_null());
    let place = free.ok_or_else(|| Error::new(ErrorKind::Busy, format!("this process has {MAX_REGIONS} regions already, the most there can be")))?;
    let (start, end) = (region.start(), region.start() + region.num_bytes());
    let entry = Registered { start, end, region: Arc::as_ptr(region), pager: Arc::as_ptr(&region.pager) as usize };
    REGISTRY[place].store(Box::into_raw(Box::new(entry)), Release);
    NUM_PLACES.fetch_max(place + 1, Release);
    fault_table::show_region(place, start, end);
    Ok(())
}

/// Undoes [`register`].
pub(crate) fn unregister(region: &RegionInner) {
    let _guard = REGISTERING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let is_it = |place: &usize| registered(*place).is_some_and(|entry| std::ptr::eq(entry.region, region));
    if let Some(place) = (0..MAX_REGIONS).find(is_it) {
        REGISTRY[place].store(std::ptr::null_mut(), Release);
        fault_table::hide_region(place);
    }
}

/// The region that holds `address`. Async-signal-safe.
///
/// The reference is good while the region exists; it is the caller's (that is, the user's) duty not to destroy a region that is in use.
pub(crate) fn find(address: usize) -> Option<&'static RegionInner> {
    let entry = all_registered().find(|entry| (entry.start..entry.end).contains(&address))?;
    // SAFETY: registered regions are alive; see above for how long.
    Some(unsafe { &*entry.region })
}

/// How many of `len` bytes at `address`, which is in no region, lie before the next one.
pub(crate) fn len_outside(address: usize, len: usize) -> usize {
    all_registered().map(|entry| entry.start).filter(|start| *start > address).fold(len, |len, start| len.min(start - address))
}

/// The region registered in `place` if it is paged by `pager`. The caller holds the pager's hand, which a destruction takes first.
pub(crate) fn in_place(place: usize, pager: &Pager) -> Option<&'static RegionInner> {
    let entry = registered(place).filter(|entry| entry.pager == std::ptr::from_ref(pager) as usize)?;
    // SAFETY: as in `find`; the hand's lock keeps the region from being destroyed before the caller has a claim on it.
    Some(unsafe { &*entry.region })
}

/// Calls `visit` for each region of the process. Async-signal-safe if `visit` is.
pub(crate) fn for_each(mut visit: impl FnMut(&RegionInner)) {
    // SAFETY: as in `find`.
    all_registered().for_each(|entry| visit(unsafe { &*entry.region }));
}
