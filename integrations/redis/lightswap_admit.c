/* Before a command runs: is all in memory that it will access? Then it is pinned until the command has run. If not, the client is parked; and if it cannot
 * be read back, the command is refused or the key counts as missing. */
#include "lightswap_walk.h"
#include "lightswap_park.h"
#include "lightswap_internal.h"

enum {
    /* A command that meets missing pages so often although it has waited for them blocks the server until they are in. */
    MOST_RESTARTS = 8,
    /* Ranges of one command that are kept count of. */
    MOST_RANGES = 65536,
    SHOWN_KEY_BYTES = 128,
    STATS_INTERVAL_MS = 10,
    NEARLY_FULL_PERCENT = 90,
    /* So often while as much as local memory is being allocated: far more often than it takes to get from nearly full to full. */
    LOOKS_A_MEMORY = 64,
};

/* Of server.c and networking.c; no header of upstream's has them. */
void rejectCommandSds(client *c, sds s);
extern int ProcessingEventsWhileBlocked;

bool lightswap_walks;
size_t lightswap_new_bytes;
size_t lightswap_look_bytes;
/* Commands that were let in and have not ended; those within another one (which runs a busy script) are not looked at. */
int lightswap_num_admitted;
int lightswap_num_hidden;

/* A key that the command is not to find, although it is there. */
struct hidden_key {
    redisDb *db;
    robj *key;
    int depth;
};

