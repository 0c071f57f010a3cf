//! `demo-remote`: memcached on a mirror of memory servers, one of which is killed in the middle and returns empty, with every answer checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::{Mistake, ServerArguments, ShapeArguments};
use crate::commands::{measure_data, set_up};
use crate::configuration::find;
use crate::environment::command_line;
use crate::generator::WarmUp;
use crate::journal::Journal;
use crate::lab::Cell;
use crate::out_file;
use crate::outage_record::{MirrorMoment, OutageRecord};
use crate::outcome::Boundary;
use crate::preflight;
use crate::report;
use crate::results::Results;
use crate::session::{Timing, Watched};
use crate::table::new_table;
use crate::units::format_count;
use crate::verify::Verified;
use crate::ycsb::Workload;

const WARM_UP: Duration = Duration::from_secs(3);
const QUICK: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Options {
    /// 20 seconds of load instead of 60
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// Seconds of load: a server is killed after a quarter of them, and is back, empty, after half
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(6..=86_400))]
    seconds: u64,
    /// B is 5 % updates, so that the other server misses pages of which there are newer ones
    #[arg(long, value_enum, ignore_case = true, default_value = "b")]
    workload: Workload,
    /// Memory limit of the whole server process as a part of the data
    #[arg(long, default_value = "0.25", value_parser = crate::cli::parse_ratio)]
    ratio: f64,
    /// A configuration with at least two memory servers: a name, or the path of a file
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "lightswap-mirror")]
    configuration: String,
    /// Where the results go
    #[arg(long, value_name = "FILE", default_value = "results/demo-remote.json")]
    out: PathBuf,
    /// Where the report goes
    #[arg(long, value_name = "FILE", default_value = "results/demo-remote.html")]
    html: PathBuf,
    #[command(flatten)]
    server: ServerArguments,
    #[command(flatten)]
    shape: ShapeArguments,
}

/// Kills and returns a server when it is time, and writes down what the mirror says.
#[derive(Debug, Default)]
struct Outage {
    duration: Duration,
    started: Option<Instant>,
    killed_at: Option<f64>,
    returned_at: Option<f64>,
    noticed_at: Option<f64>,
    in_sync_at: Option<f64>,
    mirror: Vec<MirrorMoment>,
}

/// Of a server whose statistics lack a name, nothing is known.
fn number(statistics: &BTreeMap<String, String>, name: &str) -> Option<u64> {
    statistics.get(name)?.parse().ok()
}

impl Outage {
    fn watch(&mut self, watched: &mut Watched<'_, '_>) -> Result<()> {
        let started = *self.started.get_or_insert_with(Instant::now);
        let at = started.elapsed().as_secs_f64();
        self.look(at, watched.statistics)?;
        if watched.boundary != Boundary::Tick {
            return Ok(());
        }
        // Half of the time is for being brought up to date, which takes the longest.
        let quarter = self.duration.as_secs_f64() / 4.0;
        if self.killed_at.is_none() && at >= quarter {
            // Before it: a process lets go of its memory before the kernel closes its sockets, and that takes time.
            self.killed_at = Some(started.elapsed().as_secs_f64());
            watched.memory_servers[0].kill();
        } else if self.killed_at.is_some() && self.returned_at.is_none() && at >= 2.0 * quarter {
            watched.memory_servers[0].restart()?;
            self.returned_at = Some(started.elapsed().as_secs_f64());
        }
        for (index, memory_server) in watched.memory_servers.iter_mut().enumerate() {
            let is_wanted = index > 0 || self.killed_at.is_none() || self.returned_at.is_some();
            if is_wanted && !memory_server.is_running() {
                bail!("memory server {} ended by itself", index + 1);
            }
        }
        Ok(())
    }

