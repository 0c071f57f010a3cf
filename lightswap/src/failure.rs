//! Why the content of a page could not be had: as far as a page's entry has room for it, and as the program is told.

use crate::lwt;
use crate::region::Page;
use libc::c_char;
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Why the content of a page could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Cause {
    /// The backend returned an error, or the kernel when the page was to be mapped; [`SwapFailure::errno`] says which.
    Io = 1,
    /// The read took longer than [`crate::Builder::io_timeout`], or there was no room in local memory for so long, because nothing could be written.
    TimedOut = 2,
    /// What was read is not what was written.
    WrongHash = 3,
    /// The backend returned less than a page.
    ShortRead = 4,
    /// The backend is gone: the device was removed, the connection lost.
    LostBackend = 5,
    /// The memory of the page was damaged (a hardware memory error). What was in it is lost for good.
    Poisoned = 6,
}

/// The result of a read whose content is known to be wrong, beside bytes and negative errnos.
pub(crate) const WRONG_CONTENT: i32 = -(1 << 20);

/// A cause as a page's entry keeps it: an errno, or one of the constants. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawCause(pub(crate) i32);

impl RawCause {
    pub(crate) const WRONG_HASH: Self = Self(-1);
    pub(crate) const SHORT_READ: Self = Self(-2);
    pub(crate) const POISONED: Self = Self(-3);
    pub(crate) const TIMED_OUT: Self = Self(libc::ETIMEDOUT);

    /// Below it are those of mapping a page that was read.
    const MAPPING: i32 = -(1 << 16);

    /// The kernel did not map the page.
    pub(crate) fn of_mapping(errno: i32) -> Self {
        Self(Self::MAPPING - errno)
    }

    /// Of a read that returned `result`: less than a page, a negative errno, or [`WRONG_CONTENT`].
    pub(crate) fn of_read(result: i32) -> Self {
        match result {
            WRONG_CONTENT => Self::WRONG_HASH,
            ..0 => Self(-result),
            _ => Self::SHORT_READ,
        }
    }

    /// Whether it is worth asking the backend for the page again at once. Not after a time limit: who waits has waited long enough.
    pub(crate) fn may_heal(self) -> bool {
        self.0 > Self::MAPPING && self != Self::TIMED_OUT && self != Self::POISONED
    }

    pub(crate) fn cause(self) -> Cause {
        match self {
            Self(raw) if raw <= Self::MAPPING => Cause::Io,
            Self::WRONG_HASH => Cause::WrongHash,
            Self::SHORT_READ => Cause::ShortRead,
            Self::POISONED => Cause::Poisoned,
            Self::TIMED_OUT => Cause::TimedOut,
            Self(errno) if is_loss(errno) => Cause::LostBackend,
            Self(_) => Cause::Io,
        }
    }

    /// 0 if it is none.
    fn errno(self) -> i32 {
        if self.0 <= Self::MAPPING { Self::MAPPING - self.0 } else { self.0.max(0) }
    }
}

/// Whether an errno says that there is no device or server any more.
fn is_loss(errno: i32) -> bool {
    use libc::{EBADF, ECONNABORTED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETRESET, ENETUNREACH};
    use libc::{ENODEV, ENOMEDIUM, ENOTCONN, ENXIO, EPIPE, ESHUTDOWN, ESTALE};
    matches!(
        errno,
        ENODEV
            | ENXIO
            | EBADF
            | ENOMEDIUM
            | ESTALE
            | EPIPE
            | ENOTCONN
            | ESHUTDOWN
            | ECONNRESET
            | ECONNABORTED
            | ENETDOWN
            | ENETRESET
            | ENETUNREACH
            | EHOSTDOWN
            | EHOSTUNREACH
    )
}

/// What there is to say of a page whose content could not be had. Displayed, it is one sentence with all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// The C ABI's lsw_error; see capi/failure.rs.
#[repr(C)]
pub struct SwapFailure {
    cause: Cause,
    errno: i32,
    address: usize,
    region: usize,
    region_len: usize,
    /// From [`intern`].
    backend: *const c_char,
}

// SAFETY: the text of the backend's URL is never changed nor freed; all else is plain.
unsafe impl Send for SwapFailure {}
// SAFETY: as above.
unsafe impl Sync for SwapFailure {}

impl SwapFailure {
    /// For an access to `address`, in `page`. Async-signal-safe.
    pub(crate) fn new(cause: RawCause, page: Page<'_>, address: usize) -> Self {
        let region = page.region;
        debug_assert!(region.contains(address));
        let backend = region.pager.config.backend_name.as_ptr();
        Self { cause: cause.cause(), errno: cause.errno(), address, region: region.start(), region_len: region.num_bytes(), backend }
    }

    /// What kind of thing went wrong.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The error code of the operating system; 0 if none belongs to the cause.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The address that was accessed; for an explicit request, the first one of the page.
    pub fn address(&self) -> usize {
        self.address
    }

