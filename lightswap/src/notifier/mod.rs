//! Notifiers: how a faulting access reaches Lightswap.

pub(crate) mod sigbus;
