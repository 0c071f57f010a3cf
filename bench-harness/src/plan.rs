//! What is measured in which order: the plans of `demo` and `grid`.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::configuration::{Binary, Configuration, Memory, find, find_all};
use crate::generator::{Shape, WarmUp};
use crate::memtier::Pattern;
use crate::sweep::rounds;
use crate::value_sizes::ValueSizes;
use crate::ycsb::Workload;

/// How requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Each connection asks again when it was answered.
    Closed,
    /// So many are due a second: this percent of what that configuration served in a closed loop at the same ratio.
    Open { percent: u32, of: &'static str },
    /// By memtier_benchmark, with its own records; the workload is then only what its settings are chosen by.
    Memtier(Pattern),
}

/// The rates of the open loops, in percent of what these configurations serve in a closed loop; each configuration gets all of them. The slower
/// one's rates are what both can sustain: there latencies can be compared.
const OPEN_RATES: [(&str, &[u32]); 2] = [("kernel-swap-ssd", &[50, 90]), ("lightswap", &[50, 75])];
const OPEN_RATES_QUICK: [(&str, &[u32]); 2] = [("kernel-swap-ssd", &[80]), ("lightswap", &[])];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    pub workload: Workload,
    pub load: Load,
}

/// One server and what runs on it, on one load of its data. The settings are those that the sweep finds best.
#[derive(Debug, Clone)]
pub struct Target {
    pub configuration: Rc<Configuration>,
    pub ratio: f64,
    pub shape: Shape,
    pub measurements: Vec<Measurement>,
}

/// Targets that are repeated together, every other time backwards, so that drift hits all alike.
#[derive(Debug, Clone)]
pub struct Stage {
    pub name: &'static str,
    pub repetitions: u32,
    pub targets: Vec<Target>,
}

#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub warm_up: Duration,
    pub warm_up_max: Duration,
    pub duration: Duration,
    pub sweep_warm_up_max: Duration,
    pub sweep_duration: Duration,
    pub probe_seconds: u64,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub stages: Vec<Stage>,
    /// Where the settings are tried; others use what was best at the nearest of these.
    pub sweep_ratios: Vec<f64>,
    /// What settings are tried on first.
    pub shape: Shape,
    pub times: Times,
    pub quick: bool,
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

/// What can be asked of a plan.
#[derive(Debug, Clone)]
pub struct Wishes {
    pub quick: bool,
    /// All built-in ones when empty.
    pub configurations: Vec<String>,
    /// All that the plan has when empty.
    pub workloads: Vec<Workload>,
    pub ratios: Vec<f64>,
    pub repetitions: Option<u32>,
    pub shape: Shape,
}

const GRID: [&str; 9] =
    ["dram", "lightswap-dram", "kernel-swap-ssd", "kernel-swap-zram", "extstore", "fastswap-style", "monitor", "lightswap", "lightswap-memory"];
/// Beside those at the focus alone, where kernel swap on zram takes turns with them.
const GRID_AT_FOCUS: [&str; 6] =
    ["lightswap-remote", "fastswap-style-remote", "lightswap-mirror", "lightswap-encrypted", "lightswap-compressed", "lightswap-tier"];
const DEMO: [&str; 4] = ["dram", "lightswap-dram", "kernel-swap-ssd", "lightswap"];
const GRID_RATIOS: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.1];
const GRID_RATIOS_QUICK: [f64; 3] = [1.0, 0.5, 0.25];
const DEMO_RATIOS: [f64; 3] = [1.0, 0.5, 0.25];
/// A second opinion, where there is one.
pub const MEMTIER_STAGE: &str = "memtier";
const PAGE_BYTES: usize = 4096;
/// The ratio at which more than C and A is compared.
const FOCUS: f64 = 0.25;

fn closed(workloads: &[Workload]) -> Vec<Measurement> {
    workloads.iter().map(|&workload| Measurement { workload, load: Load::Closed }).collect()
}

/// The workload of a sweep whose best settings serve this one too.
pub fn swept_like(workload: Workload) -> Workload {
    match workload {
        Workload::A | Workload::F => Workload::A,
        Workload::B | Workload::C | Workload::D | Workload::Uniform => Workload::C,
        Workload::Sequential => Workload::Sequential,
    }
}

/// Where settings are tried.
#[derive(Debug)]
pub struct SweptData {
    /// Without measurements.
    pub target: Target,
    pub workloads: Vec<Workload>,
    /// Only settings that depend on how data lies on disk, from what was best on the first shape.
    pub again: bool,
}

