//! Memory servers: nbdkit's memory plugin, on a UNIX socket or on a loopback port, as another machine's DRAM would be.
//!
//! They run beside the servers under measurement, outside their cgroups, and end with the run: each process is in the journal while it lives.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::endpoint::Endpoint;
use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover, remove_file};
use crate::lab::Transport;
use crate::process;
use crate::server::{free_port, log_tail, spawn};

pub const PROGRAM: &str = "nbdkit";
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is missing here for memory servers, if anything.
pub fn obstacle() -> Option<String> {
    let found = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!found.is_ok_and(|status| status.success())).then(|| format!("{PROGRAM}, the memory server, is not installed (apt-get install {PROGRAM})"))
}

/// One memory server, which can be killed and started again.
#[derive(Debug)]
pub struct MemoryServer<'a> {
    journal: &'a Journal,
    endpoint: Endpoint,
    size_bytes: u64,
    log: PathBuf,
    running: Option<Running<'a>>,
    _files: Vec<Guard<'a>>,
}

/// Ends the process when it goes; the journal's guard then finds nothing left to do.
#[derive(Debug)]
struct Running<'a> {
    child: Child,
    _guard: Guard<'a>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Both fail only if the process has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where its files are: a path of a socket has room for about 100 bytes only, so it is not in the directory of the run.
fn file(number: usize, end: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lightswap-bench-{}-remote-{number}.{end}", std::process::id()))
}

impl<'a> MemoryServer<'a> {
    /// Starts a server of so many bytes, all zero, and waits until it accepts connections. The number tells several of one run apart.
    pub fn start(journal: &'a Journal, number: usize, size_bytes: u64, transport: Transport) -> Result<Self> {
        let log = file(number, "log");
        let mut files = vec![Guard::new(journal, Leftover::File { path: log.clone() })?];
        let endpoint = match transport {
            Transport::Tcp => Endpoint::Tcp(([127, 0, 0, 1], free_port()?).into()),
            Transport::Unix => {
                let path = file(number, "socket");
                files.push(Guard::new(journal, Leftover::File { path: path.clone() })?);
                Endpoint::Unix(path)
            }
        };
        let mut server = Self { journal, endpoint, size_bytes, log, running: None, _files: files };
        server.restart()?;
        Ok(server)
    }

    /// As many as are wanted, on UNIX sockets.
    pub fn start_all(journal: &'a Journal, count: usize, size_bytes: u64) -> Result<Vec<Self>> {
        (1..=count).map(|number| Self::start(journal, number, size_bytes, Transport::Unix)).collect()
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--foreground".to_owned()];
        match &self.endpoint {
            Endpoint::Unix(path) => arguments.extend(["--unix".into(), path.to_string_lossy().into_owned()]),
            Endpoint::Tcp(address) => {
                arguments.extend(["--ipaddr".into(), address.ip().to_string(), "--port".into(), address.port().to_string()]);
            }
        }
        arguments.extend(["memory".into(), format!("size={}", self.size_bytes)]);
        arguments
    }

