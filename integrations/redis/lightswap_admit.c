/* Before a command runs: is all in memory that it will access? Then it is pinned until the command has run. If not, the client is parked; and if it cannot
 * be read back, the command is refused or the key counts as missing. */
#include "lightswap_walk.h"
#include "lightswap_park.h"
#include "lightswap_internal.h"

enum {
    /* A command that meets missing pages so often although it has waited for them blocks the server until they are in. */
    MOST_RESTARTS = 8,
    /* Ranges of one command that are looked at; what lies beyond is left to faults. */
    MOST_RANGES = 65536,
    SHOWN_KEY_BYTES = 128,
    STATS_INTERVAL_MS = 10,
    NEARLY_FULL_PERCENT = 90,
};

/* Of server.c and networking.c; no header of upstream's has them. */
void rejectCommandSds(client *c, sds s);
extern int ProcessingEventsWhileBlocked;

bool lightswap_walks;
/* Commands that were let in and have not ended; those within another one (which runs a busy script) are not looked at. */
int lightswap_num_admitted;

/* What the command that is let in now will access. Of the main thread. */
static struct {
    struct lightswap_range *ranges;
    size_t num_ranges, capacity;
    size_t first;                           /* those before are of the script that has called the command */
    bool is_in_script;
    size_t num_missing;
    size_t num_pins, most_pins;
    bool is_oversized;
    struct lightswap_waiter *granted;       /* what its client waited for before */
    robj *lost_key;
    uint8_t lost_cause;
} wanted;

/* ---- What the walk finds ---- */

static void record(const void *addr, size_t len, enum lightswap_range_state state) {
    if (wanted.num_ranges == wanted.capacity) {
        wanted.capacity = wanted.capacity > 0 ? wanted.capacity * 2 : 64;
        wanted.ranges = zrealloc(wanted.ranges, wanted.capacity * sizeof(*wanted.ranges));
    }
    wanted.ranges[wanted.num_ranges++] = (struct lightswap_range){ .addr = addr, .len = len, .state = (uint8_t)state };
}

/* An expired key has no value, whatever lies there. */
static bool is_expired(const struct lightswap_walk *walk) {
    return dictSize(walk->db->expires) > 0 && server.current_client != server.master && keyIsExpired(walk->db, walk->key);
}

static void note_missing(struct lightswap_walk *walk, const char *addr, size_t len, enum lightswap_range_state state) {
    const struct lightswap_range *lost = wanted.granted != NULL ? lightswap_waiter_lost(wanted.granted, addr, len) : NULL;
    if (is_expired(walk)) {
        return;
    }
    if (lost != NULL) {
        wanted.lost_key = walk->key;
        wanted.lost_cause = lost->cause;
        walk->is_over = true;
        return;
    }
    /* What is only touched has come and may have gone again: it is not waited for twice. */
    const bool is_done = wanted.granted != NULL && (state == LIGHTSWAP_LOOSE || lightswap_waiter_restarts(wanted.granted) >= MOST_RESTARTS);
    if (!is_done) {
        record(addr, len, state);
        wanted.num_missing++;
    }
}

/* One part: as much as may be pinned, or the rest. */
static bool need_part(struct lightswap_walk *walk, const char *addr, size_t len, bool is_pinnable) {
    if (is_pinnable && lsw_pin_resident(addr, len) == LSW_OK) {
        wanted.num_pins += lightswap_pages_of(addr, len);
        record(addr, len, LIGHTSWAP_PINNED);
        return true;
    }
    if (!lsw_is_resident(addr, len)) {
        wanted.num_pins += is_pinnable ? lightswap_pages_of(addr, len) : 0;
        note_missing(walk, addr, len, is_pinnable ? LIGHTSWAP_MISSING : LIGHTSWAP_LOOSE);
    }
    return false;
}

