//! `micro steps`: how long one fault takes, one at a time, and its steps; beside it kernel swap on the same disk and on zram.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Result, bail};
use lightswap::{Contract, FaultReturn, Lightswap, Notifier, PAGE_SIZE, last_notification_ns};

use super::disk_file::DiskFile;
use super::kernel_child::{Reply, Request};
use super::kernel_swap::{Devices, name, parse_region};
use super::pages::{Content, Filled, Pages};
use super::{Findings, contract_name, latency_ns, median, now_ns, parse_ratio, quantile_us};
use crate::interrupt;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::random::Random;
use crate::results::Micro;
use crate::swap::SwapKind;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory of the swap files
    #[arg(long, default_value = ".")]
    directory: PathBuf,
    /// Size of the region, and of the memory that the kernel swaps
    #[arg(long, default_value = "128MiB", value_parser = parse_region)]
    region: u64,
    /// Local memory as a fraction of it
    #[arg(long, default_value_t = 0.25, value_parser = parse_ratio)]
    ratio: f64,
    /// Faults in each measurement
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    faults: u32,
    /// Measure faults whose handlers go back by rt_sigreturn, too ("sigbus-sigreturn")
    #[arg(long)]
    sigreturn: bool,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

impl Options {
    /// The pages that were filled last have no copy in the swap space: so many faults evict (nearly) all of them before anything is timed.
    fn warm_up_faults(&self) -> usize {
        (self.region as f64 * self.ratio * 2.0) as usize / PAGE_SIZE
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Sigbus,
    Sigreturn,
    Monitor,
    Touch,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Sigbus => "sigbus",
            Self::Sigreturn => "sigbus-sigreturn",
            Self::Monitor => "monitor",
            Self::Touch => "touch",
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Pager {
    Lightswap { on_disk: bool, way: Way, contract: Contract },
    Kernel { device: usize },
}

/// What was measured in one repetition.
#[derive(Debug)]
struct Measured {
    p50_us: f64,
    p99_us: f64,
    steps: Vec<(&'static str, f64)>,
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    let mut findings = Findings::default();
    let file = DiskFile::create(journal, &options.directory, options.region)?;
    let devices = Devices::create(journal, &options.directory, options.region, options.ratio, &mut findings)?;
    // What is compared is measured side by side: first everything on the disk, then everything in memory.
    let mut pagers = Vec::new();
    for on_disk in [true, false] {
        let ways = [Way::Sigbus, Way::Sigreturn, Way::Monitor, Way::Touch];
        for way in ways.into_iter().filter(|way| *way != Way::Sigreturn || options.sigreturn) {
            pagers.extend([Contract::Transparent, Contract::Cooperative].map(|contract| Pager::Lightswap { on_disk, way, contract }));
        }
        let device = devices.devices.iter().position(|(kind, _)| (*kind == SwapKind::File) == on_disk);
        pagers.extend(device.map(|device| Pager::Kernel { device }));
    }
    let mut points: Vec<(Pager, Vec<Measured>)> = pagers.into_iter().map(|pager| (pager, Vec::new())).collect();
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("single faults", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        for (pager, measured) in &mut points {
            interrupt::check()?;
            measured.push(match *pager {
                Pager::Lightswap { on_disk, way, contract } => measure(options, on_disk.then_some(&file), way, contract, u64::from(repetition))?,
                Pager::Kernel { device } => {
                    let seed = u64::from(repetition);
                    let mut session = devices.session(device)?;
                    session.ask(Request::Time { num_faults: options.warm_up_faults(), seed: !seed })?;
                    match session.ask(Request::Time { num_faults: options.faults as usize, seed })? {
                        Reply::Latency { p50_us, p99_us } => Measured { p50_us, p99_us, steps: Vec::new() },
                        other => bail!("the measuring process answered {other:?} to a request for latencies"),
                    }
                }
            });
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements of {} faults", options.faults));
    for (pager, measured) in points {
        record(pager, &devices, &measured, &mut findings);
    }
    Ok(findings)
}

fn record(pager: Pager, devices: &Devices, measured: &[Measured], findings: &mut Findings) {
    let (pager, backend, notifier, contract) = match pager {
        Pager::Lightswap { on_disk, way, contract } => ("lightswap", if on_disk { "file" } else { "memory" }, way.name(), contract_name(contract)),
        Pager::Kernel { device } => ("kernel", name(devices.devices[device].0), "kernel", ""),
    };
    findings.add(measured.iter().map(|measured| measured.p50_us).collect(), |p50_us| Micro::FaultLatency {
        pager: pager.into(),
        backend: backend.into(),
        notifier: notifier.into(),
        contract: contract.into(),
        p50_us,
        p99_us: median(measured.iter().map(|measured| measured.p99_us).collect()),
    });
    for step in ["notify", "queue", "io", "map", "resume", "evict"] {
        let us: Vec<f64> = measured.iter().flat_map(|measured| &measured.steps).filter(|(name, _)| *name == step).map(|(_, us)| *us).collect();
        if !us.is_empty() {
            findings.add(us, |p50_us| Micro::FaultStep {
                backend: backend.into(),
                notifier: notifier.into(),
                contract: contract.into(),
                step: step.into(),
                p50_us,
            });
        }
    }
}

/// What evictions took since the instance was opened: those that filled the backend write, those of the measurement do not.
#[derive(Debug, Clone, Copy)]
struct Evictions {
    num_pages: u64,
    ns: u64,
}

impl Evictions {
    fn so_far(filled: &Filled) -> Result<Self> {
        let counters = ["clean_evictions", "zero_evictions", "dirty_evictions"];
        let num_pages = counters.into_iter().map(|name| filled.statistic(name)).sum::<Result<u64>>()?;
        Ok(Self { num_pages, ns: filled.statistic("step_evict_mean_ns")? * num_pages })
    }

    /// The mean, as evictions go by in batches.
    fn us_per_page_since(self, before: Self) -> f64 {
        let num_pages = self.num_pages.saturating_sub(before.num_pages).max(1);
        self.ns.saturating_sub(before.ns) as f64 / 1e3 / num_pages as f64
    }
}

/// The median of what a histogram of `(nanoseconds, count)` got since an earlier state of it. Nothing for a step that a backend does not have, such as io
/// of memory.
fn median_us_since(before: &[(u64, u64)], after: &[(u64, u64)]) -> Option<f64> {
    let new = || after.iter().zip(before).map(|(&(ns, count), &(_, earlier))| (ns, count.saturating_sub(earlier)));
    let num_below = new().map(|(_, count)| count).sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let (ns, _) = new().find(|&(_, count)| {
        seen += count;
        count > 0 && seen >= num_below
    })?;
    Some(ns as f64 / 1e3)
}

/// Times from the access to its retry, and from the access to the handler.
#[derive(Debug, Default)]
struct Times {
    whole_ns: Vec<u32>,
    notify_ns: Vec<u32>,
}

fn measure(options: &Options, file: Option<&DiskFile>, way: Way, contract: Contract, seed: u64) -> Result<Measured> {
    let backend = file.map_or_else(|| format!("memory:?size={}", options.region), DiskFile::url);
    let page = PAGE_SIZE as u64;
    let local_bytes = (options.region as f64 * options.ratio) as u64 / page * page;
    let notifier = if way == Way::Monitor { Notifier::Monitor } else { Notifier::Sigbus };
    let fault_return = if way == Way::Sigreturn { FaultReturn::Kernel } else { FaultReturn::User };
    let builder = Lightswap::builder().local_memory(local_bytes).backend(backend).notifier(notifier).fault_return(fault_return).step_times(true);
    let filled = Filled::new(builder.open()?, usize::try_from(options.region)?, contract, Content::HalfNoise)?;
    let pages = Pages::of(&filled.region);
    let times = Rc::new(RefCell::new(Times::default()));
    let worker = filled.swap.enter_worker()?;
    let (of_lwt, num_faults) = (Rc::clone(&times), options.faults as usize);
    let warm_up_faults = options.warm_up_faults();
    worker.start(move || drop(fault_repeatedly(pages, way, warm_up_faults, Random::new(!seed))))?;
    worker.run();
    // The warm-up writes pages out, which what is measured does not.
    let (before, steps_before) = (Evictions::so_far(&filled)?, filled.swap.step_histograms());
    worker.start(move || *of_lwt.borrow_mut() = fault_repeatedly(pages, way, num_faults, Random::new(seed)))?;
    worker.run();
    let evict_us = Evictions::so_far(&filled)?.us_per_page_since(before);
    drop(worker);
    let mut times = times.take();
    times.whole_ns.sort_unstable();
    times.notify_ns.sort_unstable();
    let mut steps = Vec::new();
    if way != Way::Touch {
        steps.push(("notify", quantile_us(&times.notify_ns, 0.5)));
    }
    for ((step, after), (_, before)) in filled.swap.step_histograms().into_iter().zip(steps_before) {
        steps.extend(median_us_since(&before, &after).map(|us| (step, us)));
    }
    steps.push(("evict", evict_us));
    Ok(Measured { p50_us: quantile_us(&times.whole_ns, 0.5), p99_us: quantile_us(&times.whole_ns, 0.99), steps })
}

/// Reads random pages as the kernel's counterpart does, those that are resident too, and times those that are not.
fn fault_repeatedly(pages: Pages, way: Way, num_faults: usize, mut random: Random) -> Times {
    let mut times = Times::default();
    let mut reads_left = num_faults.saturating_mul(100);
    while times.whole_ns.len() < num_faults && reads_left > 0 {
        reads_left -= 1;
        let page = pages.draw(&mut random);
        let was_resident = pages.is_resident(page);
        let start_ns = now_ns();
        if way == Way::Touch {
            lightswap::touch(pages.address(page).cast(), 8).expect("inside the region");
        }
        pages.read(page);
        let end_ns = now_ns();
        if was_resident {
            continue;
        }
        times.whole_ns.push(latency_ns(start_ns, end_ns));
        let notified_ns = last_notification_ns();
        if notified_ns > start_ns {
            times.notify_ns.push(latency_ns(start_ns, notified_ns));
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_is_not_in_the_median() {
        let warm = [(1_000, 0), (2_000, 1_000), (3_000, 0)];
        assert_eq!(median_us_since(&warm, &[(1_000, 2), (2_000, 1_000), (3_000, 3)]), Some(3.0));
        assert_eq!(median_us_since(&warm, &[(1_000, 2), (2_000, 1_000), (3_000, 2)]), Some(1.0));
        assert_eq!(median_us_since(&warm, &warm), None);
    }
}
