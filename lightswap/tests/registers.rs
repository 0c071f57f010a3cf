//! Every register is after a fault what it was before: general registers, flags, x87, MXCSR, vectors and masks, and the red zone below the stack pointer.
//!
//! LWTs fault by turns, on each notifier and each way back from its handler, with all these full of patterns that differ in each; while one is suspended the others
//! change everything. Each LWT has pages of its own and a copy of what they must hold.

mod common;
mod registers_support;

use common::{BACKENDS, Backend, PAGE, Random, Watchdog, builder, kernel_is_able, skip, stat};
use lightswap::{Contract, FaultReturn, Lightswap, Notifier, lwt};
use registers_support::extended::{self, AVX, MASKS, SSE, ZMM_HIGH};
use registers_support::{ARITHMETIC_FLAGS, DIRECTION_FLAG, FIXED_FLAGS, NAMES, Probe, RAX, RBX, RCX, RDI, RSI, RSP, State, probes};
use std::arch::asm;
use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

/// From a fault to its handler, and back.
#[derive(Clone, Copy, Debug)]
struct Way {
    notifier: Notifier,
    fault_return: FaultReturn,
}

/// That of the kernel module only where that is loaded.
fn ways() -> Vec<Way> {
    let mut ways = vec![
        Way { notifier: Notifier::Sigbus, fault_return: FaultReturn::User },
        Way { notifier: Notifier::Sigbus, fault_return: FaultReturn::Kernel },
        Way { notifier: Notifier::Monitor, fault_return: FaultReturn::User },
    ];
    if std::path::Path::new("/dev/lightswap").exists() {
        ways.insert(0, Way { notifier: Notifier::Ebpf, fault_return: FaultReturn::User });
    }
    ways
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Load,
    Store,
    Add,
    /// Over one or more ends of pages, in the order that the direction flag says.
    Copy,
    LoadVector,
    StoreVector,
    Gather,
    GatherWide,
}

impl Access {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Load, Self::Store, Self::Add, Self::Copy, Self::LoadVector, Self::StoreVector];
        if is_x86_feature_detected!("avx2") {
            all.push(Self::Gather);
        }
        if is_x86_feature_detected!("avx512f") {
            all.push(Self::GatherWide);
        }
        all
    }

    fn probe(self) -> Probe {
        match self {
            Self::Load => probes::load,
            Self::Store => probes::store,
            Self::Add => probes::add,
            Self::Copy => probes::copy,
            Self::LoadVector => probes::load_vector,
            Self::StoreVector => probes::store_vector,
            Self::Gather => probes::gather,
            Self::GatherWide => probes::gather_wide,
        }
    }

    /// Components of the extended state that must be in use, as the access has operands there.
    fn operands(self) -> u64 {
        match self {
            Self::StoreVector | Self::LoadVector => SSE,
            Self::Gather => SSE | AVX,
            Self::GatherWide => SSE | AVX | MASKS | ZMM_HIGH,
            _ => 0,
        }
    }
}

const NUM_LWTS: usize = 16;
const PAGES_OF_LWT: usize = 32;
const BYTES_OF_LWT: usize = PAGES_OF_LWT * PAGE;
const LOCAL_PAGES: u64 = 64;

/// An LWT, or the thread.
struct Prober {
    base: usize,
    /// What the memory from there on must hold.
    content: Vec<u8>,
    state: Box<State>,
    features: u64,
    random: Random,
}

impl Prober {
    fn new(base: *mut u8, seed: u64) -> Self {
        let features = extended::features();
        Self { base: base as usize, content: vec![0; BYTES_OF_LWT], state: State::new(features), features, random: Random::new(seed) }
    }

    fn run(&mut self, num_probes: usize) {
        let all = Access::all();
        for step in 0..num_probes {
            let access = all[self.random.below(all.len())];
            self.probe(access);
            if step % 7 == 0 {
                lwt::yield_now();
            }
        }
        for (offset, expected) in self.content.iter().enumerate() {
            // SAFETY: inside the region, in this prober's part.
            assert_eq!(unsafe { ((self.base + offset) as *const u8).read_volatile() }, *expected, "at offset {offset}");
        }
    }

