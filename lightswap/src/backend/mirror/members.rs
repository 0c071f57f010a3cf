//! The members of a mirror: which of them are lost, and when they may be back.

use super::slots::{MAX_MEMBERS, Members};
use crate::backend::{Backend, Health};
use crate::failure::{Cause, RawCause, WRONG_CONTENT};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// Requests that fail one after the other until their member counts as lost. One that says itself that it is gone is lost at once.
const MAX_FAILURES: u32 = 8;

/// A member, as all threads see it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) backend: Arc<dyn Backend>,
    /// Nothing is written to it, and read from it only what no other has.
    is_lost: AtomicBool,
    failures_in_a_row: AtomicU32,
    /// Times that it turned out to have lost its content.
    num_content_losses: AtomicU64,
    /// The [`Health::generation`] of the content it is known to have.
    generation: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Team {
    members: Box<[Member]>,
    num_losses: AtomicU64,
}

impl Team {
    pub(super) fn new(members: Vec<Arc<dyn Backend>>) -> Self {
        debug_assert!(members.len() <= MAX_MEMBERS);
        let member = |backend: Arc<dyn Backend>| {
            backend.set_mirrored();
            Member {
                is_lost: AtomicBool::new(false),
                failures_in_a_row: AtomicU32::new(0),
                num_content_losses: AtomicU64::new(0),
                generation: AtomicU64::new(backend.health().generation),
                backend,
            }
        };
        Self { members: members.into_iter().map(member).collect(), num_losses: AtomicU64::new(0) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    pub(super) fn member(&self, member: usize) -> &Member {
        &self.members[member]
    }

    /// Those that are not lost.
    pub(super) fn present(&self) -> Members {
        let bit = |(member, of): (usize, &Member)| if of.is_lost() { 0 } else { 1 << member };
        self.iter().enumerate().map(bit).sum()
    }

    pub(super) fn num_lost(&self) -> usize {
        self.iter().filter(|member| member.is_lost()).count()
    }

    /// Times that a member was lost.
    pub(super) fn num_losses(&self) -> u64 {
        self.num_losses.load(Relaxed)
    }

    /// A request to a member has failed with `result`.
    pub(super) fn note_failure(&self, member: usize, result: i32) {
        let is_gone = match RawCause::of_read(result).cause() {
            Cause::LostBackend | Cause::TimedOut => true,
            // It answers; what is wrong is that copy.
            _ if result == WRONG_CONTENT => false,
            _ => self.members[member].failures_in_a_row.fetch_add(1, Relaxed) + 1 >= MAX_FAILURES,
        };
        if is_gone {
            self.lose(member);
        }
    }

    pub(super) fn note_success(&self, member: usize) {
        let failures = &self.members[member].failures_in_a_row;
        // A load, as all threads read it.
        if failures.load(Relaxed) != 0 {
            failures.store(0, Relaxed);
        }
    }

    /// Nothing goes to a member from now on.
    pub(super) fn lose(&self, member: usize) {
        if !self.members[member].is_lost.swap(true, Relaxed) {
            self.num_losses.fetch_add(1, Relaxed);
        }
    }

    /// A member that was lost is to be used again.
    pub(super) fn take_back(&self, member: usize) {
        self.members[member].failures_in_a_row.store(0, Relaxed);
        self.members[member].is_lost.store(false, Release);
    }
}

impl Member {
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Acquire)
    }

    pub(super) fn num_content_losses(&self) -> u64 {
        self.num_content_losses.load(Acquire)
    }

    /// Whether it has other content than it is known to have.
    pub(super) fn has_lost_content(&self, health: Health) -> bool {
        health.generation != self.generation.load(Relaxed)
    }

    /// What it had at an earlier generation is about to be marked stale.
    pub(super) fn begin_content_loss(&self, generation: u64) {
        self.generation.store(generation, Relaxed);
        self.num_content_losses.fetch_add(1, Release);
    }
}
