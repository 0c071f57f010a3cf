/* Touch, then work: the pages of an item come in before its lock is taken, and stay while the request uses them. */
#include "memcached.h"
#include "lightswap_settings.h"

enum {
    /* Bodies up to this size are pinned whole; of larger ones the part that is accessed directly, the rest is touched. */
    PINNED_WHOLE_BYTES = 8192,
    EXPECTED_BYTES = 65536,
    PIN_RETRY_US = 50,
    LOOKS = 8,
};

bool lightswap_same_bytes(const char *a, const char *b, size_t len) {
    int difference = 1;
    /* What cannot be read is no match: whoever looked the item up has lost it by now, or will at the next look. */
    return lsw_compare(a, b, len, &difference) == LSW_OK && difference == 0;
}

bool lightswap_fill(char *to, char byte, size_t len) {
    char block[256];
    if (!lightswap_enabled) {
        memset(to, byte, len);
        return true;
    }
    memset(block, byte, sizeof(block));
    for (size_t done = 0; done < len; done += sizeof(block)) {
        const size_t left = len - done;
        if (!lightswap_copy(to + done, block, left < sizeof(block) ? left : sizeof(block))) {
            return false;
        }
    }
    return true;
}

void lightswap_drop_pins(struct lightswap_pins *pins) {
    if (pins->len > 0) {
        lsw_unpin(pins->addr, pins->len);
        pins->len = 0;
    }
}

static size_t body_len(const item *it) {
    return ITEM_ntotal(it) - sizeof(item) - ((it->it_flags & ITEM_CAS) ? sizeof(uint64_t) : 0);
}

/* Key, its end, client flags. */
static size_t key_len(const item *it) {
    return (size_t)it->nkey + 1 + sizeof(uint32_t);
}

static size_t pinned_len(const item *it, enum lightswap_part part) {
    const size_t all = body_len(it);
    return part == LIGHTSWAP_ALL && all <= PINNED_WHOLE_BYTES ? all : key_len(it) < all ? key_len(it) : all;
}

bool lightswap_overwrite(item *it, const item *new_it) {
    const size_t key = (size_t)it->nkey + 1;
    /* Reading pages just to write them is not worth it. */
    return lsw_is_resident(lightswap_body(it), body_len(new_it)) &&
        lightswap_copy(lightswap_body(it) + key, lightswap_body(new_it) + key, body_len(new_it) - key);
}

/* With a reference to the item, and no lock. False: a page cannot be read back. */
static bool bring(struct lightswap_pins *pins, const item *it, enum lightswap_part part) {
    const char *body = lightswap_body(it);
    const size_t all = body_len(it);
    const size_t pinned = pinned_len(it, part);
    if (part == LIGHTSWAP_ALL && pinned < all && lsw_touch(body, all) != LSW_OK) {
        return false;
    }
    int result;
    /* Other requests hold the pins, and none of them waits for one while it does: they come back. */
    while ((result = lsw_pin(body, pinned)) == LSW_ERR_PIN_LIMIT) {
        lsw_sleep_us(PIN_RETRY_US);
    }
    if (result == LSW_OK) {
        pins->addr = body;
        pins->len = pinned;
    }
    return result == LSW_OK;
}

/* The same without waiting, if all is in memory. */
static bool pin_resident(struct lightswap_pins *pins, const item *it, enum lightswap_part part) {
    const char *body = lightswap_body(it);
    const size_t pinned = pinned_len(it, part);
    if (part == LIGHTSWAP_ALL && pinned < body_len(it) && !lsw_is_resident(body, body_len(it))) {
        return false;
    }
    if (lsw_pin_resident(body, pinned) != LSW_OK) {
        return false;
    }
    pins->addr = body;
    pins->len = pinned;
    return true;
}

/* Chunks of a large value: with a reference to the item. They are many, so they are not pinned. */
static bool all_chunks(const item *it, bool (*is_all_right)(const char *body, size_t len)) {
    for (item_chunk *chunk = (item_chunk *)ITEM_schunk(it); chunk != NULL; chunk = chunk->next) {
        if (lightswap_has_body(chunk) && chunk->used > 0 && !is_all_right(lightswap_body(chunk), (size_t)chunk->used)) {
            return false;
        }
    }
    return true;
}

static bool is_resident(const char *body, size_t len) {
    return lsw_is_resident(body, len);
}

static bool can_be_touched(const char *body, size_t len) {
    return lsw_touch(body, len) == LSW_OK;
}

/* Is there nothing to wait for? Item lock held. */
static bool is_at_hand(struct lightswap_pins *pins, const item *it, enum lightswap_part part) {
    if (lightswap_has_body(it)) {
        /* The key is compared soon: it is loaded while the pages are looked at. */
        __builtin_prefetch(lightswap_body(it));
        return pin_resident(pins, it, part);
    }
    return part == LIGHTSWAP_KEY || (it->it_flags & ITEM_CHUNKED) == 0 || all_chunks(it, is_resident);
}

void lightswap_item_lock(uint32_t hv, size_t nkey, enum lightswap_part part) {
    struct lightswap_pins *pins = lightswap_enabled && lightswap_asks_first ? lsw_lwt_value() : NULL;
    if (pins == NULL) {
        item_lock(hv);
        item *it = lightswap_enabled && lightswap_asks_first ? assoc_candidate(nkey, hv) : NULL;
        if (it != NULL && lightswap_has_body(it) && lsw_touch(lightswap_body(it), key_len(it)) != LSW_OK) {
            lightswap_lose(it, hv);
        }
        return;
    }
    assoc_expect(hv);
    lightswap_drop_pins(pins);
    item_lock(hv);
    item *it = assoc_candidate(nkey, hv);
    /* Meanwhile another item may have taken the place of the one that was waited for; in the end its pages are left to faults. */
    for (int i = 0; i < LOOKS && it != NULL && !is_at_hand(pins, it, part); i++) {
        refcount_incr(it);
        item_unlock(hv);
        const bool is_there = lightswap_has_body(it) ? bring(pins, it, part) : all_chunks(it, can_be_touched);
        item_lock(hv);
        if (!is_there) {
            lightswap_lose(it, hv);
        }
        item *now = assoc_candidate(nkey, hv);
        const bool is_same = now == it;
        do_item_remove(it);
        if (is_same) {
            return;
        }
        lightswap_drop_pins(pins);
        it = now;
    }
}

void lightswap_expect(const char *key, size_t nkey) {
    if (!lightswap_asks_first) {
        return;
    }
    const uint32_t hv = hash(key, nkey);
    void *lock = item_trylock(hv);
    if (lock == NULL) {
        return;
    }
    const item *it = assoc_candidate(nkey, hv);
    if (it != NULL && lightswap_has_body(it)) {
        const size_t len = body_len(it);
        lsw_prefetch(lightswap_body(it), len < EXPECTED_BYTES ? len : EXPECTED_BYTES);
    }
    item_trylock_unlock(lock);
}
