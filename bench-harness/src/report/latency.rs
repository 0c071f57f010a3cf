//! Distributions of latency, latency at offered rates, and the time line of a run.

use std::fmt::Write;

use super::evidence::{Evidence, PRIMARY_PERCENT, PRIMARY_WORKLOADS};
use super::memory::configurations;
use super::{class_of, section};
use crate::chart::{Axis, Line, Plot, Point, Reference, Series, escape};
use crate::results::Moment;
use crate::summary::{SUSTAINED, Spread, Summary};
use crate::units::{MIB, format_count, format_tick, format_us, format_us_tick};

/// The cells that stand for a workload: at the primary share of memory, or the smallest there is; all in memory beside it.
fn main_cells<'a>(evidence: &'a Evidence<'_>, workload: &str, usable: impl Fn(&Summary) -> bool) -> Vec<&'a Summary> {
    let of_workload: Vec<&Summary> = evidence
        .summaries
        .iter()
        .filter(|summary| summary.workload == workload && summary.note.is_empty() && !summary.is_open_loop() && usable(summary))
        .collect();
    let smallest = of_workload.iter().map(|summary| summary.memory_percent()).min().unwrap_or(100);
    let percent = if of_workload.iter().any(|summary| summary.memory_percent() == PRIMARY_PERCENT) { PRIMARY_PERCENT } else { smallest };
    let wanted = |cell: &&&Summary| cell.memory_percent() == percent || cell.configuration.ends_with("dram");
    let mut cells: Vec<&Summary> = of_workload.iter().filter(wanted).copied().collect();
    // One for each configuration: with its best settings.
    cells.sort_by(|a, b| b.operations_per_second.median.total_cmp(&a.operations_per_second.median));
    let names = configurations(&cells);
    names.iter().filter_map(|name| cells.iter().find(|cell| cell.configuration == *name)).copied().collect()
}

/// Of all operations, how many took longer; points that are too near each other to tell apart are left out.
fn longer_than(buckets: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let total: u64 = buckets.iter().map(|bucket| bucket.1).sum();
    let mut below = 0;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (bound_us, count) in buckets {
        below += count;
        let share = (total - below) as f64 / total as f64;
        let is_apart = points.last().is_none_or(|last| bound_us / last.0 > 1.03 || share < last.1 * 0.9);
        // The last one has nothing above it, which a logarithmic axis cannot show.
        if *bound_us > 0.0 && share > 0.0 && is_apart {
            points.push((*bound_us, share));
        }
    }
    points
}

fn format_share(share: f64) -> String {
    // 0.5 is the median, 0.01 the 99th percentile: said so, as people know them by these names.
    let percent = share * 100.0;
    if percent >= 1.0 { format!("{percent:.0} %") } else { format!("{} %", (percent * 1e5).round() / 1e5) }
}

fn distribution(evidence: &Evidence<'_>, workload: &str) -> String {
    let cells = main_cells(evidence, workload, |summary| summary.latency_buckets.len() > 1);
    let Some(limited) = cells.iter().find(|cell| cell.memory_percent() < 100).or(cells.first()) else {
        return String::new();
    };
    let title = format!("{}, {} % local memory", super::shown(workload), limited.memory_percent());
    let note = "the further left and down, the better; p99 is where a curve crosses 1 %";
    let mut plot = Plot::new(title, note, Axis::log("latency", format_us_tick), Axis::log("operations that took longer", format_share));
    for cell in cells {
        let points = longer_than(&cell.latency_buckets).into_iter().filter(|point| point.1 >= 1e-5);
        let points = points.map(|(x, share)| Point { x, y: Spread::one(share), note: String::new() }).collect();
        let line = if cell.configuration.ends_with("dram") { Line::Dashed } else { Line::Solid };
        plot.series.push(Series { label: cell.configuration.clone(), class: class_of(&cell.configuration), line, markers: false, points });
    }
    plot.html()
}

