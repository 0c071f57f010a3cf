//! The pool against a plain model, at its limit, with several threads, and with what it holds damaged.

use super::classes::{COMPRESSED_LEN_MAX, NUM_CLASSES};
use super::entry::Entry;
use super::group::Group;
use super::pool::{Corrupt, NotStored, Pool, Scratch};
use crate::size::PAGE_SIZE;
use crate::try_catch::try_catch;
use crate::{Contract, Lightswap};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::Ordering::Relaxed;

type PageContent = [u8; PAGE_SIZE];

/// A reserve of idle pages, and what is below a batch beyond it.
const IDLE_BYTES_MAX: u64 = 128 * PAGE_SIZE as u64;

/// Pseudo-random words.
fn words(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

/// The kinds of pages that matter: how well each compresses is known.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One word, again and again.
    Same(u64),
    /// Text of few words.
    Text(u64),
    /// So many random bytes, and zeroes: about as long when compressed.
    Mixed(u64, usize),
    Random(u64),
}

impl Kind {
    fn page(self) -> PageContent {
        let mut page = [0; PAGE_SIZE];
        match self {
            Self::Same(word) => page.as_chunks_mut().0.fill(word.to_ne_bytes()),
            Self::Text(seed) => {
                const WORDS: [&[u8]; 8] = [b"\"name\": ", b"{\"id\": ", b"\"value\", ", b"true, ", b"null}\n", b"[1, 2, 3], ", b"\"\", ", b"0.25, "];
                let text = words(seed).flat_map(|word| WORDS[(word >> 61) as usize]);
                page.iter_mut().zip(text).for_each(|(byte, &letter)| *byte = letter);
            }
            Self::Mixed(seed, len) => page[..len].iter_mut().zip(words(seed)).for_each(|(byte, word)| *byte = (word >> 56) as u8),
            Self::Random(seed) => page = Self::Mixed(seed, PAGE_SIZE).page(),
        }
        page
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        1 => prop_oneof![Just(0), Just(u64::MAX), any::<u64>()].prop_map(Kind::Same),
        2 => any::<u64>().prop_map(Kind::Text),
        5 => (any::<u64>(), 1..=PAGE_SIZE).prop_map(|(seed, len)| Kind::Mixed(seed, len)),
        1 => any::<u64>().prop_map(Kind::Random),
    ]
}

fn store(pool: &Pool, slot: usize, kind: Kind, scratch: &mut Scratch) -> Result<(), NotStored> {
    pool.store(slot, kind.page().as_ptr(), scratch)
}

fn load(pool: &Pool, slot: usize) -> Result<PageContent, Corrupt> {
    let mut page = [0xa5; PAGE_SIZE];
    pool.load(slot, page.as_mut_ptr()).map(|()| page)
}

/// What the pool says of itself agrees with what is known from outside.
fn check_stats(pool: &Pool, expected: &HashMap<usize, Kind>) {
    let stats = pool.stats();
    let is_same = |kind: &Kind| kind.page().as_chunks::<8>().0.windows(2).all(|pair| pair[0] == pair[1]);
    assert_eq!(stats.pages, expected.len() as u64);
    assert_eq!(stats.same_filled_pages, expected.values().filter(|kind| is_same(kind)).count() as u64);
    let raw = expected.values().filter(|&&kind| matches!(kind, Kind::Random(_))).count() as u64;
    assert!(stats.incompressible_pages >= raw);
    assert!(stats.compressed_bytes <= stats.used_bytes - stats.idle_bytes);
    assert!(stats.limit_bytes.is_none_or(|limit| stats.used_bytes <= limit));
    pool.check();
}

#[derive(Clone, Debug)]
enum Step {
    Store(usize, Kind),
    /// Several slots at once.
    StoreMany(usize, usize, Kind),
    Load(usize),
    Free(usize, usize),
}

