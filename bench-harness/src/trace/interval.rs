//! What happened between two moments.

use std::time::Duration;

use lightswap::tracer::{CELL_BYTES, Kinds, Latencies, Snapshot};

use super::Area;

/// Faults in each 2 MiB of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionHeat {
    pub start: u64,
    pub end: u64,
    pub faults: Vec<u64>,
}

#[derive(Debug, Clone)]
pub struct Interval {
    pub seconds: f64,
    pub faults: u64,
    pub handled: Kinds,
    pub by_kernel: Kinds,
    pub open: u64,
    pub latencies: Latencies,
    pub lost_samples: u64,
    pub heat: Vec<RegionHeat>,
}

impl Interval {
    pub fn between(earlier: (&Snapshot, &[RegionHeat]), later: (&Snapshot, &[RegionHeat]), duration: Duration) -> Self {
        let ((from, from_heat), (to, to_heat)) = (earlier, later);
        let kinds = |to: &Kinds, from: &Kinds| Kinds {
            reads: to.reads.saturating_sub(from.reads),
            writes: to.writes.saturating_sub(from.writes),
            reads_of_present: to.reads_of_present.saturating_sub(from.reads_of_present),
            writes_to_present: to.writes_to_present.saturating_sub(from.writes_to_present),
        };
        let heat = |region: &RegionHeat| {
            let before = from_heat.iter().find(|before| (before.start, before.end) == (region.start, region.end));
            let faults = region.faults.iter().enumerate();
            let since =
                |(cell, faults): (usize, &u64)| faults.saturating_sub(before.and_then(|before| before.faults.get(cell)).copied().unwrap_or(0));
            RegionHeat { faults: faults.map(since).collect(), ..region.clone() }
        };
        Self {
            seconds: duration.as_secs_f64(),
            faults: to.faults - from.faults,
            handled: kinds(&to.handled, &from.handled),
            by_kernel: kinds(&to.by_kernel, &from.by_kernel),
            open: to.open(),
            latencies: to.latencies.since(&from.latencies),
            lost_samples: to.lost_samples - from.lost_samples,
            heat: to_heat.iter().map(heat).collect(),
        }
    }

    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds.max(1e-9)
    }

    /// The hottest areas of 2 MiB, hottest first.
    pub fn top(&self, num: usize) -> Vec<Area> {
        let of = |(region, heat): (usize, &RegionHeat)| {
            let area = move |(cell, &faults): (usize, &u64)| Area { region, offset_bytes: cell as u64 * CELL_BYTES, faults };
            heat.faults.iter().enumerate().map(area).filter(|area| area.faults > 0).collect::<Vec<_>>()
        };
        let mut areas: Vec<Area> = self.heat.iter().enumerate().flat_map(of).collect();
        areas.sort_by_key(|area| (std::cmp::Reverse(area.faults), area.region, area.offset_bytes));
        areas.truncate(num);
        areas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_come_first_and_the_cold_not_at_all() {
        let heat = |start: u64, faults: &[u64]| RegionHeat { start, end: start + (faults.len() as u64) * CELL_BYTES, faults: faults.to_vec() };
        let interval = crate::trace::view::tests::interval(vec![heat(0, &[3, 0, 9]), heat(1 << 40, &[5])]);
        let top: Vec<(usize, u64, u64)> = interval.top(9).into_iter().map(|area| (area.region, area.offset_bytes, area.faults)).collect();
        assert_eq!(top, [(0, 2 * CELL_BYTES, 9), (1, 0, 5), (0, 0, 3)]);
        assert_eq!(interval.top(1).len(), 1);
    }
}
