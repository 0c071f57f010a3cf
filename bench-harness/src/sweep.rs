//! The best settings of a configuration: what to try, and what to choose.

use std::collections::BTreeSet;

use crate::configuration::{Configuration, Settings};
use crate::results::Run;
use crate::ycsb::Workload;

/// Settings that are this close to the best for every workload are used for all: it saves restarts.
const NEARLY_BEST: f64 = 0.95;

/// The candidates of the next round: every value of one setting beside what is best of the others so far.
pub fn candidates(bases: &[Settings], setting: &str, values: &[String]) -> Vec<Settings> {
    let mut all: Vec<Settings> = Vec::new();
    for base in bases {
        for value in values {
            let mut candidate = base.clone();
            candidate.insert(setting.to_owned(), value.clone());
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
    }
    all
}

/// How many rounds there are, and the values of each.
pub fn rounds(configuration: &Configuration, quick: bool) -> impl Iterator<Item = (&str, &[String])> {
    configuration
        .sweep
        .iter()
        .map(move |sweep| (sweep.setting.as_str(), if quick { &*sweep.quick } else { &*sweep.values }))
        .filter(|(_, values)| !values.is_empty())
}

/// The best settings of each workload, or one for all when they are nearly the best for each. Nothing that worked: the default.
pub fn choose(swept: &[Run], workloads: &[Workload], default: &Settings) -> Vec<(Settings, Vec<Workload>)> {
    let tried: BTreeSet<&Settings> = swept.iter().filter(|run| run.details.error.is_none()).map(|run| &run.details.settings).collect();
    let speed = |workload: Workload, settings: &Settings| {
        swept
            .iter()
            .filter(|run| run.details.error.is_none() && run.workload == workload.name() && run.details.settings == *settings)
            .map(|run| run.operations_per_second)
            .fold(0.0, f64::max)
    };
    let best_of = |workload: Workload| tried.iter().copied().max_by(|&a, &b| speed(workload, a).total_cmp(&speed(workload, b)));
    // How far settings fall behind, at their worst workload.
    let worst_share = |settings: &Settings| {
        workloads.iter().filter_map(|&workload| Some(speed(workload, settings) / speed(workload, best_of(workload)?).max(1e-9))).fold(1.0, f64::min)
    };
    let common = tried.iter().copied().max_by(|&a, &b| worst_share(a).total_cmp(&worst_share(b)));
    match common {
        None => vec![(default.clone(), workloads.to_vec())],
        Some(settings) if worst_share(settings) >= NEARLY_BEST => vec![(settings.clone(), workloads.to_vec())],
        Some(_) => workloads.iter().map(|&workload| (best_of(workload).unwrap_or(default).clone(), vec![workload])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Details;

    const BOTH: [Workload; 2] = [Workload::C, Workload::A];

    fn threads(count: u32) -> Settings {
        Settings::from([("server_threads".into(), count.to_string())])
    }

    fn swept(speeds: &[(Workload, u32, f64)]) -> Vec<Run> {
        let run = |&(workload, count, operations_per_second): &(Workload, u32, f64)| Run {
            workload: workload.name().into(),
            operations_per_second,
            details: Details { settings: threads(count), ..Details::default() },
            ..Run::default()
        };
        speeds.iter().map(run).collect()
    }

    #[test]
    fn one_thread_count_serves_all_workloads_if_it_is_nearly_the_best() {
        let runs = swept(&[(Workload::C, 4, 97.0), (Workload::C, 8, 100.0), (Workload::A, 4, 100.0), (Workload::A, 8, 80.0)]);
        assert_eq!(choose(&runs, &BOTH, &threads(2)), [(threads(4), BOTH.to_vec())]);
    }

    #[test]
    fn otherwise_each_workload_gets_its_best() {
        let mut runs = swept(&[(Workload::C, 4, 60.0), (Workload::C, 8, 100.0), (Workload::A, 4, 100.0), (Workload::A, 8, 60.0)]);
        let expected = [(threads(8), vec![Workload::C]), (threads(4), vec![Workload::A])];
        assert_eq!(choose(&runs, &BOTH, &threads(2)), expected);
        assert_eq!(choose(&[], &BOTH, &threads(2)), [(threads(2), BOTH.to_vec())]);
        // What failed is not chosen, however fast it was.
        for run in &mut runs {
            if run.details.settings == threads(8) {
                run.details.error = Some("it died".into());
            }
        }
        assert_eq!(choose(&runs, &BOTH, &threads(2)), [(threads(4), BOTH.to_vec())]);
    }

    #[test]
    fn a_round_varies_one_setting() {
        let bases = [threads(4), threads(8), threads(4)];
        let values = ["0".to_owned(), "3".to_owned()];
        let found = candidates(&bases, "page_cluster", &values);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|settings| settings.len() == 2));
        assert_eq!(candidates(&bases, "server_threads", &values).len(), 2);
    }
}
