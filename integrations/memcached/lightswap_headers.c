/* Item headers in ordinary memory, in a table parallel to the region. */
#include "memcached.h"
#include "lightswap_settings.h"

#include <stdlib.h>
#include <sys/mman.h>

_Static_assert(sizeof(item) == 48, "the hash takes room that the compiler would pad");
_Static_assert(sizeof(item_chunk) <= sizeof(item) + sizeof(uint64_t), "headers of chunks are in the table, too");

struct lightswap_table lightswap_table;

/* Bytes that are not in the table; heads of large items are few. */
static uint64_t head_bytes;
static uint64_t num_headers;    /* cut so far; both under slabs_lock */

bool lightswap_headers_init(char *region, size_t region_len) {
    struct lightswap_table *table = &lightswap_table;
    const size_t slab_bytes = (size_t)settings.slab_page_size;
    table->slab_shift = (unsigned int)__builtin_ctzl(slab_bytes);
    table->header_bytes = sizeof(item) + (settings.use_cas ? sizeof(uint64_t) : 0);
    table->reciprocal = ((1ULL << 32) + table->header_bytes - 1) / table->header_bytes;
    table->bodies = region;
    table->body_bytes = calloc(region_len >> table->slab_shift, sizeof(*table->body_bytes));
    /* Address space; memory comes as headers are used. Not in huge pages: of each slab's part only the start is used. */
    void *headers = mmap(NULL, region_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table->body_bytes == NULL || headers == MAP_FAILED) {
        return false;
    }
    madvise(headers, region_len, MADV_NOHUGEPAGE);
    table->headers = headers;
    table->headers_len = region_len;
    return true;
}

char *lightswap_cut(char *slab_page, size_t item_size) {
    const struct lightswap_table *table = &lightswap_table;
    const size_t slab = (size_t)(slab_page - table->bodies) >> table->slab_shift;
    table->body_bytes[slab] = (uint32_t)(item_size - sizeof(item));
    num_headers += (uint64_t)settings.slab_page_size / item_size;
    return (char *)table->headers + (slab << table->slab_shift);
}

item *lightswap_alloc_head(size_t size) {
    item *head = calloc(1, size);
    if (head != NULL) {
        head->refcount = 1;
        __atomic_fetch_add(&head_bytes, size, __ATOMIC_RELAXED);
    }
    return head;
}

void lightswap_free_head(item *head) {
    __atomic_fetch_sub(&head_bytes, ITEM_ntotal(head) - (size_t)head->nbytes + sizeof(item_chunk), __ATOMIC_RELAXED);
    free(head);
}

uint64_t lightswap_header_memory_bytes(void) {
    return num_headers * lightswap_table.header_bytes + __atomic_load_n(&head_bytes, __ATOMIC_RELAXED);
}
