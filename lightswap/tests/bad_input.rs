//! What cannot work is refused at open, with one clear sentence and nothing left behind.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::{Backend, PAGE, builder, is_root, kernel_is_able, new_path, skip, stat};
use lightswap::{Contract, ErrorKind, Lightswap, Notifier, Waiting};
use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Opening must fail so; the message must be one sentence that contains `part`.
fn refused(result: lightswap::Result<Lightswap>, kind: ErrorKind, part: &str) {
    let error = result.expect_err("this must be refused");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(part), "\"{text}\" should contain \"{part}\"");
    assert!(!text.contains('\n') && text.len() > 20 && text.len() < 400, "not one sentence: \"{text}\"");
}

fn open(url: impl Into<String>) -> lightswap::Result<Lightswap> {
    builder(64, url).open()
}

fn file_url(path: &Path, options: &str) -> String {
    format!("file:{}{options}", path.display())
}

#[test]
fn local_memory() {
    if !kernel_is_able() {
        return;
    }
    let with = |num_bytes: u64| Lightswap::builder().local_memory(num_bytes).backend("memory:?size=1MiB").open();
    for (num_bytes, part) in
        [(0, "is 0"), (1 << 50, "larger than this machine"), ((1 << 20) + 1, "not a multiple"), (17 * PAGE as u64, "too small"), (4096, "too small")]
    {
        refused(with(num_bytes), ErrorKind::InvalidArgument, part);
    }
    refused(Lightswap::builder().backend("memory:?size=1MiB").open(), ErrorKind::InvalidArgument, "is 0");
    refused(builder(18, "memory:?size=1MiB").max_workers(2).open(), ErrorKind::InvalidArgument, "at least 76 KiB");
    refused(builder(64, "memory:?size=1MiB").max_workers(0).open(), ErrorKind::InvalidArgument, "workers");
    assert!(with(18 * PAGE as u64).is_ok(), "the least that is named must do");
}

#[test]
fn modes() {
    if !kernel_is_able() {
        return;
    }
    let both = builder(64, "memory:?size=1MiB").notifier(Notifier::Monitor).waiting(Waiting::Poll);
    refused(both.clone().open(), ErrorKind::InvalidArgument, "\"monitor\" cannot be combined with waiting by \"poll\"");
    assert!(both.clone().waiting(Waiting::Suspend).open().is_ok() && both.notifier(Notifier::Sigbus).open().is_ok());
}

#[test]
fn regions() {
    if !kernel_is_able() {
        return;
    }
    let swap = open("memory:?size=1MiB").unwrap();
    let kind = |num_bytes| swap.create_region(num_bytes, Contract::Transparent).unwrap_err().kind();
    assert_eq!([kind(0), kind(usize::MAX), kind((1 << 20) + 1)], [ErrorKind::InvalidArgument, ErrorKind::InvalidArgument, ErrorKind::NoSpace]);
    // Both fit into the address space, but not together.
    let (large, num_bytes) = (open("memory:?size=60TiB").unwrap(), 60 << 40);
    let error = large.create_region(num_bytes, Contract::Transparent).unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == ErrorKind::NoMemory && text.starts_with("a region of 60 TiB: cannot map") && text.ends_with("make it smaller"), "{text}");
    let region = swap.create_region(100, Contract::Transparent).unwrap();
    assert_eq!(region.len(), PAGE, "sizes are rounded up");
    let inside = region.as_ptr();
    for (address, len) in
        [(inside, PAGE + 1), (inside.wrapping_sub(1), 1), (inside.wrapping_add(PAGE), 1), (inside, usize::MAX), (std::ptr::null_mut(), 0)]
    {
        for call in [lightswap::touch, lightswap::pin, lightswap::unpin, lightswap::prefetch, lightswap::advise_cold, lightswap::reserve] {
            assert_eq!(call(address, len).unwrap_err().kind(), ErrorKind::NotInRegion, "{address:?} {len}");
        }
        assert!(!lightswap::is_resident(address, len));
    }
    let regions: Vec<_> = (1..64).map(|_| swap.create_region(PAGE, Contract::Cooperative).unwrap()).collect();
    assert_eq!(kind(PAGE), ErrorKind::Busy, "more regions than there can be");
    drop(regions);
    assert!(swap.create_region(PAGE, Contract::Cooperative).is_ok());
}

