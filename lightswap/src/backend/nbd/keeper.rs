//! Connecting, on a thread of its own: names are looked up, sockets connected and handshakes made where that may block. A worker whose connection breaks asks
//! for another one, and finds it in its [`Link`] when it is woken.

use super::address::Address;
use super::handshake::{ConnectError, Established, Export, connect};
use super::signature::Signature;
use crate::backend::Health;
use crate::budget::MAX_BATCH_PAGES;
use crate::error::{Error, ErrorKind, Result};
use crate::size::{PAGE_SIZE, format_size};
use crate::sys;
use crate::worker::WorkerShared;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pauses between attempts: the first, doubled each time up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// No request carries more.
const MOST_PAYLOAD_BYTES: u32 = (MAX_BATCH_PAGES * PAGE_SIZE) as u32;

/// The pause after so many attempts in a row that came to nothing.
fn pause_after(num_failures: u32) -> Duration {
    match num_failures {
        0 => Duration::ZERO,
        // Enough to be at the last one.
        _ => (PAUSES.0 * (1 << (num_failures - 1).min(10))).min(PAUSES.1),
    }
}

/// Where a worker gets its connections.
#[derive(Debug)]
pub(super) struct Link {
    worker: &'static WorkerShared,
    /// The worker waits for a connection.
    is_wanted: AtomicBool,
    /// It had one before.
    is_again: AtomicBool,
    /// When the last one was made, how many in a row broke soon without any reply, and when there may be another one.
    made_ns: AtomicU64,
    num_useless: AtomicU32,
    not_before_ns: AtomicU64,
    /// Its lock is held when a connection is handed over, so that who takes one may want the next at once.
    ready: Mutex<Option<Established>>,
    keeper: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: Address,
    /// What it was at first.
    export: Export,
    /// What the slots take.
    num_bytes: u64,
    signature: Option<Signature>,
    state: Mutex<State>,
    changed: Condvar,
    generation: AtomicU64,
    num_reconnects: AtomicU64,
    /// The last attempt failed, of those for links that still want a connection.
    is_away: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Link>>,
    must_stop: bool,
}

impl State {
    fn has_wanted(&self) -> bool {
        self.links.iter().any(|link| link.is_wanted.load(Relaxed))
    }
}

