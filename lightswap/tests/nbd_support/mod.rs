//! NBD servers for tests: a scripted one in this process, which does whatever a test tells it, and the real ones of the system.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

pub mod certificates;
pub mod client;
pub mod connection;
pub mod events;
pub mod handshake;
pub mod load;
pub mod log;
pub mod namespace;
pub mod programs;
pub mod protocol;
pub mod refused;
pub mod script;
pub mod server;
pub mod stream;
pub mod tls_front;

pub use certificates::{Certificates, Flaw};
pub use client::Client;
pub use handshake::{Export, HandshakeFault, STEPS, Step};
pub use load::{Load, watchdog};
pub use programs::{Nbdkit, Server, is_installed, qemu_nbd};
pub use protocol::Command;
pub use script::{Action, Rule, Script};
pub use server::{Away, ScriptedServer};
pub use stream::Place;
pub use tls_front::{TlsFault, TlsFront};

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// A path for a socket or so: short, as the address of a UNIX socket must be.
pub fn short_path(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    std::env::temp_dir().join(format!("lsw-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed)))
}

pub fn unix_place() -> Place {
    Place::Unix(short_path("nbd"))
}

/// A place on the loopback interface whose port the system chooses.
pub fn tcp_place() -> Place {
    Place::Tcp(([127, 0, 0, 1], 0).into())
}

/// LIGHTSWAP_SEED, or 1. Tests print what they use.
pub fn seed() -> u64 {
    std::env::var("LIGHTSWAP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}
