//! The stages of `demo` and `grid`.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use super::{Load, Measurement, Plan, Stage, Target, Times, Wishes};
use crate::configuration::{Configuration, find, find_all};
use crate::generator::Shape;
use crate::memtier::Pattern;
use crate::value_sizes::ValueSizes;
use crate::values::ValueKind;
use crate::ycsb::Workload;

/// The rates of the open loops, in percent of what these configurations serve in a closed loop; each configuration gets all of them. The slower
/// one's rates are what both can sustain: there latencies can be compared.
const OPEN_RATES: [(&str, &[u32]); 2] = [("kernel-swap-ssd", &[50, 90]), ("lightswap", &[50, 75])];
const OPEN_RATES_QUICK: [(&str, &[u32]); 2] = [("kernel-swap-ssd", &[80]), ("lightswap", &[])];

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

const GRID: [&str; 9] =
    ["dram", "lightswap-dram", "kernel-swap-ssd", "kernel-swap-zram", "extstore", "fastswap-style", "monitor", "lightswap", "lightswap-memory"];
/// Beside those at the focus alone, where kernel swap on zram takes turns with them.
const GRID_AT_FOCUS: [&str; 4] = ["lightswap-remote", "fastswap-style-remote", "lightswap-mirror", "lightswap-encrypted"];
/// At the focus, with values that compress, as it is of no use to compress others.
const GRID_OF_TEXT: [&str; 3] = ["kernel-swap-zram", "lightswap-compressed", "lightswap-tier"];
const DEMO: [&str; 4] = ["dram", "lightswap-dram", "kernel-swap-ssd", "lightswap"];
const GRID_RATIOS: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.1];
const GRID_RATIOS_QUICK: [f64; 3] = [1.0, 0.5, 0.25];
const DEMO_RATIOS: [f64; 3] = [1.0, 0.5, 0.25];
const MEMORY_STAGE: &str = "local memory";
/// A second opinion, where there is one.
pub const MEMTIER_STAGE: &str = "memtier";
/// The ratio at which more than C and A is compared.
pub(super) const FOCUS: f64 = 0.25;

fn closed(workloads: &[Workload]) -> Vec<Measurement> {
    workloads.iter().map(|&workload| Measurement { workload, load: Load::Closed }).collect()
}

/// As many records of another size as have the same bytes, keys and headers included.
fn resized(shape: &Shape, value_sizes: ValueSizes) -> Shape {
    const KEY_AND_HEADER_BYTES: u64 = 80;
    let of_record = |value_sizes: &ValueSizes| value_sizes.mean() as u64 + KEY_AND_HEADER_BYTES;
    Shape { records: (shape.records * of_record(&shape.value_sizes) / of_record(&value_sizes)).max(1), value_sizes, ..*shape }
}

/// None of those that come with the harness.
fn is_own(name: &str) -> bool {
    !GRID.contains(&name) && !GRID_AT_FOCUS.contains(&name) && !GRID_OF_TEXT.contains(&name)
}

fn configurations(wishes: &Wishes, all: &[&str]) -> Result<Vec<Rc<Configuration>>> {
    if wishes.configurations.is_empty() {
        return all.iter().map(|name| find(name)).collect();
    }
    find_all(&wishes.configurations)
}

/// C first: it leaves the data as loaded. Much memory first; configurations that are compared follow each other.
fn over_memory(configurations: &[Rc<Configuration>], ratios: &[f64], shape: Shape, repetitions: u32) -> Stage {
    let mut ratios = ratios.to_vec();
    ratios.sort_by(|a, b| b.total_cmp(a));
    let at = |ratio: f64| {
        // All of the data in memory is what the configurations without a limit are for.
        let fits = move |configuration: &&Rc<Configuration>| configuration.is_limited() == (ratio < 1.0);
        configurations.iter().filter(fits).map(move |configuration| Target {
            configuration: Rc::clone(configuration),
            ratio,
            shape,
            measurements: closed(&[Workload::C, Workload::A]),
        })
    };
    Stage { name: MEMORY_STAGE, repetitions, targets: ratios.into_iter().flat_map(at).collect() }
}

impl Plan {
    pub fn demo(wishes: &Wishes) -> Result<Self> {
        let ratios = if wishes.ratios.is_empty() { &DEMO_RATIOS } else { wishes.ratios.as_slice() };
        let repetitions = wishes.repetitions.unwrap_or(if wishes.quick { 1 } else { 3 });
        let stage = over_memory(&configurations(wishes, &DEMO)?, ratios, wishes.shape, repetitions);
        let times =
            if wishes.quick { QUICK_TIMES } else { Times { warm_up_max: Duration::from_secs(15), duration: Duration::from_secs(4), ..TIMES } };
        let sweep_ratios = if wishes.quick { vec![FOCUS] } else { vec![0.5, FOCUS] };
        Self { stages: vec![stage], sweep_ratios, shape: wishes.shape, times, quick: wishes.quick }.filtered(wishes)
    }

