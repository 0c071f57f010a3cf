//! A page of random bytes behind the last slot, by which a server is known to be the one that has our pages: one that was restarted empty, or that another
//! client has written to, is noticed when the connection is made again.

use super::handshake::{ConnectError, Connected};
use super::wire::{Command, REPLY_BYTES, errno_of, parse_reply, request};
use crate::size::PAGE_SIZE;
use std::io::{Read, Write};

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
        unsafe { libc::getrandom(page.as_mut_ptr().cast(), 64, 0) };
        Self { offset, page }
    }

    /// Looks whether it is there; writes it if not. On a connection that is not used otherwise yet, whose time limits apply.
    pub(super) fn renew(&self, connected: &mut Connected) -> Result<bool, ConnectError> {
        let mut found = [0; PAGE_SIZE];
        self.ask(connected, Command::Read, &[], &mut found)?;
        if found == *self.page {
            return Ok(true);
        }
        self.ask(connected, Command::Write, &self.page[..], &mut [])?;
        if connected.export.can_flush {
            self.ask(connected, Command::Flush, &[], &mut [])?;
        }
        Ok(false)
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
