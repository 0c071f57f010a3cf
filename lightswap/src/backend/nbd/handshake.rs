//! stub
use super::address::Address;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
#[derive(Clone, Debug)]
pub(super) struct Export {
    pub(super) num_bytes: u64,
    pub(super) can_flush: bool,
    pub(super) can_trim: bool,
    pub(super) can_multi_conn: bool,
    pub(super) max_payload_bytes: u32,
}
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) socket: OwnedFd,
    pub(super) tls: Option<Box<rustls::ClientConnection>>,
    pub(super) export: Export,
}
impl Connected {
    pub(super) fn stream(&mut self) -> Result<impl Read + Write + use<>, ConnectError> {
        Ok(UnixStream::from(self.socket.try_clone().unwrap()))
    }
}
#[derive(Debug)]
pub(super) struct ConnectError(String);
impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl ConnectError {
    pub(super) fn transient(what: String) -> Self {
        Self(what)
    }
}
pub(super) fn connect(address: &Address) -> Result<Connected, ConnectError> {
    go(address).map_err(|error| ConnectError(error.to_string()))
}
fn go(address: &Address) -> std::io::Result<Connected> {
    let socket: OwnedFd = if address.socket.starts_with('/') {
        UnixStream::connect(&address.socket)?.into()
    } else {
        let s = std::net::TcpStream::connect(&address.socket)?;
        s.set_nodelay(true)?;
        s.into()
    };
    let mut stream = UnixStream::from(socket);
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    stream.write_all(&3u32.to_be_bytes())?;
    let mut option = b"IHAVEOPT".to_vec();
    option.extend(7u32.to_be_bytes());
    option.extend(6u32.to_be_bytes());
    option.extend([0; 6]);
    stream.write_all(&option)?;
    let mut export = Export { num_bytes: 0, can_flush: false, can_trim: false, can_multi_conn: false, max_payload_bytes: 32 << 20 };
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(header[16..].try_into().unwrap());
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body)?;
        match kind {
            1 => break,
            3 if body[..2] == [0, 0] => {
                export.num_bytes = u64::from_be_bytes(body[2..10].try_into().unwrap());
                let flags = u16::from_be_bytes(body[10..12].try_into().unwrap());
                export.can_flush = flags & 4 != 0;
                export.can_trim = flags & 32 != 0;
                export.can_multi_conn = flags & 256 != 0;
            }
            3 => {}
            _ => return Err(std::io::Error::other(format!("option reply {kind:#x}"))),
        }
    }
    Ok(Connected { socket: stream.into(), tls: None, export })
}
