//! Everything that the result files hold, in the form in which the report asks for it.

use crate::outage_record::OutageRecord;
use crate::results::{Micro, Results, Run, repetitions};
use crate::save_record::SaveRecord;
use crate::summary::{Shape, Spread, Summary, best, comparison, configuration_name, configuration_position, is_redis, sweep, text_note};
use crate::torture_record::TortureRecord;
use crate::values::ValueKind;

/// The cell that claims about throughput are judged by, and charts of single cells show: declared before measuring, not chosen after it.
pub const PRIMARY_PERCENT: u32 = 25;
pub const PRIMARY_WORKLOADS: [&str; 2] = ["ycsb-c", "ycsb-a"];

/// What everybody compares with who has pages on the same disk, and what at the speed of memory.
pub const STATE_OF_THE_ART: [&str; 2] = ["kernel-swap-ssd", "fastswap-style"];
pub const KERNEL_IN_MEMORY: &str = "kernel-swap-zram";

/// The series of notification that claims are judged by: as many signal frames are alive as LWTs, as in a server whose LWTs wait for a disk.
pub const SUSPENDED: &str = "sigbus-suspended";

/// A cell of `micro fault` and the one of `micro kernel` that it is compared with.
#[derive(Debug)]
pub struct CpuCell {
    pub backend: &'static str,
    /// LWTs of the one worker.
    pub lwts: u32,
    pub device: &'static str,
    pub threads: u32,
}

/// What CPU a fault is judged by: the contract that asks nothing of a program, and on a disk as many faults under way as keep it busy.
pub const CPU_CELLS: [CpuCell; 2] =
    [CpuCell { backend: "file", lwts: 128, device: "swap-ssd", threads: 8 }, CpuCell { backend: "memory", lwts: 1, device: "swap-zram", threads: 1 }];
/// The contract that is judged.
pub const CONTRACT: &str = "transparent";
/// What micro-benchmarks without a choice of contract used before they recorded it.
const COOPERATIVE: &str = "cooperative";

/// Whether it is one of the primary cells but for the values, which are text.
pub fn is_of_text(summary: &Summary) -> bool {
    let is_primary = summary.memory_percent() == PRIMARY_PERCENT && PRIMARY_WORKLOADS.contains(&summary.workload.as_str());
    is_primary && summary.shape.value_kind == ValueKind::Text.name() && [String::new(), text_note()].contains(&summary.note)
}

/// Read from the record's own form in files, whichever of its kinds have the field.
fn contract_of(record: &Micro) -> String {
    let value = serde_json::to_value(record).unwrap_or_default();
    let recorded = value["contract"].as_str().filter(|contract| !contract.is_empty());
    recorded.unwrap_or(COOPERATIVE).to_owned()
}

impl CpuCell {
    pub fn own_name(&self) -> String {
        format!("backend {}, {CONTRACT} contract, by fault, 1 worker, {} LWT{}", self.backend, self.lwts, if self.lwts == 1 { "" } else { "s" })
    }

    pub fn kernel_name(&self) -> String {
        format!("{}, {} thread{}", self.device, self.threads, if self.threads == 1 { "" } else { "s" })
    }
}

fn cell<'s>(summaries: &'s [Summary], workload: &str, percent: u32, configuration: &str) -> Option<&'s Summary> {
    best(summaries, |summary| {
        summary.workload == workload
            && summary.memory_percent() == percent
            && summary.configuration == configuration
            && summary.note.is_empty()
            && !summary.is_open_loop()
    })
}

fn workloads(summaries: &[Summary]) -> Vec<&str> {
    let mut names: Vec<&str> =
        summaries.iter().filter(|summary| summary.note.is_empty() && !summary.is_open_loop()).map(|summary| summary.workload.as_str()).collect();
    names.sort_by_key(|name| (PRIMARY_WORKLOADS.iter().position(|primary| primary == name).unwrap_or(PRIMARY_WORKLOADS.len()), *name));
    names.dedup();
    names
}

