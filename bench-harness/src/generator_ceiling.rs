//! `micro generator`: how many requests a second this load generator can make, and what one costs it.
//!
//! Closed loop, one request under way on each connection, reads only, every value verified; against a server that answers without work, and a real
//! one if asked for. memtier_benchmark, when it is on PATH, does the same with the same servers, in turn with it. Both are counted in CPU time of the
//! whole process; memtier's start is in it, which is some milliseconds of seconds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::budget::server_memory_mib;
use crate::endpoint::Endpoint;
use crate::generator::{Generator, Shape, TimedRun, WarmUp};
use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover};
use crate::lab::{Transport, is_root};
use crate::memtier;
use crate::micro::{Findings, median};
use crate::outcome::{GENERATOR, Sample};
use crate::protocol::Protocol;
use crate::results::Micro;
use crate::server::{self, Server};
use crate::server_kind::ServerKind;
use crate::value_sizes::{ValueSizes, parse_value_size};
use crate::values::ValueKind;
use crate::ycsb::Workload;

#[derive(Debug, Args)]
pub struct Options {
    /// Also measure against this memcached, with one thread
    #[arg(long, value_name = "PATH")]
    memcached_stock: Option<PathBuf>,
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    client_threads: u32,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    records: u64,
    #[arg(long, value_name = "SIZE", default_value = "1000", value_parser = parse_value_size)]
    value_size: usize,
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Times that everything is measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repetitions: u32,
}

/// A generator against a server, and what each repetition gave.
#[derive(Debug, Default)]
struct Point {
    generator: &'static str,
    server: &'static str,
    requests_per_second: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Point {
    fn add(&mut self, requests_per_second: f64, requests: u64, cpu_seconds: f64) {
        self.requests_per_second.push(requests_per_second);
        self.cpu_us.push(cpu_seconds * 1e6 / requests.max(1) as f64);
    }
}

/// A running server with the connections of this generator.
struct Target<'a> {
    name: &'static str,
    generator: Generator,
    server: Server<'a>,
    _files: Vec<Guard<'a>>,
}

const NULL: &str = "null";
const MEMCACHED: &str = "memcached";

impl Options {
    fn shape(&self) -> Shape {
        Shape {
            records: self.records,
            value_sizes: ValueSizes::fixed(self.value_size),
            value_kind: ValueKind::Random,
            connections: self.connections as usize,
            client_threads: self.client_threads as usize,
            protocol: Protocol::Memcached,
        }
    }

    fn server_arguments(&self, name: &str, endpoint: &Endpoint) -> Vec<String> {
        if name == NULL {
            let (records, value_size) = (self.records.to_string(), self.value_size.to_string());
            return vec!["null-server".into(), endpoint.to_string(), "--records".into(), records, "--value-size".into(), value_size];
        }
        // Records of both generators.
        let memory_mib = server_memory_mib(2 * self.records, &ValueSizes::fixed(self.value_size));
        let connections = 2 * self.connections + 64;
        let mut arguments = format!("-U 0 -t 1 -c {connections} -m {memory_mib}").split(' ').map(str::to_owned).collect::<Vec<_>>();
        arguments.extend(match endpoint {
            Endpoint::Tcp(address) => ["-l".into(), address.ip().to_string(), "-p".into(), address.port().to_string()].to_vec(),
            Endpoint::Unix(path) => ["-s".into(), path.to_string_lossy().into_owned()].to_vec(),
        });
        if is_root() {
            arguments.extend(["-u".into(), "root".into()]);
        }
        arguments
    }

