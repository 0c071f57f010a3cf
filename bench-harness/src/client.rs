//! Non-blocking connections to a server, with buffers that are reused for every request.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

use crate::endpoint::Endpoint;
use crate::poller::Poller;

#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    /// The requests being sent; callers append to it while it is empty and then call `flush`.
    pub output: Vec<u8>,
    sent: usize,
    watching_writable: bool,
    input: Vec<u8>,
    received: usize,
}

impl Connection {
    /// Of a connected socket of any kind.
    pub fn new(socket: File, input_capacity: usize) -> io::Result<Self> {
        // SAFETY: the descriptor is open and no pointer is passed.
        let result = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // Whatever its kind: this type calls send(2) and recv(2), which are a little cheaper than write(2) and read(2).
            socket: TcpStream::from(OwnedFd::from(socket)),
            output: Vec::with_capacity(input_capacity),
            sent: 0,
            watching_writable: false,
            input: vec![0; input_capacity],
            received: 0,
        })
    }

    /// Sends what is in `output`, as far as the socket takes it; the rest follows when the socket is writable.
    #[inline]
    pub fn flush(&mut self, poller: &Poller, token: usize) -> io::Result<()> {
        while self.sent < self.output.len() {
            match (&self.socket).write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.watch_writable(poller, token, true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        self.watch_writable(poller, token, false)
    }

    #[inline]
    fn watch_writable(&mut self, poller: &Poller, token: usize, wanted: bool) -> io::Result<()> {
        if wanted != self.watching_writable {
            poller.watch_writable(self.socket.as_raw_fd(), token, wanted)?;
            self.watching_writable = wanted;
        }
        Ok(())
    }

    /// Reads once into the input buffer. Nothing to read is no error; the end of the stream is.
    #[inline]
    pub fn receive(&mut self) -> io::Result<()> {
        if self.received == self.input.len() {
            self.input.resize(self.input.len() * 2, 0);
        }
        match (&self.socket).read(&mut self.input[self.received..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.received += count;
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    #[inline]
    pub fn input(&self) -> &[u8] {
        &self.input[..self.received]
    }

    /// Drops the first bytes of the input, a reply that was handled.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.input.copy_within(count..self.received, 0);
        self.received -= count;
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The connections of one load thread.
#[derive(Debug)]
pub struct Fleet {
    pub connections: Vec<Connection>,
    pub poller: Poller,
}

impl Fleet {
    pub fn connect(endpoint: &Endpoint, count: usize, input_capacity: usize) -> Result<Self> {
        let poller = Poller::new().context("cannot create an epoll instance")?;
        let mut connections = Vec::with_capacity(count);
        for token in 0..count {
            let connection = endpoint.connect().and_then(|socket| Connection::new(socket, input_capacity)).with_context(|| {
                format!(
                    "cannot open connection {} of {count} to the server at {endpoint}; is it running, and does it allow that many \
                     connections (-c)?",
                    token + 1
                )
            })?;
            poller.add(connection.socket.as_raw_fd(), token).context("cannot watch a connection with epoll")?;
            connections.push(connection);
        }
        Ok(Self { connections, poller })
    }
}
