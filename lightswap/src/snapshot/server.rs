//! The pager thread's part: it answers the child of a snapshot, and ends the snapshot when nobody is at the other end of the socket any more.
//!
//! The child has at most [`WINDOW`] requests under way, and so many answers fit into the socket: no answer waits here for a slow child with a buffer in its hand. Reads go to the
//! buffers of the pager thread, at most half of them, so that its own work goes on; they are counted in local memory like all of them.

use super::Snapshots;
use super::sweep::Sweep;
use super::wire::{self, Request, Sent, WINDOW};
use crate::backend::{Now, Read};
use crate::failure::RawCause;
use crate::io_queue::{Completion, Source, Token};
use crate::pager::Pager;
use crate::size::PAGE_SIZE;
use crate::swap_in::MAX_RETRIES;
use crate::worker::Worker;
use io_uring::opcode;
use io_uring::types::Fd;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// Messages of a child that are handled before the pager thread's other work has a turn.
const MAX_TURN: usize = 4 * WINDOW;
/// Tokens of polls of the socket, for requests and for room; those of reads are the numbers of their buffers.
const POLL_IN: u32 = u32::MAX;
const POLL_OUT: u32 = u32::MAX - 1;

/// For the pager thread only.
pub(crate) struct Server {
    session: RefCell<Option<Session>>,
    /// By number of the buffer.
    reads: Box<[Cell<Option<SlotRead>>]>,
    num_reading: Cell<usize>,
    most_reading: usize,
    sweep: Cell<Option<Sweep>>,
}

struct Session {
    socket: OwnedFd,
    /// Asked for and not begun.
    waiting: VecDeque<Request>,
    is_polled_in: bool,
    is_polled_out: bool,
    /// The child does not take its answers.
    is_full: bool,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
struct SlotRead {
    request: Request,
    num_retries: u32,
}

impl Server {
    pub(crate) fn new(num_buffers: usize) -> Self {
        Self {
            session: RefCell::new(None),
            reads: (0..num_buffers).map(|_| Cell::new(None)).collect(),
            num_reading: Cell::new(0),
            most_reading: num_buffers.div_ceil(2).min(WINDOW),
            sweep: Cell::new(None),
        }
    }

    /// After each turn of the worker: whether there is more to do at once.
    pub(crate) fn step(&self, worker: &Worker, snapshots: &Snapshots) -> bool {
        let mut session = self.session.borrow_mut();
        if let Some(mut sweep) = self.sweep.get() {
            let goes_on = sweep.step(worker.pager(), snapshots);
            self.sweep.set(goes_on.then_some(sweep));
            if !goes_on {
                snapshots.finish(worker.pager());
            }
            return goes_on;
        }
        if session.is_none() {
            *session = snapshots.take_new().map(Session::new);
        }
        let Some(current) = &mut *session else { return false };
        current.receive(worker.pager());
        self.begin_reads(worker, snapshots, current);
        if !current.is_over {
            current.poll(worker);
            return false;
        }
        current.close();
        if current.is_polled_in || current.is_polled_out || self.num_reading.get() > 0 {
            return false;
        }
        // Before the socket is closed: whoever forks looks at it while the snapshot is alive.
        if snapshots.end() {
            *session = None;
            self.sweep.set(Some(Sweep::default()));
        }
        true
    }

    /// The worker ends.
    pub(crate) fn close(&self) {
        self.session.borrow_mut().iter_mut().for_each(Session::close);
    }

    fn begin_reads(&self, worker: &Worker, snapshots: &Snapshots, session: &mut Session) {
        for _ in 0..MAX_TURN {
            if session.is_over || session.is_full {
                return;
            }
            let Some(request) = session.waiting.pop_front() else { return };
            let mut buffer = MaybeUninit::<[u8; PAGE_SIZE]>::uninit();
            match worker.pager().backend.read_now(request.slot as usize, buffer.as_mut_ptr().cast()) {
                Now::Content(content) => {
                    let result = check(worker.pager(), &request, content);
                    answer(snapshots, session, request, result);
                }
                Now::Failed(cause) => answer(snapshots, session, request, Err(cause)),
                Now::NeedsIo => {
                    let buffer = if self.num_reading.get() < self.most_reading { worker.take_buffer() } else { None };
                    let Some(buffer) = buffer else { return session.waiting.push_front(request) };
                    self.num_reading.set(self.num_reading.get() + 1);
                    self.start(worker, buffer, SlotRead { request, num_retries: 0 }, Source(None));
                }
            }
        }
    }

