//! Brings one configuration up with its data loaded. What runs on it is in `session.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use lightswap::format_size;

use crate::budget::{
    Fixed, FixedOverhead, backend_bytes, hash_power, local_memory_bytes, redis_backend_bytes, redis_local_memory_bytes, redis_values_mib,
    server_memory_mib,
};
use crate::cgroup::{self, Cgroup, KernelSwap};
use crate::configuration::{Binary, Configuration, Memory, REMOTES, SERVER_THREADS, Settings, VALUE_MEMORY_PERCENT, fill};
use crate::endpoint::Endpoint;
use crate::environment::without_machine_paths;
use crate::extstore;
use crate::generator::{Generator, Shape};
use crate::interrupt::{self, Interrupted};
use crate::journal::{Guard, Journal, Leftover, change_setting};
use crate::memory_server::MemoryServer;
use crate::outside::Outside;
use crate::process;
use crate::results::{Details, Run};
use crate::server::{self, Server};
use crate::server_kind::{Programs, ServerKind};
use crate::session::Session;
use crate::swap::{SwapDevice, SwapKind};
use crate::units::MIB;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Tcp,
    Unix,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

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

/// What Redis writes its dumps to, in the harness's directory.
pub const DUMP: &str = "lightswap-bench.rdb";

/// Who loads them: keys differ.
#[derive(Debug, Clone, Copy)]
enum Records<'p> {
    /// No faster than `rate` records a second.
    Own {
        rate: Option<f64>,
    },
    Others(&'p Outside),
}

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

