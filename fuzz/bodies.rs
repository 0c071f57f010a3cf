//! What is done with an input, for libFuzzer's targets and for the test `faulty_inputs`. A body returns, or panics where the library breaks a promise.

use lightswap::capi::constants::{LSW_COOPERATIVE, LSW_OK, LSW_TRANSPARENT};
use lightswap::capi::error::{lsw_last_error, lsw_status_text};
use lightswap::capi::instance::{lsw_close, lsw_instance, lsw_open, lsw_parse_size};
use lightswap::capi::region::*;
use lightswap::{ErrorKind, check_backend_url, format_size, parse_size};
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// Any text as a backend URL: taken, or refused with a message.
pub fn url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = check_backend_url(&text) {
        assert_eq!(error.kind(), ErrorKind::BackendUrl, "{text:?}: {error}");
        assert!(error.to_string().len() > 20, "{text:?}: {error}");
    }
}

/// Any text as a schedule: taken, or refused with a place in it.
pub fn schedule(data: &[u8]) {
    let text = String::from_utf8_lossy(data).replace(')', "");
    let url = format!("faulty({text}):memory:?size=64KiB");
    let Err(error) = check_backend_url(&url) else { return };
    let message = error.to_string();
    let place = message.split_once("at byte ").and_then(|(_, rest)| rest.split_once(',')).and_then(|(number, _)| number.parse::<usize>().ok());
    let place = place.unwrap_or_else(|| panic!("{url:?}: no place in {message:?}"));
    assert!(url.is_char_boundary(place) && place >= "faulty(".len() && place <= "faulty(".len() + text.len(), "{url:?}: {message}");
    assert!(!message.contains('\n'), "{message:?}");
}

/// Any text as a size: refused, or a number that it prints and reads back.
pub fn size(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match parse_size(&text) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text:?}"),
        Ok(bytes) => {
            assert_eq!(parse_size(&bytes.to_string()).ok(), Some(bytes), "{text:?}");
            let again = parse_size(&format_size(bytes)).unwrap_or(u64::MAX);
            assert!(again.abs_diff(bytes) <= bytes / 10 || bytes > 1 << 62, "{text:?}: {bytes} -> {again}");
        }
    }
}

/// Takes an input apart; zeroes come after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number of any magnitude, small ones as likely as large ones.
    fn number(&mut self) -> u64 {
        let shift = self.byte() % 64;
        self.word() >> shift
    }
}

/// `lsw_config`, whose fields are private: the same layout, and room for fields of later versions.
#[repr(C)]
struct Config {
    local_memory_bytes: u64,
    backend_url: *const c_char,
    max_workers: u32,
    lwt_stack_bytes: u32,
    notifier: u32,
    waiting: u32,
    rest: [u64; 16],
}

const PAGE: usize = lightswap::PAGE_SIZE;
const NUM_BYTES: usize = 64 * PAGE;
const URLS: [&str; 8] = [
    "memory:?size=1MiB",
    "memory:?size=256KiB",
    "faulty(read@3=EIO;write@2=EIO):memory:?size=1MiB",
    "memory:?size=4096",
    "memory:",
    "file:/nonexistent/swap?size=1MiB",
    "faulty(read@0=EIO):memory:?size=1MiB",
    "",
];

/// Any status has a text, and a failure a sentence.
fn checked(status: c_int) -> c_int {
    // SAFETY: both return terminated strings for ever, or until the next failure.
    let (text, sentence) = unsafe { (CStr::from_ptr(lsw_status_text(status)), CStr::from_ptr(lsw_last_error())) };
    assert!(text.to_bytes() != b"unknown status", "{status}");
    assert!(status == LSW_OK || !sentence.to_bytes().is_empty(), "{status} without a sentence");
    status
}

