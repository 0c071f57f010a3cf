//! Local memory is a limit: what the kernel counts as resident, sampled while workers and threads page, stays within it.

mod common;

use common::child::in_child;
use common::pages::Pages;
use common::{Backend, DEFAULT_MODE, MONITOR, PAGE, POLL, Random, builder, kernel_is_able, stat, wait_until};
use lightswap::{Contract, Lightswap, Region};
use std::sync::atomic::Ordering::Relaxed;

/// Bytes of `[start, start + len)` that are resident, as the kernel counts them.
fn resident_bytes(start: usize, len: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut sum = 0;
    let mut is_ours = false;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let parse = |text| usize::from_str_radix(text, 16).unwrap();
            is_ours = parse(from) >= start && parse(to) <= start + len;
        } else if is_ours && first == "Rss:" {
            sum += line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10;
        }
    }
    sum
}

/// A field of /proc/self/status in bytes.
fn status_bytes(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Pages at random on two workers and a thread; meanwhile `sample` is called over and over.
fn page_at_random(swap: &Lightswap, pages: Pages, num_steps: usize, mut sample: impl FnMut()) {
    let num_running = std::sync::atomic::AtomicUsize::new(3);
    let step = move |random: &mut Random| {
        let page = random.below(pages.len());
        match random.below(4) {
            0 => pages.touch(page, 1 + random.below(3).min(pages.len() - 1 - page)),
            1 => pages.prefetch(page, 1),
            _ => pages.writing(page, 1, || pages.set_word(page, 5, random.next())),
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (swap, num_running) = (swap.clone(), &num_running);
            scope.spawn(move || {
                let worker = swap.enter_worker().unwrap();
                for lwt in 0..16 {
                    let mut random = Random::new(seed << 8 | lwt);
                    worker.start(move || (0..num_steps / 16).for_each(|_| step(&mut random))).unwrap();
                }
                worker.run();
                num_running.fetch_sub(1, Relaxed);
            });
        }
        scope.spawn(|| {
            let mut random = Random::new(99);
            (0..num_steps).for_each(|_| step(&mut random));
            num_running.fetch_sub(1, Relaxed);
        });
        while num_running.load(Relaxed) > 0 {
            sample();
        }
    });
}

/// Resident bytes of the whole process in one reading, unlike the sum over mappings; the kernel's counters may be off by some pages for each CPU.
fn process_resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * PAGE
}

/// What the kernel's counters may be off, and the process need besides.
const SLACK: usize = 3 << 20;

#[test]
fn regions_never_hold_more_than_local_memory() {
    let ended = in_child("regions_never_hold_more_than_local_memory", || {
        if !kernel_is_able() {
            return;
        }
        const LOCAL_PAGES: usize = 4096;
        let modes = [DEFAULT_MODE, DEFAULT_MODE, MONITOR, POLL];
        for (mode, contract) in modes.into_iter().zip([Contract::Transparent, Contract::Cooperative].into_iter().cycle()) {
            let swap = mode.set(builder(LOCAL_PAGES as u64, Backend::File.url(4 * LOCAL_PAGES))).max_workers(2).open().unwrap();
            let limit = stat(&swap, "resident_limit_bytes") as usize;
            assert!(limit < LOCAL_PAGES * PAGE, "I/O buffers are part of local memory");
            let region = swap.create_region(4 * LOCAL_PAGES * PAGE, contract).unwrap();
            let before = process_resident_bytes();
            let mut most = 0;
            page_at_random(&swap, Pages::of(&region), 24_000, || {
                let now = process_resident_bytes();
                most = most.max(now - before);
                assert!(now <= before + limit + SLACK, "{now} bytes are resident, {before} before, the limit is {limit}");
                assert!(stat(&swap, "resident_bytes") as usize <= limit);
            });
            assert!(most > limit * 3 / 4, "only {most} of {limit} were ever used");
            // When all is quiet the kernel and Lightswap count the same pages.
            let of_kernel = || resident_bytes(region.as_ptr() as usize, region.len());
            wait_until("both count the same", || of_kernel() == region.resident_bytes());
        }
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// Whether any page of the range is in DRAM; `false` when it is not mapped any more.
fn is_any_resident(start: usize, num_pages: usize) -> bool {
    let mut pages = vec![0u8; num_pages];
    // SAFETY: the vector has a byte for each page; the range is only looked at.
    let result = unsafe { libc::mincore(start as *mut _, num_pages * PAGE, pages.as_mut_ptr()) };
    result == 0 && pages.iter().any(|page| page & 1 != 0)
}

/// Others take the frames of a destroyed region as soon as the budget has them: the pages must be out of DRAM by then.
#[test]
fn a_destroyed_region_leaves_dram_before_its_frames_are_free() {
    if !kernel_is_able() {
        return;
    }
    let num_pages = 4096;
    let swap = builder(2 * num_pages as u64, Backend::File.url(num_pages)).open().unwrap();
    for _ in 0..20 {
        let region = swap.create_region(num_pages * PAGE, Contract::Transparent).unwrap();
        let (pages, start) = (Pages::of(&region), region.as_ptr() as usize);
        (0..num_pages).for_each(|page| pages.set_word(page, 0, 1));
        assert!(is_any_resident(start, num_pages));
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                wait_until("the frames are free", || stat(&swap, "resident_bytes") == 0);
                assert!(!is_any_resident(start, num_pages), "frames were given back of pages that are in DRAM");
            });
            barrier.wait();
            drop(region);
        });
    }
}

