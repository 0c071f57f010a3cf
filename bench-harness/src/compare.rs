//! `compare A.json B.json`: what became slower.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::presets;

use crate::report::read_all;
use crate::results::{Micro, Results, repetitions};
use crate::summary::{Spread, Summary, best, comparison, configuration_name};
use crate::table::new_table;
use crate::units::{format_count, format_ratio, format_us};

#[derive(Debug, Args)]
pub struct CompareArguments {
    /// The results before a change: what the others are compared with
    pub before: PathBuf,
    /// The results after it, which may be worse; what only the first file has, or what failed here, counts as worse
    pub after: PathBuf,
    /// How much worse a median may be; it must be worse than all repetitions, too, to count
    #[arg(long, default_value = "5%", value_parser = parse_percent)]
    pub threshold: f64,
}

/// `5%` or `5` as 0.05.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').trim_end().parse::<f64>() {
        Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("a percentage is needed, such as 5%".into()),
    }
}

/// One number of one cell or micro-benchmark.
#[derive(Debug, Clone)]
struct Measure {
    /// What it is of; equal in both files.
    key: String,
    unit: &'static str,
    value: Spread,
    higher_is_better: bool,
    format: fn(f64) -> String,
    /// What may differ between the files all the same.
    settings: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Regression,
    Improvement,
    /// Within the repetitions or the threshold.
    None,
}

#[derive(Debug)]
struct Row {
    before: Measure,
    after: Measure,
    change: Change,
}

impl Row {
    fn new(before: Measure, after: Measure, threshold: f64) -> Self {
        let ratio = after.value.median / before.value.median;
        let rose = after.value.is_above(before.value) && ratio > 1.0 + threshold;
        // As a factor, so that a fall and the rise that undoes it weigh the same.
        let fell = before.value.is_above(after.value) && ratio < 1.0 / (1.0 + threshold);
        let change = match (rose, fell, before.higher_is_better) {
            (true, _, true) | (_, true, false) => Change::Improvement,
            (true, _, false) | (_, true, true) => Change::Regression,
            _ => Change::None,
        };
        Self { before, after, change }
    }
}

fn text_of(value: Spread, format: fn(f64) -> String) -> String {
    if value.max > value.min { format!("{} ({}-{})", format(value.median), format(value.min), format(value.max)) } else { format(value.median) }
}

/// All of the load in words: unlike a summary's note, which says how it differs from the rest of its own file.
fn shape_text(summary: &Summary) -> String {
    let shape = &summary.shape;
    let mut parts = vec![format!("{} x {}", format_count(shape.records as f64), shape.values()), format!("{} connections", shape.connections)];
    parts.extend(
        [&shape.value_kind, &shape.data_type, &shape.distribution, &shape.transport, &shape.generator]
            .into_iter()
            .filter(|part| !part.is_empty())
            .cloned(),
    );
    parts.extend(shape.due_per_second.map(|rate| format!("{}/s due", format_count(rate as f64))));
    parts.join(", ")
}

fn cells(results: &Results) -> Vec<Measure> {
    let summaries = comparison(&results.runs);
    let key = |summary: &Summary| {
        let Summary { workload, configuration, backend, .. } = summary;
        format!("{workload} {configuration} ({backend}) {} %, {}", summary.memory_percent(), shape_text(summary))
    };
    let mut measures: Vec<Measure> = Vec::new();
    for summary in &summaries {
        let key_here = key(summary);
        // A sweep may choose differently in each file: the best settings of each count.
        if best(&summaries, |other| key(other) == key_here).is_some_and(|best| !std::ptr::eq(best, summary)) {
            continue;
        }
        let settings = summary.settings_text();
        let measure = |unit, value, higher_is_better, format| Measure {
            key: key_here.clone(),
            unit,
            value,
            higher_is_better,
            format,
            settings: settings.clone(),
        };
        measures.push(measure("operations/s", summary.operations_per_second, true, format_count));
        measures.push(measure("p99", summary.p99_us, false, format_us));
    }
    measures
}

