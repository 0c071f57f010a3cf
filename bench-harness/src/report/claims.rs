//! The paper's claims, and targets of our own, each with a verdict from the numbers. A claim without numbers keeps its row and says what is missing.

use super::errors;
use super::evidence::{CPU_CELLS, CpuCell, Evidence, KERNEL_IN_MEMORY, PRIMARY_PERCENT, PRIMARY_WORKLOADS, STATE_OF_THE_ART, SUSPENDED};
use super::verdict::{Claim, Verdict, throughput, throughput_ratio, times, with_spread};
use crate::results::{Micro, Run};
use crate::summary::{Summary, configuration_name};
use crate::units::{MIB, format_count, format_us};

pub const NOTIFICATION_US: f64 = 4.0;
const NOTIFICATION_LWTS: u32 = 128;
/// Latency at the most LWTs over that at one, up to which it counts as flat.
const FLAT: f64 = 1.5;
/// What a slower notification must at least take, of the faster.
const FAR_SLOWER: f64 = 3.0;
const FAULT_HANDLING: f64 = 3.0;
const THROUGHPUT: f64 = 1.4;

/// Every claim of the paper's abstract, in its order.
pub fn paper(evidence: &Evidence<'_>) -> Vec<Claim> {
    let mut claims = vec![
        in_user_space(evidence, &CPU_CELLS[0], "on the same disk"),
        in_user_space(evidence, &CPU_CELLS[1], "in memory"),
        notification(evidence),
        flat(evidence),
        fault_handling(evidence, "file", "swap-ssd", "kernel swap on the same disk"),
        fault_handling(evidence, "memory", "swap-zram", "kernel swap on zram (which also decompresses), pages in memory"),
    ];
    for workload in PRIMARY_WORKLOADS {
        claims.push(over_state_of_the_art(evidence, workload));
    }
    for workload in PRIMARY_WORKLOADS {
        claims.push(at_memory_speed(evidence, workload));
    }
    for workload in PRIMARY_WORKLOADS {
        claims.push(co_design(evidence, workload));
    }
    claims.extend([local_ssd(evidence), remote_memory(evidence), transparent(), errors::survivable(evidence)]);
    claims
}

fn in_user_space(evidence: &Evidence<'_>, cell: &CpuCell, place: &str) -> Claim {
    let claim = Claim::new(
        format!("Page faults are handled in user space, the kernel is hardly involved: CPU a fault, pages {place}"),
        "less than kernel swap",
    );
    let (ours, kernel) = (evidence.lightswap_cpu_us(cell), evidence.kernel_cpu_us(cell));
    let (Some(ours), Some(kernel)) = (ours, kernel) else {
        let claim = match ours {
            Some(ours) => Claim { ours: format!("{} a fault", format_us(ours)), ..claim },
            None => claim,
        };
        let what = if ours.is_none() {
            format!("Lightswap's faults ({})", cell.own_name())
        } else {
            format!("kernel swap's CPU a fault ({})", cell.kernel_name())
        };
        return claim.missing(format!("missing: {what}"));
    };
    Claim {
        ours: format!("{} against {}", format_us(ours), format_us(kernel)),
        ratio: format!("{} less", times(kernel / ours, &[1.0])),
        verdict: Verdict::met_if(ours < kernel),
        remark: format!(
            "{} against {}; everything included, eviction too; what the kernel still does is the signal, and mapping pages in and out",
            cell.own_name(),
            cell.kernel_name()
        ),
        command: evidence.command_of_micro(|record| matches!(record, Micro::KernelSwap { device, .. } if device == cell.device)),
        ..claim
    }
}

/// Of the series that counts: it cannot be had without a directory for the file.
fn missing_series(lwts: &str) -> String {
    format!(
        "missing: series {SUSPENDED}, {lwts} (lightswap-bench micro notify --directory DIRECTORY); where LWTs take turns it is easier and does not count"
    )
}

