//! What is asked of Redis on Lightswap, judged like the other targets.

use super::claims::versus;
use super::evidence::{Evidence, PRIMARY_PERCENT, PRIMARY_WORKLOADS};
use super::verdict::{Claim, Verdict, times, with_spread};
use crate::results::Run;
use crate::save_record::SaveRecord;
use crate::summary::{Summary, is_redis, median};
use crate::units::{MIB, format_count, format_us};
use crate::ycsb::KEY_LENGTH_MAX;

const WORKLOAD: &str = "ycsb-c";
const IN_MEMORY_SHARE: f64 = 0.95;
const OVER_KERNEL_SWAP: f64 = 3.0;
const RESIDENT_P99: f64 = 2.0;
/// Beside the key itself.
const FIXED_BYTES_PER_KEY: f64 = 120.0;
/// How ratios of this page come about.
const PAIRED: &str = "the median of the ratios of the repetitions";
const TIMES_LOCAL_MEMORY: f64 = 8.0;

pub fn targets(evidence: &Evidence<'_>) -> Vec<Claim> {
    let mut targets: Vec<Claim> = PRIMARY_WORKLOADS.iter().map(|workload| in_memory(evidence, workload)).collect();
    targets.extend([over_kernel_swap(evidence), resident_requests(evidence), fixed_memory(evidence), dump(evidence)]);
    targets
}

/// Of strings, which is what the targets are of.
fn strings<'e>(evidence: &'e Evidence<'_>, workload: &str, percent: u32, configuration: &str) -> Option<&'e Summary> {
    evidence.redis_cell(workload, percent, configuration).filter(|cell| cell.shape.data_type.is_empty())
}

/// A number of one cell over that of another: the median of the ratios of their repetitions, whose runs are close in time. A machine that changes its speed meanwhile
/// changes both, and would change the ratio of the medians.
fn ratio(evidence: &Evidence<'_>, (own, other): (&Summary, &Summary), number: fn(&Run) -> Option<f64>) -> Option<f64> {
    let others = evidence.runs_of(other);
    let of_repetition = |run: &&Run| {
        let other = others.iter().find(|other| other.repetition == run.repetition)?;
        Some(number(run)? / number(other)?)
    };
    median(evidence.runs_of(own).iter().filter_map(of_repetition).collect())
}

/// Of throughput.
pub fn served_ratio(evidence: &Evidence<'_>, own: &Summary, other: &Summary) -> Option<f64> {
    ratio(evidence, (own, other), |run| Some(run.operations_per_second))
}

fn in_memory(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(format!("Redis: costs little when everything fits into memory: {}", workload.to_uppercase()), "≥ 0.95 × stock Redis");
    let (Some(own), Some(stock)) = (strings(evidence, workload, 100, "redis-lightswap-dram"), strings(evidence, workload, 100, "redis-dram")) else {
        return claim.missing(format!("missing: redis-dram and redis-lightswap-dram on {workload}"));
    };
    let Some(ratio) = served_ratio(evidence, own, stock) else {
        return claim.missing("missing: a repetition with both");
    };
    let cpu = own.cpu_us_per_operation / stock.cpu_us_per_operation;
    Claim {
        ratio: times(ratio, &[IN_MEMORY_SHARE]),
        verdict: Verdict::met_if(ratio >= IN_MEMORY_SHARE),
        remark: if cpu.is_finite() { format!("{PAIRED}; with {} its CPU an operation", times(cpu, &[])) } else { PAIRED.into() },
        ..versus(evidence, claim, own, stock)
    }
}

fn over_kernel_swap(evidence: &Evidence<'_>) -> Claim {
    let text =
        format!("Redis: serves more than on kernel swap, same memory limit and disk: {}, {PRIMARY_PERCENT} %, strings", WORKLOAD.to_uppercase());
    let claim = Claim::new(text, "≥ 3 × stock Redis");
    let own = strings(evidence, WORKLOAD, PRIMARY_PERCENT, "redis-lightswap");
    let (Some(own), Some(other)) = (own, strings(evidence, WORKLOAD, PRIMARY_PERCENT, "redis-kernel-swap-ssd")) else {
        return claim.missing(format!("missing: redis-lightswap and redis-kernel-swap-ssd on {WORKLOAD} at {PRIMARY_PERCENT} %"));
    };
    let Some(ratio) = served_ratio(evidence, own, other) else {
        return claim.missing("missing: a repetition with both");
    };
    Claim {
        ratio: times(ratio, &[OVER_KERNEL_SWAP]),
        verdict: Verdict::met_if(ratio >= OVER_KERNEL_SWAP),
        remark: format!("{PAIRED}; values of {}", own.shape.values()),
        ..versus(evidence, claim, own, other)
    }
}

