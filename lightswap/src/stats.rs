//! Counters and latency histograms: each worker writes its own, readers add them up, nobody is stopped.

use crate::failure::Cause;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// A counter that many may read while it is written.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds, in a set of counters that only one thread writes: no locked instruction.
    pub(crate) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed) + amount, Relaxed);
    }

    /// Adds, in a set that many threads write.
    pub(crate) fn add_shared(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Buckets per power of two: an error of at most 1/16 of the value.
const SUB_BUCKETS: usize = 8;
const NUM_BUCKETS: usize = 40 * SUB_BUCKETS;

/// A histogram of latencies in nanoseconds with logarithmic buckets.
#[derive(Debug)]
pub(crate) struct Histogram([Counter; NUM_BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([const { Counter(AtomicU64::new(0)) }; NUM_BUCKETS])
    }
}

fn bucket_of(latency_ns: u64) -> usize {
    let value = latency_ns.max(SUB_BUCKETS as u64);
    let exponent = value.ilog2() as usize;
    let shift = exponent - SUB_BUCKETS.ilog2() as usize;
    (shift * SUB_BUCKETS + (value >> shift) as usize - SUB_BUCKETS).min(NUM_BUCKETS - 1)
}

/// The middle of a bucket.
fn value_of(bucket: usize) -> u64 {
    let shift = bucket / SUB_BUCKETS;
    let low = ((bucket % SUB_BUCKETS + SUB_BUCKETS) as u64) << shift;
    low + (1 << shift) / 2
}

impl Histogram {
    /// Records one latency; single writer.
    pub(crate) fn record(&self, latency_ns: u64) {
        self.0[bucket_of(latency_ns)].add(1);
    }
}

/// The latency below which `fraction` of all recorded ones lie, over several histograms; 0 when there are none.
pub(crate) fn percentile_ns<'a>(histograms: impl Iterator<Item = &'a Histogram>, fraction: f64) -> u64 {
    let sums = sum(histograms);
    let total: u64 = sums.iter().sum();
    let mut left = (total as f64 * fraction).ceil() as u64;
    for (bucket, count) in sums.iter().enumerate() {
        if left <= *count && total > 0 {
            return value_of(bucket);
        }
        left -= count;
    }
    0
}

fn sum<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> [u64; NUM_BUCKETS] {
    let mut sums = [0u64; NUM_BUCKETS];
    for histogram in histograms {
        for (sum, counter) in sums.iter_mut().zip(&histogram.0) {
            *sum += counter.get();
        }
    }
    sums
}

/// The middle of each bucket in nanoseconds and how many latencies several histograms have there.
pub(crate) fn buckets<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Vec<(u64, u64)> {
    sum(histograms).into_iter().enumerate().map(|(bucket, count)| (value_of(bucket), count)).collect()
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What one worker (or all ordinary threads together) counted.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $($(#[$doc])* pub(crate) $name: Counter,)* }

        impl Counters {
            /// Name and value of each counter, summed over several sets.
            pub(crate) fn sum<'a>(sets: impl Iterator<Item = &'a Counters> + Clone) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), sets.clone().map(|set| set.$name.get()).sum())),*]
            }

            fn reset(&self) {
                $(self.$name.reset();)*
            }
        }
    };
}

