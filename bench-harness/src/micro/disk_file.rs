//! A file for the file backend.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover};
use crate::random::Random;
use crate::swap::check_room;
use crate::units::MIB;

/// A file with real blocks (reading what was never written is no I/O), removed when this goes.
#[derive(Debug)]
pub struct DiskFile<'a> {
    path: PathBuf,
    num_bytes: u64,
    _guard: Guard<'a>,
}

impl<'a> DiskFile<'a> {
    pub fn create(journal: &'a Journal, directory: &Path, num_bytes: u64) -> Result<Self> {
        check_room(directory, num_bytes)?;
        let directory = directory.canonicalize().with_context(|| format!("cannot use the directory {}", directory.display()))?;
        let path = directory.join(format!("lightswap-bench.micro.{}", std::process::id()));
        let guard = Guard::new(journal, Leftover::File { path: path.clone() })?;
        let failure = || format!("cannot write {}", path.display());
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(failure)?;
        let mut random = Random::new(1);
        let block: Vec<u8> = (0..MIB / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        let mut left = num_bytes;
        while left > 0 {
            interrupt::check()?;
            let len = left.min(block.len() as u64);
            out.write_all(&block[..len as usize]).with_context(failure)?;
            left -= len;
        }
        out.sync_all().with_context(failure)?;
        Ok(Self { path, num_bytes, _guard: guard })
    }

    /// As a backend.
    pub fn url(&self) -> String {
        format!("file:{}", self.path.display())
    }

    /// Random reads of 4 KiB per second that fio gets with so many jobs and requests in flight of each.
    pub fn read_by_fio(&self, jobs: u32, depth: u32, seconds: f64) -> Result<f64> {
        let output = Command::new("fio")
            .args(["--name=read", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=io_uring", "--norandommap", "--randrepeat=0"])
            // As Lightswap does: otherwise every request of fio alone pays for pinning its page and finding its file.
            .args(["--fixedbufs=1", "--registerfiles=1"])
            .args(["--time_based", "--group_reporting", "--output-format=json"])
            .arg(format!("--filename={}", self.path.display()))
            .arg(format!("--size={}", self.num_bytes))
            .arg(format!("--numjobs={jobs}"))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--runtime={}ms", (seconds * 1e3) as u64))
            .stdin(Stdio::null())
            .output()
            .context("cannot run fio")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok());
        json.as_ref()
            .and_then(|json| json["jobs"][0]["read"]["iops"].as_f64())
            .with_context(|| format!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

pub fn has_fio() -> bool {
    Command::new("fio").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
