//! In the child: pages that are missing come from the parent, and leave again when others do.
//!
//! What the page table says is this process's own copy. A page that was fetched is Resident like any other; when too many were, the one that was fetched first goes back to
//! SwappedOut, unless the child has changed or pinned it: there is nowhere to write it to. Pages that were mapped at the fork stay.
//!
//! All of it runs in the SIGBUS handler as well: nothing is allocated, and the lock is held by nobody who could be interrupted by a fault of his own. Its
//! holder waits for the parent, and the others for him, no longer than the time limit of a read.

use super::Snapshots;
use super::wire::{self, Answer, Request, Sent, WINDOW};
use crate::discard;
use crate::error::Result as AnyResult;
use crate::failure::RawCause;
use crate::page_table::{PageState, Pinned};
use crate::pager::Pager;
use crate::region::{Page, RegionInner};
use crate::size::PAGE_SIZE;
use crate::sys::mapping::Mapping;
use crate::sys::{self, futex};
use crate::try_catch;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicU32};
use std::time::Duration;

/// Of local memory, what fetched pages may take; and fewest and most of them.
const LOCAL_SHARE: usize = 16;
const MIN_FETCHED: usize = 4 * WINDOW;
const MAX_FETCHED: usize = 1 << 14;

/// The parent is gone, or has given this process up.
const NO_PARENT: RawCause = RawCause(libc::ENOTCONN);

#[derive(Debug)]
pub(super) struct Child {
    /// To the parent; -1 if this process has none, or cannot read its pages.
    socket: AtomicI32,
    lock: Lock,
    state: UnsafeCell<State>,
}

// SAFETY: the state is accessed under the lock only.
unsafe impl Sync for Child {}
// SAFETY: as above.
unsafe impl Send for Child {}

#[derive(Debug)]
struct State {
    /// A page, for answers.
    buffer: Mapping,
    /// What the parent was asked for and has not answered, and under which tag.
    asked: [Option<(u64, Page<'static>)>; WINDOW],
    num_asked: u64,
    /// Pages that were fetched and can be dropped, the oldest first; never grows past its capacity.
    fetched: VecDeque<Page<'static>>,
    most_fetched: usize,
}

/// The way to the pages of an inherited region, if there is one. Async-signal-safe.
pub(crate) fn of(region: &RegionInner) -> Option<&Snapshots> {
    region.pager.snapshots.as_ref().filter(|snapshots| region.is_inherited() && snapshots.child.socket.load(Relaxed) >= 0)
}

/// [`crate::swap_in::make_resident`] in a child that can read the page's region. Async-signal-safe.
pub(crate) fn make_resident(page: Page<'static>) -> Result<Pinned, RawCause> {
    let pager = &*page.region.pager;
    let child = &of(page.region).ok_or(NO_PARENT)?.child;
    let (entry, tick) = (page.entry(), pager.budget.tick());
    if let Ok(pinned) = entry.pin(tick) {
        return Ok(pinned);
    }
    let end_ns = sys::now_ns().saturating_add(pager.io_timeout_ns());
    let mut session = child.enter(end_ns).ok_or(RawCause::TIMED_OUT)?;
    // Under the lock, so that it does not leave in between.
    match entry.pin(tick) {
        Ok(pinned) => Ok(pinned),
        Err(_) => {
            session.bring_in(page, end_ns)?;
            // What another thread of this process has discarded with calls of its own is nothing that can be fetched.
            entry.pin(tick).map_err(|_| RawCause::POISONED)
        }
    }
}

/// [`crate::swap_in::prefetch`], likewise.
pub(crate) fn prefetch(page: Page<'static>) {
    let Some(mut session) = of(page.region).and_then(|snapshots| snapshots.child.try_enter()) else { return };
    // Places for it may be free by now.
    while session.receive(0).is_ok() {}
    let word = page.entry().load();
    if matches!(word.state(), PageState::SwappedOut | PageState::SwappingIn) && word.is_stored() && !session.is_asked(page) {
        let _ = session.try_ask(page);
    }
}

impl Child {
    pub(super) fn new(local_pages: usize) -> AnyResult<Self> {
        let most_fetched = (local_pages / LOCAL_SHARE).clamp(MIN_FETCHED, MAX_FETCHED);
        let state = State {
            buffer: Mapping::new(PAGE_SIZE, PAGE_SIZE)?,
            asked: [None; WINDOW],
            num_asked: 0,
            fetched: VecDeque::with_capacity(most_fetched),
            most_fetched,
        };
        Ok(Self { socket: AtomicI32::new(-1), lock: Lock::new(), state: UnsafeCell::new(state) })
    }

    /// This process is a child from now on; one of a child, if it had a socket, which is its parent's.
    pub(super) fn begin(&self, socket: RawFd) {
        super::close(self.socket.swap(socket, Relaxed));
        self.lock.reset();
    }

    /// Before a fork of a child: its threads fetch nothing meanwhile. `false` if they take too long.
    pub(super) fn pause(&self, end_ns: u64) -> bool {
        self.lock.lock(end_ns)
    }

    pub(super) fn go_on(&self) {
        self.lock.unlock();
    }

    fn enter(&self, end_ns: u64) -> Option<Session<'_>> {
        // SAFETY: the lock is taken until the session ends.
        self.lock.lock(end_ns).then(|| Session { child: self, state: unsafe { &mut *self.state.get() } })
    }

    fn try_enter(&self) -> Option<Session<'_>> {
        self.enter(0)
    }
}

