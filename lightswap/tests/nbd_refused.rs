//! Servers and exports that cannot be used are refused at open: with one sentence, in bounded time, whatever they answer.

mod common;
mod faulty_support;
mod nbd_support;

use common::{PAGE, builder, new_path, stat, wait_until};
use lightswap::{Contract, ErrorKind};
use nbd_support::protocol::{REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_UNSUP};
use nbd_support::refused::refused;
use nbd_support::{Away, HandshakeFault, Load, Nbdkit, Place, STEPS, ScriptedServer, Step, qemu_nbd, tcp_place, unix_place, watchdog};
use std::os::fd::AsRawFd;

#[test]
fn nobody_there() {
    let Some(_watchdog) = watchdog(100) else { return };
    let Place::Unix(path) = unix_place() else { unreachable!() };
    let name = path.display().to_string();
    refused(&format!("nbd+unix:///swap?socket={name}"), ErrorKind::Backend, &[&name]);
    let port = nbd_support::programs::free_port();
    refused(&format!("nbd://127.0.0.1:{port}/swap"), ErrorKind::Backend, &["127.0.0.1", &port.to_string()]);
    refused(&format!("nbd://[::1]:{port}/swap"), ErrorKind::Backend, &[&port.to_string()]);
    refused("nbd://no-such-host.invalid/swap", ErrorKind::Backend, &["no-such-host.invalid"]);
    // A file that is no socket.
    let file = new_path("no-socket");
    std::fs::write(&file, "").unwrap();
    refused(&format!("nbd+unix:///swap?socket={}", file.display()), ErrorKind::Backend, &[&file.display().to_string()]);
    std::fs::remove_file(file).unwrap();
    // An address that does not fit.
    refused(&format!("nbd+unix:///swap?socket=/{}", "x".repeat(200)), ErrorKind::Backend, &["xxx"]);
}

#[test]
fn wrong_exports() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(64);
    refused(&server.place().url("other", ""), ErrorKind::Backend, &["other"]);
    assert!(builder(64, server.url("")).open().is_ok(), "the right name");
    let mut export = ScriptedServer::export_of(64);
    export.knows_go = false;
    let old = ScriptedServer::start(unix_place(), export);
    refused(&old.place().url("other", ""), ErrorKind::Backend, &["other"]);
    if let Some(server) = qemu_nbd(64, &[]) {
        refused(&server.place().url("other", ""), ErrorKind::Backend, &["other"]);
    }
}

#[test]
fn read_only_exports() {
    let Some(_watchdog) = watchdog(100) else { return };
    let mut export = ScriptedServer::export_of(64);
    export.read_only = true;
    refused(&ScriptedServer::start(tcp_place(), export).url(""), ErrorKind::Backend, &["read-only"]);
    if let Some(nbdkit) = Nbdkit::memory(64) {
        refused(&nbdkit.read_only().start().url(""), ErrorKind::Backend, &["read-only"]);
    }
}

#[test]
fn exports_of_the_wrong_size() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(64);
    refused(&server.url("size=264KiB"), ErrorKind::Backend, &["264 KiB", "260 KiB"]);
    refused(&server.url("size=100"), ErrorKind::Backend, &["a size of 100 B holds no page"]);
    for (options, room) in [("", 64), ("size=128KiB", 32)] {
        let swap = builder(64, server.url(options)).open().unwrap();
        // A page may be kept for the client's own mark, or not.
        assert!((room..=room + 1).contains(&(stat(&swap, "backend_bytes") as usize / PAGE)), "{options}");
        assert_eq!(swap.create_region((room + 2) * PAGE, Contract::Transparent).unwrap_err().kind(), ErrorKind::NoSpace);
        swap.create_region(room * PAGE, Contract::Transparent).unwrap();
    }
    for (num_bytes, slots) in [(0, None), (100, None), (PAGE as u64 * 3 + 77, Some(3)), (u64::MAX, None), (1 << 63, None)] {
        server.change_export(|export| export.num_bytes = num_bytes);
        match slots {
            None => refused(&server.url(""), ErrorKind::Backend, &[]),
            Some(slots) => {
                let num_bytes = stat(&builder(64, server.url("")).open().unwrap(), "backend_bytes");
                assert!(num_bytes == slots * PAGE as u64 || num_bytes == (slots - 1) * PAGE as u64, "{num_bytes}");
            }
        }
    }
}

