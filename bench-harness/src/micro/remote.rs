//! `micro remote`: random reads of 4 KiB from memory servers, by Lightswap's backend alone, by fio's nbd engine, and by faults of LWTs through the whole pager.
//!
//! All read the same servers, in turn, over a UNIX socket and over TCP on the loopback, each with one connection.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lightswap::{Contract, FaultReturn, PAGE_SIZE, raw_backend::RawBackend};
use serde_json::Value;

use super::pages::Content;
use super::random_faults::{Access, RandomFaults};
use super::{Findings, contract_name, median, parse_ratio, parse_seconds};
use crate::interrupt;
use crate::journal::Journal;
use crate::lab::Transport;
use crate::memory_server::{self, MemoryServer};
use crate::progress::Progress;
use crate::results::Micro;
use crate::units::{MIB, parse_size};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Size of what is read
    #[arg(long, default_value = "256MiB", value_parser = parse_region)]
    region: u64,
    /// Numbers of reads under way at a time; of LWTs, where the whole pager is measured
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 128], value_parser = clap::value_parser!(u32).range(1..=4096))]
    depths: Vec<u32>,
    /// How the memory servers are talked to
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Transport::Unix, Transport::Tcp])]
    transports: Vec<Transport>,
    /// Local memory as a fraction of the region, where the whole pager is measured
    #[arg(long, default_value_t = 0.05, value_parser = parse_ratio)]
    ratio: f64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

/// Below, most of it would be local memory.
fn parse_region(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size >= 16 * MIB => Ok(size / PAGE_SIZE as u64 * PAGE_SIZE as u64),
        _ => Err("at least 16MiB".into()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The backend by itself.
    Backend,
    Fio,
    /// Touches of LWTs of one worker, on a cooperative region.
    Pager,
}

#[derive(Debug)]
struct Point {
    reader: Reader,
    /// Position in the options.
    transport: usize,
    depth: u32,
    reads_per_second: Vec<f64>,
    cpu_us: Vec<f64>,
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    if let Some(obstacle) = memory_server::obstacle() {
        bail!("this needs memory servers: {obstacle}");
    }
    let mut findings = Findings::default();
    let mut readers = vec![Reader::Backend, Reader::Fio, Reader::Pager];
    if !has_fio_nbd() {
        findings.skip("fio", "it is not installed, or without its nbd engine (apt-get install fio)".into());
        readers.retain(|reader| *reader != Reader::Fio);
    }
    let servers: Vec<MemoryServer<'_>> = (1..)
        .zip(&options.transports)
        .map(|(number, &transport)| MemoryServer::start(journal, number, options.region + MIB, transport))
        .collect::<Result<_>>()?;
    let mut points = Vec::new();
    for transport in 0..servers.len() {
        for &depth in &options.depths {
            let point = |&reader: &Reader| Point { reader, transport, depth, reads_per_second: Vec::new(), cpu_us: Vec::new() };
            points.extend(readers.iter().map(point));
        }
    }
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("reads from memory servers", total);
    for repetition in 0..options.repetitions {
        for (index, point) in points.iter_mut().enumerate() {
            interrupt::check()?;
            let (rate, cpu_us) = options.measure(point, &servers[point.transport], u64::from(repetition))?;
            point.reads_per_second.push(rate);
            point.cpu_us.push(cpu_us);
            progress.update(u64::from(repetition) * (total / u64::from(options.repetitions)) + index as u64 + 1, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    for point in points {
        let transport = options.transports[point.transport].name();
        point.record(transport, &mut findings);
    }
    Ok(findings)
}

impl Options {
    /// Reads a second, and CPU of a fault where there are faults.
    fn measure(&self, point: &Point, server: &MemoryServer<'_>, repetition: u64) -> Result<(f64, f64)> {
        let duration = Duration::from_secs_f64(self.seconds);
        match point.reader {
            Reader::Backend => Ok((read_raw(&server.url(), point.depth, self.region, duration, repetition + 1)?, 0.0)),
            Reader::Fio => Ok((read_by_fio(&server.url(), point.depth, self.region, duration)?, 0.0)),
            Reader::Pager => {
                let faults = RandomFaults {
                    backend: server.url(),
                    region_bytes: self.region,
                    ratio: self.ratio,
                    content: Content::HalfNoise,
                    contract: Contract::Cooperative,
                    access: Access::Touch,
                    fault_return: FaultReturn::default(),
                    workers: 1,
                    lwts: point.depth,
                    duration,
                    seed: repetition,
                };
                let measured = faults.measure()?;
                Ok((measured.faults_per_second, measured.cpu_us_per_fault))
            }
        }
    }
}

/// By the backend without any paging; every page is checked.
fn read_raw(url: &str, depth: u32, num_bytes: u64, duration: Duration, seed: u64) -> Result<f64> {
    let mut backend = RawBackend::open(url, depth as usize)?;
    let reads = backend.random_reads(usize::try_from(num_bytes)? / PAGE_SIZE, duration, seed)?;
    if reads.num_failed > 0 || reads.num_wrong > 0 {
        bail!("of {} reads from {url}, {} failed and {} brought another content", reads.num_reads, reads.num_failed, reads.num_wrong);
    }
    Ok(reads.num_reads as f64 / reads.elapsed.as_secs_f64())
}

/// One job has one connection.
fn read_by_fio(url: &str, depth: u32, num_bytes: u64, duration: Duration) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=read", "--rw=randread", "--bs=4k", "--ioengine=nbd", "--norandommap", "--randrepeat=0", "--numjobs=1"])
        .args(["--time_based", "--group_reporting", "--output-format=json"])
        .arg(format!("--uri={url}"))
        .arg(format!("--size={num_bytes}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={}ms", duration.as_millis()))
        .stdin(Stdio::null())
        .output()
        .context("cannot run fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok());
    json.as_ref()
        .and_then(|json| json["jobs"][0]["read"]["iops"].as_f64())
        .filter(|_| output.status.success())
        .with_context(|| format!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn has_fio_nbd() -> bool {
    let found = Command::new("fio").arg("--enghelp=nbd").stdin(Stdio::null()).stderr(Stdio::null()).output();
    found.is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains("uri"))
}

impl Point {
    fn record(self, transport: &str, findings: &mut Findings) {
        let depth = self.depth;
        let by_tool = |tool: &str, reads_per_second: f64| Micro::RemoteRead {
            tool: tool.into(),
            transport: transport.into(),
            connections: 1,
            depth,
            reads_per_second,
        };
        match self.reader {
            Reader::Backend => findings.add(self.reads_per_second, |rate| by_tool("lightswap", rate)),
            Reader::Fio => findings.add(self.reads_per_second, |rate| by_tool("fio", rate)),
            Reader::Pager => findings.add(self.reads_per_second, |faults_per_second| Micro::Fault {
                backend: format!("nbd-{transport}"),
                contract: contract_name(Contract::Cooperative).into(),
                path: "touch".into(),
                workers: 1,
                lwts: depth,
                faults_per_second,
                cpu_us_per_fault: median(self.cpu_us),
            }),
        }
    }
}
