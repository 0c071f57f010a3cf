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

static void note_refused(size_t size) {
    size_t largest;
    atomicGet(refused_size, largest);
    if (size > largest) {
        atomicSet(refused_size, size);
    }
    atomicIncr(num_refused, 1);
    atomicIncr(refused_bytes, size);
}

static void *allocate(size_t size) {
    void *ptr = lsw_heap_alloc(lightswap_heap, size);
    if (__builtin_expect(ptr == NULL, 0)) {
        if (is_loading && !server.in_fork_child) {
            lightswap_die("the data does not fit into lightswap-backend: %s", lsw_last_error());
        }
        note_refused(size);
    }
    return ptr;
}

/* zmalloc goes on in ordinary memory. */
static void *resize(void *ptr, size_t size) {
    void *resized = lsw_heap_realloc(lightswap_heap, ptr, size);
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
        lightswap_die("cannot manage %zu bytes of lightswap-backend: %s", lsw_region_len(region), lsw_last_error());
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
        return true;
    }
    lsw_heap_free(lightswap_heap, room);
    atomicSet(refused_size, 0);
    return false;
}

void *lightswap_defrag(void *ptr) {
    size_t size = usable_size(ptr);
    if (!lsw_heap_is_sparse(lightswap_heap, ptr) || !lsw_is_resident(ptr, size)) {
        return NULL;
    }
    void *moved = lsw_heap_alloc(lightswap_heap, size);
    if (moved != NULL) {
        memcpy(moved, ptr, size);
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
}
