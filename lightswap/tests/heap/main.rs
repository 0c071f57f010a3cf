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
    // Where there was no smaller place for an object, it kept its own.
    assert!(heap_stat(&heap, "heap_allocations_failed") >= num_failed as u64);
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

/// Objects of `size` bytes that fill so many pages.
fn objects_of(heap: &Heap, num_pages: usize, size: usize) -> Vec<Object> {
    let num_objects = num_pages * PAGE / size;
    (0..num_objects).map(|number| Object::new(heap, size, number as u64).unwrap()).collect()
}

/// What of the instance would change if something were accessed.
fn accesses(swap: &Lightswap) -> Vec<u64> {
    ["faults", "write_protect_faults", "touch_misses", "missing_pages", "zero_fills", "swap_ins", "prefetches"].map(|name| stat(swap, name)).to_vec()
}

#[test]
fn frees_and_questions_access_nothing() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    for size in [16, 100, 1000, 5000, 20_000, 100_000] {
        let swap = builder(60, Backend::File.url(3000)).open().unwrap();
        let (region, heap) = heap_of(&swap);
        let objects = objects_of(&heap, 1000, size);
        let before = accesses(&swap);
        assert!(before.iter().sum::<u64>() > 900, "{before:?}");
        for object in &objects {
            assert!(heap.usable_size(object.pointer()) >= size && heap.contains(object.pointer()));
            heap.is_sparse(object.pointer());
        }
        objects.into_iter().for_each(|object| object.free(&heap));
        expect_all_back(&swap, &region, &heap);
        assert_eq!(accesses(&swap), before, "{size} bytes");
    }
}

#[test]
fn compressed_memory_goes_back() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(60, format!("memory:?size={}&compress=lz4", 3000 * PAGE)).open().unwrap();
    let (region, heap) = heap_of(&swap);
    let at_start = stat(&swap, "compressed_memory_bytes");
    let objects = objects_of(&heap, 2000, 500);
    assert!(stat(&swap, "compressed_pages") > 1500);
    objects.into_iter().for_each(|object| object.free(&heap));
    expect_all_back(&swap, &region, &heap);
    assert_eq!((stat(&swap, "compressed_pages"), stat(&swap, "compressed_content_bytes")), (0, 0));
    // Tables stay.
    wait_until("the pool gives its memory back", || stat(&swap, "compressed_memory_bytes") - at_start < (100 * PAGE) as u64);
}

#[test]
fn pages_in_use_go_back_later() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(200, "memory:?size=4MiB").open().unwrap();
    let (region, heap) = heap_of(&swap);
    let object = Object::new(&heap, 100_000, 1).unwrap();
    let pages = object.pointer();
    lightswap::pin(pages, 3 * PAGE).unwrap();
    object.free(&heap);
    (0..3).for_each(|_| heap.trim());
    // Nobody gets the pages while somebody has them pinned; other memory is given out as usual.
    assert!(heap_stat(&heap, "heap_leaving_bytes") >= 100_000 && lightswap::is_resident(pages, 3 * PAGE));
    assert_eq!(churn(&heap, 1, 2000, 50, 50_000), 0);
    lightswap::unpin(pages, 3 * PAGE).unwrap();
    expect_all_back(&swap, &region, &heap);
}

#[test]
fn fresh_memory_needs_a_backend_that_takes_it() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(60, format!("faulty(write@1+=EIO):{}", Backend::Memory.url(1000))).open().unwrap();
    let (region, heap) = heap_of(&swap);
    let mut objects: Vec<Object> = Vec::new();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // Room is made for new pages by writing old ones, which fails before local memory is full.
    while let Some(object) = Object::new(&heap, 1000, objects.len() as u64) {
        objects.push(object);
        std::thread::sleep(Duration::from_micros(200));
        assert!(std::time::Instant::now() < deadline, "allocations never fail");
    }
    assert!(Object::new(&heap, 100_000, 0).is_none() && objects.len() < 60 * 4);
    objects.iter().for_each(Object::check);
    swap.stop_faults();
    wait_until("there is room again", || Object::new(&heap, 100_000, 0).map(|object| object.free(&heap)).is_some());
    let num_before = objects.len() as u64;
    objects.extend((0..1000).map(|number| Object::new(&heap, 1000, num_before + number).unwrap()));
    objects.iter().for_each(Object::check);
    objects.into_iter().for_each(|object| object.free(&heap));
    expect_all_back(&swap, &region, &heap);
}

#[test]
fn an_object_that_cannot_be_read_stays_when_it_is_to_grow() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(60, format!("faulty(read@1..100=EIO):{}", Backend::File.url(1000))).open().unwrap();
    let (region, heap) = heap_of(&swap);
    let mut first = Object::new(&heap, 2000, 1).unwrap();
    let others = objects_of(&heap, 200, 1500);
    assert!(!lightswap::is_resident(first.pointer(), 1));
    let before = heap_stat(&heap, "heap_allocated_bytes");
    // SAFETY: the object is this test's.
    let error = unsafe { heap.realloc(first.pointer(), 5000) }.unwrap_err();
    assert_eq!((error.kind(), heap_stat(&heap, "heap_allocated_bytes")), (ErrorKind::SwapIn, before));
    swap.stop_faults();
    first.check();
    assert!(first.resize(&heap, 5000));
    first.free(&heap);
    others.into_iter().for_each(|object| object.free(&heap));
    expect_all_back(&swap, &region, &heap);
}

