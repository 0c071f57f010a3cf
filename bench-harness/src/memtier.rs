//! memtier_benchmark as a second opinion: a load generator of other people against the same servers.
//!
//! It is not part of Debian and is used where it is on PATH. Its zipfian keys are plain Zipf, whose hot keys are neighbours: such results must not be
//! named after YCSB, and are not. All its clients would draw the same keys at the same time without `--distinct-client-seed`, which would make any
//! server that pages look several times better than it is. It checks no values, so a `Run` of it has no wrong ones whatever it read.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;

use crate::endpoint::Endpoint;
use crate::generator::Shape;
use crate::outside::{GRACE, execute, nameless_file};
use crate::protocol::Protocol;
use crate::results::{Details, EXTERNAL, Run};
use crate::server_kind::on_path;
use crate::tally::LatencyUs;

pub const NAME: &str = "memtier_benchmark";
const LOAD_TIMEOUT: Duration = Duration::from_secs(3_600);

/// How keys are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Every key as likely
    Uniform,
    /// A bell around the middle key
    Gaussian,
    /// Plain Zipf with YCSB's exponent, 0.99; hot keys are neighbours
    Zipfian,
}

impl Pattern {
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Gaussian => "gaussian",
            Self::Zipfian => "plain-zipfian",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Uniform => &["--key-pattern=R:R"],
            Self::Gaussian => &["--key-pattern=G:G"],
            Self::Zipfian => &["--key-pattern=Z:Z", "--key-zipf-exp=0.99"],
        }
    }
}

/// One closed-loop run; records are those of `load`.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub shape: Shape,
    pub pattern: Pattern,
    /// The others are reads.
    pub percent_writes: u32,
    pub warm_up: Duration,
    pub duration: Duration,
}

impl Plan {
    /// As results name it.
    pub fn workload(&self) -> String {
        let writes = if self.percent_writes == 0 { String::new() } else { format!("-{}-writes", self.percent_writes) };
        format!("memtier-{}{writes}", self.pattern.name())
    }
}

/// The program on PATH.
pub fn find() -> Option<PathBuf> {
    Some(on_path(Path::new(NAME))).filter(|path| path.is_file())
}

fn common_arguments(endpoint: &Endpoint, shape: &Shape) -> Vec<String> {
    let mut arguments = match endpoint {
        Endpoint::Tcp(address) => vec![format!("--server={}", address.ip()), format!("--port={}", address.port())],
        Endpoint::Unix(path) => vec![format!("--unix-socket={}", path.display())],
    };
    arguments.extend([
        format!("--protocol={}", if shape.protocol == Protocol::Memcached { "memcache_text" } else { "redis" }),
        format!("--threads={}", shape.client_threads),
        format!("--clients={}", shape.connections / shape.client_threads),
        "--key-minimum=1".into(),
        format!("--key-maximum={}", shape.records),
        "--distinct-client-seed".into(),
        "--hide-histogram".into(),
    ]);
    arguments.push(match shape.value_sizes.mix() {
        mix if mix.is_empty() => format!("--data-size={}", shape.value_sizes.mean()),
        // Here each write draws its size, so a record may change it.
        mix => format!("--data-size-list={mix}"),
    });
    arguments
}

fn run_arguments(plan: &Plan, duration: Duration) -> Vec<String> {
    let (writes, reads) = match plan.percent_writes.min(100) {
        0 => (0, 1),
        50 => (1, 1),
        100 => (1, 0),
        percent => (percent, 100 - percent),
    };
    let mut arguments = vec![
        format!("--ratio={writes}:{reads}"),
        format!("--test-time={}", duration.as_secs_f64().ceil().max(1.0)),
        "--print-percentiles=50,90,99,99.9".into(),
    ];
    arguments.extend(plan.pattern.arguments().iter().map(|&argument| argument.to_owned()));
    arguments
}

