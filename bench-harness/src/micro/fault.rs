//! `micro fault`: faults per second and CPU a fault, everything included: notification, policy, hashing, I/O, mapping, eviction.
//!
//! LWTs read uniformly random pages of a region whose local memory is a fraction of it. With the file backend, fio reads the same file at the same depth
//! in turn with it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use lightswap::{Contract, FaultReturn};

use super::disk_file::{DiskFile, has_fio};
use super::pages::Content;
use super::random_faults::{Access, RandomFaults};
use super::{Findings, contract_name, median, parse_ratio, parse_seconds};
use crate::interrupt;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::results::Micro;
use crate::units::parse_size;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    Memory,
    File,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where swapped-out pages live
    #[arg(long, value_enum, default_value_t = Backend::Memory)]
    backend: Backend,
    /// Directory of the swap file (file backend)
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Size of the region
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    region: u64,
    /// Local memory as a fraction of the region
    #[arg(long, default_value_t = 0.25, value_parser = parse_ratio)]
    ratio: f64,
    /// Numbers of workers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2], value_parser = clap::value_parser!(u32).range(1..=1024))]
    workers: Vec<u32>,
    /// Numbers of LWTs a worker [default: 1 for memory, 1,32,128 for file]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lwts: Option<Vec<u32>>,
    /// Measure faults whose handlers go back by rt_sigreturn, too ("fault-sigreturn")
    #[arg(long)]
    sigreturn: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

/// A point of the benchmark and what was measured there.
#[derive(Debug)]
struct Point {
    kind: Kind,
    workers: u32,
    lwts: u32,
    faults_per_second: Vec<f64>,
    cpu_us_per_fault: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lightswap { contract: Contract, path: Path },
    Fio,
}

/// From an access to its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Fault(FaultReturn),
    Touch,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::Fault(FaultReturn::User) => "fault",
            Self::Fault(FaultReturn::Kernel) => "fault-sigreturn",
            Self::Touch => "touch",
        }
    }
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    let mut findings = Findings::default();
    let file = match options.backend {
        Backend::Memory => None,
        Backend::File => Some(DiskFile::create(journal, &options.directory, options.region)?),
    };
    let with_fio = file.is_some() && has_fio();
    if file.is_some() && !with_fio {
        findings.skip("fio", "it is not installed (apt-get install fio)".into());
    }
    let mut points = points(options, file.is_some(), with_fio);
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("faults", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        for point in &mut points {
            interrupt::check()?;
            let (rate, cpu_us) = match point.kind {
                Kind::Fio => (file.as_ref().context("fio needs the file")?.read_by_fio(point.workers, point.lwts, options.seconds)?, 0.0),
                Kind::Lightswap { contract, path } => {
                    let backend = file.as_ref().map_or_else(|| format!("memory:?size={}", options.region), DiskFile::url);
                    let (access, fault_return) = match path {
                        Path::Fault(fault_return) => (Access::Read, fault_return),
                        Path::Touch => (Access::Touch, FaultReturn::default()),
                    };
                    let faults = RandomFaults {
                        backend,
                        region_bytes: options.region,
                        ratio: options.ratio,
                        content: Content::HalfNoise,
                        contract,
                        access,
                        fault_return,
                        workers: point.workers,
                        lwts: point.lwts,
                        duration: Duration::from_secs_f64(options.seconds),
                        seed: u64::from(repetition),
                    };
                    let measured = faults.measure()?;
                    (measured.faults_per_second, measured.cpu_us_per_fault)
                }
            };
            point.faults_per_second.push(rate);
            point.cpu_us_per_fault.push(cpu_us);
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    let backend = if file.is_some() { "file" } else { "memory" };
    for point in points {
        point.record(backend, &mut findings);
    }
    Ok(findings)
}

fn points(options: &Options, on_disk: bool, with_fio: bool) -> Vec<Point> {
    let lwts = options.lwts.clone().unwrap_or_else(|| if on_disk { vec![1, 32, 128] } else { vec![1] });
    let mut paths = vec![Path::Fault(FaultReturn::User), Path::Touch];
    if options.sigreturn {
        paths.insert(1, Path::Fault(FaultReturn::Kernel));
    }
    let of_path = |path| [Contract::Cooperative, Contract::Transparent].map(|contract| Kind::Lightswap { contract, path });
    let mut kinds: Vec<Kind> = paths.into_iter().flat_map(of_path).collect();
    if with_fio {
        kinds.push(Kind::Fio);
    }
    let mut points = Vec::new();
    for &workers in &options.workers {
        for &lwts in &lwts {
            points.extend(kinds.iter().map(|&kind| Point { kind, workers, lwts, faults_per_second: Vec::new(), cpu_us_per_fault: Vec::new() }));
        }
    }
    points
}

impl Point {
    fn record(self, backend: &str, findings: &mut Findings) {
        let (workers, lwts) = (self.workers, self.lwts);
        match self.kind {
            Kind::Fio => findings.add(self.faults_per_second, |reads_per_second| Micro::DiskRead {
                tool: "fio".into(),
                jobs: workers,
                depth: lwts,
                reads_per_second,
            }),
            Kind::Lightswap { contract, path } => findings.add(self.faults_per_second, |faults_per_second| Micro::Fault {
                backend: backend.into(),
                contract: contract_name(contract).into(),
                path: path.name().into(),
                workers,
                lwts,
                faults_per_second,
                cpu_us_per_fault: median(self.cpu_us_per_fault),
            }),
        }
    }
}
