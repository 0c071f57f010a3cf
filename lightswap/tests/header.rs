//! The C header is made from src/capi/ and committed: this test compares the two, or with LIGHTSWAP_UPDATE_HEADER=1 writes the header.

use cbindgen::{Builder, Config};
use std::path::Path;

/// In the order of the header. Not src/capi.rs: cbindgen would look for the modules that it declares beside it.
const SOURCES: [&str; 10] =
    ["constants.rs", "error.rs", "instance.rs", "region.rs", "heap.rs", "failure.rs", "lwt.rs", "sync.rs", "syscalls.rs", "stats.rs"];

#[test]
fn the_header_is_that_of_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::from_file(root.join("cbindgen.toml")).unwrap();
    let builder = SOURCES.iter().fold(Builder::new(), |builder, source| builder.with_src(root.join("src/capi").join(source)));
    let bindings = builder.with_config(config).generate().unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = polish(&String::from_utf8(made).unwrap());
    let path = root.join("include/lightswap.h");
    if std::env::var_os("LIGHTSWAP_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    if let Some((line, (made, committed))) = made.lines().zip(committed.lines()).enumerate().find(|(_, (made, committed))| made != committed) {
        panic!("include/lightswap.h differs at line {}: \"{committed}\" instead of \"{made}\"; {HINT}", line + 1);
    }
    assert_eq!(made.len(), committed.len(), "include/lightswap.h differs at its end; {HINT}");
}

const HINT: &str = "if src/capi/ is right, run this test with LIGHTSWAP_UPDATE_HEADER=1";

/// Not a macro with arguments.
fn is_constant(line: &str) -> bool {
    line.starts_with("#define LSW_") && !line.contains('(')
}

/// Comments of one line on one line, no runs of empty lines, and constants that belong together without gaps.
fn polish(header: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut source = header.lines();
    while let Some(line) = source.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim() == "/**" {
            let text: Vec<&str> = source.by_ref().map(str::trim).take_while(|inner| *inner != "*/").collect();
            for (number, part) in text.iter().enumerate() {
                let (start, end) = (if number == 0 { "/*" } else { " *" }, if number + 1 == text.len() { " */" } else { "" });
                lines.push(format!("{indent}{start} {}{end}", part.trim_start_matches('*').trim()));
            }
        } else if line.is_empty() && lines.last().is_some_and(|last| last.is_empty() || is_constant(last)) {
            // One empty line is enough, and between constants none.
        } else {
            if line.starts_with("typedef") && !lines.last().is_some_and(|last| last.is_empty() || last.ends_with("*/")) {
                lines.push(String::new());
            }
            lines.push(line.to_owned());
        }
    }
    // The last constant and what follows it belong apart.
    let end = lines.iter().rposition(|line| is_constant(line)).map_or(0, |last| last + 1);
    lines.insert(end, String::new());
    lines.join("\n") + "\n"
}
