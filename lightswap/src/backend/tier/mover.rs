//! Moves pages that were not used lately from the fast member to the slow one, on the pager thread: a few at each of its turns, while there is too much in the fast
//! one.
//!
//! Pages are taken in the order of their slots, so that neighbours make large writes. They are copied into buffers of the mover's own, which bounds what
//! is in flight.

use super::TierBackend;
use super::queue::OF_MOVER;
use super::slots::{Change, Place, State};
use crate::backend::slab::Slab;
use crate::backend::{BackendQueue, Now, Write, WriteRequest};
use crate::error::Result;
use crate::io_queue::{IoQueue, Token};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use crate::worker::WorkerShared;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::Duration;

/// Pages of one write.
const MAX_PAGES: usize = 32;
/// Writes in flight.
pub(super) const NUM_BUFFERS: usize = 4;
/// Slots looked at in one turn: 10 us or so.
const MAX_SCANNED: usize = 16 << 10;
/// After a failed write, or a round in which there was nothing to move.
const PAUSE: Duration = Duration::from_millis(100);
/// In place of a buffer's number.
pub(super) const TIMER: u32 = NUM_BUFFERS as u32;

/// Pages on their way.
#[derive(Clone, Copy, Debug)]
struct Move {
    slot: usize,
    num_pages: usize,
}

pub(super) struct Mover {
    tier: Arc<TierBackend>,
    number: usize,
    shared: &'static WorkerShared,
    /// `MAX_PAGES` for each of `moves`.
    buffers: Mapping,
    moves: Slab<Move>,
    num_moving: Cell<usize>,
    /// The next slot to look at.
    hand: Cell<usize>,
    /// Slots looked at since one was moved, or found referenced.
    num_in_vain: Cell<usize>,
    /// Bytes that may be left in the fast member, while it is at work.
    goal: Cell<Option<u64>>,
    is_paused: Cell<bool>,
    is_failing: Cell<bool>,
    is_closed: Cell<bool>,
}

impl Mover {
    pub(super) fn new(tier: Arc<TierBackend>, number: usize, shared: &'static WorkerShared) -> Result<Self> {
        let buffers = Mapping::new(bytes_of(NUM_BUFFERS * MAX_PAGES), PAGE_SIZE)?;
        buffers.advise(libc::MADV_DONTFORK);
        let [is_paused, is_failing, is_closed] = Default::default();
        let (num_moving, hand, num_in_vain, goal) = Default::default();
        Ok(Self {
            tier,
            number,
            shared,
            buffers,
            moves: Slab::new(NUM_BUFFERS),
            num_moving,
            hand,
            num_in_vain,
            goal,
            is_paused,
            is_failing,
            is_closed,
        })
    }

    pub(super) fn close(&self) {
        self.is_closed.set(true);
    }

    /// A turn's work.
    pub(super) fn step(&self, io: &IoQueue, slow: &dyn BackendQueue) {
        if self.is_closed.get() || self.is_paused.get() || !self.tier.is_pressed() {
            return;
        }
        let Some(wanted) = self.num_wanted() else { return self.end_work() };
        let mut num_left = wanted.min(MAX_PAGES);
        let mut num_scanned = 0;
        while num_left > 0 && num_scanned < MAX_SCANNED && self.moves.has_room() && !self.is_paused.get() {
            if self.num_in_vain.get() >= self.tier.slots.len() {
                self.end_work();
                return self.pause(io);
            }
            num_scanned += 1 + self.skip(MAX_SCANNED - num_scanned);
            num_left -= self.move_run(io, slow, num_left);
        }
        if wanted > 0 && self.moves.has_room() && !self.is_paused.get() {
            // On with it, when others have had their turn.
            self.shared.poke();
        }
    }

    /// Pages to move so that the goal is reached, beside those that are on their way; `None` when it is.
    fn num_wanted(&self) -> Option<usize> {
        let (used, limit) = self.tier.fast.fill()?;
        let goal = self.goal.get().unwrap_or_else(|| TierBackend::goal(used, limit));
        self.goal.set(Some(goal));
        let excess = used.checked_sub(goal).filter(|excess| *excess > 0)?;
        let bytes_per_page = (used / self.tier.slots.num_fast().max(1)).clamp(1, PAGE_SIZE as u64);
        Some((excess.div_ceil(bytes_per_page) as usize).saturating_sub(self.num_moving.get()))
    }

    fn end_work(&self) {
        self.goal.set(None);
        self.num_in_vain.set(0);
        // Who finds too much there from now on says so again.
        self.tier.is_pressed.store(false, Release);
    }