/// One export under several names, as nbdkit's memory plugin has it: members would overwrite each other's pages.
#[test]
fn the_same_export_twice() {
    let Some(_watchdog) = watchdog(100) else { return };
    let Some(nbdkit) = Nbdkit::memory(64) else { return };
    let server = nbdkit.start();
    let others = server.url("").replace("/swap?", "/other?");
    assert_ne!(others, server.url(""));
    for how in ["stripe", "mirror", "tier"] {
        refused(&format!("{how}({},{others})", server.url("")), ErrorKind::Backend, &["uses the same export already"]);
    }
    // Nor by two instances; one after the other may.
    let swap = builder(64, server.url("")).open().unwrap();
    refused(&others, ErrorKind::Backend, &["uses the same export already"]);
    drop(swap);
    assert!(builder(64, others).open().is_ok());
}

/// An export of more than there is memory for a table of is fine: regions cost, not backends.
#[test]
fn huge_exports() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(64);
    server.change_export(|export| export.num_bytes = 1 << 50);
    match builder(64, server.url("")).open() {
        Ok(swap) => {
            let region = swap.create_region(64 * PAGE, Contract::Transparent).unwrap();
            let pages = common::pages::Pages::of(&region);
            (0..64).for_each(|page| pages.fill(page, 1));
            (0..64).for_each(|page| pages.check(page, 1));
        }
        Err(error) => assert!(error.kind() == ErrorKind::Backend && error.to_string().contains("size="), "{error}"),
    }
}

#[test]
fn exports_that_cannot_do_pages() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(64);
    for sizes in [[8192, 8192, 1 << 20], [0, 4096, 1 << 20], [1, 4096, 2048], [1000, 4096, 1 << 20], [4096, 4096, 0]] {
        server.change_export(|export| export.block_sizes = Some(sizes));
        refused(&server.url(""), ErrorKind::Backend, &["block"]);
    }
    for sizes in [Some([4096, 4096, 4096]), Some([1, 1 << 20, u32::MAX]), Some([512, 512, 1 << 20]), None] {
        server.change_export(|export| export.block_sizes = sizes);
        let load = builder(64, server.url("")).open();
        assert!(load.is_ok(), "{sizes:?}: {load:?}");
    }
}

#[test]
fn servers_that_refuse_say_why() {
    let Some(_watchdog) = watchdog(100) else { return };
    let server = ScriptedServer::new(64);
    for (error, sentence, part) in [
        (REP_ERR_TLS_REQD, "use TLS, please", "TLS"),
        (REP_ERR_POLICY, "not on Sundays", "not on Sundays"),
        (REP_ERR_UNKNOWN, "never heard of it", "never heard of it"),
        (REP_ERR_SHUTDOWN, "closing time", "closing time"),
        // The text of others: no place for line ends, nor for escapes that a terminal obeys.
        (REP_ERR_POLICY, "line one\nline two\x1b[31m\0", "line one"),
        (REP_ERR_POLICY, "", "swap"),
    ] {
        server.fail_handshakes([HandshakeFault::Refuse(error, sentence)]);
        refused(&server.url(""), ErrorKind::Backend, &[part]);
    }
    // An old server: NBD_OPT_GO is not known, and EXPORT_NAME works.
    server.fail_handshakes([HandshakeFault::Refuse(REP_ERR_UNSUP, "what?")]);
    assert!(builder(64, server.url("")).open().is_ok());
    let Some(nbdkit) = Nbdkit::memory(64) else { return };
    let directory = new_path("no-certificates");
    std::fs::create_dir(&directory).unwrap();
    // nbdkit demands TLS and has a pre-shared key for nobody.
    std::fs::write(directory.join("keys"), "nobody:00112233445566778899aabbccddeeff\n").unwrap();
    let server = nbdkit.option("--tls=require").option(&format!("--tls-psk={}", directory.join("keys").display())).start();
    refused(&server.url(""), ErrorKind::Backend, &["TLS"]);
    std::fs::remove_dir_all(directory).unwrap();
}

/// Whatever is wrong with the handshake.
fn faults() -> Vec<HandshakeFault> {
    let at_steps = STEPS.into_iter().flat_map(|step| {
        [HandshakeFault::CloseBefore(step), HandshakeFault::CloseWithin(step), HandshakeFault::GarbageFor(step), HandshakeFault::SilentWithin(step)]
    });
    let more = [
        HandshakeFault::SilentBefore(Step::Greeting),
        HandshakeFault::SilentBefore(Step::Ack),
        HandshakeFault::Drip,
        HandshakeFault::EndlessInfo,
        HandshakeFault::OldStyle,
        HandshakeFault::WrongGreeting,
        HandshakeFault::WrongReplyMagic,
        HandshakeFault::WrongOption,
        HandshakeFault::HugeReply,
        HandshakeFault::UnknownReply(77),
        HandshakeFault::UnknownReply(1 << 31 | 77),
        HandshakeFault::ShortInfo,
        HandshakeFault::NoInfo,
    ];
    at_steps.chain(more).collect()
}

