use super::claims::paper;
use super::evidence::Evidence;
use super::headline::headlines;
use super::verdict::Verdict;
use super::{ReportArguments, html, markdown, synthetic, targets};
use crate::configuration::BUILT_IN;
use crate::results::{Micro, Moment, Results, Run};
use crate::summary::tests::run;
use crate::tally::LatencyUs;

use serde_json::Value;

/// Claims of the paper whose text holds this.
fn verdicts(results: &Results, text: &str) -> Vec<Verdict> {
    let files = std::slice::from_ref(results);
    paper(&Evidence::new(files)).iter().filter(|claim| claim.claim.contains(text)).map(|claim| claim.verdict).collect()
}

#[test]
fn the_report_is_self_contained_and_escaped() {
    let mut results = synthetic::full();
    results.runs[0].details.error = Some("<script>alert(1)</script>".into());
    let text = html(&[results]);
    assert!(!text.contains("<script") && text.contains("&lt;script&gt;"));
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!text.contains(outside), "{outside}");
    }
}

#[test]
fn a_full_run_has_every_section_and_an_empty_file_has_every_claim() {
    let full = html(&[synthetic::full()]);
    for id in [
        "claims",
        "outage",
        "redis",
        "dump",
        "wins",
        "memory",
        "remote",
        "latency",
        "open-loop",
        "mechanism",
        "time-line",
        "workloads",
        "settings",
        "errors",
        "targets",
        "problems",
        "numbers",
        "environment",
    ] {
        assert!(full.contains(&format!("<section id=\"{id}\">")) && full.contains(&format!("href=\"#{id}\"")), "{id}");
    }
    assert!(full.contains("lightswap-nbd") && full.contains("Killed &lt;at once&gt;"));
    assert!(full.contains("memtier_benchmark was not on PATH"));

    let nothing = [Results::default()];
    let evidence = Evidence::new(&nothing);
    let full = [synthetic::full()];
    assert_eq!(paper(&evidence).len(), paper(&Evidence::new(&full)).len());
    for claim in paper(&evidence).iter().chain(&targets::own(&evidence)) {
        assert!(matches!(claim.verdict, Verdict::NotMeasured | Verdict::ByTest), "{claim:?}");
        assert!(claim.verdict == Verdict::ByTest || !claim.remark.is_empty(), "{claim:?}");
    }
    assert!(html(&nothing).contains("</html>"));
}

#[test]
fn redis_alone_has_its_own_targets_and_no_others() {
    let mut results = Results { runs: synthetic::redis_runs(), saves: vec![crate::save_record::tests::record()], ..Results::default() };
    let text = html(std::slice::from_ref(&results));
    assert!(text.contains("<section id=\"redis\">") && !text.contains("The paper's claims"), "{text}");
    assert!(text.contains("stock Redis") && !text.contains("flash tier"), "{text}");
    // With memcached beside it, everything is there, and each in its own section.
    results.runs.push(run("lightswap", 0.25, 100.0));
    let text = html(&[results]);
    assert!(text.contains("The paper's claims") && text.contains("<section id=\"redis\">"));
    assert!(!text.split("<section id=\"memory\">").nth(1).unwrap_or_default().split("</section>").next().unwrap_or_default().contains("redis-"));
}

#[test]
fn an_outage_alone_has_no_rows_of_the_rest() {
    let text = html(&[Results { outages: vec![crate::outage_record::tests::record()], ..Results::default() }]);
    assert!(text.contains("400 ms") && text.contains("<section id=\"outage\">") && !text.contains("not measured"), "{text}");
    assert!(text.contains("1 met"), "{text}");
}

#[test]
fn claims_about_throughput_need_all_baselines_and_the_faster_one_decides() {
    let text = "state of the art: YCSB-C";
    let mut results = Results { runs: vec![run("lightswap", 0.25, 150.0), run("kernel-swap", 0.25, 100.0)], ..Results::default() };
    assert_eq!(verdicts(&results, text), [Verdict::NotMeasured]);
    results.runs.push(run("fastswap-style", 0.25, 90.0));
    assert_eq!(verdicts(&results, text), [Verdict::Met]);
    results.runs.push(run("fastswap-style", 0.25, 134.0));
    assert_eq!(verdicts(&results, text), [Verdict::NotMet]);
    // It takes one baseline to refute.
    results.runs.truncate(1);
    results.runs.push(run("kernel-swap", 0.25, 140.0));
    assert_eq!(verdicts(&results, text), [Verdict::NotMet]);
}

#[test]
fn co_design_pays_only_beyond_the_repetitions() {
    let text = "together with LWTs raises throughput: YCSB-C";
    let of = |speeds: [f64; 2]| {
        let own = speeds.map(|speed| run("lightswap", 0.25, speed));
        Results { runs: [own.to_vec(), vec![run("fastswap-style", 0.25, 100.0), run("fastswap-style", 0.25, 110.0)]].concat(), ..Results::default() }
    };
    assert_eq!(verdicts(&of([111.0, 130.0]), text), [Verdict::Met]);
    assert_eq!(verdicts(&of([109.0, 130.0]), text), [Verdict::NotMet]);
}

