//! What `bgsave` saw: a Redis under load that writes a dump of more data than its local memory holds, in a child process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::results::Moment;

/// Of the memory limit, what each process may have resident.
pub const RESIDENT_SHARE: f64 = 1.1;

/// What is judged must be in the file: a number that is missing is none that is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SaveRecord {
    pub configuration: String,
    pub workload: String,
    pub records: u64,
    pub connections: usize,
    /// Of all values together.
    pub values_bytes: u64,
    /// Of one process; while the dump is written, the cgroup has room for two. None where there is no limit.
    pub limit_bytes: Option<u64>,
    /// Where the server manages it itself.
    pub local_memory_bytes: Option<u64>,
    /// After the start of measuring, as all times here.
    pub began_at_seconds: f64,
    /// None if it was not done long after the load had ended.
    pub ended_at_seconds: Option<f64>,
    /// Redis's own word on the dump: `ok`.
    pub status: String,
    pub seconds: f64,
    pub operations_per_second: f64,
    pub longest_pause_seconds: f64,
    pub longest_operation_seconds: f64,
    pub checked_reads: u64,
    pub missed_reads: u64,
    /// Operations that the server answered with an error.
    pub refused: u64,
    pub wrong_values: u64,
    /// From the fork to the end of the dump.
    pub parent_resident_bytes_max: u64,
    pub child_resident_bytes_max: u64,
    /// What a stock Redis has that read the dump.
    pub dump_keys: u64,
    /// What could be in it: the keys that existed at the fork.
    pub expected_keys: u64,
    /// Read from that stock Redis and checked, all of them: against every version that could be read at the fork.
    pub dump_missing: u64,
    pub dump_wrong: u64,
    /// Over all keys, as Redis computes it: of a stock Redis to which the records were given, and of one that read a dump which this server wrote of the same ones,
    /// without load, at the same limit; `none` if it could not. None in older files, and where only the kernel's swap is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stock_checksum: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump_checksum: Option<String>,
    /// Why there is no result; the numbers are then meaningless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_problem: Option<String>,
    pub time_line: Vec<Moment>,
    pub resident: Vec<ResidentMoment>,
    /// `cgroup`, or `none` where no limit could be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
    #[serde(default)]
    pub server_command: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub server_statistics: BTreeMap<String, String>,
}

/// Resident sets at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidentMoment {
    pub at_seconds: f64,
    pub parent_bytes: u64,
    /// 0 where there is none.
    pub child_bytes: u64,
}

impl SaveRecord {
    /// Whether the server, and not the kernel, keeps it within its limit.
    pub fn is_lightswap(&self) -> bool {
        self.local_memory_bytes.is_some()
    }

    /// Operations a second and the longest pause of the pieces of the time line that end in this time.
    fn between(&self, from_seconds: f64, to_seconds: f64) -> Option<(f64, f64)> {
        let pieces: Vec<&Moment> =
            self.time_line.iter().filter(|moment| from_seconds < moment.at_seconds && moment.at_seconds <= to_seconds).collect();
        if pieces.is_empty() {
            return None;
        }
        let rate = pieces.iter().map(|moment| moment.operations_per_second).sum::<f64>() / pieces.len() as f64;
        Some((rate, pieces.iter().map(|moment| moment.longest_pause_seconds).fold(0.0, f64::max)))
    }

    pub fn before(&self) -> Option<(f64, f64)> {
        self.between(0.0, self.began_at_seconds)
    }

    pub fn meanwhile(&self) -> Option<(f64, f64)> {
        self.between(self.began_at_seconds, self.ended_at_seconds.unwrap_or(self.seconds).max(self.began_at_seconds + 0.5))
    }

    /// The larger resident set of both processes, of the limit.
    pub fn resident_share(&self) -> Option<f64> {
        Some(self.parent_resident_bytes_max.max(self.child_resident_bytes_max) as f64 / self.limit_bytes? as f64)
    }

    pub fn values_over_local(&self) -> Option<f64> {
        Some(self.values_bytes as f64 / self.local_memory_bytes? as f64)
    }

    /// Where it was compared.
    pub fn has_equal_checksums(&self) -> Option<bool> {
        Some(self.stock_checksum.as_ref()? == self.dump_checksum.as_ref()?)
    }

