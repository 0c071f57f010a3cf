//! Where and with what a result was measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::disk_probe::DiskProbe;
use crate::memory_server;
use crate::process::kib_field;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Environment {
    /// Seconds since 1970 at the start.
    pub started_unix_seconds: u64,
    /// The same in UTC, as ISO 8601 writes it.
    #[serde(default)]
    pub started: String,
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub memory_bytes: u64,
    pub transparent_hugepages: String,
    /// A compressed pool in front of the kernel's swap; absent where the kernel has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zswap: Option<String>,
    /// The multi-generational LRU, a bit mask of its parts; absent where the kernel has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mglru: Option<String>,
    pub clock_source: String,
    pub file_system: String,
    pub disk: Option<DiskProbe>,
    pub versions: BTreeMap<String, String>,
    /// Of the sources in the working directory; ends in "-modified" when they differ from the commit.
    pub commit: String,
}

fn read_if_present(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn read_trimmed(path: &str) -> String {
    read_if_present(path).unwrap_or_else(|| "unknown".into())
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn commit() -> String {
    let Some(hash) = first_line("git", &["rev-parse", "HEAD"]) else {
        return "unknown".into();
    };
    match first_line("git", &["status", "--porcelain", "--untracked-files=no"]) {
        Some(line) if !line.is_empty() => hash + "-modified",
        _ => hash,
    }
}

fn cpu_model() -> String {
    read_trimmed("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

/// The mount that holds the directory: device, type.
fn file_system(directory: &Path) -> String {
    let text = read_trimmed("/proc/self/mounts");
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, place, kind) = (words.next()?, words.next()?, words.next()?);
            directory.starts_with(place).then(|| (place.len(), format!("{kind} on {device}")))
        })
        .max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".into(), |(_, text)| text)
}

impl Environment {
    pub fn collect(directory: &Path) -> Self {
        let mut versions = BTreeMap::new();
        versions.insert("lightswap-bench".into(), env!("CARGO_PKG_VERSION").into());
        if let Some(version) = first_line("fio", &["--version"]) {
            versions.insert("fio".into(), version);
        }
        if let Some(version) = memory_server::version() {
            versions.insert(memory_server::PROGRAM.into(), version);
        }
        let now = SystemTime::now();
        Self {
            started_unix_seconds: now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
            started: humantime::format_rfc3339_seconds(now).to_string(),
            kernel: read_trimmed("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib_field(&read_trimmed("/proc/meminfo"), "MemTotal").unwrap_or(0),
            transparent_hugepages: read_trimmed("/sys/kernel/mm/transparent_hugepage/enabled"),
            zswap: read_if_present("/sys/module/zswap/parameters/enabled"),
            mglru: read_if_present("/sys/kernel/mm/lru_gen/enabled"),
            clock_source: read_trimmed("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            file_system: file_system(directory),
            disk: None,
            versions,
            commit: commit(),
        }
    }
}

/// The same text with paths below the working directory named from there. Other paths keep only their last part: results are read elsewhere.
pub fn without_machine_paths(text: &str) -> String {
    let here = std::env::current_dir().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let text = if here.len() > 1 { text.replace(&format!("{here}/"), "") } else { text.to_owned() };
    let mut shown = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find('/') {
        let (before, path) = rest.split_at(start);
        let (path, behind) = path.split_at(path.find(['?', ':', ',', ')', '&', ';']).unwrap_or(path.len()));
        shown += before;
        let is_of_url = path.starts_with("//") && before.ends_with(':');
        // Also behind the scheme of a URL, an option's name, or the name of a suboption.
        let is_absolute = !is_of_url && (shown.is_empty() || before.ends_with([':', '=']));
        shown += if is_absolute { path.rsplit('/').next().unwrap_or_default() } else { path };
        rest = behind;
    }
    shown + rest
}

/// The command line as typed, in one string, without paths of this machine; arguments with spaces are quoted.
pub fn command_line() -> String {
    let quoted = std::env::args().map(|argument| without_machine_paths(&argument)).map(|argument| {
        if argument.is_empty() || argument.contains(|c: char| c.is_whitespace() || c == '\'') {
            format!("'{}'", argument.replace('\'', r"'\''"))
        } else {
            argument
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let environment = Environment::collect(Path::new("/"));
        assert!(environment.cpus > 0 && environment.memory_bytes > 0);
        assert_ne!(environment.kernel, "unknown");
        assert!(environment.file_system.contains(" on "));
        assert!(environment.started.starts_with("20") && environment.started.ends_with('Z'), "{}", environment.started);
    }

    #[test]
    fn recorded_commands_name_no_path_of_this_machine() {
        let here = std::env::current_dir().unwrap();
        let below = |path: &str| here.join(path).to_string_lossy().into_owned();
        assert_eq!(without_machine_paths(&below("build/x")), "build/x");
        assert_eq!(without_machine_paths(&format!("--lightswap-backend=file:{}?size=1MiB", below("a/b"))), "--lightswap-backend=file:a/b?size=1MiB");
        assert_eq!(without_machine_paths("--lightswap-backend=file:/ssd/x/b?size=1MiB"), "--lightswap-backend=file:b?size=1MiB");
        assert_eq!(without_machine_paths("ext_page_size=64,ext_path=/ssd/x/e:4G"), "ext_page_size=64,ext_path=e:4G");
        assert_eq!(without_machine_paths("/opt/target/release/lightswap-bench"), "lightswap-bench");
        assert_eq!(without_machine_paths("build/bench"), "build/bench");
        assert_eq!(
            without_machine_paths("--lightswap-backend=mirror(nbd+unix:///?socket=/tmp/a.socket,nbd+unix:///?socket=/tmp/b.socket)"),
            "--lightswap-backend=mirror(nbd+unix:///?socket=a.socket,nbd+unix:///?socket=b.socket)"
        );
        assert_eq!(without_machine_paths("tier(memory:?limit=1MiB,nbd://127.0.0.1:7/)"), "tier(memory:?limit=1MiB,nbd://127.0.0.1:7/)");
    }
}