const NUM_SLOTS: usize = 600;

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..NUM_SLOTS;
    prop_oneof![
        4 => (slot.clone(), kind()).prop_map(|(slot, kind)| Step::Store(slot, kind)),
        1 => (slot.clone(), 1..100usize, kind()).prop_map(|(slot, num_slots, kind)| Step::StoreMany(slot, num_slots, kind)),
        3 => slot.clone().prop_map(Step::Load),
        1 => (slot, 1..200usize).prop_map(|(slot, num_slots)| Step::Free(slot, num_slots)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_is_a_map_from_slots_to_pages(steps in prop::collection::vec(step(), 1..300), limit in prop::option::of(100_000..1_500_000u64)) {
        let pool = Pool::new(NUM_SLOTS, limit).unwrap();
        let mut scratch = Scratch::new();
        let mut model = HashMap::new();
        let mut store_one = |model: &mut HashMap<usize, Kind>, slot, kind| match store(&pool, slot, kind, &mut scratch) {
            Ok(()) => drop(model.insert(slot, kind)),
            Err(error) => {
                assert!(error == NotStored::Full && limit.is_some());
                model.remove(&slot);
            }
        };
        for step in steps {
            match step {
                Step::Store(slot, kind) => store_one(&mut model, slot, kind),
                Step::StoreMany(slot, num_slots, kind) => (slot..(slot + num_slots).min(NUM_SLOTS)).for_each(|slot| store_one(&mut model, slot, kind)),
                Step::Load(slot) => prop_assert_eq!(load(&pool, slot), model.get(&slot).map(|kind: &Kind| kind.page()).ok_or(Corrupt)),
                Step::Free(slot, num_slots) => {
                    pool.free(slot, num_slots.min(NUM_SLOTS - slot));
                    model.retain(|at, _| !(slot..slot + num_slots).contains(at));
                }
            }
        }
        check_stats(&pool, &model);
        for slot in 0..NUM_SLOTS {
            prop_assert_eq!(load(&pool, slot), model.get(&slot).map(|kind| kind.page()).ok_or(Corrupt));
        }
        pool.free(0, NUM_SLOTS);
        check_stats(&pool, &HashMap::new());
        prop_assert!(pool.stats().idle_bytes <= IDLE_BYTES_MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever lies in memory, or in the table: an error or a wrong page, which the pager's hash tells, but nothing beyond the page.
    #[test]
    fn damaged_objects_are_harmless(kind in kind(), damage in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 1..20), entry in any::<u64>()) {
        let pool = Pool::new(8, None).unwrap();
        store(&pool, 3, kind, &mut Scratch::new()).unwrap();
        if let Some((offset, len)) = pool.entry(3).place() {
            for (at, byte) in damage {
                // SAFETY: inside the object, which nobody else uses.
                unsafe { pool.memory().add(offset as usize + at % len).write(byte) };
            }
        }
        let guarded = |slot| {
            let mut pages = [[0xa5; PAGE_SIZE]; 3];
            let result = pool.load(slot, pages[1].as_mut_ptr());
            assert!(pages[0] == [0xa5; PAGE_SIZE] && pages[2] == [0xa5; PAGE_SIZE]);
            result
        };
        let _ = guarded(3);
        pool.damage_entry(5, entry);
        let _ = guarded(5);
        pool.damage_entry(5, 0);
    }
}

#[test]
fn truncated_objects_are_corrupt() {
    let pool = Pool::new(8, None).unwrap();
    store(&pool, 0, Kind::Text(1), &mut Scratch::new()).unwrap();
    let Entry::Object { offset, len } = pool.entry(0) else { panic!("text is stored as an object") };
    for shorter in 1..len {
        pool.damage_entry(0, Entry::Object { offset, len: shorter }.encode());
        assert_eq!(load(&pool, 0), Err(Corrupt), "{shorter} of {len} bytes");
    }
    for beyond in [pool.memory_len() as u64, pool.memory_len() as u64 - 1, (1 << 50) - 1] {
        for entry in [Entry::Object { offset: beyond, len }, Entry::Object { offset: beyond, len: PAGE_SIZE }, Entry::Word { offset: beyond }] {
            pool.damage_entry(0, entry.encode());
            assert_eq!(load(&pool, 0), Err(Corrupt), "{entry:?}");
        }
    }
    pool.damage_entry(0, Entry::Object { offset, len }.encode());
    assert_eq!(load(&pool, 0), Ok(Kind::Text(1).page()));
}

#[test]
fn pages_are_stored_as_they_should_be() {
    let pool = Pool::new(8, None).unwrap();
    let mut scratch = Scratch::new();
    let mut entry_of = |kind| {
        store(&pool, 1, kind, &mut scratch).unwrap();
        assert_eq!(load(&pool, 1), Ok(kind.page()));
        pool.entry(1)
    };
    assert_eq!(entry_of(Kind::Same(0)), Entry::Same(0));
    assert_eq!(entry_of(Kind::Same(u64::MAX)), Entry::Same(u64::MAX));
    assert!(matches!(entry_of(Kind::Same(0xaaaa_0000_0000_0001)), Entry::Word { .. }));
    assert!(matches!(entry_of(Kind::Text(7)), Entry::Object { len: ..2000, .. }));
    assert!(matches!(entry_of(Kind::Random(7)), Entry::Object { len: PAGE_SIZE, .. }));
    // Just so and just not worth it.
    assert!(matches!(entry_of(Kind::Mixed(7, COMPRESSED_LEN_MAX - 100)), Entry::Object { len: 3540..=COMPRESSED_LEN_MAX, .. }));
    assert!(matches!(entry_of(Kind::Mixed(7, COMPRESSED_LEN_MAX + 40)), Entry::Object { len: PAGE_SIZE, .. }));
    assert_eq!(pool.stats().pages, 1);
    // The last byte counts as every other one.
    for at in [0, 7, 8, 4088, 4095] {
        let mut page = Kind::Same(0).page();
        page[at] = 1;
        pool.store(2, page.as_ptr(), &mut scratch).unwrap();
        assert_eq!(load(&pool, 2), Ok(page));
        assert!(matches!(pool.entry(2), Entry::Object { len: ..100, .. }));
    }
}

#[test]
fn nothing_is_lost_at_the_limit() {
    for kind in [Kind::Text, Kind::Random, |seed| Kind::Mixed(seed, 300 + seed as usize % 3000)] {
        let limit = 2 << 20;
        let pool = Pool::new(8192, Some(limit)).unwrap();
        let mut scratch = Scratch::new();
        let num_stored = (0..8192).find(|&slot| store(&pool, slot, kind(slot as u64), &mut scratch).is_err()).expect("8192 pages do not fit");
        let stats = pool.stats();
        assert!(stats.used_bytes <= limit && stats.used_bytes > limit - 3 * PAGE_SIZE as u64, "{stats:?}");
        for slot in 0..num_stored {
            assert_eq!(load(&pool, slot), Ok(kind(slot as u64).page()));
        }
        // What needs no more room is stored in any case.
        for slot in 0..num_stored {
            store(&pool, slot, kind(slot as u64), &mut scratch).unwrap();
        }
        store(&pool, 0, Kind::Same(0), &mut scratch).unwrap();
        // What is freed is of use at once, even to pages of other lengths.
        pool.free(0, num_stored);
        assert_eq!(pool.stats().pages, 0);
        for slot in 0..400 {
            store(&pool, slot, Kind::Random(slot as u64), &mut scratch).unwrap();
        }
        assert!(pool.stats().used_bytes <= limit);
    }
}

/// There is room in pages that are backed, but none where objects would go first.
#[test]
fn holes_are_found_at_the_limit() {
    let kind = |seed| Kind::Mixed(seed, 330);
    for limit in (1 << 20..1 << 21).step_by(60_000) {
        let pool = Pool::new(8192, Some(limit)).unwrap();
        let mut scratch = Scratch::new();
        let num_stored = (0..8192).find(|&slot| store(&pool, slot, kind(slot as u64), &mut scratch).is_err()).expect("8192 pages do not fit");
        // Every second one of the first groups: no page is without objects.
        let freed: Vec<usize> = (0..num_stored / 2).step_by(2).collect();
        freed.iter().for_each(|&slot| pool.free(slot, 1));
        assert_eq!(pool.stats().idle_bytes, 0);
        for (num_refilled, &slot) in freed.iter().enumerate() {
            let result = store(&pool, slot, kind(slot as u64), &mut scratch);
            assert_eq!(result, Ok(()), "after {num_refilled} of {} at a limit of {limit}", freed.len());
        }
    }
}

/// Idle pages of one class, too few to be given back as a matter of course, are memory for another.
#[test]
fn idle_pages_are_of_use_to_other_classes() {
    let pool = Pool::new(8192, Some(1 << 20)).unwrap();
    let mut scratch = Scratch::new();
    let kind = |slot: usize| Kind::Mixed(slot as u64, 1000);
    let num_stored = (0..8192).find(|&slot| store(&pool, slot, kind(slot), &mut scratch).is_err()).expect("8192 pages do not fit");
    let is_kept = |slot: &usize| slot.is_multiple_of(32);
    (0..num_stored).filter(|slot| !is_kept(slot)).for_each(|slot| pool.free(slot, 1));
    assert!(pool.stats().idle_bytes > 64 * PAGE_SIZE as u64);
    let num_random = (4096..8192).find(|&slot| store(&pool, slot, Kind::Random(1), &mut scratch).is_err()).expect("4096 pages do not fit") - 4096;
    assert!(num_random > 150, "{num_random} pages, {:?}", pool.stats());
    for slot in (0..num_stored).filter(is_kept) {
        assert_eq!(load(&pool, slot), Ok(kind(slot).page()));
    }
    pool.check();
}

#[test]
fn memory_comes_back() {
    let num_slots = 40_000;
    let pool = Pool::new(num_slots, None).unwrap();
    let mut scratch = Scratch::new();
    let kind = |slot: usize| Kind::Mixed(slot as u64, 200 + slot * 7919 % 2800);
    let metadata = (num_slots * 8 + 4000 * 64) as u64;
    for _ in 0..2 {
        (0..num_slots).for_each(|slot| store(&pool, slot, kind(slot), &mut scratch).unwrap());
        let full = pool.stats();
        // Classes, ends of groups and metadata.
        assert!(full.used_bytes < full.compressed_bytes * 103 / 100 + NUM_CLASSES as u64 * PAGE_SIZE as u64 + metadata, "{full:?}");
        assert!(pool.resident_bytes() < full.used_bytes + PAGE_SIZE as u64, "{full:?} but {} bytes are resident", pool.resident_bytes());
        // Nine of ten, anywhere: most pages are without objects then, though few groups are.
        (0..num_slots).filter(|slot| slot * 31 % 10 != 0).for_each(|slot| pool.free(slot, 1));
        let tenth = pool.stats();
        assert!(tenth.used_bytes < full.used_bytes * 4 / 10, "{full:?} {tenth:?}");
        assert!(pool.resident_bytes() < tenth.used_bytes + PAGE_SIZE as u64, "{tenth:?} but {} bytes are resident", pool.resident_bytes());
        for slot in (0..num_slots).filter(|slot| slot * 31 % 10 == 0) {
            assert_eq!(load(&pool, slot), Ok(kind(slot).page()));
        }
        pool.free(0, num_slots);
        let empty = pool.stats();
        assert_eq!((empty.pages, empty.compressed_bytes), (0, 0));
        assert!(empty.used_bytes < IDLE_BYTES_MAX + metadata, "{empty:?}");
        assert!(pool.resident_bytes() < IDLE_BYTES_MAX + metadata);
        pool.check();
    }
}

/// Several at once give pages back.
#[test]
fn memory_comes_back_from_several_threads() {
    const NUM_THREADS: usize = 2;
    let num_slots = 20_000;
    let pool = Pool::new(num_slots, None).unwrap();
    let mut scratch = Scratch::new();
    (0..num_slots).for_each(|slot| store(&pool, slot, Kind::Random(slot as u64 % 100), &mut scratch).unwrap());
    let barrier = Barrier::new(NUM_THREADS);
    std::thread::scope(|scope| {
        for thread in 0..NUM_THREADS {
            let (pool, barrier) = (&pool, &barrier);
            scope.spawn(move || {
                barrier.wait();
                (thread..num_slots).step_by(NUM_THREADS).for_each(|slot| pool.free(slot * 7919 % num_slots, 1));
            });
        }
    });
    assert!(pool.stats().idle_bytes <= IDLE_BYTES_MAX, "{:?}", pool.stats());
    pool.check();
}

#[test]
fn threads_do_not_disturb_each_other() {
    const NUM_THREADS: usize = 4;
    const SLOTS_EACH: usize = 400;
    // One has room for all, one is full most of the time.
    for limit in [None, Some(1 << 20)] {
        let pool = Pool::new(NUM_THREADS * SLOTS_EACH, limit).unwrap();
        let barrier = Barrier::new(NUM_THREADS);
        let run = |thread: usize| {
            let mut scratch = Scratch::new();
            let mut model = HashMap::new();
            let mut random = words(thread as u64 + 1);
            let mut next = |below: usize| (random.next().unwrap() >> 33) as usize % below;
            barrier.wait();
            for round in 0..12_000 {
                // Interleaved: neighbours in the table and in groups belong to others.
                let slot = next(SLOTS_EACH) * NUM_THREADS + thread;
                match next(8) {
                    0..4 => {
                        let seed = (thread * 1_000_000 + round) as u64;
                        let kind = match next(6) {
                            0 => Kind::Same(seed << next(60)),
                            1 => Kind::Random(seed),
                            2 => Kind::Text(seed),
                            _ => Kind::Mixed(seed, 1 + next(PAGE_SIZE)),
                        };
                        match store(&pool, slot, kind, &mut scratch) {
                            Ok(()) => drop(model.insert(slot, kind)),
                            Err(error) => {
                                assert!(limit.is_some() && error == NotStored::Full);
                                model.remove(&slot);
                            }
                        }
                    }
                    4 => {
                        pool.free(slot, 1);
                        model.remove(&slot);
                    }
                    // Now and then all, so that groups change their class and pages go back.
                    5 if next(400) == 0 => (thread..NUM_THREADS * SLOTS_EACH).step_by(NUM_THREADS).for_each(|slot| {
                        pool.free(slot, 1);
                        model.remove(&slot);
                    }),
                    _ => assert_eq!(load(&pool, slot), model.get(&slot).map(|kind: &Kind| kind.page()).ok_or(Corrupt)),
                }
            }
            model
        };
        let models: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..NUM_THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread has found anything wrong")).collect()
        });
        let all: HashMap<_, _> = models.into_iter().flatten().collect();
        for (&slot, kind) in &all {
            assert_eq!(load(&pool, slot), Ok(kind.page()));
        }
        check_stats(&pool, &all);
    }
}

