//! Sessions with a server that is rustls itself.

use super::handshake::shake_hands;
use super::options::TlsOptions;
use super::sender::Sender;
use super::session::Session;
use super::{TlsError, record};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{AlertDescription, ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The two ends of a session, each with what it has received and not opened yet.
struct Pair {
    sender: Box<Sender>,
    server: ServerConnection,
    to_client: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key.into()).unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let handshake = std::thread::spawn(move || {
            let mut server = ServerConnection::new(Arc::new(config)).unwrap();
            while server.is_handshaking() {
                server.complete_io(&mut theirs).unwrap();
            }
            server
        });
        let options = TlsOptions::parse(None, |name| (name == "tls-verify-peer").then_some("0")).unwrap();
        let session: Session = shake_hands(&mut ours, &options).unwrap();
        let server = handshake.join().unwrap();
        // Tickets.
        let mut to_client = Vec::new();
        ours.read_to_end(&mut to_client).unwrap();
        assert!(to_client.len() > 100);
        Self { sender: Sender::new(session).unwrap(), server, to_client }
    }

    fn server_sends(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(10_000) {
            self.server.writer().write_all(bytes).unwrap();
            self.flush_server();
        }
    }

    fn flush_server(&mut self) {
        while self.server.wants_write() {
            self.server.write_tls(&mut self.to_client).unwrap();
        }
    }

    /// What the client makes of what has come, received in pieces of so many bytes.
    fn client_opens(&mut self, piece: usize) -> Result<Vec<u8>, TlsError> {
        let mut data = Vec::new();
        let (mut bytes, mut start) = (Vec::new(), 0);
        for piece in std::mem::take(&mut self.to_client).chunks(piece) {
            bytes.extend(piece);
            while let Some(opened) = self.sender.session().open(&mut bytes, start)? {
                data.extend(&bytes[..opened.data_bytes]);
                // As the inbox does, what is behind stays where it is.
                start += opened.record_bytes;
            }
        }
        assert_eq!(start, bytes.len(), "a record is left");
        Ok(data)
    }

    /// Has the server receive all of `bytes` and what else is to be sent.
    fn client_sends(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (mut left, mut received) = (bytes, Vec::new());
        loop {
            let take = |target: &mut [u8]| {
                let num_bytes = left.len().min(target.len());
                target[..num_bytes].copy_from_slice(&left[..num_bytes]);
                left = &left[num_bytes..];
                Ok::<_, TlsError>(num_bytes)
            };
            let mut sealed = self.sender.next(take).unwrap();
            // Not all of it at once.
            sealed = &sealed[..sealed.len().div_ceil(2)];
            let num_bytes = sealed.len();
            if num_bytes == 0 {
                return received;
            }
            while !sealed.is_empty() {
                self.server.read_tls(&mut sealed).unwrap();
                let state = self.server.process_new_packets().unwrap();
                let start = received.len();
                received.resize(start + state.plaintext_bytes_to_read(), 0);
                self.server.reader().read_exact(&mut received[start..]).unwrap();
            }
            self.sender.sent(num_bytes);
        }
    }
}

fn some_bytes(num_bytes: usize, seed: usize) -> Vec<u8> {
    (0..num_bytes).map(|index| (index * 7 + index / 251 + seed) as u8).collect()
}

#[test]
fn data_goes_both_ways_while_keys_change() {
    let mut pair = Pair::new();
    // Each of these is passed many times, and both sides change their keys at the same time, too.
    pair.sender.session().set_records_per_key(5);
    let mut num_updates = 0;
    for round in 0..60 {
        let data = some_bytes(round * 3001, round);
        pair.server_sends(&data);
        if round % 7 == 3 {
            pair.server.refresh_traffic_keys().unwrap();
            pair.flush_server();
        }
        assert_eq!(pair.client_opens([1, 100, 5000, 1 << 20][round % 4]).unwrap(), data, "round {round}");
        num_updates += usize::from(pair.sender.session().must_update());
        let data = some_bytes(round * 5003, round + 1);
        assert_eq!(pair.client_sends(&data), data, "round {round}");
        // The answer to our key update, if we have asked for one.
        pair.flush_server();
        assert!(!pair.sender.session().must_update() || round * 5003 > 5 * record::MAX_CONTENT_BYTES, "round {round}");
    }
    assert!(num_updates > 20, "{num_updates}");
}

