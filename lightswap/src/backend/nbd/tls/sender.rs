//! What is sent over a session: copied from the outbox into a buffer, encrypted there, and sent from there. As much as one system call should carry.

use super::TlsError;
use super::record::{HEADER_BYTES, MAX_CONTENT_BYTES, OVERHEAD_BYTES};
use super::session::Session;
use crate::error::Result;
use crate::size::{PAGE_SIZE, round_up};
use crate::sys::mapping::Mapping;
use rustls::AlertDescription;

/// Records of data that are made before any of them is sent. The pages of more would not be sent earlier, and these are in the cache when the kernel copies them.
const NUM_RECORDS: usize = 8;
/// Room for a key update, a last request, and the end of the session.
const MORE_BYTES: usize = 256;

/// The buffer: `start..end` is to be sent.
#[derive(Debug)]
pub(in super::super) struct Sender {
    session: Session,
    memory: Mapping,
    start: usize,
    end: usize,
}

impl Sender {
    pub(in super::super) fn new(session: Session) -> Result<Box<Self>> {
        let num_bytes = NUM_RECORDS * (MAX_CONTENT_BYTES + OVERHEAD_BYTES) + MORE_BYTES;
        let memory = Mapping::new(round_up(num_bytes, PAGE_SIZE).expect("few"), PAGE_SIZE)?;
        memory.advise(libc::MADV_DONTFORK);
        Ok(Box::new(Self { session, memory, start: 0, end: 0 }))
    }

    pub(in super::super) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// What is to be sent next; it stays where it is until [`Self::sent`]. `take` copies data, as much as there is and as there is room for; it may fail.
    pub(in super::super) fn next<E: From<TlsError>>(
        &mut self,
        mut take: impl FnMut(&mut [u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<&[u8], E> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // SAFETY: the mapping is this value's, and nobody reads it while nothing is being sent.
            let memory = unsafe { std::slice::from_raw_parts_mut(self.memory.base(), self.memory.len()) };
            self.end = self.session.seal_update(memory)?;
            for _ in 0..NUM_RECORDS {
                let record = &mut memory[self.end..];
                let num_bytes = take(&mut record[HEADER_BYTES..][..MAX_CONTENT_BYTES])?;
                if num_bytes == 0 {
                    break;
                }
                self.end += self.session.seal(record, num_bytes);
            }
        }
        Ok(self.unsent())
    }

    /// So many bytes of it were sent.
    pub(in super::super) fn sent(&mut self, num_bytes: usize) {
        debug_assert!(num_bytes <= self.end - self.start);
        self.start += num_bytes;
    }

    /// What is left to send with the end of the session: some last data, and an alert. Only while nothing is being sent, and only once.
    pub(in super::super) fn last(&mut self, data: &[u8], alert: AlertDescription) -> &[u8] {
        // SAFETY: as in `next`.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.memory.base(), self.memory.len()) };
        if !data.is_empty() {
            let record = &mut memory[self.end..];
            record[HEADER_BYTES..][..data.len()].copy_from_slice(data);
            self.end += self.session.seal(record, data.len());
        }
        self.end += self.session.seal_alert(&mut memory[self.end..], alert);
        self.unsent()
    }

    fn unsent(&self) -> &[u8] {
        // SAFETY: as in `next`.
        unsafe { std::slice::from_raw_parts(self.memory.base().add(self.start), self.end - self.start) }
    }
}
