/* Lightswap: memory bigger than DRAM for in-memory servers, paged in user space.
 *
 * Made from lightswap/src/capi.rs: change that, then run
 *     LIGHTSWAP_UPDATE_HEADER=1 cargo test -p lightswap --test header
 *
 * Functions that return int return LSW_OK (0) or a negative LSW_ERR_...; lsw_last_error() says in a sentence what failed, why, and what to do.
 * Link with -llightswap -lpthread -lm -ldl. examples/scan.c is a small program.
 *
 * Rules for programs:
 * - SIGBUS is not blocked in a thread that accesses a region, and its handler is not replaced after an instance was opened.
 * - The kernel does not page in for system calls: region memory goes to it through lsw_read, lsw_sendmsg and the like. (Calls that only read it may have it
 *   if it is pinned.)
 * - LWTs of a worker share its thread, and so its thread-local storage and the locks that it holds. Code that accesses a region under a lock uses lsw_mutex.
 * - Any access to a region may run other LWTs of the worker: what LWTs share is not read before such an access and written after it
 *   (total += array[i] loses what others add).
 * - Handlers of other signals do not access regions. A child of fork() may read pages that were resident; a missing one ends it with a message. With
 *   lsw_config.snapshots it may read all that the regions held at the fork (lsw_in_snapshot() tells), as long as its parent lives; one such child at a time. It is no
 *   worker and has no LWTs, cannot discard, and exits with code 1 if a page cannot be had and no try block is open.
 * - In a region made with LSW_COOPERATIVE, pages are pinned before they are written.
 * - An access to a page whose content cannot be had ends the process with a message, unless it is in a try block (LSW_TRY). */

#ifndef LIGHTSWAP_H
#define LIGHTSWAP_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* A try block: what to do when a page that is accessed cannot be had.
 *
 *     lsw_try block;
 *     LSW_TRY(&block) {
 *         memcpy(copy, in_region, len);
 *     } LSW_CATCH(&block, error) {
 *         fprintf(stderr, "%p is lost: cause %u\n", error->address, error->cause);
 *     }
 *
 * If an access to a region in the first block, or in what it calls, meets a page whose content cannot be had (the backend failed, the content is corrupt,
 * memory is damaged), the rest of the block is skipped and the second block runs, once; error, a const lsw_error *, says why. Without an open block such
 * an access ends the process with a message. Blocks nest: the innermost of the same LWT, or of the same thread, is the one. With LSW_NOTIFIER_MONITOR only
 * damaged memory is caught; failures of the backend end the process there.
 *
 * Rules, as every access to a region in the first block may be a longjmp to the second:
 * - The lsw_try is a variable of the function that has the block, and is used for one block at a time.
 * - The first block is left at its end only: no return, goto, break or longjmp out of it. (Built with debug assertions, or with LIGHTSWAP_CHECK_TRY=1 in the
 *   environment, the library looks for blocks that were left so, says which, and aborts.) The second block may be left in any way.
 * - No lock is taken in the first block and released after an access; nothing is allocated there that only later code would free; no call may lie in between
 *   that cannot be left so, such as a C++ function with objects to destroy, or qsort with a comparison that accesses a region in some C libraries.
 * - Variables of this function that the first block changes and the second reads are volatile, as for setjmp. */
#define LSW_TRY(block) \
    for (lsw_try_begin((block), __builtin_frame_address(0)); lsw_try_is_open(block); lsw_try_end(block)) \
        if (setjmp((block)->env) == 0)
#define LSW_CATCH(block, error) \
        else \
            for (const struct lsw_error *error = lsw_try_caught(block); error != NULL; error = NULL)