    /// First address of the region, and its length in bytes.
    pub fn region(&self) -> (usize, usize) {
        (self.region, self.region_len)
    }

    /// The URL of the backend.
    pub fn backend(&self) -> &'static str {
        // SAFETY: from `intern`: a string that lives for ever, of which all is text.
        unsafe { CStr::from_ptr(self.backend) }.to_str().unwrap_or_default()
    }
}

impl fmt::Display for SwapFailure {
    // May run in a signal handler: formats and nothing else. No strerror, that is, which io::Error would call.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, region, region_len, errno, .. } = *self;
        let (page, offset) = (address & !(crate::PAGE_SIZE - 1), address - region);
        write!(f, "page {page:#x} (offset {offset:#x} of the region of {region_len:#x} bytes at {region:#x}) ")?;
        if self.cause == Cause::Poisoned {
            return f.write_str("was in memory that is damaged (hardware memory error): its content is lost; discard the page to use it again");
        }
        // The cause first: where room is short, a long URL is what may be cut off.
        f.write_str("cannot be swapped in: ")?;
        match self.cause {
            Cause::WrongHash => f.write_str("the content read back is not what was written (wrong hash)"),
            Cause::ShortRead => f.write_str("the backend returned less than a page"),
            Cause::TimedOut => f.write_str("the read, or the wait for room in local memory, took longer than the time limit (errno ETIMEDOUT)"),
            Cause::LostBackend => write!(f, "the backend is gone (errno {errno})"),
            // Such do not come from devices.
            Cause::Io if matches!(errno, libc::ENOMEM | libc::EEXIST) => write!(f, "the kernel could not provide or map its memory, errno {errno}"),
            Cause::Io | Cause::Poisoned => write!(f, "I/O error, errno {errno}"),
        }?;
        write!(f, " (backend \"{}\")", self.backend())
    }
}

impl std::error::Error for SwapFailure {}

thread_local! {
    /// Of this thread, not of its LWTs.
    static LAST: Cell<Option<SwapFailure>> = const { Cell::new(None) };
}

/// Why the last failed call of this LWT or thread could not have a page; `None` if it failed for another reason.
pub(crate) fn with_last<R>(action: impl FnOnce(&Cell<Option<SwapFailure>>) -> R) -> R {
    // SAFETY: the running LWT is alive.
    match unsafe { lwt::current().as_ref() } {
        Some(lwt) => action(lwt.last_failure()),
        None => LAST.with(action),
    }
}

/// The text as a C string that lives for ever; equal texts share one. For backend URLs, of which a process has few.
pub(crate) fn intern(text: &str) -> &'static CStr {
    static ALL: Mutex<Vec<&'static CStr>> = Mutex::new(Vec::new());
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.iter().find(|known| ***known == *text) {
        return known;
    }
    let leaked: &'static CStr = Box::leak(text.into_boxed_c_str());
    all.push(leaked);
    leaked
}

/// A failure of no region.
#[cfg(test)]
pub(crate) fn example() -> SwapFailure {
    example_of("none:")
}

#[cfg(test)]
pub(crate) fn example_of(backend: &str) -> SwapFailure {
    SwapFailure { cause: Cause::Io, errno: libc::EIO, address: 4096, region: 0, region_len: 8192, backend: intern(backend).as_ptr() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_raw_cause_has_its_kind() {
        for (raw, cause) in [(-1, Cause::WrongHash), (-2, Cause::ShortRead), (-3, Cause::Poisoned), (libc::ETIMEDOUT, Cause::TimedOut)] {
            assert_eq!((RawCause(raw).cause(), RawCause(raw).errno()), (cause, raw.max(0)));
        }
        assert_eq!(RawCause::of_read(-libc::EIO).cause(), Cause::Io);
        assert_eq!(RawCause::of_read(4095).cause(), Cause::ShortRead);
        assert_eq!(RawCause::of_read(WRONG_CONTENT), RawCause::WRONG_HASH);
        assert_eq!(RawCause::of_read(-libc::ENODEV).cause(), Cause::LostBackend);
        let mapping = RawCause::of_mapping(libc::ENOMEM);
        assert_eq!((mapping.cause(), mapping.errno(), mapping.may_heal()), (Cause::Io, libc::ENOMEM, false));
        assert!(RawCause::WRONG_HASH.may_heal() && !RawCause::TIMED_OUT.may_heal() && !RawCause::POISONED.may_heal());
    }

    #[test]
    fn equal_texts_are_kept_once() {
        let (one, two, other) = (intern("memory:?size=1"), intern("memory:?size=1"), intern("memory:\0"));
        assert!(std::ptr::eq(one, two) && !std::ptr::eq(one, other));
        assert_eq!(other.to_str(), Ok("memory: "));
    }
}
