//! The subcommands `demo` and `grid`: a plan, its results, and what is said at the end.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::bgsave;
use crate::cli::{DemoArguments, GridArguments};
use crate::commands::{is_clean, set_up};
use crate::grid::{estimate_line, execute, print_plan};
use crate::journal::Journal;
use crate::out_file;
use crate::plan::{Plan, Wishes};
use crate::report;
use crate::results::Results;
use crate::server_kind::ServerKind;
use crate::table;

pub fn demo(arguments: &DemoArguments) -> Result<bool> {
    let started = Instant::now();
    let wishes = Wishes {
        quick: arguments.quick,
        configurations: Vec::new(),
        workloads: Vec::new(),
        ratios: Vec::new(),
        repetitions: arguments.repetitions,
        server_kind: if arguments.redis { ServerKind::Redis } else { ServerKind::Memcached },
        shape: arguments.shape.shape()?,
        data_type: arguments.shape.data_type,
    };
    let mut plan = Plan::demo(&wishes)?;
    let (out, html) = (arguments.file(&arguments.out, "json"), arguments.file(&arguments.html, "html"));
    if out_file::is_same(&out, &html) {
        bail!("--out and --html are the same file, {}", out.display());
    }
    out_file::check(&out)?;
    out_file::check(&html)?;
    let journal = Journal::open()?;
    // A demonstration is never a repetition of what a file says.
    let mut results = execute(&journal, &mut plan, &arguments.server, &out, true)?;
    if arguments.redis {
        save(&journal, arguments, &mut results)?;
        results.write(&out)?;
    }
    table::print(&results);
    bgsave::print(&results.saves);
    let clean = is_clean(&results.runs) && results.saves.iter().all(|record| record.problems().is_empty());
    out_file::write(&html, &report::html(&[results]))?;
    say!("results in {}, report in {}, after {:.0} s", out.display(), html.display(), started.elapsed().as_secs_f64());
    Ok(clean)
}

/// A dump under load, of kernel swap and of Lightswap, with the same records.
fn save(journal: &Journal, arguments: &DemoArguments, results: &mut Results) -> Result<()> {
    let (mut lab, _) = set_up(journal, &arguments.server)?;
    let (configurations, skipped) = bgsave::possible(&lab, &["redis-kernel-swap-ssd", "redis-lightswap"].map(str::to_owned))?;
    results.skipped.extend(skipped.into_iter().filter(|skipped| !results.skipped.contains(skipped)).collect::<Vec<_>>());
    if configurations.is_empty() {
        return Ok(());
    }
    note!("a dump under load");
    let plan = bgsave::Plan::of_demo(arguments.shape.shape_on(ServerKind::Redis, &[])?, arguments.quick);
    results.saves = bgsave::measure(&mut lab, &plan, &configurations, &results.runs)?;
    Ok(())
}

pub fn grid(arguments: &GridArguments) -> Result<bool> {
    let started = Instant::now();
    let wishes = Wishes {
        quick: arguments.quick,
        configurations: arguments.configurations.clone(),
        workloads: arguments.workloads.clone(),
        ratios: arguments.ratios.clone(),
        repetitions: arguments.repetitions,
        server_kind: if arguments.redis { ServerKind::Redis } else { ServerKind::Memcached },
        shape: arguments.shape.shape()?,
        data_type: arguments.shape.data_type,
    };
    let mut plan = Plan::grid(&wishes)?;
    if arguments.plan {
        return print_plan(&mut plan, &arguments.server.programs()).map(|()| true);
    }
    out_file::check(&arguments.out)?;
    let journal = Journal::open()?;
    note!("{}", estimate_line(plan.estimate(|_, _, _| false)));
    let results = execute(&journal, &mut plan, &arguments.server, &arguments.out, arguments.fresh)?;
    table::print(&results);
    for skipped in &results.skipped {
        say!("skipped: {}: {}", skipped.configuration, skipped.reason);
    }
    say!("results in {}, after {:.0} s", arguments.out.display(), started.elapsed().as_secs_f64());
    Ok(is_clean(&results.runs))
}
