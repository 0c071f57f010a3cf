//! The handshake of TLS, blocking: a record at a time, so that nothing is read that belongs to what follows, and nothing that came before it is left.

use super::config;
use super::options::TlsOptions;
use super::record::HEADER_BYTES;
use super::session::Session;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, CertificateError, Error};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// All that a server may send before its part of the handshake is over, of which certificates are the most.
const MAX_RECEIVED_BYTES: usize = 256 << 10;

/// Why there is no session.
#[derive(Debug)]
pub(in super::super) enum NoSession {
    /// A sentence.
    Refused(String),
    Io(io::Error),
}

impl From<io::Error> for NoSession {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

/// Makes a session, over a stream on which both sides have agreed on that.
pub(in super::super) fn shake_hands(stream: &mut (impl Read + Write), options: &TlsOptions) -> Result<Session, NoSession> {
    let config = config::load(options).map_err(NoSession::Refused)?;
    let refused = |cause: &Error| NoSession::Refused(explain(cause, options));
    let mut connection = UnbufferedClientConnection::new(Arc::new(config), options.name.clone()).map_err(|cause| refused(&cause))?;
    let (mut received, mut to_send) = (Vec::new(), Vec::new());
    let mut num_received = 0;
    loop {
        let UnbufferedStatus { discard, state } = connection.process_tls_records(&mut received);
        let mut needs_more = false;
        match state {
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut to_send),
            Ok(ConnectionState::TransmitTlsData(message)) => {
                stream.write_all(&to_send)?;
                to_send.clear();
                message.done();
            }
            Ok(ConnectionState::BlockedHandshake) => needs_more = true,
            Ok(ConnectionState::WriteTraffic(_)) => break,
            Ok(_) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(cause) => {
                // The server is told, as far as that can be done at once.
                while let Ok(ConnectionState::EncodeTlsData(message)) = connection.process_tls_records(&mut []).state {
                    encode(message, &mut to_send);
                }
                let _ = stream.write_all(&to_send);
                return Err(refused(&cause));
            }
        }
        received.drain(..discard);
        if needs_more {
            num_received += receive_record(stream, &mut received)?;
            if num_received > MAX_RECEIVED_BYTES {
                return Err(NoSession::Refused("the TLS handshake failed: the server's part of it does not end".into()));
            }
        }
    }
    Session::new(connection).map_err(|cause| refused(&cause))
}

fn encode(mut message: EncodeTlsData<'_, ClientConnectionData>, to_send: &mut Vec<u8>) {
    let start = to_send.len();
    let num_bytes = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
        _ => return,
    };
    to_send.resize(start + num_bytes, 0);
    message.encode(&mut to_send[start..]).expect("there is as much room as it needs");
}

/// Appends the next record, of whatever type it is; its length.
fn receive_record(stream: &mut impl Read, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    received.extend(header);
    let start = received.len();
    // What is no record is refused for its header.
    let is_record = (20..=23).contains(&header[0]) && header[1] == 3;
    let num_bytes = if is_record { usize::from(u16::from_be_bytes([header[3], header[4]])) } else { 0 };
    received.resize(start + num_bytes, 0);
    stream.read_exact(&mut received[start..])?;
    Ok(HEADER_BYTES + num_bytes)
}

/// What is wrong, and what to do.
fn explain(cause: &Error, options: &TlsOptions) -> String {
    let trusted = match &options.certificates {
        Some(directory) => format!("that in {}", directory.join("ca-cert.pem").display()),
        None => "one that this system trusts (give another with tls-certificates=DIR)".into(),
    };
    let name = options.name.to_str();
    let text = match cause {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => format!("the server's certificate is not from the right CA, {trusted}"),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the server's certificate has expired: renew it".into()
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "the server's certificate is not valid yet: look at the clocks of both machines".into()
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) if !presented.is_empty() => {
            let (names, more) =
                (presented.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", "), if presented.len() > 5 { " ..." } else { "" });
            format!("the server's certificate is not for {name}: it is for {names}{more}; use such a name, or tls-hostname=NAME")
        }
        Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            format!("the server's certificate is not for {name}: it has no such name or address among its alternative names")
        }
        Error::InvalidCertificate(cause) => format!("the server's certificate cannot be accepted: {cause}"),
        Error::AlertReceived(AlertDescription::ProtocolVersion) => "the server does not speak TLS 1.3: take one that does".into(),
        Error::AlertReceived(alert) => format!("the server refuses the TLS session (alert {alert:?})"),
        Error::PeerIncompatible(what) => {
            format!("the server does not speak TLS as it should, which is version 1.3 with the usual ciphers ({what:?})")
        }
        cause => format!("the TLS handshake failed: {cause}"),
    };
    text.replace(char::is_control, " ")
}
