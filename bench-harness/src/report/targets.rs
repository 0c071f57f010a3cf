//! What the project asks of itself beyond the paper, judged like its claims.

use super::claims::checked;
use super::evidence::{Evidence, PRIMARY_PERCENT, PRIMARY_WORKLOADS};
use super::verdict::{Claim, Verdict, throughput, throughput_ratio, times};
use super::{paging, redis_targets, remote_targets, tracing};
use crate::results::Micro;
use crate::summary::{SUSTAINED, Spread};
use crate::units::{format_count, format_ms, format_us};

/// Of stock memcached's throughput, with everything in local memory.
const IN_MEMORY_SHARE: f64 = 0.95;
/// Of stock memcached's CPU an operation.
const IN_MEMORY_CPU: f64 = 1.05;
/// CPU a fault in the largest region over that in the smallest.
const REGION_GROWTH: f64 = 1.2;
/// What the load generator can do over the most that it had to.
const GENERATOR_MARGIN: f64 = 1.5;
/// CPU a request, of memtier_benchmark's.
const GENERATOR_CPU_SHARE: f64 = 0.5;

/// What tests show: the target and where the test is.
const BY_TEST: [(&str, &str, &str); 2] = [
    (
        "Keys are drawn as YCSB's scrambled zipfian draws them",
        "within 0.5 percentage points",
        "scrambled_zipfian_has_the_skew_of_ycsb in bench-harness/src/ycsb.rs",
    ),
    (
        "Baselines are as fast as the same server started by hand",
        "within 5 %",
        "a_baseline_is_as_fast_as_the_same_server_started_by_hand in bench-harness/tests/by_hand.rs",
    ),
];

pub fn own(evidence: &Evidence<'_>) -> Vec<Claim> {
    let mut targets: Vec<Claim> = PRIMARY_WORKLOADS.iter().map(|workload| in_memory(evidence, workload)).collect();
    targets.extend(PRIMARY_WORKLOADS.iter().map(|workload| against_extstore(evidence, workload)));
    targets.extend(PRIMARY_WORKLOADS.iter().map(|workload| tail(evidence, workload)));
    targets.extend(paging::targets(evidence));
    targets.extend(remote_targets::targets(evidence));
    targets.extend(redis_targets::targets(evidence));
    targets.extend(tracing::targets(evidence));
    targets.extend([no_wrong_value(evidence), region_size(evidence), generator_ceiling(evidence), generator_cpu(evidence)]);
    targets.extend(BY_TEST.map(|(claim, target, test)| Claim::by_test(claim, target, test)));
    targets
}

fn in_memory(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(
        format!("Costs little when everything fits into memory: {}, throughput and the server's CPU an operation", workload.to_uppercase()),
        "≥ 0.95 × stock, with ≤ 1.05 × its CPU",
    );
    let (Some(own), Some(stock)) = (evidence.cell(workload, 100, "lightswap-dram"), evidence.cell(workload, 100, "dram")) else {
        return claim.missing("missing: dram and lightswap-dram");
    };
    let (speed, cpu) = (throughput_ratio(own, stock), own.cpu_us_per_operation / stock.cpu_us_per_operation);
    // Where the CPU is not the bottleneck, throughput alone would hide what it costs.
    let verdict = if speed.is_nan() || speed < IN_MEMORY_SHARE || cpu > IN_MEMORY_CPU {
        Verdict::NotMet
    } else if cpu.is_nan() {
        Verdict::NotMeasured
    } else {
        Verdict::Met
    };
    Claim {
        ours: format!(
            "{} against {}; {} of CPU an operation against {}",
            throughput(own),
            throughput(stock),
            format_us(own.cpu_us_per_operation),
            format_us(stock.cpu_us_per_operation)
        ),
        ratio: format!("{}, CPU {}", times(speed, &[IN_MEMORY_SHARE]), times(cpu, &[IN_MEMORY_CPU])),
        verdict,
        remark: if cpu.is_nan() { "missing: the server's CPU time".into() } else { String::new() },
        command: evidence.command_of_cell(workload, "lightswap-dram"),
        ..claim
    }
}

