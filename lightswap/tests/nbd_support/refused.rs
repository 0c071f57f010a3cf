//! Servers that cannot be used.

use crate::common::builder;
use lightswap::ErrorKind;
use std::time::{Duration, Instant};

/// Opening must fail so, soon, with one sentence that has all the parts.
pub fn refused(url: &str, kind: ErrorKind, parts: &[&str]) {
    let start = Instant::now();
    let error = builder(64, url).open().expect_err(url);
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{url}: {text}");
    assert!(!text.contains('\n') && (20..600).contains(&text.len()), "{url}: not one sentence: {text:?}");
    assert!(text.chars().all(|letter| !letter.is_control()), "{url}: {text:?}");
    let lower = text.to_lowercase();
    parts.iter().for_each(|part| assert!(lower.contains(&part.to_lowercase()), "{url}: no {part:?} in {text:?}"));
    // No test of speed: of whether there is any bound.
    assert!(start.elapsed() < Duration::from_secs(30), "{url}: {:?} until {text:?}", start.elapsed());
}
