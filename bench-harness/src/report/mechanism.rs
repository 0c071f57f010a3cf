//! Charts of the micro-benchmarks: what the mechanism costs by itself.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::evidence::{Evidence, NotifyPoint};
use super::section;
use super::targets::has_memtier;
use super::verdict::with_spread;
use crate::chart::{Axis, Bar, Group, Line, Plot, Point, Reference, Segment, Series, Stack, bars, stacks};
use crate::results::{Micro, repetitions};
use crate::summary::{Spread, median};
use crate::units::{format_count, format_tick, format_us, format_us_tick};

/// The notifiers as people know them, with the colour of the configuration that uses them.
const NOTIFIERS: [(&str, &str, &str); 5] = [
    ("sigbus", "SIGBUS in the faulting thread", "lightswap"),
    ("sigbus-suspended", "the same, every LWT waiting in its handler", "lightswap-memory"),
    ("traced", "SIGBUS, from the kernel's entry on (BPF tracer)", "dram"),
    ("monitor", "monitor thread", "monitor"),
    ("ebpf", "eBPF", "extstore"),
];
const FLOORS: [(&str, &str, &str); 2] = [("bare", "bare SIGBUS handler", "limit"), ("kernel", "the kernel's own fault", "kernel-swap-ssd")];

/// Backends with what the kernel has at the same speed.
const CLASSES: [(&str, &str, &str); 2] = [("file", "swap-ssd", "pages on the same disk"), ("memory", "swap-zram", "pages in memory")];

pub fn write_micro(html: &mut String, evidence: &Evidence<'_>) {
    let mut charts = notification(evidence);
    charts += &breakdown(evidence);
    charts += &cpu(evidence);
    for (backend, device, place) in CLASSES {
        for contract in ["cooperative", "transparent"] {
            charts += &faults(evidence, backend, device, place, contract);
        }
    }
    charts += &switch(evidence);
    charts += &regions(evidence);
    let generators = generators(evidence);
    if charts.is_empty() && generators.is_empty() {
        return;
    }
    section(html, "mechanism", "What the mechanism costs", "Micro-benchmarks: single parts, measured by themselves.");
    let _ = writeln!(html, "<div class=\"charts\">{charts}{generators}</div>");
    if !generators.is_empty() && !has_memtier(evidence) {
        *html += "<p class=\"faint\">memtier_benchmark was not on PATH, so the load generator is shown without it.</p>\n";
    }
}

fn notification(evidence: &Evidence<'_>) -> String {
    let mut html = String::new();
    for workers in evidence.notify_workers() {
        let all: Vec<_> = NOTIFIERS.iter().map(|notifier| (notifier, evidence.notify_series(notifier.0, workers))).collect();
        let counts = all.iter().flat_map(|(_, series)| series).map(|point| f64::from(point.lwts));
        let title = format!("Notification, {workers} worker{}", if workers == 1 { "" } else { "s" });
        let x = Axis::log("LWTs", format_count).ticks_at(counts);
        let mut plot = Plot::new(title, "median, from the access to the handler; lower is better", x, Axis::log("time", format_us_tick));
        // A tenth of a microsecond must not look like a cliff.
        plot.y_at_least = 10.0;
        for ((_, label, class), series) in all {
            let point = |point: &NotifyPoint| Point {
                x: f64::from(point.lwts),
                y: point.p50_us,
                note: format!("{label}, {} LWTs: p50 {}, p99 {}", point.lwts, format_us(point.p50_us.median), format_us(point.p99_us.median)),
            };
            let points = series.iter().map(point).collect();
            plot.series.push(Series { label: (*label).into(), class: super::class_of(class), line: Line::Solid, markers: true, points });
        }
        for (name, label, class) in FLOORS {
            if let Some(floor) = evidence.notify_series(name, workers).first() {
                let label = format!("{label}, {}", format_us(floor.p50_us.median));
                plot.references.push(Reference { label, class: super::class_of(class), y: floor.p50_us.median });
            }
        }
        html += &plot.html();
    }
    html
}

/// The order in which the steps of a fault happen.
const STEPS: [&str; 6] = ["notify", "queue", "io", "map", "resume", "evict"];

