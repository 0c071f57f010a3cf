//! Remote memory within TLS: contents, which servers are believed to be the right one, and what becomes of sessions that are spoilt or end.

mod common;
mod faulty_support;
mod nbd_support;

use common::child::in_child_with;
use common::{MODES, builder, wait_until};
use lightswap::{Contract, ErrorKind};
use nbd_support::certificates::option;
use nbd_support::load::NUM_PAGES;
use nbd_support::protocol::{REP_ERR_POLICY, REP_ERR_UNSUP};
use nbd_support::refused::refused;
use nbd_support::{
    Action, Certificates, Command, Flaw, Load, Nbdkit, Place, Rule, ScriptedServer, Server, TlsFault, TlsFront, events, qemu_nbd, unix_place,
    watchdog,
};
use std::path::Path;
use std::time::Duration;

/// A request without an answer is given up after a second; a server that is away for twenty is lost.
const OPTIONS: &str = "timeout=1&lost-after=20";

fn nbdkit(directory: &Path, tls: &str) -> Option<Nbdkit> {
    Some(Nbdkit::memory(NUM_PAGES)?.option(&format!("--tls={tls}")).option(&format!("--tls-certificates={}", directory.display())))
}

fn qemu_nbd_with(directory: &Path, verify_peer: bool) -> Option<Server> {
    let verify_peer = if verify_peer { "yes" } else { "no" };
    let object = format!("--object=tls-creds-x509,id=tls0,endpoint=server,verify-peer={verify_peer},dir={}", directory.display());
    qemu_nbd(NUM_PAGES, &[&object, "--tls-creds=tls0"])
}

/// Nothing went wrong, as far as the client tells.
fn expect_no_trouble(load: &Load) {
    for name in ["nbd_reconnects", "nbd_protocol_errors", "nbd_timeouts", "swap_in_errors", "swap_out_errors"] {
        assert_eq!(load.stat(name), 0, "{name}");
    }
    assert!(load.stat("swap_ins") > 0 && load.stat("dirty_evictions") > 0 && load.stat("nbd_requests") > 0);
}

fn round_trip(url: &str) {
    for (mode, contract) in MODES.into_iter().flat_map(|mode| [Contract::Transparent, Contract::Cooperative].map(|contract| (mode, contract))) {
        let load = Load::open_as(url, mode, contract);
        assert_eq!(load.work(200), 0, "{url} {mode:?} {contract:?}");
        load.expect_all_right();
        expect_no_trouble(&load);
    }
}

#[test]
fn nbdkit_that_requires_tls() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let Some(nbdkit) = nbdkit(&certificates.of_server(), "require") else { return };
    round_trip(&nbdkit.clone().start().secure_url(&certificates.option()));
    // By its address.
    round_trip(&nbdkit.tcp().start().secure_url(&certificates.option()));
}

#[test]
fn nbdkit_that_allows_tls() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let Some(nbdkit) = nbdkit(&certificates.of_server(), "on") else { return };
    let server = nbdkit.start();
    let load = Load::open(server.secure_url(&certificates.option()));
    assert_eq!(load.work(200), 0);
    load.expect_all_right();
    expect_no_trouble(&load);
    // Two at a time would use the same export.
    drop(load);
    assert!(builder(64, server.url("")).open().is_ok());
}

#[test]
fn qemu_nbd_with_tls() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let Some(server) = qemu_nbd_with(&certificates.of_server(), false) else { return };
    round_trip(&server.secure_url(&certificates.option()));
}

/// All that is made of backends can be made of these; and servers that allow but one connection have all workers share it.
#[test]
fn within_others() {
    let Some(_watchdog) = watchdog(200) else { return };
    let certificates = Certificates::new();
    let mut export = ScriptedServer::export_of(NUM_PAGES);
    let servers = [true, false].map(|multi_conn| {
        export.multi_conn = multi_conn;
        ScriptedServer::start(unix_place(), export.clone())
    });
    let fronts = servers.each_ref().map(|server| TlsFront::start(server.place(), &certificates));
    let [a, b] = fronts.each_ref().map(|front| front.url(&certificates.option()));
    let fast = "memory:?size=2MiB&compress=lz4&limit=128KiB";
    for url in [
        b.clone(),
        format!("mirror({a},{b})"),
        format!("stripe({a},{b})"),
        format!("encrypted({a})"),
        format!("encrypted(mirror({a},{b}))"),
        format!("tier({fast},{b})"),
    ] {
        let load = Load::open(&url);
        assert_eq!(load.work(200), 0, "{url}");
        load.expect_all_right();
        expect_no_trouble(&load);
    }
}