    /// The statistics were asked for before anything was done at this moment.
    fn look(&mut self, at_seconds: f64, statistics: &BTreeMap<String, String>) -> Result<()> {
        let (Some(members_lost), Some(stale_pages)) = (number(statistics, "mirror_members_lost"), number(statistics, "mirror_stale_pages")) else {
            bail!("the server's statistics tell nothing of a mirror (mirror_members_lost, mirror_stale_pages); use a backend mirror(...)");
        };
        let resynced_pages = number(statistics, "mirror_resynced_pages").unwrap_or(0);
        self.mirror.push(MirrorMoment { at_seconds, members_lost, stale_pages, resynced_pages });
        if self.killed_at.is_none() {
            return Ok(());
        }
        if members_lost > 0 || number(statistics, "mirror_losses").is_some_and(|losses| losses > 0) {
            self.noticed_at.get_or_insert(at_seconds);
        }
        let is_in_sync = members_lost == 0 && stale_pages == 0 && number(statistics, "mirror_resyncing").unwrap_or(0) == 0;
        if self.returned_at.is_some() && self.noticed_at.is_some() && is_in_sync {
            self.in_sync_at.get_or_insert(at_seconds);
        }
        Ok(())
    }
}

pub fn run(options: &Options) -> Result<bool> {
    let configuration = find(&options.configuration)?;
    if configuration.memory_servers < 2 {
        let (name, count) = (&configuration.name, configuration.memory_servers);
        let message = format!("{name} uses {count} memory server{}; it takes two, so that one can be killed", if count == 1 { "" } else { "s" });
        return Err(Mistake(message).into());
    }
    let shape = options.shape.shape_on(configuration.server_kind, &[options.workload])?;
    if let Some(obstacle) = configuration.obstacle() {
        bail!("{} cannot run here: {obstacle}", configuration.name);
    }
    if out_file::is_same(&options.out, &options.html) {
        bail!("--out and --html are the same file, {}", options.out.display());
    }
    out_file::check(&options.out)?;
    out_file::check(&options.html)?;
    let journal = Journal::open()?;
    let (mut lab, environment) = set_up(&journal, &options.server)?;
    lab.check_program(&*find(configuration.server_kind.all_in_memory())?)?;
    lab.check_program(&configuration)?;
    let cell = Cell { settings: configuration.settings.clone(), configuration, ratio: options.ratio, shape };
    preflight::check_cell(&cell, false, &lab.directory)?;
    if !lab.limits_memory() {
        note!("No memory limit is set here, as it takes root and a cgroup; the server keeps to its local memory by itself.");
    }
    measure_data(&mut lab, &cell)?;

    let duration = if options.quick { QUICK } else { Duration::from_secs(options.seconds) };
    let mut outage = Outage { duration, ..Outage::default() };
    let mut session = lab.session(&cell)?;
    let timing = Timing {
        workload: options.workload,
        distribution: None,
        warm_up: WarmUp::of_time(WARM_UP),
        duration,
        due_per_second: None,
        probe_per_second: None,
        repetition: 1,
        sweep: false,
    };
    let run = session.run_watched(timing, &mut |mut watched| outage.watch(&mut watched))?;
    let verified = session.verify()?;
    session.finish();

    let record = record_of(run, outage, verified);
    print(&record);
    let results =
        Results { environment: serde_json::to_value(environment)?, command: command_line(), outages: vec![record.clone()], ..Results::default() };
    results.write(&options.out)?;
    out_file::write(&options.html, &report::html(&[results]))?;
    say!("results in {}, report in {}", options.out.display(), options.html.display());
    Ok(record.problems().is_empty())
}

fn record_of(run: crate::results::Run, outage: Outage, verified: Verified) -> OutageRecord {
    let details = run.details;
    OutageRecord {
        configuration: run.configuration,
        workload: run.workload,
        local_memory_ratio: run.local_memory_ratio,
        records: details.records,
        connections: run.connections,
        killed_at_seconds: outage.killed_at.unwrap_or(details.duration_seconds),
        returned_at_seconds: outage.returned_at.unwrap_or(details.duration_seconds),
        noticed_at_seconds: outage.noticed_at,
        in_sync_at_seconds: outage.in_sync_at,
        seconds: details.duration_seconds,
        longest_pause_seconds: details.longest_pause_seconds,
        longest_operation_seconds: run.latency_us.max / 1e6,
        operations_per_second: run.operations_per_second,
        checked_reads: details.checked_reads,
        missed_reads: details.missed_reads,
        refused: details.server_errors + verified.refused,
        verified_records: verified.records,
        missing_records: verified.missing,
        wrong_values: run.wrong_values + verified.wrong,
        first_problem: details.first_wrong_value.or(details.first_server_error).or(verified.first),
        time_line: details.time_line,
        mirror: outage.mirror,
        memory_limit: details.memory_limit,
        server_command: details.server_command,
        server_statistics: details.server_statistics,
    }
}

