//! What the program says, on stdout and stderr.
//!
//! `println!` panics when nobody reads any more, as in `... | head -1`: the process would then end at once and leave swap, cgroups and servers behind. Here
//! such a write is remembered and asks for an orderly end, as a signal does. Clippy refuses the other macros in this program.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use signal_hook::consts::SIGPIPE;

use crate::interrupt;

/// A line of results, on stdout.
macro_rules! say {
    ($($part:tt)*) => { $crate::output::to_stdout(format_args!($($part)*)) };
}

/// A line about what happens, on stderr.
macro_rules! note {
    ($($part:tt)*) => { $crate::output::to_stderr(format_args!($($part)*)) };
}

static FAILURE: OnceLock<ErrorKind> = OnceLock::new();

pub fn to_stdout(text: Arguments<'_>) {
    remember(write_line(&mut io::stdout().lock(), text));
}

pub fn to_stderr(text: Arguments<'_>) {
    remember(write_line(&mut io::stderr().lock(), text));
}

/// In one piece, so that lines of several processes do not mix.
fn write_line(stream: &mut impl Write, text: Arguments<'_>) -> io::Result<()> {
    stream.write_all(format!("{text}\n").as_bytes())?;
    stream.flush()
}

fn remember(result: io::Result<()>) {
    match result.map_err(|error| error.kind()) {
        // A terminal or pipe that others made non-blocking and that is full for now: the line is lost, no more.
        Ok(()) | Err(ErrorKind::WouldBlock) => {}
        Err(kind) => {
            let _ = FAILURE.set(kind);
            interrupt::request(SIGPIPE);
        }
    }
}

/// Why something could not be said, if that happened.
pub fn failure() -> Option<ErrorKind> {
    FAILURE.get().copied()
}
