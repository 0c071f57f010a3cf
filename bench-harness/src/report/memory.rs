//! Throughput and tail latency against local memory, and where the wins are.

use std::fmt::Write;

use super::evidence::{Evidence, KERNEL_IN_MEMORY, STATE_OF_THE_ART, is_of_text};
use super::verdict::{digits, throughput, throughput_ratio};
use super::{class_of, section};
use crate::chart::{Axis, Bar, Group, Line, Plot, Point, Reference, Series, bars, escape};
use crate::summary::{Spread, Summary, best, configuration_position};
use crate::units::{format_count, format_tick, format_us_tick};

/// One table for each of what Lightswap is to be seen against: throughput over it, for every workload and share of memory.
pub fn write_wins(html: &mut String, evidence: &Evidence<'_>) {
    let tables = [
        (
            "Over the state of the art",
            "lightswap over the faster of kernel swap and fastswap-style, pages on the same disk",
            "lightswap",
            &STATE_OF_THE_ART[..],
        ),
        ("At the speed of memory", "lightswap-memory over kernel swap on zram", "lightswap-memory", &[KERNEL_IN_MEMORY]),
        ("Over memcached's own flash tier", "lightswap over extstore, same disk", "lightswap", &["extstore"]),
        ("Over a monitor thread", "lightswap over monitor: classic userfaultfd, same disk", "lightswap", &["monitor"]),
    ];
    let tables: String = tables.iter().map(|(title, note, own, others)| wins_table(evidence, title, note, own, others)).collect();
    if tables.is_empty() {
        return;
    }
    section(html, "wins", "Where it wins, and where not", "Throughput over the baseline's, medians; above 1 Lightswap serves more.");
    let _ = writeln!(
        *html,
        "<ul class=\"legend\"><li><span class=\"swatch win-2\"></span>≥ 1.40 ×</li><li><span class=\"swatch win-1\"></span>more</li>\
         <li><span class=\"swatch even\"></span>within 5 %</li><li><span class=\"swatch loss\"></span>less</li></ul><div class=\"charts\">{tables}</div>"
    );
}

fn wins_table(evidence: &Evidence<'_>, title: &str, note: &str, own: &str, others: &[&str]) -> String {
    let percents: Vec<u32> = evidence.percents(own);
    let mut rows = String::new();
    for workload in evidence.workloads() {
        let mut cells = String::new();
        let mut any = false;
        for &percent in &percents {
            let pair = evidence.cell(workload, percent, own).zip(evidence.fastest(workload, percent, others));
            let Some((mine, other)) = pair else {
                cells += "<td class=\"none\">–</td>";
                continue;
            };
            any = true;
            let ratio = throughput_ratio(mine, other);
            let class = if ratio >= 1.4 {
                "win-2"
            } else if ratio > 1.05 {
                "win-1"
            } else if ratio >= 0.95 || ratio.is_nan() {
                "even"
            } else {
                "loss"
            };
            let tip = format!("{} against {} of {}", throughput(mine), throughput(other), other.configuration);
            let _ = write!(
                cells,
                "<td class=\"{class}\" title=\"{}\"><i class=\"dot {}\"></i>{}</td>",
                escape(&tip),
                class_of(&other.configuration),
                digits(ratio, &[1.4, 1.05, 0.95])
            );
        }
        if any {
            let _ = write!(rows, "<tr><th>{}</th>{cells}</tr>", escape(&super::shown(workload)));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let heads: String = percents.iter().map(|percent| format!("<th>{percent} %</th>")).collect();
    let key = |name: &&str| format!("<li><i class=\"dot {}\"></i>{}</li>", class_of(name), escape(name));
    let keys: String = others.iter().map(key).collect();
    format!(
        "<figure><figcaption><b>{}</b> <span>{}</span></figcaption><table class=\"wins\"><thead><tr><th>memory</th>{heads}</tr></thead>\
         <tbody>{rows}</tbody></table><ul class=\"legend\">{keys}</ul></figure>",
        escape(title),
        escape(note)
    )
}

/// Cells of one workload and shape in a closed loop.
fn groups<'a>(evidence: &'a Evidence<'_>) -> Vec<Vec<&'a Summary>> {
    let closed: Vec<&Summary> = evidence.summaries.iter().filter(|summary| !summary.is_open_loop()).collect();
    let mut groups: Vec<Vec<&Summary>> = closed.chunk_by(|a, b| a.workload == b.workload && a.shape == b.shape).map(<[&Summary]>::to_vec).collect();
    let order = evidence.workloads();
    groups.sort_by_key(|group| order.iter().position(|name| *name == group[0].workload).unwrap_or(order.len()));
    groups
}

/// Names of the configurations of these cells, in the order of all charts.
pub fn configurations<'a>(cells: &[&'a Summary]) -> Vec<&'a str> {
    let mut names: Vec<&str> = cells.iter().map(|cell| cell.configuration.as_str()).collect();
    names.sort_by_key(|name| (configuration_position(name), *name));
    names.dedup();
    names
}

