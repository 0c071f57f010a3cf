//! Swap space for the kernel-swap baselines: made, switched on and off, removed.

mod file;
pub use file::free_bytes;
pub mod zram;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::journal::{Guard, Journal};
use crate::lab::is_root;

pub use file::check_room;

const PAGE_SIZE: usize = 4096;
/// From <sys/swap.h>; the libc crate lacks them.
const SWAP_FLAG_PREFER: i32 = 0x8000;
const HIGHEST_PRIORITY: i32 = 0x7fff;

/// What the kernel swaps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapKind {
    /// A file on the disk, as large as asked for.
    File,
    /// Compressed memory beside the limited memory of a process.
    Zram,
}

impl SwapKind {
    /// What is missing here to swap to it, if anything.
    pub fn obstacle(self) -> Option<String> {
        if !is_root() {
            return Some("kernel swap takes root: it switches swap space on, makes a cgroup and changes kernel settings".into());
        }
        match self {
            Self::File => None,
            Self::Zram => zram::obstacle(),
        }
    }
}

/// Swap space that exists but is not in use.
#[derive(Debug)]
pub struct SwapDevice<'a> {
    path: PathBuf,
    kind: SwapKind,
    _guard: Guard<'a>,
}

/// Swap space in use until this goes.
#[derive(Debug)]
pub struct ActiveSwap<'a> {
    path: &'a Path,
}

impl<'a> SwapDevice<'a> {
    /// `directory` is where a file goes. There is one of a kind at a time.
    pub fn create(journal: &'a Journal, kind: SwapKind, directory: &Path, size_bytes: u64) -> Result<Self> {
        if let Some(obstacle) = kind.obstacle() {
            bail!("{obstacle}");
        }
        let (path, guard) = match kind {
            SwapKind::File => {
                // The kernel lists swap space by its absolute path.
                let directory = directory.canonicalize().with_context(|| format!("cannot use the directory {}", directory.display()))?;
                file::create(journal, directory.join("lightswap-bench.swap"), size_bytes)?
            }
            SwapKind::Zram => zram::create(journal, size_bytes)?,
        };
        Ok(Self { path, kind, _guard: guard })
    }

    /// Preferred over any other swap space of the machine.
    pub fn activate(&self) -> Result<ActiveSwap<'_>> {
        let name = c_path(&self.path)?;
        let flags = SWAP_FLAG_PREFER | HIGHEST_PRIORITY;
        // SAFETY: the name ends with a zero byte; nothing else is passed by pointer.
        if unsafe { libc::swapon(name.as_ptr(), flags) } != 0 {
            let hint = match self.kind {
                SwapKind::File => "it takes root and a file system that supports swap files",
                SwapKind::Zram => "it takes root, in a container the right to administrate the system too",
            };
            return Err(io::Error::last_os_error()).with_context(|| format!("cannot swap to {}; {hint}", self.path.display()));
        }
        Ok(ActiveSwap { path: &self.path })
    }
}

/// What a zram device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Of pages as they were; those filled with one word do not count.
    pub page_bytes: u64,
    /// The memory that they take, its own bookkeeping included.
    pub memory_bytes: u64,
}

/// Of a line of mm_stat: what was stored, its compressed size, and the memory it takes come first.
fn parse_mm_stat(text: &str) -> Option<Stored> {
    let mut numbers = text.split_whitespace().map(|word| word.parse::<u64>().ok());
    let (page_bytes, memory_bytes) = (numbers.next()??, numbers.nth(1)??);
    Some(Stored { page_bytes, memory_bytes })
}

impl ActiveSwap<'_> {
    /// Of a zram device: what it holds now.
    pub fn stored(&self) -> Option<Stored> {
        let name = self.path.file_name()?.to_str()?;
        parse_mm_stat(&fs::read_to_string(format!("/sys/block/{name}/mm_stat")).ok()?)
    }

    /// The memory that a zram device takes now.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.stored().map(|stored| stored.memory_bytes)
    }
}

