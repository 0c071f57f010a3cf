//! What a timed run counted.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::ycsb::Operation;

const LATENCY_MAX_US: u64 = 600_000_000;
/// Preferred numbers (ISO 3, R10): steps of about 26 %.
const BUCKET_BOUNDS: [f64; 10] = [1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0];

/// Latency percentiles of a run, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyUs {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl LatencyUs {
    fn from_histogram(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64;
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 }
    }
}

#[derive(Debug, Clone)]
pub struct Tally {
    pub operations: u64,
    /// Open loop: operations that were due and not finished when the run ended; only the latencies hold them.
    pub unfinished: u64,
    pub reads: u64,
    pub hits: u64,
    pub wrong_values: u64,
    pub server_errors: u64,
    /// One example each, to tell what went wrong.
    pub first_wrong_value: Option<String>,
    pub first_server_error: Option<String>,
    /// One for each of read, update, insert, read-modify-write and scan.
    histograms: [Histogram<u64>; 5],
}

const OPERATION_NAMES: [&str; 5] = ["read", "update", "insert", "read_modify_write", "scan"];

#[inline]
fn histogram_index(operation: Operation) -> usize {
    match operation {
        Operation::Read => 0,
        Operation::Update => 1,
        Operation::Insert => 2,
        Operation::ReadModifyWrite => 3,
        Operation::Scan => 4,
    }
}

fn new_histogram() -> Histogram<u64> {
    // The bounds are constants that the crate accepts: 1 us to 10 minutes, three digits.
    Histogram::new_with_max(LATENCY_MAX_US, 3).expect("constant histogram bounds are valid")
}

impl Tally {
    pub fn new() -> Self {
        Self {
            operations: 0,
            unfinished: 0,
            reads: 0,
            hits: 0,
            wrong_values: 0,
            server_errors: 0,
            first_wrong_value: None,
            first_server_error: None,
            histograms: std::array::from_fn(|_| new_histogram()),
        }
    }

    #[inline]
    pub fn record(&mut self, operation: Operation, latency: Duration) {
        self.operations += 1;
        self.record_latency(operation, latency, 1);
    }

    /// Operations that took at least this long: the run ended before them.
    pub fn record_unfinished(&mut self, operation: Operation, latency_so_far: Duration, count: u64) {
        self.unfinished += count;
        self.record_latency(operation, latency_so_far, count);
    }

    #[inline]
    fn record_latency(&mut self, operation: Operation, latency: Duration, count: u64) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX_US);
        self.histograms[histogram_index(operation)].saturating_record_n(latency_us, count);
    }

    pub fn wrong_value(&mut self, describe: impl FnOnce() -> String) {
        self.wrong_values += 1;
        self.first_wrong_value.get_or_insert_with(describe);
    }

    pub fn server_error(&mut self, text: &[u8]) {
        self.server_errors += 1;
        self.first_server_error.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
    }

    /// Starts counting anew. Wrong values are kept: one seen while warming up is as wrong as any.
    pub fn restart(&mut self) {
        let (wrong_values, first_wrong_value) = (self.wrong_values, self.first_wrong_value.take());
        *self = Self::new();
        self.wrong_values = wrong_values;
        self.first_wrong_value = first_wrong_value;
    }

    pub fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.unfinished += other.unfinished;
        self.reads += other.reads;
        self.hits += other.hits;
        self.wrong_values += other.wrong_values;
        self.server_errors += other.server_errors;
        if self.first_wrong_value.is_none() {
            self.first_wrong_value = other.first_wrong_value;
        }
        if self.first_server_error.is_none() {
            self.first_server_error = other.first_server_error;
        }
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            mine.add(theirs).expect("histograms of equal bounds can be added");
        }
    }

    fn all_operations(&self) -> Histogram<u64> {
        let mut all = new_histogram();
        for histogram in &self.histograms {
            all.add(histogram).expect("histograms of equal bounds can be added");
        }
        all
    }

    /// Percentiles over all operations.
    pub fn latency(&self) -> LatencyUs {
        LatencyUs::from_histogram(&self.all_operations())
    }

    /// Upper bounds in microseconds, ten a decade, and how many operations lie between each and the bound before it; empty buckets are left out.
    pub fn latency_buckets(&self) -> Vec<(f64, u64)> {
        let mut bounds = (0..).flat_map(|decade| BUCKET_BOUNDS.map(|bound| bound * 10f64.powi(decade))).skip(1);
        let mut bound = BUCKET_BOUNDS[0];
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        for step in self.all_operations().iter_recorded() {
            while bound < step.value_iterated_to() as f64 {
                bound = bounds.next().unwrap_or(f64::INFINITY);
            }
            match buckets.last_mut() {
                Some((last, count)) if *last == bound => *count += step.count_at_value(),
                _ => buckets.push((bound, step.count_at_value())),
            }
        }
        buckets
    }

    /// Percentiles of each kind of operation that occurred.
    pub fn latency_by_operation(&self) -> BTreeMap<String, LatencyUs> {
        OPERATION_NAMES
            .iter()
            .zip(&self.histograms)
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(name, histogram)| ((*name).to_owned(), LatencyUs::from_histogram(histogram)))
            .collect()
    }

    /// 1 when nothing was read.
    pub fn hit_ratio(&self) -> f64 {
        if self.reads == 0 { 1.0 } else { self.hits as f64 / self.reads as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_tallies_add_up() {
        let mut one = Tally::new();
        one.record(Operation::Read, Duration::from_micros(100));
        let mut two = Tally::new();
        two.record(Operation::Update, Duration::from_micros(300));
        two.wrong_value(|| "bad".into());
        one.merge(two);
        assert_eq!((one.operations, one.wrong_values), (2, 1));
        assert_eq!(one.latency().p50, 100.0);
        assert_eq!(one.latency().max, 300.0);
        let by_operation = one.latency_by_operation();
        let names: Vec<_> = by_operation.keys().collect();
        assert_eq!(names, ["read", "update"]);
        one.restart();
        assert_eq!((one.operations, one.wrong_values), (0, 1));
    }

    #[test]
    fn buckets_hold_every_operation_once() {
        let mut tally = Tally::new();
        assert_eq!(tally.latency_buckets(), []);
        for us in [0, 1, 2, 9, 10, 11, 99, 100, 126, 160, 999_000] {
            tally.record(Operation::Read, Duration::from_micros(us));
        }
        tally.record_unfinished(Operation::Update, Duration::from_secs(3_600), 1);
        let buckets = tally.latency_buckets();
        assert_eq!(&buckets[..6], [(1.0, 2), (2.0, 1), (10.0, 2), (12.5, 1), (100.0, 2), (160.0, 2)]);
        assert_eq!(buckets[6], (1e6, 1));
        // Beyond the ten minutes that the histogram holds: counted at its end.
        assert_eq!(buckets[7], (6.3e8, 1));
        assert_eq!((tally.operations, tally.unfinished), (11, 1));
        let bounds: Vec<f64> = buckets.iter().map(|bucket| bucket.0).collect();
        assert!(bounds.is_sorted(), "{bounds:?}");
    }
}
