//! A memory limit for one server: a cgroup of its own, written straight through cgroupfs (version 1 or 2).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::journal::{Guard, Journal, Leftover};
use crate::lab::is_root;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// Where the memory controller is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    pub root: PathBuf,
}

/// Whether the kernel may swap what the cgroup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelSwap {
    Allowed,
    Forbidden,
}

#[derive(Debug)]
pub struct Cgroup<'a> {
    version: Version,
    path: PathBuf,
    _guard: Guard<'a>,
}

fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let root = PathBuf::from(mount.split(' ').nth(4)?);
            let mut words = filesystem.split(' ');
            let (kind, options) = (words.next()?, words.nth(1)?);
            let version = match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => Version::V1,
                "cgroup2" => Version::V2,
                _ => return None,
            };
            Some(Hierarchy { version, root })
        })
        .collect()
}

/// The hierarchy that has the memory controller.
pub fn find_hierarchy() -> Result<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let has_memory = |hierarchy: &Hierarchy| {
        hierarchy.version == Version::V1
            || fs::read_to_string(hierarchy.root.join("cgroup.controllers")).is_ok_and(|list| list.split_whitespace().any(|name| name == "memory"))
    };
    parse_mounts(&text)
        .into_iter()
        .find(has_memory)
        .context("no cgroup hierarchy with the memory controller is mounted, so no memory limit can be set; mount cgroup2 at /sys/fs/cgroup")
}

/// What is missing here to limit a server's memory, if anything.
pub fn obstacle() -> Option<String> {
    if !is_root() {
        return Some("memory limits take root: a cgroup is made for the server".into());
    }
    let root = match find_hierarchy() {
        Ok(hierarchy) => hierarchy.root,
        Err(error) => return Some(error.to_string()),
    };
    let trial = root.join(format!("lightswap-bench-trial-{}", std::process::id()));
    match fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)) {
        Ok(()) => None,
        Err(error) => Some(format!("no cgroup can be made in {}: {error}", root.display())),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

impl<'a> Cgroup<'a> {
    /// Takes root, as does everything that limits a process's memory.
    pub fn create(journal: &'a Journal, name: &str, limit_bytes: u64, swap: KernelSwap) -> Result<Self> {
        Self::create_in(journal, &find_hierarchy()?, name, limit_bytes, swap)
    }

    fn create_in(journal: &'a Journal, hierarchy: &Hierarchy, name: &str, limit_bytes: u64, swap: KernelSwap) -> Result<Self> {
        let Hierarchy { version, root } = hierarchy;
        let version = *version;
        if version == Version::V2 {
            let enabled = root.join("cgroup.subtree_control");
            let text = fs::read_to_string(&enabled).unwrap_or_default();
            if !text.split_whitespace().any(|name| name == "memory") {
                write(&enabled, "+memory")?;
            }
        }
        let path = root.join(name);
        let guard = Guard::new(journal, Leftover::Cgroup { path: path.clone() })?;
        fs::create_dir(&path).with_context(|| format!("cannot create the cgroup {}; memory limits take root", path.display()))?;
        let cgroup = Self { version, path, _guard: guard };
        let limit = limit_bytes.to_string();
        match (version, swap) {
            (Version::V1, KernelSwap::Allowed) => {
                cgroup.set("memory.limit_in_bytes", &limit)?;
                cgroup.set("memory.swappiness", "100")?;
            }
            (Version::V1, KernelSwap::Forbidden) => {
                cgroup.set("memory.limit_in_bytes", &limit)?;
                cgroup.set("memory.swappiness", "0")?;
                // Memory and swap together as low as memory alone: no swap. Kernels without swap accounting lack the file.
                if cgroup.path.join("memory.memsw.limit_in_bytes").exists() {
                    cgroup.set("memory.memsw.limit_in_bytes", &limit)?;
                }
            }
            (Version::V2, swap) => {
                cgroup.set("memory.max", &limit)?;
                if cgroup.path.join("memory.swap.max").exists() {
                    let swap_max = match swap {
                        KernelSwap::Allowed => "max",
                        KernelSwap::Forbidden => "0",
                    };
                    cgroup.set("memory.swap.max", swap_max)?;
                }
            }
        }
        Ok(cgroup)
    }

    /// To more than before.
    pub fn raise_limit(&self, limit_bytes: u64) -> Result<()> {
        let limit = limit_bytes.to_string();
        match self.version {
            Version::V1 => {
                // Memory and swap together, where that is limited, can never be less than memory alone.
                let both = "memory.memsw.limit_in_bytes";
                if self.read_number(both).is_some_and(|before| before < limit_bytes) {
                    self.set(both, &limit)?;
                }
                self.set("memory.limit_in_bytes", &limit)
            }
            Version::V2 => self.set("memory.max", &limit),
        }
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        write(&self.path.join(name), value)
    }

    fn read_number(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        text.trim().parse().ok()
    }

    /// A process that writes "0" here moves itself in.
    pub fn open_members(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// The most memory the cgroup ever held; newer kernels only in version 2.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.read_number(match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        })
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn out_of_memory_kills(&self) -> u64 {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.path.join(name)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }
}

/// Kills what is left in the cgroup and removes it.
pub fn remove(path: &Path) -> Result<()> {
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => {}
        }
        let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()) {
            // SAFETY: kill takes no pointers; members of our own cgroup are our own servers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("cannot remove the cgroup {}; processes in it do not end", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain files in the place of cgroupfs: what is written, and where.
    #[test]
    fn limits_are_set_in_both_versions() {
        for (version, swap, expected) in [
            (Version::V1, KernelSwap::Allowed, vec![("memory.limit_in_bytes", "1048576"), ("memory.swappiness", "100")]),
            (Version::V1, KernelSwap::Forbidden, vec![("memory.limit_in_bytes", "1048576"), ("memory.swappiness", "0")]),
            (Version::V2, KernelSwap::Allowed, vec![("memory.max", "1048576")]),
        ] {
            let root = std::env::temp_dir().join(format!("lightswap-bench-test-{}-cgroup-{version:?}-{swap:?}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(&root).unwrap();
            let journal = Journal::open_in(&root.join("state")).unwrap();
            let hierarchy = Hierarchy { version, root: root.clone() };
            let cgroup = Cgroup::create_in(&journal, &hierarchy, "group", 1 << 20, swap).unwrap();
            let mut found: Vec<(String, String)> = fs::read_dir(root.join("group"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()))
                .collect();
            found.sort();
            let expected: Vec<(String, String)> = expected.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            assert_eq!(found, expected, "{version:?} {swap:?}");
            if version == Version::V2 {
                assert_eq!(fs::read_to_string(root.join("cgroup.subtree_control")).unwrap(), "+memory");
            }
            // A real cgroup is an empty directory to rmdir.
            for (name, _) in &found {
                fs::remove_file(root.join("group").join(name)).unwrap();
            }
            drop(cgroup);
            assert!(!root.join("group").exists());
            drop(journal);
            fs::remove_dir_all(&root).unwrap();
        }
    }

    #[test]
    fn both_versions_are_found_in_mountinfo() {
        let text = "\
            25 1 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            31 25 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu\n\
            32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
            garbage\n";
        let found = parse_mounts(text);
        assert_eq!(
            found,
            [
                Hierarchy { version: Version::V1, root: "/sys/fs/cgroup/memory".into() },
                Hierarchy { version: Version::V2, root: "/sys/fs/cgroup/unified".into() },
            ]
        );
    }
}
