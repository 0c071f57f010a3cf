/* Lightswap in memcached: what upstream's files see of it. Everything here costs one predictable branch on
 * lightswap_enabled when the server runs without --lightswap-memory. */
#ifndef LIGHTSWAP_MEMCACHED_H
#define LIGHTSWAP_MEMCACHED_H

#include "lightswap.h"

#include <string.h>

/* Set once, before the first worker thread starts. */
extern bool lightswap_enabled;
/* Pages are asked for before they are accessed; off with the notifier `monitor`, to be what programs with a classic
 * userfaultfd handler are. */
extern bool lightswap_asks_first;

/* ---- Start-up (lightswap_options.c, lightswap_start.c) ---- */

/* getopt_long values; above every short option. */
enum { LIGHTSWAP_OPTION_MEMORY = 0x100, LIGHTSWAP_OPTION_BACKEND, LIGHTSWAP_OPTION_NOTIFIER, LIGHTSWAP_OPTION_WAIT };

void lightswap_usage(void);
void lightswap_set_memory(const char *text);
void lightswap_set_backend(const char *text);
void lightswap_set_notifier(const char *text);
void lightswap_set_wait(const char *text);
/* Sees the text of each -o suboption ("name=value,rest"), to tell what was asked for from what is a default. */
void lightswap_note_suboption(const char *text);

/* What main() decided from the command line. */
struct lightswap_choices {
    bool lock_memory;
    bool large_pages;
};
/* Checks the options and adapts the settings; ends the process with a sentence when they cannot work together. */
void lightswap_configure(const struct lightswap_choices *choices);
/* A daemon cannot report errors once it is detached: opens everything and closes it again, or ends the process. */
void lightswap_rehearse(void);
/* Opens the backend and creates the region; ends the process with a sentence when that fails. After fork, before threads. */
void lightswap_start(void);
/* After every worker has left. */
void lightswap_stop(void);

/* ---- Workers (lightswap_workers.c) ---- */

/* What to do when the connection's LWT is still suspended. */
enum lightswap_when_busy {
    LIGHTSWAP_PARK,     /* an event: take it out of libevent until the LWT has ended */
    LIGHTSWAP_SKIP,     /* an idle time-out: the connection is not idle */
    LIGHTSWAP_LATER,    /* handed back by a side thread: the LWT takes it when it is done */
};
/* Runs step(c) on an LWT of this worker, so that a page fault in it suspends the connection and not the worker. */
void lightswap_run_conn(conn *c, void (*step)(conn *), enum lightswap_when_busy when_busy);
/* The socket is about to be closed: after that the conn may belong to another worker. */
void lightswap_detach_conn(conn *c);

void lightswap_worker_start(void);
void lightswap_worker_loop(struct event_base *base);
void lightswap_worker_stop(void);
/* Lets this worker's other LWTs go on while its own stack waits for something one of them holds. */
void lightswap_worker_help(void);
bool lightswap_on_worker(void);

/* ---- Memory (lightswap_memory.c) ---- */

/* A slab page, aligned to its size, reading zero; NULL when the region or the backend is full. Under slabs_lock. */
void *lightswap_slab_page(size_t size);
bool lightswap_memlimit_ok(size_t bytes);
/* Takes over the region; see lightswap_start. */
void lightswap_memory_init(void *base, size_t len);
size_t lightswap_region_bytes(size_t maxbytes);
/* Do writes to the backend fail? No new items then: nothing could leave local memory for them. */
bool lightswap_writes_fail(void);
/* No item could be evicted: waits a little for those who hold the tail items, true when another try is worth it. */
bool lightswap_wait_for_eviction(const item *tail, int attempt);

/* ---- Headers (lightswap_headers.c) ---- */

/* An item is two things: its header (everything up to the CAS) in ordinary memory, and its body (key, client flags, value) in the
 * region. So hash chains, LRUs, free lists and reference counts never touch a page that may be swapped out. The
 * headers of a slab page lie together in a table, one after the other as its bodies do, and close to those of other slab
 * pages, so that huge pages hold them. A chunk of a large item is divided in the same way. What is not in the table has
 * its body behind its header, as upstream has it. */
struct lightswap_slab {
    uint64_t headers;           /* where in the table those of this slab page begin */
    uint32_t body_bytes;        /* of each of its items */
};

enum { LIGHTSWAP_GRANULE_SHIFT = 12 };

struct lightswap_table {
    const char *headers;
    size_t headers_len;         /* 0: Lightswap is off */
    uint32_t *slab_of;          /* slab page of the headers in each granule of 2^LIGHTSWAP_GRANULE_SHIFT bytes of the table */
    struct lightswap_slab *slabs;
    char *bodies;               /* the region */
    unsigned int slab_shift;    /* a slab page has 2^slab_shift bytes */
    uint32_t header_bytes;
    uint64_t reciprocal;        /* index = offset of a header among those of its slab page * reciprocal >> 32 */
};
extern struct lightswap_table lightswap_table;

/* False when there is no memory for the table. */
bool lightswap_headers_init(char *region, size_t region_len);
/* Prepares a slab page for items of this size, header included; its first header. Under slabs_lock. */
char *lightswap_cut(char *slab_page, size_t item_size);
/* Header, key and first chunk of a large item, all in ordinary memory, as upstream's slabs_alloc returns it. */
item *lightswap_alloc_head(size_t size);
void lightswap_free_head(item *head);

