//! One connection of a scripted server: a thread that reads requests, and one that does and answers them, in the order and manner of the script.

use super::handshake::Export;
use super::log::fault_of;
use super::protocol::*;
use super::script::Action;
use super::server::Shared;
use super::stream::Stream;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a reply is held back for others to overtake it.
const LONGEST_HOLD: Duration = Duration::from_millis(3);

/// Requests that a connection takes in before it answers.
const MOST_PENDING: usize = 4096;

/// How often threads look whether they are to go on.
const TICK: Duration = Duration::from_millis(10);

/// Content of what was trimmed: nobody may rely on zeroes.
const TRIMMED: u8 = 0xDB;

struct Pending {
    request: Request,
    payload: Vec<u8>,
    action: Option<Action>,
    received: Instant,
    due: Instant,
}

#[derive(Default)]
struct Outbox {
    pending: Vec<Pending>,
    /// Nothing more comes in: the client has said so, or is gone.
    is_ending: bool,
    /// Nothing more goes out.
    is_closed: bool,
    is_mute: bool,
    is_frozen: bool,
}

pub struct Connection {
    number: usize,
    shared: Arc<Shared>,
    /// As the client was told.
    export: Export,
    stream: Stream,
    outbox: Mutex<Outbox>,
    changed: Condvar,
}

/// Serves requests until the connection ends.
pub fn serve(number: usize, shared: &Arc<Shared>, export: Export, stream: Stream) -> io::Result<()> {
    let reader = stream.try_clone()?;
    let connection = Connection { number, shared: shared.clone(), export, stream, outbox: Mutex::default(), changed: Condvar::new() };
    std::thread::scope(|scope| {
        scope.spawn(|| connection.answer_all());
        let _ = connection.take_in(reader);
        connection.with_outbox(|outbox| outbox.is_ending = true);
    });
    shared.log(|log| log.closed(number));
    Ok(())
}

