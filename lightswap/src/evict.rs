//! Eviction: victims out, in batches, and only when their content is safe.
//!
//! A batch goes through: claim spans and select victims (they stay mapped) - write-protect them (transparent regions) - hash - write the dirty ones
//! from their place - remove all that were not cancelled with one vectored call - give the frames back. With a backend that does I/O the batch
//! waits for its writes in the middle; the worker goes on meanwhile.

mod classify;
mod frames;

use crate::backend::{Write, WriteRequest};
use crate::budget::MAX_BATCH_PAGES;
use crate::hand::Claim;
use crate::io_queue::Token;
use crate::page_table::PageState;
use crate::pager::Pager;
use crate::parking;
use crate::region::Page;
use crate::residency::CHUNK_PAGES;
use crate::size::{PAGE_SIZE, bytes_of};
use crate::snapshot::Pass;
use crate::sys;
use crate::sys::removal::Run;
use crate::worker::Worker;
use classify::classify;
use std::ops::Range;
use std::time::Duration;

pub(crate) use frames::take_frame;

/// Spans a batch may gather its victims from.
const MAX_CLAIMS: usize = 8;
/// Ranges a batch may write-protect; pinned pages split them.
const MAX_PROTECTED: usize = 64;
/// Batches a worker may have in flight, waiting for their writes.
pub(crate) const MAX_BATCHES: usize = 4;
/// Pause after a failed write before the next attempt.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Passes of the hand over everything before a reclaim gives up: as many as a page can have references, and one to take it.
const MAX_PASSES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The slot has this content: remove.
    Stored,
    /// All zero: remove, no slot needed.
    Zero,
    /// To be written, or being written.
    Dirty,
    /// Not to be removed: the write failed.
    Kept,
}

#[derive(Clone, Copy, Debug)]
struct Victim {
    page: Page<'static>,
    hash: u64,
    fate: Fate,
    was_dirty: bool,
}

/// One batch; lives in its worker, so that reclaiming allocates nothing.
#[derive(Debug)]
pub(crate) struct Batch {
    claims: Vec<Claim>,
    victims: Vec<Victim>,
    /// Write-protected page ranges, and whether a page in them may stay.
    protected: Vec<Claim>,
    must_unprotect: bool,
    /// Victims `first..first + len` of each write in flight.
    writes: Vec<(usize, usize)>,
    num_writes_pending: usize,
    /// When the writes were started, if any are pending, and whether they are known to take too long.
    start_ns: u64,
    is_overdue: bool,
    runs: Vec<Run>,
}

/// What a reclaim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Frames were given back.
    Freed,
    /// Writes are under way that will give frames back.
    Pending,
    /// There is nothing to evict now.
    Nothing,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            claims: Vec::with_capacity(MAX_CLAIMS),
            victims: Vec::with_capacity(MAX_BATCH_PAGES),
            protected: Vec::with_capacity(MAX_PROTECTED),
            must_unprotect: false,
            writes: Vec::with_capacity(MAX_BATCH_PAGES),
            num_writes_pending: 0,
            start_ns: 0,
            is_overdue: false,
            runs: Vec::with_capacity(MAX_BATCH_PAGES),
        }
    }

    pub(crate) fn is_free(&self) -> bool {
        self.claims.is_empty()
    }

    /// These victims could not be written, so they stay.
    fn keep(&mut self, victims: Range<usize>) {
        for victim in &mut self.victims[victims] {
            victim.fate = Fate::Kept;
            victim.page.entry().cancel_eviction();
        }
        self.must_unprotect = true;
    }
}

/// Starts one batch on this worker. Async-signal-safe: never suspends, allocates nothing.
pub(crate) fn reclaim(worker: &Worker) -> Progress {
    timed(worker, || start_batch(worker))
}

/// Counts the time `action` takes to the worker's evictions.
fn timed<R>(worker: &Worker, action: impl FnOnce() -> R) -> R {
    let start_ns = worker.pager().step_clock();
    let result = action();
    if start_ns > 0 {
        worker.stats().steps.evict_ns.add(sys::now_ns() - start_ns);
    }
    result
}

