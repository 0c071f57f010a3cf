//! A worker's part of a backend: one node for each node of the tree, which only this worker's thread uses.
//!
//! Requests go down the tree, and each names by a [`Token`] who is to be told of its end. A node passes a request on as it is, with its parent's token, or as
//! one of its own ([`Token::node`]) whose completion it turns into that of its parent's. What ends without the kernel goes through a list
//! ([`IoQueue::finish`]) that the worker empties, so no node is ever called while it calls another one about the same.

use super::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::io_queue::{Completion, IoQueue, MAX_NODES, Source, Token};
use crate::worker::WorkerShared;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

/// A read of one slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) slot: usize,
    /// A page that is the caller's until the read has ended.
    pub(crate) target: *mut u8,
    pub(crate) token: Token,
    /// It was read before, and something was wrong: it is read alone, as it may be for the sake of a neighbour only that it failed.
    pub(crate) is_retry: bool,
    /// Of a retry: which member of a mirror had wrong content.
    pub(crate) suspect: Source,
}

/// A write of neighbouring slots, which may end within the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteRequest {
    pub(crate) slot: usize,
    /// Does not change until the write has ended.
    pub(crate) source: *const u8,
    pub(crate) num_bytes: usize,
    pub(crate) token: Token,
}

/// What became of a write request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// The slots hold the pages.
    Done,
    /// They will when the token completes.
    Pending,
    /// They do not, and nothing completes: the memory of a page is damaged, or there is no room for it.
    Failed,
}

/// A node; for its worker's thread only.
pub(crate) trait BackendQueue {
    /// Starts a read. Async-signal-safe.
    fn read(&self, io: &IoQueue, read: Read);

    /// Starts a write. Async-signal-safe.
    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write;

    /// A request of this node's own has ended.
    fn complete(&self, _io: &IoQueue, _index: u32, _completion: Completion) {
        unreachable!("this node makes no requests of its own");
    }

    /// Does what has been put off: before every submission and every sleep of the worker. Not called in a signal handler unless the worker polls
    /// ([`crate::Waiting::Poll`]).
    fn flush(&self, _io: &IoQueue) {}

    /// The worker ends: nothing of its own is in flight, and what this node has in flight is to end soon.
    fn close(&self, _io: &IoQueue) {}
}

/// What the nodes of one worker are made with.
pub(crate) struct QueueBuilder {
    /// Reads and writes that a node's parent has in flight at most.
    pub(crate) num_reads: usize,
    pub(crate) num_writes: usize,
    /// It has the background work of its instance.
    pub(crate) is_pager_thread: bool,
    /// To wake the worker: it calls [`BackendQueue::flush`] then.
    pub(crate) shared: &'static WorkerShared,
    num_nodes: usize,
    files: Vec<RawFd>,
    nodes: Vec<(usize, Rc<dyn BackendQueue>)>,
    /// Requests that can end at the same time.
    num_finished: usize,
}

impl QueueBuilder {
    pub(crate) fn new(num_reads: usize, num_writes: usize, is_pager_thread: bool, shared: &'static WorkerShared) -> Self {
        let num_finished = num_reads + num_writes;
        Self { num_reads, num_writes, is_pager_thread, shared, num_nodes: 0, files: Vec::new(), nodes: Vec::new(), num_finished }
    }

    /// The number of a new node, for its tokens; [`Self::add`] it when it is made.
    pub(super) fn reserve(&mut self) -> usize {
        self.num_nodes += 1;
        self.num_nodes - 1
    }

    /// The node with this number.
    pub(super) fn add(&mut self, number: usize, node: Rc<dyn BackendQueue>) -> Rc<dyn BackendQueue> {
        self.num_finished += self.num_reads + self.num_writes;
        self.nodes.push((number, node.clone()));
        node
    }

    /// So many more requests can end at the same time.
    pub(super) fn expect_finished(&mut self, num_requests: usize) {
        self.num_finished += num_requests;
    }

    /// Registers a file; its number.
    pub(super) fn add_file(&mut self, fd: RawFd) -> u32 {
        self.files.push(fd);
        self.files.len() as u32 - 1
    }

    /// The part of a node below, for a parent that has so many requests in flight.
    pub(super) fn child(&mut self, child: &Arc<dyn Backend>, num_reads: usize, num_writes: usize) -> Result<Rc<dyn BackendQueue>> {
        let of_parent = (self.num_reads, self.num_writes);
        (self.num_reads, self.num_writes) = (num_reads, num_writes);
        let node = child.clone().queue(self);
        (self.num_reads, self.num_writes) = of_parent;
        node
    }

    /// Files to register, in order.
    pub(crate) fn files(&self) -> &[RawFd] {
        &self.files
    }

    /// Requests that can end at the same time.
    pub(crate) fn num_finished(&self) -> usize {
        self.num_finished
    }
}

/// All nodes of a worker.
pub(crate) struct Queues {
    root: Rc<dyn BackendQueue>,
    /// By number.
    nodes: Box<[Rc<dyn BackendQueue>]>,
}

impl Queues {
    pub(crate) fn new(backend: &Arc<dyn Backend>, builder: &mut QueueBuilder) -> Result<Self> {
        let root = backend.clone().queue(builder)?;
        if builder.num_nodes > MAX_NODES {
            return Err(Error::new(ErrorKind::BackendUrl, format!("a backend of {} parts: there can be {MAX_NODES}", builder.num_nodes)));
        }
        let mut nodes = std::mem::take(&mut builder.nodes);
        nodes.sort_by_key(|(number, _)| *number);
        debug_assert!(nodes.iter().map(|(number, _)| *number).eq(0..builder.num_nodes));
        Ok(Self { root, nodes: nodes.into_iter().map(|(_, node)| node).collect() })
    }

    pub(crate) fn read(&self, io: &IoQueue, read: Read) {
        self.root.read(io, read);
    }

    pub(crate) fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        self.root.write(io, write)
    }

    pub(crate) fn complete(&self, io: &IoQueue, node: usize, index: u32, completion: Completion) {
        self.nodes[node].complete(io, index, completion);
    }

    /// Parents first: what they have put off may be requests for their children.
    pub(crate) fn flush(&self, io: &IoQueue) {
        self.nodes.iter().for_each(|node| node.flush(io));
    }

    pub(crate) fn close(&self, io: &IoQueue) {
        self.nodes.iter().for_each(|node| node.close(io));
    }
}
