//! Try blocks: an access to a page that cannot be had ends the block instead of the process, on LWTs and threads, and memory errors go the same way.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::swap_file::{NUM_PAGES, SwappedOut};
use common::{Backend, DEFAULT_MODE, MODES, MONITOR, Mode, PAGE, POLL, Watchdog, builder, kernel_is_able, skip, stat};
use lightswap::{Cause, Contract, ErrorKind, SwapFailure, try_catch};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Where page faults are handled in the faulting thread.
const THROWING: [Mode; 2] = [DEFAULT_MODE, POLL];

fn watchdog() -> Watchdog {
    Watchdog::new("a test of try_catch.rs", Duration::from_secs(40))
}

/// A word of the page, or why there is none.
fn word(pages: Pages, page: usize) -> Result<u64, SwapFailure> {
    // SAFETY: one access, nothing to clean up.
    unsafe { try_catch(|| pages.word(page, 5)) }
}

fn write(pages: Pages, page: usize) -> Result<(), SwapFailure> {
    // SAFETY: as above.
    unsafe { try_catch(|| pages.set_word(page, 5, 1)) }
}

#[test]
fn an_access_that_cannot_be_ends_its_block_only() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in THROWING {
        let setup = SwappedOut::new(mode);
        let pages = setup.pages;
        [7, 57].iter().for_each(|page| setup.file.flip(*page));
        let try_both = move || {
            for page in [7, 57] {
                for failure in [word(pages, page).unwrap_err(), write(pages, page).unwrap_err()] {
                    assert_eq!((failure.cause(), failure.address()), (Cause::WrongHash, pages.address(page) as usize + 40));
                }
                assert!(word(pages, page + 1).is_ok());
            }
        };
        // On a thread, on a worker's own stack, and on LWTs of which each must come back to its own block.
        try_both();
        let worker = setup.swap.enter_worker().unwrap();
        try_both();
        for _ in 0..8 {
            worker.start(move || (0..5).for_each(|_| try_both())).unwrap();
        }
        worker.start(move || (0..NUM_PAGES).filter(|page| page % 50 != 7).for_each(|page| pages.check(page, 1))).unwrap();
        worker.run();
        [7, 57].iter().for_each(|page| setup.file.flip(*page));
        [7, 57].iter().for_each(|page| pages.check(*page, 1));
        assert_eq!(stat(&setup.swap, "swap_in_errors"), stat(&setup.swap, "swap_in_errors_hash"));
    }
}

#[test]
fn the_innermost_block_catches() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let setup = SwappedOut::new(DEFAULT_MODE);
    let pages = setup.pages;
    setup.file.flip(7);
    let nest = move || {
        let steps = Cell::new(0);
        // SAFETY: accesses, and counting without anything to clean up.
        let outer = unsafe {
            try_catch(|| {
                steps.set(steps.get() + 1);
                assert!(try_catch(|| pages.word(7, 0)).is_err());
                steps.set(steps.get() + 10);
                // LWTs switch here, each with blocks of its own open.
                lightswap::lwt::yield_now();
                assert!(try_catch(|| pages.word(8, 0)).is_ok());
                steps.set(steps.get() + 100);
                pages.word(7, 0);
                steps.set(steps.get() + 1000);
            })
        };
        assert_eq!(outer.unwrap_err().cause(), Cause::WrongHash);
        assert_eq!(steps.get(), 111);
    };
    nest();
    let worker = setup.swap.enter_worker().unwrap();
    (0..20).for_each(|_| worker.start(nest).unwrap());
    worker.run();
}

#[test]
fn explicit_requests_return_their_errors_in_a_block_too() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let setup = SwappedOut::new(mode);
        setup.file.flip(7);
        let address = setup.pages.address(7);
        // SAFETY: nothing is thrown.
        let error = unsafe { try_catch(|| lightswap::touch(address, 1)) }.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SwapIn);
    }
}

