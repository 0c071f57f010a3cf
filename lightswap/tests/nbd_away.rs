//! Remote memory whose server is away, or stands still: shorter than `lost-after` nothing is lost, longer reads are errors and writes wait; and what needs no
//! server goes on all the time.

mod common;
mod faulty_support;
mod nbd_support;

use common::pages::Pages;
use common::{PAGE, builder, skip, stat, wait_until};
use lightswap::{Cause, Contract, ErrorKind, lwt};
use nbd_support::load::NUM_PAGES;
use nbd_support::{Action, Away, Load, Rule, ScriptedServer, qemu_nbd, tcp_place, unix_place, watchdog};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

const ALL: [Away; 3] = [Away::Unbound, Away::Closing, Away::Deaf];

fn start(options: &str, is_tcp: bool) -> (ScriptedServer, Load) {
    let server = ScriptedServer::start(if is_tcp { tcp_place() } else { unix_place() }, ScriptedServer::export_of(NUM_PAGES));
    let load = Load::written(server.url(options));
    (server, load)
}

#[test]
fn away_for_a_while() {
    let Some(_watchdog) = watchdog(200) else { return };
    for (how, is_tcp) in ALL.into_iter().flat_map(|how| [(how, false), (how, true)]) {
        let (server, load) = start("timeout=1&lost-after=30", is_tcp);
        for _ in 0..2 {
            let num_errors = load.work_during(|| {
                let num_reconnects = load.stat("nbd_reconnects");
                server.go_away(how, Some(Duration::from_millis(1500)));
                wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
            });
            assert_eq!(num_errors, 0, "{how:?}: {:?}", load.swap.stats());
        }
        load.expect_all_right();
        assert_eq!(load.stat("swap_in_errors"), 0);
    }
}

/// Reads of a lost server fail, soon, and not one after the other; resident pages stay as they are; in the end everything is there.
#[test]
fn away_for_longer() {
    let Some(_watchdog) = watchdog(200) else { return };
    for (how, is_tcp) in ALL.into_iter().flat_map(|how| [(how, false), (how, true)]) {
        let (server, load) = start("timeout=1&lost-after=2", is_tcp);
        let pages = load.pages();
        let missing = load.missing();
        let resident: Vec<usize> = (0..NUM_PAGES).filter(|page| !missing.contains(page)).take(8).collect();
        // Clean ones may leave without a server.
        resident.iter().for_each(|page| pages.pin(*page, 1).unwrap());
        server.go_away(how, None);
        // More than could each wait for the time limit.
        for page in &missing[..50] {
            let error = lightswap::touch(pages.address(*page), 1).expect_err("there is no server");
            assert_eq!(error.kind(), ErrorKind::SwapIn, "{how:?}: {error}");
            let cause = error.failure().expect("a page could not be had").cause();
            assert!(matches!(cause, Cause::LostBackend | Cause::TimedOut), "{how:?}: {error}");
        }
        assert!(load.stat("swap_in_errors_lost") + load.stat("swap_in_errors_timeout") >= 50);
        assert_eq!(resident.len(), 8);
        resident.iter().for_each(|page| assert!(load.model.check(*page), "resident pages need no server"));
        resident.iter().for_each(|page| pages.unpin(*page, 1));
        server.come_back();
        wait_until("pages can be had again", || load.model.check(missing[0]));
        load.expect_all_right();
        assert_eq!(load.work(200), 0, "{how:?}");
        load.expect_all_right();
    }
}

/// Everybody at work finds out, and goes on when the server is back.
#[test]
fn away_for_longer_under_load() {
    let Some(_watchdog) = watchdog(200) else { return };
    for how in ALL {
        let (server, load) = start("timeout=1&lost-after=2", false);
        let num_errors = load.work_during(|| {
            server.go_away(how, None);
            wait_until("reads fail", || load.stat("swap_in_errors") > 0);
            std::thread::sleep(Duration::from_millis(300));
            let before = load.stat("swap_ins");
            server.come_back();
            wait_until("pages come in again", || load.stat("swap_ins") > before + 100);
        });
        assert!(num_errors > 0, "{how:?}");
        load.expect_all_right();
        wait_until("writes work again", || load.stat("swap_out_failing") == 0);
    }
}

