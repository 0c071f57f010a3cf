//! A tier whose slow member ends writes when the test says so, in any order.

use super::*;
use crate::backend::{Queues, Read, Write, WriteRequest, open};
use crate::io_queue::{Completion, IoQueue, Purpose, Source, Token};
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::MutexGuard;

const NUM_SLOTS: usize = 512;

/// A write that was begun.
#[derive(Debug)]
struct Held {
    queue: usize,
    slot: usize,
    source: usize,
    num_pages: usize,
    token: Token,
    /// How it has ended.
    result: Option<i32>,
}

#[derive(Debug, Default)]
struct Inner {
    pages: HashMap<usize, Vec<u8>>,
    held: Vec<Held>,
    num_queues: usize,
    num_writes: usize,
}

/// The slow member: what is written is in its slots when the write ends.
#[derive(Debug, Default)]
struct Manual(Mutex<Inner>);

impl Manual {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Ends a write, with an error or without.
    fn end(&self, index: usize, error: i32) {
        let Inner { pages, held, .. } = &mut *self.lock();
        let write = &mut held[index];
        assert!(write.result.is_none());
        write.result = Some(if error < 0 { error } else { bytes_of(write.num_pages) as i32 });
        // Half of what fails has taken effect.
        let num_arriving = if error < 0 { write.num_pages / 2 } else { write.num_pages };
        for page in 0..num_arriving {
            // SAFETY: the source of a write stays until it has ended.
            let content = unsafe { std::slice::from_raw_parts((write.source + bytes_of(page)) as *const u8, PAGE_SIZE) };
            pages.insert(write.slot + page, content.to_vec());
        }
    }

    /// First slot and length of those that have not ended.
    fn held(&self) -> Vec<(usize, usize)> {
        self.lock().held.iter().filter(|write| write.result.is_none()).map(|write| (write.slot, write.num_pages)).collect()
    }

    fn end_all(&self, error: i32) {
        while let Some(index) = { self.lock().held.iter().position(|write| write.result.is_none()) } {
            self.end(index, error);
        }
    }
}

impl Backend for Manual {
    fn num_slots(&self) -> usize {
        NUM_SLOTS
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        let mut inner = self.lock();
        inner.num_queues += 1;
        let queue = inner.num_queues;
        drop(inner);
        Ok(builder.add(number, Rc::new(ManualQueue { queue, manual: self })))
    }

    fn reserve(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.lock().pages.retain(|at, _| !(slot..slot + num_slots).contains(at));
    }
}

struct ManualQueue {
    queue: usize,
    manual: Arc<Manual>,
}

impl BackendQueue for ManualQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        let inner = self.manual.lock();
        let content = &inner.pages[&read.slot];
        // SAFETY: the target is a page of the reader's.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), read.target, PAGE_SIZE) };
        io.finish(read.token, Completion::of(PAGE_SIZE as i32));
    }

    fn write(&self, _: &IoQueue, write: WriteRequest) -> Write {
        let WriteRequest { slot, source, num_bytes, token } = write;
        let num_pages = num_bytes / PAGE_SIZE;
        let mut inner = self.manual.lock();
        // Their order would be anybody's guess.
        let overlaps = |held: &&Held| held.result.is_none() && held.slot < slot + num_pages && slot < held.slot + held.num_pages;
        assert!(!inner.held.iter().any(|held| overlaps(&held)), "two writes of slot {slot} at once");
        inner.num_writes += 1;
        inner.held.push(Held { queue: self.queue, slot, source: source as usize, num_pages, token, result: None });
        Write::Pending
    }

    fn flush(&self, io: &IoQueue) {
        let mut inner = self.manual.lock();
        for ended in inner.held.extract_if(.., |held| held.queue == self.queue && held.result.is_some()) {
            io.finish(ended.token, Completion::of(ended.result.unwrap()));
        }
    }
}

/// A worker's part, without the worker.
struct Part {
    queues: Queues,
    io: IoQueue,
    /// Results, by the number of the write.
    ended: RefCell<HashMap<usize, i32>>,
}

impl Part {
    fn new(tier: &Arc<TierBackend>, is_pager_thread: bool) -> Option<Self> {
        let shared = WorkerShared::take(&mut Vec::new()).unwrap();
        let mut builder = QueueBuilder::new(4, 64, is_pager_thread, shared);
        let queues = Queues::new(&(tier.clone() as Arc<dyn Backend>), &mut builder).unwrap();
        let io = IoQueue::new(shared.wake_fd.as_raw_fd(), None, builder.files(), 4, false, builder.num_finished()).ok()?;
        Some(Self { queues, io, ended: RefCell::default() })
    }

