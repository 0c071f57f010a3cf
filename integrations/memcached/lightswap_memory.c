/* Items in the region: slab pages, and the places where upstream would fault in pages that nobody asked for. */
#include "memcached.h"

static char *region_base;
static size_t region_len;
static size_t region_used;      /* under slabs_lock */

enum {
    MIB = 1024 * 1024,
    OVERWRITES_PER_REPLACEMENT = 16,
    FIRST_RETRY_US = 100,       /* doubled each time: 10 attempts of do_item_alloc_pull make about 100 ms */
};

/* Every class may take one slab page beyond the limit (do_slabs_newslab). */
size_t lightswap_region_bytes(size_t maxbytes) {
    size_t slab_pages = (maxbytes + settings.slab_page_size - 1) / settings.slab_page_size;
    return (slab_pages + MAX_NUMBER_OF_SLAB_CLASSES) * (size_t)settings.slab_page_size;
}

/* The hash table cannot grow here (growing would walk every item), so it starts at its final size. An item that precedes
 * the wanted one in a bucket costs a page of its own, so buckets are many: one for each 256 bytes of -m, as long as the
 * table, which is ordinary memory, takes no more than 16 MiB + 1/256 of -m. */
int lightswap_hashpower(size_t maxbytes) {
    size_t max_by_items = maxbytes / 256;
    size_t max_by_memory = (16 * (size_t)MIB + maxbytes / 256) / sizeof(item *);
    size_t max_buckets = max_by_items < max_by_memory ? max_by_items : max_by_memory;
    int power = HASHPOWER_DEFAULT;
    while (power < HASHPOWER_MAX && ((size_t)1 << (power + 1)) <= max_buckets) {
        power++;
    }
    return power;
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

void lightswap_touch_tail(const item *tail) {
    if (!lightswap_enabled || tail == NULL) {
        return;
    }
    lightswap_touch_key(tail, 0);
    lightswap_touch_key(tail, tail->nkey);
    const item *prev = tail->prev;
    if (prev != NULL && lsw_in_region(prev)) {
        lightswap_touch(prev, sizeof(item));
    }
}

void lightswap_touch_neighbours(const item *it) {
    if (!lightswap_enabled) {
        return;
    }
    const item *prev = it->prev;
    const item *next = it->next;
    if (prev != NULL && next != NULL) {
        lightswap_prefetch(next, sizeof(item)); /* so that both reads are on their way together */
    }
    if (prev != NULL) {
        lightswap_touch(prev, sizeof(item));
    }
    if (next != NULL) {
        lightswap_touch(next, sizeof(item));
    }
}

bool lightswap_relink_is_cheap(const item *it, const item *head) {
    const item *neighbours[] = { it->prev, it->next, head };
    for (size_t i = 0; i < sizeof(neighbours) / sizeof(neighbours[0]); i++) {
        if (neighbours[i] != NULL && !lsw_is_resident(neighbours[i], sizeof(item))) {
            return false;
        }
    }
    return true;
}

bool lightswap_overwrites_enough(void) {
    static __thread unsigned int num_overwrites;
    return ++num_overwrites % OVERWRITES_PER_REPLACEMENT == 0;
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
