//! An open loop: operations are due at a constant rate, whether the server keeps up or not.
//!
//! A closed loop asks again only when it was answered. While the server stalls it asks nothing, so the stall counts as one slow operation for each
//! connection, however many a client would have sent in that time: coordinated omission. Here the due times are fixed beforehand, evenly spaced and
//! dealt out to the load threads in turn, and latencies count from when an operation was due:
//! - an operation that is due while all connections of its thread are busy waits for the first free one. Due times follow from a count, so waiting
//!   operations take no memory, however many they are;
//! - a server that is too slow falls behind ever further, and latencies grow with the length of the run, as they do for clients in a queue. The
//!   result then has fewer operations a second than were due;
//! - operations that are due and not finished at the end of the run are not done, but they are in the latencies, with the time until the end;
//! - measuring begins with nobody waiting: what queued up in the warm-up is dropped, and what is still under way from then does not count.

use std::time::{Duration, Instant};

/// The due times of one load thread.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    start: Instant,
    /// Of the first operation, after the start, and between two.
    first_ns: f64,
    step_ns: f64,
    taken: u64,
}

impl Pace {
    /// For thread `index` of `count` that together do `rate` operations a second.
    pub fn new(start: Instant, rate: f64, index: u64, count: u64) -> Self {
        let between_ns = 1e9 / rate;
        Self { start, first_ns: between_ns * index as f64, step_ns: between_ns * count as f64, taken: 0 }
    }

    /// Starts anew; nobody waits.
    pub fn restart(&mut self, start: Instant) {
        (self.start, self.taken) = (start, 0);
    }

    /// When the next operation is due that was not taken.
    #[inline]
    pub fn next_due(&self) -> Instant {
        self.due(self.taken)
    }

    #[inline]
    fn due(&self, number: u64) -> Instant {
        // From the count and not from the time before: nothing adds up. A float is exact to the nanosecond for a hundred days.
        self.start + Duration::from_nanos((self.first_ns + self.step_ns * number as f64) as u64)
    }

    /// Takes the oldest operation that is due.
    #[inline]
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due();
        if due > now {
            return None;
        }
        self.taken += 1;
        Some(due)
    }

    /// Takes all operations that are due at the end of a run: when, and how many. However many they are, these are few groups, each with the time of
    /// its middle.
    pub fn take_rest(&mut self, end: Instant) -> Vec<(Instant, u64)> {
        const GROUPS_MAX: u64 = 10_000;
        let end_ns = end.saturating_duration_since(self.start).as_nanos() as f64;
        let num_due = if end_ns < self.first_ns { 0 } else { ((end_ns - self.first_ns) / self.step_ns) as u64 + 1 };
        let group = num_due.saturating_sub(self.taken).div_ceil(GROUPS_MAX);
        let mut groups = Vec::new();
        while self.taken < num_due {
            let count = group.min(num_due - self.taken);
            groups.push((self.due(self.taken + count / 2), count));
            self.taken += count;
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;
    use crate::ycsb::Operation;

    #[test]
    fn threads_share_one_evenly_spaced_sequence() {
        let start = Instant::now();
        let mut due = Vec::new();
        for index in 0..3 {
            let mut pace = Pace::new(start, 1_000.0, index, 3);
            while let Some(time) = pace.take(start + Duration::from_millis(98)) {
                due.push(time.duration_since(start).as_micros());
            }
        }
        due.sort_unstable();
        let expected: Vec<u128> = (0..99).map(|number| number * 1_000).collect();
        assert_eq!(due, expected);
    }

    #[test]
    fn no_time_is_lost_over_many_operations() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 3.0, 0, 1);
        pace.taken = 3_000_000;
        assert_eq!(pace.next_due(), start + Duration::from_secs(1_000_000));
    }

    #[test]
    fn the_rest_is_all_that_is_due_and_was_not_taken() {
        let start = Instant::now();
        let mut pace = Pace::new(start, 1_000.0, 1, 2);
        assert_eq!(pace.take_rest(start), []);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(pace.take(at(1)), Some(at(1)));
        assert_eq!(pace.take_rest(at(6)), [(at(3), 1), (at(5), 1)]);
        assert_eq!(pace.take_rest(at(6)), []);
        // A day of a rate that nobody reaches takes no time.
        let mut pace = Pace::new(start, 1e8, 0, 1);
        let day = start + Duration::from_secs(86_400);
        let groups = pace.take_rest(day);
        assert!(groups.len() <= 10_000);
        assert!(groups.iter().map(|group| group.1).sum::<u64>().abs_diff(8_640_000_000_000) <= 1);
        assert!(groups.iter().map(|group| group.0).is_sorted_by(|a, b| a < b) && groups.iter().all(|group| (start..day).contains(&group.0)));
    }

    /// One connection and a server that takes 100 us an operation, but does nothing from second 4 to 5; times are computed, nobody waits.
    fn simulate(rate: f64) -> Tally {
        let start = Instant::now();
        let end = start + Duration::from_secs(10);
        let (stall, stall_end) = (start + Duration::from_secs(4), start + Duration::from_secs(5));
        let mut pace = Pace::new(start, rate, 0, 1);
        let mut tally = Tally::new();
        let mut now = start;
        while now < end {
            let Some(due) = pace.take(now) else {
                now = pace.next_due();
                continue;
            };
            let begun = if (stall..stall_end).contains(&now) { stall_end } else { now };
            now = begun + Duration::from_micros(100);
            if now <= end {
                tally.record(Operation::Read, now - due);
            } else {
                tally.record_unfinished(Operation::Read, end - due, 1);
            }
        }
        for (due, count) in pace.take_rest(end) {
            tally.record_unfinished(Operation::Read, end - due, count);
        }
        tally
    }

    #[test]
    fn a_stall_counts_for_all_who_would_have_asked_meanwhile() {
        let tally = simulate(1_000.0);
        let latency = tally.latency();
        // 1,000 of 10,000 operations were due in the stall; those after it find a queue that shrinks, so each waits 0.9 ms less
        // than the one before. The slowest hundredth, 100 operations, thus ends at 1 s - 90 ms, the slowest tenth at 1 s - 900 ms.
        assert_eq!(latency.p50, 100.0);
        assert!((98_000.0..103_000.0).contains(&latency.p90), "{latency:?}");
        assert!((905_000.0..915_000.0).contains(&latency.p99), "{latency:?}");
        assert!(latency.max >= 1_000_000.0, "{latency:?}");
        assert!(tally.unfinished <= 2, "{}", tally.unfinished);
    }

    #[test]
    fn a_server_that_cannot_keep_up_falls_behind_for_ever() {
        // Twice what the server can do: 90,000 operations in 9 working seconds of 10.
        let tally = simulate(20_000.0);
        assert!((89_990..=90_000).contains(&tally.operations), "{}", tally.operations);
        assert_eq!(tally.operations + tally.unfinished, 200_001);
        // At the end the oldest waiting one is 5.5 s old.
        let latency = tally.latency();
        assert!((5_400_000.0..5_600_000.0).contains(&latency.max), "{latency:?}");
    }
}
