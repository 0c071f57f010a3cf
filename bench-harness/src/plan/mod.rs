//! What is measured in which order: the plans of `demo` and `grid`.

mod estimate;
mod redis;
mod stages;
mod swept;

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::configuration::Configuration;
use crate::generator::{Shape, WarmUp};
use crate::memtier::Pattern;
use crate::protocol::DataType;
use crate::redis_benchmark;
use crate::server_kind::ServerKind;
use crate::ycsb::Workload;

pub use stages::{MEMTIER_STAGE, REDIS_BENCHMARK_STAGE};
pub use swept::{SweptData, swept_like};

/// How requests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Each connection asks again when it was answered.
    Closed,
    /// So many are due a second: this percent of what that configuration served in a closed loop at the same ratio.
    Open { percent: u32, of: &'static str },
    /// By memtier_benchmark, with its own records; the workload is then only what its settings are chosen by.
    Memtier(Pattern),
    /// The same by redis-benchmark.
    RedisBenchmark,
}

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
    /// Not from 1 where an earlier stage has those before.
    pub repetitions: RangeInclusive<u32>,
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
    /// Whose configurations are meant where none are named.
    pub server_kind: ServerKind,
    /// Without the protocol, which each configuration has its own of.
    pub shape: Shape,
    /// What Redis keeps records as.
    pub data_type: DataType,
}

impl Plan {
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

    /// As many operations as records fit into memory, so that the slower server, too, has had the chance to hold what is asked for. Where all
    /// records are in memory after loading there is nothing to replace.
    pub fn warm_up(&self, target: &Target, sweep: bool) -> WarmUp {
        let operations = if target.configuration.is_limited() { (target.shape.records as f64 * target.ratio) as u64 } else { 0 };
        let most = if sweep { self.times.sweep_warm_up_max } else { self.times.warm_up_max };
        WarmUp { least: self.times.warm_up.min(most), most, operations }
    }
}

/// `500000x1000`, `500000x1000 text`, `500000x1000 hashes`, or `5000x100:40,1000:60`.
pub fn data_label(shape: &Shape) -> String {
    let mix = shape.value_sizes.mix();
    let sizes = if mix.is_empty() { shape.value_sizes.mean().to_string() } else { mix };
    let parts = [shape.value_kind.name(), shape.protocol.data_type().name(), if shape.protocol.is_indexed() { "indexed" } else { "" }];
    let notes: String = parts.into_iter().filter(|part| !part.is_empty()).map(|part| format!(" {part}")).collect();
    format!("{}x{sizes}{notes}", shape.records)
}

impl Measurement {
    pub fn label(&self) -> String {
        match self.load {
            Load::Closed => self.workload.name().into(),
            Load::Open { percent, of } => format!("{} open {percent} % of {of}", self.workload.name()),
            Load::Memtier(pattern) => format!("memtier {}", pattern.name()),
            Load::RedisBenchmark => redis_benchmark::NAME.into(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use crate::value_sizes::ValueSizes;
    use crate::values::ValueKind;

    pub fn wishes() -> Wishes {
        let shape = Shape {
            records: 500_000,
            value_sizes: ValueSizes::fixed(1_000),
            value_kind: ValueKind::Random,
            connections: 64,
            client_threads: 1,
            protocol: Protocol::Memcached,
        };
        Wishes {
            quick: false,
            configurations: Vec::new(),
            workloads: Vec::new(),
            ratios: Vec::new(),
            repetitions: None,
            server_kind: ServerKind::Memcached,
            shape,
            data_type: DataType::Strings,
        }
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
        assert!(plan.stages.iter().all(|stage| stage.repetitions == (1..=2)));
        let nothing = Wishes { workloads: vec![Workload::D], ratios: vec![1.0], ..wishes() };
        assert!(Plan::grid(&nothing).unwrap_err().to_string().contains("the plan is empty"));
        let unknown = Wishes { configurations: vec!["lightswop".into()], ..wishes() };
        assert!(Plan::demo(&unknown).unwrap_err().to_string().contains("lightswap"));
    }
}
