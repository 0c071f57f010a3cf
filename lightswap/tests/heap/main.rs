//! Heaps over regions: contents, places and sizes are right whatever is allocated and freed, memory goes back, and frees read nothing.

#[path = "../common/mod.rs"]
mod common;
mod objects;

use common::child::{fork, in_child};
use common::{BACKENDS, Backend, MODES, PAGE, Random, Watchdog, builder, kernel_is_able, stat, wait_until};
use lightswap::{Contract, ErrorKind, Heap, Lightswap, Region};
use objects::{Object, random_size};
use std::sync::Arc;
use std::time::Duration;

fn watchdog() -> Watchdog {
    Watchdog::new("a test of heaps", Duration::from_secs(100))
}

/// A heap over a region that takes all of the instance's backend.
fn heap_of(swap: &Lightswap) -> (Arc<Region>, Heap) {
    let region = Arc::new(swap.create_region(stat(swap, "backend_bytes") as usize, Contract::Transparent).unwrap());
    let heap = Heap::new(region.clone()).unwrap();
    (region, heap)
}

fn heap_stat(heap: &Heap, name: &str) -> u64 {
    let stats = heap.stats();
    stats.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no statistic {name} in {stats:?}")).1
}

/// Everything was freed: waits until all of it is as if it had never been touched.
fn expect_all_back(swap: &Lightswap, region: &Region, heap: &Heap) {
    assert_eq!((heap_stat(heap, "heap_objects"), heap_stat(heap, "heap_allocated_bytes")), (0, 0));
    wait_until("all memory goes back", || {
        heap.trim();
        heap_stat(heap, "heap_free_bytes") == region.len() as u64
    });
    assert_eq!((region.resident_bytes(), stat(swap, "resident_bytes"), heap_stat(heap, "heap_slab_bytes")), (0, 0, 0));
}

/// Allocates, resizes, checks and frees at random; all objects are freed in the end. Returns how often there was no room.
fn churn(heap: &Heap, seed: u64, num_steps: usize, max_objects: usize, max_size: usize) -> usize {
    let mut random = Random::new(seed);
    let mut objects: Vec<Object> = Vec::new();
    let mut num_failed = 0;
    for step in 0..num_steps {
        let size = random_size(&mut random, max_size);
        let index = random.below(objects.len().max(1));
        match random.below(10) {
            0..4 if objects.len() < max_objects => match Object::new(heap, size, seed << 32 | step as u64) {
                Some(object) => objects.push(object),
                None => num_failed += 1,
            },
            4..6 if !objects.is_empty() => num_failed += usize::from(!objects[index].resize(heap, size)),
            6..8 if !objects.is_empty() => objects[index].check(),
            _ if !objects.is_empty() => {
                let object = objects.swap_remove(index);
                object.check();
                object.free(heap);
            }
            _ => {}
        }
    }
    for object in objects {
        object.check();
        object.free(heap);
    }
    num_failed
}

#[test]
fn contents_stay_whatever_is_allocated_and_freed() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for (number, (backend, mode)) in BACKENDS.into_iter().flat_map(|backend| MODES.map(|mode| (backend, mode))).enumerate() {
        let swap = mode.set(builder(120, backend.url(4000))).open().unwrap();
        let (region, heap) = heap_of(&swap);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    scope.spawn({
                        let heap = &heap;
                        move || churn(heap, number as u64 * 10 + thread, 4000, 300, 200_000)
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 0, "there was room"));
        });
        assert!(stat(&swap, "swap_ins") > 100 || backend == Backend::Memory);
        expect_all_back(&swap, &region, &heap);
    }
}

#[test]
fn a_full_heap_says_so_and_goes_on() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(100, "memory:?size=4MiB").open().unwrap();
    let (region, heap) = heap_of(&swap);
    let num_failed: usize = (0..4).map(|seed| churn(&heap, seed, 8000, 2000, 300_000)).sum();
    assert!(num_failed > 100, "only {num_failed} allocations failed");
    assert_eq!(heap_stat(&heap, "heap_allocations_failed"), num_failed as u64);
    expect_all_back(&swap, &region, &heap);
    // All of the region can be one object, and nothing fits beside it.
    let all = Object::new(&heap, region.len(), 1).unwrap();
    assert!(Object::new(&heap, 1, 2).is_none());
    let error = heap.alloc(region.len() + 1).unwrap_err();
    assert!(error.kind() == ErrorKind::NoSpace && error.to_string().contains("in a row"), "{error}");
    assert!(heap.alloc(usize::MAX).is_err());
    all.check();
    all.free(&heap);
    expect_all_back(&swap, &region, &heap);
    // All of it can be objects of one size, of which none is lost.
    let objects: Vec<Object> = std::iter::from_fn(|| Object::new(&heap, 64, 3)).collect();
    assert_eq!(objects.len(), region.len() / 64);
    objects.into_iter().for_each(|object| {
        object.check();
        object.free(&heap);
    });
    expect_all_back(&swap, &region, &heap);
}
