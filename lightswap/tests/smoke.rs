//! First contact: write more than local memory, read it back, on threads and LWTs, over both backends.

use lightswap::{Contract, Lightswap, PAGE_SIZE};

fn value(page: usize, round: u64) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ round
}

fn exercise(backend: &str, contract: Contract, on_lwts: usize, vectored: bool) {
    let swap = Lightswap::builder().local_memory(1 << 20).backend(backend).vectored_removal(vectored).open().unwrap();
    let region = swap.create_region(16 << 20, contract).unwrap();
    let num_pages = region.len() / PAGE_SIZE;
    let base = region.as_ptr() as usize;
    let work = move |first: usize, step: usize| {
        for round in 0..3 {
            for page in (first..num_pages).step_by(step) {
                let address = (base + page * PAGE_SIZE) as *mut u64;
                if contract == Contract::Cooperative {
                    lightswap::pin(address.cast(), PAGE_SIZE).unwrap();
                }
                unsafe {
                    if round > 0 {
                        assert_eq!(address.read_volatile(), value(page, round - 1), "page {page} round {round}");
                        assert_eq!(address.add(511).read_volatile(), value(page, round - 1), "page {page} round {round}");
                    }
                    address.write_volatile(value(page, round));
                    address.add(511).write_volatile(value(page, round));
                }
                if contract == Contract::Cooperative {
                    lightswap::unpin(address.cast(), PAGE_SIZE).unwrap();
                }
            }
        }
    };
    if on_lwts == 0 {
        work(0, 1);
    } else {
        let worker = swap.enter_worker().unwrap();
        for first in 0..on_lwts {
            worker.start(move || work(first, on_lwts)).unwrap();
        }
        worker.run();
    }
    let stats = swap.stats();
    let get = |name: &str| stats.iter().find(|(known, _)| *known == name).unwrap().1;
    assert!(get("swap_ins") as usize > num_pages, "{stats:?}");
    assert!(region.resident_bytes() <= 1 << 20);
}

fn file_url() -> String {
    let path = std::env::temp_dir().join(format!("lightswap-smoke-{}-{:?}", std::process::id(), std::thread::current().id()));
    format!("file:{}?size=16MiB", path.display())
}

#[test]
fn memory_on_a_thread() {
    exercise("memory:?size=16MiB", Contract::Transparent, 0, true);
    exercise("memory:?size=16MiB", Contract::Cooperative, 0, true);
}

#[test]
fn memory_on_lwts() {
    exercise("memory:?size=16MiB", Contract::Transparent, 16, true);
    exercise("memory:?size=16MiB", Contract::Cooperative, 16, false);
}

#[test]
fn file_on_a_thread() {
    exercise(&file_url(), Contract::Transparent, 0, true);
}

#[test]
fn file_on_lwts() {
    exercise(&file_url(), Contract::Transparent, 64, true);
    exercise(&file_url(), Contract::Cooperative, 64, false);
}
