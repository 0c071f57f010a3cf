//! `bgsave`: Redis writes a dump of more data than its local memory holds while it serves, and the dump is read and checked with a stock Redis.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cli::{Mistake, ServerArguments, ShapeArguments};
use crate::commands::{measure_data, set_up};
use crate::configuration::{Binary, Configuration, find, find_all};
use crate::endpoint::Endpoint;
use crate::environment::command_line;
use crate::generator::{Shape, WarmUp, verify_dump};
use crate::interrupt::{self, Interrupted};
use crate::journal::Journal;
use crate::keys::{Between, KeyTable};
use crate::lab::{Cell, DUMP, Lab};
use crate::out_file;
use crate::outcome::Boundary;
use crate::preflight;
use crate::redis_client::command;
use crate::report;
use crate::resident_sampler::ResidentSampler;
use crate::results::{Results, Run, Skipped};
use crate::same_dump::{self, CHECKED_DUMP, PATIENCE, is_saving};
use crate::save_record::SaveRecord;
use crate::server_kind::ServerKind;
use crate::session::{Timing, Watched};
use crate::table::new_table;
use crate::units::{MIB, format_count};
use crate::verify::Verified;
use crate::ycsb::Workload;

const WARM_UP: Duration = Duration::from_secs(3);
const QUICK: Duration = Duration::from_secs(10);
/// The dump begins after this part of the load.
const BEFORE: u32 = 6;
/// Where nothing tells what Redis with Lightswap needs beside its local memory.
const USUAL_RATIO: f64 = 0.25;

#[derive(Debug, Args)]
pub struct Options {
    /// 10 seconds of load instead of 30
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// Seconds of load; the dump begins after a sixth of them
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=86_400))]
    seconds: u64,
    /// B is 5 % updates, so that pages that belong to the dump change while it is written
    #[arg(long, value_enum, ignore_case = true, default_value = "b")]
    workload: Workload,
    /// Values are so many times as large as the local memory of Redis with Lightswap; all others get the same memory limit
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    times: u64,
    /// Names or paths of files
    #[arg(long, value_name = "NAME|FILE.toml", value_delimiter = ',', default_value = "redis-kernel-swap-ssd,redis-lightswap")]
    configurations: Vec<String>,
    /// Where the results go
    #[arg(long, value_name = "FILE", default_value = "results/bgsave.json")]
    out: PathBuf,
    /// Where the report goes
    #[arg(long, value_name = "FILE", default_value = "results/bgsave.html")]
    html: PathBuf,
    #[command(flatten)]
    server: ServerArguments,
    #[command(flatten)]
    shape: ShapeArguments,
}

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub shape: Shape,
    pub workload: Workload,
    pub duration: Duration,
    pub times: u64,
}

impl Plan {
    /// As the demonstration does it.
    pub fn of_demo(shape: Shape, quick: bool) -> Self {
        Self { shape, workload: Workload::B, duration: if quick { QUICK } else { Duration::from_secs(18) }, times: 8 }
    }
}

/// Begins the dump when it is time, and sees when it ends.
#[derive(Debug)]
struct Save<'s> {
    keys: Arc<KeyTable>,
    sampler: &'s ResidentSampler,
    begins_after: Duration,
    limit_bytes: Option<u64>,
    started: Option<Instant>,
    began_at: Option<f64>,
    ended_at: Option<f64>,
    /// What could be read at the fork.
    moment: Option<Between>,
}

impl Save<'_> {
    fn at(&self) -> f64 {
        self.started.map_or(0.0, |started| started.elapsed().as_secs_f64())
    }

    fn watch(&mut self, watched: &Watched<'_, '_>) -> Result<()> {
        let started = *self.started.get_or_insert_with(Instant::now);
        let endpoint = watched.server.endpoint();
        if self.began_at.is_none() && watched.boundary == Boundary::Tick && started.elapsed() >= self.begins_after {
            if let (Some(cgroup), Some(limit)) = (watched.cgroup, self.limit_bytes) {
                // Each of both processes has its limit.
                cgroup.raise_limit(2 * limit)?;
            }
            self.began_at = Some(self.at());
            self.sampler.count(true);
            let (answer, moment) = self.keys.between(|| command(endpoint, &["BGSAVE"]));
            answer?;
            self.moment = Some(moment);
        } else if self.began_at.is_some() {
            self.look(endpoint)?;
        }
        Ok(())
    }

    fn look(&mut self, endpoint: &Endpoint) -> Result<()> {
        if self.ended_at.is_none() && !is_saving(endpoint)? {
            self.ended_at = Some(self.at());
            self.sampler.count(false);
        }
        Ok(())
    }

    /// For a dump that takes longer than the load, by so much at most.
    fn await_end(&mut self, endpoint: &Endpoint) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.ended_at.is_none() && Instant::now() < end {
            interrupt::check()?;
            std::thread::sleep(Duration::from_millis(100));
            self.look(endpoint)?;
        }
        Ok(())
    }
}

