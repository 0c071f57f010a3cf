//! Micro-benchmarks: of the core library in this process, and of kernel swap in a child process beside it.
//!
//! All points of a benchmark are measured in turn, again and again, so that a change of the machine's speed meets all of them; each record is the
//! median over the repetitions.

mod bare;
mod compressed;
mod disk_file;
mod encrypted;
mod fault;
mod floor;
mod kernel_child;
mod kernel_swap;
mod notify;
mod pages;
mod random_faults;
mod regions;
mod remote;
mod steps;
mod switch;
#[cfg(feature = "ebpf")]
mod traced;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use lightswap::Contract;

use crate::environment::{Environment, command_line};
use crate::generator_ceiling;
use crate::journal::Journal;
use crate::out_file;
use crate::results::{Micro, Results, Skipped};
use crate::table;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Latency from the faulting access to the handler, over the number of LWTs, beside a bare SIGBUS handler and the kernel's own fault
    Notify(Arguments<notify::Options>),
    /// Faults per second and CPU a fault, all included; with --backend file beside fio
    Fault(Arguments<fault::Options>),
    /// Latency of one fault at a time and of its steps, beside kernel swap on the same disk and on zram
    Steps(Arguments<steps::Options>),
    /// Faults per second and CPU a fault of kernel swap, over threads; to be set beside `fault`
    Kernel(Arguments<kernel_swap::Options>),
    /// Time from one LWT to another of the same worker
    Switch(Arguments<switch::Options>),
    /// What the size of a region costs when the number of pages in use is the same
    Regions(Arguments<regions::Options>),
    /// Random reads from memory servers over NBD, by the backend alone and by faults, beside fio's nbd engine
    Remote(Arguments<remote::Options>),
    /// Compressed memory as a backend beside kernel swap on zram: faults, CPU and memory for the same pages
    Compressed(Arguments<compressed::Options>),
    /// What encryption adds to a page each way
    Encrypted(Arguments<encrypted::Options>),
    /// What this load generator can do and what a request costs it, beside memtier_benchmark when that is on PATH
    Generator(Arguments<generator_ceiling::Options>),
    /// What `steps` and `kernel` start in a cgroup
    #[command(hide = true)]
    KernelChild(kernel_child::Options),
}

impl Command {
    fn json(&self) -> Option<&Path> {
        let json = match self {
            Self::Notify(arguments) => &arguments.json,
            Self::Fault(arguments) => &arguments.json,
            Self::Steps(arguments) => &arguments.json,
            Self::Kernel(arguments) => &arguments.json,
            Self::Switch(arguments) => &arguments.json,
            Self::Regions(arguments) => &arguments.json,
            Self::Remote(arguments) => &arguments.json,
            Self::Compressed(arguments) => &arguments.json,
            Self::Encrypted(arguments) => &arguments.json,
            Self::Generator(arguments) => &arguments.json,
            Self::KernelChild(_) => &None,
        };
        json.as_deref()
    }
}

#[derive(Debug, Args)]
pub struct Arguments<O: Args> {
    #[command(flatten)]
    options: O,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a benchmark found, and what it could not measure here.
#[derive(Debug, Default)]
pub struct Findings {
    micro: Vec<Micro>,
    ranges: Vec<(f64, f64)>,
    skipped: Vec<Skipped>,
}

impl Findings {
    /// A record of its first number's median, given what the repetitions found.
    pub fn add(&mut self, repetitions: Vec<f64>, record: impl FnOnce(f64) -> Micro) {
        let smallest = repetitions.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = repetitions.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.ranges.push((smallest, largest));
        self.micro.push(record(median(repetitions)));
    }

