//! Which server a configuration is of: memcached or Redis; and everything in which starting, asking and naming them differ.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::configuration::Binary;
use crate::endpoint::Endpoint;
use crate::protocol::{DataType, Protocol};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    #[default]
    Memcached,
    Redis,
}

/// A directive that only a Redis with Lightswap knows, and that is in its program.
const LIGHTSWAP_DIRECTIVE: &[u8] = b"lightswap-memory";

impl ServerKind {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memcached => "memcached",
            Self::Redis => "redis",
        }
    }

    /// The configuration with all data in memory and nothing of Lightswap, by which the size of the data is measured.
    pub fn all_in_memory(self) -> &'static str {
        match self {
            Self::Memcached => "dram",
            Self::Redis => "redis-dram",
        }
    }

    pub fn option(self, binary: Binary) -> &'static str {
        match (self, binary) {
            (Self::Memcached, Binary::Stock) => "--memcached-stock",
            (Self::Memcached, Binary::Lightswap) => "--memcached-lightswap",
            (Self::Redis, Binary::Stock) => "--redis-stock",
            (Self::Redis, Binary::Lightswap) => "--redis-lightswap",
        }
    }

    pub fn protocol(self, data_type: DataType, is_indexed: bool) -> Protocol {
        match self {
            Self::Memcached => Protocol::Memcached,
            Self::Redis => Protocol::Redis { data_type, is_indexed },
        }
    }

    /// What the server is told about where to listen, and as whom.
    pub fn arguments(self, endpoint: &Endpoint, is_root: bool) -> Vec<String> {
        let words: Vec<String> = match (self, endpoint) {
            (Self::Memcached, Endpoint::Tcp(address)) => vec!["-l".into(), address.ip().to_string(), "-p".into(), address.port().to_string()],
            (Self::Memcached, Endpoint::Unix(path)) => vec!["-s".into(), path.to_string_lossy().into_owned()],
            (Self::Redis, Endpoint::Tcp(address)) => vec!["--bind".into(), address.ip().to_string(), "--port".into(), address.port().to_string()],
            (Self::Redis, Endpoint::Unix(path)) => vec!["--port".into(), "0".into(), "--unixsocket".into(), path.to_string_lossy().into_owned()],
        };
        let user = if self == Self::Memcached && is_root { vec!["-u".to_owned(), "root".into()] } else { Vec::new() };
        [words, user].concat()
    }

    /// What the program says of its version, in one line. An error if it is no such server.
    pub fn version(self, program: &Path) -> Result<String> {
        let option = match self {
            Self::Memcached => "-V",
            Self::Redis => "--version",
        };
        let name = self.name();
        let failure = || format!("cannot run {} {option}; is it a {name} binary?", program.display());
        let output = Command::new(program).arg(option).output().with_context(failure)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or("unknown").trim();
        if self == Self::Redis && !line.starts_with("Redis server") {
            bail!("{} is no Redis server: asked for its version, it says {line:?}; give {} PATH", program.display(), self.option(Binary::Stock));
        }
        Ok(line.to_owned())
    }

    /// The same, and whether it has Lightswap if it is to have it. A stock server would only be found out by its refusal to start.
    pub fn check(self, program: &Path, binary: Binary) -> Result<String> {
        let version = self.version(program)?;
        if self == Self::Redis && binary == Binary::Lightswap {
            let content = std::fs::read(on_path(program)).with_context(|| format!("cannot read {}", program.display()))?;
            if memchr::memmem::find(&content, LIGHTSWAP_DIRECTIVE).is_none() {
                bail!(
                    "{} is a Redis without Lightswap: it does not know the directive {}; give {} the one that integrations/redis/build makes",
                    program.display(),
                    String::from_utf8_lossy(LIGHTSWAP_DIRECTIVE),
                    self.option(binary)
                );
            }
        }
        Ok(version)
    }
}

/// Where a program of this name is, looked for as the shell does.
pub fn on_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file()).unwrap_or_else(|| program.to_owned())
}

/// The servers of the command line.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    pub memcached_stock: Option<PathBuf>,
    pub memcached_lightswap: Option<PathBuf>,
    pub redis_stock: Option<PathBuf>,
    pub redis_lightswap: Option<PathBuf>,
}

impl Programs {
    fn slots(&self) -> [(ServerKind, Binary, &Option<PathBuf>); 4] {
        [
            (ServerKind::Memcached, Binary::Stock, &self.memcached_stock),
            (ServerKind::Memcached, Binary::Lightswap, &self.memcached_lightswap),
            (ServerKind::Redis, Binary::Stock, &self.redis_stock),
            (ServerKind::Redis, Binary::Lightswap, &self.redis_lightswap),
        ]
    }

    pub fn find(&self, kind: ServerKind, binary: Binary) -> Option<&Path> {
        self.slots().into_iter().find(|slot| (slot.0, slot.1) == (kind, binary)).and_then(|slot| slot.2.as_deref())
    }

    /// Those that were given.
    pub fn all(&self) -> impl Iterator<Item = (ServerKind, Binary, &Path)> {
        self.slots().into_iter().filter_map(|(kind, binary, path)| Some((kind, binary, path.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn servers_that_are_missing_or_of_another_kind_are_named_in_a_sentence() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-server-kind", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let script = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let refused = |path: &Path, binary| format!("{:#}", ServerKind::Redis.check(path, binary).unwrap_err());
        let missing = refused(&directory.join("nowhere"), Binary::Stock);
        assert!(missing.contains("nowhere --version; is it a redis binary?"), "{missing}");
        let other = refused(&script("memcached", "echo memcached 1.6"), Binary::Stock);
        assert!(other.contains("is no Redis server") && other.contains("\"memcached 1.6\"") && other.contains("--redis-stock"), "{other}");
        let stock = script("stock", "echo Redis server v=7.0.15");
        assert_eq!(ServerKind::Redis.check(&stock, Binary::Stock).unwrap(), "Redis server v=7.0.15");
        let without = refused(&stock, Binary::Lightswap);
        assert!(without.contains("is a Redis without Lightswap") && without.contains("--redis-lightswap") && !without.contains('\n'), "{without}");
        let patched = script("patched", "# lightswap-memory\necho Redis server v=7.0.15");
        assert!(ServerKind::Redis.check(&patched, Binary::Lightswap).is_ok());
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn every_program_has_an_option() {
        let programs = Programs { redis_lightswap: Some("a/redis-server".into()), ..Programs::default() };
        assert_eq!(programs.find(ServerKind::Redis, Binary::Lightswap), Some(Path::new("a/redis-server")));
        assert_eq!((programs.find(ServerKind::Redis, Binary::Stock), programs.all().count()), (None, 1));
        assert!(on_path(Path::new("sh")).is_absolute());
        assert_eq!(on_path(Path::new("./sh")), Path::new("./sh"));
    }
}
