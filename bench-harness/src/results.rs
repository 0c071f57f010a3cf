//! The result files. The field names are stable: other tools and recorded results depend on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::out_file;
use crate::outage_record::OutageRecord;
use crate::save_record::SaveRecord;
use crate::tally::LatencyUs;
use crate::torture_record::TortureRecord;
use crate::ycsb::Workload;

/// One measured workload on one server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    pub workload: String,
    pub server: String,
    pub configuration: String,
    pub backend: String,
    pub local_memory_ratio: f64,
    pub server_threads: u32,
    pub connections: usize,
    pub repetition: u32,
    pub operations_per_second: f64,
    pub latency_us: LatencyUs,
    pub hit_ratio: f64,
    pub wrong_values: u64,
    pub resident_bytes_max: u64,
    /// Absent where memory is not limited.
    pub limit_bytes: Option<u64>,
    pub server_cpu_seconds: f64,

    #[serde(flatten)]
    pub details: Details,
}

impl Run {
    /// An open loop at more than the server can do: its latencies grow with the length of the run.
    pub fn is_saturated(&self) -> bool {
        self.details.due_per_second.is_some_and(|due| self.operations_per_second < 0.95 * due)
    }

    /// Why the run is no good, if so.
    pub fn problems(&self) -> Vec<String> {
        if let Some(error) = &self.details.error {
            return vec![format!("failed: {error}")];
        }
        let first = |example: &Option<String>| example.as_deref().map_or_else(String::new, |text| format!("; the first: {text}"));
        let mut problems = Vec::new();
        if self.wrong_values > 0 {
            problems.push(format!("{} WRONG VALUES{}", self.wrong_values, first(&self.details.first_wrong_value)));
        }
        if self.details.server_errors > 0 {
            problems.push(format!("the server refused {} operations{}", self.details.server_errors, first(&self.details.first_server_error)));
        }
        // The servers of a lab have room for all records. One that others started may have less, and D and E insert as long as they run.
        if self.configuration != EXTERNAL && ![Workload::D, Workload::E].map(Workload::name).contains(&self.workload.as_str()) {
            if self.details.evictions > 0 {
                problems.push(format!("the server evicted {} records, though it has room for all", self.details.evictions));
            }
            if self.hit_ratio < 1.0 {
                problems.push(format!("{:.4} % of the reads were misses, though every record was stored", (1.0 - self.hit_ratio) * 100.0));
            }
        }
        problems
    }
}

/// The configuration of a server that was there before.
pub const EXTERNAL: &str = "external";

