//! The demo: dram, kernel-swap and lightswap on YCSB-C and YCSB-A, alternating within each repetition.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cli::DemoArguments;
use crate::commands::{WITHOUT_ROOT, is_clean, measure_data, set_up};
use crate::configurations::{Configuration, DRAM, KERNEL_SWAP, LIGHTSWAP, LIGHTSWAP_DRAM, Memory};
use crate::disk_probe;
use crate::environment::command_line;
use crate::generator::WarmUp;
use crate::interrupt::Interrupted;
use crate::journal::Journal;
use crate::lab::{Cell, Lab, Timing, is_root};
use crate::report;
use crate::results::{Details, Results, Run, write_file};
use crate::table;
use crate::ycsb::Workload;

const RATIOS: [f64; 2] = [0.5, 0.25];
/// C first: it leaves the data as loaded.
const WORKLOADS: [Workload; 2] = [Workload::C, Workload::A];
/// A number of threads that is this close to the best one for every workload is used for all: it saves restarts.
const NEARLY_BEST: f64 = 0.95;

#[derive(Debug, Clone, Copy)]
struct Plan {
    repetitions: u32,
    warm_up: Duration,
    warm_up_max: Duration,
    duration: Duration,
    sweep_warm_up: Duration,
    sweep_duration: Duration,
    quick: bool,
    /// Whether the baseline's threads are tried at every ratio. All others are tried at the smallest memory only, which saves time at nobody's expense
    /// but Lightswap's.
    sweep_baseline_everywhere: bool,
    probe_seconds: u64,
}

const DEFAULT: Plan = Plan {
    repetitions: 3,
    warm_up: Duration::from_secs(3),
    warm_up_max: Duration::from_secs(15),
    duration: Duration::from_secs(4),
    sweep_warm_up: Duration::from_secs(1),
    sweep_duration: Duration::from_secs(2),
    quick: false,
    sweep_baseline_everywhere: true,
    probe_seconds: 2,
};

const QUICK: Plan = Plan {
    repetitions: 1,
    warm_up: Duration::from_secs(2),
    warm_up_max: Duration::from_secs(8),
    duration: Duration::from_secs(4),
    sweep_warm_up: Duration::from_millis(1500),
    sweep_duration: Duration::from_millis(2500),
    quick: true,
    sweep_baseline_everywhere: false,
    probe_seconds: 1,
};

impl Plan {
    /// As many operations as records fit into memory, so that the slower server, too, has had the chance to hold what is asked for. Where all
    /// records are in memory after loading there is nothing to replace.
    fn warm_up_of(&self, cell: &Cell, records: u64) -> WarmUp {
        let operations = if cell.configuration.is_limited() { (records as f64 * cell.ratio) as u64 } else { 0 };
        WarmUp { least: self.warm_up, most: self.warm_up_max, operations }
    }
}

/// One server start and the workloads that run on it.
#[derive(Debug, Clone)]
struct Step {
    cell: Cell,
    workloads: Vec<Workload>,
}

pub fn demo(arguments: &DemoArguments) -> Result<bool> {
    let started = Instant::now();
    let mut plan = if arguments.quick { QUICK } else { DEFAULT };
    plan.repetitions = arguments.repetitions.unwrap_or(plan.repetitions);

    let journal = Journal::open()?;
    let (mut lab, mut environment) = set_up(&journal, &arguments.server, arguments.shape.shape())?;
    let configurations = available(&lab);
    eprintln!("probing the disk");
    environment.disk = Some(disk_probe::probe(&journal, &lab.directory, plan.probe_seconds)?);
    measure_data(&mut lab)?;
    for configuration in &configurations {
        lab.prepare(configuration)?;
    }

    let mut runs = Vec::new();
    let mut steps = Vec::new();
    for configuration in configurations {
        let ratios: &[f64] = if configuration.is_limited() { &RATIOS } else { &[1.0] };
        let mut groups = Vec::new();
        for (index, &ratio) in ratios.iter().enumerate() {
            if plan.sweep_baseline_everywhere && configuration.memory == Memory::KernelSwap {
                groups = sweep(&lab, configuration, ratio, plan, &mut runs)?;
            } else if index == 0 {
                groups = sweep(&lab, configuration, RATIOS[RATIOS.len() - 1], plan, &mut runs)?;
            }
            steps.extend(groups.iter().map(|(server_threads, workloads)| Step {
                cell: Cell { configuration, ratio, server_threads: *server_threads },
                workloads: workloads.clone(),
            }));
        }
    }
    // Cells that are compared follow each other, and every other repetition runs backwards, so that drift hits all alike.
    steps.sort_by(|a, b| b.cell.ratio.total_cmp(&a.cell.ratio));
    for repetition in 1..=plan.repetitions {
        eprintln!("repetition {repetition} of {}, after {:.0} s", plan.repetitions, started.elapsed().as_secs_f64());
        for index in 0..steps.len() {
            let step = if repetition % 2 == 1 { &steps[index] } else { &steps[steps.len() - 1 - index] };
            let warm_up = plan.warm_up_of(&step.cell, lab.shape.records);
            let timing =
                |workload| Timing { workload, distribution: None, warm_up, duration: plan.duration, due_per_second: None, repetition, sweep: false };
            runs.extend(run_step(&lab, step, timing)?);
        }
    }

    let results = Results { environment: serde_json::to_value(environment)?, command: command_line(), runs, ..Results::default() };
    table::print(&results);
    results.write(&arguments.out)?;
    let clean = is_clean(&results.runs);
    write_file(&arguments.html, &report::html(&[results]))?;
    println!("results in {}, report in {}, after {:.0} s", arguments.out.display(), arguments.html.display(), started.elapsed().as_secs_f64());
    Ok(clean)
}

