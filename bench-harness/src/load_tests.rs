//! Tests of the load generator as a user calls it, against stock memcached and against servers that lie.
//!
//! They run in this process and not from `tests/`: for those cargo would build the library twice, with and without unwinding, into files of
//! the same name, because it also makes a C library.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use serde_json::Value;

use crate::budget::server_memory_mib;
use crate::cli::Cli;
use crate::endpoint::Endpoint;
use crate::execute;
use crate::generator::{Generator, Shape};
use crate::protocol::Protocol;
use crate::value_sizes::ValueSizes;
use crate::values::ValueKind;
use crate::verify::Verified;
use crate::ycsb::append_key;

/// True: success. False: it ran, but found wrong values.
pub fn bench(arguments: &[&str]) -> Result<bool> {
    let words = std::iter::once("lightswap-bench").chain(arguments.iter().copied());
    execute(&Cli::try_parse_from(words)?)
}

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lightswap-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn runs(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("a result file");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    results["runs"].as_array().expect("runs").clone()
}

/// Killed at the end of the test, however it ends.
struct Memcached(Child);

impl Drop for Memcached {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_memcached(socket: &str, memory_mib: u64) -> Option<Memcached> {
    let child = Command::new("memcached").args(["-u", "root", "-m", &memory_mib.to_string(), "-t", "2", "-s", socket]).stderr(Stdio::null()).spawn();
    let Ok(child) = child else {
        eprintln!("skipped: memcached is not on PATH; apt-get install memcached");
        return None;
    };
    let end = Instant::now() + Duration::from_secs(10);
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < end, "memcached does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(Memcached(child))
}

#[test]
fn every_workload_runs_on_memcached_without_a_wrong_value() {
    let scratch = Scratch::new("stock");
    let socket = scratch.file("socket");
    let Some(_memcached) = start_memcached(&socket, 64) else {
        return;
    };
    let server = format!("unix:{socket}");
    let json = scratch.file("out.json");
    // Few records and many connections: reads and updates of the same key race all the time.
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--records", "50", "--connections", "32", "--client-threads", "2", "--workload", "a,b,c,d,f,uniform,sequential",
        "--warm-up-seconds", "0.1", "--seconds", "0.4", "--json", &json,
    ]);
    assert!(outcome.expect("a run"));
    let runs = runs(&json);
    let names: Vec<&str> = runs.iter().filter_map(|run| run["workload"].as_str()).collect();
    assert_eq!(names, ["ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-f", "uniform", "sequential"]);
    for run in &runs {
        assert_eq!(run["wrong_values"], 0, "{run}");
        assert_eq!(run["hit_ratio"], 1.0, "{run}");
        assert!(run["operations"].as_u64() > Some(100), "{run}");
        let buckets: u64 = run["latency_buckets"].as_array().expect("buckets").iter().filter_map(|bucket| bucket[1].as_u64()).sum();
        assert_eq!(run["operations"].as_u64(), Some(buckets), "{run}");
        assert!(run["time_line"].as_array().is_some_and(|pieces| !pieces.is_empty()), "{run}");
    }
    assert_eq!((&runs[5]["distribution"], &runs[6]["distribution"]), (&"uniform".into(), &"sequential".into()));
}

#[test]
fn a_mix_of_sizes_fits_into_the_memory_reckoned_for_it() {
    let scratch = Scratch::new("mix");
    let socket = scratch.file("socket");
    let (records, mix) = (30_000, "100:25,1000:25,4096:25,16384:25");
    let mib = server_memory_mib(records, &mix.parse().expect("a mix"));
    let Some(_memcached) = start_memcached(&socket, mib) else {
        return;
    };
    let server = format!("unix:{socket}");
    let json = scratch.file("out.json");
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--records", &records.to_string(), "--value-mix", mix, "--workload", "a,sequential",
        "--warm-up-seconds", "0", "--seconds", "0.4", "--json", &json,
    ]);
    assert!(outcome.expect("a run"));
    for run in runs(&json) {
        assert_eq!((&run["wrong_values"], &run["hit_ratio"]), (&0.into(), &1.0.into()), "{run}");
        assert_eq!((&run["value_mix"], &run["value_size_bytes"]), (&mix.into(), &5_395.into()));
    }
    let mut connection = std::os::unix::net::UnixStream::connect(&socket).expect("a connection");
    connection.write_all(b"stats\r\nquit\r\n").expect("a request");
    let mut statistics = String::new();
    connection.read_to_string(&mut statistics).expect("statistics");
    assert!(statistics.contains("STAT evictions 0\r\n") && statistics.contains(&format!("STAT curr_items {records}\r\n")), "{statistics}");
}

