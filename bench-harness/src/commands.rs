//! The subcommands `configurations`, `run` and `load`.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cli::{LoadArguments, RunArguments, ServerArguments};
use crate::configuration::{Settings, built_in, find};
use crate::environment::{Environment, command_line};
use crate::generator::{Generator, Shape, TimedRun, WarmUp};
use crate::journal::Journal;
use crate::lab::{Cell, Lab};
use crate::memtier;
use crate::out_file;
use crate::outcome::Sample;
use crate::preflight;
use crate::results::{Details, EXTERNAL, Results, Run, Skipped};
use crate::server;
use crate::session::Timing;
use crate::table;

/// A lab with the binaries of the command line, and the environment it runs in.
pub fn set_up<'a>(journal: &'a Journal, arguments: &ServerArguments) -> Result<(Lab<'a>, Environment)> {
    let mut lab = Lab::new(journal, &arguments.directory)?;
    lab.stock = Some(arguments.memcached_stock.clone());
    lab.lightswap = arguments.memcached_lightswap.clone();
    lab.transport = arguments.transport;
    lab.server_arguments = arguments.server_argument.clone();
    lab.lightswap_arguments = arguments.lightswap_argument.clone();
    let mut environment = Environment::collect(&std::path::absolute(&lab.directory)?);
    let binaries = [("memcached-stock", &lab.stock), ("memcached-lightswap", &lab.lightswap)];
    for (name, binary) in binaries {
        if let Some(version) = binary.as_deref().and_then(|path| server::version(path).ok()) {
            environment.versions.insert(name.into(), version);
        }
    }
    Ok((lab, environment))
}

/// The resident set of stock memcached with all records, which memory limits are parts of.
pub fn measure_data(lab: &mut Lab<'_>, shape: Shape) -> Result<()> {
    let configuration = find("dram")?;
    let cell = Cell { settings: configuration.settings.clone(), configuration, ratio: 1.0, shape };
    let session = lab.session(&cell).context("cannot measure the size of the data with stock memcached")?;
    let data_bytes = session.resident_bytes()?;
    session.finish();
    lab.set_data_bytes(shape, data_bytes);
    Ok(())
}

/// Whether everything went well, for the exit code; `table::print` says what did not.
pub fn is_clean(runs: &[Run]) -> bool {
    runs.iter().all(|run| run.problems().is_empty())
}

pub fn run(arguments: &RunArguments) -> Result<bool> {
    let configuration = find(&arguments.configuration)?;
    if let Some(obstacle) = configuration.obstacle() {
        bail!("{} cannot run here: {obstacle}", configuration.name);
    }
    let shape = arguments.shape.shape()?;
    if let Some(path) = &arguments.json {
        out_file::check(path)?;
    }
    let journal = Journal::open()?;
    let (mut lab, environment) = set_up(&journal, &arguments.server)?;
    server::version(lab.binary(configuration.binary)?)?;
    let ratio = if configuration.is_limited() { arguments.ratio } else { 1.0 };
    let cell = Cell { settings: configuration.settings.clone(), configuration, ratio, shape };
    if cell.configuration.is_limited() && !lab.limits_memory() {
        note!("No memory limit is set here, as it takes root and a cgroup; the server keeps to its local memory by itself.");
    }
    preflight::check_cell(&cell, arguments.data_size.is_some(), &lab.directory)?;
    lab.prepare(&cell.configuration, cell.backend_bytes())?;
    match arguments.data_size {
        Some(bytes) => lab.set_data_bytes(shape, bytes),
        None if cell.configuration.is_limited() => measure_data(&mut lab, shape)?,
        None => {}
    }
    let mut results = Results { environment: serde_json::to_value(environment)?, command: command_line(), ..Results::default() };
    let thread_counts = &arguments.server_threads;
    let all_settings: Vec<Settings> = match thread_counts.as_slice() {
        [] => vec![cell.settings.clone()],
        counts => counts.iter().map(|&count| cell.configuration.with_threads(count)).collect(),
    };
    for repetition in 1..=arguments.repetitions {
        for settings in &all_settings {
            let mut session = lab.session(&Cell { settings: settings.clone(), ..cell.clone() })?;
            for &workload in &arguments.timing.workload {
                results.runs.push(session.run(Timing {
                    workload,
                    distribution: arguments.timing.distribution,
                    warm_up: WarmUp::of_time(arguments.timing.warm_up_seconds),
                    duration: arguments.timing.seconds,
                    due_per_second: arguments.timing.rate,
                    repetition,
                    sweep: false,
                })?);
            }
            session.finish();
        }
    }
    table::print(&results);
    if let Some(path) = &arguments.json {
        results.write(path)?;
    }
    Ok(is_clean(&results.runs))
}

