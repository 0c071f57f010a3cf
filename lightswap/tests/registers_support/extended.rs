//! The extended state as XSAVE lays it out: x87, MXCSR, vectors, mask registers.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

pub const X87: u64 = 1 << 0;
pub const SSE: u64 = 1 << 1;
pub const AVX: u64 = 1 << 2;
pub const MASKS: u64 = 1 << 5;
pub const ZMM_HIGH: u64 = 1 << 6;
pub const ZMM_16_TO_31: u64 = 1 << 7;
/// What programs compute with. Not protection keys, and not tiles.
const COMPUTING: u64 = X87 | SSE | AVX | MASKS | ZMM_HIGH | ZMM_16_TO_31;

const NUM_BYTES: usize = 4096;
const MXCSR: usize = 24;
const STACK: usize = 32;
const XMM: usize = 160;
/// Components that are not in their initial state.
const USED: usize = 512;

/// An XSAVE area in the standard format.
#[repr(C, align(64))]
pub struct Extended([u8; NUM_BYTES]);

/// Components that this processor and system have and programs compute with; 0 without XSAVE.
pub fn features() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    let enabled: u32;
    // SAFETY: there is XSAVE, so there is this register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags)) };
    let features = u64::from(enabled) & COMPUTING;
    assert!(__cpuid_count(0xD, 0).ebx as usize <= NUM_BYTES || features & ZMM_HIGH == 0, "XSAVE needs more room");
    features
}

/// Where a component lies, as the processor says.
fn place_of(component: u64) -> std::ops::Range<usize> {
    let leaf = __cpuid_count(0xD, component.trailing_zeros());
    leaf.ebx as usize..(leaf.ebx + leaf.eax) as usize
}

impl Extended {
    /// Everything in its initial state.
    pub fn initialise(&mut self) {
        self.0.fill(0);
        self.0[MXCSR..MXCSR + 4].copy_from_slice(&0x1F80u32.to_le_bytes());
    }

    /// Patterns everywhere, in the `used` ones of `features`; the others are in their initial state.
    pub fn fill(&mut self, features: u64, used: u64, mut next: impl FnMut() -> u64) {
        self.initialise();
        let (control, status) = x87_words(next());
        self.0[0..2].copy_from_slice(&control.to_le_bytes());
        self.0[2..4].copy_from_slice(&status.to_le_bytes());
        self.0[4] = next() as u8;
        for register in 0..8 {
            let start = STACK + 16 * register;
            self.0[start..start + 8].copy_from_slice(&next().to_le_bytes());
            self.0[start + 8..start + 10].copy_from_slice(&(next() as u16).to_le_bytes());
        }
        self.0[MXCSR..MXCSR + 2].copy_from_slice(&(next() as u16).to_le_bytes());
        self.0[XMM..XMM + 256].chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&next().to_le_bytes()));
        for component in [AVX, MASKS, ZMM_HIGH, ZMM_16_TO_31].into_iter().filter(|component| features & component != 0) {
            self.0[place_of(component)].chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&next().to_le_bytes()));
        }
        self.0[USED..USED + 8].copy_from_slice(&(used & features).to_le_bytes());
    }

    fn used(&self) -> u64 {
        u64::from_le_bytes(self.0[USED..USED + 8].try_into().unwrap())
    }

    /// Bytes `bytes` of a vector register, of the first sixteen.
    fn part_of_vector(&mut self, register: usize, byte: usize) -> &mut [u8] {
        let start = match byte {
            0..16 => XMM + 16 * register + byte,
            16..32 => place_of(AVX).start + 16 * register + byte - 16,
            _ => place_of(ZMM_HIGH).start + 32 * register + byte - 32,
        };
        &mut self.0[start..start + 8]
    }

    pub fn lane(&mut self, register: usize, lane: usize) -> u64 {
        u64::from_le_bytes(self.part_of_vector(register, 8 * lane).try_into().unwrap())
    }

    pub fn set_lane(&mut self, register: usize, lane: usize, value: u64) {
        self.part_of_vector(register, 8 * lane).copy_from_slice(&value.to_le_bytes());
    }

    pub fn mask(&self, register: usize) -> u64 {
        let start = place_of(MASKS).start + 8 * register;
        u64::from_le_bytes(self.0[start..start + 8].try_into().unwrap())
    }

    pub fn clear_mask(&mut self, register: usize) {
        let start = place_of(MASKS).start + 8 * register;
        self.0[start..start + 8].fill(0);
    }

    /// What differs between what was loaded and what is found, if anything. (Not the addresses of the last x87 instruction, which processors keep or not.)
    pub fn difference(&self, found: &Self, features: u64) -> Option<String> {
        let mut initial = Self([0; NUM_BYTES]);
        initial.initialise();
        initial.0[0..2].copy_from_slice(&0x37Fu16.to_le_bytes());
        let parts = [
            ("MXCSR", 0, MXCSR..MXCSR + 4),
            ("x87 control word", X87, 0..2),
            ("x87 status word", X87, 2..4),
            ("x87 tags", X87, 4..5),
            ("x87 stack", X87, STACK..XMM),
            ("xmm0 to xmm15", SSE, XMM..XMM + 256),
            ("upper halves of ymm0 to ymm15", AVX, place_of(AVX)),
            ("k0 to k7", MASKS, place_of(MASKS)),
            ("upper halves of zmm0 to zmm15", ZMM_HIGH, place_of(ZMM_HIGH)),
            ("zmm16 to zmm31", ZMM_16_TO_31, place_of(ZMM_16_TO_31)),
        ];
        parts.into_iter().filter(|(_, component, _)| features & component == *component).find_map(|(name, component, bytes)| {
            let expected = if self.used() & component == component { &self.0[bytes.clone()] } else { &initial.0[bytes.clone()] };
            let found = &found.0[bytes];
            (found != expected).then(|| format!("{name}: {found:02x?} instead of {expected:02x?}"))
        })
    }
}

/// Control and status word: any precision, rounding, top of the stack and condition codes. Exceptions that are not masked must not be there, or the next
/// instruction would raise them.
fn x87_words(random: u64) -> (u16, u16) {
    let (control, status) = (random as u16, (random >> 16) as u16);
    if random >> 32 & 1 == 0 { (control & 0xF00 | 0x7F, status & 0x7F7F) } else { (control & 0xF3F | 0x40, status & 0x7F00) }
}
