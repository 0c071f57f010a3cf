//! The URL-like grammar of backends:
//!
//! ```text
//! backend := "faulty(" SCHEDULE "):" backend | NAME "(" backend { "," backend } ")" | leaf
//! leaf    := SCHEME ":" PATH [ "?" name "=" value { "&" name "=" value } ]
//! ```
//! A leaf within parentheses ends at the first comma or parenthesis that is not inside parentheses of its own.

use super::faulty;
use super::mirror;
use super::nbd::NbdBackend;
use super::schedule::Schedule;
use crate::error::{Error, ErrorKind, Result};
use crate::size::parse_size;
use std::ops::RangeInclusive;

const SCHEMES: [&str; 6] = ["file", "memory", "nbd", "nbd+unix", "nbds", "nbds+unix"];
/// So deep may parentheses be nested.
const MAX_DEPTH: usize = 8;

/// A backend made of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combination {
    Mirror,
    Stripe,
    Encrypted,
    Tier,
}

impl Combination {
    const ALL: [(&str, Self); 4] = [("mirror", Self::Mirror), ("stripe", Self::Stripe), ("encrypted", Self::Encrypted), ("tier", Self::Tier)];

    /// How many members it takes.
    fn num_members(self) -> RangeInclusive<usize> {
        match self {
            Self::Mirror => mirror::NUM_MEMBERS,
            Self::Stripe => 2..=16,
            Self::Encrypted => 1..=1,
            Self::Tier => 2..=2,
        }
    }
}

/// A URL taken apart.
#[derive(Debug)]
pub(super) enum Tree {
    Leaf(BackendUrl),
    Faulty(Schedule, Box<Tree>),
    Combined { how: Combination, members: Vec<Tree>, text: String },
}

impl Tree {
    pub(super) fn parse(text: &str) -> Result<Self> {
        if let Some(at) = text.find(char::is_control) {
            // Written so that the sentence is one line.
            let what = format!("backend URL {text:?}: it contains a control character at byte {at}, such as the end of a line or NUL");
            return Err(Error::new(ErrorKind::BackendUrl, what));
        }
        Self::parse_at(text, 0)
    }

    fn parse_at(text: &str, depth: usize) -> Result<Self> {
        let bad = |what: &str| Err(Error::new(ErrorKind::BackendUrl, format!("backend URL \"{text}\": {what}")));
        if depth > MAX_DEPTH {
            return bad("parentheses are nested too deep");
        }
        if let Some((schedule, rest)) = faulty::split(text)? {
            return Ok(Self::Faulty(schedule, Box::new(Self::parse_at(rest, depth + 1)?)));
        }
        let Some((how, rest)) = Combination::ALL.iter().find_map(|(name, how)| Some((*how, text.strip_prefix(name)?.strip_prefix('(')?))) else {
            return Self::leaf(text);
        };
        let Some(inner) = rest.strip_suffix(')') else { return bad("\")\" is expected at its end") };
        let Some(members) = split_members(inner) else { return bad("its parentheses do not match") };
        if !how.num_members().contains(&members.len()) {
            let (least, most) = how.num_members().into_inner();
            let wanted = if least == most { least.to_string() } else { format!("{least} to {most}") };
            return bad(&format!("it takes {wanted} backends between its parentheses, not {}", members.len()));
        }
        let members = members.into_iter().map(|member| Self::parse_at(member.trim(), depth + 1)).collect::<Result<Vec<_>>>()?;
        if how == Combination::Mirror && members.iter().any(Self::has_mirror) {
            return bad("a mirror cannot be inside a mirror: name all members in one");
        }
        Ok(Self::Combined { how, members, text: text.into() })
    }

    fn has_mirror(&self) -> bool {
        match self {
            Self::Leaf(_) => false,
            Self::Faulty(_, inner) => inner.has_mirror(),
            Self::Combined { how, members, .. } => *how == Combination::Mirror || members.iter().any(Self::has_mirror),
        }
    }

    fn leaf(text: &str) -> Result<Self> {
        let url = BackendUrl::parse(text)?;
        if SCHEMES.contains(&url.scheme.as_str()) {
            return Ok(Self::Leaf(url));
        }
        let names: Vec<String> = SCHEMES
            .iter()
            .map(|scheme| format!("{scheme}:"))
            .chain(Combination::ALL.iter().map(|(name, _)| format!("{name}(...)")))
            .chain(["faulty(SCHEDULE):".into()])
            .collect();
        let known = names.join(", ");
        Err(Error::new(ErrorKind::BackendUrl, format!("backend URL \"{text}\": unknown backend \"{}\" (there are {known})", url.scheme)))
    }

    /// What can be said against it without opening anything.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Leaf(url) if url.scheme.starts_with("nbd") => NbdBackend::check(url),
            Self::Leaf(url) => url.size().map(drop),
            Self::Faulty(_, inner) => inner.check(),
            Self::Combined { members, .. } => members.iter().try_for_each(Self::check),
        }
    }
}

/// The parts between commas outside parentheses; `None` if those do not match.
fn split_members(text: &str) -> Option<Vec<&str>> {
    let mut members = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                members.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members.push(&text[start..]);
    (depth == 0).then_some(members)
}

/// A backend URL taken apart. Which options there are the backend knows, and refuses others with [`Self::expect_only`].
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

    /// There is no address space for as much as `size` says.
    pub(super) fn too_large(&self, cause: &Error) -> Error {
        self.error(cause.kind(), format_args!("{cause}; give it a smaller size=SIZE"))
    }

    pub(super) fn option(&self, name: &str) -> Option<&str> {
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
        for bad in ["", "file", "file:/x?size", "file:/x?size=1&size=2"] {
            assert!(BackendUrl::parse(bad).is_err(), "{bad:?}");
        }
        assert!(BackendUrl::parse("file:/x?size=big").unwrap().size().is_err());
        assert!(BackendUrl::parse("file:/x?reserve=never").unwrap().choice("reserve", &["start"]).is_err());
    }
}
