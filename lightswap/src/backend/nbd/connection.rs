//! One connection to a server as a worker uses it: at most one send and one receive under way, through the worker's ring; TLS in between if it is so.

use super::handshake::Connected;
use super::inbox::{Inbox, Violation};
use super::outbox::Outbox;
use super::wire::{Command, request};
use crate::io_queue::{IoQueue, Token};
use io_uring::opcode;
use io_uring::types::Fd;
use rustls::ClientConnection;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

/// Encrypted bytes received at a time; a TLS record has up to 16 KiB.
const TLS_RECEIVE_BYTES: usize = 64 << 10;

/// Why a connection cannot be used any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// The server closed it.
    Closed,
    Errno(i32),
    Violation(Violation),
    Tls(rustls::Error),
    /// Nothing came for so many milliseconds.
    TimedOut(u64),
    /// The server says that it shuts down.
    ShuttingDown,
}

impl Broken {
    /// Whether the server did something that the protocol does not allow.
    pub(super) fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_) | Self::Tls(_))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the server closed it"),
            Self::Errno(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
            Self::Violation(Violation::NoReply) => f.write_str("the server sent something that is no reply"),
            Self::Violation(Violation::UnknownCookie(cookie)) => write!(f, "the server answered a request that was not made (cookie {cookie:#x})"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::TimedOut(timeout_ms) => write!(f, "no answer for {timeout_ms} ms"),
            Self::ShuttingDown => f.write_str("the server shuts down"),
        }
    }
}

struct Tls {
    session: RefCell<Box<ClientConnection>>,
    received: RefCell<Box<[u8]>>,
    /// What is being sent, and how much of it was.
    sending: RefCell<Vec<u8>>,
    num_sent: Cell<usize>,
}

/// For one thread.
pub(super) struct Connection {
    socket: OwnedFd,
    tls: Option<Tls>,
    is_sending: Cell<bool>,
    is_receiving: Cell<bool>,
}

impl Connection {
    pub(super) fn new(connected: Connected) -> Self {
        let tls = connected.tls.map(|mut session| {
            // What is not sent yet is bounded by what the outbox takes at a time.
            session.set_buffer_limit(None);
            Tls {
                session: RefCell::new(session),
                received: RefCell::new(vec![0; TLS_RECEIVE_BYTES].into()),
                sending: RefCell::new(Vec::new()),
                num_sent: Cell::new(0),
            }
        });
        Self { socket: connected.socket, tls, is_sending: Cell::new(false), is_receiving: Cell::new(false) }
    }

