//! What tests of backends made of others share.

use crate::common::pages::Pages;
use crate::common::{Mode, PAGE, Random, builder};
use lightswap::{Contract, Lightswap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

pub const NUM_PAGES: usize = 200;
const NUM_ACTORS: usize = 12;
const ACTORS_A_THREAD: usize = 4;

/// One of those who write and read pages of their own that all come and go. It knows what it wrote last.
fn act(pages: Pages, seeds: &[AtomicU64], actor: usize, num_rounds: usize) {
    let mut random = Random::new(actor as u64 + 1);
    let num_own = (NUM_PAGES - actor).div_ceil(NUM_ACTORS);
    for _ in 0..num_rounds {
        let page = actor + random.below(num_own) * NUM_ACTORS;
        let seed = seeds[page].load(Relaxed);
        match random.below(20) {
            0 => {
                pages.discard(page, 1);
                assert!(pages.is_zero(page));
                seeds[page].store(0, Relaxed);
                continue;
            }
            1..7 if seed == 0 => assert!(pages.is_zero(page)),
            1..10 if seed > 0 => pages.check(page, seed),
            _ => {
                pages.fill(page, seed + 1);
                seeds[page].store(seed + 1, Relaxed);
            }
        }
    }
}

/// An ordinary thread and two workers with LWTs over the backend at `url`; `look` is given the instance at the end, when all pages were right.
pub fn come_and_go(mode: Mode, url: &str, local_pages: u64, num_rounds: usize, look: impl FnOnce(&Lightswap)) {
    let swap = mode.set(builder(local_pages, url)).max_workers(2).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    let seeds: Arc<[AtomicU64]> = (0..NUM_PAGES).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for first in (0..NUM_ACTORS).step_by(ACTORS_A_THREAD) {
            let (seeds, swap) = (seeds.clone(), &swap);
            scope.spawn(move || {
                if first == 0 {
                    return (0..ACTORS_A_THREAD).for_each(|actor| act(pages, &seeds, actor, num_rounds));
                }
                let worker = swap.enter_worker().unwrap();
                for actor in first..first + ACTORS_A_THREAD {
                    let seeds = seeds.clone();
                    worker.start(move || act(pages, &seeds, actor, num_rounds)).unwrap();
                }
                worker.run();
            });
        }
    });
    for (page, seed) in seeds.iter().enumerate() {
        match seed.load(Relaxed) {
            0 => assert!(pages.is_zero(page)),
            seed => pages.check(page, seed),
        }
    }
    look(&swap);
}
