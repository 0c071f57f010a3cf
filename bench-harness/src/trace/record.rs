//! What was traced, as JSON.

use lightswap::tracer::Kinds;
use serde::Serialize;

use super::NUM_TOP;
use super::code::Code;
use super::interval::Interval;

#[derive(Debug, Serialize)]
pub struct Record {
    pid: u32,
    seconds: f64,
    /// Whether the process notes what its handler gets; without that there is no telling whose a fault was.
    takes_part: bool,
    faults: u64,
    faults_per_second: f64,
    /// Of Lightswap's handler.
    handled: Counts,
    by_kernel: Counts,
    /// Not known yet.
    open: u64,
    notification_us: Quantiles,
    /// Of notification: where a bar begins, and how many there are in it; four bars for each power of two.
    notification_histogram: Vec<(f64, u64)>,
    regions: Vec<Region>,
    top_areas: Vec<TopArea>,
    top_code: Vec<TopCode>,
    lost_samples: u64,
}

#[derive(Debug, Serialize)]
struct Counts {
    all: u64,
    reads: u64,
    writes: u64,
    reads_of_present: u64,
    writes_to_present: u64,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
}

#[derive(Debug, Serialize)]
struct Region {
    start: String,
    bytes: u64,
    /// Faults in each 2 MiB.
    heat: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct TopArea {
    region: usize,
    offset_bytes: u64,
    faults: u64,
}

#[derive(Debug, Serialize)]
struct TopCode {
    place: String,
    share: f64,
}

impl Counts {
    fn of(kinds: &Kinds) -> Self {
        let &Kinds { reads, writes, reads_of_present, writes_to_present } = kinds;
        Self { all: kinds.sum(), reads, writes, reads_of_present, writes_to_present }
    }
}

impl Record {
    pub fn new(pid: u32, takes_part: bool, interval: &Interval, code: &Code) -> Self {
        let us = |q| interval.latencies.quantile_ns(q) / 1_000.0;
        let region = |heat: &super::interval::RegionHeat| Region {
            start: format!("{:#x}", heat.start),
            bytes: heat.end - heat.start,
            heat: heat.faults.clone(),
        };
        Self {
            pid,
            seconds: interval.seconds,
            takes_part,
            faults: interval.faults,
            faults_per_second: interval.per_second(interval.faults),
            handled: Counts::of(&interval.handled),
            by_kernel: Counts::of(&interval.by_kernel),
            open: interval.open,
            notification_us: Quantiles { p50: us(0.5), p90: us(0.9), p99: us(0.99), p999: us(0.999) },
            notification_histogram: interval.latencies.bars(4).into_iter().map(|(ns, count)| (ns as f64 / 1_000.0, count)).collect(),
            regions: interval.heat.iter().map(region).collect(),
            top_areas: interval
                .top(NUM_TOP)
                .into_iter()
                .map(|area| TopArea { region: area.region, offset_bytes: area.offset_bytes, faults: area.faults })
                .collect(),
            top_code: code.top(NUM_TOP).into_iter().map(|(place, share)| TopCode { place, share }).collect(),
            lost_samples: interval.lost_samples,
        }
    }
}