fn start_batch(worker: &Worker) -> Progress {
    let Some((number, batch)) = worker.free_batch() else { return Progress::Pending };
    let pager = worker.pager();
    select(pager, batch);
    if batch.victims.is_empty() {
        release(pager, batch);
        return if worker.has_busy_batch() { Progress::Pending } else { Progress::Nothing };
    }
    worker.stats().counters.evict_batches.add(1);
    pager.budget.begin_leaving(batch.victims.len());
    protect(pager, batch);
    classify(pager, batch);
    write_dirty(worker, number, batch);
    if batch.num_writes_pending > 0 {
        batch.start_ns = sys::now_ns();
        worker.watch_time();
    }
    let freed = remove(worker, batch);
    if batch.num_writes_pending == 0 {
        release(pager, batch);
    }
    if freed > 0 { Progress::Freed } else { Progress::Pending }
}

/// Claims spans and moves victims to Evicting until the batch is full enough or the hand has been everywhere.
fn select(pager: &Pager, batch: &mut Batch) {
    let target = pager.budget.batch_pages();
    let mut num_scanned = 0;
    let most_scanned = MAX_PASSES * (pager.budget.num_used() + 1);
    while batch.victims.len() < target && batch.claims.len() < MAX_CLAIMS && batch.has_room_to_protect() {
        let Some(mut claim) = pager.hand.claim(pager) else { return };
        let num_before = batch.victims.len();
        let (num_resident, end) = select_in(batch, &claim, target);
        if end < claim.end {
            pager.hand.shorten(&mut claim, end);
        }
        num_scanned += num_resident.max(1);
        if batch.victims.len() > num_before {
            batch.claims.push(claim);
        } else {
            pager.hand.release(&claim);
        }
        // Enough of a long search is better than all of it: others wait for this worker.
        if num_scanned > most_scanned || (num_scanned > 16 * target && !batch.victims.is_empty()) {
            return;
        }
    }
}

/// Selects victims in one claim; the number of resident pages seen, and the page where it stopped.
fn select_in(batch: &mut Batch, claim: &Claim, target: usize) -> (usize, usize) {
    let region = claim.region;
    let mut num_resident = 0;
    // Of the range to protect that is being built: first and one past the last victim.
    let mut range: Option<(usize, usize)> = None;
    let mut next = region.residency.next(claim.start);
    while let Some(mut index) = next.filter(|first| *first < claim.end) {
        let chunk_end = claim.end.min((index / CHUNK_PAGES + 1) * CHUNK_PAGES);
        // Those that come meanwhile are for the next pass.
        let mut num_unseen = region.residency.in_chunk(index);
        while index < chunk_end && num_unseen > 0 {
            if batch.victims.len() >= target || !batch.has_room_to_protect() {
                batch.close_range(claim, &mut range);
                return (num_resident, index);
            }
            let page = region.page(index);
            let word = page.entry().load();
            if word.is_mapped() {
                num_resident += 1;
                num_unseen -= 1;
                if page.entry().select_victim().is_some() {
                    batch.victims.push(Victim { page, hash: 0, fate: Fate::Dirty, was_dirty: false });
                    range = Some((range.map_or(index, |(first, _)| first), index + 1));
                } else if word.num_pins() > 0 {
                    batch.close_range(claim, &mut range);
                } else if range.is_some() {
                    batch.must_unprotect = true;
                }
            }
            index += 1;
        }
        next = region.residency.next(chunk_end);
        if next != Some(chunk_end) {
            // Pages that come into the chunks in between would be protected as well, and writes to them fault for nothing.
            batch.close_range(claim, &mut range);
        }
    }
    batch.close_range(claim, &mut range);
    (num_resident, claim.end)
}

impl Batch {
    /// For the range that is being built, and one more: a claim that is shortened to nothing could not be released.
    fn has_room_to_protect(&self) -> bool {
        self.protected.len() + 1 < MAX_PROTECTED
    }

    fn close_range(&mut self, claim: &Claim, range: &mut Option<(usize, usize)>) {
        if let Some((start, end)) = range.take()
            && claim.region.is_transparent()
        {
            self.protected.push(Claim { region: claim.region, start, end });
        }
    }
}

