//! Heaps over regions.

use super::constants::LSW_OK;
use super::error::{fail, null, status};
use super::region::lsw_region;
use crate::heap::Heap;
use libc::{c_char, c_int, c_void, size_t};
use std::ffi::CString;

/// An allocator over a region. Its metadata is in ordinary memory, so that freeing or measuring an object never accesses the region. For any thread.
#[derive(Debug)]
pub struct lsw_heap(Heap);

/// Makes a heap that owns all of the region, of which nothing is accessed. The region stays until the heap is destroyed, even if lsw_region_destroy comes
/// first. LSW_ERR_BUSY if the region has a heap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_create(region: *mut lsw_region, heap: *mut *mut lsw_heap) -> c_int {
    // SAFETY: the caller vouches for the pointers; NULL is checked.
    let Some(region) = (unsafe { region.as_ref() }) else { return null("region") };
    if heap.is_null() {
        return null("heap");
    }
    // SAFETY: not NULL, and the caller vouches for a writable target.
    status(Heap::new(region.0.clone()).map(|created| unsafe { *heap = Box::into_raw(Box::new(lsw_heap(created))) }))
}

/// Gives a heap up. What its objects held stays in the region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_destroy(heap: *mut lsw_heap) -> c_int {
    if heap.is_null() {
        return null("heap");
    }
    // SAFETY: made by lsw_heap_create, and the caller gives it up.
    drop(unsafe { Box::from_raw(heap) });
    LSW_OK
}

/// Room for size bytes, aligned to 16 bytes; as for 1 byte if size is 0. Prefers resident pages, then fresh ones, which it has reserved in the backend. NULL if there is
/// no room: the region is full, or the backend is, or writes to it fail.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_alloc(heap: *mut lsw_heap, size: size_t) -> *mut c_void {
    // SAFETY: made by lsw_heap_create.
    pointer(unsafe { heap_of(heap) }.alloc(size))
}

/// Gives an object another size: in place where its class or the pages behind it allow, otherwise as a copy. NULL if there is no room, or if the content cannot be
/// read back (lsw_last_failure tells); the object is as it was then. Of NULL, lsw_heap_alloc.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_realloc(heap: *mut lsw_heap, ptr: *mut c_void, size: size_t) -> *mut c_void {
    // SAFETY: made by lsw_heap_create; the caller owns the object.
    pointer(unsafe { heap_of(heap).realloc(ptr.cast(), size) })
}

/// Frees an object; nothing for NULL. Accesses no memory of the region and waits for nothing. What is not an object ends the process with a message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_free(heap: *mut lsw_heap, ptr: *mut c_void) {
    if !ptr.is_null() {
        // SAFETY: made by lsw_heap_create; the caller owns the object.
        unsafe { heap_of(heap).free(ptr.cast()) };
    }
}

/// Bytes that an object has room for; 0 for NULL. Accesses no memory of the region. What is not an object ends the process with a message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_usable_size(heap: *const lsw_heap, ptr: *const c_void) -> size_t {
    // SAFETY: made by lsw_heap_create.
    if ptr.is_null() { 0 } else { unsafe { heap_of(heap) }.usable_size(ptr.cast()) }
}

/// Whether an address lies in the heap's region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_contains(heap: *const lsw_heap, ptr: *const c_void) -> bool {
    // SAFETY: made by lsw_heap_create.
    unsafe { heap_of(heap) }.contains(ptr.cast())
}

/// For active defragmentation: whether the object's slab is less full than others of its size class, so that a copy would help to empty it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_is_sparse(heap: *const lsw_heap, ptr: *const c_void) -> bool {
    // SAFETY: made by lsw_heap_create.
    !ptr.is_null() && unsafe { heap_of(heap) }.is_sparse(ptr.cast())
}

/// Gives all memory back that holds no object, as far as that needs no waiting. Allocations and frees do so by and by.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_trim(heap: *mut lsw_heap) {
    // SAFETY: made by lsw_heap_create.
    unsafe { heap_of(heap) }.trim();
}

/// Calls visit once for each counter of the heap; docs/statistics.md says what they count. Stops nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lsw_heap_stats_visit(
    heap: *const lsw_heap,
    visit: Option<extern "C" fn(ctx: *mut c_void, name: *const c_char, value: u64)>,
    ctx: *mut c_void,
) {
    let Some(visit) = visit else { return };
    // SAFETY: made by lsw_heap_create.
    for (name, value) in unsafe { heap_of(heap) }.stats() {
        let name = CString::new(name).unwrap_or_default();
        visit(ctx, name.as_ptr(), value);
    }
}

/// # Safety
/// The heap was made by lsw_heap_create and not destroyed.
unsafe fn heap_of<'a>(heap: *const lsw_heap) -> &'a Heap {
    // SAFETY: the caller's promise.
    &unsafe { &*heap }.0
}

fn pointer(result: crate::Result<std::ptr::NonNull<u8>>) -> *mut c_void {
    match result {
        Ok(object) => object.as_ptr().cast(),
        Err(error) => {
            fail(&error);
            std::ptr::null_mut()
        }
    }
}
