//! Builds the BPF program of the feature `ebpf` with clang. Without clang everything else is built, and the tracer says at run time what it lacks.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "ebpf/faults.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");
    if std::env::var_os("CARGO_FEATURE_EBPF").is_none() {
        return;
    }
    let object = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("faults.bpf.o");
    if let Err(cause) = compile(&object) {
        println!("cargo:warning=the tracer of page faults is left out: {cause} (apt-get install clang, or set CLANG)");
        std::fs::write(&object, []).expect("OUT_DIR is writable");
    }
}

fn compile(object: &Path) -> Result<(), String> {
    let clang = std::env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra"]);
    // Where Debian has <asm/types.h>; clang does not look there for this target.
    command.args(["-I/usr/include/x86_64-linux-gnu", "-c", SOURCE, "-o"]).arg(object);
    let output = command.output().map_err(|cause| format!("{} cannot be run: {cause}", clang.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| line.contains("error")).unwrap_or("it gives no reason");
    Err(format!("{} cannot build {SOURCE}: {first}", clang.display()))
}
