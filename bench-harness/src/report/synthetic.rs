//! Results as a full run makes them, for tests: the numbers are invented, only their kinds and orders of magnitude are right.

use crate::compare::micro_numbers;
use crate::configuration::BUILT_IN;
use crate::results::{AS_MUCH_IN_ALL, Details, Micro, Moment, Results, Run, Skipped};
use crate::tally::LatencyUs;

/// Configuration, backend, threads, throughput with all in memory and how much of it is lost when nothing is.
const CONFIGURATIONS: [(&str, &str, u32, f64, f64); 15] = [
    ("dram", "none", 2, 92_000.0, 0.0),
    ("lightswap-dram", "file", 2, 89_000.0, 0.0),
    ("lightswap", "file", 2, 88_000.0, 0.45),
    ("lightswap-memory", "memory", 2, 89_000.0, 0.25),
    ("fastswap-style", "file", 8, 87_000.0, 0.72),
    ("kernel-swap-ssd", "swap-file", 8, 91_000.0, 0.83),
    ("kernel-swap-zram", "swap-zram", 4, 91_000.0, 0.6),
    ("extstore", "extstore", 4, 90_000.0, 0.78),
    ("monitor", "file", 8, 80_000.0, 0.93),
    ("lightswap-remote", "nbd", 2, 88_000.0, 0.35),
    ("lightswap-mirror", "mirror(nbd,nbd)", 2, 88_000.0, 0.4),
    ("lightswap-encrypted", "encrypted(nbd)", 2, 88_000.0, 0.39),
    ("lightswap-compressed", "memory-lz4", 2, 89_000.0, 0.3),
    ("lightswap-tier", "tier(memory-lz4,nbd)", 2, 88_000.0, 0.34),
    ("fastswap-style-remote", "nbd", 8, 87_000.0, 0.75),
];
const WORKLOADS: [(&str, f64); 4] = [("ycsb-a", 0.9), ("ycsb-b", 0.97), ("ycsb-c", 1.0), ("ycsb-d", 1.05)];
const RATIOS: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.1];
const SECONDS: f64 = 10.0;
const DATA_BYTES: u64 = 600 << 20;

/// Repetitions differ by a few percent.
fn wobble(repetition: u32, index: usize) -> f64 {
    1.0 + (f64::from(repetition) - 2.0) * 0.03 + ((index * 7 % 5) as f64 - 2.0) * 0.008
}

fn buckets(p50_us: f64, operations: u64) -> Vec<(f64, u64)> {
    // Like a log-logistic distribution: its tail is a line on two logarithmic axes, as tails of queues nearly are.
    let below = |us: f64| 1.0 / (1.0 + (us / p50_us).powf(-3.2));
    let bounds: Vec<f64> = (0..220).map(|index| (p50_us / 12.0) * 1.045f64.powi(index)).collect();
    let count = |from: f64, to: f64| ((below(to) - below(from)) * operations as f64).round() as u64;
    bounds.windows(2).map(|pair| (pair[1], count(pair[0], pair[1]))).filter(|bucket| bucket.1 > 0).collect()
}

fn time_line(speed: f64, faults_per_operation: f64, limit_bytes: Option<u64>) -> Vec<Moment> {
    let moment = |index: usize| {
        let dip = if index % 17 == 9 { 0.55 } else { 1.0 };
        let operations_per_second = speed * dip * (1.0 + 0.06 * (index as f64 * 1.7).sin());
        let full = limit_bytes.unwrap_or(DATA_BYTES) as f64;
        Moment {
            at_seconds: (index + 1) as f64 * SECONDS / 50.0,
            operations_per_second,
            faults_per_second: operations_per_second * faults_per_operation,
            resident_bytes: (full * (0.98 - 0.02 * (index as f64 / 5.0).cos().abs())) as u64,
            longest_pause_seconds: 0.002,
        }
    };
    (0..50).map(moment).collect()
}

