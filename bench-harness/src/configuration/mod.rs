//! What is compared: one small TOML file a configuration, with everything that defines it.

mod built_in;
mod check;
mod scalars;
mod template;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::lab::is_root;
use crate::memory_server;
use crate::server_kind::ServerKind;
use crate::swap::SwapKind;

pub use built_in::{BUILT_IN, built_in, find, find_all};
pub use template::fill;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binary {
    Stock,
    Lightswap,
}

/// Where the data lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// All in memory, no limit.
    Unlimited,
    /// A cgroup limit, the rest in the kernel's swap.
    KernelSwap,
    /// A cgroup limit, values in memcached's own file; the kernel must not swap.
    Extstore,
    /// A cgroup limit, local memory within it, the rest in the backend; the kernel must not swap.
    Local,
    /// Local memory larger than the data.
    Ample,
}

/// Where a server keeps the headers of its items: chains, LRU links, times and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemHeaders {
    /// In memory of their own, which is never swapped: it comes off the memory limit.
    #[default]
    Memory,
    /// In the region beside the values, as versions before item headers in memory did.
    Region,
}

impl ItemHeaders {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The placeholders of memory servers.
pub const REMOTES: [&str; 4] = ["remote_1", "remote_2", "remote_3", "remote_4"];

fn all_percent() -> u64 {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_all_percent(percent: &u64) -> bool {
    *percent == all_percent()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What a sweep varies, by name. Values are text, as they end up in options.
pub type Settings = BTreeMap<String, String>;

/// The setting that every configuration has.
pub const SERVER_THREADS: &str = "server_threads";
/// The setting that the harness itself reads, see `extstore.rs`.
pub const VALUE_MEMORY_PERCENT: &str = "value_memory_percent";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    pub setting: String,
    #[serde(deserialize_with = "scalars::texts")]
    pub values: Vec<String>,
    /// For a quick look; none: the default stays.
    #[serde(deserialize_with = "scalars::texts")]
    pub quick: Vec<String>,
    /// What is best depends on how data lies on disk: tried again for values of several pages and for sequential access.
    #[serde(default)]
    pub again: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    #[serde(skip_deserializing)]
    pub name: String,
    #[serde(skip_serializing)]
    pub about: String,
    /// Which server it is of: memcached where nothing is said.
    #[serde(default, skip_serializing_if = "ServerKind::is_default")]
    pub server_kind: ServerKind,
    pub binary: Binary,
    /// A program of its own instead of the command line's, to compare two versions in one run. In the file relative to its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "ItemHeaders::is_default")]
    pub item_headers: ItemHeaders,
    pub memory: Memory,
    pub swap_device: Option<SwapKind>,
    /// As results name it.
    pub backend: String,
    /// The backend's pages lie in the server's process, beside the memory limit.
    #[serde(default)]
    pub backend_in_process: bool,
    /// So many percent of the backend's size lie there; the server keeps to that by itself.
    #[serde(default = "all_percent", skip_serializing_if = "is_all_percent")]
    pub pool_percent: u64,
    /// Memory servers that run beside it, each as large as the backend: their URLs are {remote_1}, {remote_2} and so on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_servers: usize,
    /// The server's, with {placeholders}; the harness adds where to listen.
    pub arguments: Vec<String>,
    /// Under /proc/sys while the server runs.
    #[serde(default)]
    pub kernel_settings: BTreeMap<String, String>,
    #[serde(deserialize_with = "scalars::settings")]
    pub settings: Settings,
    #[serde(default)]
    pub sweep: Vec<Sweep>,
}

impl Configuration {
    /// Whether a memory limit applies: a part of the data.
    pub fn is_limited(&self) -> bool {
        matches!(self.memory, Memory::KernelSwap | Memory::Extstore | Memory::Local)
    }

    /// Whether its pages or values go to files in the harness's directory.
    pub fn makes_files(&self) -> bool {
        match self.memory {
            Memory::Unlimited => false,
            Memory::KernelSwap => self.swap_device == Some(SwapKind::File),
            Memory::Extstore => true,
            Memory::Local | Memory::Ample => !self.backend_in_process && self.memory_servers == 0,
        }
    }

    pub fn server_threads(&self, settings: &Settings) -> Result<u32> {
        let text = settings.get(SERVER_THREADS).map_or("", String::as_str);
        match text.parse() {
            Ok(threads @ 1..=128) => Ok(threads),
            _ => bail!("{SERVER_THREADS} is {text:?} and not a number from 1 to 128"),
        }
    }

    /// The default settings with another number of threads.
    pub fn with_threads(&self, server_threads: u32) -> Settings {
        let mut settings = self.settings.clone();
        settings.insert(SERVER_THREADS.into(), server_threads.to_string());
        settings
    }

    /// What is missing on this machine, if anything. Whether there is a binary is up to the command line.
    pub fn obstacle(&self) -> Option<String> {
        if self.memory_servers > 0
            && let Some(obstacle) = memory_server::obstacle()
        {
            return Some(obstacle);
        }
        match self.memory {
            Memory::Unlimited | Memory::Ample => None,
            Memory::KernelSwap => self.swap_device.and_then(SwapKind::obstacle).or_else(cgroup::obstacle),
            // Without a limit its page cache would grow as large as the data.
            Memory::Extstore => cgroup::obstacle(),
            // Lightswap keeps to its local memory by itself.
            Memory::Local => cgroup::obstacle().filter(|_| is_root()),
        }
    }
}