fn notification(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new(format!("Fault notification takes 4 µs at {NOTIFICATION_LWTS} LWTs, each suspended in its handler"), "4 µs");
    let Some(judged) = evidence.notify(SUSPENDED, NOTIFICATION_LWTS) else {
        return claim.missing(missing_series(&format!("{NOTIFICATION_LWTS} LWTs on one worker")));
    };
    let mut remark = format!("series {SUSPENDED}, one worker: every LWT waits inside its handler");
    if let Some(turns) = evidence.notify("sigbus", NOTIFICATION_LWTS) {
        remark += &format!("; {} when they take turns (series sigbus)", format_us(turns.median));
    }
    if let Some(bare) = evidence.notify("bare", 0) {
        remark += &format!("; floor: {} for a bare SIGBUS handler", format_us(bare.median));
    }
    let ratio = judged.median / NOTIFICATION_US;
    Claim {
        ours: with_spread(judged, format_us),
        ratio: format!("{} of the paper's time", times(ratio, &[1.0])),
        verdict: Verdict::met_if(ratio <= 1.0),
        remark,
        command: evidence.command_of_micro(|record| matches!(record, Micro::Notify { notifier, .. } if notifier == SUSPENDED)),
        ..claim
    }
}

fn flat(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new(
        "Notification stays flat with the number of LWTs, each suspended in its handler; a monitor thread's does not, or is far slower",
        "flat",
    );
    let series = evidence.notify_series(SUSPENDED, 1);
    let (Some(first), Some(last)) = (series.first(), series.last()) else {
        return claim.missing(missing_series("over the number of LWTs"));
    };
    if first.lwts == last.lwts {
        return claim.missing(format!("missing: more than one number of LWTs in series {SUSPENDED}"));
    }
    let growth = last.p50_us.median / first.p50_us.median;
    let ours = format!("{} at {} LWT, {} at {}", format_us(first.p50_us.median), first.lwts, format_us(last.p50_us.median), last.lwts);
    let command = evidence.command_of_micro(|record| matches!(record, Micro::Notify { notifier, .. } if notifier == SUSPENDED));
    let claim = Claim { ours, ratio: format!("{} from {} to {} LWTs", times(growth, &[FLAT]), first.lwts, last.lwts), command, ..claim };
    let monitor = evidence.notify_series("monitor", 1);
    let (Some(monitor_first), Some(monitor_last)) = (monitor.first(), monitor.last()) else {
        return claim.missing("missing: the monitor thread's notification, to compare with");
    };
    let monitor_growth = monitor_last.p50_us.median / monitor_first.p50_us.median;
    // At the largest number of LWTs that both have.
    let common = series.iter().rev().find_map(|point| Some((point, monitor.iter().find(|other| other.lwts == point.lwts)?)));
    let slower = common.map_or(0.0, |(own, other)| other.p50_us.median / own.p50_us.median);
    Claim {
        verdict: Verdict::met_if(growth <= FLAT && (monitor_growth > FLAT || slower >= FAR_SLOWER)),
        remark: format!(
            "series {SUSPENDED}, one worker; monitor thread: {} at {} LWT, {} at {}, {} ours; flat: at most {FLAT} ×",
            format_us(monitor_first.p50_us.median),
            monitor_first.lwts,
            format_us(monitor_last.p50_us.median),
            monitor_last.lwts,
            times(slower, &[FAR_SLOWER])
        ),
        ..claim
    }
}

fn fault_handling(evidence: &Evidence<'_>, backend: &str, device: &str, against: &str) -> Claim {
    let claim = Claim::new(format!("Fault handling is 3-5 times faster than {against}"), "3-5 ×");
    let ours = evidence.fault_latency_and_contract("lightswap", backend, "sigbus");
    let kernel = evidence.fault_latency_us("kernel", device, "kernel");
    let (Some((ours, contract)), Some(kernel)) = (ours, kernel) else {
        let what = if ours.is_none() {
            format!("latency of Lightswap's faults with backend {backend}")
        } else {
            format!("kernel swap's latency on {device}")
        };
        return claim.missing(format!("missing: {what}, one fault at a time"));
    };
    let touch = evidence.fault_latency_us("lightswap", backend, "touch");
    Claim {
        ours: format!("{} against {}", with_spread(ours, format_us), with_spread(kernel, format_us)),
        ratio: format!("{} faster", times(kernel.median / ours.median, &[FAULT_HANDLING])),
        verdict: Verdict::met_if(kernel.median / ours.median >= FAULT_HANDLING),
        remark: format!("{contract} contract")
            + &touch.map_or_else(String::new, |touch| format!("; {} when pages are asked for before the access", format_us(touch.median))),
        command: evidence.command_of_micro(|record| matches!(record, Micro::FaultLatency { backend: name, .. } if name == backend)),
        ..claim
    }
}

