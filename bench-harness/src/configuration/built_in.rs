//! Those that come with the harness, and files of one's own.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};

use super::Configuration;
use crate::cli::Mistake;

/// In the order in which people read: what it is about, what is compared with it, what it is built on.
pub const BUILT_IN: [(&str, &str); 26] = [
    ("dram", include_str!("../../configurations/dram.toml")),
    ("lightswap-dram", include_str!("../../configurations/lightswap-dram.toml")),
    ("lightswap", include_str!("../../configurations/lightswap.toml")),
    ("lightswap-memory", include_str!("../../configurations/lightswap-memory.toml")),
    ("lightswap-remote", include_str!("../../configurations/lightswap-remote.toml")),
    ("lightswap-mirror", include_str!("../../configurations/lightswap-mirror.toml")),
    ("lightswap-encrypted", include_str!("../../configurations/lightswap-encrypted.toml")),
    ("lightswap-compressed", include_str!("../../configurations/lightswap-compressed.toml")),
    ("lightswap-tier", include_str!("../../configurations/lightswap-tier.toml")),
    ("fastswap-style", include_str!("../../configurations/fastswap-style.toml")),
    ("fastswap-style-remote", include_str!("../../configurations/fastswap-style-remote.toml")),
    ("kernel-swap-ssd", include_str!("../../configurations/kernel-swap-ssd.toml")),
    ("kernel-swap-zram", include_str!("../../configurations/kernel-swap-zram.toml")),
    ("extstore", include_str!("../../configurations/extstore.toml")),
    ("monitor", include_str!("../../configurations/monitor.toml")),
    ("redis-dram", include_str!("../../configurations/redis-dram.toml")),
    ("redis-lightswap-dram", include_str!("../../configurations/redis-lightswap-dram.toml")),
    ("redis-lightswap", include_str!("../../configurations/redis-lightswap.toml")),
    ("redis-lightswap-memory", include_str!("../../configurations/redis-lightswap-memory.toml")),
    ("redis-lightswap-remote", include_str!("../../configurations/redis-lightswap-remote.toml")),
    ("redis-lightswap-mirror", include_str!("../../configurations/redis-lightswap-mirror.toml")),
    ("redis-lightswap-encrypted", include_str!("../../configurations/redis-lightswap-encrypted.toml")),
    ("redis-lightswap-compressed", include_str!("../../configurations/redis-lightswap-compressed.toml")),
    ("redis-lightswap-tier", include_str!("../../configurations/redis-lightswap-tier.toml")),
    ("redis-kernel-swap-ssd", include_str!("../../configurations/redis-kernel-swap-ssd.toml")),
    ("redis-kernel-swap-zram", include_str!("../../configurations/redis-kernel-swap-zram.toml")),
];

/// All that come with the harness.
pub fn built_in() -> Result<Vec<Rc<Configuration>>> {
    BUILT_IN
        .iter()
        .map(|(name, text)| Ok(Rc::new(Configuration::parse(name, text).with_context(|| format!("configurations/{name}.toml"))?)))
        .collect()
}

/// By name, or by the path of a file of one's own: anything with a slash or ending in ".toml".
pub fn find(name: &str) -> Result<Rc<Configuration>> {
    if name.contains('/') || name.ends_with(".toml") {
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {name}"))?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let parsed = Configuration::parse(&stem, &text).and_then(|mut configuration| {
            configuration.find_server(path.parent().unwrap_or(Path::new("")))?;
            Ok(configuration)
        });
        return Ok(Rc::new(parsed.with_context(|| format!("the configuration {name} cannot be used"))?));
    }
    match BUILT_IN.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => Ok(Rc::new(Configuration::parse(name, text)?)),
        None => Err(Mistake(format!("there is no configuration {name:?}; {}", nearest(name))).into()),
    }
}

/// The same for several, none of them twice: results tell configurations apart by their names.
pub fn find_all(names: &[String]) -> Result<Vec<Rc<Configuration>>> {
    let mut all: Vec<Rc<Configuration>> = Vec::new();
    for name in names {
        let configuration = find(name)?;
        if all.iter().any(|known| known.name == configuration.name) {
            let message =
                format!("two of the configurations are named {:?}, so results could not tell them apart; rename a file", configuration.name);
            return Err(Mistake(message).into());
        }
        all.push(configuration);
    }
    Ok(all)
}

/// "did you mean a, b?", or all names when none is near.
fn nearest(name: &str) -> String {
    let names = BUILT_IN.map(|(known, _)| known);
    let mut near: Vec<(f64, &str)> =
        names.iter().map(|known| (strsim::jaro_winkler(name, known), *known)).filter(|(score, _)| *score > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    match near.as_slice() {
        [] => format!("there are {}", names.join(", ")),
        near => format!("did you mean {}?", near.iter().take(3).map(|(_, name)| *name).collect::<Vec<_>>().join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::ItemHeaders;

    #[test]
    fn the_built_in_ones_are_sound() {
        let all = built_in().unwrap();
        assert_eq!(all.len(), BUILT_IN.len());
        for configuration in &all {
            let again = find(&configuration.name).unwrap();
            assert_eq!(serde_json::to_string(&*again).unwrap(), serde_json::to_string(&**configuration).unwrap());
        }
        assert!(find("dram").unwrap().obstacle().is_none());
    }

    #[test]
    fn unknown_names_get_the_nearest_ones() {
        let message = |name: &str| find(name).unwrap_err().to_string();
        assert!(message("kernel-swap").contains("did you mean kernel-swap-ssd"), "{}", message("kernel-swap"));
        assert!(message("lightswp").contains("did you mean lightswap "), "{}", message("lightswp"));
        assert!(message("xyz").contains("there are dram, "), "{}", message("xyz"));
        assert!(format!("{:#}", find("no/such.toml").unwrap_err()).contains("no/such.toml"));
    }

    #[test]
    fn a_file_can_name_its_own_server() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-own-server", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("old")).unwrap();
        let lightswap = BUILT_IN.iter().find(|(name, _)| *name == "lightswap").unwrap().1;
        let path = directory.join("before.toml");
        let with = |lines: &str| {
            std::fs::write(&path, format!("{lines}\n{lightswap}")).unwrap();
            find(path.to_str().unwrap()).map_err(|error| format!("{error:#}"))
        };
        let refused = with("server = \"old/memcached\"").unwrap_err();
        for part in ["before.toml", "server = \"old/memcached\"", &*directory.join("old/memcached").to_string_lossy(), "build it"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(with("server = \"old\"").unwrap_err().contains("is no file"));
        std::fs::write(directory.join("old/memcached"), "").unwrap();
        let found = with("server = \"old/memcached\"\nitem_headers = \"region\"").unwrap();
        assert_eq!((found.name.as_str(), found.server.as_deref()), ("before", Some(&*directory.join("old/memcached"))));
        assert_eq!(found.item_headers, ItemHeaders::Region);
        assert!(with("item_headers = \"nowhere\"").unwrap_err().contains("nowhere"));
        assert_eq!(with("").unwrap().item_headers, ItemHeaders::Memory);

        let dram = BUILT_IN.iter().find(|(name, _)| *name == "dram").unwrap().1;
        let error = Configuration::parse("x", &format!("item_headers = \"region\"\n{dram}")).unwrap_err().to_string();
        assert!(error.contains("have no region"), "{error}");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn configurations_of_one_name_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(find_all(&names(&["dram", "lightswap"])).unwrap().len(), 2);
        let error = find_all(&names(&["dram", "lightswap", "dram"])).unwrap_err().to_string();
        assert!(error.contains("named \"dram\""), "{error}");
    }
}
