//! What did not work, all numbers, and with what they were measured.

use std::fmt::Write;

use serde_json::Value;

use super::evidence::Evidence;
use super::section;
use crate::chart::escape;
use crate::results::{Results, Skipped};
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

/// Day and time of seconds since 1970, in UTC.
pub fn utc(unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Days since 1 March of the year 0, in eras of 400 years, so that leap days come last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60)
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
            for (name, value) in fields {
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
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_386_845), "2026-11-22 22:34 UTC");
    }

    #[test]
    fn files_of_different_machines_are_told() {
        let file = |cpu: &str| Results { environment: serde_json::json!({"cpu": cpu, "kernel": "6"}), ..Results::default() };
        assert_eq!(mixture(&[file("a"), file("a"), Results::default()]), None);
        assert_eq!(mixture(&[file("a"), file("b")]).unwrap(), "These files were measured with different processors: compare with care.");
    }
}
