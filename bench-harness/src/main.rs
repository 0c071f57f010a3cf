//! `lightswap-bench`: workloads, baselines and reports for Lightswap.

mod budget;
mod cgroup;
mod chart;
mod cli;
mod client;
mod commands;
mod compare;
mod configuration;
mod demo;
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
mod load_tests;
mod memtier;
mod micro;
mod null_server;
mod outcome;
mod pace;
mod plan;
mod poller;
mod preflight;
mod process;
mod progress;
mod protocol;
mod random;
mod report;
mod results;
mod resume;
mod server;
mod session;
mod summary;
mod swap;
mod sweep;
mod table;
mod tally;
mod units;
mod value_sizes;
mod values;
mod ycsb;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};
use interrupt::Interrupted;

fn execute(cli: &Cli) -> Result<bool> {
    interrupt::install()?;
    match &cli.command {
        Command::Demo(arguments) => demo::demo(arguments),
        Command::Grid(arguments) => demo::grid(arguments),
        Command::Configurations => commands::configurations(),
        Command::Run(arguments) => commands::run(arguments),
        Command::Load(arguments) => commands::load(arguments),
        Command::NullServer(options) => null_server::run(options).map(|()| true),
        Command::Micro(command) => micro::run(command),
        Command::Report(arguments) => report::report(arguments),
        Command::Summary(arguments) => report::summary(arguments),
        Command::Compare(arguments) => compare::compare(arguments),
        // Opening the journal removes what it lists.
        Command::Clean => journal::Journal::open().map(|_| true),
    }
}

fn main() -> ExitCode {
    match execute(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lightswap-bench: {error:#}");
            match error.downcast_ref::<Interrupted>() {
                Some(interrupted) => ExitCode::from(u8::try_from(128 + interrupted.signal).unwrap_or(1)),
                None => ExitCode::FAILURE,
            }
        }
    }
}
