//! Snapshots: what a child of fork() can read of regions is all they held at the fork, swapped-out pages included.
//!
//! **Slots.** Each page has two, so that a region takes two contiguous runs of slots: home, and alternate. Of which the content is, the page's word says (ALTERNATE). While a
//! snapshot is alive, a slot that was current when it began is neither overwritten nor discarded: a page that is written or discarded goes to its other slot, once
//! (MOVED); from then on it has that for itself. When the snapshot has ended, a sweep over the page tables ([`sweep`]) clears MOVED, and discards what nobody
//! needs any more.
//!
//! **The fork.** What the child has of the address space and what its copy of the page table says must agree, while other threads go on. So changes that cannot be
//! undone pass a gate: a write of a slot is begun, pages are removed, pages are discarded. fork() finds the gate closed and nobody inside ([`Snapshots::begin`]). Then in the
//! child
//! - a page that is Resident or Evicting is mapped, and stays so whatever the parent does: the child has it by copy-on-write;
//! - of any other, STORED says whether its current slot has its content. Nobody but the owner of a page, who passes the gate, makes that untrue. A page that is just
//!   being brought in may be mapped in the child already, as it is in the slot.
//!
//! Reads and writes in flight need not be waited for: a page that is being written is mapped, and not STORED. So fork() never waits for a device.
//!
//! **The child** ([`child`]) asks its parent for the slots of pages that are missing, through a pair of sockets; the parent's pager thread ([`server`]) reads them through its
//! own part of the backend, so that every kind of backend serves. The end of the connection is the end of the snapshot, whoever dies.

pub(crate) mod child;
mod gate;
mod server;
mod sweep;
mod wire;

use crate::pager::Pager;
use crate::region;
use crate::stats::Counter;
use crate::sys;
use crate::worker::WorkerShared;
use child::Child;
use gate::{Gate, Inside};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use server::Server;

/// How long fork() waits for those who change pages, and for the end of the snapshot before. Who needs longer gets none.
const MAX_FORK_WAIT_NS: u64 = 1_000_000_000;
/// How long the pager thread waits for those who change pages before it does something else first.
const MAX_END_WAIT: Duration = Duration::from_millis(10);

/// Of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// No snapshot.
    Idle = 0,
    /// A thread forks.
    Beginning = 1,
    /// Slots are spared.
    Live = 2,
    /// The snapshot has ended, and the sweep is not through.
    Ending = 3,
}

/// What an instance with snapshots needs for them.
#[derive(Debug)]
pub(crate) struct Snapshots {
    gate: Gate,
    phase: AtomicU8,
    /// This process's end of the snapshot that is alive, and between the hooks before and after a fork the child's; otherwise -1.
    socket: AtomicI32,
    childs_socket: AtomicI32,
    /// There is a socket that the pager thread has not seen.
    is_new: AtomicBool,
    /// Slots of regions that were destroyed while a snapshot might need them: first and number.
    leftover: Mutex<Vec<(usize, usize)>>,
    pub(crate) counters: SnapshotCounters,
    /// Of this process, if it is a child.
    child: Child,
}

/// Added to by several threads.
#[derive(Debug, Default)]
pub(crate) struct SnapshotCounters {
    begun: Counter,
    refused: Counter,
    pages_served: Counter,
    pages_failed: Counter,
    pages_moved: Counter,
    /// Those that moved since the last snapshot began.
    moved_of_last: Counter,
}

/// What the hook before a fork has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    /// A snapshot was begun.
    Snapshot,
    /// This process is a snapshot itself, and fetches nothing meanwhile.
    Paused,
    Plain,
}

/// While this lives, no snapshot begins or ends.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    snapshots: &'a Snapshots,
    _inside: Inside<'a>,
}

impl Snapshots {
    /// For an instance with so much local memory.
    pub(crate) fn new(local_pages: usize) -> crate::error::Result<Self> {
        Ok(Self {
            gate: Gate::new(),
            phase: AtomicU8::new(Phase::Idle as u8),
            socket: AtomicI32::new(-1),
            childs_socket: AtomicI32::new(-1),
            is_new: AtomicBool::new(false),
            leftover: Mutex::new(Vec::new()),
            counters: SnapshotCounters::default(),
            child: Child::new(local_pages)?,
        })
    }

