//! The subcommands `demo` and `grid`: a plan, its results, and what is said at the end.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::cli::{DemoArguments, GridArguments};
use crate::commands::is_clean;
use crate::grid::{estimate_line, execute, print_plan};
use crate::journal::Journal;
use crate::out_file;
use crate::plan::{Plan, Wishes};
use crate::report;
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
    if out_file::is_same(&arguments.out, &arguments.html) {
        bail!("--out and --html are the same file, {}", arguments.out.display());
    }
    out_file::check(&arguments.out)?;
    out_file::check(&arguments.html)?;
    let journal = Journal::open()?;
    // A demonstration is never a repetition of what a file says.
    let results = execute(&journal, &mut plan, &arguments.server, &arguments.out, true)?;
    table::print(&results);
    let clean = is_clean(&results.runs);
    out_file::write(&arguments.html, &report::html(&[results]))?;
    say!("results in {}, report in {}, after {:.0} s", arguments.out.display(), arguments.html.display(), started.elapsed().as_secs_f64());
    Ok(clean)
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
