//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::bgsave;
use crate::compare::CompareArguments;
use crate::demo_remote;
use crate::endpoint::Endpoint;
use crate::generator::Shape;
use crate::lab::Transport;
use crate::memtier;
use crate::micro;
use crate::null_server;
use crate::protocol::{DataType, Protocol};
use crate::report::{ReportArguments, SummaryArguments};
use crate::server_kind::{Programs, ServerKind};
use crate::torture;
#[cfg(feature = "ebpf")]
use crate::trace;
use crate::units::parse_size;
use crate::value_sizes::{ValueSizes, parse_value_size};
use crate::values::ValueKind;
use crate::ycsb::{Distribution, Workload};

/// Workloads, baselines and reports for Lightswap.
///
/// Exit codes: 0 success, 1 a failure or wrong values, 2 a mistake on the command line, 130 or 143 stopped by a signal, 141 by a
/// reader of its output that went away.
#[derive(Debug, Parser)]
#[command(name = "lightswap-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare dram, kernel-swap-ssd and lightswap at 50 % and 25 % local memory; --redis: the same of Redis at 25 %
    Demo(DemoArguments),
    /// Kill a memory server of a mirror under load, let it return empty, and check that nothing is lost, wrong or late
    DemoRemote(demo_remote::Options),
    /// Have Redis write a dump of more data than its local memory holds while it serves, and check the dump with a stock Redis
    Bgsave(bgsave::Options),
    /// Compare all configurations over local memory, workloads, value sizes and request rates; takes up where a run was ended
    Grid(GridArguments),
    /// List the configurations, what they are and whether they can run here
    Configurations,
    /// Start a server in one configuration, load it and run workloads on it
    Run(RunArguments),
    /// Load any running memcached or Redis and run workloads on it
    Load(LoadArguments),
    /// Measure single steps: notification, fault handling, kernel swap beside them
    #[command(subcommand)]
    Micro(micro::Command),
    /// Serve made-up values; the ceiling of load generators is measured against it
    #[command(hide = true)]
    NullServer(null_server::Options),
    /// Run a patched memcached on a backend that fails on purpose, and check every answer
    Torture(torture::Options),
    /// Show the page faults of a running process that pages with Lightswap: rates, notification latency, a live heat map (root)
    #[cfg(feature = "ebpf")]
    Trace(trace::Options),
    /// Make an HTML report of result files
    Report(ReportArguments),
    /// Print a summary of result files in Markdown
    Summary(SummaryArguments),
    /// Compare two result files: ratios, spreads, and what became worse (then the exit code is 1)
    Compare(CompareArguments),
    /// Remove what a killed run left: servers, cgroups, swap files, kernel settings
    Clean,
}

#[derive(Debug, Clone, Args)]
pub struct ShapeArguments {
    /// Number of records
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub records: u64,
    /// Size of a record's value: all ten fields of YCSB's record as one memcached value. An update writes all of it
    /// (`writeallfields=true`), so records keep their size
    #[arg(long, value_name = "SIZE", default_value = "1000", value_parser = parse_value_size)]
    pub value_size: usize,
    /// Values of several sizes instead: sizes and the percent of the records that have them. Every record keeps its size
    #[arg(long, value_name = "SIZE:PERCENT,...", conflicts_with = "value_size")]
    pub value_mix: Option<ValueSizes>,
    /// What values are made of: random characters, which do not compress, or text as in JSON, which compresses 2 to 3 times. All of their bytes are checked
    #[arg(long, value_enum, default_value_t = ValueKind::Random)]
    pub values: ValueKind,
    /// Connections, each with one operation under way
    #[arg(long, default_value_t = 64, value_parser = parse_connections)]
    pub connections: usize,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1, value_parser = parse_connections)]
    pub client_threads: usize,
    /// What Redis keeps records as
    #[arg(long, value_enum, default_value_t)]
    pub data_type: DataType,
}

/// A mistake on the command line that clap does not see; the exit code tells it from a failure.
#[derive(Debug)]
pub struct Mistake(pub String);

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

