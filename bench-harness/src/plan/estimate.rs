//! How long a plan takes, and what it is in words.

use std::time::Duration;

use super::{Load, Measurement, Plan, Target, data_label};
use crate::configuration::{Binary, Memory};
use crate::generator::WarmUp;
use crate::server_kind::ServerKind;
use crate::swap::SwapKind;
use crate::sweep::rounds;

impl Plan {
    /// How long all of it takes, about, on the kind of machine that the recorded results come from. Finished cells count as zero with `is_done`.
    pub fn estimate(&self, is_done: impl Fn(&Target, &Measurement, u32) -> bool) -> Duration {
        let mut seconds = 10.0;
        for stage in &self.stages {
            for (target, repetition) in stage.targets.iter().flat_map(|target| stage.repetitions.clone().map(move |repetition| (target, repetition)))
            {
                let left: Vec<_> = target.measurements.iter().filter(|measurement| !is_done(target, measurement, repetition)).collect();
                if !left.is_empty() {
                    seconds += load_seconds(target) + left.into_iter().map(|measurement| self.measuring_seconds(target, measurement)).sum::<f64>();
                }
            }
        }
        if seconds > 10.0 {
            seconds += self.shapes_of_limits().map(dry_run_seconds).sum::<f64>();
        }
        for configuration in self.configurations() {
            for data in self.swept_data(&configuration) {
                let rounds: Vec<usize> = rounds(&configuration, self.quick, data.again).map(|(_, values)| values.len()).collect();
                let tried: usize = rounds.iter().sum();
                // The best value of one setting is among the candidates of the next.
                let tried = if tried < 2 { 0 } else { tried + 1 - rounds.len() };
                let each = (self.warm_up_seconds(&data.target, true) + self.times.sweep_duration.as_secs_f64()) * data.workloads.len() as f64;
                seconds += tried as f64 * (load_seconds(&data.target) + each);
            }
        }
        Duration::from_secs_f64(seconds)
    }

    /// The kinds of records of which memory limits are parts, each with one of its targets.
    fn shapes_of_limits(&self) -> impl Iterator<Item = &Target> {
        let mut seen = Vec::new();
        self.targets().filter(|target| target.configuration.is_limited()).filter(move |target| {
            let is_new = !seen.contains(&target.shape);
            if is_new {
                seen.push(target.shape);
            }
            is_new
        })
    }

    fn measuring_seconds(&self, target: &Target, measurement: &Measurement) -> f64 {
        let duration = self.times.duration.as_secs_f64();
        match measurement.load {
            Load::Closed | Load::Open { .. } => self.warm_up_seconds(target, false) + duration,
            // Their warm-up is a run of its own, as long as it may last.
            Load::Memtier(_) | Load::RedisBenchmark => self.times.warm_up_max.as_secs_f64() + duration + 1.0,
        }
    }

    fn warm_up_seconds(&self, target: &Target, sweep: bool) -> f64 {
        let WarmUp { least, most, operations } = self.warm_up(target, sweep);
        let is_slow = target.configuration.swap_device == Some(SwapKind::File);
        let a_second = if is_slow { 20_000.0 } else { 50_000.0 };
        (operations as f64 / a_second).clamp(least.as_secs_f64(), most.as_secs_f64())
    }

    pub fn print(&self) {
        for stage in &self.stages {
            let count = stage.repetitions.clone().count();
            say!(
                "{} ({count}{} repetition{}):",
                stage.name,
                if *stage.repetitions.start() > 1 { " more" } else { "" },
                if count == 1 { "" } else { "s" }
            );
            for target in &stage.targets {
                let measurements: Vec<String> = target.measurements.iter().map(Measurement::label).collect();
                say!(
                    "  {:16} {:>3.0} %  {}  {}",
                    target.configuration.name,
                    target.ratio * 100.0,
                    data_label(&target.shape),
                    measurements.join(", ")
                );
            }
        }
        for configuration in self.configurations() {
            for data in self.swept_data(&configuration) {
                let workloads: Vec<&str> = data.workloads.iter().map(|workload| workload.name()).collect();
                for (setting, values) in rounds(&configuration, self.quick, data.again).filter(|(_, values)| values.len() > 1) {
                    say!(
                        "sweep of {}: {setting} {} at {:.0} %, {} of {}",
                        configuration.name,
                        values.join(", "),
                        data.target.ratio * 100.0,
                        workloads.join(" and "),
                        data_label(&data.target.shape)
                    );
                }
            }
        }
    }
}

/// Starting, loading and stopping, as measured where the recorded results come from.
fn load_seconds(target: &Target) -> f64 {
    let records = target.shape.records as f64;
    let megabytes = records * target.shape.value_sizes.mean() as f64 / 1e6;
    let configuration = &target.configuration;
    let (us_a_record, megabytes_per_second) = match (configuration.server_kind, configuration.memory, configuration.binary) {
        (_, Memory::Extstore, _) => (3.0, 36.0),
        (ServerKind::Memcached, Memory::KernelSwap, _) => (4.0, 150.0),
        (ServerKind::Memcached, _, Binary::Lightswap) => (4.0, 200.0),
        (ServerKind::Memcached, ..) => (4.0, 1_000.0),
        (ServerKind::Redis, Memory::KernelSwap, _) => (3.0, 200.0),
        (ServerKind::Redis, _, Binary::Lightswap) => (2.0, 500.0),
        (ServerKind::Redis, ..) => (2.0, 1_000.0),
    };
    1.0 + records * us_a_record / 1e6 + megabytes / megabytes_per_second
}

/// What is measured once of some records before the first memory limit: all in memory, and what Redis needs beside its local memory, twice.
fn dry_run_seconds(target: &Target) -> f64 {
    let runs = if target.configuration.server_kind == ServerKind::Redis { 3.0 } else { 1.0 };
    runs * load_seconds(target)
}