/// A memory limit within which the values are so many times the local memory; the same for all configurations.
fn ratio(lab: &mut Lab<'_>, plan: &Plan, configurations: &[Rc<Configuration>]) -> Result<f64> {
    let cell = |configuration: &Rc<Configuration>| Cell {
        settings: configuration.settings.clone(),
        configuration: Rc::clone(configuration),
        ratio: USUAL_RATIO,
        shape: plan.shape,
    };
    for configuration in configurations.iter().filter(|configuration| configuration.is_limited()) {
        measure_data(lab, &cell(configuration))?;
    }
    let lightswap = configurations.iter().find(|configuration| configuration.binary == Binary::Lightswap && configuration.is_limited());
    let (Some(lightswap), Some(data)) = (lightswap, lab.data_bytes(&plan.shape)) else {
        return Ok(USUAL_RATIO);
    };
    let fixed = lab.fixed(&plan.shape, lab.server_of(lightswap)?).context("what Redis needs beside its local memory was not measured")?;
    let beside = fixed.with_margin(plan.shape.connections, plan.shape.protocol.is_indexed());
    Ok((values_bytes(&plan.shape) / plan.times + beside) as f64 / data as f64)
}

fn values_bytes(shape: &Shape) -> u64 {
    shape.records * shape.value_sizes.mean() as u64
}

/// One configuration after the other. What is known of the data from other runs is not measured again.
pub fn measure(lab: &mut Lab<'_>, plan: &Plan, configurations: &[Rc<Configuration>], known: &[Run]) -> Result<Vec<SaveRecord>> {
    lab.take_over(plan.shape, known)?;
    let ratio = ratio(lab, plan, configurations)?;
    let mut records = Vec::new();
    for configuration in configurations {
        let cell = Cell {
            settings: configuration.settings.clone(),
            configuration: Rc::clone(configuration),
            ratio: if configuration.is_limited() { ratio } else { 1.0 },
            shape: plan.shape,
        };
        preflight::check_cell(&cell, true, &lab.directory)?;
        lab.prepare(configuration, cell.backend_bytes())?;
        let mut record = measure_patiently(lab, plan, &cell)?;
        if record.is_lightswap() && record.error.is_none() {
            compare(lab, plan, &cell, &mut record)?;
        }
        records.push(record);
    }
    Ok(records)
}

/// Whether a dump equals one of stock Redis. A server that fails has no such dump, which is a problem of its record.
fn compare(lab: &Lab<'_>, plan: &Plan, cell: &Cell, record: &mut SaveRecord) -> Result<()> {
    record.stock_checksum = Some(same_dump::of_stock(lab, plan.shape)?);
    record.dump_checksum = Some(match same_dump::of_dump(lab, cell) {
        Err(error) if !error.is::<Interrupted>() => {
            note!("failed: {error:#}");
            record.first_problem.get_or_insert(format!("{error:#}"));
            "none".into()
        }
        result => result?,
    });
    Ok(())
}

/// A server that fails is tried once more and then gives a record with an error, so that the others are measured; a signal ends everything.
fn measure_patiently(lab: &Lab<'_>, plan: &Plan, cell: &Cell) -> Result<SaveRecord> {
    let is_final = |error: &anyhow::Error| error.is::<Interrupted>();
    let error = match measure_cell(lab, plan, cell) {
        Err(error) if !is_final(&error) => error,
        result => return result,
    };
    note!("failed: {error:#}");
    note!("once more: a kernel that is short of memory kills servers now and then");
    let error = match measure_cell(lab, plan, cell) {
        Err(error) if !is_final(&error) => error,
        result => return result,
    };
    note!("failed: {error:#}");
    let local_memory_bytes = lab.memory_plan(cell)?.local_memory_bytes;
    Ok(SaveRecord {
        configuration: cell.configuration.name.clone(),
        workload: plan.workload.name().into(),
        records: plan.shape.records,
        connections: plan.shape.connections,
        values_bytes: values_bytes(&plan.shape),
        local_memory_bytes,
        error: Some(format!("{error:#}")),
        ..SaveRecord::default()
    })
}

