//! Inputs from outside, from a seeded generator: the bodies are those of the fuzzing targets (fuzz/README.md). LIGHTSWAP_FUZZ_INPUTS and LIGHTSWAP_FUZZ_SEED
//! change how many inputs there are for each, and which.

#[path = "../../fuzz/bodies.rs"]
mod bodies;
mod common;

use common::{Random, Watchdog, kernel_is_able};
use std::time::Duration;

/// Parts of which texts are made that are nearly right.
const URL_PARTS: [&str; 24] = [
    "memory:",
    "file:",
    "faulty(",
    "):",
    ")",
    "(",
    "?",
    "&",
    "=",
    ":",
    "size=",
    "1MiB",
    "reserve=",
    "grow",
    "start",
    "seed=7",
    ";",
    "read@1=EIO",
    "/tmp/x",
    "é",
    "\0",
    "0",
    "18446744073709551616",
    "%",
];
const SCHEDULE_PARTS: [&str; 40] = [
    "seed=",
    "read",
    "write",
    "@",
    "%",
    "+",
    "..",
    "=",
    ";",
    ":",
    " ",
    "EIO",
    "ENOSPC",
    "ENODEV",
    "EFOO",
    "short",
    "flip",
    "misdirect",
    "torn",
    "stall",
    "delay",
    "dead",
    "0",
    "1",
    "7",
    "255",
    "256",
    "4096",
    "200000",
    "99999999999999999999",
    "0.5",
    "1e-3",
    "nan",
    "-1",
    ".",
    "é",
    "\0",
    "\n",
    "read@1=EIO;",
    "write%0.1=torn;",
];
const SIZE_PARTS: [&str; 20] =
    ["0", "1", "4096", "18446744073709551615", "9", ".", "5", "-", "e", " ", "k", "KiB", "m", "MiB", "g", "GB", "t", "TiB", "B", "é"];

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Half of the inputs are of `parts`, the others of any bytes.
fn feed(num_inputs: u64, parts: &[&str], most_bytes: usize, body: fn(&[u8])) {
    let (seed, num_inputs) = (variable("LIGHTSWAP_FUZZ_SEED", 1), variable("LIGHTSWAP_FUZZ_INPUTS", num_inputs));
    for number in 0..num_inputs {
        let mut random = Random::new(seed ^ number << 20);
        let mut input = Vec::new();
        if parts.is_empty() || random.below(2) == 0 {
            let len = random.below(most_bytes + 1);
            input.extend(std::iter::repeat_with(|| (random.next() >> 32) as u8).take(len));
        } else {
            let num_parts = random.below(12);
            (0..num_parts).for_each(|_| input.extend(parts[random.below(parts.len())].as_bytes()));
        }
        body(&input);
    }
}

#[test]
fn urls() {
    feed(50_000, &URL_PARTS, 100, bodies::url);
}

#[test]
fn schedules() {
    feed(100_000, &SCHEDULE_PARTS, 100, bodies::schedule);
}

#[test]
fn sizes() {
    feed(100_000, &SIZE_PARTS, 30, bodies::size);
}

#[test]
fn arguments_of_the_c_abi() {
    if kernel_is_able() {
        let _watchdog = Watchdog::new("arguments_of_the_c_abi", Duration::from_secs(120));
        feed(400, &[], 600, bodies::c_abi);
    }
}

/// The generator must reach what is right, too: otherwise the tests above would only try one error after another.
#[test]
fn some_of_the_inputs_are_right() {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::Relaxed;
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    feed(5_000, &SCHEDULE_PARTS, 100, |data| {
        let text = String::from_utf8_lossy(data);
        let is_taken = !text.trim().is_empty() && lightswap::check_backend_url(&format!("faulty({text}):memory:?size=64KiB")).is_ok();
        TAKEN.fetch_add(u64::from(is_taken), Relaxed);
    });
    assert!(TAKEN.load(Relaxed) > 10, "{TAKEN:?}");
}
