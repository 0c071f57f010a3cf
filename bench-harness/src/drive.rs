//! The timed phase: a closed loop, one operation at a time on each connection.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{Connection, Fleet};
use crate::keys::KeyTable;
use crate::poller::NO_EVENT;
use crate::protocol::{Parsed, Reply, Store, append_get, append_store, parse_get_reply, parse_store_reply};
use crate::random::Random;
use crate::tally::Tally;
use crate::values::verify_value;
use crate::ycsb::{KeyChooser, Operation, Workload, append_key};

const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    WarmUp,
    Measure,
    Stop,
}

/// What the timing thread tells the load threads, and they it.
#[derive(Debug)]
pub struct RunShared {
    phase: AtomicU8,
    pub completed: AtomicU64,
    pub failed: AtomicBool,
}

impl RunShared {
    pub fn new() -> Self {
        Self { phase: AtomicU8::new(Phase::WarmUp as u8), completed: AtomicU64::new(0), failed: AtomicBool::new(false) }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }
}

/// The operation that a connection waits for.
#[derive(Debug, Clone, Copy)]
struct Pending {
    operation: Operation,
    key: u64,
    awaits: Awaits,
    started: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Awaits {
    /// The reply to a get; versions below `floor` were overwritten before it was sent.
    Value { floor: u32 },
    /// The reply to a set or add.
    Stored,
}

#[derive(Debug)]
pub struct Driver<'a> {
    pub keys: &'a KeyTable,
    pub value_size: usize,
    pub workload: Workload,
    pub chooser: KeyChooser,
    pub random: Random,
    pub tally: Tally,
    /// Scratch space for a key name.
    pub key_name: Vec<u8>,
}