/// What is spoken within TLS is no concern of TLS.
#[test]
fn requests_and_their_errors() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let server = ScriptedServer::new(NUM_PAGES);
    server.log(|log| log.strict = true);
    server.spare_mark(true);
    let front = TlsFront::start(server.place(), &certificates);
    server.script(|script| script.hold = 16);
    let load = Load::written(front.url(&certificates.option()));
    assert_eq!(load.work(200), 0);
    server.add(Rule::new(Action::Errno(5)).of(Command::Read));
    assert_eq!(load.work(200), 0);
    wait_until("a read has failed, and was tried again", || load.stat("swap_in_retries") > 0);
    load.expect_all_right();
    assert_eq!((load.stat("nbd_reconnects"), load.stat("nbd_protocol_errors")), (0, 0));
    load.pages().discard(0, NUM_PAGES);
    wait_until("what was discarded is trimmed", || server.count(Command::Trim) > 0);
    // The end is said twice: to the server, and in TLS.
    let num_connections = server.num_connections();
    drop(load);
    wait_until("all sessions have ended as they should", || front.num_ended_well() == num_connections);
    // The front may have passed on the last of it only just now.
    wait_until("the server was told of all ends", || server.count(Command::Disconnect) == num_connections);
}

#[test]
fn bits_and_pieces() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let server = ScriptedServer::new(NUM_PAGES);
    let front = TlsFront::start(server.place(), &certificates);
    let load = Load::open(front.url(&format!("timeout=60&{}", certificates.option())));
    for piece in [1, 7, 1000, 4200] {
        front.set_piece(piece);
        assert_eq!(load.work(if piece == 1 { 20 } else { 100 }), 0);
    }
    load.expect_all_right();
    expect_no_trouble(&load);
}

#[test]
fn certificates_that_prove_nothing() {
    let Some(_watchdog) = watchdog(100) else { return };
    events::collect();
    let others = Certificates::new();
    for (flaw, parts) in [
        (Flaw::Expired, &["has expired"][..]),
        (Flaw::NotYetValid, &["not valid yet"]),
        (Flaw::OtherName, &["not for localhost", "memory-1.example", "tls-hostname"]),
        (Flaw::NoAlternativeName, &["not for localhost", "no such name"]),
        (Flaw::OtherPurpose, &["cannot be accepted"]),
        (Flaw::Nothing, &[]),
    ] {
        let certificates = Certificates::with(flaw);
        let Some(nbdkit) = nbdkit(&certificates.of_server(), "require") else { return };
        let server = nbdkit.start();
        let right = certificates.option();
        match flaw {
            Flaw::Nothing => {
                assert!(builder(64, server.secure_url(&right)).open().is_ok());
                refused(
                    &server.secure_url(&format!("{right}&tls-hostname=memory-1.example")),
                    ErrorKind::Backend,
                    &["not for memory-1.example", "localhost"],
                );
                refused(&server.secure_url(&format!("{right}&tls-hostname=10.0.0.5")), ErrorKind::Backend, &["not for 10.0.0.5", "127.0.0.1"]);
            }
            _ => refused(&server.secure_url(&right), ErrorKind::Backend, parts),
        }
        if flaw == Flaw::Nothing {
            refused(&server.secure_url(&others.option()), ErrorKind::Backend, &["right CA", &others.of_authority().display().to_string()]);
            // The system's do not know it, either.
            refused(&server.secure_url(""), ErrorKind::Backend, &["CA", "tls-certificates=DIR"]);
        }
        if flaw == Flaw::OtherName {
            assert!(builder(64, server.secure_url(&format!("{right}&tls-hostname=memory-1.example"))).open().is_ok());
        }
        // Who wants anybody gets anybody, and is told so.
        let Place::Unix(path) = server.place() else { unreachable!("as it was started") };
        let warnings = || events::warnings_with(&[&path.display().to_string(), "tls-verify-peer=0", "not verified"]).len();
        assert_eq!(warnings(), 0);
        assert!(builder(64, server.secure_url("tls-verify-peer=0")).open().is_ok(), "{flaw:?}");
        assert_eq!(warnings(), 1);
    }
}