#[test]
fn verifying_finds_what_is_missing_and_what_is_wrong() {
    let scratch = Scratch::new("verify");
    let socket = scratch.file("socket");
    let Some(_memcached) = start_memcached(&socket, 64) else {
        return;
    };
    let shape = Shape {
        records: 1_000,
        value_sizes: ValueSizes::fixed(100),
        value_kind: ValueKind::Random,
        connections: 8,
        client_threads: 2,
        protocol: Protocol::Memcached,
    };
    let mut generator = Generator::connect(&Endpoint::Unix(socket.clone().into()), shape).expect("connections");
    generator.load("loading").expect("a load");
    let good = Verified { records: 1_000, ..Verified::default() };
    assert_eq!(generator.verify("verifying").expect("answers"), good);
    let name = |key| {
        let mut name = Vec::new();
        append_key(key, &mut name);
        String::from_utf8(name).expect("a name")
    };
    let mut connection = std::os::unix::net::UnixStream::connect(&socket).expect("a connection");
    let requests = format!("delete {}\r\nset {} 0 0 3\r\nabc\r\nquit\r\n", name(17), name(998));
    connection.write_all(requests.as_bytes()).expect("requests");
    connection.read_to_string(&mut String::new()).expect("answers");
    let found = generator.verify("verifying").expect("answers");
    assert_eq!((found.records, found.missing, found.wrong, found.refused), (1_000, 1, 1, 0));
    assert!(found.first.is_some_and(|first| first.contains("key 17 ") || first.contains("key 998:")));
}

#[test]
fn evicted_records_are_misses_and_not_wrong() {
    let scratch = Scratch::new("evict");
    let socket = scratch.file("socket");
    let Some(_memcached) = start_memcached(&socket, 64) else {
        return;
    };
    let server = format!("unix:{socket}");
    let json = scratch.file("out.json");
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--records", "1000", "--value-size", "200k", "--distribution", "uniform",
        "--warm-up-seconds", "0", "--seconds", "0.3", "--json", &json,
    ]);
    assert!(outcome.expect("a run"));
    let run = &runs(&json)[0];
    let hit_ratio = run["hit_ratio"].as_f64().expect("a number");
    assert!(hit_ratio > 0.0 && hit_ratio < 0.9, "{run}");
    assert_eq!(run["wrong_values"], 0);
}

/// What the fake server does to the values it holds.
#[derive(Clone, Copy)]
enum Lie {
    /// Keeps the first value of every key.
    Stale,
    /// Changes the last byte.
    Damaged,
    /// Answers with another key's value.
    Foreign,
    /// Ends the connection in the middle of an answer.
    Cut,
    /// Tells no lie, but answers nobody for a while after the first hundred reads.
    Stalling,
    /// Answers nobody at all.
    Silent,
}

const STALL: Duration = Duration::from_millis(400);

#[derive(Default)]
struct Held {
    values: HashMap<String, Vec<u8>>,
    num_reads: u32,
}

type Values = Arc<Mutex<Held>>;

fn serve(mut socket: TcpStream, values: &Values, lie: Lie) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let key = words.get(1).copied().unwrap_or_default().to_owned();
        if matches!(lie, Lie::Silent) {
            continue;
        }
        if words[0] == "set" {
            let mut value = vec![0; words[4].parse::<usize>().expect("a length") + 2];
            reader.read_exact(&mut value)?;
            value.truncate(value.len() - 2);
            let values = &mut values.lock().expect("lock").values;
            match lie {
                Lie::Stale => drop(values.entry(key).or_insert(value)),
                _ => drop(values.insert(key, value)),
            }
            socket.write_all(b"STORED\r\n")?;
            continue;
        }
        let mut held = values.lock().expect("lock");
        let mut value = held.values[&key].clone();
        match lie {
            Lie::Stale | Lie::Silent => {}
            Lie::Stalling => {
                held.num_reads += 1;
                if held.num_reads == 100 {
                    // With the lock, so that all connections wait.
                    std::thread::sleep(STALL);
                }
            }
            Lie::Damaged => *value.last_mut().expect("a byte") ^= 1,
            Lie::Foreign => {
                let other = held.values.keys().find(|other| **other != key).expect("another key");
                value = held.values[other].clone();
            }
            Lie::Cut => value.truncate(value.len() / 2),
        }
        drop(held);
        let length = if matches!(lie, Lie::Cut) { value.len() * 2 } else { value.len() };
        let mut answer = format!("VALUE {key} 0 {length}\r\n").into_bytes();
        answer.extend_from_slice(&value);
        if matches!(lie, Lie::Cut) {
            return socket.write_all(&answer);
        }
        answer.extend_from_slice(b"\r\nEND\r\n");
        socket.write_all(&answer)?;
    }
}