/// Of a record, first what its range is of. What it is of, unit, value, whether higher is better, format.
pub type Number = (String, &'static str, f64, bool, fn(f64) -> String);

pub fn micro_numbers(record: &Micro) -> Vec<Number> {
    let plain = |value: f64| format!("{value:.2}");
    match record {
        Micro::Notify { notifier, lwts, workers, p50_us, .. } => {
            vec![(format!("notify {notifier}, {lwts} LWTs, {workers} workers"), "p50", *p50_us, false, format_us)]
        }
        // How well two clocks agree is neither better nor worse than before.
        Micro::NotifyTrace { lwts, workers, cost_us, .. } => {
            vec![(format!("tracing a fault, {lwts} LWTs, {workers} workers"), "cost", *cost_us, false, format_us)]
        }
        Micro::Fault { backend, contract, path, workers, lwts, faults_per_second, cpu_us_per_fault } => {
            let key = format!("fault {backend} {contract} by {path}, {workers} workers, {lwts} LWTs");
            vec![(key.clone(), "faults/s", *faults_per_second, true, format_count), (key, "CPU a fault", *cpu_us_per_fault, false, format_us)]
        }
        Micro::DiskRead { tool, jobs, depth, reads_per_second } => {
            vec![(format!("disk read by {tool}, {jobs} jobs, depth {depth}"), "reads/s", *reads_per_second, true, format_count)]
        }
        Micro::FaultLatency { pager, backend, notifier, contract, p50_us, .. } => {
            vec![(format!("fault latency {pager} {backend} {notifier} {contract}").trim_end().into(), "p50", *p50_us, false, format_us)]
        }
        Micro::FaultStep { backend, notifier, contract, step, p50_us } => {
            vec![(format!("step {step} of {backend} {notifier} {contract}").trim_end().into(), "p50", *p50_us, false, format_us)]
        }
        Micro::KernelSwap { device, threads, faults_per_second, cpu_us_per_fault } => {
            let key = format!("kernel swap {device}, {threads} threads");
            vec![(key.clone(), "faults/s", *faults_per_second, true, format_count), (key, "CPU a fault", *cpu_us_per_fault, false, format_us)]
        }
        Micro::LwtSwitch { lwts, switch_ns } => vec![(format!("LWT switch, {lwts} LWTs"), "ns", *switch_ns, false, plain)],
        Micro::RegionSize { region_bytes, contract, create_us, cpu_us_per_fault, metadata_bytes } => {
            let key = format!("region of {} {contract}", lightswap::format_size(*region_bytes)).trim_end().to_owned();
            vec![
                (key.clone(), "made in", *create_us, false, format_us),
                (key.clone(), "CPU a fault", *cpu_us_per_fault, false, format_us),
                (key, "metadata bytes", *metadata_bytes as f64, false, format_count),
            ]
        }
        Micro::RemoteRead { tool, transport, connections, depth, reads_per_second } => {
            let key = format!("remote read by {tool} over {transport}, {connections} connections, depth {depth}");
            vec![(key, "reads/s", *reads_per_second, true, format_count)]
        }
        Micro::CompressedMemory { pager, contract, faults_per_second, cpu_us_per_fault, bytes_per_page, memory_bytes, .. } => {
            let key = format!("compressed memory {pager} {contract}").trim_end().to_owned();
            vec![
                (key.clone(), "faults/s", *faults_per_second, true, format_count),
                (key.clone(), "CPU a fault", *cpu_us_per_fault, false, format_us),
                (key.clone(), "bytes a page", *bytes_per_page, false, format_count),
                (key, "bytes in all", *memory_bytes, false, format_count),
            ]
        }
        Micro::Encryption { way, extra_us, plain_us } => {
            let key = format!("encryption of a page {way}");
            vec![(key.clone(), "extra CPU", *extra_us, false, format_us), (key, "CPU a fault without", *plain_us, false, format_us)]
        }
        Micro::Generator { generator, server, connections, requests_per_second, generator_cpu_us_per_request } => {
            let key = format!("generator {generator}, {server} server, {connections} connections");
            vec![
                (key.clone(), "requests/s", *requests_per_second, true, format_count),
                (key, "CPU a request", *generator_cpu_us_per_request, false, format_us),
            ]
        }
    }
}

fn micro(results: &Results) -> Vec<Measure> {
    // The range of a record is that of its first number.
    let numbers = |(record, range): (&Micro, Option<(f64, f64)>)| {
        micro_numbers(record).into_iter().enumerate().map(move |(index, number)| (number, range.filter(|_| index == 0)))
    };
    let all: Vec<(Number, Option<(f64, f64)>)> = results.micro_with_ranges().flat_map(numbers).collect();
    let mut measures: Vec<Measure> = Vec::new();
    for ((key, unit, _, higher_is_better, format), _) in &all {
        if measures.iter().any(|measure| measure.key == *key && measure.unit == *unit) {
            continue;
        }
        let same = all.iter().filter(|(other, _)| other.0 == *key && other.1 == *unit);
        let values = same.flat_map(|(other, range)| repetitions(other.2, *range)).collect();
        if let Some(value) = Spread::of(values) {
            measures.push(Measure { key: key.clone(), unit, value, higher_is_better: *higher_is_better, format: *format, settings: String::new() });
        }
    }
    measures
}

fn measures(results: &Results) -> Vec<Measure> {
    let mut all = cells(results);
    all.extend(micro(results));
    all
}

/// What both have, and what else there is to know.
#[derive(Debug, Default)]
struct Comparison {
    rows: Vec<Row>,
    /// What only one file has, and what went wrong.
    sentences: Vec<String>,
    /// Cells and micro-benchmarks that the second file has no numbers of: missing or failed.
    num_lost: usize,
    /// Cells with more bad runs in the second file, though it may have numbers of them.
    num_troubled: usize,
}

impl Comparison {
    fn count(&self, wanted: Change) -> usize {
        self.rows.iter().filter(|row| row.change == wanted).count()
    }

    fn is_no_worse(&self) -> bool {
        !self.rows.is_empty() && self.count(Change::Regression) + self.num_lost + self.num_troubled == 0
    }
}

/// How many bad runs each cell has. Settings that were only tried may fail.
fn troubles(results: &Results) -> BTreeMap<(String, String, u64), usize> {
    let mut counts = BTreeMap::new();
    for run in results.runs.iter().filter(|run| !run.details.sweep && !run.problems().is_empty()) {
        let percent = (run.local_memory_ratio * 100.0).round() as u64;
        *counts.entry((run.workload.clone(), configuration_name(run).to_owned(), percent)).or_default() += 1;
    }
    counts
}

fn matched(before: &Results, after: &Results, threshold: f64) -> Comparison {
    let (old, new) = (measures(before), measures(after));
    let find = |all: &[Measure], wanted: &Measure| all.iter().find(|measure| measure.key == wanted.key && measure.unit == wanted.unit).cloned();
    let rows = old.iter().filter_map(|measure| Some(Row::new(measure.clone(), find(&new, measure)?, threshold))).collect();
    let mut sentences = Vec::new();
    let mut num_lost = 0;
    for (all, others, place) in [(&old, &new, "first"), (&new, &old, "second")] {
        for measure in all.iter().filter(|measure| find(others, measure).is_none()) {
            let sentence = format!("Only the {place} file has {}.", measure.key);
            if !sentences.contains(&sentence) {
                num_lost += usize::from(place == "first");
                sentences.push(sentence);
            }
        }
    }
    for (results, place) in [(before, "first"), (after, "second")] {
        for run in &results.runs {
            for problem in run.problems() {
                let first_line = problem.lines().next().unwrap_or_default();
                sentences.push(format!(
                    "In the {place} file {} {} at {:.0} %, repetition {}: {first_line}.",
                    run.workload,
                    configuration_name(run),
                    run.local_memory_ratio * 100.0,
                    run.repetition
                ));
            }
        }
    }
    let troubles_before = troubles(before);
    let has_more = |(cell, count): &(&_, &usize)| *count > troubles_before.get(*cell).unwrap_or(&0);
    let num_troubled = troubles(after).iter().filter(has_more).count();
    Comparison { rows, sentences, num_lost, num_troubled }
}

pub fn compare(arguments: &CompareArguments) -> Result<bool> {
    let read = |path: &PathBuf| -> Result<Results> {
        let (mut files, _) = read_all(std::slice::from_ref(path))?;
        files.pop().context("no results")
    };
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    let comparison = matched(&before, &after, arguments.threshold);
    // What matters first.
    let mut ordered: Vec<&Row> = comparison.rows.iter().collect();
    ordered.sort_by_key(|row| row.change);
    let mut table = new_table(&["what", "unit", "before", "after", "ratio", ""], 2);
    table.load_style(presets::NOTHING);
    for Row { before, after, change } in ordered {
        let mut key = before.key.clone();
        if before.settings != after.settings {
            key += &format!("; {} then {}", before.settings, after.settings);
        }
        table.add_row([
            key,
            before.unit.into(),
            text_of(before.value, before.format),
            text_of(after.value, after.format),
            format_ratio(after.value.median / before.value.median),
            match change {
                Change::Regression => "WORSE".into(),
                Change::Improvement => "better".into(),
                Change::None => String::new(),
            },
        ]);
    }
    if !comparison.rows.is_empty() {
        say!("{table}\n");
    }
    for sentence in &comparison.sentences {
        say!("{sentence}");
    }
    if comparison.rows.is_empty() {
        say!("The files have nothing in common, so there is nothing to compare.");
        return Ok(false);
    }
    say!(
        "{} of {} numbers are worse, {} better: by more than {:.0} % and beyond all repetitions.",
        comparison.count(Change::Regression),
        comparison.rows.len(),
        comparison.count(Change::Improvement),
        arguments.threshold * 100.0
    );
    if comparison.num_lost > 0 {
        say!("{} of the first file are missing in the second or failed there, which counts as worse.", cells_text(comparison.num_lost));
    }
    if comparison.num_troubled > 0 {
        say!("{} have more bad runs in the second file, which counts as worse.", cells_text(comparison.num_troubled));
    }
    Ok(comparison.is_no_worse())
}

fn cells_text(count: usize) -> String {
    format!("{count} cell(s) or benchmark(s)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Details, Run};
    use crate::summary::tests::run;

    fn results(speeds: &[f64], p50_us: f64) -> Results {
        Results {
            runs: speeds.iter().map(|speed| run("lightswap", 0.25, *speed)).collect(),
            micro: vec![Micro::Notify { notifier: "sigbus".into(), lwts: 8, workers: 1, p50_us, p99_us: 9.0 }],
            micro_ranges: vec![(p50_us * 0.8, p50_us * 1.1)],
            ..Results::default()
        }
    }

    fn changes(before: &Results, after: &Results) -> Vec<Change> {
        matched(before, after, 0.05).rows.iter().map(|row| row.change).collect()
    }

    #[test]
    fn only_what_is_beyond_repetitions_and_threshold_counts() {
        let before = results(&[95.0, 100.0, 105.0], 2.0);
        // Throughput, p99, notification.
        assert_eq!(changes(&before, &results(&[70.0, 80.0, 90.0], 2.0)), [Change::Regression, Change::None, Change::None]);
        assert_eq!(changes(&before, &results(&[70.0, 80.0, 96.0], 2.05)), [Change::None; 3]);
        assert_eq!(changes(&before, &results(&[110.0, 120.0, 130.0], 4.0)), [Change::Improvement, Change::None, Change::Regression]);
        assert_eq!(changes(&before, &before), [Change::None; 3]);
        // Slower by more than the threshold, but repetitions overlap.
        assert_eq!(changes(&before, &results(&[100.0], 2.4)), [Change::None; 3]);
    }

    #[test]
    fn cells_of_one_file_only_are_told() {
        let before = results(&[1.0], 2.0);
        let mut after = results(&[1.0], 2.0);
        after.runs.push(run("extstore", 0.25, 5.0));
        after.micro.clear();
        let Comparison { rows, sentences, .. } = matched(&before, &after, 0.05);
        assert_eq!(rows.len(), 2);
        assert_eq!(sentences.len(), 2, "{sentences:?}");
        assert!(sentences[0].contains("Only the first file has notify sigbus") && sentences[1].contains("extstore"));
    }

    #[test]
    fn what_fails_or_is_missing_afterwards_is_worse() {
        let before = results(&[100.0, 101.0], 2.0);
        let is_no_worse = |before: &Results, after: &Results| matched(before, after, 0.05).is_no_worse();
        assert!(is_no_worse(&before, &before));
        let fail = |run: &mut Run| run.details.error = Some("it died".into());
        // One repetition, then all of them.
        let mut after = before.clone();
        fail(&mut after.runs[0]);
        assert_eq!((matched(&before, &after, 0.05).num_troubled, matched(&before, &after, 0.05).num_lost), (1, 0));
        assert!(!is_no_worse(&before, &after) && is_no_worse(&after, &before) && is_no_worse(&after, &after));
        fail(&mut after.runs[1]);
        assert_eq!(matched(&before, &after, 0.05).num_lost, 1);
        assert!(!is_no_worse(&before, &after) && is_no_worse(&after, &before));
        // Missing, a wrong value, a benchmark less.
        let changes: [fn(&mut Results); 3] = [|after| after.runs.clear(), |after| after.runs[0].wrong_values = 1, |after| after.micro.clear()];
        for change in changes {
            let mut after = before.clone();
            change(&mut after);
            assert!(!is_no_worse(&before, &after), "{:?}", matched(&before, &after, 0.05).sentences);
        }
        // What was only tried may fail.
        let mut after = before.clone();
        let details = Details { sweep: true, error: Some("it died".into()), ..Details::default() };
        after.runs.push(Run { details, ..before.runs[0].clone() });
        assert!(is_no_worse(&before, &after));
        assert!(!is_no_worse(&Results::default(), &before) && !is_no_worse(&before, &Results::default()));
    }

    #[test]
    fn different_loads_are_not_compared_and_the_best_settings_count() {
        let before = results(&[100.0], 2.0);
        let mut other = before.clone();
        other.runs[0].connections = 7;
        assert_eq!(matched(&before, &other, 0.05).rows.len(), 1);
        let mut swept = before.clone();
        swept.runs[0].server_threads = 4;
        swept.runs.push(run("lightswap", 0.25, 10.0));
        assert_eq!(changes(&before, &swept), [Change::None; 3]);
    }

    #[test]
    fn percentages_are_read() {
        assert_eq!(parse_percent("5%"), Ok(0.05));
        assert_eq!(parse_percent("2.5"), Ok(0.025));
        assert!(parse_percent("much").is_err() && parse_percent("-1%").is_err() && parse_percent("nan").is_err());
    }
}
