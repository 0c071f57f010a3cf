//! Going back to interrupted code without a system call: all its registers are loaded in user space, the instruction pointer last.
//!
//! [`resume`] is the routine, for any notifier that has the registers in memory. [`leave_frame`] uses it to leave a signal frame instead of rt_sigreturn, where that
//! would restore nothing but registers: our handler is installed so that the signal mask is what it was, and whether a thread is on its alternate stack follows
//! from the stack pointer. What a frame holds that this way cannot restore sends it the kernel's way: see [`leave_frame`].

use std::arch::{asm, naked_asm};
use std::mem::offset_of;

/// The general registers of interrupted code, in the order in which the kernel puts them into a signal frame.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Registers {
    pub(super) r8: u64,
    pub(super) r9: u64,
    pub(super) r10: u64,
    pub(super) r11: u64,
    pub(super) r12: u64,
    pub(super) r13: u64,
    pub(super) r14: u64,
    pub(super) r15: u64,
    pub(super) rdi: u64,
    pub(super) rsi: u64,
    pub(super) rbp: u64,
    pub(super) rbx: u64,
    pub(super) rdx: u64,
    pub(super) rax: u64,
    pub(super) rcx: u64,
    pub(super) rsp: u64,
    pub(super) rip: u64,
    pub(super) flags: u64,
}

const _: () = {
    assert!(offset_of!(Registers, r15) == 8 * libc::REG_R15 as usize && offset_of!(Registers, rdi) == 8 * libc::REG_RDI as usize);
    assert!(offset_of!(Registers, rsp) == 8 * libc::REG_RSP as usize && offset_of!(Registers, rip) == 8 * libc::REG_RIP as usize);
    assert!(offset_of!(Registers, flags) == 8 * libc::REG_EFL as usize);
};

/// CF, PF, AF, ZF, SF, DF, OF and ID; and what every user program has: IF and the bit that is always 1. RF, which is set at every fault, is lost: a debugger's
/// breakpoint on the instruction is met again.
const RESTORABLE_FLAGS: u64 = 0x8D5 | 1 << 10 | 1 << 21 | 1 << 9 | 1 << 1 | 1 << 16;

impl Registers {
    /// Whether [`resume`] can restore these: with any other flag (TF, AC, NT) its own last instructions would trap.
    fn have_plain_flags(&self) -> bool {
        self.flags & !RESTORABLE_FLAGS == 0
    }
}

