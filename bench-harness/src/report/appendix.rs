//! What did not work, all numbers, and with what they were measured.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::evidence::Evidence;
use super::section;
use crate::chart::escape;
use crate::results::{Results, Run, Skipped};
use crate::summary::{Summary, configuration_name};
use crate::table::{HEADINGS, NUM_TEXT_COLUMNS, line, micro_line};
use crate::units::{MIB, format_count, format_ms};

pub fn write_problems(html: &mut String, evidence: &Evidence<'_>) {
    let problems: Vec<(String, Vec<String>)> = evidence
        .runs
        .iter()
        .filter(|run| !run.problems().is_empty())
        .map(|run| {
            let rate = run.details.due_per_second.map_or_else(String::new, |rate| format!(", {}/s due", format_count(rate)));
            let title = format!(
                "{}, {} at {:.0} %, repetition {}{}{rate}",
                configuration_name(run),
                run.workload,
                run.local_memory_ratio * 100.0,
                run.repetition,
                if run.details.sweep { ", while settings were tried" } else { "" }
            );
            (title, run.problems())
        })
        .collect();
    let mut skipped: Vec<&Skipped> = evidence.files.iter().flat_map(|file| &file.skipped).collect();
    skipped.sort_by_key(|skip| (&skip.configuration, &skip.reason));
    skipped.dedup();
    section(html, "problems", "What failed, what was skipped", "");
    if problems.is_empty() && skipped.is_empty() {
        *html += "<p>Nothing.</p>\n";
        return;
    }
    if !skipped.is_empty() {
        *html += "<ul>";
        for skip in skipped {
            let _ = write!(html, "<li><b>{}</b> was skipped: {}</li>", escape(&skip.configuration), escape(&skip.reason));
        }
        *html += "</ul>\n";
    }
    for (title, lines) in problems {
        let text = lines.join("\n");
        // The first line says what, the others are the end of the server's log.
        let (first, log) = text.split_once('\n').unwrap_or((&text, ""));
        let _ = write!(html, "<div class=\"problem\"><p><b>{}</b><br>{}</p>", escape(&title), escape(first));
        if !log.trim().is_empty() {
            let _ = write!(html, "<details open><summary>Last log lines</summary><pre>{}</pre></details>", escape(log.trim_end()));
        }
        *html += "</div>\n";
    }
}

fn write_table(html: &mut String, headings: &[&str], num_text_columns: usize, lines: impl Iterator<Item = Vec<String>>) {
    let class = |index: usize| {
        if index < num_text_columns { " class=\"text\"" } else { "" }
    };
    *html += "<div class=\"wide\" tabindex=\"0\"><table><thead><tr>";
    for (index, heading) in headings.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(index), escape(heading));
    }
    *html += "</tr></thead><tbody>\n";
    for cells in lines {
        *html += "<tr>";
        for (index, cell) in cells.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(index), escape(cell));
        }
        *html += "</tr>\n";
    }
    *html += "</tbody></table></div>\n";
}

fn write_numbers(html: &mut String, title: &str, summaries: &[Summary]) {
    if summaries.is_empty() {
        return;
    }
    let _ = writeln!(html, "<details><summary>{} ({})</summary>", escape(title), summaries.len());
    write_table(html, &HEADINGS, NUM_TEXT_COLUMNS, summaries.iter().map(|summary| line(summary).to_vec()));
    *html += "</details>\n";
}

