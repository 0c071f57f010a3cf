//! The load phase: every record is set once, pipelined over all connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Fleet;
use crate::interrupt;
use crate::keys::KeyTable;
use crate::poller::NO_EVENT;
use crate::protocol::{Parsed, Records, Reply, Store};
use crate::stall::STALL_LIMIT;

/// Bytes of requests that one connection has under way.
const PIPELINE_BYTES: usize = 32 * 1024;
/// A server that pages may refuse for a moment ("out of memory") while it makes room; this long without one success is a failure.
const REFUSALS_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(2);

/// What the load threads tell each other and the progress bar.
#[derive(Debug, Default)]
pub struct LoadShared {
    pub stored: AtomicU64,
    pub refused: AtomicU64,
    pub stop: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
pub struct Loader<'a> {
    pub fleet: &'a mut Fleet,
    pub keys: &'a KeyTable,
    pub form: Records,
    /// This thread sets the keys `first`, `first + step`, ... below `records`.
    pub first: u64,
    pub step: u64,
    pub records: u64,
    /// No faster than this, if given.
    pub records_per_second: Option<f64>,
}

impl Loader<'_> {
    pub fn run(self, shared: &LoadShared) -> Result<()> {
        let Fleet { connections, poller } = self.fleet;
        let batch = (PIPELINE_BYTES / self.form.value_sizes.mean()).clamp(1, 64);
        let mut next = self.first;
        let started = Instant::now();
        let is_due = |next: u64| {
            let due = |rate: f64| (next - self.first) as f64 / self.step as f64 <= started.elapsed().as_secs_f64() * rate;
            self.records_per_second.is_none_or(due)
        };
        // Keys that the server refused, to be sent again.
        let mut again: Vec<u64> = Vec::new();
        let mut under_way: Vec<std::collections::VecDeque<u64>> = vec![Default::default(); connections.len()];
        let mut idle: Vec<usize> = (0..connections.len()).collect();
        let mut events = vec![NO_EVENT; connections.len()];
        let mut last_success = Instant::now();
        let mut last_answer = Instant::now();
        let mut last_refusal = String::new();

        loop {
            if shared.stop.load(Ordering::Relaxed) || interrupt::requested() {
                return interrupt::check();
            }
            if idle.len() == connections.len() {
                // Nobody owed an answer until now.
                last_answer = Instant::now();
            }
            while let Some(token) = idle.pop() {
                let connection = &mut connections[token];
                for _ in 0..batch {
                    let key = match again.pop() {
                        Some(key) => key,
                        None if next < self.records && is_due(next) => {
                            next += self.step;
                            next - self.step
                        }
                        None => break,
                    };
                    let version = self.keys.write_sent(key);
                    self.form.append_write(Store::Load, key, version, &mut connection.output);
                    under_way[token].push_back(key);
                }
                if connection.output.is_empty() {
                    idle.push(token);
                    break;
                }
                connection.flush(poller, token).context("the server closed a connection while records were loaded")?;
            }
            if idle.len() == connections.len() && next >= self.records {
                return Ok(());
            }

            // With records that are not due yet there is nobody to wait for.
            let patience = if next < self.records && !idle.is_empty() { Duration::from_millis(1) } else { Duration::from_millis(200) };
            let mut refused = 0;
            for event in poller.wait(&mut events, patience)? {
                let token = event.u64 as usize;
                let connection = &mut connections[token];
                connection
                    .flush(poller, token)
                    .and_then(|()| connection.receive())
                    .context("the server closed a connection while records were loaded")?;
                last_answer = Instant::now();
                let mut used = 0;
                loop {
                    let (stored, length) = match self.form.parse_write(Store::Load, &connection.input()[used..]) {
                        Parsed::Incomplete => break,
                        Parsed::Complete(Reply::Refused(text), length) => {
                            last_refusal = String::from_utf8_lossy(text).into_owned();
                            (false, length)
                        }
                        Parsed::Complete(_, length) => (true, length),
                        Parsed::Garbled => bail!("the server's answer to a write is no {} protocol", self.form.protocol.server()),
                    };
                    used += length;
                    let Some(key) = under_way[token].pop_front() else {
                        bail!("the server answered more requests than it was sent");
                    };
                    self.keys.write_answered(key, stored);
                    if stored {
                        last_success = last_answer;
                        shared.stored.fetch_add(1, Ordering::Relaxed);
                    } else {
                        refused += 1;
                        again.push(key);
                    }
                }
                connection.consume(used);
                if under_way[token].is_empty() && connection.output.is_empty() {
                    idle.push(token);
                }
            }
            if refused > 0 {
                shared.refused.fetch_add(refused, Ordering::Relaxed);
                if last_success.elapsed() > REFUSALS_TIMEOUT {
                    bail!(
                        "the server refuses records for {} s with {last_refusal:?}; give it more memory or load fewer records",
                        REFUSALS_TIMEOUT.as_secs()
                    );
                }
                std::thread::sleep(PAUSE_AFTER_REFUSAL);
            }
            if idle.len() < connections.len() && last_answer.elapsed() > STALL_LIMIT {
                bail!("the server did not answer for {} s while records were loaded", STALL_LIMIT.as_secs());
            }
        }
    }
}
