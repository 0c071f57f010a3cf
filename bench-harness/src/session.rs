//! A running, loaded server and the workloads that run on it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Error, Result, bail};

use crate::cgroup::Cgroup;
use crate::configuration::Memory;
use crate::generator::{Generator, TimedRun, WarmUp};
use crate::journal::Guard;
use crate::lab::{Cell, MemoryPlan, Transport, explain};
use crate::memory_server::MemoryServer;
use crate::outcome::{Boundary, Sample};
use crate::outside::Outside;
use crate::process::{self, Usage};
use crate::results::{Details, Run};
use crate::server::Server;
use crate::server_statistics::counted;
use crate::swap::ActiveSwap;
use crate::verify::Verified;
use crate::ycsb::{Distribution, Workload};

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub workload: Workload,
    pub distribution: Option<Distribution>,
    pub warm_up: WarmUp,
    pub duration: Duration,
    pub due_per_second: Option<f64>,
    pub probe_per_second: Option<f64>,
    pub repetition: u32,
    pub sweep: bool,
}

/// What compressed pages take, as the server says.
pub const COMPRESSED_MEMORY: &str = "compressed_memory_bytes";

/// What it holds is dropped in this order: connections first, kernel settings last.
#[derive(Debug)]
pub struct Session<'l> {
    pub generator: Generator,
    pub server: Server<'l>,
    pub cgroup: Option<Cgroup<'l>>,
    pub memory_servers: Vec<MemoryServer<'l>>,
    pub _swap: Option<ActiveSwap<'l>>,
    pub _files: Vec<Guard<'l>>,
    pub _settings: Vec<Guard<'l>>,
    pub cell: Cell,
    pub transport: Transport,
    pub plan: MemoryPlan,
    pub load_rate: Option<f64>,
    pub data_bytes: u64,
    pub server_command: String,
}

/// What can be looked at and done at a boundary of a run.
#[derive(Debug)]
pub struct Watched<'w, 'l> {
    pub boundary: Boundary,
    pub server: &'w Server<'l>,
    pub cgroup: Option<&'w Cgroup<'l>>,
    /// The server's, of its paging.
    pub statistics: &'w BTreeMap<String, String>,
    pub memory_servers: &'w mut [MemoryServer<'l>],
}

/// What a server says of its own paging; nothing where it does none.
fn paging_statistics(server: &Server<'_>, memory: Memory) -> Result<BTreeMap<String, String>> {
    match memory {
        Memory::Unlimited | Memory::KernelSwap | Memory::Extstore => Ok(BTreeMap::new()),
        Memory::Local | Memory::Ample => server.statistics("lightswap"),
    }
}

