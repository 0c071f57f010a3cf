//! A worker's part: reads and writes of slots that it owns, and on the pager thread the mover.

use super::TierBackend;
use super::mover::{Mover, NUM_BUFFERS};
use super::slots::{Change, Place, State};
use crate::backend::slab::Slab;
use crate::backend::{BackendQueue, Now, QueueBuilder, Read, Write, WriteRequest};
use crate::budget::MAX_BATCH_PAGES;
use crate::error::Result;
use crate::failure::{RawCause, WRONG_CONTENT};
use crate::io_queue::{Completion, IoQueue, Token};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::slot_runs::SlotRuns;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;

/// Pages of a write, a bit each.
type Pages = u128;
const _: () = assert!(MAX_BATCH_PAGES <= Pages::BITS as usize);

fn bits(pages: &Range<usize>) -> Pages {
    Pages::MAX >> (Pages::BITS as usize - pages.len()) << pages.start
}

/// Of the number of a request: it is the mover's.
pub(super) const OF_MOVER: u32 = 1 << 31;

/// A write that was asked for.
#[derive(Clone, Copy, Debug)]
struct Whole {
    token: Token,
    slot: usize,
    source: *const u8,
    num_bytes: usize,
    /// Requests that have not ended.
    num_in_fast: u32,
    num_in_slow: u32,
    /// Pages for which there was no room in the fast member, and that the slow one has not been asked for.
    overflow: Pages,
    /// It is among those that wait.
    is_waiting: bool,
    /// Why it failed, or 0.
    error: i32,
}

impl Whole {
    fn is_over(&self) -> bool {
        self.num_in_fast == 0 && self.num_in_slow == 0 && (self.overflow == 0 || self.error < 0) && !self.is_waiting
    }

    fn part(&self, pages: &Range<usize>, token: Token) -> WriteRequest {
        let source = self.source.wrapping_add(bytes_of(pages.start));
        WriteRequest { slot: self.slot + pages.start, source, num_bytes: bytes_of(pages.len()), token }
    }
}

/// A request to a member: pages of a write.
#[derive(Clone, Copy, Debug)]
struct Part {
    whole: u32,
    to: Place,
    first: usize,
    num_pages: usize,
}

impl Part {
    fn pages(&self) -> Range<usize> {
        self.first..self.first + self.num_pages
    }
}

pub(super) struct TierQueue {
    number: usize,
    tier: Arc<TierBackend>,
    fast: Rc<dyn BackendQueue>,
    slow: Rc<dyn BackendQueue>,
    wholes: Slab<Whole>,
    parts: Slab<Part>,
    /// Writes of which pages wait for the mover, or for room in `parts`; never grows past its capacity.
    waiting: RefCell<VecDeque<u32>>,
    mover: Option<Mover>,
}

