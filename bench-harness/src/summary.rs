//! Repetitions of the same cell, as a median and a spread.

use std::collections::{BTreeMap, BTreeSet};

use crate::configuration::BUILT_IN;
use crate::outcome::GENERATOR;
use crate::redis_benchmark;
use crate::results::{Moment, Run};
use crate::server_kind::ServerKind;
use crate::units::{format_count, format_ratio};
use crate::values::ValueKind;

/// Median, smallest and largest of the repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Absent where there are no numbers.
pub fn median(numbers: Vec<f64>) -> Option<f64> {
    Spread::of(numbers).map(|spread| spread.median)
}

impl Spread {
    pub fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let median = if numbers.len().is_multiple_of(2) { f64::midpoint(numbers[middle - 1], numbers[middle]) } else { numbers[middle] };
        Some(Self { median, min, max })
    }

    pub fn one(value: f64) -> Self {
        Self { median: value, min: value, max: value }
    }

    /// All of this spread lies above all of the other.
    pub fn is_above(self, other: Self) -> bool {
        self.min > other.max
    }
}

/// What the load was: runs that differ in any of this are never repetitions of each other, nor compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub due_per_second: Option<u64>,
    pub distribution: String,
    pub value_mix: String,
    pub value_kind: String,
    pub data_type: String,
    pub value_size_bytes: usize,
    pub records: u64,
    pub connections: usize,
    pub transport: String,
    pub generator: String,
}

impl Shape {
    pub fn of(run: &Run) -> Self {
        let details = &run.details;
        // Only what differs from the workload's own distribution matters, and files need not say it.
        let own = match run.workload.as_str() {
            "uniform" | "sequential" => run.workload.as_str(),
            "ycsb-d" => "latest",
            // The pattern is part of the name.
            name if name.starts_with("memtier") || name == redis_benchmark::WORKLOAD => &details.distribution,
            _ => "zipfian",
        };
        Self {
            due_per_second: details.due_per_second.map(|rate| rate.round() as u64),
            distribution: if details.distribution == own { String::new() } else { details.distribution.clone() },
            value_mix: details.value_mix.clone(),
            value_kind: details.value_kind.clone(),
            data_type: details.data_type.clone(),
            value_size_bytes: if details.value_mix.is_empty() { details.value_size_bytes } else { 0 },
            records: details.records,
            connections: run.connections,
            transport: details.transport.clone(),
            generator: if details.generator == GENERATOR { String::new() } else { details.generator.clone() },
        }
    }

