//! How a cell's memory limit is divided, and what is known of data and programs that it depends on.

use anyhow::{Context, Result};
use lightswap::format_size;

use super::{Cell, Lab, NotPossible};
use crate::budget::{Fixed, FixedOverhead, hash_power, local_memory_bytes, redis_local_memory_bytes};
use crate::configuration::{Binary, Memory, VALUE_MEMORY_PERCENT};
use crate::extstore;
use crate::generator::Shape;
use crate::results::Run;
use crate::server_kind::ServerKind;
use crate::units::MIB;

/// How the memory of a cell is divided.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryPlan {
    /// The part of the data that the cell stands for.
    pub limit_bytes: Option<u64>,
    /// Memory beside the limit, in the server's process.
    pub in_process_bytes: Option<u64>,
    pub local_memory_bytes: Option<u64>,
    pub extstore: Option<extstore::Plan>,
    /// Where it was measured.
    pub fixed: Option<Fixed>,
}

impl MemoryPlan {
    /// With what lies in the server's process beside the limit.
    pub fn process_limit_bytes(&self) -> Option<u64> {
        self.limit_bytes.map(|limit| limit + self.in_process_bytes.unwrap_or(0))
    }
}

impl Lab<'_> {
    pub fn memory_plan(&self, cell: &Cell) -> Result<MemoryPlan> {
        let configuration = &cell.configuration;
        let mut plan = MemoryPlan::default();
        if configuration.memory == Memory::Ample {
            // The region and a little more, so that nothing is ever reclaimed ahead of demand either.
            plan.local_memory_bytes = Some((cell.memory_mib() * 5 / 4 + 64) * MIB);
        }
        if !configuration.is_limited() {
            return Ok(plan);
        }
        let data = self.data_bytes(&cell.shape).context("the size of the data is not known, of which the memory limit is a part")?;
        let limit_bytes = (data as f64 * cell.ratio) as u64 / MIB * MIB;
        plan.limit_bytes = Some(limit_bytes);
        let server_threads = configuration.server_threads(&cell.settings)?;
        match configuration.memory {
            Memory::Local if configuration.server_kind == ServerKind::Redis => {
                let fixed =
                    self.fixed(&cell.shape, self.server_of(configuration)?).context("what Redis needs beside its local memory was not measured")?;
                let beside = fixed.with_margin(cell.shape.connections, cell.shape.protocol.is_indexed());
                let local = redis_local_memory_bytes(limit_bytes, beside).ok_or_else(|| {
                    NotPossible(format!(
                        "a limit of {} leaves no local memory beside the {} that keys, other metadata, buffers and the process take; use larger values or a \
                         larger --ratio",
                        format_size(limit_bytes),
                        format_size(beside)
                    ))
                })?;
                plan.local_memory_bytes = Some(local);
                plan.in_process_bytes = configuration.backend_in_process.then(|| cell.pool_bytes());
                plan.fixed = Some(fixed);
            }
            Memory::Local => {
                let overhead = FixedOverhead {
                    server_memory_mib: cell.memory_mib(),
                    records: cell.shape.records,
                    hash_power: hash_power(cell.shape.records),
                    connections: cell.shape.connections,
                    server_threads,
                    item_headers: configuration.item_headers,
                };
                let local = local_memory_bytes(limit_bytes, overhead).ok_or_else(|| {
                    NotPossible(format!(
                        "a limit of {} leaves no local memory beside the server's fixed {}, of which item headers take {}, {} connections {} and \
                         {server_threads} server threads {}; use fewer --connections or --server-threads, larger values or a larger --ratio",
                        format_size(limit_bytes),
                        format_size(overhead.bytes()),
                        format_size(overhead.headers_bytes()),
                        cell.shape.connections,
                        format_size(overhead.connections_bytes()),
                        format_size(overhead.threads_bytes()),
                    ))
                })?;
                plan.local_memory_bytes = Some(local);
                plan.in_process_bytes = configuration.backend_in_process.then(|| cell.pool_bytes());
            }
            Memory::Extstore => {
                let number = |name: &str| cell.settings.get(name).and_then(|text| text.parse::<u64>().ok());
                let threads = u64::from(server_threads) + number("ext_threads").unwrap_or(1);
                let percent = number(VALUE_MEMORY_PERCENT).with_context(|| format!("extstore needs the setting {VALUE_MEMORY_PERCENT}, a number"))?;
                let extstore = extstore::plan(limit_bytes, &cell.shape, threads, percent).map_err(|error| NotPossible(error.to_string()))?;
                plan.extstore = Some(extstore);
            }
            _ => {}
        }
        Ok(plan)
    }

    /// What other runs have measured of these records with the programs of this lab.
    pub fn take_over(&mut self, shape: Shape, runs: &[Run]) -> Result<()> {
        let is_of_them = |run: &&Run| {
            let details = &run.details;
            let same_values = details.value_size_bytes == shape.value_sizes.mean() && details.value_mix == shape.value_sizes.mix();
            (run.server.as_str(), details.records, same_values) == (shape.protocol.server(), shape.records, true)
                && (details.data_type.as_str(), details.value_kind.as_str()) == (shape.protocol.data_type().name(), shape.value_kind.name())
                && (details.is_indexed, run.connections, details.error.is_none()) == (shape.protocol.is_indexed(), shape.connections, true)
        };
        for run in runs.iter().filter(is_of_them) {
            let details = &run.details;
            if run.limit_bytes.is_some() && self.data_bytes(&shape).is_none() {
                self.set_data_bytes(shape, details.data_bytes);
            }
            if let (Some(bytes), Some(bytes_per_key)) = (details.fixed_bytes, details.fixed_bytes_per_key) {
                let program = self.program(ServerKind::Redis, Binary::Lightswap)?.to_owned();
                if self.fixed(&shape, &program).is_none() {
                    self.set_fixed(shape, program, Fixed { bytes, bytes_per_key });
                }
            }
        }
        Ok(())
    }
}
