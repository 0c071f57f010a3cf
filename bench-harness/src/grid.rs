//! Runs a plan: settings first, then every cell as often as it is to be repeated. `demo` and `grid` are plans of this.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cli::ServerArguments;
use crate::commands::{measure_data, set_up};
use crate::configuration::{Configuration, Settings};
use crate::disk_probe;
use crate::environment::command_line;
use crate::generator::Shape;
use crate::interrupt::Interrupted;
use crate::journal::Journal;
use crate::lab::{Cell, Lab, is_root};
use crate::outside::Outside;
use crate::plan::{Load, Measurement, Plan, SweptData, Target, data_label, swept_like};
use crate::preflight::{self, default_cell};
use crate::redis_benchmark;
use crate::results::{Details, Results, Run};
use crate::resume::{CellName, Store, fingerprint};
use crate::server_kind::{Programs, ServerKind};
use crate::session::Timing;
use crate::summary::median;
use crate::sweep;
use crate::ycsb::Workload;

#[derive(Debug)]
struct Runner<'l, 'j> {
    lab: &'l mut Lab<'j>,
    plan: &'l Plan,
    store: Store,
    /// Content of the server binaries: results of another build are not taken up.
    binaries: BTreeMap<PathBuf, u64>,
    chosen: Vec<Chosen>,
}

/// Reads of resident values that are made beside all load of Redis.
const PROBE_PER_SECOND: f64 = 500.0;

/// The best settings found by a sweep.
#[derive(Debug)]
struct Chosen {
    configuration: String,
    shape: Shape,
    percent: u64,
    workload: Workload,
    settings: Settings,
}

/// What is to be measured, and how.
type Left = (CellName, Load, Timing);

/// One server start: measurements that share settings.
#[derive(Debug)]
struct Group<'t> {
    target: &'t Target,
    settings: Settings,
    measurements: Vec<Measurement>,
    repetition: u32,
    sweep: bool,
}

/// Runs the plan; the results are in the file, complete or, after an error, as far as they go.
pub fn execute(journal: &Journal, plan: &mut Plan, arguments: &ServerArguments, out: &Path, fresh: bool) -> Result<Results> {
    let started = Instant::now();
    let (mut lab, environment) = set_up(journal, arguments)?;
    let skipped = preflight::leave_out_impossible(plan, &lab.programs);
    preflight::check(plan, &lab)?;
    let mut store = Store::open(out, serde_json::to_value(environment)?, command_line(), fresh)?;
    for (configuration, reason) in &skipped {
        store.skip(configuration, reason);
    }
    if !lab.limits_memory() {
        note!("No memory limits are set here, as they take root and a cgroup; lightswap then keeps to its local memory by itself.");
    }
    let of_configurations: Vec<PathBuf> = plan.configurations().iter().filter_map(|configuration| configuration.server.clone()).collect();
    let programs = lab.programs.all().map(|(.., path)| path.to_owned()).chain(of_configurations);
    let binaries = programs.map(|path| (content_of(&path), path)).map(|(content, path)| (path, content)).collect();
    let mut runner = Runner { lab: &mut lab, plan, store, binaries, chosen: Vec::new() };
    runner.probe_disk()?;
    runner.sweep_all()?;
    for stage in &plan.stages {
        for repetition in stage.repetitions.clone() {
            note!("{}, repetition {repetition} of {}, after {:.0} s", stage.name, stage.repetitions.end(), started.elapsed().as_secs_f64());
            let mut targets: Vec<&Target> = stage.targets.iter().collect();
            if repetition % 2 == 0 {
                targets.reverse();
            }
            for target in targets {
                runner.run_target(target, repetition)?;
            }
        }
    }
    runner.store.finish()?;
    Ok(runner.store.results)
}

fn content_of(path: &Path) -> u64 {
    // A program found on PATH has no path to read it by; its version is in the environment.
    std::fs::read(path).map_or(0, |bytes| fingerprint(&bytes))
}

