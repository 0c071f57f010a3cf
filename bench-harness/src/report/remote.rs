//! Remote and compressed memory: what it serves, what its backends do by themselves, and what happens when a memory server dies.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::evidence::{Evidence, PRIMARY_PERCENT, PRIMARY_WORKLOADS};
use super::{class_of, compressed, section};
use crate::chart::{Axis, Bar, Group, Line, Mark, Plot, Point, Reference, Series, bars, escape};
use crate::outage_record::{LONGEST_PAUSE_SECONDS, OutageRecord};
use crate::results::{Micro, repetitions};
use crate::summary::Spread;
use crate::units::{format_count, format_tick, format_us};

/// Those whose pages are on memory servers or compressed in memory, and what they are to be seen against.
const SHOWN: [&str; 9] = [
    "lightswap-remote",
    "lightswap-mirror",
    "lightswap-encrypted",
    "lightswap-compressed",
    "lightswap-tier",
    "lightswap-memory",
    "lightswap",
    "fastswap-style-remote",
    "kernel-swap-zram",
];
/// How many of them are only to compare with.
const NUM_OWN: usize = 5;

pub fn write_remote(html: &mut String, evidence: &Evidence<'_>) {
    let mut charts: String = PRIMARY_WORKLOADS.iter().map(|workload| throughput(evidence, workload)).collect();
    charts += &reads(evidence);
    charts += &compressed::charts(evidence);
    charts += &encryption(evidence);
    if charts.is_empty() {
        return;
    }
    let note = "Memory servers are nbdkit's memory plugin on the same machine, so they share its CPUs, which remote ones would not.";
    section(html, "remote", "Remote and compressed memory", note);
    let _ = writeln!(html, "<div class=\"charts\">{charts}</div>");
}

fn throughput(evidence: &Evidence<'_>, workload: &str) -> String {
    let bar = |name: &&str| {
        let cell = evidence.cell(workload, PRIMARY_PERCENT, name)?;
        Some(Bar { label: (*name).into(), class: class_of(name), value: cell.operations_per_second })
    };
    if SHOWN[..NUM_OWN].iter().all(|name| bar(name).is_none()) {
        return String::new();
    }
    let groups = [Group { title: String::new(), bars: SHOWN.iter().filter_map(bar).collect() }];
    bars(&format!("{}, {PRIMARY_PERCENT} % local memory", super::shown(workload)), "operations a second; longer is better", &groups, format_count)
}

/// Reads a second over the number under way, a plot for each transport.
fn reads(evidence: &Evidence<'_>) -> String {
    type Found<'a> = BTreeMap<&'a str, BTreeMap<(u8, String), BTreeMap<u32, Vec<f64>>>>;
    let mut found: Found<'_> = BTreeMap::new();
    for (record, range) in evidence.micro_with_ranges() {
        let (transport, series, depth, rate) = match record {
            Micro::RemoteRead { tool, transport, depth, reads_per_second, .. } if tool == "lightswap" => {
                (transport.as_str(), (0, "Lightswap's backend".to_owned()), *depth, *reads_per_second)
            }
            Micro::RemoteRead { tool, transport, depth, reads_per_second, .. } => {
                (transport.as_str(), (1, format!("{tool}, nbd engine")), *depth, *reads_per_second)
            }
            Micro::Fault { backend, workers: 1, lwts, faults_per_second, path, .. } if backend.starts_with("nbd-") => {
                (&backend[4..], (2, format!("faults of LWTs, by {path}")), *lwts, *faults_per_second)
            }
            _ => continue,
        };
        found.entry(transport).or_default().entry(series).or_default().entry(depth).or_default().extend(repetitions(rate, range));
    }
    let mut html = String::new();
    for (transport, series) in found {
        let place = if transport == "tcp" { "TCP on the loopback" } else { "a UNIX socket" };
        let depths = series.values().flat_map(BTreeMap::keys).map(|depth| f64::from(*depth));
        let x = Axis::log("reads that are under way", format_count).ticks_at(depths);
        let title = format!("Random reads of 4 KiB from a memory server over {place}");
        let mut plot = Plot::new(title, "one connection; higher is better; logarithmic", x, Axis::log("a second", format_tick));
        for ((kind, label), points) in series {
            let class = class_of(["lightswap-remote", "limit", "lightswap"][usize::from(kind)]);
            let point = |(depth, values): (u32, Vec<f64>)| {
                let y = Spread::of(values)?;
                Some(Point { x: f64::from(depth), y, note: format!("{label}, {depth} under way: {}/s", format_count(y.median)) })
            };
            let points = points.into_iter().filter_map(point).collect();
            let line = if kind == 1 { Line::Dashed } else { Line::Solid };
            plot.series.push(Series { label: label.clone(), class, line, markers: true, points });
        }
        html += &plot.html();
    }
    html
}

