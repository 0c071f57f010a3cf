//! The system-call wrappers: the kernel accesses pages of a region that are missing, half missing, protected, or more than fit local memory.

mod common;

use common::pages::{Pages, pattern};
use common::{Backend, LEAST_PAGES, PAGE, Random, Watchdog, builder, kernel_is_able, stat};
use lightswap::{Contract, Lightswap, Region, syscalls};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const NUM_PAGES: usize = 200;

/// A region with patterns in it, in the least local memory there is: 16 frames, 8 of which can be pinned.
fn open(contract: Contract) -> (Watchdog, Lightswap, Region, Pages) {
    let swap = builder(LEAST_PAGES, Backend::File.url(NUM_PAGES)).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, contract).unwrap();
    let pages = Pages::of(&region);
    (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
    (Watchdog::new("a test of syscalls.rs", Duration::from_secs(40)), swap, region, pages)
}

/// The patterns of the pages from `first` on, as bytes.
fn bytes_of(first: usize, num_bytes: usize, seed: u64) -> Vec<u8> {
    let words = (0..num_bytes.div_ceil(8)).map(|index| pattern(first + index / 512, index % 512, seed));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    bytes.truncate(num_bytes);
    bytes
}

fn iovec(address: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: address.cast(), iov_len: len }
}

fn write(fd: RawFd, address: *const u8, len: usize) -> isize {
    // SAFETY: tests pass memory of their regions and buffers.
    unsafe { syscalls::write(fd, address.cast(), len) }
}

fn read(fd: RawFd, address: *mut u8, len: usize) -> isize {
    // SAFETY: as above.
    unsafe { syscalls::read(fd, address.cast(), len) }
}

fn writev(fd: RawFd, vector: &[libc::iovec]) -> isize {
    // SAFETY: as above.
    unsafe { syscalls::writev(fd, vector.as_ptr(), vector.len() as i32) }
}

fn readv(fd: RawFd, vector: &[libc::iovec]) -> isize {
    // SAFETY: as above.
    unsafe { syscalls::readv(fd, vector.as_ptr(), vector.len() as i32) }
}

fn header(vector: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: an all-zero msghdr is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector.as_mut_ptr();
    header.msg_iovlen = vector.len() as _;
    header
}

fn sendmsg(fd: RawFd, vector: &mut [libc::iovec]) -> isize {
    // SAFETY: as above.
    unsafe { syscalls::sendmsg(fd, &header(vector), 0) }
}

/// The result and the flags that the call has set.
fn recvmsg(fd: RawFd, vector: &mut [libc::iovec], flags: i32) -> (isize, i32) {
    let mut header = header(vector);
    // SAFETY: as above.
    let result = unsafe { syscalls::recvmsg(fd, &mut header, flags) };
    (result, header.msg_flags)
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// Repeats a transfer on a stream until all of it is done, as programs do.
fn all_of(num_bytes: usize, mut part: impl FnMut(usize) -> isize) {
    let mut done = 0;
    while done < num_bytes {
        let result = part(done);
        assert!(result > 0, "after {done} of {num_bytes} bytes: {result}, {}", std::io::Error::last_os_error());
        done += result as usize;
    }
}

/// Sends the whole region through `sender`, compares what arrives, and receives it into the region again.
fn through(pages: Pages, sender: &OwnedFd, receiver: &OwnedFd, vectored: bool) {
    let total = NUM_PAGES * PAGE - 2 * 100;
    let expected = bytes_of(0, NUM_PAGES * PAGE, 1)[100..NUM_PAGES * PAGE - 100].to_vec();
    let mut copy = vec![0u8; total];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            all_of(total, |done| {
                let (address, len) = (pages.address(0).wrapping_add(100 + done), total - done);
                // Two entries that are not aligned, or one.
                let half = len / 2 + 7;
                if vectored && len > 100 {
                    writev(sender.as_raw_fd(), &[iovec(address, half), iovec(address.wrapping_add(half), len - half)])
                } else {
                    write(sender.as_raw_fd(), address, len)
                }
            });
        });
        // SAFETY: the rest of the buffer.
        all_of(total, |done| unsafe { libc::read(receiver.as_raw_fd(), copy[done..].as_mut_ptr().cast(), total - done) });
    });
    assert!(copy == expected, "the region was sent wrong");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let news = bytes_of(0, NUM_PAGES * PAGE, 2)[100..NUM_PAGES * PAGE - 100].to_vec();
            // SAFETY: the rest of the buffer.
            all_of(total, |done| unsafe { libc::write(sender.as_raw_fd(), news[done..].as_ptr().cast(), total - done) });
        });
        all_of(total, |done| {
            let (address, len) = (pages.address(0).wrapping_add(100 + done), total - done);
            let half = len / 2 + 7;
            if vectored && len > 100 {
                readv(receiver.as_raw_fd(), &[iovec(address, half), iovec(address.wrapping_add(half), len - half)])
            } else {
                read(receiver.as_raw_fd(), address, len)
            }
        });
    });
    (1..NUM_PAGES - 1).for_each(|page| pages.check(page, 2));
}