fn notify(notifier: &str, lwts: u32, p50_us: f64) -> Micro {
    Micro::Notify { notifier: notifier.into(), lwts, workers: 1, p50_us, p99_us: p50_us }
}

#[test]
fn notification_is_judged_by_the_harder_series_or_not_at_all() {
    let mut results = Results { micro: vec![notify("sigbus", 128, 2.6)], ..Results::default() };
    assert_eq!(verdicts(&results, "notification takes"), [Verdict::NotMeasured]);
    let headlines = |results: &Results| headlines(&Evidence::new(std::slice::from_ref(results))).len();
    assert_eq!(headlines(&results), 0);
    results.micro.push(notify("sigbus-suspended", 128, 4.0));
    assert_eq!(verdicts(&results, "notification takes"), [Verdict::Met]);
    assert_eq!(headlines(&results), 1);
    results.micro[1] = notify("sigbus-suspended", 128, 4.001);
    assert_eq!(verdicts(&results, "notification takes"), [Verdict::NotMet]);
}

#[test]
fn flat_takes_the_harder_series_and_a_monitor_to_compare_with() {
    let text = "stays flat";
    let monitor = [notify("monitor", 1, 50.0), notify("monitor", 128, 50.0)];
    let turns = [notify("sigbus", 1, 2.5), notify("sigbus", 128, 2.5)];
    let mut results = Results { micro: [monitor.to_vec(), turns.to_vec()].concat(), ..Results::default() };
    assert_eq!(verdicts(&results, text), [Verdict::NotMeasured]);
    results.micro = vec![notify("sigbus-suspended", 1, 2.5), notify("sigbus-suspended", 128, 2.6)];
    assert_eq!(verdicts(&results, text), [Verdict::NotMeasured]);
    results.micro.extend(monitor);
    assert_eq!(verdicts(&results, text), [Verdict::Met]);
    results.micro.push(notify("sigbus-suspended", 512, 4.0));
    assert_eq!(verdicts(&results, text), [Verdict::NotMet]);
}

#[test]
fn cpu_is_judged_by_declared_cells_and_not_by_the_cheapest() {
    let fault = |contract: &str, lwts: u32, cpu_us_per_fault: f64| Micro::Fault {
        backend: "memory".into(),
        contract: contract.into(),
        path: "fault".into(),
        workers: 1,
        lwts,
        faults_per_second: 1.0,
        cpu_us_per_fault,
    };
    let kernel =
        |threads: u32, cpu_us_per_fault: f64| Micro::KernelSwap { device: "swap-zram".into(), threads, faults_per_second: 1.0, cpu_us_per_fault };
    let text = "CPU a fault, pages in memory";
    let mut results = Results { micro: vec![fault("cooperative", 1, 1.0), fault("transparent", 8, 1.0), kernel(1, 9.0)], ..Results::default() };
    assert_eq!(verdicts(&results, text), [Verdict::NotMeasured]);
    results.micro.extend([fault("transparent", 1, 8.999), kernel(8, 1.0)]);
    assert_eq!(verdicts(&results, text), [Verdict::Met]);
    results.micro.extend([fault("transparent", 1, 10.0), fault("transparent", 1, 10.0)]);
    assert_eq!(verdicts(&results, text), [Verdict::NotMet]);
}

#[test]
fn faster_fault_handling_is_judged_within_one_class_of_backends() {
    let of = |contract: &str, pager: &str, backend: &str, notifier: &str, p50_us| Micro::FaultLatency {
        pager: pager.into(),
        backend: backend.into(),
        notifier: notifier.into(),
        contract: contract.into(),
        p50_us,
        p99_us: p50_us,
    };
    let lightswap = |backend: &str, p50_us| of("transparent", "lightswap", backend, "sigbus", p50_us);
    let kernel = |device: &str, p50_us| of("", "kernel", device, "kernel", p50_us);
    let mut results = Results { micro: vec![lightswap("memory", 6.0), kernel("swap-ssd", 130.0)], ..Results::default() };
    assert_eq!(verdicts(&results, "3-5 times"), [Verdict::NotMeasured; 2]);
    // Memcached's regions are not cooperative: how fast those are decides nothing.
    results.micro.extend([kernel("swap-zram", 19.0), lightswap("file", 70.0), of("cooperative", "lightswap", "memory", "sigbus", 1.0)]);
    assert_eq!(verdicts(&results, "3-5 times"), [Verdict::NotMet, Verdict::Met]);
}

