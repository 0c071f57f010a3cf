//! What a run leaves in the system while it lasts, written down before it is made.
//!
//! A run that ends normally, with an error or by a signal removes everything itself. One that is killed leaves the journal behind,
//! and the next run, or `lightswap-bench clean`, removes what it lists.
//!
//! The journal is one user's, but CPUs, disk and swap space are everybody's: the lock that keeps two runs from mixing is the machine's. It is the name
//! of an abstract UNIX socket, which any user may take, nobody can leave behind, and a server does not inherit. Such names are a network namespace's
//! own, so the journal is locked as well.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::{cgroup, process, swap};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leftover {
    /// The start time tells the process from a later one with the same id.
    Process {
        pid: u32,
        start_time_ticks: u64,
    },
    Cgroup {
        path: PathBuf,
    },
    SwapFile {
        path: PathBuf,
    },
    /// Written down after the kernel has given the number, before the device holds anything.
    Zram {
        number: u32,
    },
    File {
        path: PathBuf,
    },
    /// A kernel setting and the value it had.
    Setting {
        path: PathBuf,
        value: String,
    },
}

impl Leftover {
    fn describe(&self) -> String {
        match self {
            Self::Process { pid, .. } => format!("process {pid}"),
            Self::Cgroup { path } => format!("cgroup {}", path.display()),
            Self::SwapFile { path } => format!("swap file {}", path.display()),
            Self::Zram { number } => format!("swap device /dev/zram{number}"),
            Self::File { path } => format!("file {}", path.display()),
            Self::Setting { path, value } => format!("setting {} (back to {value})", path.display()),
        }
    }

    /// Removes it; what is gone already is no error.
    fn remove(&self) -> Result<()> {
        match self {
            Self::Process { pid, start_time_ticks } => process::kill(*pid, *start_time_ticks),
            Self::Cgroup { path } => cgroup::remove(path),
            Self::SwapFile { path } => swap::deactivate(path).and_then(|()| remove_file(path)),
            Self::Zram { number } => swap::zram::remove(*number),
            Self::File { path } => remove_file(path),
            Self::Setting { path, value } => {
                if fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
                    return Ok(());
                }
                fs::write(path, value).with_context(|| format!("cannot set {} back to {value}", path.display()))
            }
        }
    }
}

pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

#[derive(Debug)]
pub struct Journal {
    /// Holds the journal's lock and the list.
    file: Mutex<(File, Vec<Leftover>)>,
    /// Never used, only owned. Absent in tests, which must not wait for each other.
    _machine_lock: Option<UnixDatagram>,
}

const MACHINE_LOCK: &str = "lightswap-bench";

/// The standard library closes it in children.
fn lock_machine(name: &str) -> Result<UnixDatagram> {
    let address = SocketAddr::from_abstract_name(name).context("cannot name the lock")?;
    UnixDatagram::bind_addr(&address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow!(
            "another lightswap-bench is running on this machine, maybe another user's (it holds the socket @{name}); wait for its end, as two runs would \
             disturb each other. `sudo ss -xap | grep @{name}` tells its process"
        ),
        _ => anyhow!("cannot take the lock @{name} against other runs: {error}"),
    })
}

fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// What is listed there gets removed, and its name can be foreseen: somebody else may have put it there.
fn refuse_foreign(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    let cause = if metadata.is_symlink() {
        "is a symbolic link".to_owned()
    } else if metadata.uid() != effective_user() {
        format!("belongs to user {}, not to user {}, who runs this", metadata.uid(), effective_user())
    } else if metadata.mode() & 0o022 != 0 {
        format!("can be written by others (mode {:03o})", metadata.mode() & 0o777)
    } else {
        return Ok(());
    };
    let path = path.display();
    bail!(
        "{path} {cause}, so the list of things to remove in it cannot be trusted; look at it and remove it, or let XDG_RUNTIME_DIR name another place"
    )
}

fn state_directory() -> PathBuf {
    let user = effective_user();
    if user == 0 {
        return PathBuf::from("/run/lightswap-bench");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => PathBuf::from(directory).join("lightswap-bench"),
        None => std::env::temp_dir().join(format!("lightswap-bench-{user}")),
    }
}

impl Journal {
    /// Takes the locks and removes what a killed run left, naming it on stderr.
    pub fn open() -> Result<Self> {
        let machine_lock = lock_machine(MACHINE_LOCK)?;
        Ok(Self { _machine_lock: Some(machine_lock), ..Self::open_in(&state_directory())? })
    }

    pub fn open_in(directory: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let metadata = fs::symlink_metadata(directory).with_context(|| format!("cannot look at {}", directory.display()))?;
        refuse_foreign(directory, &metadata)?;
        let path = directory.join("journal.json");
        // In a directory of our own nobody changes this between the look and the opening.
        if let Ok(metadata) = fs::symlink_metadata(&path) {
            refuse_foreign(&path, &metadata)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: the descriptor is open and no pointer is passed.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            bail!("another lightswap-bench is running (it holds {}); wait for its end, as two runs would disturb each other", path.display());
        }
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        let left: Vec<Leftover> = if text.trim().is_empty() {
            Vec::new()
        } else {
            serde_json::from_str(&text).with_context(|| format!("{} is damaged; remove it after looking for leftovers by hand", path.display()))?
        };
        let journal = Self { file: Mutex::new((file, left.clone())), _machine_lock: None };
        for leftover in left.iter().rev() {
            note!("removing what a killed run left: {}", leftover.describe());
            journal.remove(leftover)?;
        }
        Ok(journal)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Leftover>)) -> Result<()> {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, entries) = &mut *guard;
        change(entries);
        let text = serde_json::to_string(&entries)?;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.set_len(0))
            .and_then(|()| file.write_all(text.as_bytes()))
            .context("cannot write the journal of leftovers")
    }

    /// To be called before the thing exists.
    pub fn add(&self, leftover: Leftover) -> Result<()> {
        self.change(|entries| entries.push(leftover))
    }

    /// Removes the thing, then its entry.
    pub fn remove(&self, leftover: &Leftover) -> Result<()> {
        leftover.remove()?;
        self.change(|entries| entries.retain(|entry| entry != leftover))
    }
}