impl Drop for ActiveSwap<'_> {
    fn drop(&mut self) {
        if let Err(error) = deactivate(self.path) {
            note!("warning: {error:#}");
        }
    }
}

const INFO_OFFSET: usize = 1024;
const LABEL_OFFSET: usize = INFO_OFFSET + 28;
/// Tells our swap space from that of others; 16 bytes, as the header has room for.
const LABEL: &[u8; 16] = b"lightswap-bench\0";

/// The first page of a swap area, as mkswap(8) writes it.
fn header(num_pages: u32) -> [u8; PAGE_SIZE] {
    const MAGIC: &[u8] = b"SWAPSPACE2";
    let mut page = [0; PAGE_SIZE];
    page[INFO_OFFSET..INFO_OFFSET + 4].copy_from_slice(&1u32.to_ne_bytes());
    page[INFO_OFFSET + 4..INFO_OFFSET + 8].copy_from_slice(&(num_pages - 1).to_ne_bytes());
    page[LABEL_OFFSET..LABEL_OFFSET + LABEL.len()].copy_from_slice(LABEL);
    page[PAGE_SIZE - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

fn num_pages(size_bytes: u64) -> Result<u32> {
    u32::try_from(size_bytes / PAGE_SIZE as u64)
        .ok()
        .filter(|&pages| pages > 10)
        .with_context(|| format!("no swap space can have {size_bytes} bytes"))
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("the path {} holds a zero byte", path.display()))
}

/// Stops swapping to the file or device, if that is going on.
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
        assert_eq!(&page[1052..1068], LABEL);
    }

    #[test]
    fn what_zram_holds_is_read_from_its_statistics() {
        let text = "  201326592  84000000  90177536        0 90177536        3        0        0        0\n";
        assert_eq!(parse_mm_stat(text), Some(Stored { page_bytes: 201_326_592, memory_bytes: 90_177_536 }));
        assert_eq!((parse_mm_stat(""), parse_mm_stat("1 x")), (None, None));
    }

    #[test]
    fn sizes_that_no_swap_space_has_are_refused() {
        assert_eq!(num_pages(1 << 20).unwrap(), 256);
        assert!(num_pages(0).is_err() && num_pages(4096).is_err() && num_pages(u64::MAX).is_err());
    }

    #[test]
    fn swap_space_comes_and_goes() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-swap", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let journal = Journal::open_in(&directory.join("state")).unwrap();
        for kind in [SwapKind::File, SwapKind::Zram] {
            if let Some(obstacle) = kind.obstacle() {
                eprintln!("skipped: {obstacle}");
                continue;
            }
            let in_use = |path: &Path| fs::read_to_string("/proc/swaps").unwrap().contains(&*path.to_string_lossy());
            let device = SwapDevice::create(&journal, kind, &directory, 1 << 20).unwrap();
            let path = device.path.clone();
            assert!(path.exists() && !in_use(&path));
            let active = device.activate().unwrap();
            assert!(in_use(&path));
            drop(active);
            assert!(!in_use(&path));
            drop(device);
            assert!(!path.exists());

            // As by a killed run: the journal is all there is to clean up by.
            let device = SwapDevice::create(&journal, kind, &directory, 1 << 20).unwrap();
            let path = device.path.clone();
            let leftovers = fs::read_to_string(directory.join("state/journal.json")).unwrap();
            std::mem::forget(device.activate().unwrap());
            std::mem::forget(device);
            assert!(in_use(&path));
            let state = directory.join("state of the killed run");
            fs::create_dir_all(&state).unwrap();
            fs::write(state.join("journal.json"), leftovers).unwrap();
            drop(Journal::open_in(&state).unwrap());
            assert!(!in_use(&path) && !path.exists());
        }
        drop(journal);
        fs::remove_dir_all(&directory).unwrap();
    }
}