/// From here on a write to a victim faults, and the handler cancels its eviction.
fn protect(pager: &Pager, batch: &Batch) {
    for range in &batch.protected {
        let start = range.region.page(range.start).address();
        let result = pager.uffd.write_protect(start, range.end - range.start, true);
        assert!(result.is_ok(), "write-protecting a region failed: was it unmapped?");
    }
}

/// Writes dirty victims from their place, contiguous ones in one request.
fn write_dirty(worker: &Worker, number: usize, batch: &mut Batch) {
    let pass = worker.pager().enter_change();
    let spares_slots = pass.as_ref().is_some_and(Pass::spares_slots);
    let mut num_moved = 0;
    let mut first = 0;
    while first < batch.victims.len() {
        let len = dirty_run(&batch.victims[first..], spares_slots);
        if len == 0 {
            batch.must_unprotect |= batch.victims[first].fate == Fate::Dirty;
            first += 1;
            continue;
        }
        let run = first..first + len;
        for victim in &batch.victims[run.clone()] {
            victim.page.entry().forget_stored();
            num_moved += usize::from(spares_slots && victim.page.entry().spare_slot());
        }
        let page = batch.victims[first].page;
        let token = Token::write(number, batch.writes.len());
        match worker.start_write(WriteRequest { slot: page.slot(), source: page.address() as *const u8, num_bytes: bytes_of(len), token }) {
            Write::Done => batch.victims[run].iter_mut().for_each(|victim| victim.fate = Fate::Stored),
            Write::Pending => {
                batch.writes.push((first, len));
                batch.num_writes_pending += 1;
            }
            // Which page it is that is damaged, the next hash will find.
            Write::Failed => batch.keep(run),
        }
        first += len;
    }
    if let Some(pass) = pass.filter(|_| num_moved > 0) {
        pass.count_moved(num_moved);
    }
}

/// Length of the run of dirty pages at the start of `victims` whose slots to write to are adjacent. Cancelled ones are left out: their content may be changing.
fn dirty_run(victims: &[Victim], spares_slots: bool) -> usize {
    let is_dirty = |victim: &Victim| victim.fate == Fate::Dirty && victim.page.entry().load().state() == PageState::Evicting;
    let Some(first) = victims.first().filter(|victim| is_dirty(victim)) else { return 0 };
    let is_to_alternate = |victim: &Victim| victim.page.entry().load().is_alternate_next(spares_slots);
    let to_alternate = is_to_alternate(first);
    let follows = |(offset, victim): &(usize, &Victim)| {
        std::ptr::eq(victim.page.region, first.page.region)
            && victim.page.index == first.page.index + offset
            && is_dirty(victim)
            && is_to_alternate(victim) == to_alternate
    };
    victims.iter().enumerate().take_while(follows).count()
}

/// The writes of a batch that were started before `limit_ns` take too long. Its pages cannot be taken back before the device is done with them, but no fresh
/// memory is handed out meanwhile.
pub(crate) fn check_time(worker: &Worker, batch: &mut Batch, limit_ns: u64) {
    if batch.num_writes_pending > 0 && batch.start_ns < limit_ns && !batch.is_overdue {
        batch.is_overdue = true;
        worker.stats().counters.swap_outs_overdue.add(1);
        worker.pager().begin_overdue();
    }
}

/// A write of a batch completed with `result` (bytes, or a negative errno).
pub(crate) fn complete_write(worker: &Worker, number: usize, write: usize, result: i32) {
    timed(worker, || finish_write(worker, number, write, result));
}

fn finish_write(worker: &Worker, number: usize, write: usize, result: i32) {
    let pager = worker.pager();
    let batch = worker.batch(number);
    let (first, len) = batch.writes[write];
    let succeeded = result == bytes_of(len) as i32;
    if succeeded {
        batch.victims[first..first + len].iter_mut().for_each(|victim| victim.fate = Fate::Stored);
    } else {
        batch.keep(first..first + len);
    }
    pager.note_swap_out(succeeded);
    if !succeeded {
        worker.stats().counters.swap_out_errors.add(1);
    }
    batch.num_writes_pending -= 1;
    if batch.num_writes_pending == 0 {
        remove(worker, batch);
        release(pager, batch);
    }
}

