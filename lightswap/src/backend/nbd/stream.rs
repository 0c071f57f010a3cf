//! The stream that a connection begins with: blocking, with a time limit for the whole of what is done, plain or within TLS.

use super::tls::TlsError;
use super::tls::handshake::{NoSession, shake_hands};
use super::tls::options::TlsOptions;
use super::tls::record::{HEADER_BYTES, MAX_RECORD_BYTES, record_bytes};
use super::tls::session::Session;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Socket {
    socket: UnixStream,
    end: Instant,
}

impl Socket {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        // SAFETY: the bytes are valid, the descriptor is open. Not `write`, which raises SIGPIPE.
        let num_sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        usize::try_from(num_sent).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// TLS around it.
#[derive(Debug)]
struct Secured {
    session: Session,
    /// For a record at a time; data that was not read yet lies in `unread`.
    record: Box<[u8]>,
    unread: Range<usize>,
    /// No data has come yet: it is only now that a server says what it thinks of its client's certificate, or closes the connection without a word.
    is_fresh: bool,
}

/// Reads and writes fail after the limit.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    secured: Option<Secured>,
}

impl Secured {
    fn failed(is_fresh: bool) -> impl Fn(io::Error) -> io::Error {
        move |cause| match cause.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe if is_fresh => io::Error::other(
                "the server closed the connection after the TLS handshake: it may want a certificate of its client, or another one (tls-certificates=DIR)",
            ),
            _ => cause,
        }
    }
}

fn broken(cause: TlsError) -> io::Error {
    let kind = if cause == TlsError::Closed { ErrorKind::UnexpectedEof } else { ErrorKind::InvalidData };
    io::Error::new(kind, cause.to_string())
}

impl Stream {
    pub(super) fn new(socket: OwnedFd, limit: Duration) -> Self {
        // Only reads, writes and time limits are used, which are the same for all stream sockets.
        Self { socket: Socket { socket: socket.into(), end: Instant::now() + limit }, secured: None }
    }

    /// From now on there is so much time.
    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.socket.end = Instant::now() + limit;
    }

    /// Begins TLS, as both sides have agreed to.
    pub(super) fn secure(&mut self, options: &TlsOptions) -> Result<(), NoSession> {
        let session = shake_hands(&mut self.socket, options)?;
        self.secured = Some(Secured { session, record: vec![0; MAX_RECORD_BYTES].into(), unread: 0..0, is_fresh: true });
        Ok(())
    }

    /// The socket without time limits, and the session around it.
    pub(super) fn into_parts(self) -> io::Result<(OwnedFd, Option<Session>)> {
        let socket = self.socket.socket;
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        match self.secured {
            Some(secured) if !secured.unread.is_empty() => Err(io::Error::new(ErrorKind::InvalidData, "the server sent more than it was asked for")),
            secured => Ok((socket.into(), secured.map(|secured| secured.session))),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { socket, secured: Some(Secured { session, record, unread, is_fresh }) } = self else { return self.socket.read(buffer) };
        while unread.start == unread.end {
            let (header, rest) = record.split_first_chunk_mut::<HEADER_BYTES>().expect("it is longer");
            socket.read_exact(header).map_err(Secured::failed(*is_fresh))?;
            let num_bytes = record_bytes(*header).map_err(broken)?;
            socket.read_exact(&mut rest[..num_bytes - HEADER_BYTES])?;
            *unread = 0..session.open(record, 0).map_err(broken)?.map_or(0, |opened| opened.data_bytes);
        }
        *is_fresh = false;
        let num_bytes = buffer.len().min(unread.len());
        buffer[..num_bytes].copy_from_slice(&record[unread.start..][..num_bytes]);
        unread.start += num_bytes;
        Ok(num_bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { socket, secured: Some(Secured { session, is_fresh, .. }) } = self else { return self.socket.write(bytes) };
        let bytes = &bytes[..bytes.len().min(MAX_WRITE_BYTES)];
        // Room for two records.
        let mut records = vec![0; MAX_RECORD_BYTES];
        let mut num_bytes = session.seal_update(&mut records).map_err(broken)?;
        records[num_bytes + HEADER_BYTES..][..bytes.len()].copy_from_slice(bytes);
        num_bytes += session.seal(&mut records[num_bytes..], bytes.len());
        socket.write_all(&records[..num_bytes]).map_err(Secured::failed(*is_fresh))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of one record, where speed does not matter.
const MAX_WRITE_BYTES: usize = 8 << 10;