fn cell(workload: &str, configuration: usize, ratio: f64, speed: f64, repetition: u32) -> Run {
    let (name, backend, server_threads, _, _) = CONFIGURATIONS[configuration];
    let limit_bytes = (ratio < 1.0).then_some((DATA_BYTES as f64 * ratio) as u64);
    let p50 = 64.0 / speed * 0.8e6;
    let operations = (speed * SECONDS) as u64;
    let faults = if name.ends_with("dram") { 0.0 } else { (1.0 - ratio) * 0.8 };
    let pages_read = (operations as f64 * faults) as u64;
    let counted = [
        ("faults", operations / 1_000),
        ("touch_misses", pages_read),
        ("zero_fills", 0),
        ("prefetches", 0),
        ("swap_ins", pages_read),
        ("dirty_evictions", 0),
    ];
    Run {
        workload: workload.into(),
        server: "memcached".into(),
        configuration: name.into(),
        backend: backend.into(),
        local_memory_ratio: ratio,
        server_threads,
        connections: 64,
        repetition,
        operations_per_second: speed,
        latency_us: LatencyUs { p50, p90: p50 * 1.9, p99: p50 * 4.2, p999: p50 * 9.0, max: p50 * 40.0 },
        hit_ratio: 1.0,
        resident_bytes_max: limit_bytes.unwrap_or(DATA_BYTES),
        limit_bytes,
        server_cpu_seconds: operations as f64 * 9e-6,
        details: Details {
            transport: "tcp".into(),
            records: 500_000,
            value_size_bytes: 1_000,
            data_bytes: DATA_BYTES,
            duration_seconds: SECONDS,
            operations,
            checked_reads: operations / 2,
            server_command: format!("build/memcached-stock/memcached -t {server_threads} -m 774"),
            generator: "lightswap-bench".into(),
            distribution: match workload {
                "ycsb-d" => "latest".into(),
                "uniform" | "sequential" => workload.into(),
                _ => "zipfian".into(),
            },
            latency_buckets: buckets(p50, operations),
            time_line: time_line(speed, faults, limit_bytes),
            statistics_while_measured: counted.map(|(name, count)| (name.to_owned(), count)).into(),
            ..Details::default()
        },
        ..Run::default()
    }
}

/// Of every configuration of Redis, at the share of memory that is judged.
pub fn redis_runs() -> Vec<Run> {
    let of_name = |(name, _): (&'static str, &str)| {
        let own = name.strip_prefix("redis-")?;
        Some((name, CONFIGURATIONS.iter().position(|known| known.0 == own)?))
    };
    let of = |(name, index): (&str, usize)| {
        let ratio = if name.ends_with("dram") { 1.0 } else { 0.25 };
        let speed = if name.contains("kernel") { 0.3 } else { 1.0 } * speed_of(index, ratio);
        let one = |workload: &str, repetition: u32| {
            let run = cell(workload, index, ratio, speed, repetition);
            let resident = LatencyUs { p99: 900.0, ..LatencyUs::default() };
            let fixed_bytes_per_key = (name == "redis-lightswap").then_some(110.0);
            let details = Details { resident_latency_us: Some(resident), resident_reads: 5_000, fixed_bytes_per_key, ..run.details };
            Run { server: "redis".into(), configuration: name.into(), server_threads: 1, details, ..run }
        };
        ["ycsb-c", "ycsb-a"]
            .into_iter()
            .flat_map(|workload| (1..=2).map(move |repetition| (workload, repetition)))
            .map(|(w, r)| one(w, r))
            .collect::<Vec<_>>()
    };
    BUILT_IN.into_iter().filter_map(of_name).flat_map(of).collect()
}

fn speed_of(configuration: usize, ratio: f64) -> f64 {
    let (_, _, _, full, loss) = CONFIGURATIONS[configuration];
    full * (1.0 - loss * (1.0 - ratio).powf(0.6))
}

fn main_runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for repetition in 1..=3 {
        for (workload, factor) in WORKLOADS {
            for index in 0..CONFIGURATIONS.len() {
                let ratios = match index {
                    0 | 1 => &RATIOS[..1],
                    2..=8 => &RATIOS[..],
                    _ => &RATIOS[3..4],
                };
                for &ratio in ratios {
                    runs.push(cell(workload, index, ratio, speed_of(index, ratio) * factor * wobble(repetition, index), repetition));
                }
            }
        }
    }
    runs
}

