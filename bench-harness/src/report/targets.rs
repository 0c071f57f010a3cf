//! What the project asks of itself beyond the paper, judged like its claims.

use super::evidence::{Evidence, PRIMARY_PERCENT, PRIMARY_WORKLOADS};
use super::verdict::{Claim, Verdict, throughput, throughput_ratio, times};
use crate::results::Micro;
use crate::summary::Spread;
use crate::units::{format_count, format_ms, format_us};

/// Of stock memcached's throughput, with everything in local memory.
const IN_MEMORY_SHARE: f64 = 0.95;
/// CPU a fault in the largest region over that in the smallest.
const REGION_GROWTH: f64 = 1.2;
/// What the load generator can do over the most that it had to.
const GENERATOR_MARGIN: f64 = 1.5;
/// CPU a request, of memtier_benchmark's.
const GENERATOR_CPU_SHARE: f64 = 0.5;

pub fn own(evidence: &Evidence<'_>) -> Vec<Claim> {
    let mut targets: Vec<Claim> = PRIMARY_WORKLOADS.iter().map(|workload| in_memory(evidence, workload)).collect();
    targets.extend(PRIMARY_WORKLOADS.iter().map(|workload| against_extstore(evidence, workload)));
    targets.extend(PRIMARY_WORKLOADS.iter().map(|workload| tail(evidence, workload)));
    targets.extend([no_wrong_value(evidence), region_size(evidence), generator_ceiling(evidence), generator_cpu(evidence)]);
    let tested = |claim: &str, target: &str| Claim { verdict: Verdict::Tested, command: "scripts/test".into(), ..Claim::new(claim, target) };
    targets.push(tested("Keys are drawn as YCSB's scrambled zipfian draws them", "within 0.5 percentage points"));
    targets.push(tested("Baselines are as fast as the same server started by hand", "within 5 %"));
    targets
}

fn in_memory(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(format!("Costs little when everything fits into memory: {}", workload.to_uppercase()), "≥ 0.95 × stock");
    let (Some(own), Some(stock)) = (evidence.cell(workload, 100, "lightswap-dram"), evidence.cell(workload, 100, "dram")) else {
        return claim.missing("missing: dram and lightswap-dram");
    };
    let ratio = throughput_ratio(own, stock);
    Claim {
        ours: format!("{} against {}", throughput(own), throughput(stock)),
        ratio: times(ratio, &[IN_MEMORY_SHARE]),
        verdict: Verdict::met_if(ratio >= IN_MEMORY_SHARE),
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

fn tail(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(
        format!("The 99th percentile is no higher than kernel swap's on the same disk: {}, {PRIMARY_PERCENT} %", workload.to_uppercase()),
        "≤ 1 ×",
    );
    let own = evidence.cell(workload, PRIMARY_PERCENT, "lightswap");
    let (Some(own), Some(other)) = (own, evidence.cell(workload, PRIMARY_PERCENT, "kernel-swap-ssd")) else {
        return claim.missing("missing: lightswap and kernel-swap-ssd");
    };
    Claim {
        ours: format!("{} ms against {} ms", format_ms(own.p99_us.median), format_ms(other.p99_us.median)),
        ratio: times(own.p99_us.median / other.p99_us.median, &[1.0]),
        verdict: Verdict::met_if(own.p99_us.median / other.p99_us.median <= 1.0),
        command: evidence.command_of_cell(workload, "lightswap"),
        ..claim
    }
}

fn no_wrong_value(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("No value that was read is wrong", "0");
    let operations: u64 = evidence.runs.iter().map(|run| run.details.operations).sum();
    let wrong: u64 = evidence.runs.iter().map(|run| run.wrong_values).sum();
    if operations == 0 {
        return claim.missing("missing: any run");
    }
    Claim {
        ours: format!("{wrong} in {} operations", format_count(operations as f64)),
        verdict: Verdict::met_if(wrong == 0),
        command: evidence.command_of_run(|_| true),
        ..claim
    }
}

fn region_size(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Nothing grows with the region but the metadata: CPU a fault in the largest region over that in the smallest", "≤ 1.2 ×");
    let mut points: Vec<(u64, f64)> = evidence
        .micro()
        .filter_map(|record| match record {
            Micro::RegionSize { region_bytes, cpu_us_per_fault, .. } => Some((*region_bytes, *cpu_us_per_fault)),
            _ => None,
        })
        .collect();
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
        command: evidence.command_of_micro(|record| matches!(record, Micro::RegionSize { .. })),
        ..claim
    }
}

/// Requests a second and CPU a request of a generator against a kind of server.
fn generator(evidence: &Evidence<'_>, wanted: fn(&str) -> bool, null: bool) -> Option<(Spread, Spread)> {
    let of = |rate: bool| {
        evidence.spread(|record| match record {
            Micro::Generator { generator, server, requests_per_second, generator_cpu_us_per_request, .. }
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
        return claim.missing("missing: the generator against the null server");
    };
    if fastest <= 0.0 {
        return Claim { ours: format!("{}/s", format_count(rate.max)), ..claim }.missing("missing: runs to compare with");
    }
    Claim {
        ours: format!("{}/s against {}/s", format_count(rate.max), format_count(fastest)),
        ratio: times(rate.max / fastest, &[GENERATOR_MARGIN]),
        verdict: Verdict::met_if(rate.max / fastest >= GENERATOR_MARGIN),
        remark: "server and generator share the CPUs in runs".into(),
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
        return claim.missing("missing: the generator's CPU a request");
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
        verdict: Verdict::met_if(ratio <= GENERATOR_CPU_SHARE),
        command: evidence.command_of_micro(|record| matches!(record, Micro::Generator { generator, .. } if is_memtier(generator))),
        ..claim
    }
}