fn best_at<'a>(cells: &[&'a Summary], configuration: &str, percent: u32) -> Option<&'a Summary> {
    let here = cells.iter().filter(|cell| cell.configuration == configuration && cell.memory_percent() == percent);
    here.max_by(|a, b| a.operations_per_second.median.total_cmp(&b.operations_per_second.median)).copied()
}

fn percents_of(cells: &[&Summary], configuration: Option<&str>) -> Vec<u32> {
    let mut percents: Vec<u32> =
        cells.iter().filter(|cell| configuration.is_none_or(|name| cell.configuration == name)).map(|cell| cell.memory_percent()).collect();
    percents.sort_unstable_by(|a, b| b.cmp(a));
    percents.dedup();
    percents
}

/// Whether there is anything to draw a line of.
fn is_swept_over_memory(cells: &[&Summary]) -> bool {
    configurations(cells).iter().any(|name| percents_of(cells, Some(name)).len() > 1)
}

pub fn write_against_memory(html: &mut String, evidence: &Evidence<'_>) {
    let groups: Vec<Vec<&Summary>> = groups(evidence).into_iter().filter(|cells| is_swept_over_memory(cells)).collect();
    if groups.is_empty() {
        return;
    }
    section(
        html,
        "memory",
        "Against local memory",
        "How much of the data fits into the memory limit, from all to little. Median of the repetitions at each configuration's best settings; bars \
         from the smallest to the largest.",
    );
    for cells in groups {
        let _ = write!(html, "<h3>{}</h3><div class=\"charts\">", escape(&super::shown(&cells[0].title())));
        *html += &against_memory(&cells, "Throughput", "higher is better", Axis::linear("operations a second", format_tick), |cell| {
            (cell.operations_per_second, format!("{}/s", format_count(cell.operations_per_second.median)))
        });
        *html += &against_memory(&cells, "99th percentile of latency", "lower is better; logarithmic", Axis::log("p99", format_us_tick), |cell| {
            (cell.p99_us, crate::units::format_us(cell.p99_us.median))
        });
        *html += "</div>\n";
    }
}

fn against_memory(cells: &[&Summary], title: &str, note: &str, y: Axis, value: fn(&Summary) -> (Spread, String)) -> String {
    let percent = |value: f64| format!("{value:.0} %");
    let all = percents_of(cells, None);
    let x = Axis::linear("local memory, part of the data", percent).reversed().ticks_at(all.iter().map(|percent| f64::from(*percent)));
    let mut plot = Plot::new(title, note, x, y);
    // What was measured at one share only has bars elsewhere.
    for name in configurations(cells).into_iter().filter(|name| *name == "dram" || all.len() < 2 || percents_of(cells, Some(name)).len() > 1) {
        let points: Vec<Point> = all
            .iter()
            .filter_map(|&percent| best_at(cells, name, percent))
            .map(|cell| {
                let (y, text) = value(cell);
                Point {
                    x: f64::from(cell.memory_percent()),
                    y,
                    note: format!("{name} at {} %: {text}, {}", cell.memory_percent(), cell.settings_text()),
                }
            })
            .collect();
        // What has all in memory is what the others fall from: a line across.
        if name == "dram" {
            plot.references.extend(points.first().map(|point| Reference { label: "dram".into(), class: class_of("dram"), y: point.y.median }));
        } else {
            plot.series.push(Series { label: name.into(), class: class_of(name), line: Line::Solid, markers: true, points });
        }
    }
    plot.html()
}

/// What was measured at one share of memory only, or with other values: bars.
pub fn write_others(html: &mut String, evidence: &Evidence<'_>) {
    let mut charts = String::new();
    let by_value = by_value_size(evidence);
    // What differs in the size of values alone is in those charts already.
    let is_there = |cells: &[&Summary]| {
        !by_value.is_empty() && cells[0].note == format!("values of {}", cells[0].shape.values()) && cells[0].shape.value_mix.is_empty()
    };
    for cells in
        groups(evidence).into_iter().filter(|cells| !is_swept_over_memory(cells) && !is_there(cells) && !cells.iter().all(|cell| is_of_text(cell)))
    {
        let bar_groups = |value: fn(&Summary) -> Spread| -> Vec<Group> {
            let percents = percents_of(&cells, None);
            let group = |&percent: &u32| Group {
                title: format!("{percent} % local memory"),
                bars: configurations(&cells)
                    .iter()
                    .filter_map(|name| best_at(&cells, name, percent))
                    .map(|cell| Bar { label: cell.configuration.clone(), class: class_of(&cell.configuration), value: value(cell) })
                    .collect(),
            };
            percents.iter().map(group).collect()
        };
        charts += &bars(
            &super::shown(&cells[0].title()),
            "operations a second; longer is better",
            &bar_groups(|cell| cell.operations_per_second),
            format_count,
        );
    }
    if charts.is_empty() && by_value.is_empty() {
        return;
    }
    section(html, "workloads", "Other workloads and value sizes", "Median of the repetitions, with error bars from the smallest to the largest.");
    let _ = writeln!(html, "<div class=\"charts\">{by_value}{charts}</div>");
}

