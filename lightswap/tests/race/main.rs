//! Faults race with eviction, pins, touches and system calls; see engine.rs.
//!
//! LIGHTSWAP_SOAK_SECONDS and LIGHTSWAP_SOAK_SEED make the test `soak` a long one: that is what `scripts/soak` does.

#[path = "../common/mod.rs"]
mod common;
mod engine;

use common::{BACKENDS, Backend, DEFAULT_MODE, MODES, MONITOR, Mode, POLL, Random, kernel_is_able};
use engine::{Done, Plan, run};
use lightswap::Contract;
use std::time::Duration;

/// Long enough for some ten thousand faults each.
const DURATION: Duration = Duration::from_millis(700);

fn plan(mode: Mode, contract: Contract, backend: Backend) -> Plan {
    Plan {
        seed: 1,
        duration: DURATION,
        backend_url: backend.url(300),
        contract,
        mode,
        vectored: true,
        local_pages: 100,
        num_pages: 300,
        num_workers: 2,
        lwts_per_worker: 12,
        num_threads: 3,
    }
}

fn race(plan: &Plan) -> Done {
    let done = run(plan);
    eprintln!("{done:?} {plan:?}");
    assert!(done.operations > 100 && done.swap_ins > 10 && done.evictions > 10, "too little happened: {done:?} {plan:?}");
    done
}

fn race_on_both_backends(mode: Mode, contract: Contract) {
    if kernel_is_able() {
        for backend in BACKENDS {
            race(&plan(mode, contract, backend));
        }
    }
}

#[test]
fn transparent() {
    race_on_both_backends(DEFAULT_MODE, Contract::Transparent);
}

#[test]
fn cooperative() {
    race_on_both_backends(DEFAULT_MODE, Contract::Cooperative);
}

#[test]
fn transparent_with_a_monitor() {
    race_on_both_backends(MONITOR, Contract::Transparent);
}

#[test]
fn cooperative_with_a_monitor() {
    race_on_both_backends(MONITOR, Contract::Cooperative);
}

#[test]
fn transparent_polling() {
    race_on_both_backends(POLL, Contract::Transparent);
}

#[test]
fn cooperative_polling() {
    race_on_both_backends(POLL, Contract::Cooperative);
}

#[test]
fn without_vectored_removal() {
    if kernel_is_able() {
        race(&Plan { vectored: false, seed: 2, ..plan(DEFAULT_MODE, Contract::Transparent, Backend::File) });
        race(&Plan { vectored: false, seed: 3, ..plan(DEFAULT_MODE, Contract::Cooperative, Backend::Memory) });
    }
}

#[test]
fn a_few_frames_for_many() {
    if kernel_is_able() {
        for (contract, backend) in [(Contract::Transparent, Backend::File), (Contract::Cooperative, Backend::Memory)] {
            for mode in MODES {
                // The least for two workers: 16 frames and a buffer for each of them and the pager thread.
                race(&Plan { local_pages: 19, lwts_per_worker: 30, num_threads: 4, seed: 4, ..plan(mode, contract, backend) });
            }
        }
    }
}

#[test]
fn only_threads() {
    if kernel_is_able() {
        for mode in [DEFAULT_MODE, MONITOR] {
            race(&Plan { num_workers: 0, num_threads: 8, local_pages: 40, seed: 5, ..plan(mode, Contract::Transparent, Backend::File) });
            race(&Plan { num_workers: 0, num_threads: 8, local_pages: 40, seed: 6, ..plan(mode, Contract::Cooperative, Backend::Memory) });
        }
    }
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
    let start = std::time::Instant::now();
    let mut random = Random::new(seed);
    let (mut num_runs, mut total) = (0, Done::default());
    while num_runs == 0 || start.elapsed() < Duration::from_secs(seconds) {
        let num_workers = random.below(4);
        let num_pages = 64 + random.below(2000);
        let plan = Plan {
            seed: random.next(),
            duration: Duration::from_millis(500 + random.below(1500) as u64),
            backend_url: BACKENDS[random.below(2)].url(num_pages),
            contract: [Contract::Transparent, Contract::Cooperative][random.below(2)],
            mode: MODES[random.below(MODES.len())],
            vectored: random.below(4) > 0,
            local_pages: (17 + num_workers.max(1) + random.below(num_pages)) as u64,
            num_pages,
            num_workers,
            lwts_per_worker: 1 + random.below(48),
            num_threads: usize::from(num_workers == 0) + random.below(5),
        };
        // Before it runs: what the plan was is what one needs to know after a crash.
        println!("run {num_runs}: {plan:?}");
        let done = run(&plan);
        num_runs += 1;
        total.operations += done.operations;
        total.swap_ins += done.swap_ins;
        total.evictions += done.evictions;
        total.cancelled += done.cancelled;
    }
    println!(
        "soak: {num_runs} runs in {} s from seed {seed}: {} operations, {} swap-ins, {} evictions and {} cancelled ones, nothing wrong",
        start.elapsed().as_secs(),
        total.operations,
        total.swap_ins,
        total.evictions,
        total.cancelled
    );
}