fn number(statistics: &BTreeMap<String, String>, name: &str) -> u64 {
    statistics.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl<'l> Session<'l> {
    /// The server's resident set after loading: the size of the data, when nothing limits it.
    pub fn resident_bytes(&self) -> Result<u64> {
        Ok(process::resident(self.server.pid())?.now_bytes)
    }

    pub fn evictions(&mut self) -> Result<u64> {
        let statistics = self.server.statistics("").map_err(|error| self.explain(error))?;
        Ok(number(&statistics, "evictions"))
    }

    fn explain(&mut self, error: Error) -> Error {
        explain(error, &mut self.server, self.cgroup.as_ref(), &self.cell)
    }

    /// Evictions, and the counters of whatever keeps the data beyond the limit.
    fn final_statistics(&self) -> Result<(u64, BTreeMap<String, String>)> {
        let general = self.server.statistics("")?;
        let evictions = number(&general, "evictions");
        let of_paging = match self.cell.configuration.memory {
            Memory::Unlimited | Memory::KernelSwap => BTreeMap::new(),
            Memory::Extstore => general.into_iter().filter(|(name, _)| name.starts_with("extstore") || name.contains("_extstore")).collect(),
            memory @ (Memory::Local | Memory::Ample) => paging_statistics(&self.server, memory)?,
        };
        Ok((evictions, of_paging))
    }

    /// Memory that holds swapped-out pages, beside the limit.
    fn backend_memory_bytes(&self, server_statistics: &BTreeMap<String, String>) -> Option<u64> {
        let remote_bytes: u64 = self.memory_servers.iter().map(MemoryServer::resident_bytes).sum();
        match self.plan.in_process_bytes {
            Some(bytes) => {
                let in_use = server_statistics.get(COMPRESSED_MEMORY).and_then(|text| text.parse().ok());
                Some(in_use.unwrap_or(bytes) + remote_bytes)
            }
            None if remote_bytes > 0 => Some(remote_bytes),
            None => self._swap.as_ref()?.memory_bytes(),
        }
    }

    /// Reads and checks every record.
    pub fn verify(&mut self) -> Result<Verified> {
        let label = format!("{}: verifying all records", self.cell.label());
        self.generator.verify(&label).map_err(|error| self.explain(error))
    }

    pub fn run(&mut self, timing: Timing) -> Result<Run> {
        self.run_watched(timing, &mut |_| Ok(()))
    }

    /// The same with somebody who looks on at every boundary.
    pub fn run_watched(&mut self, timing: Timing, watch: &mut dyn FnMut(Watched<'_, 'l>) -> Result<()>) -> Result<Run> {
        let pid = self.server.pid();
        let label = format!("{}: {}", self.cell.label(), timing.workload.name());
        let run = TimedRun {
            workload: timing.workload,
            distribution: timing.distribution,
            warm_up: timing.warm_up,
            duration: timing.duration,
            due_per_second: timing.due_per_second,
            probe_per_second: timing.probe_per_second,
            seed: u64::from(timing.repetition) + 1,
        };
        let mut before = Usage::default();
        let mut after = Usage::default();
        let (server, cgroup, memory_servers) = (&self.server, self.cgroup.as_ref(), &mut self.memory_servers);
        let memory = self.cell.configuration.memory;
        let (mut statistics_before, mut statistics_after) = (BTreeMap::new(), BTreeMap::new());
        let result = self.generator.run(&label, run, |boundary| {
            let usage = process::usage(pid)?;
            // The time line asks anyway: what is counted while it is measured costs no request more.
            let statistics = paging_statistics(server, memory)?;
            watch(Watched { boundary, server, cgroup, statistics: &statistics, memory_servers })?;
            let faults = usage.major_faults + number(&statistics, "swap_ins");
            match boundary {
                Boundary::Start => (before, statistics_before) = (usage, statistics),
                Boundary::Tick => {}
                Boundary::End => (after, statistics_after) = (usage, statistics),
            }
            Ok(Sample { faults, resident_bytes: process::resident(pid)?.now_bytes })
        });
        let outcome = result.map_err(|error| self.explain(error))?;
        if outcome.tally.operations == 0 {
            bail!("{label}: not one operation completed in {:.1} s; the server is stuck or the run too short", outcome.measured.as_secs_f64());
        }
        let (evictions, server_statistics) = self.final_statistics().map_err(|error| self.explain(error))?;
        let empty = self.cell.empty_run(timing.workload.name(), timing.repetition);
        let details = outcome.details(&self.cell.shape, &run);
        Ok(Run {
            operations_per_second: outcome.operations_per_second(),
            latency_us: outcome.tally.latency(),
            hit_ratio: outcome.tally.hit_ratio(),
            wrong_values: outcome.wrong_values(),
            server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            details: Details {
                sweep: timing.sweep,
                evictions,
                major_faults: after.major_faults - before.major_faults,
                statistics_while_measured: counted(&statistics_before, &statistics_after),
                settings: empty.details.settings.clone(),
                ..self.memory_details(Details { server_statistics, ..details })
            },
            ..self.with_memory(empty)?
        })
    }

    /// The same by another load generator, on records of its own that `Lab::outside_session` loaded. Nothing but its name says which workload it is.
    pub fn run_outside(&mut self, outside: &Outside, timing: Timing) -> Result<Run> {
        let (pid, memory, shape) = (self.server.pid(), self.cell.configuration.memory, self.cell.shape);
        // The warm-up is a run of its own, so that CPU time and faults are those of the measured time.
        let measured = outside.run(self.server.endpoint(), shape, timing.warm_up.most).and_then(|_| {
            let statistics_before = paging_statistics(&self.server, memory)?;
            let before = process::usage(pid)?;
            let run = outside.run(self.server.endpoint(), shape, timing.duration)?;
            let after = process::usage(pid)?;
            let counted = counted(&statistics_before, &paging_statistics(&self.server, memory)?);
            Ok((run, after.cpu_seconds - before.cpu_seconds, after.major_faults - before.major_faults, counted))
        });
        let (run, server_cpu_seconds, major_faults, statistics_while_measured) = measured.map_err(|error| self.explain(error))?;
        let (evictions, server_statistics) = self.final_statistics().map_err(|error| self.explain(error))?;
        let empty = self.cell.empty_run(&run.workload, timing.repetition);
        let details = Details {
            evictions,
            major_faults,
            warm_up_seconds: timing.warm_up.most.as_secs_f64(),
            statistics_while_measured,
            settings: empty.details.settings.clone(),
            ..self.memory_details(Details { server_statistics, ..run.details })
        };
        self.with_memory(Run {
            connections: run.connections,
            operations_per_second: run.operations_per_second,
            latency_us: run.latency_us,
            hit_ratio: run.hit_ratio,
            server_cpu_seconds,
            details,
            ..empty
        })
    }

    /// What is known of the server's memory, whoever made the load.
    fn with_memory(&self, run: Run) -> Result<Run> {
        Ok(Run {
            resident_bytes_max: process::resident(self.server.pid())?.max_bytes,
            limit_bytes: self.cgroup.as_ref().and(self.plan.limit_bytes),
            ..run
        })
    }

    fn memory_details(&self, details: Details) -> Details {
        Details {
            transport: self.transport.name().into(),
            data_bytes: self.data_bytes,
            local_memory_bytes: self.plan.local_memory_bytes,
            fixed_bytes: self.plan.fixed.map(|fixed| fixed.bytes),
            fixed_bytes_per_key: self.plan.fixed.map(|fixed| fixed.bytes_per_key),
            backend_memory_bytes: self.backend_memory_bytes(&details.server_statistics),
            load_records_per_second: self.load_rate,
            memory_limit: self.plan.limit_bytes.map(|_| if self.cgroup.is_some() { "cgroup" } else { "none" }.to_owned()),
            cgroup_peak_bytes: self.cgroup.as_ref().and_then(Cgroup::peak_bytes),
            server_command: self.server_command.clone(),
            ..details
        }
    }

    pub fn finish(self) {
        let Self { generator, server, .. } = self;
        drop(generator);
        server.stop();
    }
}