impl Connection {
    fn with_outbox<R>(&self, action: impl FnOnce(&mut Outbox) -> R) -> R {
        let result = action(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }

    /// Ends the connection from this side.
    fn close(&self) {
        self.with_outbox(|outbox| outbox.is_closed = true);
        self.stream.shut_down();
    }

    /// Reads requests until the client ends the connection. An error is the end, too.
    fn take_in(&self, mut reader: Stream) -> io::Result<()> {
        loop {
            self.wait_while_frozen()?;
            let mut header = [0; REQUEST_LEN];
            self.read(&mut reader, &mut header)?;
            let parsed = Request::parse(&header).and_then(|request| match fault_of(&request, &self.export) {
                Some(fault) => Err(fault),
                None => Ok(request),
            });
            let request = match parsed {
                Ok(request) => request,
                Err(what) => {
                    self.shared.log(|log| log.violated(self.number, &what));
                    self.close();
                    return Ok(());
                }
            };
            let mut payload = vec![0; if request.command == Command::Write { request.length as usize } else { 0 }];
            self.read(&mut reader, &mut payload)?;
            self.shared.log(|log| log.add(self.number, request));
            if request.command == Command::Disconnect {
                return Ok(());
            }
            let (action, delay) = self.shared.script(|script| (script.action_for(&request), script.delay));
            let received = Instant::now();
            let more = if let Some(Action::Delay(more)) = action { more } else { Duration::ZERO };
            self.put(Pending { request, payload, action, received, due: received + delay + more })?;
        }
    }

    fn put(&self, pending: Pending) -> io::Result<()> {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        while outbox.pending.len() >= MOST_PENDING && !outbox.is_closed {
            outbox = self.changed.wait_timeout(outbox, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        outbox.pending.push(pending);
        let is_closed = outbox.is_closed;
        drop(outbox);
        self.changed.notify_all();
        if is_closed { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn wait_while_frozen(&self) -> io::Result<()> {
        while self.shared.is_paused() || self.with_outbox(|outbox| outbox.is_frozen) {
            if self.shared.must_stop() || self.with_outbox(|outbox| outbox.is_closed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn read(&self, reader: &mut Stream, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let len = self.piece_of(buffer.len());
            let num_read = reader.read(&mut buffer[..len])?;
            if num_read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = &mut buffer[num_read..];
        }
        Ok(())
    }

    /// As much of `len` as may be read or written at once.
    fn piece_of(&self, len: usize) -> usize {
        match self.shared.script(|script| script.piece) {
            0 => len,
            piece => len.min(piece),
        }
    }

    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.try_clone()?;
        while !bytes.is_empty() {
            let num_written = stream.write(&bytes[..self.piece_of(bytes.len())])?;
            bytes = &bytes[num_written..];
        }
        Ok(())
    }

    fn answer_all(&self) {
        let mut last_cookie = None;
        while let Some(pending) = self.next() {
            let cookie = pending.request.cookie;
            if self.answer(pending, last_cookie).is_err() {
                self.close();
            }
            last_cookie = Some(cookie);
        }
        self.close();
        let left: Vec<Pending> = self.with_outbox(|outbox| std::mem::take(&mut outbox.pending));
        if let Some(delay) = self.shared.script(|script| script.stragglers) {
            std::thread::sleep(delay);
            left.iter().for_each(|pending| drop(self.shared.do_request(&pending.request, &pending.payload, TRIMMED)));
        }
    }

    /// The request to answer next; `None` once the connection is closed, or everything has been answered that will be.
    fn next(&self) -> Option<Pending> {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if outbox.is_closed || self.shared.must_stop() || (outbox.is_ending && (outbox.pending.is_empty() || is_hung_up(&self.stream))) {
                return None;
            }
            if outbox.is_mute {
                outbox.pending.clear();
            }
            let is_frozen = outbox.is_frozen || self.shared.is_paused();
            if !is_frozen && let Some(index) = self.choose(&outbox) {
                // Those that came first stay first.
                return Some(outbox.pending.remove(index));
            }
            let now = Instant::now();
            let wait = outbox.pending.iter().map(|pending| (pending.due.max(pending.received + LONGEST_HOLD)).saturating_duration_since(now)).min();
            let wait = if is_frozen { TICK } else { wait.unwrap_or(TICK).clamp(Duration::from_micros(200), TICK) };
            outbox = self.changed.wait_timeout(outbox, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn choose(&self, outbox: &Outbox) -> Option<usize> {
        let now = Instant::now();
        let due: Vec<usize> = (0..outbox.pending.len()).filter(|index| outbox.pending[*index].due <= now).collect();
        let first = *due.first()?;
        self.shared.script(|script| {
            let has_waited = outbox.pending[first].due + LONGEST_HOLD <= now;
            if script.hold < 2 {
                Some(first)
            } else if due.len() >= script.hold || has_waited || outbox.is_ending {
                Some(due[script.random.below(due.len())])
            } else {
                None
            }
        })
    }

    /// Does a request, or what the script says instead. An error means that the connection is to be closed.
    fn answer(&self, pending: Pending, last_cookie: Option<u64>) -> io::Result<()> {
        let Pending { request, payload, action, .. } = pending;
        let end = || Err(io::ErrorKind::ConnectionAborted.into());
        let cookie = request.cookie;
        let header = |error| reply_header(REPLY_MAGIC, error, cookie);
        match action {
            Some(Action::CloseBefore) => return end(),
            Some(Action::Ignore) => return Ok(()),
            Some(Action::Mute) => {
                self.with_outbox(|outbox| outbox.is_mute = true);
                return Ok(());
            }
            Some(Action::Freeze) => {
                self.with_outbox(|outbox| outbox.is_frozen = true);
                return Ok(());
            }
            Some(Action::Errno(errno)) => {
                self.shared.log(|log| log.answered(self.number, cookie));
                return self.send(&header(errno));
            }
            _ => {}
        }
        let Some(mut content) = self.shared.do_unless(|| is_hung_up(&self.stream), &request, &payload, TRIMMED) else { return end() };
        if action == Some(Action::CloseAfter) {
            return end();
        }
        // Before the reply: the next request with the cookie may come at once.
        self.shared.log(|log| log.answered(self.number, cookie));
        let random_bytes = |len| self.shared.script(|script| (0..len).map(|_| script.random.next() as u8).collect::<Vec<u8>>());
        let reply = |header: &[u8], content: &[u8]| [header, content].concat();
        match action {
            Some(Action::CloseWithin(len)) => {
                let reply = reply(&header(0), &content);
                self.send(&reply[..len.min(reply.len() - 1)])?;
                end()
            }
            Some(Action::UnknownCookie) => self.send(&reply(&reply_header(REPLY_MAGIC, 0, !cookie), &content)),
            Some(Action::OldCookie) => self.send(&reply(&reply_header(REPLY_MAGIC, 0, last_cookie.unwrap_or(!cookie)), &content)),
            Some(Action::Twice) => self.send(&reply(&header(0), &content).repeat(2)),
            Some(Action::WrongMagic) => self.send(&reply(&reply_header(REPLY_MAGIC ^ 0x100, 0, cookie), &content)),
            Some(Action::Mutated) => {
                let mut reply = reply(&header(0), &content);
                let bit = self.shared.script(|script| script.random.below(64));
                reply[bit / 8] ^= 1 << (bit % 8);
                self.send(&reply)
            }
            Some(Action::Structured) => self.send(&reply(&structured_header(cookie, content.len()), &content)),
            Some(Action::Longer(len)) => self.send(&[reply(&header(0), &content), random_bytes(len)].concat()),
            Some(Action::Shorter(len)) => {
                let reply = reply(&header(0), &content);
                self.send(&reply[..reply.len().saturating_sub(len)])
            }
            Some(Action::ErrorWithPayload) => self.send(&reply(&header(EIO), &content)),
            Some(Action::Garbage(len)) => self.send(&random_bytes(len)),
            Some(Action::Flip) if !content.is_empty() => {
                let at = self.shared.script(|script| script.random.below(content.len()));
                content[at] ^= 0x24;
                self.send(&reply(&header(0), &content))
            }
            Some(Action::Misdirect) if request.command == Command::Read => {
                let content = self.shared.content_behind(&request);
                self.send(&reply(&header(0), &content))
            }
            _ => self.send(&reply(&header(0), &content)),
        }
    }
}

/// A structured reply's header for the content of a read, as if that had been negotiated.
fn structured_header(cookie: u64, len: usize) -> Vec<u8> {
    let (done, offset_data) = (1u16.to_be_bytes(), 1u16.to_be_bytes());
    [&STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &done, &offset_data, &cookie.to_be_bytes(), &(len as u32 + 8).to_be_bytes(), &[0; 8]].concat()
}

/// Whether the client has closed the connection, so that nothing of it may be done any more: it may have sent it again elsewhere.
fn is_hung_up(stream: &Stream) -> bool {
    let fd: RawFd = match stream {
        Stream::Unix(stream) => stream.as_raw_fd(),
        Stream::Tcp(stream) => stream.as_raw_fd(),
    };
    let mut poll = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid entry, of a socket that `stream` keeps open.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 }
}
