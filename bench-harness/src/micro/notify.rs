//! `micro notify`: from the faulting access to the first instruction of the handler, over the number of LWTs.
//!
//! LWTs of one worker read random pages of a region that is four times local memory. On the memory backend an LWT yields after each fault, so that the
//! frames of all LWTs take turns. With `--directory` the same is measured on a file, too: there each faulting LWT stays suspended inside its handler until
//! its read is done, so that as many signal frames are alive as there are LWTs ("sigbus-suspended"). With a monitor thread ("monitor") a fault blocks the
//! whole worker, so that the number of LWTs can make no difference. Where the kernel module is loaded, LWTs take turns without signals, too ("ebpf").
//! "traced" is "sigbus" as the BPF tracer sees it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Barrier};

use anyhow::Result;
use lightswap::{Contract, Lightswap, Notifier, last_notification_ns, lwt};

use super::disk_file::DiskFile;
use super::pages::{Content, Filled, Pages};
#[cfg(feature = "ebpf")]
use super::traced;
use super::{Findings, bare, floor, latency_ns, median, now_ns, quantile_us};
use crate::interrupt;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::random::Random;
use crate::results::Micro;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of LWTs a worker
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128, 512, 1024], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    lwts: Vec<u32>,
    /// Numbers of workers, each busy with so many LWTs
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2], value_parser = clap::value_parser!(u32).range(1..=1024))]
    workers: Vec<u32>,
    /// Faults a worker in each measurement
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    faults: u32,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Measure LWTs that are suspended inside their handlers, too, with a file in this directory
    #[arg(long)]
    directory: Option<PathBuf>,
}

pub(super) const REGION_BYTES: usize = 128 << 20;
/// A fault by way of a monitor thread takes tens of times as long, so fewer are measured.
const MONITOR_SHARE: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Bare,
    Sigbus,
    #[cfg(feature = "ebpf")]
    Traced,
    SigbusSuspended,
    Ebpf,
    Monitor,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Bare => "bare",
            Self::Sigbus => "sigbus",
            #[cfg(feature = "ebpf")]
            Self::Traced => "traced",
            Self::SigbusSuspended => "sigbus-suspended",
            Self::Ebpf => "ebpf",
            Self::Monitor => "monitor",
        }
    }

    fn notifier(self) -> Notifier {
        match self {
            Self::Ebpf => Notifier::Ebpf,
            Self::Monitor => Notifier::Monitor,
            _ => Notifier::Sigbus,
        }
    }
}

/// A point of the benchmark and what was measured there: (p50, p99) of each repetition.
#[derive(Debug)]
struct Point {
    kind: Kind,
    lwts: u32,
    workers: u32,
    measured: Vec<(f64, f64)>,
    #[cfg(feature = "ebpf")]
    traced: Vec<traced::Comparison>,
}

