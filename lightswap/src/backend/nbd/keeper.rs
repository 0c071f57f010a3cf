//! Connecting, on a thread of its own: names are looked up, sockets connected and handshakes made where that may block. A worker whose connection breaks asks
//! for another one, and finds it in its [`Link`] when it is woken.

use super::address::Address;
use super::handshake::{ConnectError, Connected, connect};
use super::signature::Signature;
use crate::backend::Health;
use crate::error::{Error, ErrorKind, Result};
use crate::size::{PAGE_SIZE, format_size};
use crate::worker::WorkerShared;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pauses between attempts: the first, doubled each time up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Where a worker gets its connections.
#[derive(Debug)]
pub(super) struct Link {
    worker: &'static WorkerShared,
    /// The worker waits for a connection.
    is_wanted: AtomicBool,
    /// It had one before.
    is_again: AtomicBool,
    ready: Mutex<Option<Connected>>,
    keeper: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: Address,
    /// What the slots take.
    num_bytes: u64,
    signature: Option<Signature>,
    state: Mutex<State>,
    changed: Condvar,
    generation: AtomicU64,
    num_reconnects: AtomicU64,
    /// The last attempt failed.
    is_away: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Link>>,
    must_stop: bool,
}

/// The thread; it ends soon after this is dropped.
#[derive(Debug)]
pub(super) struct Keeper(Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// For a server that was just connected to, and signed if there is room for that.
    pub(super) fn start(address: Address, num_bytes: u64, signature: Option<Signature>) -> Result<Self> {
        let shared = Arc::new(Shared {
            address,
            num_bytes,
            signature,
            state: Mutex::default(),
            changed: Condvar::new(),
            generation: AtomicU64::new(0),
            num_reconnects: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("lsw-nbd".into())
            .spawn(move || of_thread.run())
            .map_err(|cause| Error::io(ErrorKind::NoMemory, "cannot start the thread that connects to NBD servers", &cause))?;
        Ok(Self(shared))
    }

    /// A link for a worker; `ready` is a connection that is there already, otherwise one is made.
    pub(super) fn link(&self, worker: &'static WorkerShared, ready: Option<Connected>) -> Arc<Link> {
        let link = Arc::new(Link {
            worker,
            is_wanted: AtomicBool::new(ready.is_none()),
            is_again: AtomicBool::new(ready.is_some()),
            ready: Mutex::new(ready),
            keeper: self.0.clone(),
        });
        lock(&self.0.state).links.push(link.clone());
        self.0.changed.notify_one();
        link
    }

    pub(super) fn health(&self) -> Health {
        let is_away = lock(&self.0.state).links.iter().any(|link| link.is_away());
        Health { is_away: is_away || self.0.is_away.load(Relaxed), generation: self.0.generation.load(Relaxed) }
    }

    /// Connections made for workers whose earlier one broke.
    pub(super) fn num_reconnects(&self) -> u64 {
        self.0.num_reconnects.load(Relaxed)
    }

    /// Links that wait for a connection.
    pub(super) fn num_wanted(&self) -> usize {
        lock(&self.0.state).links.iter().filter(|link| link.is_wanted.load(Relaxed)).count()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        lock(&self.0.state).must_stop = true;
        self.0.changed.notify_all();
    }
}

impl Link {
    /// Asks for a connection.
    pub(super) fn want(&self) {
        if !self.is_wanted.swap(true, Relaxed) {
            // Under the lock, so that the keeper does not miss it.
            drop(lock(&self.keeper.state));
            self.keeper.changed.notify_one();
        }
    }

    /// Whether the worker lacks a connection since its server is away, rather than not yet connected to.
    pub(super) fn is_away(&self) -> bool {
        self.is_wanted.load(Relaxed) && (self.is_again.load(Relaxed) || self.keeper.is_away.load(Relaxed))
    }

    /// The connection, if it is there.
    pub(super) fn take(&self) -> Option<Connected> {
        lock(&self.ready).take()
    }

    /// The worker ends.
    pub(super) fn close(self: &Arc<Self>) {
        lock(&self.keeper.state).links.retain(|link| !Arc::ptr_eq(link, self));
    }
}

impl Shared {
    fn run(&self) {
        let mut pause = PAUSES.0;
        let mut is_logged = false;
        let mut state = lock(&self.state);
        while !state.must_stop {
            let Some(link) = state.links.iter().find(|link| link.is_wanted.load(Relaxed)).cloned() else {
                (pause, is_logged) = (PAUSES.0, false);
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            match self.connect() {
                Ok(connected) => {
                    if is_logged {
                        tracing::info!(server = %self.address, "connected again");
                    }
                    self.is_away.store(false, Relaxed);
                    *lock(&link.ready) = Some(connected);
                    link.is_wanted.store(false, Relaxed);
                    if link.is_again.swap(true, Relaxed) {
                        self.num_reconnects.fetch_add(1, Relaxed);
                    }
                    link.worker.poke();
                    state = lock(&self.state);
                }
                Err(cause) => {
                    self.is_away.store(true, Relaxed);
                    if !is_logged {
                        tracing::warn!(server = %self.address, %cause, "cannot connect; trying again until it works");
                        is_logged = true;
                    }
                    state = lock(&self.state);
                    // Those in a mirror wait no longer.
                    state.links.iter().filter(|link| link.is_wanted.load(Relaxed)).for_each(|link| link.worker.poke());
                    if !state.must_stop {
                        // Links come and go meanwhile; another one that wants a connection is no reason to hurry.
                        state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    fn connect(&self) -> std::result::Result<Connected, ConnectError> {
        let connected = connect(&self.address)?;
        if connected.export.num_bytes < self.num_bytes + if self.signature.is_some() { PAGE_SIZE as u64 } else { 0 } {
            let (has, had) = (format_size(connected.export.num_bytes), format_size(self.num_bytes));
            return Err(ConnectError::new(format!("the export has become smaller: {has}, and {had} are in use; make it as large as it was")));
        }
        let has_content = match &self.signature {
            Some(signature) => signature.renew(&connected)?,
            None => false,
        };
        if !has_content {
            self.generation.fetch_add(1, Relaxed);
            if self.signature.is_some() {
                tracing::warn!(server = %self.address, "the server has not kept what was written: it was restarted, or another client uses the export");
            }
        }
        Ok(connected)
    }
}