/* Success; every failure is negative. */
#define LSW_OK 0
/* An argument is out of range. */
#define LSW_ERR_INVALID_ARGUMENT -1
/* The backend URL does not parse. */
#define LSW_ERR_BACKEND_URL -2
/* The backend cannot be opened, or failed. */
#define LSW_ERR_BACKEND -3
/* The kernel offers no suitable userfaultfd. */
#define LSW_ERR_NO_USERFAULTFD -4
/* The kernel offers no suitable io_uring. */
#define LSW_ERR_NO_IO_URING -5
/* The machine gave no memory or address space. */
#define LSW_ERR_NO_MEMORY -6
/* The backend has no room left (the disk is full, or writes fail). */
#define LSW_ERR_NO_SPACE -7
/* More pages would be pinned than local memory can spare. */
#define LSW_ERR_PIN_LIMIT -8
/* The range is not wholly inside one region. */
#define LSW_ERR_NOT_IN_REGION -9
/* The calling thread is not a worker. */
#define LSW_ERR_NOT_A_WORKER -10
/* The object is in use. */
#define LSW_ERR_BUSY -11
/* A page's content could not be read back. */
#define LSW_ERR_SWAP_IN -12
/* Cause of an lsw_error: the backend returned an error. */
#define LSW_CAUSE_IO 1
/* The read took longer than the time limit; or there was no room in local memory for so long, because writes fail or take too long. */
#define LSW_CAUSE_TIMEOUT 2
/* What was read is not what was written. */
#define LSW_CAUSE_HASH 3
/* The backend returned less than a page. */
#define LSW_CAUSE_SHORT 4
/* The backend is gone: the device was removed, the connection lost. */
#define LSW_CAUSE_LOST_BACKEND 5
/* The memory of the page was damaged (a hardware memory error). */
#define LSW_CAUSE_POISON 6
/* Any code may write any page of the region at any time. */
#define LSW_TRANSPARENT 0
/* Code pins pages of the region before it writes them. */
#define LSW_COOPERATIVE 1
/* Faults raise a signal in the faulting thread; only its LWT waits. The default. */
#define LSW_NOTIFIER_SIGBUS 0
/* For comparison: classic userfaultfd. The faulting thread sleeps in the kernel, and one thread of the instance does all paging. */
#define LSW_NOTIFIER_MONITOR 1
/* As LSW_NOTIFIER_SIGBUS, without the signal: needs the kernel module of integrations/kernel, CAP_BPF and CAP_PERFMON; without, it is LSW_NOTIFIER_SIGBUS. */
#define LSW_NOTIFIER_EBPF 2
/* The handler of a fault loads the registers itself and so goes back to the access without a system call, where it can. The default. */
#define LSW_FAULT_RETURN_USER 0
/* For comparison, and for tools that must see it: by rt_sigreturn. */
#define LSW_FAULT_RETURN_KERNEL 1
/* An LWT that waits for a page is suspended, and its worker runs the others. The default. */
#define LSW_WAITING_SUSPEND 0
/* For comparison: the worker polls its I/O queue until the page is in, and one thread of the instance does all reclaim. With LSW_NOTIFIER_SIGBUS only. */
#define LSW_WAITING_POLL 1

/* An allocator over a region. Its metadata is in ordinary memory, so that freeing or measuring an object never accesses the region. For any thread. */
typedef struct lsw_heap lsw_heap;

/* One budget of local memory, one backend, any number of regions and workers. */
typedef struct lsw_instance lsw_instance;

/* A range of virtual memory whose pages are swapped. */
typedef struct lsw_region lsw_region;

/* How an instance is set up. Zero-initialise it, so that fields of later versions have their defaults. */
typedef struct lsw_config {
    /* Bytes of DRAM that resident pages and I/O buffers together may take; a multiple of the page size. */
    uint64_t local_memory_bytes;
    /* Where swapped-out pages live: "file:/path?size=8GiB" or "memory:?size=8GiB"; in tests "faulty(read%0.01=EIO):memory:?size=8GiB". See docs/backends.md. */
    const char *backend_url;
    /* Most threads that will be workers at a time; 0 means 1. */
    uint32_t max_workers;
    /* Usable bytes of an LWT's stack; 0 means 64 KiB. */
    uint32_t lwt_stack_bytes;
    /* How a faulting access reaches the library: LSW_NOTIFIER_SIGBUS (0), LSW_NOTIFIER_MONITOR or LSW_NOTIFIER_EBPF. */
    uint32_t notifier;
    /* What a worker does while a page is on its way: LSW_WAITING_SUSPEND (0) or LSW_WAITING_POLL. */
    uint32_t waiting;
    /* Not 0: times the steps of every swap-in and evictions, which lsw_stats_visit then shows as step_...; takes some readings of the clock. */
    uint32_t step_times;
    /* Milliseconds that a request to the backend may take, after which a read fails with LSW_CAUSE_TIMEOUT; 0 means 30,000. */
    uint32_t io_timeout_ms;
    /* Not 0: children of fork() can read all pages of regions, swapped-out ones included, as they were at the fork; each page takes two slots of the backend then. */
    uint32_t snapshots;
    /* How the handler of a fault goes back to the access: LSW_FAULT_RETURN_USER (0) or LSW_FAULT_RETURN_KERNEL. */
    uint32_t fault_return;
} lsw_config;