pub fn write_all_numbers(html: &mut String, evidence: &Evidence<'_>) {
    section(html, "numbers", "All numbers", "Median of the repetitions, smallest and largest in parentheses.");
    write_numbers(html, "Workloads", &evidence.summaries);
    write_numbers(html, "Workloads on Redis", &evidence.redis);
    write_numbers(html, "Settings that were tried", &evidence.swept);
    let micro: Vec<Vec<String>> = evidence.micro().map(|record| micro_line(record).to_vec()).collect();
    if !micro.is_empty() {
        let _ = writeln!(html, "<details><summary>Micro-benchmarks ({})</summary>", micro.len());
        write_table(html, &["benchmark", "variant", "workers", "LWTs", "result"], 2, micro.into_iter());
        *html += "</details>\n";
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Later than that no year has four digits, and no file is right.
const LAST_UNIX_SECOND: u64 = 253_402_300_799;

/// Day and time of seconds since 1970, in UTC, as ISO 8601 writes them.
pub fn utc(unix_seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds.min(LAST_UNIX_SECOND));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// One field of the environment for people: a name and a text with units.
fn fact(name: &str, value: &Value) -> (String, String) {
    let text = match (name, value) {
        ("started_unix_seconds", Value::Number(_)) => return ("started".into(), utc(value.as_u64().unwrap_or_default())),
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
        (_, Value::Null) => "–".into(),
        (_, other) => plain(other),
    };
    (name.replace('_', " "), text)
}

/// Says so when servers that were to have less memory than data were not held to it.
pub fn without_limit(files: &[Results]) -> Option<String> {
    let is_without = |run: &Run| run.details.memory_limit.as_deref() == Some("none");
    let any = files.iter().any(|file| file.runs.iter().any(is_without));
    any.then(|| {
        "No memory limit was set in some or all of these runs, as that takes root and a cgroup: servers could use all of the machine's memory, Lightswap \
         kept to its local memory by itself, and files may have been read from the kernel's page cache instead of the disk."
            .to_owned()
    })
}

/// What must be equal for numbers of several files to be comparable.
const COMPARABLE: [(&str, &str); 4] = [("cpu", "processors"), ("cpus", "numbers of CPUs"), ("kernel", "kernels"), ("commit", "commits")];

/// Says so when the files were not measured with the same.
pub fn mixture(files: &[Results]) -> Option<String> {
    let differing = COMPARABLE.iter().filter(|(field, _)| {
        let mut values = files.iter().map(|file| &file.environment[*field]).filter(|value| !value.is_null());
        let first = values.next();
        values.any(|value| Some(value) != first)
    });
    let names: Vec<&str> = differing.map(|(_, words)| *words).collect();
    (!names.is_empty()).then(|| format!("These files were measured with different {}: compare with care.", names.join(", ")))
}

pub fn write_environments(html: &mut String, files: &[Results]) {
    section(html, "environment", "Measured with", "");
    for file in files {
        let started = file.environment["started_unix_seconds"].as_u64().map_or_else(String::new, |seconds| format!(" · {}", utc(seconds)));
        let command = if file.command.is_empty() { "a file without its command" } else { &file.command };
        let _ = write!(html, "<details><summary><code>{}</code><span class=\"faint\">{started}</span></summary>", escape(command));
        if let Value::Object(fields) = &file.environment {
            *html += "<table class=\"facts\"><tbody>\n";
            // The same time stands there twice.
            let is_double = |name: &str| name == "started" && fields.contains_key("started_unix_seconds");
            for (name, value) in fields.iter().filter(|(name, _)| !is_double(name)) {
                let (name, text) = fact(name, value);
                let _ = writeln!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(&name), escape(&text));
            }
            *html += "</tbody></table>\n";
        }
        let mut commands: Vec<&str> = file.runs.iter().map(|run| run.details.server_command.as_str()).filter(|command| !command.is_empty()).collect();
        commands.sort_unstable();
        commands.dedup();
        if !commands.is_empty() {
            let _ = writeln!(html, "<p>Command lines of the servers:</p><pre>{}</pre>", escape(&commands.join("\n")));
        }
        *html += "</details>\n";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_386_845), "2026-11-22T22:34:05Z");
        assert_eq!(utc(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn files_of_different_machines_are_told() {
        let file = |cpu: &str| Results { environment: serde_json::json!({"cpu": cpu, "kernel": "6"}), ..Results::default() };
        assert_eq!(mixture(&[file("a"), file("a"), Results::default()]), None);
        assert_eq!(mixture(&[file("a"), file("b")]).unwrap(), "These files were measured with different processors: compare with care.");
    }
}
