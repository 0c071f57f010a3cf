//! One cell of a comparison: a configuration, its data, and how much memory it needs.

use std::rc::Rc;

use crate::budget::{backend_bytes, redis_backend_bytes, redis_values_mib, server_memory_mib};
use crate::configuration::{Configuration, SERVER_THREADS, Settings};
use crate::generator::Shape;
use crate::results::{Details, Run};
use crate::server_kind::ServerKind;
use crate::units::MIB;

/// One server of a comparison: what it is, and with which data.
#[derive(Debug, Clone)]
pub struct Cell {
    pub configuration: Rc<Configuration>,
    /// The memory limit as a part of the data; 1 where there is no limit.
    pub ratio: f64,
    pub settings: Settings,
    pub shape: Shape,
}

impl Cell {
    pub fn label(&self) -> String {
        let threads = self.settings.get(SERVER_THREADS).map_or("", String::as_str);
        if self.configuration.is_limited() {
            format!("{} {:.0} % -t {threads}", self.configuration.name, self.ratio * 100.0)
        } else {
            format!("{} -t {threads}", self.configuration.name)
        }
    }

    /// A run without results, to be filled or to carry an error.
    pub fn empty_run(&self, workload: &str, repetition: u32) -> Run {
        Run {
            workload: workload.into(),
            server: self.configuration.server_kind.name().into(),
            configuration: self.configuration.name.clone(),
            backend: self.configuration.backend.clone(),
            local_memory_ratio: self.ratio,
            server_threads: self.configuration.server_threads(&self.settings).unwrap_or(0),
            connections: self.shape.connections,
            repetition,
            details: Details {
                settings: self.settings.clone(),
                records: self.shape.records,
                value_size_bytes: self.shape.value_sizes.mean(),
                value_mix: self.shape.value_sizes.mix(),
                value_kind: self.shape.value_kind.name().into(),
                data_type: self.shape.protocol.data_type().name().into(),
                is_indexed: self.shape.protocol.is_indexed(),
                ..Details::default()
            },
            ..Run::default()
        }
    }

    pub fn memory_mib(&self) -> u64 {
        match self.configuration.server_kind {
            ServerKind::Memcached => server_memory_mib(self.shape.records, &self.shape.value_sizes),
            ServerKind::Redis => redis_values_mib(self.shape.records, &self.shape.value_sizes),
        }
    }

    /// Room for all pages in a swap device, a backend, or a process of its own.
    pub fn backend_bytes(&self) -> u64 {
        match self.configuration.server_kind {
            ServerKind::Memcached => backend_bytes(self.memory_mib()),
            ServerKind::Redis => redis_backend_bytes(self.memory_mib()),
        }
    }

    /// The part of it that lies in the server's process, where one does.
    pub fn pool_bytes(&self) -> u64 {
        self.backend_bytes() / MIB * self.configuration.pool_percent / 100 * MIB
    }
}

/// Why a cell makes no sense, rather than has failed: its memory limit is too small for what has to be in memory.
#[derive(Debug)]
pub struct NotPossible(pub String);

impl std::fmt::Display for NotPossible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPossible {}
