//! Redis beside memcached: what it serves, how long requests take that need no swapped-out page, and dumps under load.

use std::fmt::Write;

use super::evidence::{Evidence, PRIMARY_PERCENT};
use super::memory::configurations;
use super::verdict::{digits, throughput, throughput_ratio};
use super::{class_of, section, shown};
use crate::chart::{Axis, Bar, Group, Line, Mark, Plot, Point, Reference, Series, bars, escape};
use crate::save_record::{RESIDENT_SHARE, SaveRecord};
use crate::summary::{Spread, Summary};
use crate::units::{MIB, format_count, format_tick, format_us};

pub fn write_redis(html: &mut String, evidence: &Evidence<'_>) {
    if evidence.redis.is_empty() {
        return;
    }
    let note = "Values of Redis live in a region, keys and other metadata in memory. A command whose value is swapped out parks only its own client; on kernel \
                swap it stops the one thread that serves everybody. All have the same memory limit, for everything in the process.";
    section(html, "redis", "Redis", note);
    let mut charts = beside_memcached(evidence);
    for workload in evidence.redis_workloads() {
        charts += &chart(evidence, workload, "", "operations a second; longer is better", |cell| Some(cell.operations_per_second), format_count);
    }
    for workload in evidence.redis_workloads() {
        let title = ", reads of values that stay in memory: 99th percentile";
        let note = "while others wait for swapped-out ones; shorter is better";
        charts += &chart(evidence, workload, title, note, |cell| cell.resident_p99_us, format_us);
    }
    let _ = writeln!(html, "<div class=\"charts\">{charts}</div>");
    write_unusual(html, evidence);
}

/// All in memory and at the share that is judged, or the smallest there is.
fn cells<'e>(evidence: &'e Evidence<'_>, workload: &str) -> Vec<&'e Summary> {
    let of_workload: Vec<&Summary> =
        evidence.redis.iter().filter(|cell| cell.workload == workload && cell.note.is_empty() && !cell.is_open_loop()).collect();
    let has_primary = of_workload.iter().any(|cell| cell.memory_percent() == PRIMARY_PERCENT);
    let percent = if has_primary { PRIMARY_PERCENT } else { of_workload.iter().map(|cell| cell.memory_percent()).min().unwrap_or(100) };
    let names = configurations(&of_workload);
    names.into_iter().filter_map(|name| evidence.redis_cell(workload, percent, name).or_else(|| evidence.redis_cell(workload, 100, name))).collect()
}

fn chart(
    evidence: &Evidence<'_>,
    workload: &str,
    title: &str,
    note: &str,
    value: fn(&Summary) -> Option<Spread>,
    format: fn(f64) -> String,
) -> String {
    let cells = cells(evidence, workload);
    let bar = |cell: &&Summary| {
        let label = if cell.memory_percent() == 100 {
            cell.configuration.clone()
        } else {
            format!("{}, {}\u{a0}%", cell.configuration, cell.memory_percent())
        };
        Some(Bar { label, class: class_of(&cell.configuration), value: value(cell)? })
    };
    let found: Vec<Bar> = cells.iter().filter_map(bar).collect();
    if found.is_empty() {
        return String::new();
    }
    bars(&format!("{}{title}", shown(workload)), note, &[Group { title: String::new(), bars: found }], format)
}

/// Lightswap over kernel swap on the same disk, of both servers.
fn beside_memcached(evidence: &Evidence<'_>) -> String {
    let pair = |server: &str, workload: &str| {
        if server == "redis" {
            let own = evidence.redis_cell(workload, PRIMARY_PERCENT, "redis-lightswap");
            own.zip(evidence.redis_cell(workload, PRIMARY_PERCENT, "redis-kernel-swap-ssd"))
        } else {
            evidence.cell(workload, PRIMARY_PERCENT, "lightswap").zip(evidence.cell(workload, PRIMARY_PERCENT, "kernel-swap-ssd"))
        }
    };
    let cell = |server: &str, workload: &str| match pair(server, workload) {
        Some((own, other)) => {
            let ratio = throughput_ratio(own, other);
            let tip = format!("{} against {} of {}", throughput(own), throughput(other), other.configuration);
            let class = if ratio > 1.0 { "win-1" } else { "loss" };
            format!("<td class=\"{class}\" title=\"{}\">{}</td>", escape(&tip), digits(ratio, &[1.0]))
        }
        None => "<td class=\"none\">–</td>".into(),
    };
    // A report of Redis alone has nothing to put into the other column.
    let has_memcached = evidence.redis_workloads().into_iter().any(|workload| pair("memcached", workload).is_some());
    let servers: &[&str] = if has_memcached { &["redis", "memcached"] } else { &["redis"] };
    let mut rows = String::new();
    for workload in evidence.redis_workloads().into_iter().filter(|workload| pair("redis", workload).is_some()) {
        let cells: String = servers.iter().map(|server| cell(server, workload)).collect();
        let _ = write!(rows, "<tr><th>{}</th>{cells}</tr>", escape(&shown(workload)));
    }
    if rows.is_empty() {
        return String::new();
    }
    let (title, heads) =
        if has_memcached { ("Beside memcached", "<th>Redis</th><th>memcached</th>") } else { ("Over kernel swap", "<th>Redis</th>") };
    format!(
        "<figure><figcaption><b>{title}</b> <span>Lightswap's throughput over kernel swap's on the same disk, {PRIMARY_PERCENT} % local memory</span>\
         </figcaption><table class=\"wins\"><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></figure>"
    )
}