pub fn write_latency(html: &mut String, evidence: &Evidence<'_>) {
    let distributions: String = PRIMARY_WORKLOADS.iter().map(|workload| distribution(evidence, workload)).collect();
    if !distributions.is_empty() {
        section(
            html,
            "latency",
            "Latency, all of it",
            "Closed loop: the part of all operations that took longer than a time, all repetitions together. Both axes are logarithmic.",
        );
        let _ = writeln!(html, "<div class=\"charts\">{distributions}</div>");
    }
    let open = open_loop(evidence);
    if !open.is_empty() {
        section(
            html,
            "open-loop",
            "Latency at an offered rate",
            "Open loop: requests are due at a constant rate whatever the server does, and latency counts from when a request was due, so waiting \
             is not left out (no coordinated omission). A curve that turns upwards shows the rate that a configuration no longer keeps up with.",
        );
        write_saturated(html, evidence);
        let _ = writeln!(html, "<div class=\"charts three\">{open}</div>");
    }
}

fn open_loop(evidence: &Evidence<'_>) -> String {
    let open: Vec<&Summary> = evidence.summaries.iter().filter(|summary| summary.is_open_loop()).collect();
    let mut workloads: Vec<&str> = open.iter().map(|cell| cell.workload.as_str()).collect();
    workloads.dedup();
    let mut html = String::new();
    for workload in workloads {
        let mut percents: Vec<u32> =
            open.iter().filter(|cell| cell.workload == workload).map(|cell| cell.memory_percent()).filter(|p| *p < 100).collect();
        percents.sort_unstable();
        percents.dedup();
        if percents.is_empty() {
            percents.push(100);
        }
        for percent in percents {
            let here = |cell: &&&Summary| cell.workload == workload && (cell.memory_percent() == percent || cell.configuration.ends_with("dram"));
            let cells: Vec<&Summary> = open.iter().filter(here).copied().collect();
            for (name, value) in [
                ("Median", (|cell| cell.p50_us) as fn(&Summary) -> Spread),
                ("99th percentile", |cell| cell.p99_us),
                ("99.9th percentile", |cell| cell.p999_us),
            ] {
                html += &open_loop_plot(&cells, &format!("{name} of {}, {percent} % local memory", super::shown(workload)), value);
            }
        }
    }
    html
}

/// Names the cells whose latency says nothing but how long the run was.
fn write_saturated(html: &mut String, evidence: &Evidence<'_>) {
    let saturated = evidence.summaries.iter().filter(|summary| summary.is_saturated());
    let words = |cell: &Summary| {
        format!(
            "{} at {} % with {} of {}/s",
            cell.configuration,
            cell.memory_percent(),
            format_count(cell.operations_per_second.median),
            format_count(rate(cell))
        )
    };
    let all: Vec<String> = saturated.map(words).collect();
    if !all.is_empty() {
        let _ = writeln!(
            html,
            "<p class=\"caution\">Saturated, as less than {:.0} % of what was due was served: {}. Latency there grows as long as the run lasts and is \
             no property of the server.</p>",
            SUSTAINED * 100.0,
            escape(&all.join("; "))
        );
    }
}

fn rate(cell: &Summary) -> f64 {
    cell.shape.due_per_second.unwrap_or_default() as f64
}

fn open_loop_plot(cells: &[&Summary], title: &str, value: fn(&Summary) -> Spread) -> String {
    let x = Axis::linear("requests a second that were due", format_tick);
    let mut plot = Plot::new(title, "lower is better; logarithmic", x, Axis::log("latency from when due", format_us_tick));
    for name in configurations(cells) {
        let mut of_name: Vec<&&Summary> = cells.iter().filter(|cell| cell.configuration == name).collect();
        of_name.sort_by_key(|cell| cell.shape.due_per_second);
        let point = |cell: &&&Summary| Point {
            x: rate(cell),
            y: value(cell),
            note: format!(
                "{name} at {}/s: {}, served {}/s{}",
                format_count(rate(cell)),
                format_us(value(cell).median),
                format_count(cell.operations_per_second.median),
                if cell.is_saturated() { ", saturated" } else { "" }
            ),
        };
        let points = of_name.iter().map(point).collect();
        let line = if name.ends_with("dram") { Line::Dashed } else { Line::Solid };
        plot.series.push(Series { label: name.into(), class: class_of(name), line, markers: true, points });
    }
    plot.html()
}

