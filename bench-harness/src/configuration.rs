//! What is compared: one small TOML file a configuration, with everything that defines it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cgroup;
use crate::cli::Mistake;
use crate::lab::is_root;
use crate::memory_server;
use crate::swap::SwapKind;

/// In the order in which people read: what it is about, what is compared with it, what it is built on.
pub const BUILT_IN: [(&str, &str); 15] = [
    ("dram", include_str!("../configurations/dram.toml")),
    ("lightswap-dram", include_str!("../configurations/lightswap-dram.toml")),
    ("lightswap", include_str!("../configurations/lightswap.toml")),
    ("lightswap-memory", include_str!("../configurations/lightswap-memory.toml")),
    ("lightswap-remote", include_str!("../configurations/lightswap-remote.toml")),
    ("lightswap-mirror", include_str!("../configurations/lightswap-mirror.toml")),
    ("lightswap-encrypted", include_str!("../configurations/lightswap-encrypted.toml")),
    ("lightswap-compressed", include_str!("../configurations/lightswap-compressed.toml")),
    ("lightswap-tier", include_str!("../configurations/lightswap-tier.toml")),
    ("fastswap-style", include_str!("../configurations/fastswap-style.toml")),
    ("fastswap-style-remote", include_str!("../configurations/fastswap-style-remote.toml")),
    ("kernel-swap-ssd", include_str!("../configurations/kernel-swap-ssd.toml")),
    ("kernel-swap-zram", include_str!("../configurations/kernel-swap-zram.toml")),
    ("extstore", include_str!("../configurations/extstore.toml")),
    ("monitor", include_str!("../configurations/monitor.toml")),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binary {
    Stock,
    Lightswap,
}

/// Where the data lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// All in memory, no limit.
    Unlimited,
    /// A cgroup limit, the rest in the kernel's swap.
    KernelSwap,
    /// A cgroup limit, values in memcached's own file; the kernel must not swap.
    Extstore,
    /// A cgroup limit, local memory within it, the rest in the backend; the kernel must not swap.
    Local,
    /// Local memory larger than the data.
    Ample,
}

/// Where a server keeps the headers of its items: chains, LRU links, times and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemHeaders {
    /// In memory of their own, which is never swapped: it comes off the memory limit.
    #[default]
    Memory,
    /// In the region beside the values, as versions before item headers in memory did.
    Region,
}

impl ItemHeaders {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The placeholders of memory servers.
pub const REMOTES: [&str; 4] = ["remote_1", "remote_2", "remote_3", "remote_4"];

fn all_percent() -> u64 {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_all_percent(percent: &u64) -> bool {
    *percent == all_percent()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What a sweep varies, by name. Values are text, as they end up in options.
pub type Settings = BTreeMap<String, String>;

/// The setting that every configuration has.
pub const SERVER_THREADS: &str = "server_threads";
/// The setting that the harness itself reads, see `extstore.rs`.
pub const VALUE_MEMORY_PERCENT: &str = "value_memory_percent";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    pub setting: String,
    #[serde(deserialize_with = "texts")]
    pub values: Vec<String>,
    /// For a quick look; none: the default stays.
    #[serde(deserialize_with = "texts")]
    pub quick: Vec<String>,
    /// What is best depends on how data lies on disk: tried again for values of several pages and for sequential access.
    #[serde(default)]
    pub again: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    #[serde(skip_deserializing)]
    pub name: String,
    #[serde(skip_serializing)]
    pub about: String,
    pub binary: Binary,
    /// A program of its own instead of the command line's, to compare two versions in one run. In the file relative to its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "ItemHeaders::is_default")]
    pub item_headers: ItemHeaders,
    pub memory: Memory,
    pub swap_device: Option<SwapKind>,
    /// As results name it.
    pub backend: String,
    /// The backend's pages lie in the server's process, beside the memory limit.
    #[serde(default)]
    pub backend_in_process: bool,
    /// So many percent of the backend's size lie there; the server keeps to that by itself.
    #[serde(default = "all_percent", skip_serializing_if = "is_all_percent")]
    pub pool_percent: u64,
    /// Memory servers that run beside it, each as large as the backend: their URLs are {remote_1}, {remote_2} and so on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_servers: usize,
    /// The server's, with {placeholders}; the harness adds where to listen.
    pub arguments: Vec<String>,
    /// Under /proc/sys while the server runs.
    #[serde(default)]
    pub kernel_settings: BTreeMap<String, String>,
    #[serde(deserialize_with = "setting_map")]
    pub settings: Settings,
    #[serde(default)]
    pub sweep: Vec<Sweep>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(i64),
    Text(String),
}

impl From<Scalar> for String {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Number(number) => number.to_string(),
            Scalar::Text(text) => text,
        }
    }
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<Scalar>::deserialize(deserializer)?.into_iter().map(String::from).collect())
}

