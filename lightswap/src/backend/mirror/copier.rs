//! What the pager thread does for a mirror in the background: it takes members back that were lost, and brings stale copies up to date.

use super::MirrorBackend;
use super::queue::{answer_of, number_of};
use super::slots::{MAX_MEMBERS, Word, each};
use crate::backend::slab::Slab;
use crate::backend::{BackendQueue, Read, Write, WriteRequest};
use crate::error::Result;
use crate::io_queue::{Completion, IoQueue, Source, Token};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys;
use crate::sys::mapping::Mapping;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Pages that are being copied at a time.
pub(super) const MAX_COPIES: usize = 16;
/// Time between two looks at the members. After each, all slots with stale copies are visited once.
const TICK: Duration = Duration::from_millis(250);
/// Slots looked at without a pause, and the pause that lets the pager thread do its other work.
const SLOTS_PER_STEP: usize = 1 << 16;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 1 });
/// One that is lost again so soon is taken back later each time, until that long.
const SOON: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });
const MOST_DELAY: Duration = Duration::from_secs(8);

/// Numbers of the timers.
pub(super) const TICK_NUMBER: u32 = u32::MAX;
const PAUSE_NUMBER: u32 = u32::MAX - 1;

/// A page on its way. Its number is that of the buffer.
#[derive(Clone, Copy, Debug)]
struct PendingCopy {
    slot: usize,
    /// Of the slot, when it began.
    seen: Word,
    target: usize,
    /// Since it is being written: how often the target had lost its content before.
    content_losses: Option<u64>,
}

/// What was seen of a member.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    is_lost: bool,
    /// It was told that it is back, but not yet that it is in sync.
    is_behind: bool,
    back_ns: u64,
    /// It is not taken back before, and what that time was made of.
    retry_ns: u64,
    delay: Duration,
}

/// A member came back without its content: what it had is being marked stale.
#[derive(Clone, Copy, Debug)]
struct Marking {
    member: usize,
    next_slot: usize,
    /// Pages that nobody has any more.
    num_gone: u64,
}

pub(super) struct Copier {
    number: usize,
    mirror: Arc<MirrorBackend>,
    members: Rc<[Rc<dyn BackendQueue>]>,
    copies: Slab<PendingCopy>,
    buffers: Mapping,
    seen: [Cell<Seen>; MAX_MEMBERS],
    marking: Cell<Option<Marking>>,
    /// The slot to look at next, and how many until all were.
    next_slot: Cell<usize>,
    num_left: Cell<usize>,
    is_started: Cell<bool>,
    is_pausing: Cell<bool>,
    is_closed: Cell<bool>,
}

impl Copier {
    pub(super) fn new(number: usize, mirror: Arc<MirrorBackend>, members: Rc<[Rc<dyn BackendQueue>]>) -> Result<Self> {
        let buffers = Mapping::new(bytes_of(MAX_COPIES), PAGE_SIZE)?;
        buffers.advise(libc::MADV_DONTFORK);
        Ok(Self {
            number,
            mirror,
            members,
            copies: Slab::new(MAX_COPIES),
            buffers,
            seen: Default::default(),
            marking: Cell::new(None),
            next_slot: Cell::new(0),
            num_left: Cell::new(0),
            is_started: Cell::new(false),
            is_pausing: Cell::new(false),
            is_closed: Cell::new(false),
        })
    }

    fn set_timer(&self, io: &IoQueue, duration: Duration, number: u32) {
        io.push_timer(duration, Token::node(self.number, number));
    }

    fn pause(&self, io: &IoQueue) {
        if !self.is_pausing.replace(true) {
            self.set_timer(io, PAUSE, PAUSE_NUMBER);
        }
    }

    /// Looks who is lost, back, or in sync.
    fn watch(&self) {
        let (team, slots) = (&self.mirror.team, &self.mirror.slots);
        let now_ns = sys::now_ns();
        for (number, member) in team.iter().enumerate() {
            let health = member.backend.health();
            if health.is_away || member.has_lost_content(health) {
                team.lose(number);
            }
            let mut seen = self.seen[number].get();
            if member.is_lost() && !seen.is_lost {
                let is_soon = seen.back_ns > 0 && now_ns < seen.back_ns + SOON.as_nanos() as u64;
                seen.delay = if is_soon { (seen.delay * 2).clamp(TICK, MOST_DELAY) } else { Duration::ZERO };
                seen.retry_ns = now_ns + seen.delay.as_nanos() as u64;
                seen.is_lost = true;
                self.seen[number].set(seen);
                tracing::warn!(mirror = self.mirror.text, member = number + 1, "member lost: its pages are read from the others");
            } else if member.is_lost() && !health.is_away && now_ns >= seen.retry_ns {
                if !member.has_lost_content(health) {
                    self.take_back(number);
                } else if self.marking.get().is_none() {
                    member.begin_content_loss(health.generation);
                    self.marking.set(Some(Marking { member: number, next_slot: 0, num_gone: 0 }));
                }
            } else if seen.is_behind && !member.is_lost() && slots.num_stale(number) == 0 {
                self.seen[number].set(Seen { is_behind: false, ..seen });
                tracing::info!(mirror = self.mirror.text, member = number + 1, "member in sync again");
            }
        }
        if self.mirror.behind() != 0 {
            self.num_left.set(slots.len());
        }
    }

