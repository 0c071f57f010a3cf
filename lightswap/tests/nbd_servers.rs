//! The servers that other tests rely on: that they serve clients of others, and do each wrong thing that a test may ask for.

mod common;
mod faulty_support;
mod nbd_support;

use common::{PAGE, wait_until};
use nbd_support::load::NUM_PAGES;
use nbd_support::namespace::{Disturbance, Namespace};
use nbd_support::programs::spawn;
use nbd_support::{
    Action, Away, Client, HandshakeFault, Load, Nbdkit, Place, Rule, STEPS, ScriptedServer, is_installed, qemu_nbd, short_path, tcp_place, watchdog,
};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;

fn connect(server: &ScriptedServer) -> Client {
    let client = Client::connect(server.place(), "swap").unwrap();
    client.stream.set_timeout(Some(Duration::from_millis(300)));
    client
}

fn page(value: u8) -> Vec<u8> {
    vec![value; PAGE]
}

/// Runs a client of others to its end.
fn run(arguments: &[String]) {
    let mut child = spawn(arguments);
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{arguments:?}: {status}");
}

/// nbdcopy writes and reads with several connections and many requests in flight.
#[test]
fn a_real_client_is_served() {
    if !is_installed("nbdcopy") {
        return;
    }
    for (place, hold, piece) in [(nbd_support::unix_place(), 0, 0), (tcp_place(), 8, 0), (nbd_support::unix_place(), 8, 1000)] {
        let server = ScriptedServer::start(place, ScriptedServer::export_of(512));
        server.script(|script| (script.hold, script.piece) = (hold, piece));
        let (from, to) = (short_path("from"), short_path("to"));
        let content: Vec<u8> = (0..513 * PAGE).map(|index| (index * 7 + index / PAGE) as u8).collect();
        std::fs::write(&from, &content).unwrap();
        let url = match server.place() {
            Place::Unix(path) => format!("nbd+unix:///swap?socket={}", path.display()),
            Place::Tcp(address) => format!("nbd://{address}/swap"),
        };
        let (from_name, to_name) = (from.display().to_string(), to.display().to_string());
        for (source, target) in [(from_name, url.clone()), (url, to_name)] {
            run(&["nbdcopy".into(), "--allocated".into(), "--request-size=65536".into(), "--connections=2".into(), source, target]);
        }
        assert!(std::fs::read(&to).unwrap() == content, "hold {hold}, pieces of {piece}");
        assert!(server.num_connections() >= 2 && server.count(nbd_support::Command::Write) >= 16);
        [from, to].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

#[test]
fn real_servers_start_stop_and_stand_still() {
    let servers = [Nbdkit::memory(64).map(Nbdkit::start), Nbdkit::memory(64).map(|it| it.tcp().start()), qemu_nbd(64, &[])];
    for mut server in servers.into_iter().flatten() {
        let is_file = server.place().connect().is_ok() && server.url("").contains("qemu");
        let mut client = Client::connect(server.place(), "swap").unwrap();
        assert_eq!(client.num_bytes, 65 * PAGE as u64);
        client.write(PAGE as u64, &page(3)).unwrap();
        assert_eq!(client.read(PAGE as u64, PAGE as u32).unwrap(), page(3));
        server.pause();
        client.stream.set_timeout(Some(Duration::from_millis(100)));
        let cookie = client.send(READ, 0, PAGE as u32, &[]).unwrap();
        assert!(client.reply().is_err(), "it stands still");
        server.resume();
        client.stream.set_timeout(Some(Duration::from_secs(10)));
        assert_eq!(client.reply().unwrap(), (0, cookie));
        assert_eq!(client.payload(PAGE).unwrap(), page(0));
        server.kill();
        assert!(client.read(0, 512).is_err() && server.place().connect().is_err());
        server.restart();
        let mut client = Client::connect(server.place(), "swap").unwrap();
        let content = client.read(PAGE as u64, PAGE as u32).unwrap();
        assert!(content == page(0) || is_file || content == page(3));
    }
}

#[test]
fn what_is_written_is_there_for_all_connections_and_after_a_return() {
    for away in [Away::Unbound, Away::Closing, Away::Deaf] {
        for place in [nbd_support::unix_place(), tcp_place()] {
            let server = ScriptedServer::start(place, ScriptedServer::export_of(8));
            let (mut one, mut other) = (connect(&server), connect(&server));
            one.write(0, &page(1)).unwrap();
            assert_eq!(other.read(0, PAGE as u32).unwrap(), page(1));
            server.go_away(away, None);
            assert!(one.read(0, 512).is_err() && other.read(0, 512).is_err());
            wait_until("the connections are gone", || server.num_open_connections() == 0);
            match server.place().connect() {
                Ok(mut stream) => {
                    assert_ne!(away, Away::Unbound);
                    stream.set_timeout(Some(Duration::from_millis(50)));
                    assert!(!stream.read(&mut [0; 8]).is_ok_and(|num_bytes| num_bytes > 0), "nobody greets");
                }
                Err(error) => assert_eq!(away, Away::Unbound, "{error}"),
            }
            server.come_back();
            assert_eq!(connect(&server).read(0, PAGE as u32).unwrap(), page(1));
            server.go_away(away, Some(Duration::from_millis(20)));
            wait_until("it comes back by itself", || Client::connect(server.place(), "swap").is_ok());
            server.forget();
            assert_eq!(connect(&server).read(0, PAGE as u32).unwrap(), page(0));
        }
    }
}

/// What a client gets for a read of page 1, of value 1, between pages of value 2.
fn read_with(action: Action) -> (ScriptedServer, Client, std::io::Result<Vec<u8>>) {
    let server = ScriptedServer::new(8);
    let mut client = connect(&server);
    client.write(0, &[page(2), page(1), page(2)].concat()).unwrap();
    server.add(Rule::new(action).of(nbd_support::Command::Read));
    let result = client.read(PAGE as u64, PAGE as u32);
    assert_eq!(server.num_followed(action), 1, "{action:?}");
    (server, client, result)
}

#[test]
fn each_wrong_reply() {
    let timeouts = [Action::Ignore, Action::Mute, Action::Freeze, Action::Shorter(5)];
    for action in timeouts {
        let (_server, mut client, result) = read_with(action);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{action:?}");
        // This client forgets what it has of a reply, so that the next one fits again.
        let next = client.read(PAGE as u64, PAGE as u32);
        assert_eq!(next.is_ok(), matches!(action, Action::Ignore | Action::Shorter(_)), "{action:?}");
    }
    for action in [Action::CloseBefore, Action::CloseAfter, Action::CloseWithin(0), Action::CloseWithin(7), Action::CloseWithin(100)] {
        let (server, _client, result) = read_with(action);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof, "{action:?}");
        wait_until("the connection is gone", || server.num_open_connections() == 0);
    }
    for action in [Action::UnknownCookie, Action::OldCookie, Action::WrongMagic, Action::Structured, Action::Garbage(40)] {
        assert_eq!(read_with(action).2.unwrap_err().kind(), std::io::ErrorKind::InvalidData, "{action:?}");
    }
    // These are seen in the next reply.
    for action in [Action::Twice, Action::Longer(3), Action::Longer(PAGE)] {
        let (_server, mut client, result) = read_with(action);
        assert_eq!(result.unwrap(), page(1), "{action:?}");
        assert_eq!(client.read(0, 16).unwrap_err().kind(), std::io::ErrorKind::InvalidData, "{action:?}");
    }
    assert!(read_with(Action::Mutated).2.is_err());
    assert_eq!(read_with(Action::Misdirect).2.unwrap(), page(2));
    assert_eq!(read_with(Action::Flip).2.unwrap().iter().filter(|byte| **byte != 1).count(), 1);
    assert_eq!(read_with(Action::Errno(28)).2.unwrap_err().raw_os_error(), Some(28));
    let (_server, mut client, result) = read_with(Action::ErrorWithPayload);
    assert_eq!((result.unwrap_err().raw_os_error(), client.payload(PAGE).unwrap()), (Some(5), page(1)));
    let (_server, _client, result) = read_with(Action::Delay(Duration::from_millis(5)));
    assert_eq!(result.unwrap(), page(1));
}

#[test]
fn writes_are_done_or_not_as_the_action_says() {
    let not_done = [Action::CloseBefore, Action::Errno(5), Action::Ignore, Action::Mute, Action::Freeze];
    let done = [Action::CloseAfter, Action::CloseWithin(3), Action::Twice, Action::UnknownCookie, Action::Garbage(16)];
    for (action, value) in not_done.into_iter().map(|action| (action, 0)).chain(done.into_iter().map(|action| (action, 9))) {
        let server = ScriptedServer::new(8);
        let mut client = connect(&server);
        server.add(Rule::new(action).of(nbd_support::Command::Write));
        let _ = client.write(0, &page(9));
        assert_eq!(connect(&server).read(0, PAGE as u32).unwrap(), page(value), "{action:?}");
    }
}

#[test]
fn replies_overtake_each_other_and_everything_is_done() {
    let server = ScriptedServer::new(64);
    let mut client = connect(&server);
    server.script(|script| script.hold = 16);
    let sent: Vec<u64> = (0..64).map(|slot| client.send(WRITE, slot * PAGE as u64, PAGE as u32, &page(slot as u8 + 1)).unwrap()).collect();
    let answered: Vec<u64> = sent.iter().map(|_| client.reply().unwrap().1).collect();
    let mut sorted = answered.clone();
    sorted.sort_unstable();
    assert!(sorted == sent && answered != sent, "{answered:?}");
    server.script(|script| script.behave());
    for slot in 0..64 {
        assert_eq!(client.read(slot * PAGE as u64, PAGE as u32).unwrap(), page(slot as u8 + 1));
    }
    client.request(TRIM, 0, PAGE as u32, &[]).unwrap();
    client.request(FLUSH, 0, 0, &[]).unwrap();
    assert!(client.read(0, 16).unwrap() != [1; 16], "nobody may rely on what was trimmed");
}

/// Writes of a lost connection are not done once its client has gone, for it may have sent them again; or they are, if a test wants them to.
#[test]
fn what_a_lost_connection_leaves_behind() {
    for (stragglers, expected) in [(None, 2), (Some(Duration::from_millis(50)), 1)] {
        let server = ScriptedServer::new(8);
        server.add(Rule::new(Action::Delay(Duration::from_millis(300))));
        server.script(|script| script.stragglers = stragglers);
        let mut client = connect(&server);
        client.send(WRITE, 0, PAGE as u32, &page(1)).unwrap();
        wait_until("the request is there", || server.count(nbd_support::Command::Write) == 1);
        drop(client);
        let mut client = connect(&server);
        client.write(0, &page(2)).unwrap();
        wait_until("the first connection is gone", || server.num_open_connections() == 1);
        assert_eq!(client.read(0, PAGE as u32).unwrap(), page(expected), "{stragglers:?}");
    }
}

#[test]
fn each_handshake_fault_keeps_a_strict_client_out() {
    let server = ScriptedServer::new(8);
    let mut faults: Vec<HandshakeFault> = STEPS
        .into_iter()
        .flat_map(|step| [HandshakeFault::CloseBefore(step), HandshakeFault::CloseWithin(step), HandshakeFault::GarbageFor(step)])
        .collect();
    faults.extend([
        HandshakeFault::OldStyle,
        HandshakeFault::WrongGreeting,
        HandshakeFault::WrongReplyMagic,
        HandshakeFault::WrongOption,
        HandshakeFault::HugeReply,
        HandshakeFault::UnknownReply(77),
        HandshakeFault::Refuse(nbd_support::protocol::REP_ERR_POLICY, "not for you"),
    ]);
    for fault in faults {
        server.fail_handshakes([fault.clone()]);
        let result = Client::connect(server.place(), "swap");
        assert!(result.is_err(), "{fault:?}");
        assert_eq!(server.num_handshake_faults_left(), 0);
    }
    let num_refused = (0..60).filter(|_| {
        server.fail_handshakes([HandshakeFault::Mutated]);
        Client::connect(server.place(), "swap").is_err()
    });
    assert!((10..60).contains(&num_refused.count()));
    server.fail_handshakes([HandshakeFault::UnknownInfo]);
    assert!(Client::connect(server.place(), "swap").is_ok(), "that is in order");
    assert!(Client::connect(server.place(), "other").is_err(), "there is no such export");
    assert!(Client::connect(server.place(), "swap").is_ok());
}

#[test]
fn what_clients_do_wrong_is_recorded() {
    let page_bytes = PAGE as u32;
    for (command, offset, length, part) in [
        (READ, 2049 * PAGE as u64, page_bytes, "past the end"),
        (READ, u64::MAX - 100, page_bytes, "past the end"),
        (READ, 0, 0, "asks for nothing"),
        (READ, 0, 5 << 20, "longer than"),
        (READ, 1, page_bytes, "not in blocks of 512"),
        (TRIM, 0, page_bytes, "TRIM was not offered"),
        (FLUSH, 0, 1, "FLUSH has no range"),
        (6, 0, page_bytes, "type 6"),
    ] {
        let mut export = ScriptedServer::export_of(2048);
        (export.can_trim, export.block_sizes) = (false, Some([512, 4096, 4 << 20]));
        let server = ScriptedServer::start(nbd_support::unix_place(), export);
        let mut client = connect(&server);
        assert!(client.request(command, offset, length, &[]).is_err());
        let violations = server.take_violations();
        assert!(violations.len() == 1 && violations[0].contains(part), "{part}: {violations:?}");
    }
    let server = ScriptedServer::new(8);
    let mut client = connect(&server);
    client.stream.write_all(&[7; 28]).unwrap();
    assert!(client.reply().is_err() && server.take_violations()[0].contains("begins with"));
    // Requests that overlap, or share a cookie, before the first is answered.
    server.add(Rule::new(Action::Delay(Duration::from_millis(100))).always());
    let mut client = connect(&server);
    client.send(TRIM, 0, page_bytes, &[]).unwrap();
    client.send(WRITE, 0, page_bytes, &page(1)).unwrap();
    client.next_cookie -= 1;
    client.send(READ, PAGE as u64, page_bytes, &[]).unwrap();
    wait_until("all three are there", || server.log(|log| log.requests.len()) == 3);
    let violations = server.take_violations();
    assert!(violations.len() == 2 && violations[0].contains("does not wait") && violations[1].contains("has the cookie"), "{violations:?}");
}

/// A link that is cut says nothing, and all goes on when it is mended.
#[test]
fn links_can_be_cut_and_disturbed() {
    let Some(namespace) = Namespace::new() else { return };
    let Some(nbdkit) = Nbdkit::memory(64) else { return };
    let server = nbdkit.at(namespace.place(10809)).run_by(namespace.wrapper()).start();
    let mut client = Client::connect(server.place(), "swap").unwrap();
    client.write(0, &page(1)).unwrap();
    client.stream.set_timeout(Some(Duration::from_millis(300)));
    namespace.cut();
    let cookie = client.send(READ, 0, PAGE as u32, &[]).unwrap();
    assert_eq!(client.reply().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    namespace.mend();
    client.stream.set_timeout(Some(Duration::from_secs(20)));
    assert_eq!(client.reply().unwrap(), (0, cookie));
    assert_eq!(client.payload(PAGE).unwrap(), page(1));
    for how in [Disturbance::Loss(5), Disturbance::Delay(3), Disturbance::Narrow(20)] {
        if namespace.disturb(how) {
            (0..64).for_each(|slot| client.write(slot * PAGE as u64, &page(2)).unwrap());
            assert_eq!(client.read(0, 64 * PAGE as u32).unwrap(), vec![2; 64 * PAGE], "{how:?}");
            namespace.calm();
        }
    }
}

/// The load that other tests put on servers does what they think: on a backend that cannot fail.
#[test]
fn the_load_itself() {
    let Some(_watchdog) = watchdog(60) else { return };
    let load = Load::written(format!("memory:?size={}", NUM_PAGES * PAGE));
    assert!(load.missing().len() > NUM_PAGES / 2);
    assert_eq!(load.work(500), 0);
    let num_errors = load.work_during(|| wait_until("pages come and go", || load.stat("swap_ins") > 5000));
    assert_eq!(num_errors, 0);
    load.expect_all_right();
}
