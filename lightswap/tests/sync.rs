//! Locks, condition variables, sleep and yield among LWTs of several workers and ordinary threads.

mod common;

use common::{Backend, Watchdog, builder, kernel_is_able};
use lightswap::sync::{Condvar, Mutex};
use lightswap::{Lightswap, lwt};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

fn open() -> Option<(Watchdog, Lightswap)> {
    kernel_is_able().then(|| {
        let swap = builder(64, Backend::Memory.url(64)).max_workers(3).open().unwrap();
        (Watchdog::new("a test of sync.rs", Duration::from_secs(40)), swap)
    })
}

/// Runs `work(number)` on `num_lwts` LWTs of each of `num_workers` workers, and on `num_threads` threads.
fn everywhere(swap: &Lightswap, num_workers: usize, num_lwts: usize, num_threads: usize, work: impl Fn(usize) + Send + Sync + 'static) {
    let work = Arc::new(work);
    std::thread::scope(|scope| {
        for worker_number in 0..num_workers {
            let work = work.clone();
            scope.spawn(move || {
                let worker = swap.enter_worker().unwrap();
                for number in 0..num_lwts {
                    let work = work.clone();
                    worker.start(move || work(worker_number * num_lwts + number)).unwrap();
                }
                worker.run();
            });
        }
        for number in 0..num_threads {
            let work = work.clone();
            scope.spawn(move || work(num_workers * num_lwts + number));
        }
    });
}

#[test]
fn a_mutex_excludes_lwts_and_threads() {
    let Some((_watchdog, swap)) = open() else { return };
    // Two halves that are only equal outside the lock if nobody comes in between.
    let shared = Arc::new(Mutex::new((0u64, 0u64)));
    let of_work = shared.clone();
    everywhere(&swap, 2, 8, 2, move |_| {
        for step in 0..1000 {
            let mut guard = of_work.lock();
            assert_eq!(guard.0, guard.1);
            guard.0 += 1;
            if step % 4 == 0 {
                // With the lock held: others must wait, not spin the worker away.
                lwt::yield_now();
            }
            guard.1 += 1;
        }
    });
    assert_eq!(*shared.lock(), (18_000, 18_000));
    let guard = shared.lock();
    assert!(shared.try_lock().is_none());
    drop(guard);
    assert!(shared.try_lock().is_some());
}

/// A ring of LWTs on two workers and threads that pass a token: each wake-up goes to one certain waiter, and one that is lost stops the ring.
#[test]
fn a_token_goes_round_without_a_lost_wakeup() {
    let Some((_watchdog, swap)) = open() else { return };
    const ROUNDS: usize = 400;
    const PLACES: usize = 2 * 5 + 2;
    let state = Arc::new((Mutex::new(0usize), [const { Condvar::new() }; PLACES]));
    let of_work = state.clone();
    everywhere(&swap, 2, 5, 2, move |place| {
        let (token, turns) = &*of_work;
        for round in 0..ROUNDS {
            let mut guard = token.lock();
            while *guard != round * PLACES + place {
                turns[place].wait(&mut guard);
            }
            *guard += 1;
            turns[(place + 1) % PLACES].notify_one();
        }
    });
    assert_eq!(*state.0.lock(), ROUNDS * PLACES);
}

#[test]
fn ping_pong_between_two_workers() {
    let Some((_watchdog, swap)) = open() else { return };
    let state = Arc::new((Mutex::new(0usize), Condvar::new()));
    let of_work = state.clone();
    everywhere(&swap, 2, 1, 0, move |side| {
        let (count, changed) = &*of_work;
        let mut guard = count.lock();
        while *guard < 20_000 {
            if *guard % 2 == side {
                *guard += 1;
                changed.notify_one();
            } else {
                changed.wait(&mut guard);
            }
        }
    });
    assert_eq!(*state.0.lock(), 20_000);
}

#[test]
fn a_broadcast_wakes_all() {
    let Some((_watchdog, swap)) = open() else { return };
    let state = Arc::new((Mutex::new((0usize, 0usize)), Condvar::new(), Condvar::new()));
    let of_work = state.clone();
    // The last one to come opens the gate; twenty times.
    everywhere(&swap, 2, 6, 3, move |_| {
        let (gate, opened, _) = &*of_work;
        for round in 0..20 {
            let mut guard = gate.lock();
            guard.0 += 1;
            if guard.0 == (round + 1) * 15 {
                guard.1 += 1;
                opened.notify_all();
            }
            while guard.1 <= round {
                opened.wait(&mut guard);
            }
        }
    });
    assert_eq!(*state.0.lock(), (300, 20));
}

#[test]
fn yields_take_turns_and_sleeps_end_in_order() {
    let Some((_watchdog, swap)) = open() else { return };
    let worker = swap.enter_worker().unwrap();
    let log: Rc<RefCell<Vec<(usize, usize)>>> = Rc::default();
    for lwt in 0..3 {
        let log = log.clone();
        let work = move || {
            for step in 0..4 {
                log.borrow_mut().push((step, lwt));
                lwt::yield_now();
            }
        };
        worker.start(work).unwrap();
    }
    worker.run();
    // Each runs at its start until its first yield; from there on in turn.
    assert_eq!(*log.borrow(), (0..4).flat_map(|step| (0..3).map(move |lwt| (step, lwt))).collect::<Vec<_>>());
    log.borrow_mut().clear();
    let start = Instant::now();
    for (number, milliseconds) in [(0, 60), (1, 20), (2, 40), (3, 0)] {
        let log = log.clone();
        let work = move || {
            lwt::sleep(Duration::from_millis(milliseconds));
            assert!(start.elapsed() >= Duration::from_millis(milliseconds), "woke too early");
            log.borrow_mut().push((number, 0));
        };
        worker.start(work).unwrap();
    }
    worker.run();
    assert_eq!(log.borrow().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 1, 2, 0]);
}

#[test]
fn lwts_start_lwts() {
    let Some((_watchdog, swap)) = open() else { return };
    let worker = Rc::new(swap.enter_worker().unwrap());
    let count = Rc::new(AtomicUsize::new(0));
    let (of_lwt, of_count) = (Rc::downgrade(&worker), count.clone());
    worker
        .start(move || {
            assert!(lwt::on_lwt());
            for _ in 0..100 {
                let count = of_count.clone();
                let add = move || {
                    count.fetch_add(1, SeqCst);
                };
                of_lwt.upgrade().unwrap().start(add).unwrap();
            }
            assert_eq!(of_count.load(SeqCst), 0, "from an LWT they are queued");
        })
        .unwrap();
    worker.run();
    assert!(!lwt::on_lwt());
    assert_eq!((count.load(SeqCst), worker.num_lwts()), (100, 0));
}