#[test]
fn sessions_end_as_they_should() {
    let mut pair = Pair::new();
    pair.server_sends(b"the last");
    pair.server.send_close_notify();
    pair.flush_server();
    // The data of before is there all the same.
    let mut bytes = std::mem::take(&mut pair.to_client);
    let session = pair.sender.session();
    let (mut start, mut data) = (0, Vec::new());
    let end = loop {
        match session.open(&mut bytes, start) {
            Ok(Some(opened)) => {
                data.extend(&bytes[..opened.data_bytes]);
                start += opened.record_bytes;
            }
            other => break other,
        }
    };
    assert_eq!((data.as_slice(), end), (&b"the last"[..], Err(TlsError::Closed)));
    let mut sealed = pair.sender.last(b"goodbye", AlertDescription::CloseNotify);
    pair.server.read_tls(&mut sealed).unwrap();
    assert!(pair.server.process_new_packets().unwrap().peer_has_closed());
    let mut received = String::new();
    pair.server.reader().read_to_string(&mut received).unwrap();
    assert_eq!(received, "goodbye");
}

#[test]
fn what_is_wrong_is_said_to_the_server_too() {
    let mut pair = Pair::new();
    pair.server_sends(b"something");
    let last = pair.to_client.len() - 1;
    pair.to_client[last] ^= 1;
    let wrong = pair.client_opens(usize::MAX).unwrap_err();
    assert_eq!(wrong, TlsError::Tampered);
    let mut sealed = pair.sender.last(&[], wrong.alert());
    pair.server.read_tls(&mut sealed).unwrap();
    assert_eq!(pair.server.process_new_packets().unwrap_err(), rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
    // And the other way round.
    let mut pair = Pair::new();
    let mut sealed = vec![23, 3, 3, 0, 30];
    sealed.extend([0; 30]);
    pair.server.read_tls(&mut sealed.as_slice()).unwrap();
    assert!(pair.server.process_new_packets().is_err());
    pair.flush_server();
    assert_eq!(pair.client_opens(usize::MAX), Err(TlsError::Alert(AlertDescription::BadRecordMac)));
}

/// Messages of the handshake protocol that the server may not send, or not so.
#[test]
fn messages_that_do_not_belong_here() {
    let outcome = |messages: &[&[u8]]| {
        let mut pair = Pair::new();
        pair.client_opens(usize::MAX).unwrap();
        messages.iter().try_for_each(|message| pair.sender.session().take_messages(message))
    };
    let ticket = [&[4, 0, 0, 200][..], &[1; 200]].concat();
    assert_eq!(outcome(&[&ticket, &[&ticket[..], &ticket].concat(), &ticket[..3], &ticket[3..100], &ticket[100..], &[24, 0, 0], &[1, 0]]), Ok(()));
    for (messages, what) in [
        (&[&[][..]][..], "empty"),
        (&[&[24, 0, 0, 1, 0, 4]], "follows a key update"),
        (&[&[24, 0, 0, 1, 2]], "makes no sense"),
        (&[&[24, 0, 0, 2]], "wrong length"),
        (&[&[4, 255, 255, 255]], "wrong length"),
        // A new handshake, and a request for a certificate.
        (&[&[0, 0, 0, 0]], "does not belong here"),
        (&[&[13, 0, 0, 3]], "does not belong here"),
    ] {
        let Err(TlsError::Violation(text)) = outcome(messages) else { panic!("{messages:?}") };
        assert!(text.contains(what), "{messages:?}: {text}");
    }
}
