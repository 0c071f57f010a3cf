/* Lightswap in Redis: parked clients. Upstream's files see the part in lightswap_redis.h. */
#ifndef LIGHTSWAP_PARK_H
#define LIGHTSWAP_PARK_H

#include "server.h"
#include "lightswap.h"

enum lightswap_range_state {
    LIGHTSWAP_MISSING,      /* to be brought in and pinned */
    LIGHTSWAP_LOOSE,        /* to be brought in; not pinned, as that would be too much */
    LIGHTSWAP_PINNED,
    LIGHTSWAP_UNPINNED,     /* in memory, or it was a moment ago */
    LIGHTSWAP_LOST,         /* cannot be read back */
};

/* Memory that a command is going to access. */
struct lightswap_range {
    const char *addr;
    size_t len;
    uint8_t state;          /* lightswap_range_state */
    uint8_t cause;          /* LSW_CAUSE_... of one that is lost; 0: another failure */
};

/* What a client waits for, or has got and not used yet. Outlives the client: an LWT may be at work for it. */
struct lightswap_waiter;

struct lightswap_park_counters {
    uint64_t parks;                 /* times that a client was parked */
    uint64_t restarts;              /* times that a command, run again, found other pages missing */
    uint64_t synchronous_runs;      /* commands that blocked the server until their pages were in */
    uint64_t oversized_runs;        /* commands that accessed more than may be pinned for one client */
    uint64_t rejections;            /* commands refused because of a page that cannot be read back */
    uint64_t dropped_keys;          /* keys deleted for the same reason (policy "miss") */
    uint64_t hidden_keys;           /* keys that a command did not find for the same reason, and that stay (policy "miss") */
    uint64_t failed_runs;           /* commands that were left when they met such a page */
};
extern struct lightswap_park_counters lightswap_park_counters;

/* ---- Values that cannot be read back ---- */

const char *lightswap_cause_text(uint8_t cause);
/* The error that a client is told. */
sds lightswap_error_text(const robj *key, uint8_t cause);
/* If the client is the link to the master it is dropped, and all of the data comes anew; false: it is not. */
bool lightswap_refuse_master(client *c, uint8_t cause);
/* May the client's command be left where it meets such a page (lightswap_guard.c)? Others must not begin if there is one. */
bool lightswap_may_be_left(const client *c);

enum { LIGHTSWAP_PAGE_BYTES = 4096 };

static inline size_t lightswap_pages_of(const char *addr, size_t len) {
    return ((uintptr_t)addr + len - 1) / LIGHTSWAP_PAGE_BYTES - (uintptr_t)addr / LIGHTSWAP_PAGE_BYTES + 1;
}

/* Pages that may be pinned for one client. */
size_t lightswap_most_pins_of_client(void);

/* Looks now and then whether commands have to be let in one by one (lightswap_admit.c). */
void lightswap_watch_pressure(void);

/* Brings a range in, in steps; false: it is lost, and has its cause. */
bool lightswap_touch(struct lightswap_range *range);

/* ---- Waiters (lightswap_park.c) ---- */

enum lightswap_fetch { LIGHTSWAP_WAITS, LIGHTSWAP_HAS_ALL };

/* Takes over the pins that the ranges have. NULL: no memory for an LWT, the pins are still the caller's. */
struct lightswap_waiter *lightswap_waiter_start(const struct lightswap_range *ranges, size_t num_ranges, unsigned restarts, enum lightswap_fetch *result);
/* The same while the thread blocks. */
struct lightswap_waiter *lightswap_waiter_run(const struct lightswap_range *ranges, size_t num_ranges, unsigned restarts);
/* The client is parked until the waiter has all. */
void lightswap_waiter_park(struct lightswap_waiter *waiter, client *c);
/* Drops its pins; NULL is nobody. */
void lightswap_waiter_release(struct lightswap_waiter *waiter);
unsigned lightswap_waiter_restarts(const struct lightswap_waiter *waiter);
/* A range that could not be read back and has one of these bytes; NULL: none. */
const struct lightswap_range *lightswap_waiter_lost(const struct lightswap_waiter *waiter, const char *addr, size_t len);

#endif