/// Other shares of memory than that of the charts, hashes, other sizes of values, open loops, and loads of other programs.
fn write_unusual(html: &mut String, evidence: &Evidence<'_>) {
    let is_elsewhere = |cell: &&Summary| {
        let is_charted = cells(evidence, &cell.workload).iter().any(|charted| charted.memory_percent() == cell.memory_percent());
        !cell.note.is_empty() || !is_charted
    };
    let unusual: Vec<&Summary> = evidence.redis.iter().filter(is_elsewhere).collect();
    if unusual.is_empty() {
        return;
    }
    *html += "<h3>Other shares of memory, other data, other loads</h3><div class=\"wide\" tabindex=\"0\"><table><thead><tr><th class=\"text\">load</th><th class=\"text\">configuration</th>\
              <th>local memory</th><th>operations/s</th><th>p99</th></tr></thead><tbody>\n";
    for cell in unusual {
        let _ = writeln!(
            html,
            "<tr><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{} %</td><td>{}</td><td>{}</td></tr>",
            escape(&shown(&cell.title())),
            escape(&cell.configuration),
            cell.memory_percent(),
            format_count(cell.operations_per_second.median),
            format_us(cell.p99_us.median)
        );
    }
    *html += "</tbody></table></div>\n";
}

pub fn write_saves(html: &mut String, evidence: &Evidence<'_>) {
    let mut records = evidence.saves().peekable();
    if records.peek().is_none() {
        return;
    }
    let note = "BGSAVE of more data than local memory holds, while Redis serves. A child process writes the dump; it has the same limit as its parent. A stock Redis \
                then reads the dump, and every record in it is checked against what could be read when the child was made.";
    section(html, "dump", "A dump under load", note);
    for record in records {
        write_save(html, record);
    }
}

/// Label, colour, and points.
type Curve<'a> = (&'a str, String, Vec<(f64, f64)>);

fn plot(record: &SaveRecord, title: &str, note: &str, curves: Vec<Curve<'_>>) -> Plot {
    let mut plot = Plot::new(title, note, Axis::linear("seconds", format_tick), Axis::linear("", format_tick));
    let mark = |label: &str, class: &str, x: f64| Mark { label: format!("{label}, {x:.1} s"), class: class.into(), x };
    plot.marks = vec![mark("dump begins", "c-lightswap-encrypted", record.began_at_seconds)];
    // A dump that ended after the load lies beyond the picture.
    plot.marks.extend(record.ended_at_seconds.filter(|end| *end <= record.seconds).map(|end| mark("done", "c-lightswap-compressed", end)));
    let series = |(label, class, points): Curve<'_>| {
        let points = points.into_iter().map(|(x, y)| Point { x, y: Spread::one(y), note: String::new() }).collect();
        Series { label: label.into(), class, line: Line::Solid, markers: false, points }
    };
    plot.series = curves.into_iter().map(series).collect();
    plot
}

