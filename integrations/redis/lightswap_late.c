/* Values that code is about to access of which no command told beforehand: a module that opens a key, a blocked client that is served when another one's
 * command has run. They are brought in while the server waits, and what is lost is known before anything of it is accessed. */
#include "lightswap_walk.h"
#include "lightswap_park.h"

bool lightswap_need_late(struct lightswap_walk *walk, const char *addr, size_t len) {
    struct lightswap_range range = { .addr = addr, .len = len };
    if (walk->is_asking) {
        if (!lsw_is_resident(addr, len)) {
            (void)lsw_prefetch(addr, len);
        }
    } else if (!lightswap_touch(&range)) {
        walk->is_lost = walk->is_over = true;
        walk->lost_cause = range.cause;
    }
    return !walk->is_asking && !walk->is_lost;
}

const char *lightswap_cause_text(uint8_t cause) {
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

/* Of a list, a hash, ... as much as could be pinned: more would be gone again when it is accessed. */
bool lightswap_check_value(redisDb *db, robj *key, robj *value) {
    const size_t limit = lightswap_most_pins_of_client() * LIGHTSWAP_PAGE_BYTES;
    struct lightswap_walk walk = { .db = db, .key = key, .guess_limit = limit, .is_late = true, .is_asking = true };
    lightswap_need_value(&walk, value);
    walk.is_asking = false;
    lightswap_need_value(&walk, value);
    if (walk.is_lost) {
        const sds error = lightswap_error_text(key, walk.lost_cause);
        serverLog(LL_WARNING, "A module does not get a value: %s", error + 1);
        sdsfree(error);
        lightswap_park_counters.rejections++;
    }
    return !walk.is_lost;
}

bool lightswap_check_served(client *c) {
    struct lightswap_walk walk = { .db = c->db, .cmd = c->cmd, .argv = c->argv, .argc = c->argc, .is_late = true };
    lightswap_walk_one(&walk);
    if (walk.is_lost) {
        addReplyErrorSds(c, lightswap_error_text(walk.key, walk.lost_cause));
        updateStatsOnUnblock(c, 0, 0, 1);
        unblockClient(c);
        lightswap_park_counters.rejections++;
    }
    return !walk.is_lost;
}