counters! {
    /// Hardware faults (SIGBUS) on pages that were not mapped.
    faults,
    /// Hardware faults by writes to write-protected pages.
    write_protect_faults,
    /// Pages asked for by touch, pin or a wrapped system call that were not mapped.
    touch_misses,
    /// The same, those included that were being read ahead of their turn and had come in by then. What hardware faults ask for is in `faults`.
    missing_pages,
    /// Pages that got their first, zeroed frame.
    zero_fills,
    /// Pages read back from the backend.
    swap_ins,
    /// Pages read ahead of use.
    prefetches,
    /// Swap-ins that failed, of all causes that follow; also pages lost because memory was damaged. Prefetches are among them, which are not tried again: they
    /// do no harm.
    swap_in_errors,
    /// Those where the backend, or mapping the page, returned an error.
    swap_in_errors_io,
    /// Those that took longer than the time limit.
    swap_in_errors_timeout,
    /// Those whose content was not what had been written.
    swap_in_errors_hash,
    /// Those where the backend returned less than a page.
    swap_in_errors_short,
    /// Those where the backend was gone.
    swap_in_errors_lost,
    /// Pages that were lost because their memory was damaged.
    swap_in_errors_poison,
    /// Reads that failed and were begun again at once.
    swap_in_retries,
    /// Damaged memory that the kernel has announced before anybody accessed it.
    memory_errors_announced,
    /// Pages whose content the program gave up; those that were never touched do not count.
    discards,
    /// Pages removed whose content the backend already had: no write.
    clean_evictions,
    /// Pages removed that were all zero: no write, no slot.
    zero_evictions,
    /// Pages written to the backend and removed.
    dirty_evictions,
    /// Victims that were touched or written in time and stayed.
    cancelled_evictions,
    /// Writes to the backend that failed; their pages stayed resident.
    swap_out_errors,
    /// Times that a write was found to take longer than the time limit; its pages stay resident until it ends.
    swap_outs_overdue,
    /// Evict batches.
    evict_batches,
    /// Times that a faulting LWT or thread had to reclaim for itself.
    direct_reclaims,
    /// Times that someone waited for a free frame.
    frame_waits,
}

impl Counters {
    /// A page could not be had, for this reason.
    pub(crate) fn count_failure(&self, cause: Cause) {
        self.swap_in_errors.add_shared(1);
        let of_cause = match cause {
            Cause::Io => &self.swap_in_errors_io,
            Cause::TimedOut => &self.swap_in_errors_timeout,
            Cause::WrongHash => &self.swap_in_errors_hash,
            Cause::ShortRead => &self.swap_in_errors_short,
            Cause::LostBackend => &self.swap_in_errors_lost,
            Cause::Poisoned => &self.swap_in_errors_poison,
        };
        of_cause.add_shared(1);
    }
}

/// One set of counters and histograms.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) counters: Counters,
    /// From when an LWT has become the owner of a page's swap-in to the page being mapped and the LWT running again.
    pub(crate) fault_handling: Histogram,
    /// From the submission of a read to the end of its processing.
    pub(crate) swap_in: Histogram,
    pub(crate) steps: Steps,
}

/// Where the time goes, when `Builder::step_times` asks for it; single writer.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// From when an LWT has become the owner of a page's swap-in to the submission of the read; with a backend that needs no I/O, to having a frame.
    pub(crate) queue: Histogram,
    /// From there to the handling of its completion.
    pub(crate) io: Histogram,
    /// Verifying the content and mapping the page.
    pub(crate) map: Histogram,
    /// From there to the LWT running again.
    pub(crate) resume: Histogram,
    /// Time spent in evictions.
    pub(crate) evict_ns: Counter,
}

impl Stats {
    /// Starts again at zero, for another instance.
    pub(crate) fn reset(&self) {
        self.counters.reset();
        let Steps { queue, io, map, resume, evict_ns } = &self.steps;
        let histograms = [&self.fault_handling, &self.swap_in, queue, io, map, resume];
        histograms.into_iter().flat_map(|histogram| &histogram.0).for_each(Counter::reset);
        evict_ns.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_close() {
        let mut last = 0;
        for value in (8..100_000u64).chain([1 << 30, 1 << 35, u64::MAX]) {
            let bucket = bucket_of(value);
            assert!(bucket >= last && bucket < NUM_BUCKETS);
            last = bucket;
            if value < 1 << 40 {
                assert!(value_of(bucket).abs_diff(value) <= value / 8, "{value} -> {}", value_of(bucket));
            }
        }
    }

    #[test]
    fn percentiles_add_histograms_up() {
        let (one, two) = (Histogram::default(), Histogram::default());
        (0..90).for_each(|_| one.record(1000));
        (0..10).for_each(|_| two.record(1_000_000));
        let percentile = |fraction| percentile_ns([&one, &two].into_iter(), fraction);
        assert!(percentile(0.5).abs_diff(1000) < 125 && percentile(0.95).abs_diff(1_000_000) < 125_000);
        assert_eq!(percentile_ns(std::iter::empty(), 0.5), 0);
    }
}
