//! The engine of the stress: LWTs on several workers and ordinary threads change, read, copy, touch, prefetch and send away the pages of a region whose
//! backend fails on purpose, and compare every value with a shadow of it. An error is in order; a wrong byte, a hang or a crash is not. One seed fixes what
//! each actor does and what goes wrong with the N-th I/O, though not how they interleave.

use crate::common::pages::{Pages, WORDS, pattern};
use crate::common::{Mode, PAGE, Random, Watchdog, stat};
use crate::faulty_support::{expect_order, injected, reads_again, url};
use lightswap::sync::Mutex;
use lightswap::{Cause, Contract, ErrorKind, Lightswap, Notifier, SwapFailure, lwt, try_catch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub duration: Duration,
    pub schedule: String,
    /// The backend within.
    pub inner_url: String,
    pub contract: Contract,
    pub mode: Mode,
    pub local_pages: u64,
    pub num_pages: usize,
    pub num_workers: usize,
    pub lwts_per_worker: usize,
    pub num_threads: usize,
    /// No read fails, so that pages may be accessed without asking for them first.
    pub reads_work: bool,
}

/// What runs came to.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub num_operations: u64,
    pub num_checked: u64,
    pub num_errors: u64,
    /// Accesses that ended their try block.
    pub num_thrown: u64,
    pub num_discarded: u64,
    /// Pages whose memory was damaged.
    pub num_poisoned: u64,
    pub num_lost_pages: u64,
    pub injected: BTreeMap<&'static str, u64>,
}

impl Done {
    pub fn add(&mut self, other: &Self) {
        self.num_operations += other.num_operations;
        self.num_checked += other.num_checked;
        self.num_errors += other.num_errors;
        self.num_thrown += other.num_thrown;
        self.num_discarded += other.num_discarded;
        self.num_poisoned += other.num_poisoned;
        self.num_lost_pages += other.num_lost_pages;
        other.injected.iter().for_each(|(kind, count)| *self.injected.entry(kind).or_default() += count);
    }

    pub fn num_injected(&self) -> u64 {
        self.injected.values().sum()
    }
}

struct Shared {
    pages: Pages,
    reads_work: bool,
    /// Version of each page.
    shadow: Vec<Mutex<u64>>,
    must_stop: AtomicBool,
    num_operations: AtomicU64,
    num_checked: AtomicU64,
    num_errors: AtomicU64,
    /// Accesses that fail can be caught.
    throws: bool,
    num_thrown: AtomicU64,
    num_discarded: AtomicU64,
    num_poisoned: AtomicU64,
}

/// Writes to standard error itself: the process is about to end, and the harness would keep what it holds back.
macro_rules! complain {
    ($($argument:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($argument)*)));
    }};
}

/// Longest time without any operation before the run counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the plan. Panics, or ends the process, at the first wrong byte, unexpected error or hang.
pub fn run(plan: &Plan) -> Done {
    let builder = Lightswap::builder()
        .local_memory(plan.local_pages * PAGE as u64)
        .backend(url(&format!("seed={};{}", plan.seed, plan.schedule), &plan.inner_url))
        .max_workers(plan.num_workers.max(1));
    let swap = plan.mode.set(builder).open().unwrap();
    let region = swap.create_region(plan.num_pages * PAGE, plan.contract).unwrap();
    let shared = Arc::new(Shared {
        pages: Pages::of(&region),
        reads_work: plan.reads_work,
        shadow: (0..plan.num_pages).map(|_| Mutex::new(0)).collect(),
        must_stop: AtomicBool::new(false),
        num_operations: AtomicU64::new(0),
        num_checked: AtomicU64::new(0),
        num_errors: AtomicU64::new(0),
        throws: plan.mode.notifier == Notifier::Sigbus,
        num_thrown: AtomicU64::new(0),
        num_discarded: AtomicU64::new(0),
        num_poisoned: AtomicU64::new(0),
    });
    let mut seeds = Random::new(plan.seed);
    let ending = std::thread::scope(|scope| {
        for _ in 0..plan.num_workers {
            let seeds: Vec<u64> = (0..plan.lwts_per_worker).map(|_| seeds.next()).collect();
            let (shared, swap) = (shared.clone(), swap.clone());
            scope.spawn(move || {
                let worker = swap.enter_worker().unwrap();
                for seed in seeds {
                    let shared = shared.clone();
                    worker.start(move || Actor::new(&shared, seed).act()).unwrap();
                }
                worker.run();
            });
        }
        for _ in 0..plan.num_threads {
            let (shared, seed) = (shared.clone(), seeds.next());
            scope.spawn(move || Actor::new(&shared, seed).act());
        }
        watch(&shared, &swap, plan);
        // From here on the actors must end.
        Watchdog::new("the end of a run with faults", PATIENCE)
    });
    drop(ending);
    let injected = injected(&swap).into_iter().collect();
    swap.stop_faults();
    let num_lost_pages = count_lost(&shared, &swap, plan);
    expect_order(&swap);
    let count = |of: fn(&Shared) -> &AtomicU64| of(&shared).load(Relaxed);
    Done {
        num_operations: count(|shared| &shared.num_operations),
        num_checked: count(|shared| &shared.num_checked),
        num_errors: count(|shared| &shared.num_errors),
        num_thrown: count(|shared| &shared.num_thrown),
        num_discarded: count(|shared| &shared.num_discarded),
        num_poisoned: count(|shared| &shared.num_poisoned),
        num_lost_pages,
        injected,
    }
}

