//! SIGINT and SIGTERM: noticed between steps, so that everything is cleaned up on the way out.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The error of a run that a signal ended.
#[derive(Debug)]
pub struct Interrupted {
    pub signal: i32,
}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.signal {
            SIGPIPE => write!(f, "stopped, as its output cannot be written any more; everything was cleaned up"),
            signal => write!(f, "stopped by signal {signal}; everything was cleaned up"),
        }
    }
}

impl std::error::Error for Interrupted {}

/// The first signal asks for an orderly end; a second one ends the process at once (`clean` then removes what is left).
pub fn install() -> Result<()> {
    let received = RECEIVED.get_or_init(Arc::default);
    let second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or_default();
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&second))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&second)))
            .and_then(|_| signal_hook::flag::register_usize(signal, Arc::clone(received), number))
            .with_context(|| format!("cannot handle signal {signal}"))?;
    }
    Ok(())
}

/// As if this signal had come, unless another one did before.
pub fn request(signal: i32) {
    let number = usize::try_from(signal).unwrap_or_default();
    // Fails only if there is one already.
    let _ = RECEIVED.get_or_init(Arc::default).compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
}

pub fn requested() -> bool {
    RECEIVED.get().is_some_and(|received| received.load(Ordering::Relaxed) != 0)
}

/// An `Interrupted` error once a signal came.
pub fn check() -> Result<()> {
    match RECEIVED.get().map(|received| received.load(Ordering::Relaxed)) {
        None | Some(0) => Ok(()),
        Some(signal) => Err(Interrupted { signal: i32::try_from(signal).unwrap_or(SIGTERM) }.into()),
    }
}
