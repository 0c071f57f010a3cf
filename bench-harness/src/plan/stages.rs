//! The stages of `demo` and `grid`.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use super::{Load, Measurement, Plan, Stage, Target, Times, Wishes, redis};
use crate::configuration::{Configuration, find, find_all};
use crate::generator::Shape;
use crate::memtier::Pattern;
use crate::protocol::DataType;
use crate::server_kind::ServerKind;
use crate::value_sizes::ValueSizes;
use crate::values::ValueKind;
use crate::ycsb::Workload;

/// Which configurations of a server take part in what.
#[derive(Debug)]
struct Lineup {
    grid: &'static [&'static str],
    /// Beside those at the focus alone, where kernel swap on zram takes turns with them.
    at_focus: &'static [&'static str],
    /// At the focus, with values that compress, as it is of no use to compress others.
    of_text: &'static [&'static str],
    demo: &'static [&'static str],
    workloads: &'static [&'static str],
    workloads_quick: &'static [&'static str],
    sizes: &'static [&'static str],
    /// What is compared where only two are: kernel swap and Lightswap on the same disk.
    duel: [&'static str; 2],
    dram: &'static str,
    /// Records are also kept in another way, or their keys in an index.
    hashes: &'static [&'static str],
}

const MEMCACHED: Lineup = Lineup {
    grid: &[
        "dram",
        "lightswap-dram",
        "kernel-swap-ssd",
        "kernel-swap-zram",
        "extstore",
        "fastswap-style",
        "monitor",
        "lightswap",
        "lightswap-memory",
    ],
    at_focus: &["lightswap-remote", "fastswap-style-remote", "lightswap-mirror", "lightswap-encrypted"],
    of_text: &["kernel-swap-zram", "lightswap-compressed", "lightswap-tier"],
    demo: &["dram", "lightswap-dram", "kernel-swap-ssd", "lightswap"],
    workloads: &["kernel-swap-ssd", "extstore", "fastswap-style", "lightswap"],
    workloads_quick: &["kernel-swap-ssd", "lightswap"],
    sizes: &["kernel-swap-ssd", "extstore", "lightswap"],
    duel: ["kernel-swap-ssd", "lightswap"],
    dram: "dram",
    hashes: &[],
};

const REDIS: Lineup = Lineup {
    grid: &["redis-dram", "redis-lightswap-dram", "redis-kernel-swap-ssd", "redis-kernel-swap-zram", "redis-lightswap", "redis-lightswap-memory"],
    at_focus: &["redis-lightswap-remote", "redis-lightswap-mirror", "redis-lightswap-encrypted"],
    of_text: &["redis-kernel-swap-zram", "redis-lightswap-compressed", "redis-lightswap-tier"],
    demo: &["redis-dram", "redis-lightswap-dram", "redis-kernel-swap-ssd", "redis-kernel-swap-zram", "redis-lightswap"],
    workloads: &["redis-kernel-swap-ssd", "redis-lightswap"],
    workloads_quick: &["redis-kernel-swap-ssd", "redis-lightswap"],
    sizes: &["redis-kernel-swap-ssd", "redis-lightswap"],
    duel: ["redis-kernel-swap-ssd", "redis-lightswap"],
    dram: "redis-dram",
    hashes: &["redis-dram", "redis-lightswap-dram", "redis-kernel-swap-ssd", "redis-lightswap"],
};

impl Lineup {
    fn of(kind: ServerKind) -> &'static Self {
        match kind {
            ServerKind::Memcached => &MEMCACHED,
            ServerKind::Redis => &REDIS,
        }
    }

    /// None of those that come with the harness.
    fn is_own(&self, name: &str) -> bool {
        ![self.grid, self.at_focus, self.of_text].concat().contains(&name)
    }

    /// The rates of the open loops, in percent of what these configurations serve in a closed loop; each configuration gets all of them. The slower
    /// one's rates are what both can sustain: there latencies can be compared.
    fn open_rates(&self, quick: bool) -> [(&'static str, &'static [u32]); 2] {
        let [slower, faster] = self.duel;
        if quick { [(slower, &[80]), (faster, &[])] } else { [(slower, &[50, 90]), (faster, &[50, 75])] }
    }
}

