//! Lightweight threads: stackful, cooperative, pinned to their worker.
//!
//! An LWT may be suspended anywhere, also inside the SIGBUS handler of a fault: the signal frame stays on its stack. LWTs of a worker share the
//! OS thread's thread-local storage; `errno` is saved and restored around every suspension.

use crate::error::{Error, ErrorKind, Result};
use crate::failure::SwapFailure;
use crate::io_queue::Token;
use crate::stack::LwtStack;
use crate::sys;
use crate::try_catch;
use crate::worker::{self, Worker, WorkerShared};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

/// One LWT. Made and freed by its worker; anybody may hold a pointer while it is suspended and owes it a wake-up.
pub(crate) struct Lwt {
    coroutine: RefCell<Option<Coroutine<(), (), (), LwtStack>>>,
    /// The inside end of the coroutine, valid from its first instruction to its end.
    yielder: Cell<*const Yielder<(), ()>>,
    /// The worker's end that other threads may use.
    home: *const WorkerShared,
    /// The program's; see [`set_value`].
    value: Cell<*mut libc::c_void>,
    /// Its innermost open try block.
    innermost_try: Cell<*mut try_catch::Context>,
    /// Why a page could not be had, if that is why its last call failed.
    last_failure: Cell<Option<SwapFailure>>,
    /// Link in the worker's ready queue (its thread only).
    next_ready: Cell<*mut Lwt>,
    /// Link in the home's inbox of remote wake-ups.
    pub(crate) next_inbox: AtomicPtr<Lwt>,
}

/// The LWT that runs on this thread, or null. Async-signal-safe.
pub(crate) fn current() -> *mut Lwt {
    worker::current().map_or(ptr::null_mut(), |worker| worker.current_lwt())
}

/// Whether the caller runs on an LWT.
pub fn on_lwt() -> bool {
    !current().is_null()
}

/// Switches from the current LWT to its worker's scheduler; returns when somebody has called [`wake`]. Async-signal-safe.
pub(crate) fn suspend() {
    let lwt = current();
    debug_assert!(!lwt.is_null(), "suspend outside an LWT");
    let errno = sys::errno();
    // SAFETY: `lwt` is the running LWT, so its yielder is valid.
    unsafe { (*(*lwt).yielder.get()).suspend(()) };
    sys::set_errno(errno);
}

/// Makes a suspended LWT ready, from any thread. Each suspension is owed exactly one wake-up. Async-signal-safe.
pub(crate) fn wake(lwt: *mut Lwt) {
    // SAFETY: a suspended LWT is alive until it is woken, and its home is never freed.
    let home = unsafe { &*(*lwt).home };
    match worker::current() {
        Some(worker) if ptr::eq(worker.shared(), home) => worker.push_ready(lwt),
        _ => home.push_inbox(lwt),
    }
}

/// Gives the running LWT a value of the program's, as thread-local storage would a thread; it starts as null. Does nothing outside LWTs.
pub fn set_value(value: *mut libc::c_void) {
    // SAFETY: the running LWT is alive.
    if let Some(lwt) = unsafe { current().as_ref() } {
        lwt.value.set(value);
    }
}

/// What [`set_value`] was last given on the running LWT; null outside LWTs.
pub fn value() -> *mut libc::c_void {
    // SAFETY: as above.
    unsafe { current().as_ref() }.map_or(ptr::null_mut(), |lwt| lwt.value.get())
}

/// Lets the other LWTs of this worker run; on an ordinary thread, other threads.
pub fn yield_now() {
    let lwt = current();
    if lwt.is_null() {
        std::thread::yield_now();
    } else {
        wake(lwt);
        suspend();
    }
}

/// Suspends the LWT (or blocks the thread) for a time.
pub fn sleep(duration: std::time::Duration) {
    let lwt = current();
    match worker::current() {
        Some(worker) if !lwt.is_null() => {
            worker.queue().push_timeout(duration, Token::lwt(lwt));
            suspend();
        }
        _ => std::thread::sleep(duration),
    }
}

/// A pause of those who look at something again and again: after some attempts they let others have the CPU for longer.
pub(crate) fn wait_a_little(attempt: usize) {
    const NUM_YIELDS: usize = 100;
    if attempt < NUM_YIELDS { yield_now() } else { sleep(std::time::Duration::from_millis(1)) }
}