/// Ends the process, but says all there is to say.
fn die_of_damage(test: &str, mode: Mode, on_lwt: bool) {
    let ended = in_child(test, || {
        if !kernel_is_able() {
            std::process::abort();
        }
        let setup = SwappedOut::new(mode);
        setup.file.flip(7);
        eprintln!("page {:p} of {}", setup.pages.address(7), setup.file.url());
        let pages = setup.pages;
        if on_lwt {
            let worker = setup.swap.enter_worker().unwrap();
            // A block of another LWT is none.
            // SAFETY: as in `word`.
            let open = move || unsafe { try_catch(lightswap::lwt::yield_now) }.unwrap();
            worker.start(open).unwrap();
            worker.start(move || assert_ne!(pages.word(7, 0), 0, "a damaged page has no content")).unwrap();
            worker.run();
        }
        pages.word(7, 0);
    });
    let Some(ended) = ended else { return };
    ended.expect_signal(libc::SIGABRT);
    if kernel_is_able() {
        let facts = ended.stderr.lines().find_map(|line| line.strip_prefix("page ")).unwrap().to_owned();
        let (address, url) = facts.split_once(" of ").unwrap();
        let message = ended.stderr.lines().find(|line| line.starts_with("lightswap: fatal: ")).unwrap_or_else(|| panic!("{ended:?}"));
        assert!([address, url, "offset 0x7000", "wrong hash"].iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn without_a_block_the_process_ends_with_a_message() {
    die_of_damage("without_a_block_the_process_ends_with_a_message", DEFAULT_MODE, false);
}

#[test]
fn without_a_block_of_its_own_an_lwt_ends_the_process() {
    die_of_damage("without_a_block_of_its_own_an_lwt_ends_the_process", DEFAULT_MODE, true);
}

#[test]
fn with_a_monitor_the_process_ends_in_any_case() {
    die_of_damage("with_a_monitor_the_process_ends_in_any_case", MONITOR, false);
}

/// What the kernel does for a hardware memory error: it raises SIGBUS in the thread with this code.
fn raise_memory_error(code: i32, address: *const u8) {
    let mut info = [0u64; 16];
    (info[0], info[1], info[2], info[3]) = (libc::SIGBUS as u64, code as u64, address as u64, 12);
    // SAFETY: a siginfo of 128 bytes; a process may send itself any.
    let result = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), libc::gettid(), libc::SIGBUS, info.as_ptr()) };
    assert_eq!(result, 0);
}

#[test]
fn memory_errors_are_thrown() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let setup = SwappedOut::new(mode);
        let pages = setup.pages;
        let lose = move |page: usize| {
            pages.touch(page, 1);
            // SAFETY: the error takes the place of an access.
            let failure = unsafe { try_catch(|| raise_memory_error(libc::BUS_MCEERR_AR, pages.address(page))) }.unwrap_err();
            assert_eq!((failure.cause(), failure.errno(), failure.address()), (Cause::Poisoned, 0, pages.address(page) as usize));
            assert!(failure.to_string().contains("hardware memory error"), "{failure}");
            // The backend's copy may be older than what was lost.
            let error = lightswap::touch(pages.address(page), 1).unwrap_err();
            assert_eq!(error.failure().unwrap().cause(), Cause::Poisoned, "{error}");
        };
        lose(7);
        let worker = setup.swap.enter_worker().unwrap();
        worker.start(move || lose(8)).unwrap();
        worker.run();
        assert_eq!((stat(&setup.swap, "swap_in_errors_poison"), stat(&setup.swap, "swap_in_errors")), (2, 2));
        // One that was announced ahead of any access changes nothing yet.
        pages.check(9, 1);
        raise_memory_error(libc::BUS_MCEERR_AO, pages.address(9));
        pages.check(9, 1);
        assert_eq!((stat(&setup.swap, "memory_errors_announced"), stat(&setup.swap, "swap_in_errors")), (1, 2));
        [7, 8].iter().for_each(|page| pages.discard(*page, 1));
        assert!([7, 8].iter().all(|page| pages.is_zero(*page)));
        [7, 8].iter().for_each(|page| pages.fill(*page, 1));
        (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
    }
}

/// Poisons a page; `false` where the kernel cannot.
fn poison(pages: Pages, page: usize) -> bool {
    pages.touch(page, 1);
    match lightswap::poison(pages.address(page)) {
        Ok(()) => true,
        Err(error) => skip(&format!("the kernel cannot poison pages: {error}")),
    }
}

