//! The timed phase: one operation at a time on each connection, in a closed loop or when they are due.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{Connection, Fleet};
use crate::interrupt;
use crate::keys::KeyTable;
use crate::pace::Pace;
use crate::poller::{NO_EVENT, Poller};
use crate::protocol::{NUM_FIELDS, Parsed, Records, Reply, Store, Value};
use crate::random::Random;
use crate::scan::Scanned;
use crate::stall::STALL_LIMIT;
use crate::tally::Tally;
use crate::ycsb::{KeyChooser, Operation, SCAN_LENGTH_MAX, Workload};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Measure,
    Stop,
}

/// What the timing thread tells the load threads, and they it.
#[derive(Debug)]
pub struct RunShared {
    measuring_since: OnceLock<Instant>,
    stopped_at: OnceLock<Instant>,
    pub completed: AtomicU64,
    pub failed: AtomicBool,
    pub pauses: Pauses,
}

/// How long no operation completed, on any connection.
#[derive(Debug)]
pub struct Pauses {
    since: Instant,
    /// Of the last completion, after `since`.
    last_ns: AtomicU64,
    longest_ns: AtomicU64,
}

impl Pauses {
    fn new() -> Self {
        Self { since: Instant::now(), last_ns: AtomicU64::new(0), longest_ns: AtomicU64::new(0) }
    }

    fn after_start_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Operations completed now.
    #[inline]
    pub fn completed(&self, now: Instant) {
        let now_ns = self.after_start_ns(now);
        let last_ns = self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        self.longest_ns.fetch_max(now_ns.saturating_sub(last_ns), Ordering::Relaxed);
    }

    /// The longest pause that ended, or still lasts, since this was asked the last time.
    pub fn take_longest(&self, now: Instant) -> Duration {
        let lasting_ns = self.after_start_ns(now).saturating_sub(self.last_ns.load(Ordering::Relaxed));
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::Relaxed).max(lasting_ns))
    }
}

impl RunShared {
    pub fn new() -> Self {
        Self {
            measuring_since: OnceLock::new(),
            stopped_at: OnceLock::new(),
            completed: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            pauses: Pauses::new(),
        }
    }

    /// When the phase was first entered: now, or before.
    pub fn enter(&self, phase: Phase) -> Instant {
        let time = match phase {
            Phase::Measure => &self.measuring_since,
            Phase::Stop => &self.stopped_at,
        };
        *time.get_or_init(Instant::now)
    }
}

/// The operation that a connection waits for.
#[derive(Debug, Clone, Copy)]
struct Pending {
    operation: Operation,
    key: u64,
    awaits: Awaits,
    /// In an open loop: when it was due.
    started: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Awaits {
    /// The reply to a read; versions below `floor` were overwritten before it was sent.
    Value { floor: u32, field: u8 },
    /// The reply to a write.
    Stored(Store),
    /// The names of the keys in a range.
    Names,
    /// The replies to the reads of those keys.
    Scanned,
}

#[derive(Debug)]
pub struct Driver<'a> {
    pub keys: &'a KeyTable,
    pub records: Records,
    pub workload: Workload,
    pub chooser: KeyChooser,
    /// It is there to see how long single requests take beside others' load, and its operations are not part of that.
    pub is_probe: bool,
    /// Absent in a closed loop.
    pub pace: Option<Pace>,
    pub random: Random,
    pub tally: Tally,
    /// Scratch space for a key name.
    pub key_name: Vec<u8>,
}

const CLOSED: &str = "the server closed a connection";

/// What each connection of a thread does.
#[derive(Debug, Default)]
struct Work {
    pending: Vec<Option<Pending>>,
    scanned: Vec<Scanned>,
    /// Connections without an operation, the longest idle one first.
    idle: VecDeque<usize>,
}

impl Work {
    fn in_flight(&self) -> usize {
        self.pending.len() - self.idle.len()
    }
}