impl TierQueue {
    pub(super) fn new(tier: Arc<TierBackend>, builder: &mut QueueBuilder) -> Result<Self> {
        let number = builder.reserve();
        let (num_reads, num_writes) = (builder.num_reads, builder.num_writes);
        let mover = if builder.is_pager_thread && tier.can_move { Some(Mover::new(tier.clone(), number, builder.shared)?) } else { None };
        // Page by page there may be more; those overflow, or wait.
        let num_parts = num_writes + MAX_BATCH_PAGES;
        let fast = builder.child(&tier.fast, num_reads, num_parts)?;
        let num_moves = if mover.is_some() { NUM_BUFFERS } else { 0 };
        let slow = builder.child(&tier.slow, num_reads, num_parts + num_moves)?;
        Ok(Self {
            number,
            fast,
            slow,
            wholes: Slab::new(num_writes),
            parts: Slab::new(num_parts),
            waiting: RefCell::new(VecDeque::with_capacity(num_writes)),
            mover,
            tier,
        })
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    fn change_whole(&self, index: u32, change: impl FnOnce(&mut Whole)) -> Whole {
        let mut whole = self.wholes.get(index).expect("it has not ended");
        change(&mut whole);
        self.wholes.set(index, whole);
        whole
    }

    /// Asks the fast member for some pages of a write.
    fn write_fast(&self, io: &IoQueue, index: u32, pages: Range<usize>, change: &mut Change) {
        let whole = self.wholes.get(index).expect("it has not ended");
        for page in pages.clone() {
            let old = self.tier.slots.update(whole.slot + page, State::without_content);
            change.gone_from(old.place());
        }
        let result = if self.parts.has_room() {
            let part = self.parts.insert(Part { whole: index, to: Place::Fast, first: pages.start, num_pages: pages.len() });
            let result = self.fast.write(io, whole.part(&pages, Token::node(self.number, part)));
            if result != Write::Pending {
                self.parts.remove(part);
            }
            Some(result)
        } else {
            None
        };
        match result {
            Some(Write::Done) => self.has_stored(&whole, pages, change),
            Some(Write::Pending) => _ = self.change_whole(index, |whole| whole.num_in_fast += 1),
            Some(Write::Failed) => {
                self.tier.fast.discard(whole.slot + pages.start, pages.len());
                self.change_whole(index, |whole| whole.error = -libc::EIO);
            }
            None => self.has_overflown(index, pages),
        }
    }

    /// The fast member has these pages.
    fn has_stored(&self, whole: &Whole, pages: Range<usize>, change: &mut Change) {
        let slots = &self.tier.slots;
        // As long as a slot is stale the mover does not touch it, so that what is discarded is the old content.
        let mut stale = SlotRuns::new(|first, len| {
            self.tier.slow.discard(first, len);
            (first..first + len).for_each(|slot| _ = slots.update(slot, State::without_stale));
        });
        for slot in pages.map(|page| whole.slot + page) {
            let old = slots.update(slot, |state| state.with_content_in(Place::Fast));
            change.come_to(Place::Fast);
            if old.is_stale() {
                stale.add(slot);
            }
        }
        stale.end();
    }

    /// The fast member has no room for these pages.
    fn has_overflown(&self, index: u32, pages: Range<usize>) {
        let whole = self.change_whole(index, |whole| whole.overflow |= bits(&pages));
        // What it had before, or a part of what it was to store.
        self.tier.fast.discard(whole.slot + pages.start, pages.len());
    }

    /// Writes what has overflown to the slow member, as far as that can be done now; the rest waits.
    fn write_slow(&self, io: &IoQueue, index: u32, change: &mut Change) {
        loop {
            let whole = self.wholes.get(index).expect("it has not ended");
            if whole.overflow == 0 || whole.error < 0 {
                return;
            }
            let first = whole.overflow.trailing_zeros() as usize;
            let most = (whole.overflow >> first).trailing_ones() as usize;
            let is_free = |page: &usize| !self.tier.slots.load(whole.slot + page).is_written_by_mover();
            let num_pages = (first..first + most).take_while(is_free).count();
            if num_pages == 0 || !self.parts.has_room() {
                if self.wait(index, whole.slot + first) {
                    return;
                }
                continue;
            }
            let pages = first..first + num_pages;
            let part = self.parts.insert(Part { whole: index, to: Place::Slow, first, num_pages });
            self.change_whole(index, |whole| whole.overflow &= !bits(&pages));
            match self.slow.write(io, whole.part(&pages, Token::node(self.number, part))) {
                Write::Pending => _ = self.change_whole(index, |whole| whole.num_in_slow += 1),
                result => {
                    self.parts.remove(part);
                    self.end_slow(index, pages, if result == Write::Done { 0 } else { -libc::EIO }, change);
                }
            }
        }
    }

    /// Puts a write off; `false` if the slot that it waits for is free by now.
    fn wait(&self, index: u32, slot: usize) -> bool {
        self.tier.num_waiting.fetch_add(1, SeqCst);
        // The mover looks for those who wait after it has set the slot free.
        fence(SeqCst);
        if self.parts.has_room() && !self.tier.slots.load(slot).is_written_by_mover() {
            self.tier.num_waiting.fetch_sub(1, SeqCst);
            return false;
        }
        self.change_whole(index, |whole| whole.is_waiting = true);
        self.waiting.borrow_mut().push_back(index);
        true
    }

    /// The slow member has been asked for these pages: `error` is 0, or why it does not have them.
    fn end_slow(&self, index: u32, pages: Range<usize>, error: i32, change: &mut Change) {
        let tier = &self.tier;
        let whole = self.change_whole(index, |whole| whole.error = whole.error.min(error));
        let place = if error < 0 { Place::Nowhere } else { Place::Slow };
        if error < 0 {
            tier.slow.discard(whole.slot + pages.start, pages.len());
        } else {
            tier.num_overflown.fetch_add(pages.len() as u64, Relaxed);
        }
        for page in pages {
            tier.slots.update(whole.slot + page, |state| state.with_content_in(place));
            change.come_to(place);
        }
    }

    /// What has become of a write; `None` if it has not ended.
    fn end_whole(&self, index: u32) -> Option<Whole> {
        let whole = self.wholes.get(index).expect("it has not ended");
        if !whole.is_over() {
            return None;
        }
        if whole.error < 0 {
            // Pages that nobody has: what is older goes.
            let mut stale = SlotRuns::new(|first, len| self.tier.slow.discard(first, len));
            let slots = whole.slot..whole.slot + whole.num_bytes / PAGE_SIZE;
            slots.filter(|slot| self.tier.slots.update(*slot, State::without_stale).is_stale()).for_each(|slot| stale.add(slot));
            stale.end();
        }
        Some(self.wholes.remove(index))
    }

    /// A part has ended, or what held one up.
    fn go_on(&self, io: &IoQueue, index: u32, mut change: Change) {
        let whole = self.wholes.get(index).expect("it has not ended");
        if whole.num_in_fast == 0 && !whole.is_waiting {
            self.write_slow(io, index, &mut change);
        }
        self.tier.slots.count(change);
        if let Some(whole) = self.end_whole(index) {
            io.finish(whole.token, Completion::of(if whole.error < 0 { whole.error } else { whole.num_bytes as i32 }));
        }
    }

    /// Tries again what was put off.
    fn begin_waiting(&self, io: &IoQueue) {
        let num_waiting = self.waiting.borrow().len();
        for _ in 0..num_waiting {
            let Some(index) = self.waiting.borrow_mut().pop_front() else { return };
            self.tier.num_waiting.fetch_sub(1, SeqCst);
            self.change_whole(index, |whole| whole.is_waiting = false);
            self.go_on(io, index, Change::default());
        }
    }
}

impl BackendQueue for TierQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        let tier = &self.tier;
        if tier.slots.load(read.slot).place() == Place::Fast
            && let Some(now) = tier.read_fast(read.slot, read.target)
        {
            let result = match now {
                Now::NeedsIo => {
                    tier.num_fast_reads.fetch_add(1, Relaxed);
                    return self.fast.read(io, read);
                }
                Now::Failed(RawCause::WRONG_HASH) => WRONG_CONTENT,
                Now::Failed(RawCause(cause)) => -cause.abs(),
                Now::Content(content) => {
                    if !std::ptr::eq(content, read.target) {
                        // SAFETY: the content is that of the reader's slot, which stays; the target is the reader's, and another page.
                        unsafe { std::ptr::copy_nonoverlapping(content, read.target, PAGE_SIZE) };
                    }
                    PAGE_SIZE as i32
                }
            };
            return io.finish(read.token, Completion::of(result));
        }
        if tier.slots.load(read.slot).place() == Place::Slow {
            tier.num_slow_reads.fetch_add(1, Relaxed);
            return self.slow.read(io, read);
        }
        // Nothing is there, which nobody asks for unless he was led astray.
        io.finish(read.token, Completion::of(WRONG_CONTENT));
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        let WriteRequest { slot, source, num_bytes, token } = write;
        // Bytes that end within a page, which only tests write, leave its slot as it was.
        let num_pages = num_bytes / PAGE_SIZE;
        let whole = Whole { token, slot, source, num_bytes, num_in_fast: 0, num_in_slow: 0, overflow: 0, is_waiting: false, error: 0 };
        let index = self.wholes.insert(whole);
        let mut change = Change::default();
        // Where a page can find no room, it is to be known which.
        let step = if self.tier.can_move { 1 } else { MAX_BATCH_PAGES };
        for first in (0..num_pages).step_by(step) {
            self.write_fast(io, index, first..num_pages.min(first + step), &mut change);
        }
        let whole = self.wholes.get(index).expect("it has not ended");
        let has_overflown = whole.overflow != 0;
        if whole.num_in_fast == 0 {
            self.write_slow(io, index, &mut change);
        }
        self.tier.slots.count(change);
        self.tier.look_for_pressure(has_overflown);
        match self.end_whole(index) {
            None => Write::Pending,
            Some(Whole { error: 0, .. }) => Write::Done,
            Some(_) => Write::Failed,
        }
    }

    fn complete(&self, io: &IoQueue, index: u32, completion: Completion) {
        if let Some(mover) = self.mover.as_ref().filter(|_| index & OF_MOVER != 0) {
            return mover.complete(io, index & !OF_MOVER, completion.result);
        }
        let part = self.parts.remove(index);
        let is_whole = completion.result == bytes_of(part.num_pages) as i32;
        let mut change = Change::default();
        if part.to == Place::Fast {
            let whole = self.change_whole(part.whole, |whole| whole.num_in_fast -= 1);
            if is_whole {
                self.has_stored(&whole, part.pages(), &mut change);
            } else {
                self.has_overflown(part.whole, part.pages());
                self.tier.look_for_pressure(true);
            }
        } else {
            self.change_whole(part.whole, |whole| whole.num_in_slow -= 1);
            let error = match completion.result {
                _ if is_whole => 0,
                0.. => -libc::EIO,
                error => error,
            };
            self.end_slow(part.whole, part.pages(), error, &mut change);
        }
        self.go_on(io, part.whole, change);
        // There is room for another part.
        self.begin_waiting(io);
    }

    fn flush(&self, io: &IoQueue) {
        self.begin_waiting(io);
        if let Some(mover) = &self.mover {
            mover.step(io, &*self.slow);
        }
    }

    fn close(&self, _: &IoQueue) {
        self.mover.iter().for_each(Mover::close);
    }
}
