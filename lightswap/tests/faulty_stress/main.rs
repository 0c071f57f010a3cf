//! Everything at once on a backend that fails on purpose; see engine.rs.
//!
//! LIGHTSWAP_SOAK_SECONDS, LIGHTSWAP_SOAK_SEED and LIGHTSWAP_SOAK_ERRORS (ends once so many were injected) make the test `soak` a long one: that is
//! what `scripts/soak` does.

#[path = "../common/mod.rs"]
mod common;
mod engine;
#[path = "../faulty_support/mod.rs"]
mod faulty_support;

use common::{BACKENDS, Backend, DEFAULT_MODE, MODES, Mode, Random, kernel_is_able};
use engine::{Done, Plan, run};
use lightswap::Contract;
use std::time::{Duration, Instant};

/// Long enough for some thousand I/Os each.
const DURATION: Duration = Duration::from_millis(700);

/// All kinds that there are, each often enough to be met several times in a run.
const EVERYTHING: &str = "read%0.005=EIO;read%0.003=flip;read%0.003=misdirect;read%0.003=short;read%0.0002=ENODEV;read%0.002=delay:10;\
                          write%0.01=EIO;write%0.005=ENOSPC;write%0.005=short;write%0.001=torn;write%0.01=delay:10;write%0.0005=dead:5";
/// What no read suffers from but for being late.
const WRITES_AND_DELAYS: &str = "read%0.01=delay:5;read%0.002=stall:20;write%0.05=EIO;write%0.05=short;write%0.05=delay:10";

fn plan(mode: Mode, contract: Contract, inner: Backend) -> Plan {
    Plan {
        seed: 1,
        duration: DURATION,
        schedule: EVERYTHING.into(),
        inner_url: inner.url(300),
        contract,
        mode,
        local_pages: 100,
        num_pages: 300,
        num_workers: 2,
        lwts_per_worker: 12,
        num_threads: 3,
        reads_work: false,
    }
}

fn stress(plan: &Plan) -> Done {
    let done = run(plan);
    eprintln!("{done:?} {plan:?}");
    assert!(done.num_operations > 100 && done.num_checked > 50 && done.num_injected() > 0, "too little happened: {done:?} {plan:?}");
    done
}

fn everything_goes_wrong(mode: Mode) {
    if kernel_is_able() {
        for contract in [Contract::Transparent, Contract::Cooperative] {
            for inner in BACKENDS {
                stress(&plan(mode, contract, inner));
            }
        }
    }
}

#[test]
fn everything_goes_wrong_by_default() {
    everything_goes_wrong(DEFAULT_MODE);
}

#[test]
fn everything_goes_wrong_with_a_monitor() {
    everything_goes_wrong(common::MONITOR);
}

#[test]
fn everything_goes_wrong_polling() {
    everything_goes_wrong(common::POLL);
}

/// Where reads work, hardware faults are part of it.
#[test]
fn writes_fail_and_everything_is_late() {
    if kernel_is_able() {
        for mode in MODES {
            let plan = Plan { schedule: WRITES_AND_DELAYS.into(), reads_work: true, seed: 2, ..plan(mode, Contract::Transparent, Backend::File) };
            let done = stress(&plan);
            assert_eq!((done.num_errors, done.num_lost_pages), (0, 0));
        }
    }
}

#[test]
fn a_few_frames_for_many() {
    if kernel_is_able() {
        for mode in MODES {
            stress(&Plan { local_pages: 19, lwts_per_worker: 30, num_threads: 4, seed: 3, ..plan(mode, Contract::Cooperative, Backend::Memory) });
        }
    }
}

#[test]
fn only_threads() {
    if kernel_is_able() {
        stress(&Plan { num_workers: 0, num_threads: 8, local_pages: 40, seed: 4, ..plan(DEFAULT_MODE, Contract::Transparent, Backend::Memory) });
        stress(&Plan { num_workers: 0, num_threads: 8, local_pages: 40, seed: 5, ..plan(common::MONITOR, Contract::Transparent, Backend::File) });
    }
}

/// Some rules with probabilities at random; whether no read fails.
fn schedule_at_random(random: &mut Random) -> (String, bool) {
    if random.below(5) == 0 {
        return (WRITES_AND_DELAYS.into(), true);
    }
    let actions = [
        ("read", "EIO"),
        ("read", "ENODEV"),
        ("read", "ETIMEDOUT"),
        ("read", "flip"),
        ("read", "flip:9"),
        ("read", "misdirect"),
        ("read", "short"),
        ("read", "short:0"),
        ("read", "delay:10"),
        ("read", "stall:30"),
        ("write", "EIO"),
        ("write", "ENOSPC"),
        ("write", "short"),
        ("write", "torn"),
        ("write", "delay:10"),
        ("write", "dead:5"),
    ];
    let mut rules = Vec::new();
    for (operation, action) in actions {
        // What takes time, or loses pages for good, is rare: others are to happen as well.
        let most = if matches!(action, "torn" | "dead:5" | "stall:30") { 20 } else { 300 };
        if random.below(3) > 0 {
            rules.push(format!("{operation}%{}={action}", (1 + random.below(most)) as f64 / 10_000.0));
        }
    }
    (rules.join(";"), false)
}

/// Plans at random, one after the other, until the time is over.
#[test]
fn soak() {
    if !kernel_is_able() {
        return;
    }
    let variable = |name| std::env::var(name).ok().map(|text: String| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")));
    let seconds: u64 = variable("LIGHTSWAP_SOAK_SECONDS").unwrap_or(1);
    let seed: u64 = variable("LIGHTSWAP_SOAK_SEED").unwrap_or(1);
    let enough: u64 = variable("LIGHTSWAP_SOAK_ERRORS").unwrap_or(u64::MAX);
    let start = Instant::now();
    let mut random = Random::new(seed);
    let (mut num_runs, mut total) = (0, Done::default());
    while num_runs == 0 || (start.elapsed() < Duration::from_secs(seconds) && total.num_injected() < enough) {
        let num_workers = random.below(4);
        let num_pages = 64 + random.below(1000);
        let (schedule, reads_work) = schedule_at_random(&mut random);
        let plan = Plan {
            seed: random.next(),
            duration: Duration::from_millis(500 + random.below(1500) as u64),
            schedule,
            inner_url: BACKENDS[random.below(2)].url(num_pages),
            contract: [Contract::Transparent, Contract::Cooperative][random.below(2)],
            mode: MODES[random.below(MODES.len())],
            local_pages: (17 + num_workers.max(1) + random.below(num_pages / 2)) as u64,
            num_pages,
            num_workers,
            lwts_per_worker: 1 + random.below(48),
            num_threads: usize::from(num_workers == 0) + random.below(5),
            reads_work,
        };
        // Before it runs: what the plan was is what one needs to know after a crash.
        println!("run {num_runs}: {plan:?}");
        total.add(&run(&plan));
        num_runs += 1;
    }
    let kinds: Vec<String> = total.injected.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!(
        "soak: {num_runs} runs with faults in {} s from seed {seed}: {} injected ({}); {} operations, {} pages checked, {} errors returned, {} thrown, {} \
         pages discarded, {} poisoned, {} lost for good, 0 wrong, nothing wrong",
        start.elapsed().as_secs(),
        total.num_injected(),
        kinds.join(", "),
        total.num_operations,
        total.num_checked,
        total.num_errors,
        total.num_thrown,
        total.num_discarded,
        total.num_poisoned,
        total.num_lost_pages
    );
}
