//! Mirrors under load: members that fail, die, come back with their content or without, and one that returns wrong content.

mod common;
mod faulty_support;
mod nbd_support;

use common::{MODES, wait_until};
use lightswap::{Contract, ErrorKind};
use nbd_support::load::NUM_PAGES;
use nbd_support::{Away, Load, Nbdkit, ScriptedServer, unix_place, watchdog};
use std::time::Duration;

/// Room for the region of a load, and as much again.
const SIZE: &str = "4MiB";
/// What the mirror is to live with.
const OPTIONS: &str = "timeout=2&lost-after=1";

fn memory() -> String {
    format!("memory:?size={SIZE}")
}

fn file(name: &str) -> String {
    format!("file:{}?size={SIZE}", common::new_path(name).display())
}

fn two_servers() -> [ScriptedServer; 2] {
    [0, 1].map(|_| {
        let server = ScriptedServer::start(unix_place(), ScriptedServer::export_of(NUM_PAGES));
        server.log(|log| log.is_copied_from = true);
        server
    })
}

/// All members are there and have everything.
fn wait_for_sync(load: &Load) {
    wait_until("the mirror to be in sync", || {
        ["mirror_members_lost", "mirror_stale_pages", "mirror_resyncing"].into_iter().all(|name| load.stat(name) == 0)
    });
}

fn expect_no_errors(load: &Load, what: &str) {
    let errors = ["swap_in_errors", "swap_out_errors", "backend_content_losses"].map(|name| (name, load.stat(name)));
    assert!(errors.iter().all(|(_, count)| *count == 0), "{what}: {:?}", load.swap.stats());
}

#[test]
fn all_pages_are_right() {
    let Some(_watchdog) = watchdog(300) else { return };
    let late = |inner: String| format!("faulty(read%0.2=delay:2;write%0.2=delay:2):{inner}");
    let urls = [
        format!("mirror({},{})", memory(), memory()),
        format!("mirror({},{})", late(memory()), file("mirror")),
        format!("mirror({},{},{},memory:?size={SIZE}&compress=lz4)", memory(), late(memory()), file("mirror-4")),
        format!("stripe(mirror({},{}),mirror({},{}))", memory(), late(memory()), memory(), file("mirror-s")),
        format!("encrypted(mirror({},{}))", memory(), late(memory())),
        format!("mirror(encrypted({}),stripe({},{}))", memory(), memory(), file("mirror-e")),
    ];
    for url in urls {
        for (mode, contract) in MODES.into_iter().flat_map(|mode| [Contract::Transparent, Contract::Cooperative].map(|contract| (mode, contract))) {
            let load = Load::open_as(&url, mode, contract);
            assert_eq!(load.work(100), 0, "{url} {mode:?}");
            load.expect_all_right();
            assert!(load.stat("swap_ins") > 0 && load.stat("dirty_evictions") > 0, "{url} {mode:?}: {:?}", load.swap.stats());
            expect_no_errors(&load, &url);
            assert_eq!(load.stat("mirror_losses"), 0, "{url}");
        }
    }
}

/// One member has errors and wrong content of all kinds: the other has what is asked for, and gets it repaired.
#[test]
fn a_bad_member_is_read_around_and_repaired() {
    let Some(_watchdog) = watchdog(300) else { return };
    const FAULTS: &str = "read%0.05=EIO;read%0.02=flip;read%0.02=misdirect;read%0.02=short;write%0.05=EIO;write%0.05=torn;write%0.05=short";
    for bad in [memory(), file("mirror-bad"), format!("memory:?size={SIZE}&compress=lz4")] {
        for wrapped in [false, true] {
            let mirror = format!("mirror(faulty({FAULTS}):{bad},{})", memory());
            let url = if wrapped { format!("encrypted({mirror})") } else { mirror };
            let load = Load::open(&url);
            assert_eq!(load.work(300), 0, "{url}");
            load.expect_all_right();
            expect_no_errors(&load, &url);
            assert!(load.stat("mirror_failovers") > 0 && load.stat("mirror_corrupt_copies") > 0, "{url}: {:?}", load.swap.stats());
            assert!(load.stat("injected_flips") > 0 && load.stat("injected_torn_writes") > 0);
            load.swap.stop_faults();
            wait_for_sync(&load);
            assert!(load.stat("mirror_resynced_pages") > 0);
        }
    }
}

