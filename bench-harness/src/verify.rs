//! Reads every record once and checks it: nothing that was loaded may be missing or wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Fleet;
use crate::interrupt;
use crate::keys::Legal;
use crate::poller::NO_EVENT;
use crate::protocol::{NUM_FIELDS, Parsed, Records, Reply};
use crate::stall::STALL_LIMIT;

/// What the threads found so far.
#[derive(Debug, Default)]
pub struct VerifyShared {
    pub read: AtomicU64,
    missing: AtomicU64,
    wrong: AtomicU64,
    refused: AtomicU64,
    first: Mutex<Option<String>>,
    pub stop: AtomicBool,
}

/// What the records are at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub records: u64,
    pub missing: u64,
    pub wrong: u64,
    /// The server answered with an error.
    pub refused: u64,
    /// An example of what is not as it should be.
    pub first: Option<String>,
}

impl VerifyShared {
    pub fn into_verified(self) -> Verified {
        let number = |count: AtomicU64| count.into_inner();
        Verified {
            records: number(self.read),
            missing: number(self.missing),
            wrong: number(self.wrong),
            refused: number(self.refused),
            first: self.first.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn count(&self, kind: &AtomicU64, describe: impl FnOnce() -> String) {
        kind.fetch_add(1, Ordering::Relaxed);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(describe);
    }
}

#[derive(Debug)]
pub struct Verifier<'a> {
    pub fleet: &'a mut Fleet,
    pub keys: &'a dyn Legal,
    pub form: Records,
    /// This thread reads the keys `first`, `first + step`, ... below `end`.
    pub first: u64,
    pub step: u64,
    pub end: u64,
}

impl Verifier<'_> {
    pub fn run(self, shared: &VerifyShared) -> Result<()> {
        const CLOSED: &str = "the server closed a connection while records were verified";
        let Self { fleet: Fleet { connections, poller }, keys, form, first, step, end } = self;
        let mut next = first;
        let mut idle: Vec<usize> = (0..connections.len()).collect();
        let mut pending: Vec<u64> = vec![0; connections.len()];
        let mut events = vec![NO_EVENT; connections.len()];
        let mut name = Vec::new();
        let mut last_answer = Instant::now();
        loop {
            if shared.stop.load(Ordering::Relaxed) || interrupt::requested() {
                return interrupt::check();
            }
            while next < end
                && let Some(token) = idle.pop()
            {
                pending[token] = next;
                form.append_read(next, field_of(next), &mut connections[token].output);
                connections[token].flush(poller, token).context(CLOSED)?;
                next += step;
            }
            if idle.len() == connections.len() {
                return Ok(());
            }
            for event in poller.wait(&mut events, Duration::from_millis(100))? {
                let token = event.u64 as usize;
                let (connection, key) = (&mut connections[token], pending[token]);
                connection.flush(poller, token).and_then(|()| connection.receive()).context(CLOSED)?;
                let length = match form.parse_read(connection.input()) {
                    Parsed::Incomplete => continue,
                    Parsed::Garbled => bail!("the server's answer to a read is no {} protocol", form.protocol.server()),
                    Parsed::Complete(reply, length) => {
                        check(keys, &form, key, &mut name, &reply, shared);
                        length
                    }
                };
                connection.consume(length);
                last_answer = Instant::now();
                shared.read.fetch_add(1, Ordering::Relaxed);
                idle.push(token);
            }
            if last_answer.elapsed() > STALL_LIMIT {
                bail!("the server did not answer for {} s while records were verified", STALL_LIMIT.as_secs());
            }
        }
    }
}

/// Where one field of a record is read: not the same of all records.
fn field_of(key: u64) -> u8 {
    (key % u64::from(NUM_FIELDS)) as u8
}

fn check(keys: &dyn Legal, form: &Records, key: u64, scratch: &mut Vec<u8>, reply: &Reply<'_>, shared: &VerifyShared) {
    match reply {
        Reply::Value(value) => {
            let version = form.version(key, field_of(key), value, scratch);
            if !version.is_some_and(|version| keys.is_legal_now(key, version)) {
                shared.count(&shared.wrong, || format!("key {key}: version {version:?}, {}", value.describe()));
            }
        }
        Reply::Refused(text) => shared.count(&shared.refused, || format!("key {key}: {}", String::from_utf8_lossy(text))),
        Reply::Miss | Reply::Stored | Reply::Names(_) => shared.count(&shared.missing, || format!("key {key} is not there")),
    }
}
