/* The heap over the region, behind zmalloc. */
#include "server.h"
#include "lightswap_internal.h"

/* Room is there again when what was refused last would find some, or so much. */
enum { MOST_ROOM = 64 * 1024 };
/* Commands so large are asked about in advance. */
enum { LARGE_COMMAND = 1024 * 1024 };

lsw_heap *lightswap_heap;

static bool is_loading = true;
/* The largest allocation that found no room since there last was some; 0: none. Threads of modules may allocate, too. */
static redisAtomic size_t refused_size;
static redisAtomic unsigned long long num_refused;
static redisAtomic unsigned long long refused_bytes;

/* Where threads of modules allocate as well, some is not counted. */
static void count_new(size_t size) {
    __atomic_store_n(&lightswap_new_bytes, __atomic_load_n(&lightswap_new_bytes, __ATOMIC_RELAXED) + size, __ATOMIC_RELAXED);
}

static void note_refused(size_t size) {
    size_t largest;
    atomicGet(refused_size, largest);
    if (size > largest) {
        atomicSet(refused_size, size);
    }
    atomicIncr(num_refused, 1);
    atomicIncr(refused_bytes, size);
}

/* ---- Holes on pages that are lost ---- */

/* When the region is nearly full, new objects are put into holes on pages that are swapped out. A page that cannot be read back takes none. Its holes are kept
 * from the heap for a while, which would offer them again; when everything else on the page is gone as well it can be used again. */
enum {
    /* Larger objects have pages of their own, which need no read. */
    LARGEST_IN_HOLE = 32 * 1024,
    MOST_HOLES = 256,
    MOST_TRIES = 8,
};

static pthread_mutex_t holes_lock = PTHREAD_MUTEX_INITIALIZER;
static void *holes[MOST_HOLES];
static size_t next_hole;
static redisAtomic unsigned long long num_unreadable;

/* Instead of the one that has been kept longest. */
static void keep_hole(void *ptr) {
    pthread_mutex_lock(&holes_lock);
    void *oldest = holes[next_hole];
    holes[next_hole] = ptr;
    next_hole = (next_hole + 1) % MOST_HOLES;
    pthread_mutex_unlock(&holes_lock);
    lsw_heap_free(lightswap_heap, oldest);
    atomicIncr(num_unreadable, 1);
}

/* Brings memory in. What is there already may be on its way out; a pin keeps it, and it is not chosen again so soon. */
int lightswap_settle(const void *addr, size_t len) {
    int result = lsw_pin(addr, len);
    if (result == LSW_OK) {
        lsw_unpin(addr, len);
    } else if (result == LSW_ERR_PIN_LIMIT) {
        result = lsw_touch(addr, len);
    }
    return result;
}

/* ---- What the command that runs has allocated ---- */

/* It goes on to use that: a list's node takes the next element, too. So the last allocations stay pinned until it ends; what is evicted meanwhile may be lost. Of the
 * thread that executes commands. */
enum { MOST_HELD = 32 };

static struct {
    const void *addr;
    size_t len;
} held[MOST_HELD];
static unsigned num_held, next_held;

static void hold(const void *addr, size_t len) {
    if (num_held == MOST_HELD) {
        lsw_unpin(held[next_held].addr, held[next_held].len);
    } else {
        num_held++;
    }
    held[next_held].addr = addr;
    held[next_held].len = len;
    next_held = (next_held + 1) % MOST_HELD;
}

void lightswap_release_new(void) {
    for (; num_held > 0; num_held--) {
        next_held = (next_held + MOST_HELD - 1) % MOST_HELD;
        lsw_unpin(held[next_held].addr, held[next_held].len);
    }
}

static int settle_new(const void *addr, size_t len) {
    if (server.in_fork_child || !pthread_equal(server.main_thread_id, pthread_self())) {
        return lightswap_settle(addr, len);
    }
    int result = lsw_pin(addr, len);
    if (result == LSW_OK) {
        hold(addr, len);
    } else if (result == LSW_ERR_PIN_LIMIT) {
        result = lsw_touch(addr, len);
    }
    return result;
}

/* Room that can be written. NULL: there is none, or it took too long to look for it. */
static void *allocate_writable(size_t size) {
    for (int i = 0; i < MOST_TRIES; i++) {
        void *ptr = lsw_heap_alloc(lightswap_heap, size);
        if (ptr == NULL || !lightswap_walks || size > LARGEST_IN_HOLE || settle_new(ptr, size) == LSW_OK) {
            return ptr;
        }
        keep_hole(ptr);
        struct lsw_error error;
        if (!lsw_last_failure(&error) || error.cause == LSW_CAUSE_TIMEOUT) {
            return NULL;
        }
    }
    return NULL;
}