fn step_us(evidence: &Evidence<'_>, wanted: (&str, &str, &str)) -> Option<f64> {
    let (_, records) = evidence.of_judged_contract(
        |record| matches!(record, Micro::FaultStep { backend, notifier, step, .. } if (backend.as_str(), notifier.as_str(), step.as_str()) == wanted),
    );
    let of = |(record, _): &(&Micro, _)| if let Micro::FaultStep { p50_us, .. } = record { Some(*p50_us) } else { None };
    median(records.iter().filter_map(of).collect())
}

fn breakdown(evidence: &Evidence<'_>) -> String {
    let mut html = String::new();
    for (backend, device, place) in CLASSES {
        let mut all = Vec::new();
        let ways = [
            ("sigbus", "Lightswap, by SIGBUS"),
            ("touch", "Lightswap, asked for before (touch)"),
            ("monitor", "Lightswap, monitor thread"),
            ("ebpf", "Lightswap, eBPF"),
        ];
        for (notifier, label) in ways {
            let segment = |step: &&str| {
                let value = step_us(evidence, (backend, notifier, step))?;
                let label = if *step == "evict" { "evict (beside the fault)" } else { *step };
                Some(Segment { label: label.into(), class: format!("step-{step}"), value })
            };
            let mut segments: Vec<Segment> = STEPS.iter().filter_map(segment).collect();
            let total = evidence.fault_latency_us("lightswap", backend, notifier);
            if segments.is_empty() {
                segments.extend(total.map(|total| Segment { label: "whole fault".into(), class: "step-whole".into(), value: total.median }));
            }
            if !segments.is_empty() {
                all.push(Stack { label: label.into(), segments, total: total.map_or_else(String::new, |total| format_us(total.median)) });
            }
        }
        if let Some(kernel) = evidence.fault_latency_us("kernel", device, "kernel") {
            let segments = vec![Segment { label: "kernel swap's swap-in".into(), class: "step-kernel".into(), value: kernel.median }];
            let name = if backend == "file" { "Kernel swap, same disk" } else { "Kernel swap, zram" };
            all.push(Stack { label: name.into(), segments, total: format_us(kernel.median) });
        }
        if !all.is_empty() {
            let note = "medians, one fault at a time; the number is the whole from access to access, measured by itself";
            html += &stacks(&format!("Steps of a fault, {place}"), note, &all, format_us);
        }
    }
    html
}

fn cpu(evidence: &Evidence<'_>) -> String {
    let mut groups = Vec::new();
    for (backend, device, place) in CLASSES {
        let mut found: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
        for record in evidence.micro() {
            if let Micro::Fault { backend: name, contract, path, workers: 1, cpu_us_per_fault, .. } = record
                && name == backend
            {
                found.entry((path, contract)).or_default().push(*cpu_us_per_fault);
            }
        }
        let mut group: Vec<Bar> = found
            .into_iter()
            .filter_map(|((path, contract), values)| {
                let class = if path == "touch" { "lightswap-memory" } else { "lightswap" };
                Some(Bar { label: format!("by {path}, {contract}"), class: super::class_of(class), value: Spread::of(values)? })
            })
            .collect();
        let kernel = evidence.spread(|record| match record {
            Micro::KernelSwap { device: name, cpu_us_per_fault, .. } if name == device => Some(*cpu_us_per_fault),
            _ => None,
        });
        let class = if device == "swap-ssd" { "kernel-swap-ssd" } else { "kernel-swap-zram" };
        group.extend(kernel.map(|value| Bar { label: "kernel swap".into(), class: super::class_of(class), value }));
        if !group.is_empty() {
            groups.push(Group { title: place.into(), bars: group });
        }
    }
    if groups.is_empty() {
        return String::new();
    }
    bars(
        "CPU a fault",
        "everything included, eviction too; one worker; error bars over all numbers of LWTs or threads; shorter is better",
        &groups,
        format_us,
    )
}