fn resident_requests(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new(
        format!(
            "Redis: requests to resident values do not wait for those of others: their 99th percentile, {}, {PRIMARY_PERCENT} %",
            WORKLOAD.to_uppercase()
        ),
        "≤ 2 × all in memory",
    );
    let of = |percent, configuration| {
        let cell = strings(evidence, WORKLOAD, percent, configuration)?;
        Some((cell, cell.resident_p99_us?))
    };
    let p99 = |run: &Run| run.details.resident_latency_us.map(|latency| latency.p99);
    let (own, in_memory) = (of(PRIMARY_PERCENT, "redis-lightswap"), of(100, "redis-dram"));
    let pair = own.zip(in_memory).and_then(|(own, in_memory)| Some((own.1, in_memory, ratio(evidence, (own.0, in_memory.0), p99)?)));
    let Some((own, in_memory, of_memory)) = pair else {
        return claim.missing(format!("missing: the probe's reads beside {WORKLOAD}, on redis-lightswap and on redis-dram"));
    };
    let kernel = of(PRIMARY_PERCENT, "redis-kernel-swap-ssd").map_or_else(String::new, |(cell, p99_us)| {
        let of_memory = ratio(evidence, (cell, in_memory.0), p99).map_or_else(String::new, |ratio| format!(", {}", times(ratio, &[])));
        format!("; on kernel swap {}{of_memory}", with_spread(p99_us, format_us))
    });
    Claim {
        ours: format!("{} against {} of stock Redis in memory", with_spread(own, format_us), with_spread(in_memory.1, format_us)),
        ratio: times(of_memory, &[RESIDENT_P99]),
        verdict: Verdict::met_if(of_memory <= RESIDENT_P99),
        remark: format!("{PAIRED}; reads of a few keys, again and again, by connections of their own, counted from when they were due{kernel}"),
        command: evidence.command_of_cell(WORKLOAD, "redis-lightswap"),
        ..claim
    }
}

fn fixed_memory(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Redis: memory that a key takes whatever local memory is, beside its own length", "≤ 120 B");
    let of_strings = evidence.runs.iter().filter(|run| is_redis(&run.server) && run.details.data_type.is_empty() && !run.details.is_indexed);
    let Some(per_key) = of_strings.filter_map(|run| run.details.fixed_bytes_per_key).max_by(f64::total_cmp) else {
        return claim.missing("missing: a run of redis-lightswap with a memory limit, before which it is measured");
    };
    let beside = per_key - KEY_LENGTH_MAX as f64;
    Claim {
        ours: format!("{beside:.0} B, and {KEY_LENGTH_MAX} B for the key"),
        ratio: times(beside / FIXED_BYTES_PER_KEY, &[1.0]),
        verdict: Verdict::met_if(beside <= FIXED_BYTES_PER_KEY),
        remark: "of the resident set without local memory: the difference between all records and a twentieth of them; with the pager's metadata of the values' pages".into(),
        command: evidence.command_of_run(|run| run.details.fixed_bytes_per_key.is_some()),
        ..claim
    }
}

