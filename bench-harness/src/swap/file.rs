//! A swap file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lightswap::format_size;

use super::{c_path, deactivate, header, num_pages};
use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover, remove_file};
use crate::units::MIB;

pub fn free_bytes(directory: &Path) -> Result<u64> {
    let name = c_path(directory)?;
    // SAFETY: an all-zero statvfs is a valid value of this plain C struct.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name ends with a zero byte and `info` is valid for writing.
    if unsafe { libc::statvfs(name.as_ptr(), &mut info) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot look at the file system of {}", directory.display()));
    }
    Ok(info.f_bavail * info.f_frsize)
}

/// An error if a swap file of this size does not fit the directory's file system.
pub fn check_room(directory: &Path, size_bytes: u64) -> Result<()> {
    let free = free_bytes(directory)?;
    if free < size_bytes + 64 * MIB {
        bail!(
            "the swap file needs {}, but {} has only {} free; make room or choose another --directory",
            format_size(size_bytes),
            directory.display(),
            format_size(free)
        );
    }
    Ok(())
}

/// Every byte is written: a file with holes is refused as swap, and blocks that were never written are slow at first use.
pub fn create(journal: &Journal, path: PathBuf, size_bytes: u64) -> Result<(PathBuf, Guard<'_>)> {
    check_room(path.parent().unwrap_or(Path::new("/")), size_bytes)?;
    // A file of this name is ours, left by a run before a reboot.
    deactivate(&path)?;
    remove_file(&path)?;
    let guard = Guard::new(journal, Leftover::SwapFile { path: path.clone() })?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot create the swap file {}", path.display()))?;
    fill(&file, size_bytes / MIB * MIB).with_context(|| format!("cannot write the swap file {}", path.display()))?;
    interrupt::check()?;
    Ok((path, guard))
}

fn fill(mut file: &File, size_bytes: u64) -> Result<()> {
    let header = header(num_pages(size_bytes)?);
    // Asks for one extent where the file system can; the writes below do not depend on it.
    // SAFETY: the descriptor is open and no pointer is passed.
    unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, i64::try_from(size_bytes)?) };
    let zeroes = vec![0; MIB as usize];
    for _ in 0..size_bytes / MIB {
        if interrupt::requested() {
            return Ok(());
        }
        file.write_all(&zeroes)?;
    }
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)?;
    file.sync_all()?;
    // The cached copy is of no use and would take memory from others.
    // SAFETY: the descriptor is open and no pointer is passed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_known() {
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
        let error = check_room(Path::new("/"), 1 << 60).unwrap_err().to_string();
        assert!(error.contains("make room"), "{error}");
    }
}