/// The lock is taken.
struct Session<'a> {
    child: &'a Child,
    state: &'a mut State,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.child.lock.unlock();
    }
}

impl Session<'_> {
    fn socket(&self) -> RawFd {
        self.child.socket.load(Relaxed)
    }

    /// Maps a page that is missing.
    fn bring_in(&mut self, page: Page<'static>, end_ns: u64) -> Result<(), RawCause> {
        let word = page.entry().load();
        match word.state() {
            PageState::Failed if word.has_frame() => Err(RawCause::POISONED),
            // Some other thread's at the fork, whose work was not to be seen half done: the fork took too long.
            PageState::Removing => Err(NO_PARENT),
            _ if word.is_stored() => self.fetch(page, end_ns),
            _ => {
                let mapped = ready(page.region.pager.uffd.zero_page(page.address()));
                if mapped.is_ok() {
                    set_resident(page);
                }
                mapped
            }
        }
    }

    fn fetch(&mut self, page: Page<'static>, end_ns: u64) -> Result<(), RawCause> {
        while !self.is_asked(page) {
            match self.try_ask(page) {
                Sent::Done => {}
                Sent::Later => _ = self.receive(end_ns)?,
                Sent::Over => return Err(NO_PARENT),
            }
        }
        loop {
            let (settled, result) = self.receive(end_ns)?;
            if settled.is_some_and(|settled| is_same(settled, page)) {
                return result;
            }
        }
    }

    fn is_asked(&self, page: Page<'static>) -> bool {
        self.state.asked.iter().flatten().any(|(_, asked)| is_same(*asked, page))
    }

    /// Asks for a page unless too many are asked for.
    fn try_ask(&mut self, page: Page<'static>) -> Sent {
        let Some(place) = self.state.asked.iter().position(Option::is_none) else { return Sent::Later };
        let tag = self.state.num_asked;
        let sent = wire::send_request(self.socket(), Request { tag, slot: page.slot() as u64, hash: page.entry().hash() });
        if sent == Sent::Done {
            self.state.num_asked += 1;
            self.state.asked[place] = Some((tag, page));
        }
        sent
    }

    /// Takes the next answer in, waiting for it until `end_ns`: what page it was for, and whether that is mapped now.
    fn receive(&mut self, end_ns: u64) -> Result<(Option<Page<'static>>, Result<(), RawCause>), RawCause> {
        let buffer = self.state.buffer.base();
        let Answer { tag, cause } = loop {
            match wire::receive_answer(self.socket(), buffer) {
                Ok(answer) => break answer,
                Err(Sent::Later) => {
                    let left_ns = end_ns.saturating_sub(sys::now_ns());
                    if left_ns == 0 || wire::wait(self.socket(), libc::POLLIN, left_ns) == 0 {
                        return Err(RawCause::TIMED_OUT);
                    }
                }
                Err(_) => return Err(NO_PARENT),
            }
        };
        let Some(place) = self.state.asked.iter().position(|asked| asked.is_some_and(|(asked, _)| asked == tag)) else {
            return Err(NO_PARENT);
        };
        let page = self.state.asked[place].take().map(|(_, page)| page);
        let result = match page {
            Some(page) if cause == 0 => self.map(page, buffer),
            _ => Err(RawCause(i32::try_from(cause).unwrap_or(libc::EIO))),
        };
        Ok((page, result))
    }

    /// Maps what was fetched.
    fn map(&mut self, page: Page<'static>, content: *const u8) -> Result<(), RawCause> {
        let (pager, entry) = (&*page.region.pager, page.entry());
        if entry.load().is_mapped() {
            return Ok(());
        }
        // SAFETY: our buffer, which nobody else uses.
        if unsafe { pager.hash_page(content) } != entry.hash() {
            return Err(RawCause::WRONG_HASH);
        }
        if self.state.fetched.len() == self.state.most_fetched {
            self.drop_one(pager);
        }
        // SAFETY: as above; the page is of a region that this process has registered.
        ready(unsafe { pager.uffd.copy_page(page.address(), content) })?;
        set_resident(page);
        if self.state.fetched.len() < self.state.most_fetched {
            self.state.fetched.push_back(page);
        }
        Ok(())
    }

    /// Drops the page that was fetched first of those that can be dropped; those that the child has changed are its own from now on.
    fn drop_one(&mut self, pager: &Pager) {
        for _ in 0..self.state.fetched.len() {
            let Some(page) = self.state.fetched.pop_front() else { return };
            let entry = page.entry();
            entry.forget_references();
            if entry.select_victim().is_none() {
                if !entry.load().is_mapped() {
                    return;
                }
                // Pinned, or another thread has just used it.
                self.state.fetched.push_back(page);
                continue;
            }
            // As any eviction: a write that comes meanwhile faults, and cancels it.
            let protects = page.region.is_transparent();
            let is_protected = !protects || pager.uffd.write_protect(page.address(), 1, true).is_ok();
            // SAFETY: it is mapped, as only the holder of the lock removes pages. A hash has nothing to clean up.
            let hash = unsafe { try_catch::try_without_paging(|| pager.hash_page(page.address() as *const u8)) };
            if hash.is_err() {
                discard::lose(page);
            } else if is_protected && hash == Ok(entry.hash()) && entry.begin_removal() {
                // SAFETY: the page is ours in Removing.
                unsafe { libc::madvise(page.address() as *mut _, PAGE_SIZE, libc::MADV_DONTNEED) };
                entry.finish_removal(Some(entry.hash()));
            } else {
                entry.cancel_eviction();
                if protects {
                    let _ = pager.uffd.write_protect(page.address(), 1, false);
                }
            }
            return;
        }
    }
}