#[test]
fn streams_carry_more_than_local_memory() {
    if !kernel_is_able() {
        return;
    }
    for contract in [Contract::Transparent, Contract::Cooperative] {
        for vectored in [false, true] {
            let (reader, writer) = std::io::pipe().unwrap();
            let (_watchdog, _swap, _region, pages) = open(contract);
            through(pages, &writer.into(), &reader.into(), vectored);
            let (one, two) = UnixStream::pair().unwrap();
            let (_watchdog, _swap, _region, pages) = open(contract);
            through(pages, &one.into(), &two.into(), vectored);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let two = listener.accept().unwrap().0;
            let (_watchdog, _swap, _region, pages) = open(contract);
            through(pages, &one.into(), &two.into(), vectored);
        }
    }
}

/// What is there already, what is missing, and ordinary memory, in one vector that comes back to the same pages.
#[test]
fn vectors_may_mix_and_revisit_pages() {
    if !kernel_is_able() {
        return;
    }
    for contract in [Contract::Transparent, Contract::Cooperative] {
        let (_watchdog, _swap, _region, pages) = open(contract);
        let (mut one, two) = UnixStream::pair().unwrap();
        let mut ordinary = *b"ordinary";
        pages.touch(3, 1);
        assert!(pages.is_resident(3));
        let address = |page: usize, offset: usize| pages.address(page).wrapping_add(offset);
        let vector = [
            iovec(address(3, 10), 20),
            iovec(ordinary.as_mut_ptr(), 8),
            iovec(address(150, 4000), 200),
            iovec(address(3, 0), 8),
            iovec(std::ptr::null_mut(), 0),
            iovec(address(77, 0), 4096),
            iovec(address(150, 4000), 200),
            iovec(address(77, 0), 8),
        ];
        let content = |page: usize, offset: usize, len: usize| bytes_of(page, 2 * PAGE, 1)[offset..offset + len].to_vec();
        let parts = [
            content(3, 10, 20),
            ordinary.to_vec(),
            content(150, 4000, 200),
            content(3, 0, 8),
            content(77, 0, 4096),
            content(150, 4000, 200),
            content(77, 0, 8),
        ];
        let expected = parts.concat();
        let sent = writev(two.as_raw_fd(), &vector);
        assert!(sent > 0);
        let mut copy = vec![0; sent as usize];
        one.read_exact(&mut copy).unwrap();
        assert_eq!(copy, expected[..sent as usize]);
        assert_eq!(sent as usize, expected.len(), "it all fits a window");
        // A cycle: 300 entries that visit 30 pages over and over.
        let cycle: Vec<_> = (0..300).map(|index| iovec(address(index * 7 % 30 * 5, 0), 16)).collect();
        let expected: Vec<u8> = (0..300).flat_map(|index| content(index * 7 % 30 * 5, 0, 16)).collect();
        let mut copy = Vec::new();
        while copy.len() < expected.len() {
            let sent = writev(two.as_raw_fd(), &cycle[copy.len() / 16..]);
            assert!(sent > 0 && sent % 16 == 0, "{sent}");
            let mut part = vec![0; sent as usize];
            one.read_exact(&mut part).unwrap();
            copy.extend(part);
        }
        assert_eq!(copy, expected);
        // And received into: the last write to a page wins.
        one.write_all(&[5; 64]).unwrap();
        let (result, _) = recvmsg(two.as_raw_fd(), &mut [iovec(address(9, 0), 32), iovec(address(180, 8), 16), iovec(address(9, 8), 16)], 0);
        assert_eq!(result, 64);
        assert_eq!(
            [pages.word(9, 0), pages.word(9, 3), pages.word(180, 1), pages.word(180, 0)],
            [0x0505_0505_0505_0505, 0x0505_0505_0505_0505, 0x0505_0505_0505_0505, pattern(180, 0, 1)]
        );
    }
}