    /// Everything that must not be.
    pub fn problems(&self) -> Vec<String> {
        if let Some(error) = &self.error {
            return vec![format!("failed: {error}")];
        }
        let mut problems = Vec::new();
        let mut count = |number: u64, text: &str| {
            if number > 0 {
                problems.push(format!("{number} {text}"));
            }
        };
        count(self.wrong_values, "WRONG VALUES under load");
        count(self.missed_reads, "reads under load missed");
        count(self.refused, "operations under load were refused");
        count(self.dump_wrong, "records of the dump are WRONG");
        count(self.dump_missing, "records are not in the dump");
        if self.ended_at_seconds.is_none() {
            problems.push("the dump was not finished".into());
        } else if self.status != "ok" {
            problems.push(format!("the dump failed: its status is {:?}", self.status));
        } else if self.dump_keys != self.expected_keys {
            problems.push(format!("the dump has {} keys instead of {}", self.dump_keys, self.expected_keys));
        }
        if self.has_equal_checksums() == Some(false) {
            problems.push("a dump's checksum over all keys is not that of stock Redis with the same records".into());
        }
        if self.is_lightswap() && self.resident_share().is_some_and(|share| share > RESIDENT_SHARE) {
            problems.push("a process had more resident than its limit and 10 %".into());
        }
        if let (Some(first), false) = (&self.first_problem, problems.is_empty()) {
            problems.push(format!("the first: {first}"));
        }
        problems
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record() -> SaveRecord {
        let moment = |at_seconds: f64, operations_per_second: f64, longest_pause_seconds: f64| Moment {
            at_seconds,
            operations_per_second,
            longest_pause_seconds,
            ..Moment::default()
        };
        SaveRecord {
            configuration: "redis-lightswap".into(),
            workload: "ycsb-b".into(),
            records: 1_000,
            connections: 4,
            values_bytes: 800,
            limit_bytes: Some(200),
            local_memory_bytes: Some(100),
            began_at_seconds: 5.0,
            ended_at_seconds: Some(15.0),
            status: "ok".into(),
            seconds: 20.0,
            operations_per_second: 900.0,
            checked_reads: 10_000,
            parent_resident_bytes_max: 210,
            child_resident_bytes_max: 150,
            dump_keys: 1_000,
            expected_keys: 1_000,
            stock_checksum: Some("ab".into()),
            dump_checksum: Some("ab".into()),
            time_line: vec![moment(5.0, 1_000.0, 0.01), moment(10.0, 700.0, 0.2), moment(15.0, 800.0, 0.1), moment(20.0, 1_000.0, 0.01)],
            resident: vec![ResidentMoment { at_seconds: 6.0, parent_bytes: 210, child_bytes: 150 }],
            ..SaveRecord::default()
        }
    }

    #[test]
    fn a_good_dump_has_no_problems_and_each_defect_is_one() {
        let good = record();
        assert_eq!(good.problems(), Vec::<String>::new());
        assert_eq!((good.before(), good.meanwhile()), (Some((1_000.0, 0.01)), Some((750.0, 0.2))));
        assert_eq!((good.resident_share(), good.values_over_local()), (Some(1.05), Some(8.0)));
        for (bad, part) in [
            (SaveRecord { dump_wrong: 1, first_problem: Some("key 7".into()), ..record() }, "records of the dump are WRONG"),
            (SaveRecord { dump_keys: 999, ..record() }, "999 keys instead of 1000"),
            (SaveRecord { ended_at_seconds: None, ..record() }, "not finished"),
            (SaveRecord { status: "err".into(), ..record() }, "\"err\""),
            (SaveRecord { child_resident_bytes_max: 221, ..record() }, "more resident"),
            (SaveRecord { dump_checksum: Some("ac".into()), ..record() }, "checksum over all keys"),
            (SaveRecord { missed_reads: 2, ..record() }, "missed"),
            (SaveRecord { wrong_values: 2, ..record() }, "2 WRONG"),
            (SaveRecord { refused: 2, ..record() }, "refused"),
            (SaveRecord { error: Some("it died".into()), ..record() }, "failed: it died"),
        ] {
            assert!(bad.problems()[0].contains(part), "{part}: {:?}", bad.problems());
        }
        // The kernel keeps stock Redis within the cgroup's limit, whatever each process has.
        assert!(SaveRecord { local_memory_bytes: None, child_resident_bytes_max: 399, ..record() }.problems().is_empty());
    }
}
