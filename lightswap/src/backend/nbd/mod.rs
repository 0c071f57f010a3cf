//! `nbd://host:port/export`, `nbd+unix:///export?socket=/path`: slots in the memory of another machine, behind any NBD server; `nbds:` and `nbds+unix:` the same
//! within TLS.
//!
//! [`address`] parses URLs; [`handshake`] connects, on threads that may block: [`keeper`] does so again whenever a connection broke. From then on
//! a [`queue`] of the worker speaks the protocol ([`wire`]) through its own ring, with [`requests`] gathered in an [`outbox`] and replies taken apart in an
//! [`inbox`]. Between these and the socket there is [`connection`], which encrypts and decrypts what passes it, if there is TLS ([`tls`]). Where the server allows
//! but one connection, the other workers' [`proxy`] hands their requests to the pager thread's.

mod address;
mod connection;
mod handshake;
mod inbox;
mod keeper;
mod outbox;
mod proxy;
mod queue;
mod requests;
mod signature;
mod stream;
mod tls;
mod trims;
mod wire;

use super::read_runs::MAX_RUN_PAGES;
use super::url::BackendUrl;
use super::{Backend, BackendQueue, Health, QueueBuilder, offset_of};
use crate::budget::MAX_BATCH_PAGES;
use crate::error::{ErrorKind, Result};
use crate::size::{PAGE_SIZE, bytes_of, format_size, pages_in};
use crate::worker::WorkerShared;
use address::Address;
use handshake::{Connected, Export, connect};
use keeper::Keeper;
use proxy::{Forwards, ProxyQueue, Stack};
use queue::NbdQueue;
use signature::{Claim, Signature};
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use trims::Trims;

/// Places of [`NbdBackend::counters`].
#[derive(Clone, Copy, Debug)]
enum Counter {
    Requests,
    Resent,
    Trims,
    ProtocolErrors,
    Timeouts,
}

const COUNTER_NAMES: [&str; 5] = ["nbd_requests", "nbd_resent", "nbd_trims", "nbd_protocol_errors", "nbd_timeouts"];

#[derive(Debug)]
pub(super) struct NbdBackend {
    address: Address,
    export: Export,
    num_slots: usize,
    keeper: Keeper,
    /// The connection made at open, for the pager thread.
    first: Mutex<Option<Connected>>,
    num_connections: AtomicUsize,
    pager_thread: OnceLock<&'static WorkerShared>,
    /// Requests of workers without a connection.
    forwarded: Stack,
    trims: Option<Trims>,
    _claim: Option<Claim>,
    is_mirrored: AtomicBool,
    counters: [AtomicU64; COUNTER_NAMES.len()],
}

impl NbdBackend {
    pub(super) fn open(url: &BackendUrl) -> Result<Self> {
        let address = Self::parse(url)?;
        let failed = |cause: &dyn std::fmt::Display| url.error(ErrorKind::Backend, cause);
        if address.tls.as_ref().is_some_and(|options| options.is_unverified) {
            tracing::warn!(server = %address, "tls-verify-peer=0: the server is not verified, so anybody in the network between can read and change everything");
        }
        let mut first = connect(&address).map_err(|cause| failed(&cause))?;
        let export = first.export.clone();
        let num_pages = pages_in(usize::try_from(export.num_bytes).unwrap_or(usize::MAX));
        let wanted = address.size_bytes.map_or(num_pages, |num_bytes| pages_in(num_bytes as usize).min(num_pages));
        // A page behind the slots is for the signature, unless the size that was asked for leaves none.
        let num_slots = if address.size_bytes.is_none() && num_pages > 1 { num_pages - 1 } else { wanted };
        if num_slots == 0 {
            let (what, num_bytes) = address.size_bytes.filter(|_| num_pages > 0).map_or(("an export", export.num_bytes), |size| ("a size", size));
            return Err(failed(&format!("{what} of {} holds no page", format_size(num_bytes))));
        }
        let signature = (num_slots < num_pages).then(|| Signature::new(offset_of(num_slots)));
        let claim = signature.as_ref().map(|signature| signature.claim(&mut first)).transpose().map_err(|cause| failed(&cause))?;
        let trims = export.can_trim.then(|| Trims::new(num_slots)).transpose();
        let trims = trims.map_err(|cause| {
            failed(&format!("an export of {} is too large to keep track of ({cause}): use less of it, with size=SIZE", format_size(export.num_bytes)))
        })?;
        Ok(Self {
            keeper: Keeper::start(address.clone(), export.clone(), offset_of(num_slots), signature)?,
            trims,
            address,
            export,
            num_slots,
            first: Mutex::new(Some(first)),
            num_connections: AtomicUsize::new(0),
            pager_thread: OnceLock::new(),
            forwarded: Stack::new(),
            _claim: claim,
            is_mirrored: AtomicBool::new(false),
            counters: Default::default(),
        })
    }

