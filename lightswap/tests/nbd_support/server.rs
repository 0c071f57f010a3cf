//! An NBD server in this process that does what a test tells it: by default everything right, from memory that its connections share.

use super::connection;
use super::handshake::{Ended, Export, Handshake, HandshakeFault};
use super::log::Log;
use super::protocol::{Command, Request};
use super::script::{Action, Rule, Script};
use super::stream::{Listener, Place, Stream};
use crate::common::{PAGE, Random};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a server is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// Nobody listens: clients are refused.
    Unbound,
    /// Connections are accepted, and closed at once.
    Closing,
    /// Connections are made by the kernel, and nobody accepts them.
    Deaf,
}

#[derive(Debug)]
struct Door {
    /// `None`: open.
    away: Option<Away>,
    until: Option<Instant>,
    /// How many changes the accepting thread has seen, of so many.
    num_seen: u64,
    num_changes: u64,
}

/// What the threads of a server share.
pub struct Shared {
    script: Mutex<Script>,
    export: Mutex<Export>,
    content: Mutex<Vec<u8>>,
    log: Mutex<Log>,
    /// All that were accepted; those that have ended as `None`.
    connections: Mutex<Vec<Option<Stream>>>,
    handshake_faults: Mutex<VecDeque<HandshakeFault>>,
    door: Mutex<Door>,
    is_paused: AtomicBool,
    must_stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that fails elsewhere is to fail with its own message.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn script<R>(&self, action: impl FnOnce(&mut Script) -> R) -> R {
        action(&mut lock(&self.script))
    }

    pub fn log<R>(&self, action: impl FnOnce(&mut Log) -> R) -> R {
        action(&mut lock(&self.log))
    }

    pub fn export(&self) -> Export {
        lock(&self.export).clone()
    }

    pub fn is_paused(&self) -> bool {
        self.is_paused.load(SeqCst)
    }

    pub fn must_stop(&self) -> bool {
        self.must_stop.load(SeqCst)
    }

    /// Does a request, unless `is_hung_up` says, at that very moment, that its client is gone. Returns what was read.
    pub fn do_unless(&self, is_hung_up: impl FnOnce() -> bool, request: &Request, payload: &[u8], trimmed: u8) -> Option<Vec<u8>> {
        let mut content = lock(&self.content);
        if is_hung_up() {
            return None;
        }
        let range = request.offset as usize..request.end() as usize;
        if range.end > content.len() {
            // An export that says more than it has keeps nothing there.
            return Some(if request.command == Command::Read { vec![0; range.len()] } else { Vec::new() });
        }
        match request.command {
            Command::Read => return Some(content[range].to_vec()),
            Command::Write => content[range].copy_from_slice(payload),
            Command::Trim => content[range].fill(trimmed),
            Command::Flush | Command::Disconnect => {}
        }
        Some(Vec::new())
    }

    pub fn do_request(&self, request: &Request, payload: &[u8], trimmed: u8) -> Vec<u8> {
        self.do_unless(|| false, request, payload, trimmed).unwrap_or_default()
    }

    /// As much as a read asks for, from a page further on.
    pub fn content_behind(&self, request: &Request) -> Vec<u8> {
        let content = lock(&self.content);
        (0..request.length as usize).map(|index| content[(request.offset as usize + PAGE + index) % content.len()]).collect()
    }
}

/// Stops when it is dropped; and fails the test then if a client broke the protocol.
pub struct ScriptedServer {
    shared: Arc<Shared>,
    place: Place,
    acceptor: Option<JoinHandle<()>>,
}

impl ScriptedServer {
    /// An export with room for `num_pages` pages that may do everything, at a UNIX socket.
    pub fn new(num_pages: usize) -> Self {
        Self::start(super::unix_place(), Self::export_of(num_pages))
    }

    /// With a page more, where a client may leave a mark by which it knows the server again.
    pub fn export_of(num_pages: usize) -> Export {
        Export {
            name: "swap".into(),
            num_bytes: ((num_pages + 1) * PAGE) as u64,
            multi_conn: true,
            read_only: false,
            can_flush: true,
            can_trim: true,
            block_sizes: Some([1, PAGE as u32, 4 << 20]),
            no_zeroes: true,
            knows_go: true,
        }
    }