fn is_same(one: Page<'_>, other: Page<'_>) -> bool {
    one.address() == other.address()
}

/// A page that is mapped already, as one may be that was being brought in at the fork, has the content that it is to have.
fn ready(mapped: Result<(), i32>) -> Result<(), RawCause> {
    mapped.or_else(|errno| if errno == libc::EEXIST { Ok(()) } else { Err(RawCause::of_mapping(errno)) })
}

/// It is mapped. For the holder of the lock.
fn set_resident(page: Page<'_>) {
    let entry = page.entry();
    if entry.load().state() == PageState::SwappingIn {
        // By a thread that this process does not have.
        entry.abort_swap_in();
    }
    if entry.begin_swap_in(entry.load()) {
        entry.finish_swap_in(0, page.region.pager.budget.tick());
    }
}

/// A lock for longer than a [`crate::parking::SpinLock`], with a time limit.
#[derive(Debug)]
struct Lock(AtomicU32);

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may be waiting.
const WANTED: u32 = 2;

impl Lock {
    const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    fn lock(&self, end_ns: u64) -> bool {
        if self.0.compare_exchange(FREE, TAKEN, Acquire, Relaxed).is_ok() {
            return true;
        }
        loop {
            let left_ns = end_ns.saturating_sub(sys::now_ns());
            if left_ns == 0 {
                return false;
            }
            if self.0.swap(WANTED, Acquire) == FREE {
                return true;
            }
            futex::wait_for(&self.0, WANTED, Duration::from_nanos(left_ns));
        }
    }

    fn unlock(&self) {
        if self.0.swap(FREE, Release) == WANTED {
            futex::wake_one(self.0.as_ptr());
        }
    }

    fn reset(&self) {
        self.0.store(FREE, Relaxed);
    }
}
