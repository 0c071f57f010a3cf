//! TLS around a connection (`nbds:`): version 1.3, with certificates.
//!
//! rustls does the handshake ([`handshake`]), on the thread that connects, and is the judge of certificates ([`config`]); from it come the keys of the session, and
//! those that follow when either side changes its own. The records themselves ([`record`]) are made and opened here, with the same library that rustls
//! does it with: rustls would copy each once more, and allocate memory for each, which a signal handler must not ([`crate::Waiting::Poll`]). What is received is
//! decrypted where it lies and moved together by that ([`super::inbox`]); what is sent is copied into a buffer of bounded size ([`sender`]) and encrypted there.
//!
//! [`session`] is what there is of TLS beside data: alerts, key updates, tickets. Only key updates allocate memory, one in millions of records.

pub(super) mod config;
pub(super) mod handshake;
pub(super) mod options;
pub(super) mod record;
pub(super) mod sender;
pub(super) mod session;
#[cfg(test)]
mod tests;

use rustls::AlertDescription;
use std::fmt;

/// Why there can be no more of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TlsError {
    /// The server says that nothing more comes.
    Closed,
    /// The server has ended it, for a reason that it gives.
    Alert(AlertDescription),
    /// Not what the server has encrypted, or in another order.
    Tampered,
    /// It breaks the rules of TLS so.
    Violation(&'static str),
    /// There are no new keys.
    NoKeys,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the server closed it"),
            Self::Alert(AlertDescription::CertificateRequired) => f.write_str(
                "the server wants a certificate of its client: give a directory with client-cert.pem and client-key.pem, as tls-certificates=DIR",
            ),
            Self::Alert(alert) => write!(f, "the server ended the TLS session with the alert {alert:?}"),
            Self::Tampered => f.write_str("what came was changed or damaged on its way: its TLS record cannot be decrypted"),
            Self::Violation(what) => write!(f, "the server broke the rules of TLS: {what}"),
            Self::NoKeys => f.write_str("the TLS session has no new keys"),
        }
    }
}

impl TlsError {
    /// What the server is told of it.
    pub(super) fn alert(&self) -> AlertDescription {
        match self {
            Self::Closed | Self::Alert(_) => AlertDescription::CloseNotify,
            Self::Tampered => AlertDescription::BadRecordMac,
            Self::Violation(_) => AlertDescription::UnexpectedMessage,
            Self::NoKeys => AlertDescription::InternalError,
        }
    }
}