bool lightswap_need_now(struct lightswap_walk *walk, const void *addr, size_t len) {
    if (walk->is_over) {
        return false;
    }
    if (wanted.num_ranges - wanted.first >= MOST_RANGES) {
        walk->is_over = true;
        return false;
    }
    if (wanted.num_pins + lightswap_pages_of(addr, len) <= wanted.most_pins) {
        return need_part(walk, addr, len, true);
    }
    wanted.is_oversized = true;
    /* What ends with the last page that may be pinned. */
    const size_t num_pages = wanted.most_pins - wanted.num_pins;
    const size_t first = num_pages > 0 ? num_pages * LIGHTSWAP_PAGE_BYTES - (uintptr_t)addr % LIGHTSWAP_PAGE_BYTES : 0;
    if (first > 0) {
        need_part(walk, addr, first, true);
    }
    if (!walk->is_over) {
        need_part(walk, (const char *)addr + first, len - first, false);
    }
    return false;
}

void lightswap_need(struct lightswap_walk *walk, const void *addr, size_t len) {
    (void)lightswap_need_now(walk, addr, len);
}

static void drop_ranges(void) {
    for (size_t i = wanted.first; i < wanted.num_ranges; i++) {
        if (wanted.ranges[i].state == LIGHTSWAP_PINNED) {
            lsw_unpin(wanted.ranges[i].addr, wanted.ranges[i].len);
        }
    }
    wanted.num_ranges = wanted.first;
}

static void find_out(client *c, struct lightswap_walk *walk) {
    wanted.num_ranges = wanted.first;
    wanted.num_missing = wanted.num_pins = 0;
    wanted.most_pins = lightswap_most_pins_of_client();
    wanted.is_oversized = false;
    wanted.lost_key = NULL;
    lightswap_walk_command(walk, c);
}

/* ---- Values that cannot be read back ---- */

static const char *cause_text(uint8_t cause) {
    switch (cause) {
        case LSW_CAUSE_IO: return "I/O error";
        case LSW_CAUSE_TIMEOUT: return "the read took longer than the time limit";
        case LSW_CAUSE_HASH: return "what was read is not what was written";
        case LSW_CAUSE_SHORT: return "the backend returned less than a page";
        case LSW_CAUSE_LOST_BACKEND: return "the backend is gone";
        case LSW_CAUSE_POISON: return "its memory was damaged";
        default: return "it cannot be brought in";
    }
}

static void drop_key(redisDb *db, robj *key) {
    incrRefCount(key);
    const int outer_core_propagates = server.core_propagates;
    server.core_propagates = 1;
    if (server.lazyfree_lazy_server_del) {
        dbAsyncDelete(db, key);
    } else {
        dbSyncDelete(db, key);
    }
    signalModifiedKey(NULL, db, key);
    notifyKeyspaceEvent(NOTIFY_GENERIC, "del", key, db->id);
    propagateDeletion(db, key, server.lazyfree_lazy_server_del);
    server.dirty++;
    if (!wanted.is_in_script) {
        propagatePendingCommands();
        trackingHandlePendingKeyInvalidations();
    }
    server.core_propagates = outer_core_propagates;
    decrRefCount(key);
    lightswap_park_counters.dropped_keys++;
}

static sds error_text(void) {
    const sds key = wanted.lost_key->ptr;
    const size_t len = sdslen(key);
    const sds error = sdscatrepr(sdsnew("-LSWERR page of key "), key, len < SHOWN_KEY_BYTES ? len : SHOWN_KEY_BYTES);
    return sdscatprintf(error, "%s is lost: %s", len < SHOWN_KEY_BYTES ? "" : "...", cause_text(wanted.lost_cause));
}

/* True: the key is gone, and the command may go on without. Else the caller is to be told. */
static bool lose(redisDb *db) {
    if (lightswap_settings.io_error_policy == LIGHTSWAP_IO_MISS && server.masterhost == NULL && !checkClientPauseTimeoutAndReturnIfPaused()) {
        drop_key(db, wanted.lost_key);
        return true;
    }
    lightswap_park_counters.rejections++;
    return false;
}

static void refuse(client *c) {
    if (c->flags & CLIENT_MASTER) {
        /* What the master has changed cannot be changed here. All of the data comes anew. */
        serverLog(LL_WARNING, "A page that a command of the master needs is lost (%s): full resynchronization", cause_text(wanted.lost_cause));
        c->flags |= CLIENT_PROTOCOL_ERROR;
        freeClientAsync(c);
    } else {
        rejectCommandSds(c, error_text());
    }
}

/* ---- Is it worth a look? ---- */

