//! What the integration tests share. Each test file is a program of its own and uses a part of it.
#![allow(dead_code, reason = "see above")]

pub mod child;
pub mod pages;
pub mod swap_file;

use lightswap::{Builder, ErrorKind, Lightswap, Notifier, Waiting};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

pub const PAGE: usize = lightswap::PAGE_SIZE;

/// Pages of the smallest local memory an instance with one worker takes: 16 frames, and a buffer for the worker and one for the pager thread.
pub const LEAST_PAGES: u64 = 18;

/// The kinds of backend that every test of contents runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Memory,
    File,
}

pub const BACKENDS: [Backend; 2] = [Backend::Memory, Backend::File];

/// How faults are notified and waited for: the default, and the modes for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub notifier: Notifier,
    pub waiting: Waiting,
}

pub const DEFAULT_MODE: Mode = Mode { notifier: Notifier::Sigbus, waiting: Waiting::Suspend };
pub const MONITOR: Mode = Mode { notifier: Notifier::Monitor, waiting: Waiting::Suspend };
pub const POLL: Mode = Mode { notifier: Notifier::Sigbus, waiting: Waiting::Poll };
pub const MODES: [Mode; 3] = [DEFAULT_MODE, MONITOR, POLL];

impl Mode {
    /// `builder` set to this mode.
    pub fn set(self, builder: Builder) -> Builder {
        builder.notifier(if self.notifier == Notifier::Sigbus { default_notifier() } else { self.notifier }).waiting(self.waiting)
    }
}

impl Backend {
    /// A new backend of this kind with room for `num_pages` pages.
    pub fn url(self, num_pages: usize) -> String {
        let num_bytes = num_pages * PAGE;
        match self {
            Self::Memory => format!("memory:?size={num_bytes}"),
            Self::File => format!("file:{}?size={num_bytes}", new_path("swap").display()),
        }
    }
}

/// A path in the directory for test files that no other test uses. Nothing is there yet.
pub fn new_path(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let unique = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique)
}

/// A builder for `local_pages` pages of local memory over `url`.
pub fn builder(local_pages: u64, url: impl Into<String>) -> Builder {
    Lightswap::builder().local_memory(local_pages * PAGE as u64).backend(url).notifier(default_notifier())
}

/// What tests that do not ask for another notifier run with: by LIGHTSWAP_TEST_NOTIFIER, which scripts/vm-test sets; else the default.
pub fn default_notifier() -> Notifier {
    match std::env::var("LIGHTSWAP_TEST_NOTIFIER").as_deref() {
        Ok("ebpf") => Notifier::Ebpf,
        Ok("sigbus") | Err(_) => Notifier::Sigbus,
        Ok(other) => panic!("LIGHTSWAP_TEST_NOTIFIER is {other}: sigbus or ebpf"),
    }
}

/// Whether this kernel can run Lightswap at all. Says on standard error what is missing if not: the caller then skips its test.
pub fn kernel_is_able() -> bool {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        show_panics_of_lwts();
        match builder(64, Backend::Memory.url(64)).open() {
            Err(error) if matches!(error.kind(), ErrorKind::NoUserfaultfd | ErrorKind::NoIoUring) => Some(error.to_string()),
            _ => None,
        }
    });
    missing.as_ref().is_none_or(|reason| skip(reason))
}

/// A panic cannot unwind out of an LWT's stack: the process ends, and the message with it if the harness holds it back.
fn show_panics_of_lwts() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if lightswap::lwt::on_lwt() {
            let _ = writeln!(std::io::stderr(), "on an LWT: {info}");
            std::process::abort();
        }
        usual(info);
    }));
}

/// Says why a test is skipped; `false`.
pub fn skip(reason: &str) -> bool {
    eprintln!("skipped: {reason}");
    false
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// A counter or gauge of the instance.
pub fn stat(swap: &Lightswap, name: &str) -> u64 {
    let stats = swap.stats();
    stats.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no statistic {name} in {stats:?}")).1
}

/// Waits for something that other threads bring about, and fails the test if they do not.
pub fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Ends the process if the test that holds it takes longer than any sane run: a hang must not look like a slow test.
pub struct Watchdog(std::sync::mpsc::Sender<()>);

impl Watchdog {
    pub fn new(what: &'static str, limit: Duration) -> Self {
        let limit = limit * patience();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = writeln!(std::io::stderr(), "{what} hangs: not done after {limit:?}");
                std::process::abort();
            }
        });
        Self(sender)
    }
}

/// How many times as long as on a usual machine things may take: LIGHTSWAP_TEST_PATIENCE, for machines in software emulation.
pub fn patience() -> u32 {
    std::env::var("LIGHTSWAP_TEST_PATIENCE").map_or(1, |times| times.parse().expect("LIGHTSWAP_TEST_PATIENCE is a number"))
}

/// A small fast generator (xorshift64*): the same seed gives the same sequence everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }
}

/// Scrambles a number (the finaliser of SplitMix64).
pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}
