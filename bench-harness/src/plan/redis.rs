//! The grid of Redis: cells that answer what is asked of it, in half an hour. A machine may change its speed within minutes, so runs are short, and what is judged
//! is repeated more often than the rest.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Result;

use super::stages::{FOCUS, MEMORY_STAGE, MEMTIER_STAGE, REDIS_BENCHMARK_STAGE, closed, shape_on};
use super::{Load, Measurement, Plan, Stage, Target, Times, Wishes};
use crate::configuration::find;
use crate::generator::Shape;
use crate::memtier::Pattern;
use crate::protocol::DataType;
use crate::values::ValueKind;
use crate::ycsb::Workload;

pub(super) const TIMES: Times = Times {
    warm_up: Duration::from_millis(1_500),
    warm_up_max: Duration::from_secs(6),
    duration: Duration::from_secs(3),
    sweep_warm_up_max: Duration::from_secs(4),
    sweep_duration: Duration::from_secs(2),
    probe_seconds: 2,
};

pub(super) const QUICK_TIMES: Times = Times {
    warm_up: Duration::from_secs(1),
    warm_up_max: Duration::from_secs(3),
    duration: Duration::from_secs(2),
    sweep_warm_up_max: Duration::from_secs(2),
    sweep_duration: Duration::from_secs(1),
    probe_seconds: 1,
};

const IN_MEMORY: [&str; 2] = ["redis-dram", "redis-lightswap-dram"];
/// In turn with those in memory: each with the same limit.
const AT_FOCUS: [&str; 4] = ["redis-kernel-swap-ssd", "redis-kernel-swap-zram", "redis-lightswap", "redis-lightswap-remote"];
const AT_OTHER_SHARES: [&str; 3] = ["redis-kernel-swap-ssd", "redis-kernel-swap-zram", "redis-lightswap"];
/// An eighth would hardly have room for keys and what Redis keeps about them.
const OTHER_SHARES: [f64; 2] = [0.5, 0.15];
const OF_TEXT: [&str; 3] = ["redis-kernel-swap-zram", "redis-lightswap-compressed", "redis-lightswap-tier"];
const OTHER_BACKENDS: [&str; 3] = ["redis-lightswap-memory", "redis-lightswap-mirror", "redis-lightswap-encrypted"];
/// What is compared where few are.
const MAIN: [&str; 3] = ["redis-dram", "redis-kernel-swap-ssd", "redis-lightswap"];
const AS_HASHES: [&str; 4] = ["redis-dram", "redis-lightswap-dram", "redis-kernel-swap-ssd", "redis-lightswap"];
const DUEL: [&str; 2] = ["redis-kernel-swap-ssd", "redis-lightswap"];

/// Of what is judged.
const REPETITIONS: u32 = 5;
/// What is judged by a few percent is repeated on its own after that.
const REPETITIONS_IN_MEMORY: u32 = 11;
const REPETITIONS_OF_OTHERS: u32 = 3;
/// Of what is shown beside it.
const REPETITIONS_ASIDE: u32 = 2;

/// Records as they are kept in some cells.
#[derive(Debug, Clone, Copy)]
struct Data {
    shape: Shape,
    data_type: DataType,
    is_indexed: bool,
}

#[derive(Debug)]
struct Cells<'w> {
    wishes: &'w Wishes,
    usual: Data,
}