impl Driver<'_> {
    pub fn run(mut self, fleet: &mut Fleet, shared: &RunShared) -> Result<Tally> {
        const CLOSED: &str = "the server closed a connection";
        let Fleet { connections, poller } = fleet;
        let mut pending = Vec::with_capacity(connections.len());
        let start = Instant::now();
        for (token, connection) in connections.iter_mut().enumerate() {
            pending.push(Some(self.begin(connection, start)));
            connection.flush(poller, token).context(CLOSED)?;
        }
        let mut in_flight = connections.len();
        let mut events = vec![NO_EVENT; connections.len()];
        let mut measuring = false;
        let mut stopped_counting = None;
        let mut last_answer = start;

        while in_flight > 0 {
            let ready = poller.wait(&mut events, Duration::from_millis(100))?;
            let stopping = shared.is(Phase::Stop);
            if stopping && stopped_counting.is_none() {
                stopped_counting = Some(self.tally.clone());
            }
            if !measuring && shared.is(Phase::Measure) {
                measuring = true;
                self.tally.restart();
            }
            if ready.is_empty() && last_answer.elapsed() > SILENCE_TIMEOUT {
                bail!("the server did not answer {in_flight} requests for {} s", SILENCE_TIMEOUT.as_secs());
            }
            let mut completed = 0;
            for event in ready {
                let token = event.u64 as usize;
                let connection = &mut connections[token];
                connection.flush(poller, token).and_then(|()| connection.receive()).context(CLOSED)?;
                let Some(operation) = pending[token] else {
                    continue;
                };
                let Some(next) = self.advance(operation, connection)? else {
                    continue;
                };
                last_answer = Instant::now();
                let next = match next {
                    Step::SameOperation(pending) => pending,
                    end @ (Step::Done | Step::Refused) => {
                        // A refusal is quick and no work: as an operation it would flatter a server that is out of memory.
                        if matches!(end, Step::Done) {
                            completed += 1;
                            self.tally.record(operation.operation, last_answer - operation.started);
                        }
                        if stopping {
                            pending[token] = None;
                            in_flight -= 1;
                            continue;
                        }
                        self.begin(connection, last_answer)
                    }
                };
                pending[token] = Some(next);
                connection.flush(poller, token).context(CLOSED)?;
            }
            shared.completed.fetch_add(completed, Ordering::Relaxed);
        }
        // Answers that came after the end count only for correctness.
        let drained = self.tally;
        Ok(match stopped_counting {
            None => drained,
            Some(mut counted) => {
                counted.wrong_values = drained.wrong_values;
                counted.first_wrong_value = drained.first_wrong_value;
                counted
            }
        })
    }

    /// Draws the next operation and writes its first request.
    #[inline]
    fn begin(&mut self, connection: &mut Connection, started: Instant) -> Pending {
        let operation = self.workload.next_operation(&mut self.random);
        let key = match operation {
            Operation::Insert => self.keys.insert_sent(),
            _ => self.chooser.next(self.keys.existing(), &mut self.random),
        };
        let awaits = match operation {
            Operation::Read | Operation::ReadModifyWrite => {
                append_get(key, &mut connection.output);
                let floor = self.keys.read_sent(key);
                Awaits::Value { floor }
            }
            Operation::Update => self.write(Store::Set, key, connection),
            Operation::Insert => self.write(Store::Add, key, connection),
        };
        Pending { operation, key, awaits, started }
    }

    #[inline]
    fn write(&self, store: Store, key: u64, connection: &mut Connection) -> Awaits {
        let version = self.keys.write_sent(key);
        append_store(store, key, version, self.value_size, &mut connection.output);
        Awaits::Stored
    }

    /// Handles the reply if it is complete.
    #[inline]
    fn advance(&mut self, pending: Pending, connection: &mut Connection) -> Result<Option<Step>> {
        match pending.awaits {
            Awaits::Value { floor } => self.advance_get(pending, floor, connection),
            Awaits::Stored => self.advance_store(pending, connection),
        }
    }

    #[inline]
    fn advance_get(&mut self, pending: Pending, floor: u32, connection: &mut Connection) -> Result<Option<Step>> {
        let (found, length) = match parse_get_reply(connection.input()) {
            Parsed::Incomplete => return Ok(None),
            Parsed::Garbled => bail!("the server's answer to a get is no memcached protocol"),
            Parsed::Complete(Reply::Value { key, data }, length) => {
                self.check_value(pending.key, floor, key, data);
                (true, length)
            }
            Parsed::Complete(Reply::Refused(text), length) => {
                self.tally.server_error(text);
                connection.consume(length);
                return Ok(Some(Step::Refused));
            }
            Parsed::Complete(Reply::Miss | Reply::Stored, length) => (false, length),
        };
        connection.consume(length);
        self.tally.reads += 1;
        self.tally.hits += u64::from(found);
        // As in YCSB, the write of a read-modify-write is left out when there was nothing to modify.
        if found && pending.operation == Operation::ReadModifyWrite {
            let awaits = self.write(Store::Set, pending.key, connection);
            return Ok(Some(Step::SameOperation(Pending { awaits, ..pending })));
        }
        Ok(Some(Step::Done))
    }

    #[inline]
    fn check_value(&mut self, key: u64, floor: u32, name: &[u8], data: &[u8]) {
        self.key_name.clear();
        append_key(key, &mut self.key_name);
        let version = verify_value(key, self.value_size, data);
        let legal = name == self.key_name.as_slice() && version.is_some_and(|version| self.keys.is_legal(key, floor, version));
        if !legal {
            self.tally.wrong_value(|| {
                let name = String::from_utf8_lossy(name);
                let start = String::from_utf8_lossy(&data[..data.len().min(32)]);
                match version {
                    Some(version) => format!("key {key}: version {version} of {name} was read, but versions before {floor} were overwritten"),
                    None => format!("key {key}: {name} holds {} bytes, starting with {start:?}, that nobody wrote", data.len()),
                }
            });
        }
    }

    #[inline]
    fn advance_store(&mut self, pending: Pending, connection: &mut Connection) -> Result<Option<Step>> {
        let (stored, length) = match parse_store_reply(connection.input()) {
            Parsed::Incomplete => return Ok(None),
            Parsed::Garbled => bail!("the server's answer to a set is no memcached protocol"),
            Parsed::Complete(Reply::Refused(text), length) => {
                self.tally.server_error(text);
                (false, length)
            }
            Parsed::Complete(_, length) => (true, length),
        };
        connection.consume(length);
        self.keys.write_answered(pending.key, stored);
        if pending.operation == Operation::Insert {
            self.keys.insert_answered(pending.key);
        }
        Ok(Some(if stored { Step::Done } else { Step::Refused }))
    }
}

/// What a complete reply leads to.
#[derive(Debug)]
enum Step {
    /// The second half of a read-modify-write.
    SameOperation(Pending),
    Done,
    /// The server answered with an error.
    Refused,
}