fn write_save(html: &mut String, record: &SaveRecord) {
    let times = record.values_over_local().map_or_else(String::new, |times| format!(", values {times:.1} times its local memory"));
    let _ = writeln!(html, "<h3>{}</h3>", escape(&format!("{} of {}{times}", shown(&record.workload), record.configuration)));
    for problem in record.problems() {
        let _ = writeln!(html, "<p class=\"caution\">{}</p>", escape(&problem));
    }
    if record.error.is_some() {
        return;
    }
    let class = class_of(&record.configuration);
    let of = |value: fn(&crate::results::Moment) -> f64| record.time_line.iter().map(|moment| (moment.at_seconds, value(moment))).collect();
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    *html += "<div class=\"charts three\">";
    let throughput = vec![("operations", class.clone(), of(|moment| moment.operations_per_second))];
    *html += &plot(record, "Throughput", "a second; higher is better", throughput).html();
    let pauses = vec![("longest pause", class.clone(), of(|moment| moment.longest_pause_seconds * 1e3))];
    *html += &plot(record, "Longest time without one answer", "ms, in each piece of the time line; lower is better", pauses).html();
    let resident = |value: fn(&crate::save_record::ResidentMoment) -> u64| {
        record.resident.iter().filter(|moment| moment.at_seconds <= record.seconds).map(|moment| (moment.at_seconds, mib(value(moment)))).collect()
    };
    let curves = vec![
        ("server", class, resident(|moment| moment.parent_bytes)),
        ("child", class_of("lightswap-encrypted"), resident(|moment| moment.child_bytes)),
    ];
    let mut memory = plot(record, "Resident sets", "MiB; pages that both have count in each", curves);
    memory.references.extend(record.limit_bytes.map(|limit| Reference { label: "limit".into(), class: "limit".into(), y: mib(limit) }));
    *html += &memory.html();
    *html += "</div>\n<table class=\"facts\"><tbody>\n";
    let phase = |phase: Option<(f64, f64)>| {
        phase.map_or_else(|| "not measured".into(), |(rate, pause)| format!("{}/s, longest pause {:.0} ms", format_count(rate), pause * 1e3))
    };
    let limit = record
        .limit_bytes
        .map_or_else(String::new, |limit| format!(", of a limit of {} MiB each ({:.0} % allowed)", format_count(mib(limit)), RESIDENT_SHARE * 100.0));
    let facts = [
        (
            "the dump took",
            record.ended_at_seconds.map_or_else(|| "it was not finished".into(), |end| format!("{:.1} s", end - record.began_at_seconds)),
        ),
        ("before it", phase(record.before())),
        ("meanwhile", phase(record.meanwhile())),
        (
            "most resident",
            format!(
                "server {} MiB, child {} MiB{limit}",
                format_count(mib(record.parent_resident_bytes_max)),
                format_count(mib(record.child_resident_bytes_max))
            ),
        ),
        (
            "the dump holds",
            format!(
                "{} of {} keys, {} of them wrong",
                format_count(record.dump_keys as f64),
                format_count(record.expected_keys as f64),
                record.dump_wrong
            ),
        ),
        (
            "its checksum",
            match (&record.dump_checksum, record.has_equal_checksums()) {
                (Some(checksum), Some(true)) => format!("over all keys, of a dump of the loaded records: {checksum}, as of stock Redis"),
                (Some(checksum), _) => format!("over all keys, of a dump of the loaded records: {checksum}, not that of stock Redis"),
                _ => "not compared with stock Redis's".into(),
            },
        ),
        (
            "under load",
            format!("{} reads checked, {} wrong, {} missed", format_count(record.checked_reads as f64), record.wrong_values, record.missed_reads),
        ),
        ("server", record.server_command.clone()),
    ];
    for (name, value) in facts {
        let _ = writeln!(html, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    *html += "</tbody></table>\n";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::synthetic;
    use crate::results::{Results, Run};
    use crate::save_record::tests::record;

    #[test]
    fn redis_stands_beside_memcached() {
        let mut html = String::new();
        write_redis(&mut html, &Evidence::new(&[]));
        assert_eq!(html, "");
        let mut results = synthetic::full();
        let mut hashes = synthetic::redis_runs().remove(0);
        hashes.details.data_type = "hashes".into();
        let elsewhere = Run { local_memory_ratio: 0.5, ..synthetic::redis_runs().remove(0) };
        results.runs.extend([hashes, elsewhere]);
        write_redis(&mut html, &Evidence::new(&[results]));
        for part in [
            "<section id=\"redis\">",
            "Beside memcached",
            "<th>YCSB-C</th><td class=\"win-1\"",
            "redis-lightswap, 25\u{a0}%",
            "stay in memory",
            "as hashes",
            "<td>50 %</td>",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        let mut alone = String::new();
        write_redis(&mut alone, &Evidence::new(&[Results { runs: synthetic::redis_runs(), ..Results::default() }]));
        assert!(alone.contains("Over kernel swap") && !alone.contains("<th>memcached</th>"), "{alone}");
    }

    #[test]
    fn a_dump_is_drawn_with_its_marks_and_defects() {
        let bad = SaveRecord { dump_wrong: 3, first_problem: Some("<key>".into()), ended_at_seconds: None, ..record() };
        let failed = SaveRecord { error: Some("it died".into()), ..record() };
        let mut html = String::new();
        write_saves(&mut html, &Evidence::new(&[Results { saves: vec![record(), bad, failed], ..Results::default() }]));
        for part in [
            "<section id=\"dump\">",
            "dump begins, 5.0 s",
            "done, 15.0 s",
            "values 8.0 times its local memory",
            "<th>the dump took</th><td>10.0 s<",
            "it was not finished",
            "&lt;key&gt;",
            "failed: it died</p>",
            "<th>meanwhile</th><td>750/s, longest pause 200 ms<",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
    }
}
