//! Whether a dump equals one of stock Redis: a stock Redis reads the dump, another is given the same records, and both tell a checksum over all keys.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::endpoint::Endpoint;
use crate::generator::{Generator, Shape};
use crate::interrupt;
use crate::lab::{Cell, DUMP, Lab};
use crate::redis_client::{command, info};

/// Where a dump is while it is read: the server's own goes with it.
pub const CHECKED_DUMP: &str = "lightswap-bench-checked.rdb";
const NO_DUMP: &str = "lightswap-bench-none.rdb";
/// How long a dump may last of which nobody knows how far it is.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Whether a dump is being written.
pub fn is_saving(endpoint: &Endpoint) -> Result<bool> {
    let persistence = info(endpoint, "persistence")?;
    persistence.get("rdb_bgsave_in_progress").map(|text| text != "0").context("the server does not say whether it writes a dump")
}

/// Redis's own word on the last dump: `ok`.
pub fn status(endpoint: &Endpoint) -> Result<String> {
    Ok(info(endpoint, "persistence")?.remove("rdb_last_bgsave_status").unwrap_or_default())
}

/// Of all keys and their values, whatever order they are in, as Redis itself computes it.
fn checksum(endpoint: &Endpoint) -> Result<String> {
    command(endpoint, &["DEBUG", "DIGEST"])
}

/// Of a stock Redis to which the records were given.
pub fn of_stock(lab: &Lab<'_>, shape: Shape) -> Result<String> {
    let (server, _files) = lab.start_on_dump(NO_DUMP).context("a stock Redis does not start")?;
    let mut generator = Generator::connect(server.endpoint(), shape)?;
    generator.load("stock Redis, whose checksum is compared: loading")?;
    drop(generator);
    let checksum = checksum(server.endpoint())?;
    server.stop();
    Ok(checksum)
}

/// Of a stock Redis that reads the dump which this cell's server writes of the same records.
pub fn of_dump(lab: &Lab<'_>, cell: &Cell) -> Result<String> {
    let session = lab.session(cell)?;
    if let (Some(cgroup), Some(limit)) = (&session.cgroup, session.plan.process_limit_bytes()) {
        // Each of both processes has its limit.
        cgroup.raise_limit(2 * limit)?;
    }
    let endpoint = session.server.endpoint();
    command(endpoint, &["BGSAVE"])?;
    let end = Instant::now() + PATIENCE;
    while is_saving(endpoint)? {
        interrupt::check()?;
        if Instant::now() > end {
            bail!("{}: a dump without load was not finished in {} s", cell.label(), PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = status(endpoint)?;
    if status != "ok" {
        bail!("{}: a dump without load failed: its status is {status:?}", cell.label());
    }
    let _dump = lab.take_dump(DUMP, CHECKED_DUMP)?;
    session.finish();
    let (server, _files) = lab.start_on_dump(CHECKED_DUMP).context("a stock Redis does not start on the dump")?;
    let checksum = checksum(server.endpoint())?;
    server.stop();
    Ok(checksum)
}
