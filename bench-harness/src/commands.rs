//! The subcommands `configurations`, `run` and `load`.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use crate::cli::{LoadArguments, RunArguments, ServerArguments};
use crate::configuration::{Configuration, Memory, Settings, built_in, find, find_all};
use crate::environment::{Environment, command_line};
use crate::generator::{Generator, TimedRun, WarmUp};
use crate::journal::Journal;
use crate::lab::{Cell, Lab};
use crate::memtier;
use crate::out_file;
use crate::outcome::Sample;
use crate::outside::Outside;
use crate::plan::Load;
use crate::preflight;
use crate::redis_benchmark;
use crate::redis_memory;
use crate::results::{Details, EXTERNAL, Results, Run, Skipped};
use crate::server_kind::{Programs, ServerKind};
use crate::session::Timing;
use crate::table;

/// A lab with the binaries of the command line, and the environment it runs in.
pub fn set_up<'a>(journal: &'a Journal, arguments: &ServerArguments) -> Result<(Lab<'a>, Environment)> {
    let mut lab = Lab::new(journal, &arguments.directory)?;
    lab.programs = arguments.programs();
    lab.transport = arguments.transport;
    lab.server_arguments = arguments.server_argument.clone();
    lab.lightswap_arguments = arguments.lightswap_argument.clone();
    let mut environment = Environment::collect(&std::path::absolute(&lab.directory)?);
    for (kind, binary, program) in lab.programs.all() {
        if let Ok(version) = kind.version(program) {
            environment.versions.insert(kind.option(binary).trim_start_matches('-').into(), version);
        }
    }
    Ok((lab, environment))
}

/// Measures what a cell's memory limit depends on, unless it is known: the resident set of the stock server with all records, of which limits are parts,
/// and of Redis with Lightswap what it needs beside its local memory.
pub fn measure_data(lab: &mut Lab<'_>, cell: &Cell) -> Result<()> {
    let (kind, shape) = (cell.configuration.server_kind, cell.shape);
    if lab.data_bytes(&shape).is_none() {
        let configuration = find(kind.all_in_memory())?;
        let cell = Cell { settings: configuration.settings.clone(), configuration, ratio: 1.0, shape };
        let session = lab.session(&cell).with_context(|| format!("cannot measure the size of the data with stock {}", kind.name()))?;
        let data_bytes = session.resident_bytes()?;
        session.finish();
        lab.set_data_bytes(shape, data_bytes);
    }
    if kind == ServerKind::Redis && cell.configuration.memory == Memory::Local { redis_memory::measure(lab, cell) } else { Ok(()) }
}

/// Whether everything went well, for the exit code; `table::print` says what did not.
pub fn is_clean(runs: &[Run]) -> bool {
    runs.iter().all(|run| run.problems().is_empty())
}

