//! The best settings of a configuration: what to try, and what to choose.

use std::collections::BTreeSet;

use crate::configuration::{Configuration, Settings};
use crate::results::Run;
use crate::ycsb::Workload;

/// Settings that are this close to the best for every workload are used for all: it saves restarts, and short runs tell no smaller differences.
const NEARLY_BEST: f64 = 0.97;
/// Values are tried in their order until one falls so far behind the best for every workload: the values after it would be worse still.
const FAR_BEHIND: f64 = 0.9;

/// A candidate of the next round: a value of one setting beside what is best of the others so far.
pub fn candidate(base: &Settings, setting: &str, value: &str) -> Settings {
    let mut candidate = base.clone();
    candidate.insert(setting.to_owned(), value.to_owned());
    candidate
}

/// The rounds: a setting and its values. `again`: only settings that depend on how data lies on disk.
pub fn rounds(configuration: &Configuration, quick: bool, again: bool) -> impl Iterator<Item = (&str, &[String])> {
    configuration
        .sweep
        .iter()
        .filter(move |sweep| sweep.again || !again)
        .map(move |sweep| (sweep.setting.as_str(), if quick { &*sweep.quick } else { &*sweep.values }))
        .filter(|(_, values)| !values.is_empty())
}

fn speed(runs: &[Run], workload: Workload, settings: &Settings) -> f64 {
    let of_it = |run: &&Run| run.details.error.is_none() && run.workload == workload.name() && run.details.settings == *settings;
    runs.iter().filter(of_it).map(|run| run.operations_per_second).fold(0.0, f64::max)
}

/// Whether settings are so far behind the best of `runs` for every workload that values beyond need not be tried. Failed ones are.
pub fn is_far_behind(runs: &[Run], workloads: &[Workload], settings: &Settings) -> bool {
    let best = |workload: Workload| runs.iter().map(|run| speed(runs, workload, &run.details.settings)).fold(0.0, f64::max);
    workloads.iter().all(|&workload| speed(runs, workload, settings) < FAR_BEHIND * best(workload))
}

/// The best settings of each workload, or one for all when they are nearly the best for each. Nothing that worked: the default.
pub fn choose(swept: &[Run], workloads: &[Workload], default: &Settings) -> Vec<(Settings, Vec<Workload>)> {
    let tried: BTreeSet<&Settings> = swept.iter().filter(|run| run.details.error.is_none()).map(|run| &run.details.settings).collect();
    let speed = |workload: Workload, settings: &Settings| speed(swept, workload, settings);
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
        let runs = swept(&[(Workload::C, 4, 98.0), (Workload::C, 8, 100.0), (Workload::A, 4, 100.0), (Workload::A, 8, 80.0)]);
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
    fn values_are_tried_until_one_is_far_behind_for_all() {
        let mut runs = swept(&[(Workload::C, 4, 100.0), (Workload::A, 4, 50.0), (Workload::C, 8, 80.0), (Workload::A, 8, 46.0)]);
        assert!(!is_far_behind(&runs, &BOTH, &threads(4)) && !is_far_behind(&runs, &BOTH, &threads(8)));
        assert!(is_far_behind(&runs, &[Workload::C], &threads(8)));
        runs[3].details.error = Some("it died".into());
        assert!(is_far_behind(&runs, &BOTH, &threads(8)));
        // Nothing worked yet: go on.
        assert!(!is_far_behind(&runs[3..], &BOTH, &threads(8)));
    }

    #[test]
    fn some_settings_are_tried_again() {
        let kernel_swap = crate::configuration::find("kernel-swap-ssd").unwrap();
        let names = |quick, again| rounds(&kernel_swap, quick, again).map(|(setting, _)| setting.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(false, false), ["server_threads", "page_cluster"]);
        assert_eq!(names(false, true), ["page_cluster"]);
        assert_eq!(names(true, false), ["server_threads"]);
        assert_eq!(candidate(&threads(4), "page_cluster", "3").len(), 2);
        assert_eq!(candidate(&threads(4), "server_threads", "8"), threads(8));
    }
}
