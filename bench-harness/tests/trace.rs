//! `trace` on a process whose faults are known: this one. Where the kernel does not let it trace, it says so, which is then what is tested.
#![cfg(feature = "ebpf")]

use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lightswap::{Contract, Lightswap, PAGE_SIZE, Region};
use serde_json::Value;

const NUM_PAGES: usize = 16_384;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lightswap-bench"));
    command.args(arguments);
    command
}

/// The output while a thread reads pages at random of a region that is four times local memory.
fn while_faulting(mut command: Command) -> Output {
    // A tracer sees all regions of a process: one test at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let swap = Lightswap::builder().local_memory((NUM_PAGES / 4 * PAGE_SIZE) as u64).backend("memory:?size=64MiB").open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE_SIZE, Contract::Cooperative).unwrap();
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| fault_until(&region, &has_ended));
        let output = command.output();
        has_ended.store(true, Relaxed);
        output.unwrap()
    })
}

/// Only the first half, a few thousand times a second.
fn fault_until(region: &Region, has_ended: &AtomicBool) {
    let mut page = 1usize;
    while !has_ended.load(Relaxed) {
        for _ in 0..16 {
            page = page.wrapping_mul(0x9E37_79B1).wrapping_add(1) % (NUM_PAGES / 2);
            // SAFETY: inside the region.
            unsafe { region.as_ptr().add(page * PAGE_SIZE).read_volatile() };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Standard output; None where tracing is refused, with the reason as one sentence.
fn traced(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Some(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    assert!(std::env::var_os("LIGHTSWAP_REQUIRE_EBPF").is_none(), "{said}");
    assert!(output.status.code() == Some(1) && said.lines().count() == 1, "{said}");
    eprintln!("skipped: {said}");
    None
}

fn own_pid() -> String {
    std::process::id().to_string()
}

#[test]
fn what_a_process_faults_is_counted_as_json() {
    let output = while_faulting(bench(&["trace", "--pid", &own_pid(), "--seconds", "1", "--interval", "0.5", "--sample-every", "8", "--json", "-"]));
    let Some(text) = traced(&output) else { return };
    let record: Value = serde_json::from_str(&text).unwrap();
    let number = |name: &str| record[name].as_u64().unwrap();
    assert!(number("faults") > 100, "{text}");
    assert_eq!(record["handled"]["all"].as_u64().unwrap() + record["by_kernel"]["all"].as_u64().unwrap() + number("open"), number("faults"));
    assert!(record["handled"]["reads"].as_u64().unwrap() > number("faults") * 9 / 10, "{text}");
    let quantiles = ["p50", "p90", "p99", "p999"].map(|name| record["notification_us"][name].as_f64().unwrap());
    assert!(quantiles[0] > 0.05 && quantiles.is_sorted(), "{text}");
    let heat: Vec<u64> = record["regions"][0]["heat"].as_array().unwrap().iter().map(|faults| faults.as_u64().unwrap()).collect();
    assert_eq!(heat.len(), NUM_PAGES * PAGE_SIZE / (2 << 20));
    // The two are read one after the other, while it faults.
    assert!(heat.iter().sum::<u64>().abs_diff(number("faults")) < number("faults") / 10, "{heat:?}");
    assert!(heat[heat.len() / 2..].iter().all(|faults| *faults == 0), "{heat:?}");
    let place = record["top_code"][0]["place"].as_str().unwrap();
    assert!(place.starts_with("trace-") && place.contains("+0x"), "{place}");
}

#[test]
fn a_pipe_gets_plain_lines_and_then_the_picture() {
    let output = while_faulting(bench(&["trace", "--pid", &own_pid(), "--seconds", "1", "--interval", "0.4"]));
    let Some(text) = traced(&output) else { return };
    assert!(!text.contains('\x1b'), "{text}");
    assert!(text.lines().take_while(|line| line.contains("faults/s")).count() >= 2, "{text}");
    for part in ["page faults of process", "of Lightswap's handler", "p99.9", "hottest 2 MiB", "code that faults"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn who_cannot_be_traced_is_told_in_a_sentence() {
    let refused = |mut command: Command, part: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.lines().count() == 1 && said.contains(part), "{said}");
    };
    refused(bench(&["trace", "--pid", "1999999999"]), "there is no process 1999999999");
    // It ends by itself, and pages with nothing.
    let mut sleep = Command::new("sleep").arg("20").spawn().unwrap();
    refused(bench(&["trace", "--pid", &sleep.id().to_string(), "--once"]), "has no Lightswap");
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    let output = bench(&["trace", "--pid", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_privilege_or_types_of_the_kernel_it_says_so() {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can take privileges away, and hide files");
        return;
    }
    let pid = own_pid();
    let arguments = ["trace", "--pid", &pid, "--once", "--interval", "0.1"];
    let shell = |script: &str, program: &[&str]| {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["sh", "-c", script, env!("CARGO_BIN_EXE_lightswap-bench")]).args(arguments);
        while_faulting(command)
    };
    let hidden = shell("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"", &["unshare", "--mount"]);
    let said = String::from_utf8_lossy(&hidden.stderr);
    assert!(hidden.status.code() == Some(1) && (said.contains("does not describe its types") || said.contains("clang was missing")), "{said}");
    let without = shell("exec \"$0\" \"$@\"", &["setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-bpf,-perfmon,-sys_admin"]);
    let said = String::from_utf8_lossy(&without.stderr);
    assert!(without.status.code() == Some(1) && (said.contains("CAP_BPF and CAP_PERFMON") || said.contains("clang was missing")), "{said}");
}