/// Throughput over the size of values where a workload was run with several.
fn by_value_size(evidence: &Evidence<'_>) -> String {
    let mut html = String::new();
    for workload in evidence.workloads() {
        let closed = |summary: &&Summary| {
            summary.workload == workload && !summary.is_open_loop() && summary.shape.value_mix.is_empty() && summary.shape.value_kind.is_empty()
        };
        let cells: Vec<&Summary> = evidence.summaries.iter().filter(closed).collect();
        for percent in percents_of(&cells, None).into_iter().filter(|percent| *percent < 100) {
            let here: Vec<&Summary> = cells.iter().copied().filter(|cell| cell.memory_percent() == percent).collect();
            let mut sizes: Vec<usize> = here.iter().map(|cell| cell.shape.value_size_bytes).collect();
            sizes.sort_unstable();
            sizes.dedup();
            if sizes.len() < 2 {
                continue;
            }
            let x = Axis::log("size of a value in bytes", format_count).ticks_at(sizes.iter().map(|size| *size as f64));
            let title = format!("{} over the size of values, {percent} % local memory", super::shown(workload));
            let mut plot = Plot::new(title, "higher is better; logarithmic", x, Axis::log("operations a second", format_tick));
            for name in configurations(&here) {
                if here.iter().filter(|cell| cell.configuration == name).all(|cell| cell.note.is_empty()) {
                    continue;
                }
                let point = |&size: &usize| {
                    let cell = best(&evidence.summaries, |summary| {
                        here.iter().any(|cell| std::ptr::eq(*cell, summary))
                            && summary.configuration == name
                            && summary.shape.value_size_bytes == size
                    })?;
                    let y = cell.operations_per_second;
                    Some(Point { x: size as f64, y, note: format!("{name}, {size} B: {}/s", format_count(y.median)) })
                };
                let points = sizes.iter().filter_map(point).collect();
                plot.series.push(Series { label: name.into(), class: class_of(name), line: Line::Solid, markers: true, points });
            }
            html += &plot.html();
        }
    }
    html
}

/// What each configuration was tried with before the comparison.
pub fn write_sweeps(html: &mut String, evidence: &Evidence<'_>) {
    if evidence.swept.is_empty() {
        return;
    }
    let note = format!(
        "Each configuration was tried with these settings first; ✓ marks what the comparison then used{}.",
        crate::summary::sweep_note(&evidence.runs)
    );
    section(html, "settings", "Settings: what was tried, what was chosen", &note);
    *html += "<div class=\"charts\">";
    let same_chart = |a: &Summary, b: &Summary| a.workload == b.workload && a.shape == b.shape;
    for of_workload in evidence.swept.chunk_by(same_chart) {
        let mut cells: Vec<&Summary> = of_workload.iter().collect();
        cells.sort_by_key(|cell| (configuration_position(&cell.configuration), cell.configuration.clone(), 1_000 - cell.memory_percent()));
        let same_group = |a: &&Summary, b: &&Summary| a.configuration == b.configuration && a.memory_percent() == b.memory_percent();
        let groups: Vec<Group> = cells
            .chunk_by(same_group)
            .map(|group| Group {
                title: format!("{}, {} % local memory", group[0].configuration, group[0].memory_percent()),
                bars: group
                    .iter()
                    .map(|cell| {
                        let used = evidence.all_summaries().any(|summary| {
                            summary.configuration == cell.configuration
                                && summary.workload == cell.workload
                                && summary.memory_percent() == cell.memory_percent()
                                && summary.server_threads == cell.server_threads
                                && summary.settings == cell.settings
                        });
                        let label = format!("{}{}", cell.settings_text(), if used { " ✓" } else { "" });
                        Bar { label, class: class_of(&cell.configuration), value: cell.operations_per_second }
                    })
                    .collect(),
            })
            .collect();
        *html += &bars(&super::shown(&of_workload[0].title()), "operations a second", &groups, format_count);
    }
    *html += "</div>\n";
}