    fn start(&self, worker: &Worker, buffer: usize, read: SlotRead, suspect: Source) {
        self.reads[buffer].set(Some(read));
        let (slot, is_retry) = (read.request.slot as usize, read.num_retries > 0);
        worker.start_slot_read(buffer, Read { slot, target: std::ptr::null_mut(), token: Token::snapshot(buffer as u32), is_retry, suspect });
    }

    /// A request of this server's has ended.
    pub(crate) fn complete(&self, worker: &Worker, snapshots: &Snapshots, index: u32, completion: Completion) {
        let mut session = self.session.borrow_mut();
        if let Some(session) = session.as_mut().filter(|_| index >= POLL_OUT) {
            if index == POLL_IN {
                session.is_polled_in = false;
            } else {
                (session.is_polled_out, session.is_full) = (false, false);
            }
            return;
        }
        let buffer = index as usize;
        let Some(read) = self.reads[buffer].take() else { return };
        let content = if completion.content.is_null() { worker.buffer(buffer) } else { completion.content };
        let is_whole = completion.result == PAGE_SIZE as i32;
        let result = if is_whole { check(worker.pager(), &read.request, content) } else { Err(RawCause::of_read(completion.result)) };
        if let Err(cause) = result
            && cause.may_heal()
            && read.num_retries < MAX_RETRIES
        {
            let suspect = if cause == RawCause::WRONG_HASH { completion.source } else { Source(None) };
            return self.start(worker, buffer, SlotRead { num_retries: read.num_retries + 1, ..read }, suspect);
        }
        if let Some(session) = &mut *session {
            answer(snapshots, session, read.request, result);
        }
        self.num_reading.set(self.num_reading.get() - 1);
        worker.release_buffer(buffer);
    }
}

/// The content if it is what was asked for.
fn check(pager: &Pager, request: &Request, content: *const u8) -> Result<*const u8, RawCause> {
    // SAFETY: the content of a slot that nobody writes, or of a buffer that is the caller's.
    if unsafe { pager.hash_page(content) } == request.hash { Ok(content) } else { Err(RawCause::WRONG_HASH) }
}

fn answer(snapshots: &Snapshots, session: &mut Session, request: Request, result: Result<*const u8, RawCause>) {
    if session.is_over {
        return;
    }
    match wire::send_answer(session.socket.as_raw_fd(), request.tag, result.map_err(|cause| cause.0)) {
        Sent::Done if result.is_ok() => snapshots.counters.pages_served.add_shared(1),
        Sent::Done => snapshots.counters.pages_failed.add_shared(1),
        Sent::Later => {
            // It is read again when there is room; the buffer is for others meanwhile.
            session.is_full = true;
            session.waiting.push_back(request);
        }
        Sent::Over => session.is_over = true,
    }
}

impl Session {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::with_capacity(2 * WINDOW), is_polled_in: false, is_polled_out: false, is_full: false, is_over: false }
    }

    /// Takes in what the child asks for.
    fn receive(&mut self, pager: &Pager) {
        while !self.is_over && self.waiting.len() < WINDOW {
            match wire::receive_request(self.socket.as_raw_fd()) {
                Ok(request) if (request.slot as usize) < pager.backend.num_slots() => self.waiting.push_back(request),
                Err(Sent::Later) => return,
                _ => self.is_over = true,
            }
        }
    }

    /// Sees to it that the worker wakes up when there is something to do.
    fn poll(&mut self, worker: &Worker) {
        let socket = Fd(self.socket.as_raw_fd());
        let push = |events: i16, index| {
            let entry = opcode::PollAdd::new(socket, events as u32).build();
            // SAFETY: the entry points to nothing; the socket is open until the poll has ended.
            unsafe { worker.queue().push(entry, Token::snapshot(index)) };
        };
        // If it has asked for all that it may, an answer comes first.
        if self.waiting.len() < WINDOW && !self.is_polled_in {
            self.is_polled_in = true;
            push(libc::POLLIN, POLL_IN);
        }
        if self.is_full && !self.is_polled_out {
            self.is_polled_out = true;
            push(libc::POLLOUT, POLL_OUT);
        }
    }

    /// Ends the connection, and with it the poll.
    fn close(&mut self) {
        self.is_over = true;
        self.waiting.clear();
        // SAFETY: our socket.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}