/// Whether the thread has a shadow stack, from which a return address that nobody pushed cannot be taken.
pub(super) fn has_shadow_stack() -> bool {
    let mut pointer = 0u64;
    // SAFETY: reads a register. Without shadow stacks the instruction is one that does nothing.
    unsafe { asm!("rdsspq {}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer != 0
}

/// Bytes below the stack pointer that belong to the code that runs.
const RED_ZONE_BYTES: usize = 128;
/// What [`resume`] puts below the red zone: rdx, rdi, flags and instruction pointer.
pub(super) const LAST_BYTES: usize = 32;

/// Continues the code that had these registers. `extended` is what XSAVE or XSAVEC stored, and `features` says which components of it to load; those of them that were in
/// their initial state are initialised. The last step is one `ret`, which loads the instruction pointer and takes the stack pointer past the red zone at once: a signal may come
/// at any instruction.
///
/// # Safety
/// * The registers are those of code of this thread that was interrupted and may go on: it ran in 64-bit mode with the present segments, and nobody else continues it.
/// * Their flags are plain ([`Registers::have_plain_flags`]), and the thread has no shadow stack.
/// * `extended` is aligned to 64 bytes, was stored by XSAVE or XSAVEC, and the processor has all of `features`.
/// * `registers` stays as it is while signals come: it lies at or above the present stack pointer, or on no stack. It does not overlap the 160 bytes below the
///   stack pointer in it, which may be written; `extended` may. What uses the stack in between is given up: nothing there needs cleaning up.
// SAFETY: by the demands above. Only what is read before the stack pointer changes lies in `registers` or `extended`; from then on all that is needed is at or above it.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn resume(registers: *const Registers, extended: *const u8, features: u64) -> ! {
    naked_asm!(
        "mov eax, edx",
        "shr rdx, 32",
        "xrstor64 [rsi]",
        "mov rdx, [rdi + {rsp}]",
        "sub rdx, {below}",
        "mov rax, [rdi + {rdx}]",
        "mov rcx, [rdi + {rdi}]",
        "mov [rdx], rax",
        "mov [rdx + 8], rcx",
        "mov rax, [rdi + {flags}]",
        "mov rcx, [rdi + {rip}]",
        "mov [rdx + 16], rax",
        "mov [rdx + 24], rcx",
        "mov r8, [rdi + {r8}]",
        "mov r9, [rdi + {r9}]",
        "mov r10, [rdi + {r10}]",
        "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]",
        "mov r13, [rdi + {r13}]",
        "mov r14, [rdi + {r14}]",
        "mov r15, [rdi + {r15}]",
        "mov rsi, [rdi + {rsi}]",
        "mov rbp, [rdi + {rbp}]",
        "mov rbx, [rdi + {rbx}]",
        "mov rax, [rdi + {rax}]",
        "mov rcx, [rdi + {rcx}]",
        "mov rsp, rdx",
        "pop rdx",
        "pop rdi",
        "popfq",
        "ret {red_zone}",
        below = const RED_ZONE_BYTES + LAST_BYTES,
        red_zone = const RED_ZONE_BYTES,
        r8 = const offset_of!(Registers, r8),
        r9 = const offset_of!(Registers, r9),
        r10 = const offset_of!(Registers, r10),
        r11 = const offset_of!(Registers, r11),
        r12 = const offset_of!(Registers, r12),
        r13 = const offset_of!(Registers, r13),
        r14 = const offset_of!(Registers, r14),
        r15 = const offset_of!(Registers, r15),
        rdi = const offset_of!(Registers, rdi),
        rsi = const offset_of!(Registers, rsi),
        rbp = const offset_of!(Registers, rbp),
        rbx = const offset_of!(Registers, rbx),
        rdx = const offset_of!(Registers, rdx),
        rax = const offset_of!(Registers, rax),
        rcx = const offset_of!(Registers, rcx),
        rsp = const offset_of!(Registers, rsp),
        rip = const offset_of!(Registers, rip),
        flags = const offset_of!(Registers, flags),
    )
}

/// `uc_flags`: the frame has what XSAVE stored.
const UC_FP_XSTATE: u64 = 1;
/// `uc_stack.ss_flags`: the kernel has taken the alternate stack away, and gives it back at rt_sigreturn.
const SS_AUTODISARM: i32 = 1 << 31;
/// In the part of the FXSAVE area that is left to software: this number, a size, and the components that the kernel stored.
const SOFTWARE_OFFSET: usize = 464;
const SOFTWARE_FEATURES_OFFSET: usize = SOFTWARE_OFFSET + 8;
const XSTATE_MAGIC: u32 = 0x4650_5853;

/// Leaves a signal handler for the code that it interrupted. Returns if that must go by rt_sigreturn: the processor has no XSAVE; that code is stepped through, checks
/// alignment, or ran with other segments; an alternate stack is to be given back; the thread has a shadow stack.
///
/// The signal mask and the alternate stack stay as they are now, where rt_sigreturn would set them as they were at the signal. (If other LWTs changed them meanwhile, that stays.)
///
/// # Safety
/// `context` is in a frame that the kernel pushed for a handler whose signal mask it left as it was, and this thread runs that handler, called by the kernel and nobody else.
/// What it interrupted may go on, and nothing on the stack from here to the frame needs cleaning up.
pub(super) unsafe fn leave_frame(context: *const libc::ucontext_t) {
    // SAFETY: the caller's promise.
    let frame = unsafe { &*context };
    let extended = frame.uc_mcontext.fpregs.cast::<u8>().cast_const();
    let registers = frame.uc_mcontext.gregs.as_ptr().cast::<Registers>();
    // SAFETY: the order in the frame is that of the struct.
    let are_plain = unsafe { (*registers).have_plain_flags() };
    let must_return = !are_plain
        || frame.uc_flags & UC_FP_XSTATE == 0
        || frame.uc_stack.ss_flags & SS_AUTODISARM != 0
        || Segments::of(frame) != Segments::present()
        || extended.is_null()
        || has_shadow_stack();
    if must_return {
        return;
    }
    // SAFETY: the area is that of FXSAVE at least. With this mark, the kernel has stored by XSAVE, aligned as that demands, what it calls features. The registers are in the
    // frame, above this function's own, and the frame's lowest part; the area is its highest, where 160 bytes below the red zone's end may be overwritten.
    unsafe {
        if extended.add(SOFTWARE_OFFSET).cast::<u32>().read() == XSTATE_MAGIC {
            resume(registers, extended, extended.add(SOFTWARE_FEATURES_OFFSET).cast::<u64>().read());
        }
    }
}

/// The segments that code runs in.
#[derive(PartialEq, Eq)]
struct Segments {
    code: u16,
    stack: u16,
}

impl Segments {
    fn of(frame: &libc::ucontext_t) -> Self {
        let all = frame.uc_mcontext.gregs[libc::REG_CSGSFS as usize] as u64;
        Self { code: all as u16, stack: (all >> 48) as u16 }
    }

    fn present() -> Self {
        let (code, stack): (u16, u16);
        // SAFETY: reads two registers.
        unsafe { asm!("mov {:x}, cs", "mov {:x}, ss", out(reg) code, out(reg) stack, options(nomem, nostack, preserves_flags)) };
        Self { code, stack }
    }
}
