//! Notifiers: how a faulting access reaches Lightswap.

pub(crate) mod monitor;
pub(crate) mod sigbus;

use std::fmt::Write as _;

/// Time of the last notification: of this thread by signal, or of the process by message, whichever is later. For measurements.
pub(crate) fn last_notification_ns() -> u64 {
    sigbus::last_notification_ns().max(monitor::last_notification_ns())
}

/// Says why on standard error and aborts. Async-signal-safe.
pub(crate) fn die(message: std::fmt::Arguments<'_>) -> ! {
    let mut line = Line { bytes: [0; 512], len: 0 };
    let _ = writeln!(line, "lightswap: fatal: {message}");
    // SAFETY: writes the initialised part of the buffer; abort is what we want.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::abort()
    }
}

/// A line of text without allocation; what does not fit is cut.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let free = &mut self.bytes[self.len..];
        let len = text.len().min(free.len());
        free[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}
