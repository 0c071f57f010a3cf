//! `micro notify`: from the faulting access to the first instruction of the handler, over the number of LWTs.
//!
//! LWTs of one worker read random pages of a region that is four times local memory. With a file as the backend (`--directory`) each faulting LWT stays
//! suspended inside its handler until its read is done, so that as many signal frames are alive as there are LWTs; with the default, the memory backend,
//! an LWT yields after each fault, so that the frames of all LWTs take turns.

use super::{Filled, Pages, bare, median, now_ns, quantile_us};
use crate::interrupt;
use crate::progress::Progress;
use crate::random::Random;
use crate::results::Micro;
use anyhow::Result;
use lightswap::{Contract, Lightswap, last_notification_ns, lwt};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Barrier};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of LWTs a worker
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128, 512])]
    lwts: Vec<u32>,
    /// Numbers of workers, each busy with so many LWTs
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    workers: Vec<u32>,
    /// Faults a worker in each measurement
    #[arg(long, default_value_t = 16_384)]
    faults: usize,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// Swap to a file in this directory instead of memory
    #[arg(long)]
    directory: Option<PathBuf>,
}

const REGION_BYTES: usize = 128 << 20;

/// A point of the benchmark and what was measured there: (p50, p99) of each repetition.
struct Point {
    notifier: &'static str,
    lwts: u32,
    workers: u32,
    measured: Vec<(f64, f64)>,
}

pub fn run(options: &Options) -> Result<Vec<Micro>> {
    let mut points = Vec::new();
    for &workers in &options.workers {
        points.push(Point { notifier: "bare", lwts: 0, workers, measured: Vec::new() });
        points.extend(options.lwts.iter().map(|&lwts| Point { notifier: "sigbus", lwts, workers, measured: Vec::new() }));
    }
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("notification", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        for point in &mut points {
            interrupt::check()?;
            let latencies_ns = match point.notifier {
                "bare" => bare::measure(point.workers as usize, options.faults.next_power_of_two())?,
                _ => measure(options, point.lwts as usize, point.workers as usize, u64::from(repetition))?,
            };
            point.measured.push((quantile_us(&latencies_ns, 0.5), quantile_us(&latencies_ns, 0.99)));
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    Ok(points.into_iter().map(Point::record).collect())
}

impl Point {
    fn record(self) -> Micro {
        let (p50, p99) = self.measured.into_iter().unzip();
        Micro::Notify { notifier: self.notifier.into(), lwts: self.lwts, workers: self.workers, p50_us: median(p50), p99_us: median(p99) }
    }
}

/// Notification latencies in nanoseconds, sorted.
fn measure(options: &Options, num_lwts: usize, num_workers: usize, seed: u64) -> Result<Vec<u32>> {
    let name = format!("lightswap-bench.notify.{}", std::process::id());
    let backend = match &options.directory {
        Some(directory) => format!("file:{}?size={REGION_BYTES}", directory.join(name).display()),
        None => format!("memory:?size={REGION_BYTES}"),
    };
    let swap = Lightswap::builder().local_memory(REGION_BYTES as u64 / 4).backend(backend).max_workers(num_workers).open()?;
    let filled = Filled::new(swap, REGION_BYTES, Contract::Transparent)?;
    let pages = Pages::of(&filled.region);
    let start = Arc::new(Barrier::new(num_workers));
    let quota = options.faults;
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
    Ok(all)
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
            latencies_ns.borrow_mut().push(u32::try_from(notified_ns - start_ns).unwrap_or(u32::MAX));
            lwt::yield_now();
        }
    }
}