/// Removes one thing at the end of a scope.
#[derive(Debug)]
pub struct Guard<'a> {
    journal: &'a Journal,
    leftover: Leftover,
}

impl<'a> Guard<'a> {
    pub fn new(journal: &'a Journal, leftover: Leftover) -> Result<Self> {
        journal.add(leftover.clone())?;
        Ok(Self { journal, leftover })
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.journal.remove(&self.leftover) {
            note!("warning: {} is left ({error:#}); run `lightswap-bench clean`", self.leftover.describe());
        }
    }
}

/// Sets a kernel setting until the guard goes.
pub fn change_setting<'a>(journal: &'a Journal, path: &str, value: &str) -> Result<Guard<'a>> {
    let failure = || format!("cannot set {path} to {value}; it takes root");
    let before = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    // Opened first, so that nothing is written down that could not be undone either.
    let mut file = OpenOptions::new().write(true).open(path).with_context(failure)?;
    let guard = Guard::new(journal, Leftover::Setting { path: path.into(), value: before.trim().to_owned() })?;
    file.write_all(value.as_bytes()).with_context(failure)?;
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        directory
    }

    #[test]
    fn leftovers_of_a_killed_run_are_removed_by_the_next() {
        let directory = scratch("journal");
        let journal = Journal::open_in(&directory).unwrap();
        let file = directory.join("some file");
        let setting = directory.join("setting");
        fs::write(&file, "x").unwrap();
        fs::write(&setting, "3").unwrap();
        std::mem::forget(Guard::new(&journal, Leftover::File { path: file.clone() }).unwrap());
        std::mem::forget(change_setting(&journal, setting.to_str().unwrap(), "0").unwrap());
        assert_eq!(fs::read_to_string(&setting).unwrap(), "0");
        drop(journal);

        let journal = Journal::open_in(&directory).unwrap();
        assert!(!file.exists());
        assert_eq!(fs::read_to_string(&setting).unwrap(), "3");
        drop(journal);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn two_runs_at_once_are_refused() {
        let directory = scratch("lock");
        let _first = Journal::open_in(&directory).unwrap();
        let error = Journal::open_in(&directory).unwrap_err().to_string();
        assert!(error.contains("another lightswap-bench"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_machine_has_one_lock_and_children_do_not_keep_it() {
        let name = format!("lightswap-bench-test-{}", std::process::id());
        let first = lock_machine(&name).unwrap();
        let error = lock_machine(&name).unwrap_err().to_string();
        assert!(error.contains("another lightswap-bench is running") && error.contains(&name), "{error}");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        drop(first);
        // Children of other tests have it from their fork to their exec.
        let again = (0..100).find_map(|_| lock_machine(&name).map_err(|_| std::thread::sleep(std::time::Duration::from_millis(20))).ok());
        child.kill().unwrap();
        child.wait().unwrap();
        again.unwrap();
    }

    #[test]
    fn a_damaged_journal_is_an_error() {
        let directory = scratch("damaged");
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("journal.json");
        fs::write(&path, "[{\"nonsense\"").unwrap();
        set_mode(&directory, 0o755);
        set_mode(&path, 0o644);
        let error = format!("{:#}", Journal::open_in(&directory).unwrap_err());
        assert!(error.contains("is damaged"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_could_have_written_is_refused() {
        let directory = scratch("foreign");
        let (state, journal, victim) = (directory.join("state"), directory.join("state/journal.json"), directory.join("victim"));
        let refused = |part: &str| {
            let error = format!("{:#}", Journal::open_in(&state).expect_err(part));
            assert!(error.contains(part) && error.contains("cannot be trusted"), "{part}: {error}");
            assert!(victim.exists());
        };
        drop(Journal::open_in(&state).unwrap());
        fs::write(&victim, "").unwrap();
        fs::write(&journal, serde_json::to_string(&[Leftover::File { path: victim.clone() }]).unwrap()).unwrap();
        set_mode(&journal, 0o620);
        refused("journal.json can be written by others (mode 620)");
        set_mode(&journal, 0o600);
        set_mode(&state, 0o757);
        refused("state can be written by others (mode 757)");
        set_mode(&state, 0o700);
        fs::rename(&journal, directory.join("elsewhere")).unwrap();
        symlink(directory.join("elsewhere"), &journal).unwrap();
        refused("journal.json is a symbolic link");
        fs::rename(&state, directory.join("moved")).unwrap();
        symlink("moved", &state).unwrap();
        refused("state is a symbolic link");
        let metadata = fs::metadata("/proc/self").unwrap();
        assert!(refuse_foreign(Path::new("x"), &metadata).is_ok());
        // Only root can give things away.
        if effective_user() == 0 {
            fs::remove_file(&state).unwrap();
            fs::create_dir(&state).unwrap();
            chown(&state, Some(12_345), None).unwrap();
            refused("belongs to user 12345");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
