//! Where a server listens: a TCP address or a UNIX socket.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

use crate::stall::STALL_LIMIT;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Endpoint {
    /// A connected, blocking socket as a file: plain read(2) and write(2) are all that is needed from here on.
    pub fn connect(&self) -> io::Result<File> {
        Ok(File::from(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, STALL_LIMIT)?;
                stream.set_nodelay(true)?;
                OwnedFd::from(stream)
            }
            Self::Unix(path) => OwnedFd::from(UnixStream::connect(path)?),
        }))
    }

    pub fn listen(&self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(address) => Listener::Tcp(TcpListener::bind(address)?),
            Self::Unix(path) => Listener::Unix(UnixListener::bind(path)?),
        })
    }
}

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// A connection, as `Endpoint::connect` gives it to the other side.
    pub fn accept(&self) -> io::Result<File> {
        Ok(File::from(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                OwnedFd::from(stream)
            }
            Self::Unix(listener) => OwnedFd::from(listener.accept()?.0),
        }))
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("unix: names no path; write unix:/path/of/the/socket".into());
            }
            return Ok(Self::Unix(path.into()));
        }
        text.to_socket_addrs()
            .map_err(|e| format!("{text:?} is no server address ({e}); write HOST:PORT or unix:PATH"))?
            .next()
            .map(Self::Tcp)
            .ok_or_else(|| format!("{text:?} has no address; write HOST:PORT or unix:PATH"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print() {
        for text in ["127.0.0.1:11211", "unix:/tmp/some.socket"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "127.0.0.1", "127.0.0.1:99999", ":"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }
}