/// Sets every record of its own kind once: its keys are not those of the other generator.
pub fn load(program: &Path, endpoint: &Endpoint, shape: Shape) -> Result<()> {
    let mut arguments = common_arguments(endpoint, &shape);
    arguments.extend(["--ratio=1:0".into(), "--key-pattern=P:P".into(), "--requests=allkeys".into()]);
    execute(program, endpoint, &arguments, LOAD_TIMEOUT).map(drop)
}

/// Runs it against a running server. The caller adds what it knows of the server.
pub fn run(program: &Path, endpoint: &Endpoint, plan: &Plan) -> Result<Run> {
    let shape = &plan.shape;
    let arguments = |duration| [common_arguments(endpoint, shape), run_arguments(plan, duration)].concat();
    if !plan.warm_up.is_zero() {
        execute(program, endpoint, &arguments(plan.warm_up), plan.warm_up + GRACE)?;
    }
    let mut json = nameless_file("its results")?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), json.as_raw_fd());
    let arguments = [arguments(plan.duration), vec![format!("--json-out-file={path}")]].concat();
    let (cpu_seconds, _) = execute(program, endpoint, &arguments, plan.duration + GRACE)?;
    let mut text = Vec::new();
    json.read_to_end(&mut text).context("cannot read the results of memtier_benchmark")?;
    let mut run = parse(&String::from_utf8_lossy(&text)).with_context(|| format!("{} wrote results that are of no use", program.display()))?;

    run.workload = plan.workload();
    run.server = shape.protocol.server().into();
    run.connections = shape.connections / shape.client_threads * shape.client_threads;
    run.details.transport = match endpoint {
        Endpoint::Tcp(_) => "tcp".into(),
        Endpoint::Unix(_) => "unix".into(),
    };
    run.details.records = shape.records;
    run.details.value_size_bytes = shape.value_sizes.mean();
    run.details.value_mix = shape.value_sizes.mix();
    run.details.distribution = plan.pattern.name().into();
    run.details.warm_up_seconds = plan.warm_up.as_secs_f64();
    run.details.generator_cpu_seconds = cpu_seconds;
    Ok(run)
}