impl Driver<'_> {
    pub fn run(mut self, fleet: &mut Fleet, shared: &RunShared) -> Result<Tally> {
        let Fleet { connections, poller } = fleet;
        if self.pace.is_some() {
            // The kernel would wake this thread up to 50 us late to save wake-ups.
            // SAFETY: this option takes a number. If it fails, latencies are a little higher.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        }
        if self.is_probe {
            // It is to see how long the server takes, and not how long it waits for a CPU that the load's threads hold. It uses hardly any.
            // SAFETY: this call takes numbers. Without root it fails, and latencies are higher, for all servers alike.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
        }
        let count = connections.len();
        let mut work = Work { pending: vec![None; count], scanned: vec![Scanned::default(); count], idle: (0..count).collect() };
        let mut events = vec![NO_EVENT; connections.len()];
        let mut measuring_since = None;
        let mut counted = None;
        let mut last_answer = Instant::now();

        loop {
            if measuring_since.is_none()
                && let Some(&since) = shared.measuring_since.get()
            {
                measuring_since = Some(since);
                self.tally.restart();
                if let Some(pace) = &mut self.pace {
                    pace.restart(since);
                }
            }
            let stopped_at = shared.stopped_at.get().copied();
            match stopped_at {
                None => self.begin_due(connections, poller, &mut work, &mut last_answer)?,
                Some(end) if counted.is_none() => counted = Some(self.count_at(end, measuring_since, &work)),
                Some(_) => {}
            }
            // After a signal nobody wants the result, and a stuck server would keep us waiting.
            if stopped_at.is_some() && (work.in_flight() == 0 || interrupt::requested()) {
                break;
            }
            let ready = poller.wait(&mut events, self.patience(&work))?;
            if ready.is_empty() && work.in_flight() > 0 && last_answer.elapsed() > STALL_LIMIT {
                bail!("the server did not answer {} requests for {} s", work.in_flight(), STALL_LIMIT.as_secs());
            }
            let mut completed = 0;
            for event in ready {
                let token = event.u64 as usize;
                let connection = &mut connections[token];
                connection.flush(poller, token).and_then(|()| connection.receive()).context(CLOSED)?;
                let Some(operation) = work.pending[token] else {
                    continue;
                };
                let Some(next) = self.advance(operation, connection, &mut work.scanned[token])? else {
                    continue;
                };
                last_answer = Instant::now();
                work.pending[token] = match next {
                    Step::SameOperation(pending) => Some(pending),
                    end @ (Step::Done | Step::Refused) => {
                        // A refusal is quick and no work: as an operation it would flatter a server that is out of memory.
                        if matches!(end, Step::Done) {
                            completed += 1;
                            self.record(operation, last_answer, measuring_since);
                        }
                        let next = if stopped_at.is_some() { None } else { self.next_due(last_answer) };
                        next.map(|due| self.begin(connection, due))
                    }
                };
                match work.pending[token] {
                    Some(_) => connection.flush(poller, token).context(CLOSED)?,
                    None => work.idle.push_back(token),
                }
            }
            if completed > 0 && !self.is_probe {
                shared.completed.fetch_add(completed, Ordering::Relaxed);
                shared.pauses.completed(last_answer);
            }
        }
        // Answers that came after the end count only for correctness.
        let drained = self.tally;
        Ok(match counted {
            None => drained,
            Some(mut counted) => {
                counted.wrong_values = drained.wrong_values;
                counted.first_wrong_value = drained.first_wrong_value;
                counted
            }
        })
    }

    /// When an operation that can begin now was due.
    #[inline]
    fn next_due(&mut self, now: Instant) -> Option<Instant> {
        match &mut self.pace {
            None => Some(now),
            Some(pace) => pace.take(now),
        }
    }

    /// Begins operations on idle connections: at once in a closed loop, those that are due in an open loop.
    #[inline]
    fn begin_due(&mut self, connections: &mut [Connection], poller: &Poller, work: &mut Work, last_answer: &mut Instant) -> Result<()> {
        while let Some(&token) = work.idle.front() {
            let now = Instant::now();
            let Some(due) = self.next_due(now) else {
                break;
            };
            if work.in_flight() == 0 {
                // Nobody owed an answer until now.
                *last_answer = now;
            }
            work.idle.pop_front();
            work.pending[token] = Some(self.begin(&mut connections[token], due));
            connections[token].flush(poller, token).context(CLOSED)?;
        }
        Ok(())
    }

    /// How long to wait for answers before there is something else to do.
    #[inline]
    fn patience(&self, work: &Work) -> Duration {
        const LOOK_FOR_PHASE: Duration = Duration::from_millis(100);
        match &self.pace {
            Some(pace) if !work.idle.is_empty() => pace.next_due().saturating_duration_since(Instant::now()).min(LOOK_FOR_PHASE),
            _ => LOOK_FOR_PHASE,
        }
    }

    #[inline]
    fn record(&mut self, operation: Pending, now: Instant, measuring_since: Option<Instant>) {
        if self.pace.is_some() && measuring_since.is_some_and(|since| operation.started < since) {
            return;
        }
        self.tally.record(operation.operation, now - operation.started);
    }

    /// The tally at the end. In an open loop it has the operations that were due and are not done, too.
    fn count_at(&mut self, end: Instant, measuring_since: Option<Instant>, work: &Work) -> Tally {
        let mut tally = self.tally.clone();
        let (Some(pace), Some(since)) = (&mut self.pace, measuring_since) else {
            return tally;
        };
        for pending in work.pending.iter().flatten().filter(|pending| pending.started >= since) {
            tally.record_unfinished(pending.operation, end.saturating_duration_since(pending.started), 1);
        }
        for (due, count) in pace.take_rest(end) {
            tally.record_unfinished(self.workload.next_operation(&mut self.random), end.saturating_duration_since(due), count);
        }
        tally
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
                let field = self.random.below(u64::from(NUM_FIELDS)) as u8;
                self.records.append_read(key, field, &mut connection.output);
                let floor = self.keys.read_sent(key);
                Awaits::Value { floor, field }
            }
            Operation::Update => self.write(Store::Update, key, connection),
            Operation::Insert => self.write(Store::Insert, key, connection),
            Operation::Scan => {
                let count = 1 + self.random.below(SCAN_LENGTH_MAX);
                self.records.append_scan(key, count, &mut connection.output);
                Awaits::Names
            }
        };
        Pending { operation, key, awaits, started }
    }

    #[inline]
    fn write(&self, store: Store, key: u64, connection: &mut Connection) -> Awaits {
        let version = self.keys.write_sent(key);
        self.records.append_write(store, key, version, &mut connection.output);
        Awaits::Stored(store)
    }

    /// Handles the reply if it is complete.
    #[inline]
    fn advance(&mut self, pending: Pending, connection: &mut Connection, scanned: &mut Scanned) -> Result<Option<Step>> {
        match pending.awaits {
            Awaits::Value { floor, field } => self.advance_get(pending, floor, field, connection),
            Awaits::Stored(store) => self.advance_store(pending, store, connection),
            Awaits::Names => self.advance_names(pending, connection, scanned),
            Awaits::Scanned => self.advance_scanned(connection, scanned),
        }
    }

    #[inline]
    fn advance_get(&mut self, pending: Pending, floor: u32, field: u8, connection: &mut Connection) -> Result<Option<Step>> {
        let (found, length) = match self.records.parse_read(connection.input()) {
            Parsed::Incomplete => return Ok(None),
            Parsed::Garbled => bail!(self.garbled("a read")),
            Parsed::Complete(Reply::Value(value), length) => {
                self.check_value(pending.key, field, floor, &value);
                (true, length)
            }
            Parsed::Complete(Reply::Refused(text), length) => {
                self.tally.server_error(text);
                connection.consume(length);
                return Ok(Some(Step::Refused));
            }
            Parsed::Complete(_, length) => (false, length),
        };
        connection.consume(length);
        self.tally.reads += 1;
        self.tally.hits += u64::from(found);
        // As in YCSB, the write of a read-modify-write is left out when there was nothing to modify.
        if found && pending.operation == Operation::ReadModifyWrite {
            let awaits = self.write(Store::Update, pending.key, connection);
            return Ok(Some(Step::SameOperation(Pending { awaits, ..pending })));
        }
        Ok(Some(Step::Done))
    }

    fn garbled(&self, request: &str) -> String {
        format!("the server's answer to {request} is no {} protocol", self.records.protocol.server())
    }

    #[inline]
    fn check_value(&mut self, key: u64, field: u8, floor: u32, value: &Value<'_>) {
        let version = self.records.version(key, field, value, &mut self.key_name);
        let legal = version.is_some_and(|version| self.keys.is_legal(key, floor, version));
        if !legal {
            self.tally.wrong_value(|| match version {
                Some(version) => format!("key {key}: version {version} was read, but versions before {floor} were overwritten"),
                None => format!("key {key}: {} were read, that nobody wrote", value.describe()),
            });
        }
    }

    /// As YCSB's binding does: first the names, then a read of each record; here all at once.
    fn advance_names(&mut self, pending: Pending, connection: &mut Connection, scanned: &mut Scanned) -> Result<Option<Step>> {
        let (found, length) = match self.records.parse_scan(connection.input()) {
            Parsed::Incomplete => return Ok(None),
            Parsed::Complete(Reply::Names(names), length) => (scanned.start(names), length),
            Parsed::Complete(Reply::Refused(text), length) => {
                self.tally.server_error(text);
                connection.consume(length);
                return Ok(Some(Step::Refused));
            }
            Parsed::Complete(..) | Parsed::Garbled => bail!(self.garbled("a scan")),
        };
        connection.consume(length);
        if found == 0 {
            // The range begins with a key that is there.
            self.tally.reads += 1;
            return Ok(Some(Step::Done));
        }
        for name in scanned.names() {
            self.records.append_read_named(name, &mut connection.output);
        }
        Ok(Some(Step::SameOperation(Pending { awaits: Awaits::Scanned, ..pending })))
    }

    fn advance_scanned(&mut self, connection: &mut Connection, scanned: &mut Scanned) -> Result<Option<Step>> {
        let mut used = 0;
        while let Some(name) = scanned.awaited() {
            let (found, length) = match self.records.parse_read(&connection.input()[used..]) {
                Parsed::Incomplete => break,
                Parsed::Complete(Reply::Value(value), length) => {
                    self.check_scanned(name, &value);
                    (true, length)
                }
                Parsed::Complete(Reply::Refused(text), length) => {
                    self.tally.server_error(text);
                    scanned.refuse();
                    (false, length)
                }
                Parsed::Complete(_, length) => (false, length),
                Parsed::Garbled => bail!(self.garbled("a read")),
            };
            used += length;
            scanned.advance();
            self.tally.reads += 1;
            self.tally.hits += u64::from(found);
        }
        connection.consume(used);
        Ok(match scanned.awaited() {
            Some(_) => None,
            None if scanned.is_refused() => Some(Step::Refused),
            None => Some(Step::Done),
        })
    }

    /// Scans run beside inserts and not beside updates, so a record's floor is what it was when the read was sent.
    fn check_scanned(&mut self, name: &[u8], value: &Value<'_>) {
        let found = self.records.key_and_version(name, value, &mut self.key_name);
        if !found.is_some_and(|(key, version)| self.keys.is_legal(key, self.keys.read_sent(key), version)) {
            self.tally.wrong_value(|| format!("{}: {} were read, that nobody wrote", String::from_utf8_lossy(name), value.describe()));
        }
    }

    #[inline]
    fn advance_store(&mut self, pending: Pending, store: Store, connection: &mut Connection) -> Result<Option<Step>> {
        let (stored, length) = match self.records.parse_write(store, connection.input()) {
            Parsed::Incomplete => return Ok(None),
            Parsed::Garbled => bail!(self.garbled("a write")),
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
    /// The second half of a read-modify-write or a scan.
    SameOperation(Pending),
    Done,
    /// The server answered with an error.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_those_between_completions_and_the_one_that_lasts() {
        let pauses = Pauses::new();
        let at = |ms| pauses.since + Duration::from_millis(ms);
        for ms in [10, 15, 715, 720] {
            pauses.completed(at(ms));
        }
        // One thread may tell later than another.
        pauses.completed(at(718));
        assert_eq!(pauses.take_longest(at(721)), Duration::from_millis(700));
        pauses.completed(at(730));
        assert_eq!(pauses.take_longest(at(735)), Duration::from_millis(10));
        assert_eq!(pauses.take_longest(at(2_730)), Duration::from_secs(2));
    }
}
