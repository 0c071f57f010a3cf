//! `micro switch`: from one LWT to another of the same worker, through the scheduler.

use anyhow::Result;
use lightswap::{Lightswap, lwt};

use super::{Findings, now_ns};
use crate::interrupt;
use crate::progress::Progress;
use crate::results::Micro;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of LWTs that take turns
    #[arg(long, value_delimiter = ',', default_values_t = [2, 64, 1024], value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lwts: Vec<u32>,
    /// Switches in each measurement
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    switches: u64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

pub fn run(options: &Options) -> Result<Findings> {
    let mut points: Vec<(u32, Vec<f64>)> = options.lwts.iter().map(|&lwts| (lwts, Vec::new())).collect();
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("LWT switches", total);
    let mut num_done = 0;
    for _ in 0..options.repetitions {
        for (lwts, switch_ns) in &mut points {
            interrupt::check()?;
            switch_ns.push(measure(*lwts, options.switches)?);
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    let mut findings = Findings::default();
    for (lwts, switch_ns) in points {
        findings.add(switch_ns, |switch_ns| Micro::LwtSwitch { lwts, switch_ns });
    }
    Ok(findings)
}

/// Nanoseconds a switch.
fn measure(num_lwts: u32, num_switches: u64) -> Result<f64> {
    let swap = Lightswap::builder().local_memory(16 << 20).backend("memory:?size=16MiB").open()?;
    let worker = swap.enter_worker()?;
    let turns = num_switches.div_ceil(u64::from(num_lwts)).max(1);
    for _ in 0..num_lwts {
        // The first yield ends the start, which is no part of the measurement.
        worker.start(move || (0..=turns).for_each(|_| lwt::yield_now()))?;
    }
    let start_ns = now_ns();
    worker.run();
    Ok((now_ns() - start_ns) as f64 / (turns * u64::from(num_lwts)) as f64)
}
