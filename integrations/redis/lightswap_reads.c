/* Which memory of a value a command accesses. Keys, objects, dictionaries, skip lists and the nodes of lists are in ordinary memory; strings, listpacks,
 * integer sets and the entries of list nodes may be swapped out. */
#include "lightswap_walk.h"

enum {
    /* Of a listpack or an integer set: its number of elements and before. */
    SIZE_HEADER_BYTES = 16,
    /* HRANDFIELD goes through all of a hash for more than this part of its fields (HRANDFIELD_SUB_STRATEGY_MUL of t_hash.c). */
    RANDOM_FIELDS_SHARE = 3,
};

/* ---- Strings ---- */

static sds swappable_string(const robj *value) {
    return value != NULL && value->encoding == OBJ_ENCODING_RAW && zmalloc_is_swappable(value->ptr) ? value->ptr : NULL;
}

static size_t header_bytes(sds s) {
    return (size_t)(s - (char *)sdsAllocPtr(s));
}

/* What STRLEN needs. True: it is there, and can be read. */
static bool need_header(struct lightswap_walk *walk, sds s) {
    return lightswap_need_now(walk, sdsAllocPtr(s), header_bytes(s));
}

/* Bytes of the string, as far as it can have any there. */
static void need_bytes(struct lightswap_walk *walk, sds s, size_t start, size_t end) {
    const size_t room = zmalloc_size(sdsAllocPtr(s)) - header_bytes(s);
    const size_t last = end < room ? end : room;
    if (start < last) {
        lightswap_need(walk, s + start, last - start);
    }
}

void lightswap_read_string(struct lightswap_walk *walk) {
    const sds s = swappable_string(lightswap_value(walk, walk->argv[1], OBJ_STRING));
    if (s != NULL) {
        lightswap_need_sds(walk, s);
    }
}

void lightswap_read_strlen(struct lightswap_walk *walk) {
    const sds s = swappable_string(lightswap_value(walk, walk->argv[1], OBJ_STRING));
    if (s != NULL) {
        need_header(walk, s);
    }
}

void lightswap_read_getrange(struct lightswap_walk *walk) {
    const sds s = swappable_string(lightswap_value(walk, walk->argv[1], OBJ_STRING));
    long long start, end;
    if (s == NULL || !lightswap_number(walk, 2, &start) || !lightswap_number(walk, 3, &end)) {
        return;
    }
    const bool is_length_known = need_header(walk, s);
    if (start < 0 || end < 0) {
        if (!is_length_known) {
            return; /* The rest is asked for when the length has come. */
        }
        const long long len = (long long)sdslen(s);
        start = start < 0 ? start + len : start;
        end = end < 0 ? end + len : end;
        start = start < 0 ? 0 : start;
    }
    if (start <= end) {
        need_bytes(walk, s, (size_t)start, (size_t)end + 1);
    }
}

/* The string is changed in place, or copied if others refer to it (a SORT that was left in the middle, say) or if it has to grow by more than there is room for. Where it
 * grows, all is written from its end on. */
static void need_in_place(struct lightswap_walk *walk, const robj *value, size_t start, size_t end) {
    const sds s = value->ptr;
    if (value->refcount != 1) {
        lightswap_need_sds(walk, s);
    } else if (!need_header(walk, s)) {
        need_bytes(walk, s, start, end); /* the rest when the length has come */
    } else if (end > sdsalloc(s)) {
        lightswap_need_sds(walk, s);
    } else {
        need_bytes(walk, s, start < sdslen(s) ? start : sdslen(s), end + 1);
    }
}

void lightswap_read_setrange(struct lightswap_walk *walk) {
    const robj *value = lightswap_value(walk, walk->argv[1], OBJ_STRING);
    long long start;
    if (swappable_string(value) != NULL && lightswap_number(walk, 2, &start) && start >= 0) {
        need_in_place(walk, value, (size_t)start, (size_t)start + sdslen(walk->argv[3]->ptr));
    }
}

void lightswap_read_bit(struct lightswap_walk *walk) {
    const robj *value = lightswap_value(walk, walk->argv[1], OBJ_STRING);
    const sds s = swappable_string(value);
    long long bit;
    if (s == NULL || !lightswap_number(walk, 2, &bit) || bit < 0) {
        return;
    }
    const size_t byte = (size_t)bit / 8;
    if (walk->cmd->proc == setbitCommand) {
        need_in_place(walk, value, byte, byte + 1);
    } else {
        need_header(walk, s);
        need_bytes(walk, s, byte, byte + 1);
    }
}

/* ---- Everything of a value ---- */

