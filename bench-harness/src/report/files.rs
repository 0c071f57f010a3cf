//! Reading result files: what cannot be read is named and left out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::results::Results;

/// The readable files, and whether these are all of them. An error when there is none.
pub fn read_all(paths: &[PathBuf]) -> Result<(Vec<Results>, bool)> {
    let mut files = Vec::new();
    let mut failures = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        // Named twice, such as by two patterns of a shell, a file must not count twice.
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            continue;
        }
        match Results::read(path) {
            // Every field may be absent, so any JSON object would do.
            Ok(results) if results.is_empty() => {
                failures.push(format!(
                    "{} holds no results of lightswap-bench: it has neither runs nor micro-benchmarks, and is none of torture",
                    path.display()
                ));
            }
            Ok(results) => files.push(results),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if files.is_empty() {
        bail!("none of the result files can be read, so there is no report:\n  {}", failures.join("\n  "));
    }
    for failure in &failures {
        note!("lightswap-bench: left out: {failure}");
    }
    Ok((files, failures.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn unreadable_files_are_left_out_and_no_file_is_an_error() {
        let directory = std::env::temp_dir().join(format!("lightswap-bench-files-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let good = serde_json::to_string(&crate::report::synthetic::micro_only()).unwrap();
        let half = file("half.json", &good[..good.len() / 2]);
        let other = file("other.json", "{\"name\": \"something else\"}");
        let missing = directory.join("missing.json");
        let good = file("good.json", &good);
        let torture = file("torture.json", &crate::torture::an_outcome().to_string());
        let (files, all) = read_all(std::slice::from_ref(&torture)).unwrap();
        assert!(all && files[0].torture.len() == 1 && files[0].runs.is_empty());
        let cut = file("cut.json", &fs::read_to_string(&torture).unwrap().replace("wrong_values", "wrong"));
        let text = format!("{:#}", read_all(&[cut]).unwrap_err());
        assert!(text.contains("cut.json") && text.contains("wrong_values"), "{text}");
        let (files, all) = read_all(&[good.clone(), half.clone(), good.clone(), other.clone(), missing.clone()]).unwrap();
        assert_eq!((files.len(), all), (1, false));
        assert!(read_all(&[good]).unwrap().1);
        let text = format!("{:#}", read_all(&[half, other, missing]).unwrap_err());
        for name in ["half.json", "other.json", "missing.json", "EOF", "No such file"] {
            assert!(text.contains(name), "{name}: {text}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