    fn start<'a>(&self, journal: &'a Journal, name: &'static str, binary: &Path) -> Result<Target<'a>> {
        let file = |end: &str| std::env::temp_dir().join(format!("lightswap-bench-{}-{name}.{end}", std::process::id()));
        let (log, socket) = (file("log"), file("socket"));
        let files = [&log, &socket].map(|path| Guard::new(journal, Leftover::File { path: path.clone() }));
        let files = files.into_iter().collect::<Result<_>>()?;
        let endpoint = match self.transport {
            Transport::Tcp => Endpoint::Tcp(([127, 0, 0, 1], server::free_port()?).into()),
            Transport::Unix => Endpoint::Unix(socket),
        };
        let arguments = self.server_arguments(name, &endpoint);
        let server = Server::start(journal, (ServerKind::Memcached, binary), &arguments, endpoint, &log, None)
            .with_context(|| format!("the {name} server does not start"))?;
        let mut generator = Generator::connect(server.endpoint(), self.shape())?;
        generator.load(&format!("{name} server: loading"))?;
        Ok(Target { name, generator, server, _files: files })
    }

    fn measure_own(&self, target: &mut Target<'_>, seed: u64, point: &mut Point) -> Result<()> {
        let run = TimedRun {
            workload: Workload::Uniform,
            distribution: None,
            warm_up: WarmUp::of_time(Duration::from_millis(300)),
            duration: Duration::from_secs(self.seconds),
            due_per_second: None,
            probe_per_second: None,
            seed,
        };
        let outcome = target.generator.run(&format!("{} server: {GENERATOR}", target.name), run, |_| Ok(Sample::default()))?;
        let tally = &outcome.tally;
        if tally.wrong_values > 0 || tally.hits < tally.reads || tally.server_errors > 0 {
            let example = tally.first_wrong_value.as_ref().or(tally.first_server_error.as_ref()).map_or("misses", String::as_str);
            bail!("the {} server gave other values than it should: {example}", target.name);
        }
        point.add(outcome.operations_per_second(), tally.operations, outcome.generator_cpu.as_secs_f64());
        Ok(())
    }

    fn measure_memtier(&self, target: &Target<'_>, program: &Path, point: &mut Point) -> Result<()> {
        let plan = memtier::Plan {
            shape: self.shape(),
            pattern: memtier::Pattern::Uniform,
            percent_writes: 0,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(self.seconds),
        };
        let run = memtier::run(program, target.server.endpoint(), &plan)?;
        if run.hit_ratio < 1.0 {
            bail!("{} found only {:.2} % of its records on the {} server", memtier::NAME, run.hit_ratio * 100.0, target.name);
        }
        note!("{} server: {}: {:.0} ops/s", target.name, memtier::NAME, run.operations_per_second);
        point.add(run.operations_per_second, run.details.operations, run.details.generator_cpu_seconds);
        Ok(())
    }
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    let mut findings = Findings::default();
    let own_binary = std::env::current_exe().context("cannot find the own program")?;
    let memtier = memtier::find();
    if memtier.is_none() {
        findings.skip(memtier::NAME, "it is not on PATH; there is nothing to compare with, only the own ceiling is measured".into());
    }
    let mut targets = vec![options.start(journal, NULL, &own_binary)?];
    if let Some(binary) = &options.memcached_stock {
        let target = options.start(journal, MEMCACHED, binary)?;
        if let Some(program) = &memtier {
            memtier::load(program, target.server.endpoint(), options.shape())?;
        }
        targets.push(target);
    }
    let mut points: Vec<[Point; 2]> = targets
        .iter()
        .map(|target| [GENERATOR, memtier::NAME].map(|generator| Point { generator, server: target.name, ..Point::default() }))
        .collect();
    for repetition in 1..=options.repetitions {
        for (target, [own, other]) in targets.iter_mut().zip(&mut points) {
            interrupt::check()?;
            options.measure_own(target, u64::from(repetition), own)?;
            if let Some(program) = &memtier {
                options.measure_memtier(target, program, other)?;
            }
        }
    }
    for target in targets {
        drop(target.generator);
        target.server.stop();
    }
    for point in points.into_iter().flatten().filter(|point| !point.cpu_us.is_empty()) {
        findings.add(point.requests_per_second, |requests_per_second| Micro::Generator {
            generator: point.generator.into(),
            server: point.server.into(),
            connections: options.connections,
            requests_per_second,
            generator_cpu_us_per_request: median(point.cpu_us),
        });
    }
    Ok(findings)
}