/* Counts what is asked for of a value; false: that is all that is worth it. */
static bool is_worth(const struct lightswap_walk *walk, size_t *bytes, const void *block) {
    if (walk->is_over) {
        return false;
    }
    if (walk->guess_limit > 0 && zmalloc_is_swappable(block)) {
        *bytes += zmalloc_size((void *)block);
        return *bytes <= walk->guess_limit;
    }
    return true;
}

static void need_hash_values(struct lightswap_walk *walk, const dict *d) {
    size_t bytes = 0;
    for (int table = 0; table <= 1; table++) {
        for (unsigned long i = 0; i < DICTHT_SIZE(d->ht_size_exp[table]); i++) {
            for (const dictEntry *entry = d->ht_table[table][i]; entry != NULL; entry = entry->next) {
                const sds s = dictGetVal(entry);
                if (!is_worth(walk, &bytes, zmalloc_is_swappable(s) ? sdsAllocPtr(s) : s)) {
                    return;
                }
                lightswap_need_sds(walk, s);
            }
        }
    }
}

static void need_list(struct lightswap_walk *walk, const quicklist *list) {
    size_t bytes = 0;
    for (const quicklistNode *node = list->head; node != NULL && is_worth(walk, &bytes, node->entry); node = node->next) {
        lightswap_need_block(walk, node->entry);
    }
}

static void need_stream(struct lightswap_walk *walk, const stream *s) {
    size_t bytes = 0;
    raxIterator each;
    raxStart(&each, s->rax);
    raxSeek(&each, "^", NULL, 0);
    while (raxNext(&each) && is_worth(walk, &bytes, each.data)) {
        lightswap_need_block(walk, each.data);
    }
    raxStop(&each);
}

void lightswap_need_value(struct lightswap_walk *walk, robj *value) {
    switch (value->encoding) {
        case OBJ_ENCODING_RAW:
            lightswap_need_sds(walk, value->ptr);
            break;
        case OBJ_ENCODING_LISTPACK:
        case OBJ_ENCODING_INTSET:
            lightswap_need_block(walk, value->ptr);
            break;
        case OBJ_ENCODING_QUICKLIST:
            need_list(walk, value->ptr);
            break;
        case OBJ_ENCODING_STREAM:
            need_stream(walk, value->ptr);
            break;
        case OBJ_ENCODING_HT:
            if (value->type == OBJ_HASH) {
                need_hash_values(walk, value->ptr);
            }
            break;
        default:
            break; /* nothing that may be swapped out */
    }
}

/* SCARD and the like; those of other encodings count in ordinary memory. */
void lightswap_read_size(struct lightswap_walk *walk) {
    const int type = walk->cmd->proc == hlenCommand ? OBJ_HASH : walk->cmd->proc == scardCommand ? OBJ_SET : OBJ_ZSET;
    const robj *value = lightswap_value(walk, walk->argv[1], type);
    if (value == NULL || (value->encoding != OBJ_ENCODING_LISTPACK && value->encoding != OBJ_ENCODING_INTSET)) {
        return;
    }
    if (zmalloc_is_swappable(value->ptr)) {
        const size_t size = zmalloc_size(value->ptr);
        lightswap_need(walk, value->ptr, size < SIZE_HEADER_BYTES ? size : SIZE_HEADER_BYTES);
    }
}

/* ---- Hashes ---- */

/* The value of a field if the hash is a dictionary. Of a listpack all is asked for, once. */
static sds field_value(struct lightswap_walk *walk, const robj *hash, robj *field) {
    if (hash->encoding != OBJ_ENCODING_HT) {
        lightswap_need_block(walk, hash->ptr);
        return NULL;
    }
    dictEntry *entry = dictFind(hash->ptr, field->ptr);
    return entry != NULL ? dictGetVal(entry) : NULL;
}

void lightswap_read_field(struct lightswap_walk *walk) {
    const robj *hash = lightswap_value(walk, walk->argv[1], OBJ_HASH);
    const sds s = hash != NULL ? field_value(walk, hash, walk->argv[2]) : NULL;
    if (s != NULL) {
        lightswap_need_sds(walk, s);
    }
}

void lightswap_read_strlen_of_field(struct lightswap_walk *walk) {
    const robj *hash = lightswap_value(walk, walk->argv[1], OBJ_HASH);
    const sds s = hash != NULL ? field_value(walk, hash, walk->argv[2]) : NULL;
    if (s != NULL && zmalloc_is_swappable(s)) {
        need_header(walk, s);
    }
}

void lightswap_read_fields(struct lightswap_walk *walk) {
    const robj *hash = lightswap_value(walk, walk->argv[1], OBJ_HASH);
    for (int i = 2; hash != NULL && i < walk->argc && !walk->is_over; i++) {
        const sds s = field_value(walk, hash, walk->argv[i]);
        if (s != NULL) {
            lightswap_need_sds(walk, s);
        } else if (hash->encoding != OBJ_ENCODING_HT) {
            break;
        }
    }
}

