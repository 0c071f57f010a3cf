//! How long a server may be silent, everywhere: while records are loaded, while a workload runs or ends, when statistics are asked for.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::endpoint::Endpoint;
use crate::interrupt;

/// With requests under way and without one answer for this long, a server counts as stuck. Tests do not wait as long.
pub const STALL_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 20 });
/// How often a wait looks for signals.
const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(100);

/// A blocking socket whose waits end after `STALL_LIMIT` without a byte, or soon after a signal came.
#[derive(Debug)]
pub struct PatientSocket(TcpStream);

impl PatientSocket {
    pub fn connect(endpoint: &Endpoint) -> Result<Self> {
        Self::new(endpoint.connect().with_context(|| format!("cannot connect to the server at {endpoint}"))?)
    }

    fn new(socket: File) -> Result<Self> {
        // The calls and options are the same for a UNIX socket.
        let stream = TcpStream::from(OwnedFd::from(socket));
        stream
            .set_read_timeout(Some(LOOK_FOR_SIGNALS))
            .and_then(|()| stream.set_write_timeout(Some(LOOK_FOR_SIGNALS)))
            .context("cannot set a time limit on a connection")?;
        Ok(Self(stream))
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

fn patiently(mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if interrupt::requested() {
                    return Err(io::Error::other("stopped by a signal"));
                }
                if started.elapsed() > STALL_LIMIT {
                    let message = format!("the server did not answer for {} s", STALL_LIMIT.as_secs());
                    return Err(io::Error::new(ErrorKind::TimedOut, message));
                }
            }
            result => return result,
        }
    }
}

impl Read for PatientSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        patiently(|| self.0.read(buffer))
    }
}

impl Write for PatientSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        patiently(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error if the server does not answer the simplest of requests.
pub fn check_alive(endpoint: &Endpoint) -> Result<()> {
    let mut socket = PatientSocket::connect(endpoint)?;
    let mut line = Vec::new();
    // Whatever it says to that, it lives.
    socket.write_all(b"version\r\n").and_then(|()| BufReader::new(socket).read_until(b'\n', &mut line)).context("the server is stuck")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_given_up_and_an_answering_one_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        // The kernel accepts for it, as for a stopped process.
        let error = format!("{:#}", check_alive(&endpoint).unwrap_err());
        assert!(error.contains("did not answer for 5 s"), "{error}");
        drop(listener);
        let listener = endpoint.listen().unwrap();
        let server = std::thread::spawn(move || listener.accept()?.write_all(b"ERROR\r\n"));
        check_alive(&endpoint).unwrap();
        server.join().unwrap().unwrap();
    }
}
