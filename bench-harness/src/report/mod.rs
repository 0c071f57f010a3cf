//! The report: one HTML file that needs nothing else, readable on a phone and on paper, light and dark.

mod appendix;
#[cfg(test)]
mod browser;
mod claims;
mod compressed;
mod errors;
mod evidence;
mod files;
mod headline;
mod latency;
mod markdown;
mod mechanism;
mod memory;
mod paging;
mod redis;
mod redis_targets;
mod remote;
mod remote_targets;
#[cfg(test)]
pub mod synthetic;
mod targets;
#[cfg(test)]
mod tests;
mod tracing;
mod verdict;

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::chart::escape;
use crate::out_file;
use crate::results::Results;
use crate::summary::{configuration_position, is_redis};
use evidence::Evidence;
pub use files::read_all;
use verdict::Verdict;

const STYLE: &str = include_str!("style.css");

#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Result files; those that cannot be read are named and left out, and the exit code is then 1
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// The HTML file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Write the summary in Markdown, too
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SummaryArguments {
    /// Result files
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
}

/// A slip of the hand must not cost hours of measuring.
fn refuse_overwriting(arguments: &ReportArguments) -> Result<()> {
    let outputs = [("--out", Some(&arguments.out)), ("--markdown", arguments.markdown.as_ref())];
    for (option, path) in outputs {
        let Some(path) = path else { continue };
        if let Some(input) = arguments.results.iter().find(|input| out_file::is_same(path, input)) {
            bail!("{option} {} would overwrite the results in {}; name another file", path.display(), input.display());
        }
        if option == "--markdown" && out_file::is_same(path, &arguments.out) {
            bail!("--out and --markdown are the same file, {}; name another one", path.display());
        }
        out_file::check(path)?;
    }
    Ok(())
}

pub fn report(arguments: &ReportArguments) -> Result<bool> {
    refuse_overwriting(arguments)?;
    let (files, all_read) = read_all(&arguments.results)?;
    out_file::write(&arguments.out, &html(&files))?;
    if let Some(path) = &arguments.markdown {
        out_file::write(path, &markdown::markdown(&files))?;
    }
    Ok(all_read)
}

pub fn summary(arguments: &SummaryArguments) -> Result<bool> {
    let (files, all_read) = read_all(&arguments.results)?;
    say!("{}", markdown::markdown(&files).trim_end());
    Ok(all_read)
}

/// The CSS class that gives a configuration its colour, the same everywhere.
fn class_of(configuration: &str) -> String {
    match configuration {
        // Colours that are of no configuration.
        "limit" => "limit".into(),
        // Redis's have the colours of memcached's.
        name if configuration_position(name) < configuration_position("") => format!("c-{}", name.strip_prefix("redis-").unwrap_or(name)),
        _ => "c-other".into(),
    }
}

/// A workload as headings write it.
fn shown(workload: &str) -> String {
    // Only the name of a YCSB workload, not what follows it.
    match workload.strip_prefix("ycsb-").and_then(|rest| Some((rest.get(..1)?, rest.get(1..)?))) {
        Some((letter, rest)) => format!("YCSB-{}{rest}", letter.to_uppercase()),
        None => workload.to_owned(),
    }
}

/// Begins a section; the previous one ends with it.
fn section(html: &mut String, id: &str, title: &str, note: &str) {
    let _ = writeln!(html, "</section><section id=\"{id}\"><h2>{}</h2>", escape(title));
    if !note.is_empty() {
        let _ = writeln!(html, "<p class=\"faint\">{}</p>", escape(note));
    }
}

/// Where and when: the first file's environment in one line.
fn byline(files: &[Results]) -> String {
    let Some(environment) = files.iter().map(|file| &file.environment).find(|environment| environment.is_object()) else {
        return String::new();
    };
    let text = |name: &str| environment[name].as_str().filter(|text| *text != "unknown").map(str::to_owned);
    let gib = |bytes: u64| format!("{:.0} GiB", bytes as f64 / (1u64 << 30) as f64);
    let parts = [
        text("cpu"),
        environment["cpus"].as_u64().map(|cpus| format!("{cpus} CPUs")),
        environment["memory_bytes"].as_u64().map(gib),
        text("kernel").map(|kernel| format!("Linux {kernel}")),
        text("commit").map(|commit| format!("commit {}", commit.chars().take(10).collect::<String>())),
        environment["started_unix_seconds"].as_u64().map(appendix::utc),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// What a reader has to know before the first number.
fn cautions(files: &[Results]) -> Vec<String> {
    [appendix::without_limit(files), appendix::mixture(files)].into_iter().flatten().collect()
}

/// Links to the sections that the page has.
fn navigation(body: &str) -> String {
    let mut html = String::from("<nav aria-label=\"sections\">");
    for part in body.split("<section id=\"").skip(1) {
        if let Some((id, _)) = part.split_once('"') {
            let _ = write!(html, "<a href=\"#{id}\">{}</a>", id.replace('-', " "));
        }
    }
    html + "</nav>\n"
}

/// One report of all the files' results.
pub fn html(files: &[Results]) -> String {
    let evidence = Evidence::new(files);
    let mut body = String::new();
    section(&mut body, "claims", "In short", "");
    headline::write_headlines(&mut body, &evidence);
    // A demonstration of an outage, or of Redis, says nothing of the rest, and so leaves its rows out.
    let has_others = files.iter().any(|file| !file.micro.is_empty() || file.runs.iter().any(|run| !is_redis(&run.server)));
    let is_outage_alone = evidence.outages().next().is_some() && files.iter().all(|file| file.runs.is_empty() && file.micro.is_empty());
    let is_redis_alone = !has_others && files.iter().any(|file| !file.runs.is_empty() || !file.saves.is_empty());
    if !is_outage_alone && !is_redis_alone {
        headline::write_claims(&mut body, "The paper's claims", "paper", &claims::paper(&evidence));
    }
    remote::write_outages(&mut body, &evidence);
    redis::write_redis(&mut body, &evidence);
    redis::write_saves(&mut body, &evidence);
    memory::write_wins(&mut body, &evidence);
    memory::write_against_memory(&mut body, &evidence);
    remote::write_remote(&mut body, &evidence);
    latency::write_latency(&mut body, &evidence);
    mechanism::write_micro(&mut body, &evidence);
    latency::write_time_lines(&mut body, &evidence);
    memory::write_others(&mut body, &evidence);
    memory::write_sweeps(&mut body, &evidence);
    errors::write_errors(&mut body, &evidence);
    let mut own = if is_redis_alone { redis_targets::targets(&evidence) } else { targets::own(&evidence) };
    if is_outage_alone {
        own.retain(|claim| matches!(claim.verdict, Verdict::Met | Verdict::NotMet));
    }
    section(&mut body, "targets", "Our own targets", &format!("What the project asks of itself beyond the paper: {}.", headline::tally(&own)));
    headline::write_claims(&mut body, "", "target", &own);
    appendix::write_problems(&mut body, &evidence);
    appendix::write_all_numbers(&mut body, &evidence);
    appendix::write_environments(&mut body, files);
    let body = body.strip_prefix("</section>").unwrap_or(&body);

    let cautions: String = cautions(files).iter().map(|text| format!("<p class=\"caution\">{}</p>\n", escape(text))).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>Lightswap: measured</title><link rel=\"icon\" href=\"data:,\"><style>\n{STYLE}</style></head><body>\n\
         <header><h1>Lightswap, measured</h1><p class=\"faint\">{}</p>{cautions}{}</header>\n<main>\n{body}</section></main></body></html>\n",
        escape(&byline(files)),
        navigation(body)
    )
}
