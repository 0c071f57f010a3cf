//! Files that the user names for results and reports: checked before anything is measured, and then replaced as a whole.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where results go when nothing else is said; made when it is missing.
const DEFAULT_DIRECTORY: &str = "results";
const MAX_SYMLINKS: usize = 40;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// Opened anew they would be written from their beginning.
    Stdout,
    Stderr,
    /// Something that is written to, not replaced: a device or a pipe.
    Special,
    /// A file that is there or will be, symbolic links followed.
    File(PathBuf),
}

fn resolve(path: &Path) -> Result<Target> {
    match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => return Ok(Target::Stdout),
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => return Ok(Target::Stderr),
        Some("") => bail!("a file needs a name"),
        _ => {}
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => bail!("{} is a directory; name a file in it", path.display()),
        Ok(metadata) if metadata.is_file() => {
            let target = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
            Ok(Target::File(target))
        }
        Ok(_) => Ok(Target::Special),
        Err(error) if error.kind() == ErrorKind::NotFound => follow(path).map(Target::File),
        Err(error) => Err(error).with_context(|| format!("cannot find {}", path.display())),
    }
}

/// Where a file that does not exist will be: a link may lead to it.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_SYMLINKS {
        match fs::read_link(&path) {
            Ok(target) => path = directory_of(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    bail!("{} is a symbolic link to itself", path.display())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Says what is wrong with a path before hours are spent on what is to go there.
pub fn check(path: &Path) -> Result<()> {
    match resolve(path)? {
        Target::Stdout | Target::Stderr => Ok(()),
        Target::Special => check_special(path),
        Target::File(target) => {
            let directory = directory_of(&target);
            if directory == Path::new(DEFAULT_DIRECTORY) && !directory.exists() {
                fs::create_dir(directory).with_context(|| format!("cannot create the directory {}", directory.display()))?;
            }
            if !directory.is_dir() {
                bail!("cannot write {}: there is no directory {}; create it first", path.display(), directory.display());
            }
            let trial = directory.join(format!(".lightswap-bench-trial-{}", std::process::id()));
            fs::write(&trial, "").and_then(|()| fs::remove_file(&trial)).with_context(|| format!("cannot write {}", path.display()))
        }
    }
}

/// Not opened: to open a pipe waits for its reader, and to close it again ends that one.
fn check_special(path: &Path) -> Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        bail!("{} is a socket; name a file", path.display());
    }
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).context("a path has no zero byte")?;
    // SAFETY: the name is a terminated string that lives during the call.
    if unsafe { libc::faccessat(libc::AT_FDCWD, name.as_ptr(), libc::W_OK, libc::AT_EACCESS) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot write {}", path.display()));
    }
    Ok(())
}

/// Whether it is a file that is replaced, or can be read again: not so a device, a pipe, stdout.
pub fn is_replaced(path: &Path) -> Result<bool> {
    Ok(matches!(resolve(path)?, Target::File(_)))
}

/// Whether writing one would replace the other, by whatever names.
pub fn is_same(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| match resolve(path).ok()? {
        Target::File(target) => {
            let directory = directory_of(&target).canonicalize().ok()?;
            Some(directory.join(target.file_name()?))
        }
        _ => None,
    };
    place(a).is_some_and(|a| Some(a) == place(b))
}

/// Replaces a file as a whole, behind symbolic links, too; writes into anything else.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let written = match resolve(path)? {
        Target::Stdout => write_all(&mut io::stdout().lock(), text),
        Target::Stderr => write_all(&mut io::stderr().lock(), text),
        Target::Special => OpenOptions::new().write(true).open(path).and_then(|mut file| write_all(&mut file, text)),
        Target::File(target) => {
            let unfinished = with_suffix(&target, ".unfinished");
            let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &target));
            if written.is_err() {
                let _ = fs::remove_file(&unfinished);
            }
            written
        }
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_all(stream: &mut impl Write, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).and_then(|()| stream.flush())
}

/// Puts a file out of the way, to `FILE.previous` beside it, and tells the new name.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    let target = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    let kept = with_suffix(&target, ".previous");
    fs::rename(&target, &kept).with_context(|| format!("cannot rename {}", path.display()))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("lightswap-bench-test-{}-out-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).unwrap();
            Self(directory)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_stay_and_their_targets_are_replaced() {
        let scratch = Scratch::new("links");
        let (file, link, ahead) = (scratch.0.join("file"), scratch.0.join("link"), scratch.0.join("ahead"));
        write(&file, "one").unwrap();
        symlink("file", &link).unwrap();
        symlink("later", &ahead).unwrap();
        for path in [&link, &ahead] {
            check(path).unwrap();
            write(path, "two").unwrap();
            assert!(fs::symlink_metadata(path).unwrap().is_symlink());
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::read_to_string(scratch.0.join("later")).unwrap(), "two");
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 4);
        assert!(is_same(&file, &link) && is_same(&scratch.0.join("./new"), &scratch.0.join("new")));
        assert!(!is_same(&file, &ahead));
        let kept = set_aside(&link).unwrap();
        assert!(kept.ends_with("file.previous") && kept.exists() && fs::symlink_metadata(&link).is_ok());
        symlink("round", scratch.0.join("round")).unwrap();
        assert!(check(&scratch.0.join("round")).is_err());
    }

    #[test]
    fn devices_and_pipes_are_written_into() {
        let scratch = Scratch::new("special");
        let pipe = scratch.0.join("pipe");
        let name = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a terminated string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        check(&pipe).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write(&pipe, "text").unwrap();
        assert_eq!(reader.join().unwrap(), "text");
        for device in ["/dev/null", "/dev/full"] {
            let device = Path::new(device);
            check(device).unwrap();
            assert!(!is_replaced(device).unwrap() && !is_same(device, device));
            assert_eq!(write(device, "text").is_ok(), device.ends_with("null"));
            assert!(fs::metadata(device).unwrap().file_type().is_char_device());
        }
    }

    #[test]
    fn what_cannot_be_written_is_named_before() {
        let scratch = Scratch::new("check");
        let text = |path: &Path| format!("{:#}", check(path).unwrap_err());
        let missing = scratch.0.join("no/such/file.json");
        assert!(text(&missing).contains(&format!("there is no directory {}", missing.parent().unwrap().display())));
        assert!(!scratch.0.join("no").exists());
        assert!(text(&scratch.0).contains("is a directory"));
        assert!(text(Path::new("")).contains("needs a name"));
        let file = scratch.0.join("file");
        write(&file, "").unwrap();
        assert!(text(&file.join("below")).contains("below"));
        check(&file).unwrap();
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    }
}