pub fn run(journal: &Journal, options: &Options) -> Result<Findings> {
    let file = options.directory.as_ref().map(|directory| DiskFile::create(journal, directory, REGION_BYTES as u64)).transpose()?;
    let mut findings = Findings::default();
    let is_traced = can_trace(&mut findings);
    let mut points = points(options, is_traced);
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("notification", total);
    let mut num_done = 0;
    // The floors visit every page of a power of two once.
    let faults = options.faults.next_power_of_two() as usize;
    for repetition in 0..options.repetitions {
        for point in &mut points {
            interrupt::check()?;
            let latencies_ns = match point.kind {
                Kind::Kernel => floor::measure(point.workers as usize, faults)?,
                Kind::Bare => bare::measure(point.workers as usize, faults)?,
                Kind::Monitor => measure(point, None, (faults / MONITOR_SHARE).max(1), u64::from(repetition))?,
                Kind::Sigbus | Kind::Ebpf => measure(point, None, faults, u64::from(repetition))?,
                #[cfg(feature = "ebpf")]
                Kind::Traced => {
                    let entry_us = traced::entry_us()?;
                    let (in_process_ns, tracer) = measure_watched(point, None, faults, u64::from(repetition), traced::attach)?;
                    let comparison = traced::Comparison::new(entry_us, &in_process_ns, &tracer.snapshot());
                    point.measured.push((comparison.traced_p50_us, comparison.traced_p99_us));
                    point.traced.push(comparison);
                    num_done += 1;
                    progress.update(num_done, "");
                    continue;
                }
                Kind::SigbusSuspended => measure(point, file.as_ref(), faults, u64::from(repetition))?,
            };
            point.measured.push((quantile_us(&latencies_ns, 0.5), quantile_us(&latencies_ns, 0.99)));
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    #[cfg(feature = "ebpf")]
    add_comparisons(&mut findings, &points);
    for Point { kind, lwts, workers, measured, .. } in points {
        let (p50, p99): (Vec<f64>, Vec<f64>) = measured.into_iter().unzip();
        findings.add(p50, |p50_us| Micro::Notify { notifier: kind.name().into(), lwts, workers, p50_us, p99_us: median(p99) });
    }
    Ok(findings)
}

/// Whether instances can have that notifier.
fn has_ebpf() -> bool {
    // Asked for without the module, each would say what it lacks.
    let open = || Lightswap::builder().local_memory(1 << 20).backend("memory:?size=1MiB").notifier(Notifier::Ebpf).open();
    Path::new("/dev/lightswap").exists() && open().is_ok_and(|swap| swap.notifier() == Notifier::Ebpf)
}

/// Notifiers alternate for each number of LWTs.
fn points(options: &Options, is_traced: bool) -> Vec<Point> {
    let mut points = Vec::new();
    let has_ebpf = has_ebpf();
    for &workers in &options.workers {
        let mut add = |kind, lwts| {
            points.push(Point {
                kind,
                lwts,
                workers,
                measured: Vec::new(),
                #[cfg(feature = "ebpf")]
                traced: Vec::new(),
            });
        };
        add(Kind::Kernel, 0);
        add(Kind::Bare, 0);
        for &lwts in &options.lwts {
            add(Kind::Sigbus, lwts);
            #[cfg(feature = "ebpf")]
            if is_traced {
                add(Kind::Traced, lwts);
            }
            if options.directory.is_some() {
                add(Kind::SigbusSuspended, lwts);
            }
            if has_ebpf {
                add(Kind::Ebpf, lwts);
            }
            // Its time stamps tell faults of one thread apart, not of several.
            if workers == 1 {
                add(Kind::Monitor, lwts);
            }
        }
    }
    points
}

/// Whether the tracer works here; if not, the findings say why.
#[cfg(feature = "ebpf")]
fn can_trace(findings: &mut Findings) -> bool {
    traced::entry_us().map_err(|reason| findings.skip("traced", format!("{reason:#}"))).is_ok()
}

#[cfg(not(feature = "ebpf"))]
fn can_trace(findings: &mut Findings) -> bool {
    findings.skip("traced", "this program was built without the feature ebpf".into());
    false
}

/// What tracer and code saw of the same faults, and what it costs beside the series that is not traced.
#[cfg(feature = "ebpf")]
fn add_comparisons(findings: &mut Findings, points: &[Point]) {
    for point in points.iter().filter(|point| point.kind == Kind::Traced) {
        let untraced = points.iter().find(|other| other.kind == Kind::Sigbus && (other.lwts, other.workers) == (point.lwts, point.workers));
        let untraced = untraced.expect("both series have the same points");
        let middle = |number: fn(&traced::Comparison) -> f64| median(point.traced.iter().map(number).collect());
        let costs = point.traced.iter().zip(&untraced.measured).map(|(traced, (p50_us, _))| traced.in_process_p50_us - p50_us);
        let cost_us = median(costs.collect());
        findings.add(point.traced.iter().map(traced::Comparison::agreement).collect(), |agreement| Micro::NotifyTrace {
            lwts: point.lwts,
            workers: point.workers,
            agreement,
            traced_p50_us: middle(|comparison| comparison.traced_p50_us),
            in_process_p50_us: middle(|comparison| comparison.in_process_p50_us),
            entry_us: middle(|comparison| comparison.entry_us),
            cost_us,
        });
    }
}

/// Notification latencies in nanoseconds, sorted.
fn measure(point: &Point, file: Option<&DiskFile>, quota: usize, seed: u64) -> Result<Vec<u32>> {
    measure_watched(point, file, quota, seed, || Ok(())).map(|(latencies_ns, ())| latencies_ns)
}

/// The same while what `watch` makes is there. It is made when all is ready for faults.
fn measure_watched<W>(point: &Point, file: Option<&DiskFile>, quota: usize, seed: u64, watch: impl FnOnce() -> Result<W>) -> Result<(Vec<u32>, W)> {
    let (num_lwts, num_workers) = (point.lwts as usize, point.workers as usize);
    let backend = file.map_or_else(|| format!("memory:?size={REGION_BYTES}"), DiskFile::url);
    let builder = Lightswap::builder().local_memory(REGION_BYTES as u64 / 4).backend(backend).max_workers(num_workers);
    let filled = Filled::new(builder.notifier(point.kind.notifier()).open()?, REGION_BYTES, Contract::Transparent, Content::HalfNoise)?;
    let pages = Pages::of(&filled.region);
    let watcher = watch()?;
    let start = Arc::new(Barrier::new(num_workers));
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_workers)
            .map(|number| {
                let (swap, start) = (filled.swap.clone(), Arc::clone(&start));
                scope.spawn(move || -> Result<Vec<u32>> {
                    let worker = swap.enter_worker()?;
                    let latencies_ns = Rc::new(RefCell::new(Vec::with_capacity(quota)));
                    start.wait();
                    for lwt in 0..num_lwts {
                        let latencies_ns = Rc::clone(&latencies_ns);
                        let random = Random::new(seed << 32 | (number * num_lwts + lwt) as u64);
                        worker.start(move || fault_until(pages, quota, random, &latencies_ns))?;
                    }
                    worker.run();
                    Ok(latencies_ns.take())
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("a measuring thread does not panic")?);
        }
        anyhow::Ok(all)
    })?;
    all.sort_unstable();
    Ok((all, watcher))
}

/// One LWT: reads random pages until all LWTs of the worker together have faulted `quota` times.
fn fault_until(pages: Pages, quota: usize, mut random: Random, latencies_ns: &RefCell<Vec<u32>>) {
    let mut last_ns = 0;
    while latencies_ns.borrow().len() < quota {
        let page = pages.draw(&mut random);
        let start_ns = now_ns();
        pages.read(page);
        let notified_ns = last_notification_ns();
        // Without a fault the stamp is from before the access.
        if notified_ns > start_ns && notified_ns != last_ns {
            last_ns = notified_ns;
            latencies_ns.borrow_mut().push(latency_ns(start_ns, notified_ns));
            lwt::yield_now();
        }
    }
}