/// What can be run here; says what cannot and why.
fn available(lab: &Lab<'_>) -> Vec<&'static Configuration> {
    let mut configurations = vec![&DRAM];
    if is_root() {
        configurations.push(&KERNEL_SWAP);
    } else {
        eprintln!("{WITHOUT_ROOT}");
    }
    if lab.lightswap.is_some() {
        configurations.insert(1, &LIGHTSWAP_DRAM);
        configurations.push(&LIGHTSWAP);
    } else {
        eprintln!("No --memcached-lightswap PATH: only the baselines run.");
    }
    configurations
}

/// Runs a step. A server that fails gives runs with an error; a signal ends everything.
fn run_step(lab: &Lab<'_>, step: &Step, timing: impl Fn(Workload) -> Timing) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut all = || -> Result<()> {
        let mut session = lab.session(step.cell)?;
        for &workload in &step.workloads {
            runs.push(session.run(timing(workload))?);
        }
        session.finish();
        Ok(())
    };
    if let Err(error) = all() {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        eprintln!("failed: {error:#}");
        for &workload in &step.workloads[runs.len()..] {
            let timing = timing(workload);
            let empty = step.cell.empty_run(workload, timing.repetition);
            runs.push(Run { details: Details { sweep: timing.sweep, error: Some(format!("{error:#}")), ..Details::default() }, ..empty });
        }
    }
    Ok(runs)
}

/// Tries the configuration's thread counts at this ratio and says which to use for which workloads.
fn sweep(lab: &Lab<'_>, configuration: &'static Configuration, ratio: f64, plan: Plan, runs: &mut Vec<Run>) -> Result<Vec<(u32, Vec<Workload>)>> {
    let counts = if plan.quick { configuration.threads_swept_quick } else { configuration.threads_swept };
    if counts.is_empty() {
        return Ok(vec![(configuration.default_threads, WORKLOADS.to_vec())]);
    }
    debug_assert!(matches!(configuration.memory, Memory::KernelSwap | Memory::Local));
    let mut swept = Vec::new();
    for &server_threads in counts {
        let step = Step { cell: Cell { configuration, ratio, server_threads }, workloads: WORKLOADS.to_vec() };
        let timing = |workload| Timing {
            workload,
            distribution: None,
            warm_up: WarmUp::of_time(plan.sweep_warm_up),
            duration: plan.sweep_duration,
            due_per_second: None,
            repetition: 1,
            sweep: true,
        };
        swept.extend(run_step(lab, &step, timing)?);
    }
    let groups = choose_threads(&swept, configuration.default_threads);
    runs.extend(swept);
    Ok(groups)
}

/// The best thread count of each workload, or one for all when it is nearly the best for each.
fn choose_threads(swept: &[Run], default_threads: u32) -> Vec<(u32, Vec<Workload>)> {
    let counts: BTreeSet<u32> = swept.iter().filter(|run| run.details.error.is_none()).map(|run| run.server_threads).collect();
    let speed = |workload: Workload, count: u32| {
        swept
            .iter()
            .filter(|run| run.workload == workload.name() && run.server_threads == count)
            .map(|run| run.operations_per_second)
            .fold(0.0, f64::max)
    };
    let best_of = |workload: Workload| counts.iter().copied().max_by(|&a, &b| speed(workload, a).total_cmp(&speed(workload, b)));
    // How far a count falls behind, at its worst workload.
    let worst_share =
        |count: u32| WORKLOADS.iter().filter_map(|&workload| Some(speed(workload, count) / speed(workload, best_of(workload)?))).fold(1.0, f64::min);
    let common = counts.iter().copied().max_by(|&a, &b| worst_share(a).total_cmp(&worst_share(b)));
    match common {
        None => vec![(default_threads, WORKLOADS.to_vec())],
        Some(count) if worst_share(count) >= NEARLY_BEST => vec![(count, WORKLOADS.to_vec())],
        Some(_) => WORKLOADS.iter().map(|&workload| (best_of(workload).unwrap_or(default_threads), vec![workload])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(speeds: &[(Workload, u32, f64)]) -> Vec<Run> {
        let run = |&(workload, server_threads, operations_per_second): &(Workload, u32, f64)| Run {
            workload: workload.name().into(),
            server_threads,
            operations_per_second,
            ..Run::default()
        };
        speeds.iter().map(run).collect()
    }

    #[test]
    fn one_thread_count_serves_all_workloads_if_it_is_nearly_the_best() {
        let runs = swept(&[(Workload::C, 4, 97.0), (Workload::C, 8, 100.0), (Workload::A, 4, 100.0), (Workload::A, 8, 80.0)]);
        assert_eq!(choose_threads(&runs, 2), [(4, WORKLOADS.to_vec())]);
    }

    #[test]
    fn otherwise_each_workload_gets_its_best() {
        let runs = swept(&[(Workload::C, 4, 60.0), (Workload::C, 8, 100.0), (Workload::A, 4, 100.0), (Workload::A, 8, 60.0)]);
        let expected = [(8, vec![Workload::C]), (4, vec![Workload::A])];
        assert_eq!(choose_threads(&runs, 2), expected);
        assert_eq!(choose_threads(&[], 2), [(2, WORKLOADS.to_vec())]);
    }
}
