//! A worker's own connection, many requests under way, and what happens when it breaks.
//!
//! A connection that breaks is shut down, and given up when nothing uses it any more. Its requests, all of which can be repeated, wait for the next one. After
//! `lost-after` without any reply, over however many connections, they fail, and with them all that come until there is one; in a mirror they do so at once,
//! unless the worker's first connection is still being made.

use super::connection::{Broken, Connection};
use super::inbox::Inbox;
use super::keeper::Link;
use super::outbox::Outbox;
use super::proxy::{Forwarded, Forwards};
use super::requests::{Requests, Task};
use super::wire::{Command, errno_of, request};
use super::{Counter, NbdBackend};
use crate::backend::parts::PartWrites;
use crate::backend::read_runs::ReadRuns;
use crate::backend::{BackendQueue, QueueBuilder, Read, Write, WriteRequest, offset_of};
use crate::error::Result;
use crate::io_queue::{Completion, IoQueue, Token};
use crate::size::{PAGE_SIZE, bytes_of, pages_in};
use crate::sys;
use crate::try_catch;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The kinds of this node's own tokens, above their numbers.
const KIND_SHIFT: u32 = 28;
const SEND: u32 = 0;
const RECEIVE: u32 = 1;
const TIMER: u32 = 2;
/// A part of a write.
pub(super) const PART: u32 = 1 << KIND_SHIFT;
/// A request of another worker.
pub(super) const FORWARDED: u32 = 2 << KIND_SHIFT;
/// TRIM requests under way.
const MAX_TRIMS: usize = 4;
/// Looks at the time so many times in the shortest limit.
const LOOKS: u32 = 4;

enum Line {
    Up(Connection),
    /// Broken; something still uses it.
    Closing(Connection),
    Down,
}

pub(super) struct NbdQueue {
    number: usize,
    backend: Arc<NbdBackend>,
    link: Arc<Link>,
    line: RefCell<Line>,
    inbox: Inbox,
    outbox: Outbox,
    runs: ReadRuns,
    /// Of the open run.
    num_run_pages: Cell<usize>,
    parts: PartWrites,
    requests: Requests,
    /// Writes of slots that are being trimmed.
    put_off: RefCell<Vec<WriteRequest>>,
    num_trims: Cell<usize>,
    /// Since when no connection has brought a reply that was waited for.
    down_since_ns: Cell<u64>,
    last_reply_ns: Cell<u64>,
    /// This connection has brought a reply.
    has_answered: Cell<bool>,
    /// Somebody waited for a reply when it was made.
    was_waited_for: Cell<bool>,
    is_timer_set: Cell<bool>,
    is_closed: Cell<bool>,
    /// Of the pager thread.
    forwards: Option<Forwards>,
}