fn measure_cell(lab: &Lab<'_>, plan: &Plan, cell: &Cell) -> Result<SaveRecord> {
    let mut session = lab.session(cell)?;
    let timing = Timing {
        workload: plan.workload,
        distribution: None,
        warm_up: WarmUp::of_time(WARM_UP),
        duration: plan.duration,
        due_per_second: None,
        probe_per_second: None,
        repetition: 1,
        sweep: false,
    };
    let sampler = ResidentSampler::new();
    let limit_bytes = session.plan.process_limit_bytes();
    let mut save = Save {
        keys: session.generator.keys(),
        sampler: &sampler,
        begins_after: plan.duration / BEFORE,
        limit_bytes,
        started: None,
        began_at: None,
        ended_at: None,
        moment: None,
    };
    let pid = session.server.pid();
    let measured = std::thread::scope(|scope| {
        scope.spawn(|| sampler.run(pid));
        let measured = session.run_watched(timing, &mut |watched| save.watch(&watched)).and_then(|run| {
            save.await_end(session.server.endpoint())?;
            Ok(run)
        });
        sampler.stop();
        measured
    });
    let run = measured?;
    let status = same_dump::status(session.server.endpoint())?;
    let Save { started, began_at, ended_at, moment, .. } = save;
    let moment = moment.context("the load ended before the dump could begin")?;
    let label = cell.label();
    let checked = if ended_at.is_some() && status == "ok" {
        let _dump = lab.take_dump(DUMP, CHECKED_DUMP)?;
        session.finish();
        check_dump(lab, &label, plan.shape, &moment)?
    } else {
        session.finish();
        (0, Verified::default())
    };
    let (resident, parent_resident_bytes_max, child_resident_bytes_max) = sampler.into_seen(started.unwrap_or_else(Instant::now));
    let (dump_keys, verified) = checked;
    let details = run.details;
    Ok(SaveRecord {
        configuration: run.configuration,
        workload: run.workload,
        records: details.records,
        connections: run.connections,
        values_bytes: values_bytes(&plan.shape),
        limit_bytes,
        local_memory_bytes: details.local_memory_bytes,
        began_at_seconds: began_at.unwrap_or_default(),
        ended_at_seconds: ended_at,
        status,
        seconds: details.duration_seconds,
        operations_per_second: run.operations_per_second,
        longest_pause_seconds: details.longest_pause_seconds,
        longest_operation_seconds: run.latency_us.max / 1e6,
        checked_reads: details.checked_reads,
        missed_reads: details.missed_reads,
        refused: details.server_errors,
        wrong_values: run.wrong_values,
        parent_resident_bytes_max,
        child_resident_bytes_max,
        dump_keys,
        expected_keys: moment.existing,
        dump_missing: verified.missing,
        error: None,
        dump_wrong: verified.wrong + verified.refused,
        stock_checksum: None,
        dump_checksum: None,
        first_problem: details.first_wrong_value.or(details.first_server_error).or(verified.first),
        time_line: details.time_line,
        resident,
        memory_limit: details.memory_limit,
        server_command: details.server_command,
        server_statistics: details.server_statistics,
    })
}

/// The keys that a stock Redis finds in the dump, and what its records are.
fn check_dump(lab: &Lab<'_>, label: &str, shape: Shape, moment: &Between) -> Result<(u64, Verified)> {
    let (server, _files) = lab.start_on_dump(CHECKED_DUMP).context("a stock Redis does not start on the dump")?;
    let keys = command(server.endpoint(), &["DBSIZE"])?.parse().context("the number of keys is none")?;
    let verified = verify_dump(&format!("{label}: verifying the dump"), server.endpoint(), &shape, moment)?;
    server.stop();
    Ok((keys, verified))
}

