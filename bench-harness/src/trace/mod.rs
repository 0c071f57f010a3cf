//! `trace`: the page faults of a running process that pages with Lightswap, from outside: how many, where, whose they were and how long the notification took.
//!
//! On a terminal the picture is drawn again after each interval. Elsewhere each interval is a line, and all of it follows at the end.

mod code;
mod heat_map;
mod interval;
mod record;
mod view;

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lightswap::tracer::{Snapshot, Tracer};

use crate::interrupt;
use crate::out_file;
use code::Code;
use heat_map::Area;
use interval::{Interval, RegionHeat};
use record::Record;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The process, such as a memcached or Redis with Lightswap
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
    /// Ends after so long; otherwise with the process, or with Ctrl-C
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Time between two pictures
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    interval: f64,
    /// One interval and one picture
    #[arg(long, conflicts_with = "seconds")]
    once: bool,
    /// Look at the instruction of each so-manyth fault, to tell which code faults; 0: of none
    #[arg(long, default_value_t = 64)]
    sample_every: u32,
    /// Write what was counted in all as JSON; - for standard output, which then has nothing else
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The hottest areas and pieces of code that are named.
const NUM_TOP: usize = 5;
/// How often it is looked whether it is to end.
const TICK: Duration = Duration::from_millis(50);

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds, 0.1 to 86400".into()),
    }
}

/// What was counted up to a moment.
struct Moment {
    at: Instant,
    snapshot: Snapshot,
    heat: Vec<RegionHeat>,
}

impl Moment {
    fn now(tracer: &Tracer) -> Self {
        let heat = tracer.regions().iter().map(|region| RegionHeat { start: region.start, end: region.end, faults: tracer.heat(region) }).collect();
        Self { at: Instant::now(), snapshot: tracer.snapshot(), heat }
    }

    fn since(&self, earlier: &Self) -> Interval {
        Interval::between((&earlier.snapshot, &earlier.heat), (&self.snapshot, &self.heat), self.at - earlier.at)
    }
}

pub fn run(options: &Options) -> Result<bool> {
    let json_to_stdout = options.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    if let Some(path) = options.json.as_ref().filter(|_| !json_to_stdout) {
        out_file::check(path)?;
    }
    let mut tracer = Tracer::attach(options.pid, options.sample_every)?;
    let mut code = Code::new(options.pid);
    let is_live = stdout().is_terminal() && !options.once && !json_to_stdout;
    let duration = if options.once { Some(options.interval) } else { options.seconds };
    let first = Moment::now(&tracer);
    let ends = duration.and_then(|seconds| first.at.checked_add(Duration::from_secs_f64(seconds)));
    let mut last = Moment::now(&tracer);
    let mut takes_part = tracer.takes_part();
    let mut is_first_frame = true;
    loop {
        let due = last.at + Duration::from_secs_f64(options.interval);
        let has_time = wait(ends.map_or(due, |ends| ends.min(due)), || {
            std::iter::from_fn(|| tracer.next_sample()).for_each(|sample| code.add(&sample));
        });
        let is_there = tracer.refresh().is_ok();
        takes_part |= is_there && tracer.takes_part();
        if is_there {
            code.learn();
        }
        let now = Moment::now(&tracer);
        let ended = !is_there || !has_time || ends.is_some_and(|ends| now.at >= ends);
        if is_live {
            let picture =
                view::picture(&view::Shown { pid: options.pid, interval: &now.since(&last), takes_part, code: &code }, view::Canvas::terminal());
            view::draw(&picture, is_first_frame);
            is_first_frame = false;
        } else if !options.once && !json_to_stdout {
            say!("{}", view::line(&now.since(&last), takes_part));
        }
        last = now;
        if ended {
            let all = last.since(&first);
            if !is_live && !json_to_stdout {
                say!("{}", view::picture(&view::Shown { pid: options.pid, interval: &all, takes_part, code: &code }, view::Canvas::plain()));
            }
            if !is_there {
                note!("process {} has ended", options.pid);
            }
            return write(options, &Record::new(options.pid, takes_part, &all, &code), json_to_stdout);
        }
    }
}

fn write(options: &Options, record: &Record, to_stdout: bool) -> Result<bool> {
    let Some(path) = &options.json else { return Ok(true) };
    let text = serde_json::to_string_pretty(record).context("cannot write JSON")?;
    if to_stdout {
        say!("{text}");
    } else {
        out_file::write(path, &(text + "\n"))?;
    }
    Ok(true)
}

/// Until then, with looks at what `tick` sees to; false when a signal asks for the end before.
fn wait(until: Instant, mut tick: impl FnMut()) -> bool {
    loop {
        tick();
        if interrupt::requested() {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(TICK));
    }
}
