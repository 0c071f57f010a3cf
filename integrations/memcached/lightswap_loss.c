/* When a page cannot be read back: the items on it are lost, and nothing else. */
#include "memcached.h"
#include "lightswap_settings.h"

#include <stdio.h>

enum { PAGE_BYTES = 4096 };

enum { NUM_CAUSES = LSW_CAUSE_POISON + 1 };

static const char *const cause_names[NUM_CAUSES] = {
    [0] = "lost_items_other",
    [LSW_CAUSE_IO] = "lost_items_io",
    [LSW_CAUSE_TIMEOUT] = "lost_items_timeout",
    [LSW_CAUSE_HASH] = "lost_items_hash",
    [LSW_CAUSE_SHORT] = "lost_items_short",
    [LSW_CAUSE_LOST_BACKEND] = "lost_items_lost",
    [LSW_CAUSE_POISON] = "lost_items_poison",
};

/* All atomically. */
static uint64_t items_lost[NUM_CAUSES];     /* unlinked because a page could not be read back; [0]: why is not known */
static uint64_t pages_lost;                 /* given up and started anew */
static uint64_t chunks_set_aside;           /* now */

/* Chunks that were to be used and have a page that cannot be read back now: the device fails, or what is lost for good is still in use by
 * another item. Under slabs_lock. */
static item *set_aside;
static rel_time_t retried_at;

void lightswap_visit_losses(void (*visit)(void *arg, const char *name, uint64_t value), void *arg) {
    uint64_t all = 0;
    for (int cause = 0; cause < NUM_CAUSES; cause++) {
        const uint64_t items = __atomic_load_n(&items_lost[cause], __ATOMIC_RELAXED);
        all += items;
        visit(arg, cause_names[cause], items);
    }
    visit(arg, "lost_items", all);
    visit(arg, "lost_pages", __atomic_load_n(&pages_lost, __ATOMIC_RELAXED));
    visit(arg, "chunks_set_aside", __atomic_load_n(&chunks_set_aside, __ATOMIC_RELAXED));
}

void lightswap_lose(item *it, uint32_t hv) {
    if ((it->it_flags & ITEM_LINKED) != 0) {
        do_item_unlink(it, hv);
        struct lsw_error error;
        const uint32_t cause = lsw_last_failure(&error) && error.cause < NUM_CAUSES ? error.cause : 0;
        __atomic_fetch_add(&items_lost[cause], 1, __ATOMIC_RELAXED);
        static bool is_said;
        if (!__atomic_exchange_n(&is_said, true, __ATOMIC_RELAXED)) {
            fprintf(stderr, "memcached: an item is lost, as its page cannot be read back (%s). It and all others that follow are counted "
                    "in stats lightswap\n", cause_names[cause]);
        }
    }
}

void lightswap_lose_namesakes(item *it, uint32_t hv) {
    item *other = lightswap_enabled ? assoc_candidate(it->nkey, hv) : NULL;
    while (other != NULL) {
        /* While this waits for a page, others change the chain, but not what has this hash. */
        int difference;
        const bool is_told = lsw_compare(ITEM_key(it), ITEM_key(other), it->nkey, &difference) == LSW_OK && difference != 0;
        item *next = assoc_next_candidate(other);
        if (!is_told) {
            lightswap_lose(other, hv);
        }
        other = next;
    }
}

/* Neither linked, nor being filled, nor read: free, or never used. Under slabs_lock. */
static bool is_free(const item *it) {
    return (it->it_flags & ITEM_SLABBED) != 0 || (it->refcount == 0 && it->it_flags == 0);
}

/* The first header whose body has a byte in the page and that is in use, other than `except`; NULL: there is none. */
static item *user_of(const char *page, const item *except) {
    const struct lightswap_table *table = &lightswap_table;
    const size_t slab = (size_t)(page - table->bodies) >> table->slab_shift;
    const size_t start = (size_t)(page - table->bodies) - (slab << table->slab_shift);
    const size_t body_bytes = table->slabs[slab].body_bytes;
    const size_t num_items = ((size_t)1 << table->slab_shift) / (body_bytes + sizeof(item));
    char *headers = (char *)table->headers + table->slabs[slab].headers;
    for (size_t i = start / body_bytes; i < num_items && i * body_bytes < start + PAGE_BYTES; i++) {
        item *it = (item *)(headers + i * table->header_bytes);
        if (it != except && !is_free(it)) {
            return it;
        }
    }
    return NULL;
}