/* Why the content of a page could not be had. lsw_last_failure and LSW_CATCH give it. */
typedef struct lsw_error {
    /* One of LSW_CAUSE_... */
    uint32_t cause;
    /* The error code of the operating system; 0 if none belongs to the cause. */
    int errno_value;
    /* What was accessed; for a call such as lsw_touch, the first byte of the page. */
    void *address;
    /* First byte of the region. */
    void *region;
    /* Length of the region in bytes. */
    size_t region_len;
    /* URL of the backend; valid for ever. */
    const char *backend;
} lsw_error;

/* What a try block needs; see LSW_TRY. On the stack of the function that has the block. All fields are the library's. */
typedef struct lsw_try {
    struct lsw_try *outer;
    size_t frame;
    size_t mark;
    size_t resume_at;
    uint32_t state;
    uint32_t kind;
    uint32_t mxcsr;
    uint32_t x87_control;
    struct lsw_error error;
    jmp_buf env;
} lsw_try;

/* An LWT-aware mutex. All-zero is an unlocked one. */
typedef struct lsw_mutex {
    uint32_t word;
} lsw_mutex;

/* A condition variable for lsw_mutex. All-zero is a valid one. */
typedef struct lsw_cond {
    uint32_t sequence;
} lsw_cond;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/* A few words for a status. Never NULL; valid for ever. */
const char *lsw_status_text(int status);

/* The sentence (what, cause, what to do) of this thread's last failed call. Never NULL; valid until this thread's next failure (so not in the same
 * expression as the call that fails). Of lsw_touch, lsw_pin, lsw_copy and lsw_compare it has all that lsw_last_failure tells. */
const char *lsw_last_error(void);

/* Parses "8GiB", "512m" or "4096" into bytes. */
int lsw_parse_size(const char *text, uint64_t *bytes);

/* Opens an instance: backend, userfaultfd, and the thread that serves faults of ordinary threads. */
int lsw_open(const struct lsw_config *config, struct lsw_instance **instance);

/* Bytes of the largest region that can be made now: all that the backend has room for, or with snapshots half of it; 0 for NULL. */
uint64_t lsw_room_bytes(const struct lsw_instance *instance);

/* Whether this process is a child of fork() that can read all pages of an inherited region. */
bool lsw_in_snapshot(void);

/* Gives the instance more or less local memory while it runs; a multiple of the page size. More can be used at once; less is reached by and by, as pages are evicted in the
 * background. Nothing is changed, and the error says why, if it is too small: LSW_ERR_PIN_LIMIT for the pages that are pinned (half of it may be), or
 * LSW_ERR_INVALID_ARGUMENT for the I/O buffers, which stay as they are. */
int lsw_set_local_memory(struct lsw_instance *instance,
                         uint64_t bytes);

/* Closes an instance. It lives on until its last region is destroyed and its last worker has left. */
int lsw_close(struct lsw_instance *instance);

/* Maps a region of at least num_bytes; its pages read as zeroes until they are written. */
int lsw_region_create(struct lsw_instance *instance, size_t num_bytes, int contract, struct lsw_region **region);

/* Unmaps a region. Nobody may access it any more. */
int lsw_region_destroy(struct lsw_region *region);

/* First byte of a region, aligned to 2 MiB; NULL for NULL. */
void *lsw_region_base(const struct lsw_region *region);

/* Length of a region in bytes; 0 for NULL. */
size_t lsw_region_len(const struct lsw_region *region);

/* Makes the pages of the range resident now (suspending the LWT or blocking the thread) and marks them referenced. */
int lsw_touch(const void *addr, size_t len);

/* Touches the pages and keeps them resident until the same range is unpinned. Pins count. LSW_ERR_PIN_LIMIT beyond half of local memory or 128 MiB. */
int lsw_pin(const void *addr, size_t len);

/* lsw_pin without waiting: LSW_ERR_BUSY, and no pins, if a page is not resident or the limit of pins is reached. */
int lsw_pin_resident(const void *addr, size_t len);

/* Undoes one lsw_pin of the same range. */
int lsw_unpin(const void *addr, size_t len);

