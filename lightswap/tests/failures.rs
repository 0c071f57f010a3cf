//! Pages that cannot be read back: who waits learns why, nobody else is disturbed, and all is well again when the backend is.

mod common;

use common::pages::Pages;
use common::swap_file::{LOCAL_PAGES, NUM_PAGES, SwappedOut};
use common::{DEFAULT_MODE, MODES, Mode, PAGE, Watchdog, builder, kernel_is_able, skip, stat, wait_until};
use lightswap::{Cause, Contract, Error, ErrorKind, Lightswap, Region};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

fn expect(setup: &SwappedOut, error: &Error, page: usize, cause: Cause) {
    assert_eq!(error.kind(), ErrorKind::SwapIn, "{error}");
    let failure = error.failure().expect("a failure to read has details");
    assert_eq!((failure.cause(), failure.errno()), (cause, 0));
    assert_eq!(
        (failure.address(), failure.region()),
        (setup.pages.address(page) as usize, (setup.pages.address(0) as usize, setup.regions[0].len()))
    );
    assert_eq!(failure.backend(), setup.file.url());
    let message = error.to_string();
    let (address, offset) = (format!("{:#x}", failure.address()), format!("offset {:#x}", page * PAGE));
    assert!([&address, &offset, &setup.file.url()].iter().all(|part| message.contains(*part)), "{message}");
}

fn watchdog() -> Watchdog {
    Watchdog::new("a test of failures.rs", Duration::from_secs(40))
}

fn touch(pages: Pages, page: usize) -> lightswap::Result<()> {
    lightswap::touch(pages.address(page), 1)
}

/// Everything by which a program asks for a page; their errors.
fn ask_in_every_way(pages: Pages, page: usize) -> Vec<Error> {
    let mut bytes = [0u8; 100];
    let address = pages.address(page);
    // SAFETY: inside the region and `bytes`.
    let copies = unsafe {
        [
            lightswap::copy(bytes.as_mut_ptr(), address, 100),
            lightswap::copy(address, bytes.as_ptr(), 100),
            lightswap::compare(address, bytes.as_ptr(), 100).map(drop),
            lightswap::compare(bytes.as_ptr(), address, 100).map(drop),
        ]
    };
    let asked = [touch(pages, page), lightswap::pin(address, 1)];
    asked.into_iter().chain(copies).map(Result::unwrap_err).collect()
}

#[test]
fn a_failure_says_everything_and_is_over_when_its_cause_is() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let setup = SwappedOut::new(mode);
        let (pages, file) = (setup.pages, &setup.file);
        file.flip(7);
        let errors = ask_in_every_way(pages, 7);
        errors.iter().for_each(|error| expect(&setup, error, 7, Cause::WrongHash));
        // Each time again, and each time three attempts.
        assert_eq!((setup.stat("swap_in_errors_hash"), setup.stat("swap_in_retries")), (errors.len() as u64, 2 * errors.len() as u64), "{mode:?}");
        file.flip(7);
        pages.check(7, 1);
        let rest = file.cut(50);
        let worker = setup.swap.enter_worker().unwrap();
        let errors = Rc::new(RefCell::new(Vec::new()));
        let on_lwt = errors.clone();
        worker.start(move || on_lwt.replace(ask_in_every_way(pages, 50)).clear()).unwrap();
        worker.run();
        drop(worker);
        errors.borrow().iter().for_each(|error| expect(&setup, error, 50, Cause::ShortRead));
        assert_eq!(setup.stat("swap_in_errors_short"), errors.borrow().len() as u64);
        assert_eq!(setup.stat("swap_in_errors"), setup.stat("swap_in_errors_short") + setup.stat("swap_in_errors_hash"));
        file.mend(&rest);
        (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
        assert_eq!(setup.stat("pinned_pages"), 0);
    }
}

/// They do not try again one after the other.
#[test]
fn all_who_wait_for_a_read_get_its_error() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let setup = SwappedOut::new(DEFAULT_MODE);
    let pages = setup.pages;
    setup.file.flip(7);
    let worker = setup.swap.enter_worker().unwrap();
    let errors = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..20 {
        let errors = errors.clone();
        let ask = move || {
            let error = touch(pages, 7).unwrap_err();
            errors.borrow_mut().push(error);
        };
        worker.start(ask).unwrap();
    }
    worker.run();
    assert_eq!(errors.borrow().len(), 20);
    errors.borrow().iter().for_each(|error| expect(&setup, error, 7, Cause::WrongHash));
    assert_eq!((setup.stat("swap_in_errors"), setup.stat("swap_in_retries")), (1, 2));
}