/* Commands that look at fields only, or overwrite values. */
void lightswap_read_no_value(struct lightswap_walk *walk) {
    const robj *hash = lightswap_value(walk, walk->argv[1], OBJ_HASH);
    if (hash != NULL && hash->encoding != OBJ_ENCODING_HT) {
        lightswap_need_block(walk, hash->ptr);
    }
}

/* key [count [WITHVALUES]]. If most are to be returned, all are copied first. Of a few, picked at random, it cannot be told which. */
void lightswap_read_hrandfield(struct lightswap_walk *walk) {
    const robj *hash = lightswap_value(walk, walk->argv[1], OBJ_HASH);
    long long count;
    if (hash == NULL || hash->encoding != OBJ_ENCODING_HT) {
        lightswap_read_no_value(walk);
    } else if (walk->argc == 4 && lightswap_number(walk, 2, &count) && count > 1 && count > (long long)dictSize((dict *)hash->ptr) / RANDOM_FIELDS_SHARE) {
        need_hash_values(walk, hash->ptr);
    }
}

struct scanned {
    struct lightswap_walk *walk;
    long long num_replies;
};

static void need_scanned(void *arg, const dictEntry *entry) {
    struct scanned *scanned = arg;
    scanned->num_replies += 2;
    lightswap_need_sds(scanned->walk, dictGetVal(entry));
}

/* The same steps as scanGenericCommand will take. */
void lightswap_read_hscan(struct lightswap_walk *walk) {
    const robj *hash = lightswap_value(walk, walk->argv[1], OBJ_HASH);
    if (hash == NULL || hash->encoding != OBJ_ENCODING_HT) {
        lightswap_read_no_value(walk);
        return;
    }
    long long count = 10;
    for (int i = 3; i + 1 < walk->argc; i += 2) {
        if (!strcasecmp(walk->argv[i]->ptr, "count") && (!lightswap_number(walk, i + 1, &count) || count < 1)) {
            return;
        }
    }
    struct scanned scanned = { .walk = walk };
    unsigned long cursor = strtoul(walk->argv[2]->ptr, NULL, 10);
    long long num_steps = 0;
    do {
        cursor = dictScan(hash->ptr, cursor, need_scanned, NULL, &scanned);
    } while (cursor != 0 && num_steps++ / 10 < count && scanned.num_replies < count && !walk->is_over);
}

/* ---- Lists ---- */

static const quicklist *list_of(struct lightswap_walk *walk, robj *key) {
    const robj *value = lightswap_value(walk, key, OBJ_LIST);
    return value != NULL && value->encoding == OBJ_ENCODING_QUICKLIST ? value->ptr : NULL;
}

/* Nodes from one end on until they have so many elements. */
static void need_end(struct lightswap_walk *walk, const quicklist *list, bool from_tail, long long count) {
    /* The node that stops being one of those at the ends is compressed. */
    long long num_spare = list->compress;
    for (const quicklistNode *node = from_tail ? list->tail : list->head; node != NULL && !walk->is_over; node = from_tail ? node->prev : node->next) {
        if (count <= 0 && num_spare-- <= 0) {
            break;
        }
        lightswap_need_block(walk, node->entry);
        count -= node->count;
    }
}

/* The node that the element is in, and the index of the node's first element. NULL: there is none. */
static const quicklistNode *node_at(const quicklist *list, long long index, long long *first) {
    const long long num_elements = (long long)list->count;
    index = index < 0 ? index + num_elements : index;
    if (index < 0 || index >= num_elements) {
        return NULL;
    }
    const quicklistNode *node;
    if (index < num_elements / 2) {
        *first = 0;
        for (node = list->head; node != NULL && *first + node->count <= index; node = node->next) {
            *first += node->count;
        }
    } else {
        *first = num_elements;
        for (node = list->tail; node != NULL; node = node->prev) {
            *first -= node->count;
            if (*first <= index) {
                break;
            }
        }
    }
    return node;
}

void lightswap_read_head(struct lightswap_walk *walk) {
    const quicklist *list = list_of(walk, walk->argv[1]);
    if (list != NULL) {
        need_end(walk, list, false, 1);
    }
}

void lightswap_read_tail(struct lightswap_walk *walk) {
    const quicklist *list = list_of(walk, walk->argv[1]);
    if (list != NULL) {
        need_end(walk, list, true, 1);
    }
}

static void read_pop(struct lightswap_walk *walk, bool from_tail) {
    const quicklist *list = list_of(walk, walk->argv[1]);
    long long count = 1;
    if (list != NULL && (walk->argc < 3 || lightswap_number(walk, 2, &count))) {
        need_end(walk, list, from_tail, count);
    }
}