/// A datagram is one message, however large, by whatever call.
#[test]
fn datagrams_stay_whole() {
    if !kernel_is_able() {
        return;
    }
    for contract in [Contract::Transparent, Contract::Cooperative] {
        let (_watchdog, _swap, _region, pages) = open(contract);
        let (one, two) = UnixDatagram::pair().unwrap();
        // More than a window (64 KiB), more than the pins there are (32 KiB), and a small one.
        for (num_bytes, by_message) in [(100 << 10, true), (100 << 10, false), (50 << 10, true), (50 << 10, false), (300, true), (300, false)] {
            let what = format!("{contract:?}, {num_bytes} bytes, by message {by_message}");
            let half = num_bytes / 2 + 3;
            let source = pages.address(20).wrapping_add(50);
            let mut vector = [iovec(source, half), iovec(source.wrapping_add(half), num_bytes - half)];
            let sent = if by_message { sendmsg(one.as_raw_fd(), &mut vector) } else { write(one.as_raw_fd(), source, num_bytes) };
            assert_eq!(sent, num_bytes as isize, "{what}: {}", std::io::Error::last_os_error());
            let target = pages.address(100);
            let mut vector = [iovec(target, half), iovec(target.wrapping_add(half), num_bytes - half)];
            let received = match by_message {
                true => recvmsg(two.as_raw_fd(), &mut vector, 0),
                false => (read(two.as_raw_fd(), target, num_bytes), 0),
            };
            assert_eq!(received, (num_bytes as isize, 0), "{what}");
            let expected = &bytes_of(20, 60 * PAGE, 1)[50..50 + num_bytes];
            // SAFETY: inside the region.
            let found = unsafe { std::slice::from_raw_parts(target, num_bytes) };
            assert!(found == expected, "{what}: wrong content");
        }
        // One that is cut says so, and does not write behind the vector.
        one.send(&[7; 1000]).unwrap();
        let before = pages.word(50, 2);
        let (result, flags) = recvmsg(two.as_raw_fd(), &mut [iovec(pages.address(50), 16)], 0);
        assert_eq!((result, flags & libc::MSG_TRUNC, pages.word(50, 2)), (16, libc::MSG_TRUNC, before));
        assert_eq!(pages.word(50, 1), 0x0707_0707_0707_0707);
    }
}

#[test]
fn failures_are_those_of_the_calls() {
    if !kernel_is_able() {
        return;
    }
    let (_watchdog, swap, _region, pages) = open(Contract::Transparent);
    let address = pages.address(60);
    let (mut reader, writer) = std::io::pipe().unwrap();
    for result in [read(-1, address, 10), write(-1, address, 10), readv(-1, &[iovec(address, 9)]), writev(-1, &[iovec(address, 9)])] {
        assert_eq!((result, errno()), (-1, libc::EBADF));
    }
    assert_eq!((sendmsg(-1, &mut [iovec(address, 9)]), errno()), (-1, libc::EBADF));
    assert_eq!((recvmsg(-1, &mut [iovec(address, 9)], 0).0, errno()), (-1, libc::EBADF));
    assert_eq!((sendmsg(writer.as_raw_fd(), &mut [iovec(address, 2 * PAGE)]), errno()), (-1, libc::ENOTSOCK));
    // Memory that is nobody's is EFAULT as ever, also behind the end of the region.
    assert_eq!((write(writer.as_raw_fd(), 16 as *const u8, 10), errno()), (-1, libc::EFAULT));
    let end = pages.address(NUM_PAGES).wrapping_sub(10);
    assert_eq!((write(writer.as_raw_fd(), end, 20), errno()), (-1, libc::EFAULT));
    // Nothing to transfer, nothing to wait for, and the end of the file.
    assert_eq!(write(writer.as_raw_fd(), address, 0), 0);
    assert_eq!(writev(writer.as_raw_fd(), &[]), 0);
    // SAFETY: a negative count is refused before the vector is looked at.
    assert_eq!((unsafe { syscalls::readv(reader.as_raw_fd(), std::ptr::null(), -1) }, errno()), (-1, libc::EINVAL));
    let (one, two) = UnixStream::pair().unwrap();
    two.set_nonblocking(true).unwrap();
    assert_eq!((read(two.as_raw_fd(), address, PAGE), errno()), (-1, libc::EAGAIN));
    drop(one);
    assert_eq!(read(two.as_raw_fd(), address, PAGE), 0);
    // A part of what was asked is a result, and says how much.
    assert_eq!(write(writer.as_raw_fd(), address, 10), 10);
    assert_eq!(read(reader.as_raw_fd(), pages.address(150), PAGE), 10);
    assert_eq!(write(writer.as_raw_fd(), pages.address(150), 10), 10);
    let mut copy = [0; 10];
    reader.read_exact(&mut copy).unwrap();
    assert_eq!(copy, bytes_of(60, 10, 1)[..]);
    assert_eq!(stat(&swap, "pinned_pages"), 0, "no pin is left behind");
}