    pub fn start(place: Place, export: Export) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new(Script::new(super::seed())),
            content: Mutex::new(vec![0; export.num_bytes as usize]),
            export: Mutex::new(export),
            log: Mutex::default(),
            connections: Mutex::default(),
            handshake_faults: Mutex::default(),
            door: Mutex::new(Door { away: None, until: None, num_seen: 0, num_changes: 0 }),
            is_paused: AtomicBool::new(false),
            must_stop: AtomicBool::new(false),
        });
        let listener = Listener::bind(&place);
        let place = listener.place(&place);
        let acceptor = std::thread::spawn({
            let (shared, place) = (shared.clone(), place.clone());
            move || accept_all(&shared, &place, listener)
        });
        Self { shared, place, acceptor: Some(acceptor) }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its URL with options, as in `timeout=1&lost-after=3`.
    pub fn url(&self, options: &str) -> String {
        self.place.url(&self.shared.export().name, options)
    }

    pub fn script<R>(&self, action: impl FnOnce(&mut Script) -> R) -> R {
        self.shared.script(action)
    }

    pub fn add(&self, rule: Rule) {
        self.script(|script| script.add(rule));
    }

    /// What the client reads and writes of its mark, in the last page, is answered whatever the rules say; or not.
    pub fn spare_mark(&self, is_spared: bool) {
        let start = self.shared.export().num_bytes - PAGE as u64;
        self.script(|script| script.spared_from = is_spared.then_some(start));
    }

    /// Nothing goes wrong any more.
    pub fn behave(&self) {
        self.script(Script::behave);
        lock(&self.shared.handshake_faults).clear();
        self.pause(false);
        self.come_back();
    }

    /// How often it did something wrong so.
    pub fn num_followed(&self, action: Action) -> usize {
        self.script(|script| script.followed().iter().filter(|followed| **followed == action).count())
    }

    /// The next connections have these faults, one each.
    pub fn fail_handshakes(&self, faults: impl IntoIterator<Item = HandshakeFault>) {
        lock(&self.shared.handshake_faults).extend(faults);
    }

    /// Handshake faults that no connection has met yet.
    pub fn num_handshake_faults_left(&self) -> usize {
        lock(&self.shared.handshake_faults).len()
    }

    /// Changes what later connections are told.
    pub fn change_export(&self, change: impl FnOnce(&mut Export)) {
        change(&mut lock(&self.shared.export));
    }

    pub fn log<R>(&self, action: impl FnOnce(&mut Log) -> R) -> R {
        self.shared.log(action)
    }

    pub fn count(&self, command: Command) -> usize {
        self.log(|log| log.count(command))
    }

    pub fn num_connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    pub fn num_open_connections(&self) -> usize {
        lock(&self.shared.connections).iter().flatten().count()
    }

    /// All connections and requests stand still, open, until told otherwise.
    pub fn pause(&self, is_paused: bool) {
        self.shared.is_paused.store(is_paused, SeqCst);
    }

    /// Closes all connections, amid whatever they are doing.
    pub fn drop_connections(&self) {
        lock(&self.shared.connections).iter().flatten().for_each(Stream::shut_down);
    }

    /// Refuses new connections and drops those there are; for so long, or until told otherwise. Nothing is connected when this returns.
    pub fn go_away(&self, how: Away, duration: Option<Duration>) {
        self.change_door(Some(how), duration.map(|duration| Instant::now() + duration));
        self.drop_connections();
    }

    pub fn come_back(&self) {
        self.change_door(None, None);
    }

    fn change_door(&self, away: Option<Away>, until: Option<Instant>) {
        let number = {
            let mut door = lock(&self.shared.door);
            (door.away, door.until) = (away, until);
            door.num_changes += 1;
            door.num_changes
        };
        crate::common::wait_until("the server has opened or closed its door", || lock(&self.shared.door).num_seen >= number);
    }

    /// As an empty server that was started in its place.
    pub fn forget(&self) {
        lock(&self.shared.content).fill(0);
    }

    /// Damages a page that lies there; the same again mends it.
    pub fn flip(&self, slot: usize) {
        lock(&self.shared.content)[slot * PAGE + slot * 37 % PAGE] ^= 0x10;
    }

    /// Violations so far, which the test then knows of.
    pub fn take_violations(&self) -> Vec<String> {
        self.log(|log| std::mem::take(&mut log.violations))
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.shared.must_stop.store(true, SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let violations = self.take_violations();
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "the client broke the protocol: {violations:#?}");
        }
    }
}

/// Accepts connections until the server stops, and waits for their threads.
fn accept_all(shared: &Arc<Shared>, place: &Place, listener: Listener) {
    let mut listener = Some(listener);
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !shared.must_stop() {
        let (away, num_changes) = {
            let mut door = lock(&shared.door);
            if door.until.is_some_and(|until| until <= Instant::now()) {
                (door.away, door.until) = (None, None);
            }
            (door.away, door.num_changes)
        };
        match away {
            Some(Away::Unbound) => {
                if let (Some(_), Place::Unix(path)) = (listener.take(), place) {
                    let _ = std::fs::remove_file(path);
                }
            }
            _ if listener.is_none() => listener = Some(Listener::bind(place)),
            _ => {}
        }
        lock(&shared.door).num_seen = num_changes;
        let next = listener.as_ref().filter(|_| away != Some(Away::Deaf)).and_then(Listener::accept);
        match next {
            None => std::thread::sleep(Duration::from_millis(2)),
            Some(stream) if away == Some(Away::Closing) => stream.shut_down(),
            Some(stream) => {
                // Each that has ended keeps its stack until then.
                threads.retain(|thread| !thread.is_finished());
                threads.extend(start_connection(shared, stream));
            }
        }
    }
    lock(&shared.connections).iter().flatten().for_each(Stream::shut_down);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    if let Place::Unix(path) = place {
        let _ = std::fs::remove_file(path);
    }
}

fn start_connection(shared: &Arc<Shared>, stream: Stream) -> io::Result<JoinHandle<()>> {
    let number = {
        let mut connections = lock(&shared.connections);
        connections.push(Some(stream.try_clone()?));
        connections.len() - 1
    };
    let shared = shared.clone();
    Ok(std::thread::spawn(move || {
        let _ = run_connection(number, &shared, stream);
        lock(&shared.connections)[number] = None;
    }))
}

fn run_connection(number: usize, shared: &Arc<Shared>, mut stream: Stream) -> io::Result<()> {
    let export = shared.export();
    let fault = lock(&shared.handshake_faults).pop_front();
    let must_stop = || shared.must_stop();
    let random = Random::new(super::seed() ^ number as u64);
    let mut handshake = Handshake { stream: &mut stream, export: &export, fault, random, must_stop: &must_stop, violation: None };
    let ended = handshake.run();
    if let Some(violation) = handshake.violation {
        shared.log(|log| log.violated(number, &violation));
    }
    match ended? {
        Ended::Ready => connection::serve(number, shared, export, stream),
        Ended::Closed => {
            stream.shut_down();
            Ok(())
        }
        Ended::Silent => {
            // Until the client has had enough, or the server stops.
            while io::Read::read(&mut stream, &mut [0; 64]).is_ok_and(|num_bytes| num_bytes > 0) {}
            Ok(())
        }
    }
}
