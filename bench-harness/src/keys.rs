//! Which versions of each key a read may legally see, when many connections update the same keys at once.
//!
//! Versions are numbered in the order the writes are sent. Writes that overlap in time may take effect in any order, so they form
//! a cluster: it starts with a write sent while no other is in flight and ends when none is. Once any write of a cluster is
//! acknowledged, everything older than the cluster is gone for good. A read may see any version from that floor, taken when the read
//! is sent, up to the last version sent when its answer arrives.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SHARDS: u64 = 256;

#[derive(Debug, Clone, Copy, Default)]
struct KeyState {
    /// The last version sent; 0 means never written.
    sent: u32,
    cluster_start: u32,
    /// No older version may be read any more.
    floor: u32,
    in_flight: u32,
}

/// New keys become visible to reads in key order, as in YCSB's acknowledged counter.
#[derive(Debug, Default)]
struct Inserts {
    next: u64,
    /// Acknowledged keys above the first one still in flight.
    acknowledged_ahead: BTreeSet<u64>,
}

#[derive(Debug)]
pub struct KeyTable {
    shards: Vec<Mutex<Vec<KeyState>>>,
    inserts: Mutex<Inserts>,
    existing: AtomicU64,
}

/// Which versions of a key may be read while nobody writes.
pub trait Legal: Sync + std::fmt::Debug {
    fn is_legal_now(&self, key: u64, version: u32) -> bool;
}

impl Legal for KeyTable {
    /// What is legal was settled when the last write was answered.
    fn is_legal_now(&self, key: u64, version: u32) -> bool {
        self.is_legal(key, self.read_sent(key), version)
    }
}

/// What could be read at a moment between two looks at the table, such as the one that a dump holds.
#[derive(Debug)]
pub struct Between {
    before: Vec<Vec<KeyState>>,
    after: Vec<Vec<KeyState>>,
    /// Keys that existed before.
    pub existing: u64,
}

fn state_in(shards: &[Vec<KeyState>], key: u64) -> KeyState {
    shards[(key % SHARDS) as usize].get((key / SHARDS) as usize).copied().unwrap_or_default()
}

impl Legal for Between {
    fn is_legal_now(&self, key: u64, version: u32) -> bool {
        version > 0 && version >= state_in(&self.before, key).floor && version <= state_in(&self.after, key).sent
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KeyTable {
    pub fn new(records: u64) -> Self {
        let per_shard = records.div_ceil(SHARDS) as usize;
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(vec![KeyState::default(); per_shard])).collect(),
            inserts: Mutex::new(Inserts { next: records, ..Inserts::default() }),
            existing: AtomicU64::new(records),
        }
    }

    /// Keys 0 up to this one exist.
    #[inline]
    pub fn existing(&self) -> u64 {
        self.existing.load(Ordering::Acquire)
    }

    #[inline]
    fn with<R>(&self, key: u64, change: impl FnOnce(&mut KeyState) -> R) -> R {
        let mut shard = lock(&self.shards[(key % SHARDS) as usize]);
        let index = (key / SHARDS) as usize;
        if index >= shard.len() {
            shard.resize(index + 1, KeyState::default());
        }
        change(&mut shard[index])
    }

    /// The version to send.
    #[inline]
    pub fn write_sent(&self, key: u64) -> u32 {
        self.with(key, |state| {
            state.sent += 1;
            if state.in_flight == 0 {
                state.cluster_start = state.sent;
            }
            state.in_flight += 1;
            state.sent
        })
    }

    /// `stored` is false when the server refused the write: then older versions may live on.
    #[inline]
    pub fn write_answered(&self, key: u64, stored: bool) {
        self.with(key, |state| {
            state.in_flight = state.in_flight.saturating_sub(1);
            if stored {
                state.floor = state.cluster_start;
            }
        });
    }

    /// The oldest version that a read sent now may return.
    #[inline]
    pub fn read_sent(&self, key: u64) -> u32 {
        self.with(key, |state| state.floor)
    }