impl ShapeArguments {
    /// Of records on such a server; with an index of their keys if one of the workloads scans.
    pub fn shape_on(&self, kind: ServerKind, workloads: &[Workload]) -> Result<Shape, Mistake> {
        let scans = workloads.iter().any(|workload| workload.scans());
        if scans && kind == ServerKind::Memcached {
            return Err(Mistake("YCSB E scans ranges of keys, which memcached cannot do; leave it out of --workload, or run it on Redis".into()));
        }
        let shape = Shape { protocol: kind.protocol(self.data_type, scans), ..self.shape()? };
        let (least, data_type) = (shape.protocol.value_size_min(), self.data_type.name());
        match shape.value_sizes.parts().iter().map(|part| part.size).min() {
            Some(smallest) if smallest < least => Err(Mistake(format!(
                "values of {smallest} bytes are too small for {data_type}: each of ten fields is checked by itself; use at least {least}"
            ))),
            _ => Ok(shape),
        }
    }

    /// Without what depends on the server.
    pub fn shape(&self) -> Result<Shape, Mistake> {
        if self.connections < self.client_threads {
            let (connections, threads) = (self.connections, self.client_threads);
            return Err(Mistake(format!("{connections} connections cannot be spread over {threads} client threads; give each at least one")));
        }
        let value_sizes = self.value_mix.unwrap_or(ValueSizes::fixed(self.value_size));
        let Self { records, values: value_kind, connections, client_threads, .. } = *self;
        Ok(Shape { records, value_sizes, value_kind, connections, client_threads, protocol: Protocol::Memcached })
    }
}

#[derive(Debug, Clone, Args)]
pub struct TimingArguments {
    /// YCSB core workloads and two plainer ones, run one after the other on the same data. E scans, which memcached cannot
    #[arg(long, value_enum, value_delimiter = ',', ignore_case = true, default_value = "c")]
    pub workload: Vec<Workload>,
    /// Draw keys by this distribution instead of the workload's own
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,
    /// Seconds of load before measuring
    #[arg(long, default_value = "3", value_parser = parse_seconds)]
    pub warm_up_seconds: Duration,
    /// Seconds of measuring
    #[arg(long, default_value = "10", value_parser = parse_duration)]
    pub seconds: Duration,
    /// An open loop: this many operations a second are due, evenly spaced, and latencies count from when they were due; without it each connection
    /// asks again when it was answered
    #[arg(long, value_name = "OPERATIONS", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Beside the load, so many reads a second of a few keys that stay in memory, by connections of their own: how long do requests take that need no
    /// swapped-out page?
    #[arg(long, value_name = "OPERATIONS", value_parser = parse_rate)]
    pub probe: Option<f64>,
}

#[derive(Debug, Clone, Args)]
pub struct ServerArguments {
    /// Upstream memcached: a path, or a program on PATH
    #[arg(long, value_name = "PATH", default_value = "memcached")]
    pub memcached_stock: PathBuf,
    /// memcached with Lightswap
    #[arg(long, value_name = "PATH")]
    pub memcached_lightswap: Option<PathBuf>,
    /// Upstream Redis: a path, or a program on PATH
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    pub redis_stock: PathBuf,
    /// Redis with Lightswap
    #[arg(long, value_name = "PATH")]
    pub redis_lightswap: Option<PathBuf>,
    /// Where swap file, backend file and server log are made (and removed)
    #[arg(long, value_name = "DIR", default_value = "build/bench")]
    pub directory: PathBuf,
    /// How the load generator talks to the server
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: Transport,
    /// One more argument for every server; repeatable
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub server_argument: Vec<String>,
    /// One more argument for patched servers; repeatable
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub lightswap_argument: Vec<String>,
}

