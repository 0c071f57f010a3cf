//! What /proc tells about a process.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::units::KIB;

/// CPU time and page faults so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub major_faults: u64,
    pub start_time_ticks: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Resident {
    pub now_bytes: u64,
    pub max_bytes: u64,
}

fn parse_stat(text: &str, ticks_per_second: f64) -> Option<Usage> {
    // The command name, in parentheses, may hold anything, spaces and parentheses too.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Usage { major_faults: number(9)?, cpu_seconds: (number(11)? + number(12)?) as f64 / ticks_per_second, start_time_ticks: number(19)? })
}

pub fn usage(pid: u32) -> Result<Usage> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // SAFETY: sysconf has no preconditions.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    parse_stat(&text, ticks_per_second).with_context(|| format!("{path} has an unknown form"))
}

/// A value of /proc/PID/status or /proc/meminfo, which are in kB.
pub fn kib_field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number = rest.trim_start_matches(':').split_whitespace().next()?;
    number.parse::<u64>().ok().map(|kib| kib * KIB)
}

pub fn resident(pid: u32) -> Result<Resident> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    match (kib_field(&text, "VmRSS"), kib_field(&text, "VmHWM")) {
        (Some(now_bytes), Some(max_bytes)) => Ok(Resident { now_bytes, max_bytes }),
        _ => bail!("{path} names no resident set; the process has ended"),
    }
}

/// Processes that this one has started and that still run.
pub fn children(pid: u32) -> Vec<u32> {
    // Each thread has those that it started itself.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_threads: io::Result<Vec<String>> = threads.map(|thread| fs::read_to_string(thread.path().join("children"))).collect();
    if let Ok(lists) = of_threads {
        return lists.iter().flat_map(|text| text.split_whitespace()).filter_map(|word| word.parse().ok()).collect();
    }
    // A kernel without that file has the parent in each process's own.
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        let text = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok()) == Some(pid)
    };
    all.filter(is_child).collect()
}

/// Kills the process if it still is the one that started then, and waits until it is gone.
pub fn kill(pid: u32, start_time_ticks: u64) -> Result<()> {
    let is_the_same = || usage(pid).is_ok_and(|usage| usage.start_time_ticks == start_time_ticks);
    if !is_the_same() {
        return Ok(());
    }
    let number = i32::try_from(pid).context("process ids are small")?;
    // SAFETY: kill takes no pointers; the id was just checked.
    unsafe { libc::kill(number, libc::SIGKILL) };
    let end = Instant::now() + Duration::from_secs(10);
    while is_the_same() {
        if Instant::now() > end {
            bail!("process {pid} does not end after SIGKILL");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_parse_whatever_the_name() {
        let line = "12 (a (b) c) S 1 2 3 4 5 6 7 8 42 10 150 50 13 14 15 16 17 18 777 20";
        let usage = parse_stat(line, 100.0).unwrap();
        assert_eq!(usage.major_faults, 42);
        assert_eq!(usage.cpu_seconds, 2.0);
        assert_eq!(usage.start_time_ticks, 777);
        assert!(parse_stat("", 100.0).is_none());
        assert!(parse_stat("1 (x) S 1", 100.0).is_none());
    }

    #[test]
    fn the_own_process_has_a_resident_set() {
        let resident = resident(std::process::id()).unwrap();
        assert!(resident.now_bytes > 0 && resident.max_bytes >= resident.now_bytes);
        assert!(usage(u32::MAX).is_err());
    }

    #[test]
    fn another_process_with_the_same_id_is_not_killed() {
        kill(std::process::id(), 1).unwrap();
    }
}