#[test]
fn an_error_in_one_lwt_does_not_disturb_others() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let setup = SwappedOut::new(mode);
        let pages = setup.pages;
        setup.file.flip(7);
        let num_failed = Rc::new(RefCell::new(0));
        let worker = setup.swap.enter_worker().unwrap();
        for lwt in 0..10 {
            let num_failed = num_failed.clone();
            let work = move || {
                for page in (lwt..NUM_PAGES).step_by(10) {
                    // Together with pages that are all right.
                    match lightswap::touch(pages.address(page), 3.min(NUM_PAGES - page) * PAGE) {
                        Ok(()) => pages.check(page, 1),
                        Err(error) => {
                            assert!(page <= 7 && error.failure().unwrap().address() == pages.address(7) as usize, "{error}");
                            *num_failed.borrow_mut() += 1;
                        }
                    }
                }
            };
            worker.start(work).unwrap();
        }
        worker.run();
        assert_eq!(*num_failed.borrow(), 3, "pages 5, 6 and 7 were asked for together with page 7");
    }
}

#[test]
fn a_prefetch_that_fails_leaves_no_trace() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for mode in MODES {
        let setup = SwappedOut::new(mode);
        setup.file.flip(7);
        wait_until("the prefetch fails", || {
            setup.pages.prefetch(7, 1);
            setup.stat("swap_in_errors_hash") > 0
        });
        assert_eq!(setup.stat("swap_in_retries"), 0, "nobody needs the page yet");
        // Another may be on its way.
        setup.file.flip(7);
        setup.pages.check(7, 1);
    }
}

/// Who waits for a page that somebody has asked for ahead of use gets the error, as if it had been asked for in earnest: no other read for as long again.
#[test]
fn a_prefetch_that_takes_too_long_fails_for_those_who_wait() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let Some((swap, region, other)) = open_faulty("read@1+=stall:1000") else { return };
    let pages = Pages::of(&region);
    // Makes room: with little, hints are ignored.
    Pages::of(&other).discard(0, NUM_PAGES);
    let missing = (0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap();
    let worker = swap.enter_worker().unwrap();
    let num_failed = Rc::new(RefCell::new(0));
    worker.start(move || pages.prefetch(missing, 1)).unwrap();
    assert_eq!(stat(&swap, "prefetches"), 1);
    for _ in 0..5 {
        let num_failed = num_failed.clone();
        let wait = move || {
            let error = touch(pages, missing).unwrap_err();
            assert_eq!(error.failure().map(|failure| failure.cause()), Some(Cause::TimedOut), "{error}");
            *num_failed.borrow_mut() += 1;
        };
        worker.start(wait).unwrap();
    }
    worker.run();
    assert_eq!((*num_failed.borrow(), stat(&swap, "faulty_reads"), stat(&swap, "swap_in_errors")), (5, 1, 1));
}

#[test]
fn a_time_limit_of_nothing_is_refused() {
    let error = builder(LOCAL_PAGES, "memory:?size=1MiB").io_timeout(Duration::from_micros(999)).open().unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("999"), "{error}");
}

/// An instance with faults injected; `None` where there is no such backend.
fn open_faulty(schedule: &str) -> Option<(Lightswap, Region, Region)> {
    let url = format!("faulty({schedule}):memory:?size={}", 2 * NUM_PAGES * PAGE);
    match builder(LOCAL_PAGES, url).io_timeout(Duration::from_millis(200)).open() {
        Ok(swap) => {
            let regions = [0, 1].map(|_| swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap());
            let [region, other] = regions;
            (0..NUM_PAGES).for_each(|page| Pages::of(&region).fill(page, 1));
            // No page is read while they are filled for the first time.
            (0..NUM_PAGES).for_each(|page| Pages::of(&other).fill(page, 1));
            Some((swap, region, other))
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::BackendUrl, "{error}");
            skip(&error.to_string());
            None
        }
    }
}

#[test]
fn errors_that_pass_are_healed_by_trying_again() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for schedule in ["read@1=EIO;read@2=EIO", "read@1=flip;read@2=short", "read@1=short;read@2=ENODEV"] {
        let Some((swap, region, _other)) = open_faulty(schedule) else { return };
        Pages::of(&region).check(0, 1);
        assert_eq!((stat(&swap, "swap_in_retries"), stat(&swap, "swap_in_errors")), (2, 0), "{schedule}");
    }
    for (schedule, cause, errno) in
        [("read@1..3=EIO", Cause::Io, libc::EIO), ("read@1..3=ENODEV", Cause::LostBackend, libc::ENODEV), ("read@1..3=flip", Cause::WrongHash, 0)]
    {
        let Some((swap, region, _other)) = open_faulty(schedule) else { return };
        let error = touch(Pages::of(&region), 0).unwrap_err();
        assert_eq!(error.failure().map(|failure| (failure.cause(), failure.errno())), Some((cause, errno)), "{error}");
        assert_eq!((stat(&swap, "swap_in_retries"), stat(&swap, "swap_in_errors")), (2, 1), "{schedule}");
        Pages::of(&region).check(0, 1);
    }
}