impl Runner<'_, '_> {
    fn probe_disk(&mut self) -> Result<()> {
        if self.store.results.environment["disk"].is_null() {
            note!("probing the disk");
            let probe = disk_probe::probe(self.lab.journal(), &self.lab.directory, self.plan.times.probe_seconds)?;
            self.store.results.environment["disk"] = serde_json::to_value(probe)?;
        }
        Ok(())
    }

    fn name(&self, cell: &Cell, measurement: &Measurement, timing: &Timing) -> Result<CellName> {
        let swept: Vec<String> = cell.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let settings = if timing.sweep { format!(" with {}", swept.join(" ")) } else { String::new() };
        let readable = format!(
            "{}{} {:.0} % {} {} {} connections{settings}",
            if timing.sweep { "sweep " } else { "" },
            cell.configuration.name,
            cell.ratio * 100.0,
            measurement.label(),
            data_label(&cell.shape),
            cell.shape.connections
        );
        let definition = format!(
            "{} {swept:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {} {}",
            serde_json::to_string(&*cell.configuration)?,
            cell.shape,
            timing.warm_up,
            timing.duration,
            self.lab.transport,
            self.lab.server_arguments,
            self.lab.lightswap_arguments,
            self.lab.server_of(&cell.configuration).ok().and_then(|path| self.binaries.get(path)),
            self.lab.limits_memory(),
            is_root()
        );
        Ok(CellName::new(readable, &definition))
    }

    fn timing(&self, group: &Group<'_>, measurement: &Measurement) -> Timing {
        let times = &self.plan.times;
        Timing {
            workload: measurement.workload,
            distribution: None,
            warm_up: self.plan.warm_up(group.target, group.sweep),
            duration: if group.sweep { times.sweep_duration } else { times.duration },
            due_per_second: None,
            probe_per_second: (group.target.configuration.server_kind == ServerKind::Redis).then_some(PROBE_PER_SECOND),
            repetition: group.repetition,
            sweep: group.sweep,
        }
    }

    /// Runs what is not finished yet. A server that fails is tried once more and then gives runs with an error; a signal ends everything.
    fn run_group(&mut self, group: &Group<'_>) -> Result<Vec<Run>> {
        let cell = Cell { settings: group.settings.clone(), ..default_cell(group.target) };
        let mut runs = Vec::new();
        let mut left: VecDeque<Left> = VecDeque::new();
        for measurement in &group.measurements {
            let mut timing = self.timing(group, measurement);
            let name = self.name(&cell, measurement, &timing)?;
            if let Some(run) = self.store.find(&name, group.repetition) {
                runs.push(run.clone());
                continue;
            }
            if let Load::Open { percent, of } = measurement.load {
                match self.closed_loop(of, group.target, measurement.workload) {
                    Some(throughput) => timing.due_per_second = Some((throughput * f64::from(percent) / 100.0).round()),
                    None => {
                        let reason = format!("{}: its rate is a part of a throughput that was not measured", measurement.label());
                        self.store.skip(&cell.configuration.name, &reason);
                        continue;
                    }
                }
            }
            left.push_back((name, measurement.load, timing));
        }
        if left.is_empty() {
            return Ok(runs);
        }
        let mut first_failure = None;
        loop {
            let Err(error) = self.run_left(&cell, &mut left, first_failure.as_deref(), &mut runs) else {
                return Ok(runs);
            };
            if error.is::<Interrupted>() {
                return Err(error);
            }
            if let Some(reason) = preflight::not_possible(&error) {
                let at = format!("{} at {:.0} %", cell.configuration.name, cell.ratio * 100.0);
                self.store.skip(&at, &format!("{} records of {}: {reason}", cell.shape.records, values_label(&cell.shape)));
                self.store.save()?;
                return Ok(runs);
            }
            note!("failed: {error:#}");
            if first_failure.is_some() {
                for (name, load, timing) in &left {
                    let empty = cell.empty_run(&workload_name(load, timing), timing.repetition);
                    let error = Some(format!("{error:#}"));
                    let details = Details {
                        sweep: timing.sweep,
                        due_per_second: timing.due_per_second,
                        error,
                        first_failure: first_failure.clone(),
                        ..empty.details
                    };
                    self.store.add(name, Run { details, ..empty })?;
                }
                return Ok(runs);
            }
            note!("once more: a kernel that is short of memory kills servers now and then");
            first_failure = Some(format!("{error:#}"));
        }
    }