fn setting_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Settings, D::Error> {
    Ok(BTreeMap::<String, Scalar>::deserialize(deserializer)?.into_iter().map(|(name, value)| (name, value.into())).collect())
}

/// The names between braces.
fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    template.split('{').skip(1).filter_map(|part| part.split_once('}').map(|(name, _)| name))
}

/// Puts values for the placeholders.
pub fn fill(template: &str, values: &BTreeMap<&str, String>) -> Result<String> {
    let mut parts = template.split('{');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').with_context(|| format!("a brace is not closed in {template:?}"))?;
        text += values.get(name).with_context(|| format!("{{{name}}} in {template:?} has no value here"))?;
        text += rest;
    }
    Ok(text)
}

impl Configuration {
    fn parse(name: &str, text: &str) -> Result<Self> {
        let mut configuration: Self = toml::from_str(text)?;
        configuration.name = name.to_owned();
        configuration.check()?;
        Ok(configuration)
    }

    /// Placeholders that the harness gives values to.
    fn known_placeholders(&self) -> Vec<&'static str> {
        let mut known = vec!["max_connections", "memory_mib", "hash_power"];
        known.extend_from_slice(match self.memory {
            Memory::Unlimited | Memory::KernelSwap => &[],
            Memory::Local | Memory::Ample => &["local_memory_mib", "backend_path", "backend_mib", "pool_mib"],
            Memory::Extstore => &["extstore_memory_mib", "extstore_path", "extstore_file_mib"],
        });
        known.extend_from_slice(&REMOTES[..self.memory_servers.min(REMOTES.len())]);
        known
    }

    fn check(&self) -> Result<()> {
        if self.server_threads(&self.settings).is_err() {
            bail!("[settings] needs {SERVER_THREADS}, a number from 1 to 128");
        }
        let templates: Vec<&str> = self.arguments.iter().chain(self.kernel_settings.values()).map(String::as_str).collect();
        let known = self.known_placeholders();
        for name in templates.iter().flat_map(|template| placeholders(template)) {
            if !known.contains(&name) && !self.settings.contains_key(name) {
                let settings = self.settings.keys().map(String::as_str);
                let all: Vec<&str> = known.iter().copied().chain(settings).collect();
                bail!("{{{name}}} is neither a setting nor known for this memory model; there are {}", all.join(", "));
            }
        }
        for name in self.settings.keys() {
            let read_by_us = self.memory == Memory::Extstore && name == VALUE_MEMORY_PERCENT;
            if !read_by_us && !templates.iter().any(|template| placeholders(template).any(|used| used == name)) {
                bail!("the setting {name} is used by no argument and no kernel setting");
            }
        }
        for sweep in &self.sweep {
            if !self.settings.contains_key(&sweep.setting) {
                bail!("[[sweep]] varies {}, which is not in [settings]", sweep.setting);
            }
            if sweep.values.is_empty() {
                bail!("[[sweep]] of {} has no values", sweep.setting);
            }
            for value in sweep.values.iter().chain(&sweep.quick) {
                let settings = Settings::from([(sweep.setting.clone(), value.clone())]);
                if sweep.setting == SERVER_THREADS && self.server_threads(&settings).is_err() {
                    bail!("[[sweep]] of {SERVER_THREADS}: {value:?} is no number from 1 to 128");
                }
            }
        }
        if self.item_headers == ItemHeaders::Region && !matches!(self.memory, Memory::Local | Memory::Ample) {
            bail!("item_headers = \"region\" belongs to memory = \"local\" or \"ample\": other servers have no region");
        }
        if self.memory_servers > REMOTES.len() {
            bail!("memory_servers = {}: there can be {} at most", self.memory_servers, REMOTES.len());
        }
        for name in &REMOTES[..self.memory_servers] {
            if !self.arguments.iter().any(|template| placeholders(template).any(|used| used == *name)) {
                bail!("memory_servers = {}, but no argument names {{{name}}}", self.memory_servers);
            }
        }
        if !(1..=100).contains(&self.pool_percent) || (self.pool_percent < 100 && !self.backend_in_process) {
            bail!("pool_percent is a part of a backend_in_process, 1 to 100");
        }
        if (self.memory == Memory::KernelSwap) != self.swap_device.is_some() {
            bail!("swap_device belongs to memory = \"kernel-swap\", and only to that");
        }
        for name in self.kernel_settings.keys() {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            if !name.starts_with("vm.") || !plain || name.contains("..") {
                bail!("[kernel_settings] may only change vm.*, not {name:?}");
            }
        }
        Ok(())
    }

    /// Makes the server's path one from the working directory. Its file must be there: hours of measuring may come before its turn.
    fn find_server(&mut self, directory: &Path) -> Result<()> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let path = directory.join(&*server);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => bail!("server = {server:?}: {} is no file; name the program itself", path.display()),
            Err(error) => {
                bail!(
                    "server = {server:?}: cannot use {}: {error}; build it, or correct the path, which starts at the file's directory",
                    path.display()
                )
            }
        }
        // A name without a slash would be looked for on PATH.
        *server = if path.components().count() > 1 { path } else { Path::new(".").join(path) };
        Ok(())
    }

    /// Whether a memory limit applies: a part of the data.
    pub fn is_limited(&self) -> bool {
        matches!(self.memory, Memory::KernelSwap | Memory::Extstore | Memory::Local)
    }

    /// Whether its pages or values go to files in the harness's directory.
    pub fn makes_files(&self) -> bool {
        match self.memory {
            Memory::Unlimited => false,
            Memory::KernelSwap => self.swap_device == Some(SwapKind::File),
            Memory::Extstore => true,
            Memory::Local | Memory::Ample => !self.backend_in_process && self.memory_servers == 0,
        }
    }

    pub fn server_threads(&self, settings: &Settings) -> Result<u32> {
        let text = settings.get(SERVER_THREADS).map_or("", String::as_str);
        match text.parse() {
            Ok(threads @ 1..=128) => Ok(threads),
            _ => bail!("{SERVER_THREADS} is {text:?} and not a number from 1 to 128"),
        }
    }

    /// The default settings with another number of threads.
    pub fn with_threads(&self, server_threads: u32) -> Settings {
        let mut settings = self.settings.clone();
        settings.insert(SERVER_THREADS.into(), server_threads.to_string());
        settings
    }

    /// What is missing on this machine, if anything. Whether there is a binary is up to the command line.
    pub fn obstacle(&self) -> Option<String> {
        if self.memory_servers > 0
            && let Some(obstacle) = memory_server::obstacle()
        {
            return Some(obstacle);
        }
        match self.memory {
            Memory::Unlimited | Memory::Ample => None,
            Memory::KernelSwap => self.swap_device.and_then(SwapKind::obstacle).or_else(cgroup::obstacle),
            // Without a limit its page cache would grow as large as the data.
            Memory::Extstore => cgroup::obstacle(),
            // Lightswap keeps to its local memory by itself.
            Memory::Local => cgroup::obstacle().filter(|_| is_root()),
        }
    }
}

