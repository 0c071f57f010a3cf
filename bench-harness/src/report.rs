//! The HTML report: one file, no network, readable on a phone, light and dark.

use std::fmt::Write;

use serde_json::Value;

use crate::chart::{Bar, Group, bars, escape};
use crate::results::Results;
use crate::summary::{Spread, Summary, comparison, sweep, sweep_note, verdicts};
use crate::table::{HEADINGS, NUM_TEXT_COLUMNS, line};
use crate::units::{MIB, format_count, format_ms};

const STYLE: &str = include_str!("report.css");

/// One report of all the files' results.
pub fn html(files: &[Results]) -> String {
    let runs: Vec<_> = files.iter().flat_map(|file| file.runs.clone()).collect();
    let summaries = comparison(&runs);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Lightswap: measured</title><style>\n{STYLE}</style></head><body>\n\
         <h1>Lightswap against kernel swap</h1>\n"
    );
    write_verdicts(&mut html, &summaries);
    write_problems(&mut html, files);
    write_charts(&mut html, &summaries);
    if !summaries.is_empty() {
        html += "<h2>All numbers</h2><p class=\"faint\">Median of the repetitions, smallest and largest in parentheses. \
                 Memory is the part of the data that fits into the server's memory limit.</p>\n";
        write_table(&mut html, &summaries);
    }
    let swept = sweep(&runs);
    if !swept.is_empty() {
        html += "<h2>Server threads tried first</h2><p class=\"faint\">The best count of each configuration is used above";
        html += &escape(&sweep_note(&runs));
        html += ".</p>\n<div class=\"charts\">\n";
        write_sweep(&mut html, &swept);
        html += "</div>\n";
    }
    write_micro(&mut html, files);
    write_environments(&mut html, files);
    html + "</body></html>\n"
}

fn write_verdicts(html: &mut String, summaries: &[Summary]) {
    let verdicts = verdicts(summaries);
    if verdicts.is_empty() {
        return;
    }
    *html += "<ul>\n";
    for verdict in verdicts {
        let _ = writeln!(*html, "<li>{}</li>", escape(&verdict.sentence()));
    }
    *html += "</ul>\n";
}

fn write_problems(html: &mut String, files: &[Results]) {
    for run in files.iter().flat_map(|file| &file.runs) {
        for problem in run.problems() {
            let text = format!("{} {} at {:.0} %: {problem}", run.configuration, run.workload, run.local_memory_ratio * 100.0);
            let _ = writeln!(*html, "<p class=\"bad\">{}</p>", escape(&text));
        }
    }
}

fn with_shape(title: String, summary: &Summary) -> String {
    if summary.shape.is_empty() { title } else { format!("{title}, {}", summary.shape) }
}

/// One group for each memory ratio.
fn groups_by_ratio(summaries: &[&Summary], value: fn(&Summary) -> Spread) -> Vec<Group> {
    summaries
        .chunk_by(|a, b| a.local_memory_ratio == b.local_memory_ratio && a.shape == b.shape)
        .map(|group| Group {
            title: with_shape(
                if group[0].local_memory_ratio >= 1.0 {
                    "everything in memory".into()
                } else {
                    format!("{:.0} % of the data in memory", group[0].local_memory_ratio * 100.0)
                },
                group[0],
            ),
            bars: group
                .iter()
                .map(|summary| Bar {
                    label: summary.configuration.clone(),
                    class: summary.configuration.clone(),
                    value: value(summary),
                    has_spread: summary.repetitions > 1,
                })
                .collect(),
        })
        .collect()
}

fn write_charts(html: &mut String, summaries: &[Summary]) {
    let mut workloads: Vec<&str> = summaries.iter().map(|s| s.workload.as_str()).collect();
    workloads.dedup();
    for workload in workloads {
        let rows: Vec<&Summary> = summaries.iter().filter(|summary| summary.workload == workload).collect();
        let _ = writeln!(*html, "<h2>{}</h2><div class=\"charts\">", escape(workload));
        *html += &bars(
            "Throughput",
            "operations a second; longer is better",
            &groups_by_ratio(&rows, |summary| summary.operations_per_second),
            format_count,
        );
        *html += &bars("Latency, 99th percentile", "ms; shorter is better", &groups_by_ratio(&rows, |summary| summary.p99_us), format_ms);
        *html += "</div>\n";
    }
}

fn write_sweep(html: &mut String, swept: &[Summary]) {
    let same_workload = |a: &Summary, b: &Summary| a.workload == b.workload;
    for of_workload in swept.chunk_by(same_workload) {
        let groups: Vec<Group> = of_workload
            .chunk_by(|a, b| a.configuration == b.configuration && a.local_memory_ratio == b.local_memory_ratio && a.shape == b.shape)
            .map(|group| Group {
                title: with_shape(
                    format!("{}, {:.0} % of the data in memory", group[0].configuration, group[0].local_memory_ratio * 100.0),
                    &group[0],
                ),
                bars: group
                    .iter()
                    .map(|summary| Bar {
                        label: format!("{} thread{}", summary.server_threads, if summary.server_threads == 1 { "" } else { "s" }),
                        class: summary.configuration.clone(),
                        value: summary.operations_per_second,
                        has_spread: summary.repetitions > 1,
                    })
                    .collect(),
            })
            .collect();
        let title = format!("Throughput of {}", of_workload[0].workload);
        *html += &bars(&title, "operations a second; longer is better", &groups, format_count);
    }
}

