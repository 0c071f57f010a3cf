//! `memory:?size=8GiB`: slots in ordinary memory of this process, the backend without a device: for tests and as the floor of measurements.

use super::url::BackendUrl;
use super::{Backend, BackendQueue, Now, QueueBuilder, Read, Write, WriteRequest, slots_in};
use crate::error::{ErrorKind, Result};
use crate::io_queue::{Completion, IoQueue};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use crate::try_catch;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct MemoryBackend {
    slots: Mapping,
    num_slots: usize,
}

impl MemoryBackend {
    pub(super) fn open(url: &BackendUrl) -> Result<Self> {
        url.expect_only(&super::compressed::backend::OPTIONS)?;
        if url.option("limit").is_some() {
            return Err(url.error(ErrorKind::BackendUrl, "the option limit is for compressed memory: add compress=lz4"));
        }
        if !url.path.is_empty() {
            return Err(url.error(ErrorKind::BackendUrl, "memory: takes no path, only ?size=SIZE"));
        }
        let size = url.size()?.ok_or_else(|| url.error(ErrorKind::BackendUrl, "a size is needed: memory:?size=8GiB"))?;
        let num_slots = slots_in(size, &url.text)?;
        let slots = Mapping::new(bytes_of(num_slots), PAGE_SIZE).map_err(|cause| url.too_large(&cause))?;
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

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        Ok(builder.add(number, Rc::new(MemoryQueue { memory: self })))
    }

    fn is_readable_now(&self, _: usize) -> bool {
        true
    }

    fn read_now(&self, slot: usize, _: *mut u8) -> Now {
        Now::Content(self.slot(slot))
    }

    fn reserve(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, slot: usize, num_slots: usize) {
        self.slots.discard(bytes_of(slot), bytes_of(num_slots));
    }
}

struct MemoryQueue {
    memory: Arc<MemoryBackend>,
}

impl BackendQueue for MemoryQueue {
    /// Only for those around this backend: the pager uses [`Backend::read_now`].
    fn read(&self, io: &IoQueue, read: Read) {
        // SAFETY: the slot and the target are a page each, and of this read's owner alone.
        unsafe { std::ptr::copy_nonoverlapping(self.memory.slot(read.slot), read.target, PAGE_SIZE) };
        io.finish(read.token, Completion::of(PAGE_SIZE as i32));
    }

    fn write(&self, _: &IoQueue, write: WriteRequest) -> Write {
        let WriteRequest { slot, source, num_bytes, .. } = write;
        debug_assert!(bytes_of(slot) + num_bytes <= bytes_of(self.memory.num_slots));
        let target = self.memory.slot(slot);
        // The source was readable when it was hashed, but may have been damaged since: what that leads to must not be the program's try block.
        // SAFETY: the slots belong to the pages being written, whose evictor is the only one to access them; source is mapped and stable; a copy has nothing
        // to clean up.
        let result = unsafe { try_catch::try_without_paging(|| std::ptr::copy_nonoverlapping(source, target, num_bytes)) };
        if result.is_ok() { Write::Done } else { Write::Failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lightswap;
    use crate::io_queue::Token;
    use crate::region::{self, Contract};
    use crate::worker;

    /// Damaged between the hash and the write: that is for the evictor to know, twice (no lock stays taken), and for no block of the program.
    #[test]
    fn pages_that_cannot_be_read_are_not_written() {
        for start in ["", "faulty():"] {
            let Ok(swap) = Lightswap::builder().local_memory(1 << 20).backend(format!("{start}memory:?size=1MiB")).open() else { return };
            let of_user = swap.create_region(8 * PAGE_SIZE, Contract::Transparent).unwrap();
            let page = region::find(of_user.as_ptr() as usize).unwrap().page(3);
            let address = page.address() as *const u8;
            crate::touch(address, 1).unwrap();
            if let Err(error) = crate::poison(address) {
                return eprintln!("skipped: the kernel cannot poison pages: {error}");
            }
            let handle = swap.enter_worker().unwrap();
            let worker = worker::current().unwrap();
            // SAFETY: nothing is thrown this far.
            let result = unsafe {
                try_catch::try_catch(|| {
                    let write = WriteRequest { slot: page.slot(), source: address, num_bytes: PAGE_SIZE, token: Token::write(0, 0) };
                    [worker.start_write(write), worker.start_write(write)]
                })
            };
            assert_eq!(result, Ok([Write::Failed; 2]));
            drop(handle);
        }
    }
}