#[test]
fn whatever_is_wrong_with_the_handshake() {
    let Some(_watchdog) = watchdog(300) else { return };
    for place in [unix_place(), tcp_place()] {
        let server = ScriptedServer::start(place, ScriptedServer::export_of(64));
        for fault in faults() {
            eprintln!("{fault:?}");
            server.fail_handshakes([fault.clone()]);
            refused(&server.url("timeout=1"), ErrorKind::Backend, &[]);
            assert_eq!(server.num_handshake_faults_left(), 0, "{fault:?}");
            wait_until("nothing of a failed connection is left open", || server.num_open_connections() == 0);
        }
        server.fail_handshakes([HandshakeFault::UnknownInfo]);
        assert!(builder(64, server.url("timeout=1")).open().is_ok(), "unknown information is to be ignored");
    }
}

/// Bits of the handshake are wrong, here and there: it is refused, or was in order all the same.
#[test]
fn handshakes_with_wrong_bits() {
    let Some(_watchdog) = watchdog(300) else { return };
    let server = ScriptedServer::new(64);
    let mut num_refused = 0;
    for round in 0..150 {
        server.fail_handshakes([HandshakeFault::Mutated]);
        match builder(64, server.url("timeout=1")).open() {
            Ok(_) => {}
            Err(error) => {
                let text = error.to_string();
                assert!(error.kind() == ErrorKind::Backend && !text.chars().any(char::is_control), "round {round}: {text:?}");
                num_refused += 1;
            }
        }
    }
    assert!((30..150).contains(&num_refused), "{num_refused} of 150");
    // Who was told of a larger export, say, may ask for what is not there.
    eprintln!("{:?}", server.take_violations());
}

/// Connections after the first, which workers make when they start, may meet anything, too: whether the worker is refused or does with the others' is not
/// said here, but nothing may hang and no content suffer.
#[test]
fn later_connections_that_fail() {
    let Some(_watchdog) = watchdog(300) else { return };
    for fault in [HandshakeFault::CloseBefore(Step::Greeting), HandshakeFault::GarbageFor(Step::Info), HandshakeFault::WrongGreeting] {
        let server = ScriptedServer::new(nbd_support::load::NUM_PAGES);
        let load = Load::open(server.url("timeout=1&lost-after=5"));
        server.fail_handshakes([fault.clone(), fault.clone()]);
        assert_eq!(load.work(200), 0, "{fault:?}");
        load.expect_all_right();
    }
}

#[test]
fn servers_that_do_not_answer() {
    let Some(_watchdog) = watchdog(100) else { return };
    for place in [unix_place(), tcp_place()] {
        let server = ScriptedServer::start(place, ScriptedServer::export_of(64));
        for away in [Away::Deaf, Away::Closing, Away::Unbound] {
            server.go_away(away, None);
            refused(&server.url("timeout=1"), ErrorKind::Backend, &[]);
        }
        server.come_back();
        assert!(builder(64, server.url("timeout=1")).open().is_ok());
    }
    let Some(nbdkit) = Nbdkit::memory(64) else { return };
    let server = nbdkit.start();
    server.pause();
    refused(&server.url("timeout=1"), ErrorKind::Backend, &[]);
    server.resume();
    assert!(builder(64, server.url("timeout=1")).open().is_ok());
}

/// Nobody accepts at a UNIX socket, and its queue is full: connecting waits for room there.
#[test]
fn a_queue_that_is_full() {
    let Some(_watchdog) = watchdog(100) else { return };
    let path = nbd_support::short_path("queue");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    // SAFETY: no memory is involved; one that waits is room enough.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let url = Place::Unix(path.clone()).url("", "timeout=1");
    refused(&url, ErrorKind::Backend, &["the handshake failed: no answer in time"]);
    // That one still waits there, though it is closed.
    refused(&url, ErrorKind::Backend, &["cannot connect: no answer in time"]);
    std::fs::remove_file(path).unwrap();
}

/// A server of something else altogether.
#[test]
fn other_protocols() {
    let Some(_watchdog) = watchdog(100) else { return };
    for greeting in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "220 mail.example ESMTP\r\n", "\0"] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = std::io::Write::write_all(&mut stream, greeting.as_bytes());
            });
            refused(&format!("nbd://{address}/swap?timeout=1"), ErrorKind::Backend, &["127.0.0.1"]);
        });
    }
}
