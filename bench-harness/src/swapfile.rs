//! A swap file for the kernel-swap baseline: made, switched on and off, deleted.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::journal::{Guard, Journal, Leftover, remove_file};
use crate::units::MIB;
use lightswap::format_size;

const PAGE_SIZE: usize = 4096;
/// From <sys/swap.h>; the libc crate lacks them.
const SWAP_FLAG_PREFER: i32 = 0x8000;
const HIGHEST_PRIORITY: i32 = 0x7fff;

/// The file, which exists but is not in use.
#[derive(Debug)]
pub struct SwapFile<'a> {
    path: PathBuf,
    _guard: Guard<'a>,
}

/// Swap space in use until this goes.
#[derive(Debug)]
pub struct ActiveSwap<'a> {
    path: &'a Path,
}

/// The first page of a swap area, as mkswap(8) writes it.
fn header(num_pages: u32) -> [u8; PAGE_SIZE] {
    const VERSION_OFFSET: usize = 1024;
    const MAGIC: &[u8] = b"SWAPSPACE2";
    let mut page = [0; PAGE_SIZE];
    page[VERSION_OFFSET..VERSION_OFFSET + 4].copy_from_slice(&1u32.to_ne_bytes());
    page[VERSION_OFFSET + 4..VERSION_OFFSET + 8].copy_from_slice(&(num_pages - 1).to_ne_bytes());
    page[PAGE_SIZE - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

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

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("the path {} holds a zero byte", path.display()))
}

impl<'a> SwapFile<'a> {
    /// Every byte is written: a file with holes is refused as swap, and blocks that were never written are slow at first use.
    pub fn create(journal: &'a Journal, path: &Path, size_bytes: u64) -> Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let free = free_bytes(directory)?;
        if free < size_bytes + 64 * MIB {
            bail!(
                "the swap file needs {}, but {} has only {} free; make room or choose another --directory",
                format_size(size_bytes),
                directory.display(),
                format_size(free)
            );
        }
        // A file of this name is ours, left by a run before a reboot.
        deactivate(path)?;
        remove_file(path)?;
        let guard = Guard::new(journal, Leftover::SwapFile { path: path.to_owned() })?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot create the swap file {}", path.display()))?;
        fill(&file, size_bytes).with_context(|| format!("cannot write the swap file {}", path.display()))?;
        interrupt::check()?;
        Ok(Self { path: path.to_owned(), _guard: guard })
    }

    /// Preferred over any other swap space of the machine.
    pub fn activate(&self) -> Result<ActiveSwap<'_>> {
        let name = c_path(&self.path)?;
        let flags = SWAP_FLAG_PREFER | HIGHEST_PRIORITY;
        // SAFETY: the name ends with a zero byte; nothing else is passed by pointer.
        if unsafe { libc::swapon(name.as_ptr(), flags) } != 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot swap to {}; it takes root and a file system that supports swap files", self.path.display()));
        }
        Ok(ActiveSwap { path: &self.path })
    }
}

impl Drop for ActiveSwap<'_> {
    fn drop(&mut self) {
        if let Err(error) = deactivate(self.path) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn fill(mut file: &File, size_bytes: u64) -> io::Result<()> {
    let size_bytes = size_bytes / MIB * MIB;
    let length = i64::try_from(size_bytes).map_err(io::Error::other)?;
    // Asks for one extent where the file system can; the writes below do not depend on it.
    // SAFETY: the descriptor is open and no pointer is passed.
    unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
    let zeroes = vec![0; MIB as usize];
    for _ in 0..size_bytes / MIB {
        if interrupt::requested() {
            return Ok(());
        }
        file.write_all(&zeroes)?;
    }
    let num_pages = u32::try_from(size_bytes / PAGE_SIZE as u64).map_err(io::Error::other)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header(num_pages))?;
    file.sync_all()?;
    // The cached copy is of no use and would take memory from others.
    // SAFETY: the descriptor is open and no pointer is passed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

/// Stops swapping to the file, if that is going on.
pub fn deactivate(path: &Path) -> Result<()> {
    let in_use = fs::read_to_string("/proc/swaps").is_ok_and(|text| {
        let name = path.to_string_lossy();
        text.lines().any(|line| line.split_whitespace().next() == Some(&*name))
    });
    if !in_use {
        return Ok(());
    }
    let name = c_path(path)?;
    // SAFETY: the name ends with a zero byte.
    if unsafe { libc::swapoff(name.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot stop swapping to {}", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_mkswap() {
        let page = header(256);
        assert_eq!(&page[4086..], b"SWAPSPACE2");
        assert_eq!(page[1024..1032], [1, 0, 0, 0, 255, 0, 0, 0]);
    }

    #[test]
    fn free_space_is_known() {
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
    }
}
