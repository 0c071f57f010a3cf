//! What a reader sees in the first seconds, computed from the numbers.

use std::fmt::Write;

use super::claims::NOTIFICATION_US;
use super::evidence::{Evidence, KERNEL_IN_MEMORY, PRIMARY_PERCENT, PRIMARY_WORKLOADS, STATE_OF_THE_ART, SUSPENDED};
use super::redis_targets::served_ratio;
use super::verdict::{Claim, Verdict, throughput_ratio, times};
use crate::chart::escape;
use crate::save_record::SaveRecord;
use crate::summary::Summary;
use crate::units::{format_count, format_ratio, format_us};

#[derive(Debug, Clone)]
pub struct Headline {
    pub number: String,
    pub sentence: String,
    pub is_good: bool,
}

/// Below this a baseline serves more, beyond what runs differ in anyway.
const CLEARLY_LESS: f64 = 0.95;

/// Both sides of a ratio in words.
fn comparison(own: &Summary, other: &Summary) -> String {
    format!(
        "{} at {} % local memory: {} serves {}/s, {} {}/s; its 99th percentile in the same closed loop is {} times as long",
        super::shown(&own.workload),
        own.memory_percent(),
        own.configuration,
        format_count(own.operations_per_second.median),
        other.configuration,
        format_count(other.operations_per_second.median),
        format_ratio(own.p99_us.median / other.p99_us.median)
    )
}