impl Lwt {
    /// An LWT of `worker` that will run `entry`.
    fn new(worker: &Worker, entry: impl FnOnce() + 'static) -> Result<Box<Self>> {
        let stack = worker.stacks().borrow_mut().take()?;
        let coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            // SAFETY: the scheduler sets the current LWT before it resumes one.
            unsafe { (*current()).yielder.set(yielder) };
            entry();
            try_catch::check_none_is_open();
        });
        Ok(Box::new(Self {
            coroutine: RefCell::new(Some(coroutine)),
            yielder: Cell::new(ptr::null()),
            home: worker.shared(),
            value: Cell::new(ptr::null_mut()),
            innermost_try: Cell::new(ptr::null_mut()),
            last_failure: Cell::new(None),
            next_ready: Cell::new(ptr::null_mut()),
            next_inbox: AtomicPtr::new(ptr::null_mut()),
        }))
    }

    /// Its chain of open try blocks.
    pub(crate) fn innermost_try(&self) -> &Cell<*mut try_catch::Context> {
        &self.innermost_try
    }

    /// For the C ABI.
    pub(crate) fn last_failure(&self) -> &Cell<Option<SwapFailure>> {
        &self.last_failure
    }
}

/// Makes an LWT of the calling worker. From the worker's own stack it runs at once, until it ends (`Ok(true)`) or suspends; from an LWT it is
/// queued.
///
/// # Errors
/// [`ErrorKind::NotAWorker`]; [`ErrorKind::NoMemory`] or [`ErrorKind::Busy`] when there is no stack for it.
pub(crate) fn start(entry: impl FnOnce() + 'static) -> Result<bool> {
    let worker = worker::current().ok_or_else(|| Error::new(ErrorKind::NotAWorker, "an LWT can only be started by a worker"))?;
    let lwt = Box::into_raw(Lwt::new(worker, entry)?);
    worker.count_lwt(1);
    if worker.current_lwt().is_null() {
        Ok(resume(worker, lwt))
    } else {
        worker.push_ready(lwt);
        Ok(false)
    }
}

/// Scheduler: runs `lwt` until it suspends or ends; `true` if it ended (it is freed then).
pub(crate) fn resume(worker: &Worker, lwt: *mut Lwt) -> bool {
    worker.set_current_lwt(lwt);
    // SAFETY: ready LWTs are alive, and only their own worker resumes them.
    let result = unsafe { (*lwt).coroutine.borrow_mut().as_mut().expect("an LWT that ended is gone").resume(()) };
    worker.set_current_lwt(ptr::null_mut());
    if let CoroutineResult::Yield(()) = result {
        return false;
    }
    // SAFETY: it came from Box::into_raw and has ended: nobody holds a pointer any more.
    let mut lwt = unsafe { Box::from_raw(lwt) };
    let coroutine = lwt.coroutine.get_mut().take().expect("just resumed");
    worker.stacks().borrow_mut().put(coroutine.into_stack());
    worker.count_lwt(-1);
    true
}

/// A first-in first-out list of LWTs, linked through them.
pub(crate) struct ReadyQueue {
    head: Cell<*mut Lwt>,
    tail: Cell<*mut Lwt>,
    len: Cell<usize>,
}

impl ReadyQueue {
    pub(crate) const fn new() -> Self {
        Self { head: Cell::new(ptr::null_mut()), tail: Cell::new(ptr::null_mut()), len: Cell::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    pub(crate) fn push(&self, lwt: *mut Lwt) {
        // SAFETY: LWTs in the queue and `lwt` are suspended and alive, and only this thread uses their links.
        unsafe {
            (*lwt).next_ready.set(ptr::null_mut());
            if self.tail.get().is_null() {
                self.head.set(lwt);
            } else {
                (*self.tail.get()).next_ready.set(lwt);
            }
        }
        self.tail.set(lwt);
        self.len.set(self.len.get() + 1);
    }

    pub(crate) fn pop(&self) -> Option<*mut Lwt> {
        let lwt = self.head.get();
        if lwt.is_null() {
            return None;
        }
        // SAFETY: as in `push`.
        let next = unsafe { (*lwt).next_ready.get() };
        self.head.set(next);
        if next.is_null() {
            self.tail.set(ptr::null_mut());
        }
        self.len.set(self.len.get() - 1);
        Some(lwt)
    }
}

/// Pops the whole inbox into the ready queue in the order of arrival.
pub(crate) fn drain_inbox(inbox: &AtomicPtr<Lwt>, ready: &ReadyQueue) {
    let mut stack = inbox.swap(ptr::null_mut(), std::sync::atomic::Ordering::Acquire);
    let mut reversed: *mut Lwt = ptr::null_mut();
    while !stack.is_null() {
        // SAFETY: LWTs in the inbox are suspended and alive; having swapped the list out, it is ours.
        unsafe {
            let next = (*stack).next_inbox.load(Relaxed);
            (*stack).next_inbox.store(reversed, Relaxed);
            reversed = stack;
            stack = next;
        }
    }
    while !reversed.is_null() {
        // SAFETY: as above.
        let next = unsafe { (*reversed).next_inbox.load(Relaxed) };
        ready.push(reversed);
        reversed = next;
    }
}
