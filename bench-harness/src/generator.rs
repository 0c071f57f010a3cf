//! The load generator as a whole: connections spread over threads, one table of keys, phases in turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::client::Fleet;
use crate::drive::{Driver, Phase, RunShared};
use crate::endpoint::Endpoint;
use crate::interrupt;
use crate::keys::{Between, KeyTable, Legal};
use crate::load::{LoadShared, Loader};
use crate::outcome::{Boundary, Outcome, Sample, TimeLine, process_cpu};
use crate::pace::Pace;
use crate::progress::Progress;
use crate::protocol::{Protocol, Records};
use crate::random::Random;
use crate::tally::Tally;
use crate::value_sizes::ValueSizes;
use crate::values::ValueKind;
use crate::verify::{Verified, Verifier, VerifyShared};
use crate::ycsb::{Distribution, KEY_LENGTH_MAX, KeyChooser, Workload};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub records: u64,
    pub value_sizes: ValueSizes,
    pub value_kind: ValueKind,
    pub connections: usize,
    pub client_threads: usize,
    pub protocol: Protocol,
}

impl Shape {
    /// The records as they travel.
    pub fn form(&self) -> Records {
        Records { protocol: self.protocol, value_sizes: self.value_sizes, value_kind: self.value_kind }
    }
}

/// The probe reads so few keys that each is read several times a second, and stays in memory.
const PROBE_KEYS: u64 = 64;
const PROBE_CONNECTIONS: usize = 4;

/// When to begin measuring: after `least`, and once `operations` were done of this kind, but not later than after `most`.
///
/// A time alone would leave a slower server further from its steady state. Operations of the workloads right before this one on the same server count
/// if they ask for the same records and write as well: what is in memory then, and how much of it is dirty, is as this workload leaves it.
#[derive(Debug, Clone, Copy)]
pub struct WarmUp {
    pub least: Duration,
    pub most: Duration,
    pub operations: u64,
}

impl WarmUp {
    pub fn of_time(time: Duration) -> Self {
        Self { least: time, most: time, operations: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct TimedRun {
    pub workload: Workload,
    /// Instead of the workload's own.
    pub distribution: Option<Distribution>,
    pub warm_up: WarmUp,
    pub duration: Duration,
    /// An open loop at this many operations a second instead of a closed loop; see `pace`.
    pub due_per_second: Option<f64>,
    /// So many reads a second of a few keys that stay in memory, beside the load, by connections of their own: an open loop.
    pub probe_per_second: Option<f64>,
    pub seed: u64,
}

impl TimedRun {
    pub fn distribution(&self) -> Distribution {
        self.distribution.unwrap_or(self.workload.distribution())
    }
}

#[derive(Debug)]
pub struct Generator {
    endpoint: Endpoint,
    shape: Shape,
    keys: Arc<KeyTable>,
    fleets: Vec<Fleet>,
    /// Connected when it is needed first.
    probe: Option<Fleet>,
    /// Of the timed runs of this kind so far, warm-ups included.
    operations: u64,
    kind: Option<(Distribution, bool)>,
}

impl Generator {
    pub fn connect(endpoint: &Endpoint, shape: Shape) -> Result<Self> {
        let threads = shape.client_threads;
        if threads == 0 || shape.connections < threads {
            bail!("{} connections cannot be spread over {threads} client threads; give at least one connection a thread", shape.connections);
        }
        let fleets = (0..threads)
            .map(|index| {
                let count = shape.connections / threads + usize::from(index < shape.connections % threads);
                Fleet::connect(endpoint, count, input_capacity(&shape))
            })
            .collect::<Result<_>>()?;
        Ok(Self { endpoint: endpoint.clone(), shape, keys: Arc::new(KeyTable::new(shape.records)), fleets, probe: None, operations: 0, kind: None })
    }

    /// Sets every record once.
    pub fn load(&mut self, label: &str) -> Result<()> {
        self.load_slowly(label, None)
    }

    /// Sets every record once, no faster than `records_per_second` if that is given.
    pub fn load_slowly(&mut self, label: &str, records_per_second: Option<f64>) -> Result<()> {
        let shared = LoadShared::default();
        let mut progress = Progress::start(label, self.shape.records);
        let (keys, shape) = (&*self.keys, self.shape);
        let step = self.fleets.len() as u64;
        let started = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&mut self.fleets)
                .map(|(first, fleet)| {
                    let loader = Loader {
                        fleet,
                        keys,
                        form: shape.form(),
                        first,
                        step,
                        records: shape.records,
                        records_per_second: records_per_second.map(|rate| rate / step as f64),
                    };
                    let shared = &shared;
                    scope.spawn(move || {
                        let result = loader.run(shared);
                        if result.is_err() {
                            shared.stop.store(true, Ordering::Relaxed);
                        }
                        result
                    })
                })
                .collect();
            while !threads.iter().all(ScopedJoinHandle::is_finished) {
                std::thread::sleep(Duration::from_millis(50));
                let stored = shared.stored.load(Ordering::Relaxed);
                progress.update(stored, &rate(stored, started.elapsed(), "records"));
            }
            threads.into_iter().try_for_each(join)
        })?;
        interrupt::check()?;
        let refused = match shared.refused.load(Ordering::Relaxed) {
            0 => String::new(),
            count => format!(", {count} refused and sent again"),
        };
        progress.finish(&format!("{}{refused}", rate(self.shape.records, started.elapsed(), "records")));
        Ok(())
    }

