//! Remote memory whose server breaks the protocol, closes connections or is not there for a while: what it sends never reaches a page unless it is right,
//! requests are sent again, and nobody waits for ever.

mod common;
mod faulty_support;
mod nbd_support;

use common::wait_until;
use nbd_support::load::NUM_PAGES;
use nbd_support::protocol::{EIO, ENOMEM, ENOSPC, EPERM, ESHUTDOWN};
use nbd_support::{
    Action, Away, Command, HandshakeFault, Load, Nbdkit, Place, Rule, STEPS, ScriptedServer, Step, events, qemu_nbd, tcp_place, unix_place, watchdog,
};
use std::time::Duration;

/// A request without an answer is given up after a second; a server that is away for twenty is lost.
const OPTIONS: &str = "timeout=1&lost-after=20";

/// A server, and a load on it with all pages written; with one connection or several.
fn start(multi_conn: bool) -> (ScriptedServer, Load) {
    let mut export = ScriptedServer::export_of(NUM_PAGES);
    export.multi_conn = multi_conn;
    let server = ScriptedServer::start(unix_place(), export);
    // What goes wrong is to go wrong with pages: reading the mark is a part of connecting.
    server.spare_mark(true);
    let load = Load::written(server.url(OPTIONS));
    (server, load)
}

/// What the log says of connections to the server that were dropped for another reason than time, which a busy machine may run out of by itself.
fn drops(server: &ScriptedServer) -> Vec<String> {
    let Place::Unix(path) = server.place() else { unreachable!("as it was started") };
    let mut lines = events::warnings_with(&[&path.display().to_string(), "the connection is dropped"]);
    lines.retain(|line| !line.contains("no answer for"));
    lines
}

/// The third, and some more, of a kind of requests have this fault while everybody is at work, until the client has counted it in each of
/// `counters` (some of them may be a sum of several); in the end nothing may be missing.
fn survive(action: Action, command: Command, multi_conn: bool, counters: &[&str]) -> Load {
    events::collect();
    let (server, load) = start(multi_conn);
    let count = |names: &&str| names.split('+').map(|name| load.stat(name)).sum::<u64>();
    for skip in [2, 10, 10] {
        let num_errors = load.work_during(|| {
            load.wait_until_connected();
            // All of that before the rule, which may be followed at once.
            let before = server.num_followed(action);
            let counts: Vec<u64> = counters.iter().map(count).collect();
            server.add(Rule::new(action).of(command).after(skip));
            wait_until(&format!("{action:?} of {command:?} happens"), || server.num_followed(action) > before);
            for (counter, before) in counters.iter().zip(counts) {
                wait_until(&format!("{counter} shows {action:?} of {command:?}"), || count(counter) > before);
            }
        });
        assert_eq!(num_errors, 0, "{action:?} of {command:?}: {:?}", load.swap.stats());
    }
    server.behave();
    load.expect_all_right();
    assert_eq!((load.stat("swap_in_errors_lost"), load.stat("swap_in_errors_timeout")), (0, 0), "{action:?} of {command:?}");
    // One line for each thing that went wrong, of the one connection.
    let (lines, is_broken) = (drops(&server), counters.contains(&"nbd_reconnects"));
    let only_late = counters.iter().any(|counter| counter.contains("nbd_timeouts"));
    assert!(lines.len() <= 3 * usize::from(is_broken) && (!is_broken || only_late || lines.len() == 3), "{action:?} of {command:?}: {lines:#?}");
    assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:#?}");
    load
}

fn survive_all(actions: impl IntoIterator<Item = Action>, commands: &[Command], counter: &str) {
    for action in actions {
        for command in commands {
            for multi_conn in [true, false] {
                survive(action, *command, multi_conn, &[counter, "nbd_reconnects"]);
            }
        }
    }
}

const BOTH: [Command; 2] = [Command::Read, Command::Write];

#[test]
fn cookies_of_no_request() {
    let Some(_watchdog) = watchdog(200) else { return };
    survive_all([Action::UnknownCookie, Action::OldCookie, Action::Twice], &BOTH, "nbd_protocol_errors");
}

#[test]
fn replies_that_are_none() {
    let Some(_watchdog) = watchdog(200) else { return };
    survive_all([Action::Mutated], &[Command::Read], "nbd_protocol_errors");
    survive_all([Action::WrongMagic, Action::Structured, Action::Garbage(16), Action::Garbage(9000)], &BOTH, "nbd_protocol_errors");
}

