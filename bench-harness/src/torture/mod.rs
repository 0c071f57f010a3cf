//! `torture`: a patched memcached on a backend that fails on purpose, and clients that check every answer. A miss or an error is in order; a wrong value, a
//! crash or a hang is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::endpoint::Endpoint;
use crate::environment::{Environment, command_line};
use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover};
use crate::lab::is_root;
use crate::out_file;
use crate::progress::Progress;
use crate::server::Server;
use crate::server_kind::ServerKind;
use crate::units::parse_size;

mod client;
mod model;

use client::{Client, Counts};

/// All kinds of errors. Of 100 reads, ten or so meet one; a backend that is dead fails very many I/Os in short time, so it dies seldom.
const SCHEDULE: &str = "read%0.03=EIO;read%0.01=ETIMEDOUT;read%0.02=flip;read%0.02=misdirect;read%0.02=short;read%0.005=delay:20;read%0.0005=stall:100;\
                        read%0.000005=dead:20;write%0.02=EIO;write%0.02=short;write%0.02=torn;write%0.02=delay:20;write%0.002=stall:100";
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Options {
    /// The patched memcached
    #[arg(long, value_name = "PATH", default_value = "build/memcached-lightswap/memcached")]
    memcached_lightswap: PathBuf,
    /// What goes wrong, as docs/backends.md describes it; the seed comes before it
    #[arg(long, default_value = SCHEDULE)]
    schedule: String,
    /// The backend that it goes wrong with
    #[arg(long, value_name = "URL", default_value = "memory:?size=256MiB")]
    backend: String,
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = parse_size)]
    local_memory: u64,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    server_threads: u32,
    /// Clients, each with a connection and keys of its own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=512))]
    clients: u32,
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Ends earlier, once so many errors were injected
    #[arg(long, value_name = "NUMBER")]
    errors: Option<u64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A JSON file for what happened
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
struct Outcome {
    environment: Value,
    command: String,
    schedule: String,
    seed: u64,
    seconds: f64,
    #[serde(flatten)]
    counts: Counts,
    injected: BTreeMap<String, u64>,
    lost_items: u64,
    evictions: u64,
    /// All that `stats lightswap` tells at the end.
    server: BTreeMap<String, String>,
    /// Keys that are gone though the server neither evicted nor lost so many.
    unexplained_misses: u64,
    crashed: bool,
    hung: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// For the reader of such files.
#[cfg(test)]
pub fn an_outcome() -> Value {
    serde_json::to_value(Outcome::default()).unwrap()
}

impl Outcome {
    fn num_injected(&self) -> u64 {
        self.injected.values().sum()
    }

    fn is_sound(&self) -> bool {
        self.counts.wrong_values == 0 && self.failure.is_none()
    }

