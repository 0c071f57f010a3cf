//! Repetitions of the same cell, as a median and a spread.

use std::collections::BTreeSet;

use crate::results::Run;

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
    fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let median = if numbers.len().is_multiple_of(2) { f64::midpoint(numbers[middle - 1], numbers[middle]) } else { numbers[middle] };
        Some(Self { median, min, max })
    }
}

#[derive(Debug, Clone)]
pub struct Summary {
    pub workload: String,
    /// Records and connections in words; empty when all summaries have the same.
    pub shape: String,
    pub configuration: String,
    pub local_memory_ratio: f64,
    pub server_threads: u32,
    pub transport: String,
    pub repetitions: usize,
    pub operations_per_second: Spread,
    pub p50_us: Spread,
    pub p99_us: Spread,
    pub cpu_us_per_operation: f64,
    /// The smallest hit ratio and the sum of wrong values: bad news is not averaged away.
    pub hit_ratio: f64,
    pub wrong_values: u64,
    pub resident_bytes_max: u64,
    pub limit_bytes: Option<u64>,
}

/// Records, value size and connections: runs that differ in these are never repetitions of each other.
type Shape = (u64, usize, usize);

fn shape(run: &Run) -> Shape {
    (run.details.records, run.details.value_size_bytes, run.connections)
}

/// In the order in which people compare: workload, then from much memory to little, then configuration.
fn order(run: &Run) -> (String, Shape, u64, usize, String, String, String, u32) {
    let known = ["dram", "lightswap-dram", "kernel-swap-ssd", "lightswap"];
    let position = known.iter().position(|name| *name == run.configuration).unwrap_or(known.len());
    let memory_missing = ((10.0 - run.local_memory_ratio).max(0.0) * 1e6) as u64;
    (
        run.workload.clone(),
        shape(run),
        memory_missing,
        position,
        run.configuration.clone(),
        run.backend.clone(),
        run.details.transport.clone(),
        run.server_threads,
    )
}

/// One summary for each cell of the runs that pass the filter and did not fail.
pub fn summarize(runs: &[Run], wanted: impl Fn(&Run) -> bool) -> Vec<Summary> {
    let mut runs: Vec<&Run> = runs.iter().filter(|run| run.details.error.is_none() && wanted(run)).collect();
    runs.sort_by_key(|run| order(run));
    let mut summaries: Vec<Summary> = runs.chunk_by(|a, b| order(a) == order(b)).filter_map(summarize_cell).collect();
    if runs.windows(2).all(|pair| shape(pair[0]) == shape(pair[1])) {
        summaries.iter_mut().for_each(|summary| summary.shape.clear());
    }
    summaries
}