/// An instance with any configuration, and calls with any arguments on its regions.
pub fn c_abi(data: &[u8]) {
    let mut input = Input(data);
    let text = CString::new(data.iter().copied().filter(|byte| *byte != 0).collect::<Vec<u8>>()).expect("without NULs");
    let mut num_bytes = 0;
    // SAFETY: a terminated string, and a place for the number.
    checked(unsafe { lsw_parse_size(text.as_ptr(), &mut num_bytes) });
    let Some(instance) = open(&mut input) else { return };
    let contract = [LSW_TRANSPARENT, LSW_COOPERATIVE, LSW_TRANSPARENT, c_int::from(input.byte())][usize::from(input.byte() % 4)];
    let len = if input.byte().is_multiple_of(4) { input.number() as usize } else { NUM_BYTES };
    let mut region = std::ptr::null_mut();
    // SAFETY: the instance is open, and there is a place for the region.
    if checked(unsafe { lsw_region_create(instance, len, contract, &mut region) }) == LSW_OK {
        use_region(&mut input, region);
        // SAFETY: made above, and not used any more.
        checked(unsafe { lsw_region_destroy(region) });
    }
    // SAFETY: as above.
    checked(unsafe { lsw_close(instance) });
}

fn open(input: &mut Input<'_>) -> Option<*mut lsw_instance> {
    let is_odd = input.byte().is_multiple_of(4);
    let url = CString::new(URLS[usize::from(input.byte()) % if is_odd { URLS.len() } else { 3 }]).expect("without NULs");
    let mut config = Config {
        local_memory_bytes: 24 * PAGE as u64,
        backend_url: url.as_ptr(),
        max_workers: 1,
        lwt_stack_bytes: 0,
        notifier: 0,
        waiting: 0,
        rest: [0; 16],
    };
    if is_odd {
        config.local_memory_bytes = input.number();
        config.max_workers = input.number() as u32;
        config.lwt_stack_bytes = input.number() as u32;
        config.notifier = u32::from(input.byte() % 3);
        config.waiting = u32::from(input.byte() % 3);
        config.backend_url = if input.byte() == 0 { std::ptr::null() } else { url.as_ptr() };
    }
    let mut instance = std::ptr::null_mut();
    // SAFETY: the layout is that of lsw_config, which is not longer; the string and the place for the instance live long enough.
    let status = checked(unsafe { lsw_open((&raw const config).cast(), &mut instance) });
    (status == LSW_OK).then_some(instance)
}

fn use_region(input: &mut Input<'_>, region: *mut lsw_region) {
    // SAFETY: the region exists.
    let (base, len) = unsafe { (lsw_region_base(region) as usize, lsw_region_len(region)) };
    assert!(base.is_multiple_of(2 << 20) && len.is_multiple_of(PAGE) && len > 0);
    while !input.0.is_empty() {
        let (call, place) = (input.byte(), input.byte());
        // Mostly inside, sometimes about its ends, sometimes anywhere.
        let address = match place % 8 {
            0 => input.word() as usize,
            1 => (base + len).wrapping_add_signed(input.byte() as i8 as isize),
            2 => base.wrapping_add_signed(input.byte() as i8 as isize),
            _ => base + input.word() as usize % len,
        };
        let wanted = if place & 8 == 0 { input.number() as usize } else { usize::from(input.byte()) * PAGE / 16 };
        let is_inside = address >= base && wanted <= len && address - base <= len - wanted;
        let at = address as *const c_void;
        let status = checked(match call % 8 {
            0 => lsw_touch(at, wanted),
            1 => lsw_pin(at, wanted),
            2 => lsw_unpin(at, wanted),
            3 => lsw_prefetch(at, wanted),
            4 => lsw_advise_cold(at, wanted),
            5 => lsw_reserve(at, wanted),
            6 => pin_and_write(address, wanted, call),
            _ => {
                assert!(is_inside || !lsw_is_resident(at, wanted));
                assert_eq!(lsw_in_region(at), (base..base + len).contains(&address));
                LSW_OK
            }
        });
        assert!(is_inside || status != LSW_OK || call % 8 == 7, "{address:#x} {wanted} is not inside");
    }
}

/// So that there is something to write back, and to read.
fn pin_and_write(address: usize, len: usize, value: u8) -> c_int {
    let status = lsw_pin(address as *const c_void, len);
    if status != LSW_OK {
        return status;
    }
    // SAFETY: the range lies inside the region, or it would not have been pinned.
    unsafe { std::ptr::write_bytes(address as *mut u8, value, len) };
    lsw_unpin(address as *const c_void, len)
}
