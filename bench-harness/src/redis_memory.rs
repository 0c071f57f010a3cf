//! What a Redis with Lightswap keeps in memory whatever its local memory is: keys, objects, tables, buffers. A dry run tells, as it depends on the program.

use std::rc::Rc;

use anyhow::{Context, Result};

use crate::budget::Fixed;
use crate::configuration::{Configuration, find};
use crate::generator::Shape;
use crate::lab::{Cell, Lab};
use crate::units::MIB;

/// Little, so that nearly all values are swapped out.
const LOCAL_MEMORY_BYTES: u64 = 32 * MIB;
/// The records of the second run, by which a key's share is told from the process's.
const FEWER: u64 = 20;

/// What the server has resident beside its local memory, with these records.
fn beside(lab: &Lab<'_>, configuration: &Rc<Configuration>, shape: Shape) -> Result<u64> {
    let cell = Cell { settings: configuration.settings.clone(), configuration: Rc::clone(configuration), ratio: 1.0, shape };
    let session = lab.unlimited_session(&cell, LOCAL_MEMORY_BYTES)?;
    let statistics = session.server.statistics("lightswap")?;
    let local = statistics.get("resident_bytes").and_then(|text| text.parse().ok()).unwrap_or(LOCAL_MEMORY_BYTES);
    let bytes = session.resident_bytes()?.saturating_sub(local);
    session.finish();
    Ok(bytes)
}

/// Measures it for a cell's program and records, unless that was done. Pages are in a file whatever the cell's backend is, as others lie in the process.
pub fn measure(lab: &mut Lab<'_>, cell: &Cell) -> Result<()> {
    let program = lab.server_of(&cell.configuration)?.to_owned();
    if lab.fixed(&cell.shape, &program).is_some() {
        return Ok(());
    }
    let mut configuration = (*find("redis-lightswap")?).clone();
    configuration.server = Some(program.clone());
    let configuration = Rc::new(configuration);
    let fewer = Shape { records: (cell.shape.records / FEWER).max(1), ..cell.shape };
    let failure = "cannot measure what Redis needs beside its local memory";
    let of_fewer = beside(lab, &configuration, fewer).context(failure)?;
    let of_all = beside(lab, &configuration, cell.shape).context(failure)?;
    lab.set_fixed(cell.shape, program, Fixed::of((cell.shape.records, of_all), (fewer.records, of_fewer)));
    Ok(())
}
