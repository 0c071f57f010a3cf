//! What is asked of remote and compressed memory, judged like the other targets.

use super::claims::versus;
use super::evidence::{CONTRACT, Evidence, KERNEL_IN_MEMORY, PRIMARY_PERCENT};
use super::verdict::{Claim, Verdict, throughput_ratio, times, with_spread};
use crate::outage_record::{LONGEST_PAUSE_SECONDS, OutageRecord};
use crate::results::{AS_MUCH_IN_ALL, Micro, repetitions};
use crate::summary::Spread;
use crate::units::{MIB, format_count, format_us};

const WORKLOAD: &str = "ycsb-c";
/// Of what blocks its threads on the same server.
const OVER_BLOCKING: f64 = 1.4;
/// Faults a second of CPU, of zram's.
const COMPRESSED: f64 = 2.0;
const ENCRYPTION_US: f64 = 2.5;

pub fn targets(evidence: &Evidence<'_>) -> Vec<Claim> {
    vec![
        reads(evidence, "unix", "a UNIX socket"),
        reads(evidence, "tcp", "TCP on the loopback"),
        over_blocking(evidence),
        over_zram(evidence),
        compressed_speed(evidence),
        compressed_memory(evidence),
        compressed_in_as_much(evidence),
        encryption(evidence),
        outage(evidence),
    ]
}

/// At every depth that both were measured at.
fn reads(evidence: &Evidence<'_>, transport: &str, place: &str) -> Claim {
    let claim = Claim::new(format!("Reads 4 KiB pages from a memory server over {place} as fast as fio's nbd engine, at each depth"), "≥ 1 ×");
    let rate = |wanted: &str, at: u32| {
        evidence.spread(|record| match record {
            Micro::RemoteRead { tool, transport: over, depth, reads_per_second, .. } if tool == wanted && over == transport && *depth == at => {
                Some(*reads_per_second)
            }
            _ => None,
        })
    };
    let of_fio = |record: &Micro| match record {
        Micro::RemoteRead { tool, transport: over, depth, .. } if tool == "fio" && over == transport => Some(*depth),
        _ => None,
    };
    let mut depths: Vec<u32> = evidence.micro().filter_map(of_fio).collect();
    depths.sort_unstable();
    depths.dedup();
    let pairs: Vec<(u32, Spread, Spread)> =
        depths.into_iter().filter_map(|depth| Some((depth, rate("lightswap", depth)?, rate("fio", depth)?))).collect();
    let ratio = |pair: &(u32, Spread, Spread)| pair.1.median / pair.2.median;
    let Some(worst) = pairs.iter().min_by(|a, b| ratio(a).total_cmp(&ratio(b))) else {
        return claim.missing("missing: lightswap-bench micro remote, with fio and its nbd engine");
    };
    let each = pairs.iter().map(|pair| format!("{} against {} at depth {}", format_count(pair.1.median), format_count(pair.2.median), pair.0));
    Claim {
        ours: format!("{} reads a second", each.collect::<Vec<_>>().join(", ")),
        ratio: format!("{} at depth {}", times(ratio(worst), &[1.0]), worst.0),
        verdict: Verdict::met_if(ratio(worst) >= 1.0),
        remark: "one connection each, the same server in turn; the ratio is the lowest".into(),
        command: evidence.command_of_micro(|record| matches!(record, Micro::RemoteRead { .. })),
        ..claim
    }
}

fn against(evidence: &Evidence<'_>, claim: Claim, other: &str, met: fn(f64) -> bool) -> Claim {
    let (Some(own), Some(other_cell)) =
        (evidence.cell(WORKLOAD, PRIMARY_PERCENT, "lightswap-remote"), evidence.cell(WORKLOAD, PRIMARY_PERCENT, other))
    else {
        return claim.missing(format!("missing: lightswap-remote and {other} on {WORKLOAD} at {PRIMARY_PERCENT} %"));
    };
    let ratio = throughput_ratio(own, other_cell);
    Claim { verdict: Verdict::met_if(met(ratio)), ..versus(evidence, claim, own, other_cell) }
}

