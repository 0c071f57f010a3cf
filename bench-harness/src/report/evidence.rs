//! Everything that the result files hold, in the form in which the report asks for it.

use crate::results::{JUDGED_CONTRACT, Micro, Results, Run, repetitions};
use crate::summary::{Spread, Summary, best, comparison, configuration_name, sweep};

/// The cell that claims about throughput are judged by, and charts of single cells show: declared before measuring, not chosen after it.
pub const PRIMARY_PERCENT: u32 = 25;
pub const PRIMARY_WORKLOADS: [&str; 2] = ["ycsb-c", "ycsb-a"];

/// What everybody compares with who has pages on the same disk, and what at the speed of memory.
pub const STATE_OF_THE_ART: [&str; 2] = ["kernel-swap-ssd", "fastswap-style"];
pub const KERNEL_IN_MEMORY: &str = "kernel-swap-zram";

/// The command that makes all results again, where no file says which one made them.
pub const REPRODUCE: &str = "scripts/reproduce";

#[derive(Debug)]
pub struct Evidence<'a> {
    pub files: &'a [Results],
    pub runs: Vec<Run>,
    pub summaries: Vec<Summary>,
    pub swept: Vec<Summary>,
}

/// Notification latency at one number of LWTs.
#[derive(Debug, Clone, Copy)]
pub struct NotifyPoint {
    pub lwts: u32,
    pub p50_us: Spread,
    pub p99_us: Spread,
}

impl<'a> Evidence<'a> {
    pub fn new(files: &'a [Results]) -> Self {
        let runs: Vec<Run> = files.iter().flat_map(|file| file.runs.clone()).collect();
        Self { files, summaries: comparison(&runs), swept: sweep(&runs), runs }
    }

    pub fn micro(&self) -> impl Iterator<Item = &'a Micro> {
        self.files.iter().flat_map(|file| &file.micro)
    }

    pub fn micro_with_ranges(&self) -> impl Iterator<Item = (&'a Micro, Option<(f64, f64)>)> {
        self.files.iter().flat_map(Results::micro_with_ranges)
    }

    /// The first number of all records that pass, with what is known of their repetitions.
    pub fn first_spread(&self, number: impl Fn(&Micro) -> Option<f64>) -> Option<Spread> {
        let of = |(record, range): (&Micro, Option<(f64, f64)>)| number(record).map(|median| repetitions(median, range));
        Spread::of(self.micro_with_ranges().filter_map(of).flatten().collect())
    }

    /// A number of all micro-benchmark records that have it.
    pub fn spread(&self, number: impl Fn(&Micro) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.micro().filter_map(number).collect())
    }

    /// Closed loop, usual shape, best settings.
    pub fn cell(&self, workload: &str, percent: u32, configuration: &str) -> Option<&Summary> {
        best(&self.summaries, |summary| {
            summary.workload == workload
                && summary.memory_percent() == percent
                && summary.configuration == configuration
                && summary.note.is_empty()
                && !summary.is_open_loop()
        })
    }

    /// The fastest of several configurations in a cell.
    pub fn fastest(&self, workload: &str, percent: u32, configurations: &[&str]) -> Option<&Summary> {
        let cells = configurations.iter().filter_map(|name| self.cell(workload, percent, name));
        cells.max_by(|a, b| a.operations_per_second.median.total_cmp(&b.operations_per_second.median))
    }

    /// Those of usual shape and closed loop that were measured at this share of memory, in the order of the summaries.
    pub fn workloads(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .summaries
            .iter()
            .filter(|summary| summary.note.is_empty() && !summary.is_open_loop())
            .map(|summary| summary.workload.as_str())
            .collect();
        names.sort_by_key(|name| (PRIMARY_WORKLOADS.iter().position(|primary| primary == name).unwrap_or(PRIMARY_WORKLOADS.len()), *name));
        names.dedup();
        names
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
        let of = |(record, range): (&Micro, Option<(f64, f64)>)| match record {
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

    /// Median time from the faulting access to the retried one.
    pub fn fault_latency_us(&self, pager: &str, backend: &str, notifier: &str) -> Option<Spread> {
        self.first_spread(|record| match record {
            Micro::FaultLatency { pager: p, backend: b, notifier: n, contract, p50_us, .. }
                if p == pager && b == backend && n == notifier && (p == "kernel" || contract == JUDGED_CONTRACT) =>
            {
                Some(*p50_us)
            }
            _ => None,
        })
    }

    /// CPU a page by fault: the best of the contracts, with as few threads as were measured.
    pub fn lightswap_cpu_us(&self, wanted: &str) -> Option<f64> {
        let of = |record: &Micro| match record {
            Micro::Fault { backend, path, workers: 1, cpu_us_per_fault, .. } if backend == wanted && path == "fault" => Some(*cpu_us_per_fault),
            _ => None,
        };
        self.spread(of).map(|spread| spread.min)
    }

    pub fn kernel_cpu_us(&self, wanted: &str) -> Option<f64> {
        let of = |record: &Micro| match record {
            Micro::KernelSwap { device, cpu_us_per_fault, .. } if device == wanted => Some(*cpu_us_per_fault),
            _ => None,
        };
        self.spread(of).map(|spread| spread.min)
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