    /// Starts the server and measures, taking what is done off the list.
    fn run_left(&mut self, cell: &Cell, left: &mut VecDeque<Left>, first_failure: Option<&str>, runs: &mut Vec<Run>) -> Result<()> {
        measure_data(self.lab, cell)?;
        self.lab.prepare(&cell.configuration, self.largest_swap(&cell.configuration))?;
        // A target has either measurements of one other load generator or of this one.
        let outside = left.iter().find_map(|(_, load, _)| Outside::of(load, &self.lab.programs));
        let programs = self.lab.programs.clone();
        let mut session = match &outside {
            Some(outside) => self.lab.outside_session(cell, outside)?,
            None => self.lab.session(cell)?,
        };
        while let Some((name, load, timing)) = left.front() {
            let mut run = match Outside::of(load, &programs) {
                Some(outside) => session.run_outside(&outside, *timing)?,
                None => session.run(*timing)?,
            };
            run.details.first_failure = first_failure.map(str::to_owned);
            runs.push(run.clone());
            self.store.add(name, run)?;
            left.pop_front();
        }
        session.finish();
        Ok(())
    }

    /// One swap device serves all cells, so it is made for the largest.
    fn largest_swap(&self, configuration: &Configuration) -> u64 {
        let of_kind = self.plan.targets().filter(|target| target.configuration.swap_device == configuration.swap_device);
        of_kind.map(|target| default_cell(target).backend_bytes()).max().unwrap_or(0)
    }

    /// What a configuration served in a closed loop with the same memory.
    fn closed_loop(&self, configuration: &str, target: &Target, workload: Workload) -> Option<f64> {
        let same = |run: &&Run| {
            let details = &run.details;
            run.configuration == configuration
                && run.workload == workload.name()
                && run.local_memory_ratio == target.ratio
                && (details.records, &details.value_mix) == (target.shape.records, &target.shape.value_sizes.mix())
                && details.value_kind == target.shape.value_kind.name()
                && (details.data_type.as_str(), details.is_indexed) == (target.shape.protocol.data_type().name(), target.shape.protocol.is_indexed())
                && details.due_per_second.is_none()
                && details.error.is_none()
                && !details.sweep
        };
        median(self.store.results.runs.iter().filter(same).map(|run| run.operations_per_second).collect())
    }

    /// Tries the settings of every configuration that has some to try.
    fn sweep_all(&mut self) -> Result<()> {
        let plan = self.plan;
        for configuration in plan.configurations() {
            for data in plan.swept_data(&configuration) {
                for (settings, workloads) in self.sweep(&data)? {
                    let (percent, shape) = (percent(data.target.ratio), data.target.shape);
                    let chosen =
                        |workload| Chosen { configuration: configuration.name.clone(), shape, percent, workload, settings: settings.clone() };
                    self.chosen.extend(workloads.into_iter().map(chosen));
                }
            }
        }
        Ok(())
    }

