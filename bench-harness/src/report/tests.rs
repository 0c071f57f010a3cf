use super::claims::{Verdict, paper};
use super::evidence::Evidence;
use super::{html, markdown, synthetic, targets};
use crate::results::{Micro, Results};
use crate::summary::tests::run;

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
        "wins",
        "memory",
        "latency",
        "open-loop",
        "mechanism",
        "time-line",
        "workloads",
        "settings",
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
        assert!(matches!(claim.verdict, Verdict::NotMeasured | Verdict::Tested), "{claim:?}");
        assert!(claim.verdict == Verdict::Tested || !claim.remark.is_empty(), "{claim:?}");
    }
    assert!(html(&nothing).contains("</html>"));
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
fn notification_is_judged_by_the_harder_case() {
    let mut results = Results { micro: vec![notify("sigbus", 128, 2.6)], ..Results::default() };
    assert_eq!(verdicts(&results, "notification takes"), [Verdict::Met]);
    results.micro.push(notify("sigbus-suspended", 128, 4.2));
    assert_eq!(verdicts(&results, "notification takes"), [Verdict::NotMet]);
}

#[test]
fn flat_takes_a_monitor_to_compare_with() {
    let text = "stays flat";
    let mut results = Results { micro: vec![notify("sigbus", 1, 2.5), notify("sigbus", 128, 2.6)], ..Results::default() };
    assert_eq!(verdicts(&results, text), [Verdict::NotMeasured]);
    results.micro.extend([notify("monitor", 1, 50.0), notify("monitor", 128, 50.0)]);
    assert_eq!(verdicts(&results, text), [Verdict::Met]);
    results.micro.push(notify("sigbus", 512, 4.0));
    assert_eq!(verdicts(&results, text), [Verdict::NotMet]);
}

#[test]
fn faster_fault_handling_is_judged_within_one_class_of_backends() {
    let latency = |pager: &str, backend: &str, notifier: &str, p50_us| Micro::FaultLatency {
        pager: pager.into(),
        backend: backend.into(),
        notifier: notifier.into(),
        p50_us,
        p99_us: p50_us,
    };
    let mut results =
        Results { micro: vec![latency("lightswap", "memory", "sigbus", 6.0), latency("kernel", "swap-ssd", "kernel", 130.0)], ..Results::default() };
    assert_eq!(verdicts(&results, "3-5 times"), [Verdict::NotMeasured; 2]);
    results.micro.extend([latency("kernel", "swap-zram", "kernel", 19.0), latency("lightswap", "file", "sigbus", 70.0)]);
    assert_eq!(verdicts(&results, "3-5 times"), [Verdict::NotMet, Verdict::Met]);
}

#[test]
fn markdown_has_the_claims_and_the_cells() {
    let text = markdown::markdown(&[synthetic::full()]);
    assert!(text.contains("| **lightswap** | 2 threads |") && text.contains("| YCSB-C | 25 % |"), "{text}");
    assert!(!text.contains('µ'));
    let columns = |line: &str| line.matches('|').count() - line.matches("\\|").count();
    let mut tables = text.split("\n\n").filter(|part| part.starts_with('|'));
    assert!(tables.all(|table| table.lines().all(|line| columns(line) == columns(table.lines().next().unwrap()))), "{text}");
}