/// Fields beyond the stable ones; readers must do without them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// A run that only looked for the best number of server threads.
    pub sweep: bool,
    /// Why there is no result; the numbers are then meaningless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why the cell had to be tried a second time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    pub transport: String,
    pub records: u64,
    pub value_size_bytes: usize,
    pub data_bytes: u64,
    pub warm_up_seconds: f64,
    /// On this server before measuring began, those of workloads before this one included.
    pub warm_up_operations: u64,
    pub duration_seconds: f64,
    pub operations: u64,
    /// Reads that found a value, every byte of which was checked. None where the generator checks nothing, or in older files.
    pub checked_reads: u64,
    pub missed_reads: u64,
    /// Open loop: due in the measured time and not finished at its end. They are in the latencies, with the time until then.
    pub unfinished_operations: u64,
    pub latency_by_operation_us: BTreeMap<String, LatencyUs>,
    pub server_errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_server_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_wrong_value: Option<String>,
    pub evictions: u64,
    pub major_faults: u64,
    /// The local memory that the server was given, where it manages it itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_memory_bytes: Option<u64>,
    /// What a Redis with Lightswap had resident beside its local memory in a dry run with all records, and how much of it each key takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_bytes_per_key: Option<f64>,
    /// How the memory limit of the configuration was kept to: `cgroup`, or `none` where no cgroup could be made (without root) and the server only keeps
    /// to its local memory by itself. Absent where the configuration has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_peak_bytes: Option<u64>,
    /// Memory for swapped-out pages that is not part of the limit: what a zram device, compressed memory or memory servers used at the end of the run, or
    /// all of an uncompressed backend in the server's process (its cgroup's limit is higher by this).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_memory_bytes: Option<u64>,
    /// Where records were loaded no faster than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_records_per_second: Option<f64>,
    pub server_command: String,
    /// What identifies the cell within its repetition; a run of the same name and repetition need not be made again.
    pub cell: String,
    /// Everything of the configuration that a sweep tries or has chosen, such as `server_threads`, `page_cluster`, `ext_threads`.
    pub settings: BTreeMap<String, String>,
    /// Of keys: zipfian, uniform, latest, sequential.
    pub distribution: String,
    /// Sizes of values and their shares in percent, such as `100:40,1000:40,4096:20`; empty where all have `value_size_bytes`.
    pub value_mix: String,
    /// What values are made of: `text`, which compresses; empty where they are random characters.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value_kind: String,
    /// How Redis keeps records: `hashes`, or `hash fields` where one of their fields is read; empty for strings, and in memcached.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub data_type: String,
    /// All keys are also in a sorted set, by which they are scanned.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_indexed: bool,
    /// Reads of a few keys that stay in memory, beside the load and not counted in it, which were due evenly spaced. Their latencies count from then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_latency_us: Option<LatencyUs>,
    pub resident_reads: u64,
    /// The program that made the load.
    pub generator: String,
    /// Open loop: requests a second that were due. Latencies then count from when a request was due. Absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_per_second: Option<f64>,
    pub generator_cpu_seconds: f64,
    /// Upper bounds in microseconds, rising, and how many operations lie below each and above the one before; empty buckets are left out.
    pub latency_buckets: Vec<(f64, u64)>,
    /// For this long no operation completed on any connection, at most. None in older files.
    pub longest_pause_seconds: f64,
    /// The measured time in equal pieces.
    pub time_line: Vec<Moment>,
    /// What the server itself says at the end of the run (`stats lightswap`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_statistics: BTreeMap<String, String>,
    /// How much each of the server's counters rose while it was measured, without warm-up and loading. Empty where the server has none, or in older files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub statistics_while_measured: BTreeMap<String, u64>,
}

/// A piece of a run's time line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// End of the piece, from the start of measuring.
    pub at_seconds: f64,
    pub operations_per_second: f64,
    /// Major faults of the kernel, or swap-ins where the server pages for itself.
    pub faults_per_second: f64,
    pub resident_bytes: u64,
    /// For this long no operation completed, in this piece or until it. None in older files.
    #[serde(default)]
    pub longest_pause_seconds: f64,
}

/// A configuration that was asked for and could not be run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub configuration: String,
    pub reason: String,
}