    fn sweep(&mut self, data: &SweptData) -> Result<Vec<(Settings, Vec<Workload>)>> {
        let SweptData { target, workloads, again } = data;
        let mut swept: Vec<Run> = Vec::new();
        // Where settings are tried again, each workload starts from what was best for its like.
        let mut bases: Vec<Settings> = Vec::new();
        let mut groups = Vec::new();
        for &workload in workloads {
            let base = self.settings_for(target, workload);
            groups.push((base.clone(), vec![workload]));
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        for (setting, values) in sweep::rounds(&target.configuration, self.plan.quick, *again) {
            if let ([value], true) = (values, swept.is_empty()) {
                bases = bases.iter().map(|base| sweep::candidate(base, setting, value)).collect();
                groups = groups.into_iter().map(|(base, workloads)| (sweep::candidate(&base, setting, value), workloads)).collect();
                continue;
            }
            for base in &bases {
                for value in values {
                    let settings = sweep::candidate(base, setting, value);
                    if !swept.iter().any(|run| run.details.settings == settings) {
                        let measurements = workloads.iter().map(|&workload| Measurement { workload, load: Load::Closed }).collect();
                        let group = Group { target, settings: settings.clone(), measurements, repetition: 1, sweep: true };
                        swept.extend(self.run_group(&group)?);
                    }
                    if sweep::is_far_behind(&swept, workloads, &settings) {
                        break;
                    }
                }
            }
            groups = sweep::choose(&swept, workloads, &bases[0]);
            bases = groups.iter().map(|(settings, _)| settings.clone()).collect();
        }
        Ok(groups)
    }

    /// The best settings for a workload on such data, from the nearest ratio at which they were tried.
    fn settings_for(&self, target: &Target, workload: Workload) -> Settings {
        let like = swept_like(workload);
        let of_it = |shape: Shape, like: Workload| {
            let tried = self.chosen.iter().filter(move |chosen| chosen.configuration == target.configuration.name);
            let tried = tried.filter(move |chosen| chosen.shape == shape && chosen.workload == like);
            tried.min_by_key(|chosen| chosen.percent.abs_diff(percent(target.ratio)))
        };
        let found = of_it(self.plan.swept_shape(&target.shape), like)
            .or_else(|| of_it(self.plan.usual_shape(&target.shape), like))
            .or_else(|| of_it(self.plan.usual_shape(&target.shape), Workload::C));
        found.map_or_else(|| target.configuration.settings.clone(), |chosen| chosen.settings.clone())
    }

    fn run_target(&mut self, target: &Target, repetition: u32) -> Result<()> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for &measurement in &target.measurements {
            let settings = self.settings_for(target, measurement.workload);
            match groups.iter_mut().find(|group| group.settings == settings) {
                Some(group) => group.measurements.push(measurement),
                None => groups.push(Group { target, settings, measurements: vec![measurement], repetition, sweep: false }),
            }
        }
        for group in &groups {
            self.run_group(group)?;
        }
        Ok(())
    }
}

fn workload_name(load: &Load, timing: &Timing) -> String {
    match load {
        Load::Memtier(pattern) => format!("memtier-{}", pattern.name()),
        Load::RedisBenchmark => redis_benchmark::WORKLOAD.into(),
        Load::Closed | Load::Open { .. } => timing.workload.name().into(),
    }
}

fn percent(ratio: f64) -> u64 {
    (ratio * 100.0).round() as u64
}

fn values_label(shape: &Shape) -> String {
    let mix = shape.value_sizes.mix();
    let sizes = if mix.is_empty() { format!("{} B", shape.value_sizes.mean()) } else { mix };
    format!("{sizes} {}", shape.value_kind.name()).trim_end().to_owned()
}

/// Prints the plan and how long it takes.
pub fn print_plan(plan: &mut Plan, programs: &Programs) -> Result<()> {
    for (configuration, reason) in preflight::leave_out_impossible(plan, programs) {
        say!("left out: {configuration}: {reason}");
    }
    plan.print();
    say!("{}", estimate_line(plan.estimate(|_, _, _| false)));
    Ok(())
}

pub fn estimate_line(time: Duration) -> String {
    format!("about {} minutes on two CPUs of 2026", (time.as_secs() / 60).max(1))
}
