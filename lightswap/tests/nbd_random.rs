//! Everything that a server may do wrong, at random, under load: no wrong byte, no hang, and in the end no page is missing.
//!
//! LIGHTSWAP_SEED fixes what goes wrong and what each actor does, though not how they interleave; LIGHTSWAP_SOAK_SECONDS makes a run longer than its few seconds.

mod common;
mod faulty_support;
mod nbd_support;

use common::{Random, wait_until};
use nbd_support::load::NUM_PAGES;
use nbd_support::protocol::REP_ERR_SHUTDOWN;
use nbd_support::{Action, Away, HandshakeFault, Load, Rule, STEPS, ScriptedServer, seed, tcp_place, unix_place, watchdog};
use std::time::{Duration, Instant};

fn duration() -> Duration {
    let seconds = std::env::var("LIGHTSWAP_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

fn any_action(random: &mut Random) -> Action {
    match random.below(21) {
        0 => Action::Errno([5, 28, 12, 22, 108][random.below(5)]),
        1 => Action::Delay(Duration::from_millis(random.below(300) as u64)),
        2 => Action::CloseBefore,
        3 => Action::CloseAfter,
        4 => Action::CloseWithin(random.below(4112)),
        5 => Action::CloseWithin(random.below(17)),
        6 => Action::Ignore,
        7 => Action::Mute,
        8 => Action::Freeze,
        9 => Action::UnknownCookie,
        10 => Action::OldCookie,
        11 => Action::Twice,
        12 => Action::WrongMagic,
        13 => Action::Structured,
        14 => Action::Longer(1 + random.below(5000)),
        15 => Action::Shorter(1 + random.below(4111)),
        16 => Action::ErrorWithPayload,
        17 => Action::Garbage(1 + random.below(10_000)),
        18 => Action::Flip,
        19 => Action::Mutated,
        _ => Action::Misdirect,
    }
}

fn any_handshake_fault(random: &mut Random) -> HandshakeFault {
    let step = STEPS[random.below(3)];
    match random.below(11) {
        0 => HandshakeFault::CloseBefore(step),
        1 => HandshakeFault::CloseWithin(step),
        2 => HandshakeFault::SilentWithin(step),
        3 | 4 => HandshakeFault::GarbageFor(step),
        5 => HandshakeFault::OldStyle,
        6 => HandshakeFault::WrongOption,
        7 => HandshakeFault::HugeReply,
        8 => HandshakeFault::NoInfo,
        9 => HandshakeFault::Mutated,
        _ => HandshakeFault::Refuse(REP_ERR_SHUTDOWN, "not now"),
    }
}

/// One thing more, or less, that is wrong.
fn change(server: &ScriptedServer, random: &mut Random) -> String {
    match random.below(12) {
        0..5 => {
            let action = any_action(random);
            let rule = Rule::new(action).after(random.below(100) as u64).times(1 + random.below(3) as u64);
            server.add(rule);
            format!("{rule:?}")
        }
        5 => {
            let rule = Rule::new(any_action(random)).chance(1 + random.below(50)).always();
            server.add(rule);
            format!("{rule:?}")
        }
        6 => {
            let (hold, delay, piece) = (random.below(20), Duration::from_micros(random.below(2000) as u64), [0, 0, 100, 5000][random.below(4)]);
            server.script(|script| (script.hold, script.delay, script.piece) = (hold, delay, piece));
            format!("hold {hold}, delay {delay:?}, pieces of {piece}")
        }
        7 => {
            server.drop_connections();
            "all connections dropped".into()
        }
        8 => {
            let (how, time) = ([Away::Unbound, Away::Closing, Away::Deaf][random.below(3)], Duration::from_millis(random.below(1500) as u64));
            server.go_away(how, Some(time));
            format!("{how:?} for {time:?}")
        }
        9 => {
            let fault = any_handshake_fault(random);
            server.fail_handshakes([fault.clone()]);
            format!("{fault:?}")
        }
        10 => {
            let time = Duration::from_millis(random.below(1300) as u64);
            server.pause(true);
            std::thread::sleep(time);
            server.pause(false);
            format!("stood still for {time:?}")
        }
        _ => {
            server.behave();
            "all is well".into()
        }
    }
}

fn run(server: &ScriptedServer, seed: u64, duration: Duration) -> (Load, usize) {
    let mut random = Random::new(seed);
    let load = Load::written(server.url("timeout=1&lost-after=120"));
    let end = Instant::now() + duration;
    let num_errors = load.work_during(|| {
        while Instant::now() < end {
            eprintln!("{}", change(server, &mut random));
            std::thread::sleep(Duration::from_millis(random.below(150) as u64));
        }
        server.behave();
        let before = load.stat("swap_ins");
        wait_until("all is well again", || load.stat("swap_ins") > before + 200);
    });
    eprintln!("seed {seed}: {num_errors} errors; {:?}", load.swap.stats());
    (load, num_errors)
}

#[test]
fn everything_at_random() {
    let Some(_watchdog) = watchdog(200 + 4 * duration().as_secs()) else { return };
    for (index, multi_conn) in [true, false].into_iter().enumerate() {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        export.multi_conn = multi_conn;
        let server = ScriptedServer::start(if index == 0 { unix_place() } else { tcp_place() }, export);
        let (load, _) = run(&server, seed() * 2 + index as u64, duration());
        load.expect_all_right();
        assert!(load.stat("nbd_reconnects") > 0 && load.stat("nbd_requests") > 100);
    }
}

/// The worst of servers does what lost connections have left behind after their requests have been sent again, and other writes of the same pages have been
/// done: what it answers then is old, and must be an error.
#[test]
fn writes_that_come_late() {
    let Some(_watchdog) = watchdog(200 + 4 * duration().as_secs()) else { return };
    let server = ScriptedServer::new(NUM_PAGES);
    let load = Load::written(server.url("timeout=1&lost-after=120"));
    let end = Instant::now() + duration();
    load.work_during(|| {
        while Instant::now() < end {
            server.script(|script| (script.stragglers, script.delay) = (Some(Duration::from_millis(30)), Duration::from_millis(5)));
            std::thread::sleep(Duration::from_millis(50));
            server.drop_connections();
        }
        server.behave();
    });
    // Right, or an error; the model has looked at every byte.
    let num_lost = load.model.check_all();
    assert_eq!(load.stat("swap_in_errors"), load.stat("swap_in_errors_hash"), "nothing else is wrong: {:?}", load.swap.stats());
    eprintln!("{num_lost} pages are lost, {} were found out", load.stat("swap_in_errors_hash"));
    let pages = load.pages();
    pages.discard(0, NUM_PAGES);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 5));
    (0..NUM_PAGES).for_each(|page| pages.check(page, 5));
}
