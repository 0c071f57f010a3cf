/* Item headers in ordinary memory. */
#include "memcached.h"
#include "lightswap_settings.h"

#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>

_Static_assert(sizeof(item) == 48, "the hash takes room that the compiler would pad");
_Static_assert(sizeof(item_chunk) <= sizeof(item) + sizeof(uint64_t), "headers of chunks are in the table, too");

struct lightswap_table lightswap_table;

/* Bytes that are not in the table; heads of large items are few. */
static uint64_t head_bytes;
static uint64_t num_headers;    /* cut so far; both under slabs_lock */

/* Used so far; under slabs_lock, as what follows. */
static size_t table_used;

enum { HUGE_PAGE_BYTES = 2 << 20, GRANULE_BYTES = 1 << LIGHTSWAP_GRANULE_SHIFT };

static void *reserve(size_t len) {
    /* Address space; memory comes as it is used. */
    void *start = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return start == MAP_FAILED ? NULL : start;
}

bool lightswap_headers_init(char *region, size_t region_len) {
    struct lightswap_table *table = &lightswap_table;
    table->slab_shift = (unsigned int)__builtin_ctzl((size_t)settings.slab_page_size);
    table->header_bytes = sizeof(item) + (settings.use_cas ? sizeof(uint64_t) : 0);
    table->reciprocal = ((1ULL << 32) + table->header_bytes - 1) / table->header_bytes;
    table->bodies = region;
    /* Of a slab page the headers are less than the slab page, and at most a granule is lost. */
    const size_t num_slabs = region_len >> table->slab_shift;
    const size_t len = region_len + num_slabs * GRANULE_BYTES;
    char *headers = reserve(len + HUGE_PAGE_BYTES);
    table->slabs = reserve(num_slabs * sizeof(*table->slabs));
    table->slab_of = reserve((len >> LIGHTSWAP_GRANULE_SHIFT) * sizeof(*table->slab_of));
    if (headers == NULL || table->slabs == NULL || table->slab_of == NULL) {
        return false;
    }
    headers += -(uintptr_t)headers % HUGE_PAGE_BYTES;
    madvise(headers, len, MADV_HUGEPAGE);
    table->headers = headers;
    table->headers_len = len;
    return true;
}

char *lightswap_cut(char *slab_page, size_t item_size) {
    const struct lightswap_table *table = &lightswap_table;
    const uint32_t slab = (uint32_t)((size_t)(slab_page - table->bodies) >> table->slab_shift);
    const uint64_t num_items = (uint64_t)settings.slab_page_size / item_size;
    const size_t start = table_used;
    table->slabs[slab] = (struct lightswap_slab){ .headers = start, .body_bytes = (uint32_t)(item_size - sizeof(item)) };
    num_headers += num_items;
    for (const size_t end = start + num_items * table->header_bytes; table_used < end; table_used += GRANULE_BYTES) {
        table->slab_of[table_used >> LIGHTSWAP_GRANULE_SHIFT] = slab;
    }
    return (char *)table->headers + start;
}

item *lightswap_alloc_head(size_t size) {
    item *head = calloc(1, size);
    if (head != NULL) {
        head->refcount = 1;
        __atomic_fetch_add(&head_bytes, malloc_usable_size(head), __ATOMIC_RELAXED);
    }
    return head;
}

void lightswap_free_head(item *head) {
    __atomic_fetch_sub(&head_bytes, malloc_usable_size(head), __ATOMIC_RELAXED);
    free(head);
}

uint64_t lightswap_header_memory_bytes(void) {
    return num_headers * lightswap_table.header_bytes + __atomic_load_n(&head_bytes, __ATOMIC_RELAXED);
}