    fn turn(&self) {
        self.queues.flush(&self.io);
        self.io.poll(false, |_, _| {});
        while let Some((token, completion)) = self.io.take_finished() {
            match token.purpose() {
                Purpose::Node { node, index } => self.queues.complete(&self.io, node, index, completion),
                Purpose::Write { run, .. } => _ = self.ended.borrow_mut().insert(run, completion.result),
                Purpose::Read { .. } => assert_eq!(completion.result, PAGE_SIZE as i32),
                other => panic!("{other:?}"),
            }
        }
    }

    fn end_pause(&self) {
        self.queues.complete(&self.io, 0, queue::OF_MOVER | mover::TIMER, Completion::of(-libc::ETIME));
    }
}

struct Bench {
    tier: Arc<TierBackend>,
    manual: Arc<Manual>,
    worker: Part,
    pager_thread: Part,
}

/// Pages that do not compress.
fn content(seeds: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for seed in seeds {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for _ in 0..PAGE_SIZE / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_ne_bytes());
        }
    }
    bytes
}

impl Bench {
    /// `None` where there is no io_uring.
    fn new(limit_pages: usize) -> Option<Self> {
        let manual = Arc::new(Manual::default());
        let fast = open(&format!("memory:?size={}&compress=lz4&limit={}", bytes_of(NUM_SLOTS), bytes_of(limit_pages))).unwrap();
        let tier = Arc::new(TierBackend::new(vec![fast, manual.clone()], "").unwrap());
        let (worker, pager_thread) = (Part::new(&tier, false)?, Part::new(&tier, true)?);
        Some(Self { tier, manual, worker, pager_thread })
    }

    fn write(&self, slot: usize, source: &[u8], number: usize) -> Write {
        let request = WriteRequest { slot, source: source.as_ptr(), num_bytes: source.len(), token: Token::write(0, number) };
        self.worker.queues.write(&self.worker.io, request)
    }

    fn turns(&self) {
        for _ in 0..20 {
            self.worker.turn();
            self.pager_thread.turn();
        }
    }

    /// Writes pages, whatever it takes.
    fn fill(&self, slot: usize, seeds: std::ops::Range<u64>) {
        let source = content(seeds);
        if self.write(slot, &source, 0) == Write::Pending {
            for _ in 0..100 {
                self.manual.end_all(0);
                self.turns();
            }
            assert_eq!(self.worker.ended.borrow_mut().remove(&0), Some(source.len() as i32));
        }
    }

    fn check(&self, slot: usize, seed: u64) {
        let mut page = vec![0; PAGE_SIZE];
        match self.tier.read_now(slot, page.as_mut_ptr()) {
            Now::Content(at) => assert!(std::ptr::eq(at, page.as_ptr())),
            Now::NeedsIo => {
                let (target, token) = (page.as_mut_ptr(), Token::read(0));
                self.worker.queues.read(&self.worker.io, Read { slot, target, token, is_retry: false, suspect: Source(None) });
                self.worker.turn();
            }
            failed => panic!("slot {slot}: {failed:?}"),
        }
        assert!(page == content(std::iter::once(seed)), "slot {slot}");
    }

    fn stat(&self, name: &str) -> u64 {
        self.tier.stats().iter().find(|(known, _)| *known == name).unwrap().1
    }

    /// Neither member holds anything that is not the content of a slot.
    fn expect_no_rest(&self) {
        assert_eq!(self.stat("compressed_pages"), self.stat("tier_fast_pages"));
        assert_eq!(self.manual.lock().pages.len() as u64, self.stat("tier_slow_pages"));
    }
}

/// Slots whose content is in each member.
fn places(bench: &Bench, slots: std::ops::Range<usize>) -> (usize, usize) {
    let count = |place| slots.clone().filter(|slot| bench.tier.slots.load(*slot).place() == place).count();
    (count(Place::Fast), count(Place::Slow))
}