/// All closed loops, of every shape, in which Lightswap has something to be compared with, with the ratio of their throughput.
fn duels<'a>(evidence: &'a Evidence<'_>) -> Vec<(f64, &'a Summary, &'a Summary)> {
    let rivals: [(&str, &[&str]); 3] = [("lightswap", &STATE_OF_THE_ART), ("lightswap", &["extstore"]), ("lightswap-memory", &[KERNEL_IN_MEMORY])];
    let mut all = Vec::new();
    for (name, others) in rivals {
        let cells = evidence.summaries.iter().filter(|own| own.configuration == name && own.memory_percent() < 100 && !own.is_open_loop());
        for own in cells {
            let is_same = |other: &&Summary| {
                others.contains(&other.configuration.as_str())
                    && (&other.workload, other.memory_percent(), &other.shape) == (&own.workload, own.memory_percent(), &own.shape)
            };
            let fastest =
                evidence.summaries.iter().filter(is_same).max_by(|a, b| a.operations_per_second.median.total_cmp(&b.operations_per_second.median));
            all.extend(fastest.map(|other| (throughput_ratio(own, other), own, other)));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

fn of_redis(evidence: &Evidence<'_>) -> Vec<Headline> {
    let mut headlines = Vec::new();
    for workload in PRIMARY_WORKLOADS {
        let of = |configuration| evidence.redis_cell(workload, PRIMARY_PERCENT, configuration);
        if let Some((own, other)) = of("redis-lightswap").zip(of("redis-kernel-swap-ssd"))
            && let Some(ratio) = served_ratio(evidence, own, other)
        {
            headlines.push(Headline { number: times(ratio, &[1.0]), sentence: comparison(own, other), is_good: ratio > 1.0 });
        }
    }
    let pause = |record: &SaveRecord| record.meanwhile().map_or(0.0, |(_, pause_seconds)| pause_seconds);
    let saves = evidence.saves().filter(|record| record.is_lightswap() && record.error.is_none());
    if let Some(record) = saves.max_by(|a, b| pause(a).total_cmp(&pause(b))) {
        let sentence = format!(
            "without an answer at most while Redis wrote a dump of {:.1} times its local memory: {} of {} keys in it, {} wrong",
            record.values_over_local().unwrap_or(0.0),
            format_count(record.dump_keys as f64),
            format_count(record.expected_keys as f64),
            record.dump_wrong
        );
        headlines.push(Headline { number: format!("{:.0} ms", pause(record) * 1e3), sentence, is_good: record.problems().is_empty() });
    }
    headlines
}

pub fn headlines(evidence: &Evidence<'_>) -> Vec<Headline> {
    let mut headlines = Vec::new();
    for workload in PRIMARY_WORKLOADS {
        let pair = evidence.cell(workload, PRIMARY_PERCENT, "lightswap").zip(evidence.fastest(workload, PRIMARY_PERCENT, &STATE_OF_THE_ART));
        if let Some((own, other)) = pair {
            let ratio = throughput_ratio(own, other);
            headlines.push(Headline { number: times(ratio, &[1.0]), sentence: comparison(own, other), is_good: ratio > 1.0 });
        }
    }
    headlines.extend(of_redis(evidence));
    let kernel = evidence.fault_latency_us("kernel", "swap-ssd", "kernel");
    if let Some((own, kernel)) = evidence.fault_latency_us("lightswap", "file", "sigbus").zip(kernel) {
        let ratio = kernel.median / own.median;
        let sentence = format!(
            "faster fault handling than kernel swap on the same disk: {} against {} from the faulting access to the retried one",
            format_us(own.median),
            format_us(kernel.median)
        );
        headlines.push(Headline { number: times(ratio, &[1.0]), sentence, is_good: ratio > 1.0 });
    }
    if let Some(own) = evidence.notify(SUSPENDED, 128) {
        let mut sentence = format!(
            "from the faulting access to the handler at 128 LWTs on one worker, each suspended in its handler ({SUSPENDED}); the paper: 4 µs"
        );
        if let Some(monitor) = evidence.notify("monitor", 128) {
            let _ = write!(sentence, ", a monitor thread here: {}", format_us(monitor.median));
        }
        headlines.push(Headline { number: format_us(own.median), sentence, is_good: own.median <= NOTIFICATION_US });
    }
    if let Some(outage) = evidence.outages().max_by(|a, b| a.longest_pause_seconds.total_cmp(&b.longest_pause_seconds)) {
        let is_good = outage.problems().is_empty();
        let sentence = format!(
            "without an answer at most, when one of two mirrored memory servers was killed under load and came back empty: {} lost items, {} wrong values{}",
            outage.lost_items(),
            outage.wrong_values,
            outage.resynchronised_after_seconds().map_or_else(String::new, |after| format!(", in sync again {after:.1} s after its return"))
        );
        headlines.push(Headline { number: format!("{:.0} ms", outage.longest_pause_seconds * 1e3), sentence, is_good });
    }
    let duels = duels(evidence);
    if let Some((worst, own, other)) = duels.first() {
        let lost = duels.iter().filter(|duel| duel.0 < CLEARLY_LESS).count();
        let summary = if lost == 0 {
            format!("Lightswap is nowhere clearly behind in {} comparisons; the closest is ", duels.len())
        } else {
            format!("Lightswap is behind in {lost} of {} comparisons; the worst is ", duels.len())
        };
        let cell = format!(
            "{} at {} % local memory{}, {}/s of {} against {}/s of {}",
            super::shown(&own.workload),
            own.memory_percent(),
            if own.note.is_empty() { String::new() } else { format!(" ({})", own.note) },
            format_count(own.operations_per_second.median),
            own.configuration,
            format_count(other.operations_per_second.median),
            other.configuration
        );
        headlines.push(Headline { number: times(*worst, &[CLEARLY_LESS]), sentence: summary + &cell, is_good: lost == 0 });
    }
    headlines
}

pub fn write_headlines(html: &mut String, evidence: &Evidence<'_>) {
    let headlines = headlines(evidence);
    if headlines.is_empty() {
        return;
    }
    *html += "<div class=\"headlines\">";
    for headline in headlines {
        let class = if headline.is_good { "good" } else { "poor" };
        let _ = write!(html, "<p class=\"{class}\"><b>{}</b> {}</p>", escape(&headline.number), escape(&headline.sentence));
    }
    *html += "</div>\n";
}

/// `7 met, 1 not met, 3 not measured`.
pub fn tally(claims: &[Claim]) -> String {
    let all = [Verdict::Met, Verdict::NotMet, Verdict::NotMeasured, Verdict::ByTest];
    let count = |verdict: Verdict| claims.iter().filter(|claim| claim.verdict == verdict).count();
    let parts = all.iter().filter(|verdict| count(**verdict) > 0).map(|verdict| format!("{} {}", count(*verdict), verdict.words()));
    parts.collect::<Vec<_>>().join(", ")
}

/// The command, of which what matters is seen at first: program and subcommands.
fn command_html(command: &str) -> String {
    match command.split_once(" --") {
        Some((start, _)) => format!("<details><summary><code>{}</code></summary><code>{}</code></details>", escape(start), escape(command)),
        None => format!("<code>{}</code>", escape(command)),
    }
}

pub fn write_claims(html: &mut String, title: &str, expected: &str, claims: &[Claim]) {
    if !title.is_empty() {
        let _ = write!(html, "<h3>{} <span class=\"faint\">{}</span></h3>", escape(title), escape(&tally(claims)));
    }
    let _ = writeln!(
        html,
        "<table class=\"claims\"><thead><tr><th>claim</th><th>{}</th><th>ours</th><th>ratio</th>\
         <th>verdict</th><th>command</th></tr></thead><tbody>",
        escape(expected)
    );
    for claim in claims {
        // An empty cell is a dash in the table, and no line at all where rows are cards.
        let cell = |label: &str, text: &str| {
            let (class, text) = if text.is_empty() { (" class=\"none\"", "–".to_owned()) } else { ("", escape(text)) };
            format!("<td{class} data-label=\"{label}\">{text}</td>")
        };
        let _ = writeln!(
            html,
            "<tr><td class=\"claim\">{}</td>{}{}{}<td data-label=\"verdict\"><span class=\"verdict {}\">{}</span>{}</td>\
             <td data-label=\"command\">{}</td></tr>",
            escape(&claim.claim),
            cell(expected, &claim.expected),
            cell("ours", &claim.ours),
            cell("ratio", &claim.ratio),
            claim.verdict.class(),
            claim.verdict.words(),
            if claim.remark.is_empty() { String::new() } else { format!("<small>{}</small>", escape(&claim.remark)) },
            command_html(&claim.command)
        );
    }
    *html += "</tbody></table>\n";
}
