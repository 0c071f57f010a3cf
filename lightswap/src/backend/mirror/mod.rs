//! `mirror(a,b,...)`: every page on all members, so that what one of them loses the others have.
//!
//! A write goes to all members that are there, and is good if one of them has it; those that do not are stale for these slots ([`slots`]). A read goes to the
//! fastest member that has the slot, and on to the next if that fails ([`queue`]). The pager thread brings stale copies up to date in the background, page by page,
//! and takes members back that were lost ([`copier`]): a page is not read from a member before its copy there is good.

mod copier;
mod members;
mod queue;
mod slots;
#[cfg(test)]
mod tests;

use super::{Backend, BackendQueue, Health, QueueBuilder};
use crate::error::{Error, ErrorKind, Result};
use copier::Copier;
use members::Team;
use queue::MirrorQueue;
use slots::{Members, Slots, each};
use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Members that it takes.
pub(super) const NUM_MEMBERS: RangeInclusive<usize> = 2..=slots::MAX_MEMBERS;

#[derive(Debug)]
pub(super) struct MirrorBackend {
    /// As in the URL, for the log.
    text: String,
    team: Team,
    slots: Slots,
    /// Reads that another member had to answer.
    num_failovers: AtomicU64,
    /// Copies found to be wrong, or not to be readable.
    num_corrupt: AtomicU64,
    num_resynced: AtomicU64,
    /// Times that pages were found to have no copy any more.
    num_content_losses: AtomicU64,
}

impl MirrorBackend {
    pub(super) fn new(members: Vec<Arc<dyn Backend>>, text: &str) -> Result<Self> {
        let num_slots = members.iter().map(|member| member.num_slots()).min().unwrap_or(0);
        if num_slots == 0 || !NUM_MEMBERS.contains(&members.len()) {
            return Err(Error::new(ErrorKind::Backend, format!("backend \"{text}\": a mirror of nothing")));
        }
        if members.iter().any(|member| member.num_slots() > num_slots) {
            tracing::warn!(backend = text, "members of different sizes: of each only the size of the smallest is used");
        }
        Ok(Self {
            text: text.into(),
            slots: Slots::new(num_slots, members.len())?,
            team: Team::new(members),
            num_failovers: AtomicU64::new(0),
            num_corrupt: AtomicU64::new(0),
            num_resynced: AtomicU64::new(0),
            num_content_losses: AtomicU64::new(0),
        })
    }

    /// Members that are there and not in sync.
    fn behind(&self) -> Members {
        each(self.team.present()).filter(|member| self.slots.num_stale(*member) > 0).map(|member| 1 << member).sum()
    }
}

impl Backend for MirrorBackend {
    fn num_slots(&self) -> usize {
        self.slots.len()
    }

    fn members(&self) -> Vec<&dyn Backend> {
        self.team.iter().map(|member| &*member.backend).collect()
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        let copier = builder.is_pager_thread.then(|| builder.reserve());
        let num_copies = if copier.is_some() { copier::MAX_COPIES } else { 0 };
        let (num_reads, num_writes) = (builder.num_reads, builder.num_writes);
        let child = |member: &members::Member| builder.child(&member.backend, num_reads + num_copies, num_writes + num_copies);
        let members: Rc<[_]> = self.team.iter().map(child).collect::<Result<Vec<_>>>()?.into();
        if let Some(number) = copier {
            builder.add(number, Rc::new(Copier::new(number, self.clone(), members.clone())?));
        }
        Ok(builder.add(number, Rc::new(MirrorQueue::new(number, self, members, num_reads, num_writes))))
    }

    /// One member with room is enough: the others' copies are stale until they have some, too.
    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for member in self.team.iter() {
            let reserved = member.backend.reserve(slot, num_slots);
            result = if result.is_ok() { result } else { reserved };
        }
        result
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        (slot..slot + num_slots).for_each(|slot| self.slots.discard(slot));
        self.team.iter().for_each(|member| member.backend.discard(slot, num_slots));
    }

    fn health(&self) -> Health {
        let is_away = self.team.iter().all(|member| member.is_lost() || member.backend.health().is_away);
        Health { is_away, generation: self.num_content_losses.load(Relaxed) }
    }

    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        let num_members = self.team.iter().count();
        vec![
            ("mirror_members", num_members as u64),
            ("mirror_members_lost", self.team.num_lost() as u64),
            ("mirror_losses", self.team.num_losses()),
            ("mirror_failovers", self.num_failovers.load(Relaxed)),
            ("mirror_corrupt_copies", self.num_corrupt.load(Relaxed)),
            ("mirror_stale_pages", (0..num_members).map(|member| self.slots.num_stale(member)).sum()),
            ("mirror_resyncing", u64::from(self.behind().count_ones())),
            ("mirror_resynced_pages", self.num_resynced.load(Relaxed)),
        ]
    }
}