#[test]
fn what_finds_no_room_goes_to_the_slow_member_in_large_writes() {
    let Some(bench) = Bench::new(16) else { return };
    let source = content(0..40);
    assert_eq!(bench.write(100, &source, 7), Write::Pending);
    bench.worker.turn();
    let (in_fast, in_slow) = places(&bench, 100..140);
    assert!((10..16).contains(&in_fast) && in_slow == 0);
    // The rest is on its way, in one piece.
    assert_eq!(bench.manual.held(), [(100 + in_fast, 40 - in_fast)]);
    assert_eq!(bench.worker.ended.borrow().get(&7), None);
    bench.manual.end_all(0);
    bench.worker.turn();
    bench.worker.turn();
    assert_eq!(bench.worker.ended.borrow().get(&7), Some(&(source.len() as i32)));
    (0..40).for_each(|page| bench.check(100 + page, page as u64));
    assert_eq!((bench.stat("tier_fast_pages"), bench.stat("tier_slow_pages")), (in_fast as u64, 40 - in_fast as u64));
    assert_eq!((bench.stat("tier_fast_reads"), bench.stat("tier_slow_reads")), (in_fast as u64, 40 - in_fast as u64));
    assert_eq!(bench.stat("tier_overflow_pages"), 40 - in_fast as u64);
    bench.expect_no_rest();
    bench.tier.discard(0, NUM_SLOTS);
    assert_eq!(places(&bench, 0..NUM_SLOTS), (0, 0));
    bench.expect_no_rest();
}

#[test]
fn a_failed_overflow_is_a_failed_write() {
    let Some(bench) = Bench::new(16) else { return };
    bench.fill(0, 0..12);
    let source = content(100..120);
    // 5 to 11 are in the fast member, 12 to 24 nowhere yet.
    assert_eq!(bench.write(5, &source, 1), Write::Pending);
    bench.worker.turn();
    bench.manual.end_all(-libc::EIO);
    bench.turns();
    assert_eq!(bench.worker.ended.borrow_mut().remove(&1), Some(-libc::EIO));
    bench.manual.end_all(0);
    bench.turns();
    bench.expect_no_rest();
    (0..5).for_each(|slot| bench.check(slot, slot as u64));
    bench.fill(5, 200..220);
    (5..25).for_each(|slot| bench.check(slot, 195 + slot as u64));
    bench.expect_no_rest();
}

/// A bench whose fast member is above its high watermark, and the mover's first write under way: its slots.
fn moving() -> Option<(Bench, std::ops::Range<usize>)> {
    let bench = Bench::new(64)?;
    for slot in (0..60).step_by(4) {
        let source = content(slot as u64..slot as u64 + 4);
        assert_eq!(bench.write(slot, &source, 0), Write::Done);
    }
    assert!(bench.tier.is_pressed());
    bench.turns();
    let held = bench.manual.held();
    assert!(!held.is_empty() && held[0].1 > 2, "{held:?}");
    Some((bench, held[0].0..held[0].0 + held[0].1))
}

#[test]
fn cold_pages_move_and_used_ones_stay() {
    let Some((bench, slots)) = moving() else { return };
    assert_eq!(slots.start, 0, "the hand went round once, and takes the first");
    // Read while it is on its way.
    bench.check(1, 1);
    for _ in 0..10 {
        bench.manual.end_all(0);
        bench.turns();
    }
    assert_eq!(places(&bench, 0..3), (1, 2));
    (0..60).for_each(|slot| bench.check(slot, slot as u64));
    assert!(bench.manual.held().is_empty() && !bench.tier.is_pressed(), "it is done");
    assert_eq!(bench.stat("tier_demoted_pages"), bench.stat("tier_slow_pages"));
    let (used, limit) = bench.tier.fast.fill().unwrap();
    assert!(used <= limit / 100 * LOW_PERCENT && used > limit / 100 * (LOW_PERCENT - 10), "{used} of {limit}");
    bench.expect_no_rest();
}

#[test]
fn what_is_rewritten_or_discarded_while_it_moves_is_not_what_was_moved() {
    let Some((bench, slots)) = moving() else { return };
    assert_eq!(slots.start, 0);
    bench.tier.discard(1, 1);
    assert_eq!(bench.write(0, &content(1000..1001), 0), Write::Done);
    assert_eq!(bench.write(1, &content(1001..1002), 0), Write::Done);
    bench.tier.discard(2, 1);
    bench.manual.end_all(0);
    bench.turns();
    bench.manual.end_all(0);
    bench.turns();
    bench.check(0, 1000);
    bench.check(1, 1001);
    assert!(matches!(bench.tier.read_now(2, content(0..1).as_mut_ptr()), Now::Failed(_)));
    (3..60).for_each(|slot| bench.check(slot, slot as u64));
    bench.expect_no_rest();
}