#[test]
fn metadata_is_small() {
    const { assert!(Region::METADATA_BYTES_PER_PAGE <= 24) };
    if !kernel_is_able() {
        return;
    }
    // What a large region costs before any of it is resident, and while almost none is: the table is committed as it is used.
    let swap = builder(64, "memory:?size=4GiB").open().unwrap();
    let region = swap.create_region(4 << 30, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    let before = status_bytes("VmRSS:");
    (0..pages.len()).step_by(512).for_each(|page| pages.touch(page, 1));
    let grown = status_bytes("VmRSS:").saturating_sub(before);
    // One table page for every 256 pages at most, and what the kernel does not count to the process.
    assert!(grown < pages.len() / 512 * 2 * PAGE + (8 << 20), "{grown} bytes for {} pages", pages.len());
}

/// Nothing grows with a region but what is touched of its tables: address space costs nothing, and few pages far apart are found and evicted.
#[test]
fn a_tebibyte_costs_what_is_used_of_it() {
    let ended = in_child("a_tebibyte_costs_what_is_used_of_it", || {
        if !kernel_is_able() {
            return;
        }
        const NUM_TOUCHED: usize = 10_000;
        for contract in [Contract::Transparent, Contract::Cooperative] {
            for num_bytes in [1usize << 30, 1 << 40] {
                let before = status_bytes("VmRSS:");
                let swap = builder(4096, format!("memory:?size={num_bytes}")).open().unwrap();
                let start = std::time::Instant::now();
                let region = swap.create_region(num_bytes, contract).unwrap();
                let created = start.elapsed();
                let pages = Pages::of(&region);
                let mut random = Random::new(5);
                let chosen: Vec<usize> = (0..NUM_TOUCHED).map(|_| random.below(pages.len())).collect();
                let worker = swap.enter_worker().unwrap();
                let touch_all = chosen.clone();
                worker.start(move || touch_all.iter().for_each(|page| pages.writing(*page, 1, || pages.set_word(*page, 3, *page as u64)))).unwrap();
                worker.run();
                let grown = status_bytes("VmRSS:").saturating_sub(before);
                let (check_all, written) = (chosen.clone(), start.elapsed());
                worker.start(move || check_all.iter().for_each(|page| assert_eq!(pages.word(*page, 3), *page as u64))).unwrap();
                worker.run();
                let read = start.elapsed() - written;
                assert!(stat(&swap, "dirty_evictions") > 5000, "{:?}", swap.stats());
                // For each page at most one of the table and one of the backend, and counts of chunks.
                let limit = 4096 * PAGE + NUM_TOUCHED * 2 * PAGE + (1 << 20) + OVERHEAD_BYTES;
                assert!(grown <= limit, "{grown} bytes, at most {limit}");
                assert!(region.resident_bytes() <= 4096 * PAGE);
                drop(worker);
                let start = std::time::Instant::now();
                drop(region);
                println!(
                    "{contract:?} {num_bytes:#x}: created in {created:?}, written by {written:?}, read in {read:?}, dropped in {:?}, {grown} bytes",
                    start.elapsed()
                );
                assert_eq!(stat(&swap, "resident_bytes"), 0);
            }
        }
    });
    if let Some(ended) = ended {
        println!("{}", ended.stdout);
        ended.expect_success();
    }
}

/// Everything the process needs beside local memory, for this many workers and LWTs.
const OVERHEAD_BYTES: usize = 16 << 20;

#[test]
fn the_process_stays_within_local_memory_and_a_fixed_overhead() {
    let ended = in_child("the_process_stays_within_local_memory_and_a_fixed_overhead", || {
        if !kernel_is_able() {
            return;
        }
        let before = status_bytes("VmRSS:");
        let local_pages = 2048;
        let swap = builder(local_pages, Backend::File.url(32 << 10)).max_workers(2).open().unwrap();
        let region = swap.create_region((32 << 10) * PAGE, Contract::Transparent).unwrap();
        let pages = Pages::of(&region);
        (0..pages.len()).for_each(|page| pages.set_word(page, 0, 1));
        page_at_random(&swap, pages, 20_000, || std::thread::sleep(std::time::Duration::from_millis(5)));
        let peak = status_bytes("VmHWM:");
        let limit = before + local_pages as usize * PAGE + pages.len() * Region::METADATA_BYTES_PER_PAGE + OVERHEAD_BYTES;
        println!("resident set: {before} bytes before, {peak} at most, limit {limit}");
        assert!(peak <= limit, "{peak} bytes at the peak, {before} before; at most {limit}");
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}
