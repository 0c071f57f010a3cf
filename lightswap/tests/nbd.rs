//! Remote memory over NBD while servers do what they should: contents, what is asked of the server, and what is refused at open.

mod common;
mod faulty_support;
mod nbd_support;

use common::pages::Pages;
use common::{MODES, PAGE, builder, stat, wait_until};
use lightswap::{Contract, ErrorKind};
use nbd_support::load::NUM_PAGES;
use nbd_support::{Action, Command, Load, Nbdkit, Rule, ScriptedServer, Server, qemu_nbd, tcp_place, unix_place, watchdog};
use std::time::Duration;

/// Nothing went wrong, as far as the client tells.
fn expect_no_trouble(load: &Load) {
    for name in ["nbd_reconnects", "nbd_protocol_errors", "nbd_timeouts", "swap_in_errors", "swap_out_errors"] {
        assert_eq!(load.stat(name), 0, "{name}");
    }
    assert!(load.stat("nbd_requests") > 0);
}

fn round_trip(url: &str) {
    for (mode, contract) in MODES.into_iter().flat_map(|mode| [Contract::Transparent, Contract::Cooperative].map(|contract| (mode, contract))) {
        let load = Load::open_as(url, mode, contract);
        assert_eq!(load.work(300), 0, "{url} {mode:?} {contract:?}");
        load.expect_all_right();
        assert!(load.stat("swap_ins") > 0 && load.stat("dirty_evictions") > 0);
        expect_no_trouble(&load);
    }
}

fn round_trip_on(server: Option<Server>) {
    if let (Some(_watchdog), Some(server)) = (watchdog(100), server) {
        round_trip(&server.url(""));
    }
}

#[test]
fn nbdkit_over_unix_sockets() {
    round_trip_on(Nbdkit::memory(NUM_PAGES).map(Nbdkit::start));
}

#[test]
fn nbdkit_over_tcp() {
    round_trip_on(Nbdkit::memory(NUM_PAGES).map(|nbdkit| nbdkit.tcp().start()));
}

/// One request at a time is all that this server works at.
#[test]
fn nbdkit_without_parallel_requests() {
    round_trip_on(Nbdkit::memory(NUM_PAGES).map(|nbdkit| nbdkit.filter("noparallel", ["serialize=all-requests"]).start()));
}

#[test]
fn nbdkit_that_is_particular_about_sizes() {
    let sizes = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=16K", "blocksize-error-policy=error"];
    round_trip_on(Nbdkit::memory(NUM_PAGES).map(|nbdkit| nbdkit.filter("blocksize-policy", sizes).start()));
}

/// Larger requests than its filter passes on are taken apart there.
#[test]
fn nbdkit_with_another_block_size() {
    let sizes = ["minblock=4096", "maxdata=8K", "maxlen=64K"];
    round_trip_on(Nbdkit::memory(NUM_PAGES).map(|nbdkit| nbdkit.filter("blocksize", sizes).start()));
}

#[test]
fn nbdkit_without_multi_conn() {
    round_trip_on(Nbdkit::memory(NUM_PAGES).map(|nbdkit| nbdkit.filter("multi-conn", ["multi-conn-mode=disable"]).start()));
}

/// They know only the old way to name an export, with or without zeroes behind the answer.
#[test]
fn servers_of_old() {
    let Some(_watchdog) = watchdog(100) else { return };
    for no_zeroes in [true, false] {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        (export.knows_go, export.no_zeroes) = (false, no_zeroes);
        let server = ScriptedServer::start(tcp_place(), export);
        round_trip(&server.url(""));
    }
}

#[test]
fn qemu_nbd_with_a_file() {
    round_trip_on(qemu_nbd(NUM_PAGES, &[]));
}

#[test]
fn scripted_servers() {
    let Some(_watchdog) = watchdog(100) else { return };
    for place in [unix_place(), tcp_place()] {
        let server = ScriptedServer::start(place, ScriptedServer::export_of(NUM_PAGES));
        server.log(|log| log.strict = true);
        round_trip(&server.url(""));
    }
}