/// Both in turn: what was written while one was away is on it when the other goes.
#[test]
fn members_die_and_come_back() {
    let Some(_watchdog) = watchdog(300) else { return };
    let servers = two_servers();
    let load = Load::open(format!("mirror({},{})", servers[0].url(OPTIONS), servers[1].url(OPTIONS)));
    for round in 0..6 {
        let server = &servers[round % 2];
        let failed = load.work_during(|| {
            server.go_away([Away::Unbound, Away::Deaf][round / 2 % 2], None);
            wait_until("the loss to be noticed", || load.stat("mirror_members_lost") == 1);
        });
        assert_eq!(failed, 0, "round {round}");
        assert_eq!(load.work(100), 0, "round {round}, with one member");
        if round >= 4 {
            // Another process at the same place.
            server.forget();
        }
        assert_eq!(
            load.work_during(|| {
                server.come_back();
                wait_for_sync(&load);
            }),
            0,
            "round {round}, when it is back"
        );
        load.expect_all_right();
    }
    expect_no_errors(&load, "members that die and come back");
    assert!(load.stat("mirror_losses") >= 6 && load.stat("mirror_resynced_pages") > 0);
}

#[test]
fn a_killed_memory_server_is_replaced_by_an_empty_one() {
    let Some(_watchdog) = watchdog(300) else { return };
    let Some(servers) = (0..2).map(|_| Nbdkit::memory(NUM_PAGES).map(Nbdkit::start)).collect::<Option<Vec<_>>>() else { return };
    let mut servers = servers;
    let load = Load::open(format!("mirror({},{})", servers[0].url(OPTIONS), servers[1].url(OPTIONS)));
    assert_eq!(load.work(100), 0);
    for round in 0..4 {
        let server = &mut servers[round % 2];
        assert_eq!(
            load.work_during(|| {
                server.kill();
                wait_until("the loss to be noticed", || load.stat("mirror_members_lost") == 1);
            }),
            0,
            "round {round}"
        );
        assert_eq!(load.work(100), 0);
        assert_eq!(
            load.work_during(|| {
                server.restart();
                wait_for_sync(&load);
            }),
            0,
            "round {round}, when it is back"
        );
    }
    load.expect_all_right();
    expect_no_errors(&load, "killed servers");
    assert!(load.stat("mirror_resynced_pages") as usize > NUM_PAGES / 2, "{:?}", load.swap.stats());
}

/// Without any member there are errors, after some time; with one of them it goes on where it was.
#[test]
fn all_members_away() {
    let Some(_watchdog) = watchdog(300) else { return };
    let servers = two_servers();
    let load = Load::open(format!("mirror({},{})", servers[0].url(OPTIONS), servers[1].url(OPTIONS)));
    assert_eq!(load.work(100), 0);
    servers.iter().for_each(|server| server.go_away(Away::Unbound, None));
    wait_until("both to be missed", || load.stat("mirror_members_lost") == 2);
    assert_eq!(load.stat("backend_away"), 1);
    // A short absence of both is waited for.
    assert_eq!(
        load.work_during(|| {
            std::thread::sleep(Duration::from_millis(300));
            servers.iter().for_each(|server| server.come_back());
        }),
        0
    );
    wait_for_sync(&load);
    servers.iter().for_each(|server| server.go_away(Away::Unbound, None));
    wait_until("both to be missed", || load.stat("mirror_members_lost") == 2);
    assert!(!load.missing().is_empty());
    // The one that was there last: what was written in between it alone has.
    servers[1].come_back();
    wait_until("one to be back", || load.stat("mirror_members_lost") == 1);
    load.expect_all_right();
    assert_eq!(load.work(100), 0);
}

#[test]
fn urls_that_make_no_mirror() {
    for (url, text) in [
        ("mirror(memory:?size=1MiB)", "it takes 2 to 4 backends"),
        ("mirror(memory:?size=1MiB,mirror(memory:?size=1MiB,memory:?size=1MiB))", "a mirror cannot be inside a mirror"),
        ("mirror(memory:?size=1MiB,encrypted(mirror(memory:?size=1MiB,memory:?size=1MiB)))", "a mirror cannot be inside a mirror"),
    ] {
        let error = common::builder(64, url).open().expect_err(url);
        assert!(error.kind() == ErrorKind::BackendUrl && error.to_string().contains(text), "{error}");
    }
}