    pub fn skip(&mut self, what: &str, reason: String) {
        note!("{what} is left out: {reason}");
        self.skipped.push(Skipped { configuration: what.into(), reason });
    }
}

pub fn run(command: &Command) -> Result<bool> {
    if let Command::KernelChild(options) = command {
        return kernel_child::run(options).map(|()| true);
    }
    if let Some(path) = command.json() {
        out_file::check(path)?;
    }
    // Held to the end: two measurements at a time would disturb each other.
    let journal = Journal::open()?;
    let findings = match command {
        Command::Notify(arguments) => notify::run(&journal, &arguments.options)?,
        Command::Fault(arguments) => fault::run(&journal, &arguments.options)?,
        Command::Steps(arguments) => steps::run(&journal, &arguments.options)?,
        Command::Kernel(arguments) => kernel_swap::run(&journal, &arguments.options)?,
        Command::Switch(arguments) => switch::run(&arguments.options)?,
        Command::Regions(arguments) => regions::run(&arguments.options)?,
        Command::Remote(arguments) => remote::run(&journal, &arguments.options)?,
        Command::Compressed(arguments) => compressed::run(&journal, &arguments.options)?,
        Command::Encrypted(arguments) => encrypted::run(&journal, &arguments.options)?,
        Command::Generator(arguments) => generator_ceiling::run(&journal, &arguments.options)?,
        Command::KernelChild(_) => unreachable!("handled above"),
    };
    let environment = serde_json::to_value(Environment::collect(Path::new(".")))?;
    let results = Results {
        environment,
        command: command_line(),
        micro: findings.micro,
        micro_ranges: findings.ranges,
        skipped: findings.skipped,
        ..Results::default()
    };
    table::print(&results);
    if let Some(path) = command.json() {
        results.write(path)?;
    }
    Ok(true)
}

/// Median of at least one number.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    if numbers.len() % 2 == 1 { numbers[middle] } else { f64::midpoint(numbers[middle - 1], numbers[middle]) }
}

/// The q-quantile of some latencies in nanoseconds, in microseconds; 0 when there are none.
fn quantile_us(sorted_ns: &[u32], q: f64) -> f64 {
    let index = ((sorted_ns.len() as f64 * q) as usize).min(sorted_ns.len().saturating_sub(1));
    sorted_ns.get(index).map_or(0.0, |&ns| f64::from(ns) / 1_000.0)
}

/// Monotonic nanoseconds, on the clock that the library stamps notifications with.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A difference of two times as `quantile_us` wants it; 4 s and more are all the same.
fn latency_ns(start_ns: u64, end_ns: u64) -> u32 {
    u32::try_from(end_ns.saturating_sub(start_ns)).unwrap_or(u32::MAX)
}

fn resource_usage(who: libc::c_int) -> libc::rusage {
    // SAFETY: an all-zero rusage is valid, and it is valid for writing.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    }
}

fn contract_name(contract: Contract) -> &'static str {
    match contract {
        Contract::Transparent => "transparent",
        Contract::Cooperative => "cooperative",
    }
}

/// CPU seconds that this process has used, all threads, user and system.
fn cpu_seconds() -> f64 {
    let usage = resource_usage(libc::RUSAGE_SELF);
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if (0.01..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("a fraction from 0.01 to 1".into()),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds, 0.01 to 3600".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
        let sorted: Vec<u32> = (1..=100).map(|number| number * 1_000).collect();
        assert_eq!((quantile_us(&sorted, 0.5), quantile_us(&sorted, 1.0)), (51.0, 100.0));
        assert_eq!(quantile_us(&[], 0.5), 0.0);
        assert_eq!((latency_ns(5, 3), latency_ns(0, 1 << 40)), (0, u32::MAX));
    }

    #[test]
    fn a_record_has_the_median_and_a_range() {
        let mut findings = Findings::default();
        findings.add(vec![3.0, 1.0, 2.0], |switch_ns| Micro::LwtSwitch { lwts: 2, switch_ns });
        assert_eq!(findings.micro, [Micro::LwtSwitch { lwts: 2, switch_ns: 2.0 }]);
        assert_eq!(findings.ranges, [(1.0, 3.0)]);
    }

    #[test]
    fn fractions_and_times_have_limits() {
        assert_eq!(parse_ratio("0.25"), Ok(0.25));
        assert!(["0", "1.1", "nan", "x"].iter().all(|text| parse_ratio(text).is_err()));
        assert!(["0", "-1", "inf", "1h"].iter().all(|text| parse_seconds(text).is_err()));
    }
}
