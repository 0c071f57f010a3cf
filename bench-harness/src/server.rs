//! One server process: started (in a cgroup or not), awaited, asked, stopped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::endpoint::Endpoint;
use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover};
use crate::process;
use crate::redis_client;
use crate::server_kind::ServerKind;
use crate::stall::PatientSocket;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const LOG_LINES_SHOWN: usize = 12;

#[derive(Debug)]
pub struct Server<'a> {
    child: Child,
    kind: ServerKind,
    endpoint: Endpoint,
    log: PathBuf,
    /// Kills the process by its id if it still runs when this goes.
    _guard: Guard<'a>,
}

/// Has the child die with its parent and join the cgroup before it runs the server's first instruction.
fn prepare_child(command: &mut Command, members: Option<OwnedFd>) {
    let join = move || {
        // SAFETY: prctl with these arguments takes no pointers.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let Some(members) = &members else {
            return Ok(());
        };
        // SAFETY: the buffer is one static byte.
        let written = unsafe { libc::write(members.as_raw_fd(), b"0".as_ptr().cast(), 1) };
        if written == 1 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure only makes two system calls; it neither allocates nor takes locks.
    unsafe { command.pre_exec(join) };
}

/// Starts a process that ends with this one, in a cgroup if the file of its members is given, and writes it down.
pub fn spawn<'a>(journal: &'a Journal, command: &mut Command, members: Option<OwnedFd>) -> Result<(Child, Guard<'a>)> {
    // Ctrl-C is for us; servers are stopped in order.
    command.stdin(Stdio::null()).process_group(0);
    prepare_child(command, members);
    let mut child = command.spawn()?;
    let pid = child.id();
    let recorded = process::usage(pid).and_then(|usage| Guard::new(journal, Leftover::Process { pid, start_time_ticks: usage.start_time_ticks }));
    match recorded {
        Ok(guard) => Ok((child, guard)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// What a process wrote to its log last, to be put behind a sentence.
pub fn log_tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "; it wrote no message".into();
    }
    let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    format!("; its last lines:\n  {}", tail.join("\n  "))
}

impl<'a> Server<'a> {
    pub fn start(
        journal: &'a Journal,
        (kind, binary): (ServerKind, &Path),
        arguments: &[String],
        endpoint: Endpoint,
        log: &Path,
        cgroup: Option<&Cgroup>,
    ) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("cannot create the log {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log")?;
        let members = match cgroup {
            Some(cgroup) => Some(OwnedFd::from(cgroup.open_members()?)),
            None => None,
        };
        let mut command = Command::new(binary);
        command.args(arguments).stdout(output).stderr(errors);
        let (child, guard) =
            spawn(journal, &mut command, members).with_context(|| format!("cannot start {}; is it a program, and built?", binary.display()))?;
        let mut server = Self { child, kind, endpoint, log: log.to_owned(), _guard: guard };
        server.await_readiness(cgroup)?;
        Ok(server)
    }

    fn await_readiness(&mut self, cgroup: Option<&Cgroup>) -> Result<()> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            interrupt::check()?;
            if self.endpoint.connect().is_ok() && (self.kind == ServerKind::Memcached || redis_client::is_ready(&self.endpoint)) {
                return Ok(());
            }
            if let Some(death) = self.death(cgroup) {
                bail!(death);
            }
            if Instant::now() > end {
                bail!("the server does not accept connections at {} within {} s{}", self.endpoint, START_TIMEOUT.as_secs(), self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Why the server ended, if it did.
    pub fn death(&mut self, cgroup: Option<&Cgroup>) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(describe_death(status, cgroup) + &self.log_tail())
    }

    /// What the server wrote last, to be put behind a sentence.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// The reply to `stats` or `stats NAME`, or what Redis's INFO has in its place. A server that does not know the name gives an empty map.
    pub fn statistics(&self, name: &str) -> Result<BTreeMap<String, String>> {
        if self.kind == ServerKind::Redis {
            return redis_client::statistics(&self.endpoint, name);
        }
        let request = if name.is_empty() { "stats\r\n".to_owned() } else { format!("stats {name}\r\n") };
        let failure = "cannot ask the server for its statistics";
        let mut socket = PatientSocket::connect(&self.endpoint).context(failure)?;
        socket.write_all(request.as_bytes()).context(failure)?;
        let mut statistics = BTreeMap::new();
        for line in BufReader::new(socket).lines() {
            let line = line.context(failure)?;
            let Some(rest) = line.strip_prefix("STAT ") else {
                break;
            };
            if let Some((name, value)) = rest.split_once(' ') {
                statistics.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(statistics)
    }

    pub fn stop(mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: kill takes no pointers; the child was not waited for, so the id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let end = Instant::now() + STOP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // Both fail only if the child has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe_death(status: ExitStatus, cgroup: Option<&Cgroup>) -> String {
    match cgroup {
        Some(cgroup) if cgroup.out_of_memory_kills() > 0 => "the kernel killed the server because it needed more than its cgroup's limit".into(),
        _ => format!("the server ended by itself ({status})"),
    }
}

/// A TCP port that is free now.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("cannot find a free TCP port")?;
    Ok(listener.local_addr()?.port())
}
