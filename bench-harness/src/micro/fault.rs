//! `micro fault`: faults per second and CPU a fault, everything included: notification, policy, hashing, I/O, mapping, eviction.
//!
//! LWTs read uniformly random pages of a region whose local memory is a fraction of it. With the file backend, fio reads the same file at the same depth
//! in turn with it.

use super::{Filled, Pages, cpu_seconds, median};
use crate::interrupt;
use crate::progress::Progress;
use crate::random::Random;
use crate::results::Micro;
use crate::units::parse_size;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lightswap::{Contract, Lightswap, PAGE_SIZE};
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

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
    #[arg(long, default_value_t = 0.25)]
    ratio: f64,
    /// Numbers of workers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    workers: Vec<u32>,
    /// Numbers of LWTs a worker [default: 1 for memory, 1,32,128 for file]
    #[arg(long, value_delimiter = ',')]
    lwts: Option<Vec<u32>>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 5)]
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
    Lightswap { contract: Contract, touches: bool },
    Fio,
}

pub fn run(options: &Options) -> Result<Vec<Micro>> {
    if !(0.01..=1.0).contains(&options.ratio) || options.seconds <= 0.0 || options.repetitions == 0 {
        bail!("--ratio takes 0.01 to 1, --seconds and --repetitions more than 0");
    }
    let file = match options.backend {
        Backend::Memory => None,
        Backend::File => Some(SwapFile::new(&options.directory, options.region)?),
    };
    let mut points = points(options, file.is_some());
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("faults", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        for point in &mut points {
            interrupt::check()?;
            let (rate, cpu_us) = match point.kind {
                Kind::Fio => (file.as_ref().context("fio needs the file")?.read_by_fio(point, options.seconds)?, 0.0),
                Kind::Lightswap { contract, touches } => {
                    let backend = file.as_ref().map_or_else(|| format!("memory:?size={}", options.region), SwapFile::url);
                    measure(options, backend, contract, touches, point, u64::from(repetition))?
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
    Ok(points.into_iter().map(|point| point.record(backend)).collect())
}

fn points(options: &Options, with_fio: bool) -> Vec<Point> {
    let lwts = options.lwts.clone().unwrap_or_else(|| if with_fio { vec![1, 32, 128] } else { vec![1] });
    let mut kinds: Vec<Kind> = [false, true]
        .into_iter()
        .flat_map(|touches| [Contract::Cooperative, Contract::Transparent].map(|contract| Kind::Lightswap { contract, touches }))
        .collect();
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
    fn record(self, backend: &str) -> Micro {
        let faults_per_second = median(self.faults_per_second);
        match self.kind {
            Kind::Fio => Micro::DiskRead { tool: "fio".into(), jobs: self.workers, depth: self.lwts, reads_per_second: faults_per_second },
            Kind::Lightswap { contract, touches } => Micro::Fault {
                backend: backend.into(),
                contract: if contract == Contract::Transparent { "transparent" } else { "cooperative" }.into(),
                path: if touches { "touch" } else { "fault" }.into(),
                workers: self.workers,
                lwts: self.lwts,
                faults_per_second,
                cpu_us_per_fault: median(self.cpu_us_per_fault),
            },
        }
    }
}

/// `(faults per second, CPU us a fault)` of one measurement.
fn measure(options: &Options, backend: String, contract: Contract, touches: bool, point: &Point, seed: u64) -> Result<(f64, f64)> {
    let page = PAGE_SIZE as u64;
    let local_bytes = (options.region as f64 * options.ratio) as u64 / page * page;
    let swap = Lightswap::builder().local_memory(local_bytes).backend(backend).max_workers(point.workers as usize).open()?;
    let filled = Filled::new(swap, usize::try_from(options.region)?, contract)?;
    let pages = Pages::of(&filled.region);
    let start = Arc::new(Barrier::new(point.workers as usize + 1));
    let duration = Duration::from_secs_f64(options.seconds);
    let (faults_before, mut elapsed, mut cpu) = (filled.statistic("swap_ins")?, Duration::ZERO, 0.0);
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..point.workers)
            .map(|number| {
                let (swap, start, lwts) = (filled.swap.clone(), Arc::clone(&start), point.lwts);
                scope.spawn(move || -> Result<()> {
                    let worker = swap.enter_worker()?;
                    start.wait();
                    let end = Instant::now() + duration;
                    for lwt in 0..lwts {
                        let random = Random::new(seed << 32 | u64::from(number * lwts + lwt));
                        worker.start(move || read_until(end, pages, touches, random))?;
                    }
                    worker.run();
                    Ok(())
                })
            })
            .collect();
        start.wait();
        let (cpu_before, began) = (cpu_seconds(), Instant::now());
        for thread in threads {
            thread.join().expect("a measuring thread does not panic")?;
        }
        (elapsed, cpu) = (began.elapsed(), cpu_seconds() - cpu_before);
        Ok(())
    })?;
    let faults = (filled.statistic("swap_ins")? - faults_before).max(1) as f64;
    Ok((faults / elapsed.as_secs_f64(), cpu * 1e6 / faults))
}

/// One LWT: reads random pages until the end.
fn read_until(end: Instant, pages: Pages, touches: bool, mut random: Random) {
    loop {
        for _ in 0..32 {
            let page = pages.draw(&mut random);
            if touches {
                lightswap::touch(pages.address(page).cast(), 8).expect("inside the region");
            }
            pages.read(page);
        }
        if Instant::now() >= end {
            return;
        }
    }
}

/// A file with real blocks (reading what was never written is no I/O); deleted on drop.
#[derive(Debug)]
struct SwapFile {
    path: PathBuf,
    num_bytes: u64,
}

impl SwapFile {
    fn new(directory: &Path, num_bytes: u64) -> Result<Self> {
        let file = Self { path: directory.join(format!("lightswap-bench.fault.{}", std::process::id())), num_bytes };
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file.path)
            .with_context(|| format!("cannot create {}", file.path.display()))?;
        let mut random = Random::new(1);
        let block: Vec<u8> = (0..(1 << 20) / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        let mut left = num_bytes;
        while left > 0 {
            interrupt::check()?;
            let len = left.min(block.len() as u64);
            out.write_all(&block[..len as usize]).with_context(|| format!("cannot write {}", file.path.display()))?;
            left -= len;
        }
        out.sync_all()?;
        Ok(file)
    }

    fn url(&self) -> String {
        format!("file:{}", self.path.display())
    }

    /// Reads per second that fio gets with one job a worker and one request in flight an LWT.
    fn read_by_fio(&self, point: &Point, seconds: f64) -> Result<f64> {
        let output = Command::new("fio")
            .args(["--name=read", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=io_uring", "--norandommap", "--randrepeat=0"])
            // As Lightswap does: otherwise every request of fio alone pays for pinning its page and finding its file.
            .args(["--fixedbufs=1", "--registerfiles=1"])
            .args(["--time_based", "--group_reporting", "--output-format=json"])
            .arg(format!("--filename={}", self.path.display()))
            .arg(format!("--size={}", self.num_bytes))
            .arg(format!("--numjobs={}", point.workers))
            .arg(format!("--iodepth={}", point.lwts))
            .arg(format!("--runtime={}ms", (seconds * 1e3) as u64))
            .stdin(Stdio::null())
            .output()
            .context("cannot run fio, which the file backend is compared with; install it (apt-get install fio)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok());
        json.as_ref()
            .and_then(|json| json["jobs"][0]["read"]["iops"].as_f64())
            .with_context(|| format!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