/// Without a directory it is the system that says which CAs are trusted.
#[test]
fn the_systems_certificates() {
    let certificates = Certificates::new();
    let authority = certificates.of_authority().join("ca-cert.pem");
    let ended = in_child_with(
        "the_systems_certificates",
        |command| command.env("SSL_CERT_FILE", authority).env("LIGHTSWAP_TEST_CERTIFICATES", certificates.of_server()),
        || {
            let Some(_watchdog) = watchdog(60) else { return };
            let directory = std::env::var("LIGHTSWAP_TEST_CERTIFICATES").unwrap();
            let Some(nbdkit) = nbdkit(Path::new(&directory), "require") else { return };
            let server = nbdkit.tcp().start();
            assert!(builder(64, server.secure_url("")).open().is_ok());
            refused(&server.secure_url("tls-hostname=other.example"), ErrorKind::Backend, &["not for other.example"]);
        },
    );
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn servers_that_want_to_know_their_client() {
    let Some(_watchdog) = watchdog(100) else { return };
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let directory = certificates.of_server();
    let servers = [nbdkit(&directory, "require").map(|nbdkit| nbdkit.option("--tls-verify-peer").start()), qemu_nbd_with(&directory, true)];
    // A certificate from another CA than the server's, and the server's CA.
    let mixed = nbd_support::short_path("mixed");
    std::fs::create_dir(&mixed).unwrap();
    for (directory, name) in
        [(certificates.of_client(), "ca-cert.pem"), (others.of_client(), "client-cert.pem"), (others.of_client(), "client-key.pem")]
    {
        std::fs::copy(directory.join(name), mixed.join(name)).unwrap();
    }
    for server in servers.into_iter().flatten() {
        let load = Load::open(server.secure_url(&option(&certificates.of_client())));
        assert_eq!(load.work(200), 0);
        load.expect_all_right();
        expect_no_trouble(&load);
        refused(&server.secure_url(&certificates.option()), ErrorKind::Backend, &["certificate", "client", "tls-certificates=DIR"]);
        refused(&server.secure_url(&option(&mixed)), ErrorKind::Backend, &["the server"]);
    }
    std::fs::remove_dir_all(mixed).unwrap();
}

#[test]
fn directories_without_what_is_needed() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let server = ScriptedServer::new(64);
    let front = TlsFront::start(server.place(), &certificates);
    refused(&front.url("tls-certificates=/nonexistent"), ErrorKind::Backend, &["/nonexistent/ca-cert.pem"]);
    let directory = certificates.of_client();
    let url = front.url(&option(&directory));
    assert!(builder(64, &url).open().is_ok(), "a certificate that nobody asks for");
    let spoil = |name: &str, content: Option<&str>, parts: &[&str]| {
        let path = directory.join(name);
        let before = std::fs::read(&path).unwrap();
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        refused(&url, ErrorKind::Backend, parts);
        std::fs::write(&path, before).unwrap();
    };
    spoil("ca-cert.pem", Some("nothing\n"), &["ca-cert.pem", "no certificate"]);
    spoil("ca-cert.pem", Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), &["ca-cert.pem", "cannot be used"]);
    spoil("client-key.pem", None, &["client-key.pem", "missing"]);
    spoil("client-cert.pem", None, &["client-cert.pem", "missing"]);
    spoil("client-key.pem", Some("nothing"), &["client-key.pem", "private key"]);
    // A key that is not that of the certificate.
    let other = std::fs::read_to_string(Certificates::new().of_client().join("client-key.pem")).unwrap();
    spoil("client-key.pem", Some(&other), &["client-key.pem", "cannot be used"]);
    assert!(builder(64, &url).open().is_ok());
}