impl ServerArguments {
    pub fn programs(&self) -> Programs {
        Programs {
            memcached_stock: Some(self.memcached_stock.clone()),
            memcached_lightswap: self.memcached_lightswap.clone(),
            redis_stock: Some(self.redis_stock.clone()),
            redis_lightswap: self.redis_lightswap.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// One repetition and short runs: about 3 minutes instead of 10; of Redis 3 instead of 5
    #[arg(long)]
    pub quick: bool,
    /// Redis instead of memcached: in memory, on kernel swap (disk and zram) and on Lightswap at 25 %, and a dump under load
    #[arg(long)]
    pub redis: bool,
    /// Repetitions of every cell; 3, or 1 with --quick
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: Option<u32>,
    /// Where the results go; results/demo.json or results/demo-redis.json when not given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where the report goes; results/demo.html or results/demo-redis.html when not given
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArguments,
    #[command(flatten)]
    pub shape: ShapeArguments,
}

impl DemoArguments {
    pub fn file(&self, given: &Option<PathBuf>, end: &str) -> PathBuf {
        let name = if self.redis { "demo-redis" } else { "demo" };
        given.clone().unwrap_or_else(|| format!("results/{name}.{end}").into())
    }
}

#[derive(Debug, Args)]
pub struct GridArguments {
    /// One repetition, fewer cells, short runs
    #[arg(long)]
    pub quick: bool,
    /// Redis's configurations instead of memcached's, where none are named
    #[arg(long, conflicts_with = "configurations")]
    pub redis: bool,
    /// Only say what would be measured and how long it takes
    #[arg(long)]
    pub plan: bool,
    /// Measure everything again, whatever the results say
    #[arg(long)]
    pub fresh: bool,
    /// Only these; names or paths of files. All when not given. Their repetitions take turns, every other time backwards
    #[arg(long, value_name = "NAME|FILE.toml", value_delimiter = ',')]
    pub configurations: Vec<String>,
    /// Only these workloads
    #[arg(long, value_enum, value_delimiter = ',', ignore_case = true)]
    pub workloads: Vec<Workload>,
    /// Memory limits as parts of the data; 1 stands for the configurations without a limit
    #[arg(long, value_delimiter = ',', value_parser = parse_ratio)]
    pub ratios: Vec<f64>,
    /// Repetitions of every cell, instead of the plan's own numbers
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: Option<u32>,
    /// Where the results go. Cells that are there already are not measured again
    #[arg(long, value_name = "FILE", default_value = "results/grid.json")]
    pub out: PathBuf,
    #[command(flatten)]
    pub server: ServerArguments,
    #[command(flatten)]
    pub shape: ShapeArguments,
}

#[derive(Debug, Args)]
pub struct RunArguments {
    /// A name that `configurations` lists, or the path of a file of the same form. Of several, repetitions take turns, every other time backwards
    #[arg(long, value_name = "NAME|FILE.toml", value_delimiter = ',', required = true)]
    pub configuration: Vec<String>,
    /// Memory limit of the whole server process as a part of the data: what the stock server needs resident
    #[arg(long, default_value = "0.25", value_parser = parse_ratio)]
    pub ratio: f64,
    /// Size of the data; measured with the stock server when not given
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub data_size: Option<u64>,
    /// Server threads; the configuration's usual number when not given
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=128))]
    pub server_threads: Vec<u32>,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub timing: TimingArguments,
    #[command(flatten)]
    pub server: ServerArguments,
    #[command(flatten)]
    pub shape: ShapeArguments,
}

#[derive(Debug, Args)]
pub struct LoadArguments {
    /// HOST:PORT or unix:PATH
    pub server: Endpoint,
    /// What the server speaks
    #[arg(long, value_enum, default_value_t)]
    pub protocol: ServerKind,
    /// Only load the records, run nothing
    #[arg(long)]
    pub only_load: bool,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Then also run memtier_benchmark, if it is on PATH: its records are loaded beside the others, and 10 % of its operations are writes
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "rate")]
    pub memtier: Vec<memtier::Pattern>,
    /// Then also run redis-benchmark, if it is on PATH: GETs of records of its own, which are loaded beside the others
    #[arg(long, conflicts_with = "rate")]
    pub redis_benchmark: bool,
    #[command(flatten)]
    pub timing: TimingArguments,
    #[command(flatten)]
    pub shape: ShapeArguments,
}

fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=20_000) => Ok(count),
        _ => Err("a number from 1 to 20000 is needed".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0 to 86400 is needed".into()),
    }
}

/// Of something that makes no sense without any time.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_seconds(text) {
        Ok(time) if time >= Duration::from_millis(100) => Ok(time),
        _ => Err("a number of seconds from 0.1 to 86400 is needed".into()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=1e8).contains(&rate) => Ok(rate),
        _ => Err("a number of operations a second from 0.01 to 1e8 is needed".into()),
    }
}

