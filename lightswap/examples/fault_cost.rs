//! What a fault costs from the access to the handler and back, by notifier: the time-stamp counter around accesses to swapped-out pages, less what it takes to bring the same
//! pages in when they are asked for before the access (on the faulting thread: for `monitor`, what that takes with `sigbus`). With QEMU's `-icount shift=0` the counter counts instructions (scripts/vm-test); elsewhere the figures are ticks.
//!
//! One line for each way: its name, and the medians of an access, of asking and of the difference. `--check` fails if `ebpf` takes more than half of
//! `sigbus` as the kernel has it, with rt_sigreturn.

use lightswap::{Contract, FaultReturn, Lightswap, Notifier, PAGE_SIZE, touch};
use std::arch::x86_64::{__rdtscp, _mm_lfence};
use std::process::ExitCode;

const NUM_PAGES: usize = 2000;
const LOCAL_PAGES: u64 = 400;
const NUM_ROUNDS: usize = 3;

const WAYS: [(&str, Notifier, FaultReturn); 4] = [
    ("sigbus, rt_sigreturn", Notifier::Sigbus, FaultReturn::Kernel),
    ("sigbus", Notifier::Sigbus, FaultReturn::User),
    ("monitor", Notifier::Monitor, FaultReturn::User),
    ("ebpf", Notifier::Ebpf, FaultReturn::User),
];

fn ticks() -> u64 {
    let mut processor = 0;
    // SAFETY: every x86-64 processor that this runs on has these instructions.
    unsafe {
        _mm_lfence();
        __rdtscp(&raw mut processor)
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Medians for a fault, and for asking.
fn measure(notifier: Notifier, fault_return: FaultReturn) -> Result<Option<(u64, u64)>, lightswap::Error> {
    let url = format!("memory:?size={}", NUM_PAGES * PAGE_SIZE);
    let builder = Lightswap::builder().local_memory(LOCAL_PAGES * PAGE_SIZE as u64).backend(url);
    let swap = builder.notifier(notifier).fault_return(fault_return).open()?;
    if swap.notifier() != notifier {
        return Ok(None);
    }
    let region = swap.create_region(NUM_PAGES * PAGE_SIZE, Contract::Cooperative)?;
    let start = region.as_ptr();
    let page = |index: usize| start.wrapping_add(index * PAGE_SIZE);
    // SAFETY: inside the region.
    (0..NUM_PAGES).for_each(|index| unsafe { page(index).cast::<usize>().write_volatile(index + 1) });
    let worker = swap.enter_worker()?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let base = start as usize;
    worker.start(move || {
        let (mut faults, mut touches) = (Vec::new(), Vec::new());
        for index in (0..NUM_ROUNDS).flat_map(|_| 0..NUM_PAGES) {
            let address = base + index * PAGE_SIZE;
            let begin = ticks();
            if index % 2 == 0 {
                // SAFETY: inside the region, which outlives the worker.
                unsafe { std::ptr::with_exposed_provenance::<usize>(address).read_volatile() };
                faults.push(ticks() - begin);
            } else {
                touch(std::ptr::with_exposed_provenance::<u8>(address), 1).expect("inside the region");
                touches.push(ticks() - begin);
            }
        }
        sender.send((median(faults), median(touches))).expect("the receiver waits");
    })?;
    worker.run();
    Ok(receiver.recv().ok())
}

fn main() -> ExitCode {
    let mut cost = [None; WAYS.len()];
    let mut paging = None;
    for (place, (name, notifier, fault_return)) in WAYS.into_iter().enumerate() {
        match measure(notifier, fault_return) {
            Ok(Some((fault, touch))) => {
                let paging = if notifier == Notifier::Monitor { paging.unwrap_or(touch) } else { *paging.insert(touch) };
                println!("{name}: {fault} for a fault, {paging} when asked before, {} for notification and return", fault.saturating_sub(paging));
                cost[place] = Some(fault.saturating_sub(paging));
            }
            Ok(None) => println!("{name}: not to be had here"),
            Err(error) => {
                eprintln!("fault_cost: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if !std::env::args().any(|argument| argument == "--check") {
        return ExitCode::SUCCESS;
    }
    match (cost[0], cost[3]) {
        (Some(sigbus), Some(ebpf)) if 2 * ebpf <= sigbus => ExitCode::SUCCESS,
        (sigbus, ebpf) => {
            eprintln!("fault_cost: ebpf should take at most half of sigbus, but takes {ebpf:?} of {sigbus:?}");
            ExitCode::FAILURE
        }
    }
}
