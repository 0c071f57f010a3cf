//! `demo-remote` as a user runs it, on memory servers that live and die, and a stand-in for memcached that sees whether they do.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-memcached");

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs until the lock is free: only one may measure at a time.
fn bench(arguments: &[&str]) -> Output {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let output = Command::new(env!("CARGO_BIN_EXE_lightswap-bench")).args(arguments).output().unwrap();
        if !String::from_utf8_lossy(&output.stderr).contains("another lightswap-bench is running") || Instant::now() > end {
            return output;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Exit code, what was said, the record, and the report.
fn demo(name: &str, more: &[&str]) -> Option<(Option<i32>, String, Value, String)> {
    if Command::new("nbdkit").arg("--version").output().is_err() {
        eprintln!("skipped: nbdkit is not installed");
        return None;
    }
    let scratch = Scratch(std::env::temp_dir().join(format!("lightswap-bench-test-{}-{name}", std::process::id())));
    fs::create_dir_all(&scratch.0).unwrap();
    let file = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let (out, html, directory) = (file("out.json"), file("out.html"), file("bench"));
    #[rustfmt::skip]
    let mut arguments = vec![
        "demo-remote", "--seconds", "6", "--ratio", "1", "--records", "3000", "--connections", "4", "--memcached-stock", FAKE,
        "--memcached-lightswap", FAKE, "--directory", &directory, "--out", &out, "--html", &html,
    ];
    arguments.extend(more);
    let output = bench(&arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let text = fs::read_to_string(&out).unwrap_or_else(|error| panic!("{error}: {said}"));
    let record = serde_json::from_str::<Value>(&text).unwrap()["outages"][0].take();
    let left = fs::read_dir(&directory).unwrap().count();
    assert_eq!(left, 0, "nothing stays in the directory");
    Some((output.status.code(), said, record, fs::read_to_string(&html).unwrap()))
}

#[test]
fn a_server_dies_returns_and_is_brought_up_to_date() {
    let Some((code, said, record, html)) = demo("outage", &[]) else { return };
    assert_eq!(code, Some(0), "{said}");
    let seconds = |name: &str| record[name].as_f64().unwrap_or_else(|| panic!("{name}: {record}"));
    let (killed, noticed) = (seconds("killed_at_seconds"), seconds("noticed_at_seconds"));
    let (returned, in_sync, end) = (seconds("returned_at_seconds"), seconds("in_sync_at_seconds"), seconds("seconds"));
    assert!(1.5 <= killed && killed < noticed && noticed < returned && returned < in_sync && in_sync < end, "{record}");
    assert_eq!((&record["verified_records"], &record["missing_records"], &record["wrong_values"]), (&3_000.into(), &0.into(), &0.into()));
    assert!(record["mirror"].as_array().is_some_and(|moments| moments.iter().any(|moment| moment["members_lost"] == 1)), "{record}");
    assert!(said.contains("lost items 0, wrong values 0") && said.contains("one killed") && said.contains("in sync again +"), "{said}");
    assert!(html.contains("<section id=\"outage\">") && html.contains("back, empty"));
}

#[test]
fn a_lost_item_is_a_failure() {
    let Some((code, said, record, html)) = demo("lost", &["--lightswap-argument=--forget", "--workload", "c"]) else { return };
    assert_eq!(code, Some(1), "{said}");
    // Nobody writes it again.
    assert_eq!(record["missing_records"], 1);
    assert!(said.contains("FAILED: 1 of 3000 records are lost"), "{said}");
    assert!(html.contains("1 of 3000 records are lost") && html.contains("verdict not-met"));
}