#[test]
fn poisoned_memory_is_an_error_for_everybody() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in THROWING {
        let setup = SwappedOut::new(mode);
        let pages = setup.pages;
        let ask: [fn(Pages, usize) -> Option<Cause>; 5] = [
            |pages, page| word(pages, page).err().map(|failure| failure.cause()),
            |pages, page| write(pages, page).err().map(|failure| failure.cause()),
            // SAFETY: inside the region and the array.
            |pages, page| cause(unsafe { lightswap::copy([0; 100].as_mut_ptr(), pages.address(page), 100) }),
            // SAFETY: as above.
            |pages, page| cause(unsafe { lightswap::copy(pages.address(page), [0; 100].as_ptr(), 100) }),
            // SAFETY: as above.
            |pages, page| cause(unsafe { lightswap::compare([0; 100].as_ptr(), pages.address(page), 100) }.map(drop)),
        ];
        for (number, ask) in ask.iter().enumerate() {
            let page = 10 + number;
            if !poison(pages, page) {
                return;
            }
            assert_eq!(ask(pages, page), Some(Cause::Poisoned), "{number}");
            // And from then on for all.
            ask_all(&ask_again(), pages, page);
            assert_eq!(stat(&setup.swap, "pinned_pages"), 0);
        }
        assert_eq!(stat(&setup.swap, "swap_in_errors_poison"), ask.len() as u64);
        pages.discard(10, ask.len());
        (0..NUM_PAGES).filter(|page| (10..10 + ask.len()).contains(page)).for_each(|page| assert!(pages.is_zero(page)));
        (0..NUM_PAGES).filter(|page| !(10..10 + ask.len()).contains(page)).for_each(|page| pages.check(page, 1));
    }
}

fn cause(result: lightswap::Result<()>) -> Option<Cause> {
    result.err().and_then(|error| error.failure().map(|failure| failure.cause()))
}

/// Ways to find out that a page is lost.
fn ask_again() -> [fn(Pages, usize) -> Option<Cause>; 3] {
    [
        |pages, page| word(pages, page).err().map(|failure| failure.cause()),
        |pages, page| cause(lightswap::touch(pages.address(page), 1)),
        |pages, page| cause(lightswap::pin(pages.address(page), 1)),
    ]
}

fn ask_all(all: &[fn(Pages, usize) -> Option<Cause>], pages: Pages, page: usize) {
    all.iter().for_each(|ask| assert_eq!(ask(pages, page), Some(Cause::Poisoned)));
}

/// Evictors read the pages that they take: they must live with what they find, and the block of whoever evicts for itself must not see it.
#[test]
fn evictors_live_with_poisoned_memory() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (mode, backend) in MODES.into_iter().flat_map(|mode| [Backend::Memory, Backend::File].map(|backend| (mode, backend))) {
        let swap = mode.set(builder(40, backend.url(NUM_PAGES))).open().unwrap();
        let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..5).for_each(|page| pages.fill(page, 1));
        if !(0..3).all(|page| poison(pages, page)) {
            return;
        }
        let fill = move || {
            // SAFETY: nothing is thrown.
            let result = unsafe { try_catch(|| (5..NUM_PAGES).for_each(|page| pages.fill(page, 1))) };
            assert_eq!(result, Ok(()));
        };
        fill();
        let worker = swap.enter_worker().unwrap();
        let is_done = Rc::new(Cell::new(false));
        let done = is_done.clone();
        let work = move || {
            fill();
            (3..NUM_PAGES).for_each(|page| pages.check(page, 1));
            (0..3).for_each(|page| ask_all(&ask_again()[1..], pages, page));
            done.set(true);
        };
        worker.start(work).unwrap();
        worker.run();
        assert!(is_done.get());
        assert_eq!((stat(&swap, "swap_in_errors_poison"), stat(&swap, "swap_in_errors"), stat(&swap, "swap_out_errors")), (3, 3, 0));
        pages.discard(0, 3);
        assert!((0..3).all(|page| pages.is_zero(page)));
        (3..NUM_PAGES).for_each(|page| pages.check(page, 1));
    }
}
