//! The C ABI from C: programs are compiled against the committed header, strictly, and linked with the static library of this build.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo puts the static library beside the test programs.
fn static_library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.with_file_name("liblightswap.a");
    assert!(path.exists(), "{} is missing: was this test built by cargo?", path.display());
    path
}

/// Compiles `source` and says how it ran; `None` without a C compiler.
fn run(source: &str, compiler: &str, standard: &str) -> Option<Output> {
    if Command::new(compiler).arg("--version").output().is_err() {
        eprintln!("skipped: there is no {compiler}");
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-abi-{}-{}", Path::new(source).file_stem()?.display(), std::process::id()));
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-D_GNU_SOURCE", standard]);
    command.arg("-I").arg(root().join("include")).arg(root().join(source)).arg(static_library());
    command.args(["-lpthread", "-lm", "-ldl", "-o"]).arg(&program);
    let compiled = command.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&program).output().unwrap();
    std::fs::remove_file(program).unwrap();
    Some(output)
}

fn passes(source: &str) -> Option<String> {
    let output = run(source, "cc", "-std=c11")?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{source}: {:?}\n{stdout}{stderr}", output.status);
    Some(stdout.into_owned())
}

#[test]
fn every_function_with_arguments_good_and_bad() {
    if let Some(stdout) = passes("tests/c_abi/check.c") {
        assert!(stdout.contains("all checks passed") || stdout.contains("skipped: "), "{stdout}");
    }
}

#[test]
fn the_example_runs() {
    if let Some(stdout) = passes("examples/scan.c") {
        assert!(stdout.starts_with("sum 35184367894528, expected 35184367894528\n") && stdout.contains("dirty_evictions"), "{stdout}");
    }
}

/// The header alone must do, in C++ as well.
#[test]
fn the_header_is_good_in_cpp() {
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("skipped: there is no c++");
        return;
    }
    let header = root().join("include/lightswap.h");
    let output = Command::new("c++").args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"]).arg(header).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
