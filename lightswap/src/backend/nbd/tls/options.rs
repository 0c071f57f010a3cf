//! What URLs say of TLS, by the names that the NBD project's URI specification and libnbd have for it.

use super::super::address::decode;
use rustls::pki_types::ServerName;
use std::path::PathBuf;

/// All of them.
pub(in super::super) const OPTIONS: [&str; 5] = ["tls-certificates", "tls-hostname", "tls-verify-peer", "tls-type", "tls-psk-file"];

/// Name of the server at a UNIX socket, unless another one is given.
const LOCAL_NAME: &str = "localhost";

/// How a session is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TlsOptions {
    /// What the server's certificate must be for.
    pub(super) name: ServerName<'static>,
    /// A directory with the certificate of a CA, and perhaps one of our own with its key; the system's CAs if there is none.
    pub(super) certificates: Option<PathBuf>,
    /// Anybody may be the server.
    pub(in super::super) is_unverified: bool,
}

impl TlsOptions {
    /// With a function that looks options up, and the host that the URL names.
    pub(in super::super) fn parse<'a>(host: Option<&str>, option: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        if option("tls-psk-file").is_some() {
            return Err(
                "pre-shared keys (tls-psk-file) are not supported: give the server a certificate, and its CA here with tls-certificates=DIR".into()
            );
        }
        if let Some(kind) = option("tls-type").filter(|kind| *kind != "x509") {
            return Err(format!("the option tls-type takes x509, not \"{kind}\": servers have to have certificates"));
        }
        let decoded = |name: &str| -> Result<Option<String>, String> {
            let Some(text) = option(name) else { return Ok(None) };
            let value = decode(text).filter(|value| !value.is_empty());
            value.map(Some).ok_or_else(|| format!("the option {name} is empty, or has a \"%\" that no two hexadecimal digits follow"))
        };
        let name = decoded("tls-hostname")?;
        let name = name.as_deref().or(host).unwrap_or(LOCAL_NAME);
        Ok(Self {
            name: ServerName::try_from(name).map_err(|_| format!("\"{name}\" is no name that a certificate could be for"))?.to_owned(),
            certificates: decoded("tls-certificates")?.map(PathBuf::from),
            is_unverified: match option("tls-verify-peer") {
                None | Some("1" | "true") => false,
                Some("0" | "false") => true,
                Some(text) => return Err(format!("the option tls-verify-peer takes 0 or 1, not \"{text}\"")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(host: Option<&str>, options: &[(&'static str, &'static str)]) -> Result<TlsOptions, String> {
        TlsOptions::parse(host, |name| options.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
    }

    #[test]
    fn servers_are_verified_by_the_host_of_the_url_unless_told_otherwise() {
        let options = parse(Some("memory-1.example"), &[]).unwrap();
        assert_eq!(options, TlsOptions { name: "memory-1.example".try_into().unwrap(), certificates: None, is_unverified: false });
        for (host, name) in [(Some("10.0.0.5"), "10.0.0.5"), (Some("::1"), "::1"), (None, "localhost")] {
            assert_eq!(parse(host, &[]).unwrap().name, name.try_into().unwrap());
        }
        let options = parse(None, &[("tls-hostname", "a.b"), ("tls-certificates", "/etc/a%20b"), ("tls-type", "x509")]).unwrap();
        assert_eq!((options.name, options.certificates), ("a.b".try_into().unwrap(), Some("/etc/a b".into())));
        for (text, is_unverified) in [("0", true), ("false", true), ("1", false), ("true", false)] {
            assert_eq!(parse(None, &[("tls-verify-peer", text)]).unwrap().is_unverified, is_unverified);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (host, name, value, text) in [
            (None, "tls-psk-file", "/keys", "not supported"),
            (None, "tls-type", "psk", "takes x509, not \"psk\""),
            (None, "tls-type", "anon", "takes x509"),
            (None, "tls-verify-peer", "off", "takes 0 or 1, not \"off\""),
            (None, "tls-hostname", "a b", "\"a b\" is no name"),
            (None, "tls-hostname", "", "is empty"),
            (None, "tls-certificates", "%4", "hexadecimal"),
            (Some("under_score..x"), "tls-type", "x509", "is no name"),
        ] {
            let error = parse(host, &[(name, value)]).unwrap_err();
            assert!(error.contains(text), "{name}={value}: {error}");
        }
    }
}
