//! How fast the disk is at the moment, without which swap results mean little.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover};
use crate::random::Random;
use crate::units::MIB;

const FILE_BYTES: u64 = 256 * MIB;
const BLOCK_BYTES: u64 = 4096;

/// 4 KiB random reads with O_DIRECT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskProbe {
    pub tool: String,
    pub measurements: Vec<DiskMeasurement>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskMeasurement {
    pub operation: String,
    pub depth: u32,
    pub operations_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// With fio when it is installed, at depths 1 and 128, for reads and writes; otherwise reads at depth 1 with a loop of our own.
pub fn probe(journal: &Journal, directory: &Path, seconds_each: u64) -> Result<DiskProbe> {
    let path = directory.join("lightswap-bench.probe");
    let _guard = Guard::new(journal, Leftover::File { path: path.clone() })?;
    write_file(&path).with_context(|| format!("cannot write {} to probe the disk", path.display()))?;
    let has_fio = Command::new("fio").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !has_fio {
        return Ok(DiskProbe {
            tool: "own loop of pread(2); fio is not installed".into(),
            measurements: vec![probe_by_loop(&path, Duration::from_secs(seconds_each))?],
        });
    }
    let mut measurements = Vec::new();
    for (operation, depth) in [("randread", 1), ("randread", 128), ("randwrite", 128)] {
        interrupt::check()?;
        measurements.push(probe_by_fio(&path, operation, depth, seconds_each)?);
    }
    Ok(DiskProbe { tool: "fio".into(), measurements })
}

/// Written with data, because reading blocks that never were is no I/O.
fn write_file(path: &Path) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut random = Random::new(1);
    let block: Vec<u8> = (0..MIB / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
    for _ in 0..FILE_BYTES / MIB {
        interrupt::check()?;
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

fn probe_by_fio(path: &Path, operation: &str, depth: u32, seconds: u64) -> Result<DiskMeasurement> {
    let output = Command::new("fio")
        .args(["--name=probe", "--direct=1", "--bs=4k", "--ioengine=libaio", "--time_based", "--output-format=json"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--size={FILE_BYTES}"))
        .arg(format!("--rw={operation}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={seconds}"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run fio")?;
    if !output.status.success() {
        bail!("fio failed on {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    parse_fio(&output.stdout, operation, depth).with_context(|| format!("fio's result for {operation} has an unknown form"))
}

fn parse_fio(json: &[u8], operation: &str, depth: u32) -> Option<DiskMeasurement> {
    // fio may print a note before the JSON.
    let start = json.iter().position(|&byte| byte == b'{')?;
    let result: Value = serde_json::from_slice(&json[start..]).ok()?;
    let side = &result["jobs"][0][operation.strip_prefix("rand")?];
    let percentile_us = |name: &str| side["clat_ns"]["percentile"][name].as_f64().map(|ns| ns / 1_000.0);
    Some(DiskMeasurement {
        operation: operation.to_owned(),
        depth,
        operations_per_second: side["iops"].as_f64()?,
        p50_us: percentile_us("50.000000")?,
        p99_us: percentile_us("99.000000")?,
    })
}

/// A page-aligned block, as O_DIRECT asks for.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES as usize]);

fn probe_by_loop(path: &Path, duration: Duration) -> Result<DiskMeasurement> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("cannot open {} with O_DIRECT", path.display()))?;
    let mut block = Box::new(Block([0; BLOCK_BYTES as usize]));
    let mut random = Random::new(2);
    let mut latencies_us = Vec::new();
    let started = Instant::now();
    while started.elapsed() < duration {
        interrupt::check()?;
        let offset = random.below(FILE_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
        let before = Instant::now();
        file.read_exact_at(&mut block.0, offset).context("cannot read while probing the disk")?;
        latencies_us.push(before.elapsed().as_secs_f64() * 1e6);
    }
    let operations_per_second = latencies_us.len() as f64 / started.elapsed().as_secs_f64();
    latencies_us.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let index = (latencies_us.len() as f64 * q) as usize;
        latencies_us.get(index).copied().unwrap_or(0.0)
    };
    Ok(DiskMeasurement { operation: "randread".into(), depth: 1, operations_per_second, p50_us: quantile(0.5), p99_us: quantile(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_output_parses() {
        let json = br#"note
            {"jobs":[{"read":{"iops":50000.5,"clat_ns":{"percentile":{"50.000000":90000,"99.000000":300000}}}}]}"#;
        let found = parse_fio(json, "randread", 128).unwrap();
        assert_eq!((found.p50_us, found.p99_us), (90.0, 300.0));
        assert!(parse_fio(b"nothing", "randread", 1).is_none());
        assert!(parse_fio(b"{}", "randread", 1).is_none());
    }
}
