//! The C ABI from C: programs are compiled against the committed header, strictly, and linked with the static library of this build.

use std::os::unix::process::ExitStatusExt;
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

/// A program that is removed in the end.
struct Program(PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Program {
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.0).args(arguments).output().unwrap()
    }
}

/// Compiles `source`; `None` without a C compiler.
fn compile(source: &str, compiler: &str, standard: &str) -> Option<Program> {
    if Command::new(compiler).arg("--version").output().is_err() {
        eprintln!("skipped: there is no {compiler}");
        return None;
    }
    let program =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-abi-{}{standard}-{}", Path::new(source).file_stem()?.display(), std::process::id()));
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-D_GNU_SOURCE", standard]);
    command.arg("-I").arg(root().join("include")).arg(root().join(source)).arg(static_library());
    command.args(["-lpthread", "-lm", "-ldl", "-o"]).arg(&program);
    let compiled = command.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Some(Program(program))
}

fn passes(source: &str, arguments: &[&str]) -> Option<String> {
    let output = compile(source, "cc", "-std=c11")?.run(arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{source}: {:?}\n{stdout}{stderr}", output.status);
    Some(stdout.into_owned())
}

#[test]
fn every_function_with_arguments_good_and_bad() {
    if let Some(stdout) = passes("tests/c_abi/check.c", &[]) {
        assert!(stdout.contains("all checks passed") || stdout.contains("skipped: "), "{stdout}");
    }
}

#[test]
fn the_example_runs() {
    let swap = swap_path("scan");
    let file = format!("file:{}?size=64MiB", swap.0.display());
    for arguments in [&[][..], &[file.as_str()]] {
        if let Some(stdout) = passes("examples/scan.c", arguments) {
            assert!(stdout.starts_with("sum 35184367894528, expected 35184367894528\n") && stdout.contains("dirty_evictions"), "{stdout}");
        }
    }
}

/// Where a program makes a swap file; removed in the end.
fn swap_path(name: &str) -> Program {
    Program(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-abi-swap-{name}-{}", std::process::id())))
}

#[test]
fn try_blocks() {
    let swap = swap_path("try");
    if let Some(stdout) = passes("tests/c_abi/try.c", &[swap.0.to_str().unwrap()]) {
        assert!(stdout.contains("all checks passed") || stdout.contains("skipped: "), "{stdout}");
    }
}

#[test]
fn misused_try_blocks_are_detected() {
    let Some(program) = compile("tests/c_abi/try.c", "cc", "-std=c17") else { return };
    for (how, what) in [
        ("reuse", "is open already"),
        ("return-and-again", "is open already"),
        ("return-and-begin", "its function has ended"),
        ("return-within", "begun in it, is open"),
        ("return-and-fail", "its function has ended"),
        ("overwritten", "overwritten"),
        ("end-twice", "ended twice"),
        ("lwt-ends", "an LWT has ended with try block"),
        ("other-lwt", "on another LWT"),
    ] {
        let swap = swap_path(how);
        let output = program.run(&[swap.0.to_str().unwrap(), how]);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if stdout.contains("skipped: ") {
            eprintln!("{stdout}");
            return;
        }
        assert_eq!(output.status.signal(), Some(6), "{how}: {:?}\n{stderr}", output.status);
        assert!(stderr.contains("lightswap: fatal: ") && stderr.contains(what), "{how}: {stderr}");
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
