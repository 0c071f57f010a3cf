//! Tests of the load generator on Redis as a user calls it: on stock Redis, and on stand-ins that lie.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::endpoint::Endpoint;
use crate::load_tests::{Scratch, bench, runs};
use crate::protocol::Parsed;
use crate::protocol::resp::{Frame, append_array, append_bulk, append_command, parse};
use crate::redis_client;

/// Killed at the end of the test, however it ends.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_redis(scratch: &Scratch) -> Option<(Redis, String)> {
    let socket = scratch.file("socket");
    let arguments = ["--port", "0", "--unixsocket", &socket, "--save", "", "--appendonly", "no", "--hash-max-listpack-value", "128"];
    let child = Command::new("redis-server").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(child) = child else {
        eprintln!("skipped: redis-server is not on PATH; apt-get install redis-server");
        return None;
    };
    let redis = Redis(child);
    let endpoint = Endpoint::Unix(socket.clone().into());
    let end = Instant::now() + Duration::from_secs(10);
    while !redis_client::is_ready(&endpoint) {
        assert!(Instant::now() < end, "redis-server does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some((redis, format!("unix:{socket}")))
}

fn assert_sound(run: &Value) {
    assert_eq!((&run["server"], &run["wrong_values"], &run["server_errors"]), (&"redis".into(), &0.into(), &0.into()), "{run}");
    assert!(run["operations"].as_u64() > Some(50) && run["checked_reads"].as_u64() > Some(50), "{run}");
}

#[test]
fn every_workload_runs_on_redis_without_a_wrong_value() {
    let scratch = Scratch::new("redis");
    let Some((_redis, server)) = start_redis(&scratch) else { return };
    let json = scratch.file("out.json");
    for (data_type, name) in [("strings", Value::Null), ("hashes", "hashes".into()), ("fields", "hash fields".into())] {
        redis_client::command(&server.parse().expect("an address"), &["FLUSHALL"]).expect("an empty server");
        #[rustfmt::skip]
        let outcome = bench(&[
            "load", &server, "--protocol", "redis", "--data-type", data_type, "--records", "50", "--connections", "32", "--client-threads", "2",
            "--workload", "a,b,c,f,uniform,e,d", "--warm-up-seconds", "0.1", "--seconds", "0.3", "--probe", "2000", "--json", &json,
        ]);
        assert!(outcome.expect("a run"));
        let runs = runs(&json);
        let names: Vec<&str> = runs.iter().filter_map(|run| run["workload"].as_str()).collect();
        assert_eq!(names, ["ycsb-a", "ycsb-b", "ycsb-c", "ycsb-f", "uniform", "ycsb-e", "ycsb-d"]);
        for run in &runs {
            assert_sound(run);
            assert_eq!((&run["hit_ratio"], &run["data_type"], &run["is_indexed"]), (&1.0.into(), &name, &true.into()), "{run}");
            // The probe reads beside them, and is not counted among them.
            assert!(run["resident_reads"].as_u64() > Some(100) && run["resident_latency_us"]["p99"].as_f64() > Some(0.0), "{run}");
        }
        // Scans read many records each.
        let scans = &runs[5];
        assert!(scans["latency_by_operation_us"]["scan"]["p50"].as_f64() > Some(0.0), "{scans}");
        assert!(scans["checked_reads"].as_u64() > scans["operations"].as_u64().map(|count| count * 5), "{scans}");
    }
}

#[test]
fn an_open_loop_and_redis_benchmark_run_on_redis() {
    let scratch = Scratch::new("redis-open");
    let Some((_redis, server)) = start_redis(&scratch) else { return };
    let json = scratch.file("out.json");
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--protocol", "redis", "--records", "1000", "--connections", "4", "--warm-up-seconds", "0", "--seconds", "0.5", "--rate", "500",
        "--json", &json,
    ]);
    assert!(outcome.expect("a run"));
    let run = &runs(&json)[0];
    assert_sound(run);
    assert_eq!(run["due_per_second"], 500.0);
    #[rustfmt::skip]
    let outcome = bench(&[
        "load", &server, "--protocol", "redis", "--records", "1000", "--connections", "4", "--only-load", "--seconds", "0.2", "--redis-benchmark",
        "--json", &json,
    ]);
    assert!(outcome.expect("a run"));
    let text = std::fs::read_to_string(&json).expect("results");
    if !text.contains("\"skipped\"") {
        let run = &runs(&json)[0];
        assert_eq!(
            (&run["workload"], &run["generator"], &run["server"]),
            (&"redis-benchmark-get".into(), &"redis-benchmark".into(), &"redis".into())
        );
        assert!(run["operations_per_second"].as_f64() > Some(100.0), "{run}");
    }
}

