//! Notifiers: how a faulting access reaches Lightswap.

pub(crate) mod ebpf;
pub(crate) mod monitor;
mod resume;
pub(crate) mod sigbus;

use std::fmt::Write as _;

/// Time of the last notification: of this thread by signal, or of the process by message, whichever is later. For measurements.
pub(crate) fn last_notification_ns() -> u64 {
    sigbus::last_notification_ns().max(monitor::last_notification_ns())
}

/// Says why on standard error and aborts. Async-signal-safe.
pub(crate) fn die(message: std::fmt::Arguments<'_>) -> ! {
    let line = Line::of(format_args!("lightswap: fatal: {message}"));
    // SAFETY: writes the initialised part of the buffer; abort is what we want.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::abort()
    }
}

/// Says why on standard error and ends a child of fork as one that has failed: its parent goes on, and will see that. Async-signal-safe.
pub(crate) fn leave(message: std::fmt::Arguments<'_>) -> ! {
    let line = Line::of(format_args!("lightswap: {message}"));
    // SAFETY: writes the initialised part of the buffer; no exit handler is to run.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(1)
    }
}

const LINE_BYTES: usize = 512;

/// A line of text without allocation; what does not fit is cut.
struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    fn of(text: std::fmt::Arguments<'_>) -> Self {
        let mut line = Self { bytes: [0; LINE_BYTES], len: 0 };
        let _ = line.write_fmt(text);
        line.bytes[line.len] = b'\n';
        line.len += 1;
        line
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // A byte is kept for the end of the line.
        let free = &mut self.bytes[self.len..LINE_BYTES - 1];
        let len = text.len().min(free.len());
        free[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::example_of;

    /// However long the backend's URL is: the cause comes before it, and the line has an end.
    #[test]
    fn what_does_not_fit_is_cut_at_the_end() {
        for url_bytes in [10, 300, 5000] {
            let line = Line::of(format_args!("lightswap: fatal: {}", example_of(&"u".repeat(url_bytes))));
            let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
            assert!(text.contains("I/O error, errno 5") && text.ends_with('\n') && text.lines().count() == 1, "{text}");
            assert_eq!(text.ends_with("u\")\n"), url_bytes < 400, "{text}");
        }
    }
}