    /// Starts it empty: after `kill`, as a machine that comes back with nothing in its memory.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        if let Endpoint::Unix(path) = &self.endpoint {
            // A killed server leaves its socket, and would not start over one.
            remove_file(path)?;
        }
        let failure = || format!("cannot create the log {}", self.log.display());
        let output = File::create(&self.log).with_context(failure)?;
        let errors = output.try_clone().with_context(failure)?;
        let mut command = Command::new(PROGRAM);
        command.args(self.arguments()).stdout(output).stderr(errors);
        let (child, guard) = spawn(self.journal, &mut command, None)
            .with_context(|| format!("cannot start {PROGRAM}, the memory server (apt-get install {PROGRAM})"))?;
        self.running = Some(Running { child, _guard: guard });
        self.await_readiness()
    }

    fn await_readiness(&mut self) -> Result<()> {
        let end = Instant::now() + READY_TIMEOUT;
        loop {
            interrupt::check()?;
            if self.endpoint.connect().is_ok() {
                return Ok(());
            }
            if !self.is_running() {
                bail!("the memory server at {} ended at its start{}", self.endpoint, log_tail(&self.log));
            }
            if Instant::now() > end {
                bail!("the memory server at {} accepts no connections within {} s{}", self.endpoint, READY_TIMEOUT.as_secs(), log_tail(&self.log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// With SIGKILL, as a machine that loses its power; what it held is gone. Nothing when it does not run.
    pub fn kill(&mut self) {
        self.running = None;
    }

    pub fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| matches!(running.child.try_wait(), Ok(None)))
    }

    /// As a backend of Lightswap, without options.
    pub fn url(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(path) => format!("nbd+unix:///?socket={}", path.display()),
            Endpoint::Tcp(address) => format!("nbd://{address}/"),
        }
    }

    /// What it takes of the machine's memory now; 0 when it does not run.
    pub fn resident_bytes(&self) -> u64 {
        let pid = self.running.as_ref().map(|running| running.child.id());
        pid.and_then(|pid| process::resident(pid).ok()).map_or(0, |resident| resident.now_bytes)
    }
}

/// What `nbdkit --version` prints.
pub fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;

    fn journal(name: &str) -> (PathBuf, Journal) {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let journal = Journal::open_in(&directory).unwrap();
        (directory, journal)
    }

    fn has_files(number: usize) -> bool {
        ["socket", "log"].iter().any(|end| file(number, end).exists())
    }

    /// What every NBD server says first.
    fn greeting(endpoint: &Endpoint) -> std::io::Result<[u8; 8]> {
        let mut first = [0; 8];
        endpoint.connect()?.read_exact(&mut first)?;
        Ok(first)
    }

    #[test]
    fn servers_come_are_killed_return_and_leave_nothing() {
        if let Some(obstacle) = obstacle() {
            eprintln!("skipped: {obstacle}");
            return;
        }
        let (directory, journal) = journal("memory-server");
        for (number, transport) in [(90, Transport::Unix), (91, Transport::Tcp)] {
            let mut server = MemoryServer::start(&journal, number, 1 << 20, transport).unwrap();
            assert_eq!(greeting(&server.endpoint).unwrap(), *b"NBDMAGIC");
            assert!(server.is_running() && server.resident_bytes() > 0);
            let listed = fs::read_to_string(directory.join("journal.json")).unwrap();
            assert!(listed.contains("start_time_ticks"), "{listed}");

            server.kill();
            assert!(!server.is_running() && greeting(&server.endpoint).is_err());
            assert_eq!(server.resident_bytes(), 0);
            let listed = fs::read_to_string(directory.join("journal.json")).unwrap();
            assert!(!listed.contains("start_time_ticks"), "{listed}");

            server.restart().unwrap();
            assert_eq!(greeting(&server.endpoint).unwrap(), *b"NBDMAGIC");
            let endpoint = server.endpoint.clone();
            drop(server);
            assert!(greeting(&endpoint).is_err() && !has_files(number));
        }
        assert_eq!(fs::read_to_string(directory.join("journal.json")).unwrap(), "[]");
        drop(journal);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_server_of_a_killed_run_is_removed_by_the_next() {
        if let Some(obstacle) = obstacle() {
            eprintln!("skipped: {obstacle}");
            return;
        }
        let (directory, journal) = journal("memory-server-left");
        let server = MemoryServer::start(&journal, 92, 1 << 20, Transport::Unix).unwrap();
        let endpoint = server.endpoint.clone();
        let mut child = std::mem::ManuallyDrop::new(server).running.take().map(|running| {
            // Neither the process nor its entry in the journal goes.
            let running = std::mem::ManuallyDrop::new(running);
            // SAFETY: the original is never used or dropped.
            unsafe { std::ptr::read(&raw const running.child) }
        });
        drop(journal);
        assert!(endpoint.connect().is_ok());
        let reaper = std::thread::spawn(move || child.as_mut().map(Child::wait));
        drop(Journal::open_in(&directory).unwrap());
        assert!(endpoint.connect().is_err() && !has_files(92));
        reaper.join().unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_a_server_says_at_its_early_end_is_told() {
        if let Some(obstacle) = obstacle() {
            eprintln!("skipped: {obstacle}");
            return;
        }
        let (directory, journal) = journal("memory-server-end");
        // No export can be so large.
        let error = format!("{:#}", MemoryServer::start(&journal, 93, u64::MAX, Transport::Unix).unwrap_err());
        assert!(error.contains("ended at its start") && error.contains("nbdkit: error"), "{error}");
        drop(journal);
        fs::remove_dir_all(&directory).unwrap();
    }
}