#[test]
fn sizes_change_in_place_where_they_can() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(400, "memory:?size=4MiB").open().unwrap();
    let (region, heap) = heap_of(&swap);
    let place = |object: &Object| object.pointer() as usize;
    let mut object = Object::new(&heap, 130, 1).unwrap();
    let start = place(&object);
    assert!(object.resize(&heap, 144) && object.resize(&heap, 129) && place(&object) == start);
    assert!(object.resize(&heap, 145) && place(&object) != start);
    // A run grows into free pages, shrinks, and moves only when the next object is in its way.
    assert!(object.resize(&heap, 40_000));
    let start = place(&object);
    for size in [80_000, 32_769, 300_000, 100_000] {
        assert!(object.resize(&heap, size) && place(&object) == start, "{size}");
        assert!(heap.usable_size(object.pointer()) < size + PAGE);
        heap.trim();
    }
    let next = Object::new(&heap, 40_000, 2).unwrap();
    assert!(object.resize(&heap, 200_000) && place(&object) != start);
    assert!(object.resize(&heap, 0) && heap.usable_size(object.pointer()) == 16);
    [object, next].into_iter().for_each(|object| {
        object.check();
        object.free(&heap);
    });
    expect_all_back(&swap, &region, &heap);
}

#[test]
fn sparse_slabs_are_known() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    let swap = builder(400, "memory:?size=4MiB").open().unwrap();
    let (region, heap) = heap_of(&swap);
    // 64 to a page: of half of the pages most are freed, of the others a few.
    let mut slots: Vec<Option<Object>> = objects_of(&heap, 40, 64).into_iter().map(Some).collect();
    let keeps = |number: usize| if number / 64 % 2 == 0 { number % 8 == 0 } else { number % 8 != 0 };
    assert!(slots.iter().flatten().all(|object| !heap.is_sparse(object.pointer())), "all slabs are full");
    for (number, slot) in slots.iter_mut().enumerate().filter(|(number, _)| !keeps(*number)) {
        assert!(slot.as_ref().unwrap().pointer() as usize / PAGE % 2 == number / 64 % 2);
        slot.take().unwrap().free(&heap);
    }
    let slab_bytes = || heap_stat(&heap, "heap_slab_bytes");
    let before = slab_bytes();
    // As a defragmenter does it, until nothing is to be gained.
    for _ in 0..10 {
        for (number, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_some()) {
            let old = slot.as_ref().unwrap();
            if heap.is_sparse(old.pointer()) {
                let new = Object::new(&heap, 64, number as u64).unwrap();
                slot.replace(new).unwrap().free(&heap);
            }
        }
    }
    let num_kept = slots.iter().flatten().count();
    let least = (num_kept * 64).div_ceil(PAGE) * PAGE;
    assert!(slab_bytes() < before && slab_bytes() as usize <= least * 5 / 4, "{before} {} {least}", slab_bytes());
    slots.into_iter().flatten().for_each(|object| {
        object.check();
        object.free(&heap);
    });
    expect_all_back(&swap, &region, &heap);
}