    fn sentence(&self) -> String {
        let Counts { requests, values_checked, misses, gone, errors, connections_closed, wrong_values, .. } = &self.counts;
        let kinds: Vec<String> = self.injected.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let verdict = match (&self.failure, &self.counts.first_wrong) {
            (Some(failure), _) => format!("FAILED: {failure}"),
            (None, Some(first)) => format!("WRONG: {first}"),
            (None, None) => "nothing was wrong".into(),
        };
        format!(
            "seed {}, {:.0} s: {} errors injected ({}); {requests} requests, {values_checked} values checked, {misses} misses ({gone} of keys that were there, \
             {} unexplained), {errors} errors, {connections_closed} connections closed, {} items lost, {wrong_values} wrong values: {verdict}",
            self.seed,
            self.seconds,
            self.num_injected(),
            kinds.join(", "),
            self.unexplained_misses,
            self.lost_items
        )
    }
}

impl Options {
    fn server_arguments(&self, socket: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = ["-U", "0", "-c", "1024", "-m", "64", "-o", "hashpower=12", "-t"].map(str::to_owned).to_vec();
        arguments.extend([
            self.server_threads.to_string(),
            "-s".into(),
            socket.to_string_lossy().into_owned(),
            format!("--lightswap-memory={}", self.local_memory),
            format!("--lightswap-backend=faulty(seed={};{}):{}", self.seed, self.schedule, self.backend),
        ]);
        if is_root() {
            arguments.extend(["-u".into(), "root".into()]);
        }
        arguments
    }
}

fn injected(statistics: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    let of = |(name, value): (&String, &String)| Some((name.strip_prefix("injected_")?.to_owned(), value.parse().ok()?));
    statistics.iter().filter_map(of).collect()
}

pub fn run(options: &Options) -> Result<bool> {
    if let Some(out) = &options.out {
        out_file::check(out)?;
    }
    let journal = Journal::open()?;
    let file = |end: &str| std::env::temp_dir().join(format!("lightswap-bench-{}-torture.{end}", std::process::id()));
    let (log, socket) = (file("log"), file("socket"));
    let files = [&log, &socket].map(|path| Guard::new(&journal, Leftover::File { path: path.clone() }));
    let _files: Vec<Guard<'_>> = files.into_iter().collect::<Result<_>>()?;
    let arguments = options.server_arguments(&socket);
    let mut server = Server::start(&journal, (ServerKind::Memcached, &options.memcached_lightswap), &arguments, Endpoint::Unix(socket), &log, None)
        .context("the server does not start on the faulty backend")?;
    let outcome = torture(options, &mut server)?;
    say!("{}", outcome.sentence());
    if let Some(out) = &options.out {
        out_file::write(out, &(serde_json::to_string_pretty(&outcome)? + "\n"))?;
    }
    Ok(outcome.is_sound())
}

fn torture(options: &Options, server: &mut Server<'_>) -> Result<Outcome> {
    let endpoint = server.endpoint().clone();
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let mut counts = Counts::default();
    let mut failure = None;
    let mut statistics = BTreeMap::new();
    std::thread::scope(|scope| {
        let (endpoint, stop, seed) = (&endpoint, &stop, options.seed);
        let clients: Vec<_> = (0..options.clients as usize)
            .map(|number| scope.spawn(move || Client::new(endpoint, number, seed).and_then(|client| client.run(stop))))
            .collect();
        let watched = watch(options, server, &clients, started, &mut statistics);
        stop.store(true, Ordering::Relaxed);
        failure = watched.err();
        for client in clients {
            match client.join() {
                Ok(Ok(of_one)) => counts.add(of_one),
                Ok(Err(error)) => failure = failure.take().or(Some(error)),
                Err(_) => failure = failure.take().or_else(|| Some(anyhow::anyhow!("a client ended unexpectedly; this is a defect"))),
            }
        }
    });
    interrupt::check()?;
    let death = server.death(None);
    let mut general = BTreeMap::new();
    if death.is_none() {
        statistics = server.statistics("lightswap").unwrap_or(statistics);
        general = server.statistics("").unwrap_or_default();
    }
    let number = |statistics: &BTreeMap<String, String>, name: &str| statistics.get(name).and_then(|text| text.parse().ok()).unwrap_or(0u64);
    let (lost_items, evictions) = (number(&statistics, "lost_items"), number(&general, "evictions"));
    let failure = death.clone().or_else(|| failure.map(|error| format!("{error:#}")));
    let unexplained_misses = counts.gone.saturating_sub(lost_items + evictions);
    Ok(Outcome {
        environment: serde_json::to_value(Environment::collect(&std::env::temp_dir()))?,
        command: command_line(),
        schedule: options.schedule.clone(),
        seed: options.seed,
        seconds: started.elapsed().as_secs_f64(),
        counts,
        injected: injected(&statistics),
        lost_items,
        evictions,
        server: statistics,
        unexplained_misses,
        crashed: death.is_some(),
        hung: death.is_none() && failure.as_ref().is_some_and(|text| text.contains("did not answer")),
        failure,
    })
}

/// Until the time is over, enough went wrong on purpose, or something did that should not.
fn watch<T>(
    options: &Options,
    server: &mut Server<'_>,
    clients: &[std::thread::ScopedJoinHandle<'_, T>],
    started: Instant,
    statistics: &mut BTreeMap<String, String>,
) -> Result<()> {
    let mut progress = Progress::start("torture", options.seconds * 1_000);
    let mut asked = started;
    while started.elapsed().as_secs() < options.seconds {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(100));
        if let Some(death) = server.death(None) {
            bail!(death);
        }
        if clients.iter().any(|client| client.is_finished()) {
            bail!("a client gave up");
        }
        if asked.elapsed() >= STATISTICS_INTERVAL {
            asked = Instant::now();
            *statistics = server.statistics("lightswap")?;
            let num_injected: u64 = injected(statistics).values().sum();
            progress.update(started.elapsed().as_millis() as u64, &format!("{num_injected} errors injected"));
            if options.errors.is_some_and(|enough| num_injected >= enough) {
                break;
            }
        }
    }
    progress.finish("done");
    Ok(())
}
