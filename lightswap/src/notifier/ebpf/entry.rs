//! Where redirected threads arrive, in the middle of any code: saves all of its registers, has the fault served, and loads them again.

use super::device::Slot;
use crate::error::{Error, ErrorKind, Result};
use crate::notifier::resume::{self, LAST_BYTES, Registers};
use crate::notifier::sigbus;
use std::arch::x86_64::__cpuid_count;
use std::arch::{asm, naked_asm};
use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// Components of the extended state that are saved; set before any thread arrives.
static FEATURES: AtomicU64 = AtomicU64::new(0);
/// Bytes they take at most.
static AREA_BYTES: AtomicU64 = AtomicU64::new(0);
/// 1 if the processor can skip components in their initial state (XSAVEC).
static HAS_XSAVEC: AtomicU64 = AtomicU64::new(0);
/// What the kernel gives signal handlers, too.
static INITIAL_MXCSR: u32 = 0x1f80;

/// The legacy area and the header.
const FIXED_BYTES: u32 = 512 + 64;
/// Protection keys, which stay as they are.
const PKRU: u64 = 1 << 9;
/// Tiles of AMX: 8 KiB, which a process may use only after it has asked the kernel.
const TILES: u64 = 3 << 17;
const ARCH_GET_XCOMP_PERM: libc::c_long = 0x1022;

/// The address the kernel module is told.
pub(super) fn address() -> usize {
    entry as *const () as usize
}

/// Finds out what this process's extended state consists of.
pub(super) fn configure() -> Result<()> {
    const OSXSAVE: u32 = 1 << 27;
    const XSAVEC: u32 = 1 << 1;
    if __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return Err(Error::new(ErrorKind::InvalidArgument, "the processor has no XSAVE"));
    }
    let features = enabled_features() & !PKRU & !if may_use_tiles() { 0 } else { TILES };
    // Of both formats, whichever is used: in the standard one every component has its place, in the compacted one they follow each other, each aligned at most.
    let components = || (2..63).filter(|component| features >> component & 1 == 1).map(|component| __cpuid_count(0xd, component));
    let standard = components().map(|component| component.ebx + component.eax).max().unwrap_or(0);
    let compacted: u32 = components().map(|component| component.eax.next_multiple_of(64)).sum();
    FEATURES.store(features, Release);
    AREA_BYTES.store(u64::from(standard.max(FIXED_BYTES + compacted).max(FIXED_BYTES)), Release);
    HAS_XSAVEC.store(u64::from(__cpuid_count(0xd, 1).eax & XSAVEC != 0), Release);
    Ok(())
}

fn enabled_features() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the system has enabled XSAVE, and with it this instruction.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Whether the process has asked for them, by now.
fn may_use_tiles() -> bool {
    let mut permitted = 0u64;
    // SAFETY: writes 8 bytes; a kernel that does not know the call writes none.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &raw mut permitted) };
    result == 0 && permitted & TILES != 0
}

/// The kernel module sends threads here, with the stack pointer below their red zone, the direction flag clear, and the slot's address in rdi. Everything else
/// is the interrupted code's. Signals may come at any instruction, and their handlers may fault: while the slot is full those faults come as signals.
// SAFETY: called by nobody else, see above. All registers are saved in a `Registers` that keeps away from what `resume` writes, and the extended state behind it.
#[unsafe(naked)]
unsafe extern "C" fn entry() {
    naked_asm!(
        // A debugger's walk up the stack ends here.
        ".cfi_startproc",
        ".cfi_undefined rip",
        // Interrupted code may keep its stack pointer anywhere. Its flags are in the slot.
        "sub rsp, {frame}",
        "and rsp, -16",
        "mov [rsp + {r8}], r8",
        "mov [rsp + {r9}], r9",
        "mov [rsp + {r10}], r10",
        "mov [rsp + {r11}], r11",
        "mov [rsp + {r12}], r12",
        "mov [rsp + {r13}], r13",
        "mov [rsp + {r14}], r14",
        "mov [rsp + {r15}], r15",
        "mov [rsp + {rsi}], rsi",
        "mov [rsp + {rbp}], rbp",
        "mov [rsp + {rbx}], rbx",
        "mov [rsp + {rdx}], rdx",
        "mov [rsp + {rax}], rax",
        "mov [rsp + {rcx}], rcx",
        "mov rax, [rdi + {slot_di}]",
        "mov rcx, [rdi + {slot_sp}]",
        "mov rdx, [rdi + {slot_ip}]",
        "mov rsi, [rdi + {slot_flags}]",
        "mov [rsp + {rdi}], rax",
        "mov [rsp + {rsp}], rcx",
        "mov [rsp + {rip}], rdx",
        "mov [rsp + {flags}], rsi",
        "mov r12, [rdi + {slot_address}]",
        "mov r13d, [rdi + {slot_fault}]",
        // From here on the thread's faults can be redirected again.
        "mov dword ptr [rdi + {slot_is_full}], 0",
        "mov rbx, rsp",
        "sub rsp, [rip + {area_bytes}]",
        "and rsp, -64",
        // The header, which must not have anything unknown in it.
        "xor eax, eax",
        "mov [rsp + 512], rax",
        "mov [rsp + 520], rax",
        "mov [rsp + 528], rax",
        "mov [rsp + 536], rax",
        "mov [rsp + 544], rax",
        "mov [rsp + 552], rax",
        "mov [rsp + 560], rax",
        "mov [rsp + 568], rax",
        "mov eax, [rip + {features}]",
        "mov edx, [rip + {features} + 4]",
        "cmp qword ptr [rip + {has_xsavec}], 0",
        "je 2f",
        "xsavec64 [rsp]",
        "jmp 3f",
        "2:",
        "xsave64 [rsp]",
        "3:",
        // As the kernel does for signal handlers.
        "fninit",
        "ldmxcsr [rip + {mxcsr}]",
        "mov rdi, rbx",
        "mov rsi, rsp",
        "mov rdx, r12",
        "mov ecx, r13d",
        "call {serve}",
        "ud2",
        ".cfi_endproc",
        frame = const LAST_BYTES + size_of::<Registers>(),
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
        slot_is_full = const offset_of!(Slot, is_full),
        slot_fault = const offset_of!(Slot, fault),
        slot_address = const offset_of!(Slot, address),
        slot_ip = const offset_of!(Slot, ip),
        slot_sp = const offset_of!(Slot, sp),
        slot_flags = const offset_of!(Slot, flags),
        slot_di = const offset_of!(Slot, di),
        area_bytes = sym AREA_BYTES,
        features = sym FEATURES,
        has_xsavec = sym HAS_XSAVEC,
        mxcsr = sym INITIAL_MXCSR,
        serve = sym serve,
    )
}

/// Serves the fault and goes back to the access. May leave its LWT meanwhile, and for good if the page cannot be had.
///
/// # Safety
/// Called by [`entry`] with what it has saved.
unsafe extern "C" fn serve(registers: *const Registers, extended: *const u8, address: usize, error: u32) -> ! {
    // SAFETY: the caller's promise.
    let stack_pointer = unsafe { (*registers).rsp } as usize;
    sigbus::serve_redirected(address, error, stack_pointer);
    // SAFETY: the code was interrupted in 64-bit mode with plain flags, or the module would not have redirected it; there is no shadow stack (see `Setup::new`). The registers
    // are above this frame, and end where what `resume` writes begins, or below.
    unsafe { resume::resume(registers, extended, FEATURES.load(Relaxed)) }
}