fn encryption(evidence: &Evidence<'_>) -> String {
    let bar = |way: &str| {
        let of = |(record, range): (&Micro, Option<(f64, f64)>)| match record {
            Micro::Encryption { way: name, extra_us, .. } if name == way => repetitions(*extra_us, range),
            _ => Vec::new(),
        };
        let value = Spread::of(evidence.micro_with_ranges().flat_map(of).collect())?;
        Some(Bar { label: format!("a page {way}"), class: class_of("lightswap-encrypted"), value })
    };
    let found: Vec<Bar> = ["in", "out"].into_iter().filter_map(bar).collect();
    if found.is_empty() {
        return String::new();
    }
    let groups = [Group { title: String::new(), bars: found }];
    bars("Encryption: CPU that it adds to a page", "encrypted(memory:) against memory:; shorter is better", &groups, format_us)
}

pub fn write_outages(html: &mut String, evidence: &Evidence<'_>) {
    let mut records = evidence.outages().peekable();
    if records.peek().is_none() {
        return;
    }
    let note = "memcached on a mirror of two memory servers. One is killed under load (SIGKILL), later it is back with nothing in its memory, and the mirror brings \
                it up to date while it serves. Every value that is read is checked, and every record once more at the end.";
    section(html, "outage", "A memory server dies and returns", note);
    for record in records {
        write_outage(html, record);
    }
}

fn marks(record: &OutageRecord) -> Vec<Mark> {
    let mark = |label: &str, class: &str, x: f64| Mark { label: format!("{label}, {x:.1} s"), class: class.into(), x };
    let mut marks = vec![
        mark("killed", "c-fastswap-style-remote", record.killed_at_seconds),
        mark("back, empty", "c-lightswap-encrypted", record.returned_at_seconds),
    ];
    marks.extend(record.in_sync_at_seconds.map(|at| mark("in sync", "c-lightswap-compressed", at)));
    marks
}

/// Label, colour, and points.
type Curve<'a> = (&'a str, String, Vec<(f64, f64)>);

