//! `lightswap-bench micro` as a user runs it: results, what is left out, and that nothing stays in the system.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
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

/// What the benchmark found and what it left out.
fn measure(name: &str, arguments: &[&str]) -> (Vec<Value>, Vec<Value>) {
    let scratch = Scratch::new(name);
    let json = scratch.0.join("results.json");
    let directory = scratch.0.to_string_lossy().into_owned();
    let mut all = vec!["micro", name, "--repetitions", "1", "--json", json.to_str().unwrap()];
    if !["switch", "regions", "remote", "encrypted", "compressed"].contains(&name) {
        all.extend(["--directory", &directory]);
    }
    all.extend(arguments);
    let output = bench(&all);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(results["micro_ranges"].as_array().map(Vec::len), results["micro"].as_array().map(Vec::len));
    let list = |field: &str| results[field].as_array().cloned().unwrap_or_default();
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "only the results are left in the directory");
    (list("micro"), list("skipped"))
}

fn is_positive(record: &Value, field: &str) -> bool {
    record[field].as_f64().is_some_and(|number| number > 0.0)
}

#[test]
fn kernel_swap_is_measured_or_marked_as_skipped() {
    let (micro, skipped) = measure("kernel", &["--region", "64MiB", "--threads", "1,2", "--seconds", "0.2"]);
    assert_eq!(micro.len() + 2 * skipped.len(), 4);
    for record in &micro {
        assert!(is_positive(record, "faults_per_second") && is_positive(record, "cpu_us_per_fault"), "{record}");
    }
    for skipped in &skipped {
        assert!(skipped["reason"].as_str().is_some_and(|reason| reason.contains("root") || reason.contains("zram")), "{skipped}");
    }
    assert!(!fs::read_to_string("/proc/swaps").unwrap().contains("lightswap-bench-test"));
}

#[test]
fn switches_are_measured() {
    let (micro, _) = measure("switch", &["--lwts", "2,64", "--switches", "10000"]);
    assert_eq!(micro.len(), 2);
    assert!(micro.iter().all(|record| is_positive(record, "switch_ns")));
}

#[test]
fn regions_of_all_sizes_are_measured() {
    let (micro, _) = measure("regions", &["--sizes", "64MiB,1GiB", "--pages", "16384", "--seconds", "0.1"]);
    assert_eq!(micro.len(), 2);
    assert!(micro.iter().all(|record| record["contract"] == "transparent"));
    assert!(micro.iter().all(|record| is_positive(record, "create_us") && is_positive(record, "cpu_us_per_fault")));
    let refused = bench(&["micro", "regions", "--sizes", "1MiB"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--pages"));
}

#[test]
fn notifications_are_measured_over_lwts() {
    let (micro, _) = measure("notify", &["--lwts", "1,1024", "--workers", "1", "--faults", "2048"]);
    let notifiers: Vec<&str> = micro.iter().filter_map(|record| record["notifier"].as_str()).collect();
    for expected in ["kernel", "bare", "sigbus", "sigbus-suspended", "monitor"] {
        assert!(notifiers.contains(&expected), "{expected} is not in {notifiers:?}");
    }
    let (compared, measured): (Vec<_>, Vec<_>) = micro.iter().partition(|record| record["name"] == "notify_trace");
    assert!(measured.iter().all(|record| is_positive(record, "p50_us")));
    // Where tracing is allowed.
    assert_eq!(compared.len(), measured.iter().filter(|record| record["notifier"] == "traced").count());
    assert!(compared.iter().all(|record| is_positive(record, "agreement") && is_positive(record, "traced_p50_us")));
}

#[test]
fn single_faults_are_timed_beside_those_of_the_kernel() {
    let (micro, skipped) = measure("steps", &["--region", "64MiB", "--faults", "512", "--sigreturn"]);
    let latencies: Vec<&Value> = micro.iter().filter(|record| record["name"] == "fault_latency").collect();
    let of = |pager: &str| latencies.iter().filter(|record| record["pager"] == pager).count();
    assert_eq!(of("kernel") + skipped.len(), 2);
    assert_eq!(of("lightswap"), 16);
    assert_eq!(latencies.iter().filter(|record| record["notifier"] == "sigbus-sigreturn").count(), 4);
    for contract in ["transparent", "cooperative"] {
        assert_eq!(latencies.iter().filter(|record| record["contract"] == contract).count(), 8);
        for step in ["notify", "queue", "io", "map", "resume", "evict"] {
            assert!(micro.iter().any(|record| record["step"] == step && record["contract"] == contract), "no step {step} of {contract} regions");
        }
    }
    assert!(latencies.iter().all(|record| is_positive(record, "p50_us")), "{latencies:?}");
}

#[test]
fn memory_servers_are_read_by_all_in_turn() {
    let refused = bench(&["micro", "remote", "--region", "1MiB"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("at least 16MiB"));
    if Command::new("nbdkit").arg("--version").output().is_err() {
        let refused = bench(&["micro", "remote"]);
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("apt-get install nbdkit"));
        return;
    }
    let (micro, skipped) = measure("remote", &["--region", "16MiB", "--depths", "1,8", "--seconds", "0.2"]);
    let of = |field: &str, value: &str| micro.iter().filter(|record| record[field] == value).count();
    assert_eq!((of("tool", "lightswap"), of("tool", "fio") + 4 * skipped.len()), (4, 4));
    assert_eq!((of("backend", "nbd-unix"), of("backend", "nbd-tcp")), (2, 2));
    for record in &micro {
        assert!(is_positive(record, "reads_per_second") || is_positive(record, "faults_per_second"), "{record}");
    }
}
