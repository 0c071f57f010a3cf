//! The engine of the race tests: LWTs on several workers and ordinary threads change, read, pin, touch, prefetch, advise and send pages of one
//! region at random, far more of them than local memory holds, and compare every page with a shadow of it (after uffd-stress of the Linux
//! selftests). One seed fixes what each actor does, though not how they interleave.

use crate::common::pages::{Pages, WORDS};
use crate::common::{Mode, PAGE, Random, Watchdog, mix, stat};
use lightswap::sync::Mutex;
use lightswap::{Contract, ErrorKind, Lightswap, lwt, syscalls};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub duration: Duration,
    pub backend_url: String,
    pub contract: Contract,
    pub mode: Mode,
    pub vectored: bool,
    pub local_pages: u64,
    pub num_pages: usize,
    pub num_workers: usize,
    pub lwts_per_worker: usize,
    pub num_threads: usize,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub operations: u64,
    pub swap_ins: u64,
    pub evictions: u64,
    pub cancelled: u64,
}

struct Shared {
    pages: Pages,
    contract: Contract,
    /// Version of each page. In ordinary memory: a lock in a region would page in under the lock of its waiters.
    shadow: Vec<Mutex<u64>>,
    must_stop: AtomicBool,
    operations: AtomicU64,
}

/// Writes to standard error itself: the process is about to end, and the harness would keep what it holds back.
macro_rules! complain {
    ($($argument:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($argument)*)));
    }};
}

/// Longest time without any operation before the run counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the plan. Panics, or ends the process, at the first wrong byte, failed call or hang.
pub fn run(plan: &Plan) -> Done {
    let builder = Lightswap::builder()
        .local_memory(plan.local_pages * PAGE as u64)
        .backend(&plan.backend_url)
        .max_workers(plan.num_workers.max(1))
        .vectored_removal(plan.vectored);
    let swap = plan.mode.set(builder).open().unwrap();
    let region = swap.create_region(plan.num_pages * PAGE, plan.contract).unwrap();
    let shared = Arc::new(Shared {
        pages: Pages::of(&region),
        contract: plan.contract,
        shadow: (0..plan.num_pages).map(|_| Mutex::new(0)).collect(),
        must_stop: AtomicBool::new(false),
        operations: AtomicU64::new(0),
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
        Watchdog::new("the end of a race", PATIENCE)
    });
    drop(ending);
    (0..plan.num_pages).for_each(|page| check_whole(&shared.pages, page, *shared.shadow[page].lock()));
    assert!(stat(&swap, "resident_bytes") <= stat(&swap, "resident_limit_bytes"));
    assert_eq!(stat(&swap, "pinned_pages"), 0, "{plan:?}");
    let evictions = ["clean_evictions", "dirty_evictions", "zero_evictions"].iter().map(|name| stat(&swap, name)).sum();
    let operations = shared.operations.load(Relaxed);
    Done { operations, swap_ins: stat(&swap, "swap_ins"), evictions, cancelled: stat(&swap, "cancelled_evictions") }
}

/// Lets the actors run for the planned time, and ends the process if they stop getting anything done.
fn watch(shared: &Shared, swap: &Lightswap, plan: &Plan) {
    let start = Instant::now();
    let (mut last, mut last_change) = (0, start);
    while start.elapsed() < plan.duration {
        std::thread::sleep(Duration::from_millis(10).min(plan.duration));
        let now = shared.operations.load(Relaxed);
        if now != last {
            (last, last_change) = (now, Instant::now());
        }
        if last_change.elapsed() > PATIENCE {
            complain!("race: nothing done for {PATIENCE:?} after {now} operations: {plan:?} {:?}", swap.stats());
            std::process::abort();
        }
    }
    shared.must_stop.store(true, Relaxed);
}

/// Where, besides the ends, a page of a version has words that are not zero.
fn place(page: usize, version: u64) -> usize {
    1 + mix(page as u64 ^ version << 32) as usize % (WORDS - 2)
}

/// Word `word` of a page in a version. Version 0 is all zero, which is how pages start.
fn expected(page: usize, word: usize, version: u64) -> u64 {
    match word {
        _ if version == 0 => 0,
        0 => version,
        _ if word == WORDS - 1 => mix(version ^ (page as u64) << 40),
        _ if word == place(page, version) => !version,
        _ => 0,
    }
}

fn check_word(pages: &Pages, page: usize, word: usize, version: u64) {
    let (found, expected) = (pages.word(page, word), expected(page, word, version));
    if found != expected {
        complain!("race: page {page} word {word} of version {version} is {found:#x}, not {expected:#x}");
        std::process::abort();
    }
}

fn check_whole(pages: &Pages, page: usize, version: u64) {
    (0..WORDS).for_each(|word| check_word(pages, page, word, version));
}

struct Actor<'a> {
    shared: &'a Shared,
    random: Random,
    pipe: (OwnedFd, OwnedFd),
}

impl<'a> Actor<'a> {
    fn new(shared: &'a Shared, seed: u64) -> Self {
        Self { shared, random: Random::new(seed), pipe: pipe() }
    }

