/* Slab pages in the region. */
#include "memcached.h"

static char *region_base;
static size_t region_len;
static size_t region_used;      /* under slabs_lock */

enum { FIRST_RETRY_US = 100 };  /* doubled each time: 10 attempts of do_item_alloc_pull make about 100 ms */

/* Every class may take one slab page beyond the limit (do_slabs_newslab). */
size_t lightswap_region_bytes(size_t maxbytes) {
    size_t slab_pages = (maxbytes + settings.slab_page_size - 1) / settings.slab_page_size;
    return (slab_pages + MAX_NUMBER_OF_SLAB_CLASSES) * (size_t)settings.slab_page_size;
}

void lightswap_memory_init(void *base, size_t len) {
    region_base = base;
    region_len = len;
}

void *lightswap_slab_page(size_t size) {
    if (size > region_len - region_used) {
        return NULL;
    }
    void *page = region_base + region_used;
    if (lsw_reserve(page, size) != LSW_OK) {
        return NULL;            /* as if malloc had failed: memcached evicts or answers "out of memory" */
    }
    region_used += size;
    return page;
}

bool lightswap_memlimit_ok(size_t bytes) {
    return !lightswap_enabled || lightswap_region_bytes(bytes) <= region_len;
}

bool lightswap_writes_fail(void) {
    return lightswap_enabled && lsw_reserve(region_base, 0) != LSW_OK;
}

bool lightswap_wait_for_eviction(const item *tail, int attempt) {
    if (!lightswap_enabled || tail == NULL || !settings.evict_to_free) {
        return false;
    }
    lsw_sleep_us((uint64_t)FIRST_RETRY_US << attempt);
    return true;
}