/// Lightswap and kernel swap on other workloads and values, at 25 %.
fn other_runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for repetition in 1..=3 {
        for index in [2, 4, 5, 7] {
            let speed = speed_of(index, 0.25) * wobble(repetition, index);
            for (workload, factor) in [("ycsb-f", 0.8), ("uniform", 0.6)] {
                runs.push(cell(workload, index, 0.25, speed * factor, repetition));
            }
            // Read-ahead makes the kernel faster than Lightswap here.
            runs.push(cell("sequential", index, 0.25, speed * if index == 5 { 3.4 } else { 1.1 }, repetition));
            for (size, factor) in [(100, 1.1), (4_096, 0.7), (16_384, 0.35)] {
                let mut run = cell("ycsb-c", index, 0.25, speed * factor, repetition);
                run.details.value_size_bytes = size;
                runs.push(run);
            }
            let mut mixed = cell("ycsb-c", index, 0.25, speed * 0.8, repetition);
            mixed.details.value_mix = "100:40,1000:40,4096:15,16384:5".into();
            runs.push(mixed);
        }
    }
    runs
}

/// Compressed memory and zram with values that compress.
fn text_runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for repetition in 1..=3 {
        for (workload, factor) in &WORKLOADS[..3] {
            for (index, mib) in [(6, 190), (12, 225), (13, 260)] {
                let mut run = cell(workload, index, 0.25, speed_of(index, 0.25) * factor * wobble(repetition, index), repetition);
                run.details.value_kind = "text".into();
                run.details.backend_memory_bytes = Some(mib << 20);
                runs.push(run);
            }
        }
    }
    runs
}

fn open_loop_runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for repetition in 1..=3 {
        for (index, ratio) in [(0, 1.0), (2, 0.25), (4, 0.25), (5, 0.25), (6, 0.25)] {
            for due in [5_000.0, 10_000.0, 20_000.0, 40_000.0, 60_000.0] {
                let limit = speed_of(index, ratio);
                let load: f64 = due / limit;
                let wait_us = if load < 0.97 { 150.0 / (1.0 - load) } else { 400_000.0 * load };
                let mut run = cell("ycsb-c", index, ratio, due.min(limit), repetition);
                let p50 = wait_us * wobble(repetition, index);
                run.latency_us = LatencyUs { p50, p90: p50 * 2.0, p99: p50 * 5.0, p999: p50 * 12.0, max: p50 * 50.0 };
                run.details.due_per_second = Some(due);
                runs.push(run);
            }
        }
    }
    runs
}

fn swept_runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for (index, threads) in [(2, &[1, 2][..]), (4, &[2, 4, 8, 16]), (5, &[2, 4, 8, 16]), (7, &[2, 4, 8])] {
        for &server_threads in threads {
            let chosen = CONFIGURATIONS[index].2;
            let distance = (f64::from(server_threads) / f64::from(chosen)).log2().abs();
            let mut run = cell("ycsb-c", index, 0.25, speed_of(index, 0.25) * 0.75f64.powf(distance), 1);
            run.server_threads = server_threads;
            run.details.sweep = true;
            runs.push(run);
        }
    }
    runs
}

/// One that died, one with wrong values.
fn bad_runs() -> Vec<Run> {
    let mut died = cell("ycsb-f", 8, 0.1, 0.0, 2);
    died.details.error = Some("the server ended with signal 9 (SIGKILL)\nits last log lines:\nlightswap: ring 0 is full\nKilled <at once>".into());
    let mut wrong = cell("ycsb-f", 8, 0.25, 7_000.0, 1);
    wrong.wrong_values = 3;
    wrong.details.first_wrong_value = Some("user42: version 3 instead of 4".into());
    vec![died, wrong]
}

