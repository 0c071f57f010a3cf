//! What a timed run gives: counts and latencies, a time line, and the details of its result.

use std::time::{Duration, Instant};

use crate::generator::{Shape, TimedRun};
use crate::results::{Details, Moment};
use crate::tally::Tally;

/// As results name this load generator.
pub const GENERATOR: &str = "lightswap-bench";
/// Length of a piece of the time line.
pub const PIECE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Outcome {
    pub tally: Tally,
    /// Of the reads of keys that stay in memory.
    pub probe: Option<Tally>,
    pub measured: Duration,
    pub warm_up: Duration,
    /// Since the records were loaded, until measuring began.
    pub warm_up_operations: u64,
    pub time_line: Vec<Moment>,
    /// CPU time of this process, all its threads, in the measured time.
    pub generator_cpu: Duration,
}

impl Outcome {
    pub fn operations_per_second(&self) -> f64 {
        self.tally.operations as f64 / self.measured.as_secs_f64().max(1e-9)
    }

    /// Of the load and of the probe.
    pub fn wrong_values(&self) -> u64 {
        self.tally.wrong_values + self.probe.as_ref().map_or(0, |probe| probe.wrong_values)
    }

    /// All details that the load generator knows.
    pub fn details(&self, shape: &Shape, run: &TimedRun) -> Details {
        let tally = &self.tally;
        let of_probe = |count: fn(&Tally) -> u64| self.probe.as_ref().map_or(0, count);
        let first = |example: fn(&Tally) -> &Option<String>| example(tally).clone().or_else(|| example(self.probe.as_ref()?).clone());
        Details {
            records: shape.records,
            value_size_bytes: shape.value_sizes.mean(),
            value_mix: shape.value_sizes.mix(),
            value_kind: shape.value_kind.name().into(),
            data_type: shape.protocol.data_type().name().into(),
            is_indexed: shape.protocol.is_indexed(),
            warm_up_seconds: self.warm_up.as_secs_f64(),
            warm_up_operations: self.warm_up_operations,
            duration_seconds: self.measured.as_secs_f64(),
            operations: tally.operations,
            checked_reads: tally.hits,
            missed_reads: tally.reads - tally.hits,
            unfinished_operations: tally.unfinished,
            latency_by_operation_us: tally.latency_by_operation(),
            latency_buckets: tally.latency_buckets(),
            resident_reads: of_probe(|probe| probe.operations),
            resident_latency_us: self.probe.as_ref().filter(|probe| probe.operations > 0).map(Tally::latency),
            server_errors: tally.server_errors + of_probe(|probe| probe.server_errors),
            first_server_error: first(|tally| &tally.first_server_error),
            first_wrong_value: first(|tally| &tally.first_wrong_value),
            distribution: run.distribution().name().into(),
            generator: GENERATOR.into(),
            due_per_second: run.due_per_second,
            generator_cpu_seconds: self.generator_cpu.as_secs_f64(),
            longest_pause_seconds: self.time_line.iter().map(|moment| moment.longest_pause_seconds).fold(0.0, f64::max),
            time_line: self.time_line.clone(),
            ..Details::default()
        }
    }
}

/// When the generator asks for counters that are read from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// Measuring begins.
    Start,
    /// A piece of the time line is over, and measuring goes on.
    Tick,
    /// Measuring is over.
    End,
}

/// Counters of the server at a boundary.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Since the server started: major faults of the kernel, or swap-ins where the server pages for itself.
    pub faults: u64,
    pub resident_bytes: u64,
}

/// Makes moments of a run of counters that only rise.
#[derive(Debug)]
pub struct TimeLine {
    start: Instant,
    last: Instant,
    operations: u64,
    faults: u64,
    moments: Vec<Moment>,
}

impl TimeLine {
    pub fn start(now: Instant, operations: u64, sample: Sample) -> Self {
        Self { start: now, last: now, operations, faults: sample.faults, moments: Vec::new() }
    }

    /// When the next piece ends, in a run that ends at `end`; no piece is shorter than half of the others.
    pub fn next_tick(&self, end: Instant) -> Option<Instant> {
        let pieces = self.last.duration_since(self.start).as_millis() / PIECE.as_millis() + 1;
        let tick = self.start + PIECE * u32::try_from(pieces).unwrap_or(u32::MAX);
        (tick + PIECE / 2 <= end).then_some(tick)
    }

    pub fn add(&mut self, now: Instant, operations: u64, longest_pause: Duration, sample: Sample) {
        let seconds = now.duration_since(self.last).as_secs_f64().max(1e-6);
        self.moments.push(Moment {
            at_seconds: now.duration_since(self.start).as_secs_f64(),
            operations_per_second: operations.saturating_sub(self.operations) as f64 / seconds,
            faults_per_second: sample.faults.saturating_sub(self.faults) as f64 / seconds,
            resident_bytes: sample.resident_bytes,
            longest_pause_seconds: longest_pause.as_secs_f64(),
        });
        (self.last, self.operations, self.faults) = (now, operations, sample.faults);
    }

    pub fn into_moments(self) -> Vec<Moment> {
        self.moments
    }
}

/// CPU time that this process has used, all threads.
pub fn process_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rates_between_samples() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut line = TimeLine::start(start, 1_000, Sample { faults: 70, resident_bytes: 1 });
        line.add(at(250), 1_500, Duration::ZERO, Sample { faults: 170, resident_bytes: 2 });
        line.add(at(1_250), 1_600, Duration::from_millis(900), Sample { faults: 170, resident_bytes: 3 });
        let moments = line.into_moments();
        let expected = [(0.25, 2_000.0, 400.0, 2), (1.25, 100.0, 0.0, 3)];
        let found: Vec<_> = moments.iter().map(|m| (m.at_seconds, m.operations_per_second, m.faults_per_second, m.resident_bytes)).collect();
        assert_eq!(found, expected);
        assert_eq!([moments[0].longest_pause_seconds, moments[1].longest_pause_seconds], [0.0, 0.9]);
    }

    #[test]
    fn pieces_are_of_one_length_and_the_last_is_no_sliver() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut line = TimeLine::start(start, 0, Sample::default());
        assert_eq!(line.next_tick(at(1_000)), Some(at(250)));
        // A tick that came late does not shift the ones after it.
        line.add(at(260), 1, Duration::ZERO, Sample::default());
        assert_eq!(line.next_tick(at(1_000)), Some(at(500)));
        assert_eq!(line.next_tick(at(624)), None);
        line.add(at(900), 1, Duration::ZERO, Sample::default());
        assert_eq!(line.next_tick(at(2_000)), Some(at(1_000)));
    }
}