/// Now that nothing goes wrong any more: every page is right, or it was lost by something that no repetition heals.
fn count_lost(shared: &Shared, swap: &Lightswap, plan: &Plan) -> u64 {
    let mut last = Actor::new(shared, plan.seed);
    let num_lost = (0..plan.num_pages).filter(|page| !last.read(*page)).count() as u64;
    let can_be_lost = stat(swap, "injected_torn_writes") > 0 || !(plan.reads_work || reads_again(swap));
    assert!(can_be_lost || num_lost == 0, "{num_lost} pages are lost: {plan:?} {:?}", swap.stats());
    num_lost
}

/// Lets the actors run for the planned time, and ends the process if they stop getting anything done.
fn watch(shared: &Shared, swap: &Lightswap, plan: &Plan) {
    let start = Instant::now();
    let (mut last, mut last_change) = (0, start);
    while start.elapsed() < plan.duration {
        std::thread::sleep(Duration::from_millis(10).min(plan.duration));
        let now = shared.num_operations.load(Relaxed);
        if now != last {
            (last, last_change) = (now, Instant::now());
        }
        if last_change.elapsed() > PATIENCE {
            complain!("stress: nothing done for {PATIENCE:?} after {now} operations: {plan:?} {:?}", swap.stats());
            std::process::abort();
        }
    }
    shared.must_stop.store(true, Relaxed);
}

/// Word `word` of a page in a version. Version 0 is all zero, which is how pages start.
fn expected(page: usize, word: usize, version: u64) -> u64 {
    if version == 0 { 0 } else { pattern(page, word, version) }
}

fn expect_word(page: usize, word: usize, version: u64, found: u64) {
    let expected = expected(page, word, version);
    if found != expected {
        complain!("stress: page {page} word {word} of version {version} is {found:#x}, not {expected:#x}");
        std::process::abort();
    }
}

struct Actor<'a> {
    shared: &'a Shared,
    random: Random,
    copy: Box<[u64; WORDS]>,
}

impl<'a> Actor<'a> {
    fn new(shared: &'a Shared, seed: u64) -> Self {
        Self { shared, random: Random::new(seed), copy: Box::new([0; WORDS]) }
    }

    fn act(mut self) {
        while !self.shared.must_stop.load(Relaxed) {
            let page = self.random.below(self.shared.shadow.len());
            match self.random.below(100) {
                0..40 => self.change(page),
                40..52 => drop(self.read(page)),
                52..62 => self.copy_out(page),
                62..70 => self.copy_in(page),
                70..73 => self.compare(page),
                73..76 if self.shared.reads_work => self.access(page),
                73..76 => self.try_access(page),
                76..84 => self.touch(page),
                84..90 => self.prefetch(page),
                90..93 => self.advise_cold(page),
                93 | 94 => self.discard(page),
                95 => self.poison(page),
                96 | 97 => lwt::sleep(Duration::from_micros(50)),
                _ => lwt::yield_now(),
            }
            self.shared.num_operations.fetch_add(1, Relaxed);
        }
    }

    fn length(&mut self, page: usize) -> usize {
        (1 + self.random.below(4)).min(self.shared.shadow.len() - page)
    }

    /// Whether a call succeeded; errors that are in order are counted.
    fn succeeded(&self, result: lightswap::Result<()>) -> bool {
        match result {
            Ok(()) => return true,
            Err(error) if error.failure().is_some_and(|failure| failure.cause() != Cause::Poisoned) => self.shared.num_errors.fetch_add(1, Relaxed),
            // There may be too many pins for the moment.
            Err(error) if error.kind() == ErrorKind::PinLimit => 0,
            Err(error) => panic!("{error}"),
        };
        false
    }

    fn check(&self, page: usize, version: u64) {
        (0..WORDS).for_each(|word| expect_word(page, word, version, self.shared.pages.word(page, word)));
        self.shared.num_checked.fetch_add(1, Relaxed);
    }

    fn change(&mut self, page: usize) {
        let pages = self.shared.pages;
        let mut version = self.shared.shadow[page].lock();
        if self.succeeded(pages.pin(page, 1)) {
            self.check(page, *version);
            *version += 1;
            (0..WORDS).for_each(|word| pages.set_word(page, word, expected(page, word, *version)));
            pages.unpin(page, 1);
        }
    }

