//! The few calls of epoll(7) that the load generator needs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

pub type Event = libc::epoll_event;
pub const NO_EVENT: Event = Event { events: 0, u64: 0 };

/// What a waiting call returned; a signal is no event.
fn num_events(count: i32) -> io::Result<usize> {
    match usize::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the descriptor is new and nobody else owns it.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    fn control(&self, operation: i32, fd: RawFd, token: usize, writable: bool) -> io::Result<()> {
        let wanted = if writable { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        let mut event = Event { events: wanted as u32, u64: token as u64 };
        // SAFETY: `event` is valid during the call; the kernel copies it.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Watches a descriptor for input; events carry `token`.
    pub fn add(&self, fd: RawFd, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, false)
    }

    /// Also watches for room to write, or no longer.
    pub fn watch_writable(&self, fd: RawFd, token: usize, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, writable)
    }

    /// Waits for events; none within `timeout`, or a signal, gives an empty slice.
    pub fn wait<'a>(&self, events: &'a mut [Event], timeout: Duration) -> io::Result<&'a [Event]> {
        match self.wait_precisely(events, timeout) {
            Ok(count) => Ok(&events[..count]),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                // Linux before 5.11. Rounded up: a wait that ends early would be repeated without end.
                let timeout_ms = i32::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
                let capacity = i32::try_from(events.len()).unwrap_or(i32::MAX);
                // SAFETY: `events` has room for `capacity` events and lives during the call.
                let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), capacity, timeout_ms) };
                num_events(count).map(|count| &events[..count])
            }
            Err(error) => Err(error),
        }
    }

    fn wait_precisely(&self, events: &mut [Event], timeout: Duration) -> io::Result<usize> {
        let capacity = i32::try_from(events.len()).unwrap_or(i32::MAX);
        // Both fit: the crate's types differ between machines, the values do not.
        let timeout = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos() as libc::c_long };
        // SAFETY: `events` has room for `capacity` events, it and `timeout` live during the call; no signal mask is given.
        let count = unsafe { libc::epoll_pwait2(self.epoll.as_raw_fd(), events.as_mut_ptr(), capacity, &timeout, std::ptr::null()) };
        num_events(count)
    }
}
