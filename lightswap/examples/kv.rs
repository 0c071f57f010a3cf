//! A toy store: a million small values in a region that is four times local memory, served by lightweight threads.
//!
//!     cargo run --release -p lightswap --example kv [file:/path/to/swap?size=256MiB]

use lightswap::{Contract, Lightswap, lwt};
use std::time::Instant;

const VALUE_BYTES: usize = 256;
const NUM_VALUES: usize = 1 << 20;
const NUM_LWTS: usize = 64;
const GETS_PER_LWT: usize = 4000;

/// Where value number `key` lies in the store.
fn slot(store: usize, key: usize) -> *mut [u8; VALUE_BYTES] {
    (store + key * VALUE_BYTES) as *mut _
}

fn put(store: usize, key: usize) {
    // SAFETY: inside the region, and each key is written by one LWT.
    unsafe { slot(store, key).write([key as u8; VALUE_BYTES]) };
}

fn get(store: usize, key: usize) -> [u8; VALUE_BYTES] {
    // Asking first saves a signal where the page is missing; without it the access would bring the page in as well.
    lightswap::touch(slot(store, key).cast(), VALUE_BYTES).expect("the store is in the region");
    // SAFETY: inside the region, and nobody writes any more.
    unsafe { slot(store, key).read() }
}

fn main() -> lightswap::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:?size=256MiB".into());
    let swap = Lightswap::builder().local_memory(64 << 20).backend(url).open()?;
    let region = swap.create_region(NUM_VALUES * VALUE_BYTES, Contract::Transparent)?;
    let store = region.as_ptr() as usize;
    let worker = swap.enter_worker()?;
    for lwt in 0..NUM_LWTS {
        let share = NUM_VALUES / NUM_LWTS;
        worker.start(move || (lwt * share..(lwt + 1) * share).for_each(|key| put(store, key)))?;
    }
    worker.run();
    let start = Instant::now();
    for lwt in 0..NUM_LWTS {
        worker.start(move || {
            let mut key = lwt;
            for _ in 0..GETS_PER_LWT {
                key = (key * 1_103_515_245 + 12_345) % NUM_VALUES;
                assert_eq!(get(store, key), [key as u8; VALUE_BYTES]);
                lwt::yield_now();
            }
        })?;
    }
    worker.run();
    println!("{} gets in {:.2} s", NUM_LWTS * GETS_PER_LWT, start.elapsed().as_secs_f64());
    swap.stats().iter().filter(|(_, value)| *value > 0).for_each(|(name, value)| println!("{name:>24} {value}"));
    Ok(())
}