/// All configurations, a line each.
pub fn configurations() -> Result<bool> {
    for configuration in built_in()? {
        let note = configuration.obstacle().map_or_else(String::new, |obstacle| format!(" (not here: {obstacle})"));
        say!("{:16} {}{note}", configuration.name, configuration.about);
    }
    Ok(true)
}

pub fn load(arguments: &LoadArguments) -> Result<bool> {
    let shape = arguments.shape.shape()?;
    if let Some(path) = &arguments.json {
        out_file::check(path)?;
    }
    let mut generator = Generator::connect(&arguments.server, shape)?;
    generator.load("loading")?;
    let mut results =
        Results { environment: serde_json::to_value(Environment::collect(Path::new("/")))?, command: command_line(), ..Results::default() };
    let workloads = if arguments.only_load { &[] } else { arguments.timing.workload.as_slice() };
    for &workload in workloads {
        let run = TimedRun {
            workload,
            distribution: arguments.timing.distribution,
            warm_up: WarmUp::of_time(arguments.timing.warm_up_seconds),
            duration: arguments.timing.seconds,
            due_per_second: arguments.timing.rate,
            seed: 1,
        };
        let outcome = generator.run(workload.name(), run, |_| Ok(Sample::default()))?;
        let details = outcome.details(&shape, &run);
        let operations_per_second = outcome.operations_per_second();
        let tally = outcome.tally;
        results.runs.push(Run {
            workload: workload.name().into(),
            server: "memcached".into(),
            configuration: EXTERNAL.into(),
            backend: "unknown".into(),
            local_memory_ratio: 1.0,
            connections: shape.connections,
            repetition: 1,
            operations_per_second,
            latency_us: tally.latency(),
            hit_ratio: tally.hit_ratio(),
            wrong_values: tally.wrong_values,
            details: Details { transport: arguments.server.to_string(), ..details },
            ..Run::default()
        });
    }
    drop(generator);
    if !arguments.memtier.is_empty() {
        match memtier::find() {
            Some(program) => results.runs.extend(load_with_memtier(&program, arguments)?),
            None => {
                let reason = format!("{} is not on PATH", memtier::NAME);
                note!("{reason}: its runs are left out.");
                results.skipped.push(Skipped { configuration: memtier::NAME.into(), reason });
            }
        }
    }
    table::print(&results);
    if let Some(path) = &arguments.json {
        results.write(path)?;
    }
    Ok(is_clean(&results.runs))
}

fn load_with_memtier(program: &Path, arguments: &LoadArguments) -> Result<Vec<Run>> {
    let (shape, timing) = (arguments.shape.shape()?, &arguments.timing);
    memtier::load(program, &arguments.server, shape)?;
    let plans = arguments.memtier.iter().map(|&pattern| memtier::Plan {
        shape,
        pattern,
        percent_writes: 10,
        warm_up: timing.warm_up_seconds,
        duration: timing.seconds,
    });
    plans.map(|plan| memtier::run(program, &arguments.server, &plan)).collect()
}