fn print(record: &OutageRecord) {
    let mut table = new_table(&["", "from s", "to s", "operations/s", "longest pause ms"], 1);
    for phase in record.phases() {
        table.add_row([
            phase.name.to_owned(),
            format!("{:.1}", phase.from_seconds),
            format!("{:.1}", phase.to_seconds),
            format_count(phase.operations_per_second),
            format!("{:.0}", phase.longest_pause_seconds * 1e3),
        ]);
    }
    say!("{table}\n");
    say!(
        "{} of {} at {:.0} %: memory server 1 was killed at {:.1} s and was back, empty, at {:.1} s",
        record.configuration,
        record.workload,
        record.local_memory_ratio * 100.0,
        record.killed_at_seconds,
        record.returned_at_seconds
    );
    say!(
        "lost items {}, wrong values {} (of {} reads checked under load, and all {} records afterwards), longest time without any answer {:.0} ms, longest operation \
         {:.0} ms, {}",
        record.lost_items(),
        record.wrong_values,
        format_count(record.checked_reads as f64),
        format_count(record.verified_records as f64),
        record.longest_pause_seconds * 1e3,
        record.longest_operation_seconds * 1e3,
        record
            .resynchronised_after_seconds()
            .map_or_else(|| "NOT in sync again".into(), |after| format!("in sync again +{after:.1} s after the return"))
    );
    for problem in record.problems() {
        say!("FAILED: {problem}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(lost: u64, stale: u64, losses: u64) -> BTreeMap<String, String> {
        let pairs = [("mirror_members_lost", lost), ("mirror_stale_pages", stale), ("mirror_losses", losses)];
        pairs.map(|(name, value)| (name.to_owned(), value.to_string())).into()
    }

    #[test]
    fn in_sync_counts_only_after_a_loss_was_noticed_and_the_server_is_back() {
        let mut outage = Outage::default();
        outage.look(1.0, &statistics(0, 0, 0)).unwrap();
        outage.killed_at = Some(2.0);
        outage.look(2.1, &statistics(0, 0, 0)).unwrap();
        assert_eq!((outage.noticed_at, outage.in_sync_at), (None, None));
        outage.look(2.4, &statistics(1, 5, 1)).unwrap();
        outage.returned_at = Some(4.0);
        outage.look(4.1, &statistics(1, 50, 1)).unwrap();
        outage.look(4.4, &statistics(0, 40, 1)).unwrap();
        assert_eq!((outage.noticed_at, outage.in_sync_at), (Some(2.4), None));
        let mut resyncing = statistics(0, 0, 1);
        resyncing.insert("mirror_resyncing".into(), "1".into());
        outage.look(4.6, &resyncing).unwrap();
        assert_eq!(outage.in_sync_at, None);
        for at in [5.0, 6.0] {
            outage.look(at, &statistics(0, 0, 1)).unwrap();
        }
        assert_eq!(outage.in_sync_at, Some(5.0));
        assert_eq!(outage.mirror.iter().map(|moment| moment.stale_pages).max(), Some(50));
    }

    #[test]
    fn a_return_before_anybody_noticed_is_no_resynchronisation() {
        let mut outage = Outage { killed_at: Some(1.0), returned_at: Some(1.1), ..Outage::default() };
        outage.look(1.2, &statistics(0, 0, 0)).unwrap();
        assert_eq!((outage.noticed_at, outage.in_sync_at), (None, None));
        // It died and was found again between two looks.
        outage.look(1.4, &statistics(0, 0, 1)).unwrap();
        assert_eq!((outage.noticed_at, outage.in_sync_at), (Some(1.4), Some(1.4)));
    }

    #[test]
    fn statistics_without_a_mirror_are_an_error() {
        let error = Outage::default().look(0.0, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("mirror_stale_pages"), "{error}");
    }
}