fn over_blocking(evidence: &Evidence<'_>) -> Claim {
    let text = format!(
        "On remote memory memcached serves more than with faults that block their threads: {}, {PRIMARY_PERCENT} %, the same memory server",
        WORKLOAD.to_uppercase()
    );
    against(evidence, Claim::new(text, "≥ 1.4 ×"), "fastswap-style-remote", |ratio| ratio >= OVER_BLOCKING)
}

fn over_zram(evidence: &Evidence<'_>) -> Claim {
    let text = format!("On remote memory memcached serves more than kernel swap on zram: {}, {PRIMARY_PERCENT} %", WORKLOAD.to_uppercase());
    against(evidence, Claim::new(text, "> 1 ×"), KERNEL_IN_MEMORY, |ratio| ratio > 1.0)
}

/// What compressed memory takes.
#[derive(Debug)]
struct Compressed {
    cpu_us: f64,
    bytes_per_page: f64,
    bytes: f64,
}

/// A number of compressed memory, ours by this contract, and zram's.
fn of_compressed(evidence: &Evidence<'_>, contract: &str, number: fn(&Compressed) -> f64) -> Option<(Spread, Spread)> {
    let of = |wanted: &str, of_contract: &str| {
        evidence.spread(|record| match record {
            Micro::CompressedMemory { pager, contract, cpu_us_per_fault, bytes_per_page, memory_bytes, .. }
                if pager == wanted && contract == of_contract =>
            {
                Some(number(&Compressed { cpu_us: *cpu_us_per_fault, bytes_per_page: *bytes_per_page, bytes: *memory_bytes }))
            }
            _ => None,
        })
    };
    Some((of("lightswap", contract)?, of("kernel", "")?))
}

const COMPRESSED_MISSING: &str = "missing: lightswap-bench micro compressed, with kernel swap on zram";

fn compressed_speed(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Compressed memory handles more faults a second of CPU than kernel swap on zram, random reads of the same pages", "≥ 2 ×");
    let remark = format!("{CONTRACT} contract, one thread; all CPU time of the process, the evicting thread's too");
    judge_compressed_speed(evidence, claim, CONTRACT, remark)
}

/// Where memory is what there is a certain amount of, copies of pages that are in local memory, too, take room from local memory.
fn compressed_in_as_much(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new(
        "The same with so much less local memory that Lightswap takes no more than zram's run in all, copies of local pages included",
        "≥ 2 ×",
    );
    judge_compressed_speed(
        evidence,
        claim,
        AS_MUCH_IN_ALL,
        "a smaller part of the accesses finds its page in local memory, so there are more faults".into(),
    )
}

fn judge_compressed_speed(evidence: &Evidence<'_>, claim: Claim, contract: &str, remark: String) -> Claim {
    let Some((own, kernel)) = of_compressed(evidence, contract, |it| 1e6 / it.cpu_us) else {
        return claim.missing(COMPRESSED_MISSING);
    };
    let ratio = own.median / kernel.median;
    Claim {
        ours: format!("{} against {} faults a second and core", with_spread(own, format_count), with_spread(kernel, format_count)),
        ratio: times(ratio, &[COMPRESSED]),
        verdict: Verdict::met_if(ratio >= COMPRESSED),
        remark,
        command: evidence.command_of_micro(|record| matches!(record, Micro::CompressedMemory { .. })),
        ..claim
    }
}

