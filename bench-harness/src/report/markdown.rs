//! The summary in Markdown, for the README.

use std::fmt::Write;

use super::claims;
use super::errors;
use super::evidence::Evidence;
use super::headline::headlines;
use super::mechanism::notification_lines;
use super::memory::configurations;
use super::targets;
use super::verdict::{Claim, Verdict, with_spread};
use crate::results::Results;
use crate::summary::Summary;
use crate::units::{format_count, format_ms};

/// Names come from files of others: a cell must hold no bar, line break or HTML of its own. The README writes microseconds as `us`.
fn cell(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\\', "\\\\").replace('|', "\\|");
    let text = text.replace(['\n', '\r'], " ").replace('µ', "u");
    if text.is_empty() { "-".into() } else { text }
}

fn write_claims(text: &mut String, heading: &str, claims: &[Claim]) {
    let _ = writeln!(text, "\n| {heading} | expected | ours | ratio | verdict |\n|---|---|---|---|---|");
    for claim in claims {
        let needs_remark = matches!(claim.verdict, Verdict::NotMeasured | Verdict::ByTest);
        let verdict = if needs_remark && !claim.remark.is_empty() {
            format!("{} ({})", claim.verdict.words(), claim.remark)
        } else {
            claim.verdict.words().to_owned()
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            cell(&claim.claim),
            cell(&claim.expected),
            cell(&claim.ours),
            cell(&claim.ratio),
            cell(&verdict)
        );
    }
}

pub fn markdown(files: &[Results]) -> String {
    let evidence = Evidence::new(files);
    let mut text = String::new();
    for caution in super::cautions(files) {
        let _ = writeln!(text, "**{}**\n", cell(&caution));
    }
    for headline in headlines(&evidence) {
        let _ = writeln!(text, "- **{}** {}.", cell(&headline.number), cell(&headline.sentence));
    }
    write_claims(&mut text, "the paper's claim", &claims::paper(&evidence));
    write_claims(&mut text, "our own target", &targets::own(&evidence));
    write_workloads(&mut text, &evidence);
    for record in evidence.torture() {
        text += "\n| errors on purpose | |\n|---|---|\n";
        for (name, value) in errors::lines(record, &evidence.command_of_torture(record)) {
            let _ = writeln!(text, "| {name} | {} |", cell(&value));
        }
    }
    let lines = notification_lines(&evidence);
    if !lines.is_empty() {
        text += "\n| micro-benchmark | |\n|---|---|\n";
        for (name, value) in lines {
            let _ = writeln!(text, "| {} | {} |", cell(&name), cell(&value));
        }
    }
    text
}

fn write_workloads(text: &mut String, evidence: &Evidence<'_>) {
    let mut rows: Vec<&Summary> = Vec::new();
    for workload in evidence.workloads() {
        let of_workload: Vec<&Summary> = evidence.summaries.iter().filter(|summary| summary.workload == workload).collect();
        let mut percents: Vec<u32> = of_workload.iter().map(|summary| summary.memory_percent()).collect();
        percents.sort_unstable_by(|a, b| b.cmp(a));
        percents.dedup();
        for percent in percents {
            rows.extend(configurations(&of_workload).iter().filter_map(|name| evidence.cell(workload, percent, name)));
        }
    }
    for workload in evidence.redis_workloads() {
        let of_workload: Vec<&Summary> = evidence.redis.iter().filter(|summary| summary.workload == workload && summary.note.is_empty()).collect();
        rows.extend(of_workload.into_iter().filter(|summary| !summary.is_open_loop()));
    }
    if rows.is_empty() {
        return;
    }
    *text += "\n| workload | local memory | configuration | settings | operations/s, median (range) | p99 ms |\n|---|---|---|---|---|---|\n";
    for row in rows {
        let name = if row.configuration == "lightswap" { "**lightswap**".to_owned() } else { cell(&row.configuration) };
        let _ = writeln!(
            text,
            "| {} | {} % | {name} | {} | {} | {} |",
            cell(&row.workload.to_uppercase()),
            row.memory_percent(),
            cell(&row.settings_text()),
            with_spread(row.operations_per_second, format_count),
            format_ms(row.p99_us.median)
        );
    }
}