#[test]
fn replies_in_any_order() {
    let Some(_watchdog) = watchdog(100) else { return };
    for multi_conn in [true, false] {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        export.multi_conn = multi_conn;
        let server = ScriptedServer::start(unix_place(), export);
        server.log(|log| log.strict = true);
        server.script(|script| script.hold = 16);
        let load = Load::open(server.url(""));
        assert_eq!(load.work(300), 0);
        load.expect_all_right();
        expect_no_trouble(&load);
    }
}

/// Headers and payloads come in bits, and what is sent is taken in bits.
#[test]
fn bits_and_pieces() {
    let Some(_watchdog) = watchdog(100) else { return };
    for (place, piece) in [(unix_place(), 1), (tcp_place(), 13), (unix_place(), 1000), (tcp_place(), 4100)] {
        let server = ScriptedServer::start(place, ScriptedServer::export_of(NUM_PAGES));
        server.script(|script| script.piece = piece);
        // Longer than any request here may take: only then can nothing be wrong.
        let load = Load::open(server.url("timeout=60"));
        assert_eq!(load.work(if piece == 1 { 30 } else { 200 }), 0);
        load.expect_all_right();
        expect_no_trouble(&load);
    }
}

/// Replies that wait while others of the same connection come are not late.
#[test]
fn late_replies() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(NUM_PAGES);
    server.script(|script| script.delay = Duration::from_millis(20));
    let load = Load::open(server.url("timeout=10"));
    assert_eq!(load.work(30), 0);
    load.expect_all_right();
    expect_no_trouble(&load);
    let Some(nbdkit) = Nbdkit::memory(NUM_PAGES) else { return };
    let server = nbdkit.filter("delay", ["rdelay=5ms", "wdelay=10ms"]).start();
    let load = Load::open(server.url("timeout=10"));
    assert_eq!(load.work(60), 0);
    load.expect_all_right();
    expect_no_trouble(&load);
}

#[test]
fn a_connection_for_each_worker_only_where_the_server_allows_it() {
    let Some(_watchdog) = watchdog(100) else { return };
    // Two workers, the test's own thread, the pager's: more are for the server to be proud of, fewer than two are a waste.
    for (multi_conn, options, least, most) in [(true, "", 2, 5), (false, "", 1, 1), (true, "connections=1", 1, 1), (true, "connections=2", 2, 2)] {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        export.multi_conn = multi_conn;
        let server = ScriptedServer::start(unix_place(), export);
        let load = Load::open(server.url(options));
        assert_eq!(load.work(300), 0);
        load.expect_all_right();
        let most_open = server.num_open_connections();
        let with_requests = server.log(|log| {
            let mut numbers: Vec<usize> = log.requests.iter().map(|request| request.connection).collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers.len()
        });
        assert!((least..=most).contains(&with_requests) && most_open <= most, "{multi_conn} {options}: {with_requests} of {most_open}");
        expect_no_trouble(&load);
    }
}

/// A worker that ends leaves its place to the next.
#[test]
fn connections_of_workers_that_come_and_go() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(NUM_PAGES);
    let load = Load::open(server.url("connections=2"));
    for _ in 0..5 {
        let before = server.num_connections();
        load.work_during(|| wait_until("a worker has a connection of its own", || server.num_connections() > before));
    }
    load.expect_all_right();
}

#[test]
fn a_disconnect_ends_every_connection() {
    let Some(_watchdog) = watchdog(100) else { return };
    for multi_conn in [true, false] {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        export.multi_conn = multi_conn;
        let server = ScriptedServer::start(unix_place(), export);
        let load = Load::open(server.url(""));
        // A connection that is still being made when its worker ends is just closed.
        load.work_during(|| load.wait_until_connected());
        drop(load);
        wait_until("all connections are gone", || server.num_open_connections() == 0);
        let mut ended: Vec<usize> = server.log(|log| log.of(Command::Disconnect).map(|request| request.connection).collect());
        let mut used: Vec<usize> = server.log(|log| log.requests.iter().map(|request| request.connection).collect());
        for numbers in [&mut ended, &mut used] {
            numbers.sort_unstable();
            numbers.dedup();
        }
        assert!(!used.is_empty());
        assert_eq!(ended, used, "each that was used is ended in good order");
    }
}

