//! `memory:?size=8GiB`: slots in ordinary memory of this process, the backend without a device: for tests and as the floor of measurements.

use super::url::BackendUrl;
use super::{Backend, Write, slots_in};
use crate::error::{ErrorKind, Result};
use crate::io_queue::{IoQueue, Token};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use std::io;

#[derive(Debug)]
pub(super) struct MemoryBackend {
    slots: Mapping,
    num_slots: usize,
}

impl MemoryBackend {
    pub(super) fn open(url: &BackendUrl) -> Result<Self> {
        url.expect_only(&["size"])?;
        if !url.path.is_empty() {
            return Err(url.error(ErrorKind::BackendUrl, "memory: takes no path, only ?size=SIZE"));
        }
        let size = url.size()?.ok_or_else(|| url.error(ErrorKind::BackendUrl, "a size is needed: memory:?size=8GiB"))?;
        let num_slots = slots_in(size, &url.text)?;
        let slots = Mapping::new(bytes_of(num_slots), PAGE_SIZE)?;
        slots.advise(libc::MADV_DONTFORK);
        Ok(Self { slots, num_slots })
    }

    fn slot(&self, slot: usize) -> *mut u8 {
        debug_assert!(slot < self.num_slots);
        self.slots.base().wrapping_add(bytes_of(slot))
    }
}

impl Backend for MemoryBackend {
    fn num_slots(&self) -> usize {
        self.num_slots
    }

    fn content(&self, slot: usize) -> Option<*const u8> {
        Some(self.slot(slot))
    }

    fn start_read(&self, _: &IoQueue, _: usize, _: usize, _: *mut u8) {
        unreachable!("every slot has its content in memory");
    }

    fn start_marked_read(&self, _: &IoQueue, _: usize, _: Token, _: *mut u8) {
        unreachable!("every slot has its content in memory");
    }

    fn write_bytes(&self, _: &IoQueue, slot: usize, source: *const u8, num_bytes: usize, _: Token) -> Write {
        debug_assert!(bytes_of(slot) + num_bytes <= bytes_of(self.num_slots));
        // SAFETY: the slots belong to the pages being written, whose evictor is the only one to access them; source is mapped and stable.
        unsafe { std::ptr::copy_nonoverlapping(source, self.slot(slot), num_bytes) };
        Write::Done
    }

    fn reserve(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.slots.discard(bytes_of(slot), bytes_of(num_slots));
    }
}
