//! Brings one configuration up with its data loaded, runs workloads on it, takes it down.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};

use crate::budget::{FixedOverhead, backend_bytes, hash_power, local_memory_bytes, server_memory_mib};
use crate::cgroup::{Cgroup, KernelSwap};
use crate::configurations::{Binary, Configuration, Memory, lightswap_arguments};
use crate::endpoint::Endpoint;
use crate::generator::{Generator, Shape, TimedRun, WarmUp};
use crate::interrupt::Interrupted;
use crate::journal::{Guard, Journal, Leftover, change_setting};
use crate::outcome::{Boundary, Sample};
use crate::process::{self, Usage};
use crate::results::{Details, Run};
use crate::server::{self, Server};
use crate::swap::{ActiveSwap, SwapDevice, SwapKind};
use crate::units::MIB;
use crate::ycsb::{Distribution, Workload};
use lightswap::format_size;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Tcp,
    Unix,
}

#[derive(Debug)]
pub struct Lab<'a> {
    journal: &'a Journal,
    pub directory: PathBuf,
    pub stock: Option<PathBuf>,
    pub lightswap: Option<PathBuf>,
    pub shape: Shape,
    pub transport: Transport,
    /// Given to every server, and to patched ones only.
    pub server_arguments: Vec<String>,
    pub lightswap_arguments: Vec<String>,
    /// What stock memcached needs resident for the records; memory limits are parts of it.
    pub data_bytes: Option<u64>,
    swap_file: Option<SwapDevice<'a>>,
}

/// One cell of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub configuration: &'static Configuration,
    pub ratio: f64,
    pub server_threads: u32,
}

impl Cell {
    pub fn label(&self) -> String {
        if self.configuration.is_limited() {
            format!("{} {:.0} % -t {}", self.configuration.name, self.ratio * 100.0, self.server_threads)
        } else {
            format!("{} -t {}", self.configuration.name, self.server_threads)
        }
    }