/// Damaged since it was last read: that is for the evictor to know, and for no block of the program.
#[test]
fn pages_that_cannot_be_read_are_not_stored() {
    let Ok(swap) = Lightswap::builder().local_memory(1 << 20).backend("memory:?size=1MiB").open() else { return };
    let of_user = swap.create_region(8 * PAGE_SIZE, Contract::Transparent).unwrap();
    let address = of_user.as_ptr().wrapping_add(3 * PAGE_SIZE);
    crate::touch(address, 1).unwrap();
    if let Err(error) = crate::poison(address) {
        return eprintln!("skipped: the kernel cannot poison pages: {error}");
    }
    let pool = Pool::new(8, None).unwrap();
    let mut scratch = Scratch::new();
    store(&pool, 3, Kind::Text(1), &mut scratch).unwrap();
    // SAFETY: nothing is thrown this far.
    let results = unsafe { try_catch(|| [(); 2].map(|()| pool.store(3, address, &mut scratch))) };
    assert_eq!(results, Ok([Err(NotStored::Damaged); 2]));
    assert_eq!(load(&pool, 3), Ok(Kind::Text(1).page()));
}

#[test]
fn hard_inputs_cost_little_more_than_themselves() {
    let num_pages = 4096;
    let per_page = |kind: fn(u64) -> Kind| {
        let pool = Pool::new(num_pages, None).unwrap();
        let mut scratch = Scratch::new();
        (0..num_pages).for_each(|slot| store(&pool, slot, kind(slot as u64), &mut scratch).unwrap());
        pool.stats().used_bytes as f64 / num_pages as f64
    };
    assert_eq!(per_page(|_| Kind::Same(0)), 8.0);
    assert_eq!(per_page(Kind::Same), 8.0);
    // A place of 16 bytes, and the table.
    assert!(per_page(|seed| Kind::Same(seed | 1 << 63)) < 26.0);
    let random = per_page(Kind::Random);
    assert!(random > PAGE_SIZE as f64 && random < PAGE_SIZE as f64 + 16.0, "{random}");
    assert!(per_page(Kind::Text) < 1600.0);
}