    /// Reads and checks every record that exists.
    pub fn verify(&mut self, label: &str) -> Result<Verified> {
        verify(label, &mut self.fleets, &*self.keys, self.shape.form(), self.keys.existing())
    }

    pub fn keys(&self) -> Arc<KeyTable> {
        Arc::clone(&self.keys)
    }

    /// One warm-up and one measured phase without a pause between them.
    pub fn run(&mut self, label: &str, run: TimedRun, mut at_boundary: impl FnMut(Boundary) -> Result<Sample>) -> Result<Outcome> {
        let shared = RunShared::new();
        let chooser = KeyChooser::new(run.distribution(), self.keys.existing(), 0);
        let total_ms = (run.warm_up.most + run.duration).as_millis() as u64;
        let mut progress = Progress::start(label, total_ms);
        if run.probe_per_second.is_some() && self.probe.is_none() {
            self.probe = Some(Fleet::connect(&self.endpoint, PROBE_CONNECTIONS, input_capacity(&self.shape))?);
        }
        let (keys, shape) = (&*self.keys, self.shape);
        let count = self.fleets.len() as u64;
        let kind = Some((run.distribution(), run.workload.has_writes()));
        if self.kind != kind {
            (self.kind, self.operations) = (kind, 0);
        }
        let operations_before = self.operations;
        let started = Instant::now();

        let outcome = std::thread::scope(|scope| {
            let driver = |index: u64| Driver {
                keys,
                records: shape.form(),
                workload: run.workload,
                chooser: chooser.clone().for_thread(index, count),
                is_probe: false,
                pace: run.due_per_second.map(|rate| Pace::new(started, rate, index, count)),
                random: Random::new(run.seed.wrapping_mul(1_000).wrapping_add(index)),
                tally: Tally::new(),
                key_name: Vec::with_capacity(KEY_LENGTH_MAX),
            };
            let threads: Vec<_> = (0..).zip(&mut self.fleets).map(|(index, fleet)| scope.spawn(drive(driver(index), fleet, &shared))).collect();
            let probe = run.probe_per_second.zip(self.probe.as_mut()).map(|(rate, fleet)| {
                let chooser = KeyChooser::few(PROBE_KEYS, shape.records);
                let pace = Some(Pace::new(started, rate, 0, 1));
                scope.spawn(drive(Driver { workload: Workload::C, chooser, is_probe: true, pace, ..driver(count) }, fleet, &shared))
            });

            let mut sleep_until = |end: Instant, skipped: Duration| -> Result<()> {
                interrupt::check()?;
                let left = end.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(Duration::from_millis(100)));
                let completed = shared.completed.load(Ordering::Relaxed);
                progress.update((started.elapsed() + skipped).as_millis() as u64, &rate(completed, started.elapsed(), "ops"));
                Ok(())
            };
            let failed = || shared.failed.load(Ordering::Relaxed);
            let operations = || operations_before + shared.completed.load(Ordering::Relaxed);
            // Whatever happens here, the threads are told to stop, or the scope would wait for ever.
            let measured = (|| {
                let (least, most) = (started + run.warm_up.least, started + run.warm_up.most);
                while !failed() {
                    let end = if operations() < run.warm_up.operations { most } else { least };
                    if Instant::now() >= end {
                        break;
                    }
                    sleep_until(end, Duration::ZERO)?;
                }
                let sample = if failed() { Sample::default() } else { at_boundary(Boundary::Start)? };
                let measure_started = shared.enter(Phase::Measure);
                // Those of the warm-up do not count.
                let _ = shared.pauses.take_longest(measure_started);
                let (cpu_before, warm_up_operations) = (process_cpu(), operations());
                let mut time_line = TimeLine::start(measure_started, warm_up_operations, sample);
                let warm_up = measure_started - started;
                let end = measure_started + run.duration;
                while !failed() && Instant::now() < end {
                    let tick = time_line.next_tick(end);
                    sleep_until(tick.unwrap_or(end), run.warm_up.most.saturating_sub(warm_up))?;
                    if tick.is_some_and(|tick| Instant::now() >= tick) {
                        let sample = at_boundary(Boundary::Tick)?;
                        let now = Instant::now();
                        time_line.add(now, operations(), shared.pauses.take_longest(now), sample);
                    }
                }
                if failed() {
                    // Its cause is a thread's error. The server is not asked any more: it may be stuck.
                    bail!("a load thread failed");
                }
                let (stopped, generator_cpu) = (shared.enter(Phase::Stop), process_cpu() - cpu_before);
                let operations = operations();
                let longest_pause = shared.pauses.take_longest(stopped);
                time_line.add(stopped, operations, longest_pause, at_boundary(Boundary::End)?);
                let time_line = time_line.into_moments();
                let measured = stopped - measure_started;
                Ok(Outcome { tally: Tally::new(), probe: None, measured, warm_up, warm_up_operations, time_line, generator_cpu })
            })();
            shared.enter(Phase::Stop);
            let mut tally = Tally::new();
            let mut failure = None;
            for thread in threads {
                match join(thread) {
                    Ok(part) => tally.merge(part),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            let probe = match probe.map(join).transpose() {
                Ok(probe) => probe,
                Err(error) => {
                    failure = failure.or(Some(error));
                    None
                }
            };
            interrupt::check()?;
            match failure {
                Some(error) => Err(error),
                None => measured.map(|outcome| Outcome { tally, probe, ..outcome }),
            }
        });
        self.operations += shared.completed.load(Ordering::Relaxed);
        let outcome = outcome?;
        progress.finish(&format!("{:.0} ops/s, p99 {:.1} ms", outcome.operations_per_second(), outcome.tally.latency().p99 / 1_000.0));
        Ok(outcome)
    }
}

/// What a load thread does. Its error ends the run.
fn drive<'s>(driver: Driver<'s>, fleet: &'s mut Fleet, shared: &'s RunShared) -> impl FnOnce() -> Result<Tally> + Send + 's {
    move || driver.run(fleet, shared).inspect_err(|_| shared.failed.store(true, Ordering::Relaxed))
}