#[test]
fn reads_have_a_time_limit() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let Some((swap, region, _other)) = open_faulty("read@1..2=stall:1500") else { return };
    let pages = Pages::of(&region);
    // On an ordinary thread, and on LWTs that wait for the same page or wait for a buffer.
    let error = touch(pages, 0).unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.cause()), Some(Cause::TimedOut), "{error}");
    let worker = swap.enter_worker().unwrap();
    let num_failed = Rc::new(RefCell::new(0));
    for _ in 0..10 {
        let num_failed = num_failed.clone();
        worker.start(move || *num_failed.borrow_mut() += u32::from(touch(pages, 0).is_err())).unwrap();
    }
    worker.run();
    assert_eq!(*num_failed.borrow(), 10);
    assert_eq!((stat(&swap, "swap_in_errors_timeout"), stat(&swap, "swap_in_errors"), stat(&swap, "swap_in_retries")), (2, 2, 0));
    // There may be no buffer but those of the overdue reads, for as long as these take: then the wait for one is limited.
    let work = move || {
        while let Err(error) = touch(pages, 0) {
            assert_eq!(error.failure().map(|failure| failure.cause()), Some(Cause::TimedOut), "{error}");
        }
        (0..NUM_PAGES).for_each(|page| pages.check(page, 1));
    };
    worker.start(work).unwrap();
    worker.run();
}

/// Uses a page as soon as it can be had.
fn insist(pages: Pages, page: usize, action: impl FnOnce()) {
    while let Err(error) = pages.pin(page, 1) {
        assert_eq!(error.failure().map(|failure| failure.cause()), Some(Cause::TimedOut), "{error}");
    }
    action();
    pages.unpin(page, 1);
}

#[test]
fn writes_that_take_too_long_show() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let url = format!("faulty(write@1=stall:1500):memory:?size={}", NUM_PAGES * PAGE);
    let swap = match builder(LOCAL_PAGES, url).io_timeout(Duration::from_millis(100)).open() {
        Ok(swap) => swap,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::BackendUrl, "{error}");
            skip(&error.to_string());
            return;
        }
    };
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..NUM_PAGES).for_each(|page| insist(pages, page, || pages.fill_pinned(page, 1))));
        wait_until("a write is overdue", || stat(&swap, "swap_outs_overdue") > 0);
    });
    (0..NUM_PAGES).for_each(|page| insist(pages, page, || pages.check(page, 1)));
    assert_eq!((stat(&swap, "swap_out_errors"), stat(&swap, "swap_out_failing")), (0, 0));
}

/// That others are written meanwhile does not end it.
#[test]
fn a_write_that_takes_too_long_shows_while_others_succeed() {
    if kernel_is_able() {
        let _watchdog = watchdog();
        // On a thread of its own: what the device does not end, a worker cannot.
        std::thread::spawn(write_beside_one_that_is_stuck).join().unwrap();
    }
}

fn write_beside_one_that_is_stuck() {
    // Two regions, so that one can be evicted while a batch of the other is stuck.
    let url = format!("faulty(write@1=stall:60000):memory:?size={}", 2 * NUM_PAGES * PAGE);
    let swap = builder(LOCAL_PAGES, url).io_timeout(Duration::from_millis(100)).open().unwrap();
    let regions = [0, 1].map(|_| swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap());
    let [first, second] = regions.each_ref().map(Pages::of);
    // Until a page must leave.
    for page in (0..NUM_PAGES).take_while(|_| stat(&swap, "injected_delays") == 0) {
        insist(first, page, || first.fill_pinned(page, 1));
    }
    wait_until("a write is overdue", || stat(&swap, "swap_outs_overdue") > 0);
    let num_written = || stat(&swap, "dirty_evictions");
    let before = num_written();
    (0..NUM_PAGES).for_each(|page| insist(second, page, || second.fill_pinned(page, 2)));
    assert!(num_written() >= before + 4);
    assert_eq!((stat(&swap, "swap_outs_overdue"), stat(&swap, "swap_out_failing"), stat(&swap, "swap_out_errors")), (1, 1, 0));
    assert_eq!(lightswap::reserve(second.address(0), PAGE).unwrap_err().kind(), ErrorKind::NoSpace);
    (0..NUM_PAGES).for_each(|page| insist(second, page, || second.check(page, 2)));
    std::mem::forget((regions, swap));
}