    #[inline]
    pub fn is_legal(&self, key: u64, floor: u32, version: u32) -> bool {
        version > 0 && version >= floor && self.with(key, |state| version <= state.sent)
    }

    fn states(&self) -> Vec<Vec<KeyState>> {
        self.shards.iter().map(|shard| lock(shard).clone()).collect()
    }

    /// Does something and tells what could be read at any moment of it.
    pub fn between<R>(&self, moment: impl FnOnce() -> R) -> (R, Between) {
        let (existing, before) = (self.existing(), self.states());
        let result = moment();
        (result, Between { before, after: self.states(), existing })
    }

    /// A key that nobody used before.
    pub fn insert_sent(&self) -> u64 {
        let mut inserts = lock(&self.inserts);
        inserts.next += 1;
        inserts.next - 1
    }

    /// Refused inserts count too, or the keys after them would stay invisible; reads of them are misses.
    pub fn insert_answered(&self, key: u64) {
        let mut inserts = lock(&self.inserts);
        inserts.acknowledged_ahead.insert(key);
        let mut existing = self.existing();
        while inserts.acknowledged_ahead.remove(&existing) {
            existing += 1;
        }
        self.existing.store(existing, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_races_only_the_last_version_is_legal() {
        let keys = KeyTable::new(10);
        for _ in 0..3 {
            keys.write_sent(5);
            keys.write_answered(5, true);
        }
        let floor = keys.read_sent(5);
        let legal: Vec<u32> = (0..6).filter(|&v| keys.is_legal(5, floor, v)).collect();
        assert_eq!(legal, [3]);
    }

    #[test]
    fn a_read_that_races_an_update_may_see_either() {
        let keys = KeyTable::new(10);
        keys.write_sent(5);
        keys.write_answered(5, true);
        let early = keys.read_sent(5);
        keys.write_sent(5);
        assert!(keys.is_legal(5, early, 1) && keys.is_legal(5, early, 2));
        keys.write_answered(5, true);
        let late = keys.read_sent(5);
        assert!(!keys.is_legal(5, late, 1) && keys.is_legal(5, late, 2));
        assert!(!keys.is_legal(5, late, 3));
    }

    #[test]
    fn overlapping_updates_may_end_in_any_order() {
        let keys = KeyTable::new(1);
        keys.write_sent(0);
        keys.write_answered(0, true);
        keys.write_sent(0);
        keys.write_sent(0);
        keys.write_answered(0, true);
        keys.write_answered(0, true);
        let floor = keys.read_sent(0);
        let legal: Vec<u32> = (0..6).filter(|&v| keys.is_legal(0, floor, v)).collect();
        assert_eq!(legal, [2, 3]);
    }

    #[test]
    fn a_refused_update_leaves_the_old_version_legal() {
        let keys = KeyTable::new(1);
        keys.write_sent(0);
        keys.write_answered(0, true);
        keys.write_sent(0);
        keys.write_answered(0, false);
        assert!(keys.is_legal(0, keys.read_sent(0), 1));
    }

    #[test]
    fn a_dump_may_hold_what_could_be_read_while_it_began() {
        let keys = KeyTable::new(2);
        let write = || {
            keys.write_sent(1);
            keys.write_answered(1, true);
        };
        (0..3).for_each(|_| write());
        let ((), between) = keys.between(write);
        write();
        let legal: Vec<u32> = (0..7).filter(|&version| between.is_legal_now(1, version)).collect();
        assert_eq!((legal, between.existing), (vec![3, 4], 2));
        assert!(keys.is_legal_now(1, 5) && !keys.is_legal_now(1, 4));
    }

    #[test]
    fn inserts_become_visible_in_order() {
        let keys = KeyTable::new(3);
        assert_eq!((keys.insert_sent(), keys.insert_sent()), (3, 4));
        keys.insert_answered(4);
        assert_eq!(keys.existing(), 3);
        keys.insert_answered(3);
        assert_eq!(keys.existing(), 5);
        assert_eq!(keys.write_sent(100_000), 1);
    }
}