    /// Values in words.
    pub fn values(&self) -> String {
        if self.value_mix.is_empty() {
            return format!("{} B", format_count(self.value_size_bytes as f64));
        }
        let parts = self.value_mix.split(',').map(|part| match part.split_once(':') {
            Some((size, share)) => format!("{share} % {size} B"),
            None => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join(" + ")
    }

    /// What is different from the usual shape, in words; empty when nothing is.
    fn note(&self, usual: &Self) -> String {
        let mut parts = Vec::new();
        if let Some(rate) = self.due_per_second {
            parts.push(format!("open loop at {}/s", format_count(rate as f64)));
        }
        if self.distribution != usual.distribution {
            parts.push(format!("{} keys", if self.distribution.is_empty() { "the usual" } else { &self.distribution }));
        }
        if (&self.value_mix, self.value_size_bytes) != (&usual.value_mix, usual.value_size_bytes) {
            parts.push(format!("values of {}", self.values()));
        }
        if self.value_kind != usual.value_kind {
            parts.push(kind_note(&self.value_kind));
        }
        if self.data_type != usual.data_type {
            parts.push(format!("as {}", if self.data_type.is_empty() { "strings" } else { &self.data_type }));
        }
        if self.records != usual.records {
            parts.push(format!("{} records", format_count(self.records as f64)));
        }
        if self.connections != usual.connections {
            parts.push(format!("{} connections", self.connections));
        }
        if self.transport != usual.transport {
            parts.push(format!("over {}", self.transport));
        }
        if self.generator != usual.generator {
            parts.push(format!("load by {}", if self.generator.is_empty() { GENERATOR } else { &self.generator }));
        }
        parts.join(", ")
    }
}

fn kind_note(value_kind: &str) -> String {
    format!("{} values", if value_kind.is_empty() { "random" } else { value_kind })
}

/// The note of a shape whose values alone are unusual: text.
pub fn text_note() -> String {
    kind_note(ValueKind::Text.name())
}

/// Of what is due in an open loop, what must be served for the rate to count as sustained.
pub const SUSTAINED: f64 = 0.95;

#[derive(Debug, Clone)]
pub struct Summary {
    pub workload: String,
    /// Empty in older files, which are of memcached.
    pub server: String,
    pub shape: Shape,
    /// How the shape differs from that of most runs, in words; empty for those.
    pub note: String,
    pub configuration: String,
    pub backend: String,
    pub local_memory_ratio: f64,
    pub server_threads: u32,
    pub settings: BTreeMap<String, String>,
    pub repetitions: usize,
    pub operations_per_second: Spread,
    pub p50_us: Spread,
    pub p99_us: Spread,
    pub p999_us: Spread,
    /// Of reads of values that stay in memory, beside the load.
    pub resident_p99_us: Option<Spread>,
    pub cpu_us_per_operation: f64,
    /// The smallest hit ratio and the sum of wrong values: bad news is not averaged away.
    pub hit_ratio: f64,
    pub wrong_values: u64,
    pub resident_bytes_max: u64,
    pub limit_bytes: Option<u64>,
    /// Of all repetitions together: upper bounds in microseconds and operations.
    pub latency_buckets: Vec<(f64, u64)>,
    /// Of the repetition in the middle.
    pub time_line: Vec<Moment>,
}

impl Summary {
    pub fn memory_percent(&self) -> u32 {
        (self.local_memory_ratio * 100.0).round() as u32
    }

    pub fn is_open_loop(&self) -> bool {
        self.shape.due_per_second.is_some()
    }

    /// In an open loop: fewer are served than are due, so that requests queue up and latency is as long as the run makes it.
    pub fn is_saturated(&self) -> bool {
        self.shape.due_per_second.is_some_and(|due| self.operations_per_second.median < SUSTAINED * due as f64)
    }

    /// The workload and how its load differs from the usual.
    pub fn title(&self) -> String {
        if self.note.is_empty() { self.workload.clone() } else { format!("{}, {}", self.workload, self.note) }
    }

    /// What a sweep chose, in words.
    pub fn settings_text(&self) -> String {
        let mut parts = vec![format!("{} thread{}", self.server_threads, if self.server_threads == 1 { "" } else { "s" })];
        parts.extend(self.settings.iter().filter(|(name, _)| *name != "server_threads").map(|(name, value)| format!("{name} {value}")));
        parts.join(", ")
    }
}

/// In the order in which people read; after all that come with the harness where it is none of them.
pub fn configuration_position(name: &str) -> usize {
    BUILT_IN.iter().position(|known| known.0 == name).unwrap_or(BUILT_IN.len())
}

/// The configuration by its present name.
pub fn configuration_name(run: &Run) -> &str {
    if run.configuration == "kernel-swap" { "kernel-swap-ssd" } else { &run.configuration }
}

type Order = (String, Shape, u64, usize, String, String, u32, BTreeMap<String, String>);

/// In the order in which people compare: workload, then from much memory to little, then configuration.
fn order(run: &Run) -> Order {
    let memory_missing = ((10.0 - run.local_memory_ratio).max(0.0) * 1e6) as u64;
    let name = configuration_name(run);
    (
        run.workload.clone(),
        Shape::of(run),
        memory_missing,
        configuration_position(name),
        name.to_owned(),
        run.backend.clone(),
        run.server_threads,
        run.details.settings.clone(),
    )
}

/// The shape of most closed-loop runs: what is meant where nothing is said.
fn usual_shape(runs: &[&Run]) -> Option<Shape> {
    let mut counts: BTreeMap<Shape, usize> = BTreeMap::new();
    for run in runs {
        *counts.entry(Shape::of(run)).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(shape, count)| (shape.due_per_second.is_none(), *count)).map(|(shape, _)| shape)
}

/// One summary for each cell of the runs that pass the filter and did not fail. Each server has a usual shape of its own; Redis comes last.
pub fn summarize(runs: &[Run], wanted: impl Fn(&Run) -> bool) -> Vec<Summary> {
    let of = |redis: bool| summarize_server(runs, |run| is_redis(&run.server) == redis && wanted(run));
    [of(false), of(true)].concat()
}

pub fn is_redis(server: &str) -> bool {
    server == ServerKind::Redis.name()
}

fn summarize_server(runs: &[Run], wanted: impl Fn(&Run) -> bool) -> Vec<Summary> {
    let mut runs: Vec<(Order, &Run)> = runs.iter().filter(|run| run.details.error.is_none() && wanted(run)).map(|run| (order(run), run)).collect();
    runs.sort_by(|a, b| a.0.cmp(&b.0));
    let only_runs: Vec<&Run> = runs.iter().map(|(_, run)| *run).collect();
    let usual = usual_shape(&only_runs);
    let cells = runs.chunk_by(|a, b| a.0 == b.0);
    cells.filter_map(|cell| summarize_cell(&cell.iter().map(|(_, run)| *run).collect::<Vec<_>>(), usual.as_ref()?)).collect()
}

fn summarize_cell(runs: &[&Run], usual: &Shape) -> Option<Summary> {
    let spread = |value: fn(&Run) -> f64| Spread::of(runs.iter().map(|run| value(run)).collect());
    let first = runs.first()?;
    let shape = Shape::of(first);
    let mut by_speed = runs.to_vec();
    by_speed.sort_by(|a, b| a.operations_per_second.total_cmp(&b.operations_per_second));
    let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
    for (bound, count) in runs.iter().flat_map(|run| &run.details.latency_buckets) {
        // Positive floating-point numbers are ordered as their bits are.
        *buckets.entry(bound.max(0.0).to_bits()).or_default() += count;
    }
    let cpu_us = spread(|run| {
        let operations = if run.details.operations > 0 { run.details.operations as f64 } else { f64::NAN };
        run.server_cpu_seconds * 1e6 / operations
    })?;
    Some(Summary {
        workload: first.workload.clone(),
        server: first.server.clone(),
        note: shape.note(usual),
        shape,
        configuration: configuration_name(first).to_owned(),
        backend: first.backend.clone(),
        local_memory_ratio: first.local_memory_ratio,
        server_threads: first.server_threads,
        settings: first.details.settings.clone(),
        repetitions: runs.len(),
        operations_per_second: spread(|run| run.operations_per_second)?,
        p50_us: spread(|run| run.latency_us.p50)?,
        p99_us: spread(|run| run.latency_us.p99)?,
        p999_us: spread(|run| run.latency_us.p999)?,
        resident_p99_us: Spread::of(runs.iter().filter_map(|run| Some(run.details.resident_latency_us?.p99)).collect()),
        cpu_us_per_operation: cpu_us.median,
        hit_ratio: runs.iter().map(|run| run.hit_ratio).fold(1.0, f64::min),
        wrong_values: runs.iter().map(|run| run.wrong_values).sum(),
        resident_bytes_max: runs.iter().map(|run| run.resident_bytes_max).max()?,
        limit_bytes: first.limit_bytes,
        latency_buckets: buckets.into_iter().map(|(bits, count)| (f64::from_bits(bits), count)).collect(),
        time_line: by_speed[by_speed.len() / 2].details.time_line.clone(),
    })
}

/// The runs that compare, without those that looked for thread counts.
pub fn comparison(runs: &[Run]) -> Vec<Summary> {
    summarize(runs, |run| !run.details.sweep)
}

pub fn sweep(runs: &[Run]) -> Vec<Summary> {
    summarize(runs, |run| run.details.sweep)
}

/// Says so when threads were tried only at some of the ratios that are compared; else empty.
pub fn sweep_note(runs: &[Run]) -> String {
    let ratios = |wanted: &dyn Fn(&Run) -> bool| -> BTreeSet<u64> {
        runs.iter().filter(|run| wanted(run)).map(|run| (run.local_memory_ratio * 100.0).round() as u64).collect()
    };
    let mut notes: Vec<String> = Vec::new();
    let configurations: BTreeSet<&str> = runs.iter().filter(|run| run.details.sweep).map(configuration_name).collect();
    for configuration in configurations {
        let tried = ratios(&|run| run.details.sweep && configuration_name(run) == configuration);
        let compared = ratios(&|run| !run.details.sweep && configuration_name(run) == configuration);
        let words = |ratios: Vec<u64>| ratios.iter().map(|ratio| format!("{ratio} %")).collect::<Vec<_>>().join(", ");
        let untried: Vec<u64> = compared.difference(&tried).copied().collect();
        if !untried.is_empty() {
            notes.push(format!("{configuration} at {} memory only, the best used at {} too", words(tried.into_iter().collect()), words(untried)));
        }
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) }
}

/// One configuration against its baseline in the same cell.
#[derive(Debug, Clone, PartialEq)]
pub struct AgainstBaseline {
    pub workload: String,
    pub local_memory_ratio: f64,
    pub configuration: String,
    pub baseline: String,
    /// Throughput over the baseline's.
    pub throughput_ratio: f64,
    /// 99th percentile over the baseline's.
    pub p99_ratio: f64,
}

impl AgainstBaseline {
    pub fn sentence(&self) -> String {
        format!(
            "{} at {:.0} % local memory: {} serves {} times the operations of {}, with {} times its p99",
            self.workload,
            self.local_memory_ratio * 100.0,
            self.configuration,
            format_ratio(self.throughput_ratio),
            self.baseline,
            format_ratio(self.p99_ratio)
        )
    }
}

/// The fastest settings of a configuration among those that pass.
pub fn best(summaries: &[Summary], wanted: impl Fn(&Summary) -> bool) -> Option<&Summary> {
    let speed = |summary: &Summary| summary.operations_per_second.median;
    summaries.iter().filter(|summary| wanted(summary)).max_by(|a, b| speed(a).total_cmp(&speed(b)))
}

pub fn against_baselines(summaries: &[Summary]) -> Vec<AgainstBaseline> {
    let baseline_of = |configuration: &str| match configuration {
        "lightswap" => Some("kernel-swap-ssd"),
        "lightswap-memory" => Some("kernel-swap-zram"),
        "lightswap-dram" => Some("dram"),
        "redis-lightswap" => Some("redis-kernel-swap-ssd"),
        "redis-lightswap-memory" => Some("redis-kernel-swap-zram"),
        "redis-lightswap-dram" => Some("redis-dram"),
        _ => None,
    };
    summaries
        .iter()
        .filter(|summary| !summary.is_open_loop())
        .filter_map(|summary| {
            let name = baseline_of(&summary.configuration)?;
            // With several settings in the results the baseline's best ones count.
            let baseline = best(summaries, |other| {
                other.configuration == name
                    && other.workload == summary.workload
                    && other.shape == summary.shape
                    && other.local_memory_ratio == summary.local_memory_ratio
            })?;
            Some(AgainstBaseline {
                workload: summary.title(),
                local_memory_ratio: summary.local_memory_ratio,
                configuration: summary.configuration.clone(),
                baseline: name.to_owned(),
                throughput_ratio: summary.operations_per_second.median / baseline.operations_per_second.median,
                p99_ratio: summary.p99_us.median / baseline.p99_us.median,
            })
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::results::Details;

    pub fn run(configuration: &str, ratio: f64, speed: f64) -> Run {
        Run {
            workload: "ycsb-c".into(),
            configuration: configuration.into(),
            local_memory_ratio: ratio,
            operations_per_second: speed,
            hit_ratio: 1.0,
            details: Details { operations: 100, ..Details::default() },
            ..Run::default()
        }
    }

    #[test]
    fn repetitions_become_a_median_and_a_spread() {
        let mut runs = vec![
            run("lightswap", 0.25, 300.0),
            run("kernel-swap", 0.25, 90.0),
            run("kernel-swap", 0.25, 110.0),
            run("kernel-swap", 0.25, 100.0),
            run("dram", 1.0, 900.0),
        ];
        runs[1].wrong_values = 1;
        let mut swept = run("kernel-swap", 0.25, 9_999.0);
        swept.details.sweep = true;
        let mut failed = run("lightswap", 0.25, 0.0);
        failed.details.error = Some("it died".into());
        runs.extend([swept, failed]);

        let summaries = comparison(&runs);
        let names: Vec<&str> = summaries.iter().map(|s| s.configuration.as_str()).collect();
        assert_eq!(names, ["dram", "lightswap", "kernel-swap-ssd"]);
        let kernel = &summaries[2];
        assert_eq!(kernel.repetitions, 3);
        assert_eq!(kernel.wrong_values, 1);
        let expected = Spread { median: 100.0, min: 90.0, max: 110.0 };
        assert_eq!(kernel.operations_per_second, expected);

        let duels = against_baselines(&summaries);
        assert_eq!(duels.len(), 1);
        assert!((duels[0].throughput_ratio - 3.0).abs() < 1e-9);
        assert_eq!(sweep(&runs).len(), 1);
    }

    #[test]
    fn each_server_has_a_usual_shape_of_its_own() {
        let mut runs = vec![run("dram", 1.0, 1.0), run("dram", 1.0, 2.0), run("redis-dram", 1.0, 3.0)];
        (runs[2].server, runs[2].details.records) = ("redis".into(), 77);
        let summaries = comparison(&runs);
        let found: Vec<(&str, &str)> = summaries.iter().map(|summary| (summary.configuration.as_str(), summary.note.as_str())).collect();
        assert_eq!(found, [("dram", ""), ("redis-dram", "")]);
    }

    #[test]
    fn runs_of_different_shapes_are_not_merged_or_compared() {
        let mut runs = vec![run("kernel-swap", 0.25, 100.0), run("kernel-swap", 0.25, 200.0), run("lightswap", 0.25, 300.0)];
        assert_eq!(comparison(&runs)[0].note, "");
        runs[0].details.records = 5;
        runs[2].details.records = 5;
        runs.extend([run("dram", 1.0, 900.0), run("dram", 1.0, 900.0)]);
        let summaries = comparison(&runs);
        assert_eq!(summaries.len(), 4);
        let duels = against_baselines(&summaries);
        assert!((duels[0].throughput_ratio - 3.0).abs() < 1e-9);
        assert_eq!(duels[0].workload, "ycsb-c, 5 records");
        let changes: [fn(&mut Run); 7] = [
            |run| run.details.data_type = "hashes".into(),
            |run| run.details.value_kind = "text".into(),
            |run| run.connections = 9,
            |run| run.details.value_size_bytes = 9,
            |run| run.details.value_mix = "100:50,4096:50".into(),
            |run| run.details.due_per_second = Some(100.0),
            |run| run.details.distribution = "uniform".into(),
        ];
        for change in changes {
            let mut runs = vec![run("dram", 1.0, 1.0), run("dram", 1.0, 2.0)];
            change(&mut runs[0]);
            assert_eq!(comparison(&runs).len(), 2);
        }
    }

    #[test]
    fn ratios_without_a_sweep_are_named() {
        let mut swept = run("kernel-swap", 0.25, 1.0);
        swept.details.sweep = true;
        let mut runs = vec![swept.clone(), run("kernel-swap", 0.25, 1.0), run("kernel-swap", 0.5, 1.0), run("dram", 1.0, 1.0)];
        assert_eq!(sweep_note(&runs), " (kernel-swap-ssd at 25 % memory only, the best used at 50 % too)");
        runs.push(Run { local_memory_ratio: 0.5, ..swept });
        assert_eq!(sweep_note(&runs), "");
    }

    #[test]
    fn no_runs_give_no_summaries() {
        assert!(comparison(&[]).is_empty());
        assert!(against_baselines(&[]).is_empty());
        assert_eq!(Spread::of(vec![1.0, 3.0]).unwrap().median, 2.0);
    }
}