/// Faults a second over how many can be under way at once.
fn faults(evidence: &Evidence<'_>, backend: &str, device: &str, place: &str, wanted: &str) -> String {
    let mut found: BTreeMap<(u32, &str), BTreeMap<u32, Vec<f64>>> = BTreeMap::new();
    let mut kernel: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    let mut disk: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for (record, range) in evidence.micro_with_ranges() {
        match record {
            Micro::Fault { backend: name, contract, path, workers, lwts, faults_per_second, .. } if name == backend && contract == wanted => {
                // `lwts` counts those of one worker.
                found.entry((*workers, path)).or_default().entry(workers * lwts).or_default().extend(repetitions(*faults_per_second, range));
            }
            Micro::KernelSwap { device: name, threads, faults_per_second, .. } if name == device => {
                kernel.entry(*threads).or_default().extend(repetitions(*faults_per_second, range));
            }
            Micro::DiskRead { jobs, depth, reads_per_second, .. } if backend == "file" => {
                disk.entry(jobs * depth).or_default().extend(repetitions(*reads_per_second, range));
            }
            _ => {}
        }
    }
    if found.is_empty() {
        return String::new();
    }
    let x = Axis::log("faults that can be under way: LWTs or threads", format_count);
    let y = Axis::log("a second", format_tick);
    let mut plot = Plot::new(format!("Faults a second, {place}, {wanted}"), "higher is better; both axes are logarithmic", x, y);
    let kernel_class = if device == "swap-ssd" { "kernel-swap-ssd" } else { "kernel-swap-zram" };
    let mut push = |label: String, class: &str, line: Line, points: BTreeMap<u32, Vec<f64>>| {
        let point = |(x, values): (u32, Vec<f64>)| {
            let y = Spread::of(values)?;
            Some(Point { x: f64::from(x), y, note: format!("{label}, {x} under way: {}/s", format_count(y.median)) })
        };
        let points = points.into_iter().filter_map(point).collect();
        plot.series.push(Series { label: label.clone(), class: super::class_of(class), line, markers: true, points });
    };
    for ((workers, path), points) in found {
        let class = if path == "touch" { "lightswap-memory" } else { "lightswap" };
        let line = if workers == 1 { Line::Solid } else { Line::Dashed };
        push(format!("by {path}, {workers} worker{}", if workers == 1 { "" } else { "s" }), class, line, points);
    }
    push("kernel swap".into(), kernel_class, Line::Solid, kernel);
    push("fio reads of the same file".into(), "limit", Line::None, disk);
    let counts: Vec<f64> = plot.series.iter().flat_map(|series| &series.points).map(|point| point.x).collect();
    plot.x = plot.x.ticks_at(counts);
    if plot.x.ticks.len() > 2 { plot.html() } else { as_bars(&plot) }
}

/// A plot of too few values of x to have a shape, as bars.
fn as_bars(plot: &Plot) -> String {
    let group = |x: &f64| Group {
        title: format!("{x} under way"),
        bars: plot
            .series
            .iter()
            .flat_map(|series| series.points.iter().filter(|point| point.x == *x).map(move |point| (series, point.y)))
            .map(|(series, value)| Bar { label: series.label.clone(), class: series.class.clone(), value })
            .collect(),
    };
    let groups: Vec<Group> = plot.x.ticks.iter().map(group).collect();
    bars(&plot.title, "longer is better", &groups, format_count)
}

fn switch(evidence: &Evidence<'_>) -> String {
    let mut found: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for (record, range) in evidence.micro_with_ranges() {
        if let Micro::LwtSwitch { lwts, switch_ns } = record {
            found.entry(*lwts).or_default().extend(repetitions(*switch_ns, range));
        }
    }
    let x = Axis::log("LWTs on one worker", format_count).ticks_at(found.keys().map(|lwts| f64::from(*lwts)));
    let mut plot = Plot::new("Switching from one LWT to another", "lower is better", x, Axis::linear("ns", format_tick));
    let point = |(lwts, values): (u32, Vec<f64>)| {
        let y = Spread::of(values)?;
        Some(Point { x: f64::from(lwts), y, note: format!("{lwts} LWTs: {:.1} ns", y.median) })
    };
    let points = found.into_iter().filter_map(point).collect();
    plot.series.push(Series { label: "LWT switch".into(), class: super::class_of("lightswap"), line: Line::Solid, markers: true, points });
    plot.html()
}

fn format_region(bytes: f64) -> String {
    lightswap::format_size(bytes as u64)
}

/// Powers of 16 bytes around the values.
fn binary_ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let (low, high) = values.fold((f64::INFINITY, 1.0f64), |(low, high), value| (low.min(value.max(1.0)), high.max(value)));
    let all = (0..16).map(|power| 16f64.powi(power));
    all.filter(|tick| *tick * 16.0 > low && *tick < high * 16.0).collect()
}