/// The names of the configurations that a cell lacks, joined.
fn lacking(evidence: &Evidence<'_>, workload: &str, configurations: &[&str]) -> String {
    let missing = configurations.iter().filter(|name| evidence.cell(workload, PRIMARY_PERCENT, name).is_none());
    missing.copied().collect::<Vec<_>>().join(", ")
}

/// Both throughputs, and the command that measured the first.
pub fn versus(evidence: &Evidence<'_>, claim: Claim, own: &Summary, other: &Summary) -> Claim {
    Claim {
        ours: format!("{} against {} of {}", throughput(own), throughput(other), other.configuration),
        ratio: times(throughput_ratio(own, other), &[1.0, THROUGHPUT]),
        command: evidence.command_of_cell(&own.workload, &own.configuration),
        ..claim
    }
}

fn over_state_of_the_art(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let name = workload.to_uppercase();
    let claim = Claim::new(
        format!("memcached serves more than 40 % more than the state of the art: {name}, {PRIMARY_PERCENT} % local memory, same disk"),
        "> 1.40 ×",
    );
    let Some(own) = evidence.cell(workload, PRIMARY_PERCENT, "lightswap") else {
        return claim.missing(format!("missing: lightswap on {workload} at {PRIMARY_PERCENT} %"));
    };
    let Some(other) = evidence.fastest(workload, PRIMARY_PERCENT, &STATE_OF_THE_ART) else {
        return claim.missing(format!("missing: {} on {workload} at {PRIMARY_PERCENT} %", STATE_OF_THE_ART.join(", ")));
    };
    let missing = lacking(evidence, workload, &STATE_OF_THE_ART);
    let ratio = throughput_ratio(own, other);
    let claim = versus(evidence, claim, own, other);
    // One baseline that is not beaten by enough decides; to say that all are takes all of them.
    let verdict = if ratio.is_nan() || ratio <= THROUGHPUT {
        Verdict::NotMet
    } else if missing.is_empty() {
        Verdict::Met
    } else {
        Verdict::NotMeasured
    };
    Claim {
        verdict,
        remark: if missing.is_empty() {
            "the faster of kernel swap and fastswap-style, each with its best settings".into()
        } else {
            format!("missing: {missing}")
        },
        ..claim
    }
}

fn at_memory_speed(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let name = workload.to_uppercase();
    let claim = Claim::new(format!("The same at the speed of memory: {name}, {PRIMARY_PERCENT} %, against kernel swap on zram"), "> 1.40 ×");
    let own = evidence.cell(workload, PRIMARY_PERCENT, "lightswap-memory");
    let other = evidence.cell(workload, PRIMARY_PERCENT, KERNEL_IN_MEMORY);
    let (Some(own), Some(other)) = (own, other) else {
        return claim.missing(format!("missing: {}", lacking(evidence, workload, &["lightswap-memory", KERNEL_IN_MEMORY])));
    };
    Claim {
        verdict: Verdict::met_if(throughput_ratio(own, other) > THROUGHPUT),
        remark: memory_caveat(evidence, workload),
        ..versus(evidence, claim, own, other)
    }
}

/// What the two do not have in common, beside the pager.
fn memory_caveat(evidence: &Evidence<'_>, workload: &str) -> String {
    let mut caveat =
        "zram compresses pages (lz4), Lightswap's memory backend does not; values are random printable characters, in which lz4 finds next to \
                      nothing to save"
            .to_owned();
    let largest = |configuration: &str, bytes: fn(&Run) -> Option<u64>| {
        let here = |run: &&Run| run.workload == workload && configuration_name(run) == configuration && is_primary(run);
        evidence.runs.iter().filter(here).filter_map(bytes).max()
    };
    let size = |bytes: u64| format!("{} MiB", format_count((bytes / MIB) as f64));
    if let Some(bytes) = largest(KERNEL_IN_MEMORY, |run| run.details.backend_memory_bytes) {
        let data = largest(KERNEL_IN_MEMORY, |run| run.limit_bytes.map(|limit| run.details.data_bytes.saturating_sub(limit)));
        caveat +=
            &format!("; zram took {}{}", size(bytes), data.map_or_else(String::new, |data| format!(" for at least {} beyond the limit", size(data))));
    }
    if let Some(bytes) = largest("lightswap-memory", |run| run.details.backend_memory_bytes) {
        caveat += &format!(
            "; lightswap-memory's cgroup limit is higher by all of its backend, {}, used or not, and results do not tell how much is in use: the limit \
             may not bind, and Lightswap keeps to its local memory by itself",
            size(bytes)
        );
        if let Some(bytes) = largest("lightswap-memory", |run| run.details.server_statistics.get("resident_bytes")?.parse().ok()) {
            caveat += &format!(" ({} resident by its own count", size(bytes));
            let limit = largest("lightswap-memory", |run| run.limit_bytes);
            caveat += &limit.map_or_else(|| ")".to_owned(), |limit| format!(", of a limit of {})", size(limit)));
        }
    }
    caveat
}