/// While no write succeeds, dirty pages cannot leave: who needs another page must not wait for ever, and the rest goes on.
#[test]
fn reads_end_with_an_error_while_writes_fail_for_ever() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for schedule in ["write@100+=EIO", "write@100=dead", "write@100+=stall:60000"] {
        // On threads of their own: one that is a worker for ever can be no other.
        MODES.into_iter().for_each(|mode| std::thread::spawn(move || read_while_writes_fail(mode, schedule)).join().unwrap());
    }
}

fn read_while_writes_fail(mode: Mode, schedule: &str) {
    let url = format!("faulty({schedule}):memory:?size={}", NUM_PAGES * PAGE);
    let swap = mode.set(builder(LOCAL_PAGES, url)).io_timeout(Duration::from_millis(100)).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, Contract::Cooperative).unwrap();
    let pages = Pages::of(&region);
    // All pages in turn, more often than writes succeed; changed if they can be had.
    let use_all = move |version: &mut [u64]| {
        let mut num_errors = 0;
        for step in 1.. {
            let page = step as usize % NUM_PAGES;
            match pages.pin(page, 1) {
                Ok(()) => {
                    if version[page] == 0 {
                        assert!(pages.is_zero(page));
                    } else {
                        pages.check(page, version[page]);
                    }
                    pages.fill_pinned(page, step);
                    version[page] = step;
                    pages.unpin(page, 1);
                }
                Err(error) => {
                    assert!(error.failure().is_some(), "{error}");
                    num_errors += 1;
                }
            }
            if num_errors == 5 {
                return;
            }
        }
    };
    let mut version = vec![0; NUM_PAGES];
    use_all(&mut version);
    // Reads from a dead device fail by themselves, as long as clean pages can make room.
    assert!(stat(&swap, "swap_in_errors_timeout") > 0 || schedule.contains("dead"));
    let before = stat(&swap, "swap_in_errors");
    let num_ended = Rc::new(RefCell::new(0));
    let worker = swap.enter_worker().unwrap();
    // A page that is not there, wanted by many at once: they do not wait one after the other.
    let missing = (0..NUM_PAGES).find(|page| !pages.is_resident(*page)).unwrap();
    for _ in 0..10 {
        let num_ended = num_ended.clone();
        worker
            .start(move || {
                let _ = touch(pages, missing);
                *num_ended.borrow_mut() += 1;
            })
            .unwrap();
    }
    while worker.num_lwts() > 0 {
        worker.poll();
    }
    assert_eq!(*num_ended.borrow(), 10);
    assert!(stat(&swap, "swap_in_errors") - before <= 10);
    if schedule.contains("stall") {
        // What the device never ends can neither this process.
        std::mem::forget((worker, region, swap));
        return;
    }
    swap.stop_faults();
    worker.run();
    drop(worker);
    (0..NUM_PAGES).for_each(|page| {
        if version[page] > 0 {
            pages.check(page, version[page])
        }
    });
    assert_eq!((stat(&swap, "pinned_pages"), stat(&swap, "swap_out_failing")), (0, 0));
}

/// Bytes that begin in ordinary memory and go on in a region are pinned from there on.
#[test]
fn copies_may_run_into_a_region() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let setup = SwappedOut::new(DEFAULT_MODE);
    let base = setup.pages.address(0);
    let before = base.wrapping_sub(PAGE);
    // SAFETY: new memory where there is none yet.
    let mapped = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        libc::mmap(before.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if mapped != before.cast() {
        skip("there is other memory before the region");
        return;
    }
    setup.file.flip(0);
    let (start, mut bytes) = (base.wrapping_sub(100), [7u8; 200]);
    let ask = |bytes: &mut [u8; 200]| {
        // SAFETY: 100 bytes of the mapping and as many of the region, and an array of 200.
        unsafe {
            [
                lightswap::copy(bytes.as_mut_ptr(), start, 200),
                lightswap::copy(start, bytes.as_ptr(), 200),
                lightswap::compare(start, bytes.as_ptr(), 200).map(drop),
                lightswap::compare(bytes.as_ptr(), start, 200).map(drop),
            ]
        }
    };
    ask(&mut bytes).into_iter().for_each(|result| expect(&setup, &result.unwrap_err(), 0, Cause::WrongHash));
    assert!(bytes[..100].iter().all(|byte| *byte == 0) && bytes[100..].iter().all(|byte| *byte == 7));
    setup.file.flip(0);
    ask(&mut bytes).into_iter().for_each(Result::unwrap);
    setup.pages.check(0, 1);
    assert_eq!(setup.stat("pinned_pages"), 0);
    // SAFETY: mapped above.
    unsafe { libc::munmap(mapped, PAGE) };
}