    fn pause(&self, io: &IoQueue) {
        if !self.is_paused.replace(true) {
            io.push_timer(PAUSE, Token::node(self.number, OF_MOVER | TIMER));
        }
    }

    /// Passes slots that are not to be moved, not all round at most; how many.
    fn skip(&self, most: usize) -> usize {
        let slots = &self.tier.slots;
        let most = most.min(slots.len());
        for num_passed in 0..most {
            let slot = self.hand.get();
            if slots.load(slot) == State::COLD {
                return num_passed;
            }
            let was_referenced = slots.pass(slot);
            self.advance(was_referenced);
        }
        most
    }

    fn advance(&self, is_of_use: bool) {
        let next = self.hand.get() + 1;
        self.hand.set(if next == self.tier.slots.len() { 0 } else { next });
        self.num_in_vain.set(if is_of_use { 0 } else { self.num_in_vain.get() + 1 });
    }

    /// Moves the neighbours at the hand that may be moved; how many.
    fn move_run(&self, io: &IoQueue, slow: &dyn BackendQueue, most: usize) -> usize {
        let slot = self.hand.get();
        let buffer = self.moves.insert(Move { slot, num_pages: 0 });
        let source = self.buffers.base().wrapping_add(bytes_of(buffer as usize * MAX_PAGES));
        let most = most.min(MAX_PAGES).min(self.tier.slots.len() - slot);
        let num_pages = (0..most).take_while(|page| self.take(slot + page, source.wrapping_add(bytes_of(*page)))).count();
        if num_pages == 0 {
            self.moves.remove(buffer);
            // It could not be read, or somebody was faster.
            self.advance(false);
            return 0;
        }
        (0..num_pages).for_each(|_| self.advance(true));
        self.moves.set(buffer, Move { slot, num_pages });
        self.num_moving.set(self.num_moving.get() + num_pages);
        let num_bytes = bytes_of(num_pages);
        let token = Token::node(self.number, OF_MOVER | buffer);
        match slow.write(io, WriteRequest { slot, source, num_bytes, token }) {
            Write::Pending => {}
            Write::Done => self.end(io, buffer, num_bytes as i32),
            Write::Failed => self.end(io, buffer, -libc::EIO),
        }
        if self.is_failing.get() {
            // One is enough to see whether it works again.
            self.pause(io);
        }
        num_pages
    }

    /// Copies a slot that may be moved.
    fn take(&self, slot: usize, target: *mut u8) -> bool {
        let Some(mut locked) = self.tier.slots.try_lock(slot, State::COLD) else { return false };
        let Now::Content(content) = self.tier.fast.read_now(slot, target) else { return false };
        if !std::ptr::eq(content, target) {
            // SAFETY: the content is a page that does not change while the slot is locked; the target is one of our buffers, which nobody uses.
            unsafe { std::ptr::copy_nonoverlapping(content, target, PAGE_SIZE) };
        }
        locked.state = locked.state.moving();
        true
    }

    /// A request of the mover's has ended.
    pub(super) fn complete(&self, io: &IoQueue, index: u32, result: i32) {
        if index == TIMER {
            self.is_paused.set(false);
        } else {
            self.end(io, index, result);
        }
    }

    fn end(&self, io: &IoQueue, buffer: u32, result: i32) {
        let Self { tier, .. } = self;
        let Move { slot, num_pages } = self.moves.remove(buffer);
        self.num_moving.set(self.num_moving.get() - num_pages);
        let is_written = result == bytes_of(num_pages) as i32;
        if !self.is_failing.replace(!is_written) && !is_written {
            tracing::warn!(result, "a write to the slow member of a tier failed; its pages stay in the fast one");
        }
        if !is_written {
            self.pause(io);
        }
        let mut change = Change::default();
        let mut num_demoted = 0;
        for slot in slot..slot + num_pages {
            let mut locked = tier.slots.lock(slot);
            let (state, may_move) = locked.state.moved();
            locked.state = state;
            if is_written && may_move {
                locked.state = state.in_slow();
                tier.fast.discard(slot, 1);
                change.gone_from(Place::Fast);
                change.come_to(Place::Slow);
                num_demoted += 1;
            } else {
                tier.slow.discard(slot, 1);
            }
        }
        tier.slots.count(change);
        tier.num_demoted.fetch_add(num_demoted, Relaxed);
        // Those who have begun to wait for these slots are seen from here on.
        fence(SeqCst);
        tier.wake_waiting();
    }
}