    /// Eight bytes that the pages hold.
    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.content[offset..offset + 8].try_into().unwrap())
    }

    fn set_word(&mut self, offset: usize, value: u64) {
        self.content[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Where `num_bytes` fit; half of the time over the end of a page.
    fn place(&mut self, num_bytes: usize) -> usize {
        if self.random.below(2) == 0 {
            return self.random.below(BYTES_OF_LWT - num_bytes);
        }
        (1 + self.random.below(PAGES_OF_LWT - 1)) * PAGE - 1 - self.random.below(num_bytes - 1)
    }

    /// One access; then everything is as it was, but for what the access changes.
    fn probe(&mut self, access: Access) {
        let Self { state, random, features, .. } = self;
        state.general_before.fill_with(|| random.next());
        state.red_zone_before.fill_with(|| random.next());
        state.flags_before = random.next() & (ARITHMETIC_FLAGS | DIRECTION_FLAG) | FIXED_FLAGS;
        state.misalignment = random.next() % 64;
        let mut used = random.next() | access.operands();
        if used & ZMM_HIGH != 0 {
            // No program has the upper half of zmm in use and that of ymm not, and virtual machines were seen that do not keep that (with `monitor`, where no handler runs).
            used |= AVX;
        }
        state.extended_before.fill(*features, used, || random.next());
        let changes = self.prepare(access);
        // SAFETY: the state is complete, and `prepare` has aimed the access at this prober's part of the region.
        unsafe { (access.probe())(&mut *self.state) };
        self.expect(access, changes);
    }

    /// Sets the operands up, and returns what the access does to registers. What it does to memory is done to the copy here.
    fn prepare(&mut self, access: Access) -> Changes {
        let mut changes = Changes { general: Vec::new(), flags: self.state.flags_before, lanes: Vec::new(), clears_mask: false };
        let base = self.base as u64;
        match access {
            Access::Load => {
                let offset = self.place(8);
                self.state.general_before[RBX] = base + offset as u64;
                changes.general.push((RAX, self.word(offset)));
            }
            Access::Store => {
                let (offset, value) = (self.place(8), self.state.general_before[RAX]);
                self.state.general_before[RBX] = base + offset as u64;
                self.set_word(offset, value);
            }
            Access::Add => {
                // Aligned: it must not be split between two cache lines.
                let (offset, value) = (self.place(8) & !7, self.state.general_before[RAX]);
                let old = self.word(offset);
                self.state.general_before[RBX] = base + offset as u64;
                self.set_word(offset, old.wrapping_add(value));
                changes.general.push((RAX, old));
                changes.flags = changes.flags & !ARITHMETIC_FLAGS | flags_of_sum(old, value);
            }
            Access::Copy => self.prepare_copy(&mut changes),
            Access::LoadVector => {
                let offset = self.place(16);
                self.state.general_before[RBX] = base + offset as u64;
                changes.lanes.extend([(3, 0, self.word(offset)), (3, 1, self.word(offset + 8))]);
            }
            Access::StoreVector => {
                let offset = self.place(16);
                self.state.general_before[RBX] = base + offset as u64;
                for lane in 0..2 {
                    let value = self.state.extended_before.lane(3, lane);
                    self.set_word(offset + 8 * lane, value);
                }
            }
            Access::Gather | Access::GatherWide => self.prepare_gather(access == Access::GatherWide, &mut changes),
        }
        changes
    }

    /// From one half of the pages to the other.
    fn prepare_copy(&mut self, changes: &mut Changes) {
        const HALF: usize = BYTES_OF_LWT / 2;
        let num_bytes = 1 + self.random.below(2 * PAGE);
        let is_up = self.random.below(2) == 0;
        let (low, high) = (self.random.below(HALF - num_bytes), HALF + self.random.below(HALF - num_bytes));
        let (from, to) = if is_up { (low, high) } else { (high, low) };
        self.content.copy_within(from..from + num_bytes, to);
        let is_backward = self.state.flags_before & DIRECTION_FLAG != 0;
        let (first, behind) = if is_backward { (num_bytes - 1, usize::MAX) } else { (0, num_bytes) };
        let at = |offset: usize| (self.base + offset) as u64;
        self.state.general_before[RCX] = num_bytes as u64;
        self.state.general_before[RSI] = at(from + first);
        self.state.general_before[RDI] = at(to + first);
        changes.general.extend([(RCX, 0), (RSI, at(from.wrapping_add(behind))), (RDI, at(to.wrapping_add(behind)))]);
    }

    /// Words of several pages, which fault one after the other: vector 5 is the target, vector 6 has the offsets, vector 7 or a mask register says which.
    fn prepare_gather(&mut self, is_wide: bool, changes: &mut Changes) {
        self.state.general_before[RBX] = self.base as u64;
        let num_lanes = if is_wide { 8 } else { 4 };
        for lane in 0..num_lanes {
            let offset = self.place(8);
            self.state.extended_before.set_lane(6, lane, offset as u64);
            let is_wanted =
                if is_wide { self.state.extended_before.mask(1) >> lane & 1 == 1 } else { self.state.extended_before.lane(7, lane) >> 63 == 1 };
            if is_wanted {
                changes.lanes.push((5, lane, self.word(offset)));
            }
        }
        changes.clears_mask = is_wide;
        if !is_wide {
            changes.lanes.extend((0..4).map(|lane| (7, lane, 0)));
        }
        if !is_wide && self.features & ZMM_HIGH != 0 {
            changes.lanes.extend([5, 7].into_iter().flat_map(|register| (4..8).map(move |lane| (register, lane, 0))));
        }
    }

    fn expect(&mut self, access: Access, changes: Changes) {
        let state = &mut *self.state;
        let mut general = state.general_before;
        changes.general.iter().for_each(|&(register, value)| general[register] = value);
        for (register, name) in NAMES.iter().enumerate() {
            let (found, expected) = (state.general_after[register], general[register]);
            assert_eq!(found, expected, "{name} after {access:?}: {found:#x} instead of {expected:#x}, from {:#x}", state.general_before[register]);
        }
        assert_eq!(state.general_before[RSP] % 64, (64 - state.misalignment) % 64);
        let (found, expected) = (state.flags_after, changes.flags);
        assert_eq!(found, expected, "flags after {access:?}: {found:#x} instead of {expected:#x}");
        assert_eq!(state.red_zone_after, state.red_zone_before, "red zone after {access:?}");
        changes.lanes.iter().for_each(|&(register, lane, value)| state.extended_before.set_lane(register, lane, value));
        if changes.clears_mask {
            state.extended_before.clear_mask(1);
        }
        let difference = state.extended_before.difference(&state.extended_after, self.features);
        assert_eq!(difference, None, "after {access:?}");
    }
}

/// What an access does to registers.
struct Changes {
    general: Vec<(usize, u64)>,
    flags: u64,
    /// Words of vector registers: register, word, value.
    lanes: Vec<(usize, usize, u64)>,
    /// k1 is 0 afterwards.
    clears_mask: bool,
}

fn flags_of_sum(a: u64, b: u64) -> u64 {
    let (sum, carries) = a.overflowing_add(b);
    let (_, overflows) = (a as i64).overflowing_add(b as i64);
    let is_even = (sum as u8).count_ones().is_multiple_of(2);
    let adjusts = (a & 0xF) + (b & 0xF) > 0xF;
    let bits = [(carries, 0), (is_even, 2), (adjusts, 4), (sum == 0, 6), (sum >> 63 == 1, 7), (overflows, 11)];
    bits.iter().map(|&(is_set, bit)| u64::from(is_set) << bit).sum()
}

/// LWTs on a worker, and a thread that is none, one after the other.
fn probe_by(way: Way, backend: Backend, num_probes: usize) {
    let num_pages = NUM_LWTS * PAGES_OF_LWT;
    let swap =
        builder(LOCAL_PAGES, backend.url(num_pages)).notifier(way.notifier).fault_return(way.fault_return).lwt_stack(256 << 10).open().unwrap();
    assert_eq!(swap.notifier(), way.notifier);
    let region = swap.create_region(num_pages * PAGE, Contract::Transparent).unwrap();
    let part = |number: usize| region.as_ptr().wrapping_add(number * BYTES_OF_LWT);
    let mut probers: Vec<Prober> = (0..NUM_LWTS).map(|number| Prober::new(part(number), number as u64)).collect();
    let num_swap_ins = |swap: &Lightswap| stat(swap, "swap_ins");
    probers.iter_mut().for_each(|prober| prober.run(num_probes / 20));
    let before = num_swap_ins(&swap);
    let worker = swap.enter_worker().unwrap();
    for mut prober in probers {
        worker.start(move || prober.run(num_probes)).unwrap();
    }
    worker.run();
    // Each access reads a page on average, or more.
    let (num_faults, expected) = (num_swap_ins(&swap) - before, (NUM_LWTS * num_probes) as u64 / 2);
    assert!(num_faults > expected, "{way:?} {backend:?}: {num_faults} faults, {expected} were expected");
}

fn is_able() -> bool {
    kernel_is_able() && (extended::features() != 0 || skip("the processor has no XSAVE"))
}

#[test]
fn every_register_survives_faults() {
    if !is_able() {
        return;
    }
    let _watchdog = Watchdog::new("faults with full registers", Duration::from_secs(120));
    for backend in BACKENDS {
        ways().into_iter().for_each(|way| probe_by(way, backend, 400));
    }
}

static NUM_DISTURBANCES: AtomicU64 = AtomicU64::new(0);

/// Uses the stack and vectors, at whatever instruction it comes: also at those that go back from a fault.
extern "C" fn disturb(_: libc::c_int) {
    black_box(&mut [0x5555_5555_5555_5555u64; 256]);
    // SAFETY: an interrupted program's registers are the kernel's to restore; this function's own are named.
    unsafe { asm!("pcmpeqd xmm0, xmm0", "pcmpeqd xmm15, xmm15", "std", "cld", out("xmm0") _, out("xmm15") _, options(nomem, nostack)) };
    NUM_DISTURBANCES.fetch_add(1, Relaxed);
}

/// Ends the other thread, after a failure too.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn every_register_survives_faults_while_signals_come() {
    if !is_able() {
        return;
    }
    let _watchdog = Watchdog::new("faults while signals come", Duration::from_secs(120));
    // SAFETY: an all-zero sigaction is valid; the handler does what handlers may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = disturb as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    // SAFETY: no preconditions.
    let thread = unsafe { libc::pthread_self() };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&is_over);
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                // SAFETY: the thread waits for this one at the end of the scope.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                (0..2000).for_each(|_| std::hint::spin_loop());
            }
        });
        for way in ways() {
            // On a busy machine the other thread may have to wait for its turn.
            let enough = NUM_DISTURBANCES.load(Relaxed) + 300;
            while NUM_DISTURBANCES.load(Relaxed) < enough {
                probe_by(way, Backend::Memory, 400);
            }
        }
    });
}