    /// `false` if the page cannot be had.
    fn read(&mut self, page: usize) -> bool {
        let pages = self.shared.pages;
        let version = self.shared.shadow[page].lock();
        let is_there = self.succeeded(pages.pin(page, 1));
        if is_there {
            self.check(page, *version);
            pages.unpin(page, 1);
        }
        is_there
    }

    /// Without asking first, as reads work.
    fn access(&mut self, page: usize) {
        let version = self.shared.shadow[page].lock();
        self.check(page, *version);
    }

    /// Without asking first, in a try block within another, which nothing may reach.
    fn try_access(&mut self, page: usize) {
        if !self.shared.throws {
            return;
        }
        let version = self.shared.shadow[page].lock();
        // SAFETY: nothing is thrown to it.
        let result = unsafe { try_catch(|| self.try_to_read(page, *version)) };
        if result.expect("the inner block catches").is_err() {
            self.shared.num_thrown.fetch_add(1, Relaxed);
        }
    }

    fn try_to_read(&self, page: usize, version: u64) -> Result<(), SwapFailure> {
        let pages = self.shared.pages;
        // SAFETY: accesses and comparisons: nothing to clean up.
        let wrong = unsafe {
            try_catch(|| (0..WORDS).map(|word| (word, pages.word(page, word))).find(|(word, found)| *found != expected(page, *word, version)))
        };
        if let Some((word, found)) = wrong? {
            expect_word(page, word, version, found);
        }
        self.shared.num_checked.fetch_add(1, Relaxed);
        Ok(())
    }

    fn discard(&mut self, page: usize) {
        let mut version = self.shared.shadow[page].lock();
        match lightswap::discard(self.shared.pages.address(page), PAGE) {
            Ok(()) => {
                *version = 0;
                self.shared.num_discarded.fetch_add(1, Relaxed);
            }
            // Others touch it.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
        }
    }

    /// Damages the memory of a page, now and then and where the kernel can, and has it used again.
    fn poison(&mut self, page: usize) {
        if !self.shared.throws || self.random.below(4) > 0 {
            return;
        }
        let pages = self.shared.pages;
        let mut version = self.shared.shadow[page].lock();
        match lightswap::poison(pages.address(page)) {
            Ok(()) => {
                let failure = self.try_to_read(page, u64::MAX).expect_err("its memory is damaged");
                assert_eq!(failure.cause(), Cause::Poisoned, "{failure}");
                self.shared.num_poisoned.fetch_add(1, Relaxed);
                pages.discard(page, 1);
                *version = 0;
            }
            // The kernel cannot, and the page is zeroed.
            Err(error) if error.raw_os_error().is_some() => *version = 0,
            // The page cannot be had, or not be pinned.
            Err(_) => {}
        }
    }

    fn copy_out(&mut self, page: usize) {
        let version = self.shared.shadow[page].lock();
        let target = self.copy.as_mut_ptr().cast();
        // SAFETY: a page in the region, which nobody writes while its version is locked, and as much memory of our own.
        if self.succeeded(unsafe { lightswap::copy(target, self.shared.pages.address(page), PAGE) }) {
            (0..WORDS).for_each(|word| expect_word(page, word, *version, self.copy[word]));
            self.shared.num_checked.fetch_add(1, Relaxed);
        }
    }

    fn copy_in(&mut self, page: usize) {
        let mut version = self.shared.shadow[page].lock();
        let next = *version + 1;
        *self.copy = std::array::from_fn(|word| expected(page, word, next));
        // SAFETY: as above, in the other direction.
        if self.succeeded(unsafe { lightswap::copy(self.shared.pages.address(page), self.copy.as_ptr().cast(), PAGE) }) {
            *version = next;
        }
    }

    fn compare(&mut self, page: usize) {
        let version = self.shared.shadow[page].lock();
        *self.copy = std::array::from_fn(|word| expected(page, word, *version));
        // SAFETY: as above.
        let result = unsafe { lightswap::compare(self.shared.pages.address(page), self.copy.as_ptr().cast(), PAGE) };
        if let Ok(order) = &result
            && order.is_ne()
        {
            complain!("stress: page {page} is not what version {} should be", *version);
            std::process::abort();
        }
        let _ = self.succeeded(result.map(drop));
    }

    fn touch(&mut self, page: usize) {
        let len = self.length(page);
        match lightswap::touch(self.shared.pages.address(page), len * PAGE) {
            // Somebody has damaged it, and is about to discard it. Who locks the page's version first does not see that.
            Err(error) if error.failure().is_some_and(|failure| failure.cause() == Cause::Poisoned) => {}
            result => _ = self.succeeded(result),
        }
    }

    fn prefetch(&mut self, page: usize) {
        let len = self.length(page);
        self.shared.pages.prefetch(page, len);
    }

    fn advise_cold(&mut self, page: usize) {
        let len = self.length(page);
        self.shared.pages.advise_cold(page, len);
    }
}
