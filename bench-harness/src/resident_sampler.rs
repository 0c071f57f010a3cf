//! How much a process and its children have resident, looked at often: a child that writes a dump lives for seconds only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::process;
use crate::save_record::ResidentMoment;

const INTERVAL: Duration = Duration::from_millis(20);
/// Of what is kept; the largest is known of all.
const KEPT: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Seen {
    moments: Vec<ResidentMoment>,
    last: ResidentMoment,
    parent_bytes_max: u64,
    child_bytes_max: u64,
    /// Whether the largest counts.
    is_counted: bool,
}

#[derive(Debug)]
pub struct ResidentSampler {
    started: Instant,
    seen: Mutex<Seen>,
    stopped: AtomicBool,
}

impl ResidentSampler {
    pub fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, pid: u32) {
        // A process that has ended has nothing resident.
        let parent_bytes = process::resident(pid).map_or(0, |resident| resident.now_bytes);
        let children: Vec<process::Resident> = process::children(pid).into_iter().filter_map(|child| process::resident(child).ok()).collect();
        let child_bytes = children.iter().map(|child| child.now_bytes).max().unwrap_or(0);
        let child_most = children.iter().map(|child| child.max_bytes).max().unwrap_or(0);
        let moment = ResidentMoment { at_seconds: self.started.elapsed().as_secs_f64(), parent_bytes, child_bytes };
        let mut seen = self.seen();
        if seen.is_counted {
            seen.parent_bytes_max = seen.parent_bytes_max.max(parent_bytes);
        }
        seen.child_bytes_max = seen.child_bytes_max.max(child_most);
        seen.last = moment;
        if seen.moments.last().is_none_or(|last| moment.at_seconds - last.at_seconds >= KEPT.as_secs_f64()) {
            seen.moments.push(moment);
        }
    }

    /// Looks until it is stopped.
    pub fn run(&self, pid: u32) {
        while !self.stopped.load(Ordering::Relaxed) {
            self.look(pid);
            std::thread::sleep(INTERVAL);
        }
    }

    /// From now on, or no longer.
    pub fn count(&self, is_counted: bool) {
        self.seen().is_counted = is_counted;
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What was seen, with times from this moment on, and the largest resident sets of the process, while it counted, and of a child.
    pub fn into_seen(self, from: Instant) -> (Vec<ResidentMoment>, u64, u64) {
        let shift = from.saturating_duration_since(self.started).as_secs_f64();
        let seen = self.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let shifted = seen.moments.into_iter().map(|moment| ResidentMoment { at_seconds: moment.at_seconds - shift, ..moment });
        (shifted.filter(|moment| moment.at_seconds >= 0.0).collect(), seen.parent_bytes_max, seen.child_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_while_it_lives() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let sampler = ResidentSampler::new();
        let from = Instant::now();
        let own = std::process::id();
        std::thread::scope(|scope| {
            scope.spawn(|| sampler.run(own));
            sampler.count(true);
            std::thread::sleep(Duration::from_millis(300));
            sampler.count(false);
            sampler.stop();
        });
        let _ = child.kill();
        let _ = child.wait();
        let (moments, parent, of_child) = sampler.into_seen(from);
        assert!(parent > 100_000 && of_child > 100_000, "{parent} {of_child}");
        assert!(!moments.is_empty() && moments.iter().all(|moment| moment.parent_bytes > 0));
    }
}