/// The command that makes all results again, where no file says which one made them.
pub const REPRODUCE: &str = "scripts/reproduce";

#[derive(Debug)]
pub struct Evidence<'a> {
    pub files: &'a [Results],
    pub runs: Vec<Run>,
    /// Of memcached, which most of the report is about.
    pub summaries: Vec<Summary>,
    pub redis: Vec<Summary>,
    pub swept: Vec<Summary>,
}

/// Notification latency at one number of LWTs.
#[derive(Debug, Clone, Copy)]
pub struct NotifyPoint {
    pub lwts: u32,
    pub p50_us: Spread,
    pub p99_us: Spread,
}

/// A record with the range of its first number where it is known.
pub type Ranged<'a> = (&'a Micro, Option<(f64, f64)>);

impl<'a> Evidence<'a> {
    pub fn new(files: &'a [Results]) -> Self {
        let runs: Vec<Run> = files.iter().flat_map(|file| file.runs.clone()).collect();
        let (redis, summaries) = comparison(&runs).into_iter().partition(|summary| is_redis(&summary.server));
        Self { files, summaries, redis, swept: sweep(&runs), runs }
    }

    pub fn micro(&self) -> impl Iterator<Item = &'a Micro> {
        self.files.iter().flat_map(|file| &file.micro)
    }

    pub fn micro_with_ranges(&self) -> impl Iterator<Item = Ranged<'a>> {
        self.files.iter().flat_map(Results::micro_with_ranges)
    }

    /// A number of all micro-benchmark records that have it.
    pub fn spread(&self, number: impl Fn(&Micro) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.micro().filter_map(number).collect())
    }

    /// Closed loop, usual shape, best settings.
    pub fn cell(&self, workload: &str, percent: u32, configuration: &str) -> Option<&Summary> {
        cell(&self.summaries, workload, percent, configuration)
    }

    /// The same of Redis.
    pub fn redis_cell(&self, workload: &str, percent: u32, configuration: &str) -> Option<&Summary> {
        cell(&self.redis, workload, percent, configuration)
    }

    /// Of both servers.
    pub fn all_summaries(&self) -> impl Iterator<Item = &Summary> {
        self.summaries.iter().chain(&self.redis)
    }

    pub fn saves(&self) -> impl Iterator<Item = &'a SaveRecord> {
        self.files.iter().flat_map(|file| &file.saves)
    }

    pub fn command_of_save(&self) -> String {
        self.command(|file| !file.saves.is_empty())
    }

    /// The same of all configurations, fastest settings, with values of text.
    pub fn text_cells(&self, workload: &str) -> Vec<&Summary> {
        let wanted = |summary: &Summary| summary.workload == workload && is_of_text(summary) && !summary.is_open_loop();
        let mut names: Vec<&str> = self.summaries.iter().filter(|summary| wanted(summary)).map(|summary| summary.configuration.as_str()).collect();
        names.sort_by_key(|name| configuration_position(name));
        names.dedup();
        names.into_iter().filter_map(|name| best(&self.summaries, |summary| wanted(summary) && summary.configuration == name)).collect()
    }

    /// The repetitions that a summary is of.
    pub fn runs_of(&self, cell: &Summary) -> Vec<&Run> {
        let is_of_it = |run: &&Run| {
            (run.workload.as_str(), configuration_name(run), run.local_memory_ratio) == (&cell.workload, &cell.configuration, cell.local_memory_ratio)
                && (run.backend.as_str(), run.server_threads, &run.details.settings) == (&cell.backend, cell.server_threads, &cell.settings)
                && Shape::of(run) == cell.shape
                && !run.details.sweep
                && run.details.error.is_none()
        };
        self.runs.iter().filter(is_of_it).collect()
    }

    pub fn torture(&self) -> impl Iterator<Item = &'a TortureRecord> {
        self.files.iter().flat_map(|file| &file.torture)
    }

    pub fn outages(&self) -> impl Iterator<Item = &'a OutageRecord> {
        self.files.iter().flat_map(|file| &file.outages)
    }

    pub fn command_of_outage(&self) -> String {
        self.command(|file| !file.outages.is_empty())
    }

    pub fn command_of_torture(&self, record: &TortureRecord) -> String {
        if record.command.is_empty() { REPRODUCE.to_owned() } else { short_command(&record.command) }
    }

    /// Open loop at the primary share of memory.
    pub fn open_loop(&self, workload: &str, configuration: &str) -> Vec<&Summary> {
        let wanted = |summary: &&Summary| {
            summary.is_open_loop()
                && summary.workload == workload
                && summary.configuration == configuration
                && summary.memory_percent() == PRIMARY_PERCENT
        };
        self.summaries.iter().filter(wanted).collect()
    }

    /// The fastest of several configurations in a cell.
    pub fn fastest(&self, workload: &str, percent: u32, configurations: &[&str]) -> Option<&Summary> {
        let cells = configurations.iter().filter_map(|name| self.cell(workload, percent, name));
        cells.max_by(|a, b| a.operations_per_second.median.total_cmp(&b.operations_per_second.median))
    }

    /// Those of usual shape and closed loop that were measured at this share of memory, in the order of the summaries.
    pub fn workloads(&self) -> Vec<&str> {
        workloads(&self.summaries)
    }

    pub fn redis_workloads(&self) -> Vec<&str> {
        workloads(&self.redis)
    }
    /// The shares of memory at which a configuration was measured, from much to little.
    pub fn percents(&self, configuration: &str) -> Vec<u32> {
        let of = self.summaries.iter().filter(|summary| summary.configuration == configuration && !summary.is_open_loop());
        let mut percents: Vec<u32> = of.map(Summary::memory_percent).collect();
        percents.sort_unstable_by(|a, b| b.cmp(a));
        percents.dedup();
        percents
    }

    /// Notification latencies over the number of LWTs.
    pub fn notify_series(&self, notifier: &str, workers: u32) -> Vec<NotifyPoint> {
        let of = |(record, range): Ranged<'_>| match record {
            Micro::Notify { notifier: name, lwts, workers: count, p50_us, p99_us } if name == notifier && *count == workers => {
                Some((*lwts, repetitions(*p50_us, range), *p99_us))
            }
            _ => None,
        };
        let records: Vec<(u32, Vec<f64>, f64)> = self.micro_with_ranges().filter_map(of).collect();
        let mut counts: Vec<u32> = records.iter().map(|record| record.0).collect();
        counts.sort_unstable();
        counts.dedup();
        let point = |&lwts: &u32| {
            let here = || records.iter().filter(move |record| record.0 == lwts);
            Some(NotifyPoint {
                lwts,
                p50_us: Spread::of(here().flat_map(|record| record.1.iter().copied()).collect())?,
                p99_us: Spread::of(here().map(|record| record.2).collect())?,
            })
        };
        counts.iter().filter_map(point).collect()
    }

    /// Numbers of workers with which notification was measured, rising.
    pub fn notify_workers(&self) -> Vec<u32> {
        let of = |record: &Micro| if let Micro::Notify { workers, .. } = record { Some(*workers) } else { None };
        let mut workers: Vec<u32> = self.micro().filter_map(of).collect();
        workers.sort_unstable();
        workers.dedup();
        workers
    }

    /// Notification with one worker, as the paper measures it.
    pub fn notify(&self, notifier: &str, lwts: u32) -> Option<Spread> {
        self.notify_series(notifier, 1).into_iter().find(|point| point.lwts == lwts).map(|point| point.p50_us)
    }

    /// The records that pass and have the contract that is judged, or, where none has, those of the cooperative one; and which of both it is.
    pub fn of_judged_contract(&self, wanted: impl Fn(&Micro) -> bool) -> (&'static str, Vec<Ranged<'a>>) {
        let mut records: Vec<_> = self.micro_with_ranges().filter(|(record, _)| wanted(record)).collect();
        let contract = if records.iter().any(|(record, _)| contract_of(record) == CONTRACT) { CONTRACT } else { COOPERATIVE };
        records.retain(|(record, _)| contract_of(record) == contract);
        (contract, records)
    }

    /// Median time from the faulting access to the retried one.
    pub fn fault_latency_us(&self, pager: &str, backend: &str, notifier: &str) -> Option<Spread> {
        self.fault_latency_and_contract(pager, backend, notifier).map(|(spread, _)| spread)
    }

    /// The same with the contract, which says nothing of the kernel.
    pub fn fault_latency_and_contract(&self, pager: &str, backend: &str, notifier: &str) -> Option<(Spread, &'static str)> {
        let (contract, records) = self.of_judged_contract(
            |record| matches!(record, Micro::FaultLatency { pager: p, backend: b, notifier: n, .. } if p == pager && b == backend && n == notifier),
        );
        let of = |(record, range): &Ranged<'_>| match record {
            Micro::FaultLatency { p50_us, .. } => repetitions(*p50_us, *range),
            _ => Vec::new(),
        };
        Some((Spread::of(records.iter().flat_map(of).collect())?, contract))
    }

    pub fn lightswap_cpu_us(&self, cell: &CpuCell) -> Option<f64> {
        let of = |record: &Micro| match record {
            Micro::Fault { backend, contract, path, workers: 1, lwts, cpu_us_per_fault, .. }
                if backend == cell.backend && contract == CONTRACT && path == "fault" && *lwts == cell.lwts =>
            {
                Some(*cpu_us_per_fault)
            }
            _ => None,
        };
        self.spread(of).map(|spread| spread.median)
    }

    pub fn kernel_cpu_us(&self, cell: &CpuCell) -> Option<f64> {
        let of = |record: &Micro| match record {
            Micro::KernelSwap { device, threads, cpu_us_per_fault, .. } if device == cell.device && *threads == cell.threads => {
                Some(*cpu_us_per_fault)
            }
            _ => None,
        };
        self.spread(of).map(|spread| spread.median)
    }

    /// The command that made the first run that passes.
    pub fn command_of_run(&self, wanted: impl Fn(&Run) -> bool) -> String {
        self.command(|file| file.runs.iter().any(&wanted))
    }

    pub fn command_of_cell(&self, workload: &str, configuration: &str) -> String {
        self.command_of_run(|run| run.workload == workload && configuration_name(run) == configuration && !run.details.sweep)
    }

    pub fn command_of_micro(&self, wanted: impl Fn(&Micro) -> bool) -> String {
        self.command(|file| file.micro.iter().any(&wanted))
    }

    fn command(&self, wanted: impl Fn(&Results) -> bool) -> String {
        let file = self.files.iter().find(|file| wanted(file) && !file.command.is_empty());
        file.map_or_else(|| REPRODUCE.to_owned(), |file| short_command(&file.command))
    }
}

/// Without the directory of the program: it is another one on each machine.
fn short_command(command: &str) -> String {
    let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
    let name = program.rsplit('/').next().unwrap_or(program);
    if name == "lightswap-bench" { format!("{name} {arguments}").trim_end().to_owned() } else { command.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transparent_contract_is_judged_where_there_is_one() {
        let fault = |contract: &str, lwts: u32| Micro::Fault {
            backend: "memory".into(),
            contract: contract.into(),
            path: "fault".into(),
            workers: 1,
            lwts,
            faults_per_second: 1.0,
            cpu_us_per_fault: 1.0,
        };
        let files = [Results { micro: vec![fault("cooperative", 1), fault("transparent", 1), fault("", 2)], ..Results::default() }];
        let evidence = Evidence::new(&files);
        let of = |lwts: u32| {
            let (contract, records) = evidence.of_judged_contract(|record| matches!(record, Micro::Fault { lwts: count, .. } if *count == lwts));
            (contract, records.len())
        };
        assert_eq!(of(1), ("transparent", 1));
        assert_eq!(of(2), ("cooperative", 1));
    }
}
