//! The URL-like grammar of backends: `scheme:path?name=value&name=value`.

use crate::error::{Error, ErrorKind, Result};
use crate::size::parse_size;

/// A backend URL taken apart. Each option is taken out by the backend that knows it; what is left over is an error.
#[derive(Debug)]
pub(super) struct BackendUrl {
    pub(super) text: String,
    pub(super) scheme: String,
    pub(super) path: String,
    options: Vec<(String, String)>,
}

impl BackendUrl {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = |what: &str| Error::new(ErrorKind::BackendUrl, format!("backend URL \"{text}\": {what}"));
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad("no scheme: write file:/path?size=8GiB or memory:?size=8GiB"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.contains('\0') || query.contains('\0') {
            return Err(bad("it contains a NUL byte"));
        }
        let mut options: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| bad(&format!("option \"{pair}\" has no value")))?;
            if options.iter().any(|(known, _)| known == name) {
                return Err(bad(&format!("option \"{name}\" is given twice")));
            }
            options.push((name.into(), value.into()));
        }
        Ok(Self { text: text.into(), scheme: scheme.into(), path: path.into(), options })
    }

    /// An error about this URL.
    pub(super) fn error(&self, kind: ErrorKind, what: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("backend \"{}\": {what}", self.text))
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The option `size`, if given.
    pub(super) fn size(&self) -> Result<Option<u64>> {
        self.option("size").map(parse_size).transpose().map_err(|error| self.error(ErrorKind::BackendUrl, error))
    }

    /// An option that takes one of `values`; the first is the default. Returns its index.
    pub(super) fn choice(&self, name: &str, values: &[&str]) -> Result<usize> {
        let Some(given) = self.option(name) else { return Ok(0) };
        values
            .iter()
            .position(|value| *value == given)
            .ok_or_else(|| self.error(ErrorKind::BackendUrl, format!("option {name}={given}: it takes {}", values.join(" or "))))
    }

    /// Refuses options that are not in `known`.
    pub(super) fn expect_only(&self, known: &[&str]) -> Result<()> {
        match self.options.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => {
                Err(self.error(ErrorKind::BackendUrl, format!("unknown option \"{name}\" ({} takes {})", self.scheme, known.join(", "))))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_parse() {
        let url = BackendUrl::parse("file:/a/b?size=8GiB&reserve=grow").unwrap();
        assert_eq!((url.scheme.as_str(), url.path.as_str()), ("file", "/a/b"));
        assert_eq!(url.size().unwrap(), Some(8 << 30));
        assert_eq!(url.choice("reserve", &["start", "grow"]).unwrap(), 1);
        url.expect_only(&["size", "reserve"]).unwrap();
        assert!(url.expect_only(&["size"]).is_err());
        for bad in ["", "file", "file:/x?size", "file:/x?size=1&size=2", "file:/x?size=\0"] {
            assert!(BackendUrl::parse(bad).is_err(), "{bad:?}");
        }
        assert!(BackendUrl::parse("file:/x?size=big").unwrap().size().is_err());
        assert!(BackendUrl::parse("file:/x?reserve=never").unwrap().choice("reserve", &["start"]).is_err());
    }
}
