//! What a plan needs of the machine, checked before anything starts, all at once.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lightswap::format_size;

use crate::configuration::{Binary, Memory};
use crate::lab::{Cell, Lab, NotPossible};
use crate::memtier;
use crate::plan::{MEMTIER_STAGE, Plan, REDIS_BENCHMARK_STAGE, Target};
use crate::process::kib_field;
use crate::redis_benchmark;
use crate::server_kind::{Programs, ServerKind};
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

/// `data_is_known`: limits need no run of stock memcached with all the data.
fn needs(cells: &[Cell], data_is_known: bool) -> Needs {
    let mut swap_file = 0;
    let mut backend_file = 0;
    let mut memory = 0;
    for cell in cells {
        let configuration = &cell.configuration;
        let all = cell.memory_mib() * MIB;
        let file = match configuration.memory {
            Memory::Extstore => all * 3,
            Memory::Ample | Memory::Local if configuration.makes_files() => cell.backend_bytes(),
            _ => 0,
        };
        backend_file = backend_file.max(file);
        let mut in_memory = if configuration.is_limited() { (all as f64 * cell.ratio) as u64 } else { all * 5 / 4 };
        match configuration.swap_device {
            Some(SwapKind::File) => swap_file = swap_file.max(cell.backend_bytes()),
            // Values are random text, which hardly shrinks.
            Some(SwapKind::Zram) => in_memory += cell.backend_bytes(),
            None if configuration.backend_in_process => in_memory += cell.pool_bytes(),
            None => {}
        }
        in_memory += cell.backend_bytes() * configuration.memory_servers as u64;
        if configuration.is_limited() && !data_is_known {
            in_memory = in_memory.max(all * 5 / 4);
        }
        // The generator keeps a word for each key.
        memory = memory.max(in_memory + cell.shape.records * 8);
    }
    Needs { disk_bytes: swap_file + backend_file + DISK_MARGIN_BYTES, memory_bytes: memory + MEMORY_MARGIN_BYTES }
}

pub fn default_cell(target: &Target) -> Cell {
    Cell { configuration: target.configuration.clone(), ratio: target.ratio, settings: target.configuration.settings.clone(), shape: target.shape }
}

