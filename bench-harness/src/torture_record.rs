//! What `torture --out` has written, for the report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Injected, but no error: the request succeeds later.
const DELAYS: &str = "delays";

/// A run of `torture`. What is judged must be in the file: a number that is missing is none that is 0.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TortureRecord {
    #[serde(default)]
    pub environment: Value,
    #[serde(default)]
    pub command: String,
    #[serde(default)]
    pub schedule: String,
    pub seed: u64,
    pub seconds: f64,
    pub requests: u64,
    pub values_checked: u64,
    pub misses: u64,
    pub errors: u64,
    #[serde(default)]
    pub connections_closed: u64,
    pub wrong_values: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_wrong: Option<String>,
    /// By kind.
    pub injected: BTreeMap<String, u64>,
    pub lost_items: u64,
    #[serde(default)]
    pub unexplained_misses: u64,
    pub crashed: bool,
    pub hung: bool,
    /// What ended the run, or went wrong otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl TortureRecord {
    /// Whether the content of a file is one of these, rather than results of runs.
    pub fn is_in(file: &Value) -> bool {
        ["injected", "schedule"].iter().all(|name| file.get(name).is_some())
    }

    /// Without delays.
    pub fn num_errors(&self) -> u64 {
        self.injected.iter().filter(|(kind, _)| *kind != DELAYS).map(|(_, count)| count).sum()
    }

    pub fn num_delays(&self) -> u64 {
        self.injected.get(DELAYS).copied().unwrap_or(0)
    }

    /// What must never happen, if it did.
    pub fn defect(&self) -> Option<String> {
        let first = self.first_wrong.as_deref().map_or_else(String::new, |text| format!("; the first: {text}"));
        match &self.failure {
            _ if self.wrong_values > 0 => Some(format!("{} wrong values{first}", self.wrong_values)),
            Some(text) if self.crashed => Some(format!("the server crashed: {text}")),
            Some(text) if self.hung => Some(format!("the server hung: {text}")),
            Some(text) => Some(text.clone()),
            None if self.crashed => Some("the server crashed".into()),
            None if self.hung => Some("the server hung".into()),
            None => None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record(num_errors: u64) -> TortureRecord {
        TortureRecord {
            command: "target/release/lightswap-bench torture --seconds 60 --out results/torture.json".into(),
            schedule: "read%0.03=EIO;read%0.02=<flip>".into(),
            seed: 7,
            seconds: 60.4,
            requests: 600_000,
            values_checked: 800_000,
            misses: 9_000,
            errors: 700,
            injected: BTreeMap::from([("read_errors".into(), num_errors), (DELAYS.into(), 5_000), ("dead".into(), 0)]),
            lost_items: 800,
            ..TortureRecord::default()
        }
    }

    #[test]
    fn what_torture_writes_is_read() {
        let mut written = crate::torture::an_outcome();
        assert!(TortureRecord::is_in(&written));
        let read = |value: &Value| serde_json::from_value::<TortureRecord>(value.clone());
        assert_eq!(read(&written).unwrap().defect(), None);
        written["crashed"] = true.into();
        written["failure"] = "signal 11".into();
        assert_eq!(read(&written).unwrap().defect().unwrap(), "the server crashed: signal 11");
        written.as_object_mut().unwrap().remove("wrong_values");
        assert!(read(&written).unwrap_err().to_string().contains("wrong_values"));
    }

    #[test]
    fn delays_are_no_errors() {
        let record = record(12);
        assert_eq!((record.num_errors(), record.num_delays()), (12, 5_000));
        assert!(TortureRecord { hung: true, ..record.clone() }.defect().is_some());
        let wrong = TortureRecord { wrong_values: 2, first_wrong: Some("k: a".into()), ..record };
        assert_eq!(wrong.defect().unwrap(), "2 wrong values; the first: k: a");
    }
}