fn input_capacity(shape: &Shape) -> usize {
    shape.value_sizes.largest() + 1024
}

/// Reads and checks every record on a server that has what could be read on another one at a moment.
pub fn verify_dump(label: &str, endpoint: &Endpoint, shape: &Shape, moment: &Between) -> Result<Verified> {
    let fleet = Fleet::connect(endpoint, shape.connections, input_capacity(shape))?;
    verify(label, &mut [fleet], moment, shape.form(), moment.existing)
}

fn verify(label: &str, fleets: &mut [Fleet], keys: &dyn Legal, form: Records, end: u64) -> Result<Verified> {
    let shared = VerifyShared::default();
    let mut progress = Progress::start(label, end);
    let step = fleets.len() as u64;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&mut *fleets)
            .map(|(first, fleet)| {
                let (verifier, shared) = (Verifier { fleet, keys, form, first, step, end }, &shared);
                scope.spawn(move || verifier.run(shared).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed)))
            })
            .collect();
        while !threads.iter().all(ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
            let read = shared.read.load(Ordering::Relaxed);
            progress.update(read, &rate(read, started.elapsed(), "records"));
        }
        threads.into_iter().try_for_each(join)
    })?;
    interrupt::check()?;
    progress.finish(&rate(end, started.elapsed(), "records"));
    Ok(shared.into_verified())
}

fn rate(count: u64, elapsed: Duration, unit: &str) -> String {
    format!("{:.0} {unit}/s", count as f64 / elapsed.as_secs_f64().max(1e-3))
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| bail!("a load thread ended unexpectedly; this is a defect"))
}
