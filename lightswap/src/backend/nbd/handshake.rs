//! Connecting: the socket and the fixed newstyle handshake, blocking, within a time limit.
//!
//! Whatever a server sends is bounded and checked before it is believed. Old servers without NBD_OPT_GO are asked with NBD_OPT_EXPORT_NAME. With `nbds:`
//! NBD_OPT_STARTTLS comes before either, and all that follows is within TLS.

use super::address::{Address, Place};
use super::stream::Stream;
use super::tls::handshake::NoSession;
use super::tls::options::TlsOptions;
use super::tls::sender::Sender;
use crate::size::{PAGE_SIZE, format_size};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A handshake takes some round trips, so it has at least so long, however short the time limit of requests is.
pub(super) const MIN_TIME_LIMIT: Duration = Duration::from_secs(1);
/// Longest answer that is read, and how many there may be.
const MAX_ANSWER_BYTES: usize = 64 << 10;
const MAX_ANSWERS: usize = 64;

const GREETING: &[u8; 8] = b"NBDMAGIC";
const NEWSTYLE: &[u8; 8] = b"IHAVEOPT";
const OLDSTYLE: [u8; 8] = 0x0000_4202_8186_1253_u64.to_be_bytes();
const ANSWER_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_START_TLS: u32 = 5;
const OPTION_GO: u32 = 7;
const ANSWER_ACK: u32 = 1;
const ANSWER_INFO: u32 = 3;
const ERROR_BIT: u32 = 1 << 31;
const ERROR_UNSUPPORTED: u32 = ERROR_BIT | 1;
const ERROR_POLICY: u32 = ERROR_BIT | 2;
const ERROR_TLS_REQUIRED: u32 = ERROR_BIT | 5;
const ERROR_UNKNOWN: u32 = ERROR_BIT | 6;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// What the server says of the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) num_bytes: u64,
    pub(super) is_read_only: bool,
    pub(super) can_flush: bool,
    pub(super) can_trim: bool,
    pub(super) can_multi_conn: bool,
    /// Of requests.
    pub(super) min_block_bytes: u32,
    pub(super) max_payload_bytes: u32,
}

impl Export {
    fn new(num_bytes: u64, flags: u16) -> Self {
        let has = |bit: u32| flags & 1 << bit != 0;
        Self {
            num_bytes,
            is_read_only: has(1),
            can_flush: has(2),
            can_trim: has(5),
            can_multi_conn: has(8),
            min_block_bytes: 1,
            // What the protocol guarantees.
            max_payload_bytes: 32 << 20,
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct Connected {
    stream: Stream,
    pub(super) export: Export,
    /// For what is done before it is handed over.
    limit: Duration,
}

/// Why there is no connection: a sentence.
#[derive(Debug)]
pub(super) struct ConnectError(String);

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ConnectError {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    pub(super) fn of(what: &str, cause: &io::Error) -> Self {
        let cause = match cause.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".into(),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => "the server closed the connection".into(),
            _ => cause.to_string(),
        };
        Self(format!("{what}: {cause}"))
    }
}

/// What is left of it for a worker.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) socket: OwnedFd,
    /// For `nbds:`.
    pub(super) tls: Option<Box<Sender>>,
}

impl Connected {
    /// The stream for requests before the connection is used otherwise, with a time limit of its own.
    pub(super) fn stream(&mut self) -> &mut Stream {
        self.stream.set_limit(self.limit);
        &mut self.stream
    }

    /// Now it is used otherwise.
    pub(super) fn establish(self) -> Result<Established, ConnectError> {
        let (socket, session) = self.stream.into_parts().map_err(|cause| ConnectError::of("the socket", &cause))?;
        let tls = session.map(Sender::new).transpose().map_err(|cause| ConnectError::new(cause.to_string()))?;
        Ok(Established { socket, tls })
    }
}

/// Connects to the server and asks for the export, which must be one that pages can be written to.
pub(super) fn connect(address: &Address) -> Result<Connected, ConnectError> {
    let socket = open_socket(address).map_err(|cause| ConnectError::of("cannot connect", &cause))?;
    let limit = address.timeout.max(MIN_TIME_LIMIT);
    let mut stream = Stream::new(socket, limit);
    let export = shake_hands(&mut stream, address)?;
    check(&export, address)?;
    Ok(Connected { stream, export, limit })
}

fn open_socket(address: &Address) -> io::Result<OwnedFd> {
    let (host, port) = match &address.place {
        Place::Unix(path) => return connect_unix(path, address.timeout.max(MIN_TIME_LIMIT)),
        Place::Tcp { host, port } => (host.as_str(), *port),
    };
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for candidate in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, address.timeout.max(MIN_TIME_LIMIT)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(cause) => last = cause,
        }
    }
    Err(last)
}

