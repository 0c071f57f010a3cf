//! `file:/path?size=8GiB`: slots in a file or block device, through io_uring and O_DIRECT, so that no page cache doubles what is paged.
//!
//! A path that does not exist is made with mode 0600 and unlinked at once: nothing is left behind, however the process ends. An existing file or
//! block device is used as it is, up to its size. `reserve=start` (default) allocates all room at open, as a kernel swap file does;
//! `reserve=grow` allocates in steps as regions fill, so a full disk shows when memory is handed out, never when a page must leave.

use super::url::BackendUrl;
use super::{Backend, Write, offset_of, slots_in};
use crate::error::{ErrorKind, Result};
use crate::io_queue::{IoQueue, Token};
use crate::size::{bytes_of, format_size};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

/// Slots allocated at a time by `reserve=grow`: 16 MiB.
const GROW_SLOTS: usize = 4096;

#[derive(Debug)]
pub(super) struct FileBackend {
    file: File,
    num_slots: usize,
    /// Per step of GROW_SLOTS: its room is allocated. Empty when all was allocated at open.
    allocated: Box<[AtomicBool]>,
    allocating: Mutex<()>,
}

impl Drop for FileBackend {
    fn drop(&mut self) {
        // The kernel takes rings apart in the background, and they hold the file: without this the next instance would find it in use.
        // SAFETY: flock takes a descriptor, which `file` keeps open.
        unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}

impl FileBackend {
    pub(super) fn open(url: &BackendUrl) -> Result<Self> {
        url.expect_only(&["size", "reserve"])?;
        let grows = url.choice("reserve", &["start", "grow"])? == 1;
        let size = url.size()?;
        if url.path.is_empty() {
            return Err(url.error(ErrorKind::BackendUrl, "a path is needed: file:/path?size=8GiB"));
        }
        let path = Path::new(&url.path);
        let (file, is_new) = open_or_create(path, size.is_some()).map_err(|cause| explain(url, path, &cause))?;
        let backend = Self::prepare(url, file, size, is_new, grows);
        if is_new {
            // Nobody else needs the name: without it the kernel frees the file with the last descriptor.
            let _ = std::fs::remove_file(path);
        }
        backend
    }

    fn prepare(url: &BackendUrl, file: File, size: Option<u64>, is_new: bool, grows: bool) -> Result<Self> {
        let io_error = |what: &str, cause: io::Error| url.error(ErrorKind::Backend, format!("{what}: {cause}"));
        // SAFETY: flock takes a descriptor, which `file` keeps open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(url.error(ErrorKind::Backend, "the file is in use by another process: give each process a file of its own"));
        }
        let metadata = file.metadata().map_err(|cause| io_error("cannot examine the file", cause))?;
        let is_block_device = metadata.file_type().is_block_device();
        if !is_new && !is_block_device {
            secure(&file, &metadata).map_err(|cause| io_error("others can read the file and its mode cannot be changed to 0600", cause))?;
        }
        let available = match (is_new, is_block_device) {
            (true, _) => size.expect("a new file is only made with a size"),
            (false, true) => device_size(&file).map_err(|cause| io_error("cannot tell the size of the device", cause))?,
            (false, false) => metadata.len(),
        };
        let wanted = size.unwrap_or(available);
        if wanted > available {
            let message =
                format!("it holds {}, less than size={}; make it larger or let Lightswap make the file", format_size(available), format_size(wanted));
            return Err(url.error(ErrorKind::Backend, message));
        }
        let num_slots = slots_in(wanted, &url.text)?;
        let mut backend = Self { file, num_slots, allocated: Box::default(), allocating: Mutex::new(()) };
        if is_new {
            backend.file.set_len(bytes_of(num_slots) as u64).map_err(|cause| io_error("cannot set the file's size", cause))?;
        }
        if grows && !is_block_device {
            backend.allocated = (0..num_slots.div_ceil(GROW_SLOTS)).map(|_| AtomicBool::new(false)).collect();
        } else if !is_block_device {
            let what = format!("cannot reserve {} on its file system (reserve=grow reserves as memory fills)", format_size(wanted));
            allocate(&backend.file, 0, num_slots).map_err(|cause| io_error(&what, cause))?;
        }
        Ok(backend)
    }
}