    /// Before slots are written or discarded, or pages removed; not to be held while anything is waited for. Async-signal-safe.
    pub(crate) fn enter(&self) -> Pass<'_> {
        Pass { _inside: self.gate.enter(), snapshots: self }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Acquire) {
            0 => Phase::Idle,
            1 => Phase::Beginning,
            2 => Phase::Live,
            _ => Phase::Ending,
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Release);
    }

    /// Before a fork: begins a snapshot and closes the gate; `false` if the child gets none.
    fn begin(&self, pager: &Pager) -> bool {
        let has_begun = self.try_begin(pager);
        if has_begun { &self.counters.begun } else { &self.counters.refused }.add_shared(1);
        has_begun
    }

    fn try_begin(&self, pager: &Pager) -> bool {
        let end_ns = sys::now_ns() + MAX_FORK_WAIT_NS;
        let (idle, beginning) = (Phase::Idle as u8, Phase::Beginning as u8);
        while self.phase.compare_exchange(idle, beginning, AcqRel, Relaxed).is_err() {
            // Alive, and with somebody at its other end: there can be one only. Otherwise it has ended, as the pager thread will see in a moment.
            let is_alive = wire::wait(self.socket.load(Acquire), 0, 0) == 0 && self.phase() == Phase::Live;
            if is_alive || sys::now_ns() > end_ns {
                return false;
            }
            pager.pager_thread().poke();
            std::thread::sleep(Duration::from_micros(200));
        }
        let left = Duration::from_nanos(end_ns.saturating_sub(sys::now_ns()));
        let Some((ours, childs)) = wire::pair().filter(|_| self.gate.close(left)) else {
            self.set_phase(Phase::Idle);
            return false;
        };
        self.counters.moved_of_last.reset();
        self.socket.store(ours.into_raw_fd(), Relaxed);
        self.childs_socket.store(childs.into_raw_fd(), Relaxed);
        self.set_phase(Phase::Live);
        true
    }

    /// In the parent, after the fork.
    fn go_on(&self, pager: &Pager) {
        close(self.childs_socket.swap(-1, Relaxed));
        if !self.gate.open() {
            tracing::warn!("a fork took so long that others could not wait for it: its child cannot read what is swapped out");
            // SAFETY: our descriptor; nobody else closes it before the pager thread has seen it.
            unsafe { libc::shutdown(self.socket.load(Relaxed), libc::SHUT_RDWR) };
        }
        self.is_new.store(true, Release);
        pager.pager_thread().poke();
    }

    /// In a child, which is a snapshot if one was begun for it.
    fn become_child(&self) {
        // The parent's, of this snapshot or of one before.
        close(self.socket.swap(-1, Relaxed));
        self.child.begin(self.childs_socket.swap(-1, Relaxed));
        self.gate.open();
    }

    /// Pager thread: a socket that it has not seen.
    fn take_new(&self) -> Option<OwnedFd> {
        // SAFETY: from `begin`; from here on it is the caller's, but for a look at who is at its other end.
        self.is_new.swap(false, Acquire).then(|| unsafe { OwnedFd::from_raw_fd(self.socket.load(Relaxed)) })
    }

    /// Pager thread: nobody needs the slots of the snapshot any more. `false` if that is to be said again later.
    fn end(&self) -> bool {
        if !self.gate.close(MAX_END_WAIT) {
            return false;
        }
        self.set_phase(Phase::Ending);
        // After the phase, which who forks looks at last, and before the socket is closed: a child that is none of this snapshot closes what it finds here.
        self.socket.store(-1, Release);
        self.gate.open();
        true
    }

    /// Pager thread, which ends: so does the snapshot, for its child.
    fn forget_socket(&self) {
        self.socket.store(-1, Relaxed);
    }

    /// Pager thread: the sweep is through.
    fn finish(&self, pager: &Pager) {
        let mut leftover = self.leftover();
        for (first, num_slots) in leftover.drain(..) {
            pager.backend.discard(first, num_slots);
            pager.give_slots_back(first);
        }
        // Under the lock: whoever destroys a region looks, and leaves its slots, under it.
        self.set_phase(Phase::Idle);
    }

    fn leftover(&self) -> MutexGuard<'_, Vec<(usize, usize)>> {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gauges and counters.
    pub(crate) fn stats(&self) -> [(&'static str, u64); 6] {
        let SnapshotCounters { begun, refused, pages_served, pages_failed, pages_moved, .. } = &self.counters;
        [
            ("snapshot_live", u64::from(self.phase() != Phase::Idle)),
            ("snapshots", begun.get()),
            ("snapshots_refused", refused.get()),
            ("snapshot_pages_served", pages_served.get()),
            ("snapshot_pages_moved", pages_moved.get()),
            ("snapshot_failures", pages_failed.get()),
        ]
    }
}