struct pressure {
    uint64_t resident, limit, evictions;
};

static void note_stat(void *arg, const char *name, uint64_t value) {
    struct pressure *pressure = arg;
    if (!strcmp(name, "resident_bytes")) {
        pressure->resident = value;
    } else if (!strcmp(name, "resident_limit_bytes")) {
        pressure->limit = value;
    } else if (!strcmp(name, "clean_evictions") || !strcmp(name, "zero_evictions") || !strcmp(name, "dirty_evictions")) {
        pressure->evictions += value;
    }
}

/* As long as all data fits into local memory, commands need not be let in one by one. */
void lightswap_watch_pressure(void) {
    static mstime_t looked_at;
    if (lightswap_walks || server.mstime - looked_at < STATS_INTERVAL_MS) {
        return;
    }
    looked_at = server.mstime;
    struct pressure pressure = { 0 };
    lsw_stats_visit(lightswap_instance, note_stat, &pressure);
    /* A little before the first page is evicted. */
    if (pressure.evictions > 0 || pressure.resident > pressure.limit / 100 * NEARLY_FULL_PERCENT) {
        lightswap_keys_init();
        lightswap_walks = true;
    }
}

/* ---- The command ---- */

/* False: the client is parked. Else all is there, or it is known to be lost. */
static bool bring_in(client *c) {
    const unsigned restarts = wanted.granted != NULL ? lightswap_waiter_restarts(wanted.granted) + 1 : 0;
    struct lightswap_waiter *waiter = NULL;
    enum lightswap_fetch result = LIGHTSWAP_HAS_ALL;
    lightswap_park_counters.restarts += restarts > 0;
    const struct lightswap_range *ranges = wanted.ranges + wanted.first;
    const size_t num_ranges = wanted.num_ranges - wanted.first;
    if (restarts < MOST_RESTARTS && !ProcessingEventsWhileBlocked && !wanted.is_in_script) {
        waiter = lightswap_waiter_start(ranges, num_ranges, restarts, &result);
    }
    if (waiter == NULL) {
        lightswap_park_counters.synchronous_runs++;
        waiter = lightswap_waiter_run(ranges, num_ranges, restarts);
    }
    /* Their pins are the waiter's now. */
    wanted.num_ranges = wanted.first;
    lightswap_waiter_release(wanted.granted);
    wanted.granted = NULL;
    if (result == LIGHTSWAP_WAITS) {
        lightswap_waiter_park(waiter, c);
        return false;
    }
    wanted.granted = waiter;
    return true;
}

/* False: the client is parked, or cannot have what it asks for: then there is a lost key. */
static bool prepare(client *c) {
    for (;;) {
        struct lightswap_walk found;
        find_out(c, &found);
        if (wanted.lost_key != NULL) {
            drop_ranges();
            if (!lose(found.db)) {
                return false;
            }
        } else if (wanted.num_missing == 0) {
            return true;
        } else if (!bring_in(c)) {
            return false;
        }
    }
}

bool lightswap_admit(client *c) {
    if (lightswap_num_admitted++ > 0) {
        return true;
    }
    wanted.granted = c->lightswap_waiter;
    c->lightswap_waiter = NULL;
    const bool may_run = prepare(c);
    lightswap_waiter_release(wanted.granted);
    wanted.granted = NULL;
    if (!may_run) {
        lightswap_num_admitted = 0;
        if (wanted.lost_key != NULL) {
            refuse(c);
        }
    } else if (wanted.is_oversized) {
        lightswap_park_counters.oversized_runs++;
    }
    return may_run;
}

void lightswap_release(void) {
    if (--lightswap_num_admitted == 0) {
        drop_ranges();
    }
}

/* A script's keys that it has not declared are only known when it calls the command. */
char *lightswap_admit_in_script(client *c) {
    wanted.first = wanted.num_ranges;
    wanted.is_in_script = true;
    const bool may_run = prepare(c);
    wanted.is_in_script = false;
    lightswap_waiter_release(wanted.granted);
    wanted.granted = NULL;
    if (may_run) {
        return NULL;
    }
    wanted.first = 0;
    return error_text();
}

void lightswap_release_in_script(void) {
    drop_ranges();
    wanted.first = 0;
}