fn write_table(html: &mut String, summaries: &[Summary]) {
    let class = |index: usize| {
        if index < NUM_TEXT_COLUMNS { " class=\"text\"" } else { "" }
    };
    *html += "<div class=\"wide\"><table><tr>";
    for (index, heading) in HEADINGS.iter().enumerate() {
        let _ = write!(*html, "<th{}>{heading}</th>", class(index));
    }
    *html += "</tr>\n";
    for summary in summaries {
        *html += "<tr>";
        for (index, cell) in line(summary).iter().enumerate() {
            let _ = write!(*html, "<td{}>{}</td>", class(index), escape(cell));
        }
        *html += "</tr>\n";
    }
    *html += "</table></div>\n";
}

fn write_micro(html: &mut String, files: &[Results]) {
    let micro: Vec<_> = files.iter().flat_map(|file| &file.micro).collect();
    if micro.is_empty() {
        return;
    }
    *html += "<h2>Micro-benchmarks</h2>\n<pre>";
    for record in micro {
        let text = serde_json::to_string(record).unwrap_or_default();
        let _ = writeln!(*html, "{}", escape(&text));
    }
    *html += "</pre>\n";
}

/// One field of the environment for people: a name and a text with units.
fn fact(name: &str, value: &Value) -> (String, String) {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = match (name, value) {
        ("started_unix_seconds", Value::Number(_)) => return ("started".into(), format!("{value} s after 1970 (UTC)")),
        ("memory_bytes", Value::Number(_)) => return ("memory".into(), format!("{} MiB", format_count(number(value) / MIB as f64))),
        ("disk", Value::Object(disk)) => {
            let measurements = disk.get("measurements").and_then(Value::as_array).into_iter().flatten();
            let lines = measurements.map(|measured| {
                format!(
                    "{} at depth {}: {}/s, p50 {} ms, p99 {} ms",
                    plain(&measured["operation"]),
                    measured["depth"],
                    format_count(number(&measured["operations_per_second"])),
                    format_ms(number(&measured["p50_us"])),
                    format_ms(number(&measured["p99_us"]))
                )
            });
            format!("{}: {}", disk.get("tool").map_or_else(String::new, plain), lines.collect::<Vec<_>>().join("; "))
        }
        (_, Value::Object(fields)) => fields.iter().map(|(name, value)| format!("{name}: {}", plain(value))).collect::<Vec<_>>().join("; "),
        (_, other) => plain(other),
    };
    (name.replace('_', " "), text)
}

fn write_environments(html: &mut String, files: &[Results]) {
    *html += "<h2>Measured with</h2>\n";
    for file in files {
        let _ = writeln!(*html, "<pre>{}</pre>", escape(&file.command));
        if let Value::Object(fields) = &file.environment {
            *html += "<div class=\"wide\"><table class=\"facts\">\n";
            for (name, value) in fields {
                let (name, text) = fact(name, value);
                let _ = writeln!(*html, "<tr><td class=\"text\">{}</td><td class=\"text\">{}</td></tr>", escape(&name), escape(&text));
            }
            *html += "</table></div>\n";
        }
        let mut commands: Vec<&str> = file.runs.iter().map(|run| run.details.server_command.as_str()).filter(|command| !command.is_empty()).collect();
        commands.sort_unstable();
        commands.dedup();
        if !commands.is_empty() {
            let text = escape(&commands.join("\n"));
            let _ = writeln!(*html, "<details><summary>Command lines of the servers</summary><pre>{text}</pre></details>");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::run;

    #[test]
    fn the_report_is_self_contained_and_escaped() {
        let mut failed = run("lightswap", 0.25, 1.0);
        failed.details.error = Some("<script>alert(1)</script>".into());
        let mut swept = run("kernel-swap-ssd", 0.25, 80.0);
        swept.details.sweep = true;
        let results = Results {
            environment: serde_json::json!({"kernel": "6 <b>", "cpus": 2}),
            command: "lightswap-bench demo".into(),
            runs: vec![run("dram", 1.0, 900.0), run("kernel-swap-ssd", 0.25, 100.0), run("lightswap", 0.25, 300.0), swept, failed],
            ..Results::default()
        };
        let text = html(&[results]);
        assert!(text.contains("3.00 times the operations of kernel-swap"));
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;"));
        assert!(!text.contains("http://") && !text.contains("https://"));
        assert!(html(&[Results::default()]).contains("</html>"));
    }
}
