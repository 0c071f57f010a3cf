//! Kernel swap, measured as Lightswap is: a process that reads uniformly random pages of memory of which a part fits its cgroup.
//!
//! `micro kernel` gives faults per second over threads; `micro steps` uses the same sessions for the latency of single faults. Reads of neighbours in the
//! swap space are off (`vm.page-cluster`), as they are of no use to random accesses.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::kernel_child::{Reply, Request};
use super::pages::Content;
use super::{Findings, median, parse_ratio, parse_seconds};
use crate::cgroup::{Cgroup, KernelSwap};
use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover, change_setting};
use crate::process;
use crate::progress::Progress;
use crate::results::Micro;
use crate::swap::{ActiveSwap, Stored, SwapDevice, SwapKind};
use crate::units::{MIB, parse_size};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory of the swap file
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Size of the memory that is read
    #[arg(long, default_value = "256MiB", value_parser = parse_region)]
    region: u64,
    /// The part of it that fits the cgroup
    #[arg(long, default_value_t = 0.25, value_parser = parse_ratio)]
    ratio: f64,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8], value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

/// Below, what a process needs beside its pages would be a good part of the limit.
pub fn parse_region(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size >= 64 * MIB => Ok(size),
        _ => Err("at least 64MiB".into()),
    }
}

/// How results call the swap space.
pub fn name(kind: SwapKind) -> &'static str {
    match kind {
        SwapKind::File => "swap-ssd",
        SwapKind::Zram => "swap-zram",
    }
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    let mut findings = Findings::default();
    let devices = Devices::create(journal, &options.directory, options.region, options.ratio, &mut findings)?;
    let mut points = Vec::new();
    for device in 0..devices.devices.len() {
        points.extend(options.threads.iter().map(|&threads| (device, threads, Vec::new())));
    }
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("kernel swap", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        for points in points.chunk_by_mut(|one, other| one.0 == other.0) {
            let mut client = Client::new(&devices, points[0].0, options.warm_up());
            for (_, threads, measured) in points {
                interrupt::check()?;
                match client.ask(Request::Read { threads: *threads, seconds: options.seconds, seed: u64::from(repetition) })? {
                    Reply::Rate { faults_per_second, cpu_us_per_fault } => measured.push((faults_per_second, cpu_us_per_fault)),
                    other => bail!("the measuring process answered {other:?} to a request for a rate"),
                }
                num_done += 1;
                progress.update(num_done, "");
            }
        }
    }
    progress.finish(&format!("{total} measurements"));
    for (device, threads, measured) in points {
        let (rates, cpu_us): (Vec<f64>, Vec<f64>) = measured.into_iter().unzip();
        findings.add(rates, |faults_per_second| Micro::KernelSwap {
            device: name(devices.devices[device].0).into(),
            threads,
            faults_per_second,
            cpu_us_per_fault: median(cpu_us),
        });
    }
    Ok(findings)
}

impl Options {
    /// The last pages that were filled have no copy in the swap space yet: they get one before anything is counted.
    fn warm_up(&self) -> Request {
        Request::Read { threads: self.threads.iter().copied().max().unwrap_or(1), seconds: self.seconds / 2.0, seed: u64::from(u32::MAX) }
    }
}

/// The kernel killed the measuring process because it found nothing to swap out.
#[derive(Debug)]
struct OutOfMemory;

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the kernel killed the measuring process for want of memory, though there was swap space")
    }
}

impl std::error::Error for OutOfMemory {}

const MAX_ATTEMPTS: u32 = 5;

/// Asks sessions one after the other. A few threads that swap to zram at full speed now and then find every page of a small cgroup in use (seen with
/// Linux 6.18, cgroup version 1), and the kernel kills the process: the measurement then is made again by a new one.
#[derive(Debug)]
pub struct Client<'d> {
    devices: &'d Devices<'d>,
    device: usize,
    session: Option<Session<'d>>,
    warm_up: Request,
}

impl<'d> Client<'d> {
    pub fn new(devices: &'d Devices<'d>, device: usize, warm_up: Request) -> Self {
        Self { devices, device, session: None, warm_up }
    }