const TIMES: Times = Times {
    warm_up: Duration::from_secs(2),
    warm_up_max: Duration::from_secs(8),
    duration: Duration::from_secs(3),
    sweep_warm_up_max: Duration::from_secs(4),
    sweep_duration: Duration::from_secs(3),
    probe_seconds: 2,
};

const QUICK_TIMES: Times = Times {
    warm_up: Duration::from_secs(1),
    warm_up_max: Duration::from_secs(4),
    duration: Duration::from_secs(3),
    sweep_warm_up_max: Duration::from_secs(2),
    sweep_duration: Duration::from_secs(2),
    probe_seconds: 1,
};

const GRID_RATIOS: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.1];
const GRID_RATIOS_QUICK: [f64; 3] = [1.0, 0.5, 0.25];
const DEMO_RATIOS: [f64; 3] = [1.0, 0.5, 0.25];
const REDIS_DEMO_RATIOS: [f64; 2] = [1.0, 0.25];
pub(super) const MEMORY_STAGE: &str = "local memory";
/// A second opinion, where there is one.
pub const MEMTIER_STAGE: &str = "memtier";
pub const REDIS_BENCHMARK_STAGE: &str = "redis-benchmark";
/// The ratio at which more than C and A is compared.
pub(super) const FOCUS: f64 = 0.25;

pub(super) fn closed(workloads: &[Workload]) -> Vec<Measurement> {
    workloads.iter().map(|&workload| Measurement { workload, load: Load::Closed }).collect()
}

/// As many records of another size as have the same bytes, keys and headers included.
fn resized(shape: &Shape, value_sizes: ValueSizes) -> Shape {
    const KEY_AND_HEADER_BYTES: u64 = 80;
    let of_record = |value_sizes: &ValueSizes| value_sizes.mean() as u64 + KEY_AND_HEADER_BYTES;
    Shape { records: (shape.records * of_record(&shape.value_sizes) / of_record(&value_sizes)).max(1), value_sizes, ..*shape }
}

/// Records as this configuration's server keeps them.
pub(super) fn shape_on(configuration: &Configuration, shape: Shape, data_type: DataType, is_indexed: bool) -> Shape {
    Shape { protocol: configuration.server_kind.protocol(data_type, is_indexed), ..shape }
}

fn configurations(wishes: &Wishes, all: &[&str]) -> Result<Vec<Rc<Configuration>>> {
    if wishes.configurations.is_empty() {
        return all.iter().map(|name| find(name)).collect();
    }
    find_all(&wishes.configurations)
}

/// C first: it leaves the data as loaded. Much memory first; configurations that are compared follow each other.
fn over_memory(configurations: &[Rc<Configuration>], ratios: &[f64], (shape, data_type): (Shape, DataType), repetitions: u32) -> Stage {
    let mut ratios = ratios.to_vec();
    ratios.sort_by(|a, b| b.total_cmp(a));
    let at = |ratio: f64| {
        // All of the data in memory is what the configurations without a limit are for.
        let fits = move |configuration: &&Rc<Configuration>| configuration.is_limited() == (ratio < 1.0);
        configurations.iter().filter(fits).map(move |configuration| Target {
            configuration: Rc::clone(configuration),
            ratio,
            shape: shape_on(configuration, shape, data_type, false),
            measurements: closed(&[Workload::C, Workload::A]),
        })
    };
    Stage { name: MEMORY_STAGE, repetitions: 1..=repetitions, targets: ratios.into_iter().flat_map(at).collect() }
}

/// Of the configurations that can be compared at one limit: those that are named, and those of one's own, which take part in everything.
struct Duels<'p> {
    configurations: &'p [Rc<Configuration>],
    lineup: &'static Lineup,
    kind: ServerKind,
    ratio: f64,
    has_dram: bool,
}

