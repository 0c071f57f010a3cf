//! Where a server is and how it is to be used: URLs as the NBD project's URI specification has them, and options of our own.
//!
//! `nbd://host[:port]/export`, `nbd+unix:///export?socket=/path`; options `size`, `timeout`, `lost-after`, `connections`, `poll`. With `nbds:` and `nbds+unix:`,
//! also those of [`tls::options`].

use super::tls;
use super::tls::options::TlsOptions;
use crate::size::parse_size;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The port that is registered for NBD.
const DEFAULT_PORT: u16 = 10_809;
/// The protocol's limit for the names of exports.
const MAX_NAME_BYTES: usize = 4096;

const OPTIONS: [&str; 6] = ["size", "socket", "timeout", "lost-after", "connections", "poll"];

/// All options there are.
pub(super) fn options() -> Vec<&'static str> {
    [&OPTIONS[..], &tls::options::OPTIONS].concat()
}

/// How to reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A URL taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) place: Place,
    /// Without, all is sent as it is.
    pub(super) tls: Option<TlsOptions>,
    /// Empty for the default export.
    pub(super) export: String,
    /// To be used of the export; all of it if not given.
    pub(super) size_bytes: Option<u64>,
    /// Without any answer for so long, the connection is dropped.
    pub(super) timeout: Duration,
    /// A server that is away for so long is lost: requests fail.
    pub(super) lost_after: Duration,
    /// Most connections at a time.
    pub(super) max_connections: usize,
    /// See [`crate::backend::Backend::busy_poll_us`].
    pub(super) busy_poll_us: u64,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}")?,
            Place::Tcp { host, port } => write!(f, "{host}:{port}")?,
            Place::Unix(path) => write!(f, "{}", path.display())?,
        }
        if self.export.is_empty() { Ok(()) } else { write!(f, ", export \"{}\"", self.export) }
    }
}

impl Address {
    /// Of `scheme:path`, with a function that looks options up. An error is what is wrong, and what to write instead.
    pub(super) fn parse<'a>(scheme: &str, path: &str, option: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let is_unix = scheme.ends_with("+unix");
        let example = if is_unix { format!("{scheme}:///EXPORT?socket=/path/of/socket") } else { format!("{scheme}://HOST:PORT/EXPORT") };
        let rest = path.strip_prefix("//").ok_or_else(|| format!("\"//\" is expected after \"{scheme}:\", as in {example}"))?;
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export).ok_or("the name of the export has a \"%\" that no two hexadecimal digits follow, or is not UTF-8")?;
        if export.len() > MAX_NAME_BYTES {
            return Err(format!("the name of the export has more than {MAX_NAME_BYTES} bytes"));
        }
        let place = match (is_unix, option("socket")) {
            (true, _) if !authority.is_empty() => {
                return Err(format!("\"{authority}\" is no place for a host: three slashes are expected, as in {example}"));
            }
            (true, None | Some("")) => return Err(format!("the socket is missing, as in {example}")),
            (true, Some(socket)) => Place::Unix(decode(socket).ok_or("the option socket has a \"%\" that no two hexadecimal digits follow")?.into()),
            (false, Some(_)) => return Err("the option socket belongs to nbd+unix: and nbds+unix: URLs".into()),
            (false, None) => tcp_place(authority).map_err(|what| format!("{what}, as in {example}"))?,
        };
        let host = if let Place::Tcp { host, .. } = &place { Some(host.as_str()) } else { None };
        let tls = if scheme.starts_with("nbds") { Some(TlsOptions::parse(host, &option)?) } else { None };
        if let (None, Some(name)) = (&tls, tls::options::OPTIONS.iter().find(|name| option(name).is_some())) {
            return Err(format!("the option {name} belongs to nbds: and nbds+unix: URLs"));
        }
        let number = |name: &str, most: u64| -> Result<Option<u64>, String> {
            let Some(text) = option(name) else { return Ok(None) };
            let number = text.parse().ok().filter(|number| (1..=most).contains(number));
            number.map(Some).ok_or_else(|| format!("the option {name} takes a whole number from 1 to {most}, not \"{text}\""))
        };
        let duration = |name: &str, default: u64| -> Result<Duration, String> {
            let Some(text) = option(name) else { return Ok(Duration::from_secs(default)) };
            let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=86_400.0).contains(seconds));
            seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("the option {name} takes seconds from 0.01 to 86400, not \"{text}\""))
        };
        Ok(Self {
            place,
            tls,
            export,
            size_bytes: option("size").map(parse_size).transpose().map_err(|error| error.to_string())?,
            timeout: duration("timeout", 2)?,
            lost_after: duration("lost-after", 10)?,
            max_connections: number("connections", 1024)?.unwrap_or(1024) as usize,
            busy_poll_us: if option("poll") == Some("0") { 0 } else { number("poll", 10_000)?.unwrap_or(0) },
        })
    }
}