#[test]
fn replies_of_the_wrong_length() {
    let Some(_watchdog) = watchdog(200) else { return };
    survive_all([Action::Longer(1), Action::Longer(4096)], &BOTH, "nbd_protocol_errors");
    survive_all([Action::ErrorWithPayload], &[Command::Read], "nbd_protocol_errors");
    // Nothing may follow that shows it.
    survive_all([Action::Shorter(1)], &BOTH, "nbd_protocol_errors+nbd_timeouts");
    survive_all([Action::Shorter(4096)], &[Command::Read], "nbd_protocol_errors+nbd_timeouts");
}

#[test]
fn connections_that_are_closed() {
    let Some(_watchdog) = watchdog(300) else { return };
    let within = [0, 1, 8, 15].map(Action::CloseWithin);
    survive_all([Action::CloseBefore, Action::CloseAfter].into_iter().chain(within), &BOTH, "nbd_reconnects");
    survive_all([16, 17, 2000, 4111].map(Action::CloseWithin), &[Command::Read], "nbd_reconnects");
}

#[test]
fn replies_that_do_not_come() {
    let Some(_watchdog) = watchdog(300) else { return };
    survive_all([Action::Ignore, Action::Mute, Action::Freeze], &BOTH, "nbd_timeouts");
}

/// Closed at every few bytes of a reply, again and again, amid all requests that are in flight then.
#[test]
fn a_server_that_closes_all_the_time() {
    let Some(_watchdog) = watchdog(200) else { return };
    for multi_conn in [true, false] {
        let (server, load) = start(multi_conn);
        let num_errors = load.work_during(|| {
            for len in (0..4112).step_by(257) {
                load.wait_until_connected();
                let (action, num_reconnects) = (Action::CloseWithin(len), load.stat("nbd_reconnects"));
                server.add(Rule::new(action).after(5));
                wait_until("the connection is closed", || server.num_followed(action) > 0);
                wait_until("another one is made", || load.stat("nbd_reconnects") > num_reconnects);
            }
            for _ in 0..20 {
                server.drop_connections();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(num_errors, 0);
        server.behave();
        load.expect_all_right();
        assert!(load.stat("nbd_reconnects") >= 17);
    }
}

/// A trim that fails, or whose connection is lost, does no harm: what was discarded is zero, and what is written afterwards stays.
#[test]
fn trims_that_fail() {
    let Some(_watchdog) = watchdog(200) else { return };
    for action in [Action::Errno(EIO), Action::CloseBefore, Action::CloseAfter, Action::CloseWithin(9), Action::Ignore, Action::UnknownCookie] {
        let (server, load) = start(true);
        for round in 0..2 {
            server.add(Rule::new(action).of(Command::Trim).times(2));
            let pages = load.pages();
            pages.discard(0, NUM_PAGES);
            (0..NUM_PAGES).for_each(|page| assert!(pages.is_zero(page), "{action:?}: page {page}"));
            (0..NUM_PAGES).for_each(|page| pages.fill(page, round));
            (0..NUM_PAGES).for_each(|page| pages.check(page, round));
        }
        assert!(server.num_followed(action) > 0);
        assert_eq!(load.stat("swap_in_errors"), 0, "{action:?}");
    }
}

/// Errors that the server tells of are no reason to drop the connection. One of a read is the page's, unless another try succeeds; one of a write loses nothing.
#[test]
fn errors_that_servers_tell_of() {
    let Some(_watchdog) = watchdog(200) else { return };
    for errno in [EIO, ENOSPC, EPERM, ENOMEM, 9999] {
        let (server, load) = start(true);
        let num_connections = server.num_connections();
        let num_errors = load.work_during(|| {
            load.wait_until_connected();
            server.add(Rule::new(Action::Errno(errno)).of(Command::Read));
            server.add(Rule::new(Action::Errno(errno)).of(Command::Write).times(3));
            wait_until("all have failed that are to fail", || server.num_followed(Action::Errno(errno)) == 4);
            wait_until("it was noticed", || load.stat("swap_out_errors") > 0 && load.stat("swap_in_retries") > 0);
        });
        // Reads are tried again three times.
        assert_eq!((num_errors, load.stat("swap_in_errors")), (0, 0), "errno {errno}");
        load.expect_all_right();
        assert!(server.num_connections() <= num_connections + nbd_support::load::NUM_WORKERS, "workers made theirs, and nobody another");
        assert_eq!((load.stat("nbd_reconnects"), load.stat("nbd_protocol_errors")), (0, 0), "errno {errno}");
        server.add(Rule::new(Action::Errno(errno)).of(Command::Read).always());
        let page = load.missing()[0];
        let error = lightswap::touch(load.pages().address(page), 1).unwrap_err();
        let failure = error.failure().expect("a page could not be had");
        assert_eq!(failure.cause(), lightswap::Cause::Io, "{error}");
        assert!(failure.errno() > 0 && !error.to_string().contains('\n'), "{error}");
        server.behave();
        load.expect_all_right();
    }
}

/// A server that is told to end says ESHUTDOWN to all that is asked of it: it is away, and what replaces it does the rest.
#[test]
fn a_server_that_shuts_down() {
    let Some(_watchdog) = watchdog(100) else { return };
    let (server, load) = start(true);
    let num_errors = load.work_during(|| {
        let num_reconnects = load.stat("nbd_reconnects");
        server.add(Rule::new(Action::Errno(ESHUTDOWN)).of(Command::Write).times(8));
        wait_until("it has said so", || server.num_followed(Action::Errno(ESHUTDOWN)) == 8);
        wait_until("it is asked over another connection", || load.stat("nbd_reconnects") > num_reconnects);
    });
    server.behave();
    assert_eq!(num_errors, 0);
    load.expect_all_right();
}

/// What is wrong with a page itself no protocol can tell; its hash does.
#[test]
fn contents_that_are_wrong() {
    let Some(_watchdog) = watchdog(100) else { return };
    for action in [Action::Flip, Action::Misdirect] {
        for multi_conn in [true, false] {
            let load = survive(action, Command::Read, multi_conn, &["swap_in_retries"]);
            assert_eq!(
                (load.stat("nbd_reconnects"), load.stat("nbd_protocol_errors")),
                (0, 0),
                "{action:?}: there is nothing wrong with the replies"
            );
        }
    }
    let (server, load) = start(true);
    let page = load.missing()[0];
    server.flip(page);
    let error = lightswap::touch(load.pages().address(page), 1).unwrap_err();
    assert_eq!(error.failure().expect("the page is damaged").cause(), lightswap::Cause::WrongHash, "{error}");
    server.flip(page);
    load.expect_all_right();
}

/// All that can go wrong with a handshake goes wrong with the one of a reconnection: it is tried again.
#[test]
fn handshakes_that_fail_when_a_connection_is_made_again() {
    let Some(_watchdog) = watchdog(300) else { return };
    let (server, load) = start(false);
    let at_steps = |fault: fn(Step) -> HandshakeFault| STEPS.map(fault);
    let mut faults = [HandshakeFault::CloseBefore, HandshakeFault::CloseWithin, HandshakeFault::GarbageFor].map(at_steps).concat();
    faults.extend([
        HandshakeFault::SilentWithin(Step::Info),
        HandshakeFault::Drip,
        HandshakeFault::EndlessInfo,
        HandshakeFault::OldStyle,
        HandshakeFault::WrongGreeting,
        HandshakeFault::WrongReplyMagic,
        HandshakeFault::WrongOption,
        HandshakeFault::HugeReply,
        HandshakeFault::UnknownReply(1 << 31 | 77),
        HandshakeFault::ShortInfo,
        HandshakeFault::NoInfo,
        HandshakeFault::Refuse(nbd_support::protocol::REP_ERR_SHUTDOWN, "not now"),
    ]);
    for fault in faults {
        eprintln!("{fault:?}");
        let num_errors = load.work_during(|| {
            let num_reconnects = load.stat("nbd_reconnects");
            server.fail_handshakes([fault.clone()]);
            server.drop_connections();
            wait_until("the handshake has failed", || server.num_handshake_faults_left() == 0);
            wait_until("the next one has not", || load.stat("nbd_reconnects") > num_reconnects);
        });
        assert_eq!(num_errors, 0, "{fault:?}: {:?}", load.swap.stats());
    }
    server.behave();
    load.expect_all_right();
}

/// Another export than before under the same name is not the one that was lost: no server, as far as pages are concerned, until the right one is back.
#[test]
fn an_export_that_has_changed() {
    let Some(_watchdog) = watchdog(200) else { return };
    type Change = fn(&mut nbd_support::Export);
    let changes: [(&str, Change); 7] = [
        ("smaller", |export| export.num_bytes -= 2 * 4096),
        ("read-only", |export| export.read_only = true),
        ("of another name", |export| export.name = "other".into()),
        ("in larger blocks", |export| export.block_sizes = Some([8192, 8192, 1 << 20])),
        ("for smaller requests", |export| export.block_sizes = Some([4096, 4096, 8192])),
        ("without TRIM", |export| export.can_trim = false),
        ("for one client", |export| export.multi_conn = false),
    ];
    for (what, change) in changes {
        let (server, load) = start(true);
        let right = ScriptedServer::export_of(NUM_PAGES);
        let num_errors = load.work_during(|| {
            load.wait_until_connected();
            server.change_export(change);
            let num_connections = server.num_connections();
            server.drop_connections();
            wait_until("it has been tried again twice", || server.num_connections() > num_connections + 2);
            let num_reconnects = load.stat("nbd_reconnects");
            assert!(load.stat("nbd_connections_down") > 0, "an export that is {what}");
            server.change_export(|export| *export = right);
            wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
        });
        assert_eq!(num_errors, 0, "an export that is {what}");
        load.expect_all_right();
    }
    // What may change: more room and larger requests; no FLUSH, no NBD_OPT_GO.
    let (server, load) = start(true);
    let num_errors = load.work_during(|| {
        load.wait_until_connected();
        server.change_export(|export| {
            export.num_bytes += 4096;
            export.block_sizes = None;
            (export.can_flush, export.knows_go) = (false, false);
        });
        let num_reconnects = load.stat("nbd_reconnects");
        server.drop_connections();
        wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
    });
    assert_eq!(num_errors, 0);
    load.expect_all_right();
    load.pages().discard(0, NUM_PAGES);
}

/// Real servers that answer every tenth request with an error, for a while.
#[test]
fn servers_with_errors_of_their_own() {
    let Some(_watchdog) = watchdog(100) else { return };
    let Some(nbdkit) = Nbdkit::memory(NUM_PAGES) else { return };
    // There are errors while this file is there.
    let file = nbd_support::short_path("errors");
    let file_parameter = format!("error-file={}", file.display());
    let server =
        nbdkit.filter("error", ["error=EIO", "error-pread-rate=10%", "error-pwrite-rate=10%", "error-trim-rate=50%", &file_parameter]).start();
    let load = Load::open(server.url(OPTIONS));
    let num_errors = load.work_during(|| {
        std::fs::write(&file, "").unwrap();
        wait_until("some requests have failed", || load.stat("swap_in_retries") > 50 && load.stat("swap_out_errors") > 50);
        std::fs::remove_file(&file).unwrap();
    });
    // A tenth of a tenth of a tenth.
    assert!(num_errors * 20 < load.stat("swap_ins") as usize, "{num_errors} errors: {:?}", load.swap.stats());
    assert_eq!((load.stat("nbd_reconnects"), load.stat("nbd_protocol_errors")), (0, 0));
    load.expect_all_right();
}

/// A server that is killed and started again has lost what it had in memory: pages are errors then, and never zeroes or anything else.
#[test]
fn a_server_that_has_forgotten_everything() {
    let Some(_watchdog) = watchdog(100) else { return };
    let scripted = [unix_place(), tcp_place()].map(|place| ScriptedServer::start(place, ScriptedServer::export_of(NUM_PAGES)));
    for server in scripted {
        let load = Load::written(server.url(OPTIONS));
        server.go_away(Away::Unbound, None);
        server.forget();
        server.come_back();
        expect_wrong_hashes(&load);
    }
    let Some(nbdkit) = Nbdkit::memory(NUM_PAGES) else { return };
    let mut server = nbdkit.start();
    let load = Load::written(server.url(OPTIONS));
    server.restart();
    expect_wrong_hashes(&load);
}

fn expect_wrong_hashes(load: &Load) {
    // Each page is right or an error. Clean ones leave as others are asked for; the dirty ones are written, to where nothing is.
    let num_failed = load.model.check_all();
    assert!(num_failed > 0 && num_failed < NUM_PAGES, "{num_failed}");
    assert!(load.stat("swap_in_errors_hash") >= num_failed as u64 && load.stat("nbd_reconnects") > 0);
    // All is well again with new contents.
    let pages = load.pages();
    pages.discard(0, NUM_PAGES);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 77));
    (0..NUM_PAGES).for_each(|page| pages.check(page, 77));
}

/// One with a file has everything when it is back, and nobody has noticed.
#[test]
fn a_server_that_is_killed_and_keeps_its_file() {
    let Some(_watchdog) = watchdog(100) else { return };
    let Some(mut server) = qemu_nbd(NUM_PAGES, &[]) else { return };
    let load = Load::written(server.url(OPTIONS));
    let num_errors = load.work_during(|| {
        for _ in 0..5 {
            let num_reconnects = load.stat("nbd_reconnects");
            server.restart();
            wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(num_errors, 0);
    load.expect_all_right();
}