#[test]
fn urls() {
    if !kernel_is_able() {
        return;
    }
    for (url, part) in [
        ("", "no scheme"),
        ("memory", "no scheme"),
        ("/tmp/swap", "no scheme"),
        ("tape:/dev/st0?size=1GiB", "unknown backend"),
        (":?size=1GiB", "unknown backend"),
        ("memory:", "a size is needed"),
        ("memory:?size", "no value"),
        ("memory:?size=", "not a size"),
        ("memory:?size=many", "not a size"),
        ("memory:?size=-1", "not a size"),
        ("memory:?size=1MiB&size=2MiB", "twice"),
        ("memory:?size=1MiB&colour=red", "unknown option"),
        ("memory:?size=1MiB&compres=lz4", "memory takes size, compress, limit"),
        ("memory:?size=1MiB&limit=1MiB", "add compress=lz4"),
        ("memory:/here?size=1MiB", "no path"),
        ("memory:?size=99999999999999TiB", "not a size"),
        ("file:", "a path is needed"),
        ("file:?size=1MiB", "a path is needed"),
        ("file:/tmp/x?size=1MiB&reserve=never", "start or grow"),
        ("file:/tmp/x?size=1MiB&=", "unknown option"),
        ("file:/tmp/\0x?size=1MiB", "NUL"),
        ("memory:?size=1MiB\n", "1MiB\\n\": it contains a control character"),
        ("mirror(memory:?size=1MiB,nbd://a\r/)", "control character"),
    ] {
        refused(open(url), ErrorKind::BackendUrl, part);
    }
    refused(open("memory:?size=0"), ErrorKind::Backend, "holds no page");
    refused(open("memory:?size=4095"), ErrorKind::Backend, "holds no page");
    for url in ["memory:?size=200TiB", "memory:?size=200TiB&compress=lz4&limit=1MiB"] {
        refused(open(url), ErrorKind::NoMemory, &format!("backend \"{url}\": cannot map "));
        refused(open(url), ErrorKind::NoMemory, "give it a smaller size");
    }
}

#[test]
fn files() {
    if !kernel_is_able() {
        return;
    }
    let directory = new_path("directory");
    std::fs::create_dir(&directory).unwrap();
    refused(open(file_url(&directory, "?size=1MiB")), ErrorKind::Backend, "a directory");
    refused(open(file_url(&directory.join("missing/swap"), "?size=1MiB")), ErrorKind::Backend, "No such file");
    let path = directory.join("swap");
    refused(open(file_url(&path, "")), ErrorKind::Backend, "add ?size");
    assert!(!path.exists());
    std::fs::write(&path, vec![1; 10 * PAGE]).unwrap();
    refused(open(file_url(&path, "?size=1MiB")), ErrorKind::Backend, "less than size=");
    assert_eq!(std::fs::read(&path).unwrap(), vec![1; 10 * PAGE], "a refused file keeps its content");
    let first = open(file_url(&path, "")).unwrap();
    refused(open(file_url(&path, "")), ErrorKind::Backend, "in use");
    drop(first);
    open(file_url(&path, "?size=8KiB")).unwrap();
    std::fs::write(&path, "").unwrap();
    refused(open(file_url(&path, "")), ErrorKind::Backend, "holds no page");
    refused(open("file:/dev/null"), ErrorKind::Backend, "file:/dev/null");
    std::fs::remove_dir_all(&directory).unwrap();
}