/// Pages that changed keep no room that others could use.
#[test]
fn what_a_page_had_makes_room() {
    let pool = Pool::new(NUM_SLOTS, Some(64 << 10)).unwrap();
    let mut scratch = Scratch::new();
    let num_stored = (0..NUM_SLOTS).take_while(|slot| store(&pool, *slot, Kind::Random(*slot as u64), &mut scratch).is_ok()).count();
    let half = |seed| Kind::Mixed(seed, PAGE_SIZE / 5);
    assert!(num_stored > 8 && store(&pool, num_stored, half(1), &mut scratch) == Err(NotStored::Full));
    assert_eq!(store(&pool, 3, half(2), &mut scratch), Ok(()), "in the page that it had");
    assert_eq!(load(&pool, 3), Ok(half(2).page()));
    let beside = num_stored..NUM_SLOTS;
    let num_beside = beside.clone().take_while(|slot| store(&pool, *slot, half(*slot as u64), &mut scratch).is_ok()).count();
    assert!(num_beside > 1);
    // The slot's own room is not enough for this, but it is given up.
    assert_eq!(store(&pool, 3, Kind::Random(3), &mut scratch), Err(NotStored::Full));
    assert_eq!(load(&pool, 3), Err(Corrupt));
    assert_eq!(store(&pool, num_stored + num_beside, half(2), &mut scratch), Ok(()));
    beside.take(num_beside).for_each(|slot| assert_eq!(load(&pool, slot), Ok(half(slot as u64).page())));
    (4..num_stored).for_each(|slot| assert_eq!(load(&pool, slot), Ok(Kind::Random(slot as u64).page())));
}

