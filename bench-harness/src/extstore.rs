//! Running memcached's flash tier (extstore) well: how much memory its parts get, room for its headers, and how fast records may come.
//!
//! An item whose value is in the file keeps its header and key in memory, in a chunk of the smallest slab class. Values come in a larger class
//! first, so all of the memory would go to that class, and the slab mover gives back one page a second: items would be evicted for want of
//! room for headers. So room is made first: every key is stored with a tiny value, which takes just the chunk that its header will need.

use std::io::{BufRead, BufReader, BufWriter, Write};

use anyhow::{Context, Result, bail};
use lightswap::format_size;

use crate::budget::{hash_power, item_bytes};
use crate::endpoint::Endpoint;
use crate::generator::Shape;
use crate::interrupt;
use crate::stall::PatientSocket;
use crate::units::{KIB, MIB};
use crate::ycsb::append_key;

/// `ext_item_size` of the configuration: smaller items stay in memory.
const SMALLEST_IN_FILE: u64 = 256;
/// memcached's smallest chunk. Item header, CAS number, key with its end and the place in the file (12 bytes) are at most 92 bytes.
const HEADER_CHUNK_BYTES: u64 = 96;
/// The file is written through four of these.
const WRITE_BUFFERS_BYTES: u64 = 4 * 4 * MIB;
/// What each class of values needs at least: it writes out early below three free pages.
const VALUE_PAGES_LEAST: u64 = 6;
/// Without any page cache every read would wait for the disk twice: for the file's blocks and for the pages to hold them.
const PAGE_CACHE_LEAST_BYTES: u64 = 4 * MIB;
/// Bytes of values a second that records are loaded with at first; halved when items are evicted for it.
const LOAD_BYTES_PER_SECOND: f64 = 36e6;
pub const LOAD_ATTEMPTS: u32 = 3;

/// What the server is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// `-m`: headers, small items, and values that are not in the file yet or no longer.
    pub memory_mib: u64,
    pub file_mib: u64,
}

/// Keys that room is made for: inserts add up to a tenth.
fn keys_with_room(records: u64) -> u64 {
    records + records / 10
}

/// Slab pages of 1 MiB for chunks of this size.
fn slab_pages(chunks: u64, chunk_bytes: u64) -> u64 {
    chunks.div_ceil(MIB / chunk_bytes) + 1
}

/// Divides the memory limit; says why it is too small if it is.
pub fn plan(limit_bytes: u64, shape: &Shape, num_threads: u64, value_memory_percent: u64) -> Result<Plan> {
    let keys = keys_with_room(shape.records);
    let mut kept_pages = 0;
    let mut least_value_pages = 0;
    let mut keys_with_headers = 0;
    for part in shape.value_sizes.parts() {
        let item = item_bytes(part.size);
        let keys_of_part = (keys * u64::from(part.percent)).div_ceil(100);
        if item < SMALLEST_IN_FILE {
            // Chunks grow by a quarter from class to class.
            kept_pages += slab_pages(keys_of_part, item * 5 / 4);
        } else {
            keys_with_headers += keys_of_part;
            least_value_pages += VALUE_PAGES_LEAST;
        }
    }
    if keys_with_headers > 0 {
        kept_pages += slab_pages(keys_with_headers, HEADER_CHUNK_BYTES);
    }
    // Buffers of connections and threads as budget.rs has them; program, libraries and what the kernel charges for the process.
    let fixed = (8u64 << hash_power(shape.records)) + WRITE_BUFFERS_BYTES + shape.connections as u64 * 48 * KIB + num_threads * 512 * KIB + 8 * MIB;
    let needed = fixed + (kept_pages + least_value_pages) * MIB + PAGE_CACHE_LEAST_BYTES;
    if needed > limit_bytes {
        bail!(
            "extstore does not fit: headers and small items of {} records take {kept_pages} MiB, hash table and buffers {}, values and page cache \
             at least {}; the limit is {}",
            shape.records,
            format_size(fixed),
            format_size(least_value_pages * MIB + PAGE_CACHE_LEAST_BYTES),
            format_size(limit_bytes)
        );
    }
    let left_pages = (limit_bytes - needed) / MIB;
    let value_pages = least_value_pages + left_pages * value_memory_percent.min(100) / 100;
    let value_bytes = shape.records * shape.value_sizes.mean() as u64;
    // Rewritten values leave holes until they are compacted, which begins when a quarter of the file is left.
    let file_mib = (value_bytes * 3).div_ceil(64 * MIB) * 64 + 1024;
    Ok(Plan { memory_mib: kept_pages + value_pages, file_mib })
}