impl Pass<'_> {
    /// Whether current slots may belong to a snapshot: [`crate::page_table::PageEntry::spare_slot`] before one is written or discarded.
    pub(crate) fn spares_slots(&self) -> bool {
        self.snapshots.phase() == Phase::Live
    }

    /// So many pages have moved to their other slots.
    pub(crate) fn count_moved(&self, num_pages: usize) {
        let SnapshotCounters { pages_moved, moved_of_last, .. } = &self.snapshots.counters;
        pages_moved.add_shared(num_pages as u64);
        moved_of_last.add_shared(num_pages as u64);
    }
}

fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: ours, and used by nobody from here on.
        unsafe { libc::close(fd) };
    }
}

impl Pager {
    /// Before a change that a snapshot must not see half of; see [`Snapshots::enter`]. Without snapshots nothing.
    pub(crate) fn enter_change(&self) -> Option<Pass<'_>> {
        self.snapshots.as_ref().map(Snapshots::enter)
    }

    /// The slots of a region that was destroyed are free, at the latest when no snapshot needs them.
    pub(crate) fn release_slots(&self, first: usize, num_slots: usize) {
        if let Some(snapshots) = &self.snapshots {
            let _pass = snapshots.enter();
            let mut leftover = snapshots.leftover();
            if matches!(snapshots.phase(), Phase::Live | Phase::Ending) {
                return leftover.push((first, num_slots));
            }
            self.backend.discard(first, num_slots);
        } else {
            self.backend.discard(first, num_slots);
        }
        self.give_slots_back(first);
    }

    /// Before a fork.
    pub(crate) fn before_fork(&self) -> Forked {
        let Some(snapshots) = &self.snapshots else { return Forked::Plain };
        let mut has_regions = false;
        region::for_each(|region| has_regions |= std::ptr::eq(&raw const *region.pager, self));
        let is_paused = self.is_inherited() && snapshots.child.pause(sys::now_ns() + MAX_FORK_WAIT_NS);
        match () {
            () if is_paused => Forked::Paused,
            () if has_regions && !self.is_inherited() && snapshots.begin(self) => Forked::Snapshot,
            () => Forked::Plain,
        }
    }

    /// In the parent, after the fork.
    pub(crate) fn after_fork(&self, forked: Forked) {
        match &self.snapshots {
            Some(snapshots) if forked == Forked::Snapshot => snapshots.go_on(self),
            Some(snapshots) if forked == Forked::Paused => snapshots.child.go_on(),
            _ => {}
        }
    }

    /// In the child; `workers` are those of this instance.
    pub(crate) fn become_child(&self, workers: &[&'static WorkerShared]) {
        self.set_inherited();
        if let Some(snapshots) = &self.snapshots {
            snapshots.become_child();
        }
        self.remover.become_child();
        workers.iter().for_each(|worker| worker.become_child());
    }
}

/// Whether this process is a child of fork() that can read all pages of an inherited region.
pub fn in_snapshot() -> bool {
    let mut is_snapshot = false;
    region::for_each(|region| is_snapshot |= child::of(region).is_some());
    is_snapshot
}
