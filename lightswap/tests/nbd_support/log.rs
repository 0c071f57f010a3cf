//! What clients asked of a scripted server, and where they broke the protocol.

use super::handshake::Export;
use super::protocol::{Command, Request};

/// A request as it came in, whatever was done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Connections are counted from 0, in the order in which they were accepted.
    pub connection: usize,
    pub command: Command,
    pub offset: u64,
    pub length: u32,
}

#[derive(Debug, Default)]
pub struct Log {
    pub requests: Vec<Recorded>,
    pub violations: Vec<String>,
    /// Received and not answered, of connections that are open.
    open: Vec<(usize, Request)>,
    /// A request that overlaps a write or trim in flight of another connection is wrong, too. Not so where connections are lost: what a lost one carried is
    /// sent again by another, and the server may learn of the loss after that.
    pub strict: bool,
    /// A mirror that brings another member up to date: what it reads for that may be written meanwhile, and is not used then.
    pub is_copied_from: bool,
}

impl Log {
    pub fn add(&mut self, connection: usize, request: Request) {
        let Request { command, offset, length, .. } = request;
        self.requests.push(Recorded { connection, command, offset, length });
        if command == Command::Disconnect {
            return;
        }
        let mut wrong = Vec::new();
        for (other, open) in self.open.iter().filter(|(other, _)| *other == connection || self.strict) {
            if *other == connection && open.cookie == request.cookie {
                wrong.push(format!("connection {connection}: {request:?} has the cookie of {open:?}, which is not answered yet"));
            }
            if conflict(&request, open) && !(self.is_copied_from && open.command == Command::Read) {
                wrong.push(format!("connection {connection}: {request:?} does not wait for {open:?} of connection {other}"));
            }
        }
        self.violations.append(&mut wrong);
        self.open.push((connection, request));
    }

    pub fn answered(&mut self, connection: usize, cookie: u64) {
        self.open.retain(|(other, request)| *other != connection || request.cookie != cookie);
    }

    pub fn closed(&mut self, connection: usize) {
        self.open.retain(|(other, _)| *other != connection);
    }

    pub fn violated(&mut self, connection: usize, what: &str) {
        self.violations.push(format!("connection {connection}: {what}"));
    }

    pub fn of(&self, command: Command) -> impl Iterator<Item = &Recorded> {
        self.requests.iter().filter(move |request| request.command == command)
    }

    pub fn count(&self, command: Command) -> usize {
        self.of(command).count()
    }
}

/// A server may do requests in any order: those that matter to each other must wait for each other.
fn conflict(one: &Request, other: &Request) -> bool {
    let changes = |request: &Request| matches!(request.command, Command::Write | Command::Trim);
    // Flushes have no range.
    let overlap = one.offset < other.end() && other.offset < one.end();
    overlap && (changes(one) || changes(other))
}

/// What is wrong with a request to an export, if anything.
pub fn fault_of(request: &Request, export: &Export) -> Option<String> {
    let Request { command, flags, length, .. } = *request;
    if flags != 0 {
        return Some(format!("{request:?} has flags, and none was offered"));
    }
    match command {
        Command::Disconnect => return None,
        Command::Flush if !export.can_flush => return Some("FLUSH was not offered".into()),
        Command::Flush if length != 0 || request.offset != 0 => return Some(format!("{request:?}: FLUSH has no range")),
        Command::Flush => return None,
        Command::Trim if !export.can_trim => return Some("TRIM was not offered".into()),
        Command::Write | Command::Trim if export.read_only => return Some(format!("{request:?} to a read-only export")),
        Command::Read | Command::Write | Command::Trim => {}
    }
    if length == 0 {
        return Some(format!("{request:?} asks for nothing"));
    }
    if request.end() > export.num_bytes {
        return Some(format!("{request:?} goes past the end of {} bytes", export.num_bytes));
    }
    let [least, _, largest] = export.block_sizes.unwrap_or([1, 4096, export.largest_request()]);
    // Trims may be longer: they carry nothing.
    if command != Command::Trim && length > largest {
        return Some(format!("{request:?} is longer than the {largest} bytes that are allowed"));
    }
    let is_whole = request.offset.is_multiple_of(u64::from(least)) && length.is_multiple_of(least);
    (!is_whole).then(|| format!("{request:?} is not in blocks of {least} bytes"))
}
