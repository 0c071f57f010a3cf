//! What a plan needs of the machine, checked before anything starts, all at once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lightswap::format_size;

use crate::configuration::{Binary, Memory};
use crate::lab::{Cell, Lab, NotPossible};
use crate::memtier;
use crate::plan::{MEMTIER_STAGE, Plan, Target};
use crate::process::kib_field;
use crate::server;
use crate::swap::{SwapKind, free_bytes};
use crate::units::MIB;

/// The disk probe's file and a margin.
const DISK_MARGIN_BYTES: u64 = 512 * MIB;
/// The load generator, the page cache of running programs, and a margin.
const MEMORY_MARGIN_BYTES: u64 = 512 * MIB;

/// Most that the plan ever needs at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Needs {
    disk_bytes: u64,
    memory_bytes: u64,
}

fn needs(plan: &Plan) -> Needs {
    let mut swap_file = 0;
    let mut backend_file = 0;
    let mut memory = 0;
    for target in plan.targets() {
        let cell = default_cell(target);
        let configuration = &target.configuration;
        let all = cell.memory_mib() * MIB;
        let file = match configuration.memory {
            Memory::Extstore => all * 3,
            Memory::Ample => cell.backend_bytes(),
            Memory::Local if !configuration.backend_in_process => cell.backend_bytes(),
            _ => 0,
        };
        backend_file = backend_file.max(file);
        let mut in_memory = if configuration.is_limited() { (all as f64 * target.ratio) as u64 } else { all * 5 / 4 };
        match configuration.swap_device {
            Some(SwapKind::File) => swap_file = swap_file.max(cell.backend_bytes()),
            // Values are random text, which hardly shrinks.
            Some(SwapKind::Zram) => in_memory += cell.backend_bytes(),
            None if configuration.backend_in_process => in_memory += cell.backend_bytes(),
            None => {}
        }
        // The generator keeps a word for each key.
        memory = memory.max(in_memory + target.shape.records * 8);
    }
    Needs { disk_bytes: swap_file + backend_file + DISK_MARGIN_BYTES, memory_bytes: memory + MEMORY_MARGIN_BYTES }
}

pub fn default_cell(target: &Target) -> Cell {
    Cell { configuration: target.configuration.clone(), ratio: target.ratio, settings: target.configuration.settings.clone(), shape: target.shape }
}

/// Leaves out of the plan what cannot run here, with the reasons.
pub fn leave_out_impossible(plan: &mut Plan, has_lightswap: bool) -> Vec<(String, String)> {
    let mut left_out = Vec::new();
    if plan.stages.iter().any(|stage| stage.name == MEMTIER_STAGE) && memtier::find().is_none() {
        plan.stages.retain(|stage| stage.name != MEMTIER_STAGE);
        left_out.push((memtier::NAME.into(), "it is not on PATH".into()));
    }
    for configuration in plan.configurations() {
        let no_binary =
            || (configuration.binary == Binary::Lightswap && !has_lightswap).then(|| "no --memcached-lightswap PATH was given".to_owned());
        if let Some(reason) = configuration.obstacle().or_else(no_binary) {
            plan.leave_out(&configuration.name);
            left_out.push((configuration.name.clone(), reason));
        }
    }
    left_out
}

/// An error that names everything that is missing.
pub fn check(plan: &Plan, lab: &Lab<'_>) -> Result<()> {
    let mut missing = Vec::new();
    let binaries: Vec<Binary> = plan.configurations().iter().map(|configuration| configuration.binary).collect();
    // Limits are parts of what stock memcached needs.
    let needs_stock = binaries.contains(&Binary::Stock) || plan.targets().any(|target| target.configuration.is_limited());
    for binary in [Binary::Stock, Binary::Lightswap] {
        let needed = binaries.contains(&binary) || (binary == Binary::Stock && needs_stock);
        if needed && let Err(error) = lab.binary(binary).and_then(server::version) {
            missing.push(format!("{error:#}"));
        }
    }
    missing.extend(missing_room(needs(plan), &lab.directory)?);
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this cannot start:\n  {}", missing.join("\n  "))
}

fn missing_room(needs: Needs, directory: &Path) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let free = free_bytes(directory)?;
    if free < needs.disk_bytes {
        missing.push(format!(
            "not enough disk: swap file, backend and extstore's file need {}, but {} has {} free; make room, choose another --directory or use fewer \
             --records",
            format_size(needs.disk_bytes),
            directory.display(),
            format_size(free)
        ));
    }
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = kib_field(&meminfo, "MemAvailable").context("/proc/meminfo names no available memory")?;
    if available < needs.memory_bytes {
        missing.push(format!(
            "not enough memory: {} are needed, {} are available; use fewer --records",
            format_size(needs.memory_bytes),
            format_size(available)
        ));
    }
    Ok(missing)
}

/// The reason if the error says that a cell makes no sense.
pub fn not_possible(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<NotPossible>().map(|NotPossible(reason)| reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use crate::plan::Wishes;
    use crate::plan::tests::wishes;

    #[test]
    fn needs_are_those_of_the_largest_cell() {
        let plan_of = |names: &[&str]| {
            let configurations = names.iter().map(|name| (*name).to_owned()).collect();
            Plan::grid(&Wishes { configurations, workloads: vec![crate::ycsb::Workload::C], ratios: vec![1.0, 0.25], ..wishes() }).unwrap()
        };
        let of = |names: &[&str]| needs(&plan_of(names));
        assert_eq!(of(&["dram"]).disk_bytes, DISK_MARGIN_BYTES);
        // A swap file stays for all of the run, beside the file of the server that runs.
        let both = of(&["kernel-swap-ssd", "lightswap"]).disk_bytes - DISK_MARGIN_BYTES;
        assert_eq!(both, of(&["kernel-swap-ssd"]).disk_bytes + of(&["lightswap"]).disk_bytes - 2 * DISK_MARGIN_BYTES);
        assert!(of(&["lightswap-memory"]).memory_bytes > of(&["lightswap"]).memory_bytes + 500 * MIB);
    }

    #[test]
    fn everything_missing_is_named_at_once() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-preflight", std::process::id()));
        let journal = Journal::open_in(&directory).unwrap();
        let mut lab = Lab::new(&journal, &directory).unwrap();
        lab.stock = Some("/nowhere/memcached".into());
        let huge = crate::generator::Shape { records: 900_000_000_000, ..wishes().shape };
        let plan = Plan::demo(&Wishes { shape: huge, ..wishes() }).unwrap();
        let error = check(&plan, &lab).unwrap_err().to_string();
        for part in ["/nowhere/memcached", "--memcached-lightswap PATH", "not enough disk", "not enough memory"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        drop(lab);
        drop(journal);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn without_the_patched_server_the_baselines_remain() {
        let mut plan = Plan::demo(&wishes()).unwrap();
        let left_out = leave_out_impossible(&mut plan, false);
        assert!(left_out.iter().any(|(name, reason)| name == "lightswap" && reason.contains("--memcached-lightswap")), "{left_out:?}");
        assert!(plan.configurations().iter().any(|configuration| configuration.name == "dram"));
        assert!(!plan.configurations().iter().any(|configuration| configuration.binary == Binary::Lightswap));
    }
}