/// Those that can run here; the reasons of the others.
pub fn possible(lab: &Lab<'_>, names: &[String]) -> Result<(Vec<Rc<Configuration>>, Vec<Skipped>)> {
    let (mut possible, mut skipped) = (Vec::new(), Vec::new());
    for configuration in find_all(names)? {
        let obstacle = configuration.obstacle().or_else(|| lab.check_program(&configuration).err().map(|error| format!("{error:#}")));
        match obstacle {
            None => possible.push(configuration),
            Some(reason) => {
                note!("skipped: {}: {reason}", configuration.name);
                skipped.push(Skipped { configuration: configuration.name.clone(), reason });
            }
        }
    }
    Ok((possible, skipped))
}

pub fn run(options: &Options) -> Result<bool> {
    for configuration in find_all(&options.configurations)? {
        if configuration.server_kind != ServerKind::Redis {
            return Err(Mistake(format!("{} is of {}, which writes no dumps", configuration.name, configuration.server_kind.name())).into());
        }
    }
    if options.workload.scans() {
        return Err(Mistake("YCSB E scans an index that is no part of what is checked in the dump; choose another --workload".into()).into());
    }
    let shape = options.shape.shape_on(ServerKind::Redis, &[options.workload])?;
    if out_file::is_same(&options.out, &options.html) {
        bail!("--out and --html are the same file, {}", options.out.display());
    }
    out_file::check(&options.out)?;
    out_file::check(&options.html)?;
    let journal = Journal::open()?;
    let (mut lab, environment) = set_up(&journal, &options.server)?;
    // The dump is read with it, whatever wrote it.
    lab.check_program(&*find(ServerKind::Redis.all_in_memory())?)?;
    // Half of a comparison is worth nothing.
    for configuration in find_all(&options.configurations)? {
        lab.check_program(&configuration)?;
    }
    let (configurations, skipped) = possible(&lab, &options.configurations)?;
    if configurations.is_empty() {
        bail!("none of the configurations can run here");
    }
    if !lab.limits_memory() {
        note!("No memory limit is set here, as it takes root and a cgroup; the server keeps to its local memory by itself.");
    }
    let duration = if options.quick { QUICK } else { Duration::from_secs(options.seconds) };
    let plan = Plan { shape, workload: options.workload, duration, times: options.times };
    let saves = measure(&mut lab, &plan, &configurations, &[])?;
    print(&saves);
    let is_good = saves.iter().all(|record| record.problems().is_empty());
    let results = Results { environment: serde_json::to_value(environment)?, command: command_line(), saves, skipped, ..Results::default() };
    results.write(&options.out)?;
    out_file::write(&options.html, &report::html(&[results]))?;
    say!("results in {}, report in {}", options.out.display(), options.html.display());
    Ok(is_good)
}

pub fn print(records: &[SaveRecord]) {
    let headings =
        ["dump of", "seconds", "operations/s before", "meanwhile", "longest pause ms", "parent / child / limit MiB", "keys", "missing", "wrong"];
    let mut table = new_table(&headings, 1);
    let mib = |bytes: u64| format_count((bytes / MIB) as f64);
    for record in records.iter().filter(|record| record.error.is_none()) {
        let rate = |phase: Option<(f64, f64)>| phase.map_or_else(|| "-".into(), |(rate, _)| format_count(rate));
        table.add_row([
            record.configuration.clone(),
            record.ended_at_seconds.map_or_else(|| "not finished".into(), |end| format!("{:.1}", end - record.began_at_seconds)),
            rate(record.before()),
            rate(record.meanwhile()),
            record.meanwhile().map_or_else(|| "-".into(), |(_, pause)| format!("{:.0}", pause * 1e3)),
            format!(
                "{} / {} / {}",
                mib(record.parent_resident_bytes_max),
                mib(record.child_resident_bytes_max),
                record.limit_bytes.map_or_else(|| "-".into(), mib)
            ),
            format_count(record.dump_keys as f64),
            record.dump_missing.to_string(),
            record.dump_wrong.to_string(),
        ]);
    }
    if records.iter().any(|record| record.error.is_none()) {
        say!("{table}\n");
    }
    for record in records {
        for problem in record.problems() {
            say!("FAILED: {}: {problem}", record.configuration);
        }
    }
}