static void *allocate(size_t size) {
    count_new(size);
    void *ptr = allocate_writable(size);
    if (__builtin_expect(ptr == NULL, 0)) {
        if (is_loading && !server.in_fork_child) {
            lightswap_die("the data does not fit into lightswap-backend, which has room for %zu MiB of values (%s): make its size= larger, twice the data and some",
                          zmalloc_heap.len >> 20, lsw_last_error());
        }
        note_refused(size);
    }
    return ptr;
}

static void *move(void *ptr, size_t size, size_t usable) {
    void *moved = allocate_writable(size);
    if (moved != NULL) {
        memcpy(moved, ptr, size < usable ? size : usable);
        lsw_heap_free(lightswap_heap, ptr);
    }
    return moved;
}

/* What may come to lie in a hole is put there as new objects are: the command goes on to use it. */
static void *resize_in_holes(void *ptr, size_t size) {
    const size_t usable = lsw_heap_usable_size(lightswap_heap, ptr);
    if (size <= usable && size >= usable / 4 * 3) {
        return ptr;
    }
    void *moved = move(ptr, size, usable);
    return moved == NULL && size <= usable ? ptr : moved;
}

/* NULL: zmalloc goes on in ordinary memory. */
static void *resize(void *ptr, size_t size) {
    count_new(size);
    const bool may_be_in_hole = lightswap_walks && size <= LARGEST_IN_HOLE;
    void *resized = may_be_in_hole ? resize_in_holes(ptr, size) : lsw_heap_realloc(lightswap_heap, ptr, size);
    if (resized == NULL) {
        note_refused(size);
    }
    return resized;
}

static void release(void *ptr) {
    lsw_heap_free(lightswap_heap, ptr);
}

static size_t usable_size(const void *ptr) {
    return lsw_heap_usable_size(lightswap_heap, ptr);
}

void lightswap_memory_start(lsw_region *region) {
    if (lsw_heap_create(region, &lightswap_heap) != LSW_OK) {
        lightswap_die("lightswap-backend has room for %zu GiB of values: %s", lsw_region_len(region) >> 30, lsw_last_error());
    }
    zmalloc_heap = (zmallocHeap){
        .base = lsw_region_base(region),
        .len = lsw_region_len(region),
        .allocate = allocate,
        .resize = resize,
        .release = release,
        .usable_size = usable_size,
    };
}

void lightswap_memory_loaded(void) {
    is_loading = false;
}

/* NULL: there is room. */
static robj *full_error;

static void note_full(void) {
    if (full_error == NULL) {
        serverLog(LL_WARNING, "Lightswap has no room for more values, commands that need memory are refused: %s", lsw_last_error());
        full_error = createObject(OBJ_STRING, sdscatprintf(sdsempty(),
            "-OOM lightswap-backend has no room for more values (%s): delete keys, or set maxmemory below lightswap_capacity_bytes\r\n", lsw_last_error()));
    }
}

static void note_room(void) {
    if (full_error != NULL) {
        serverLog(LL_NOTICE, "Lightswap has room for values again");
        decrRefCount(full_error);
        full_error = NULL;
    }
}

robj *lightswap_oom_error(void) {
    return full_error != NULL ? full_error : shared.oomerr;
}

bool lightswap_is_full(size_t num_bytes) {
    size_t refused;
    atomicGet(refused_size, refused);
    if (!lightswap_enabled || (refused == 0 && num_bytes < LARGE_COMMAND)) {
        return false;
    }
    /* Not just what this command brings: it may grow what is as large as what was refused. */
    const size_t wanted = refused < MOST_ROOM ? refused : MOST_ROOM;
    void *room = lsw_heap_alloc(lightswap_heap, num_bytes > wanted ? num_bytes : wanted);
    if (room == NULL) {
        note_full();
        return true;
    }
    note_room();
    lsw_heap_free(lightswap_heap, room);
    atomicSet(refused_size, 0);
    return false;
}

void *lightswap_defrag(void *ptr) {
    size_t size = usable_size(ptr);
    if (!lsw_heap_is_sparse(lightswap_heap, ptr) || lsw_pin_resident(ptr, size) != LSW_OK) {
        return NULL;
    }
    void *moved = lsw_heap_alloc(lightswap_heap, size);
    if (moved != NULL) {
        memcpy(moved, ptr, size);
    }
    lsw_unpin(ptr, size);
    if (moved != NULL) {
        lsw_heap_free(lightswap_heap, ptr);
    }
    return moved;
}

bool lightswap_overlaps(const void *start, size_t len) {
    const char *from = start;
    return from < zmalloc_heap.base + zmalloc_heap.len && zmalloc_heap.base < from + len;
}

void lightswap_memory_visit(void (*visit)(void *arg, const char *name, uint64_t value), void *arg) {
    unsigned long long count, bytes;
    atomicGet(num_refused, count);
    atomicGet(refused_bytes, bytes);
    visit(arg, "objects_refused", count);
    visit(arg, "objects_refused_bytes", bytes);
    atomicGet(num_unreadable, count);
    visit(arg, "objects_unreadable", count);
}