/// One defect decides, whatever other dumps are like; else the largest resident set does.
fn dump(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new(
        "Redis: writes a dump of 8 times its local memory while it serves: complete and right, server and child each within the limit",
        "≤ limit + 10 %",
    );
    let records: Vec<&SaveRecord> = evidence.saves().filter(|record| record.is_lightswap()).collect();
    let bad = records.iter().find(|record| !record.problems().is_empty());
    let share = |record: &SaveRecord| record.resident_share().unwrap_or(f64::NAN);
    let Some(record) = bad.or_else(|| records.iter().max_by(|a, b| share(a).total_cmp(&share(b)))) else {
        return claim.missing("missing: a run of lightswap-bench bgsave with redis-lightswap");
    };
    let times_local = record.values_over_local().unwrap_or(0.0);
    let mib = |bytes: u64| format_count((bytes / MIB) as f64);
    let verdict = if !record.problems().is_empty() {
        Verdict::NotMet
    } else if times_local < TIMES_LOCAL_MEMORY || record.limit_bytes.is_none() || record.has_equal_checksums().is_none() {
        Verdict::NotMeasured
    } else {
        Verdict::Met
    };
    let meanwhile = |record: &SaveRecord| {
        let ((now, pause), (before, _)) = record.meanwhile().zip(record.before())?;
        Some(format!("throughput meanwhile {}, longest pause {:.0} ms", times(now / before, &[]), pause * 1e3))
    };
    let own = meanwhile(record).map_or_else(String::new, |text| format!("; {text}"));
    let others = evidence.saves().filter(|record| !record.is_lightswap() && record.error.is_none());
    let kernel = others.filter_map(meanwhile).next().map_or_else(String::new, |text| format!("; on kernel swap {text}"));
    Claim {
        ours: format!(
            "{} of {} keys, {} wrong; server {} MiB, child {} MiB",
            format_count(record.dump_keys as f64),
            format_count(record.expected_keys as f64),
            record.dump_wrong,
            mib(record.parent_resident_bytes_max),
            mib(record.child_resident_bytes_max)
        ),
        ratio: record.resident_share().map_or_else(String::new, |share| format!("{} of the limit", times(share, &[1.1]))),
        verdict,
        remark: if record.problems().is_empty() {
            let limit = if record.limit_bytes.is_none() { "; missing: a memory limit" } else { "" };
            let equal = if record.has_equal_checksums().is_some() {
                "; without load, its checksum over all keys is that of stock Redis"
            } else {
                "; missing: the checksum over all keys"
            };
            format!("values {times_local:.1} times local memory{limit}{equal}{own}{kernel}")
        } else {
            record.problems().join("; ")
        },
        command: evidence.command_of_save(),
        ..claim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Details, Results};
    use crate::save_record::tests::record;
    use crate::summary::tests::run;
    use crate::tally::LatencyUs;

    fn redis(configuration: &str, ratio: f64, speed: f64, resident_p99: f64) -> Run {
        let run = run(configuration, ratio, speed);
        let resident_latency_us = Some(LatencyUs { p99: resident_p99, ..LatencyUs::default() });
        Run { server: "redis".into(), details: Details { resident_latency_us, ..run.details }, ..run }
    }

    fn verdict(runs: Vec<Run>, of: fn(&Evidence<'_>) -> Claim) -> Verdict {
        of(&Evidence::new(&[Results { runs, ..Results::default() }])).verdict
    }

    #[test]
    fn throughput_is_judged_against_stock_redis() {
        let in_memory = |evidence: &Evidence<'_>| in_memory(evidence, "ycsb-c");
        let both = |own| vec![redis("redis-lightswap-dram", 1.0, own, 1.0), redis("redis-dram", 1.0, 100.0, 1.0)];
        assert_eq!([95.0, 94.9].map(|own| verdict(both(own), in_memory)), [Verdict::Met, Verdict::NotMet]);
        assert_eq!(verdict(both(95.0)[..1].to_vec(), in_memory), Verdict::NotMeasured);
        let both = |own| vec![redis("redis-lightswap", 0.25, own, 1.0), redis("redis-kernel-swap-ssd", 0.25, 100.0, 1.0)];
        assert_eq!([300.0, 299.0].map(|own| verdict(both(own), over_kernel_swap)), [Verdict::Met, Verdict::NotMet]);
        // A machine that becomes half as fast after the first repetition is half as fast for both.
        let at = |repetition, speed: f64| {
            let configurations = [("redis-lightswap-dram", 97.0), ("redis-dram", 100.0)];
            configurations.map(|(name, percent)| Run { repetition, ..redis(name, 1.0, speed * percent, 1.0) })
        };
        let mut runs = [at(1, 2.0), at(2, 1.0)].concat();
        runs.push(Run { repetition: 3, ..redis("redis-dram", 1.0, 200.0, 1.0) });
        assert_eq!(verdict(runs.clone(), in_memory), Verdict::Met);
        runs.retain(|run| run.repetition == 3 || run.configuration == "redis-lightswap-dram");
        assert_eq!(verdict(runs, in_memory), Verdict::NotMeasured);
        // Hashes are something else.
        let mut hashes = both(300.0);
        hashes.iter_mut().for_each(|run| run.details.data_type = "hashes".into());
        assert_eq!(verdict(hashes, over_kernel_swap), Verdict::NotMeasured);
    }

    #[test]
    fn requests_to_resident_values_are_judged_against_memory_alone() {
        let both = |own| vec![redis("redis-lightswap", 0.25, 1.0, own), redis("redis-dram", 1.0, 1.0, 500.0)];
        assert_eq!([1_000.0, 1_001.0].map(|own| verdict(both(own), resident_requests)), [Verdict::Met, Verdict::NotMet]);
        let mut without = both(1.0);
        without[1].details.resident_latency_us = None;
        assert_eq!(verdict(without, resident_requests), Verdict::NotMeasured);
    }

    #[test]
    fn the_dearest_key_counts() {
        let of = |per_key: f64| {
            let mut run = redis("redis-lightswap", 0.25, 1.0, 1.0);
            run.details.fixed_bytes_per_key = Some(per_key);
            run
        };
        assert_eq!(verdict(vec![of(100.0), of(143.0)], fixed_memory), Verdict::Met);
        assert_eq!(verdict(vec![of(100.0), of(143.5)], fixed_memory), Verdict::NotMet);
        assert_eq!(verdict(vec![redis("redis-lightswap", 0.25, 1.0, 1.0)], fixed_memory), Verdict::NotMeasured);
    }

    #[test]
    fn one_bad_dump_decides() {
        let judge = |saves: Vec<SaveRecord>| dump(&Evidence::new(&[Results { saves, ..Results::default() }])).verdict;
        assert_eq!(judge(vec![record()]), Verdict::Met);
        assert_eq!(judge(vec![record(), SaveRecord { dump_wrong: 1, ..record() }]), Verdict::NotMet);
        assert_eq!(judge(vec![SaveRecord { values_bytes: 799, ..record() }]), Verdict::NotMeasured);
        assert_eq!(judge(vec![SaveRecord { limit_bytes: None, ..record() }]), Verdict::NotMeasured);
        assert_eq!(judge(vec![SaveRecord { dump_checksum: None, ..record() }]), Verdict::NotMeasured);
        // Kernel swap's is shown, not judged.
        assert_eq!(judge(vec![SaveRecord { local_memory_bytes: None, ..record() }]), Verdict::NotMeasured);
    }
}
