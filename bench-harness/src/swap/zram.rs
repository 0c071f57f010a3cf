//! A zram device of our own: compressed memory that the kernel can swap to.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lightswap::format_size;

use super::{LABEL, LABEL_OFFSET, PAGE_SIZE, deactivate, header, num_pages};
use crate::journal::{Guard, Journal, Leftover};
use crate::process::kib_field;

const CONTROL: &str = "/sys/class/zram-control";
/// The fastest of those that kernels usually have.
const ALGORITHM: &str = "lz4";

fn device(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/zram{number}"))
}

fn attribute(number: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/zram{number}/{name}"))
}

/// What is missing for zram, if anything.
pub fn obstacle() -> Option<String> {
    (!Path::new(CONTROL).exists())
        .then(|| "this kernel has no zram (no /sys/class/zram-control); `modprobe zram` brings it where it is a module".into())
}

/// Holds pages as long as memory lasts, so what does not fit uncompressed is refused before anything is lost.
pub fn create(journal: &Journal, size_bytes: u64) -> Result<(PathBuf, Guard<'_>)> {
    let pages = num_pages(size_bytes)?;
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = kib_field(&meminfo, "MemAvailable").context("/proc/meminfo names no available memory")?;
    if available < size_bytes {
        bail!("swap space in zram may need {} of memory, but only {} are available; use less data", format_size(size_bytes), format_size(available));
    }
    let add = format!("{CONTROL}/hot_add");
    let text = fs::read_to_string(&add).with_context(|| format!("cannot make a zram device by reading {add}; it takes root"))?;
    let number: u32 = text.trim().parse().with_context(|| format!("{add} gave {:?} instead of a number", text.trim()))?;
    let guard = Guard::new(journal, Leftover::Zram { number })?;
    let algorithms = attribute(number, "comp_algorithm");
    if fs::read_to_string(&algorithms).is_ok_and(|text| text.split_whitespace().any(|name| name.trim_matches(['[', ']']) == ALGORITHM)) {
        write(&algorithms, ALGORITHM)?;
    }
    write(&attribute(number, "disksize"), &(u64::from(pages) * PAGE_SIZE as u64).to_string())?;
    let path = device(number);
    let file = File::options().write(true).open(&path);
    file.and_then(|file| file.write_all_at(&header(pages), 0).and_then(|()| file.sync_all()))
        .with_context(|| format!("cannot write the swap header to {}", path.display()))?;
    Ok((path, guard))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// A device that has a size, but neither our label nor an empty first page, belongs to somebody who took the number after ours had gone.
fn is_ours(number: u32) -> Result<bool> {
    let path = device(number);
    if fs::read_to_string(attribute(number, "disksize")).is_ok_and(|text| text.trim() == "0") {
        return Ok(true);
    }
    let mut page = [0; PAGE_SIZE];
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut page, 0));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(page[LABEL_OFFSET..LABEL_OFFSET + LABEL.len()] == *LABEL || page.iter().all(|&byte| byte == 0))
}

/// Stops swapping to the device and removes it, with all that it holds.
pub fn remove(number: u32) -> Result<()> {
    let exists = || attribute(number, "disksize").exists();
    if !exists() || !is_ours(number)? {
        return Ok(());
    }
    deactivate(&device(number))?;
    // Others look at new block devices and may have it open for a moment.
    let mut last_error = io::Error::from(io::ErrorKind::Other);
    for _ in 0..100 {
        let reset = fs::write(attribute(number, "reset"), "1");
        match reset.and_then(|()| fs::write(format!("{CONTROL}/hot_remove"), number.to_string())) {
            Ok(()) => return Ok(()),
            Err(_) if !exists() => return Ok(()),
            Err(error) => last_error = error,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(last_error).with_context(|| format!("cannot remove /dev/zram{number}; somebody else uses it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_gone_needs_no_removal() {
        remove(4_000_000).unwrap();
    }
}