    /// Whether nothing is under way, so that it can be closed.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_sending.get() && !self.is_receiving.get()
    }

    /// Whether payloads stay in the inbox until the next receive, so that pages can be mapped from there.
    pub(super) fn keeps_payloads(&self) -> bool {
        self.tls.is_none()
    }

    pub(super) fn is_sending(&self) -> bool {
        self.is_sending.get()
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.is_receiving.get()
    }

    /// Sends what is in the outbox, if there is anything, and nothing under way.
    pub(super) fn send(&self, io: &IoQueue, outbox: &Outbox, token: Token) {
        if self.is_sending.get() {
            return;
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let fd = Fd(self.socket.as_raw_fd());
        let entry = if let Some(tls) = &self.tls {
            let mut sending = tls.sending.borrow_mut();
            let mut session = tls.session.borrow_mut();
            // Neither fails: both are in memory.
            for piece in outbox.pieces() {
                let _ = session.writer().write_all(piece);
            }
            outbox.clear();
            while session.wants_write() {
                let _ = session.write_tls(&mut *sending);
            }
            let left = &sending[tls.num_sent.get()..];
            if left.is_empty() {
                return;
            }
            opcode::Send::new(fd, left.as_ptr(), left.len() as u32).flags(flags).build()
        } else if outbox.is_empty() {
            return;
        } else {
            opcode::SendMsg::new(fd, outbox.begin_send()).flags(flags as u32).build()
        };
        self.is_sending.set(true);
        // SAFETY: the message, or the encrypted copy, does not change before the completion, and the socket stays open (see `is_idle`); pages are their
        // writers' until the server has answered or this send is over.
        unsafe { io.push(entry, token) };
    }

    /// The send has ended.
    pub(super) fn sent(&self, outbox: &Outbox, result: i32) -> Result<(), Broken> {
        self.is_sending.set(false);
        let num_bytes = usize::try_from(result).unwrap_or(0);
        match &self.tls {
            None => outbox.sent(num_bytes),
            Some(tls) => {
                let mut sending = tls.sending.borrow_mut();
                tls.num_sent.set(tls.num_sent.get() + num_bytes);
                if tls.num_sent.get() == sending.len() {
                    sending.clear();
                    tls.num_sent.set(0);
                }
            }
        }
        if result < 0 { Err(Broken::Errno(-result)) } else { Ok(()) }
    }

    /// Receives, unless that is under way.
    pub(super) fn receive(&self, io: &IoQueue, inbox: &Inbox, token: Token) {
        if self.is_receiving.replace(true) {
            return;
        }
        let (target, room) = match &self.tls {
            None => inbox.room(),
            Some(tls) => (tls.received.borrow_mut().as_mut_ptr(), TLS_RECEIVE_BYTES),
        };
        let entry = opcode::Recv::new(Fd(self.socket.as_raw_fd()), target, room as u32).build();
        // SAFETY: nobody else uses that memory before the completion, and the socket stays open.
        unsafe { io.push(entry, token) };
    }

    /// The receive has ended; `take` takes whole replies out of the inbox.
    pub(super) fn received(&self, inbox: &Inbox, result: i32, mut take: impl FnMut() -> Result<(), Broken>) -> Result<(), Broken> {
        self.is_receiving.set(false);
        let num_bytes = match result {
            0 => return Err(Broken::Closed),
            errno @ ..0 => return Err(Broken::Errno(-errno)),
            _ => result as usize,
        };
        let Some(tls) = &self.tls else {
            inbox.received(num_bytes);
            return take();
        };
        let (mut session, received) = (tls.session.borrow_mut(), tls.received.borrow());
        let mut left = &received[..num_bytes];
        while !left.is_empty() {
            if session.read_tls(&mut left).is_err() {
                return Err(Broken::Tls(rustls::Error::General("more than a record that is not complete".into())));
            }
            let state = session.process_new_packets().map_err(Broken::Tls)?;
            let mut num_plain = state.plaintext_bytes_to_read();
            while num_plain > 0 {
                // Payloads that were taken are overwritten here: see `keeps_payloads`.
                let (target, room) = inbox.room();
                // SAFETY: so much room is there, and nobody else uses it.
                let target = unsafe { std::slice::from_raw_parts_mut(target, room.min(num_plain)) };
                let num_read = session.reader().read(target).map_err(|_| Broken::Closed)?;
                inbox.received(num_read);
                num_plain -= num_read;
                take()?;
            }
        }
        Ok(())
    }

    /// Ends what is under way, soon.
    pub(super) fn shut_down(&self) {
        // SAFETY: the descriptor is open.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Tells the server that this is the end, if that can be done at once.
    pub(super) fn say_goodbye(&self) {
        if self.is_sending.get() {
            return;
        }
        let header = request(Command::Disconnect, 0, 0, 0);
        let mut bytes = header.to_vec();
        if let Some(tls) = &self.tls {
            let mut session = tls.session.borrow_mut();
            let _ = session.writer().write_all(&header);
            session.send_close_notify();
            bytes.clear();
            while session.wants_write() {
                let _ = session.write_tls(&mut bytes);
            }
        }
        // SAFETY: the bytes are valid, and the descriptor is open.
        unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }
}