    fn act(mut self) {
        while !self.shared.must_stop.load(Relaxed) {
            let page = self.random.below(self.shared.shadow.len());
            match self.random.below(100) {
                0..45 => self.change(page),
                45..60 => self.read(page),
                60..68 => self.shared.pages.touch(page, self.length(page)),
                68..74 => self.shared.pages.prefetch(page, self.length(page)),
                74..80 => self.shared.pages.advise_cold(page, self.length(page)),
                80..88 => self.pin(page),
                88..94 => self.send(page),
                94..97 => self.receive(page),
                97 => self.clear(page),
                98 => lwt::sleep(Duration::from_micros(50)),
                _ => lwt::yield_now(),
            }
            self.shared.operations.fetch_add(1, Relaxed);
        }
    }

    fn length(&mut self, page: usize) -> usize {
        (1 + self.random.below(4)).min(self.shared.shadow.len() - page)
    }

    fn check(&mut self, page: usize, version: u64) {
        let pages = &self.shared.pages;
        [0, WORDS - 1, place(page, version), self.random.below(WORDS)].into_iter().for_each(|word| check_word(pages, page, word, version));
    }

    fn set(&self, page: usize, from: u64, to: u64) {
        let pages = &self.shared.pages;
        for word in [place(page, from), 0, WORDS - 1, place(page, to)] {
            pages.set_word(page, word, expected(page, word, to));
        }
    }

    /// Pins a page for writing if the contract asks for it; `false` when there are too many pins just now.
    fn begin_write(&self, page: usize) -> bool {
        self.shared.contract == Contract::Transparent || pinned(self.shared.pages.pin(page, 1))
    }

    fn end_write(&self, page: usize) {
        if self.shared.contract == Contract::Cooperative {
            self.shared.pages.unpin(page, 1);
        }
    }

    fn change(&mut self, page: usize) {
        let mut version = self.shared.shadow[page].lock();
        self.check(page, *version);
        if self.begin_write(page) {
            self.check(page, *version);
            self.set(page, *version, *version + 1);
            *version += 1;
            self.end_write(page);
        }
    }

    fn clear(&mut self, page: usize) {
        let mut version = self.shared.shadow[page].lock();
        if self.begin_write(page) {
            self.set(page, *version, 0);
            *version = 0;
            self.end_write(page);
        }
    }

    fn read(&mut self, page: usize) {
        let version = self.shared.shadow[page].lock();
        check_whole(&self.shared.pages, page, *version);
    }

    /// Pins a few pages, lets others run, and looks whether they stayed.
    fn pin(&mut self, first: usize) {
        let num_pages = self.length(first);
        if !pinned(self.shared.pages.pin(first, num_pages)) {
            return;
        }
        lwt::yield_now();
        for page in first..first + num_pages {
            assert!(self.shared.pages.is_resident(page), "pinned page {page} left");
        }
        self.shared.pages.unpin(first, num_pages);
    }

    /// Sends a page through a pipe, and compares what comes out.
    fn send(&mut self, page: usize) {
        let version = self.shared.shadow[page].lock();
        let sent = transfer(|| {
            // SAFETY: the page is in the region.
            unsafe { syscalls::write(self.pipe.1.as_raw_fd(), self.shared.pages.address(page).cast(), PAGE) }
        });
        assert_eq!(sent, PAGE);
        let mut copy = [0u64; WORDS];
        // SAFETY: the buffer has a page's length.
        let received = transfer(|| unsafe { libc::read(self.pipe.0.as_raw_fd(), copy.as_mut_ptr().cast(), PAGE) });
        assert_eq!(received, PAGE);
        if let Some(word) = (0..WORDS).find(|word| copy[*word] != expected(page, *word, *version)) {
            complain!("race: page {page} word {word} of version {version} was sent as {:#x}", copy[word], version = *version);
            std::process::abort();
        }
    }

    /// Receives the next version of a page from a pipe, the kernel being the writer.
    fn receive(&mut self, page: usize) {
        let mut version = self.shared.shadow[page].lock();
        let copy: [u64; WORDS] = std::array::from_fn(|word| expected(page, word, *version + 1));
        // SAFETY: the buffer has a page's length.
        assert_eq!(transfer(|| unsafe { libc::write(self.pipe.1.as_raw_fd(), copy.as_ptr().cast(), PAGE) }), PAGE);
        let mut num_received = 0;
        while num_received < PAGE {
            num_received += transfer(|| {
                let target = self.shared.pages.address(page).wrapping_add(num_received);
                // SAFETY: the rest of the page, in the region.
                unsafe { syscalls::read(self.pipe.0.as_raw_fd(), target.cast(), PAGE - num_received) }
            });
        }
        *version += 1;
        self.check(page, *version);
    }
}

/// Whether a pin was given; there may be too many for the moment, but no other failure.
fn pinned(result: lightswap::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::PinLimit => false,
        Err(error) => panic!("{error}"),
    }
}

fn transfer(call: impl FnOnce() -> isize) -> usize {
    let result = call();
    assert!(result > 0, "transfer: {result}, {}", std::io::Error::last_os_error());
    result as usize
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}
