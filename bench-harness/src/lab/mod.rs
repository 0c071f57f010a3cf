//! Brings one configuration up with its data loaded. What runs on it is in `session.rs`.

mod cell;
mod dump;
mod memory;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::budget::{Fixed, hash_power};
use crate::cgroup::{self, Cgroup, KernelSwap};
use crate::configuration::{Binary, Configuration, REMOTES, fill};
use crate::endpoint::Endpoint;
use crate::environment::without_machine_paths;
use crate::extstore;
use crate::generator::{Generator, Shape};
use crate::interrupt::{self, Interrupted};
use crate::journal::{Guard, Journal, Leftover, change_setting};
use crate::memory_server::MemoryServer;
use crate::outside::Outside;
use crate::process;
use crate::server::{self, Server};
use crate::server_kind::{Programs, ServerKind};
use crate::session::Session;
use crate::swap::{SwapDevice, SwapKind};
use crate::units::MIB;

pub use cell::{Cell, NotPossible};
pub use dump::DUMP;
pub use memory::MemoryPlan;

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

/// Who loads them: keys differ.
#[derive(Debug, Clone, Copy)]
enum Records<'p> {
    /// No faster than `rate` records a second.
    Own {
        rate: Option<f64>,
    },
    Others(&'p Outside),
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
        let cgroup_bytes = plan.process_limit_bytes().filter(|_| self.limits_memory);
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