#[test]
fn a_child_of_fork_can_use_what_is_resident() {
    let ended = in_child("a_child_of_fork_can_use_what_is_resident", || {
        if !kernel_is_able() {
            return;
        }
        let swap = builder(400, "memory:?size=4MiB").open().unwrap();
        let (_region, heap) = heap_of(&swap);
        let objects = objects_of(&heap, 20, 200);
        let ends = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The fork comes while others are in the heap.
            for seed in 0..2 {
                let (heap, ends) = (&heap, &ends);
                scope.spawn(move || {
                    while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                        churn(heap, seed, 200, 20, 2000);
                    }
                });
            }
            for _ in 0..20 {
                let status = fork(|| {
                    let mut got: Vec<Object> = (0..10_000).map_while(|number| Object::new(&heap, 200, number)).collect();
                    got.iter().chain(&objects).for_each(Object::check);
                    assert!(heap.alloc(100_000).is_err());
                    while let Some(object) = got.pop() {
                        object.free(&heap);
                    }
                    for number in 0..1000 {
                        Object::new(&heap, 200, number).inspect(Object::check).expect("there is what was just freed").free(&heap);
                    }
                    heap.trim();
                });
                assert_eq!(status, 0);
                objects.iter().for_each(Object::check);
            }
            ends.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
    if let Some(ended) = ended {
        ended.expect_success();
    }
}

/// What a misuse of the heap ends the process with.
fn expect_abort(test: &str, text: &str, misuse: impl FnOnce(&Heap)) {
    let ended = in_child(test, || {
        if !kernel_is_able() {
            std::process::abort();
        }
        let swap = builder(400, "memory:?size=4MiB").open().unwrap();
        misuse(&heap_of(&swap).1);
    });
    if let Some(ended) = ended {
        ended.expect_signal(libc::SIGABRT);
        assert!(!kernel_is_able() || (ended.stderr.contains("lightswap: fatal: heap: ") && ended.stderr.contains(text)), "{}", ended.stderr);
    }
}

/// Frees what `pointer` makes of the address of an object of `size` bytes.
fn free_at(heap: &Heap, size: usize, offset: usize) {
    let object = heap.alloc(size).unwrap();
    // SAFETY: the process is to end for it.
    unsafe { heap.free(object.as_ptr().wrapping_add(offset)) };
}

#[test]
fn misuse_foreign_pointer() {
    let mut elsewhere = 0u8;
    // SAFETY: the process is to end for it.
    expect_abort("misuse_foreign_pointer", "is not in the heap's region", |heap| unsafe { heap.free(&raw mut elsewhere) });
}

#[test]
fn misuse_interior_pointer_of_a_small_object() {
    expect_abort("misuse_interior_pointer_of_a_small_object", "not to the start of an object", |heap| free_at(heap, 100, 16));
}

#[test]
fn misuse_interior_pointer_of_a_large_object() {
    expect_abort("misuse_interior_pointer_of_a_large_object", "not to its start", |heap| free_at(heap, 100_000, 16));
}

#[test]
fn misuse_inner_page_of_a_large_object() {
    expect_abort("misuse_inner_page_of_a_large_object", "no object starts at", |heap| free_at(heap, 100_000, 2 * PAGE));
}

#[test]
fn misuse_small_object_freed_twice() {
    expect_abort("misuse_small_object_freed_twice", "freed twice", |heap| {
        let object = heap.alloc(100).unwrap();
        // SAFETY: the process is to end for it.
        (0..2).for_each(|_| unsafe { heap.free(object.as_ptr()) });
    });
}

#[test]
fn misuse_large_object_freed_twice() {
    expect_abort("misuse_large_object_freed_twice", "freed twice", |heap| {
        let object = heap.alloc(100_000).unwrap();
        // SAFETY: the process is to end for it.
        (0..2).for_each(|_| unsafe { heap.free(object.as_ptr()) });
    });
}

#[test]
fn misuse_resize_of_what_was_freed() {
    expect_abort("misuse_resize_of_what_was_freed", "freed twice", |heap| {
        let (object, _other) = (heap.alloc(100).unwrap(), heap.alloc(100).unwrap());
        // SAFETY: the process is to end for it.
        unsafe {
            heap.free(object.as_ptr());
            let _ = heap.realloc(object.as_ptr(), 10);
        }
    });
}

#[test]
fn a_region_has_one_heap() {
    if !kernel_is_able() {
        return;
    }
    let swap = builder(100, "memory:?size=4MiB").open().unwrap();
    let (region, heap) = heap_of(&swap);
    assert_eq!(Heap::new(region.clone()).unwrap_err().kind(), ErrorKind::Busy);
    drop(heap);
    let heap = Heap::new(region).unwrap();
    churn(&heap, 1, 500, 50, 10_000);
}

/// Objects replaced at random, with a quarter of them in local memory: how many pages are read back for that, a replacement.
fn reads_per_replacement(region_pages: usize) -> f64 {
    const NUM_OBJECTS: usize = 30_000;
    const SIZE: usize = 256;
    let swap = builder((NUM_OBJECTS * SIZE / PAGE / 4) as u64, Backend::Memory.url(region_pages)).open().unwrap();
    let (_region, heap) = heap_of(&swap);
    let mut objects: Vec<Object> = (0..NUM_OBJECTS).map(|number| Object::new(&heap, SIZE, number as u64).unwrap()).collect();
    let mut random = Random::new(1);
    let mut replace = |num_times: usize| {
        for _ in 0..num_times {
            let number = random.below(NUM_OBJECTS);
            let new = Object::new(&heap, SIZE, number as u64).unwrap();
            std::mem::replace(&mut objects[number], new).free(&heap);
        }
    };
    replace(3 * NUM_OBJECTS);
    let before = stat(&swap, "swap_ins");
    replace(3 * NUM_OBJECTS);
    let reads = stat(&swap, "swap_ins") - before;
    eprintln!("{region_pages} pages: {reads} reads, {:?}", heap.stats());
    objects.iter().for_each(Object::check);
    reads as f64 / (3 * NUM_OBJECTS) as f64
}

#[test]
fn new_objects_seldom_read_pages_back() {
    if !kernel_is_able() {
        return;
    }
    let _watchdog = watchdog();
    // The objects are 1,875 pages. Where each went to the oldest hole, three in four would read one.
    let (roomy, tight) = (reads_per_replacement(8000), reads_per_replacement(2500));
    assert!(roomy < 0.05 && tight < 0.3, "{roomy} {tight}");
}