/// Closed loop, at the primary share of memory, with the usual values, and no trial of settings.
fn is_primary(run: &Run) -> bool {
    let percent = (run.local_memory_ratio * 100.0).round() as u32;
    percent == PRIMARY_PERCENT
        && run.details.value_kind.is_empty()
        && !run.details.sweep
        && run.details.due_per_second.is_none()
        && run.details.error.is_none()
}

fn co_design(evidence: &Evidence<'_>, workload: &str) -> Claim {
    let claim = Claim::new(
        format!("Designing fault handling together with LWTs raises throughput: {}, {PRIMARY_PERCENT} %", workload.to_uppercase()),
        "higher",
    );
    let own = evidence.cell(workload, PRIMARY_PERCENT, "lightswap");
    let other = evidence.cell(workload, PRIMARY_PERCENT, "fastswap-style");
    let (Some(own), Some(other)) = (own, other) else {
        return claim.missing(format!("missing: {}", lacking(evidence, workload, &["lightswap", "fastswap-style"])));
    };
    Claim {
        verdict: Verdict::met_if(own.operations_per_second.is_above(other.operations_per_second)),
        remark: "the same pager and backend; fastswap-style blocks its thread on a fault; met: the ranges do not overlap".into(),
        ..versus(evidence, claim, own, other)
    }
}

/// Runs on the backend without a failure or a wrong value.
fn sound<'a>(evidence: &'a Evidence<'_>, backend: fn(&str) -> bool) -> Option<Vec<&'a Run>> {
    let of = |run: &&Run| configuration_name(run).starts_with("lightswap") && run.local_memory_ratio < 1.0 && backend(&run.backend);
    let runs: Vec<&Run> = evidence.runs.iter().filter(of).filter(|run| run.details.error.is_none()).collect();
    if runs.is_empty() { None } else { Some(runs) }
}

fn served(evidence: &Evidence<'_>, claim: Claim, backend: fn(&str) -> bool, missing: &str) -> Claim {
    let Some(runs) = sound(evidence, backend) else {
        return claim.missing(missing);
    };
    let name = runs[0].backend.clone();
    Claim {
        command: evidence.command_of_run(|run| run.backend == name && configuration_name(run).starts_with("lightswap") && !run.details.sweep),
        ..checked(claim, runs.into_iter())
    }
}

/// Judged by the values that were read and checked: not by writes, nor by generators of others, which check nothing.
pub fn checked<'a>(claim: Claim, runs: impl Iterator<Item = &'a Run>) -> Claim {
    let (mut num_checked, mut num_wrong) = (0, 0);
    for run in runs {
        num_checked += run.details.checked_reads;
        num_wrong += run.wrong_values;
    }
    if num_checked == 0 && num_wrong == 0 {
        return claim.missing("missing: the number of values that were read and checked; older files do not have it");
    }
    Claim {
        ours: format!("{num_wrong} wrong of {} values that were read and checked", format_count(num_checked as f64)),
        verdict: Verdict::met_if(num_wrong == 0),
        remark: "writes, misses and memtier_benchmark's operations do not count: nothing checks them".into(),
        ..claim
    }
}

fn local_ssd(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Swaps to local SSDs from user space", "works");
    served(evidence, claim, |backend| backend == "file", "missing: lightswap on a file with less memory than data")
}

fn remote_memory(evidence: &Evidence<'_>) -> Claim {
    let claim = Claim::new("Swaps to remote memory from user space", "works");
    served(evidence, claim, |backend| backend.contains("nbd"), "missing: lightswap-remote with less memory than data")
}

fn transparent() -> Claim {
    Claim {
        ours: "memcached's own suite, on the patched server with Lightswap off and on".into(),
        ..Claim::by_test("Applications run as they are", "transparent", "integrations/memcached/upstream-tests")
    }
}