#[test]
fn pools_of_no_or_too_many_slots() {
    let pool = Pool::new(1, Some(1)).unwrap();
    let mut scratch = Scratch::new();
    assert_eq!(store(&pool, 0, Kind::Random(1), &mut scratch), Err(NotStored::Full));
    assert_eq!(load(&pool, 0), Err(Corrupt));
    assert!(Pool::new(0, None).is_ok());
    for num_slots in [1 << 45, usize::MAX] {
        let error = Pool::new(num_slots, None).unwrap_err().to_string();
        assert!(error.starts_with("cannot map"), "{error}");
    }
}

impl Pool {
    fn entry(&self, slot: usize) -> Entry {
        Entry::decode(self.slot(slot).load(Relaxed))
    }

    fn damage_entry(&self, slot: usize, bits: u64) {
        self.slot(slot).store(bits, Relaxed);
    }

    fn memory(&self) -> *mut u8 {
        self.heap.memory.base()
    }

    fn memory_len(&self) -> usize {
        self.heap.memory.len()
    }

    /// What the kernel says: whole pages, of the groups' metadata as well.
    fn resident_bytes(&self) -> u64 {
        [&self.heap.memory, &self.table, self.heap.groups_memory()].iter().map(|mapping| resident_bytes_of(mapping.base(), mapping.len())).sum()
    }