/// Opens the file, or makes it if there is none and `may_create`. `true`: it is new.
fn open_or_create(path: &Path, may_create: bool) -> io::Result<(File, bool)> {
    let open = |is_new: bool| {
        let is_block_device = !is_new && path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        // O_EXCL on a block device refuses one that is mounted or otherwise in use.
        let exclusive = if is_block_device { libc::O_EXCL } else { 0 };
        OpenOptions::new().read(true).write(true).create_new(is_new).mode(0o600).custom_flags(libc::O_DIRECT | exclusive).open(path)
    };
    match open(false) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && may_create => open(true).map(|file| (file, true)),
        result => result.map(|file| (file, false)),
    }
}

/// What went wrong at open, and what to do about it.
fn explain(url: &BackendUrl, path: &Path, cause: &io::Error) -> crate::error::Error {
    let what = match cause.raw_os_error() {
        Some(libc::EISDIR) => "it is a directory: name a file in it, such as swap in that directory".into(),
        Some(libc::ENOENT) if url.size().is_ok_and(|size| size.is_none()) => "the file does not exist: add ?size=SIZE to have it made".into(),
        Some(libc::EINVAL) => "its file system does not support O_DIRECT: choose a path on another one, for example on ext4 or xfs".into(),
        Some(libc::EBUSY) => "the device is mounted or in use by someone else".into(),
        _ => format!("cannot open {} for reading and writing: {cause}", path.display()),
    };
    url.error(ErrorKind::Backend, what)
}

/// Takes the rights of group and others away from an existing file.
fn secure(file: &File, metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.mode() & 0o077 == 0 { Ok(()) } else { file.set_permissions(std::fs::Permissions::from_mode(0o600)) }
}

fn device_size(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Allocates the room of some slots; the file must have its size already.
fn allocate(file: &File, slot: usize, num_slots: usize) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open; the kernel checks offset and length.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, offset_of(slot) as i64, bytes_of(num_slots) as i64) };
        if result == 0 {
            return Ok(());
        }
        let cause = io::Error::last_os_error();
        if cause.kind() != io::ErrorKind::Interrupted {
            return Err(cause);
        }
    }
}

impl Backend for FileBackend {
    fn num_slots(&self) -> usize {
        self.num_slots
    }

    fn file(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn start_read(&self, queue: &IoQueue, slot: usize, buffer: usize, target: *mut u8) {
        queue.push_read(buffer, target, offset_of(slot));
    }

    fn start_marked_read(&self, queue: &IoQueue, slot: usize, token: Token, target: *mut u8) {
        queue.push_marked_read(token, target, offset_of(slot));
    }

    fn write_bytes(&self, queue: &IoQueue, slot: usize, source: *const u8, num_bytes: usize, token: Token) -> Write {
        queue.push_write(token, source, num_bytes as u32, offset_of(slot));
        Write::Pending
    }

    fn reserve(&self, slot: usize, num_slots: usize) -> io::Result<()> {
        if self.allocated.is_empty() || num_slots == 0 {
            return Ok(());
        }
        for step in slot / GROW_SLOTS..=(slot + num_slots - 1) / GROW_SLOTS {
            if self.allocated[step].load(Acquire) {
                continue;
            }
            let _guard = self.allocating.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let first = step * GROW_SLOTS;
            if !self.allocated[step].load(Acquire) {
                allocate(&self.file, first, GROW_SLOTS.min(self.num_slots - first))?;
                self.allocated[step].store(true, Release);
            }
        }
        Ok(())
    }
}
