//! Whether a file makes sense: each mistake is named when it is read, not hours later.

use std::path::Path;

use anyhow::{Result, bail};

use super::template::placeholders;
use super::{Configuration, ItemHeaders, Memory, REMOTES, SERVER_THREADS, Settings, VALUE_MEMORY_PERCENT};
use crate::server_kind::ServerKind;

impl Configuration {
    pub(super) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut configuration: Self = toml::from_str(text)?;
        configuration.name = name.to_owned();
        configuration.check()?;
        Ok(configuration)
    }

    /// Placeholders that the harness gives values to.
    fn known_placeholders(&self) -> Vec<&'static str> {
        let mut known = vec!["max_connections"];
        known.extend_from_slice(match self.server_kind {
            ServerKind::Memcached => &["memory_mib", "hash_power"],
            ServerKind::Redis => &["directory"],
        });
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
        if self.server_kind == ServerKind::Redis && (self.memory == Memory::Extstore || self.item_headers == ItemHeaders::Region) {
            bail!("memory = \"extstore\" and item_headers belong to memcached, and server_kind is \"redis\"");
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
    pub(super) fn find_server(&mut self, directory: &Path) -> Result<()> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::BUILT_IN;

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
    fn a_configuration_of_redis_is_told_from_one_of_memcached() {
        let good = BUILT_IN.iter().find(|(name, _)| *name == "redis-lightswap").unwrap().1;
        assert_eq!(Configuration::parse("x", good).unwrap().server_kind, ServerKind::Redis);
        for (from, to, part) in [
            ("server_kind = \"redis\"", "server_kind = \"rediss\"", "rediss"),
            ("server_kind = \"redis\"", "", "{directory} is neither"),
            ("{directory}", "{memory_mib}", "{memory_mib} is neither"),
            ("memory = \"local\"", "memory = \"extstore\"", "is neither"),
            ("backend = \"file\"", "backend = \"file\"\nitem_headers = \"region\"", "belong to memcached"),
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
}
