//! Code that sets every register, makes one access, and stores every register.

pub mod extended;

use extended::Extended;
use std::arch::naked_asm;
use std::mem::offset_of;

/// Numbers of the general registers in [`State`].
pub const RAX: usize = 0;
pub const RBX: usize = 1;
pub const RCX: usize = 2;
pub const RSI: usize = 4;
pub const RDI: usize = 5;
pub const RSP: usize = 7;
pub const NAMES: [&str; 16] = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Carry, parity, adjust, zero, sign and overflow.
pub const ARITHMETIC_FLAGS: u64 = 0x8D5;
pub const DIRECTION_FLAG: u64 = 1 << 10;
/// Interrupts, and the bit that is always 1.
pub const FIXED_FLAGS: u64 = 0x202;

/// What a probe loads, and what it finds after its access.
#[repr(C)]
pub struct State {
    pub extended_before: Extended,
    pub extended_after: Extended,
    /// What Rust code expects to run with.
    usual: Extended,
    /// Components of the extended state that are loaded and stored.
    features: u64,
    /// The stack pointer is set by the probe.
    pub general_before: [u64; 16],
    pub general_after: [u64; 16],
    pub flags_before: u64,
    pub flags_after: u64,
    pub red_zone_before: [u64; 16],
    pub red_zone_after: [u64; 16],
    /// How far the stack pointer is from a multiple of 64: less than that.
    pub misalignment: u64,
    own_stack_pointer: u64,
}

impl State {
    /// In the heap: it is large for the stack of an LWT.
    pub fn new(features: u64) -> Box<Self> {
        // SAFETY: all of it is numbers.
        let mut state: Box<Self> = unsafe { Box::new_zeroed().assume_init() };
        state.features = features;
        state.usual.initialise();
        state
    }
}

/// One access; see [`probes`].
pub type Probe = unsafe extern "C" fn(*mut State);

/// Makes a probe of some instructions. They must not change the stack pointer, or use the stack.
macro_rules! probe {
    ($(#[$attribute:meta])* $name:ident, $($access:literal),+) => {
        $(#[$attribute])*
        /// # Safety
        /// The state is complete, its features are those of the processor and the system, and the access is one that the caller may make.
        // SAFETY: keeps to the C calling convention: what belongs to the caller is saved, the direction flag is clear at the end, and MXCSR and the x87 control word are
        // as they usually are.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(state: *mut State) {
            naked_asm!(
                "push rbx",
                "push rbp",
                "push r12",
                "push r13",
                "push r14",
                "push r15",
                "mov [rdi + {own_stack_pointer}], rsp",
                "mov eax, [rdi + {features}]",
                "xor edx, edx",
                "xrstor64 [rdi + {extended_before}]",
                "sub rsp, 512",
                "and rsp, -64",
                "sub rsp, [rdi + {misalignment}]",
                "mov [rsp], rdi",
                "mov [rdi + {general_before} + 56], rsp",
                "push qword ptr [rdi + {flags_before}]",
                "popfq",
                // No flag changes from here on.
                ".set i, 0",
                ".rept 16",
                "mov rax, [rdi + {red_zone_before} + i]",
                "mov [rsp - 128 + i], rax",
                ".set i, i + 8",
                ".endr",
                "mov rax, [rdi + {general_before}]",
                "mov rbx, [rdi + {general_before} + 8]",
                "mov rcx, [rdi + {general_before} + 16]",
                "mov rdx, [rdi + {general_before} + 24]",
                "mov rsi, [rdi + {general_before} + 32]",
                "mov rbp, [rdi + {general_before} + 48]",
                "mov r8, [rdi + {general_before} + 64]",
                "mov r9, [rdi + {general_before} + 72]",
                "mov r10, [rdi + {general_before} + 80]",
                "mov r11, [rdi + {general_before} + 88]",
                "mov r12, [rdi + {general_before} + 96]",
                "mov r13, [rdi + {general_before} + 104]",
                "mov r14, [rdi + {general_before} + 112]",
                "mov r15, [rdi + {general_before} + 120]",
                "mov rdi, [rdi + {general_before} + 40]",
                $($access,)+
                "mov [rsp + 8], rax",
                "mov [rsp + 16], rbx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], rdx",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdi",
                "mov [rsp + 56], rbp",
                "mov [rsp + 64], rsp",
                "mov [rsp + 72], r8",
                "mov [rsp + 80], r9",
                "mov [rsp + 88], r10",
                "mov [rsp + 96], r11",
                "mov [rsp + 104], r12",
                "mov [rsp + 112], r13",
                "mov [rsp + 120], r14",
                "mov [rsp + 128], r15",
                "mov rdi, [rsp]",
                ".set i, 0",
                ".rept 16",
                "mov rax, [rsp - 128 + i]",
                "mov [rdi + {red_zone_after} + i], rax",
                "mov rax, [rsp + 8 + i]",
                "mov [rdi + {general_after} + i], rax",
                ".set i, i + 8",
                ".endr",
                "pushfq",
                "pop qword ptr [rdi + {flags_after}]",
                "cld",
                "mov eax, [rdi + {features}]",
                "xor edx, edx",
                "xsave64 [rdi + {extended_after}]",
                "xrstor64 [rdi + {usual}]",
                "mov rsp, [rdi + {own_stack_pointer}]",
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop rbp",
                "pop rbx",
                "ret",
                own_stack_pointer = const offset_of!(State, own_stack_pointer),
                features = const offset_of!(State, features),
                extended_before = const offset_of!(State, extended_before),
                extended_after = const offset_of!(State, extended_after),
                usual = const offset_of!(State, usual),
                misalignment = const offset_of!(State, misalignment),
                general_before = const offset_of!(State, general_before),
                general_after = const offset_of!(State, general_after),
                flags_before = const offset_of!(State, flags_before),
                flags_after = const offset_of!(State, flags_after),
                red_zone_before = const offset_of!(State, red_zone_before),
                red_zone_after = const offset_of!(State, red_zone_after),
            )
        }
    };
}

/// The accesses. Where they go, and what they store, is in the general registers.
pub mod probes {
    use super::*;

    probe!(load, "mov rax, [rbx]");
    probe!(store, "mov [rbx], rax");
    probe!(add, "lock xadd [rbx], rax");
    probe!(copy, "rep movsb");
    probe!(load_vector, "movdqu xmm3, [rbx]");
    probe!(store_vector, "movdqu [rbx], xmm3");
    probe!(
        /// Of four words, those whose words in ymm7 are negative.
        gather,
        "vpgatherqq ymm5, [rbx + ymm6], ymm7"
    );
    probe!(
        /// Of eight words, those whose bits in k1 are set.
        gather_wide,
        "vpgatherqq zmm5 {{k1}}, [rbx + zmm6]"
    );
}
