//! The tracer against faults whose number is known. Without privileges, and on kernels that cannot, it says so and passes.
#![cfg(feature = "ebpf")]

use lightswap::tracer::{CELL_BYTES, Kinds, Tracer};
use lightswap::{Contract, Lightswap, Notifier, PAGE_SIZE, Region};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MIB: usize = 1 << 20;

/// One test at a time: threads of one could else fault while another counts.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(notifier: Notifier) -> Lightswap {
    Lightswap::builder().local_memory(16 << 20).backend("memory:?size=64MiB").notifier(notifier).open().unwrap()
}

/// None, with a message, where the kernel does not let this process trace.
fn attach(sample_every: u32) -> Option<Tracer> {
    match Tracer::attach(std::process::id(), sample_every) {
        Ok(tracer) => Some(tracer),
        Err(error) => {
            assert!(std::env::var_os("LIGHTSWAP_REQUIRE_EBPF").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn read(region: &Region, page: usize) {
    // SAFETY: inside the region.
    unsafe { region.as_ptr().add(page * PAGE_SIZE).read_volatile() };
}

fn write(region: &Region, page: usize) {
    // SAFETY: inside the region, and nobody else uses the page.
    unsafe { region.as_ptr().add(page * PAGE_SIZE + 8).write_volatile(1) };
}

/// Longer than a fault stays open for which no handler begins.
fn settle() {
    std::thread::sleep(Duration::from_millis(30));
}

#[test]
fn every_fault_is_counted_where_and_as_what_it_was() {
    let _alone = alone();
    let swap = open(Notifier::Sigbus);
    let region = swap.create_region(32 * MIB, Contract::Cooperative).unwrap();
    let Some(tracer) = attach(0) else { return };
    // 3 pages of the first 2 MiB, 5 of the third, 2 of them by another thread.
    (0..3).for_each(|page| read(&region, 7 * page));
    (0..3).for_each(|page| write(&region, 1024 + page));
    std::thread::scope(|scope| {
        scope.spawn(|| (3..5).for_each(|page| read(&region, 1024 + page)));
    });
    settle();
    let snapshot = tracer.snapshot();
    assert_eq!((snapshot.faults, snapshot.open()), (8, 0));
    assert_eq!(snapshot.handled, Kinds { reads: 5, writes: 3, ..Kinds::default() });
    assert_eq!(snapshot.by_kernel, Kinds::default());
    assert_eq!(snapshot.latencies.num(), 8);
    let ns = snapshot.latencies.quantile_ns(0.5);
    assert!((50.0..50e6).contains(&ns), "{ns}");
    let heat = tracer.heat(&tracer.regions()[0]);
    assert_eq!(heat.len() as u64, (32 * MIB as u64).div_ceil(CELL_BYTES));
    assert_eq!((heat[0], heat[2], heat.iter().sum::<u64>()), (3, 5, 8));
    // What is there already does not fault.
    (0..3).for_each(|page| read(&region, 7 * page));
    assert_eq!(tracer.snapshot().faults, 8);
}

#[test]
fn faults_of_the_kernel_are_told_from_those_of_the_handler() {
    let _alone = alone();
    let swap = open(Notifier::Sigbus);
    let region = swap.create_region(4 * MIB, Contract::Cooperative).unwrap();
    let Some(mut tracer) = attach(0) else { return };
    // SAFETY: a fresh mapping, checked, and left in place.
    let other = unsafe { libc::mmap(std::ptr::null_mut(), MIB, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(other, libc::MAP_FAILED);
    // SAFETY: as above.
    unsafe { libc::madvise(other, MIB, libc::MADV_NOHUGEPAGE) };
    tracer.watch(other as u64, MIB as u64).unwrap();
    for page in 0..10 {
        // A first touch, which the kernel deals with: a read gets the shared zero page, and the write after it a copy.
        // SAFETY: inside the mapping.
        unsafe {
            let byte = other.cast::<u8>().add(page * PAGE_SIZE);
            byte.read_volatile();
            byte.write_volatile(1);
        }
        read(&region, page);
    }
    settle();
    let snapshot = tracer.snapshot();
    assert_eq!(snapshot.by_kernel, Kinds { reads: 10, writes_to_present: 10, ..Kinds::default() });
    assert_eq!((snapshot.handled.sum(), snapshot.faults, snapshot.latencies.num()), (10, 30, 10));
    tracer.watch(0, 0).unwrap();
    // SAFETY: inside the mapping.
    unsafe { other.cast::<u8>().add(100 * PAGE_SIZE).write_volatile(1) };
    assert_eq!(tracer.snapshot().faults, 30);
    // SAFETY: mapped above, and used no more.
    unsafe { libc::munmap(other, MIB) };
}

#[test]
fn regions_come_and_go() {
    let _alone = alone();
    let swap = open(Notifier::Sigbus);
    let first = swap.create_region(4 * MIB, Contract::Cooperative).unwrap();
    let Some(mut tracer) = attach(0) else { return };
    assert_eq!(tracer.regions().len(), 1);
    read(&first, 0);
    let second = swap.create_region(2 * MIB, Contract::Transparent).unwrap();
    read(&second, 0);
    assert_eq!(tracer.snapshot().faults, 1, "a region counts once it is known");
    tracer.refresh().unwrap();
    assert_eq!(tracer.regions().len(), 2);
    read(&second, 1);
    read(&first, 1);
    assert_eq!(tracer.snapshot().faults, 3);
    let start = first.as_ptr() as u64;
    drop(first);
    tracer.refresh().unwrap();
    assert!(tracer.regions().len() == 1 && tracer.regions()[0].start != start);
}

#[test]
fn samples_say_what_was_accessed_by_whom() {
    let _alone = alone();
    let swap = open(Notifier::Sigbus);
    let region = swap.create_region(4 * MIB, Contract::Cooperative).unwrap();
    let Some(mut tracer) = attach(1) else { return };
    let before = std::time::Instant::now();
    (0..4).for_each(|page| write(&region, page));
    let elapsed_ns = before.elapsed().as_nanos() as u64;
    let samples: Vec<_> = std::iter::from_fn(|| tracer.next_sample()).collect();
    let addresses: Vec<u64> = samples.iter().map(|sample| sample.address - region.as_ptr() as u64).collect();
    assert_eq!(addresses, [8, 4104, 8200, 12_296]);
    // SAFETY: no arguments.
    let tid = unsafe { libc::gettid() } as u32;
    assert!(samples.iter().all(|sample| sample.tid == tid && sample.error & 2 != 0 && sample.instruction != 0));
    assert!(samples.is_sorted_by_key(|sample| sample.fault_ns));
    assert!(samples[3].fault_ns - samples[0].fault_ns <= elapsed_ns);
    assert_eq!(tracer.snapshot().lost_samples, 0);
}

#[test]
fn a_process_that_pages_by_a_monitor_thread_is_counted_without_latencies() {
    let _alone = alone();
    let swap = open(Notifier::Monitor);
    let region = swap.create_region(4 * MIB, Contract::Cooperative).unwrap();
    let Some(tracer) = attach(0) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| (0..6).for_each(|page| read(&region, page)));
    });
    let snapshot = tracer.snapshot();
    assert_eq!((snapshot.faults, snapshot.handled.sum(), snapshot.latencies.num()), (6, 0, 0));
}

/// In a child, which the parent traces: its records must not be taken for its parent's.
#[test]
fn a_child_of_fork_is_traced_by_itself() {
    let _alone = alone();
    let swap = Lightswap::builder().local_memory(16 << 20).backend("memory:?size=64MiB").snapshots(true).open().unwrap();
    let region = swap.create_region(16 * MIB, Contract::Cooperative).unwrap();
    (0..8).for_each(|page| write(&region, page));
    let Some(own) = attach(0) else { return };
    let mut pipes = [[0; 2]; 2];
    // SAFETY: valid for two descriptors each.
    assert!(pipes.iter_mut().all(|pipe| unsafe { libc::pipe(pipe.as_mut_ptr()) } == 0));
    let [go, done] = pipes;
    let mut byte = 0u8;
    // SAFETY: the child makes system calls, touches its region and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: descriptors and a byte of its own.
        unsafe {
            libc::read(go[0], (&raw mut byte).cast(), 1);
            // Never touched before, so it is missing here.
            (1000..1007).for_each(|page| read(&region, page));
            libc::write(done[1], (&raw const byte).cast(), 1);
            libc::read(go[0], (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    let tracer = Tracer::attach(child as u32, 0);
    // SAFETY: as above.
    unsafe {
        libc::write(go[1], (&raw const byte).cast(), 1);
        libc::read(done[0], (&raw mut byte).cast(), 1);
    }
    settle();
    let snapshot = tracer.as_ref().map(Tracer::snapshot);
    // SAFETY: as above; the child is ours.
    unsafe {
        libc::write(go[1], (&raw const byte).cast(), 1);
        libc::waitpid(child, std::ptr::null_mut(), 0);
        for fd in pipes.as_flattened() {
            libc::close(*fd);
        }
    }
    let snapshot = snapshot.unwrap();
    assert_eq!((snapshot.faults, snapshot.handled.reads, snapshot.latencies.num()), (7, 7, 7));
    assert_eq!(own.snapshot().faults, 0);
}