fn compressed_memory(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Compressed memory takes no more memory than zram for the same pages", "≤ 1 ×");
    let (Some((own, kernel)), Some((own_page, kernel_page))) =
        (of_compressed(evidence, CONTRACT, |it| it.bytes), of_compressed(evidence, CONTRACT, |it| it.bytes_per_page))
    else {
        return claim.missing(COMPRESSED_MISSING);
    };
    // Less for a page is no use if more pages are kept, nor the other way about.
    let ratio = (own.median / kernel.median).max(own_page.median / kernel_page.median);
    let mib = |bytes: f64| format!("{:.1}", bytes / MIB as f64);
    Claim {
        ours: format!(
            "{} against {} MiB in all, {} against {} bytes for a page",
            mib(own.median),
            mib(kernel.median),
            format_count(own_page.median),
            format_count(kernel_page.median)
        ),
        ratio: times(ratio, &[1.0]),
        verdict: Verdict::met_if(ratio <= 1.0),
        remark: "both with their bookkeeping; Lightswap also keeps copies of clean pages that are in local memory, zram does not; the ratio is the higher one".into(),
        command: evidence.command_of_micro(|record| matches!(record, Micro::CompressedMemory { .. })),
        ..claim
    }
}

fn encryption(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Encryption adds little CPU to a page, each way", "≤ 2.5 µs");
    let extra = |wanted: &str| {
        let of = |(record, range): (&Micro, Option<(f64, f64)>)| match record {
            Micro::Encryption { way, extra_us, .. } if way == wanted => repetitions(*extra_us, range),
            _ => Vec::new(),
        };
        Spread::of(evidence.micro_with_ranges().flat_map(of).collect())
    };
    let (Some(inwards), Some(outwards)) = (extra("in"), extra("out")) else {
        return claim.missing("missing: lightswap-bench micro encrypted");
    };
    Claim {
        ours: format!("{} in, {} out", with_spread(inwards, format_us), with_spread(outwards, format_us)),
        verdict: Verdict::met_if(inwards.median.max(outwards.median) <= ENCRYPTION_US),
        remark: "CPU of the whole process, encrypted(memory:) less memory:".into(),
        command: evidence.command_of_micro(|record| matches!(record, Micro::Encryption { .. })),
        ..claim
    }
}