#[test]
fn neighbours_are_written_together() {
    let Some(_watchdog) = watchdog(100) else { return };
    for largest in [4 << 20, 16 << 10, 4 << 10] {
        let mut export = ScriptedServer::export_of(1000);
        export.block_sizes = Some([512, 4096, largest]);
        let server = ScriptedServer::start(unix_place(), export);
        let swap = builder(200, server.url("")).open().unwrap();
        let region = swap.create_region(1000 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..1000).for_each(|page| pages.fill(page, 1));
        (0..1000).for_each(|page| pages.check(page, 1));
        let (num_writes, num_written) = server.log(|log| {
            let bytes: u64 = log.of(Command::Write).map(|request| u64::from(request.length)).sum();
            (log.count(Command::Write), bytes as usize / PAGE)
        });
        assert!(num_written >= 800, "{num_written} pages");
        // Victims come from one span at a time.
        let most = if largest == 4 << 10 { num_written } else { num_written / 3 };
        assert!(num_writes <= most, "{num_writes} requests for {num_written} pages, of up to {largest} bytes");
    }
}

/// Neighbouring pages that are asked for together are read with one request, but for as many as the server takes; the scripted one complains of longer ones.
#[test]
fn neighbours_are_read_together() {
    let Some(_watchdog) = watchdog(100) else { return };
    for (largest, num_pages) in [(4 << 20, 8), (8 << 10, 2), (4 << 10, 1)] {
        let mut export = ScriptedServer::export_of(1000);
        export.block_sizes = Some([1, 4096, largest]);
        let server = ScriptedServer::start(unix_place(), export);
        let swap = builder(500, server.url("")).open().unwrap();
        let region = swap.create_region(1000 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..1000).for_each(|page| pages.fill(page, 1));
        // Reads begin before anybody waits for them if there is room.
        pages.discard(500, 500);
        assert!((0..80).all(|page| !pages.is_resident(page)));
        let handle = swap.enter_worker().unwrap();
        let touch = move || (0..80).step_by(8).for_each(|first| lightswap::touch(pages.address(first), 8 * PAGE).unwrap());
        handle.start(touch).unwrap();
        handle.run();
        let longest = server.log(|log| log.of(Command::Read).map(|read| read.length as usize / PAGE).max());
        assert_eq!(longest, Some(num_pages), "requests of {largest} bytes: {:?}", swap.stats());
        (0..500).for_each(|page| pages.check(page, 1));
    }
}

#[test]
fn requests_are_counted() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(NUM_PAGES);
    let load = Load::open(server.url(""));
    load.work(200);
    load.pages().discard(0, NUM_PAGES);
    // The last ones may be on their way. What lies behind the slots, where a client may have a mark of its own, does not count.
    wait_until("the server has all that the client counts", || {
        let is_of_slot = |request: &&nbd_support::log::Recorded| request.offset < (NUM_PAGES * PAGE) as u64;
        let num_received =
            server.log(|log| [Command::Read, Command::Write, Command::Trim].map(|command| log.of(command).filter(is_of_slot).count() as u64));
        load.stat("nbd_requests") == num_received.iter().sum::<u64>() && load.stat("nbd_trims") == num_received[2]
    });
}

#[test]
fn what_is_discarded_is_trimmed() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(2 * NUM_PAGES);
    let load = Load::written(server.url(""));
    let missing = load.missing();
    assert!(missing.len() > NUM_PAGES / 2);
    load.pages().discard(0, NUM_PAGES);
    wait_until("all that lay there is trimmed", || {
        let trims: Vec<(u64, u64)> =
            server.log(|log| log.of(Command::Trim).map(|request| (request.offset, request.offset + u64::from(request.length))).collect());
        // Page i of the first region lies in slot i.
        let is_trimmed = |page: &usize| {
            let start = (page * PAGE) as u64;
            trims.iter().any(|(from, to)| *from <= start && start + PAGE as u64 <= *to)
        };
        missing.iter().all(is_trimmed)
    });
    assert!(load.stat("nbd_trims") > 0 && server.count(Command::Trim) <= 64, "neighbours are trimmed together");
    assert!((0..NUM_PAGES).all(|page| load.pages().is_zero(page)), "as if never touched, whatever the server has there now");
}

