//! UNIX and TCP sockets as one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Place {
    /// The URL of an export there; `options` as they stand in a URL, without a `?` or `&` in front.
    pub fn url(&self, export: &str, options: &str) -> String {
        let (url, separator) = match self {
            Self::Unix(path) => (format!("nbd+unix:///{export}?socket={}", path.display()), "&"),
            Self::Tcp(address) => (format!("nbd://{address}/{export}"), "?"),
        };
        if options.is_empty() { url } else { url + separator + options }
    }

    /// The same with TLS.
    pub fn secure_url(&self, export: &str, options: &str) -> String {
        self.url(export, options).replacen("nbd", "nbds", 1)
    }

    pub fn connect(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Self::Tcp(address) => Stream::Tcp(TcpStream::connect_timeout(address, Duration::from_secs(1))?),
        })
    }
}

#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// How long a read may wait.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout).unwrap(),
            Self::Tcp(stream) => stream.set_read_timeout(timeout).unwrap(),
        }
    }

    /// Ends both directions, for all clones: threads that read or write return.
    pub fn shut_down(&self) {
        // It may be shut down already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at the place again, where somebody may have to let go of it first.
    pub fn bind(place: &Place) -> Self {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Self::try_bind(place) {
                Ok(listener) => return listener,
                Err(error) => assert!(Instant::now() < deadline, "cannot listen at {place:?}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_bind(place: &Place) -> io::Result<Self> {
        Ok(match place {
            Place::Unix(path) => {
                // What a former server left there.
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Self::Unix(listener)
            }
            Place::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
        })
    }

    /// Where it really listens: a port may have been left to the system.
    pub fn place(&self, asked: &Place) -> Place {
        match self {
            Self::Unix(_) => asked.clone(),
            Self::Tcp(listener) => Place::Tcp(listener.local_addr().unwrap()),
        }
    }

    /// The next connection, if there is one already.
    pub fn accept(&self) -> Option<Stream> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().ok()?;
                stream.set_nonblocking(false).unwrap();
                Some(Stream::Unix(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().ok()?;
                stream.set_nonblocking(false).unwrap();
                stream.set_nodelay(true).unwrap();
                Some(Stream::Tcp(stream))
            }
        }
    }
}