    /// Counters against groups; while nobody else uses the pool.
    fn check(&self) {
        let (mut committed, mut idle, mut live) = (0, 0, 0);
        for number in 0..self.heap.num_started() {
            self.heap.with_group(number, |group: &Group, class| {
                let pages = group.committed.get();
                committed += u64::from(pages.count_ones());
                let without = class.map_or(pages, |class| group.without_objects(class, pages));
                idle += u64::from(without.count_ones());
                assert!(without == 0 || self.heap.with_idle[number as usize / 64].load(Relaxed) >> (number % 64) & 1 != 0);
                assert_eq!(group.releasing.get(), 0);
                let num_live = class.map_or(0, |class| (0..class.num_objects).filter(|&object| group.is_live(object)).count());
                assert_eq!(num_live, usize::from(group.num_live.get()));
                live += num_live as u64;
                assert_eq!(class.is_none(), num_live == 0);
            });
        }
        let stats = self.stats();
        let table_pages: u64 = self.table_pages.iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum();
        let metadata = u64::from(self.heap.num_started()) * size_of::<Group>() as u64;
        assert_eq!(stats.used_bytes, (committed + table_pages) * PAGE_SIZE as u64 + metadata);
        assert_eq!(stats.idle_bytes, idle * PAGE_SIZE as u64);
        assert_eq!(live, self.heap.num_objects());
    }
}

fn resident_bytes_of(base: *mut u8, len: usize) -> u64 {
    let mut resident = vec![0u8; len / PAGE_SIZE];
    // SAFETY: a mapping, and a byte for each of its pages.
    let result = unsafe { libc::mincore(base.cast(), len, resident.as_mut_ptr()) };
    assert_eq!(result, 0);
    resident.iter().filter(|&&byte| byte & 1 != 0).count() as u64 * PAGE_SIZE as u64
}
