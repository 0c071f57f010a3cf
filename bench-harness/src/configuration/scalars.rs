//! Numbers and texts of a TOML file, all as text.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::Settings;

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(i64),
    Text(String),
}

impl From<Scalar> for String {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Number(number) => number.to_string(),
            Scalar::Text(text) => text,
        }
    }
}

pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<Scalar>::deserialize(deserializer)?.into_iter().map(String::from).collect())
}

pub fn settings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Settings, D::Error> {
    Ok(BTreeMap::<String, Scalar>::deserialize(deserializer)?.into_iter().map(|(name, value)| (name, value.into())).collect())
}