/// The one order that would be wrong: the owner's newer content before the mover's older one.
#[test]
fn an_overflow_waits_for_the_move_of_its_slot() {
    let Some((bench, slots)) = moving() else { return };
    // No room for anything any more: the slots being moved lose their places to others.
    bench.tier.discard(slots.start, slots.len());
    let filler = content(500..600);
    assert_eq!(bench.write(100, &filler, 3), Write::Pending);
    bench.worker.turn();
    let newer = content(1000..1000 + slots.len() as u64 + 2);
    assert_eq!(bench.write(slots.start, &newer, 4), Write::Pending);
    (0..5).for_each(|_| bench.worker.turn());
    let of_owner = |held: &(usize, usize)| held.0 != slots.start && slots.contains(&held.0);
    // The mock does not allow two writes of a slot; beyond those slots the write may go on.
    assert!(!bench.manual.held().iter().any(of_owner), "{:?}", bench.manual.held());
    assert_eq!(bench.worker.ended.borrow().get(&4), None);
    assert!(bench.tier.num_waiting.load(Relaxed) == 1);
    // All others first.
    while let Some(index) = { bench.manual.lock().held.iter().position(|held| held.result.is_none() && held.slot != slots.start) } {
        bench.manual.end(index, 0);
    }
    bench.turns();
    assert_eq!(bench.worker.ended.borrow().get(&4), None);
    for _ in 0..10 {
        bench.manual.end_all(0);
        bench.turns();
    }
    assert_eq!(bench.worker.ended.borrow().get(&4), Some(&(newer.len() as i32)));
    (0..slots.len() + 2).for_each(|page| bench.check(slots.start + page, 1000 + page as u64));
    (0..100).for_each(|page| bench.check(100 + page, 500 + page as u64));
    assert_eq!(bench.tier.num_waiting.load(Relaxed), 0);
    bench.expect_no_rest();
}

#[test]
fn a_move_that_fails_leaves_everything_where_it_is_and_is_tried_again_later() {
    let Some((bench, _)) = moving() else { return };
    bench.manual.end_all(-libc::EIO);
    bench.turns();
    assert_eq!(places(&bench, 0..60), (60, 0));
    let num_writes = bench.manual.lock().num_writes;
    bench.turns();
    assert_eq!(bench.manual.lock().num_writes, num_writes, "it pauses");
    bench.expect_no_rest();
    (50..60).for_each(|slot| bench.check(slot, slot as u64));
    bench.pager_thread.end_pause();
    bench.turns();
    assert_eq!(bench.manual.lock().num_writes, num_writes + 1, "one write to see whether it works again");
    bench.manual.end_all(0);
    bench.turns();
    assert!(places(&bench, 0..50).1 > 0);
    (0..60).for_each(|slot| bench.check(slot, slot as u64));
    bench.expect_no_rest();
}

/// Nothing to move, and no end of pressure: the mover does not go round for ever.
#[test]
fn a_mover_without_anything_to_move_rests() {
    let Some(bench) = Bench::new(64) else { return };
    // As if an owner were about to discard something of each.
    for slot in 0..60 {
        bench.fill(slot, slot as u64..slot as u64 + 1);
        let slot_again = |state: State| state.without_content().with_content_in(Place::Slow).without_content().with_content_in(Place::Fast);
        bench.tier.slots.update(slot, slot_again);
    }
    assert!(bench.tier.slots.load(5).is_stale() && bench.tier.is_pressed());
    bench.turns();
    assert!(!bench.tier.is_pressed() && bench.manual.held().is_empty());
    // And again, but not before the pause is over.
    bench.tier.look_for_pressure(false);
    (0..60).for_each(|slot| _ = bench.tier.slots.update(slot, State::without_stale));
    bench.turns();
    assert!(bench.tier.is_pressed() && bench.manual.held().is_empty());
    bench.pager_thread.end_pause();
    bench.turns();
    assert!(!bench.manual.held().is_empty());
}

struct InFlight {
    slot: usize,
    seeds: std::ops::Range<u64>,
    number: usize,
    source: Vec<u8>,
}