    /// A run without results, to be filled or to carry an error.
    pub fn empty_run(&self, workload: Workload, repetition: u32) -> Run {
        Run {
            workload: workload.name().into(),
            server: "memcached".into(),
            configuration: self.configuration.name.into(),
            backend: self.configuration.backend.into(),
            local_memory_ratio: self.ratio,
            server_threads: self.server_threads,
            repetition,
            ..Run::default()
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub workload: Workload,
    pub distribution: Option<Distribution>,
    pub warm_up: WarmUp,
    pub duration: Duration,
    pub due_per_second: Option<f64>,
    pub repetition: u32,
    pub sweep: bool,
}

/// A running, loaded server. What it holds is dropped in this order: connections first, kernel settings last.
#[derive(Debug)]
pub struct Session<'l> {
    generator: Generator,
    server: Server<'l>,
    cgroup: Option<Cgroup<'l>>,
    _swap: Option<ActiveSwap<'l>>,
    _files: Vec<Guard<'l>>,
    _settings: Vec<Guard<'l>>,
    cell: Cell,
    shape: Shape,
    transport: Transport,
    limit_bytes: Option<u64>,
    local_memory_bytes: Option<u64>,
    server_command: String,
    data_bytes: u64,
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

impl<'a> Lab<'a> {
    pub fn new(journal: &'a Journal, directory: &Path, shape: Shape) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .and_then(|()| directory.canonicalize())
            .with_context(|| format!("cannot use the directory {}", directory.display()))
            .map(|directory| Self {
                journal,
                directory,
                stock: None,
                lightswap: None,
                shape,
                transport: Transport::Tcp,
                server_arguments: Vec::new(),
                lightswap_arguments: Vec::new(),
                data_bytes: None,
                swap_file: None,
            })
    }

    pub fn binary(&self, binary: Binary) -> Result<&Path> {
        let (path, option) = match binary {
            Binary::Stock => (&self.stock, "--memcached-stock"),
            Binary::Lightswap => (&self.lightswap, "--memcached-lightswap"),
        };
        path.as_deref().with_context(|| format!("no server binary for this configuration; give {option} PATH"))
    }

    fn memory_mib(&self) -> u64 {
        server_memory_mib(self.shape.records, &self.shape.value_sizes)
    }

    pub fn limit_bytes(&self, cell: &Cell) -> Result<Option<u64>> {
        if !cell.configuration.is_limited() {
            return Ok(None);
        }
        let data = self.data_bytes.context("the size of the data is not known, of which the memory limit is a part")?;
        Ok(Some((data as f64 * cell.ratio) as u64 / MIB * MIB))
    }

    /// Makes the swap file, once for all kernel-swap sessions.
    pub fn prepare(&mut self, configuration: &Configuration) -> Result<()> {
        if configuration.memory == Memory::KernelSwap && !is_root() {
            bail!("kernel-swap takes root: it makes a cgroup, a swap file and changes kernel settings");
        }
        if configuration.memory == Memory::KernelSwap && self.swap_file.is_none() {
            let size_bytes = backend_bytes(self.memory_mib());
            self.swap_file = Some(SwapDevice::create(self.journal, SwapKind::File, &self.directory, size_bytes)?);
        }
        Ok(())
    }

    fn endpoint(&self) -> Result<Endpoint> {
        Ok(match self.transport {
            Transport::Tcp => Endpoint::Tcp(([127, 0, 0, 1], server::free_port()?).into()),
            Transport::Unix => Endpoint::Unix(self.directory.join("lightswap-bench.socket")),
        })
    }

    fn local_memory_bytes(&self, cell: &Cell, limit_bytes: Option<u64>) -> Result<Option<u64>> {
        match (cell.configuration.memory, limit_bytes) {
            (Memory::Local, Some(limit_bytes)) => {
                let overhead = FixedOverhead {
                    server_memory_mib: self.memory_mib(),
                    hash_power: hash_power(self.shape.records),
                    connections: self.shape.connections,
                    server_threads: cell.server_threads,
                };
                let local = local_memory_bytes(limit_bytes, overhead).with_context(|| {
                    format!(
                        "a limit of {} leaves no local memory beside the server's fixed {}; use more records or a larger ratio",
                        format_size(limit_bytes),
                        format_size(overhead.bytes())
                    )
                })?;
                Ok(Some(local))
            }
            // The region and a little more, so that nothing is ever reclaimed ahead of demand either.
            (Memory::Ample, _) => Ok(Some((self.memory_mib() * 5 / 4 + 64) * MIB)),
            _ => Ok(None),
        }
    }

    /// Starts the server and loads the records. `prepare` comes first.
    pub fn session(&self, cell: Cell) -> Result<Session<'_>> {
        let configuration = cell.configuration;
        let binary = self.binary(configuration.binary)?;
        let limit_bytes = self.limit_bytes(&cell)?.filter(|_| is_root());
        let local_memory_bytes = self.local_memory_bytes(&cell, self.limit_bytes(&cell)?)?;

        let mut settings = Vec::new();
        let mut active_swap = None;
        if configuration.memory == Memory::KernelSwap {
            // Read-ahead of neighbours in the swap file is wasted on random accesses.
            settings.push(change_setting(self.journal, "/proc/sys/vm/page-cluster", "0")?);
            settings.push(change_setting(self.journal, "/proc/sys/vm/swappiness", "100")?);
            let swap_file = self.swap_file.as_ref().context("the swap file was not prepared")?;
            active_swap = Some(swap_file.activate()?);
        }
        let cgroup = limit_bytes
            .map(|limit_bytes| {
                let swap = match configuration.memory {
                    Memory::KernelSwap => KernelSwap::Allowed,
                    _ => KernelSwap::Forbidden,
                };
                Cgroup::create(self.journal, "lightswap-bench", limit_bytes, swap)
            })
            .transpose()?;

        let endpoint = self.endpoint()?;
        let mut files = Vec::new();
        let mut scratch_file = |name: &str| -> Result<PathBuf> {
            let path = self.directory.join(name);
            files.push(Guard::new(self.journal, Leftover::File { path: path.clone() })?);
            Ok(path)
        };
        if let Endpoint::Unix(_) = &endpoint {
            scratch_file("lightswap-bench.socket")?;
        }
        let log = scratch_file("lightswap-bench.server-log")?;
        let mut arguments = configuration.common_arguments(&self.shape, cell.server_threads, &endpoint);
        if is_root() {
            arguments.extend(["-u".into(), "root".into()]);
        }
        if let Some(local_memory_bytes) = local_memory_bytes {
            let backend = scratch_file("lightswap-bench.backend")?;
            arguments.extend(lightswap_arguments(local_memory_bytes, &backend.to_string_lossy(), self.memory_mib()));
            arguments.extend_from_slice(&self.lightswap_arguments);
        }
        arguments.extend_from_slice(&self.server_arguments);

        let mut server = Server::start(self.journal, binary, &arguments, endpoint, &log, cgroup.as_ref())
            .with_context(|| format!("{} does not start", cell.label()))?;
        let label = format!("{}: loading", cell.label());
        let loaded = Generator::connect(server.endpoint(), self.shape).and_then(|mut generator| generator.load(&label).map(|()| generator));
        let generator = match loaded {
            Ok(generator) => generator,
            Err(error) => return Err(explain(error, &mut server, cgroup.as_ref(), &cell)),
        };
        let data_bytes = process::resident(server.pid())?.now_bytes;
        Ok(Session {
            generator,
            cell,
            shape: self.shape,
            transport: self.transport,
            limit_bytes,
            local_memory_bytes,
            server_command: format!("{} {}", binary.display(), arguments.join(" ")),
            data_bytes: self.data_bytes.unwrap_or(data_bytes),
            server,
            cgroup,
            _swap: active_swap,
            _files: files,
            _settings: settings,
        })
    }
}

/// Adds why the server died, if that is what is behind an error of the load generator.
fn explain(error: Error, server: &mut Server, cgroup: Option<&Cgroup>, cell: &Cell) -> Error {
    if error.is::<Interrupted>() {
        return error;
    }
    // A dying process closes its connections a little before it can be waited for.
    for _ in 0..50 {
        if let Some(death) = server.death(cgroup) {
            return error.context(format!("{}: {death}", cell.label()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    error.context(format!("{}: the server runs, but its client failed", cell.label()))
}

/// Page faults that the server handled itself.
fn swap_ins(server: &Server<'_>, binary: Binary) -> Result<u64> {
    match binary {
        Binary::Stock => Ok(0),
        Binary::Lightswap => Ok(server.statistics("lightswap")?.get("swap_ins").and_then(|text| text.parse().ok()).unwrap_or(0)),
    }
}

impl Session<'_> {
    /// The server's resident set after loading: the size of the data, when nothing limits it.
    pub fn resident_bytes(&self) -> Result<u64> {
        Ok(process::resident(self.server.pid())?.now_bytes)
    }

    pub fn run(&mut self, timing: Timing) -> Result<Run> {
        let pid = self.server.pid();
        let label = format!("{}: {}", self.cell.label(), timing.workload.name());
        let run = TimedRun {
            workload: timing.workload,
            distribution: timing.distribution,
            warm_up: timing.warm_up,
            duration: timing.duration,
            due_per_second: timing.due_per_second,
            seed: u64::from(timing.repetition) + 1,
        };
        let mut before = Usage::default();
        let mut after = Usage::default();
        let (server, binary) = (&self.server, self.cell.configuration.binary);
        let result = self.generator.run(&label, run, |boundary| {
            let usage = process::usage(pid)?;
            match boundary {
                Boundary::Start => before = usage,
                Boundary::Tick => {}
                Boundary::End => after = usage,
            }
            Ok(Sample { faults: usage.major_faults + swap_ins(server, binary)?, resident_bytes: process::resident(pid)?.now_bytes })
        });
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                return Err(explain(error, &mut self.server, self.cgroup.as_ref(), &self.cell));
            }
        };
        if outcome.tally.operations == 0 {
            bail!("{label}: not one operation completed in {:.1} s; the server is stuck or the run too short", outcome.measured.as_secs_f64());
        }
        let statistics = self.server.statistics("")?;
        let evictions = statistics.get("evictions").and_then(|text| text.parse().ok()).unwrap_or(0);
        let server_statistics = match self.cell.configuration.binary {
            Binary::Stock => Default::default(),
            Binary::Lightswap => self.server.statistics("lightswap")?,
        };
        let operations_per_second = outcome.operations_per_second();
        let details = outcome.details(&self.shape, &run);
        let tally = outcome.tally;
        Ok(Run {
            connections: self.shape.connections,
            operations_per_second,
            latency_us: tally.latency(),
            hit_ratio: tally.hit_ratio(),
            wrong_values: tally.wrong_values,
            resident_bytes_max: process::resident(pid)?.max_bytes,
            limit_bytes: self.limit_bytes,
            server_cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            details: Details {
                sweep: timing.sweep,
                error: None,
                transport: match self.transport {
                    Transport::Tcp => "tcp".into(),
                    Transport::Unix => "unix".into(),
                },
                data_bytes: self.data_bytes,
                evictions,
                major_faults: after.major_faults - before.major_faults,
                local_memory_bytes: self.local_memory_bytes,
                cgroup_peak_bytes: self.cgroup.as_ref().and_then(Cgroup::peak_bytes),
                server_command: self.server_command.clone(),
                server_statistics,
                ..details
            },
            ..self.cell.empty_run(timing.workload, timing.repetition)
        })
    }

    pub fn finish(self) {
        let Self { generator, server, .. } = self;
        drop(generator);
        server.stop();
    }
}