#[derive(Debug)]
pub struct Lab<'a> {
    journal: &'a Journal,
    pub directory: PathBuf,
    pub programs: Programs,
    pub transport: Transport,
    /// Given to every server, and to patched ones only.
    pub server_arguments: Vec<String>,
    pub lightswap_arguments: Vec<String>,
    /// What the stock server needs resident for the records; memory limits are parts of it.
    data_bytes: Vec<(Shape, u64)>,
    /// What Redis with Lightswap needs beside its local memory, for each program.
    fixed: Vec<(Shape, PathBuf, Fixed)>,
    swap_devices: Vec<(SwapKind, SwapDevice<'a>, u64)>,
    limits_memory: bool,
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

impl<'a> Lab<'a> {
    /// The directory is used as it was given: what is recorded then names relative paths.
    pub fn new(journal: &'a Journal, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot use the directory {}", directory.display()))?;
        Ok(Self {
            journal,
            directory: directory.to_owned(),
            programs: Programs::default(),
            transport: Transport::Tcp,
            server_arguments: Vec::new(),
            lightswap_arguments: Vec::new(),
            data_bytes: Vec::new(),
            fixed: Vec::new(),
            swap_devices: Vec::new(),
            limits_memory: cgroup::obstacle().is_none(),
        })
    }

    pub fn journal(&self) -> &'a Journal {
        self.journal
    }

    /// Whether servers get memory limits here.
    pub fn limits_memory(&self) -> bool {
        self.limits_memory
    }

    pub fn program(&self, kind: ServerKind, binary: Binary) -> Result<&Path> {
        self.programs.find(kind, binary).with_context(|| format!("no server binary for this configuration; give {} PATH", kind.option(binary)))
    }

    /// The program of a configuration: its own, or that of the command line.
    pub fn server_of<'s>(&'s self, configuration: &'s Configuration) -> Result<&'s Path> {
        configuration.server.as_deref().map_or_else(|| self.program(configuration.server_kind, configuration.binary), Ok)
    }

    pub fn set_data_bytes(&mut self, shape: Shape, bytes: u64) {
        self.data_bytes.retain(|(known, _)| *known != shape);
        self.data_bytes.push((shape, bytes));
    }

    pub fn data_bytes(&self, shape: &Shape) -> Option<u64> {
        self.data_bytes.iter().find(|(known, _)| known == shape).map(|(_, bytes)| *bytes)
    }

    pub fn set_fixed(&mut self, shape: Shape, program: PathBuf, fixed: Fixed) {
        self.fixed.push((shape, program, fixed));
    }

    pub fn fixed(&self, shape: &Shape, program: &Path) -> Option<Fixed> {
        self.fixed.iter().find(|(known, of, _)| known == shape && of == program).map(|(.., fixed)| *fixed)
    }

    /// Looks at the program of a configuration before anything starts.
    pub fn check_program(&self, configuration: &Configuration) -> Result<String> {
        configuration.server_kind.check(self.server_of(configuration)?, configuration.binary)
    }

    /// Makes the swap device of a configuration, once for all its sessions; a larger one if it is too small.
    pub fn prepare(&mut self, configuration: &Configuration, size_bytes: u64) -> Result<()> {
        let Some(kind) = configuration.swap_device else {
            return Ok(());
        };
        if self.swap_devices.iter().any(|(known, _, size)| *known == kind && *size >= size_bytes) {
            return Ok(());
        }
        self.swap_devices.retain(|(known, ..)| *known != kind);
        self.swap_devices.push((kind, SwapDevice::create(self.journal, kind, &self.directory, size_bytes)?, size_bytes));
        Ok(())
    }

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

    fn endpoint(&self, kind: ServerKind) -> Result<Endpoint> {
        Ok(match self.transport {
            Transport::Tcp => Endpoint::Tcp(([127, 0, 0, 1], server::free_port()?).into()),
            // From the root, as Redis changes its directory.
            Transport::Unix if kind == ServerKind::Redis => Endpoint::Unix(std::path::absolute(self.directory.join("lightswap-bench.socket"))?),
            Transport::Unix => Endpoint::Unix(self.directory.join("lightswap-bench.socket")),
        })
    }

    /// Starts the server and loads the records. `prepare` comes first.
    pub fn session(&self, cell: &Cell) -> Result<Session<'_>> {
        let plan = self.memory_plan(cell)?;
        if plan.extstore.is_none() {
            return self.start(cell, plan, Records::Own { rate: None });
        }
        for attempt in 0..extstore::LOAD_ATTEMPTS {
            let rate = extstore::load_rate(&cell.shape, attempt);
            let mut session = self.start(cell, plan, Records::Own { rate: Some(rate) })?;
            match session.evictions()? {
                0 => return Ok(session),
                evictions => note!("{}: {evictions} records evicted when loaded at {rate:.0}/s; once more, slower", cell.label()),
            }
            session.finish();
        }
        let slowest = extstore::load_rate(&cell.shape, extstore::LOAD_ATTEMPTS - 1);
        bail!("{}: records are evicted even when they are loaded at {slowest:.0}/s", cell.label())
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

    /// Keeps a dump that would go with its server.
    pub fn take_dump(&self, from: &str, to: &str) -> Result<Guard<'a>> {
        let (from, to) = (self.directory.join(from), self.directory.join(to));
        let guard = scratch_file(self.journal, &to)?;
        std::fs::rename(&from, &to).with_context(|| format!("there is no dump {}", from.display()))?;
        Ok(guard)
    }

    /// A stock Redis with what is in a dump.
    pub fn start_on_dump(&self, name: &str) -> Result<(Server<'a>, Vec<Guard<'a>>)> {
        let kind = ServerKind::Redis;
        let (endpoint, directory) = (self.endpoint(kind)?, std::path::absolute(&self.directory)?);
        let log = self.directory.join("lightswap-bench.dump-log");
        let mut files = vec![scratch_file(self.journal, &log)?];
        if let Endpoint::Unix(path) = &endpoint {
            files.push(scratch_file(self.journal, path)?);
        }
        let directory = directory.to_string_lossy();
        let words = ["--save", "", "--appendonly", "no", "--dir", &directory, "--dbfilename", name];
        let arguments = [words.map(str::to_owned).to_vec(), kind.arguments(&endpoint, is_root())].concat();
        let server = Server::start(self.journal, (kind, self.program(kind, Binary::Stock)?), &arguments, endpoint, &log, None)?;
        Ok((server, files))
    }

    /// Without a limit, and with as little local memory: to see what else the server needs.
    pub fn unlimited_session(&self, cell: &Cell, local_memory_bytes: u64) -> Result<Session<'_>> {
        self.start(cell, MemoryPlan { local_memory_bytes: Some(local_memory_bytes), ..MemoryPlan::default() }, Records::Own { rate: None })
    }

    /// The same with the records of another load generator.
    pub fn outside_session(&self, cell: &Cell, outside: &Outside) -> Result<Session<'_>> {
        self.start(cell, self.memory_plan(cell)?, Records::Others(outside))
    }

    /// The server's arguments and the files that it makes.
    fn arguments(
        &self,
        cell: &Cell,
        plan: MemoryPlan,
        endpoint: &Endpoint,
        memory_servers: &[MemoryServer<'_>],
    ) -> Result<(Vec<String>, Vec<Guard<'_>>)> {
        let configuration = &cell.configuration;
        let mut values: BTreeMap<&str, String> = cell.settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        values.insert("max_connections", (cell.shape.connections + 64).max(1024).to_string());
        values.insert("memory_mib", cell.memory_mib().to_string());
        values.insert("hash_power", hash_power(cell.shape.records).to_string());
        let kind = configuration.server_kind;
        // Redis changes its directory to where it writes its dumps.
        let directory = if kind == ServerKind::Redis { std::path::absolute(&self.directory)? } else { self.directory.clone() };
        let mut files = Vec::new();
        let mut scratch = |name: &str| -> Result<String> {
            let path = directory.join(name);
            files.push(scratch_file(self.journal, &path)?);
            Ok(path.to_string_lossy().into_owned())
        };
        if kind == ServerKind::Redis {
            values.insert("directory", directory.to_string_lossy().into_owned());
            scratch(DUMP)?;
        }
        if let Endpoint::Unix(_) = endpoint {
            scratch("lightswap-bench.socket")?;
        }
        if let Some(bytes) = plan.local_memory_bytes {
            values.insert("local_memory_mib", (bytes / MIB).to_string());
            values.insert("backend_mib", (cell.backend_bytes() / MIB).to_string());
            values.insert("pool_mib", (cell.pool_bytes() / MIB).to_string());
            values.insert("backend_path", scratch("lightswap-bench.backend")?);
        }
        if let Some(extstore) = plan.extstore {
            values.insert("extstore_memory_mib", extstore.memory_mib.to_string());
            values.insert("extstore_file_mib", extstore.file_mib.to_string());
            values.insert("extstore_path", scratch("lightswap-bench.extstore")?);
        }
        values.extend(REMOTES.into_iter().zip(memory_servers.iter().map(MemoryServer::url)));
        let mut arguments = configuration.arguments.iter().map(|template| fill(template, &values)).collect::<Result<Vec<_>>>()?;
        arguments.extend(kind.arguments(endpoint, is_root()));
        if plan.local_memory_bytes.is_some() {
            arguments.extend_from_slice(&self.lightswap_arguments);
        }
        arguments.extend_from_slice(&self.server_arguments);
        Ok((arguments, files))
    }

    fn start(&self, cell: &Cell, plan: MemoryPlan, records: Records<'_>) -> Result<Session<'_>> {
        let configuration = &cell.configuration;
        let binary = self.server_of(configuration)?;
        let values: BTreeMap<&str, String> = cell.settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let mut kernel_settings = Vec::new();
        for (name, template) in &configuration.kernel_settings {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            kernel_settings.push(change_setting(self.journal, &path, &fill(template, &values)?)?);
        }
        let active_swap = match configuration.swap_device {
            None => None,
            Some(kind) => {
                let device = self.swap_devices.iter().find(|(known, ..)| *known == kind).context("the swap device was not prepared")?;
                Some(device.1.activate()?)
            }
        };
        let cgroup_bytes = plan.limit_bytes.map(|bytes| bytes + plan.in_process_bytes.unwrap_or(0)).filter(|_| self.limits_memory);
        let cgroup = cgroup_bytes
            .map(|bytes| {
                let swap = if active_swap.is_some() { KernelSwap::Allowed } else { KernelSwap::Forbidden };
                Cgroup::create(self.journal, "lightswap-bench", bytes, swap)
            })
            .transpose()?;

        // Before the server, which connects to them, and outside its cgroup: another machine's memory is not the server's.
        let memory_servers = MemoryServer::start_all(self.journal, configuration.memory_servers, cell.backend_bytes())?;
        let endpoint = self.endpoint(configuration.server_kind)?;
        let (arguments, mut files) = self.arguments(cell, plan, &endpoint, &memory_servers)?;
        let log = self.directory.join("lightswap-bench.server-log");
        files.push(scratch_file(self.journal, &log)?);
        let mut server = Server::start(self.journal, (configuration.server_kind, binary), &arguments, endpoint, &log, cgroup.as_ref())
            .with_context(|| format!("{} does not start", cell.label()))?;
        let label = format!("{}: loading", cell.label());
        let loaded = (|| {
            if plan.extstore.is_some() {
                extstore::make_room(server.endpoint(), &cell.shape)?;
            }
            let mut generator = Generator::connect(server.endpoint(), cell.shape)?;
            match records {
                Records::Own { rate } => generator.load_slowly(&label, rate)?,
                Records::Others(outside) => outside.load(server.endpoint(), cell.shape)?,
            }
            Ok(generator)
        })();
        let generator = match loaded {
            Ok(generator) => generator,
            Err(error) => return Err(explain(error, &mut server, cgroup.as_ref(), cell)),
        };
        let data_bytes = match self.data_bytes(&cell.shape) {
            Some(bytes) => bytes,
            None => process::resident(server.pid())?.now_bytes,
        };
        let words = std::iter::once(binary.to_string_lossy().into_owned()).chain(arguments);
        Ok(Session {
            generator,
            server,
            cgroup,
            memory_servers,
            _swap: active_swap,
            _files: files,
            _settings: kernel_settings,
            cell: cell.clone(),
            transport: self.transport,
            plan,
            load_rate: match records {
                Records::Own { rate } => rate,
                Records::Others(_) => None,
            },
            data_bytes,
            server_command: words.map(|word| without_machine_paths(&word)).collect::<Vec<_>>().join(" "),
        })
    }
}

/// A file that the server makes, removed with the guard. The journal may be read by a run in another directory.
fn scratch_file<'a>(journal: &'a Journal, path: &Path) -> Result<Guard<'a>> {
    let path = std::path::absolute(path).with_context(|| format!("cannot name {} from the root", path.display()))?;
    Guard::new(journal, Leftover::File { path })
}

/// Adds why the server died, if that is what is behind an error of the load generator.
pub fn explain(error: Error, server: &mut Server, cgroup: Option<&Cgroup>, cell: &Cell) -> Error {
    if error.is::<Interrupted>() {
        return error;
    }
    // Then it is no failure of the server, whatever noticed the signal first.
    if let Err(interrupted) = interrupt::check() {
        return interrupted;
    }
    // A dying process closes its connections a little before it can be waited for.
    for _ in 0..50 {
        if let Some(death) = server.death(cgroup) {
            return error.context(format!("{}: {death}", cell.label()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow!("{}: {error:#}; the server runs{}", cell.label(), server.log_tail())
}