/* What the command that is let in now will access. Of the thread that executes commands. */
static struct {
    struct lightswap_range *ranges;
    size_t num_ranges, capacity;
    size_t first;                           /* those before are of the script or module that has called the command */
    int depth;                              /* how many of them have */
    bool may_be_left;                       /* as lightswap_may_be_left says */
    size_t num_missing;
    size_t num_pins, most_pins;
    bool is_oversized;
    struct lightswap_waiter *granted;       /* what its client waited for before */
    robj *lost_key;                         /* a reference of its own */
    uint8_t lost_cause;
    struct hidden_key *hidden;              /* lightswap_num_hidden of them */
    int hidden_capacity;
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

static void forget_lost_key(void) {
    if (wanted.lost_key != NULL) {
        decrRefCount(wanted.lost_key);
        wanted.lost_key = NULL;
    }
}

static void note_lost(struct lightswap_walk *walk, uint8_t cause) {
    incrRefCount(walk->key);
    forget_lost_key();
    wanted.lost_key = walk->key;
    wanted.lost_cause = cause;
    walk->is_over = true;
}

static void note_missing(struct lightswap_walk *walk, const char *addr, size_t len, enum lightswap_range_state state) {
    const struct lightswap_range *lost = wanted.granted != NULL ? lightswap_waiter_lost(wanted.granted, addr, len) : NULL;
    if (is_expired(walk)) {
        return;
    }
    if (lost != NULL) {
        note_lost(walk, lost->cause);
        return;
    }
    /* What is only touched has come and may have gone again: it is not waited for twice. */
    const bool is_done = wanted.granted != NULL && (state == LIGHTSWAP_LOOSE || lightswap_waiter_restarts(wanted.granted) >= MOST_RESTARTS);
    if (!is_done) {
        record(addr, len, state);
        wanted.num_missing++;
    }
}

/* What could not be pinned comes now if the command has waited often enough, or if it is on its way out, and so still there. */
static bool pin_now(struct lightswap_walk *walk, const char *addr, size_t len) {
    struct lightswap_range range = { .addr = addr, .len = len };
    const bool has_waited = wanted.granted != NULL && lightswap_waiter_restarts(wanted.granted) >= MOST_RESTARTS;
    if ((!has_waited && !lsw_is_resident(addr, len)) || is_expired(walk)) {
        return false;
    }
    if (!lightswap_touch(&range)) {
        note_lost(walk, range.cause);
        return false;
    }
    return lsw_pin_resident(addr, len) == LSW_OK;
}

/* One part: as much as may be pinned, or the rest. */
static bool need_part(struct lightswap_walk *walk, const char *addr, size_t len, bool is_pinnable) {
    if (is_pinnable && (lsw_pin_resident(addr, len) == LSW_OK || pin_now(walk, addr, len))) {
        wanted.num_pins += lightswap_pages_of(addr, len);
        record(addr, len, LIGHTSWAP_PINNED);
        return true;
    }
    if (walk->is_over) {
        return false;
    }
    if (!lsw_is_resident(addr, len)) {
        wanted.num_pins += is_pinnable ? lightswap_pages_of(addr, len) : 0;
        note_missing(walk, addr, len, is_pinnable ? LIGHTSWAP_MISSING : LIGHTSWAP_LOOSE);
    }
    return false;
}

/* More than is kept count of. A command that may be left in the middle finds out when it gets there. For the others this comes now, when all else has, so that
 * what is lost is known before anything has changed. */
static void need_beyond(struct lightswap_walk *walk, const char *addr, size_t len) {
    struct lightswap_range range = { .addr = addr, .len = len };
    wanted.is_oversized = walk->is_loose = true;
    if (wanted.may_be_left || wanted.num_missing > 0) {
        walk->is_over = true;
    } else if (!is_expired(walk) && !lightswap_touch(&range)) {
        note_lost(walk, range.cause);
    }
}

bool lightswap_need_now(struct lightswap_walk *walk, const void *addr, size_t len) {
    if (walk->is_over) {
        return false;
    }
    if (walk->is_late) {
        return lightswap_need_late(walk, addr, len);
    }
    if (wanted.num_ranges - wanted.first >= MOST_RANGES) {
        need_beyond(walk, addr, len);
        return false;
    }
    if (wanted.num_pins + lightswap_pages_of(addr, len) <= wanted.most_pins) {
        return need_part(walk, addr, len, true);
    }
    wanted.is_oversized = walk->is_loose = true;
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
    wanted.may_be_left = lightswap_may_be_left(c);
    forget_lost_key();
    lightswap_walk_command(walk, c);
}

/* ---- Values that cannot be read back ---- */

/* Will not be there later either? */
static bool is_for_good(uint8_t cause) {
    return cause != 0 && cause != LSW_CAUSE_TIMEOUT;
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
    if (wanted.depth == 0) {
        propagatePendingCommands();
        trackingHandlePendingKeyInvalidations();
    }
    server.core_propagates = outer_core_propagates;
    decrRefCount(key);
    lightswap_park_counters.dropped_keys++;
}

static void hide_key(redisDb *db, robj *key) {
    if (lightswap_num_hidden == wanted.hidden_capacity) {
        wanted.hidden_capacity = wanted.hidden_capacity * 2 + 8;
        wanted.hidden = zrealloc(wanted.hidden, wanted.hidden_capacity * sizeof(*wanted.hidden));
    }
    incrRefCount(key);
    wanted.hidden[lightswap_num_hidden++] = (struct hidden_key){ .db = db, .key = key, .depth = wanted.depth };
}

/* Those that were hidden from the command that ends. */
static void show_keys(void) {
    while (lightswap_num_hidden > 0 && wanted.hidden[lightswap_num_hidden - 1].depth >= wanted.depth) {
        decrRefCount(wanted.hidden[--lightswap_num_hidden].key);
    }
}

bool lightswap_hides(const redisDb *db, const robj *key) {
    for (int i = 0; i < lightswap_num_hidden; i++) {
        if (wanted.hidden[i].db == db && !sdscmp(wanted.hidden[i].key->ptr, key->ptr)) {
            return true;
        }
    }
    return false;
}

/* What finds no key may make one; that must not happen to a key that is only hidden. */
static bool only_reads(const client *c) {
    return (c->cmd->flags & CMD_READONLY) != 0 && (c->cmd->flags & CMD_MODULE) == 0;
}

sds lightswap_error_text(const robj *key, uint8_t cause) {
    const sds name = key->ptr;
    const size_t len = sdslen(name);
    const sds error = sdscatrepr(sdsnew("-LSWERR page of key "), name, len < SHOWN_KEY_BYTES ? len : SHOWN_KEY_BYTES);
    return sdscatprintf(error, "%s is lost: %s", len < SHOWN_KEY_BYTES ? "" : "...", lightswap_cause_text(cause));
}

/* True: the command may go on without the key. Else the caller is to be told. */
static bool lose(client *c, redisDb *db) {
    if (lightswap_settings.io_error_policy == LIGHTSWAP_IO_MISS) {
        if (is_for_good(wanted.lost_cause) && server.masterhost == NULL && !checkClientPauseTimeoutAndReturnIfPaused()) {
            drop_key(db, wanted.lost_key);
            return true;
        }
        if (only_reads(c)) {
            hide_key(db, wanted.lost_key);
            lightswap_park_counters.hidden_keys++;
            return true;
        }
    }
    lightswap_park_counters.rejections++;
    return false;
}

bool lightswap_refuse_master(client *c, uint8_t cause) {
    if ((c->flags & CLIENT_MASTER) == 0) {
        return false;
    }
    /* What the master has changed cannot be changed here. All of the data comes anew. */
    serverLog(LL_WARNING, "A page that a command of the master needs is lost (%s): full resynchronization", lightswap_cause_text(cause));
    c->flags |= CLIENT_PROTOCOL_ERROR;
    freeClientAsync(c);
    return true;
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
bool lightswap_look(void) {
    __atomic_store_n(&lightswap_new_bytes, 0, __ATOMIC_RELAXED);
    struct pressure pressure = { 0 };
    lsw_stats_visit(lightswap_instance, note_stat, &pressure);
    /* A little before the first page is evicted. */
    if (pressure.evictions > 0 || pressure.resident > pressure.limit / 100 * NEARLY_FULL_PERCENT) {
        lightswap_keys_init();
        lightswap_walks = true;
    }
    lightswap_look_bytes = pressure.limit / LOOKS_A_MEMORY;
    return lightswap_walks;
}

void lightswap_watch_pressure(void) {
    static mstime_t looked_at;
    if (!lightswap_walks && server.mstime - looked_at >= STATS_INTERVAL_MS) {
        looked_at = server.mstime;
        lightswap_look();
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
    if (restarts < MOST_RESTARTS && !ProcessingEventsWhileBlocked && wanted.depth == 0) {
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
            if (!lose(c, found.db)) {
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
        show_keys();
        if (wanted.lost_key != NULL && !lightswap_refuse_master(c, wanted.lost_cause)) {
            rejectCommandSds(c, lightswap_error_text(wanted.lost_key, wanted.lost_cause));
        }
        forget_lost_key();
    } else if (wanted.is_oversized) {
        lightswap_park_counters.oversized_runs++;
    }
    return may_run;
}

void lightswap_release(void) {
    if (--lightswap_num_admitted == 0) {
        lightswap_release_new();
        drop_ranges();
        show_keys();
    }
}

/* Keys that were not declared are only known when the command is called. */
char *lightswap_admit_inner(client *c, size_t *outer) {
    *outer = wanted.first;
    wanted.first = wanted.num_ranges;
    wanted.depth++;
    const bool may_run = prepare(c);
    lightswap_waiter_release(wanted.granted);
    wanted.granted = NULL;
    if (may_run) {
        return NULL;
    }
    lightswap_release_inner(*outer);
    const sds error = lightswap_error_text(wanted.lost_key, wanted.lost_cause);
    forget_lost_key();
    return error;
}

bool lightswap_admit_queued(client *c, size_t *outer) {
    const sds error = lightswap_admit_inner(c, outer);
    if (error == NULL) {
        return true;
    }
    if (lightswap_refuse_master(c, wanted.lost_cause)) {
        sdsfree(error);
    } else {
        addReplyErrorSds(c, error);
    }
    return false;
}

void lightswap_release_inner(size_t outer) {
    drop_ranges();
    show_keys();
    wanted.first = outer;
    wanted.depth--;
}
