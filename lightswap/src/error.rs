//! Errors of the public API: each says what failed, why, and what to do about it.

use crate::failure::SwapFailure;
use std::fmt;
use std::io;

/// What kind of thing went wrong; the C ABI's status codes are these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ErrorKind {
    /// An argument is out of range.
    InvalidArgument = -1,
    /// The backend URL does not parse.
    BackendUrl = -2,
    /// The backend cannot be opened, or failed.
    Backend = -3,
    /// The kernel offers no suitable userfaultfd.
    NoUserfaultfd = -4,
    /// The kernel offers no suitable io_uring.
    NoIoUring = -5,
    /// The machine gave no memory or address space.
    NoMemory = -6,
    /// The backend has no room left.
    NoSpace = -7,
    /// More pages would be pinned than local memory can spare.
    PinLimit = -8,
    /// The address range is not wholly inside one region.
    NotInRegion = -9,
    /// The calling thread is not a worker.
    NotAWorker = -10,
    /// The object is in use.
    Busy = -11,
    /// A page's content could not be read back.
    SwapIn = -12,
}

impl ErrorKind {
    pub(crate) const ALL: [Self; 12] = [
        Self::InvalidArgument,
        Self::BackendUrl,
        Self::Backend,
        Self::NoUserfaultfd,
        Self::NoIoUring,
        Self::NoMemory,
        Self::NoSpace,
        Self::PinLimit,
        Self::NotInRegion,
        Self::NotAWorker,
        Self::Busy,
        Self::SwapIn,
    ];

    /// A few words for the kind, without details.
    pub const fn text(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::BackendUrl => "the backend URL does not parse",
            Self::Backend => "the backend failed",
            Self::NoUserfaultfd => "no suitable userfaultfd in this kernel",
            Self::NoIoUring => "no suitable io_uring in this kernel",
            Self::NoMemory => "out of memory or address space",
            Self::NoSpace => "no room left in the backend",
            Self::PinLimit => "too many pinned pages",
            Self::NotInRegion => "the range is not inside a region",
            Self::NotAWorker => "the calling thread is not a worker",
            Self::Busy => "in use",
            Self::SwapIn => "a page could not be read back from the backend",
        }
    }
}

/// An error with its kind and one sentence for people.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    failure: Option<SwapFailure>,
}

/// Result of the public API.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), failure: None }
    }

    /// The last operating system error, after `what` ("cannot open /x").
    pub(crate) fn os(kind: ErrorKind, what: impl fmt::Display) -> Self {
        Self::io(kind, what, &io::Error::last_os_error())
    }

    pub(crate) fn io(kind: ErrorKind, what: impl fmt::Display, cause: &io::Error) -> Self {
        Self::new(kind, format!("{what}: {cause}"))
    }

    /// Why a page could not be had, for an error of the kind [`ErrorKind::SwapIn`].
    pub fn failure(&self) -> Option<&SwapFailure> {
        self.failure.as_ref()
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<SwapFailure> for Error {
    fn from(failure: SwapFailure) -> Self {
        Self { kind: ErrorKind::SwapIn, message: failure.to_string(), failure: Some(failure) }
    }
}
