//! How long a plan takes, and what it is in words.

use std::time::Duration;

use super::{Measurement, Plan, Target, data_label};
use crate::configuration::{Binary, Memory};
use crate::sweep::rounds;

impl Plan {
    /// How long all of it takes, about, on the kind of machine that the recorded results come from. Finished cells count as zero with `is_done`.
    pub fn estimate(&self, is_done: impl Fn(&Target, &Measurement, u32) -> bool) -> Duration {
        let mut seconds = 10.0;
        for stage in &self.stages {
            for (target, repetition) in stage.targets.iter().flat_map(|target| (1..=stage.repetitions).map(move |repetition| (target, repetition))) {
                let left = target.measurements.iter().filter(|measurement| !is_done(target, measurement, repetition)).count();
                if left > 0 {
                    let warm_up = (self.times.warm_up * 3 + self.times.warm_up_max).as_secs_f64() / 4.0;
                    seconds += load_seconds(target) + (warm_up + self.times.duration.as_secs_f64()) * left as f64;
                }
            }
        }
        for configuration in self.configurations() {
            for data in self.swept_data(&configuration) {
                let rounds: Vec<usize> = rounds(&configuration, self.quick, data.again).map(|(_, values)| values.len()).collect();
                let tried: usize = rounds.iter().sum();
                // The best value of one setting is among the candidates of the next.
                let tried = if tried < 2 { 0 } else { tried + 1 - rounds.len() };
                let warm_up = (self.times.warm_up + self.times.sweep_warm_up_max).as_secs_f64() / 2.0;
                let each = (warm_up + self.times.sweep_duration.as_secs_f64()) * data.workloads.len() as f64;
                seconds += tried as f64 * (load_seconds(&data.target) + each);
            }
        }
        Duration::from_secs_f64(seconds)
    }

    pub fn print(&self) {
        for stage in &self.stages {
            say!("{} ({} repetition{}):", stage.name, stage.repetitions, if stage.repetitions == 1 { "" } else { "s" });
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
    let (us_a_record, megabytes_per_second) = match (target.configuration.memory, target.configuration.binary) {
        (Memory::Extstore, _) => (3.0, 36.0),
        (Memory::KernelSwap, _) => (4.0, 150.0),
        (_, Binary::Lightswap) => (4.0, 200.0),
        _ => (4.0, 1_000.0),
    };
    1.0 + records * us_a_record / 1e6 + megabytes / megabytes_per_second
}