fn micro() -> Vec<Micro> {
    let mut micro = Vec::new();
    for workers in [1, 2] {
        let slower = f64::from(workers) * 0.4;
        let mut notify = |notifier: &str, lwts: u32, p50_us: f64| {
            micro.push(Micro::Notify { notifier: notifier.into(), lwts, workers, p50_us, p99_us: p50_us * 1.6 });
        };
        for lwts in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] {
            let growth = f64::from(lwts).log2();
            notify("sigbus", lwts, 2.2 + slower + growth * 0.03);
            notify("sigbus-suspended", lwts, 2.4 + slower + growth * 0.09);
            notify("monitor", lwts, 48.0 + slower * 9.0 + growth * 3.0);
        }
        notify("bare", 0, 2.1 + slower);
        notify("kernel", 0, 1.1 + slower);
    }
    for (backend, base, cpu) in [("file", 9_000.0, 10.3), ("memory", 140_000.0, 6.9)] {
        for contract in ["cooperative", "transparent"] {
            for (path, factor) in [("fault", 1.0), ("touch", 1.4)] {
                for workers in [1, 2] {
                    for lwts in [1, 8, 32, 128] {
                        let under_way = f64::from(workers * lwts);
                        let faults_per_second =
                            if backend == "file" { base * under_way / (1.0 + under_way / 14.0) } else { base * f64::from(workers) * 0.9 } * factor;
                        micro.push(Micro::Fault {
                            backend: backend.into(),
                            contract: contract.into(),
                            path: path.into(),
                            workers,
                            lwts,
                            faults_per_second,
                            cpu_us_per_fault: cpu / factor,
                        });
                    }
                }
            }
        }
    }
    for depth in [1, 8, 32, 128] {
        micro.push(Micro::DiskRead {
            tool: "fio".into(),
            jobs: 1,
            depth,
            reads_per_second: 130_000.0 * f64::from(depth) / (14.0 + f64::from(depth)),
        });
    }
    for (device, rate, cpu) in [("swap-ssd", 8_000.0, 21.0), ("swap-zram", 44_000.0, 22.0)] {
        for threads in [1, 2, 4, 8, 16] {
            let faults_per_second = rate * f64::from(threads).min(6.0).sqrt();
            micro.push(Micro::KernelSwap { device: device.into(), threads, faults_per_second, cpu_us_per_fault: cpu });
        }
    }
    let mut latency = |pager: &str, backend: &str, notifier: &str, p50_us: f64| {
        let contract = if pager == "kernel" { "" } else { "transparent" }.into();
        let record =
            Micro::FaultLatency { pager: pager.into(), backend: backend.into(), notifier: notifier.into(), contract, p50_us, p99_us: p50_us * 2.0 };
        micro.push(record);
    };
    latency("kernel", "swap-ssd", "kernel", 131.0);
    latency("kernel", "swap-zram", "kernel", 19.0);
    for (backend, io) in [("file", 62.0), ("memory", 0.6)] {
        for (notifier, notify) in [("sigbus", 2.6), ("touch", 0.1), ("monitor", 52.0)] {
            latency("lightswap", backend, notifier, notify + io + 4.4);
        }
    }
    for (backend, io) in [("file", 62.0), ("memory", 0.6)] {
        for (notifier, notify) in [("sigbus", 2.6), ("touch", 0.1), ("monitor", 52.0)] {
            for (step, p50_us) in [("notify", notify), ("queue", 0.9), ("io", io), ("map", 2.4), ("resume", 1.1), ("evict", 1.9)] {
                let contract = "transparent".into();
                micro.push(Micro::FaultStep { backend: backend.into(), notifier: notifier.into(), contract, step: step.into(), p50_us });
            }
        }
    }
    for lwts in [2, 16, 128, 1024] {
        micro.push(Micro::LwtSwitch { lwts, switch_ns: 9.0 + f64::from(lwts).log2() * 2.0 });
    }
    for gib in [1, 4, 16, 64, 256, 1024] {
        micro.push(Micro::RegionSize {
            region_bytes: gib << 30,
            contract: "transparent".into(),
            create_us: 30.0 + gib as f64,
            cpu_us_per_fault: 7.1,
            metadata_bytes: (gib << 22) + 65_536,
        });
    }
    for (transport, base) in [("unix", 30_000.0), ("tcp", 22_000.0)] {
        for depth in [1, 32, 128] {
            let rate = base * f64::from(depth).min(7.0);
            let of = |tool: &str, reads_per_second: f64| Micro::RemoteRead {
                tool: tool.into(),
                transport: transport.into(),
                connections: 1,
                depth,
                reads_per_second,
            };
            micro.extend([of("lightswap", rate), of("fio", rate * 0.6)]);
            micro.push(Micro::Fault {
                backend: format!("nbd-{transport}"),
                contract: "cooperative".into(),
                path: "touch".into(),
                workers: 1,
                lwts: depth,
                faults_per_second: rate * 0.7,
                cpu_us_per_fault: 6.0,
            });
        }
    }
    for (pager, contract, cpu_us_per_fault, bytes_per_page) in [
        ("lightswap", "transparent", 6.0, 1_760.0),
        ("lightswap", AS_MUCH_IN_ALL, 6.1, 1_760.0),
        ("lightswap", "cooperative", 5.0, 1_760.0),
        ("kernel", "", 14.0, 1_850.0),
    ] {
        let faults_per_second = 1e6 / cpu_us_per_fault;
        let (pager, contract) = (pager.into(), contract.into());
        micro.push(Micro::CompressedMemory {
            pager,
            contract,
            faults_per_second,
            cpu_us_per_fault,
            local_memory_bytes: 65_536.0 * 1_024.0,
            bytes_per_page,
            memory_bytes: bytes_per_page * 65_536.0,
        });
    }
    for (way, extra_us) in [("in", 1.4), ("out", 1.6)] {
        micro.push(Micro::Encryption { way: way.into(), extra_us, plain_us: 5.0 });
    }
    for connections in [1, 64, 512] {
        let requests_per_second = 260_000.0 * (1.0 - 0.8 / f64::from(connections));
        for server in ["null", "memcached"] {
            micro.push(Micro::Generator {
                generator: "lightswap-bench".into(),
                server: server.into(),
                connections,
                requests_per_second: if server == "null" { requests_per_second } else { 90_000.0 },
                generator_cpu_us_per_request: 3.4,
            });
        }
    }
    micro
}

