//! Results as tables in the terminal.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::results::{Micro, Results, Run};
use crate::summary::{Spread, Summary, against_baselines, comparison, sweep, sweep_note};
use crate::units::{MIB, format_count, format_ms};

fn with_spread(spread: Spread, repetitions: usize, format: fn(f64) -> String) -> String {
    if repetitions < 2 { format(spread.median) } else { format!("{} ({}-{})", format(spread.median), format(spread.min), format(spread.max)) }
}

pub const HEADINGS: [&str; 11] =
    ["workload", "memory", "configuration", "threads", "operations/s", "p50 ms", "p99 ms", "CPU us/op", "resident / limit MiB", "hits", "wrong"];
/// The first columns that hold words.
pub const NUM_TEXT_COLUMNS: usize = 3;

/// The cells of one line, under `HEADINGS`.
pub fn line(summary: &Summary) -> [String; 11] {
    let mib = |bytes: u64| format_count((bytes / MIB) as f64);
    [
        summary.title(),
        format!("{:.0} %", summary.local_memory_ratio * 100.0),
        summary.configuration.clone(),
        summary.server_threads.to_string(),
        with_spread(summary.operations_per_second, summary.repetitions, format_count),
        with_spread(summary.p50_us, 1, format_ms),
        with_spread(summary.p99_us, summary.repetitions, format_ms),
        Some(summary.cpu_us_per_operation).filter(|us| us.is_finite()).map_or_else(|| "-".into(), |us| format!("{us:.1}")),
        match summary.limit_bytes {
            Some(limit) => format!("{} / {}", mib(summary.resident_bytes_max), mib(limit)),
            None => mib(summary.resident_bytes_max),
        },
        format!("{:.2} %", summary.hit_ratio * 100.0),
        summary.wrong_values.to_string(),
    ]
}