fn regions(evidence: &Evidence<'_>) -> String {
    type Value = fn(f64, f64, f64) -> f64;
    let charts: [(&str, &str, Axis, Value); 3] = [
        ("CPU a fault over the size of the region", "flat is good", Axis::linear("CPU a fault", format_us_tick), |_, cpu, _| cpu),
        (
            "Metadata over the size of the region",
            "what may grow; logarithmic",
            Axis::log("resident beside the pages", format_region),
            |_, _, bytes| bytes,
        ),
        ("Making a region, over its size", "lower is better; logarithmic", Axis::log("time", format_us_tick), |create, _, _| create),
    ];
    let mut html = String::new();
    for (title, note, y, value) in charts {
        let mut found: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (record, _) in evidence.of_judged_contract(|record| matches!(record, Micro::RegionSize { .. })).1 {
            if let Micro::RegionSize { region_bytes, create_us, cpu_us_per_fault, metadata_bytes, .. } = record {
                found.entry(*region_bytes).or_default().push(value(*create_us, *cpu_us_per_fault, *metadata_bytes as f64));
            }
        }
        let format = y.format;
        // Sizes in bytes have round values of their own.
        let y = if title.starts_with("Metadata") { y.ticks_at(binary_ticks(found.values().flatten().copied())) } else { y };
        let x = Axis::log("size of the region (sparse)", format_region).ticks_at(found.keys().map(|bytes| *bytes as f64));
        let mut plot = Plot::new(title, note, x, y);
        let point = |(bytes, values): (u64, Vec<f64>)| {
            let y = Spread::of(values)?;
            Some(Point { x: bytes as f64, y, note: format!("{}: {}", lightswap::format_size(bytes), format(y.median)) })
        };
        let points = found.into_iter().filter_map(point).collect();
        plot.series.push(Series { label: "lightswap".into(), class: super::class_of("lightswap"), line: Line::Solid, markers: true, points });
        html += &plot.html();
    }
    html
}

fn generators(evidence: &Evidence<'_>) -> String {
    /// Requests a second and CPU a request.
    #[derive(Default)]
    struct Numbers(Vec<f64>, Vec<f64>);
    let mut found: BTreeMap<(&str, &str, u32), Numbers> = BTreeMap::new();
    for (record, range) in evidence.micro_with_ranges() {
        if let Micro::Generator { generator, server, connections, requests_per_second, generator_cpu_us_per_request } = record {
            let entry = found.entry((server, generator, *connections)).or_default();
            entry.0.extend(repetitions(*requests_per_second, range));
            entry.1.push(*generator_cpu_us_per_request);
        }
    }
    if found.is_empty() {
        return String::new();
    }
    let chart = |rate: bool| -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for ((server, generator, connections), Numbers(rates, cpus)) in &found {
            let title = if *server == "null" { "against a server that does nothing".into() } else { format!("against {server}") };
            if groups.last().is_none_or(|group| group.title != title) {
                groups.push(Group { title, bars: Vec::new() });
            }
            let (Some(value), Some(group)) = (Spread::of(if rate { rates.clone() } else { cpus.clone() }), groups.last_mut()) else {
                continue;
            };
            let class = if generator.starts_with("memtier") { "kernel-swap-ssd" } else { "lightswap" };
            group.bars.push(Bar {
                label: format!("{generator}, {connections} connection{}", if *connections == 1 { "" } else { "s" }),
                class: super::class_of(class),
                value,
            });
        }
        groups
    };
    let mut html = bars("Load generator: ceiling", "requests a second; longer is better", &chart(true), format_count);
    html += &bars("Load generator: CPU a request", "shorter is better", &chart(false), format_us);
    html
}

/// One line for each notifier, for the Markdown summary.
pub fn notification_lines(evidence: &Evidence<'_>) -> Vec<(String, String)> {
    let line = |(name, label, _): &(&str, &str, &str)| {
        let series = evidence.notify_series(name, 1);
        let counts = series.iter().map(|point| point.lwts.to_string()).collect::<Vec<_>>().join(" / ");
        let values = series.iter().map(|point| with_spread(point.p50_us, |us| format!("{us:.2}"))).collect::<Vec<_>>().join(" / ");
        (!series.is_empty()).then(|| (format!("notification p50, {label}, at {counts} LWTs"), format!("{values} us")))
    };
    NOTIFIERS.iter().filter_map(line).collect()
}
