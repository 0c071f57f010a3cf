//! A mistake on the command line is told from a failure by the exit code, and says what was meant.

use std::process::Command;

#[test]
fn mistakes_on_the_command_line_end_with_2() {
    for (line, part) in [
        ("run --configuration lightswp", "did you mean lightswap"),
        ("grid --plan --configurations dram,kernel-swp-ssd", "kernel-swap-ssd"),
        ("run --configuration dram --workload unifrom", "uniform"),
        ("run --configuration dram --seconds 0", "from 0.1"),
        ("demo-remote --configuration lightswap-remote", "uses 1 memory server; it takes two"),
        ("demo-remote --seconds 3", "6"),
        ("load 127.0.0.1:1 --records 0", "--records"),
        ("load 127.0.0.1:1 --workload c,e", "memcached cannot do"),
        ("run --configuration dram --workload e", "memcached cannot do"),
        ("load 127.0.0.1:1 --protocol redis --data-type hashes --value-size 100", "at least 320"),
        ("bgsave --configurations dram", "dram is of memcached, which writes no dumps"),
        ("load 127.0.0.1:1 --connections 0", "from 1"),
        ("load 127.0.0.1:1 --connections 2 --client-threads 3", "2 connections"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_lightswap-bench")).args(line.split(' ')).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {text}");
        assert!(text.contains(part), "{line}: {text}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_lightswap-bench")).args(["load", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "nobody listens, which is no mistake of the command line");
}
