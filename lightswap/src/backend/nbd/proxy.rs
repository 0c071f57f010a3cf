//! Workers without a connection of their own, where the server allows only one (or few): they hand their requests to the pager thread, whose connection all
//! of them share. What is read is copied once more.

use super::NbdBackend;
use crate::backend::slab::Slab;
use crate::backend::{BackendQueue, QueueBuilder, Read, Write, WriteRequest};
use crate::io_queue::{Completion, IoQueue, Source, Token};
use crate::size::PAGE_SIZE;
use crate::worker::{WorkerShared, push_to_stack};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// Requests of others that the pager thread has under way.
pub(super) const MAX_TAKEN: usize = 256;

/// A stack that any thread pushes to, and one takes whole.
#[derive(Debug)]
pub(super) struct Stack(AtomicPtr<Forwarded>);

impl Stack {
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    fn push(&self, forwarded: &Forwarded) {
        push_to_stack(&self.0, ptr::from_ref(forwarded).cast_mut(), &forwarded.next);
    }

    /// Takes all.
    fn take(&self, mut each: impl FnMut(&Forwarded)) {
        if self.0.load(Relaxed).is_null() {
            return;
        }
        let mut next = self.0.swap(ptr::null_mut(), Acquire);
        // SAFETY: who pushed them leaves them alone until they are given back, which is later than this; its link is read before that.
        while let Some(forwarded) = unsafe { next.as_ref() } {
            next = forwarded.next.load(Relaxed);
            each(forwarded);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Read(Read),
    Write(WriteRequest),
}

/// A request on its way from a worker to the pager thread and back. In turn for one of them only.
#[derive(Debug)]
pub(super) struct Forwarded {
    next: AtomicPtr<Forwarded>,
    asked: Cell<Option<Asked>>,
    result: Cell<i32>,
    of: Arc<Returned>,
    index: u32,
}

/// Where they come back to.
#[derive(Debug)]
struct Returned {
    stack: Stack,
    worker: &'static WorkerShared,
}

impl Forwarded {
    /// What is to be read, if it is no write.
    pub(super) fn read(&self) -> Read {
        match self.asked.get() {
            Some(Asked::Read(read)) => read,
            _ => unreachable!("a request is a read or a write"),
        }
    }

    pub(super) fn write(&self) -> Option<WriteRequest> {
        if let Some(Asked::Write(write)) = self.asked.get() { Some(write) } else { None }
    }
}

/// The pager thread's part.
pub(super) struct Forwards {
    backend: Arc<NbdBackend>,
    taken: Slab<*const Forwarded>,
    /// Those that there is no room for yet.
    waiting: RefCell<VecDeque<*const Forwarded>>,
}

impl Forwards {
    pub(super) fn new(backend: Arc<NbdBackend>) -> Self {
        Self { backend, taken: Slab::new(MAX_TAKEN), waiting: RefCell::default() }
    }

    /// Takes what came in, as far as there is room: `start` gets each with a number for it.
    pub(super) fn take(&self, mut start: impl FnMut(&Forwarded, u32)) {
        let mut waiting = self.waiting.borrow_mut();
        self.backend.forwarded.take(|forwarded| waiting.push_back(forwarded));
        while self.taken.has_room()
            && let Some(forwarded) = waiting.pop_front()
        {
            // SAFETY: it stays until it is given back.
            start(unsafe { &*forwarded }, self.taken.insert(forwarded));
        }
    }

    /// The request with this number is over.
    pub(super) fn give_back(&self, number: u32, completion: Completion) {
        // SAFETY: as above; after the push it is not ours any more.
        let forwarded = unsafe { &*self.taken.remove(number) };
        if let (Some(Asked::Read(read)), false) = (forwarded.asked.get(), completion.content.is_null())
            && completion.content != read.target
        {
            // SAFETY: a page each; the target is the reader's, who waits.
            unsafe { ptr::copy_nonoverlapping(completion.content, read.target, PAGE_SIZE) };
        }
        forwarded.result.set(completion.result);
        let of = forwarded.of.clone();
        of.stack.push(forwarded);
        of.worker.poke();
    }
}

/// Of a worker without a connection.
pub(super) struct ProxyQueue {
    backend: Arc<NbdBackend>,
    returned: Arc<Returned>,
    requests: Box<[Forwarded]>,
    free: RefCell<Vec<u32>>,
}

impl ProxyQueue {
    pub(super) fn new(backend: Arc<NbdBackend>, builder: &QueueBuilder) -> Self {
        let returned = Arc::new(Returned { stack: Stack::new(), worker: builder.shared });
        let num_requests = (builder.num_reads + builder.num_writes) as u32;
        let forwarded = |index| {
            let next = AtomicPtr::new(ptr::null_mut());
            Forwarded { next, asked: Cell::new(None), result: Cell::new(0), of: returned.clone(), index }
        };
        Self { backend, requests: (0..num_requests).map(forwarded).collect(), free: RefCell::new((0..num_requests).collect()), returned }
    }

    fn forward(&self, asked: Asked) {
        let index = self.free.borrow_mut().pop().expect("no more requests than were announced");
        let forwarded = &self.requests[index as usize];
        forwarded.asked.set(Some(asked));
        self.backend.forwarded.push(forwarded);
        self.backend.poke_pager_thread();
    }
}

impl BackendQueue for ProxyQueue {
    fn read(&self, _: &IoQueue, read: Read) {
        self.forward(Asked::Read(read));
    }

    fn write(&self, _: &IoQueue, write: WriteRequest) -> Write {
        self.forward(Asked::Write(write));
        Write::Pending
    }

    fn flush(&self, io: &IoQueue) {
        self.returned.stack.take(|forwarded| {
            let token: Token = match forwarded.asked.take() {
                Some(Asked::Read(read)) => read.token,
                Some(Asked::Write(write)) => write.token,
                None => unreachable!("what comes back was asked for"),
            };
            self.free.borrow_mut().push(forwarded.index);
            io.finish(token, Completion { source: Source(None), ..Completion::of(forwarded.result.get()) });
        });
    }
}