void lightswap_read_lpop(struct lightswap_walk *walk) {
    read_pop(walk, false);
}

void lightswap_read_rpop(struct lightswap_walk *walk) {
    read_pop(walk, true);
}

static void read_move(struct lightswap_walk *walk, bool from_tail, bool to_tail) {
    const quicklist *from = list_of(walk, walk->argv[1]);
    if (from == NULL) {
        return;
    }
    need_end(walk, from, from_tail, 1);
    const quicklist *to = list_of(walk, walk->argv[2]);
    if (to != NULL) {
        /* Of the same list the node that it was taken from may be gone then. */
        need_end(walk, to, to_tail, to == from && from_tail == to_tail ? 2 : 1);
    }
}

void lightswap_read_lmove(struct lightswap_walk *walk) {
    read_move(walk, !strcasecmp(walk->argv[3]->ptr, "right"), !strcasecmp(walk->argv[4]->ptr, "right"));
}

void lightswap_read_rpoplpush(struct lightswap_walk *walk) {
    read_move(walk, true, false);
}

/* Of the first of the lists that there is. */
static void read_first_list(struct lightswap_walk *walk, int first_arg, int end_arg, bool from_tail, long long count) {
    for (int i = first_arg; i < end_arg && i < walk->argc; i++) {
        const quicklist *list = list_of(walk, walk->argv[i]);
        if (list != NULL) {
            need_end(walk, list, from_tail, count);
            return;
        }
    }
}

void lightswap_read_blpop(struct lightswap_walk *walk) {
    read_first_list(walk, 1, walk->argc - 1, false, 1);
}

void lightswap_read_brpop(struct lightswap_walk *walk) {
    read_first_list(walk, 1, walk->argc - 1, true, 1);
}

/* numkeys key [key ...] LEFT | RIGHT [COUNT count] */
static void read_mpop(struct lightswap_walk *walk, int numkeys_arg) {
    long long num_keys, count = 1;
    if (!lightswap_number(walk, numkeys_arg, &num_keys) || num_keys < 1 || num_keys >= walk->argc - numkeys_arg - 1) {
        return;
    }
    const int where = numkeys_arg + 1 + (int)num_keys;
    if (where + 2 < walk->argc && !lightswap_number(walk, where + 2, &count)) {
        return;
    }
    read_first_list(walk, numkeys_arg + 1, where, !strcasecmp(walk->argv[where]->ptr, "right"), count);
}

void lightswap_read_lmpop(struct lightswap_walk *walk) {
    read_mpop(walk, 1);
}

void lightswap_read_blmpop(struct lightswap_walk *walk) {
    read_mpop(walk, 2);
}

void lightswap_read_index(struct lightswap_walk *walk) {
    const quicklist *list = list_of(walk, walk->argv[1]);
    long long index, first;
    const quicklistNode *node = list != NULL && lightswap_number(walk, 2, &index) ? node_at(list, index, &first) : NULL;
    if (node != NULL) {
        lightswap_need_block(walk, node->entry);
    }
}

/* LRANGE and LTRIM: start and end within the list, with the node of the start; NULL if the range is empty. */
static const quicklistNode *range_of(struct lightswap_walk *walk, const quicklist *list, long long *start, long long *end, long long *first) {
    if (list == NULL || !lightswap_number(walk, 2, start) || !lightswap_number(walk, 3, end)) {
        return NULL;
    }
    const long long num_elements = (long long)list->count;
    *start = *start < 0 ? *start + num_elements : *start;
    *end = *end < 0 ? *end + num_elements : *end;
    *start = *start < 0 ? 0 : *start;
    *end = *end >= num_elements ? num_elements - 1 : *end;
    return *start <= *end ? node_at(list, *start, first) : NULL;
}

void lightswap_read_lrange(struct lightswap_walk *walk) {
    long long start, end, first;
    const quicklistNode *node = range_of(walk, list_of(walk, walk->argv[1]), &start, &end, &first);
    for (; node != NULL && first <= end && !walk->is_over; node = node->next) {
        lightswap_need_block(walk, node->entry);
        first += node->count;
    }
}

/* Nodes go as a whole without a look at them. Those with the first element that remains and the first one after what remains are cut, even where that is all there is of
 * the latter. */
void lightswap_read_ltrim(struct lightswap_walk *walk) {
    const quicklist *list = list_of(walk, walk->argv[1]);
    long long start, end, first;
    const quicklistNode *node = range_of(walk, list, &start, &end, &first);
    if (node == NULL) {
        return;
    }
    lightswap_need_block(walk, node->entry);
    const quicklistNode *cut = node_at(list, end + 1, &first);
    if (cut != NULL && cut != node) {
        lightswap_need_block(walk, cut->entry);
    }
}
