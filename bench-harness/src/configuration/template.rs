//! Texts with {placeholders}.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// The names between braces.
pub fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    template.split('{').skip(1).filter_map(|part| part.split_once('}').map(|(name, _)| name))
}

/// Puts values for the placeholders.
pub fn fill(template: &str, values: &BTreeMap<&str, String>) -> Result<String> {
    let mut parts = template.split('{');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').with_context(|| format!("a brace is not closed in {template:?}"))?;
        text += values.get(name).with_context(|| format!("{{{name}}} in {template:?} has no value here"))?;
        text += rest;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled() {
        let values = BTreeMap::from([("a", "1".to_owned()), ("b", "{a}".to_owned())]);
        assert_eq!(fill("x{a}-{b}{a}", &values).unwrap(), "x1-{a}1");
        assert!(fill("{c}", &values).unwrap_err().to_string().contains("{c}"));
        assert_eq!(fill("plain", &values).unwrap(), "plain");
    }
}
