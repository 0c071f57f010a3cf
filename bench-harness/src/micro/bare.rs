//! The floor of notification: a SIGBUS handler that does nothing but note the time and map a page, with a userfaultfd of its own.

use super::{latency_ns, now_ns};
use anyhow::{Result, bail};
use lightswap::PAGE_SIZE;
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl;
use std::cell::Cell;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;

thread_local! {
    static NOTIFIED_NS: Cell<u64> = const { Cell::new(0) };
}
static UFFD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let notified_ns = now_ns();
    // SAFETY: the kernel passes a valid siginfo; the range is registered.
    unsafe {
        let page = (*info).si_addr() as u64 & !(PAGE_SIZE as u64 - 1);
        let range = raw::uffdio_range { start: page, len: PAGE_SIZE as u64 };
        let mut zero = raw::uffdio_zeropage { range, mode: 1, zeropage: 0 };
        if libc::ioctl(UFFD.load(Relaxed), ioctl::UFFDIO_ZEROPAGE as libc::c_ulong, &mut zero) != 0 {
            libc::abort();
        }
    }
    NOTIFIED_NS.set(notified_ns);
}

/// A registered range, and the SIGBUS action that was there before; both are undone on drop.
struct Range {
    base: usize,
    num_pages: usize,
    previous: libc::sigaction,
}

impl Range {
    fn new(num_pages: usize) -> Result<Self> {
        let len = num_pages * PAGE_SIZE;
        // SAFETY: a new mapping and a new descriptor; each struct belongs to its request; a zeroed sigaction is valid.
        unsafe {
            let memory = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            let uffd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | raw::UFFD_USER_MODE_ONLY as i32) as i32;
            if memory == libc::MAP_FAILED || uffd < 0 {
                bail!("no memory or no userfaultfd for the bare handler: {}", std::io::Error::last_os_error());
            }
            libc::madvise(memory, len, libc::MADV_NOHUGEPAGE);
            let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features: raw::UFFD_FEATURE_SIGBUS.into(), ioctls: 0 };
            let range = raw::uffdio_range { start: memory as u64, len: len as u64 };
            let mut register = raw::uffdio_register { range, mode: raw::UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
            if libc::ioctl(uffd, ioctl::UFFDIO_API as libc::c_ulong, &mut api) != 0
                || libc::ioctl(uffd, ioctl::UFFDIO_REGISTER as libc::c_ulong, &mut register) != 0
            {
                bail!("cannot register memory for the bare handler: {}", std::io::Error::last_os_error());
            }
            UFFD.store(uffd, Relaxed);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            let mut previous: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, &action, &mut previous);
            Ok(Self { base: memory as usize, num_pages, previous })
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: both were made by `new`; nobody uses the range any more.
        unsafe {
            libc::sigaction(libc::SIGBUS, &self.previous, std::ptr::null_mut());
            libc::munmap(self.base as *mut _, self.num_pages * PAGE_SIZE);
            libc::close(UFFD.swap(-1, Relaxed));
        }
    }
}

/// Notification latencies in nanoseconds, sorted: `num_threads` threads fault at the same time, each `num_faults` times, in a random order of pages.
pub fn measure(num_threads: usize, num_faults: usize) -> Result<Vec<u32>> {
    let range = Range::new(num_threads * num_faults)?;
    let (base, stride) = (range.base, num_faults);
    let measure_part = move |thread: usize| {
        // An odd multiplier visits every page of a power of two once.
        let order = (0..stride).map(move |index| index.wrapping_mul(0x9E37_79B1) % stride);
        let fault = move |page: usize| {
            let address = (base + (thread * stride + page) * PAGE_SIZE) as *const u64;
            let start_ns = now_ns();
            // SAFETY: inside the thread's part of the range.
            unsafe { address.read_volatile() };
            latency_ns(start_ns, NOTIFIED_NS.get())
        };
        order.map(fault).collect::<Vec<u32>>()
    };
    let mut all: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|thread| scope.spawn(move || measure_part(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a measuring thread does not panic")).collect()
    });
    all.sort_unstable();
    Ok(all)
}