fn environment() -> serde_json::Value {
    serde_json::json!({
        "started_unix_seconds": 1_795_386_845u64, "kernel": "6.18.44", "cpu": "AMD EPYC", "cpus": 2, "memory_bytes": 25_276_514_304u64,
        "transparent_hugepages": "always [madvise] never", "clock_source": "tsc", "file_system": "ext4 on /dev/vda", "commit": "4777b62ee352b679da88",
        "disk": {"tool": "fio", "measurements": [
            {"operation": "randread", "depth": 1, "operations_per_second": 17_325.8, "p50_us": 41.2, "p99_us": 66.0},
            {"operation": "randread", "depth": 128, "operations_per_second": 96_638.2, "p50_us": 1_269.8, "p99_us": 4_620.3}]},
        "versions": {"fio": "fio-3.33", "memcached-stock": "memcached 1.6.18"}
    })
}

pub fn micro_only() -> Results {
    let micro = micro();
    let range = |record: &Micro| {
        let first = micro_numbers(record)[0].2;
        (first * 0.96, first * 1.05)
    };
    Results {
        micro_ranges: micro.iter().map(range).collect(),
        micro,
        environment: environment(),
        command: "target/release/lightswap-bench micro all --json results/micro.json".into(),
        ..Results::default()
    }
}

/// Everything that the report knows to show.
pub fn full() -> Results {
    let runs = [redis_runs(), main_runs(), text_runs(), other_runs(), open_loop_runs(), swept_runs(), bad_runs()].concat();
    Results {
        command: "target/release/lightswap-bench reproduce --directory build/bench --out results/full.json".into(),
        runs,
        torture: vec![crate::torture_record::tests::record(188_152)],
        outages: vec![crate::outage_record::tests::record()],
        saves: vec![crate::save_record::tests::record()],
        skipped: vec![Skipped { configuration: "lightswap-nbd".into(), reason: "there is no server for remote memory <here>".into() }],
        ..micro_only()
    }
}