/// Connecting to such a socket waits while the queue of those who are not yet accepted is full, as that of a server is that stands still or serves others only.
fn connect_unix(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    // A zero is left at the end.
    if path.len() >= address.sun_path.len() {
        let most = address.sun_path.len() - 1;
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("the path of a UNIX socket has at most {most} bytes, and this one {}", path.len()),
        ));
    }
    address.sun_path.iter_mut().zip(path).for_each(|(target, byte)| *target = byte.cast_signed());
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    // That is the limit for connecting, too.
    socket.set_write_timeout(Some(limit))?;
    // SAFETY: the address is valid, and as long as is said.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) };
    if result == 0 { Ok(socket.into()) } else { Err(io::Error::last_os_error()) }
}

fn shake_hands(stream: &mut Stream, address: &Address) -> Result<Export, ConnectError> {
    let failed = |cause: io::Error| ConnectError::of("the handshake failed", &cause);
    let name = &address.export;
    let greeting: [u8; 8] = receive(stream).map_err(failed)?;
    let style: [u8; 8] = receive(stream).map_err(failed)?;
    if greeting != *GREETING {
        return Err(ConnectError::new("the handshake failed: it is no NBD server"));
    }
    if style == OLDSTYLE {
        return Err(ConnectError::new("the server speaks only the old style of the NBD protocol; start it without --oldstyle, or take a newer one"));
    }
    if style != *NEWSTYLE {
        return Err(ConnectError::new("the handshake failed: the server speaks an unknown style of the NBD protocol"));
    }
    let flags = u16::from_be_bytes(receive(stream).map_err(failed)?);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(ConnectError::new("the server is too old: it does not know the fixed newstyle of the NBD protocol"));
    }
    let has_no_zeroes = flags & NO_ZEROES != 0;
    let answer = u32::from(FIXED_NEWSTYLE | if has_no_zeroes { NO_ZEROES } else { 0 });
    stream.write_all(&answer.to_be_bytes()).map_err(failed)?;
    if let Some(options) = &address.tls {
        start_tls(stream, options)?;
    }
    match go(stream, name)? {
        Some(export) => Ok(export),
        None => export_name(stream, name, has_no_zeroes).map_err(|cause| match cause.kind() {
            ErrorKind::UnexpectedEof => ConnectError::new(format!("the server has no export \"{name}\", or refuses it")),
            _ => failed(cause),
        }),
    }
}

fn receive<const N: usize>(stream: &mut Stream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn send_option(stream: &mut Stream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = NEWSTYLE.to_vec();
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

/// Asks for TLS, and begins it.
fn start_tls(stream: &mut Stream, options: &TlsOptions) -> Result<(), ConnectError> {
    let failed = |cause: io::Error| ConnectError::of("the handshake failed", &cause);
    send_option(stream, OPTION_START_TLS, &[]).map_err(failed)?;
    let (kind, data) = receive_answer(stream, OPTION_START_TLS)?;
    match kind {
        ANSWER_ACK => {}
        _ if kind & ERROR_BIT == 0 => return Err(ConnectError::new("the handshake failed: the server's answer makes no sense")),
        _ => {
            return Err(ConnectError::new(with_message(
                "the server does not do TLS: start it with a certificate, or use nbd: in the URL".into(),
                &data,
            )));
        }
    }
    // What the server may have sent on in plain is taken for the beginning of TLS, and refused as such.
    stream.secure(options).map_err(|cause| match cause {
        NoSession::Refused(sentence) => ConnectError(sentence),
        NoSession::Io(cause) => ConnectError::of("the TLS handshake failed", &cause),
    })
}

/// With what the server says itself.
fn with_message(what: String, data: &[u8]) -> String {
    let message = String::from_utf8_lossy(&data[..data.len().min(200)]).replace(char::is_control, " ");
    if message.is_empty() { what } else { format!("{what}: {message}") }
}

/// Asks with NBD_OPT_GO; `None` if the server does not know it.
fn go(stream: &mut Stream, name: &str) -> Result<Option<Export>, ConnectError> {
    let failed = |cause: io::Error| ConnectError::of("the handshake failed", &cause);
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 1]);
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    send_option(stream, OPTION_GO, &data).map_err(failed)?;
    let mut export = None;
    let mut blocks = None;
    for _ in 0..MAX_ANSWERS {
        let (kind, data) = receive_answer(stream, OPTION_GO)?;
        match kind {
            ANSWER_INFO => note_info(&data, &mut export, &mut blocks)?,
            ANSWER_ACK => {
                let mut export: Export =
                    export.ok_or_else(|| ConnectError::new("the handshake failed: the server does not tell the size of the export"))?;
                (export.min_block_bytes, export.max_payload_bytes) = blocks.unwrap_or((export.min_block_bytes, export.max_payload_bytes));
                return Ok(Some(export));
            }
            ERROR_UNSUPPORTED => return Ok(None),
            ERROR_TLS_REQUIRED => {
                return Err(ConnectError::new("the server requires TLS: use nbds: in the URL, or nbds+unix:, or start the server without"));
            }
            _ => {
                let what = match kind {
                    ERROR_UNKNOWN => format!("the server has no export \"{name}\""),
                    ERROR_POLICY => format!("the server forbids the export \"{name}\""),
                    _ => format!("the server refuses the export \"{name}\" (answer {kind:#x})"),
                };
                return Err(ConnectError(with_message(what, &data)));
            }
        }
    }
    Err(ConnectError::new("the handshake failed: the server's answers do not end"))
}

