//! The subcommands `run`, `load` and `micro`.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::{LoadArguments, MicroCommand, RunArguments, ServerArguments};
use crate::configurations::{Binary, DRAM};
use crate::environment::{Environment, command_line};
use crate::generator::{Generator, Shape, TimedRun, WarmUp};
use crate::journal::Journal;
use crate::lab::{Cell, Lab, Timing, is_root};
use crate::micro::{fault, notify};
use crate::results::{Details, EXTERNAL, Results, Run};
use crate::server;
use crate::table;

/// A lab with the binaries of the command line, and the environment it runs in.
pub fn set_up<'a>(journal: &'a Journal, arguments: &ServerArguments, shape: Shape) -> Result<(Lab<'a>, Environment)> {
    let mut lab = Lab::new(journal, &arguments.directory, shape)?;
    lab.stock = Some(arguments.memcached_stock.clone());
    lab.lightswap = arguments.memcached_lightswap.clone();
    lab.transport = arguments.transport;
    lab.server_arguments = arguments.server_argument.clone();
    lab.lightswap_arguments = arguments.lightswap_argument.clone();
    let mut environment = Environment::collect(&lab.directory);
    let binaries = [("memcached-stock", &lab.stock), ("memcached-lightswap", &lab.lightswap)];
    for (name, binary) in binaries {
        if let Some(version) = binary.as_deref().and_then(|path| server::version(path).ok()) {
            environment.versions.insert(name.into(), version);
        }
    }
    Ok((lab, environment))
}

/// The resident set of stock memcached with all records, which memory limits are parts of.
pub fn measure_data(lab: &mut Lab<'_>) -> Result<()> {
    let cell = Cell { configuration: &DRAM, ratio: 1.0, server_threads: DRAM.default_threads };
    let session = lab.session(cell).context("cannot measure the size of the data with stock memcached")?;
    let data_bytes = session.resident_bytes()?;
    session.finish();
    lab.data_bytes = Some(data_bytes);
    Ok(())
}

pub const WITHOUT_ROOT: &str = "Not root: kernel-swap is left out and no cgroup limits are set, as swap files and cgroups take root; \
                                lightswap then keeps to its local memory by itself.";

/// Whether everything went well, for the exit code; `table::print` says what did not.
pub fn is_clean(runs: &[Run]) -> bool {
    runs.iter().all(|run| run.problems().is_empty())
}

pub fn run(arguments: &RunArguments) -> Result<bool> {
    let configuration = arguments.configuration.configuration();
    let journal = Journal::open()?;
    let (mut lab, environment) = set_up(&journal, &arguments.server, arguments.shape.shape())?;
    lab.binary(configuration.binary)?;
    if !is_root() {
        eprintln!("{WITHOUT_ROOT}");
    }
    lab.prepare(configuration)?;
    lab.data_bytes = arguments.data_size;
    if configuration.is_limited() && lab.data_bytes.is_none() {
        lab.binary(Binary::Stock)?;
        measure_data(&mut lab)?;
    }
    let mut results = Results { environment: serde_json::to_value(environment)?, command: command_line(), ..Results::default() };
    let thread_counts = if arguments.server_threads.is_empty() { vec![configuration.default_threads] } else { arguments.server_threads.clone() };
    for repetition in 1..=arguments.repetitions {
        for &server_threads in &thread_counts {
            let mut session =
                lab.session(Cell { configuration, ratio: if configuration.is_limited() { arguments.ratio } else { 1.0 }, server_threads })?;
            for &workload in &arguments.timing.workload {
                results.runs.push(session.run(Timing {
                    workload,
                    distribution: arguments.timing.distribution,
                    warm_up: WarmUp::of_time(arguments.timing.warm_up_seconds),
                    duration: arguments.timing.seconds,
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

pub fn load(arguments: &LoadArguments) -> Result<bool> {
    let shape = arguments.shape.shape();
    let mut generator = Generator::connect(&arguments.server, shape)?;
    generator.load("loading")?;
    let mut results = Results {
        environment: serde_json::to_value(Environment::collect(std::path::Path::new("/")))?,
        command: command_line(),
        ..Results::default()
    };
    let workloads = if arguments.only_load { &[] } else { arguments.timing.workload.as_slice() };
    for &workload in workloads {
        let outcome = generator.run(
            workload.name(),
            TimedRun {
                workload,
                distribution: arguments.timing.distribution,
                warm_up: WarmUp::of_time(arguments.timing.warm_up_seconds),
                duration: arguments.timing.seconds.max(Duration::from_millis(100)),
                seed: 1,
            },
            |_| Ok(()),
        )?;
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
            details: Details {
                transport: arguments.server.to_string(),
                records: shape.records,
                value_size_bytes: shape.value_size,
                warm_up_seconds: outcome.warm_up.as_secs_f64(),
                warm_up_operations: outcome.warm_up_operations,
                duration_seconds: outcome.measured.as_secs_f64(),
                operations: tally.operations,
                latency_by_operation_us: tally.latency_by_operation(),
                server_errors: tally.server_errors,
                first_server_error: tally.first_server_error,
                first_wrong_value: tally.first_wrong_value,
                ..Details::default()
            },
            ..Run::default()
        });
    }
    table::print(&results);
    if let Some(path) = &arguments.json {
        results.write(path)?;
    }
    Ok(is_clean(&results.runs))
}

pub fn micro(command: &MicroCommand) -> Result<bool> {
    let (micro, json) = match command {
        MicroCommand::Notify(arguments) => (notify::run(&arguments.options)?, &arguments.json),
        MicroCommand::Fault(arguments) => (fault::run(&arguments.options)?, &arguments.json),
    };
    let environment = serde_json::to_value(Environment::collect(std::path::Path::new(".")))?;
    let results = Results { environment, command: command_line(), micro, ..Results::default() };
    table::print(&results);
    if let Some(path) = json {
        results.write(path)?;
    }
    Ok(true)
}