pub fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok(ratio),
        _ => Err("a number above 0 and up to 1 is needed, such as 0.25".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_input_is_refused() {
        for line in [
            "run --configuration lightswap --ratio 0",
            "demo-remote --seconds 5",
            "demo-remote --seconds 20 --quick",
            "run --configuration lightswap --ratio nan",
            "grid --workloads x",
            "grid --ratios 0.5,2",
            "grid --repetitions 0",
            "load localhost",
            "load 127.0.0.1:1 --protocol http",
            "load 127.0.0.1:1 --data-type lists",
            "grid --redis --configurations dram",
            "bgsave --seconds 1",
            "load 127.0.0.1:1 --seconds -1",
            "load 127.0.0.1:1 --seconds 0",
            "run --configuration dram --seconds 0.01",
            "load 127.0.0.1:1 --seconds inf",
            "load 127.0.0.1:1 --value-size 8",
            "load 127.0.0.1:1 --connections 0",
            "load 127.0.0.1:1 --records 0",
            "load 127.0.0.1:1 --rate 0",
            "load 127.0.0.1:1 --rate nan",
            "load 127.0.0.1:1 --value-mix 100:50",
            "load 127.0.0.1:1 --values noise",
            "load 127.0.0.1:1 --value-size 100 --value-mix 100:50,200:50",
            "report --out x",
            "compare a.json",
            "compare a.json b.json --threshold much",
        ] {
            let words = std::iter::once("lightswap-bench").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn refusals_help() {
        for (line, part) in [
            ("run --configuration dram --workload a,unifrom", "'uniform'"),
            ("run --configuration dram --workload sequental", "'sequential'"),
            ("run --configuration dram --workload ycsb-x", "a, b, c, d, e, f, uniform, sequential"),
            ("load 127.0.0.1:1 --value-mix 100:50,7:50", "in \"7:50\" at character 8"),
        ] {
            let words = std::iter::once("lightswap-bench").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn workloads_and_values_must_suit_the_server() {
        let arguments = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Load(arguments) => arguments,
            other => panic!("{other:?}"),
        };
        let shape = |line: &str| {
            let arguments = arguments(line);
            arguments.shape.shape_on(arguments.protocol, &arguments.timing.workload).map_err(|mistake| mistake.to_string())
        };
        assert!(shape("x load unix:/x --workload a,e").unwrap_err().contains("memcached cannot do"));
        let on_redis = shape("x load unix:/x --workload a,e --protocol redis").unwrap();
        assert_eq!(on_redis.protocol, Protocol::Redis { data_type: DataType::Strings, is_indexed: true });
        assert!(!shape("x load unix:/x --protocol redis").unwrap().protocol.is_indexed());
        assert!(shape("x load unix:/x --protocol redis --data-type hashes --value-size 319").unwrap_err().contains("at least 320"));
        assert!(shape("x load unix:/x --protocol redis --data-type hashes --value-size 320").is_ok());
    }

    #[test]
    fn good_input_is_accepted() {
        for line in [
            "demo --quick --out a --html b --memcached-stock c --memcached-lightswap d --directory e",
            "run --workload C,a --configuration kernel-swap-ssd --ratio 0.5 --server-threads 2,4 --json x",
            "load unix:/tmp/x --only-load",
            "load unix:/tmp/x --values text",
            "load unix:/tmp/x --workload ycsb-a,Uniform,sequential",
            "run --configuration dram --server-argument -v",
            "demo --redis --quick --redis-stock c --redis-lightswap d",
            "grid --redis --plan --data-type hashes",
            "load unix:/tmp/x --protocol redis --data-type fields --workload e --probe 500 --redis-benchmark",
            "bgsave --quick --configurations redis-lightswap --redis-lightswap d",
            "run --configuration before.toml,lightswap --repetitions 3",
            "load 127.0.0.1:1 --value-mix 100:25,1000:25,4k:25,16384:25 --rate 1e4",
            "grid --plan --quick --configurations dram,lightswap --workloads a,ycsb-c --ratios 1,0.25 --repetitions 2",
            "demo-remote --quick --workload C --ratio 0.5 --records 1000",
            "configurations",
            "report --out x y.json z.json --markdown w.md",
            "summary y.json z.json",
            "compare a.json b.json --threshold 5%",
            "clean",
        ] {
            let words = std::iter::once("lightswap-bench").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