impl Cells<'_> {
    fn has(&self, ratio: f64) -> bool {
        self.wishes.ratios.is_empty() || self.wishes.ratios.contains(&ratio)
    }

    /// Those without a limit stand for all of the data in memory.
    fn of(&self, names: &[&str], ratio: f64, data: Data, measurements: &[Measurement]) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        for name in names {
            let configuration = find(name)?;
            let ratio = if configuration.is_limited() { ratio } else { 1.0 };
            if self.has(ratio) {
                let shape = shape_on(&configuration, data.shape, data.data_type, data.is_indexed);
                targets.push(Target { configuration, ratio, shape, measurements: measurements.to_vec() });
            }
        }
        Ok(targets)
    }

    fn repetitions(&self, usual: u32) -> RangeInclusive<u32> {
        1..=self.wishes.repetitions.unwrap_or(if self.wishes.quick { 1 } else { usual })
    }

    /// At the shares that are asked for, or at some.
    fn at_other_shares(&self, measurements: &[Measurement]) -> Result<Vec<Target>> {
        let wanted = if self.wishes.ratios.is_empty() { &OTHER_SHARES[..] } else { &self.wishes.ratios };
        let mut ratios: Vec<f64> = wanted.iter().copied().filter(|&ratio| ratio != FOCUS && ratio < 1.0).collect();
        ratios.sort_by(|a, b| b.total_cmp(a));
        let mut targets = Vec::new();
        for ratio in ratios {
            targets.extend(self.of(&AT_OTHER_SHARES, ratio, self.usual, measurements)?);
        }
        Ok(targets)
    }

    fn stages(&self) -> Result<Vec<Stage>> {
        let Self { wishes: &Wishes { quick, shape, data_type, .. }, usual, .. } = *self;
        let both = closed(&[Workload::C, Workload::A]);
        let reads = closed(&[Workload::C]);
        // Where they are shown only, a quick look is at reads.
        let aside = if quick { &reads } else { &both };
        let stage = |name, repetitions, targets| Stage { name, repetitions: self.repetitions(repetitions), targets };

        let in_memory = self.of(&IN_MEMORY, 1.0, usual, &both)?;
        let at_focus = self.of(&AT_FOCUS, FOCUS, usual, &both)?;
        let mut stages = vec![stage(MEMORY_STAGE, REPETITIONS, [in_memory.clone(), at_focus].concat())];
        if !quick && self.wishes.repetitions.is_none() {
            stages.push(Stage { name: "all in memory", repetitions: REPETITIONS + 1..=REPETITIONS_IN_MEMORY, targets: in_memory });
        }
        if !quick || !self.wishes.ratios.is_empty() {
            stages.push(stage("other shares of memory", REPETITIONS_OF_OTHERS, self.at_other_shares(&reads)?));
        }
        let text = Data { shape: Shape { value_kind: ValueKind::Text, ..shape }, ..usual };
        stages.push(stage("values that compress", REPETITIONS_OF_OTHERS, self.of(&OF_TEXT, FOCUS, text, aside)?));
        stages.push(stage("other backends", REPETITIONS_OF_OTHERS, self.of(&OTHER_BACKENDS, FOCUS, usual, aside)?));

        // D and E insert, so they come last, and E on data of its own.
        let others = closed(&[Workload::B, Workload::F, Workload::D]);
        stages.push(stage("workloads", REPETITIONS_ASIDE, self.of(&MAIN, FOCUS, usual, &others)?));
        let indexed = Data { is_indexed: true, ..usual };
        stages.push(stage("scans", REPETITIONS_ASIDE, self.of(&MAIN, FOCUS, indexed, &closed(&[Workload::E]))?));
        let other_type = if data_type == DataType::Strings { DataType::Hashes } else { DataType::Strings };
        let kept_otherwise = Data { data_type: other_type, ..usual };
        stages.push(stage("another data type", REPETITIONS_ASIDE, self.of(&AS_HASHES, FOCUS, kept_otherwise, aside)?));

        // Rates that both sustain, and one that only Lightswap does.
        let [slower, faster] = DUEL;
        let rates = if quick { vec![(slower, 80)] } else { vec![(slower, 50), (slower, 90), (faster, 75)] };
        let open: Vec<Measurement> =
            rates.into_iter().map(|(of, percent)| Measurement { workload: Workload::C, load: Load::Open { percent, of } }).collect();
        stages.push(stage("open loop", REPETITIONS_ASIDE, self.of(&DUEL, FOCUS, usual, &open)?));

        let strings = Data { data_type: DataType::Strings, ..usual };
        let second_opinions = [(MEMTIER_STAGE, Load::Memtier(Pattern::Uniform)), (REDIS_BENCHMARK_STAGE, Load::RedisBenchmark)];
        for (name, load) in second_opinions {
            stages.push(stage(name, REPETITIONS_ASIDE, self.of(&MAIN, FOCUS, strings, &[Measurement { workload: Workload::C, load }])?));
        }
        Ok(stages)
    }
}