    /// What lies in the swap space, if that is zram.
    pub fn stored(&self) -> Option<Stored> {
        self.session.as_ref()?._swap.stored()
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply> {
        for attempt in 1.. {
            match self.try_to_ask(request) {
                Err(error) if error.is::<OutOfMemory>() && attempt < MAX_ATTEMPTS => {
                    note!("{}: {error}; measuring again", name(self.devices.devices[self.device].0));
                    self.session = None;
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    fn try_to_ask(&mut self, request: Request) -> Result<Reply> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let session = self.session.insert(self.devices.session(self.device)?);
                session.ask(self.warm_up)?;
                session
            }
        };
        session.ask(request)
    }
}

/// The swap spaces that there can be here, none of them in use.
#[derive(Debug)]
pub struct Devices<'a> {
    journal: &'a Journal,
    pub devices: Vec<(SwapKind, SwapDevice<'a>)>,
    region_bytes: u64,
    content: Content,
    limit_bytes: u64,
    _settings: Vec<Guard<'a>>,
}

impl<'a> Devices<'a> {
    /// Notes in `findings` what is left out.
    pub fn create(journal: &'a Journal, directory: &Path, region_bytes: u64, ratio: f64, findings: &mut Findings) -> Result<Self> {
        Self::of_kinds(journal, &[SwapKind::File, SwapKind::Zram], directory, region_bytes, ratio, Content::HalfNoise, findings)
    }

    pub fn of_kinds(
        journal: &'a Journal,
        kinds: &[SwapKind],
        directory: &Path,
        region_bytes: u64,
        ratio: f64,
        content: Content,
        findings: &mut Findings,
    ) -> Result<Self> {
        let mut devices = Vec::new();
        let mut settings = Vec::new();
        for &kind in kinds {
            if let Some(obstacle) = kind.obstacle() {
                findings.skip(&format!("kernel {}", name(kind)), obstacle);
                continue;
            }
            if settings.is_empty() {
                settings.push(change_setting(journal, "/proc/sys/vm/page-cluster", "0")?);
                settings.push(change_setting(journal, "/proc/sys/vm/swappiness", "100")?);
            }
            // More than twice of what is swapped: below, the kernel frees the copy of a page that it reads and would have to write the page again.
            devices.push((kind, SwapDevice::create(journal, kind, directory, region_bytes * 5 / 2)?));
        }
        // A page table takes 1/512 of the pages, and threads need stacks: both count in a cgroup, and neither in Lightswap's local memory.
        let limit_bytes = (region_bytes as f64 * ratio) as u64 + region_bytes / 512 + MIB;
        Ok(Self { journal, devices, region_bytes, content, limit_bytes, _settings: settings })
    }

    /// A process with filled pages, most of which are in the swap space.
    pub fn session(&self, device: usize) -> Result<Session<'_>> {
        let swap = self.devices[device].1.activate()?;
        let cgroup = Cgroup::create(self.journal, "lightswap-bench", self.limit_bytes, KernelSwap::Allowed)?;
        let binary = std::env::current_exe().context("cannot find the own program")?;
        let mut command = Command::new(binary);
        command.args(["micro", "kernel-child", "--region"]).arg(self.region_bytes.to_string());
        command.arg("--content").arg(self.content.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned()));
        // Ctrl-C is for the parent.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        // SAFETY: prctl with these arguments takes no pointers; the closure makes no other call.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn().context("cannot start the process whose memory is swapped")?;
        let input = child.stdin.take().context("no pipe to the measuring process")?;
        let output = child.stdout.take().map(BufReader::new).context("no pipe from the measuring process")?;
        // From here on, dropping the session ends the process.
        let mut session = Session { child, input, output, cgroup, _guard: None, _swap: swap };
        let pid = session.child.id();
        let start_time_ticks = process::usage(pid)?.start_time_ticks;
        session._guard = Some(Guard::new(self.journal, Leftover::Process { pid, start_time_ticks })?);
        session.receive()?;
        session.cgroup.open_members()?.write_all(pid.to_string().as_bytes()).context("cannot move the measuring process into its cgroup")?;
        session.ask(Request::Fill)?;
        Ok(session)
    }
}

/// The process under measurement. Its end comes first, so that there is nothing to read back when swapping stops.
#[derive(Debug)]
pub struct Session<'s> {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _guard: Option<Guard<'s>>,
    cgroup: Cgroup<'s>,
    _swap: ActiveSwap<'s>,
}

impl Session<'_> {
    pub fn ask(&mut self, request: Request) -> Result<Reply> {
        interrupt::check()?;
        let mut line = serde_json::to_string(&request)?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).context("the measuring process takes no requests")?;
        self.receive()
    }

    fn receive(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("cannot read from the measuring process")?;
        if line.is_empty() {
            if self.cgroup.out_of_memory_kills() > 0 {
                return Err(OutOfMemory.into());
            }
            bail!("the measuring process ended; its message is above");
        }
        serde_json::from_str(&line).with_context(|| format!("the measuring process answered {line:?}"))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Both fail only if the process has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
