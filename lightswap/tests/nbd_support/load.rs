//! An instance whose backend is a server, and work for it: workers' LWTs and ordinary threads change and check pages against a model.

use crate::common::pages::Pages;
use crate::common::{DEFAULT_MODE, Mode, PAGE, Random, Watchdog, builder, kernel_is_able, stat, wait_until};
use crate::faulty_support::{Model, expect_order};
use lightswap::{Contract, Lightswap, Region};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// Pages of the region.
pub const NUM_PAGES: usize = 300;
/// Pages of local memory.
pub const LOCAL_PAGES: u64 = 64;
/// Threads that are workers, the LWTs of each, and ordinary threads.
pub const NUM_WORKERS: usize = 2;
pub const NUM_LWTS: usize = 8;
pub const NUM_THREADS: usize = 2;

const NUM_ACTORS: usize = NUM_WORKERS * NUM_LWTS + NUM_THREADS;

/// What a test with servers begins with; `None` where the kernel cannot run it.
pub fn watchdog(seconds: u64) -> Option<Watchdog> {
    eprintln!("seed {}", super::seed());
    kernel_is_able().then(|| Watchdog::new("a test with NBD servers", Duration::from_secs(seconds)))
}

pub struct Load {
    pub swap: Lightswap,
    pub model: Arc<Model>,
    pub region: Region,
}

impl Load {
    pub fn open(url: impl Into<String>) -> Self {
        Self::open_as(url, DEFAULT_MODE, Contract::Transparent)
    }

    pub fn open_as(url: impl Into<String>, mode: Mode, contract: Contract) -> Self {
        let url = url.into();
        // A worker more, for the test itself.
        let builder = mode.set(builder(LOCAL_PAGES, &url)).max_workers(NUM_WORKERS + 1);
        let swap = builder.open().unwrap_or_else(|error| panic!("{url}: {error}"));
        let region = swap.create_region(NUM_PAGES * PAGE, contract).unwrap();
        let model = Arc::new(Model::new(Pages::of(&region)));
        Self { swap, model, region }
    }

    /// The same with every page written, and most of them swapped out.
    pub fn written(url: impl Into<String>) -> Self {
        let load = Self::open(url);
        assert!((0..NUM_PAGES).all(|page| load.model.change(page)));
        load
    }

    pub fn stat(&self, name: &str) -> u64 {
        stat(&self.swap, name)
    }

    pub fn pages(&self) -> Pages {
        Pages::of(&self.region)
    }

    /// Pages that are not in local memory.
    pub fn missing(&self) -> Vec<usize> {
        let pages = self.pages();
        (0..NUM_PAGES).filter(|page| !pages.is_resident(*page)).collect()
    }

    /// Every actor changes and checks random pages of its own, so many times. How many of them could not be had.
    pub fn work(&self, num_steps: usize) -> usize {
        let must_stop = Arc::new(AtomicBool::new(false));
        self.run(num_steps, &must_stop, || {})
    }

    /// The same until `meanwhile` is over, which runs on the test's own thread once everybody is at work.
    pub fn work_during(&self, meanwhile: impl FnOnce()) -> usize {
        let must_stop = Arc::new(AtomicBool::new(false));
        self.run(usize::MAX, &must_stop.clone(), move || {
            // A panic must not leave the others at work for ever.
            let _stop = StopOnDrop(must_stop);
            meanwhile();
        })
    }

    /// Waits until every worker has a connection. They are made in the background, and begin with a look at the client's mark: requests that are no page's.
    pub fn wait_until_connected(&self) {
        wait_until("every worker is connected", || self.stat("nbd_connections_down") == 0);
    }

    fn run(&self, num_steps: usize, must_stop: &Arc<AtomicBool>, meanwhile: impl FnOnce()) -> usize {
        // Workers that have entered, and what is to go on meanwhile.
        let is_ready = Barrier::new(NUM_WORKERS + 1);
        let num_errors_before = self.model.num_errors.load(Relaxed);
        std::thread::scope(|scope| {
            for worker in 0..NUM_WORKERS {
                let (model, must_stop, swap) = (self.model.clone(), must_stop.clone(), &self.swap);
                let is_ready = &is_ready;
                scope.spawn(move || {
                    let handle = swap.enter_worker();
                    is_ready.wait();
                    let handle = handle.unwrap();
                    for lwt in 0..NUM_LWTS {
                        let (model, must_stop) = (model.clone(), must_stop.clone());
                        handle.start(move || act(&model, &must_stop, worker * NUM_LWTS + lwt, num_steps)).unwrap();
                    }
                    handle.run();
                });
            }
            for actor in NUM_ACTORS - NUM_THREADS..NUM_ACTORS {
                let (model, must_stop) = (self.model.clone(), must_stop.clone());
                scope.spawn(move || act(&model, &must_stop, actor, num_steps));
            }
            is_ready.wait();
            meanwhile();
        });
        self.model.num_errors.load(Relaxed) - num_errors_before
    }

    /// Now that nothing goes wrong any more: every page is right.
    pub fn expect_all_right(&self) {
        assert_eq!(self.model.check_all(), 0, "pages are lost: {:?}", self.swap.stats());
        expect_order(&self.swap);
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Pages are dealt out among the actors: nobody else uses those of `actor`.
fn act(model: &Model, must_stop: &AtomicBool, actor: usize, num_steps: usize) {
    let mut random = Random::new(super::seed() * 1000 + actor as u64);
    let num_own = (NUM_PAGES - actor).div_ceil(NUM_ACTORS);
    for _ in 0..num_steps {
        if must_stop.load(Relaxed) {
            break;
        }
        let page = actor + random.below(num_own) * NUM_ACTORS;
        match random.below(8) {
            0..4 => drop(model.change(page)),
            4..7 => drop(model.check(page)),
            _ => lightswap::lwt::yield_now(),
        }
    }
}
