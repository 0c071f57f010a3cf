//! `lightswap-bench`: workloads, baselines and reports for Lightswap.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

// First, for its macros.
#[macro_use]
mod output;

mod bgsave;
mod budget;
mod cgroup;
mod chart;
mod cli;
mod client;
mod commands;
mod compare;
mod configuration;
mod demo;
mod demo_remote;
mod disk_probe;
mod drive;
mod endpoint;
mod environment;
mod extstore;
mod generator;
mod generator_ceiling;
mod grid;
#[cfg(test)]
mod grid_tests;
mod interrupt;
mod journal;
mod keys;
mod lab;
mod load;
#[cfg(test)]
mod load_redis_tests;
#[cfg(test)]
mod load_tests;
mod memory_server;
mod memtier;
mod micro;
mod null_server;
mod out_file;
mod outage_record;
mod outcome;
mod outside;
mod pace;
mod plan;
mod poller;
mod preflight;
mod process;
mod progress;
mod protocol;
mod random;
mod redis_benchmark;
mod redis_client;
mod redis_memory;
mod report;
mod resident_sampler;
mod results;
mod resume;
mod same_dump;
mod save_record;
mod scan;
mod server;
mod server_kind;
mod server_statistics;
mod session;
mod stall;
mod summary;
mod swap;
mod sweep;
mod table;
mod tally;
mod torture;
mod torture_record;
#[cfg(feature = "ebpf")]
mod trace;
mod units;
mod value_sizes;
mod values;
mod verify;
mod ycsb;

use std::io::ErrorKind;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use signal_hook::consts::SIGPIPE;

use cli::{Cli, Command, Mistake};
use interrupt::Interrupted;

fn execute(cli: &Cli) -> Result<bool> {
    interrupt::install()?;
    match &cli.command {
        Command::Demo(arguments) => demo::demo(arguments),
        Command::DemoRemote(options) => demo_remote::run(options),
        Command::Bgsave(options) => bgsave::run(options),
        Command::Grid(arguments) => demo::grid(arguments),
        Command::Configurations => commands::configurations(),
        Command::Run(arguments) => commands::run(arguments),
        Command::Load(arguments) => commands::load(arguments),
        Command::NullServer(options) => null_server::run(options).map(|()| true),
        Command::Micro(command) => micro::run(command),
        Command::Torture(options) => torture::run(options),
        #[cfg(feature = "ebpf")]
        Command::Trace(options) => trace::run(options),
        Command::Report(arguments) => report::report(arguments),
        Command::Summary(arguments) => report::summary(arguments),
        Command::Compare(arguments) => compare::compare(arguments),
        // Opening the journal removes what it lists.
        Command::Clean => journal::Journal::open().map(|_| true),
    }
}

fn main() -> ExitCode {
    let result = execute(&Cli::parse());
    if let Err(error) = &result {
        note!("lightswap-bench: {error:#}");
    }
    match (output::failure(), result) {
        // As a program that the signal ended: nothing went wrong, nobody wants to know more.
        (Some(ErrorKind::BrokenPipe), _) => exit_code_of(SIGPIPE),
        (Some(kind), _) => {
            note!("lightswap-bench: not all of the output could be written: {kind}");
            ExitCode::FAILURE
        }
        (None, Ok(true)) => ExitCode::SUCCESS,
        (None, Ok(false)) => ExitCode::FAILURE,
        (None, Err(error)) => match (error.downcast_ref::<Interrupted>(), error.is::<Mistake>()) {
            (Some(interrupted), _) => exit_code_of(interrupted.signal),
            // As clap's.
            (None, true) => ExitCode::from(2),
            (None, false) => ExitCode::FAILURE,
        },
    }
}

fn exit_code_of(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(1))
}