/* Copies len bytes, of which any part may lie in regions; each page of a region is pinned while it is read or written. This is how to write to a
 * cooperative region without pins of one's own. The ranges may overlap only where neither is in a region. LSW_ERR_SWAP_IN if a page cannot be
 * read back; a part may have been copied by then. */
int lsw_copy(void *to, const void *from, size_t len);

/* Compares len bytes as memcmp does, in the manner of lsw_copy: *order becomes negative, 0 or positive. */
int lsw_compare(const void *a, const void *b, size_t len, int *order);

/* Starts reading the pages that are swapped out, without waiting; a hint. */
int lsw_prefetch(const void *addr, size_t len);

/* Makes the pages the first candidates for eviction; a hint. */
int lsw_advise_cold(const void *addr, size_t len);

/* Whether all pages of the range are resident; false outside regions. */
bool lsw_is_resident(const void *addr, size_t len);

/* Whether the address lies in a region. */
bool lsw_in_region(const void *addr);

/* Makes sure that the backend has room for pages that were never touched; call it before handing fresh memory out. LSW_ERR_NO_SPACE is the moment to
 * report out-of-memory. */
int lsw_reserve(const void *addr, size_t len);

/* Makes a heap that owns all of the region, of which nothing is accessed. The region stays until the heap is destroyed, even if lsw_region_destroy comes
 * first. LSW_ERR_BUSY if the region has a heap. */
int lsw_heap_create(struct lsw_region *region,
                    struct lsw_heap **heap);

/* Gives a heap up. What its objects held stays in the region. */
int lsw_heap_destroy(struct lsw_heap *heap);

/* Room for size bytes, aligned to 16 bytes; as for 1 byte if size is 0. Prefers resident pages, then fresh ones, which it has reserved in the backend. NULL if there is
 * no room: the region is full, or the backend is, or writes to it fail. */
void *lsw_heap_alloc(struct lsw_heap *heap,
                     size_t size);

/* Gives an object another size: in place where its class or the pages behind it allow, otherwise as a copy. NULL if there is no room, or if the content cannot be
 * read back (lsw_last_failure tells); the object is as it was then. Of NULL, lsw_heap_alloc. */
void *lsw_heap_realloc(struct lsw_heap *heap,
                       void *ptr,
                       size_t size);

/* Frees an object; nothing for NULL. Accesses no memory of the region and waits for nothing. What is not an object ends the process with a message. */
void lsw_heap_free(struct lsw_heap *heap, void *ptr);

/* Bytes that an object has room for; 0 for NULL. Accesses no memory of the region. What is not an object ends the process with a message. */
size_t lsw_heap_usable_size(const struct lsw_heap *heap, const void *ptr);

/* Whether an address lies in the heap's region. */
bool lsw_heap_contains(const struct lsw_heap *heap, const void *ptr);

/* For active defragmentation: whether the object's slab is less full than others of its size class, so that a copy would help to empty it. */
bool lsw_heap_is_sparse(const struct lsw_heap *heap, const void *ptr);

/* Gives all memory back that holds no object, as far as that needs no waiting. Allocations and frees do so by and by. */
void lsw_heap_trim(struct lsw_heap *heap);

/* Calls visit once for each counter of the heap; docs/statistics.md says what they count. Stops nobody. */
void lsw_heap_stats_visit(const struct lsw_heap *heap, void (*visit)(void *ctx, const char *name, uint64_t value), void *ctx);

/* Why this LWT's or thread's last failed call could not have a page; false, and nothing changed, if it failed for another reason, or none has failed.
 * That goes for calls that return a status, and for those that do as a system call does, such as lsw_read: -1 and EIO is a page that could not be had if this says so. */
bool lsw_last_failure(struct lsw_error *error);

/* Gives up what the pages hold, whatever state they are in: they read as zeroes again. It is how a page whose content was lost is used again. Waits for those who
 * bring the pages in or evict them. LSW_ERR_INVALID_ARGUMENT unless the range is of whole pages (4096 bytes); LSW_ERR_BUSY while one is pinned or accessed. */
int lsw_discard(const void *addr,
                size_t len);

/* For LSW_TRY. */
void lsw_try_begin(struct lsw_try *block, const void *frame);

/* For LSW_TRY. */
bool lsw_try_is_open(const struct lsw_try *block);

/* For LSW_CATCH. */
const struct lsw_error *lsw_try_caught(const struct lsw_try *block);

/* For LSW_TRY. */
void lsw_try_end(struct lsw_try *block);

