//! Steps of the hot path, each on an LWT of one worker with the memory backend: `cargo bench -p lightswap`.

use criterion::{Criterion, criterion_group, criterion_main};
use lightswap::{Contract, Heap, Lightswap, PAGE_SIZE, lwt};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

const REGION_BYTES: usize = 64 << 20;

/// Runs `step` so many times on an LWT of a worker, and says how long that took.
fn on_lwt(swap: &Lightswap, num_steps: u64, step: impl Fn(u64) + 'static) -> Duration {
    let worker = swap.enter_worker().expect("this thread can be a worker");
    let elapsed = Rc::new(Cell::new(Duration::ZERO));
    let result = Rc::clone(&elapsed);
    let run = move || {
        let start = Instant::now();
        (0..num_steps).for_each(step);
        result.set(start.elapsed());
    };
    worker.start(run).expect("there is a stack for one LWT");
    worker.run();
    elapsed.get()
}

fn open(local_memory_bytes: u64) -> Lightswap {
    let builder = Lightswap::builder().local_memory(local_memory_bytes).backend(format!("memory:?size={REGION_BYTES}"));
    builder.open().expect("the memory backend opens")
}

fn paging(c: &mut Criterion) {
    let swap = open(REGION_BYTES as u64 / 4);
    let region = swap.create_region(REGION_BYTES, Contract::Transparent).expect("the region fits");
    let (base, num_pages) = (region.as_ptr() as usize, REGION_BYTES as u64 / PAGE_SIZE as u64);
    // A stride that visits all pages, far from each other: with a quarter in memory, every one is missing when its turn comes.
    let num_visits = Rc::new(Cell::new(0u64));
    let next = move || {
        let visit = num_visits.replace(num_visits.get() + 1);
        (base + (visit.wrapping_mul(0x9E37_79B1) % num_pages) as usize * PAGE_SIZE) as *mut u64
    };
    let touch = |address: *mut u64| lightswap::touch(address.cast(), 8).expect("inside the region");
    let visit = next.clone();
    // SAFETY: inside the region.
    on_lwt(&swap, num_pages, move |_| unsafe { visit().write_volatile(1) });
    c.bench_function("missing page by fault", |b| {
        b.iter_custom(|n| {
            let visit = next.clone();
            // SAFETY: inside the region.
            on_lwt(&swap, n, move |_| assert_eq!(unsafe { visit().read_volatile() }, 1))
        });
    });
    c.bench_function("missing page by touch", |b| {
        b.iter_custom(|n| {
            let visit = next.clone();
            on_lwt(&swap, n, move |_| touch(visit()))
        });
    });
    c.bench_function("touch of a resident page", |b| b.iter_custom(|n| on_lwt(&swap, n, move |_| touch(base as *mut u64))));
}

fn scheduling(c: &mut Criterion) {
    let swap = open(1 << 20);
    c.bench_function("yield of the only LWT", |b| b.iter_custom(|n| on_lwt(&swap, n, |_| lwt::yield_now())));
    c.bench_function("start and end of an LWT", |b| {
        b.iter_custom(|n| {
            let worker = swap.enter_worker().expect("this thread can be a worker");
            let start = Instant::now();
            (0..n).for_each(|_| worker.start(|| {}).expect("there is a stack"));
            start.elapsed()
        });
    });
}

fn heap(c: &mut Criterion) {
    let swap = open(REGION_BYTES as u64 / 4);
    let heap = Heap::new(swap.create_region(REGION_BYTES, Contract::Transparent).expect("the region fits")).expect("the region has no other heap");
    for size in [64, 1000, 16_000, 100_000] {
        // The others keep the slab, as in a heap that is in use.
        let others: Vec<_> = (0..5).map(|_| heap.alloc(size).expect("there is room")).collect();
        // SAFETY: the objects are written before they are freed, once.
        others.iter().for_each(|object| unsafe { object.as_ptr().write_bytes(1, size) });
        c.bench_function(&format!("allocation and free of {size} bytes, resident"), |b| {
            // SAFETY: as above.
            b.iter(|| unsafe { heap.free(heap.alloc(size).expect("there is room").as_ptr()) });
        });
        // SAFETY: as above.
        others.iter().for_each(|object| unsafe { heap.free(object.as_ptr()) });
    }
}

criterion_group!(benches, paging, scheduling, heap);
criterion_main!(benches);