#[derive(Debug, Deserialize)]
struct Output {
    #[serde(rename = "ALL STATS")]
    statistics: Statistics,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Statistics {
    runtime: Runtime,
    sets: Section,
    gets: Section,
    totals: Section,
}

#[derive(Debug, Deserialize)]
struct Runtime {
    #[serde(rename = "Total duration")]
    duration_ms: f64,
    #[serde(rename = "Interrupted", default)]
    interrupted: Value,
}

/// Latencies are in milliseconds. Averages are not read: that of the totals was seen to be 0.
#[derive(Debug, Deserialize)]
struct Section {
    #[serde(rename = "Count")]
    count: u64,
    #[serde(rename = "Ops/sec")]
    operations_per_second: f64,
    #[serde(rename = "Hits/sec")]
    hits_per_second: f64,
    #[serde(rename = "Misses/sec")]
    misses_per_second: f64,
    #[serde(rename = "Connection Errors", default)]
    connection_errors: u64,
    #[serde(rename = "Max Latency", default)]
    max_latency_ms: f64,
    #[serde(rename = "Percentile Latencies", default)]
    percentiles_ms: BTreeMap<String, Value>,
}

impl Section {
    fn latency(&self) -> Result<LatencyUs> {
        let at = |name: &str| -> Result<f64> {
            let ms = self.percentiles_ms.get(name).and_then(Value::as_f64).with_context(|| format!("it has no latency {name}"))?;
            Ok(ms * 1_000.0)
        };
        Ok(LatencyUs { p50: at("p50.00")?, p90: at("p90.00")?, p99: at("p99.00")?, p999: at("p99.90")?, max: self.max_latency_ms * 1_000.0 })
    }
}

/// What the program wrote to its JSON file.
fn parse(text: &str) -> Result<Run> {
    let Output { statistics } = serde_json::from_str(text)?;
    let Statistics { runtime, sets, gets, totals } = statistics;
    if runtime.interrupted == Value::Bool(true) || runtime.interrupted == "true" {
        bail!("its run was interrupted");
    }
    if totals.count == 0 {
        bail!("not one request was answered");
    }
    let looked_up = gets.hits_per_second + gets.misses_per_second;
    let mut latency_by_operation_us = BTreeMap::new();
    for (name, section) in [("read", &gets), ("update", &sets)] {
        if section.count > 0 {
            latency_by_operation_us.insert(name.to_owned(), section.latency()?);
        }
    }
    Ok(Run {
        configuration: EXTERNAL.into(),
        backend: "unknown".into(),
        local_memory_ratio: 1.0,
        repetition: 1,
        operations_per_second: totals.operations_per_second,
        latency_us: totals.latency()?,
        hit_ratio: if looked_up > 0.0 { gets.hits_per_second / looked_up } else { 1.0 },
        details: Details {
            duration_seconds: runtime.duration_ms / 1_000.0,
            operations: totals.count,
            latency_by_operation_us,
            server_errors: totals.connection_errors,
            generator: NAME.into(),
            ..Details::default()
        },
        ..Run::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::DataType;
    use crate::server_kind::ServerKind;
    use crate::value_sizes::ValueSizes;
    use crate::values::ValueKind;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// Written by hand after the description of its form: what is not read is left out.
    const SAMPLE: &str = r#"{
        "configuration": {"server": "127.0.0.1", "protocol": "memcache_text", "ratio": "1:9"},
        "run information": {"Threads": 1, "Connections per thread": 64, "Seconds": 2},
        "ALL STATS": {
            "Runtime": {"Start time": 1000, "Finish time": 3004, "Total duration": 2004, "Time unit": "MILLISECONDS", "Interrupted": "false"},
            "Sets": {"Count": 100, "Ops/sec": 50.0, "Hits/sec": 0.0, "Misses/sec": 0.0, "Average Latency": 0.9, "Max Latency": 1.5,
                     "Percentile Latencies": {"p50.00": 0.4, "p90.00": 0.5, "p99.00": 0.6, "p99.90": 1.5}},
            "Gets": {"Count": 900, "Ops/sec": 450.0, "Hits/sec": 337.5, "Misses/sec": 112.5, "Average Latency": 0.3, "Max Latency": 2.25,
                     "Percentile Latencies": {"p50.00": 0.25, "p90.00": 0.5, "p99.00": 1.0, "p99.90": 2.0, "Histogram log format": {"x": "y"}}},
            "Waits": {"Count": 0, "Ops/sec": 0.0},
            "Totals": {"Count": 1000, "Ops/sec": 500.0, "Hits/sec": 337.5, "Misses/sec": 112.5, "Average Latency": 0.0, "Max Latency": 2.25,
                       "Time-Serie": {"0": {"Count": 500}},
                       "Percentile Latencies": {"p50.00": 0.26, "p90.00": 0.5, "p99.00": 0.99, "p99.90": 2.0}}
        }}"#;

    #[test]
    fn its_json_becomes_a_run() {
        let run = parse(SAMPLE).unwrap();
        assert_eq!((run.operations_per_second, run.hit_ratio, run.details.operations), (500.0, 0.75, 1_000));
        assert_eq!(run.latency_us, LatencyUs { p50: 260.0, p90: 500.0, p99: 990.0, p999: 2_000.0, max: 2_250.0 });
        assert_eq!(run.details.latency_by_operation_us["read"].p50, 250.0);
        assert_eq!(run.details.latency_by_operation_us["update"].max, 1_500.0);
        assert_eq!((run.details.generator.as_str(), run.details.duration_seconds), (NAME, 2.004));
        let only_reads = SAMPLE.replace("\"Count\": 100,", "\"Count\": 0,");
        assert!(!parse(&only_reads).unwrap().details.latency_by_operation_us.contains_key("update"));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for (text, cause) in [
            (String::new(), "EOF"),
            (SAMPLE[..SAMPLE.len() / 2].to_owned(), "EOF"),
            (SAMPLE.replace("500.0", "-nan"), "invalid number"),
            (SAMPLE.replace("\"Totals\"", "\"Sums\""), "missing field `Totals`"),
            (SAMPLE.replace("\"p99.00\": 0.99,", ""), "no latency p99.00"),
            (SAMPLE.replace("\"false\"", "\"true\""), "interrupted"),
            (SAMPLE.replace("\"Count\": 1000", "\"Count\": 0"), "not one request"),
        ] {
            let error = format!("{:#}", parse(&text).expect_err(cause));
            assert!(error.contains(cause), "{cause}: {error}");
        }
    }

    /// A program in its place that writes its results where it is told to, beginning anew, as it does.
    #[test]
    fn results_come_back_without_a_file_that_could_stay() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-memtier", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let program = directory.join("program");
        let run_it = |text: &str| {
            let script = format!(
                "#!/bin/sh\nfor word; do case $word in --json-out-file=*) out=${{word#*=}};; esac; done\ncat >\"$out\" <<'END'\n{text}\nEND\n"
            );
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            let shape = Shape {
                records: 500,
                value_sizes: ValueSizes::fixed(1_000),
                value_kind: ValueKind::Random,
                connections: 64,
                client_threads: 2,
                protocol: Protocol::Memcached,
            };
            let plan = Plan { shape, pattern: Pattern::Uniform, percent_writes: 10, warm_up: Duration::ZERO, duration: Duration::from_secs(1) };
            run(&program, &"127.0.0.1:7".parse().unwrap(), &plan)
        };
        assert_eq!(run_it(SAMPLE).unwrap().operations_per_second, 500.0);
        let error = format!("{:#}", run_it("{").unwrap_err());
        assert!(error.contains("program wrote results that are of no use"), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn arguments_fit_the_plan() {
        let shape = Shape {
            records: 500,
            value_sizes: ValueSizes::fixed(1_000),
            value_kind: ValueKind::Random,
            connections: 64,
            client_threads: 2,
            protocol: Protocol::Memcached,
        };
        let plan = Plan { shape, pattern: Pattern::Zipfian, percent_writes: 5, warm_up: Duration::ZERO, duration: Duration::from_millis(1_500) };
        let endpoint: Endpoint = "127.0.0.1:7".parse().unwrap();
        let line = [common_arguments(&endpoint, &shape), run_arguments(&plan, plan.duration)].concat().join(" ");
        for part in [
            "--server=127.0.0.1 --port=7",
            "--threads=2 --clients=32",
            "--key-maximum=500",
            "--distinct-client-seed",
            "--data-size=1000",
            "--ratio=5:95",
            "--test-time=2",
            "--key-pattern=Z:Z --key-zipf-exp=0.99",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(plan.workload(), "memtier-plain-zipfian-5-writes");
        let redis = Shape { protocol: ServerKind::Redis.protocol(DataType::Strings, false), ..shape };
        for (shape, protocol) in [(shape, "memcache_text"), (redis, "redis")] {
            assert!(common_arguments(&endpoint, &shape).contains(&format!("--protocol={protocol}")), "{protocol}");
        }
        let mixed = Shape { value_sizes: "100:50,1000:50".parse().unwrap(), ..shape };
        assert!(common_arguments(&endpoint, &mixed).contains(&"--data-size-list=100:50,1000:50".to_owned()));
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        let error = execute(Path::new("/bin/sh"), &nobody, &["-c".into(), "echo no such option; exit 3".into()], GRACE).unwrap_err().to_string();
        assert!(error.contains("exit code 3") && error.contains("no such option"), "{error}");
        let error = format!("{:#}", execute(Path::new("/bin/sleep"), &nobody, &["60".into()], Duration::from_millis(50)).unwrap_err());
        assert!(error.contains("did not end within"), "{error}");
    }
}
