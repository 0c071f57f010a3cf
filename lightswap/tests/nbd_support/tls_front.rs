//! TLS in front of another server: agrees on it with the client, takes it off what the client sends, and puts it around what the server answers; or does with
//! that what a test tells it.

use super::certificates::Certificates;
use super::protocol::*;
use super::stream::{Listener, Place, Stream};
use super::unix_place;
use crate::common::{Random, wait_until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is done otherwise, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The answer to NBD_OPT_STARTTLS.
    Refuse(u32),
    /// Behind that, before TLS has begun, there are replies as to an option of after.
    PlainBehind,
    /// The same instead of TLS.
    PlainInstead,
    CloseInstead,
    SilentInstead,
    GarbageInstead,
    /// Of an encrypted record.
    FlipBit,
    /// Comes twice.
    Twice,
    /// Does not come, though the next one does.
    Lost,
    /// The connection is closed in the midst of one.
    CutWithin,
    /// The connection is closed behind one.
    CutBehind,
    /// The session ends as it should.
    CloseNotify,
    /// Bytes that are no record.
    Garbage,
    /// A reply that is not encrypted.
    Plain,
    /// The same with the header of a record.
    PlainRecord,
    PlainAlert,
    /// A record of more bytes than allowed.
    TooLong,
    /// New keys, on both sides: nothing is wrong with that.
    KeyUpdate,
}

impl TlsFault {
    fn is_of_handshake(self) -> bool {
        matches!(self, Self::Refuse(_) | Self::PlainBehind | Self::PlainInstead | Self::CloseInstead | Self::SilentInstead | Self::GarbageInstead)
    }
}

struct Shared {
    backend: Place,
    config: Arc<ServerConfig>,
    faults: Mutex<VecDeque<TlsFault>>,
    num_done: AtomicUsize,
    /// Sockets are written in pieces of so many bytes; 0: as large as may be.
    piece: AtomicUsize,
    connections: Mutex<Vec<Stream>>,
    num_ended_well: AtomicUsize,
    must_stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stops when it is dropped.
pub struct TlsFront {
    shared: Arc<Shared>,
    place: Place,
    acceptor: Option<JoinHandle<()>>,
}

impl TlsFront {
    pub fn start(backend: &Place, certificates: &Certificates) -> Self {
        let directory = certificates.of_server();
        let chain: Vec<_> = CertificateDer::pem_file_iter(directory.join("server-cert.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(directory.join("server-key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let shared = Arc::new(Shared {
            backend: backend.clone(),
            config: Arc::new(config),
            faults: Mutex::default(),
            num_done: AtomicUsize::new(0),
            piece: AtomicUsize::new(0),
            connections: Mutex::default(),
            num_ended_well: AtomicUsize::new(0),
            must_stop: AtomicBool::new(false),
        });
        let place = unix_place();
        let listener = Listener::bind(&place);
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept_all(&shared, &listener)
        });
        Self { shared, place, acceptor: Some(acceptor) }
    }

    pub fn url(&self, options: &str) -> String {
        self.place.secure_url("swap", options)
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Done once, by whichever connection comes to it first.
    pub fn add(&self, fault: TlsFault) {
        lock(&self.shared.faults).push_back(fault);
    }

    pub fn num_done(&self) -> usize {
        self.shared.num_done.load(SeqCst)
    }

    pub fn set_piece(&self, piece: usize) {
        self.shared.piece.store(piece, SeqCst);
    }

    /// Sessions that the client has ended as it should.
    pub fn num_ended_well(&self) -> usize {
        self.shared.num_ended_well.load(SeqCst)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.shared.must_stop.store(true, SeqCst);
        lock(&self.shared.connections).iter().for_each(Stream::shut_down);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let Place::Unix(path) = &self.place else { unreachable!("as it was bound") };
        let _ = std::fs::remove_file(path);
    }
}

fn accept_all(shared: &Arc<Shared>, listener: &Listener) {
    std::thread::scope(|scope| {
        while !shared.must_stop.load(SeqCst) {
            let Some(stream) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            lock(&shared.connections).push(stream.try_clone().unwrap());
            scope.spawn(move || {
                let end = stream.try_clone().unwrap();
                let _ = shared.serve(stream);
                end.shut_down();
            });
        }
        // Those that came after all were shut down.
        lock(&shared.connections).iter().for_each(Stream::shut_down);
    });
}

impl Shared {
    fn take_fault(&self, is_of_handshake: bool) -> Option<TlsFault> {
        let mut faults = lock(&self.faults);
        let fault = faults.pop_front_if(|fault| fault.is_of_handshake() == is_of_handshake)?;
        self.num_done.fetch_add(1, SeqCst);
        Some(fault)
    }