/// Records a second for the given attempt, from 0.
pub fn load_rate(shape: &Shape, attempt: u32) -> f64 {
    LOAD_BYTES_PER_SECOND / shape.value_sizes.mean().max(1) as f64 / f64::from(1u32 << attempt)
}

/// Stores every key with a value that takes the chunk its header will need, or its own if it stays in memory; and as many more as may be inserted.
pub fn make_room(endpoint: &Endpoint, shape: &Shape) -> Result<()> {
    let failure = || format!("cannot make room for headers at {endpoint}");
    let socket = PatientSocket::connect(endpoint).with_context(failure)?;
    let mut replies = BufReader::new(socket.try_clone().with_context(failure)?);
    let mut requests = BufWriter::with_capacity(64 * 1024, socket);
    let mut request = Vec::new();
    let keys = keys_with_room(shape.records);
    for key in 0..keys {
        if key.is_multiple_of(10_000) {
            interrupt::check()?;
        }
        let value_size = shape.value_sizes.of(key);
        let size = if item_bytes(value_size) < SMALLEST_IN_FILE { value_size } else { 8 };
        request.clear();
        request.extend_from_slice(b"set ");
        append_key(key, &mut request);
        write!(request, " 0 0 {size} noreply\r\n{:x<size$}\r\n", "")?;
        requests.write_all(&request).with_context(failure)?;
    }
    for key in shape.records..keys {
        request.clear();
        request.extend_from_slice(b"delete ");
        append_key(key, &mut request);
        request.extend_from_slice(b" noreply\r\n");
        requests.write_all(&request).with_context(failure)?;
    }
    // Answered when all before it is done.
    requests.write_all(b"mn\r\n").and_then(|()| requests.flush()).with_context(failure)?;
    let mut line = String::new();
    replies.read_line(&mut line).with_context(failure)?;
    if line.trim_end() != "MN" {
        bail!("{}: the server answered {line:?}", failure());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use crate::value_sizes::ValueSizes;
    use crate::values::ValueKind;

    fn shape(records: u64, value_sizes: ValueSizes) -> Shape {
        Shape { records, value_sizes, value_kind: ValueKind::Random, connections: 64, client_threads: 1, protocol: Protocol::Memcached }
    }

    #[test]
    fn what_the_server_is_given_fits_into_the_limit() {
        let shape = shape(500_000, ValueSizes::fixed(1_000));
        let limit = 144 * MIB;
        let little = plan(limit, &shape, 12, 0).unwrap();
        let much = plan(limit, &shape, 12, 100).unwrap();
        // 550,000 headers of 96 bytes, six pages of values.
        assert_eq!(little.memory_mib, 52 + 6);
        assert!(much.memory_mib > little.memory_mib + 20, "{much:?}");
        // Hash table of 8 MiB and four buffers of 4 MiB beside it.
        assert!((much.memory_mib + 8 + 16) * MIB < limit, "{much:?}");
        assert!(much.file_mib * MIB > 2 * 500_000_000);
    }

    #[test]
    fn a_limit_that_is_too_small_is_explained() {
        let error = plan(57 * MIB, &shape(500_000, ValueSizes::fixed(1_000)), 12, 30).unwrap_err().to_string();
        assert!(error.contains("500000 records take 52 MiB") && error.contains("the limit is 57"), "{error}");
        // Values of 100 bytes never go to the file.
        assert!(plan(300 * MIB, &shape(5_000_000, ValueSizes::fixed(100)), 12, 30).is_err());
        assert!(plan(1_400 * MIB, &shape(5_000_000, ValueSizes::fixed(100)), 12, 30).is_ok());
    }
}
