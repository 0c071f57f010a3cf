//! An NBD server as a member of a mirror: nobody waits for one that is away, as others have the pages; but a connection that is only being made is waited for.

mod common;
mod faulty_support;
mod nbd_support;

use common::wait_until;
use nbd_support::load::NUM_PAGES;
use nbd_support::{Away, HandshakeFault, Load, ScriptedServer, Step, qemu_nbd, unix_place, watchdog};

/// What waits for `lost-after` waits for longer than any test may take.
const OPTIONS: &str = "timeout=1&lost-after=1000";

fn start() -> (ScriptedServer, Load) {
    let server = ScriptedServer::start(unix_place(), ScriptedServer::export_of(NUM_PAGES));
    server.log(|log| log.is_copied_from = true);
    let load = open(&server.url(OPTIONS));
    (server, load)
}

fn open(url: &str) -> Load {
    Load::written(format!("mirror({url},memory:?size={}MiB)", (NUM_PAGES * 4096).div_ceil(1 << 20)))
}

fn wait_for_sync(load: &Load) {
    wait_until("the mirror to be in sync", || {
        ["mirror_members_lost", "mirror_stale_pages", "mirror_resyncing"].into_iter().all(|name| load.stat(name) == 0)
    });
}

/// Workers that have just begun have no connection yet, and their first faults come at once: no reason to do without the server.
#[test]
fn a_first_connection_is_waited_for() {
    let Some(_watchdog) = watchdog(100) else { return };
    let (_server, load) = start();
    for _ in 0..30 {
        assert_eq!(load.work(5), 0);
    }
    assert_eq!((load.stat("mirror_losses"), load.stat("mirror_failovers")), (0, 0), "{:?}", load.swap.stats());
    load.expect_all_right();
}

/// If it cannot be made, though, the others have to do, for each worker that begins.
#[test]
fn a_first_connection_that_fails() {
    let Some(_watchdog) = watchdog(100) else { return };
    for fault in [HandshakeFault::CloseBefore(Step::Info), HandshakeFault::WrongGreeting, HandshakeFault::SilentWithin(Step::Info)] {
        eprintln!("{fault:?}");
        let (server, load) = start();
        // The pager thread keeps its own.
        server.fail_handshakes(vec![fault.clone(); 100_000]);
        for _ in 0..3 {
            assert_eq!(load.work(20), 0, "{fault:?}");
        }
        load.expect_all_right();
        server.behave();
        // Next ones are made one after the other, and an attempt of before may still wait for an answer.
        wait_until("earlier attempts are over", || server.num_open_connections() == 1);
        wait_for_sync(&load);
        // One that failed for others before is no reason not to wait for this one.
        let num_losses = load.stat("mirror_losses");
        assert_eq!(load.work(20), 0, "{fault:?}");
        assert_eq!(load.stat("mirror_losses"), num_losses, "{fault:?}: {:?}", load.swap.stats());
        load.expect_all_right();
    }
}

/// What is under way when a connection is lost is had from another member at once, and so is all that is asked for until the server is back.
#[test]
fn a_member_that_is_away_is_not_waited_for() {
    let Some(_watchdog) = watchdog(200) else { return };
    for how in [Away::Unbound, Away::Closing, Away::Deaf] {
        let (server, load) = start();
        let num_errors = load.work_during(|| {
            load.wait_until_connected();
            server.go_away(how, None);
            wait_until("its loss is noticed", || load.stat("mirror_members_lost") == 1);
            let before = load.stat("swap_ins");
            wait_until("work goes on without it", || load.stat("swap_ins") > before + 200);
        });
        assert_eq!(num_errors, 0, "{how:?}");
        // Workers that begin now, and the test's own thread.
        assert_eq!(load.work(20), 0, "{how:?}");
        load.expect_all_right();
        server.behave();
        wait_for_sync(&load);
        load.expect_all_right();
    }
}

/// One that stands still is given up after `timeout`.
#[test]
fn a_member_that_stands_still_is_given_up() {
    let Some(_watchdog) = watchdog(200) else { return };
    let check = |load: &Load, stop: &dyn Fn(), resume: &dyn Fn()| {
        let num_errors = load.work_during(|| {
            load.wait_until_connected();
            stop();
            wait_until("its loss is noticed", || load.stat("mirror_members_lost") == 1);
            let before = load.stat("swap_ins");
            wait_until("work goes on without it", || load.stat("swap_ins") > before + 200);
        });
        assert_eq!(num_errors, 0);
        assert_eq!(load.work(20), 0);
        load.expect_all_right();
        resume();
        wait_for_sync(load);
        assert_eq!(load.work(20), 0);
        load.expect_all_right();
    };
    let (server, load) = start();
    check(&load, &|| server.pause(true), &|| server.pause(false));
    let Some(server) = qemu_nbd(NUM_PAGES, &[]) else { return };
    let load = open(&server.url(OPTIONS));
    check(&load, &|| server.pause(), &|| server.resume());
}
