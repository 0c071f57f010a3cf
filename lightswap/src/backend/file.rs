//! `file:/path?size=8GiB`: slots in a file or block device, through io_uring and O_DIRECT, so that no page cache doubles what is paged.
//!
//! A path that does not exist is made with mode 0600 and unlinked at once: nothing is left behind, however the process ends. An existing file or
//! block device is used as it is, up to its size. `reserve=start` (default) allocates all room at open, as a kernel swap file does;
//! `reserve=grow` allocates in steps as regions fill, so a full disk shows when memory is handed out, never when a page must leave.

use super::read_runs::{self, ReadRuns};
use super::url::BackendUrl;
use super::{Backend, BackendQueue, QueueBuilder, Read, Write, WriteRequest, offset_of, slots_in};
use crate::error::{ErrorKind, Result};
use crate::io_queue::{Completion, IoQueue, Token};
use crate::size::{bytes_of, format_size};
use io_uring::opcode;
use io_uring::types::Fixed;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};

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

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let (number, file) = (builder.reserve(), Fixed(builder.add_file(self.file.as_raw_fd())));
        let runs = ReadRuns::new(builder.num_reads);
        Ok(builder.add(number, Rc::new(FileQueue { number, file, runs, _backend: self })))
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

struct FileQueue {
    number: usize,
    file: Fixed,
    runs: ReadRuns,
    _backend: Arc<FileBackend>,
}

impl FileQueue {
    /// Reads what was gathered: what follows does not continue it.
    fn push_run(&self, io: &IoQueue) {
        let Some((index, run)) = self.runs.take() else { return };
        let offset = offset_of(run.slot);
        let num_bytes = run.num_bytes() as u32;
        let entry = match run.piece() {
            Some(target) if io.is_fixed(target, run.num_bytes()) => opcode::ReadFixed::new(self.file, target, num_bytes, 0).offset(offset).build(),
            Some(target) => opcode::Read::new(self.file, target, num_bytes).offset(offset).build(),
            None => opcode::Readv::new(self.file, run.targets().as_ptr(), run.targets().len() as u32).offset(offset).build(),
        };
        // SAFETY: targets are the readers' until the run has ended, and the run stays until it is released, at its completion.
        unsafe { io.push(entry, Token::node(self.number, index)) };
    }
}

impl BackendQueue for FileQueue {
    fn read(&self, io: &IoQueue, read: Read) {
        if read.is_retry || !self.runs.add(read) {
            self.push_run(io);
            self.runs.add(read);
        }
        if read.is_retry {
            self.push_run(io);
        }
    }

    fn write(&self, io: &IoQueue, write: WriteRequest) -> Write {
        let entry = opcode::Write::new(self.file, write.source, write.num_bytes as u32).offset(offset_of(write.slot)).build();
        // SAFETY: the source is the writer's until the write has ended.
        unsafe { io.push(entry, write.token) };
        Write::Pending
    }

    fn complete(&self, io: &IoQueue, index: u32, completion: Completion) {
        let run = self.runs.release(index);
        let result = read_runs::results(completion.result);
        for (page, token) in run.tokens().iter().enumerate() {
            io.finish(*token, Completion::of(result(page)));
        }
    }

    fn flush(&self, io: &IoQueue) {
        self.push_run(io);
    }
}