/// Unmaps all victims whose content is safe and that nobody took back; returns how many.
fn remove(worker: &Worker, batch: &mut Batch) -> usize {
    let pager = worker.pager();
    let _pass = pager.enter_change();
    let counters = &worker.stats().counters;
    batch.runs.clear();
    let mut num_removed = 0;
    for victim in &mut batch.victims {
        if !matches!(victim.fate, Fate::Stored | Fate::Zero) {
            continue;
        }
        if !victim.page.entry().begin_removal() {
            victim.fate = Fate::Kept;
            batch.must_unprotect = true;
            counters.cancelled_evictions.add(1);
            continue;
        }
        num_removed += 1;
        let start = victim.page.address();
        match batch.runs.last_mut() {
            Some(run) if run.start + run.num_bytes == start => run.num_bytes += PAGE_SIZE,
            _ => batch.runs.push(Run { start, num_bytes: PAGE_SIZE }),
        }
    }
    // SAFETY: the runs are the pages that we just moved to Removing.
    unsafe { pager.remover.remove(&batch.runs) };
    for victim in &mut batch.victims {
        let (hash, counter) = match (victim.fate, victim.was_dirty) {
            (Fate::Zero, _) => (None, &counters.zero_evictions),
            (Fate::Stored, false) => (Some(victim.hash), &counters.clean_evictions),
            (Fate::Stored, true) => (Some(victim.hash), &counters.dirty_evictions),
            _ => continue,
        };
        counter.add(1);
        victim.page.count_resident(false);
        if victim.page.entry().finish_removal(hash) {
            parking::unpark_all(victim.page.key());
        }
        // Done with: a batch with writes in flight comes here again.
        victim.fate = Fate::Kept;
    }
    if num_removed > 0 {
        pager.budget.count_evicted(num_removed);
        pager.budget.give_back(num_removed);
    }
    num_removed
}

/// The batch is over: nothing of it stays protected or claimed.
fn release(pager: &Pager, batch: &mut Batch) {
    if batch.must_unprotect {
        for range in &batch.protected {
            let start = range.region.page(range.start).address();
            let result = pager.uffd.write_protect(start, range.end - range.start, false);
            assert!(result.is_ok(), "un-protecting a region failed: was it unmapped?");
        }
    }
    batch.claims.drain(..).for_each(|claim| pager.hand.release(&claim));
    batch.protected.clear();
    batch.writes.clear();
    batch.must_unprotect = false;
    if std::mem::take(&mut batch.is_overdue) {
        pager.end_overdue();
    }
    let num_victims = batch.victims.len();
    batch.victims.clear();
    if num_victims > 0 {
        pager.budget.end_leaving(num_victims);
        pager.budget.notify(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lightswap;
    use crate::region::{self, Contract};

    #[test]
    fn a_range_to_protect_ends_before_chunks_without_resident_pages() {
        const NUM_PAGES: usize = 5 * CHUNK_PAGES;
        // More local memory than pages, so that nobody else evicts.
        let size = NUM_PAGES * PAGE_SIZE;
        let Ok(swap) = Lightswap::builder().local_memory(2 * size as u64).backend(format!("memory:?size={size}")).open() else { return };
        let of_user = swap.create_region(size, Contract::Transparent).unwrap();
        let region = region::find(of_user.as_ptr() as usize).unwrap();
        // Two neighbouring chunks, one without resident pages, another one with.
        let resident = [CHUNK_PAGES - 2, CHUNK_PAGES - 1, CHUNK_PAGES, 3 * CHUNK_PAGES, 3 * CHUNK_PAGES + 1];
        for index in resident {
            crate::touch(of_user.as_ptr().wrapping_add(bytes_of(index)), 1).unwrap();
            region.page(index).entry().forget_references();
        }
        let mut batch = Batch::new();
        let claim = Claim { region, start: 0, end: NUM_PAGES };
        assert_eq!(select_in(&mut batch, &claim, MAX_BATCH_PAGES), (resident.len(), NUM_PAGES));
        assert!(batch.victims.iter().map(|victim| victim.page.index).eq(resident));
        let protected: Vec<_> = batch.protected.iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(protected, [(CHUNK_PAGES - 2, CHUNK_PAGES + 1), (3 * CHUNK_PAGES, 3 * CHUNK_PAGES + 2)]);
        for victim in &batch.victims {
            victim.page.entry().cancel_eviction();
        }
    }
}