/// What the stand-in does to what it holds.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    None,
    /// Keeps the first value of every key.
    Stale,
    /// Changes the last byte of a value.
    Damaged,
    /// Answers with another key's value.
    Foreign,
    /// Gives a field of a hash as it was before.
    Torn,
    /// Ends the connection in the middle of an answer.
    Cut,
    /// Refuses every tenth read.
    Refusing,
    /// Speaks another protocol.
    Memcached,
    /// Scans skip a byte of a name.
    WrongName,
}

#[derive(Default)]
struct Held {
    /// Names and values of fields; strings have one without a name.
    values: HashMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>,
    index: BTreeSet<(i64, Vec<u8>)>,
    num_reads: u32,
}

impl Held {
    fn answer(&mut self, words: &[&[u8]], lie: Lie, to: &mut Vec<u8>) {
        let fields = |words: &[&[u8]]| words.chunks(2).map(|pair| (pair[0].to_vec(), pair[1].to_vec())).collect::<BTreeMap<_, _>>();
        let number = |word: &[u8]| std::str::from_utf8(word).expect("digits").parse::<i64>().expect("a number");
        match words[0] {
            b"SET" | b"HSET" => {
                let is_string = words[0] == b"SET";
                let value = if is_string { BTreeMap::from([(Vec::new(), words[2].to_vec())]) } else { fields(&words[2..]) };
                match (self.values.get_mut(words[1]), lie) {
                    (Some(_), Lie::Stale) => {}
                    (Some(old), Lie::Torn) => {
                        let (name, _) = value.first_key_value().expect("a field");
                        let kept = old[name].clone();
                        old.extend(value.clone());
                        old.insert(name.clone(), kept);
                    }
                    _ => drop(self.values.insert(words[1].to_vec(), value)),
                }
                to.extend_from_slice(if is_string { b"+OK\r\n" } else { b":0\r\n" });
            }
            b"ZADD" => {
                self.index.insert((number(words[2]), words[3].to_vec()));
                to.extend_from_slice(b":1\r\n");
            }
            b"ZRANGEBYSCORE" => {
                let (from, count) = (number(words[2]), number(words[6]) as usize);
                let mut names: Vec<Vec<u8>> = self.index.range((from, Vec::new())..).take(count).map(|(_, name)| name.clone()).collect();
                if lie == Lie::WrongName {
                    names.iter_mut().for_each(|name| name.truncate(name.len() - 1));
                }
                append_array(names.len() as u64, to);
                names.iter().for_each(|name| append_bulk(name, to));
            }
            b"GET" | b"HGET" | b"HGETALL" => self.read(words, lie, to),
            _ => to.extend_from_slice(b"-ERR unknown command\r\n"),
        }
    }

    fn read(&mut self, words: &[&[u8]], lie: Lie, to: &mut Vec<u8>) {
        self.num_reads += 1;
        if lie == Lie::Refusing && self.num_reads.is_multiple_of(10) {
            return to.extend_from_slice(b"-LSWERR the value's page is lost\r\n");
        }
        if lie == Lie::Memcached {
            return to.extend_from_slice(b"END\r\n");
        }
        let found = match lie {
            Lie::Foreign => self.values.iter().find(|(name, _)| name.as_slice() != words[1]).map(|(_, value)| value),
            _ => self.values.get(words[1]),
        };
        let Some(mut value) = found.cloned() else {
            return to.extend_from_slice(if words[0] == b"HGETALL" { b"*0\r\n" } else { b"$-1\r\n" });
        };
        if lie == Lie::Damaged {
            *value.last_entry().expect("a field").get_mut().last_mut().expect("a byte") ^= 1;
        }
        match words[0] {
            b"GET" => append_bulk(&value[&Vec::new()], to),
            b"HGET" => append_bulk(&value[words[2]], to),
            _ => append_command(&value.iter().flat_map(|(name, data)| [name.as_slice(), data.as_slice()]).collect::<Vec<_>>(), to),
        }
    }
}