/// Writes that find no server lose nothing: pages stay resident, fresh memory is refused, and all is written when it is back.
#[test]
fn writes_without_a_server() {
    let Some(_watchdog) = watchdog(200) else { return };
    for how in ALL {
        let server = ScriptedServer::new(NUM_PAGES);
        // Waits for room for as long as the server is away.
        let load = Load::open(server.url("timeout=1&lost-after=2"));
        server.go_away(how, None);
        let pages = load.pages();
        let is_back = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for page in 0..NUM_PAGES {
                    // Room may not be had in time.
                    while let Err(error) = lightswap::reserve(pages.address(page), PAGE).and_then(|()| lightswap::touch(pages.address(page), PAGE)) {
                        assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::SwapIn), "{error}");
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    pages.fill(page, 1);
                }
                assert!(is_back.load(Relaxed), "{NUM_PAGES} pages cannot all have been kept in local memory");
            });
            wait_until("writes fail or are late", || load.stat("swap_out_failing") == 1);
            wait_until("fresh memory is refused", || lightswap::reserve(pages.address(NUM_PAGES - 1), PAGE).is_err());
            assert!(load.stat("resident_bytes") <= load.stat("resident_limit_bytes"));
            is_back.store(true, Relaxed);
            server.come_back();
        });
        (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
        wait_until("writes work again", || load.stat("swap_out_failing") == 0);
    }
}

/// While an LWT waits for a server that does not answer, the others of its worker run, and so do other workers.
fn nobody_is_held_up(load: &Load, stop: impl FnOnce(), resume: impl FnOnce()) {
    let pages = load.pages();
    let missing = load.missing();
    let resident: Vec<usize> = (0..NUM_PAGES).filter(|page| !missing.contains(page)).take(8).collect();
    resident.iter().for_each(|page| pages.pin(*page, 1).unwrap());
    let (has_stopped, is_over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let counts: [Arc<AtomicU64>; 2] = std::array::from_fn(|_| Arc::default());
    let has_read = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (index, count) in counts.iter().enumerate() {
            let (has_stopped, is_over, count, has_read, swap) = (has_stopped.clone(), is_over.clone(), count.clone(), has_read.clone(), &load.swap);
            let (missing, resident) = (missing[index * 10..(index + 1) * 10].to_vec(), resident.clone());
            scope.spawn(move || {
                let handle = swap.enter_worker().unwrap();
                for page in missing {
                    let (has_stopped, is_over, has_read) = (has_stopped.clone(), is_over.clone(), has_read.clone());
                    let read = move || {
                        while !has_stopped.load(Relaxed) && !is_over.load(Relaxed) {
                            lwt::yield_now();
                        }
                        // An error is in order, too; the test checks it all in the end.
                        has_read.fetch_or(lightswap::touch(pages.address(page), 1).is_ok(), Relaxed);
                    };
                    handle.start(read).unwrap();
                }
                handle
                    .start(move || {
                        while !is_over.load(Relaxed) {
                            assert!(resident.iter().any(|page| pages.word(*page, 0) != 0));
                            count.fetch_add(1, Relaxed);
                            lwt::yield_now();
                        }
                    })
                    .unwrap();
                handle.run();
            });
        }
        let _end = SetOnDrop(&is_over);
        let go_on = || {
            let before = counts.each_ref().map(|count| count.load(Relaxed));
            wait_until("every worker goes on", || counts.iter().zip(before).all(|(count, before)| count.load(Relaxed) > before + 100));
        };
        go_on();
        load.wait_until_connected();
        stop();
        has_stopped.store(true, Relaxed);
        // Workers must not stand still at any time, until it has been noticed that the server does.
        wait_until("it is noticed that the server stands still", || {
            go_on();
            load.stat("nbd_timeouts") > 0
        });
        assert!(!has_read.load(Relaxed), "a server that stands still has answered");
        resume();
        wait_until("the server is there again", || load.model.check(missing[20]));
    });
    resident.iter().for_each(|page| pages.unpin(*page, 1));
    load.expect_all_right();
}