/* Unlinks what is on a page; true when nobody uses it any more and it reads zero. */
static bool start_anew(char *page, const item *except) {
    for (;;) {
        slabs_mlock();
        item *it = user_of(page, except);
        if (it == NULL) {
            const bool is_anew = lsw_discard(page, PAGE_BYTES) == LSW_OK;
            slabs_munlock();
            if (is_anew) {
                __atomic_fetch_add(&pages_lost, 1, __ATOMIC_RELAXED);
            }
            return is_anew;
        }
        if ((it->it_flags & ITEM_CHUNK) != 0) {
            it = ((item_chunk *)it)->head;
        }
        const uint32_t hv = it->hash;
        /* Only tried: other item locks may be held here. */
        void *lock = item_trylock(hv);
        /* Its hash is looked at again: it may have become another item before it was locked. */
        if (lock == NULL || (it->it_flags & ITEM_LINKED) == 0 || it->hash != hv) {
            slabs_munlock();
            if (lock != NULL) {
                item_trylock_unlock(lock);
            }
            return false;
        }
        refcount_incr(it);
        slabs_munlock();
        lightswap_lose(it, hv);
        do_item_remove(it);
        item_trylock_unlock(lock);
    }
}

/* Why the last touch failed: is the content lost for good, as far as one can tell? */
static bool is_gone(void) {
    struct lsw_error error;
    return lsw_last_failure(&error) &&
        (error.cause == LSW_CAUSE_HASH || error.cause == LSW_CAUSE_SHORT || error.cause == LSW_CAUSE_POISON);
}

/* Makes the body of a chunk that nobody uses readable. A device that fails, is slow or away may be back soon, and then the other items on
 * the page are there as well: only what is lost for good starts anew. */
static bool is_readable(char *body, size_t len, const item *it) {
    if (lsw_touch(body, len) == LSW_OK) {
        return true;
    }
    const size_t before = (size_t)(body - lightswap_table.bodies) % PAGE_BYTES;
    for (char *page = body - before; page < body + len; page += PAGE_BYTES) {
        if (lsw_touch(page, 1) != LSW_OK && !(is_gone() && start_anew(page, it))) {
            return false;
        }
    }
    return true;
}

/* Under slabs_lock. */
static void set_one_aside(item *it) {
    it->next = set_aside;
    set_aside = it;
}

/* Gives back what was set aside and can be used again: all are looked at once a second, until one takes too long. */
static void retry(void) {
    slabs_mlock();
    item *it = NULL;
    if (retried_at != current_time) {
        retried_at = current_time;
        it = set_aside;
        set_aside = NULL;
    }
    slabs_munlock();
    bool is_slow = false;
    while (it != NULL) {
        item *next = it->next;
        const unsigned int id = it->slabs_clsid;
        const size_t body_bytes = lightswap_slab(it)->body_bytes;
        if (!is_slow && is_readable(lightswap_body(it), body_bytes, it)) {
            __atomic_fetch_sub(&chunks_set_aside, 1, __ATOMIC_RELAXED);
            it->it_flags = 0;
            slabs_free(it, body_bytes + sizeof(item), id);
        } else {
            struct lsw_error error;
            is_slow = is_slow || (lsw_last_failure(&error) && error.cause == LSW_CAUSE_TIMEOUT);
            slabs_mlock();
            set_one_aside(it);
            slabs_munlock();
        }
        it = next;
    }
}

bool lightswap_make_ready(item *it, size_t size, unsigned int id) {
    if (!lightswap_has_body(it)) {
        return true;
    }
    if (__atomic_load_n(&chunks_set_aside, __ATOMIC_RELAXED) > 0) {
        retry();
    }
    if (is_readable(lightswap_body(it), size - sizeof(item), it)) {
        return true;
    }
    slabs_mlock();
    it->refcount = 0;
    it->it_flags = ITEM_SLABBED;
    it->slabs_clsid = id;
    set_one_aside(it);
    slabs_munlock();
    __atomic_fetch_add(&chunks_set_aside, 1, __ATOMIC_RELAXED);
    return false;
}