/// Small multiples: one card for each configuration, with throughput, faults and resident set over the measured time on scales that all share.
pub fn write_time_lines(html: &mut String, evidence: &Evidence<'_>) {
    let has_time_line = |summary: &Summary| summary.time_line.len() > 1;
    let Some((workload, mut cells)) = PRIMARY_WORKLOADS
        .iter()
        .copied()
        .chain(evidence.workloads())
        .map(|workload| (workload, main_cells(evidence, workload, has_time_line)))
        .find(|(_, cells)| !cells.is_empty())
    else {
        return;
    };
    // What has all in memory would only stretch the scale of the resident set.
    if cells.iter().any(|cell| cell.limit_bytes.is_some()) {
        cells.retain(|cell| cell.limit_bytes.is_some());
    }
    let percent = cells.iter().map(|cell| cell.memory_percent()).min().unwrap_or(100);
    let note = format!(
        "{} at {percent} % local memory, the repetition in the middle, all on the same scales. Faults: major faults of the kernel, or swap-ins where the \
         server pages for itself. The dashed line is the memory limit.",
        super::shown(workload)
    );
    section(html, "time-line", "Time line of a run", &note);
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    type Row<'a> = (&'a str, fn(&Moment) -> f64);
    let rows: [Row<'_>; 3] = [
        ("operations a second", |moment| moment.operations_per_second),
        ("faults a second", |moment| moment.faults_per_second),
        ("resident MiB", |moment| moment.resident_bytes as f64 / MIB as f64),
    ];
    let highest = rows.map(|(title, value)| {
        let moments = cells.iter().flat_map(|cell| &cell.time_line).map(value);
        let limits = cells.iter().filter_map(|cell| cell.limit_bytes).map(mib).filter(|_| title == "resident MiB");
        moments.chain(limits).fold(0.0, f64::max)
    });
    *html += "<div class=\"charts many\">";
    for cell in &cells {
        let class = class_of(&cell.configuration);
        let _ = write!(html, "<div class=\"card\"><h4 class=\"{class}\"><i class=\"dot\"></i>{}</h4>", escape(&cell.configuration));
        for (index, (title, value)) in rows.iter().enumerate() {
            let x_title = if index + 1 == rows.len() { "seconds" } else { "" };
            let mut plot = Plot::new("", *title, Axis::linear(x_title, format_tick), Axis::linear("", format_tick));
            plot.small = true;
            plot.y_at_least = highest[index];
            let points = cell.time_line.iter().map(|moment| Point { x: moment.at_seconds, y: Spread::one(value(moment)), note: String::new() });
            let label = format!("{}, {title}", cell.configuration);
            plot.series.push(Series { label, class: class.clone(), line: Line::Solid, markers: false, points: points.collect() });
            if index + 1 == rows.len() {
                plot.references.extend(cell.limit_bytes.map(|bytes| Reference { label: "limit".into(), class: "limit".into(), y: mib(bytes) }));
            }
            *html += &plot.html();
        }
        *html += "</div>";
    }
    *html += "</div>\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_took_longer_falls_from_one_to_the_slowest() {
        let points = longer_than(&[(100.0, 50), (200.0, 40), (201.0, 1), (400.0, 8), (800.0, 1)]);
        assert_eq!(points[0], (100.0, 0.5));
        assert!((points[1].1 - 0.1).abs() < 1e-9);
        assert!(points.iter().all(|point| point.1 > 0.0), "{points:?}");
        assert!(longer_than(&[]).is_empty());
        assert_eq!([0.5, 0.01, 0.0001].map(format_share), ["50 %", "1 %", "0.01 %"]);
    }
}