fn against_extstore(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(
        format!("Serves more than memcached's own flash tier, extstore: {}, {PRIMARY_PERCENT} %, same disk", workload.to_uppercase()),
        "> 1 ×",
    );
    let own = evidence.cell(workload, PRIMARY_PERCENT, "lightswap");
    let (Some(own), Some(other)) = (own, evidence.cell(workload, PRIMARY_PERCENT, "extstore")) else {
        return claim.missing(if own.is_none() { "missing: lightswap" } else { "missing: extstore" });
    };
    Claim {
        ours: format!("{} against {}", throughput(own), throughput(other)),
        ratio: times(throughput_ratio(own, other), &[1.0]),
        verdict: Verdict::met_if(own.operations_per_second.is_above(other.operations_per_second)),
        command: evidence.command_of_cell(workload, "extstore"),
        ..claim
    }
}

/// In the open loop: in a closed one the slower server gets fewer requests, which shortens its tail.
fn tail(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(
        format!(
            "The 99th percentile is no higher than kernel swap's on the same disk: {}, {PRIMARY_PERCENT} %, open loop at the highest rate that both sustain",
            workload.to_uppercase()
        ),
        "≤ 1 ×",
    );
    let (own, other) = (evidence.open_loop(workload, "lightswap"), evidence.open_loop(workload, "kernel-swap-ssd"));
    if own.is_empty() || other.is_empty() {
        return claim.missing(format!("missing: lightswap and kernel-swap-ssd in the open loop, {workload} at {PRIMARY_PERCENT} %"));
    }
    let common = own.iter().filter_map(|cell| Some((*cell, *other.iter().find(|other| other.shape == cell.shape)?)));
    let sustained = common.filter(|(own, other)| !own.is_saturated() && !other.is_saturated());
    let Some((own, other)) = sustained.max_by_key(|(own, _)| own.shape.due_per_second) else {
        return claim.missing("missing: a rate that both sustain");
    };
    let ratio = own.p99_us.median / other.p99_us.median;
    Claim {
        ours: format!("{} ms against {} ms", format_ms(own.p99_us.median), format_ms(other.p99_us.median)),
        ratio: times(ratio, &[1.0]),
        verdict: Verdict::met_if(ratio <= 1.0),
        remark: format!(
            "at {}/s due; sustained: at least {:.0} % of that are served",
            format_count(own.shape.due_per_second.unwrap_or_default() as f64),
            SUSTAINED * 100.0
        ),
        command: evidence.command_of_run(|run| run.workload == workload && run.details.due_per_second.is_some()),
        ..claim
    }
}

fn no_wrong_value(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("No value that was read is wrong", "0");
    Claim { command: evidence.command_of_run(|run| run.details.checked_reads > 0), ..checked(claim, evidence.runs.iter()) }
}

fn region_size(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Nothing grows with the region but the metadata: CPU a fault in the largest region over that in the smallest", "≤ 1.2 ×");
    let (contract, records) = evidence.of_judged_contract(|record| matches!(record, Micro::RegionSize { .. }));
    let number = |(record, _): &(&Micro, _)| match record {
        Micro::RegionSize { region_bytes, cpu_us_per_fault, .. } => Some((*region_bytes, *cpu_us_per_fault)),
        _ => None,
    };
    let mut points: Vec<(u64, f64)> = records.iter().filter_map(number).collect();
    points.sort_by_key(|point| point.0);
    let (Some(&(small, _)), Some(&(large, _))) = (points.first(), points.last()) else {
        return claim.missing("missing: faults in regions of several sizes");
    };
    let cpu = |bytes: u64| Spread::of(points.iter().filter(|point| point.0 == bytes).map(|point| point.1).collect()).map_or(f64::NAN, |s| s.median);
    if small == large {
        return claim.missing("missing: more than one size of region");
    }
    let ratio = cpu(large) / cpu(small);
    let size = lightswap::format_size;
    Claim {
        ours: format!("{} at {}, {} at {}", format_us(cpu(small)), size(small), format_us(cpu(large)), size(large)),
        ratio: times(ratio, &[REGION_GROWTH]),
        verdict: Verdict::met_if(ratio <= REGION_GROWTH),
        remark: format!("{contract} contract"),
        command: evidence.command_of_micro(|record| matches!(record, Micro::RegionSize { .. })),
        ..claim
    }
}