impl Duels<'_> {
    fn of(&self, names: &[&str], (shape, data_type): (Shape, DataType), is_indexed: bool, measurements: &[Measurement]) -> Vec<Target> {
        let wanted = |configuration: &&Rc<Configuration>| {
            configuration.server_kind == self.kind
                && configuration.is_limited()
                && (names.contains(&configuration.name.as_str()) || self.lineup.is_own(&configuration.name))
        };
        let target = |configuration: &Rc<Configuration>| Target {
            configuration: Rc::clone(configuration),
            ratio: self.ratio,
            shape: shape_on(configuration, shape, data_type, is_indexed),
            measurements: measurements.to_vec(),
        };
        self.configurations.iter().filter(wanted).map(target).collect()
    }

    /// The same with those of no limit among the named ones, where all of the data in memory is to be measured, too.
    fn with_dram(&self, names: &[&str], records: (Shape, DataType), measurements: &[Measurement]) -> Vec<Target> {
        let is_unlimited =
            |configuration: &&Rc<Configuration>| self.has_dram && !configuration.is_limited() && names.contains(&configuration.name.as_str());
        let unlimited = self.configurations.iter().filter(is_unlimited).map(|configuration| Target {
            configuration: Rc::clone(configuration),
            ratio: 1.0,
            shape: shape_on(configuration, records.0, records.1, false),
            measurements: measurements.to_vec(),
        });
        unlimited.chain(self.of(names, records, false, measurements)).collect()
    }

    fn stages(&self, wishes: &Wishes, repetitions: u32) -> Result<Vec<Stage>> {
        let Self { lineup, kind, .. } = self;
        let stage = |name, targets| Stage { name, repetitions: 1..=repetitions, targets };
        let usual = (wishes.shape, wishes.data_type);
        // D and E insert, so they come last, and on data of their own.
        let others = closed(&[Workload::B, Workload::F, Workload::Uniform, Workload::Sequential, Workload::D]);
        let names = if wishes.quick { lineup.workloads_quick } else { lineup.workloads };
        let mut stages = vec![stage("workloads", self.of(names, usual, false, &others))];
        if *kind == ServerKind::Redis {
            stages.push(stage("scans", self.of(names, usual, true, &closed(&[Workload::E]))));
            let hashes = (wishes.shape, if wishes.data_type == DataType::Strings { DataType::Hashes } else { DataType::Strings });
            stages.push(stage("another data type", self.with_dram(lineup.hashes, hashes, &closed(&[Workload::C, Workload::A]))));
        }

        let mix: ValueSizes = "100:40,1000:40,4096:15,16384:5".parse().map_err(anyhow::Error::msg)?;
        let sizes = if wishes.quick {
            vec![ValueSizes::fixed(4096)]
        } else {
            vec![ValueSizes::fixed(100), ValueSizes::fixed(4096), ValueSizes::fixed(16_384), mix]
        };
        // Fields of hashes can only be checked when they are large enough.
        let least = kind.protocol(wishes.data_type, false).value_size_min();
        let sizes = sizes.into_iter().filter(|sizes| sizes.parts().iter().all(|part| part.size >= least));
        let names: &[&str] = if wishes.quick { &lineup.duel } else { lineup.sizes };
        let both = closed(&[Workload::C, Workload::A]);
        let of_sizes = sizes.flat_map(|sizes| self.of(names, (resized(&wishes.shape, sizes), wishes.data_type), false, &both)).collect();
        stages.push(stage("value sizes", of_sizes));

        let measurement = |workload, of, percent| Measurement { workload, load: Load::Open { percent, of } };
        let rates = lineup.open_rates(wishes.quick);
        let at_rates =
            |workload| rates.into_iter().flat_map(move |(of, percents)| percents.iter().map(move |&percent| measurement(workload, of, percent)));
        let open: Vec<Measurement> = at_rates(Workload::C).chain(at_rates(Workload::A)).collect();
        stages.push(stage("open loop", self.of(&lineup.duel, usual, false, &open)));

        let by_others = |load| Measurement { workload: Workload::C, load };
        let patterns = if wishes.quick { vec![Pattern::Uniform] } else { vec![Pattern::Uniform, Pattern::Zipfian] };
        let second_opinion: Vec<Measurement> = patterns.into_iter().map(|pattern| by_others(Load::Memtier(pattern))).collect();
        let compared = [lineup.dram, lineup.duel[0], lineup.duel[1]];
        let strings = (wishes.shape, DataType::Strings);
        stages.push(stage(MEMTIER_STAGE, self.with_dram(&compared, strings, &second_opinion)));
        if *kind == ServerKind::Redis {
            stages.push(stage(REDIS_BENCHMARK_STAGE, self.with_dram(&compared, strings, &[by_others(Load::RedisBenchmark)])));
        }
        Ok(stages)
    }
}