    pub fn grid(wishes: &Wishes) -> Result<Self> {
        let default_ratios: &[f64] = if wishes.quick { &GRID_RATIOS_QUICK } else { &GRID_RATIOS };
        let ratios = if wishes.ratios.is_empty() { default_ratios } else { wishes.ratios.as_slice() };
        let repetitions = wishes.repetitions.unwrap_or(if wishes.quick { 1 } else { 3 });
        let configurations = configurations(wishes, &GRID)?;
        let mut stages = vec![over_memory(&configurations, ratios, wishes.shape, repetitions)];

        if wishes.configurations.is_empty() && ratios.contains(&FOCUS) {
            let of_remote = over_memory(&self::configurations(wishes, &GRID_AT_FOCUS)?, &[FOCUS], wishes.shape, repetitions).targets;
            let stage = &mut stages[0];
            let end = stage.targets.iter().rposition(|target| target.ratio == FOCUS).map_or(stage.targets.len(), |last| last + 1);
            stage.targets.splice(end..end, of_remote);
            let text = Shape { value_kind: ValueKind::Text, ..wishes.shape };
            let of_text = over_memory(&self::configurations(wishes, &GRID_OF_TEXT)?, &[FOCUS], text, repetitions);
            stages.push(Stage { name: "values that compress", ..of_text });
        }

        let limited: Vec<f64> = ratios.iter().copied().filter(|&ratio| ratio < 1.0).collect();
        let focus = if limited.contains(&FOCUS) { Some(FOCUS) } else { limited.iter().copied().min_by(f64::total_cmp) };
        if let Some(ratio) = focus {
            let of = |names: &[&str], shape: Shape, measurements: Vec<Measurement>| -> Vec<Target> {
                // Configurations of one's own take part in everything.
                let wanted = |configuration: &&Rc<Configuration>| {
                    configuration.is_limited() && (names.contains(&configuration.name.as_str()) || is_own(&configuration.name))
                };
                let target = |configuration: &Rc<Configuration>| Target {
                    configuration: Rc::clone(configuration),
                    ratio,
                    shape,
                    measurements: measurements.clone(),
                };
                configurations.iter().filter(wanted).map(target).collect()
            };
            // D inserts, so it comes last.
            let others = [Workload::B, Workload::F, Workload::Uniform, Workload::Sequential, Workload::D];
            let names: &[&str] =
                if wishes.quick { &["kernel-swap-ssd", "lightswap"] } else { &["kernel-swap-ssd", "extstore", "fastswap-style", "lightswap"] };
            stages.push(Stage { name: "workloads", repetitions, targets: of(names, wishes.shape, closed(&others)) });

            let mix: ValueSizes = "100:40,1000:40,4096:15,16384:5".parse().map_err(anyhow::Error::msg)?;
            let sizes = if wishes.quick {
                vec![ValueSizes::fixed(4096)]
            } else {
                vec![ValueSizes::fixed(100), ValueSizes::fixed(4096), ValueSizes::fixed(16_384), mix]
            };
            let names: &[&str] = if wishes.quick { &["kernel-swap-ssd", "lightswap"] } else { &["kernel-swap-ssd", "extstore", "lightswap"] };
            let targets = sizes.into_iter().flat_map(|sizes| of(names, resized(&wishes.shape, sizes), closed(&[Workload::C, Workload::A]))).collect();
            stages.push(Stage { name: "value sizes", repetitions, targets });

            let rates = if wishes.quick { OPEN_RATES_QUICK } else { OPEN_RATES };
            let measurement = |workload, of, percent| Measurement { workload, load: Load::Open { percent, of } };
            let at_rates =
                |workload| rates.into_iter().flat_map(move |(of, percents)| percents.iter().map(move |&percent| measurement(workload, of, percent)));
            let open = at_rates(Workload::C).chain(at_rates(Workload::A)).collect();
            stages.push(Stage { name: "open loop", repetitions, targets: of(&["kernel-swap-ssd", "lightswap"], wishes.shape, open) });

            let patterns = if wishes.quick { vec![Pattern::Uniform] } else { vec![Pattern::Uniform, Pattern::Zipfian] };
            let second_opinion =
                patterns.into_iter().map(|pattern| Measurement { workload: Workload::C, load: Load::Memtier(pattern) }).collect::<Vec<_>>();
            let mut targets = of(&["kernel-swap-ssd", "lightswap"], wishes.shape, second_opinion.clone());
            let dram = configurations.iter().filter(|configuration| configuration.name == "dram" && ratios.contains(&1.0));
            targets.extend(dram.map(|configuration| Target {
                configuration: Rc::clone(configuration),
                ratio: 1.0,
                shape: wishes.shape,
                measurements: second_opinion.clone(),
            }));
            stages.push(Stage { name: MEMTIER_STAGE, repetitions, targets });
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
        assert_eq!((first.repetitions, first.targets.len()), (3, 2 + 7 * 4 + 4));
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
        assert_eq!(text, GRID_OF_TEXT);
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
