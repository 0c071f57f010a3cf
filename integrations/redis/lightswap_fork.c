/* Children that dump the data set: what they are going to read is asked for ahead of time. */
#include "server.h"
#include "lightswap_internal.h"

/* So many entries ahead of the one that is being dumped. */
enum { NUM_AHEAD = 32 };
/* All that was asked for ahead is at most this part of local memory, ... */
enum { MEMORY_SHARE = 8 };
/* ... and of one value no more than this: then the disk is busy long enough. */
enum { MOST_BYTES_OF_VALUE = 128 * 1024 };
/* Entries of a large value that are looked at for what is swapped out. */
enum { MOST_PARTS_OF_VALUE = 32 };

/* What may still be asked for of a value. */
struct allowance {
    size_t num_bytes;
    int num_parts;
};

static void ask(const void *ptr, struct allowance *allowance) {
    allowance->num_parts--;
    if (!zmalloc_is_swappable(ptr)) {
        return;
    }
    size_t size = zmalloc_size((void *)ptr);
    size_t num_bytes = size < allowance->num_bytes ? size : allowance->num_bytes;
    allowance->num_bytes -= num_bytes;
    /* A hint: what does not come ahead is waited for. */
    (void)lsw_prefetch(ptr, num_bytes);
}

static bool may_ask(const struct allowance *allowance) {
    return allowance->num_bytes > 0 && allowance->num_parts > 0;
}

static void ask_for_string(sds s, struct allowance *allowance) {
    ask(sdsAllocPtr(s), allowance);
}

static void ask_for_hash(dict *d, struct allowance *allowance) {
    dictIterator iterator = { .d = d, .index = -1 };
    dictEntry *de;
    while (may_ask(allowance) && (de = dictNext(&iterator)) != NULL) {
        ask_for_string(dictGetVal(de), allowance);
    }
}

static void ask_for_stream(stream *s, struct allowance *allowance) {
    raxIterator iterator;
    raxStart(&iterator, s->rax);
    raxSeek(&iterator, "^", NULL, 0);
    while (may_ask(allowance) && raxNext(&iterator)) {
        ask(iterator.data, allowance);
    }
    raxStop(&iterator);
}

static void ask_for_object(robj *o, struct allowance *allowance) {
    switch (o->encoding) {
        case OBJ_ENCODING_RAW:
            if (o->type == OBJ_STRING) {    /* or a module's */
                ask_for_string(o->ptr, allowance);
            }
            break;
        case OBJ_ENCODING_LISTPACK:
        case OBJ_ENCODING_INTSET:
            ask(o->ptr, allowance);
            break;
        case OBJ_ENCODING_QUICKLIST:
            for (quicklistNode *node = ((quicklist *)o->ptr)->head; node != NULL && may_ask(allowance); node = node->next) {
                ask(node->entry, allowance);
            }
            break;
        case OBJ_ENCODING_HT:
            if (o->type == OBJ_HASH) {
                ask_for_hash(o->ptr, allowance);
            }
            break;
        case OBJ_ENCODING_STREAM:
            ask_for_stream(o->ptr, allowance);
            break;
        default:
            break;      /* nothing of it is in the region */
    }
}

static struct allowance allowance_of_value(void) {
    size_t share = lightswap_settings.memory_bytes / MEMORY_SHARE / NUM_AHEAD;
    return (struct allowance){ share < MOST_BYTES_OF_VALUE ? share : MOST_BYTES_OF_VALUE, MOST_PARTS_OF_VALUE };
}

const char *lightswap_dumped_key;

void lightswap_ahead_start(struct lightswap_ahead *ahead, dict *d, bool of_objects) {
    if (lightswap_enabled) {
        *ahead = (struct lightswap_ahead){ .iterator = { .d = d, .index = -1 }, .of_objects = of_objects };
    }
}

void lightswap_ahead_step(struct lightswap_ahead *ahead, const dictEntry *dumped) {
    if (!lightswap_enabled) {
        return;
    }
    if (ahead->of_objects) {
        lightswap_dumped_key = dictGetKey(dumped);
    }
    ahead->num_ahead--;
    dictEntry *de;
    while (ahead->num_ahead < NUM_AHEAD && (de = dictNext(&ahead->iterator)) != NULL) {
        struct allowance allowance = allowance_of_value();
        if (ahead->of_objects) {
            ask_for_object(dictGetVal(de), &allowance);
        } else {
            ask_for_string(dictGetVal(de), &allowance);
        }
        ahead->num_ahead++;
    }
}