/// All pins there are may be taken, for long: by a program, or by threads that wait for input into a region.
#[test]
fn calls_get_through_while_all_pins_are_taken() {
    if !kernel_is_able() {
        return;
    }
    for contract in [Contract::Transparent, Contract::Cooperative] {
        let (_watchdog, _swap, _region, pages) = open(contract);
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        pages.pin(0, 8).unwrap();
        assert!(pages.pin(8, 1).is_err(), "all pins are taken");
        assert!(write(writer.as_raw_fd(), pages.address(90), 3 * PAGE) > 0);
        let mut copy = [0; 100];
        reader.read_exact(&mut copy).unwrap();
        assert_eq!(copy, bytes_of(90, 100, 1)[..]);
        pages.unpin(0, 8);
        drop(reader);
        (reader, writer) = std::io::pipe().unwrap();
        // Twelve readers wait in the kernel; what they wait for is written from the region, too.
        std::thread::scope(|scope| {
            for thread in 0..12 {
                let reader = &reader;
                scope.spawn(move || assert_eq!(read(reader.as_raw_fd(), pages.address(100 + thread), 8), 8));
            }
            for _ in 0..12 {
                assert_eq!(write(writer.as_raw_fd(), pages.address(150), 8), 8);
            }
        });
        (100..112).for_each(|page| assert_eq!(pages.word(page, 0), pattern(150, 0, 1)));
    }
}

/// Eviction write-protects whole spans, pinned pages in between included if it comes just then: the kernel's write must not fail of it, and
/// what was received must not get lost.
#[test]
fn receiving_races_with_protection() {
    if !kernel_is_able() {
        return;
    }
    // Large batches, so that many pages lie between the victims of one; and many messages for each batch.
    let swap = builder(4096, Backend::Memory.url(6000)).open().unwrap();
    let region = swap.create_region(6000 * PAGE, Contract::Transparent).unwrap();
    let pages = Pages::of(&region);
    (0..6000).for_each(|page| pages.set_word(page, 1, 1));
    let must_stop = AtomicBool::new(false);
    let (one, two) = UnixDatagram::pair().unwrap();
    two.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let must_stop = &must_stop;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !must_stop.load(Relaxed) {
                    pages.set_word(random.below(6000), 5, random.next());
                }
            });
        }
        let mut random = Random::new(9);
        let start = std::time::Instant::now();
        let mut round = 0u64;
        while start.elapsed() < Duration::from_secs(2) {
            one.send(&round.to_ne_bytes()).unwrap();
            let page = random.below(6000);
            pages.touch(page, 1);
            let result = read(two.as_raw_fd(), pages.address(page), 8);
            if result != 8 {
                must_stop.store(true, Relaxed);
            }
            assert_eq!(result, 8, "message {round} was lost: {}", std::io::Error::last_os_error());
            assert_eq!(pages.word(page, 0), round);
            round += 1;
        }
        must_stop.store(true, Relaxed);
    });
}
