//! Load generators of other people, as second opinions: they run as programs, with keys and records of their own, and check no values.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::endpoint::Endpoint;
use crate::generator::Shape;
use crate::interrupt;
use crate::memtier::{self, Pattern};
use crate::plan::Load;
use crate::redis_benchmark;
use crate::results::Run;
use crate::server_kind::Programs;
use crate::stall;

/// How much longer than asked for one may take.
pub const GRACE: Duration = Duration::from_secs(30);
const LOOK_AT_SERVER: Duration = Duration::from_secs(2);

/// memtier_benchmark's own default is one write in eleven operations.
const MEMTIER_PERCENT_WRITES: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Memtier(Pattern),
    RedisBenchmark,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    tool: Tool,
    program: PathBuf,
}

impl Outside {
    /// The program that makes this load, if it is another than this one and is there.
    pub fn of(load: &Load, programs: &Programs) -> Option<Self> {
        match load {
            Load::Closed | Load::Open { .. } => None,
            Load::Memtier(pattern) => Some(Self { tool: Tool::Memtier(*pattern), program: memtier::find()? }),
            Load::RedisBenchmark => Some(Self { tool: Tool::RedisBenchmark, program: redis_benchmark::find(programs)? }),
        }
    }

    /// Sets every record of its kind once.
    pub fn load(&self, endpoint: &Endpoint, shape: Shape) -> Result<()> {
        match self.tool {
            Tool::Memtier(_) => memtier::load(&self.program, endpoint, shape),
            Tool::RedisBenchmark => redis_benchmark::load(endpoint, &shape),
        }
    }

    /// Runs it, without a warm-up, and with what it knows of the results.
    pub fn run(&self, endpoint: &Endpoint, shape: Shape, duration: Duration) -> Result<Run> {
        match self.tool {
            Tool::Memtier(pattern) => {
                let plan = memtier::Plan { shape, pattern, percent_writes: MEMTIER_PERCENT_WRITES, warm_up: Duration::ZERO, duration };
                memtier::run(&self.program, endpoint, &plan)
            }
            Tool::RedisBenchmark => redis_benchmark::run(&self.program, endpoint, &shape, duration),
        }
    }
}

/// A file in memory, of which nothing is left whatever ends this process.
pub fn nameless_file(purpose: &str) -> Result<File> {
    // SAFETY: the name is a terminated string; the new descriptor has no other owner.
    unsafe {
        match libc::memfd_create(c"lightswap-bench-outside".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => Err(std::io::Error::last_os_error()).with_context(|| format!("cannot make a file for another load generator and {purpose}")),
            descriptor => Ok(File::from_raw_fd(descriptor)),
        }
    }
}

/// Runs the program to its end and tells its CPU seconds and what it said. Bounded in time, and ended by a signal to this process.
pub fn execute(program: &Path, endpoint: &Endpoint, arguments: &[String], limit: Duration) -> Result<(f64, String)> {
    let name = program.display();
    let mut log = nameless_file("what it says")?;
    let output = log.try_clone().context("cannot share the log of another load generator")?;
    let errors = output.try_clone().context("cannot share the log of another load generator")?;
    let mut command = Command::new(program);
    // Ctrl-C is for us.
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let result = await_end(&mut child, endpoint, limit);
    if result.is_err() {
        // Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut text = Vec::new();
    // Without its last lines the failure is still told.
    let _ = log.rewind().and_then(|()| log.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let (code, cpu_seconds) = result.with_context(|| format!("{name} {}", arguments.join(" ")))?;
    if code != Some(0) {
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
        bail!(
            "{name} {} failed ({}); its last lines:\n  {tail}",
            arguments.join(" "),
            code.map_or("by a signal".into(), |code| format!("exit code {code}"))
        );
    }
    Ok((cpu_seconds, text.into_owned()))
}

/// Exit code, if it was no signal, and CPU seconds.
fn await_end(child: &mut Child, endpoint: &Endpoint, limit: Duration) -> Result<(Option<i32>, f64)> {
    let pid = i32::try_from(child.id()).context("process ids are small")?;
    let end = Instant::now() + limit;
    let mut next_look = Instant::now() + LOOK_AT_SERVER;
    loop {
        let mut status = 0;
        // SAFETY: an all-zero rusage is valid, and both pointers are valid for writing during the call. The child is ours and was not waited for.
        let (waited, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage), usage)
        };
        if waited == pid {
            let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
            let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
            return Ok((code, seconds(usage.ru_utime) + seconds(usage.ru_stime)));
        }
        if waited < 0 {
            return Err(std::io::Error::last_os_error()).context("cannot wait for it");
        }
        interrupt::check()?;
        if Instant::now() > end {
            bail!("it did not end within {} s", limit.as_secs());
        }
        if Instant::now() > next_look {
            // It would wait for a stuck server for ever.
            stall::check_alive(endpoint)?;
            next_look = Instant::now() + LOOK_AT_SERVER;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
