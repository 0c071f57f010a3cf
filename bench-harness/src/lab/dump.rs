//! Dumps of Redis, and stock servers that read them.

use anyhow::{Context, Result};

use super::{Lab, is_root, scratch_file};
use crate::configuration::Binary;
use crate::endpoint::Endpoint;
use crate::journal::Guard;
use crate::server::Server;
use crate::server_kind::ServerKind;

/// What Redis writes its dumps to, in the harness's directory.
pub const DUMP: &str = "lightswap-bench.rdb";

impl<'a> Lab<'a> {
    /// Keeps a dump that would go with its server.
    pub fn take_dump(&self, from: &str, to: &str) -> Result<Guard<'a>> {
        let (from, to) = (self.directory.join(from), self.directory.join(to));
        let guard = scratch_file(self.journal, &to)?;
        std::fs::rename(&from, &to).with_context(|| format!("there is no dump {}", from.display()))?;
        Ok(guard)
    }

    /// A stock Redis with what is in a dump, or with nothing where there is none. It may be asked for its checksum.
    pub fn start_on_dump(&self, name: &str) -> Result<(Server<'a>, Vec<Guard<'a>>)> {
        let kind = ServerKind::Redis;
        let (endpoint, directory) = (self.endpoint(kind)?, std::path::absolute(&self.directory)?);
        let log = self.directory.join("lightswap-bench.dump-log");
        let mut files = vec![scratch_file(self.journal, &log)?];
        if let Endpoint::Unix(path) = &endpoint {
            files.push(scratch_file(self.journal, path)?);
        }
        let directory = directory.to_string_lossy();
        let words = ["--save", "", "--appendonly", "no", "--dir", &directory, "--dbfilename", name, "--enable-debug-command", "local"];
        let arguments = [words.map(str::to_owned).to_vec(), kind.arguments(&endpoint, is_root())].concat();
        let server = Server::start(self.journal, (kind, self.program(kind, Binary::Stock)?), &arguments, endpoint, &log, None)?;
        Ok((server, files))
    }
}