fn serve(mut socket: TcpStream, held: &Mutex<Held>, lie: Lie) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut input, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let mut output = Vec::new();
        let mut used = 0;
        while let Parsed::Complete(Frame::Array(items), length) = parse(&input[used..]) {
            let words: Vec<&[u8]> = items.filter_map(|item| if let Frame::Bulk(word) = item { Some(word) } else { None }).collect();
            held.lock().expect("lock").answer(&words, lie, &mut output);
            used += length;
            if lie == Lie::Cut && words[0] == b"GET" {
                return socket.write_all(&output[..output.len() / 2]);
            }
        }
        drop(input.drain(..used));
        // In two pieces, so that answers come in parts.
        let (first, second) = output.split_at(output.len() / 3);
        socket.write_all(first)?;
        socket.write_all(second)?;
        match socket.read(&mut piece)? {
            0 => return Ok(()),
            count => input.extend_from_slice(&piece[..count]),
        }
    }
}

fn run_on(lie: Lie, name: &str, more: &[&str]) -> (anyhow::Result<bool>, Option<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("an address").to_string();
    let held = Arc::new(Mutex::new(Held::default()));
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let held = Arc::clone(&held);
            std::thread::spawn(move || serve(socket, &held, lie));
        }
    });
    let scratch = Scratch::new(&format!("redis-{name}"));
    let json = scratch.file("out.json");
    #[rustfmt::skip]
    let arguments = [
        "load", &server, "--protocol", "redis", "--records", "30", "--connections", "4", "--warm-up-seconds", "0", "--seconds", "0.3", "--json", &json,
    ];
    let outcome = bench(&[&arguments, more].concat());
    let run = std::path::Path::new(&json).exists().then(|| runs(&json)[0].clone());
    (outcome, run)
}

#[test]
fn an_honest_stand_in_serves_every_workload() {
    for data_type in ["strings", "hashes", "fields"] {
        for workload in ["a", "d", "e", "f"] {
            let (outcome, run) = run_on(Lie::None, "honest", &["--workload", workload, "--data-type", data_type]);
            assert!(outcome.expect("a run"), "{data_type} {workload}");
            assert_sound(&run.expect("a result"));
        }
    }
}

#[test]
fn lies_are_counted() {
    let cases = [
        (Lie::Stale, "stale", "strings", "a"),
        (Lie::Damaged, "damaged", "strings", "c"),
        (Lie::Foreign, "foreign", "strings", "c"),
        (Lie::Stale, "stale-hash", "hashes", "a"),
        (Lie::Damaged, "damaged-hash", "hashes", "c"),
        (Lie::Torn, "torn", "hashes", "a"),
        (Lie::Torn, "torn-field", "fields", "a"),
        (Lie::Foreign, "foreign-field", "fields", "c"),
        (Lie::Damaged, "damaged-scan", "strings", "e"),
        (Lie::Foreign, "foreign-scan", "hashes", "e"),
    ];
    for (lie, name, data_type, workload) in cases {
        let (outcome, run) = run_on(lie, name, &["--workload", workload, "--data-type", data_type]);
        assert!(!outcome.expect("a run"), "{name}");
        let run = run.expect("a result");
        assert!(run["wrong_values"].as_u64() > Some(0) && run["first_wrong_value"].is_string(), "{name}: {run}");
    }
}

#[test]
fn refusals_and_misses_are_no_wrong_values() {
    let (outcome, run) = run_on(Lie::Refusing, "refusing", &["--workload", "c"]);
    assert!(!outcome.expect("a run"));
    let run = run.expect("a result");
    assert_eq!(run["wrong_values"], 0, "{run}");
    assert!(run["server_errors"].as_u64() > Some(0) && run["first_server_error"].as_str().is_some_and(|text| text.starts_with("LSWERR")), "{run}");
    // Names that are nobody's find nothing.
    let (outcome, run) = run_on(Lie::WrongName, "wrong-name", &["--workload", "e"]);
    let run = run.expect("a result");
    assert!(outcome.is_ok() && run["hit_ratio"].as_f64() < Some(0.5), "{run}");
}

#[test]
fn a_connection_that_breaks_or_speaks_otherwise_is_an_error() {
    let (outcome, run) = run_on(Lie::Cut, "cut", &["--workload", "a"]);
    assert!(run.is_none() && format!("{:#}", outcome.expect_err("no result")).contains("the server closed a connection"));
    let (outcome, run) = run_on(Lie::Memcached, "memcached", &["--workload", "c"]);
    let text = format!("{:#}", outcome.expect_err("no result"));
    assert!(run.is_none() && text.contains("answer to a read is no redis protocol"), "{text}");
}