/// As many as the runs have.
const GENERATOR_CONNECTIONS: u32 = 64;

/// Requests a second and CPU a request of a generator against a kind of server.
fn generator(evidence: &Evidence<'_>, wanted: fn(&str) -> bool, null: bool) -> Option<(Spread, Spread)> {
    let of = |rate: bool| {
        evidence.spread(|record| match record {
            Micro::Generator { generator, server, connections: GENERATOR_CONNECTIONS, requests_per_second, generator_cpu_us_per_request }
                if wanted(generator) && (server == "null") == null =>
            {
                Some(if rate { *requests_per_second } else { *generator_cpu_us_per_request })
            }
            _ => None,
        })
    };
    Some((of(true)?, of(false)?))
}

fn is_memtier(name: &str) -> bool {
    name.starts_with("memtier")
}

fn generator_ceiling(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("The load generator is not the bottleneck: what it can do against a server that does nothing", "≥ 1.5 × the fastest run");
    let fastest =
        evidence.summaries.iter().filter(|summary| !summary.is_open_loop()).map(|summary| summary.operations_per_second.median).fold(0.0, f64::max);
    let Some((rate, _)) = generator(evidence, |name| !is_memtier(name), true) else {
        return claim.missing(format!("missing: the generator against the null server with {GENERATOR_CONNECTIONS} connections"));
    };
    if fastest <= 0.0 {
        return Claim { ours: format!("{}/s", format_count(rate.median)), ..claim }.missing("missing: runs to compare with");
    }
    Claim {
        ours: format!("{}/s against {}/s", format_count(rate.median), format_count(fastest)),
        ratio: times(rate.median / fastest, &[GENERATOR_MARGIN]),
        verdict: Verdict::met_if(rate.median / fastest >= GENERATOR_MARGIN),
        remark: format!("with {GENERATOR_CONNECTIONS} connections; server and generator share the CPUs in runs"),
        command: evidence.command_of_micro(|record| matches!(record, Micro::Generator { server, .. } if server == "null")),
        ..claim
    }
}

/// Whether any file has numbers of memtier_benchmark.
pub fn has_memtier(evidence: &Evidence<'_>) -> bool {
    evidence.micro().any(|record| matches!(record, Micro::Generator { generator, .. } if is_memtier(generator)))
        || evidence.runs.iter().any(|run| is_memtier(&run.details.generator))
}

