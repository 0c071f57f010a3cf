//! Nobody reads any more, as after `lightswap-bench ... | head -1`: an orderly end, never a panic.

use std::process::{Command, Output, Stdio};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lightswap-bench"));
    command.args(arguments);
    command
}

/// The writing end of a pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    for arguments in [&["configurations"][..], &["grid", "--plan", "--quick"]] {
        let output = bench(arguments).stdout(unread()).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), text(&output).as_str()), (Some(141), ""), "{arguments:?}");
    }
    let output = bench(&["summary", "/no/such/file.json"]).stderr(unread()).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
}

#[test]
fn a_full_disk_behind_stdout_is_named() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = bench(&["configurations"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("could be written: no storage space"), "{}", text(&output));
}