#[test]
fn one_side_only() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let options = certificates.option();
    for server in
        [nbdkit(&certificates.of_server(), "require").map(Nbdkit::start), qemu_nbd_with(&certificates.of_server(), false)].into_iter().flatten()
    {
        refused(&server.url(""), ErrorKind::Backend, &["requires TLS", "nbds:"]);
    }
    for server in [Nbdkit::memory(64).map(Nbdkit::start), qemu_nbd(64, &[])].into_iter().flatten() {
        refused(&server.secure_url(&options), ErrorKind::Backend, &["does not do TLS", "nbd:"]);
    }
    let server = ScriptedServer::new(64);
    refused(&server.place().secure_url("swap", &options), ErrorKind::Backend, &["does not do TLS"]);
    server.take_violations();
    // As to an export, there are no differences.
    let front = TlsFront::start(server.place(), &certificates);
    refused(&front.place().secure_url("other", &options), ErrorKind::Backend, &["no export \"other\""]);
    server.change_export(|export| export.knows_go = false);
    assert!(builder(64, front.url(&options)).open().is_ok());
    refused(&front.place().secure_url("other", &options), ErrorKind::Backend, &["other"]);
    server.change_export(|export| export.read_only = true);
    refused(&front.url(&options), ErrorKind::Backend, &["read-only"]);
}

/// Nothing that came in plain is believed, whatever the server does instead of TLS.
#[test]
fn handshakes_that_are_spoilt() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let server = ScriptedServer::new(64);
    let front = TlsFront::start(server.place(), &certificates);
    let url = front.url(&format!("timeout=1&{}", certificates.option()));
    for (fault, parts) in [
        (TlsFault::Refuse(REP_ERR_POLICY), &["does not do TLS", "not today"][..]),
        (TlsFault::Refuse(REP_ERR_UNSUP), &["does not do TLS"]),
        (TlsFault::Refuse(77), &["makes no sense"]),
        (TlsFault::PlainBehind, &["TLS handshake failed"]),
        (TlsFault::PlainInstead, &["TLS handshake failed"]),
        (TlsFault::CloseInstead, &["TLS handshake failed", "closed"]),
        (TlsFault::SilentInstead, &["TLS handshake failed", "no answer in time"]),
        (TlsFault::GarbageInstead, &["TLS handshake failed"]),
    ] {
        let num_done = front.num_done();
        front.add(fault);
        refused(&url, ErrorKind::Backend, parts);
        assert_eq!(front.num_done(), num_done + 1, "{fault:?}");
    }
    assert!(builder(64, url).open().is_ok());
}

/// Everything that can be done to the records of a session: the connection is dropped with one line in the log, another one is made, and no page is wrong.
#[test]
fn sessions_that_are_spoilt() {
    let Some(_watchdog) = watchdog(300) else { return };
    events::collect();
    let certificates = Certificates::new();
    let changed = "cannot be decrypted";
    for multi_conn in [true, false] {
        let mut export = ScriptedServer::export_of(NUM_PAGES);
        export.multi_conn = multi_conn;
        let server = ScriptedServer::start(unix_place(), export);
        let front = TlsFront::start(server.place(), &certificates);
        let load = Load::written(front.url(&format!("{OPTIONS}&{}", certificates.option())));
        let Place::Unix(path) = front.place() else { unreachable!("as it was bound") };
        let lines = || events::warnings_with(&[&path.display().to_string(), "the connection is dropped"]);
        let count = |names: &str| names.split('+').map(|name| load.stat(name)).sum::<u64>();
        for (fault, counter, text) in [
            (TlsFault::FlipBit, "nbd_protocol_errors", changed),
            (TlsFault::Twice, "nbd_protocol_errors", changed),
            // Nothing may follow that shows it.
            (TlsFault::Lost, "nbd_protocol_errors+nbd_timeouts", ""),
            // What is sent may meet the end earlier than what is received.
            (TlsFault::CutWithin, "nbd_reconnects", ""),
            (TlsFault::CutBehind, "nbd_reconnects", ""),
            (TlsFault::CloseNotify, "nbd_reconnects", ""),
            (TlsFault::Garbage, "nbd_protocol_errors", "broke the rules of TLS"),
            (TlsFault::Plain, "nbd_protocol_errors", "is no record"),
            (TlsFault::PlainRecord, "nbd_protocol_errors", ""),
            (TlsFault::PlainAlert, "nbd_protocol_errors", "is not encrypted"),
            (TlsFault::TooLong, "nbd_protocol_errors", "longer than allowed"),
        ] {
            let num_errors = load.work_during(|| {
                load.wait_until_connected();
                let (before, num_reconnects, num_done, num_lines) = (count(counter), load.stat("nbd_reconnects"), front.num_done(), lines().len());
                front.add(fault);
                wait_until(&format!("{fault:?} happens"), || front.num_done() > num_done);
                wait_until(&format!("{counter} shows {fault:?}"), || count(counter) > before);
                wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
                let new = lines().split_off(num_lines);
                assert!(new.len() == 1 && new[0].contains(text) && !new[0].contains('\n'), "{fault:?}: {new:?}");
            });
            assert_eq!(num_errors, 0, "{fault:?}: {:?}", load.swap.stats());
        }
        load.expect_all_right();
        assert_eq!(load.stat("swap_in_errors"), 0);
    }
}

