//! What is compared, as data.

use clap::ValueEnum;

use crate::budget::{backend_bytes, hash_power, server_memory_mib};
use crate::endpoint::Endpoint;
use crate::generator::Shape;
use crate::units::MIB;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Stock,
    Lightswap,
}

/// Where the data lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// All in memory, no limit.
    Unlimited,
    /// A cgroup limit, the rest in the kernel's swap.
    KernelSwap,
    /// A cgroup limit, local memory within it, the rest in the backend; the kernel must not swap.
    Local,
    /// Local memory larger than the data: what does Lightswap cost when it is not needed?
    Ample,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Stock memcached, all in memory
    Dram,
    /// Stock memcached in a cgroup, swap file on the same disk
    KernelSwap,
    /// Patched memcached in a cgroup of the same limit
    Lightswap,
    /// Patched memcached with local memory larger than the data
    LightswapDram,
}

#[derive(Debug)]
pub struct Configuration {
    pub name: &'static str,
    pub binary: Binary,
    pub memory: Memory,
    /// As results name it.
    pub backend: &'static str,
    pub default_threads: u32,
    /// Numbers of server threads to try before comparing; the best one counts.
    pub threads_swept: &'static [u32],
    /// The same for a quick look.
    pub threads_swept_quick: &'static [u32],
    /// memcached's own options beyond those that all share.
    pub options: &'static str,
}

/// Background threads that walk over cold items are off for everybody, as they page in what nobody asked for. Without its
/// maintainer the LRU is flat, which suits kernel swap too: it then has fewer major faults an operation.
const QUIET: &str = "no_lru_maintainer,no_lru_crawler,no_slab_reassign,no_slab_automove";

pub const DRAM: Configuration = Configuration {
    name: "dram",
    binary: Binary::Stock,
    memory: Memory::Unlimited,
    backend: "none",
    default_threads: 2,
    threads_swept: &[],
    threads_swept_quick: &[],
    options: QUIET,
};

pub const KERNEL_SWAP: Configuration = Configuration {
    name: "kernel-swap",
    binary: Binary::Stock,
    memory: Memory::KernelSwap,
    backend: "swap-file",
    default_threads: 8,
    threads_swept: &[2, 4, 8, 16],
    threads_swept_quick: &[4, 8],
    options: QUIET,
};

pub const LIGHTSWAP: Configuration = Configuration {
    name: "lightswap",
    binary: Binary::Lightswap,
    memory: Memory::Local,
    backend: "file",
    default_threads: 2,
    threads_swept: &[1, 2],
    threads_swept_quick: &[],
    options: QUIET,
};

pub const LIGHTSWAP_DRAM: Configuration = Configuration {
    name: "lightswap-dram",
    binary: Binary::Lightswap,
    memory: Memory::Ample,
    backend: "file",
    default_threads: 2,
    threads_swept: &[],
    threads_swept_quick: &[],
    options: QUIET,
};

impl Name {
    pub fn configuration(self) -> &'static Configuration {
        match self {
            Self::Dram => &DRAM,
            Self::KernelSwap => &KERNEL_SWAP,
            Self::Lightswap => &LIGHTSWAP,
            Self::LightswapDram => &LIGHTSWAP_DRAM,
        }
    }
}

impl Configuration {
    pub fn is_limited(&self) -> bool {
        matches!(self.memory, Memory::KernelSwap | Memory::Local)
    }

    /// memcached's arguments that all configurations share, for these records.
    pub fn common_arguments(&self, shape: &Shape, server_threads: u32, endpoint: &Endpoint) -> Vec<String> {
        let memory_mib = server_memory_mib(shape.records, &shape.value_sizes);
        let mut arguments = vec![
            "-U".into(),
            "0".into(),
            "-c".into(),
            (shape.connections + 64).max(1024).to_string(),
            "-m".into(),
            memory_mib.to_string(),
            "-t".into(),
            server_threads.to_string(),
            "-o".into(),
            format!("hashpower={},no_hashexpand,{}", hash_power(shape.records), self.options),
        ];
        match endpoint {
            Endpoint::Tcp(address) => arguments.extend(["-l".into(), address.ip().to_string(), "-p".into(), address.port().to_string()]),
            Endpoint::Unix(path) => {
                arguments.extend(["-s".into(), path.to_string_lossy().into_owned()]);
            }
        }
        arguments
    }
}

/// The options of the patched server.
pub fn lightswap_arguments(local_memory_bytes: u64, backend_path: &str, memory_mib: u64) -> [String; 2] {
    [
        format!("--lightswap-memory={}MiB", local_memory_bytes / MIB),
        format!("--lightswap-backend=file:{backend_path}?size={}MiB", backend_bytes(memory_mib) / MIB),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value_sizes::ValueSizes;

    #[test]
    fn all_configurations_share_their_arguments() {
        let shape = Shape { records: 1_000, value_sizes: ValueSizes::fixed(1_000), connections: 64, client_threads: 1 };
        let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
        let expected = DRAM.common_arguments(&shape, 2, &endpoint);
        for name in Name::value_variants() {
            let arguments = name.configuration().common_arguments(&shape, 2, &endpoint);
            assert_eq!(arguments, expected);
        }
        let options = lightswap_arguments(64 * MIB, "/d/f", 100);
        assert_eq!(options[0], "--lightswap-memory=64MiB");
        assert_eq!(options[1], "--lightswap-backend=file:/d/f?size=228MiB");
    }
}