pub fn new_table(headings: &[&str], num_text_columns: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled).set_header(headings.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        if index >= num_text_columns {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn summaries_table(summaries: &[Summary]) -> String {
    let mut table = new_table(&HEADINGS, NUM_TEXT_COLUMNS);
    for summary in summaries {
        table.add_row(line(summary));
    }
    table.to_string()
}

/// One record under the headings of `micro_table`.
pub fn micro_line(record: &Micro) -> [String; 5] {
    match record {
        Micro::Notify { notifier, lwts, workers, p50_us, p99_us } => {
            ["notify".into(), notifier.clone(), workers.to_string(), lwts.to_string(), format!("p50 {p50_us:.2} us, p99 {p99_us:.2} us")]
        }
        Micro::NotifyTrace { lwts, workers, agreement, traced_p50_us, in_process_p50_us, entry_us, cost_us } => [
            "notify, traced".into(),
            format!("cost {cost_us:.2} us"),
            workers.to_string(),
            lwts.to_string(),
            format!("{traced_p50_us:.2} + {entry_us:.2} us to the kernel, by the code {in_process_p50_us:.2} us: {agreement:.2}"),
        ],
        Micro::Fault { backend, contract, path, workers, lwts, faults_per_second, cpu_us_per_fault } => [
            format!("fault, {backend}"),
            format!("{contract}, by {path}"),
            workers.to_string(),
            lwts.to_string(),
            format!("{}/s, {cpu_us_per_fault:.1} us CPU each", format_count(*faults_per_second)),
        ],
        Micro::DiskRead { tool, jobs, depth, reads_per_second } => {
            ["disk read".into(), tool.clone(), jobs.to_string(), depth.to_string(), format!("{}/s", format_count(*reads_per_second))]
        }
        Micro::FaultLatency { pager, backend, notifier, contract, p50_us, p99_us } => [
            format!("fault latency, {backend}"),
            format!("{pager}, {notifier} {contract}").trim_end().into(),
            "1".into(),
            "1".into(),
            format!("p50 {p50_us:.2} us, p99 {p99_us:.2} us"),
        ],
        Micro::FaultStep { backend, notifier, contract, step, p50_us } => {
            [format!("step, {backend}"), format!("{notifier} {contract}: {step}"), "1".into(), "1".into(), format!("p50 {p50_us:.2} us")]
        }
        Micro::KernelSwap { device, threads, faults_per_second, cpu_us_per_fault } => [
            "kernel swap".into(),
            device.clone(),
            threads.to_string(),
            String::new(),
            format!("{}/s, {cpu_us_per_fault:.1} us CPU each", format_count(*faults_per_second)),
        ],
        Micro::LwtSwitch { lwts, switch_ns } => ["LWT switch".into(), String::new(), "1".into(), lwts.to_string(), format!("{switch_ns:.1} ns")],
        Micro::RegionSize { region_bytes, contract, create_us, cpu_us_per_fault, metadata_bytes } => [
            "region size".into(),
            format!("{} {contract}", lightswap::format_size(*region_bytes)).trim_end().into(),
            "1".into(),
            "1".into(),
            format!("{cpu_us_per_fault:.1} us CPU a fault, made in {create_us:.0} us, {} beside its pages", lightswap::format_size(*metadata_bytes)),
        ],
        Micro::RemoteRead { tool, transport, connections, depth, reads_per_second } => [
            format!("remote read, {transport}"),
            tool.clone(),
            connections.to_string(),
            depth.to_string(),
            format!("{}/s", format_count(*reads_per_second)),
        ],
        Micro::CompressedMemory { pager, contract, faults_per_second, cpu_us_per_fault, local_memory_bytes, bytes_per_page, memory_bytes } => [
            "compressed memory".into(),
            format!("{pager} {contract}").trim_end().into(),
            "1".into(),
            "1".into(),
            format!(
                "{}/s, {cpu_us_per_fault:.2} us CPU each, {bytes_per_page:.0} bytes a page, {:.1} MiB beside {:.1} MiB local",
                format_count(*faults_per_second),
                memory_bytes / MIB as f64,
                local_memory_bytes / MIB as f64
            ),
        ],
        Micro::Encryption { way, extra_us, plain_us } => [
            "encryption".into(),
            format!("a page {way}"),
            "1".into(),
            "1".into(),
            format!("{extra_us:.2} us CPU more, of a fault without it {plain_us:.2} us"),
        ],
        Micro::Generator { generator, server, connections, requests_per_second, generator_cpu_us_per_request } => [
            "load generator".into(),
            format!("{generator}, {server} server"),
            String::new(),
            connections.to_string(),
            format!("{}/s, {generator_cpu_us_per_request:.2} us CPU each", format_count(*requests_per_second)),
        ],
    }
}

fn micro_table(results: &Results) -> String {
    let mut table = new_table(&["benchmark", "variant", "workers", "LWTs", "result", "its repetitions"], 2);
    for (record, range) in results.micro_with_ranges() {
        let range = match range.filter(|(smallest, largest)| smallest < largest) {
            // Of the first number; times in us may be less than one.
            Some((smallest, largest)) if largest < 1_000.0 => format!("{smallest:.2}-{largest:.2}"),
            Some((smallest, largest)) => format!("{}-{}", format_count(smallest), format_count(largest)),
            None => String::new(),
        };
        table.add_row(micro_line(record).into_iter().chain([range]));
    }
    table.to_string()
}

/// What an open loop came to when the server could not do what was due.
fn saturation(run: &Run) -> Option<String> {
    let due = run.details.due_per_second.filter(|_| run.is_saturated())?;
    let share = run.operations_per_second / due * 100.0;
    Some(format!("saturated: {share:.0} % of the {}/s that were due; latencies grow with the length of the run", format_count(due)))
}

/// Everything that a person wants to see at the end.
pub fn print(results: &Results) {
    let swept = sweep(&results.runs);
    if !swept.is_empty() {
        say!("Server threads tried before the comparison{}:", sweep_note(&results.runs));
        say!("{}\n", summaries_table(&swept));
    }
    let summaries = comparison(&results.runs);
    if !summaries.is_empty() {
        say!("Median (smallest-largest) of the repetitions:");
        say!("{}\n", summaries_table(&summaries));
    }
    if !results.micro.is_empty() {
        say!("{}\n", micro_table(results));
    }
    for duel in against_baselines(&summaries) {
        say!("{}", duel.sentence());
    }
    for run in &results.runs {
        if let Some(sentence) = saturation(run) {
            say!("{} {} at {:.0} %: {sentence}", run.configuration, run.workload, run.local_memory_ratio * 100.0);
        }
        for problem in run.problems() {
            say!("{} {} at {:.0} %: {problem}", run.configuration, run.workload, run.local_memory_ratio * 100.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::run;

    #[test]
    fn an_open_loop_that_fell_behind_is_called_saturated() {
        let mut run = run("dram", 1.0, 949.0);
        assert_eq!(saturation(&run), None);
        run.details.due_per_second = Some(1_000.0);
        assert!(saturation(&run).is_some_and(|text| text.contains("saturated: 95 % of the 1,000/s")));
        run.operations_per_second = 951.0;
        assert_eq!(saturation(&run), None);
    }

    #[test]
    fn a_line_shows_the_spread_only_when_there_is_one() {
        let once = comparison(&[run("dram", 1.0, 50_000.0)]);
        assert_eq!(line(&once[0])[4], "50,000");
        let twice = comparison(&[run("dram", 1.0, 50_000.0), run("dram", 1.0, 60_000.0)]);
        assert_eq!(line(&twice[0])[4], "55,000 (50,000-60,000)");
        assert!(summaries_table(&twice).contains("55,000"));
    }
}
