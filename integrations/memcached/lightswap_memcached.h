/* Lightswap in memcached: what upstream's files see of it. Everything here costs one predictable branch on
 * lightswap_enabled when the server runs without --lightswap-memory. */
#ifndef LIGHTSWAP_MEMCACHED_H
#define LIGHTSWAP_MEMCACHED_H

#include "lightswap.h"

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

/* What main() decided from the command line, and what Lightswap may switch off of it. */
struct lightswap_choices {
    bool lock_memory;
    bool large_pages;
    bool *start_lru_maintainer;
    bool *start_lru_crawler;
    bool *start_assoc_maint;
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
int lightswap_hashpower(size_t maxbytes);

/* Makes the tail of an LRU resident before its lock is taken: `tail` is read without a lock, a stale one does no harm. */
void lightswap_touch_tail(const item *tail);
/* The same for the neighbours of an item that is about to leave its LRU. */
void lightswap_touch_neighbours(const item *it);
/* Would moving the item to the head of its LRU fault a neighbour in? */
bool lightswap_relink_is_cheap(const item *it, const item *head);
/* Is it time to replace an item that is written in place again and again, although that faults its neighbours in? */
bool lightswap_overwrites_enough(void);
/* Do writes to the backend fail? No new items then: nothing could leave local memory for them. */
bool lightswap_writes_fail(void);
/* No item could be evicted: waits a little for those who hold the tail items, true when another try is worth it. */
bool lightswap_wait_for_eviction(const item *tail, int attempt);

/* Asking is cheaper than faulting: no signal, all missing pages in one go, and the pages count as used. A page that
 * cannot be read back is reported by the access that follows. */
static inline void lightswap_touch(const void *addr, size_t len) {
    if (__builtin_expect(lightswap_enabled, 0) && (lightswap_asks_first || lsw_is_resident(addr, len))) {
        (void)lsw_touch(addr, len);
    }
}

/* Starts reading what will be touched soon. */
static inline void lightswap_prefetch(const void *addr, size_t len) {
    if (lightswap_asks_first) {
        (void)lsw_prefetch(addr, len);
    }
}

/* Header, CAS and key: what a look-up reads. */
static inline void lightswap_touch_key(const item *it, size_t nkey) {
    lightswap_touch(it, sizeof(item) + sizeof(uint64_t) + nkey + 1);
}

/* The whole item, when a client is going to get it. The rest of a chunked item is touched as it is sent. */
static inline void lightswap_touch_item(const item *it) {
    if (__builtin_expect(lightswap_enabled, 0) && (it->it_flags & ITEM_CHUNKED) == 0) {
        lightswap_touch(it, ITEM_ntotal(it));
    }
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