#[test]
fn keys_that_change() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let server = ScriptedServer::new(NUM_PAGES);
    let front = TlsFront::start(server.place(), &certificates);
    let load = Load::written(front.url(&certificates.option()));
    let num_errors = load.work_during(|| {
        for num_done in 1..=50 {
            front.add(TlsFault::KeyUpdate);
            wait_until("the server has changed its key", || front.num_done() == num_done);
        }
    });
    assert_eq!(num_errors, 0);
    load.expect_all_right();
    expect_no_trouble(&load);
}

/// kill -9, again and again, while everybody is at work: each connection is a new session.
#[test]
fn servers_that_are_killed_and_come_back() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let Some(mut server) = qemu_nbd_with(&certificates.of_server(), false) else { return };
    let load = Load::written(server.secure_url(&format!("{OPTIONS}&{}", certificates.option())));
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

/// One that stands still is noticed, and one that comes back with another certificate is none, until ours are changed, too.
#[test]
fn servers_that_stand_still_or_come_back_as_another() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let Some(mut server) = qemu_nbd_with(&certificates.of_server(), false) else { return };
    let ours = nbd_support::short_path("ours");
    std::fs::create_dir(&ours).unwrap();
    let copy_authority = || _ = std::fs::copy(certificates.of_authority().join("ca-cert.pem"), ours.join("ca-cert.pem")).unwrap();
    copy_authority();
    let load = Load::written(server.secure_url(&format!("{OPTIONS}&{}", option(&ours))));
    let num_errors = load.work_during(|| {
        load.wait_until_connected();
        let (num_timeouts, num_reconnects) = (load.stat("nbd_timeouts"), load.stat("nbd_reconnects"));
        server.pause();
        wait_until("that is noticed", || load.stat("nbd_timeouts") > num_timeouts);
        server.resume();
        wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
        load.wait_until_connected();
        server.kill();
        certificates.renew(Flaw::Nothing);
        server.restart();
        let num_reconnects = load.stat("nbd_reconnects");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(load.stat("nbd_reconnects"), num_reconnects, "nobody knows its CA");
        copy_authority();
        wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
    });
    assert_eq!(num_errors, 0);
    load.expect_all_right();
    std::fs::remove_dir_all(ours).unwrap();
}

/// In a mirror nothing is lost with a member, and it has everything again some time after it is back, empty.
#[test]
fn mirrors_that_lose_a_member() {
    let Some(_watchdog) = watchdog(100) else { return };
    let certificates = Certificates::new();
    let Some(nbdkit) = nbdkit(&certificates.of_server(), "require") else { return };
    let mut servers = [nbdkit.clone().start(), nbdkit.at(unix_place()).start()];
    let [a, b] = servers.each_ref().map(|server| server.secure_url(&format!("timeout=1&{}", certificates.option())));
    let load = Load::written(format!("mirror({a},{b})"));
    for lost in [0, 1] {
        let num_errors = load.work_during(|| {
            let num_losses = load.stat("mirror_losses");
            servers[lost].kill();
            wait_until("it is missed", || load.stat("mirror_losses") > num_losses);
            servers[lost].restart();
            wait_until("the mirror is in sync", || {
                ["mirror_members_lost", "mirror_stale_pages", "mirror_resyncing"].into_iter().all(|name| load.stat(name) == 0)
            });
        });
        assert_eq!(num_errors, 0, "{:?}", load.swap.stats());
    }
    load.expect_all_right();
}
