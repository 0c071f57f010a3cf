//! NBD over bad networks: links that lose, delay or hold back packets, or are cut. TCP sees to most of it.
//!
//! Networks are made for the tests, where that is possible: as root a namespace for the server with a link to it, otherwise (and besides) one for the whole
//! test, whose loopback interface is disturbed.

mod common;
mod faulty_support;
mod nbd_support;

use common::{skip, wait_until};
use nbd_support::load::NUM_PAGES;
use nbd_support::namespace::{Disturbance, Namespace};
use nbd_support::{Load, Nbdkit, is_installed, watchdog};
use std::process::{Command, Stdio};

const DISTURBANCES: [Disturbance; 3] = [Disturbance::Loss(2), Disturbance::Delay(5), Disturbance::Narrow(50)];

#[test]
fn disturbed_links() {
    let Some(_watchdog) = watchdog(300) else { return };
    let Some(namespace) = Namespace::new() else { return };
    let Some(nbdkit) = Nbdkit::memory(NUM_PAGES) else { return };
    let server = nbdkit.at(namespace.place(10809)).run_by(namespace.wrapper()).start();
    for how in DISTURBANCES {
        let load = Load::written(server.url("timeout=10&lost-after=60"));
        if namespace.disturb(how) {
            assert_eq!(load.work(20), 0, "{how:?}");
            namespace.calm();
        }
        load.expect_all_right();
    }
}

/// A cable that is pulled, and put back.
#[test]
fn a_link_that_is_cut() {
    let Some(_watchdog) = watchdog(200) else { return };
    let Some(namespace) = Namespace::new() else { return };
    let Some(nbdkit) = Nbdkit::memory(NUM_PAGES) else { return };
    let server = nbdkit.at(namespace.place(10809)).run_by(namespace.wrapper()).start();
    let load = Load::written(server.url("timeout=1&lost-after=60"));
    let num_errors = load.work_during(|| {
        for _ in 0..2 {
            load.wait_until_connected();
            let (num_timeouts, num_reconnects) = (load.stat("nbd_timeouts"), load.stat("nbd_reconnects"));
            namespace.cut();
            wait_until("it is noticed", || load.stat("nbd_timeouts") > num_timeouts);
            namespace.mend();
            wait_until("it is connected again", || load.stat("nbd_reconnects") > num_reconnects);
        }
    });
    assert_eq!(num_errors, 0);
    load.expect_all_right();
}

/// Set for the process that runs within a network of its own.
const IN_NETWORK: &str = "LIGHTSWAP_IN_NETWORK";

/// What needs no root: a test that runs once more in a network namespace of its own.
#[test]
fn a_disturbed_loopback() {
    let Some(_watchdog) = watchdog(200) else { return };
    let Some(nbdkit) = Nbdkit::memory(NUM_PAGES) else { return };
    if std::env::var_os(IN_NETWORK).is_some() {
        let server = nbdkit.tcp().start();
        let load = Load::written(server.url("timeout=10&lost-after=60"));
        assert_eq!(load.work(20), 0);
        load.expect_all_right();
        return;
    }
    if !["unshare", "ip", "tc"].into_iter().all(is_installed) {
        return;
    }
    let is_disturbed = |discipline: &str| {
        let run = |program: &str, arguments: &[&str]| {
            let script = format!("ip link set lo mtu 1500 up && tc qdisc add dev lo root {discipline} && exec \"$@\"");
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--net", "sh", "-c", &script, "sh", program]).args(arguments);
            command.env(IN_NETWORK, "1").stdin(Stdio::null()).output().expect("unshare is installed")
        };
        let output = run("true", &[]);
        if !output.status.success() {
            return skip(&format!("no network with {discipline}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let program = std::env::current_exe().expect("the path of this program");
        let output = run(&program.display().to_string(), &["--exact", "a_disturbed_loopback", "--nocapture"]);
        let text = [output.stdout, output.stderr].concat();
        eprint!("{}", String::from_utf8_lossy(&text));
        assert!(output.status.success(), "with {discipline}: {}", output.status);
        true
    };
    is_disturbed("netem delay 2ms loss 1%");
    is_disturbed("tbf rate 50mbit burst 32kb limit 128kb");
}