/// `host`, `host:port`, or with an IPv6 address `[host]:port`.
fn tcp_place(authority: &str) -> Result<Place, String> {
    if authority.contains('@') {
        return Err("a name of a user is not expected".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("\"]\" is expected after the IPv6 address")?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(format!("\"{rest}\" is not expected after the IPv6 address")),
            }
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if port.is_some_and(|port| port.contains(':')) {
        return Err(format!("\"{authority}\": an IPv6 address is written in brackets"));
    }
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(text) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("\"{text}\" is no port, 1 to 65535"))?,
    };
    Ok(Place::Tcp { host: host.into(), port })
}

/// With `%41` for A, and so on.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            bytes.push((digit(rest.next())? * 16 + digit(rest.next())?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(scheme: &str, path: &str, options: &[(&'static str, &'static str)]) -> Result<Address, String> {
        Address::parse(scheme, path, |name| options.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
    }

    #[test]
    fn places_and_exports() {
        let tcp = |host: &str, port| Place::Tcp { host: host.into(), port };
        for (path, place, export) in [
            ("//a", tcp("a", 10_809), ""),
            ("//a:1/x%2Fy/z", tcp("a", 1), "x/y/z"),
            ("//[::1]:65535/", tcp("::1", 65_535), ""),
            ("//[fe80::1]/e", tcp("fe80::1", 10_809), "e"),
        ] {
            let address = parse("nbd", path, &[]).unwrap();
            assert_eq!((address.place, address.export.as_str()), (place, export), "{path}");
        }
        let address = parse("nbd+unix", "///e%20f", &[("socket", "/a%3Fb")]).unwrap();
        assert_eq!((address.place.clone(), address.export.as_str()), (Place::Unix("/a?b".into()), "e f"));
        assert_eq!((address.to_string().as_str(), &address.tls), ("/a?b, export \"e f\"", &None));
        // The same with TLS.
        let address = parse("nbds", "//[::1]:7/e", &[]).unwrap();
        assert_eq!((address.place, address.tls), (tcp("::1", 7), Some(TlsOptions::parse(Some("::1"), |_| None).unwrap())));
        let address = parse("nbds+unix", "///e", &[("socket", "/a"), ("tls-hostname", "b")]).unwrap();
        assert_eq!((address.place, address.tls), (Place::Unix("/a".into()), Some(TlsOptions::parse(Some("b"), |_| None).unwrap())));
    }

    #[test]
    fn options_have_their_limits() {
        let address =
            parse("nbd", "//a", &[("timeout", "0.5"), ("lost-after", "3"), ("connections", "2"), ("poll", "50"), ("size", "8MiB")]).unwrap();
        assert_eq!((address.timeout, address.lost_after), (Duration::from_millis(500), Duration::from_secs(3)));
        assert_eq!((address.max_connections, address.busy_poll_us, address.size_bytes), (2, 50, Some(8 << 20)));
        for (name, value) in [("timeout", "0"), ("timeout", "NaN"), ("lost-after", "1e9"), ("connections", "0"), ("poll", "-1"), ("size", "x")] {
            let error = parse("nbd", "//a", &[(name, value)]).unwrap_err();
            assert!(error.contains(value), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (scheme, path, options, text) in [
            ("nbd", "a", &[][..], "\"//\" is expected"),
            ("nbd", "//", &[], "the host is missing"),
            ("nbd", "//::1", &[], "in brackets"),
            ("nbd", "//[::1", &[], "\"]\" is expected"),
            ("nbd", "//[::1]x", &[], "\"x\" is not expected"),
            ("nbd", "//a:99999", &[], "no port"),
            ("nbd", "//me@a", &[], "a user"),
            ("nbd", "//a/%4", &[], "no two hexadecimal digits"),
            ("nbd", "//a", &[("socket", "/x")], "belongs to nbd+unix"),
            ("nbd+unix", "///e", &[], "the socket is missing"),
            ("nbd+unix", "//host/e", &[("socket", "/x")], "no place for a host"),
            ("nbds+unix", "///e", &[], "as in nbds+unix:///"),
            ("nbds", "//a", &[("socket", "/x")], "belongs to nbd+unix"),
            ("nbd", "//a", &[("tls-verify-peer", "1")], "tls-verify-peer belongs to nbds:"),
            ("nbds", "//a", &[("tls-psk-file", "/x")], "not supported"),
        ] {
            let error = parse(scheme, path, options).unwrap_err();
            assert!(error.contains(text), "{scheme}:{path}: {error}");
        }
    }
}
