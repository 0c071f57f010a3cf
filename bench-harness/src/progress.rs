//! Progress of a phase on stderr: a bar on a terminal, otherwise a line every few seconds.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const LINE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Progress {
    label: String,
    total: u64,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// `total` in whatever unit `update` counts.
    pub fn start(label: &str, total: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("{msg:44!} {wide_bar} {percent:>3} % {prefix}") {
                bar.set_style(style);
            }
            bar.set_message(label.to_owned());
            bar
        });
        let now = Instant::now();
        Self { label: label.to_owned(), total: total.max(1), bar, started: now, last_line: now }
    }

    pub fn update(&mut self, done: u64, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done.min(self.total));
            bar.set_prefix(detail.to_owned());
        } else if !detail.is_empty() && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let percent = done.min(self.total) * 100 / self.total;
            note!("{}: {percent} % {detail}", self.label);
        }
    }

    /// Leaves one line that says how it went.
    pub fn finish(self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        note!("{}: {detail} ({seconds:.1} s)", self.label);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
