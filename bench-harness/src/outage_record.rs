//! What `demo-remote` saw: a mirror of memory servers under load, one of which is killed, and returns empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::results::Moment;

/// Longest time without one completed request that is in order; and for one request.
pub const LONGEST_PAUSE_SECONDS: f64 = 1.0;

/// What is judged must be in the file: a number that is missing is none that is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutageRecord {
    pub configuration: String,
    pub workload: String,
    pub local_memory_ratio: f64,
    pub records: u64,
    pub connections: usize,
    /// After the start of measuring, as all times here.
    pub killed_at_seconds: f64,
    pub returned_at_seconds: f64,
    /// When the mirror had found the server gone; none if it did not before the server was back.
    pub noticed_at_seconds: Option<f64>,
    /// When every page had all its copies again; none if that was not so at the end of the load.
    pub in_sync_at_seconds: Option<f64>,
    pub seconds: f64,
    /// For this long no request of any connection was answered.
    pub longest_pause_seconds: f64,
    /// That waited longest for its answer.
    pub longest_operation_seconds: f64,
    pub operations_per_second: f64,
    /// Reads under load that found a value, every byte of which was checked.
    pub checked_reads: u64,
    pub missed_reads: u64,
    /// Operations that the server answered with an error.
    pub refused: u64,
    /// Read and checked once more after the load, all of them.
    pub verified_records: u64,
    /// Not there any more.
    pub missing_records: u64,
    /// Under load and afterwards.
    pub wrong_values: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_problem: Option<String>,
    pub time_line: Vec<Moment>,
    pub mirror: Vec<MirrorMoment>,
    /// `cgroup`, or `none` where no limit could be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
    #[serde(default)]
    pub server_command: String,
    /// `stats lightswap` at the end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub server_statistics: BTreeMap<String, String>,
}

/// What the mirror says of itself at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MirrorMoment {
    pub at_seconds: f64,
    pub members_lost: u64,
    /// Copies that are missing or old, of all members.
    pub stale_pages: u64,
    /// Copies made anew so far.
    pub resynced_pages: u64,
}

/// A part of the time with the same servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    pub name: &'static str,
    pub from_seconds: f64,
    pub to_seconds: f64,
    pub operations_per_second: f64,
    pub longest_pause_seconds: f64,
}

impl OutageRecord {
    fn phase(&self, name: &'static str, from_seconds: f64, to_seconds: f64) -> Phase {
        let (mut operations, mut pause, mut start) = (0.0, 0.0f64, 0.0f64);
        for moment in &self.time_line {
            let overlap = moment.at_seconds.min(to_seconds) - start.max(from_seconds);
            if overlap > 0.0 {
                operations += moment.operations_per_second * overlap;
            }
            // Servers die and return at the end of a piece, so a piece's pause belongs to what it ends in.
            if from_seconds < moment.at_seconds && moment.at_seconds <= to_seconds {
                pause = pause.max(moment.longest_pause_seconds);
            }
            start = moment.at_seconds;
        }
        let seconds = to_seconds - from_seconds;
        let operations_per_second = if seconds > 0.0 { operations / seconds } else { 0.0 };
        Phase { name, from_seconds, to_seconds, operations_per_second, longest_pause_seconds: pause }
    }

    pub fn phases(&self) -> Vec<Phase> {
        let (killed, returned) = (self.killed_at_seconds, self.returned_at_seconds);
        let in_sync = self.in_sync_at_seconds.unwrap_or(self.seconds).clamp(returned, self.seconds.max(returned));
        let phases = [
            ("all servers", 0.0, killed),
            ("one killed", killed, returned),
            ("back and empty, brought up to date", returned, in_sync),
            ("in sync again", in_sync, self.seconds),
        ];
        phases.into_iter().filter(|(_, from, to)| to > from).map(|(name, from, to)| self.phase(name, from, to)).collect()
    }

    /// From the server's return until every page had all its copies again.
    pub fn resynchronised_after_seconds(&self) -> Option<f64> {
        self.in_sync_at_seconds.map(|at| (at - self.returned_at_seconds).max(0.0))
    }

    /// Reads of what was stored that found nothing, under load and at the end.
    pub fn lost_items(&self) -> u64 {
        self.missed_reads + self.missing_records
    }

    /// Of all connections together, or of one.
    pub fn longest_stall_seconds(&self) -> f64 {
        self.longest_pause_seconds.max(self.longest_operation_seconds)
    }

