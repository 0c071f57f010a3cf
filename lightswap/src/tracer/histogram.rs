//! Latencies as the BPF program counts them: exact below 32 ns, then 32 buckets for each power of two, so that a bucket is at most 3 % wide.

const SUB_BITS: u32 = 5;
pub(super) const NUM_BUCKETS: usize = 1024;

/// How many faults took how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    counts: Vec<u64>,
}

/// As in ebpf/faults.bpf.c.
fn bucket_of(ns: u64) -> usize {
    let Some(shift) = (ns >> SUB_BITS).checked_ilog2() else { return ns as usize };
    let sub = (ns >> shift) & ((1 << SUB_BITS) - 1);
    ((((shift + 1) as usize) << SUB_BITS) + sub as usize).min(NUM_BUCKETS - 1)
}

/// First value of a bucket.
fn start_of(bucket: usize) -> u64 {
    let (power, sub) = ((bucket >> SUB_BITS) as u32, (bucket as u64) & ((1 << SUB_BITS) - 1));
    if power == 0 { sub } else { ((1 << SUB_BITS) + sub) << (power - 1) }
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; NUM_BUCKETS] }
    }
}

impl Latencies {
    /// Of these, in nanoseconds.
    pub fn of(all_ns: &[u64]) -> Self {
        let mut latencies = Self::default();
        all_ns.iter().for_each(|ns| latencies.add(*ns));
        latencies
    }

    pub(super) fn new(counts: Vec<u64>) -> Self {
        Self { counts }
    }

    pub(super) fn add(&mut self, ns: u64) {
        self.counts[bucket_of(ns)] += 1;
    }

    /// How many there are.
    pub fn num(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What has come since an earlier state of the same.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self { counts: self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then)).collect() }
    }

    /// The q-quantile in nanoseconds, with the values of a bucket spread evenly over it; 0 when there are none.
    pub fn quantile_ns(&self, q: f64) -> f64 {
        let wanted = self.num() as f64 * q.clamp(0.0, 1.0);
        let mut before = 0.0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if before + count >= wanted {
                let (start, end) = (start_of(bucket) as f64, start_of(bucket + 1) as f64);
                return start + (end - start) * ((wanted - before) / count);
            }
            before += count;
        }
        0.0
    }

    /// Coarser, for people: the start of each bar in nanoseconds and its count, `per_octave` (1 to 32, a power of two) bars for each power of two; from the first one that is
    /// not empty to the last.
    pub fn bars(&self, per_octave: usize) -> Vec<(u64, u64)> {
        debug_assert!(per_octave.is_power_of_two() && per_octave <= 1 << SUB_BITS);
        let width = (1 << SUB_BITS) / per_octave;
        let bars = self.counts.chunks(width).enumerate().map(|(index, counts)| (start_of(index * width), counts.iter().sum()));
        let bars: Vec<(u64, u64)> = bars.collect();
        let is_full = |bar: &(u64, u64)| bar.1 > 0;
        match (bars.iter().position(is_full), bars.iter().rposition(is_full)) {
            (Some(first), Some(last)) => bars[first..=last].to_vec(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Latencies {
        Latencies::of(&values.into_iter().collect::<Vec<_>>())
    }

    #[test]
    fn buckets_are_ordered_narrow_and_know_their_start() {
        let mut last = 0;
        for ns in (0..100_000).chain([1 << 30, (1 << 30) + 12_345, 1 << 35]) {
            let bucket = bucket_of(ns);
            assert!(bucket == last || start_of(bucket) <= ns, "{ns}");
            assert!(bucket >= last && start_of(bucket) <= ns && ns < start_of(bucket + 1), "{ns}: {bucket}");
            assert!(ns < 32 || start_of(bucket + 1) - start_of(bucket) <= ns / 32 + 1, "{ns}");
            last = bucket;
        }
        assert_eq!(bucket_of(u64::MAX), NUM_BUCKETS - 1);
    }

    #[test]
    fn quantiles_lie_within_a_bucket_of_the_value() {
        let all = of((1..=1000).map(|number| number * 10));
        for q in [0.1, 0.5, 0.9, 0.99] {
            let expected = 10_000.0 * q;
            assert!((all.quantile_ns(q) / expected - 1.0).abs() < 0.03, "{q}: {}", all.quantile_ns(q));
        }
        assert_eq!(of([]).quantile_ns(0.5), 0.0);
    }

    #[test]
    fn a_difference_is_what_came_between() {
        let (earlier, later) = (of([100, 5_000]), of([100, 5_000, 5_000, 70]));
        assert_eq!(later.since(&earlier), of([5_000, 70]));
    }

    #[test]
    fn bars_count_all_from_the_first_to_the_last() {
        let bars = of([600, 610, 700, 1_500]).bars(4);
        assert_eq!(bars.iter().map(|bar| bar.1).sum::<u64>(), 4);
        assert_eq!(bars[0], (512, 2));
        assert_eq!(bars.last(), Some(&(1_280, 1)));
        assert!(bars.is_sorted_by_key(|bar| bar.0));
        assert!(of([]).bars(4).is_empty());
    }
}
