//! Requests on their way to a server: headers and pages gathered into one message, so that a batch costs one system call, and pages are sent from where they
//! are. Within TLS they are copied from there, since pages do not change.

use super::wire::REQUEST_BYTES;
use crate::try_catch;
use std::cell::{Cell, UnsafeCell};

/// Requests of one message.
const MAX_REQUESTS: usize = 64;
/// Bytes of one message, if it has more than one request: what follows should not wait for too long.
const MAX_BYTES: usize = 1 << 20;

struct Message {
    headers: [[u8; REQUEST_BYTES]; MAX_REQUESTS],
    vectors: [libc::iovec; 2 * MAX_REQUESTS],
    header: libc::msghdr,
    /// Vectors in use, and the first that was not sent whole.
    num_vectors: usize,
    first: usize,
    num_requests: usize,
    /// Bytes left to send.
    num_bytes: usize,
}

/// The message that is being gathered or sent; for one thread.
pub(super) struct Outbox {
    message: Box<UnsafeCell<Message>>,
    /// The kernel reads the message: it must not change.
    is_sending: Cell<bool>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        // SAFETY: all of it is plain data, for which zeroes are valid.
        let message = unsafe { Box::<UnsafeCell<Message>>::new_zeroed().assume_init() };
        Self { message, is_sending: Cell::new(false) }
    }

    #[expect(clippy::mut_from_ref, reason = "see SAFETY")]
    fn message(&self) -> &mut Message {
        debug_assert!(!self.is_sending.get());
        // SAFETY: only methods of this type refer to the message, none calls another one while it does, and the kernel does so only while it is being sent.
        unsafe { &mut *self.message.get() }
    }

    /// Forgets the message. Not while it is being sent.
    pub(super) fn clear(&self) {
        let message = self.message();
        (message.num_vectors, message.first, message.num_requests, message.num_bytes) = (0, 0, 0, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.message().num_bytes == 0
    }

    /// Adds a request with `num_bytes` at `payload` (none if that is null); `false` if there is no room for it now.
    pub(super) fn add(&self, header: [u8; REQUEST_BYTES], payload: *const u8, num_bytes: usize) -> bool {
        let message = self.message();
        let number = message.num_requests;
        if number == MAX_REQUESTS || (number > 0 && message.num_bytes + num_bytes > MAX_BYTES) {
            return false;
        }
        message.headers[number] = header;
        let header = message.headers[number].as_mut_ptr();
        message.push(header, REQUEST_BYTES);
        if !payload.is_null() {
            message.push(payload.cast_mut(), num_bytes);
        }
        message.num_requests += 1;
        true
    }

    /// What is left, for the kernel: valid until [`Self::sent`].
    pub(super) fn begin_send(&self) -> *const libc::msghdr {
        let message = self.message();
        message.header.msg_iov = (&raw mut message.vectors[message.first]).cast();
        message.header.msg_iovlen = message.num_vectors - message.first;
        let header = &raw const message.header;
        self.is_sending.set(true);
        header
    }

    /// Takes as many bytes of what is left as there are and `target` has room for; `None` if the memory of a page is damaged.
    pub(super) fn take(&self, target: &mut [u8]) -> Option<usize> {
        let message = self.message();
        let vectors = &message.vectors[message.first..message.num_vectors];
        let copy = || {
            let mut num_taken = 0;
            for vector in vectors {
                let num_bytes = vector.iov_len.min(target.len() - num_taken);
                // SAFETY: the source is a header of ours, or pages that are their writer's until the write has ended; and there is room.
                unsafe { std::ptr::copy_nonoverlapping(vector.iov_base.cast(), target[num_taken..].as_mut_ptr(), num_bytes) };
                num_taken += num_bytes;
                if num_taken == target.len() {
                    break;
                }
            }
            num_taken
        };
        // What a damaged page leads to must not be the program's try block.
        // SAFETY: copies have nothing to clean up.
        let num_taken = unsafe { try_catch::try_without_paging(copy) }.ok()?;
        self.sent(num_taken);
        Some(num_taken)
    }

    /// So many bytes of it were sent.
    pub(super) fn sent(&self, num_bytes: usize) {
        self.is_sending.set(false);
        let message = self.message();
        message.num_bytes -= num_bytes;
        let mut left = num_bytes;
        while left > 0 {
            let vector = &mut message.vectors[message.first];
            if left < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(left);
                vector.iov_len -= left;
                return;
            }
            left -= vector.iov_len;
            message.first += 1;
        }
        if message.num_bytes == 0 {
            self.clear();
        }
    }
}

impl Message {
    fn push(&mut self, start: *mut u8, num_bytes: usize) {
        self.vectors[self.num_vectors] = libc::iovec { iov_base: start.cast(), iov_len: num_bytes };
        self.num_vectors += 1;
        self.num_bytes += num_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However little is sent at a time, all of it is, in order.
    #[test]
    fn short_sends_go_on_where_they_ended() {
        let payload = [9u8; 100];
        for step in [1, 27, 28, 29, 128, 200] {
            let outbox = Outbox::new();
            assert!(outbox.add([1; REQUEST_BYTES], std::ptr::null(), 0) && outbox.add([2; REQUEST_BYTES], payload.as_ptr(), 100));
            let mut sent: Vec<u8> = Vec::new();
            while !outbox.is_empty() {
                // SAFETY: a message of valid vectors.
                let message = unsafe { &*outbox.begin_send() };
                let mut all: Vec<u8> = Vec::new();
                for index in 0..message.msg_iovlen {
                    // SAFETY: as above.
                    all.extend(unsafe {
                        std::slice::from_raw_parts((*message.msg_iov.add(index)).iov_base.cast::<u8>(), (*message.msg_iov.add(index)).iov_len)
                    });
                }
                all.truncate(step);
                outbox.sent(all.len());
                sent.extend(all);
            }
            let expected = [vec![1; 28], vec![2; 28], vec![9; 100]].concat();
            assert_eq!(sent, expected);
            // The same if it is copied from there.
            assert!(outbox.add([1; REQUEST_BYTES], std::ptr::null(), 0) && outbox.add([2; REQUEST_BYTES], payload.as_ptr(), 100));
            let parts = std::iter::repeat_with(|| {
                let mut part = vec![0; step];
                let num_taken = outbox.take(&mut part).unwrap();
                part.truncate(num_taken);
                part
            });
            assert_eq!(parts.take_while(|part| !part.is_empty()).flatten().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_message_has_an_end() {
        let outbox = Outbox::new();
        let num_added = (0..1000).take_while(|_| outbox.add([0; REQUEST_BYTES], std::ptr::null(), 0)).count();
        assert_eq!(num_added, MAX_REQUESTS);
        outbox.clear();
        let large = vec![0u8; MAX_BYTES];
        assert!(outbox.add([0; REQUEST_BYTES], large.as_ptr(), large.len()));
        assert!(!outbox.add([0; REQUEST_BYTES], large.as_ptr(), 1));
    }
}
