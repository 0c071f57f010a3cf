/* Lightswap in Redis: what a command is going to access, told before it runs. lightswap_keys.c knows which keys a command reads,
 * lightswap_reads.c and lightswap_streams.c which memory of a value, and lightswap_admit.c what to do about it. No walk reads memory that may be
 * swapped out, changes anything, or counts as an access. */
#ifndef LIGHTSWAP_WALK_H
#define LIGHTSWAP_WALK_H

#include "server.h"

struct lightswap_walk {
    redisDb *db;
    struct redisCommand *cmd;
    robj **argv;
    int argc;
    robj *key;              /* whose value is walked now */
    size_t guess_limit;     /* most bytes of a list, hash, ... to ask for where it is not known what will be read of it; 0: no limit */
    bool is_over;           /* nobody wants to know more */
    bool is_loose;          /* what is asked for from now on is not pinned */
    /* Of a walk for code that is already running (lightswap_late.c): */
    bool is_late;
    bool is_asking;         /* what is missing is only asked for */
    bool is_lost;           /* some of it is lost, and why */
    uint8_t lost_cause;
};

/* What the command will access (lightswap_admit.c): bytes of one allocation, of which any part may be missing. */
void lightswap_need(struct lightswap_walk *walk, const void *addr, size_t len);
/* The same; true if the bytes may be read now, in this walk. */
bool lightswap_need_now(struct lightswap_walk *walk, const void *addr, size_t len);

enum {
    LIGHTSWAP_CACHE_LINE_BYTES = 64,
    /* Of one allocation; what is longer the CPU reads ahead by itself. */
    LIGHTSWAP_PREFETCHED_BYTES = 1024,
};

/* A whole allocation. What is in ordinary memory is no concern of anybody. */
static inline void lightswap_need_block(struct lightswap_walk *walk, const void *block) {
    if (zmalloc_is_swappable(block)) {
        /* The command is about to read it. So it is on its way into the cache while the tables of heap and pages are looked at. Brings nothing in. */
        __builtin_prefetch(block);
        const size_t size = zmalloc_size((void *)block);
        for (size_t i = LIGHTSWAP_CACHE_LINE_BYTES; i < size && i < LIGHTSWAP_PREFETCHED_BYTES; i += LIGHTSWAP_CACHE_LINE_BYTES) {
            __builtin_prefetch((const char *)block + i);
        }
        lightswap_need(walk, block, size);
    }
}

/* The same; true: it can be read now, in this walk. */
static inline bool lightswap_can_read(struct lightswap_walk *walk, const void *block) {
    return !zmalloc_is_swappable(block) || lightswap_need_now(walk, block, zmalloc_size((void *)block));
}

static inline void lightswap_need_sds(struct lightswap_walk *walk, sds s) {
    if (zmalloc_is_swappable(s)) {
        lightswap_need_block(walk, sdsAllocPtr(s));
    }
}

/* What a walk that is late does with what it finds (lightswap_late.c). */
bool lightswap_need_late(struct lightswap_walk *walk, const char *addr, size_t len);

/* ---- Keys (lightswap_keys.c) ---- */

/* Once, when the table of commands is complete but for those of modules. */
void lightswap_keys_init(void);
/* All that the command will access, as far as that can be told. EXEC: all that the commands of the transaction will. */
void lightswap_walk_command(struct lightswap_walk *walk, client *c);

/* The same of the command that the walk has already, which is not EXEC. */
void lightswap_walk_one(struct lightswap_walk *walk);

/* The value of a key if it is of this type; the key is the one that is walked from now on. NULL: no such key, or another type. */
robj *lightswap_value(struct lightswap_walk *walk, robj *key, int type);
/* An argument as a number; false if the command has no such argument, or it is something else. */
bool lightswap_number(const struct lightswap_walk *walk, int arg, long long *number);

/* ---- Reads (lightswap_reads.c): of one key each, argv[1] unless said otherwise ---- */

/* Everything of a value. */
void lightswap_need_value(struct lightswap_walk *walk, robj *value);

typedef void lightswap_walker(struct lightswap_walk *walk);

lightswap_walker lightswap_read_string, lightswap_read_strlen, lightswap_read_getrange, lightswap_read_setrange, lightswap_read_bit;
lightswap_walker lightswap_read_size;
lightswap_walker lightswap_read_field, lightswap_read_fields, lightswap_read_strlen_of_field, lightswap_read_no_value, lightswap_read_hscan, lightswap_read_hrandfield;
lightswap_walker lightswap_read_head, lightswap_read_tail, lightswap_read_lpop, lightswap_read_rpop, lightswap_read_lmove, lightswap_read_rpoplpush;
lightswap_walker lightswap_read_blpop, lightswap_read_brpop, lightswap_read_lmpop, lightswap_read_blmpop;
lightswap_walker lightswap_read_index, lightswap_read_lrange, lightswap_read_ltrim;

/* ---- SORT (lightswap_sort.c) ---- */

lightswap_walker lightswap_read_sort;

/* ---- Streams (lightswap_streams.c) ---- */

lightswap_walker lightswap_read_xadd, lightswap_read_xtrim, lightswap_read_xrange, lightswap_read_xrevrange, lightswap_read_xread, lightswap_read_ids;
lightswap_walker lightswap_read_xclaim, lightswap_read_xautoclaim, lightswap_read_xinfo, lightswap_read_last;

#endif
