//! Where swapped-out pages live.
//!
//! A backend is an array of page-sized slots, or a tree of such: those that wrap others (`mirror(a,b)`, `faulty(...):a`) are nodes, files and servers leaves.
//! Regions own contiguous ranges of slots, page `i` of a region always in the same one (with snapshots in one of two, in two ranges): no slot table is needed,
//! neighbouring pages are neighbours in the backend, and a batch of victims from one span is written with few, large requests.
//!
//! [`Backend`] is the part of a node that all threads share, [`BackendQueue`] (see [`queue`]) that of one worker, which does its I/O.

mod compressed;
mod encrypted;
mod faulty;
mod file;
mod memory;
mod mirror;
mod nbd;
mod parts;
mod queue;
mod read_runs;
mod schedule;
mod slab;
mod stripe;
mod table;
mod tier;
mod url;

use crate::error::{Error, ErrorKind, Result};
use crate::failure::RawCause;
use crate::size::{bytes_of, format_size, pages_in};
use compressed::backend::CompressedBackend;
use faulty::FaultyBackend;
use std::fmt::Debug;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use url::{Combination, Tree};

pub(crate) use queue::{BackendQueue, QueueBuilder, Queues, Read, Write, WriteRequest};

/// Where the content of a slot is.
#[derive(Debug)]
pub(crate) enum Now {
    /// Here, until the slot is written again or, if it is in the buffer given, that is used otherwise.
    Content(*const u8),
    /// It cannot be had.
    Failed(RawCause),
    /// It takes a [`BackendQueue::read`].
    NeedsIo,
}

/// How a backend is that can come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// It cannot be reached now.
    pub(crate) is_away: bool,
    /// Changes whenever it may have lost its content.
    pub(crate) generation: u64,
}

/// An array of slots, as all threads see it. No slot is ever used by two of them at once: its page's owner is the only one. But for reads: while a snapshot needs a
/// slot, which is not written then, the pager thread may read it beside its owner.
pub(crate) trait Backend: Send + Sync + Debug {
    /// Number of slots.
    fn num_slots(&self) -> usize;

    /// The nodes below.
    fn members(&self) -> Vec<&dyn Backend> {
        Vec::new()
    }

    /// Makes the part of one worker, and those of the nodes below.
    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>>;

    /// Whether [`Self::read_now`] will most likely do for this slot. Async-signal-safe.
    fn is_readable_now(&self, _slot: usize) -> bool {
        false
    }

    /// The content of a slot, if it can be had without any I/O, perhaps in the page at `buffer`. Async-signal-safe, for any thread.
    fn read_now(&self, _slot: usize, _buffer: *mut u8) -> Now {
        Now::NeedsIo
    }

    /// Pages of memory that a worker's part needs for each read that it can have in flight, beside the worker's own buffers.
    fn staging_pages_per_read(&self) -> usize {
        self.members().iter().map(|member| member.staging_pages_per_read()).sum()
    }

    /// Microseconds that a worker with reads under way polls for them before it sleeps.
    fn busy_poll_us(&self) -> u64 {
        self.members().iter().map(|member| member.busy_poll_us()).max().unwrap_or(0)
    }

    /// Makes sure that the slots have room; cheap when they have. Reserved once, writing them cannot fail for lack of space. Async-signal-safe, and may
    /// block when it has to allocate.
    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()>;

    /// The content of the slots is not needed any more: a chance to give memory back. Async-signal-safe.
    fn discard(&self, _slot: usize, _num_slots: usize) {}

    /// Bytes that its content takes, and most that it may, if there is such a limit and [`Self::read_now`] reads all slots. Cheap, and async-signal-safe.
    fn fill(&self) -> Option<(u64, u64)> {
        None
    }

    /// Whether it works.
    fn health(&self) -> Health {
        let members = self.members().into_iter().map(|member| member.health());
        members.fold(Health::default(), |all, of| Health { is_away: all.is_away || of.is_away, generation: all.generation + of.generation })
    }

    /// A mirror is around it, so others have the content: while it is away, its requests fail at once instead of waiting for it.
    fn set_mirrored(&self) {
        self.members().iter().for_each(|member| member.set_mirrored());
    }

    /// Counters of its own, for the instance's statistics; those of the same name are added up.
    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// The same of the whole tree from here on.
    fn stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = self.own_stats();
        stats.extend(self.members().iter().flat_map(|member| member.stats()));
        stats
    }

    /// Ends all faults that are injected.
    fn stop_faults(&self) {
        self.members().iter().for_each(|member| member.stop_faults());
    }
}

/// Opens the backend that `url` describes; see `docs/backends.md` for the grammar.
pub(crate) fn open(url: &str) -> Result<Arc<dyn Backend>> {
    open_tree(Tree::parse(url)?)
}

fn open_tree(tree: Tree) -> Result<Arc<dyn Backend>> {
    Ok(match tree {
        Tree::Faulty(schedule, inner) => Arc::new(FaultyBackend::new(open_tree(*inner)?, schedule)),
        Tree::Leaf(leaf) => match leaf.scheme.as_str() {
            "file" => Arc::new(file::FileBackend::open(&leaf)?),
            "memory" if CompressedBackend::is_meant(&leaf) => Arc::new(CompressedBackend::open(&leaf)?),
            "memory" => Arc::new(memory::MemoryBackend::open(&leaf)?),
            scheme if scheme.starts_with("nbd") => Arc::new(nbd::NbdBackend::open(&leaf)?),
            _ => unreachable!("the parser knows all schemes"),
        },
        Tree::Combined { how, members, text } => {
            let mut members = members.into_iter().map(open_tree).collect::<Result<Vec<_>>>()?;
            match how {
                Combination::Encrypted => Arc::new(encrypted::EncryptedBackend::new(members.remove(0))?),
                Combination::Mirror => Arc::new(mirror::MirrorBackend::new(members, &text)?),
                Combination::Stripe => Arc::new(stripe::StripeBackend::new(members, &text)?),
                Combination::Tier => Arc::new(tier::TierBackend::new(members, &text)?),
            }
        }
    })
}

/// Whether `url` parses, as far as that can be said without opening anything.
pub(crate) fn check(url: &str) -> Result<()> {
    Tree::parse(url)?.check()
}

/// Whole slots in a backend of `num_bytes`; refuses one without any.
fn slots_in(num_bytes: u64, url: &str) -> Result<usize> {
    match pages_in(usize::try_from(num_bytes).unwrap_or(usize::MAX)) {
        0 => Err(Error::new(ErrorKind::Backend, format!("backend \"{url}\": a size of {} holds no page", format_size(num_bytes)))),
        num_slots => Ok(num_slots),
    }
}

/// Byte offset of a slot.
fn offset_of(slot: usize) -> u64 {
    bytes_of(slot) as u64
}