fn summarize_cell(runs: &[&Run]) -> Option<Summary> {
    let spread = |value: fn(&Run) -> f64| Spread::of(runs.iter().map(|run| value(run)).collect());
    let first = runs.first()?;
    let cpu_us = spread(|run| {
        let operations = if run.details.operations > 0 { run.details.operations as f64 } else { f64::NAN };
        run.server_cpu_seconds * 1e6 / operations
    })?;
    Some(Summary {
        workload: first.workload.clone(),
        shape: format!("{} records of {} B, {} connections", first.details.records, first.details.value_size_bytes, first.connections),
        configuration: first.configuration.clone(),
        local_memory_ratio: first.local_memory_ratio,
        server_threads: first.server_threads,
        transport: first.details.transport.clone(),
        repetitions: runs.len(),
        operations_per_second: spread(|run| run.operations_per_second)?,
        p50_us: spread(|run| run.latency_us.p50)?,
        p99_us: spread(|run| run.latency_us.p99)?,
        cpu_us_per_operation: cpu_us.median,
        hit_ratio: runs.iter().map(|run| run.hit_ratio).fold(1.0, f64::min),
        wrong_values: runs.iter().map(|run| run.wrong_values).sum(),
        resident_bytes_max: runs.iter().map(|run| run.resident_bytes_max).max()?,
        limit_bytes: first.limit_bytes,
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
    let configurations: BTreeSet<&str> = runs.iter().filter(|run| run.details.sweep).map(|run| run.configuration.as_str()).collect();
    for configuration in configurations {
        let tried = ratios(&|run| run.details.sweep && run.configuration == configuration);
        let compared = ratios(&|run| !run.details.sweep && run.configuration == configuration);
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
pub struct Verdict {
    pub workload: String,
    pub local_memory_ratio: f64,
    pub configuration: String,
    pub baseline: String,
    /// Throughput over the baseline's.
    pub throughput_ratio: f64,
    /// 99th percentile over the baseline's.
    pub p99_ratio: f64,
}

impl Verdict {
    pub fn sentence(&self) -> String {
        format!(
            "{} at {:.0} % local memory: {} serves {:.2} times the operations of {}, with {:.2} times its p99",
            self.workload,
            self.local_memory_ratio * 100.0,
            self.configuration,
            self.throughput_ratio,
            self.baseline,
            self.p99_ratio
        )
    }
}

pub fn verdicts(summaries: &[Summary]) -> Vec<Verdict> {
    let baseline_of = |configuration: &str| match configuration {
        "lightswap" => Some("kernel-swap-ssd"),
        "lightswap-dram" => Some("dram"),
        _ => None,
    };
    summaries
        .iter()
        .filter_map(|summary| {
            let name = baseline_of(&summary.configuration)?;
            // With several thread counts in the results the baseline's best one counts.
            let baseline = summaries
                .iter()
                .filter(|other| {
                    other.configuration == name
                        && other.workload == summary.workload
                        && other.shape == summary.shape
                        && other.local_memory_ratio == summary.local_memory_ratio
                        && other.transport == summary.transport
                })
                .max_by(|a, b| {
                    let speed = |summary: &Summary| summary.operations_per_second.median;
                    speed(a).total_cmp(&speed(b))
                })?;
            Some(Verdict {
                workload: if summary.shape.is_empty() { summary.workload.clone() } else { format!("{} ({})", summary.workload, summary.shape) },
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
            run("kernel-swap-ssd", 0.25, 90.0),
            run("kernel-swap-ssd", 0.25, 110.0),
            run("kernel-swap-ssd", 0.25, 100.0),
            run("dram", 1.0, 900.0),
        ];
        runs[1].wrong_values = 1;
        let mut swept = run("kernel-swap-ssd", 0.25, 9_999.0);
        swept.details.sweep = true;
        let mut failed = run("lightswap", 0.25, 0.0);
        failed.details.error = Some("it died".into());
        runs.extend([swept, failed]);

        let summaries = comparison(&runs);
        let names: Vec<&str> = summaries.iter().map(|s| s.configuration.as_str()).collect();
        assert_eq!(names, ["dram", "kernel-swap-ssd", "lightswap"]);
        let kernel = &summaries[1];
        assert_eq!(kernel.repetitions, 3);
        assert_eq!(kernel.wrong_values, 1);
        let expected = Spread { median: 100.0, min: 90.0, max: 110.0 };
        assert_eq!(kernel.operations_per_second, expected);

        let verdicts = verdicts(&summaries);
        assert_eq!(verdicts.len(), 1);
        assert!((verdicts[0].throughput_ratio - 3.0).abs() < 1e-9);
        assert_eq!(sweep(&runs).len(), 1);
    }

    #[test]
    fn runs_of_different_shapes_are_not_merged_or_compared() {
        let mut runs = vec![run("kernel-swap-ssd", 0.25, 100.0), run("kernel-swap-ssd", 0.25, 200.0), run("lightswap", 0.25, 300.0)];
        assert_eq!(comparison(&runs)[0].shape, "");
        runs[0].details.records = 5;
        runs[2].details.records = 5;
        let summaries = comparison(&runs);
        assert_eq!(summaries.len(), 3);
        let verdicts = verdicts(&summaries);
        assert!((verdicts[0].throughput_ratio - 3.0).abs() < 1e-9);
        assert!(verdicts[0].workload.contains("5 records"));
        for change in [|run: &mut Run| run.connections = 9, |run: &mut Run| run.details.value_size_bytes = 9] {
            let mut runs = vec![run("dram", 1.0, 1.0), run("dram", 1.0, 2.0)];
            change(&mut runs[0]);
            assert_eq!(comparison(&runs).len(), 2);
        }
    }

    #[test]
    fn ratios_without_a_sweep_are_named() {
        let mut swept = run("kernel-swap-ssd", 0.25, 1.0);
        swept.details.sweep = true;
        let mut runs = vec![swept.clone(), run("kernel-swap-ssd", 0.25, 1.0), run("kernel-swap-ssd", 0.5, 1.0), run("dram", 1.0, 1.0)];
        assert_eq!(sweep_note(&runs), " (kernel-swap-ssd at 25 % memory only, the best used at 50 % too)");
        runs.push(Run { local_memory_ratio: 0.5, ..swept });
        assert_eq!(sweep_note(&runs), "");
    }

    #[test]
    fn no_runs_give_no_summaries() {
        assert!(comparison(&[]).is_empty());
        assert!(verdicts(&[]).is_empty());
        assert_eq!(Spread::of(vec![1.0, 3.0]).unwrap().median, 2.0);
    }
}