#[test]
fn markdown_has_the_claims_and_the_cells() {
    let text = markdown::markdown(&[synthetic::full()]);
    assert!(text.contains("| **lightswap** | 2 threads |") && text.contains("| YCSB-C | 25 % |"), "{text}");
    assert!(!text.contains('µ'));
    assert!(text.contains("| wrong values | 0 |") && text.contains("| lost items | 800 |"), "{text}");
    let columns = |line: &str| line.matches('|').count() - line.matches("\\|").count();
    let mut tables = text.split("\n\n").filter(|part| part.starts_with('|'));
    assert!(tables.all(|table| table.lines().all(|line| columns(line) == columns(table.lines().next().unwrap()))), "{text}");
}

#[test]
fn every_configuration_has_a_colour() {
    for (name, _) in BUILT_IN {
        let colour = name.strip_prefix("redis-").unwrap_or(name);
        assert!(super::STYLE.contains(&format!(".c-{colour} {{ --color:")), "{name}");
        assert_eq!(super::class_of(name), format!("c-{colour}"));
        assert!(synthetic::full().runs.iter().any(|run| run.configuration == name), "{name}");
    }
    assert_eq!(super::class_of("my-own"), "c-other");
}

#[test]
fn runs_without_a_memory_limit_are_told_at_the_head() {
    let said = "No memory limit was set";
    let mut results = synthetic::full();
    assert!(!html(std::slice::from_ref(&results)).contains(said));
    results.runs[0].details.memory_limit = Some("none".into());
    let files = [results];
    for text in [html(&files), markdown::markdown(&files)] {
        assert!(text.find(said).unwrap() < text.find("the paper").unwrap());
    }
}

#[test]
fn the_comparison_with_zram_says_what_differs() {
    let mut results = synthetic::full();
    for run in &mut results.runs {
        run.details.backend_memory_bytes = Some(900 << 20);
    }
    let text = html(&[results]);
    assert!(text.contains("zram compresses pages (lz4)") && text.contains("zram took 900 MiB for at least 450 MiB beyond the limit"));
    assert!(text.contains("all of its backend, 900 MiB"));
}

#[test]
fn nothing_but_noughts_gives_no_nan() {
    let mut results = synthetic::full();
    for run in &mut results.runs {
        run.operations_per_second = 0.0;
        run.latency_us = LatencyUs::default();
        run.server_cpu_seconds = 0.0;
        run.details.operations = 0;
        run.details.latency_buckets.iter_mut().for_each(|bucket| *bucket = (0.0, 0));
        run.details.time_line.iter_mut().for_each(|moment| *moment = Moment::default());
    }
    let Value::Array(mut micro) = serde_json::to_value(&results.micro).unwrap() else { panic!("micro is a list") };
    for (_, field) in micro.iter_mut().filter_map(Value::as_object_mut).flatten() {
        if field.is_f64() {
            *field = 0.0.into();
        }
    }
    results.micro = serde_json::from_value(Value::Array(micro)).unwrap();
    results.micro_ranges.iter_mut().for_each(|range| *range = (0.0, 0.0));
    assert!(verdicts(&results, "state of the art").iter().all(|verdict| *verdict == Verdict::NotMet));
    let files = [results];
    for text in [html(&files), markdown::markdown(&files)] {
        let odd = |word: &&str| *word == "NaN" || *word == "inf";
        let words = || text.split(|letter: char| !letter.is_ascii_alphabetic());
        assert_eq!(
            words().filter(odd).count(),
            0,
            "{:?}",
            text.split('<').filter(|part| part.contains("NaN") || part.contains("inf")).collect::<Vec<_>>()
        );
    }
}

#[test]
fn names_from_files_are_no_markdown() {
    let odd = Run { workload: "ycsb-<b>|x\ny".into(), ..run("<script>|", 0.25, 100.0) };
    let text = markdown::markdown(&[Results { runs: vec![odd], ..Results::default() }]);
    assert!(text.contains("| YCSB-&lt;B&gt;\\|X Y | 25 % | &lt;script&gt;\\| |"), "{text}");
    assert!(!text.contains('<'));
}

#[test]
fn reports_do_not_overwrite_results() {
    let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-overwrite", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let input = directory.join("x.json");
    synthetic::micro_only().write(&input).unwrap();
    let before = std::fs::read(&input).unwrap();
    let of = |out: &str, markdown: Option<&str>| {
        let path = |name: &str| directory.join(name);
        super::report(&ReportArguments { results: vec![input.clone()], out: path(out), markdown: markdown.map(path) })
    };
    for (out, markdown, part) in [
        ("./x.json", None, "--out"),
        ("new.html", Some("x.json"), "--markdown"),
        ("new.html", Some("./new.html"), "same file"),
        ("new.html", Some("none/x.md"), "no directory"),
    ] {
        let error = format!("{:#}", of(out, markdown).expect_err(part));
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(std::fs::read(&input).unwrap(), before);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    assert!(of("new.html", Some("new.md")).unwrap());
    std::fs::remove_dir_all(&directory).unwrap();
}
