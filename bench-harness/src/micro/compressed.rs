//! `micro compressed`: compressed memory as a backend, beside kernel swap on zram: the same pages, random reads, as much local memory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lightswap::{Contract, FaultReturn, PAGE_SIZE};

use super::kernel_child::{Reply, Request};
use super::kernel_swap::{Client, Devices, parse_region};
use super::pages::Content;
use super::random_faults::{Access, RandomFaults};
use super::{Findings, contract_name, median, parse_ratio, parse_seconds};
use crate::interrupt;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::results::{AS_MUCH_IN_ALL, Micro};
use crate::session::COMPRESSED_MEMORY;
use crate::swap::{Stored, SwapKind};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Size of the memory that is read
    #[arg(long, default_value = "256MiB", value_parser = parse_region)]
    region: u64,
    /// The part of it that is local memory, or fits the cgroup
    #[arg(long, default_value_t = 0.25, value_parser = parse_ratio)]
    ratio: f64,
    /// What the pages hold
    #[arg(long, value_enum, default_value_t = Content::Records)]
    content: Content,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

#[derive(Debug, Clone, Copy)]
enum Pager {
    Lightswap(Contract),
    Kernel,
    /// Lightswap, transparent, with as much memory in all as the kernel had just before.
    AsMuchInAll,
}

#[derive(Debug, Default)]
struct Measured {
    faults_per_second: Vec<f64>,
    cpu_us_per_fault: Vec<f64>,
    local_memory_bytes: Vec<f64>,
    bytes_per_page: Vec<f64>,
    memory_bytes: Vec<f64>,
}

/// Of one repetition.
#[derive(Debug, Clone, Copy)]
struct Sample {
    faults_per_second: f64,
    cpu_us_per_fault: f64,
    local_memory_bytes: f64,
    num_pages: u64,
    memory_bytes: u64,
}

impl Measured {
    fn add(&mut self, sample: Sample) {
        self.faults_per_second.push(sample.faults_per_second);
        self.cpu_us_per_fault.push(sample.cpu_us_per_fault);
        self.local_memory_bytes.push(sample.local_memory_bytes);
        self.bytes_per_page.push(sample.memory_bytes as f64 / sample.num_pages.max(1) as f64);
        self.memory_bytes.push(sample.memory_bytes as f64);
    }
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    let mut findings = Findings::default();
    // Nothing goes to a directory: there is no swap file.
    let devices = Devices::of_kinds(journal, &[SwapKind::Zram], &PathBuf::new(), options.region, options.ratio, options.content, &mut findings)?;
    let mut pagers = vec![Pager::Lightswap(Contract::Transparent), Pager::Lightswap(Contract::Cooperative)];
    if !devices.devices.is_empty() {
        pagers.splice(1..1, [Pager::Kernel, Pager::AsMuchInAll]);
    }
    let mut points: Vec<(Pager, Measured)> = pagers.into_iter().map(|pager| (pager, Measured::default())).collect();
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("compressed memory", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        let seed = u64::from(repetition);
        let (mut own_bytes, mut kernel_bytes) = (0, 0);
        for (pager, measured) in &mut points {
            interrupt::check()?;
            let sample = match *pager {
                Pager::Lightswap(contract) => options.by_lightswap(contract, options.ratio, seed)?,
                Pager::Kernel => options.by_kernel(&devices, seed)?,
                Pager::AsMuchInAll => {
                    let excess = (own_bytes as f64 - kernel_bytes as f64) / options.region as f64;
                    options.by_lightswap(Contract::Transparent, options.ratio - excess, seed)?
                }
            };
            match *pager {
                Pager::Kernel => kernel_bytes = sample.memory_bytes,
                _ => own_bytes = sample.memory_bytes,
            }
            measured.add(sample);
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    for (pager, measured) in points {
        let (pager, contract) = match pager {
            Pager::Lightswap(contract) => ("lightswap", contract_name(contract)),
            Pager::Kernel => ("kernel", ""),
            Pager::AsMuchInAll => ("lightswap", AS_MUCH_IN_ALL),
        };
        findings.add(measured.faults_per_second, |faults_per_second| Micro::CompressedMemory {
            pager: pager.into(),
            contract: contract.into(),
            faults_per_second,
            cpu_us_per_fault: median(measured.cpu_us_per_fault),
            local_memory_bytes: median(measured.local_memory_bytes),
            bytes_per_page: median(measured.bytes_per_page),
            memory_bytes: median(measured.memory_bytes),
        });
    }
    Ok(findings)
}

impl Options {
    fn by_lightswap(&self, contract: Contract, ratio: f64, seed: u64) -> Result<Sample> {
        let faults = RandomFaults {
            backend: format!("memory:?size={}&compress=lz4", self.region),
            region_bytes: self.region,
            ratio,
            content: self.content,
            contract,
            access: Access::Read,
            fault_return: FaultReturn::default(),
            workers: 1,
            lwts: 1,
            duration: Duration::from_secs_f64(self.seconds),
            seed,
        };
        let measured = faults.measure()?;
        let number = |name: &str| measured.statistic(name).with_context(|| format!("the backend's statistics lack {name}"));
        Ok(Sample {
            faults_per_second: measured.faults_per_second,
            cpu_us_per_fault: measured.cpu_us_per_fault,
            local_memory_bytes: self.region as f64 * ratio,
            num_pages: number("compressed_pages")?,
            memory_bytes: number(COMPRESSED_MEMORY)?,
        })
    }

    fn by_kernel(&self, devices: &Devices<'_>, seed: u64) -> Result<Sample> {
        let request = |seconds: f64, seed: u64| Request::Read { threads: 1, seconds, seed };
        let mut client = Client::new(devices, 0, request(self.seconds / 2.0, !seed));
        let (faults_per_second, cpu_us_per_fault) = match client.ask(request(self.seconds, seed))? {
            Reply::Rate { faults_per_second, cpu_us_per_fault } => (faults_per_second, cpu_us_per_fault),
            other => bail!("the measuring process answered {other:?} to a request for a rate"),
        };
        let Stored { page_bytes, memory_bytes } = client.stored().context("zram tells nothing of its memory (mm_stat)")?;
        let local_memory_bytes = self.region as f64 * self.ratio;
        Ok(Sample { faults_per_second, cpu_us_per_fault, local_memory_bytes, num_pages: page_bytes / PAGE_SIZE as u64, memory_bytes })
    }
}