fn generator_cpu(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("The load generator takes at most half of memtier_benchmark's CPU a request against the same server", "≤ 0.5 ×");
    let real = generator(evidence, |name| !is_memtier(name), false);
    let Some((_, any)) = real.or_else(|| generator(evidence, |name| !is_memtier(name), true)) else {
        return claim.missing(format!("missing: the generator's CPU a request with {GENERATOR_CONNECTIONS} connections"));
    };
    let claim = Claim { ours: format!("{} a request", format_us(any.median)), ..claim };
    let Some((_, other)) = generator(evidence, is_memtier, false) else {
        return claim.missing("memtier_benchmark was not on PATH");
    };
    let Some((_, own)) = real else {
        return claim.missing("missing: the generator against the server that memtier_benchmark was run against");
    };
    let ratio = own.median / other.median;
    Claim {
        ours: format!("{} against {}", format_us(own.median), format_us(other.median)),
        ratio: times(ratio, &[GENERATOR_CPU_SHARE]),
        remark: format!("with {GENERATOR_CONNECTIONS} connections"),
        verdict: Verdict::met_if(ratio <= GENERATOR_CPU_SHARE),
        command: evidence.command_of_micro(|record| matches!(record, Micro::Generator { generator, .. } if is_memtier(generator))),
        ..claim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::results::{Results, Run};
    use crate::summary::tests::run;
    use crate::tally::LatencyUs;

    fn verdict(runs: &[Run], of: fn(&Evidence<'_>) -> Claim) -> Verdict {
        of(&Evidence::new(&[Results { runs: runs.to_vec(), ..Results::default() }])).verdict
    }

    #[test]
    fn in_memory_is_judged_by_the_unrounded_throughput_and_by_cpu() {
        let of = |configuration: &str, speed: f64, cpu_seconds: f64| Run { server_cpu_seconds: cpu_seconds, ..run(configuration, 1.0, speed) };
        let stock = of("dram", 1_000.0, 1.0);
        let judge = |own: Run| verdict(&[stock.clone(), own], |evidence| in_memory(evidence, "ycsb-c"));
        assert_eq!(judge(of("lightswap-dram", 950.0, 1.05)), Verdict::Met);
        assert_eq!(judge(of("lightswap-dram", 949.0, 1.0)), Verdict::NotMet);
        assert_eq!(judge(of("lightswap-dram", 1_000.0, 1.06)), Verdict::NotMet);
    }

    #[test]
    fn the_tail_is_judged_at_the_highest_rate_that_both_sustain() {
        let open = |configuration: &str, due: f64, served: f64, p99: f64| {
            let mut run = run(configuration, 0.25, served);
            run.details.due_per_second = Some(due);
            run.latency_us = LatencyUs { p99, ..LatencyUs::default() };
            run
        };
        let judge = |runs: &[Run]| verdict(runs, |evidence| tail(evidence, "ycsb-c"));
        // What a closed loop says does not matter.
        let mut runs = vec![run("lightswap", 0.25, 300.0), run("kernel-swap-ssd", 0.25, 100.0)];
        assert_eq!(judge(&runs), Verdict::NotMeasured);
        runs.extend([open("lightswap", 300.0, 299.0, 5.0), open("kernel-swap-ssd", 300.0, 100.0, 9_000.0)]);
        assert_eq!(judge(&runs), Verdict::NotMeasured);
        runs.extend([open("lightswap", 100.0, 95.0, 2.0), open("kernel-swap-ssd", 100.0, 100.0, 1.0)]);
        assert_eq!(judge(&runs), Verdict::NotMet);
        runs.extend([open("lightswap", 120.0, 120.0, 2.0), open("kernel-swap-ssd", 120.0, 114.0, 2.0)]);
        assert_eq!(judge(&runs), Verdict::Met);
    }

    #[test]
    fn only_values_that_were_read_and_checked_count() {
        let mut runs = vec![run("lightswap", 0.25, 100.0)];
        runs[0].details.generator = "memtier_benchmark".into();
        assert_eq!(verdict(&runs, no_wrong_value), Verdict::NotMeasured);
        runs.push(run("lightswap", 0.25, 100.0));
        runs[1].details.checked_reads = 7;
        let results = [Results { runs: runs.clone(), ..Results::default() }];
        let claim = no_wrong_value(&Evidence::new(&results));
        assert_eq!((claim.verdict, claim.ours.as_str()), (Verdict::Met, "0 wrong of 7 values that were read and checked"));
        runs[0].wrong_values = 1;
        assert_eq!(verdict(&runs, no_wrong_value), Verdict::NotMet);
    }

    #[test]
    fn the_tests_that_rows_name_are_there() {
        let sources = [include_str!("../ycsb.rs"), include_str!("../../tests/by_hand.rs")];
        for (row, source) in BY_TEST.iter().zip(sources) {
            let name = row.2.split(' ').next().unwrap();
            assert!(source.contains(&format!("#[test]\n    fn {name}()")) || source.contains(&format!("#[test]\nfn {name}()")), "{name}");
        }
    }
}
