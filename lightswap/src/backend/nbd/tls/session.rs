//! A session after its handshake, for one thread at a time.
//!
//! The server may send data, alerts, and two messages of the handshake protocol: tickets, which are not used (each connection verifies its server anew), and
//! key updates. Anything else breaks the session.

use super::TlsError;
use super::record::{HEADER_BYTES, Key, record_bytes};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::{AlertDescription, ContentType, HandshakeType};
use std::fmt;

/// A key is changed after so many records: fewer than half of what AES-GCM allows (2^24.5), so that some more do no harm.
const RECORDS_PER_KEY: u64 = 1 << 23;
/// No message of the handshake protocol has more here: a ticket with all its parts.
const MAX_MESSAGE_BYTES: usize = 1 << 18;

/// The message of the handshake protocol that is being received, which need not end with its record.
#[derive(Debug, Default)]
struct Message {
    header: [u8; 4],
    num_header_bytes: usize,
    /// Of what follows.
    num_left: usize,
}

pub(in super::super) struct Session {
    opening: Key,
    sealing: Key,
    /// Knows the next keys.
    keys: KernelConnection<ClientConnectionData>,
    message: Message,
    /// The server wants us to change our key.
    is_update_wanted: bool,
    /// It was asked to change its own, and has not yet.
    has_asked: bool,
    records_per_key: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Opened {
    /// Its length, as it was received.
    pub(in super::super) record_bytes: usize,
    /// Bytes of data in it.
    pub(in super::super) data_bytes: usize,
}

impl Session {
    /// Of a connection whose handshake is over, and that has nothing more to send.
    pub(super) fn new(connection: UnbufferedClientConnection) -> Result<Self, rustls::Error> {
        let (secrets, keys) = connection.dangerous_into_kernel_connection()?;
        let key = |secrets| Key::new(secrets).map_err(|_| rustls::Error::General("a cipher that is not known".into()));
        let (sealing, opening) = (key(secrets.tx)?, key(secrets.rx)?);
        let records_per_key = RECORDS_PER_KEY;
        Ok(Self { opening, sealing, keys, message: Message::default(), is_update_wanted: false, has_asked: false, records_per_key })
    }

    /// Both keys are changed more often.
    #[cfg(test)]
    pub(super) fn set_records_per_key(&mut self, num_records: u64) {
        self.records_per_key = num_records;
    }

    /// Opens the record at `start`, if all of it is there: its data is at the beginning of `bytes` then.
    pub(in super::super) fn open(&mut self, bytes: &mut [u8], start: usize) -> Result<Option<Opened>, TlsError> {
        let Some(header) = bytes[start..].first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let record_bytes = record_bytes(*header)?;
        let Some(in_out) = bytes.get_mut(..start + record_bytes) else { return Ok(None) };
        let (content, num_bytes) = self.opening.open(in_out, start)?;
        let data_bytes = match content {
            ContentType::ApplicationData if self.message.num_header_bytes == 0 => num_bytes,
            ContentType::ApplicationData => return Err(TlsError::Violation("data comes in the midst of a message")),
            ContentType::Handshake => {
                self.take_messages(&in_out[..num_bytes])?;
                0
            }
            ContentType::Alert => {
                return Err(match in_out[..num_bytes] {
                    [_, alert] if AlertDescription::from(alert) == AlertDescription::CloseNotify => TlsError::Closed,
                    [_, alert] => TlsError::Alert(alert.into()),
                    _ => TlsError::Violation("an alert has the wrong length"),
                });
            }
            _ => return Err(TlsError::Violation("a record is of a type that does not belong here")),
        };
        Ok(Some(Opened { record_bytes, data_bytes }))
    }

    /// Takes messages of the handshake protocol, or parts of them.
    pub(super) fn take_messages(&mut self, mut bytes: &[u8]) -> Result<(), TlsError> {
        if bytes.is_empty() {
            return Err(TlsError::Violation("a message is empty"));
        }
        while let Some((&byte, rest)) = bytes.split_first() {
            let message = &mut self.message;
            if message.num_header_bytes < message.header.len() {
                message.header[message.num_header_bytes] = byte;
                message.num_header_bytes += 1;
                bytes = rest;
                let [_, len @ ..] = message.header;
                message.num_left = len.into_iter().fold(0, |len, byte| len << 8 | usize::from(byte));
                if message.num_header_bytes == message.header.len() {
                    message.check()?;
                }
                continue;
            }
            if HandshakeType::from(message.header[0]) == HandshakeType::KeyUpdate {
                if !rest.is_empty() {
                    return Err(TlsError::Violation("something follows a key update under the old key"));
                }
                self.is_update_wanted |= match byte {
                    0 => false,
                    1 => true,
                    _ => return Err(TlsError::Violation("a key update makes no sense")),
                };
                self.opening = self.keys.update_rx_secret().map_err(|_| TlsError::NoKeys).and_then(Key::new)?;
                self.has_asked = false;
                self.message = Message::default();
                return Ok(());
            }
            let num_taken = message.num_left.min(bytes.len());
            message.num_left -= num_taken;
            bytes = &bytes[num_taken..];
            if message.num_left == 0 {
                self.message = Message::default();
            }
        }
        Ok(())
    }

    /// Whether [`Self::seal_update`] has something to send.
    pub(super) fn must_update(&self) -> bool {
        self.is_update_wanted
            || self.sealing.num_records() >= self.records_per_key
            || (self.opening.num_records() >= self.records_per_key && !self.has_asked)
    }

    /// Changes our key, if it is time to: the length of the record that says so. To be called before data is sealed.
    pub(in super::super) fn seal_update(&mut self, record: &mut [u8]) -> Result<usize, TlsError> {
        if !self.must_update() {
            return Ok(0);
        }
        // Who was asked must not ask in turn, and the server's key is a new one then anyway.
        let asks = !self.is_update_wanted && !self.has_asked && self.opening.num_records() >= self.records_per_key;
        record[HEADER_BYTES..][..5].copy_from_slice(&[HandshakeType::KeyUpdate.into(), 0, 0, 1, u8::from(asks)]);
        let len = self.sealing.seal(record, ContentType::Handshake, 5);
        self.sealing = self.keys.update_tx_secret().map_err(|_| TlsError::NoKeys).and_then(Key::new)?;
        self.is_update_wanted = false;
        self.has_asked |= asks;
        Ok(len)
    }

    /// Makes a record of data that lies behind the place of its header: its length.
    pub(in super::super) fn seal(&mut self, record: &mut [u8], num_bytes: usize) -> usize {
        self.sealing.seal(record, ContentType::ApplicationData, num_bytes)
    }

    /// Makes a record of an alert, the last that is sent: its length.
    pub(super) fn seal_alert(&mut self, record: &mut [u8], alert: AlertDescription) -> usize {
        let level = if alert == AlertDescription::CloseNotify { 1 } else { 2 };
        record[HEADER_BYTES..][..2].copy_from_slice(&[level, alert.into()]);
        self.sealing.seal(record, ContentType::Alert, 2)
    }
}

impl Message {
    /// Whether it is one that may come.
    fn check(&mut self) -> Result<(), TlsError> {
        match (HandshakeType::from(self.header[0]), self.num_left) {
            (HandshakeType::KeyUpdate, 1) | (HandshakeType::NewSessionTicket, 1..=MAX_MESSAGE_BYTES) => Ok(()),
            (HandshakeType::KeyUpdate | HandshakeType::NewSessionTicket, _) => Err(TlsError::Violation("a message has the wrong length")),
            _ => Err(TlsError::Violation("a message comes that does not belong here")),
        }
    }
}