    fn take_back(&self, member: usize) {
        self.mirror.team.take_back(member);
        let seen = self.seen[member].get();
        self.seen[member].set(Seen { is_lost: false, is_behind: true, back_ns: sys::now_ns(), ..seen });
        let num_stale_pages = self.mirror.slots.num_stale(member);
        tracing::info!(mirror = self.mirror.text, member = member + 1, num_stale_pages, "member back: it is being brought up to date");
    }

    /// Marks some more slots.
    fn mark(&self, marking: Marking) {
        let Marking { member, next_slot, num_gone } = marking;
        let slots = &self.mirror.slots;
        let end = slots.len().min(next_slot + SLOTS_PER_STEP);
        let num_gone = num_gone + (next_slot..end).filter(|slot| slots.lose_content(*slot, member)).count() as u64;
        if end < slots.len() {
            return self.marking.set(Some(Marking { member, next_slot: end, num_gone }));
        }
        self.marking.set(None);
        if num_gone > 0 {
            self.mirror.num_content_losses.fetch_add(1, Relaxed);
            tracing::error!(
                mirror = self.mirror.text,
                member = member + 1,
                num_pages = num_gone,
                "member came back empty: these pages have no copy any more"
            );
        }
        let of = self.mirror.team.member(member);
        let health = of.backend.health();
        // Otherwise it has come and gone meanwhile, which is for the next look.
        if !health.is_away && !of.has_lost_content(health) {
            self.take_back(member);
            self.num_left.set(slots.len());
        }
    }

    /// Begins copies until enough are under way or nothing is left to look at for now.
    fn copy_some(&self, io: &IoQueue) {
        let (slots, present) = (&self.mirror.slots, self.mirror.team.present());
        if self.mirror.behind() == 0 {
            self.num_left.set(0);
        }
        for _ in 0..SLOTS_PER_STEP {
            if self.num_left.get() == 0 || !self.copies.has_room() {
                return;
            }
            let slot = self.next_slot.get();
            self.next_slot.set((slot + 1) % slots.len());
            self.num_left.set(self.num_left.get() - 1);
            let Some(seen) = slots.begin_copy(slot, present) else { continue };
            let target = each(seen.stale() & present).next().expect("a copy has a target");
            let Some(source) = each(slots.all() & !seen.stale() & present).nth(0) else {
                slots.end_copy(slot, seen, None);
                continue;
            };
            let index = self.copies.insert(PendingCopy { slot, seen, target, content_losses: None });
            let token = Token::node(self.number, number_of(index, source));
            self.members[source].read(io, Read { slot, target: self.buffer(index), token, is_retry: false, suspect: Source(None) });
        }
        if self.copies.is_empty() {
            self.pause(io);
        }
    }

    fn buffer(&self, index: u32) -> *mut u8 {
        self.buffers.base().wrapping_add(bytes_of(index as usize))
    }

    /// The page was read: writes it.
    fn write(&self, io: &IoQueue, index: u32, copy: PendingCopy, content: *const u8) {
        let source = self.buffer(index);
        if !content.is_null() {
            // It is gone when its node is flushed.
            // SAFETY: the content of the read is a page, and the buffer another one, or the same, that is ours until the copy has ended.
            unsafe { std::ptr::copy(content, source, PAGE_SIZE) };
        }
        let content_losses = self.mirror.team.member(copy.target).num_content_losses();
        let copy = PendingCopy { content_losses: Some(content_losses), ..copy };
        self.copies.set(index, copy);
        let token = Token::node(self.number, number_of(index, copy.target));
        match self.members[copy.target].write(io, WriteRequest { slot: copy.slot, source, num_bytes: PAGE_SIZE, token }) {
            Write::Pending => {}
            result => self.end(index, copy, result == Write::Done),
        }
    }

    fn end(&self, index: u32, copy: PendingCopy, is_written: bool) {
        self.copies.remove(index);
        let is_kept = copy.content_losses == Some(self.mirror.team.member(copy.target).num_content_losses());
        if self.mirror.slots.end_copy(copy.slot, copy.seen, (is_written && is_kept).then_some(copy.target)) {
            self.mirror.num_resynced.fetch_add(1, Relaxed);
        }
    }
}

impl BackendQueue for Copier {
    fn read(&self, _: &IoQueue, _: Read) {
        unreachable!("nobody reads from the copier");
    }

    fn write(&self, _: &IoQueue, _: WriteRequest) -> Write {
        unreachable!("nobody writes to the copier");
    }

    fn complete(&self, io: &IoQueue, number: u32, completion: Completion) {
        match number {
            TICK_NUMBER => {
                self.is_started.set(false);
                return self.watch();
            }
            PAUSE_NUMBER => return self.is_pausing.set(false),
            _ => {}
        }
        let (index, member) = answer_of(number);
        let copy = self.copies.get(index).expect("a member answers once");
        let succeeded = completion.result == PAGE_SIZE as i32;
        if succeeded {
            self.mirror.team.note_success(member);
        } else {
            self.mirror.team.note_failure(member, completion.result);
        }
        match copy.content_losses {
            None if succeeded => self.write(io, index, copy, completion.content),
            _ => self.end(index, copy, succeeded),
        }
    }

    fn flush(&self, io: &IoQueue) {
        if self.is_closed.get() {
            return;
        }
        if !self.is_started.replace(true) {
            self.set_timer(io, TICK, TICK_NUMBER);
        }
        if self.is_pausing.get() {
            return;
        }
        match self.marking.get() {
            Some(marking) => {
                self.mark(marking);
                self.pause(io);
            }
            None if self.num_left.get() > 0 => self.copy_some(io),
            None => {}
        }
    }

    fn close(&self, _: &IoQueue) {
        self.is_closed.set(true);
    }
}
