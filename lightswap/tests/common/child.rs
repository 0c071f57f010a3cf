//! Tests that need a process of their own: the test program runs itself again for one test.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

const VARIABLE: &str = "LIGHTSWAP_TEST_IN_CHILD";

/// What came of a child process.
#[derive(Debug)]
pub struct Ended {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails the test unless the child's test passed; `false` if it said that it skipped.
    pub fn expect_success(&self) {
        assert_eq!(self.exit_code, Some(0), "the child failed: {self:?}");
        self.stderr.lines().filter(|line| line.starts_with("skipped: ")).for_each(|line| eprintln!("{line}"));
    }

    /// Fails the test unless the child was ended by the signal.
    pub fn expect_signal(&self, signal: i32) {
        assert_eq!(self.signal, Some(signal), "the child should have been ended by signal {signal}: {self:?}");
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { exit_code: output.status.code(), signal: output.status.signal(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Runs `body` in a process of its own. Call it once in a test, with the test's name: the child runs the same test, up to here.
pub fn in_child(test: &str, body: impl FnOnce()) -> Option<Ended> {
    in_child_with(test, |command| command, body)
}

/// The same; `prepare` sets the child's command up.
pub fn in_child_with(test: &str, prepare: impl FnOnce(&mut Command) -> &mut Command, body: impl FnOnce()) -> Option<Ended> {
    if std::env::var(VARIABLE).is_ok_and(|name| name == test) {
        without_core_dump();
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(VARIABLE, test).stdin(Stdio::null());
    Some(prepare(&mut command).output().unwrap().into())
}

fn without_core_dump() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is valid for the call.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
}

/// fork(), with `body` as all that the child does; how the child ended (as waitpid tells it).
pub fn fork(body: impl FnOnce()) -> i32 {
    // SAFETY: the child runs `body`, which tests keep to what is safe there, and then ends without running anything of the harness.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            body();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}