/// Everything at random against a map from slots to contents.
fn run_model(seed: u64, limit_pages: usize, num_steps: usize) {
    let Some(bench) = Bench::new(limit_pages) else { return };
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % limit
    };
    let mut model: HashMap<usize, u64> = HashMap::new();
    let mut writes: Vec<InFlight> = Vec::new();
    let mut next_seed = 1;
    let end = |model: &mut HashMap<usize, u64>, write: &InFlight, succeeded: bool| {
        let num_pages = write.source.len() / PAGE_SIZE;
        if !succeeded {
            // What remains of it is nobody's.
            bench.tier.discard(write.slot, num_pages);
        }
        for (slot, seed) in (write.slot..).zip(write.seeds.clone()) {
            if succeeded {
                model.insert(slot, seed)
            } else {
                model.remove(&slot)
            };
        }
    };
    for step in 0..num_steps + 100 {
        let is_over = step >= num_steps;
        let most = if below(4) == 0 { 64 } else { 4 };
        let (slot, len) = (below(300), 1 + below(most));
        let is_free = !writes.iter().any(|write| slot < write.slot + write.source.len() / PAGE_SIZE && write.slot < slot + len);
        match below(12) {
            0..4 if is_free && !is_over && writes.len() < 20 => {
                let seeds = next_seed..next_seed + len as u64;
                next_seed = seeds.end;
                let number = (0..).find(|number| writes.iter().all(|write| write.number != *number)).unwrap();
                let write = InFlight { slot, source: content(seeds.clone()), seeds, number };
                match bench.write(slot, &write.source, number) {
                    Write::Pending => writes.push(write),
                    result => end(&mut model, &write, result == Write::Done),
                }
            }
            4..6 if is_free => {
                for slot in slot..slot + len.min(4) {
                    if let Some(seed) = model.get(&slot) {
                        bench.check(slot, *seed);
                    }
                }
            }
            6 if is_free && !is_over => {
                bench.tier.discard(slot, len);
                (slot..slot + len).for_each(|slot| _ = model.remove(&slot));
            }
            7..9 => bench.pager_thread.turn(),
            9 => bench.worker.turn(),
            _ => {
                let num_held = bench.manual.held().len();
                if num_held > 0 && below(3) > 0 {
                    let nth = below(num_held);
                    let open = |inner: &Inner| inner.held.iter().enumerate().filter(|(_, held)| held.result.is_none()).nth(nth).unwrap().0;
                    let index = open(&bench.manual.lock());
                    bench.manual.end(index, if below(10) == 0 { -libc::EIO } else { 0 });
                }
                if below(8) == 0 {
                    bench.pager_thread.end_pause();
                }
            }
        }
        let ended: HashMap<usize, i32> = bench.worker.ended.borrow_mut().drain().collect();
        for write in writes.extract_if(.., |write| ended.contains_key(&write.number)) {
            let result = ended[&write.number];
            assert!(result == write.source.len() as i32 || result == -libc::EIO, "{result}");
            end(&mut model, &write, result > 0);
        }
    }
    for _ in 0..200 {
        bench.manual.end_all(0);
        bench.turns();
        bench.pager_thread.end_pause();
    }
    for write in &writes {
        let result = bench.worker.ended.borrow()[&write.number];
        end(&mut model, write, result > 0);
    }
    assert_eq!(bench.tier.num_waiting.load(Relaxed), 0);
    for (slot, seed) in &model {
        bench.check(*slot, *seed);
    }
    assert_eq!(bench.stat("tier_fast_pages") + bench.stat("tier_slow_pages"), model.len() as u64);
    bench.expect_no_rest();
    assert!(bench.stat("tier_demoted_pages") > 0 && bench.stat("tier_overflow_pages") > 0, "seed {seed}: {:?}", bench.tier.stats());
    let (fast, slow) = (bench.stat("tier_fast_pages"), bench.stat("tier_slow_pages"));
    println!("seed {seed}: {} demoted, {} overflown, {fast} fast, {slow} slow", bench.stat("tier_demoted_pages"), bench.stat("tier_overflow_pages"));
}

#[test]
fn a_tier_is_a_map_from_slots_to_pages() {
    let first = std::env::var("LIGHTSWAP_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    (first..first + 12).for_each(|seed| run_model(seed, [40, 100, 200][seed as usize % 3], 4000));
}
