//! The harness adds nothing and takes nothing away: a server that it starts is as fast as the same one started by hand with the same flags.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_lightswap-bench");
const LOAD: [&str; 10] = ["--records", "20000", "--workload", "c", "--warm-up-seconds", "0.3", "--seconds", "1", "--connections", "64"];
const WITHIN: f64 = 0.05;
/// Medians of at least so many pairs are compared, and more pairs are run while they differ: other things happen on test machines.
const PAIRS_LEAST: usize = 5;
const PAIRS_MOST: usize = 15;

struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn memcached() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/memcached-stock/memcached");
    let path = std::env::var_os("PATH")?;
    std::iter::once(built).chain(std::env::split_paths(&path).map(|directory| directory.join("memcached"))).find(|file| file.is_file())
}

/// Operations a second and the server's command of the one run in the file.
fn read(json: &Path) -> (f64, String) {
    let text = std::fs::read_to_string(json).expect("a result file");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    let run = &results["runs"][0];
    (run["operations_per_second"].as_f64().expect("a number"), run["server_command"].as_str().unwrap_or_default().to_owned())
}

/// None while somebody else measures.
fn by_harness(server: &Path, directory: &Path) -> Option<(f64, String)> {
    let json = directory.join("harness.json");
    let output = Command::new(BENCH)
        .args(["run", "--configuration", "dram", "--json"])
        .arg(&json)
        .arg("--memcached-stock")
        .arg(server)
        .arg("--directory")
        .arg(directory)
        .args(LOAD)
        .output()
        .expect("the harness starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("another lightswap-bench is running") {
        return None;
    }
    assert!(output.status.success(), "{errors}");
    Some(read(&json))
}

fn by_hand(server: &Path, flags: &[&str], directory: &Path) -> f64 {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port().to_string();
    let mut flags: Vec<&str> = flags.to_vec();
    let place = flags.iter().position(|flag| *flag == "-p").expect("a port among the flags") + 1;
    flags[place] = &port;
    let child = Command::new(server).args(&flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
    let _stopped = Stopped(child);
    let address = format!("127.0.0.1:{port}");
    let end = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < end, "{} does not listen with {flags:?}", server.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    let json = directory.join("hand.json");
    let output = Command::new(BENCH).args(["load", &address, "--json"]).arg(&json).args(LOAD).output().expect("the load generator starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read(&json).0
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

#[test]
fn a_baseline_is_as_fast_as_the_same_server_started_by_hand() {
    let Some(server) = memcached() else {
        eprintln!("skipped: no memcached is built; integrations/memcached/build --stock builds one");
        return;
    };
    let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-by-hand", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (mut harness, mut hand) = (Vec::new(), Vec::new());
    let mut difference = f64::INFINITY;
    while harness.len() < PAIRS_LEAST || (difference > WITHIN && harness.len() < PAIRS_MOST) {
        let Some((speed, command)) = by_harness(&server, &directory) else {
            eprintln!("skipped: another lightswap-bench is running");
            let _ = std::fs::remove_dir_all(&directory);
            return;
        };
        let flags: Vec<&str> = command.split(' ').skip(1).collect();
        harness.push(speed);
        hand.push(by_hand(&server, &flags, &directory));
        difference = (median(&harness) / median(&hand) - 1.0).abs();
    }
    let _ = std::fs::remove_dir_all(&directory);
    assert!(difference <= WITHIN, "the medians differ by {:.1} %: {harness:.0?} by the harness, {hand:.0?} by hand", difference * 100.0);
}