/// Leaves out of the plan what cannot run here, with the reasons.
pub fn leave_out_impossible(plan: &mut Plan, programs: &Programs) -> Vec<(String, String)> {
    let mut left_out = Vec::new();
    let second_opinions = [
        (MEMTIER_STAGE, memtier::NAME, memtier::find(), "it is not on PATH"),
        (REDIS_BENCHMARK_STAGE, redis_benchmark::NAME, redis_benchmark::find(programs), "it is neither beside redis-server nor on PATH"),
    ];
    for (stage, name, found, reason) in second_opinions {
        if found.is_none() && plan.stages.iter().any(|other| other.name == stage) {
            plan.stages.retain(|other| other.name != stage);
            left_out.push((name.into(), reason.into()));
        }
    }
    for configuration in plan.configurations() {
        let no_binary = || {
            let (kind, binary) = (configuration.server_kind, configuration.binary);
            (configuration.server.is_none() && programs.find(kind, binary).is_none()).then(|| format!("no {} PATH was given", kind.option(binary)))
        };
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
    let configurations = plan.configurations();
    let (own, usual): (Vec<_>, Vec<_>) = configurations.iter().partition(|configuration| configuration.server.is_some());
    let of_each: BTreeSet<ServerKind> = configurations.iter().map(|configuration| configuration.server_kind).collect();
    for (kind, binary) in of_each.into_iter().flat_map(|kind| [Binary::Stock, Binary::Lightswap].map(|binary| (kind, binary))) {
        // The size of the data, which limits are parts of, is what the stock server needs.
        let needed = binary == Binary::Stock || usual.iter().any(|configuration| (configuration.server_kind, configuration.binary) == (kind, binary));
        if needed && let Err(error) = lab.program(kind, binary).and_then(|program| kind.check(program, binary)) {
            missing.push(format!("{error:#}"));
        }
    }
    for configuration in own {
        if let Err(error) = lab.check_program(configuration) {
            missing.push(format!("{}: {error:#}", configuration.name));
        }
    }
    let cells: Vec<Cell> = plan.targets().map(default_cell).collect();
    missing.extend(missing_places(&cells, false, &lab.directory)?);
    refuse(&missing)
}

/// The same for one cell whose binary was looked at.
pub fn check_cell(cell: &Cell, data_is_known: bool, directory: &Path) -> Result<()> {
    refuse(&missing_places(std::slice::from_ref(cell), data_is_known, directory)?)
}

fn refuse(missing: &[String]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this cannot start:\n  {}", missing.join("\n  "))
}

fn missing_places(cells: &[Cell], data_is_known: bool, directory: &Path) -> Result<Vec<String>> {
    let mut missing = missing_room(needs(cells, data_is_known), directory)?;
    let mut with_files: Vec<&str> = cells.iter().map(|cell| &cell.configuration).filter(|it| it.makes_files()).map(|it| it.name.as_str()).collect();
    with_files.dedup();
    if let Some(kind) = memory_file_system(directory)?.filter(|_| !with_files.is_empty()) {
        missing.push(format!(
            "{} is on {kind}, which is memory: the files of {} would measure nothing there; give a --directory on a disk",
            directory.display(),
            with_files.join(", ")
        ));
    }
    Ok(missing)
}

/// The kind of file system if its files are memory.
fn memory_file_system(directory: &Path) -> Result<Option<&'static str>> {
    // From <linux/magic.h>.
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    const RAMFS_MAGIC: u32 = 0x8584_58f6;
    let name = CString::new(directory.as_os_str().as_bytes()).context("the name of the directory holds a zero byte")?;
    // SAFETY: an all-zero statfs is a valid value of this plain C struct.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name ends with a zero byte and `info` is valid for writing.
    if unsafe { libc::statfs(name.as_ptr(), &mut info) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot look at the file system of {}", directory.display()));
    }
    // Its type differs between machines; the magic numbers have 32 bits.
    Ok(match info.f_type as u32 {
        TMPFS_MAGIC => Some("tmpfs"),
        RAMFS_MAGIC => Some("ramfs"),
        _ => None,
    })
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
        let of = |names: &[&str]| needs(&plan_of(names).targets().map(default_cell).collect::<Vec<_>>(), true);
        assert_eq!(of(&["dram"]).disk_bytes, DISK_MARGIN_BYTES);
        // A swap file stays for all of the run, beside the file of the server that runs.
        let both = of(&["kernel-swap-ssd", "lightswap"]).disk_bytes - DISK_MARGIN_BYTES;
        assert_eq!(both, of(&["kernel-swap-ssd"]).disk_bytes + of(&["lightswap"]).disk_bytes - 2 * DISK_MARGIN_BYTES);
        assert_eq!(of(&["lightswap-mirror"]).disk_bytes, DISK_MARGIN_BYTES);
        assert!(of(&["lightswap-mirror"]).memory_bytes > of(&["lightswap-remote"]).memory_bytes + 500 * MIB);
        assert!(of(&["lightswap-memory"]).memory_bytes > of(&["lightswap"]).memory_bytes + 500 * MIB);
    }

    #[test]
    fn limits_take_a_run_with_all_the_data_unless_its_size_is_known() {
        let plan = Plan::grid(&Wishes { configurations: vec!["extstore".into()], ratios: vec![0.25], ..wishes() }).unwrap();
        let cells: Vec<Cell> = plan.targets().map(default_cell).collect();
        assert!(needs(&cells, false).memory_bytes > 2 * needs(&cells, true).memory_bytes - MEMORY_MARGIN_BYTES);
    }

    #[test]
    fn files_in_memory_are_refused_where_there_are_files() {
        let directory = Path::new("/dev/shm");
        if memory_file_system(directory).unwrap_or(None) != Some("tmpfs") {
            eprintln!("skipped: /dev/shm is no tmpfs");
            return;
        }
        let refusals = |name: &str| {
            let configuration = crate::configuration::find(name).unwrap();
            let shape = crate::generator::Shape { records: 10, ..wishes().shape };
            let cell = Cell { settings: configuration.settings.clone(), configuration, ratio: 1.0, shape };
            missing_places(&[cell], true, directory).unwrap().into_iter().filter(|text| text.contains("which is memory")).count()
        };
        for name in ["lightswap", "lightswap-dram", "extstore", "kernel-swap-ssd"] {
            assert_eq!(refusals(name), 1, "{name}");
        }
        for name in ["dram", "lightswap-memory", "lightswap-remote", "kernel-swap-zram"] {
            assert_eq!(refusals(name), 0, "{name}");
        }
        assert_eq!(memory_file_system(Path::new("/proc")).unwrap(), None);
    }

    #[test]
    fn everything_missing_is_named_at_once() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-preflight", std::process::id()));
        let journal = Journal::open_in(&directory).unwrap();
        let mut lab = Lab::new(&journal, &directory).unwrap();
        lab.programs.memcached_stock = Some("/nowhere/memcached".into());
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
        let left_out = leave_out_impossible(&mut plan, &Programs { memcached_stock: Some("memcached".into()), ..Programs::default() });
        assert!(left_out.iter().any(|(name, reason)| name == "lightswap" && reason.contains("--memcached-lightswap")), "{left_out:?}");
        assert!(plan.configurations().iter().any(|configuration| configuration.name == "dram"));
        assert!(!plan.configurations().iter().any(|configuration| configuration.binary == Binary::Lightswap));
    }
}