/// The thread; it ends soon after this is dropped.
#[derive(Debug)]
pub(super) struct Keeper(Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// For a server that was just connected to, and signed if there is room for that.
    pub(super) fn start(address: Address, export: Export, num_bytes: u64, signature: Option<Signature>) -> Result<Self> {
        let shared = Arc::new(Shared {
            address,
            export,
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
    pub(super) fn link(&self, worker: &'static WorkerShared, ready: Option<Established>) -> Arc<Link> {
        let link = Arc::new(Link {
            worker,
            is_wanted: AtomicBool::new(ready.is_none()),
            is_again: AtomicBool::new(ready.is_some()),
            made_ns: AtomicU64::new(sys::now_ns()),
            num_useless: AtomicU32::new(0),
            not_before_ns: AtomicU64::new(0),
            ready: Mutex::new(ready),
            keeper: self.0.clone(),
        });
        lock(&self.0.state).links.push(link.clone());
        self.0.changed.notify_one();
        link
    }

    pub(super) fn health(&self) -> Health {
        let is_away = lock(&self.0.state).links.iter().any(|link| link.is_away());
        Health { is_away, generation: self.0.generation.load(Relaxed) }
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
    /// Asks for a connection, as the one of before broke; whether that had brought any reply. Servers that accept connections and close them are not to be asked
    /// again and again without a pause.
    pub(super) fn want(&self, was_useful: bool) {
        let now_ns = sys::now_ns();
        let has_lasted = now_ns.saturating_sub(self.made_ns.load(Relaxed)) > PAUSES.1.as_nanos() as u64;
        let num_useless = if was_useful || has_lasted { 0 } else { self.num_useless.load(Relaxed).saturating_add(1) };
        self.num_useless.store(num_useless, Relaxed);
        self.not_before_ns.store(now_ns + pause_after(num_useless).as_nanos() as u64, Relaxed);
        self.is_wanted.store(true, Relaxed);
        // Under the lock, so that the keeper does not miss it.
        drop(lock(&self.keeper.state));
        self.keeper.changed.notify_one();
    }

    /// Whether the worker lacks a connection since its server is away, rather than not yet connected to.
    pub(super) fn is_away(&self) -> bool {
        self.is_wanted.load(Relaxed) && (self.is_again.load(Relaxed) || self.keeper.is_away.load(Relaxed))
    }

    /// The connection, if it is there.
    pub(super) fn take(&self) -> Option<Established> {
        lock(&self.ready).take()
    }

    /// The worker ends.
    pub(super) fn close(self: &Arc<Self>) {
        let mut state = lock(&self.keeper.state);
        state.links.retain(|link| !Arc::ptr_eq(link, self));
        if !state.has_wanted() {
            // What failed for others says nothing to who comes later.
            self.keeper.is_away.store(false, Relaxed);
            self.keeper.changed.notify_one();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut num_failures = 0;
        let mut state = lock(&self.state);
        while !state.must_stop {
            let wanted = state.links.iter().filter(|link| link.is_wanted.load(Relaxed));
            let Some(link) = wanted.min_by_key(|link| link.not_before_ns.load(Relaxed)).cloned() else {
                num_failures = 0;
                self.is_away.store(false, Relaxed);
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let wait_ns = link.not_before_ns.load(Relaxed).saturating_sub(sys::now_ns());
            if wait_ns > 0 {
                state = self.changed.wait_timeout(state, Duration::from_nanos(wait_ns)).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            drop(state);
            match self.connect() {
                Ok(connected) => {
                    if num_failures > 0 {
                        tracing::info!(server = %self.address, "connected again");
                    }
                    num_failures = 0;
                    self.is_away.store(false, Relaxed);
                    self.hand_over(&link, connected);
                    state = lock(&self.state);
                }
                Err(cause) => {
                    self.is_away.store(true, Relaxed);
                    if num_failures == 0 {
                        tracing::warn!(server = %self.address, %cause, "cannot connect; trying again until it works");
                    }
                    num_failures += 1;
                    state = lock(&self.state);
                    // Those in a mirror wait no longer.
                    state.links.iter().filter(|link| link.is_wanted.load(Relaxed)).for_each(|link| link.worker.poke());
                    // Links come and go meanwhile; another one that wants a connection is no reason to hurry.
                    let pause = self.changed.wait_timeout_while(state, pause_after(num_failures), |state| !state.must_stop && state.has_wanted());
                    state = pause.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn hand_over(&self, link: &Link, connected: Established) {
        let mut ready = lock(&link.ready);
        link.made_ns.store(sys::now_ns(), Relaxed);
        link.is_wanted.store(false, Relaxed);
        if link.is_again.swap(true, Relaxed) {
            self.num_reconnects.fetch_add(1, Relaxed);
        }
        *ready = Some(connected);
        drop(ready);
        link.worker.poke();
    }

    fn connect(&self) -> std::result::Result<Established, ConnectError> {
        let mut connected = connect(&self.address)?;
        if let Some(what) = self.lacks(&connected.export) {
            return Err(ConnectError::new(format!("the export is not what it was: {what}; start the server as it was")));
        }
        let has_content = match &self.signature {
            Some(signature) => signature.renew(&mut connected)?,
            None => false,
        };
        if !has_content {
            self.generation.fetch_add(1, Relaxed);
            if self.signature.is_some() {
                tracing::warn!(server = %self.address, "the server has not kept what was written: it was restarted, or another client uses the export");
            }
        }
        connected.establish()
    }

    /// What is missing of what is relied upon.
    fn lacks(&self, export: &Export) -> Option<String> {
        let num_bytes = self.num_bytes + if self.signature.is_some() { PAGE_SIZE as u64 } else { 0 };
        let (most, least) = (export.max_payload_bytes, self.export.max_payload_bytes.min(MOST_PAYLOAD_BYTES));
        if export.num_bytes < num_bytes {
            Some(format!("it has become smaller: {}, and {} are in use", format_size(export.num_bytes), format_size(num_bytes)))
        } else if most < least {
            Some(format!("it takes requests of {most} bytes, and took some of {least}"))
        } else if self.export.can_trim && !export.can_trim {
            Some("it does not take TRIM any more".into())
        } else if self.export.can_multi_conn && !export.can_multi_conn {
            Some("it does not allow several connections any more".into())
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_last() {
        let pauses: Vec<u128> = (0..10).map(|num| pause_after(num).as_millis()).collect();
        assert_eq!(pauses, [0, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert_eq!(pause_after(u32::MAX), PAUSES.1);
    }
}