fn receive_answer(stream: &mut Stream, option: u32) -> Result<(u32, Vec<u8>), ConnectError> {
    let failed = |cause: io::Error| ConnectError::of("the handshake failed", &cause);
    let header: [u8; 20] = receive(stream).map_err(failed)?;
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let len = number(16) as usize;
    if header[..8] != ANSWER_MAGIC.to_be_bytes() || number(8) != option || len > MAX_ANSWER_BYTES {
        return Err(ConnectError::new("the handshake failed: the server's answer makes no sense"));
    }
    let mut data = vec![0; len];
    stream.read_exact(&mut data).map_err(failed)?;
    Ok((number(12), data))
}

/// Takes what an answer says of the export: its size and flags, or the sizes of blocks.
fn note_info(data: &[u8], export: &mut Option<Export>, blocks: &mut Option<(u32, u32)>) -> Result<(), ConnectError> {
    let number = |at: usize| data.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")));
    let wrong = || ConnectError::new("the handshake failed: the server's answer makes no sense");
    let Some(kind) = data.get(..2) else { return Err(wrong()) };
    match u16::from_be_bytes([kind[0], kind[1]]) {
        INFO_EXPORT => {
            let (Some(high), Some(low), Some(flags), 12) = (number(2), number(6), data.get(10..12), data.len()) else { return Err(wrong()) };
            *export = Some(Export::new(u64::from(high) << 32 | u64::from(low), u16::from_be_bytes([flags[0], flags[1]])));
        }
        INFO_BLOCK_SIZE => {
            let (Some(least), Some(_), Some(most), 14) = (number(2), number(6), number(10), data.len()) else { return Err(wrong()) };
            *blocks = Some((least, most));
        }
        _ => {}
    }
    Ok(())
}

/// Asks with NBD_OPT_EXPORT_NAME: who refuses just closes the connection.
fn export_name(stream: &mut Stream, name: &str, has_no_zeroes: bool) -> io::Result<Export> {
    send_option(stream, OPTION_EXPORT_NAME, name.as_bytes())?;
    let num_bytes = u64::from_be_bytes(receive(stream)?);
    let flags = u16::from_be_bytes(receive(stream)?);
    if !has_no_zeroes {
        let _: [u8; 124] = receive(stream)?;
    }
    Ok(Export::new(num_bytes, flags))
}

/// Whether pages can be swapped to it.
fn check(export: &Export, address: &Address) -> Result<(), ConnectError> {
    let name = &address.export;
    if export.is_read_only {
        return Err(ConnectError::new(format!(
            "the export \"{name}\" is read-only: pages could not be written; start the server with a writable one"
        )));
    }
    let fits = export.min_block_bytes.is_power_of_two() && export.min_block_bytes as usize <= PAGE_SIZE;
    if !fits || export.max_payload_bytes < PAGE_SIZE as u32 {
        let (least, most) = (export.min_block_bytes, export.max_payload_bytes);
        return Err(ConnectError::new(format!(
            "the block sizes of the export \"{name}\" do not allow pages: it takes requests of {least} to {most} bytes, and a page has {PAGE_SIZE}"
        )));
    }
    if let Some(size) = address.size_bytes.filter(|size| *size > export.num_bytes) {
        let (has, wanted) = (format_size(export.num_bytes), format_size(size));
        return Err(ConnectError::new(format!("the export \"{name}\" holds {has}, less than size={wanted}; make it larger, or the size smaller")));
    }
    Ok(())
}
