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

use crate::cli::Cli;
use crate::execute;

/// True: success. False: it ran, but found wrong values.
fn bench(arguments: &[&str]) -> Result<bool> {
    let words = std::iter::once("lightswap-bench").chain(arguments.iter().copied());
    execute(&Cli::try_parse_from(words)?)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lightswap-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn runs(file: &str) -> Vec<Value> {
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

fn start_memcached(socket: &str) -> Option<Memcached> {
    let child = Command::new("memcached").args(["-u", "root", "-m", "64", "-t", "2", "-s", socket]).stderr(Stdio::null()).spawn();
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
    let Some(_memcached) = start_memcached(&socket) else {
        return;
    };
    let server = format!("unix:{socket}");
    let json = scratch.file("out.json");
    // Few records and many connections: reads and updates of the same key race all the time.
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--records", "50", "--connections", "32", "--client-threads", "2", "--workload", "a,b,c,d,f",
        "--warm-up-seconds", "0.1", "--seconds", "0.4", "--json", &json,
    ]);
    assert!(outcome.expect("a run"));
    let runs = runs(&json);
    assert_eq!(runs.len(), 5);
    for run in runs {
        assert_eq!(run["wrong_values"], 0, "{run}");
        assert_eq!(run["hit_ratio"], 1.0, "{run}");
        assert!(run["operations"].as_u64() > Some(100), "{run}");
    }
}

#[test]
fn evicted_records_are_misses_and_not_wrong() {
    let scratch = Scratch::new("evict");
    let socket = scratch.file("socket");
    let Some(_memcached) = start_memcached(&socket) else {
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
}

type Values = Arc<Mutex<HashMap<String, Vec<u8>>>>;

fn serve(mut socket: TcpStream, values: &Values, lie: Lie) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let key = words[1].to_owned();
        if words[0] == "set" {
            let mut value = vec![0; words[4].parse::<usize>().expect("a length") + 2];
            reader.read_exact(&mut value)?;
            value.truncate(value.len() - 2);
            let mut values = values.lock().expect("lock");
            match lie {
                Lie::Stale => drop(values.entry(key).or_insert(value)),
                _ => drop(values.insert(key, value)),
            }
            socket.write_all(b"STORED\r\n")?;
            continue;
        }
        let mut value = values.lock().expect("lock")[&key].clone();
        match lie {
            Lie::Stale => {}
            Lie::Damaged => *value.last_mut().expect("a byte") ^= 1,
            Lie::Foreign => {
                let values = values.lock().expect("lock");
                let other = values.keys().find(|other| **other != key).expect("another key");
                value = values[other].clone();
            }
            Lie::Cut => value.truncate(value.len() / 2),
        }
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

fn run_on_liar(lie: Lie, name: &str) -> (Result<bool>, Option<Value>) {
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
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--records", "20", "--connections", "4", "--workload", "a", "--warm-up-seconds", "0",
        "--seconds", "0.3", "--json", &json,
    ]);
    let run = std::path::Path::new(&json).exists().then(|| runs(&json)[0].clone());
    (outcome, run)
}

#[test]
fn stale_damaged_and_foreign_values_are_counted() {
    for (lie, name) in [(Lie::Stale, "stale"), (Lie::Damaged, "damaged"), (Lie::Foreign, "foreign")] {
        let (outcome, run) = run_on_liar(lie, name);
        assert!(!outcome.expect("a run"), "{name}");
        let run = run.expect("a result");
        assert!(run["wrong_values"].as_u64() > Some(0), "{name}: {run}");
        assert!(run["first_wrong_value"].is_string(), "{name}: {run}");
    }
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let (outcome, run) = run_on_liar(Lie::Cut, "cut");
    assert!(run.is_none());
    let text = format!("{:#}", outcome.expect_err("no result"));
    assert!(text.contains("the server closed a connection"), "{text}");
}

#[test]
fn a_missing_server_or_file_is_named() {
    let text = format!("{:#}", bench(&["load", "127.0.0.1:1"]).expect_err("nobody listens"));
    assert!(text.contains("127.0.0.1:1") && text.contains("is it running"), "{text}");
    let text = format!("{:#}", bench(&["report", "--out", "x.html", "no-such-file.json"]).expect_err("no file"));
    assert!(text.contains("no-such-file.json"), "{text}");
}