static inline bool lightswap_has_body(const void *header) {
    return __builtin_expect((size_t)((const char *)header - lightswap_table.headers) < lightswap_table.headers_len, 0);
}

static inline const struct lightswap_slab *lightswap_slab(const void *header) {
    const struct lightswap_table *table = &lightswap_table;
    return &table->slabs[table->slab_of[(size_t)((const char *)header - table->headers) >> LIGHTSWAP_GRANULE_SHIFT]];
}

static inline char *lightswap_body(const void *header) {
    const struct lightswap_table *table = &lightswap_table;
    const struct lightswap_slab *slab = lightswap_slab(header);
    const uint64_t in_slab = (uint64_t)((const char *)header - table->headers) - slab->headers;
    const size_t index = (size_t)(in_slab * table->reciprocal >> 32);
    return table->bodies + ((size_t)(slab - table->slabs) << table->slab_shift) + index * slab->body_bytes;
}

/* ---- Loss (lightswap_loss.c) ---- */

/* Brings in the pages of a chunk just allocated, so that writing to it works. If one cannot be read back, the items on it
 * are unlinked and it starts anew; false if that has to wait, the chunk is then set aside. */
bool lightswap_make_ready(item *it, size_t size, unsigned int id);
/* Chunks that one allocation may set aside without counting them as attempts. */
enum { LIGHTSWAP_MOST_SET_ASIDE = 100 };
/* An item whose pages cannot be read back; its item lock is held. */
void lightswap_lose(item *it, uint32_t hv);

/* Before an item is linked, its lock held: unlinks those that may have its key, which a look-up could not tell as a page of either could not be
 * read. Or they would be served when the new one is gone. */
void lightswap_lose_namesakes(item *it, uint32_t hv);

/* ---- Look-up (lightswap_lookup.c) ---- */

enum lightswap_part {
    LIGHTSWAP_KEY,              /* enough to compare keys and read the client flags */
    LIGHTSWAP_ALL,              /* what a client is going to get */
};
/* item_lock, with the pages of the item that most likely has this key in memory: they are waited for without the lock, and
 * stay until the LWT looks up another item or has ended. An item that cannot be read back is gone when this returns. */
void lightswap_item_lock(uint32_t hv, size_t nkey, enum lightswap_part part);
/* Starts reading what will be looked up soon. */
void lightswap_expect(const char *key, size_t nkey);
bool lightswap_same_bytes(const char *a, const char *b, size_t len);
/* Puts another item's flags and value behind this one's key, which is the same. False: a page could not be read back, the value is a mixture. */
bool lightswap_overwrite(item *it, const item *new_it);

/* Is this the item's key? Its length is. Items of other keys are told by their hash, the same item by its address. */
static inline bool lightswap_key_is(const item *it, const char *key, uint32_t hv) {
    if (!lightswap_enabled) {
        return memcmp(key, ITEM_key(it), it->nkey) == 0;
    }
    /* Either key may be on a page that cannot be read: an item that is deleted is looked up by its own. */
    return it->hash == hv && (key == ITEM_key(it) || lightswap_same_bytes(key, ITEM_key(it), it->nkey));
}

/* ---- Copies from and to items: the pages stay in memory meanwhile. False when one cannot be read back. ---- */

static inline bool lightswap_copy(void *to, const void *from, size_t len) {
    if (__builtin_expect(lightswap_enabled, 0)) {
        return lsw_copy(to, from, len) == LSW_OK;
    }
    memmove(to, from, len);
    return true;
}

bool lightswap_fill(char *to, char byte, size_t len);

/* Client flags. Their page is the one that the value begins in, so nobody gets an answer with a 0 for what cannot be read. */
static inline uint32_t lightswap_flags(const char *suffix) {
    uint32_t flags = 0;
    (void)lightswap_copy(&flags, suffix, sizeof(flags));
    return flags;
}

/* A value to be parsed as a number, from a copy if it fits into the buffer; no number if it cannot be read back. */
static inline char *lightswap_number(char *buffer, size_t size, char *data, size_t len) {
    if (!lightswap_enabled || len >= size) {
        return data;
    }
    buffer[lightswap_copy(buffer, data, len) ? len : 0] = '\0';
    return buffer;
}

static inline bool lightswap_is_resident(const void *addr, size_t len) {
    return !lightswap_enabled || !lsw_in_region(addr) || lsw_is_resident(addr, len);
}

/* ---- System calls on item memory ---- */

static inline ssize_t lightswap_read(int fd, void *buf, size_t len) {
    return __builtin_expect(lightswap_enabled, 0) ? lsw_read(fd, buf, len) : read(fd, buf, len);
}

static inline ssize_t lightswap_write(int fd, const void *buf, size_t len) {
    return __builtin_expect(lightswap_enabled, 0) ? lsw_write(fd, buf, len) : write(fd, buf, len);
}

static inline ssize_t lightswap_sendmsg(int fd, const struct msghdr *msg, int flags) {
    return __builtin_expect(lightswap_enabled, 0) ? lsw_sendmsg(fd, msg, flags) : sendmsg(fd, msg, flags);
}

/* ---- stats lightswap (lightswap_start.c) ---- */

void lightswap_stats(ADD_STAT add_stats, void *c);

#endif