    /// What can be said against a URL without connecting.
    pub(super) fn check(url: &BackendUrl) -> Result<()> {
        Self::parse(url).map(drop)
    }

    fn parse(url: &BackendUrl) -> Result<Address> {
        url.expect_only(&address::options())?;
        Address::parse(&url.scheme, &url.path, |name| url.option(name)).map_err(|what| url.error(ErrorKind::BackendUrl, what))
    }

    fn count(&self, counter: Counter, amount: u64) {
        self.counters[counter as usize].fetch_add(amount, Relaxed);
    }

    fn timeout_ns(&self) -> u64 {
        self.address.timeout.as_nanos() as u64
    }

    fn lost_after_ns(&self) -> u64 {
        self.address.lost_after.as_nanos() as u64
    }

    /// In a mirror requests wait no longer for a worker's first connection.
    fn connect_limit_ns(&self) -> u64 {
        self.address.timeout.max(handshake::MIN_TIME_LIMIT).as_nanos() as u64
    }

    /// Of one request.
    fn max_write_bytes(&self) -> usize {
        (self.export.max_payload_bytes as usize / PAGE_SIZE * PAGE_SIZE).max(PAGE_SIZE)
    }

    /// Of TLS.
    fn max_record_bytes(&self) -> usize {
        if self.address.tls.is_some() { tls::record::MAX_RECORD_BYTES } else { 0 }
    }

    /// Of one request.
    fn max_read_pages(&self) -> usize {
        (self.max_write_bytes() / PAGE_SIZE).min(MAX_RUN_PAGES)
    }

    /// Requests that a write falls into at most.
    fn max_parts(&self) -> usize {
        bytes_of(MAX_BATCH_PAGES).div_ceil(self.max_write_bytes())
    }

    /// Whether one more connection is allowed, which is taken then.
    fn may_connect(&self) -> bool {
        let most = if self.export.can_multi_conn { self.address.max_connections } else { 1 };
        self.num_connections.fetch_update(Relaxed, Relaxed, |num| (num < most).then_some(num + 1)).is_ok()
    }

    /// A worker that was allowed to connect has ended: another one may.
    fn end_connection(&self) {
        self.num_connections.fetch_sub(1, Relaxed);
    }

    fn poke_pager_thread(&self) {
        if let Some(pager_thread) = self.pager_thread.get() {
            pager_thread.poke();
        }
    }
}

impl Backend for NbdBackend {
    fn num_slots(&self) -> usize {
        self.num_slots
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        if !self.may_connect() {
            let number = builder.reserve();
            return Ok(builder.add(number, Rc::new(ProxyQueue::new(self, builder))));
        }
        let mut forwards = None;
        let ready = if builder.is_pager_thread {
            let _ = self.pager_thread.set(builder.shared);
            forwards = Some(Forwards::new(self.clone()));
            builder.expect_finished(2 * proxy::MAX_TAKEN);
            // If that fails, for lack of memory, the keeper says so when it fails to make another one.
            self.first.lock().unwrap_or_else(PoisonError::into_inner).take().and_then(|first| first.establish().ok())
        } else {
            None
        };
        let link = self.keeper.link(builder.shared, ready);
        let backend = self.clone();
        let node = NbdQueue::new(self, link.clone(), builder, forwards).inspect_err(|_| {
            link.close();
            backend.end_connection();
        })?;
        let node = Rc::new(node);
        Ok(builder.add(node.number(), node))
    }

    /// The inbox.
    fn staging_pages_per_read(&self) -> usize {
        1
    }

    fn busy_poll_us(&self) -> u64 {
        self.address.busy_poll_us
    }

    fn reserve(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        if let Some(trims) = &self.trims
            && num_slots > 0
            && trims.want(slot..slot + num_slots)
        {
            self.poke_pager_thread();
        }
    }

    fn health(&self) -> Health {
        self.keeper.health()
    }

    fn set_mirrored(&self) {
        self.is_mirrored.store(true, Relaxed);
    }

    fn own_stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = vec![("nbd_reconnects", self.keeper.num_reconnects()), ("nbd_connections_down", self.keeper.num_wanted() as u64)];
        stats.extend(COUNTER_NAMES.into_iter().zip(&self.counters).map(|(name, count)| (name, count.load(Relaxed))));
        stats
    }
}