/// Of Redis's own configurations.
pub(super) fn grid(wishes: &Wishes) -> Result<Plan> {
    let usual = Data { shape: wishes.shape, data_type: wishes.data_type, is_indexed: false };
    let stages = Cells { wishes, usual }.stages()?;
    let limited = stages.iter().flat_map(|stage| &stage.targets).filter(|target| target.ratio < 1.0).map(|target| target.ratio);
    // Where settings are tried: at the share that is judged, or at the smallest.
    let sweep_ratio = limited.min_by(|a, b| (*a != FOCUS, *a).partial_cmp(&(*b != FOCUS, *b)).unwrap_or(std::cmp::Ordering::Equal));
    let times = if wishes.quick { QUICK_TIMES } else { TIMES };
    Plan { stages, sweep_ratios: sweep_ratio.into_iter().collect(), shape: wishes.shape, times, quick: wishes.quick }.filtered(wishes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::wishes;
    use crate::server_kind::ServerKind;

    fn of(quick: bool) -> Plan {
        Plan::grid(&Wishes { quick, server_kind: ServerKind::Redis, ..wishes() }).unwrap()
    }

    #[test]
    fn it_has_its_own_configurations_and_data() {
        let plan = of(false);
        let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name).collect();
        let expected = [
            "local memory",
            "all in memory",
            "other shares of memory",
            "values that compress",
            "other backends",
            "workloads",
            "scans",
            "another data type",
            "open loop",
            "memtier",
            "redis-benchmark",
        ];
        assert_eq!(names, expected);
        assert!(plan.configurations().iter().all(|configuration| configuration.server_kind == ServerKind::Redis));
        // Only scans take an index, and nothing else pays for it.
        for (name, targets) in plan.stages.iter().map(|stage| (stage.name, &stage.targets)) {
            assert!(targets.iter().all(|target| target.shape.protocol.is_indexed() == (name == "scans")), "{name}");
            assert!(targets.iter().all(|target| target.configuration.is_limited() == (target.ratio < 1.0)), "{name}");
        }
        let of_stage = |name: &str| &plan.stages.iter().find(|stage| stage.name == name).unwrap().targets;
        let hashes = of_stage("another data type").iter().map(|target| (target.configuration.name.as_str(), target.ratio));
        let expected = [("redis-dram", 1.0), ("redis-lightswap-dram", 1.0), ("redis-kernel-swap-ssd", FOCUS), ("redis-lightswap", FOCUS)];
        assert_eq!(hashes.collect::<Vec<_>>(), expected);
        assert!(of_stage("another data type").iter().all(|target| target.shape.protocol.data_type() == DataType::Hashes));
        // Every configuration that there is takes part.
        for (name, _) in crate::configuration::BUILT_IN.iter().filter(|(name, _)| name.starts_with("redis-")) {
            assert!(plan.targets().any(|target| target.configuration.name == *name), "{name}");
        }
    }

    #[test]
    fn what_is_judged_is_repeated_most_and_half_an_hour_is_enough() {
        let plan = of(false);
        let repetitions = |name: &str| {
            let of_it =
                plan.stages.iter().filter(|stage| stage.targets.iter().any(|target| target.configuration.name == name && target.ratio == 1.0));
            of_it.map(|stage| stage.repetitions.clone()).take(2).collect::<Vec<_>>()
        };
        // The second stage goes on where the first ended.
        assert_eq!(repetitions("redis-dram"), [1..=5, 6..=11]);
        assert_eq!(repetitions("redis-dram"), repetitions("redis-lightswap-dram"));
        let minutes = [false, true].map(|quick| of(quick).estimate(|_, _, _| false).as_secs() / 60);
        assert!((20..33).contains(&minutes[0]) && minutes[1] < 8, "{minutes:?}");
        let twice = Plan::grid(&Wishes { repetitions: Some(2), server_kind: ServerKind::Redis, ..wishes() }).unwrap();
        assert!(twice.stages.iter().all(|stage| stage.repetitions == (1..=2)));
    }

    #[test]
    fn wishes_choose_the_shares() {
        let at = |ratios: &[f64]| {
            let plan = Plan::grid(&Wishes { ratios: ratios.to_vec(), server_kind: ServerKind::Redis, ..wishes() }).unwrap();
            let mut found: Vec<u32> = plan.targets().map(|target| (target.ratio * 100.0).round() as u32).collect();
            found.sort_unstable();
            found.dedup();
            (found, plan.sweep_ratios)
        };
        assert_eq!(at(&[1.0, FOCUS]), (vec![25, 100], vec![FOCUS]));
        assert_eq!(at(&[0.4, 0.3]), (vec![30, 40], vec![0.3]));
        assert_eq!(at(&[]), (vec![15, 25, 50, 100], vec![FOCUS]));
    }
}
