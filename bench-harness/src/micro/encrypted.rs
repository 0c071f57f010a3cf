//! `micro encrypted`: what encryption adds to a page each way, as CPU time of the whole process: `memory:` against `encrypted(memory:)`.
//!
//! Reads of clean pages decrypt one page a fault; writes to random pages decrypt one and encrypt one, as each page goes dirty. The difference of the two is
//! the way out.

use std::time::Duration;

use anyhow::Result;
use lightswap::{Contract, FaultReturn};

use super::kernel_swap::parse_region;
use super::pages::Content;
use super::random_faults::{Access, RandomFaults};
use super::{Findings, median, parse_ratio, parse_seconds};
use crate::interrupt;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::results::Micro;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Size of the region
    #[arg(long, default_value = "256MiB", value_parser = parse_region)]
    region: u64,
    /// Local memory as a fraction of the region
    #[arg(long, default_value_t = 0.25, value_parser = parse_ratio)]
    ratio: f64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

/// CPU time in microseconds of one repetition.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Costs {
    /// Of a fault that reads.
    read: f64,
    /// Of a fault that also makes the page dirty.
    write: f64,
    /// Pages written for each page read, of the latter.
    writes_per_fault: f64,
}

/// Time a page, in and out, that the second has over the first.
fn extra(plain: Costs, encrypted: Costs) -> (f64, f64) {
    let read = encrypted.read - plain.read;
    let both = encrypted.write - plain.write;
    (read, (both - read) / encrypted.writes_per_fault.max(f64::MIN_POSITIVE))
}

pub fn run(_journal: &Journal, options: &Options) -> Result<Findings> {
    let plain = format!("memory:?size={}", options.region);
    let backends = [format!("encrypted({plain})"), plain];
    let all_points = [(0, Access::Read), (1, Access::Read), (0, Access::Write), (1, Access::Write)];
    let total = u64::from(options.repetitions) * 4;
    let mut progress = Progress::start("encryption", total);
    let mut num_done = 0;
    let mut all = Vec::new();
    for repetition in 0..options.repetitions {
        let mut costs = [Costs::default(); 2];
        // What is subtracted is measured right after each other, every other time the other way about.
        let mut points = all_points;
        if repetition % 2 == 1 {
            points.reverse();
        }
        for (backend, access) in points {
            interrupt::check()?;
            let faults = RandomFaults {
                backend: backends[backend].clone(),
                region_bytes: options.region,
                ratio: options.ratio,
                content: Content::HalfNoise,
                contract: Contract::Transparent,
                access,
                fault_return: FaultReturn::default(),
                workers: 1,
                lwts: 1,
                duration: Duration::from_secs_f64(options.seconds),
                seed: u64::from(repetition),
            };
            let measured = faults.measure()?;
            let costs = &mut costs[backend];
            if access == Access::Read {
                costs.read = measured.cpu_us_per_fault;
            } else {
                (costs.write, costs.writes_per_fault) = (measured.cpu_us_per_fault, measured.writes_per_fault);
            }
            num_done += 1;
            progress.update(num_done, "");
        }
        let [encrypted, plain] = costs;
        all.push((extra(plain, encrypted), plain));
    }
    progress.finish(&format!("{total} measurements"));
    let mut findings = Findings::default();
    let plain_of = |of: fn(&Costs) -> f64| median(all.iter().map(|(_, plain)| of(plain)).collect());
    let ways = [("in", plain_of(|plain| plain.read)), ("out", plain_of(|plain| plain.write))];
    for (way, plain_us) in ways {
        let extra = all.iter().map(|((read, write), _)| if way == "in" { *read } else { *write }).collect();
        findings.add(extra, |extra_us| Micro::Encryption { way: way.into(), extra_us, plain_us });
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_what_writes_add_to_reads() {
        let plain = Costs { read: 5.0, write: 8.0, writes_per_fault: 1.0 };
        assert_eq!(extra(plain, Costs { read: 6.5, write: 11.5, writes_per_fault: 1.0 }), (1.5, 2.0));
        // Where half of the faults led to a write.
        assert_eq!(extra(plain, Costs { read: 6.5, write: 10.5, writes_per_fault: 0.5 }), (1.5, 2.0));
    }
}