fn outage(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new(
        "One of two mirrored memory servers is killed under load and returns: nothing lost or wrong, and in sync again while serving",
        "0, < 1 s",
    );
    let records: Vec<&OutageRecord> = evidence.outages().collect();
    // One defect decides, whatever other runs say; else the run with the longest stall does.
    let bad = records.iter().find(|record| !record.problems().is_empty());
    let longest = || records.iter().max_by(|a, b| a.longest_stall_seconds().total_cmp(&b.longest_stall_seconds()));
    let Some(record) = bad.or_else(longest) else {
        return claim.missing("missing: a run of lightswap-bench demo-remote");
    };
    let in_sync =
        record.resynchronised_after_seconds().map_or_else(|| "not in sync again".into(), |after| format!("in sync again after {after:.1} s"));
    Claim {
        ours: format!(
            "{} lost of {} items, {} wrong values, longest stall {:.0} ms, {in_sync}",
            record.lost_items(),
            format_count(record.verified_records as f64),
            record.wrong_values,
            record.longest_stall_seconds() * 1e3
        ),
        ratio: times(record.longest_stall_seconds() / LONGEST_PAUSE_SECONDS, &[1.0]),
        verdict: Verdict::met_if(record.problems().is_empty()),
        remark: record.problems().join("; "),
        command: evidence.command_of_outage(),
        ..claim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outage_record::tests::record;
    use crate::results::Results;
    use crate::summary::tests::run;

    fn verdict(results: &Results, of: fn(&Evidence<'_>) -> Claim) -> Verdict {
        of(&Evidence::new(std::slice::from_ref(results))).verdict
    }

    fn micro(micro: Vec<Micro>) -> Results {
        Results { micro, ..Results::default() }
    }

    #[test]
    fn reads_are_judged_at_the_worst_depth_of_each_transport() {
        let read = |tool: &str, transport: &str, depth: u32, reads_per_second: f64| Micro::RemoteRead {
            tool: tool.into(),
            transport: transport.into(),
            connections: 1,
            depth,
            reads_per_second,
        };
        let of_unix = |evidence: &Evidence<'_>| reads(evidence, "unix", "");
        let mut records = vec![read("lightswap", "unix", 1, 200.0), read("lightswap", "tcp", 1, 1.0), read("fio", "tcp", 1, 9.0)];
        assert_eq!(verdict(&micro(records.clone()), of_unix), Verdict::NotMeasured);
        records.push(read("fio", "unix", 1, 100.0));
        assert_eq!(verdict(&micro(records.clone()), of_unix), Verdict::Met);
        records.extend([read("lightswap", "unix", 32, 99.0), read("fio", "unix", 32, 100.0)]);
        let found = of_unix(&Evidence::new(&[micro(records)]));
        assert_eq!((found.verdict, found.ratio.as_str()), (Verdict::NotMet, "0.99 × at depth 32"));
    }

    #[test]
    fn throughput_is_judged_against_both() {
        let results = |remote: f64| Results {
            runs: vec![
                run("lightswap-remote", 0.25, remote),
                run("fastswap-style-remote", 0.25, 100.0),
                run("kernel-swap-zram", 0.25, 120.0),
                run("fastswap-style", 0.25, 1_000.0),
            ],
            ..Results::default()
        };
        assert_eq!([over_blocking, over_zram].map(|of| verdict(&results(140.0), of)), [Verdict::Met; 2]);
        assert_eq!([over_blocking, over_zram].map(|of| verdict(&results(139.0), of)), [Verdict::NotMet, Verdict::Met]);
        assert_eq!(verdict(&results(120.0), over_zram), Verdict::NotMet);
    }

    #[test]
    fn compressed_memory_is_judged_by_cpu_and_by_bytes() {
        let of = |pager: &str, contract: &str, cpu_us_per_fault: f64, bytes_per_page: f64| Micro::CompressedMemory {
            pager: pager.into(),
            contract: contract.into(),
            faults_per_second: 1.0,
            cpu_us_per_fault,
            local_memory_bytes: 1.0,
            bytes_per_page,
            memory_bytes: 100.0 * bytes_per_page,
        };
        let kernel = of("kernel", "", 10.0, 2_000.0);
        let judge = |own: Micro| {
            let results = micro(vec![own, kernel.clone()]);
            [compressed_speed, compressed_memory, compressed_in_as_much].map(|of| verdict(&results, of))
        };
        assert_eq!(judge(of("lightswap", "transparent", 5.0, 2_000.0)), [Verdict::Met, Verdict::Met, Verdict::NotMeasured]);
        assert_eq!(judge(of("lightswap", "transparent", 5.1, 2_001.0)), [Verdict::NotMet, Verdict::NotMet, Verdict::NotMeasured]);
        assert_eq!(judge(of("lightswap", AS_MUCH_IN_ALL, 5.0, 2_000.0))[2], Verdict::Met);
        assert_eq!(judge(of("lightswap", AS_MUCH_IN_ALL, 5.1, 2_000.0))[2], Verdict::NotMet);
        assert_eq!(judge(of("lightswap", "cooperative", 1.0, 1.0)), [Verdict::NotMeasured; 3]);
    }

    #[test]
    fn encryption_is_judged_by_the_dearer_way() {
        let of = |way: &str, extra_us: f64| Micro::Encryption { way: way.into(), extra_us, plain_us: 5.0 };
        assert_eq!(verdict(&micro(vec![of("in", 1.0)]), encryption), Verdict::NotMeasured);
        assert_eq!(verdict(&micro(vec![of("in", 1.0), of("out", 2.5)]), encryption), Verdict::Met);
        assert_eq!(verdict(&micro(vec![of("in", 2.6), of("out", 1.0)]), encryption), Verdict::NotMet);
    }

    #[test]
    fn one_bad_outage_decides() {
        let results = |outages: Vec<OutageRecord>| Results { outages, ..Results::default() };
        assert_eq!(verdict(&results(vec![record()]), outage), Verdict::Met);
        let slow = OutageRecord { longest_pause_seconds: 1.2, ..record() };
        assert_eq!(verdict(&results(vec![record(), slow]), outage), Verdict::NotMet);
        assert_eq!(verdict(&results(Vec::new()), outage), Verdict::NotMeasured);
    }
}