/// As many records of another size as have the same bytes, keys and headers included.
fn resized(shape: &Shape, value_sizes: ValueSizes) -> Shape {
    const KEY_AND_HEADER_BYTES: u64 = 80;
    let of_record = |value_sizes: &ValueSizes| value_sizes.mean() as u64 + KEY_AND_HEADER_BYTES;
    Shape { records: (shape.records * of_record(&shape.value_sizes) / of_record(&value_sizes)).max(1), value_sizes, ..*shape }
}

/// None of those that come with the harness.
fn is_own(name: &str) -> bool {
    !GRID.contains(&name) && !GRID_AT_FOCUS.contains(&name)
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
    Stage { name: "local memory", repetitions, targets: ratios.into_iter().flat_map(at).collect() }
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

    fn filtered(mut self, wishes: &Wishes) -> Result<Self> {
        for stage in &mut self.stages {
            for target in &mut stage.targets {
                target.measurements.retain(|measurement| wishes.workloads.is_empty() || wishes.workloads.contains(&measurement.workload));
            }
            stage.targets.retain(|target| !target.measurements.is_empty());
        }
        self.stages.retain(|stage| !stage.targets.is_empty());
        if self.stages.is_empty() {
            bail!("nothing is left to measure; with these configurations, workloads and ratios the plan is empty");
        }
        Ok(self)
    }

    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.stages.iter().flat_map(|stage| &stage.targets)
    }

    /// Each configuration once, in the order of the plan.
    pub fn configurations(&self) -> Vec<Rc<Configuration>> {
        let mut all: Vec<Rc<Configuration>> = Vec::new();
        for target in self.targets() {
            if !all.iter().any(|known| known.name == target.configuration.name) {
                all.push(Rc::clone(&target.configuration));
            }
        }
        all
    }

    pub fn leave_out(&mut self, name: &str) {
        for stage in &mut self.stages {
            stage.targets.retain(|target| target.configuration.name != name);
        }
        self.stages.retain(|stage| !stage.targets.is_empty());
    }

    /// The shape whose best settings serve this one too: values of less than a page all lie together with others.
    pub fn swept_shape(&self, shape: &Shape) -> Shape {
        if shape.value_sizes.largest() < PAGE_BYTES { self.shape } else { *shape }
    }

    /// What a sweep of this configuration tries its settings on, at each of the sweep's ratios.
    pub fn swept_data(&self, configuration: &Rc<Configuration>) -> Vec<SweptData> {
        let mut wanted: Vec<(Shape, Workload)> = Vec::new();
        for target in self.targets().filter(|target| target.configuration.name == configuration.name) {
            for measurement in &target.measurements {
                let swept = (self.swept_shape(&target.shape), swept_like(measurement.workload));
                if !wanted.contains(&swept) {
                    wanted.push(swept);
                }
            }
        }
        let random = [Workload::C, Workload::A];
        let first: Vec<Workload> = random.into_iter().filter(|like| wanted.iter().any(|(_, workload)| workload == like)).collect();
        let mut all = vec![(self.shape, first, false)];
        if wanted.contains(&(self.shape, Workload::Sequential)) {
            all.push((self.shape, vec![Workload::Sequential], true));
        }
        let mut others: Vec<Shape> = Vec::new();
        for (shape, _) in wanted.iter().filter(|(shape, _)| *shape != self.shape) {
            if !others.contains(shape) {
                others.push(*shape);
            }
        }
        for shape in others {
            all.push((shape, random.into_iter().filter(|&workload| wanted.contains(&(shape, workload))).collect(), true));
        }
        let data = |(ratio, (shape, workloads, again)): (f64, &(Shape, Vec<Workload>, bool))| SweptData {
            target: Target { configuration: Rc::clone(configuration), ratio, shape: *shape, measurements: Vec::new() },
            workloads: workloads.clone(),
            again: *again,
        };
        let ratios = if configuration.is_limited() { self.sweep_ratios.as_slice() } else { &[1.0] };
        let swept = all.iter().filter(|(_, workloads, _)| !workloads.is_empty());
        swept.flat_map(|of_shape| ratios.iter().map(move |&ratio| data((ratio, of_shape)))).collect()
    }

    /// As many operations as records fit into memory, so that the slower server, too, has had the chance to hold what is asked for. Where all
    /// records are in memory after loading there is nothing to replace.
    pub fn warm_up(&self, target: &Target, sweep: bool) -> WarmUp {
        let operations = if target.configuration.is_limited() { (target.shape.records as f64 * target.ratio) as u64 } else { 0 };
        let most = if sweep { self.times.sweep_warm_up_max } else { self.times.warm_up_max };
        WarmUp { least: self.times.warm_up.min(most), most, operations }
    }

    /// How long all of it takes, about, on the kind of machine that the recorded results come from. Finished cells count as zero with `is_done`.
    pub fn estimate(&self, is_done: impl Fn(&Target, &Measurement, u32) -> bool) -> Duration {
        let mut seconds = 10.0;
        for stage in &self.stages {
            for (target, repetition) in stage.targets.iter().flat_map(|target| (1..=stage.repetitions).map(move |repetition| (target, repetition))) {
                let left = target.measurements.iter().filter(|measurement| !is_done(target, measurement, repetition)).count();
                if left > 0 {
                    let warm_up = (self.times.warm_up * 3 + self.times.warm_up_max).as_secs_f64() / 4.0;
                    seconds += load_seconds(target) + (warm_up + self.times.duration.as_secs_f64()) * left as f64;
                }
            }
        }
        for configuration in self.configurations() {
            for data in self.swept_data(&configuration) {
                let rounds: Vec<usize> = rounds(&configuration, self.quick, data.again).map(|(_, values)| values.len()).collect();
                let tried: usize = rounds.iter().sum();
                // The best value of one setting is among the candidates of the next.
                let tried = if tried < 2 { 0 } else { tried + 1 - rounds.len() };
                let warm_up = (self.times.warm_up + self.times.sweep_warm_up_max).as_secs_f64() / 2.0;
                let each = (warm_up + self.times.sweep_duration.as_secs_f64()) * data.workloads.len() as f64;
                seconds += tried as f64 * (load_seconds(&data.target) + each);
            }
        }
        Duration::from_secs_f64(seconds)
    }

    pub fn print(&self) {
        for stage in &self.stages {
            say!("{} ({} repetition{}):", stage.name, stage.repetitions, if stage.repetitions == 1 { "" } else { "s" });
            for target in &stage.targets {
                let measurements: Vec<String> = target.measurements.iter().map(Measurement::label).collect();
                say!(
                    "  {:16} {:>3.0} %  {}  {}",
                    target.configuration.name,
                    target.ratio * 100.0,
                    data_label(&target.shape),
                    measurements.join(", ")
                );
            }
        }
        for configuration in self.configurations() {
            for data in self.swept_data(&configuration) {
                let workloads: Vec<&str> = data.workloads.iter().map(|workload| workload.name()).collect();
                for (setting, values) in rounds(&configuration, self.quick, data.again).filter(|(_, values)| values.len() > 1) {
                    say!(
                        "sweep of {}: {setting} {} at {:.0} %, {} of {}",
                        configuration.name,
                        values.join(", "),
                        data.target.ratio * 100.0,
                        workloads.join(" and "),
                        data_label(&data.target.shape)
                    );
                }
            }
        }
    }
}

