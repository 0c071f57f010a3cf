//! One connection to a server as a worker uses it: at most one send and one receive under way, through the worker's ring.

use super::handshake::Connected;
use super::inbox::{Inbox, Violation};
use super::outbox::Outbox;
use super::wire::{Command, request};
use crate::io_queue::{IoQueue, Token};
use io_uring::opcode;
use io_uring::types::Fd;
use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a connection cannot be used any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// The server closed it.
    Closed,
    Errno(i32),
    Violation(Violation),
    /// Nothing came for so many milliseconds.
    TimedOut(u64),
    /// The server says that it shuts down.
    ShuttingDown,
}

impl Broken {
    /// Whether the server did something that the protocol does not allow.
    pub(super) fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the server closed it"),
            Self::Errno(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
            Self::Violation(Violation::NoReply) => f.write_str("the server sent something that is no reply"),
            Self::Violation(Violation::UnknownCookie(cookie)) => write!(f, "the server answered a request that was not made (cookie {cookie:#x})"),
            Self::TimedOut(timeout_ms) => write!(f, "no answer for {timeout_ms} ms"),
            Self::ShuttingDown => f.write_str("the server shuts down"),
        }
    }
}

/// For one thread.
pub(super) struct Connection {
    socket: OwnedFd,
    is_sending: Cell<bool>,
    is_receiving: Cell<bool>,
}

impl Connection {
    pub(super) fn new(connected: Connected) -> Self {
        Self { socket: connected.socket, is_sending: Cell::new(false), is_receiving: Cell::new(false) }
    }

    /// Whether nothing is under way, so that it can be closed.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_sending.get() && !self.is_receiving.get()
    }

    pub(super) fn is_sending(&self) -> bool {
        self.is_sending.get()
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.is_receiving.get()
    }

    /// Sends what is in the outbox, if there is anything, and nothing under way.
    pub(super) fn send(&self, io: &IoQueue, outbox: &Outbox, token: Token) {
        if self.is_sending.get() || outbox.is_empty() {
            return;
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::SendMsg::new(Fd(self.socket.as_raw_fd()), outbox.begin_send()).flags(flags as u32).build();
        self.is_sending.set(true);
        // SAFETY: the message does not change before the completion, and the socket stays open (see `is_idle`); pages are their writers' until the server has
        // answered or this send is over.
        unsafe { io.push(entry, token) };
    }

    /// The send has ended.
    pub(super) fn sent(&self, outbox: &Outbox, result: i32) -> Result<(), Broken> {
        self.is_sending.set(false);
        outbox.sent(usize::try_from(result).unwrap_or(0));
        if result < 0 { Err(Broken::Errno(-result)) } else { Ok(()) }
    }

    /// Receives, unless that is under way.
    pub(super) fn receive(&self, io: &IoQueue, inbox: &Inbox, token: Token) {
        if self.is_receiving.replace(true) {
            return;
        }
        let (target, room) = inbox.room();
        let entry = opcode::Recv::new(Fd(self.socket.as_raw_fd()), target, room as u32).build();
        // SAFETY: nobody else uses that memory before the completion, and the socket stays open.
        unsafe { io.push(entry, token) };
    }

    /// The receive has ended; `take` takes whole replies out of the inbox.
    pub(super) fn received(&self, inbox: &Inbox, result: i32, take: impl FnOnce() -> Result<(), Broken>) -> Result<(), Broken> {
        self.is_receiving.set(false);
        let num_bytes = match result {
            0 => return Err(Broken::Closed),
            errno @ ..0 => return Err(Broken::Errno(-errno)),
            _ => result as usize,
        };
        inbox.received(num_bytes);
        take()
    }

    /// Ends what is under way, soon.
    pub(super) fn shut_down(&self) {
        // SAFETY: the descriptor is open.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Tells the server that this is the end, if that can be done at once.
    pub(super) fn say_goodbye(&self) {
        let header = request(Command::Disconnect, 0, 0, 0);
        // SAFETY: the bytes are valid, and the descriptor is open.
        unsafe { libc::send(self.socket.as_raw_fd(), header.as_ptr().cast(), header.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }
}
