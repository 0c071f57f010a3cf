//! One connection to a server as a worker uses it: at most one send and one receive under way, through the worker's ring; and TLS between these and what is
//! asked and answered, if there is any.

use super::handshake::Established;
use super::inbox::{Inbox, Violation};
use super::outbox::Outbox;
use super::tls::TlsError;
use super::tls::sender::Sender;
use super::wire::{Command, request};
use crate::io_queue::{IoQueue, Token};
use io_uring::opcode;
use io_uring::types::Fd;
use rustls::AlertDescription;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a connection cannot be used any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// The server closed it.
    Closed,
    /// The same within TLS, without the end that this should have: by somebody in between, or by the server's own end.
    CutOff,
    Errno(i32),
    Violation(Violation),
    Tls(TlsError),
    /// Nothing came for so many milliseconds.
    TimedOut(u64),
    /// The server says that it shuts down.
    ShuttingDown,
}

impl Broken {
    /// Whether the server did something that the protocol does not allow.
    pub(super) fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_) | Self::Tls(TlsError::Tampered | TlsError::Violation(_)))
    }
}

impl From<TlsError> for Broken {
    fn from(cause: TlsError) -> Self {
        Self::Tls(cause)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the server closed it"),
            Self::CutOff => f.write_str("it was closed without an end of the TLS session"),
            Self::Tls(cause) => write!(f, "{cause}"),
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
    tls: Option<RefCell<Box<Sender>>>,
    is_sending: Cell<bool>,
    is_receiving: Cell<bool>,
}

impl Connection {
    pub(super) fn new(established: Established) -> Self {
        let Established { socket, tls } = established;
        Self { socket, tls: tls.map(RefCell::new), is_sending: Cell::new(false), is_receiving: Cell::new(false) }
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
    pub(super) fn send(&self, io: &IoQueue, outbox: &Outbox, token: Token) -> Result<(), Broken> {
        if self.is_sending.get() {
            return Ok(());
        }
        let (socket, flags) = (Fd(self.socket.as_raw_fd()), libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        let entry = match &self.tls {
            None if outbox.is_empty() => return Ok(()),
            None => opcode::SendMsg::new(socket, outbox.begin_send()).flags(flags as u32).build(),
            Some(tls) => {
                let mut tls = tls.borrow_mut();
                let bytes = tls.next(|target| outbox.take(target).ok_or(Broken::Errno(libc::EFAULT)))?;
                if bytes.is_empty() {
                    return Ok(());
                }
                opcode::Send::new(socket, bytes.as_ptr(), bytes.len() as u32).flags(flags).build()
            }
        };
        self.is_sending.set(true);
        // SAFETY: what is sent does not change before the completion, and the socket stays open (see `is_idle`); pages are their writers' until the server has
        // answered or this send is over.
        unsafe { io.push(entry, token) };
        Ok(())
    }

    /// The send has ended.
    pub(super) fn sent(&self, outbox: &Outbox, result: i32) -> Result<(), Broken> {
        self.is_sending.set(false);
        let num_bytes = usize::try_from(result).unwrap_or(0);
        match &self.tls {
            None => outbox.sent(num_bytes),
            Some(tls) => tls.borrow_mut().sent(num_bytes),
        }
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
            0 if self.tls.is_some() => return Err(Broken::CutOff),
            0 => return Err(Broken::Closed),
            errno @ ..0 => return Err(Broken::Errno(-errno)),
            _ => result as usize,
        };
        let Some(tls) = &self.tls else {
            inbox.received(num_bytes);
            return take();
        };
        let opened = inbox.received_sealed(num_bytes, |bytes, start| tls.borrow_mut().session().open(bytes, start));
        // What came before something wrong is as good as ever.
        take()?;
        opened.map_err(|cause| if cause == TlsError::Closed { Broken::Closed } else { Broken::Tls(cause) })
    }

    /// Ends what is under way, soon.
    pub(super) fn shut_down(&self) {
        // SAFETY: the descriptor is open.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Tells the server that this is the end, if that can be done at once. Not while something is being sent.
    pub(super) fn say_goodbye(&self) {
        let header = request(Command::Disconnect, 0, 0, 0);
        match &self.tls {
            None => self.send_at_once(&header),
            Some(tls) => self.send_at_once(tls.borrow_mut().last(&header, AlertDescription::CloseNotify)),
        }
    }

    /// Tells the server what is wrong with its TLS, if something is, and that can be done at once. Nothing else is sent then.
    pub(super) fn complain(&self, why: &Broken) {
        if let (Some(tls), Broken::Tls(cause), false) = (&self.tls, why, self.is_sending.get()) {
            self.send_at_once(tls.borrow_mut().last(&[], cause.alert()));
        }
    }

    fn send_at_once(&self, bytes: &[u8]) {
        // SAFETY: the bytes are valid, and the descriptor is open.
        unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }
}