/// In place of a contract: the transparent one, with so much less local memory that it takes as much memory as zram in all.
pub const AS_MUCH_IN_ALL: &str = "transparent, as much memory in all";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Micro {
    Notify {
        /// "sigbus", "monitor" or "ebpf"; "traced": "sigbus" as a tracer sees it, from the kernel's entry on (see `NotifyTrace`); "bare" is a plain SIGBUS
        /// handler without Lightswap, "kernel" the kernel's own first-touch fault from
        /// access to access. "sigbus-suspended": each LWT waits inside its handler for a disk, so that as many signal frames are alive as LWTs.
        notifier: String,
        lwts: u32,
        workers: u32,
        p50_us: f64,
        p99_us: f64,
    },
    /// The series "traced" of `Notify`, from the kernel's entry to the handler, beside what the same faults took by the clock of the code that faulted.
    NotifyTrace {
        lwts: u32,
        workers: u32,
        /// What the tracer saw and what lies before that, `entry_us`, over what the code saw.
        agreement: f64,
        traced_p50_us: f64,
        in_process_p50_us: f64,
        /// From the access to the kernel's entry, as first touches of other memory take it.
        entry_us: f64,
        /// What faults take longer while they are traced.
        cost_us: f64,
    },
    Fault {
        backend: String,
        contract: String,
        path: String,
        workers: u32,
        lwts: u32,
        faults_per_second: f64,
        cpu_us_per_fault: f64,
    },
    /// What another tool reads from the same file, in turn with `Fault`.
    DiskRead {
        tool: String,
        jobs: u32,
        depth: u32,
        reads_per_second: f64,
    },
    /// From the faulting access to the retried one, one fault at a time, others idle.
    FaultLatency {
        /// "lightswap" or "kernel".
        pager: String,
        /// Lightswap's backend, or the kernel's swap device: memory, file, swap-ssd, swap-zram.
        backend: String,
        /// sigbus, monitor, kernel; "sigbus-sigreturn" if the handler goes back by that system call; "touch" when asked for before the access.
        notifier: String,
        /// Of the region: "transparent" or "cooperative". Empty for the kernel, and in older files, which measured cooperative ones only.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        contract: String,
        p50_us: f64,
        p99_us: f64,
    },
    /// One step of the faults of `FaultLatency`: notify, queue, io, map, resume; evict is the time spent on evicting, a page.
    FaultStep {
        backend: String,
        notifier: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        contract: String,
        step: String,
        p50_us: f64,
    },
    /// Random accesses of several threads to memory that the kernel swaps, in a cgroup.
    KernelSwap {
        device: String,
        threads: u32,
        faults_per_second: f64,
        cpu_us_per_fault: f64,
    },
    /// From one LWT to another of the same worker.
    LwtSwitch {
        lwts: u32,
        switch_ns: f64,
    },
    /// The same number of resident and swapped pages in regions of several sizes, spread over all of the region.
    RegionSize {
        region_bytes: u64,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        contract: String,
        create_us: f64,
        cpu_us_per_fault: f64,
        /// Resident memory of the process beyond local memory and backend after the faults.
        metadata_bytes: u64,
    },
    /// Random reads of 4 KiB from a memory server, the same for all tools, in turn.
    RemoteRead {
        /// "lightswap": the backend by itself; "fio": its nbd engine.
        tool: String,
        /// "unix" or "tcp", on one machine.
        transport: String,
        connections: u32,
        depth: u32,
        reads_per_second: f64,
    },
    /// Random accesses of one thread to memory of which a part is local and the rest compressed in memory.
    CompressedMemory {
        /// "lightswap" or "kernel": zram.
        pager: String,
        /// Ours; or [`AS_MUCH_IN_ALL`].
        #[serde(default, skip_serializing_if = "String::is_empty")]
        contract: String,
        faults_per_second: f64,
        cpu_us_per_fault: f64,
        #[serde(default)]
        local_memory_bytes: f64,
        /// Memory for a page of 4 KiB that is swapped out, bookkeeping included.
        bytes_per_page: f64,
        /// All that is taken for the data beside its local memory.
        memory_bytes: f64,
    },
    /// CPU time that encryption adds to a page.
    Encryption {
        /// "in" or "out".
        way: String,
        extra_us: f64,
        /// Of a fault without encryption, everything included: one that only reads, or one that makes a page dirty, too.
        plain_us: f64,
    },
    /// What a load generator can do, against a server of its own that answers without work ("null") or a real one.
    Generator {
        generator: String,
        server: String,
        connections: u32,
        requests_per_second: f64,
        generator_cpu_us_per_request: f64,
    },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Results {
    pub environment: Value,
    pub command: String,
    pub runs: Vec<Run>,
    pub micro: Vec<Micro>,
    /// Smallest and largest of the repetitions for each record of `micro`, of its first measured number (such as `p50_us` or `faults_per_second`), of which
    /// the record has the median. Empty in older files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub micro_ranges: Vec<(f64, f64)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// What a file of `torture` holds, in the form of the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub torture: Vec<TortureRecord>,
    /// Memory servers that were killed under load.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outages: Vec<OutageRecord>,
    /// Dumps of Redis under load.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub saves: Vec<SaveRecord>,
}

/// What the repetitions of a micro-benchmark's first number were, as far as is known: itself, and the smallest and the largest.
pub fn repetitions(median: f64, range: Option<(f64, f64)>) -> Vec<f64> {
    range.map_or_else(|| vec![median], |(smallest, largest)| vec![smallest, median, largest])
}

impl Results {
    /// The micro-benchmarks, each with the range of its first number where it is known.
    pub fn micro_with_ranges(&self) -> impl Iterator<Item = (&Micro, Option<(f64, f64)>)> {
        let has_all = self.micro.len() == self.micro_ranges.len();
        self.micro.iter().enumerate().map(move |(index, record)| (record, has_all.then(|| self.micro_ranges[index])))
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
            && self.micro.is_empty()
            && self.skipped.is_empty()
            && self.torture.is_empty()
            && self.outages.is_empty()
            && self.saves.is_empty()
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no result file of lightswap-bench", path.display()))
    }

    fn parse(text: &str) -> serde_json::Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        if !TortureRecord::is_in(&value) {
            // From the text: the error then names line and column.
            return serde_json::from_str(text);
        }
        let record: TortureRecord = serde_json::from_value(value)?;
        Ok(Self { environment: record.environment.clone(), command: record.command.clone(), torture: vec![record], ..Self::default() })
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        out_file::write(path, &(text + "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn a_run_has_the_stable_field_names() {
        let value = serde_json::to_value(Run::default()).unwrap();
        for name in [
            "workload",
            "server",
            "configuration",
            "backend",
            "local_memory_ratio",
            "server_threads",
            "connections",
            "repetition",
            "operations_per_second",
            "latency_us",
            "hit_ratio",
            "wrong_values",
            "resident_bytes_max",
            "limit_bytes",
            "server_cpu_seconds",
        ] {
            assert!(value.get(name).is_some(), "{name}");
        }
        let mut latency = names(&value["latency_us"]);
        latency.sort_unstable();
        assert_eq!(latency, ["max", "p50", "p90", "p99", "p999"]);
        let mut file = serde_json::to_value(Results::default()).unwrap();
        file.sort_all_objects();
        assert_eq!(names(&file), ["command", "environment", "micro", "runs"]);
    }

    #[test]
    fn micro_benchmarks_have_the_stable_form() {
        let text = r#"[{"name":"notify","notifier":"sigbus","lwts":8,"workers":1,"p50_us":3.5,"p99_us":9.0},
            {"name":"fault","backend":"memory","contract":"cooperative","path":"touch","workers":1,"lwts":1,
             "faults_per_second":200000.0,"cpu_us_per_fault":5.0}]"#;
        let micro: Vec<Micro> = serde_json::from_str(text).unwrap();
        let again = serde_json::to_value(&micro).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn what_no_server_with_room_for_all_does_is_a_problem() {
        let good = Run { workload: "ycsb-c".into(), configuration: "lightswap".into(), hit_ratio: 1.0, ..Run::default() };
        assert!(good.problems().is_empty());
        let evicting = |run: &Run| Run { hit_ratio: 0.5, details: Details { evictions: 1, ..Details::default() }, ..run.clone() };
        assert_eq!(evicting(&good).problems().len(), 2);
        for exempt in [Run { configuration: EXTERNAL.into(), ..good.clone() }, Run { workload: "ycsb-d".into(), ..good.clone() }] {
            assert!(evicting(&exempt).problems().is_empty());
        }
        let refusing = Run { configuration: EXTERNAL.into(), details: Details { server_errors: 2, ..Details::default() }, ..good };
        assert!(refusing.problems()[0].contains("refused 2"));
    }

    #[test]
    fn files_without_the_details_are_read() {
        let text = r#"{"environment":{},"command":"x","micro":[],"runs":[{"workload":"ycsb-c","server":"memcached",
            "configuration":"dram","backend":"none","local_memory_ratio":1.0,"server_threads":2,"connections":64,"repetition":1,
            "operations_per_second":5.0,"latency_us":{"p50":1.0,"p90":1.0,"p99":1.0,"p999":1.0,"max":1.0},"hit_ratio":1.0,
            "wrong_values":0,"resident_bytes_max":1,"limit_bytes":null,"server_cpu_seconds":1.0}]}"#;
        let results: Results = serde_json::from_str(text).unwrap();
        assert_eq!(results.runs[0].limit_bytes, None);
        assert!(results.runs[0].details.statistics_while_measured.is_empty());
        assert!(!results.runs[0].details.sweep);
    }
}