    /// Everything that must not be.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.wrong_values > 0 {
            problems.push(format!("{} WRONG VALUES", self.wrong_values));
        }
        if self.missing_records > 0 {
            problems.push(format!("{} of {} records are lost", self.missing_records, self.verified_records));
        }
        if self.missed_reads > 0 {
            problems.push(format!("{} reads under load were misses, though every record was stored", self.missed_reads));
        }
        if self.refused > 0 {
            problems.push(format!("the server refused {} operations", self.refused));
        }
        if self.verified_records < self.records {
            problems.push(format!("only {} of {} records were verified", self.verified_records, self.records));
        }
        if self.longest_pause_seconds > LONGEST_PAUSE_SECONDS {
            let pause = self.longest_pause_seconds;
            problems.push(format!("for {:.0} ms no request was answered, more than {:.0} ms", pause * 1e3, LONGEST_PAUSE_SECONDS * 1e3));
        }
        if self.longest_operation_seconds > LONGEST_PAUSE_SECONDS {
            let operation = self.longest_operation_seconds;
            problems.push(format!("one operation took {:.0} ms, more than {:.0} ms", operation * 1e3, LONGEST_PAUSE_SECONDS * 1e3));
        }
        if self.noticed_at_seconds.is_none() {
            problems.push("the mirror did not notice that a server was gone (mirror_losses)".into());
        } else if self.in_sync_at_seconds.is_none() {
            let seconds = self.seconds - self.returned_at_seconds;
            problems.push(format!("the mirror was not in sync again {seconds:.1} s after the server was back, when the load ended"));
        }
        if let (Some(first), false) = (&self.first_problem, problems.is_empty()) {
            problems.push(format!("the first of them: {first}"));
        }
        problems
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record() -> OutageRecord {
        let moment = |index: u32| {
            let at_seconds = f64::from(index) * 0.25;
            let operations_per_second = if at_seconds <= 20.0 { 80_000.0 } else { 70_000.0 };
            let longest_pause_seconds = if index == 81 { 0.4 } else { 0.003 };
            Moment { at_seconds, operations_per_second, longest_pause_seconds, faults_per_second: 30_000.0, resident_bytes: 150 << 20 }
        };
        let mirror = |index: u32| {
            let at_seconds = f64::from(index) * 0.25;
            let stale_pages = match at_seconds {
                at if at < 20.0 => 0,
                at if at < 40.0 => 1_000 * u64::from(index - 80),
                at => 100_000u64.saturating_sub(((at - 40.0) * 20_000.0) as u64),
            };
            let members_lost = u64::from((20.25..40.5).contains(&at_seconds));
            MirrorMoment { at_seconds, members_lost, stale_pages, resynced_pages: 0 }
        };
        OutageRecord {
            configuration: "lightswap-mirror".into(),
            workload: "ycsb-b".into(),
            local_memory_ratio: 0.25,
            records: 500_000,
            connections: 64,
            killed_at_seconds: 20.0,
            returned_at_seconds: 40.0,
            noticed_at_seconds: Some(20.25),
            in_sync_at_seconds: Some(45.0),
            seconds: 60.0,
            longest_pause_seconds: 0.4,
            longest_operation_seconds: 0.45,
            operations_per_second: 73_333.0,
            checked_reads: 4_000_000,
            verified_records: 500_000,
            time_line: (1..=240).map(moment).collect(),
            mirror: (0..=240).map(mirror).collect(),
            ..OutageRecord::default()
        }
    }

    #[test]
    fn phases_are_weighed_by_time() {
        let phases = record().phases();
        let found: Vec<_> = phases.iter().map(|phase| (phase.from_seconds, phase.to_seconds, phase.operations_per_second.round())).collect();
        assert_eq!(found, [(0.0, 20.0, 80_000.0), (20.0, 40.0, 70_000.0), (40.0, 45.0, 70_000.0), (45.0, 60.0, 70_000.0)]);
        assert_eq!(phases[1].longest_pause_seconds, 0.4);
        assert_eq!(record().resynchronised_after_seconds(), Some(5.0));
        let never = OutageRecord { in_sync_at_seconds: None, ..record() };
        assert_eq!(never.phases().len(), 3);
        assert_eq!(phases[0].longest_pause_seconds, 0.003);
        // Pieces that lie across a border count in part, but for their pause.
        let shifted = OutageRecord { killed_at_seconds: 20.125, ..record() };
        assert_eq!(shifted.phases()[0].longest_pause_seconds, 0.003);
        assert!((shifted.phases()[0].operations_per_second - (80_000.0 * 20.0 + 70_000.0 * 0.125) / 20.125).abs() < 1e-6);
    }

    #[test]
    fn whatever_is_lost_wrong_or_late_is_a_problem() {
        assert_eq!(record().problems(), Vec::<String>::new());
        type Change = (fn(&mut OutageRecord), &'static str);
        let changes: [Change; 9] = [
            (|record| record.longest_operation_seconds = 1.002, "one operation took 1002 ms"),
            (|record| record.wrong_values = 1, "1 WRONG"),
            (|record| record.missing_records = 2, "2 of 500000 records are lost"),
            (|record| record.missed_reads = 3, "3 reads under load were misses"),
            (|record| record.refused = 4, "refused 4"),
            (|record| record.verified_records = 5, "only 5 of"),
            (|record| record.longest_pause_seconds = 1.001, "for 1001 ms"),
            (|record| record.in_sync_at_seconds = None, "not in sync again 20.0 s after"),
            (|record| record.noticed_at_seconds = None, "did not notice"),
        ];
        for (change, part) in changes {
            let mut bad = record();
            change(&mut bad);
            bad.first_problem = Some("key 7".into());
            let problems = bad.problems();
            assert!(problems.len() == 2 && problems[0].contains(part) && problems[1].contains("key 7"), "{part}: {problems:?}");
        }
    }
}