/* Makes the calling thread a worker: a scheduler of LWTs with an I/O queue. A worker holds two descriptors, an instance seven with its own thread's. */
int lsw_worker_enter(struct lsw_instance *instance);

/* The calling thread stops being a worker. LSW_ERR_BUSY while LWTs of it are alive. */
int lsw_worker_leave(void);

/* A descriptor that becomes readable when a completion or another thread gives lsw_worker_poll something to do, for event loops. lsw_worker_poll clears it and
 * submits what LWTs asked for: call it after each turn of the event loop, before that blocks. Negative: a status. */
int lsw_worker_fd(void);

/* Reaps completions, runs every LWT that is ready once, reclaims ahead of demand; never blocks. Returns how many LWTs are ready again (then do not
 * block before the next call), or a negative status. From the worker's own stack only. */
int lsw_worker_poll(void);

/* Runs the scheduler until every LWT of this worker has ended. */
int lsw_worker_run(void);

/* Starts an LWT. From the worker's own stack it runs at once, until it ends (returns 0) or suspends (returns 1); from an LWT it is queued (returns 1). */
int lsw_lwt_start(void (*entry)(void *arg),
                  void *arg);

/* Gives the running LWT a value of the program's, as thread-local storage would a thread; it starts as NULL. Does nothing outside LWTs. */
void lsw_lwt_set_value(void *value);

/* What lsw_lwt_set_value was last given on the running LWT; NULL outside LWTs. */
void *lsw_lwt_value(void);

/* Whether the caller runs on an LWT. */
bool lsw_on_lwt(void);

/* LWTs of this worker that have not ended. */
size_t lsw_num_lwts(void);

/* Lets the other LWTs of this worker run; on an ordinary thread, other threads. */
void lsw_yield(void);

/* Suspends the LWT, or blocks the thread, for a time. */
void lsw_sleep_us(uint64_t duration_us);

/* Locks; suspends the LWT or blocks the thread as long as others hold the lock. Not recursive. */
void lsw_mutex_lock(struct lsw_mutex *mutex);

/* Locks if that needs no waiting. */
bool lsw_mutex_trylock(struct lsw_mutex *mutex);

/* Unlocks. */
void lsw_mutex_unlock(struct lsw_mutex *mutex);

/* Unlocks, waits for a signal, and locks again. May return without a signal. */
void lsw_cond_wait(struct lsw_cond *cond, struct lsw_mutex *mutex);

/* Wakes one waiter, if there is one. */
void lsw_cond_signal(struct lsw_cond *cond);

/* Wakes all waiters. */
void lsw_cond_broadcast(struct lsw_cond *cond);

/* The primitive beneath the locks: suspends the LWT (or blocks the thread) until an unpark of the same address. still_needed is called after the
 * caller was queued, under an internal spin lock: false means do not wait. It must not suspend, park, unpark or touch a region. */
void lsw_park(const void *key, bool (*still_needed)(void *arg), void *arg);

/* Wakes the longest waiter of an address; a full fence and one load when nobody waits. What the waiter's still_needed looks at must be changed before. */
void lsw_unpark_one(const void *key);

/* Wakes all waiters of an address. */
void lsw_unpark_all(const void *key);

/* As read(2), but never EFAULT for a missing page of a region. */
ssize_t lsw_read(int fd, void *buf, size_t len);

/* As write(2), but never EFAULT for a missing page of a region. */
ssize_t lsw_write(int fd, const void *buf, size_t len);

/* As readv(2), but never EFAULT for a missing page of a region. */
ssize_t lsw_readv(int fd, const struct iovec *iov, int iovcnt);

/* As writev(2), but never EFAULT for a missing page of a region. */
ssize_t lsw_writev(int fd, const struct iovec *iov, int iovcnt);

/* As recvmsg(2), but never EFAULT for a missing page of a region. Name and control data must be in ordinary memory. */
ssize_t lsw_recvmsg(int fd, struct msghdr *msg, int flags);

/* As sendmsg(2), but never EFAULT for a missing page of a region. Name and control data must be in ordinary memory. */
ssize_t lsw_sendmsg(int fd, const struct msghdr *msg, int flags);

/* Calls visit once for each counter; units are in the names, and docs/statistics.md says what they count. Stops nobody. */
void lsw_stats_visit(struct lsw_instance *instance, void (*visit)(void *ctx, const char *name, uint64_t value), void *ctx);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LIGHTSWAP_H */