/// Starting, loading and stopping, as measured where the recorded results come from.
fn load_seconds(target: &Target) -> f64 {
    let records = target.shape.records as f64;
    let megabytes = records * target.shape.value_sizes.mean() as f64 / 1e6;
    let (us_a_record, megabytes_per_second) = match (target.configuration.memory, target.configuration.binary) {
        (Memory::Extstore, _) => (3.0, 36.0),
        (Memory::KernelSwap, _) => (4.0, 150.0),
        (_, Binary::Lightswap) => (4.0, 200.0),
        _ => (4.0, 1_000.0),
    };
    1.0 + records * us_a_record / 1e6 + megabytes / megabytes_per_second
}

/// `500000x1000`, or `5000x100:40,1000:60`.
pub fn data_label(shape: &Shape) -> String {
    let mix = shape.value_sizes.mix();
    if mix.is_empty() { format!("{}x{}", shape.records, shape.value_sizes.mean()) } else { format!("{}x{mix}", shape.records) }
}

impl Measurement {
    pub fn label(&self) -> String {
        match self.load {
            Load::Closed => self.workload.name().into(),
            Load::Open { percent, of } => format!("{} open {percent} % of {of}", self.workload.name()),
            Load::Memtier(pattern) => format!("memtier {}", pattern.name()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn wishes() -> Wishes {
        let shape = Shape { records: 500_000, value_sizes: ValueSizes::fixed(1_000), connections: 64, client_threads: 1 };
        Wishes { quick: false, configurations: Vec::new(), workloads: Vec::new(), ratios: Vec::new(), repetitions: None, shape }
    }

    #[test]
    fn the_grid_has_every_configuration_at_its_ratios() {
        let plan = Plan::grid(&wishes()).unwrap();
        let names: Vec<&str> = plan.stages.iter().map(|stage| stage.name).collect();
        assert_eq!(names, ["local memory", "workloads", "value sizes", "open loop", "memtier"]);
        let first = &plan.stages[0];
        assert_eq!((first.repetitions, first.targets.len()), (3, 2 + 7 * 4 + 6));
        let remote: Vec<f64> = first.targets.iter().filter(|target| target.configuration.memory_servers > 0).map(|target| target.ratio).collect();
        assert_eq!(remote, [FOCUS; 5]);
        // What remote memory is compared with takes turns with it.
        let position =
            |name: &str| first.targets.iter().position(|target| (target.configuration.name.as_str(), target.ratio) == (name, FOCUS)).unwrap();
        assert!(position("lightswap-remote") - position("kernel-swap-zram") < 10);
        assert_eq!(position("fastswap-style-remote"), position("lightswap-remote") + 1);
        assert!(first.targets.iter().all(|target| target.configuration.is_limited() == (target.ratio < 1.0)));
        assert!(first.targets.is_sorted_by(|a, b| a.ratio >= b.ratio));
        // The same bytes whatever the size.
        for target in &plan.stages[2].targets {
            let bytes = target.shape.records * (target.shape.value_sizes.mean() as u64 + 80);
            assert!(bytes.abs_diff(540_000_000) < 20_000, "{bytes}");
        }
        let minutes = plan.estimate(|_, _, _| false).as_secs() / 60;
        assert!((30..110).contains(&minutes), "{minutes}");
        assert!(plan.estimate(|_, _, _| true) < plan.estimate(|_, _, _| false) / 3);
    }

    #[test]
    fn settings_are_tried_where_they_matter() {
        let plan = Plan::grid(&wishes()).unwrap();
        let swept = |name: &str| plan.swept_data(&find(name).unwrap());
        let kernel_swap = swept("kernel-swap-ssd");
        assert_eq!(kernel_swap[0].workloads, [Workload::C, Workload::A]);
        assert_eq!(kernel_swap[1].workloads, [Workload::Sequential]);
        assert!(kernel_swap.iter().all(|data| data.target.ratio == FOCUS));
        // 100 B lie together in pages as 1,000 B do; 4 KiB, 16 KiB and the mix do not.
        assert_eq!(kernel_swap.iter().map(|data| data.again).collect::<Vec<_>>(), [false, true, true, true, true]);
        assert!(kernel_swap[2..].iter().all(|data| data.target.shape.value_sizes.largest() >= PAGE_BYTES));
        // It takes part in the first stage only.
        assert_eq!(swept("kernel-swap-zram").len(), 1);
        assert_eq!((swept("dram").len(), swept("dram")[0].target.ratio), (1, 1.0));
    }

    #[test]
    fn wishes_narrow_the_plan() {
        let narrow = Wishes {
            configurations: vec!["lightswap".into(), "dram".into()],
            workloads: vec![Workload::A],
            ratios: vec![0.1, 1.0],
            repetitions: Some(2),
            ..wishes()
        };
        let plan = Plan::grid(&narrow).unwrap();
        let cells: Vec<(&str, f64)> = plan.stages[0].targets.iter().map(|target| (target.configuration.name.as_str(), target.ratio)).collect();
        assert_eq!(cells, [("dram", 1.0), ("lightswap", 0.1)]);
        assert!(plan.targets().flat_map(|target| &target.measurements).all(|measurement| measurement.workload == Workload::A));
        assert!(plan.stages.iter().all(|stage| stage.repetitions == 2));
        let nothing = Wishes { workloads: vec![Workload::D], ratios: vec![1.0], ..wishes() };
        assert!(Plan::grid(&nothing).unwrap_err().to_string().contains("the plan is empty"));
        let unknown = Wishes { configurations: vec!["lightswop".into()], ..wishes() };
        assert!(Plan::demo(&unknown).unwrap_err().to_string().contains("lightswap"));
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
