//! `bgsave` as a user runs it, on stock Redis without a limit: the dump is made under load, and read again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lightswap-bench-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

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

/// Exit code, what was said, and the result file's path.
fn bgsave(scratch: &Scratch, more: &[&str]) -> (Option<i32>, String, String) {
    let (out, html, directory) = (scratch.file("out.json"), scratch.file("out.html"), scratch.file("bench"));
    let usual = ["bgsave", "--seconds", "3", "--records", "3000", "--connections", "4", "--directory", &directory, "--out", &out, "--html", &html];
    let output = bench(&[&usual, more].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let left = fs::read_dir(&directory).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing stays in the directory: {said}");
    (output.status.code(), said, out)
}

fn has_redis() -> bool {
    let found = Command::new("redis-server").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: redis-server is not on PATH; apt-get install redis-server");
    }
    found
}

#[test]
fn a_dump_under_load_has_every_record() {
    if !has_redis() {
        return;
    }
    let scratch = Scratch::new("bgsave");
    let (code, said, out) = bgsave(&scratch, &["--configurations", "redis-dram", "--workload", "a"]);
    assert_eq!(code, Some(0), "{said}");
    let results: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    let record = &results["saves"][0];
    assert_eq!((&record["status"], &record["dump_keys"], &record["expected_keys"]), (&"ok".into(), &3_000.into(), &3_000.into()), "{record}");
    assert_eq!((&record["dump_missing"], &record["dump_wrong"], &record["wrong_values"]), (&0.into(), &0.into(), &0.into()), "{record}");
    let (began, ended) = (record["began_at_seconds"].as_f64().unwrap(), record["ended_at_seconds"].as_f64().unwrap());
    assert!(began >= 0.5 && ended > began, "{record}");
    assert!(record["parent_resident_bytes_max"].as_u64() > Some(1_000_000), "{record}");
    assert!(fs::read_to_string(scratch.file("out.html")).unwrap().contains("<section id=\"dump\">"));
}

#[test]
fn servers_that_cannot_be_used_are_named_in_a_sentence() {
    let scratch = Scratch::new("bgsave-bad");
    let (code, said, _) = bgsave(&scratch, &["--configurations", "redis-dram", "--redis-stock", "/nowhere/redis-server"]);
    assert!(code == Some(1) && said.contains("cannot run /nowhere/redis-server --version; is it a redis binary?"), "{said}");
    let stock = scratch.file("stock");
    fs::write(&stock, "#!/bin/sh\necho Redis server v=7.0.15\n").unwrap();
    fs::set_permissions(&stock, fs::Permissions::from_mode(0o755)).unwrap();
    let (code, said, _) = bgsave(&scratch, &["--configurations", "redis-lightswap", "--redis-stock", &stock, "--redis-lightswap", &stock]);
    assert!(code == Some(1) && said.contains("is a Redis without Lightswap"), "{said}");
}