    fn serve(&self, mut client: Stream) -> io::Result<()> {
        // The server's own greeting does for us, too.
        let mut server = self.backend.connect()?;
        let (mut greeting, mut flags) = ([0; 18], [0; 4]);
        server.read_exact(&mut greeting)?;
        client.write_all(&greeting)?;
        client.read_exact(&mut flags)?;
        server.write_all(&flags)?;
        loop {
            let _magic = read_u64(&mut client)?;
            let (option, len) = (read_u32(&mut client)?, read_u32(&mut client)?);
            client.read_exact(&mut vec![0; len as usize])?;
            if option == OPT_STARTTLS {
                break;
            }
            client.write_all(&option_reply(option, REP_ERR_TLS_REQD, &[]))?;
        }
        let ack = option_reply(OPT_STARTTLS, REP_ACK, &[]);
        let replies = [option_reply(OPT_GO, REP_INFO, &[0; 12]), option_reply(OPT_GO, REP_ACK, &[])].concat();
        match self.take_fault(true) {
            Some(TlsFault::Refuse(error)) => return client.write_all(&option_reply(OPT_STARTTLS, error, b"not today\n")),
            Some(TlsFault::PlainBehind) => client.write_all(&[ack, replies].concat())?,
            Some(TlsFault::PlainInstead) => return client.write_all(&[ack, replies].concat()),
            Some(TlsFault::CloseInstead) => return client.write_all(&ack),
            Some(TlsFault::GarbageInstead) => {
                client.write_all(&ack)?;
                return client.write_all(&random_bytes(1000));
            }
            Some(TlsFault::SilentInstead) => {
                client.write_all(&ack)?;
                while client.read(&mut [0; 4096])? > 0 {}
                return Ok(());
            }
            _ => client.write_all(&ack)?,
        }
        let mut session = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut client)?;
        }
        self.relay(session, client, server)
    }

    fn relay(&self, session: ServerConnection, client: Stream, server: Stream) -> io::Result<()> {
        let session = Mutex::new(session);
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (end, end_of_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let _ = self.answer(&session, client, server);
                end.shut_down();
                end_of_server.shut_down();
            });
            let result = self.ask(&session, &mut from_client, &mut to_server);
            to_server.shut_down();
            result
        })
    }

    fn ask(&self, session: &Mutex<ServerConnection>, client: &mut Stream, server: &mut Stream) -> io::Result<()> {
        let mut buffer = [0; 8192];
        // What came with the end of the handshake first.
        let mut bytes: &[u8] = &[];
        loop {
            let mut session_now = lock(session);
            if !bytes.is_empty() {
                session_now.read_tls(&mut bytes)?;
            }
            let state = session_now.process_new_packets().map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            session_now.reader().read_exact(&mut plain)?;
            self.send(client, &take(&mut session_now)?)?;
            drop(session_now);
            server.write_all(&plain)?;
            if state.peer_has_closed() {
                self.num_ended_well.fetch_add(1, SeqCst);
                return Ok(());
            }
            if bytes.is_empty() {
                let num_bytes = client.read(&mut buffer)?;
                bytes = &buffer[..num_bytes];
                if num_bytes == 0 {
                    return Ok(());
                }
            }
        }
    }

    fn answer(&self, session: &Mutex<ServerConnection>, mut client: Stream, mut server: Stream) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let num_bytes = server.read(&mut buffer)?;
            if num_bytes == 0 {
                return Ok(());
            }
            let plain = &buffer[..num_bytes];
            let mut session = lock(session);
            // The options that follow TLS are not spoilt: what goes wrong is to go wrong with pages.
            let is_reply = plain.starts_with(&REPLY_MAGIC.to_be_bytes());
            let fault = if is_reply { self.take_fault(false) } else { None };
            if fault == Some(TlsFault::KeyUpdate) {
                session.refresh_traffic_keys().map_err(io::Error::other)?;
            }
            session.writer().write_all(plain)?;
            let mut sealed = take(&mut session)?;
            let end = || io::Error::from(io::ErrorKind::ConnectionAborted);
            match fault {
                Some(TlsFault::FlipBit) => sealed[20] ^= 4,
                Some(TlsFault::Twice) => sealed = sealed.repeat(2),
                Some(TlsFault::Lost) => continue,
                Some(TlsFault::CutWithin) => {
                    self.send(&mut client, &sealed[..sealed.len() / 2])?;
                    return Err(end());
                }
                Some(TlsFault::CutBehind) => {
                    self.send(&mut client, &sealed)?;
                    return Err(end());
                }
                Some(TlsFault::CloseNotify) => {
                    session.send_close_notify();
                    sealed.extend(take(&mut session)?);
                    self.send(&mut client, &sealed)?;
                    return Err(end());
                }
                Some(TlsFault::Garbage) => sealed = random_bytes(100),
                Some(TlsFault::Plain) => sealed = plain.to_vec(),
                Some(TlsFault::PlainRecord) => sealed = [&[23, 3, 3][..], &(num_bytes as u16).to_be_bytes(), plain].concat(),
                Some(TlsFault::PlainAlert) => sealed = vec![21, 3, 3, 0, 2, 1, 0],
                Some(TlsFault::TooLong) => sealed = [vec![23, 3, 3, 0x41, 1], vec![0; 0x4101]].concat(),
                _ => {}
            }
            self.send(&mut client, &sealed)?;
        }
    }

    fn send(&self, client: &mut Stream, bytes: &[u8]) -> io::Result<()> {
        match self.piece.load(SeqCst) {
            0 => client.write_all(bytes),
            piece => bytes.chunks(piece).try_for_each(|bytes| client.write_all(bytes)),
        }
    }
}

/// What there is to send, encrypted.
fn take(session: &mut ServerConnection) -> io::Result<Vec<u8>> {
    let mut sealed = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut sealed)?;
    }
    Ok(sealed)
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut random = Random::new(super::seed());
    (0..len).map(|_| random.next() as u8).collect()
}
