//! The process whose memory the kernel swaps: reads random pages of its memory as `micro fault` does of a region, and times them.
//!
//! Requests come as lines of JSON on stdin, replies go to stdout. The parent moves it into a cgroup before the pages are filled, so that the pages are
//! what is limited, and little else.

use std::io::{self, BufRead, Write};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::pages::{Content, Pages, major_faults};
use super::{cpu_seconds, latency_ns, now_ns, quantile_us};
use crate::random::Random;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long)]
    region: usize,
    #[arg(long, value_enum, default_value = "half-noise")]
    content: Content,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Request {
    /// Gives every page its contents.
    Fill,
    /// Reads random pages for a time.
    Read { threads: u32, seconds: f64, seed: u64 },
    /// Times random reads of one thread until so many were faults.
    Time { num_faults: usize, seed: u64 },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Reply {
    Ready,
    Rate { faults_per_second: f64, cpu_us_per_fault: f64 },
    Latency { p50_us: f64, p99_us: f64 },
}

pub fn run(options: &Options) -> Result<()> {
    let pages = map(options.region)?;
    let mut replies = io::stdout().lock();
    let mut reply = |reply: Reply| -> Result<()> {
        writeln!(replies, "{}", serde_json::to_string(&reply)?)?;
        Ok(replies.flush()?)
    };
    reply(Reply::Ready)?;
    for line in io::stdin().lock().lines() {
        reply(match serde_json::from_str(&line?).context("not a request")? {
            Request::Fill => {
                // SAFETY: the pages are mapped, and this thread is the only one.
                (0..pages.num_pages).for_each(|page| unsafe { pages.write(page, options.content) });
                Reply::Ready
            }
            Request::Read { threads, seconds, seed } => read(pages, threads, Duration::from_secs_f64(seconds), seed),
            Request::Time { num_faults, seed } => time(pages, num_faults, Random::new(seed)),
        })?;
    }
    Ok(())
}

fn map(num_bytes: usize) -> Result<Pages> {
    // SAFETY: a new mapping, which stays until the process ends.
    let memory =
        unsafe { libc::mmap(std::ptr::null_mut(), num_bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("no memory to be swapped");
    }
    // SAFETY: the mapping was just made. A kernel without huge pages refuses, and then there is nothing to forbid.
    unsafe { libc::madvise(memory, num_bytes, libc::MADV_NOHUGEPAGE) };
    Ok(Pages::new(memory.cast(), num_bytes))
}

/// A fault is what the kernel counts as a major one: a page that it had to read from its swap space.
fn read(pages: Pages, num_threads: u32, duration: Duration, seed: u64) -> Reply {
    let start = Barrier::new(num_threads as usize + 1);
    let (mut began, mut faults_before, mut cpu_before) = (Instant::now(), 0, 0.0);
    std::thread::scope(|scope| {
        for number in 0..num_threads {
            let start = &start;
            scope.spawn(move || {
                let mut random = Random::new(seed << 32 | u64::from(number));
                start.wait();
                let end = Instant::now() + duration;
                while Instant::now() < end {
                    (0..32).for_each(|_| pages.read(pages.draw(&mut random)));
                }
            });
        }
        (faults_before, cpu_before) = (major_faults(libc::RUSAGE_SELF), cpu_seconds());
        start.wait();
        began = Instant::now();
    });
    let elapsed = began.elapsed();
    let faults = (major_faults(libc::RUSAGE_SELF) - faults_before) as f64;
    Reply::Rate { faults_per_second: faults / elapsed.as_secs_f64(), cpu_us_per_fault: (cpu_seconds() - cpu_before) * 1e6 / faults.max(1.0) }
}

/// The kernel itself says which accesses were major faults: a threshold would take a slow hit, or a fast read from zram, for the other.
fn time(pages: Pages, num_faults: usize, mut random: Random) -> Reply {
    let mut latencies_ns = Vec::with_capacity(num_faults);
    let mut faults_before = major_faults(libc::RUSAGE_THREAD);
    // Where (nearly) everything is resident, faults are rare: the number of reads is limited, too.
    let mut reads_left = num_faults.saturating_mul(100);
    while latencies_ns.len() < num_faults && reads_left > 0 {
        reads_left -= 1;
        let page = pages.draw(&mut random);
        let start_ns = now_ns();
        pages.read(page);
        let end_ns = now_ns();
        let faults = major_faults(libc::RUSAGE_THREAD);
        if faults != faults_before {
            faults_before = faults;
            latencies_ns.push(latency_ns(start_ns, end_ns));
        }
    }
    latencies_ns.sort_unstable();
    Reply::Latency { p50_us: quantile_us(&latencies_ns, 0.5), p99_us: quantile_us(&latencies_ns, 0.99) }
}