/// As nobody, since root may write anything.
#[test]
fn a_read_only_file() {
    let ended = in_child("a_read_only_file", || {
        let path = std::env::temp_dir().join(format!("lightswap-read-only-{}", std::process::id()));
        std::fs::write(&path, vec![0; 10 * PAGE]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        if is_root() {
            // SAFETY: plain system calls.
            assert_eq!(unsafe { [libc::setgid(65534), libc::setuid(65534)] }, [0, 0]);
        }
        if kernel_is_able() {
            refused(open(file_url(&path, "")), ErrorKind::Backend, "Permission denied");
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
        std::fs::read_dir(std::env::temp_dir()).unwrap().filter_map(Result::ok).for_each(|entry| {
            if entry.file_name().to_string_lossy().starts_with("lightswap-read-only-") {
                let _ = std::fs::remove_file(entry.path());
            }
        });
    }
}

#[test]
fn swap_files_are_private_and_leave_nothing_behind() {
    if !kernel_is_able() {
        return;
    }
    let path = new_path("private");
    let swap = open(file_url(&path, "?size=1MiB")).unwrap();
    assert!(!path.exists(), "a new file has no name");
    let is_ours = |target: &Path| target.to_string_lossy().starts_with(&*path.to_string_lossy());
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let link = links.into_iter().find(|link| std::fs::read_link(link).is_ok_and(|target| is_ours(&target))).expect("the swap file is open");
    assert_eq!(std::fs::metadata(link).unwrap().mode() & 0o777, 0o600);
    drop(swap);
    // One that others could read is closed to them, and stays.
    std::fs::write(&path, vec![0; 20 * PAGE]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    drop(open(file_url(&path, "")).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    std::fs::remove_file(&path).unwrap();
}

/// A file system of `num_bytes` that only this process sees, in memory; `None` with a reason where that is not allowed.
fn small_file_system(num_bytes: usize) -> Option<std::path::PathBuf> {
    let path = new_path("small");
    std::fs::create_dir(&path).unwrap();
    let (target, options) = (CString::new(path.to_str().unwrap()).unwrap(), CString::new(format!("size={num_bytes}")).unwrap());
    // SAFETY: all strings are terminated; mounts of the new name space end with this process.
    let result = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
            && libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) == 0
    };
    if !result {
        skip(&format!("cannot mount a small tmpfs: {}", std::io::Error::last_os_error()));
        return None;
    }
    Some(path)
}

/// `false` when the kernel's tmpfs is too old for O_DIRECT (before 6.6).
fn takes_direct_io(directory: &Path) -> bool {
    match open(file_url(&directory.join("probe"), "?size=4KiB")) {
        Err(error) if error.to_string().contains("O_DIRECT") => skip(&error.to_string()),
        _ => true,
    }
}

#[test]
fn a_full_disk_at_start() {
    let ended = in_child("a_full_disk_at_start", || {
        let Some(directory) = small_file_system(8 << 20).filter(|directory| kernel_is_able() && takes_direct_io(directory)) else { return };
        let path = directory.join("swap");
        refused(open(file_url(&path, "?size=64MiB")), ErrorKind::Backend, "No space left");
        assert!(!path.exists(), "nothing is left behind");
        std::fs::write(directory.join("other"), vec![1; 7 << 20]).unwrap();
        refused(open(file_url(&path, "?size=4MiB")), ErrorKind::Backend, "No space left");
        assert!(open(file_url(&path, "?size=512KiB")).is_ok(), "what was reserved in vain is free again");
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn a_disk_that_fills_up_as_memory_is_handed_out() {
    let ended = in_child("a_disk_that_fills_up_as_memory_is_handed_out", || {
        let Some(directory) = small_file_system(40 << 20).filter(|directory| kernel_is_able() && takes_direct_io(directory)) else { return };
        let swap = open(file_url(&directory.join("swap"), "?size=64MiB&reserve=grow")).unwrap();
        let region = swap.create_region(64 << 20, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        let reserve = |page: usize| lightswap::reserve(pages.address(page), PAGE);
        // Hands pages out as a server does, until there are no more.
        let mut num_pages = 0;
        let error = loop {
            match reserve(num_pages) {
                Ok(()) => pages.set_word(num_pages, 0, num_pages as u64 + 1),
                Err(error) => break error,
            }
            num_pages += 1;
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(num_pages, (32 << 20) / PAGE, "two steps of growth fit");
        let check = || (0..num_pages).for_each(|page| assert_eq!(pages.word(page, 0), page as u64 + 1, "page {page}"));
        check();
        // What was reserved stays writable on the full disk: nothing fails, nothing is lost.
        (0..num_pages).for_each(|page| pages.set_word(page, 1, 5));
        check();
        assert_eq!((stat(&swap, "swap_out_errors"), stat(&swap, "swap_in_errors")), (0, 0));
        assert!(stat(&swap, "dirty_evictions") >= num_pages as u64);
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// From here on the calling thread, and those it starts, get `errno` for one system call.
fn forbid(system_call: libc::c_long, errno: i32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD, 0, 0, std::mem::offset_of!(libc::seccomp_data, nr) as u32),
        step(JUMP_IF_EQUAL, 0, 1, system_call as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a valid program for the call; only this process is filtered.
    let result = unsafe {
        [libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)]
    };
    assert_eq!(result, [0, 0], "{}", std::io::Error::last_os_error());
}

fn without(test: &str, system_call: libc::c_long, errno: i32, kind: ErrorKind, part: &str) {
    let ended = in_child(test, || {
        if !kernel_is_able() {
            return;
        }
        let path = new_path("never-made");
        forbid(system_call, errno);
        refused(open(file_url(&path, "?size=1MiB")), kind, part);
        refused(open(Backend::Memory.url(10)), kind, part);
        assert!(!path.exists());
        let tasks = || std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        common::wait_until("no pager thread is left", || !tasks().any(|name| name.trim() == "lsw-pager"));
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn a_kernel_without_userfaultfd() {
    without("a_kernel_without_userfaultfd", libc::SYS_userfaultfd, libc::ENOSYS, ErrorKind::NoUserfaultfd, "userfaultfd is not available");
}

#[test]
fn a_container_that_forbids_userfaultfd() {
    without("a_container_that_forbids_userfaultfd", libc::SYS_userfaultfd, libc::EPERM, ErrorKind::NoUserfaultfd, "not permitted");
}

#[test]
fn a_container_that_forbids_io_uring() {
    without("a_container_that_forbids_io_uring", libc::SYS_io_uring_setup, libc::EPERM, ErrorKind::NoIoUring, "io_uring is not available");
}

/// Kernels before 6.13 refuse the vectored removal; older ones have no such call.
#[test]
fn a_kernel_without_vectored_removal_is_good_enough() {
    let ended = in_child("a_kernel_without_vectored_removal_is_good_enough", || {
        if !kernel_is_able() {
            return;
        }
        forbid(libc::SYS_process_madvise, libc::ENOSYS);
        let swap = open(Backend::File.url(300)).unwrap();
        assert_eq!(stat(&swap, "vectored_removal"), 0);
        let region = swap.create_region(300 * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..300).for_each(|page| pages.fill(page, 1));
        (0..300).for_each(|page| pages.check(page, 1));
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}
