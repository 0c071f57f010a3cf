//! A page of random bytes behind the last slot, by which a server is known to be the one that has our pages: one that was restarted empty, or that another
//! client has written to, is noticed when the connection is made again.

use super::handshake::{ConnectError, Connected};
use super::wire::{Command, REPLY_BYTES, errno_of, parse_reply, request};
use crate::size::PAGE_SIZE;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Random bytes at the beginning of the page.
const RANDOM_BYTES: usize = 64;

/// Signatures that this process has written to exports in use.
static IN_USE: Mutex<Vec<[u8; RANDOM_BYTES]>> = Mutex::new(Vec::new());

fn in_use() -> MutexGuard<'static, Vec<[u8; RANDOM_BYTES]>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While there is this, no other backend of this process may use the same export.
#[derive(Debug)]
pub(super) struct Claim([u8; RANDOM_BYTES]);

impl Drop for Claim {
    fn drop(&mut self) {
        in_use().retain(|of_some| *of_some != self.0);
    }
}

/// What is written where.
pub(super) struct Signature {
    offset: u64,
    page: Box<[u8; PAGE_SIZE]>,
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Signature {
    /// A new one, at this byte of the export.
    pub(super) fn new(offset: u64) -> Self {
        let mut page = Box::new([0; PAGE_SIZE]);
        // SAFETY: the buffer is valid. Fewer bytes, or none, only make signatures more alike.
        unsafe { libc::getrandom(page.as_mut_ptr().cast(), RANDOM_BYTES, 0) };
        Self { offset, page }
    }

    /// Writes it for the first time. That of another backend of this process tells that both are at the same export, by whatever names: each would overwrite
    /// the other's pages.
    pub(super) fn claim(&self, connected: &mut Connected) -> Result<Claim, ConnectError> {
        let mut found = [0; PAGE_SIZE];
        self.ask(connected, Command::Read, &[], &mut found)?;
        if in_use().iter().any(|of_other| found.starts_with(of_other)) {
            return Err(ConnectError::new(
                "this process uses the same export already, and one would overwrite the other's pages: give each backend its own",
            ));
        }
        self.write(connected)?;
        let claim = Claim(*self.page.first_chunk().expect("a page is longer"));
        in_use().push(claim.0);
        Ok(claim)
    }

    /// Looks whether it is there; writes it if not. On a connection that is not used otherwise yet, whose time limits apply.
    pub(super) fn renew(&self, connected: &mut Connected) -> Result<bool, ConnectError> {
        let mut found = [0; PAGE_SIZE];
        self.ask(connected, Command::Read, &[], &mut found)?;
        if found == *self.page {
            return Ok(true);
        }
        self.write(connected)?;
        Ok(false)
    }

    fn write(&self, connected: &mut Connected) -> Result<(), ConnectError> {
        self.ask(connected, Command::Write, &self.page[..], &mut [])?;
        if connected.export.can_flush {
            self.ask(connected, Command::Flush, &[], &mut [])?;
        }
        Ok(())
    }

    fn ask(&self, connected: &mut Connected, command: Command, sent: &[u8], received: &mut [u8]) -> Result<(), ConnectError> {
        const COOKIE: u64 = 0x6C73_7769;
        let (offset, num_bytes) = if command == Command::Flush { (0, 0) } else { (self.offset, PAGE_SIZE as u32) };
        let stream = connected.stream();
        let mut exchange = || {
            stream.write_all(&request(command, COOKIE, offset, num_bytes))?;
            stream.write_all(sent)?;
            stream.flush()?;
            let mut header = [0; REPLY_BYTES];
            stream.read_exact(&mut header)?;
            match parse_reply(&header) {
                Some((0, COOKIE)) => stream.read_exact(received),
                Some((error, COOKIE)) => Err(std::io::Error::from_raw_os_error(errno_of(error))),
                _ => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "the server sent something that is no reply")),
            }
        };
        exchange().map_err(|cause| ConnectError::of(&format!("the first {command:?} failed"), &cause))
    }
}