/// The cells of a run's configurations, each with all numbers of threads that are wanted.
fn cells(configurations: &[Rc<Configuration>], arguments: &RunArguments) -> Result<Vec<Cell>> {
    let of = |configuration: &Rc<Configuration>| -> Result<Vec<Cell>> {
        let all_settings: Vec<Settings> = match arguments.server_threads.as_slice() {
            [] => vec![configuration.settings.clone()],
            counts => counts.iter().map(|&count| configuration.with_threads(count)).collect(),
        };
        let ratio = if configuration.is_limited() { arguments.ratio } else { 1.0 };
        let shape = arguments.shape.shape_on(configuration.server_kind, &arguments.timing.workload)?;
        let cell = |settings| Cell { configuration: Rc::clone(configuration), ratio, settings, shape };
        Ok(all_settings.into_iter().map(cell).collect::<Vec<_>>())
    };
    Ok(configurations.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
}

/// One repetition goes through all cells before the next begins, every other time backwards, so that drift of the machine hits all alike.
fn turns(cells: &[Cell], repetitions: u32) -> Vec<(&Cell, u32)> {
    let turn = |repetition: u32| {
        let mut turn: Vec<(&Cell, u32)> = cells.iter().map(|cell| (cell, repetition)).collect();
        if repetition.is_multiple_of(2) {
            turn.reverse();
        }
        turn
    };
    (1..=repetitions).flat_map(turn).collect()
}

pub fn run(arguments: &RunArguments) -> Result<bool> {
    let configurations = find_all(&arguments.configuration)?;
    for configuration in &configurations {
        if let Some(obstacle) = configuration.obstacle() {
            bail!("{} cannot run here: {obstacle}", configuration.name);
        }
    }
    let cells = cells(&configurations, arguments)?;
    if let Some(path) = &arguments.json {
        out_file::check(path)?;
    }
    let journal = Journal::open()?;
    let (mut lab, environment) = set_up(&journal, &arguments.server)?;
    let is_any_limited = configurations.iter().any(|configuration| configuration.is_limited());
    if is_any_limited && !lab.limits_memory() {
        note!("No memory limit is set here, as it takes root and a cgroup; the server keeps to its local memory by itself.");
    }
    for configuration in &configurations {
        lab.check_program(configuration)?;
    }
    for cell in &cells {
        preflight::check_cell(cell, arguments.data_size.is_some(), &lab.directory)?;
    }
    for cell in &cells {
        lab.prepare(&cell.configuration, cell.backend_bytes())?;
    }
    for cell in cells.iter().filter(|cell| cell.configuration.is_limited()) {
        if let Some(bytes) = arguments.data_size {
            lab.set_data_bytes(cell.shape, bytes);
        }
        measure_data(&mut lab, cell)?;
    }
    let mut results = Results { environment: serde_json::to_value(environment)?, command: command_line(), ..Results::default() };
    for (cell, repetition) in turns(&cells, arguments.repetitions) {
        let mut session = lab.session(cell)?;
        for &workload in &arguments.timing.workload {
            results.runs.push(session.run(Timing {
                workload,
                distribution: arguments.timing.distribution,
                warm_up: WarmUp::of_time(arguments.timing.warm_up_seconds),
                duration: arguments.timing.seconds,
                due_per_second: arguments.timing.rate,
                probe_per_second: arguments.timing.probe,
                repetition,
                sweep: false,
            })?);
        }
        session.finish();
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
    let shape = arguments.shape.shape_on(arguments.protocol, &arguments.timing.workload)?;
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
            probe_per_second: arguments.timing.probe,
            seed: 1,
        };
        let outcome = generator.run(workload.name(), run, |_| Ok(Sample::default()))?;
        let details = outcome.details(&shape, &run);
        let operations_per_second = outcome.operations_per_second();
        let tally = outcome.tally;
        results.runs.push(Run {
            workload: workload.name().into(),
            server: arguments.protocol.name().into(),
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
    if arguments.redis_benchmark {
        match Outside::of(&Load::RedisBenchmark, &Programs::default()) {
            Some(outside) => {
                outside.load(&arguments.server, shape)?;
                results.runs.push(outside.run(&arguments.server, shape, arguments.timing.seconds)?);
            }
            None => {
                let reason = format!("{} is not on PATH", redis_benchmark::NAME);
                note!("{reason}: its run is left out.");
                results.skipped.push(Skipped { configuration: redis_benchmark::NAME.into(), reason });
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
    let (shape, timing) = (arguments.shape.shape_on(arguments.protocol, &[])?, &arguments.timing);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn repetitions_of_several_configurations_take_turns() {
        let line = "lightswap-bench run --configuration lightswap,dram --server-threads 1,2 --repetitions 2";
        let Command::Run(arguments) = Cli::parse_from(line.split(' ')).command else { panic!("{line}") };
        let configurations = find_all(&arguments.configuration).unwrap();
        let cells = cells(&configurations, &arguments).unwrap();
        let labels: Vec<(String, u32)> = turns(&cells, arguments.repetitions).iter().map(|(cell, repetition)| (cell.label(), *repetition)).collect();
        let first = ["lightswap 25 % -t 1", "lightswap 25 % -t 2", "dram -t 1", "dram -t 2"];
        let expected = first.iter().map(|label| ((*label).to_owned(), 1)).chain(first.iter().rev().map(|label| ((*label).to_owned(), 2)));
        assert_eq!(labels, expected.collect::<Vec<_>>());
    }
}
