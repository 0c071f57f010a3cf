//! What becomes of each victim, by the hash of its content.

use super::{Batch, Fate, Victim};
use crate::discard;
use crate::pager::Pager;
use crate::try_catch;
use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::compiler_fence;

/// Hashes the victims and decides what becomes of each.
pub(super) fn classify(pager: &Pager, batch: &mut Batch) {
    // Looked at after a memory error cut the work short, so each change must be in memory before the next page is read.
    let num_done = Cell::new(0);
    while num_done.get() < batch.victims.len() {
        // SAFETY: what a memory error skips are loops over plain data: no destructor, no lock. Which victim it was `num_done` tells.
        let result = unsafe {
            try_catch::try_without_paging(|| {
                for victim in &mut batch.victims[num_done.get()..] {
                    classify_one(pager, victim);
                    num_done.set(num_done.get() + 1);
                    compiler_fence(SeqCst);
                }
            })
        };
        if result.is_err() {
            let victim = &mut batch.victims[num_done.get()];
            victim.fate = Fate::Kept;
            batch.must_unprotect = true;
            discard::lose(victim.page);
            num_done.set(num_done.get() + 1);
        }
    }
}

fn classify_one(pager: &Pager, victim: &mut Victim) {
    let address = victim.page.address() as *const u8;
    // SAFETY: a page in Evicting is mapped and only we can unmap it. In a transparent region it is write-protected; in a cooperative one a
    // writer has pinned it, so that a hash of changing bytes is thrown away by begin_removal.
    victim.hash = unsafe { pager.hash_page(address) };
    let word = victim.page.entry().load();
    victim.fate = if pager.is_zero_hash(victim.hash) {
        Fate::Zero
    } else if word.is_stored() && victim.page.entry().hash() == victim.hash {
        Fate::Stored
    } else {
        Fate::Dirty
    };
    victim.was_dirty = victim.fate == Fate::Dirty;
}
