//! Lightswap needs no privilege: paging as the user nobody, also where no memory may be locked.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::{MODES, PAGE, builder, is_root, kernel_is_able, skip, stat};
use lightswap::Contract;

const NOBODY: u32 = 65534;

/// Becomes nobody for good, in all threads.
fn drop_privileges() {
    // SAFETY: plain system calls.
    let result = unsafe { [libc::setgroups(0, std::ptr::null()), libc::setresgid(NOBODY, NOBODY, NOBODY), libc::setresuid(NOBODY, NOBODY, NOBODY)] };
    assert_eq!(result, [0; 3], "{}", std::io::Error::last_os_error());
    // SAFETY: must fail now.
    assert_ne!(unsafe { libc::setuid(0) }, 0, "still privileged");
}

fn limit_locked_memory(num_bytes: u64) {
    let limit = libc::rlimit { rlim_cur: num_bytes, rlim_max: num_bytes };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) }, 0);
}

fn page_as_nobody(test: &str, locked_bytes: u64) {
    let ended = in_child(test, || {
        limit_locked_memory(locked_bytes);
        if is_root() {
            drop_privileges();
        }
        if !kernel_is_able() {
            return;
        }
        // A directory that anybody may write to.
        let path = std::env::temp_dir().join(format!("lightswap-unprivileged-{}", std::process::id()));
        let urls = [format!("file:{}?size=2MiB", path.display()), "memory:?size=2MiB".into()];
        for (url, mode) in urls.iter().flat_map(|url| MODES.map(|mode| (url, mode))) {
            let swap = match mode.set(builder(64, url)).open() {
                Err(error) if error.to_string().contains("O_DIRECT") => {
                    skip(&error.to_string());
                    continue;
                }
                result => result.unwrap(),
            };
            for contract in [Contract::Transparent, Contract::Cooperative] {
                let region = swap.create_region(200 * PAGE, contract).unwrap();
                let pages = Pages::of(&region);
                (0..200).for_each(|page| pages.fill(page, 4));
                let worker = swap.enter_worker().unwrap();
                (0..10).for_each(|lwt| worker.start(move || (lwt..200).step_by(10).for_each(|page| pages.check(page, 4))).unwrap());
                worker.run();
            }
            assert!(stat(&swap, "swap_ins") >= 200);
        }
        println!("paged without privilege");
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

#[test]
fn paging_as_nobody() {
    page_as_nobody("paging_as_nobody", 8 << 20);
}

/// Then I/O buffers cannot be registered with io_uring, and are used unregistered.
#[test]
fn paging_as_nobody_without_locked_memory() {
    page_as_nobody("paging_as_nobody_without_locked_memory", 0);
}