const UPDATES: [&str; 4] = ["--workload", "a", "--seconds", "0.3"];

fn run_on_liar(lie: Lie, name: &str, more: &[&str]) -> (Result<bool>, Option<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("an address").to_string();
    let values = Values::default();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let values = Arc::clone(&values);
            std::thread::spawn(move || serve(socket, &values, lie));
        }
    });
    let scratch = Scratch::new(name);
    let json = scratch.file("out.json");
    let arguments = ["load", &server, "--records", "20", "--connections", "4", "--warm-up-seconds", "0", "--json", &json];
    let outcome = bench(&[&arguments, more].concat());
    let run = std::path::Path::new(&json).exists().then(|| runs(&json)[0].clone());
    (outcome, run)
}

#[test]
fn stale_damaged_and_foreign_values_are_counted() {
    for (lie, name) in [(Lie::Stale, "stale"), (Lie::Damaged, "damaged"), (Lie::Foreign, "foreign")] {
        let (outcome, run) = run_on_liar(lie, name, &UPDATES);
        assert!(!outcome.expect("a run"), "{name}");
        let run = run.expect("a result");
        assert!(run["wrong_values"].as_u64() > Some(0), "{name}: {run}");
        assert!(run["first_wrong_value"].is_string(), "{name}: {run}");
    }
}

/// Only lower bounds: a busy machine can make all of this slower and nothing faster.
#[test]
fn a_stall_shows_in_the_latencies_of_an_open_loop() {
    let more = ["--workload", "c", "--seconds", "1.2", "--rate", "1000"];
    let (outcome, run) = run_on_liar(Lie::Stalling, "stalling", &more);
    assert!(outcome.expect("a run"));
    let run = run.expect("a result");
    let buckets = run["latency_buckets"].as_array().expect("buckets");
    let count = |from_us: f64| -> u64 { buckets.iter().filter(|b| b[0].as_f64() > Some(from_us)).filter_map(|b| b[1].as_u64()).sum() };
    // Four connections, so a closed loop would see four slow answers; here 200 operations were due in the first half of the stall.
    assert!(count(200_000.0) >= 190, "{run}");
    assert!(run["latency_us"]["max"].as_f64() >= Some(390_000.0), "{run}");
    // All connections waited, and the last piece of the time line has the whole of it.
    assert!(run["longest_pause_seconds"].as_f64() >= Some(0.39), "{run}");
    assert_eq!(run["due_per_second"], 1_000.0);
    // All that was due is accounted for, done or not.
    let unfinished = run["unfinished_operations"].as_u64().expect("a number");
    assert_eq!(count(0.0), run["operations"].as_u64().expect("a number") + unfinished);
    let due = (run["duration_seconds"].as_f64().expect("a number") * 1_000.0) as u64 + 1;
    assert!(count(0.0).abs_diff(due) <= 1, "{} of {due}", count(0.0));
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let (outcome, run) = run_on_liar(Lie::Cut, "cut", &UPDATES);
    assert!(run.is_none());
    let text = format!("{:#}", outcome.expect_err("no result"));
    assert!(text.contains("the server closed a connection"), "{text}");
}

#[test]
fn a_server_that_is_silent_while_records_are_loaded_is_an_error() {
    let (outcome, run) = run_on_liar(Lie::Silent, "silent", &UPDATES);
    assert!(run.is_none());
    let text = format!("{:#}", outcome.expect_err("no result"));
    assert!(text.contains("the server did not answer for 5 s while records were loaded"), "{text}");
}

#[test]
fn a_missing_server_or_file_is_named() {
    let text = format!("{:#}", bench(&["load", "127.0.0.1:1"]).expect_err("nobody listens"));
    assert!(text.contains("127.0.0.1:1") && text.contains("is it running"), "{text}");
    let text = format!("{:#}", bench(&["report", "--out", "x.html", "no-such-file.json"]).expect_err("no file"));
    assert!(text.contains("no-such-file.json"), "{text}");
}