impl NbdQueue {
    pub(super) fn new(backend: Arc<NbdBackend>, link: Arc<Link>, builder: &mut QueueBuilder, forwards: Option<Forwards>) -> Result<Self> {
        let of_others = if forwards.is_some() { super::proxy::MAX_TAKEN } else { 0 };
        let (num_reads, num_writes) = (builder.num_reads + of_others, builder.num_writes + of_others);
        let num_parts = num_writes * backend.max_parts();
        Ok(Self {
            number: builder.reserve(),
            inbox: Inbox::new(num_reads, num_reads.min(backend.max_read_pages()), backend.max_record_bytes())?,
            outbox: Outbox::new(),
            runs: ReadRuns::new(num_reads),
            num_run_pages: Cell::new(0),
            parts: PartWrites::new(num_writes),
            requests: Requests::new(num_reads + num_parts + MAX_TRIMS),
            put_off: RefCell::new(Vec::with_capacity(num_parts)),
            num_trims: Cell::new(0),
            down_since_ns: Cell::new(sys::now_ns()),
            last_reply_ns: Cell::new(0),
            has_answered: Cell::new(false),
            was_waited_for: Cell::new(false),
            is_timer_set: Cell::new(false),
            is_closed: Cell::new(false),
            line: RefCell::new(Line::Down),
            backend,
            link,
            forwards,
        })
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// The errno for requests that cannot wait for a connection.
    fn refusal(&self) -> Option<i32> {
        if !matches!(*self.line.borrow(), Line::Down) {
            return None;
        }
        let down_ns = sys::now_ns().saturating_sub(self.down_since_ns.get());
        let may_not_wait = || self.backend.is_mirrored.load(Relaxed) && (self.link.is_away() || down_ns > self.backend.connect_limit_ns());
        if self.is_closed.get() || may_not_wait() {
            return Some(libc::ENOTCONN);
        }
        (down_ns > self.backend.lost_after_ns()).then_some(libc::ENODEV)
    }

    fn close_run(&self) {
        self.num_run_pages.set(0);
        if let Some((run, _)) = self.runs.take() {
            self.requests.add(Task::Read { run });
        }
    }

    /// A write that the server takes in one request.
    fn start_write(&self, write: WriteRequest) -> Write {
        let slots = write.slot..write.slot + pages_in(write.num_bytes + PAGE_SIZE - 1);
        if self.backend.trims.as_ref().is_none_or(|trims| trims.take_back(slots)) {
            self.requests.add(Task::Write(write));
        } else {
            self.put_off.borrow_mut().push(write);
        }
        Write::Pending
    }

    /// Moves requests to the outbox, as far as there is room.
    fn fill_outbox(&self) {
        let num_added = self.requests.send_each(|cookie, task| {
            let (command, slot, source, num_bytes) = match task {
                Task::Read { run } => {
                    let run = self.runs.get(run);
                    (Command::Read, run.slot, std::ptr::null(), run.num_bytes())
                }
                Task::Write(write) => (Command::Write, write.slot, write.source, write.num_bytes),
                Task::Trim { first, end } => (Command::Trim, first, std::ptr::null(), bytes_of(end - first)),
            };
            let header = request(command, cookie, offset_of(slot), num_bytes as u32);
            self.outbox.add(header, source, if source.is_null() { 0 } else { num_bytes })
        });
        if num_added > 0 {
            self.backend.count(Counter::Requests, num_added as u64);
        }
    }

    /// Takes whole replies out of the inbox.
    fn take_replies(&self, io: &IoQueue) -> std::result::Result<(), Broken> {
        let payload_bytes = |cookie: u64| {
            let task = self.requests.answered(cookie)?;
            Some(if let Task::Read { run } = task { self.runs.get(run).num_bytes() } else { 0 })
        };
        self.last_reply_ns.set(sys::now_ns());
        while let Some(reply) = self.inbox.take(payload_bytes).map_err(Broken::Violation)? {
            let result = -errno_of(reply.error) * i32::from(reply.error != 0);
            if result == -libc::ESHUTDOWN {
                return Err(Broken::ShuttingDown);
            }
            self.has_answered.set(true);
            self.end(io, self.requests.end(reply.cookie), result, reply.payload);
        }
        Ok(())
    }

    /// A request is over, with 0 or a negative errno. What was read is at `content`.
    fn end(&self, io: &IoQueue, task: Task, result: i32, content: *mut u8) {
        match task {
            Task::Read { run } => {
                let run = self.runs.release(run);
                for (page, token) in run.tokens().iter().enumerate() {
                    let completion = if result < 0 {
                        Completion::of(result)
                    } else {
                        Completion { content: content.wrapping_add(bytes_of(page)), ..Completion::of(PAGE_SIZE as i32) }
                    };
                    io.finish(*token, completion);
                }
            }
            Task::Write(write) => io.finish(write.token, Completion::of(if result < 0 { result } else { write.num_bytes as i32 })),
            Task::Trim { first, end } => {
                self.num_trims.set(self.num_trims.get() - 1);
                if let Some(trims) = &self.backend.trims {
                    trims.end(first..end);
                }
            }
        }
    }

    /// All requests fail.
    fn fail_all(&self, io: &IoQueue, errno: i32) {
        self.close_run();
        self.requests.end_all().for_each(|task| self.end(io, task, -errno, std::ptr::null_mut()));
        self.put_off.borrow_mut().drain(..).for_each(|write| io.finish(write.token, Completion::of(-errno)));
    }

    /// All requests are sent again with the next connection.
    fn send_all_again(&self) {
        self.backend.count(Counter::Resent, self.requests.send_all_again() as u64);
    }

    fn break_line(&self, why: &Broken) {
        let mut line = self.line.borrow_mut();
        let Line::Up(connection) = std::mem::replace(&mut *line, Line::Down) else { unreachable!("only a connection that is up breaks") };
        if why.is_violation() {
            self.backend.count(Counter::ProtocolErrors, 1);
        }
        tracing::warn!(server = %self.backend.address, "the connection is dropped: {why}");
        connection.complain(why);
        connection.shut_down();
        *line = Line::Closing(connection);
    }

    /// The connection is dropped, and what was sent is sent again; but what cannot be read is not.
    fn give_up_line(&self, io: &IoQueue, why: &Broken) {
        self.break_line(why);
        if matches!(why, Broken::Errno(libc::EFAULT)) {
            self.fail_unreadable(io);
        }
    }

    /// Pages of a write could not be read, as their memory was damaged since they were hashed. Such writes fail; all of them do if none shows that it is one, or the next
    /// connection would end in the same way.
    fn fail_unreadable(&self, io: &IoQueue) {
        let fail = |is_it: fn(&WriteRequest) -> bool| {
            let failed = self.requests.end_those(|task| matches!(task, Task::Write(write) if is_it(&write)));
            failed.map(|task| self.end(io, task, -libc::EFAULT, std::ptr::null_mut())).count()
        };
        if fail(is_damaged) == 0 {
            fail(|_| true);
        }
    }

    /// The worker ends: so does the connection, when all requests have been answered (what is left then can only be TRIMs). With `is_late` even if one is still
    /// being sent, as to a server that answers what it has not read.
    fn end_line(&self, is_late: bool) {
        if !self.requests.is_empty() {
            return;
        }
        let mut line = self.line.borrow_mut();
        *line = match std::mem::replace(&mut *line, Line::Down) {
            Line::Up(connection) if is_late || !connection.is_sending() => {
                if !connection.is_sending() {
                    connection.say_goodbye();
                }
                connection.shut_down();
                Line::Closing(connection)
            }
            line => line,
        };
    }

    /// If nothing uses a broken connection any more, it is gone.
    fn end_closing(&self, io: &IoQueue) {
        if !matches!(&*self.line.borrow(), Line::Closing(connection) if connection.is_idle()) {
            return;
        }
        *self.line.borrow_mut() = Line::Down;
        if self.has_answered.get() || !self.was_waited_for.get() {
            self.down_since_ns.set(sys::now_ns());
        }
        self.inbox.clear();
        self.outbox.clear();
        if !self.is_closed.get() {
            self.link.want(self.has_answered.get());
        }
        if let Some(errno) = self.refusal() {
            self.fail_all(io, errno);
        } else {
            self.close_run();
            self.send_all_again();
        }
    }

    /// Sends and receives, if neither is under way, what there is.
    fn exchange(&self, io: &IoQueue) -> std::result::Result<(), Broken> {
        let Line::Up(connection) = &*self.line.borrow() else { return Ok(()) };
        if !connection.is_sending() {
            self.fill_outbox();
            connection.send(io, &self.outbox, self.token(SEND))?;
        }
        if !connection.is_receiving() {
            connection.receive(io, &self.inbox, self.token(RECEIVE));
        }
        Ok(())
    }

    fn token(&self, index: u32) -> Token {
        Token::node(self.number, index)
    }

    /// Something is to be done for others or for later.
    fn take_up(&self, io: &IoQueue) {
        if let Some(forwards) = &self.forwards {
            forwards.take(|forwarded, index| self.start_forwarded(io, forwarded, self.token(FORWARDED | index)));
        }
        let Some(trims) = &self.backend.trims else { return };
        if !self.put_off.borrow().is_empty() {
            let mut put_off = self.put_off.borrow_mut();
            put_off.retain(|write| {
                let is_free = trims.take_back(write.slot..write.slot + pages_in(write.num_bytes + PAGE_SIZE - 1));
                if is_free {
                    self.requests.add(Task::Write(*write));
                }
                !is_free
            });
        }
        while self.forwards.is_some() && self.num_trims.get() < MAX_TRIMS && !self.is_closed.get() {
            let Some(Range { start, end }) = trims.begin() else { break };
            self.num_trims.set(self.num_trims.get() + 1);
            self.backend.count(Counter::Trims, 1);
            self.requests.add(Task::Trim { first: start, end });
        }
    }

    fn start_forwarded(&self, io: &IoQueue, forwarded: &Forwarded, token: Token) {
        match forwarded.write() {
            None => self.read(io, Read { token, ..forwarded.read() }),
            Some(write) => {
                let write = self.write(io, WriteRequest { token, ..write });
                debug_assert_eq!(write, Write::Pending);
            }
        }
    }

    /// Looks at the time, again and again while there are requests.
    fn set_timer(&self, io: &IoQueue) {
        let has_requests = !self.requests.is_empty() || !self.put_off.borrow().is_empty();
        let is_ending = self.is_closed.get() && matches!(*self.line.borrow(), Line::Up(_));
        if (has_requests || is_ending) && !self.is_timer_set.replace(true) {
            let limit_ns = self.backend.timeout_ns().min(self.backend.lost_after_ns());
            io.push_timer(Duration::from_nanos(limit_ns / u64::from(LOOKS)).max(Duration::from_millis(1)), self.token(TIMER));
        }
    }

    fn look_at_time(&self, io: &IoQueue) {
        let now_ns = sys::now_ns();
        let is_up = matches!(*self.line.borrow(), Line::Up(_));
        if is_up {
            let timeout_ns = self.backend.timeout_ns();
            let age_ns = self.requests.oldest_ns().map_or(0, |oldest_ns| now_ns.saturating_sub(oldest_ns));
            // A server that answers others is slow, but there; for some time.
            let is_silent = now_ns.saturating_sub(self.last_reply_ns.get()) > timeout_ns;
            if age_ns > timeout_ns && (is_silent || age_ns > 4 * timeout_ns) {
                self.backend.count(Counter::Timeouts, 1);
                self.break_line(&Broken::TimedOut(age_ns / 1_000_000));
                self.end_closing(io);
            } else if self.is_closed.get() {
                self.end_line(true);
                self.end_closing(io);
            }
        } else if let Some(errno) = self.refusal() {
            self.fail_all(io, errno);
        }
    }
}

/// Whether a page of a write cannot be read.
fn is_damaged(write: &WriteRequest) -> bool {
    let look = || {
        for offset in (0..write.num_bytes).step_by(PAGE_SIZE).chain([write.num_bytes - 1]) {
            // SAFETY: the write's memory, which nobody changes until it has ended.
            unsafe { write.source.add(offset).read_volatile() };
        }
    };
    // SAFETY: reads have nothing to clean up.
    unsafe { try_catch::try_without_paging(look) }.is_err()
}

impl BackendQueue for NbdQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        if let Some(errno) = self.refusal() {
            return io.finish(read.token, Completion::of(-errno));
        }
        let is_full = self.num_run_pages.get() == self.backend.max_read_pages();
        if read.is_retry || is_full || !self.runs.add(read) {
            self.close_run();
            self.runs.add(read);
        }
        self.num_run_pages.set(self.num_run_pages.get() + 1);
        if read.is_retry {
            self.close_run();
        }
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        if let Some(errno) = self.refusal() {
            io.finish(write.token, Completion::of(-errno));
            return Write::Pending;
        }
        let most = self.backend.max_write_bytes();
        if write.num_bytes <= most {
            return self.start_write(write);
        }
        let index = self.parts.begin(write.token);
        for done in (0..write.num_bytes).step_by(most) {
            let (slot, source) = (write.slot + pages_in(done), write.source.wrapping_add(done));
            let num_bytes = most.min(write.num_bytes - done);
            let part = WriteRequest { slot, source, num_bytes, token: self.token(PART | index) };
            self.parts.add(index, num_bytes, self.start_write(part));
        }
        self.parts.end(index)
    }

    fn complete(&self, io: &IoQueue, index: u32, completion: Completion) {
        let number = index & (PART - 1);
        match index & !(PART - 1) {
            PART => {
                if let Some((token, result)) = self.parts.complete(number, completion.result) {
                    io.finish(token, Completion::of(result));
                }
                return;
            }
            FORWARDED => return self.forwards.as_ref().expect("only the pager thread takes those").give_back(number, completion),
            _ => {}
        }
        if number == TIMER {
            self.is_timer_set.set(false);
            return self.look_at_time(io);
        }
        let outcome = match &*self.line.borrow() {
            Line::Up(connection) if number == SEND => connection.sent(&self.outbox, completion.result),
            Line::Up(connection) => connection.received(&self.inbox, completion.result, || self.take_replies(io)),
            Line::Closing(connection) if number == SEND => connection.sent(&self.outbox, completion.result).or(Ok(())),
            Line::Closing(connection) => connection.received(&self.inbox, 0, || Ok(())).or(Ok(())),
            Line::Down => unreachable!("nothing is under way without a connection"),
        };
        if let Err(why) = outcome {
            self.give_up_line(io, &why);
        }
        self.end_closing(io);
    }

    fn flush(&self, io: &IoQueue) {
        self.take_up(io);
        self.close_run();
        if matches!(*self.line.borrow(), Line::Down)
            && let Some(established) = self.link.take()
        {
            self.last_reply_ns.set(sys::now_ns());
            self.has_answered.set(false);
            self.was_waited_for.set(!self.requests.is_empty());
            *self.line.borrow_mut() = Line::Up(Connection::new(established));
            self.send_all_again();
        }
        if !self.requests.is_empty()
            && self.backend.is_mirrored.load(Relaxed)
            && let Some(errno) = self.refusal()
        {
            self.fail_all(io, errno);
        }
        if self.is_closed.get() {
            self.end_line(false);
        }
        if let Err(why) = self.exchange(io) {
            self.give_up_line(io, &why);
            self.end_closing(io);
        }
        self.set_timer(io);
    }

    fn close(&self, _: &IoQueue) {
        self.is_closed.set(true);
        self.link.close();
        self.end_line(false);
    }
}

impl Drop for NbdQueue {
    fn drop(&mut self) {
        // Not closed yet if its worker could not be made: nobody would take what the keeper goes on to connect.
        self.link.close();
        self.backend.end_connection();
    }
}
