//! The harness adds nothing and takes nothing away: a server that it starts is as fast as the same one started by hand with the same flags.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_lightswap-bench");
const LOAD: [&str; 10] = ["--records", "20000", "--workload", "c", "--warm-up-seconds", "0.3", "--seconds", "1", "--connections", "64"];
const WITHIN: f64 = 0.05;
/// Runs that follow each other are compared, as other things happen on test machines, and each way comes first as often as second.
const NUM_PAIRS: usize = 12;

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

/// Waits until nobody else measures.
fn by_harness(server: &Path, directory: &Path) -> (f64, String) {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let output = run_harness(server, directory);
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("another lightswap-bench is running") && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(200));
            continue;
        }
        assert!(output.status.success(), "{errors}");
        return read(&directory.join("harness.json"));
    }
}

fn run_harness(server: &Path, directory: &Path) -> Output {
    Command::new(BENCH)
        .args(["run", "--configuration", "dram", "--json"])
        .arg(directory.join("harness.json"))
        .arg("--memcached-stock")
        .arg(server)
        .arg("--directory")
        .arg(directory)
        .args(LOAD)
        .output()
        .expect("the harness starts")
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

/// Where the median of what the pairs are samples of lies, with 96 % confidence for 12 of them (by the sign test): a single pair is off by up to a
/// fifth on a busy machine, and a difference that is real shows in nearly all.
fn range_of_median(numbers: &[f64]) -> (f64, f64) {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[2], sorted[sorted.len() - 3])
}

#[test]
fn a_baseline_is_as_fast_as_the_same_server_started_by_hand() {
    let Some(server) = memcached() else {
        assert!(
            std::env::var_os("LIGHTSWAP_REQUIRE_MEMCACHED").is_none_or(|value| value != "1"),
            "no memcached is built or on PATH, and LIGHTSWAP_REQUIRE_MEMCACHED=1"
        );
        eprintln!("skipped: no memcached is built; integrations/memcached/build --stock builds one");
        return;
    };
    let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-by-hand", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    // Not counted: it tells the flags.
    let (_, command) = by_harness(&server, &directory);
    let flags: Vec<&str> = command.split(' ').skip(1).collect();
    let ratios: Vec<f64> = (0..NUM_PAIRS)
        .map(|pair| {
            let hand_first = (pair % 2 == 1).then(|| by_hand(&server, &flags, &directory));
            let (harness, _) = by_harness(&server, &directory);
            harness / hand_first.unwrap_or_else(|| by_hand(&server, &flags, &directory))
        })
        .collect();
    let _ = std::fs::remove_dir_all(&directory);
    let (low, high) = range_of_median(&ratios);
    let is_within = low <= 1.0 + WITHIN && high >= 1.0 - WITHIN;
    assert!(is_within, "the harness's server is {low:.3} to {high:.3} times as fast as one started by hand: {ratios:.3?}");
}