/// All that come with the harness.
pub fn built_in() -> Result<Vec<Rc<Configuration>>> {
    BUILT_IN
        .iter()
        .map(|(name, text)| Ok(Rc::new(Configuration::parse(name, text).with_context(|| format!("configurations/{name}.toml"))?)))
        .collect()
}

/// By name, or by the path of a file of one's own: anything with a slash or ending in ".toml".
pub fn find(name: &str) -> Result<Rc<Configuration>> {
    if name.contains('/') || name.ends_with(".toml") {
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {name}"))?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let parsed = Configuration::parse(&stem, &text).and_then(|mut configuration| {
            configuration.find_server(path.parent().unwrap_or(Path::new("")))?;
            Ok(configuration)
        });
        return Ok(Rc::new(parsed.with_context(|| format!("the configuration {name} cannot be used"))?));
    }
    match BUILT_IN.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => Ok(Rc::new(Configuration::parse(name, text)?)),
        None => Err(Mistake(format!("there is no configuration {name:?}; {}", nearest(name))).into()),
    }
}

/// The same for several, none of them twice: results tell configurations apart by their names.
pub fn find_all(names: &[String]) -> Result<Vec<Rc<Configuration>>> {
    let mut all: Vec<Rc<Configuration>> = Vec::new();
    for name in names {
        let configuration = find(name)?;
        if all.iter().any(|known| known.name == configuration.name) {
            let message =
                format!("two of the configurations are named {:?}, so results could not tell them apart; rename a file", configuration.name);
            return Err(Mistake(message).into());
        }
        all.push(configuration);
    }
    Ok(all)
}