impl Plan {
    pub fn demo(wishes: &Wishes) -> Result<Self> {
        let default_ratios: &[f64] = if wishes.server_kind == ServerKind::Redis { &REDIS_DEMO_RATIOS } else { &DEMO_RATIOS };
        let ratios = if wishes.ratios.is_empty() { default_ratios } else { wishes.ratios.as_slice() };
        let usual_repetitions = if wishes.server_kind == ServerKind::Redis { 2 } else { 3 };
        let repetitions = wishes.repetitions.unwrap_or(if wishes.quick { 1 } else { usual_repetitions });
        let configurations = configurations(wishes, Lineup::of(wishes.server_kind).demo)?;
        let stage = over_memory(&configurations, ratios, (wishes.shape, wishes.data_type), repetitions);
        let times = match (wishes.quick, wishes.server_kind) {
            (true, ServerKind::Redis) => redis::QUICK_TIMES,
            (false, ServerKind::Redis) => redis::TIMES,
            (true, ServerKind::Memcached) => QUICK_TIMES,
            (false, ServerKind::Memcached) => Times { warm_up_max: Duration::from_secs(15), duration: Duration::from_secs(4), ..TIMES },
        };
        let sweep_ratios = ratios.iter().copied().filter(|&ratio| ratio == FOCUS || (ratio == 0.5 && !wishes.quick)).collect();
        // Redis's takes half as long, so it tries fewer settings.
        let quick = wishes.quick || wishes.server_kind == ServerKind::Redis;
        Self { stages: vec![stage], sweep_ratios, shape: wishes.shape, times, quick }.filtered(wishes)
    }

