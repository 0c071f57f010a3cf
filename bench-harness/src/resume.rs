//! Results that grow: written after each cell, and taken up again by a later run with the same plan.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::out_file;
use crate::results::{Results, Run, Skipped};

/// What identifies a cell: a readable name, which replaces an older cell of the same name, and a number that changes with its definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellName {
    readable: String,
    definition: u64,
}

const SEPARATOR: &str = " #";

impl CellName {
    /// `definition` is everything that results depend on, in any form that is the same for the same thing.
    pub fn new(readable: String, definition: &str) -> Self {
        Self { readable, definition: fingerprint(definition.as_bytes()) }
    }

    fn is_older_of(&self, cell: &str) -> bool {
        cell.split_once(SEPARATOR).is_some_and(|(readable, _)| readable == self.readable) && cell != self.to_string()
    }
}

impl std::fmt::Display for CellName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{SEPARATOR}{:016x}", self.readable, self.definition)
    }
}

/// FNV-1a: the same on every machine and with every compiler.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// A pipe or a device gets the results once, at the end.
    grows: bool,
    pub results: Results,
}

/// What makes a machine: results of another one are no part of the same table.
const MACHINE: [&str; 4] = ["cpu", "cpus", "kernel", "memory_bytes"];

impl Store {
    /// Takes up what is in the file, unless it is from another machine, is no result file, or is not wanted. What is not taken up is kept beside it.
    pub fn open(path: &Path, environment: Value, command: String, fresh: bool) -> Result<Self> {
        let grows = out_file::is_replaced(path)?;
        let mut store = Self { path: path.to_owned(), grows, results: Results { environment, command, ..Results::default() } };
        if !grows || !path.exists() || fresh {
            return Ok(store);
        }
        let unusable = match Results::read(path) {
            Ok(found) if MACHINE.iter().all(|name| found.environment[name] == store.results.environment[name]) => {
                if !found.runs.is_empty() {
                    note!("taking up {}: {} runs are there", path.display(), found.runs.len());
                }
                store.take_up(found);
                return Ok(store);
            }
            Ok(_) => "was measured on another machine".to_owned(),
            Err(error) => format!("is of no use ({error:#})"),
        };
        let kept = out_file::set_aside(path)?;
        note!("{} {unusable}; it is now {}, and all is measured again", path.display(), kept.display());
        Ok(store)
    }

    /// The file keeps its environment, with every commit that took part.
    fn take_up(&mut self, found: Results) {
        let now = self.results.environment["commit"].clone();
        self.results.environment = found.environment;
        if let (Some(before), Some(now)) = (self.results.environment["commit"].as_str(), now.as_str())
            && !before.contains(now)
        {
            self.results.environment["commit"] = format!("{before} and {now}").into();
        }
        (self.results.runs, self.results.micro) = (found.runs, found.micro);
    }

    /// The run of a finished cell.
    pub fn find(&self, cell: &CellName, repetition: u32) -> Option<&Run> {
        let name = cell.to_string();
        self.results.runs.iter().find(|run| run.details.cell == name && run.repetition == repetition && run.details.error.is_none())
    }

    /// Adds a run and writes the file. Runs of the same cell by an older definition go, as does a failed one of the same repetition.
    pub fn add(&mut self, cell: &CellName, mut run: Run) -> Result<()> {
        run.details.cell = cell.to_string();
        self.results
            .runs
            .retain(|old| !cell.is_older_of(&old.details.cell) && (old.details.cell != run.details.cell || old.repetition != run.repetition));
        self.results.runs.push(run);
        self.save()
    }

    pub fn skip(&mut self, configuration: &str, reason: &str) {
        let skipped = Skipped { configuration: configuration.into(), reason: reason.into() };
        if !self.results.skipped.contains(&skipped) {
            note!("skipped: {configuration}: {reason}");
            self.results.skipped.push(skipped);
        }
    }

    /// So that nothing is lost if the run is ended.
    pub fn save(&self) -> Result<()> {
        if self.grows { self.finish() } else { Ok(()) }
    }

    pub fn finish(&self) -> Result<()> {
        self.results.write(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Details;
    use std::fs;

    fn environment(cpu: &str, commit: &str) -> Value {
        serde_json::json!({ "cpu": cpu, "cpus": 2, "kernel": "6", "memory_bytes": 1, "commit": commit })
    }

    #[test]
    fn finished_cells_are_found_again_until_their_definition_changes() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-resume", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("out.json");
        let open = |cpu: &str, commit: &str, fresh| Store::open(&path, environment(cpu, commit), "x".into(), fresh).unwrap();
        let cell = CellName::new("dram 100 % ycsb-c".into(), "as it was");
        let changed = CellName::new("dram 100 % ycsb-c".into(), "as it is");
        let run = |repetition, speed| Run { repetition, operations_per_second: speed, ..Run::default() };

        let mut store = open("a", "one", false);
        assert!(store.find(&cell, 1).is_none());
        store.add(&cell, run(1, 10.0)).unwrap();
        let failed = Run { details: Details { error: Some("it died".into()), ..Details::default() }, ..run(2, 0.0) };
        store.add(&cell, failed).unwrap();

        // A later run: the finished one counts, the failed one is made again and replaced.
        let mut store = open("a", "two", false);
        assert_eq!(store.results.environment["commit"], "one and two");
        assert_eq!(store.find(&cell, 1).unwrap().operations_per_second, 10.0);
        assert!(store.find(&cell, 2).is_none() && store.find(&changed, 1).is_none());
        store.add(&cell, run(2, 20.0)).unwrap();
        assert_eq!(store.results.runs.len(), 2);

        // Another definition: all of the old ones go.
        store.add(&changed, run(1, 30.0)).unwrap();
        assert_eq!(store.results.runs.len(), 1);
        assert_eq!(open("a", "two", true).results.runs.len(), 0);
        assert_eq!(open("b", "two", false).results.runs.len(), 0);
        assert!(directory.join("out.json.previous").exists() && !path.exists());
        fs::write(&path, "{\"runs\": [").unwrap();
        assert_eq!(open("a", "two", false).results.runs.len(), 0);
        fs::remove_dir_all(&directory).unwrap();
    }
}