/// "did you mean a, b?", or all names when none is near.
fn nearest(name: &str) -> String {
    let names = BUILT_IN.map(|(known, _)| known);
    let mut near: Vec<(f64, &str)> =
        names.iter().map(|known| (strsim::jaro_winkler(name, known), *known)).filter(|(score, _)| *score > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    match near.as_slice() {
        [] => format!("there are {}", names.join(", ")),
        near => format!("did you mean {}?", near.iter().take(3).map(|(_, name)| *name).collect::<Vec<_>>().join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_ones_are_sound() {
        let all = built_in().unwrap();
        assert_eq!(all.len(), BUILT_IN.len());
        for configuration in &all {
            let again = find(&configuration.name).unwrap();
            assert_eq!(serde_json::to_string(&*again).unwrap(), serde_json::to_string(&**configuration).unwrap());
        }
        assert!(find("dram").unwrap().obstacle().is_none());
    }

    #[test]
    fn unknown_names_get_the_nearest_ones() {
        let message = |name: &str| find(name).unwrap_err().to_string();
        assert!(message("kernel-swap").contains("did you mean kernel-swap-ssd"), "{}", message("kernel-swap"));
        assert!(message("lightswp").contains("did you mean lightswap "), "{}", message("lightswp"));
        assert!(message("xyz").contains("there are dram, "), "{}", message("xyz"));
        assert!(format!("{:#}", find("no/such.toml").unwrap_err()).contains("no/such.toml"));
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let good = BUILT_IN.iter().find(|(name, _)| *name == "kernel-swap-ssd").unwrap().1;
        assert!(Configuration::parse("x", good).is_ok());
        for (from, to, part) in [
            ("about", "abuot", "abuot"),
            ("\"stock\"", "\"redis\"", "redis"),
            ("{hash_power}", "{hashpower}", "{hashpower} is neither"),
            ("server_threads = 8", "server_threads = 0", "a number from 1 to 128"),
            ("page_cluster = 0", "page_cluster = 0\nunused = 1", "unused is used by no"),
            ("setting = \"page_cluster\"", "setting = \"cluster\"", "varies cluster"),
            ("values = [2, 4, 8, 16, 32, 64]", "values = []", "no values"),
            ("values = [2, 4, 8, 16, 32, 64]", "values = [2, 1000]", "\"1000\" is no number"),
            ("swap_device = \"file\"", "", "swap_device belongs"),
            ("\"vm.swappiness\"", "\"kernel.panic\"", "may only change vm.*"),
            ("\"vm.swappiness\"", "\"vm./../x\"", "may only change vm.*"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good, "{from}");
            let error = format!("{:#}", Configuration::parse("x", &text).expect_err(to));
            assert!(error.contains(part), "{to}: {error}");
        }
    }

    #[test]
    fn memory_servers_are_named_by_the_arguments() {
        let good = BUILT_IN.iter().find(|(name, _)| *name == "lightswap-mirror").unwrap().1;
        assert_eq!(Configuration::parse("x", good).unwrap().memory_servers, 2);
        for (from, to, part) in [
            ("memory_servers = 2", "memory_servers = 1", "{remote_2} is neither"),
            ("memory_servers = 2", "memory_servers = 3", "no argument names {remote_3}"),
            ("memory_servers = 2", "memory_servers = 5", "there can be 4 at most"),
            ("memory_servers = 2", "memory_servers = 2\npool_percent = 25", "pool_percent"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good, "{from}");
            let error = format!("{:#}", Configuration::parse("x", &text).expect_err(to));
            assert!(error.contains(part), "{to}: {error}");
        }
    }

    #[test]
    fn a_file_can_name_its_own_server() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-own-server", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("old")).unwrap();
        let lightswap = BUILT_IN.iter().find(|(name, _)| *name == "lightswap").unwrap().1;
        let path = directory.join("before.toml");
        let with = |lines: &str| {
            std::fs::write(&path, format!("{lines}\n{lightswap}")).unwrap();
            find(path.to_str().unwrap()).map_err(|error| format!("{error:#}"))
        };
        let refused = with("server = \"old/memcached\"").unwrap_err();
        for part in ["before.toml", "server = \"old/memcached\"", &*directory.join("old/memcached").to_string_lossy(), "build it"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(with("server = \"old\"").unwrap_err().contains("is no file"));
        std::fs::write(directory.join("old/memcached"), "").unwrap();
        let found = with("server = \"old/memcached\"\nitem_headers = \"region\"").unwrap();
        assert_eq!((found.name.as_str(), found.server.as_deref()), ("before", Some(&*directory.join("old/memcached"))));
        assert_eq!(found.item_headers, ItemHeaders::Region);
        assert!(with("item_headers = \"nowhere\"").unwrap_err().contains("nowhere"));
        assert_eq!(with("").unwrap().item_headers, ItemHeaders::Memory);

        let dram = BUILT_IN.iter().find(|(name, _)| *name == "dram").unwrap().1;
        let error = Configuration::parse("x", &format!("item_headers = \"region\"\n{dram}")).unwrap_err().to_string();
        assert!(error.contains("have no region"), "{error}");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn configurations_of_one_name_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(find_all(&names(&["dram", "lightswap"])).unwrap().len(), 2);
        let error = find_all(&names(&["dram", "lightswap", "dram"])).unwrap_err().to_string();
        assert!(error.contains("named \"dram\""), "{error}");
    }

    #[test]
    fn placeholders_are_filled() {
        let values = BTreeMap::from([("a", "1".to_owned()), ("b", "{a}".to_owned())]);
        assert_eq!(fill("x{a}-{b}{a}", &values).unwrap(), "x1-{a}1");
        assert!(fill("{c}", &values).unwrap_err().to_string().contains("{c}"));
        assert_eq!(fill("plain", &values).unwrap(), "plain");
    }
}