#[test]
fn nothing_is_trimmed_where_it_is_not_offered() {
    let Some(_watchdog) = watchdog(100) else { return };
    let mut export = ScriptedServer::export_of(NUM_PAGES);
    (export.can_trim, export.can_flush) = (false, false);
    let server = ScriptedServer::start(unix_place(), export);
    let load = Load::written(server.url(""));
    load.pages().discard(0, NUM_PAGES);
    assert!((0..NUM_PAGES).all(|page| load.pages().is_zero(page)));
    // The server fails the test if it is asked for anything that it did not offer.
    drop(load);
    assert_eq!(server.count(Command::Trim) + server.count(Command::Flush), 0);
}

/// Slots are used again at once: a trim that is still on its way must not hit what has been written since. The server does requests in random order.
#[test]
fn a_trim_never_hits_a_later_write() {
    let Some(_watchdog) = watchdog(100) else { return };
    for multi_conn in [true, false] {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        export.multi_conn = multi_conn;
        let server = ScriptedServer::start(unix_place(), export);
        server.log(|log| log.strict = true);
        server.script(|script| script.hold = 8);
        let load = Load::open(server.url(""));
        let pages = load.pages();
        std::thread::scope(|scope| {
            for half in 0..2 {
                scope.spawn(move || {
                    let own = half * NUM_PAGES / 2..(half + 1) * NUM_PAGES / 2;
                    for round in 1..6 {
                        own.clone().for_each(|page| pages.fill(page, round));
                        own.clone().for_each(|page| pages.check(page, round));
                        let discarded = own.clone().step_by(3).map(|page| page..(page + 2).min(own.end));
                        discarded.clone().for_each(|range| pages.discard(range.start, range.len()));
                        discarded.flatten().for_each(|page| assert!(pages.is_zero(page), "page {page}"));
                    }
                });
            }
        });
        assert!(load.stat("nbd_trims") > 0);
        assert_eq!((load.stat("swap_in_errors"), load.stat("swap_out_errors")), (0, 0));
        expect_no_trouble(&load);
    }
}

/// The same where a page is discarded once more, before it has been written, while the trim of the first time is still under way.
#[test]
fn a_trim_under_way_holds_writes_back_after_a_second_discard() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(2 * NUM_PAGES);
    server.log(|log| log.strict = true);
    let load = Load::written(server.url("timeout=20"));
    let other = load.swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = load.pages();
    server.add(Rule::new(Action::Delay(Duration::from_millis(500))).of(Command::Trim).always());
    pages.discard(0, 32);
    wait_until("the trim is under way", || server.count(Command::Trim) > 0);
    // Resident again, and never written: what is discarded is a frame and an old content, of which the trim is under way.
    (0..32).for_each(|page| pages.fill(page, 1));
    pages.discard(0, 32);
    (0..32).for_each(|page| pages.fill(page, 2));
    Pages::flush_through(&Pages::of(&other));
    (0..32).for_each(|page| pages.check(page, 2));
    assert_eq!(load.stat("swap_in_errors"), 0);
}

/// Slots of a region that is gone, too.
#[test]
fn slots_are_used_again_by_other_regions() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(NUM_PAGES);
    server.log(|log| log.strict = true);
    server.script(|script| script.hold = 8);
    let swap = builder(64, server.url("")).open().unwrap();
    for round in 0..10 {
        let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..NUM_PAGES).for_each(|page| assert!(pages.is_zero(page), "page {page} in round {round}"));
        (0..NUM_PAGES).for_each(|page| pages.fill(page, round));
        (0..NUM_PAGES).for_each(|page| pages.check(page, round));
    }
    assert_eq!(swap.create_region((NUM_PAGES + 2) * PAGE, Contract::Transparent).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!((stat(&swap, "swap_in_errors"), stat(&swap, "swap_out_errors")), (0, 0));
}

#[test]
fn two_instances_share_nothing_but_the_server() {
    let Some(_watchdog) = watchdog(100) else { return };
    let servers = [ScriptedServer::new(NUM_PAGES), ScriptedServer::new(NUM_PAGES)];
    let loads = servers.each_ref().map(|server| Load::open(server.url("")));
    std::thread::scope(|scope| {
        loads.iter().for_each(|load| drop(scope.spawn(|| assert_eq!(load.work(300), 0))));
    });
    loads.iter().for_each(Load::expect_all_right);
}