/// A test that fails must not leave its threads at work for ever.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_server_that_stands_still_holds_up_nobody_else() {
    let Some(_watchdog) = watchdog(200) else { return };
    for is_tcp in [false, true] {
        let (server, load) = start("timeout=1&lost-after=20", is_tcp);
        nobody_is_held_up(&load, || server.pause(true), || server.pause(false));
    }
    // Not nbdkit: 1.32 ends with a failed assertion if its clients leave while it stands still.
    let Some(server) = qemu_nbd(NUM_PAGES, &[]) else { return };
    let load = Load::written(server.url("timeout=1&lost-after=20"));
    nobody_is_held_up(&load, || server.pause(), || server.resume());
}

/// Workers begin without waiting for a server that is away, and have their pages when it is back.
#[test]
fn workers_that_begin_without_a_server() {
    let Some(_watchdog) = watchdog(200) else { return };
    for how in [None, Some(Away::Unbound), Some(Away::Closing), Some(Away::Deaf)] {
        let (server, load) = start("timeout=1&lost-after=60", false);
        let missing = load.missing();
        match how {
            None => server.pause(true),
            Some(how) => server.go_away(how, None),
        }
        let num_running = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for page in &missing[..2] {
                let (load, num_running) = (&load, &num_running);
                scope.spawn(move || {
                    let handle = load.swap.enter_worker().unwrap();
                    num_running.fetch_add(1, Relaxed);
                    let (model, page) = (load.model.clone(), *page);
                    handle.start(move || assert!(model.check(page))).unwrap();
                    handle.run();
                });
            }
            // Though nobody has a connection.
            wait_until("workers have entered", || num_running.load(Relaxed) == 2);
            wait_until("they lack connections", || load.stat("nbd_connections_down") >= 2);
            server.behave();
        });
        load.expect_all_right();
    }
}

/// Longer than that: reads are errors, writes wait; and all is there when it goes on, as it has kept its memory.
#[test]
fn a_server_that_stands_still_for_long() {
    let Some(_watchdog) = watchdog(100) else { return };
    let stop_for_long = |load: &Load, stop: &dyn Fn(), resume: &dyn Fn()| {
        let num_errors = load.work_during(|| {
            load.wait_until_connected();
            stop();
            wait_until("reads fail", || load.stat("swap_in_errors") > 0);
            resume();
            let before = load.stat("swap_ins");
            wait_until("pages come in again", || load.stat("swap_ins") > before + 100);
        });
        assert!(num_errors > 0);
    };
    let (server, load) = start("timeout=1&lost-after=2", false);
    stop_for_long(&load, &|| server.pause(true), &|| server.pause(false));
    load.expect_all_right();
    let Some(server) = qemu_nbd(NUM_PAGES, &[]) else { return };
    let load = Load::written(server.url("timeout=1&lost-after=2"));
    stop_for_long(&load, &|| server.pause(), &|| server.resume());
    // It may have done late what the connections of before had brought, older writes over newer ones, which the hash finds out.
    let pages = load.pages();
    let mut num_lost = 0;
    for page in 0..NUM_PAGES {
        if let Err(error) = lightswap::touch(pages.address(page), 1) {
            assert_eq!(error.failure().expect("a page could not be had").cause(), Cause::WrongHash, "{error}");
            num_lost += 1;
        } else {
            assert!(load.model.check(page));
        }
    }
    eprintln!("{num_lost} pages are lost");
    assert!(num_lost < NUM_PAGES / 4, "{num_lost} pages are lost");
}

/// An instance ends in bounded time, whatever its server does.
#[test]
fn the_end_without_a_server() {
    let Some(_watchdog) = watchdog(200) else { return };
    for how in ALL {
        let (server, load) = start("timeout=1&lost-after=2", false);
        server.go_away(how, None);
        drop(load);
    }
    let (server, load) = start("timeout=1&lost-after=2", true);
    server.pause(true);
    drop(load);
    // With writes on their way.
    let (server, load) = start("timeout=1&lost-after=2", false);
    load.work_during(|| {
        server.pause(true);
        std::thread::sleep(Duration::from_millis(100));
    });
    drop(load);
}

/// Connections that nobody uses for a while are lost, too, and nobody notices until they are needed.
#[test]
fn idle_connections_that_are_lost() {
    let Some(_watchdog) = watchdog(100) else { return };
    let (server, load) = start("timeout=1&lost-after=20", false);
    for _ in 0..5 {
        server.drop_connections();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(load.work(50), 0);
    }
    load.expect_all_right();
}