fn write_outage(html: &mut String, record: &OutageRecord) {
    let title = format!("{} of {}, {:.0} % local memory", super::shown(&record.workload), record.configuration, record.local_memory_ratio * 100.0);
    let _ = writeln!(html, "<h3>{}</h3>", escape(&title));
    for problem in record.problems() {
        let _ = writeln!(html, "<p class=\"caution\">{}</p>", escape(&problem));
    }
    *html += "<div class=\"wide\" tabindex=\"0\"><table><thead><tr><th class=\"text\"></th><th>from s</th><th>to s</th><th>operations a second</th>\
              <th>longest pause ms</th></tr></thead><tbody>\n";
    for phase in record.phases() {
        let _ = writeln!(
            html,
            "<tr><td class=\"text\">{}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{:.0}</td></tr>",
            escape(phase.name),
            phase.from_seconds,
            phase.to_seconds,
            format_count(phase.operations_per_second),
            phase.longest_pause_seconds * 1e3
        );
    }
    *html += "</tbody></table></div>\n<div class=\"charts three\">";
    let class = class_of(&record.configuration);
    let plot = |title: &str, note: &str, series: Vec<Curve<'_>>| {
        let mut plot = Plot::new(title, note, Axis::linear("seconds", format_tick), Axis::linear("", format_tick));
        plot.marks = marks(record);
        plot.series = series
            .into_iter()
            .map(|(label, class, points)| {
                let points = points.into_iter().map(|(x, y)| Point { x, y: Spread::one(y), note: String::new() }).collect();
                Series { label: label.into(), class, line: Line::Solid, markers: false, points }
            })
            .collect();
        plot
    };
    let of = |value: fn(&crate::results::Moment) -> f64| record.time_line.iter().map(|moment| (moment.at_seconds, value(moment))).collect();
    let throughput = vec![
        ("operations", class.clone(), of(|moment| moment.operations_per_second)),
        ("pages read from the memory servers", class_of("limit"), of(|moment| moment.faults_per_second)),
    ];
    *html += &plot("Throughput", "a second; higher is better", throughput).html();
    let stale = record.mirror.iter().map(|moment| (moment.at_seconds, moment.stale_pages as f64)).collect();
    *html += &plot("Copies that are missing or old", "pages, of both servers", vec![("stale pages", class.clone(), stale)]).html();
    let mut pauses = plot(
        "Longest time without one answer",
        "ms, in each piece of the time line; lower is better",
        vec![("longest pause", class, of(|moment| moment.longest_pause_seconds * 1e3))],
    );
    pauses.references.push(Reference { label: "limit".into(), class: "limit".into(), y: LONGEST_PAUSE_SECONDS * 1e3 });
    *html += &pauses.html();
    *html += "</div>\n<table class=\"facts\"><tbody>\n";
    let in_sync =
        record.resynchronised_after_seconds().map_or_else(|| "not before the end of the load".into(), |after| format!("after {after:.1} s"));
    let facts = [
        ("lost items", format_count(record.lost_items() as f64)),
        ("wrong values", format_count(record.wrong_values as f64)),
        (
            "checked",
            format!(
                "{} reads under load, {} records afterwards",
                format_count(record.checked_reads as f64),
                format_count(record.verified_records as f64)
            ),
        ),
        ("the mirror itself", mirror_counts(record)),
        ("longest pause", format!("{:.0} ms", record.longest_pause_seconds * 1e3)),
        ("longest operation", format!("{:.0} ms", record.longest_operation_seconds * 1e3)),
        ("in sync again", in_sync),
        ("server", record.server_command.clone()),
    ];
    for (name, value) in facts {
        let _ = writeln!(html, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    *html += "</tbody></table>\n";
}

/// What it counted from its start to the end.
fn mirror_counts(record: &OutageRecord) -> String {
    let names = [
        ("mirror_losses", "losses of a server"),
        ("mirror_failovers", "reads served by the other one after an error"),
        ("mirror_corrupt_copies", "copies found wrong"),
        ("mirror_resynced_pages", "pages copied again"),
    ];
    let count = |(name, text): (&str, &str)| Some(format!("{} {text}", format_count(record.server_statistics.get(name)?.parse().ok()?)));
    let counts: Vec<String> = names.into_iter().filter_map(count).collect();
    if counts.is_empty() { "not recorded".into() } else { counts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outage_record::tests::record;
    use crate::results::Results;

    #[test]
    fn an_outage_is_drawn_with_its_marks() {
        let mut html = String::new();
        write_outages(&mut html, &Evidence::new(&[]));
        assert_eq!(html, "");
        let server_statistics = [("mirror_losses".to_owned(), "1".to_owned()), ("mirror_resynced_pages".to_owned(), "123456".to_owned())].into();
        let counted = OutageRecord { server_statistics, ..record() };
        let bad = OutageRecord { wrong_values: 7, first_problem: Some("<key>".into()), in_sync_at_seconds: None, ..record() };
        let files = [Results { outages: vec![counted, bad], ..Results::default() }];
        write_outages(&mut html, &Evidence::new(&files));
        for part in [
            "<section id=\"outage\">",
            "killed, 20.0 s",
            "back, empty, 40.0 s",
            "in sync, 45.0 s",
            "<th>in sync again</th><td>after 5.0 s<",
            "<th>lost items</th><td>0<",
            "<th>wrong values</th><td>7<",
            "<th>the mirror itself</th><td>1 losses of a server, 123,456 pages copied again<",
            "<th>the mirror itself</th><td>not recorded<",
            "&lt;key&gt;",
            "not before the end of the load",
            "<td>400</td>",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
    }

    #[test]
    fn reads_of_each_transport_have_a_plot_with_all_that_read() {
        let read = |tool: &str, transport: &str, depth: u32| Micro::RemoteRead {
            tool: tool.into(),
            transport: transport.into(),
            connections: 1,
            depth,
            reads_per_second: 1_000.0 * f64::from(depth),
        };
        let fault = Micro::Fault {
            backend: "nbd-tcp".into(),
            contract: "cooperative".into(),
            path: "touch".into(),
            workers: 1,
            lwts: 32,
            faults_per_second: 7.0,
            cpu_us_per_fault: 1.0,
        };
        let micro = vec![read("fio", "unix", 1), read("lightswap", "unix", 1), read("lightswap", "tcp", 32), fault];
        let files = [Results { micro, ..Results::default() }];
        let html = reads(&Evidence::new(&files));
        assert_eq!(html.matches("<figure").count(), 2);
        let (tcp, unix) = html.split_once("</figure>").unwrap();
        assert!(tcp.contains("faults of LWTs, by touch, 32 under way: 7/s") && !tcp.contains("fio"), "{tcp}");
        assert!(unix.contains("fio, nbd engine, 1 under way: 1,000/s") && unix.contains("backend"), "{unix}");
    }
}
