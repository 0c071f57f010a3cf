//! A network of its own for a server: a network namespace, joined to this one by a pair of virtual interfaces that can be cut, slow or lossy.

use super::programs::is_installed;
use super::stream::Place;
use crate::common::{is_root, skip};
use std::process::Command;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

/// How a link disturbs what passes through it, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Packets are lost at random: percent.
    Loss(u32),
    /// Each packet is late by so many milliseconds.
    Delay(u32),
    /// So many Mbit/s with a short queue: what does not fit into it is lost, as at a congested switch.
    Narrow(u32),
}

/// Removed when it is dropped, with all that runs in it cut off.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// The interface on this side; the one on the other side is called "there".
    interface: String,
    subnet: [u8; 3],
}

impl Namespace {
    /// `None`, with a message, where there can be none.
    pub fn new() -> Option<Self> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        if !is_root() {
            skip("network namespaces need root");
            return None;
        }
        if !is_installed("ip") || !is_installed("tc") {
            return None;
        }
        remove_left_ones();
        let pid = std::process::id();
        let count = COUNT.fetch_add(1, Relaxed);
        // Addresses from the network that is set aside for such measurements, different in each process.
        let subnet = [198, 18 + (pid >> 8 & 1) as u8, pid as u8];
        let namespace = Self { name: format!("lsw-{pid}-{count}"), interface: format!("lsw{pid}-{count}"), subnet };
        assert!(count < 60, "more namespaces than a network has addresses for");
        let result = namespace.set_up(count * 4);
        if let Err(message) = result {
            skip(&format!("no network namespace: {message}"));
            return None;
        }
        Some(namespace)
    }

    fn set_up(&self, first: u8) -> Result<(), String> {
        let Self { name, interface, .. } = self;
        let (here, there) = (self.address(first + 1), self.address(first + 2));
        run(&format!("ip netns add {name}"))?;
        run(&format!("ip link add {interface} type veth peer name there netns {name}"))?;
        run(&format!("ip addr add {here}/30 dev {interface}"))?;
        run(&format!("ip -n {name} addr add {there}/30 dev there"))?;
        run(&format!("ip link set {interface} up"))?;
        run(&format!("ip -n {name} link set there up"))?;
        run(&format!("ip -n {name} link set lo up"))
    }

    fn address(&self, last: u8) -> String {
        let [a, b, c] = self.subnet;
        format!("{a}.{b}.{c}.{last}")
    }

    /// A place for a server that runs within.
    pub fn place(&self, port: u16) -> Place {
        let count: u8 = self.name.rsplit('-').next().and_then(|count| count.parse().ok()).expect("its own name");
        Place::Tcp(format!("{}:{port}", self.address(count * 4 + 2)).parse().expect("an address"))
    }

    /// What runs a program within, in front of its name.
    pub fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(String::from).to_vec()
    }

    /// Disturbs the link until [`Self::calm`]; `false`, with a message, where the kernel cannot.
    #[must_use]
    pub fn disturb(&self, how: Disturbance) -> bool {
        let discipline = match how {
            Disturbance::Loss(percent) => format!("netem loss {percent}%"),
            Disturbance::Delay(milliseconds) => format!("netem delay {milliseconds}ms"),
            Disturbance::Narrow(rate) => format!("tbf rate {rate}mbit burst 16kb limit 32kb"),
        };
        self.calm();
        let Self { name, interface, .. } = self;
        let here = run(&format!("tc qdisc replace dev {interface} root {discipline}"));
        match here.and_then(|()| run(&format!("tc -n {name} qdisc replace dev there root {discipline}"))) {
            Ok(()) => true,
            Err(message) => {
                self.calm();
                skip(&format!("this kernel cannot make a link with {how:?}: {message}"))
            }
        }
    }

    pub fn calm(&self) {
        let Self { name, interface, .. } = self;
        // There may be nothing to remove.
        let _ = run(&format!("tc qdisc del dev {interface} root"));
        let _ = run(&format!("tc -n {name} qdisc del dev there root"));
    }

    /// Packets of what this link carried vanish, and nobody is told: as of a cable that is pulled.
    pub fn cut(&self) {
        // Of the other side: this one would tell the client that there is no way.
        run(&format!("ip -n {} link set there down", self.name)).unwrap();
    }

    pub fn mend(&self) {
        run(&format!("ip -n {} link set there up", self.name)).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The pair goes with either of them.
        let _ = run(&format!("ip link del {}", self.interface));
        let _ = run(&format!("ip netns del {}", self.name));
    }
}

/// Removes those of test programs that were ended before they could.
fn remove_left_ones() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("lsw-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

/// Runs a command whose words have no blanks in them; what it had to complain of otherwise.
fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}