/// A client does not hammer a server that is away: there is a pause between attempts, which grows.
#[test]
fn attempts_have_pauses_between_them() {
    let Some(_watchdog) = watchdog(100) else { return };
    let (server, load) = start("timeout=1&lost-after=60", false);
    let num_errors = load.work_during(|| {
        load.wait_until_connected();
        let before = server.num_connections();
        // Each attempt is accepted, and then closed in the midst of the handshake.
        server.fail_handshakes(vec![nbd_support::HandshakeFault::CloseBefore(nbd_support::Step::Info); 100_000]);
        let begin = Instant::now();
        server.drop_connections();
        wait_until("it was tried eight times", || server.num_connections() >= before + 8);
        // Not of speed: pauses of 20 ms, doubled up to a second, lie between, which no machine can make shorter.
        let elapsed = begin.elapsed();
        assert!(elapsed >= Duration::from_millis(20 + 40 + 80 + 160 + 320 + 640 + 1000), "eight attempts in {elapsed:?}");
        server.behave();
    });
    assert_eq!(num_errors, 0);
    load.expect_all_right();
}

/// Nor one that accepts connections and closes them at the first request of each; which is no server, as far as time limits are concerned.
#[test]
fn connections_that_bring_nothing() {
    let Some(_watchdog) = watchdog(100) else { return };
    let (server, load) = start("timeout=1&lost-after=2", false);
    let missing = load.missing();
    // Of all that is no page's, only the mark is read.
    server.spare_mark(true);
    server.add(Rule::new(Action::CloseBefore).always());
    let (begin, before) = (Instant::now(), server.num_connections());
    let error = lightswap::touch(load.pages().address(missing[0]), 1).expect_err("nothing is answered");
    assert_eq!(error.failure().expect("a page could not be had").cause(), Cause::LostBackend, "{error}");
    let (num_attempts, elapsed) = (server.num_connections() - before, begin.elapsed());
    // At most so many fit into the time with pauses between them.
    let most = 9 + elapsed.as_secs() as usize;
    assert!((2..=most).contains(&num_attempts), "{num_attempts} connections in {elapsed:?}");
    server.behave();
    wait_until("pages can be had again", || load.model.check(missing[0]));
    load.expect_all_right();
}

/// Memory that is damaged when its hash is known and its bytes are not sent yet: a write that fails, once, and an error for those who ask for the page; not the end of
/// all other requests of that connection.
#[test]
fn memory_that_is_damaged_while_it_waits_to_be_sent() {
    let Some(_watchdog) = watchdog(100) else { return };
    const NUM: usize = 2000;
    let bytes = |num_pages: usize| (num_pages * PAGE) as u64;
    let server = ScriptedServer::start(unix_place(), ScriptedServer::export_of(2 * NUM));
    let swap = builder(NUM as u64 + 500, server.url("timeout=5&lost-after=60")).open().unwrap();
    let region = swap.create_region(NUM * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..NUM).for_each(|page| pages.fill(page, 1));
    let buffers = bytes(NUM + 500) - stat(&swap, "resident_limit_bytes");
    server.pause(true);
    swap.set_local_memory(bytes(500) + buffers).unwrap();
    // As many as there are at a time: more than the server takes in before it stands still, and a socket after that.
    wait_until("writes are under way", || stat(&swap, "evict_batches") >= 4);
    let damaged = |page: &usize| page % 16 == 9;
    for page in (0..NUM).filter(damaged) {
        if let Err(error) = lightswap::poison(pages.address(page)) {
            skip(&format!("the kernel cannot poison pages: {error}"));
            return;
        }
    }
    server.pause(false);
    wait_until("the limit is reached", || stat(&swap, "resident_bytes") <= bytes(500));
    assert!(stat(&swap, "swap_out_errors") > 0 && (1..=8).contains(&stat(&swap, "nbd_reconnects")), "{:?}", swap.stats());
    for page in 0..NUM {
        let result = lightswap::touch(pages.address(page), 1);
        if damaged(&page) {
            // Who finds out may be an evictor, or the first who reads it.
            // SAFETY: inside the region and the array.
            let result = result.and_then(|()| unsafe { lightswap::copy([0; 8].as_mut_ptr(), pages.address(page), 8) });
            assert_eq!(result.unwrap_err().failure().unwrap().cause(), Cause::Poisoned);
        } else {
            result.unwrap();
            pages.check(page, 1);
        }
    }
}