    pub fn grid(wishes: &Wishes) -> Result<Self> {
        if wishes.server_kind == ServerKind::Redis && wishes.configurations.is_empty() {
            return redis::grid(wishes);
        }
        let default_ratios: &[f64] = if wishes.quick { &GRID_RATIOS_QUICK } else { &GRID_RATIOS };
        let ratios = if wishes.ratios.is_empty() { default_ratios } else { wishes.ratios.as_slice() };
        let repetitions = wishes.repetitions.unwrap_or(if wishes.quick { 1 } else { 3 });
        let usual = (wishes.shape, wishes.data_type);
        let lineup = Lineup::of(wishes.server_kind);
        let configurations = configurations(wishes, lineup.grid)?;
        let mut stages = vec![over_memory(&configurations, ratios, usual, repetitions)];

        if wishes.configurations.is_empty() && ratios.contains(&FOCUS) {
            let of_remote = over_memory(&self::configurations(wishes, lineup.at_focus)?, &[FOCUS], usual, repetitions).targets;
            let stage = &mut stages[0];
            let end = stage.targets.iter().rposition(|target| target.ratio == FOCUS).map_or(stage.targets.len(), |last| last + 1);
            stage.targets.splice(end..end, of_remote);
            let text = Shape { value_kind: ValueKind::Text, ..wishes.shape };
            let of_text = over_memory(&self::configurations(wishes, lineup.of_text)?, &[FOCUS], (text, wishes.data_type), repetitions);
            stages.push(Stage { name: "values that compress", ..of_text });
        }

        let limited: Vec<f64> = ratios.iter().copied().filter(|&ratio| ratio < 1.0).collect();
        let focus = if limited.contains(&FOCUS) { Some(FOCUS) } else { limited.iter().copied().min_by(f64::total_cmp) };
        if let Some(ratio) = focus {
            for kind in [ServerKind::Memcached, ServerKind::Redis] {
                if configurations.iter().any(|configuration| configuration.server_kind == kind) {
                    let duels = Duels { configurations: &configurations, lineup: Lineup::of(kind), kind, ratio, has_dram: ratios.contains(&1.0) };
                    stages.extend(duels.stages(wishes, repetitions)?);
                }
            }
        }
        let times = if wishes.quick { QUICK_TIMES } else { TIMES };
        Self { stages, sweep_ratios: focus.into_iter().collect(), shape: wishes.shape, times, quick: wishes.quick }.filtered(wishes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::wishes;

    #[test]
    fn the_grid_has_every_configuration_at_its_ratios() {
        let plan = Plan::grid(&wishes()).unwrap();
        let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["local memory", "values that compress", "workloads", "value sizes", "open loop", "memtier"]);
        let first = &plan.stages[0];
        assert_eq!((first.repetitions.clone(), first.targets.len()), (1..=3, 2 + 7 * 4 + 4));
        let remote: Vec<f64> = first.targets.iter().filter(|target| target.configuration.memory_servers > 0).map(|target| target.ratio).collect();
        assert_eq!(remote, [FOCUS; 4]);
        // What remote memory is compared with takes turns with it.
        let position =
            |name: &str| first.targets.iter().position(|target| (target.configuration.name.as_str(), target.ratio) == (name, FOCUS)).unwrap();
        assert!(position("lightswap-remote") - position("kernel-swap-zram") < 10);
        assert_eq!(position("fastswap-style-remote"), position("lightswap-remote") + 1);
        assert!(first.targets.iter().all(|target| target.configuration.is_limited() == (target.ratio < 1.0)));
        assert!(first.targets.is_sorted_by(|a, b| a.ratio >= b.ratio));
        // Compressed memory and zram get the same values.
        let text: Vec<&str> = plan.stages[1].targets.iter().map(|target| target.configuration.name.as_str()).collect();
        assert_eq!(text, MEMCACHED.of_text);
        assert!(plan.stages[1].targets.iter().all(|target| target.shape.value_kind == ValueKind::Text && target.ratio == FOCUS));
        // The same bytes whatever the size.
        for target in &plan.stages[3].targets {
            let bytes = target.shape.records * (target.shape.value_sizes.mean() as u64 + 80);
            assert!(bytes.abs_diff(540_000_000) < 20_000, "{bytes}");
        }
        let minutes = plan.estimate(|_, _, _| false).as_secs() / 60;
        assert!((30..110).contains(&minutes), "{minutes}");
        assert!(plan.estimate(|_, _, _| true) < plan.estimate(|_, _, _| false) / 3);
    }

    #[test]
    fn both_servers_take_turns_in_one_run() {
        // Each with its own records, in turn at every limit.
        let configurations = ["dram", "redis-dram", "lightswap", "redis-lightswap"].map(str::to_owned).to_vec();
        let plan = Plan::grid(&Wishes { configurations, workloads: vec![Workload::C], ratios: vec![1.0, FOCUS], ..wishes() }).unwrap();
        let servers = plan.stages[0].targets.iter().map(|target| target.shape.protocol.server()).collect::<Vec<_>>();
        assert_eq!(servers, ["memcached", "redis", "memcached", "redis"]);
    }

    #[test]
    fn the_demo_of_redis_takes_five_minutes() {
        let of = |quick| Plan::demo(&Wishes { quick, server_kind: ServerKind::Redis, ..wishes() }).unwrap();
        let cells: Vec<(String, f64)> = of(false).targets().map(|target| (target.configuration.name.clone(), target.ratio)).collect();
        assert_eq!(cells.len(), 5);
        assert!(cells.contains(&("redis-lightswap".into(), FOCUS)) && cells.contains(&("redis-dram".into(), 1.0)), "{cells:?}");
        let seconds = [false, true].map(|quick| of(quick).estimate(|_, _, _| false).as_secs());
        // The dump under load takes another minute.
        assert!((120..250).contains(&seconds[0]) && seconds[1] < 135, "{seconds:?}");
    }

    #[test]
    fn the_demo_is_the_readmes() {
        let plan = Plan::demo(&wishes()).unwrap();
        let cells: Vec<(&str, f64)> = plan.targets().map(|target| (target.configuration.name.as_str(), target.ratio)).collect();
        let expected =
            [("dram", 1.0), ("lightswap-dram", 1.0), ("kernel-swap-ssd", 0.5), ("lightswap", 0.5), ("kernel-swap-ssd", 0.25), ("lightswap", 0.25)];
        assert_eq!(cells, expected);
        let quick = Plan::demo(&Wishes { quick: true, ..wishes() }).unwrap();
        assert!(quick.estimate(|_, _, _| false) < plan.estimate(|_, _, _| false) / 2);
    }
}
