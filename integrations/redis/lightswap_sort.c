/* SORT: the keys that its patterns name depend on the elements of what is sorted. As far as those can be read, their keys are told, too. */
#include "lightswap_walk.h"

/* The options that matter here. */
struct sort_options {
    robj *const *patterns;      /* of those the ones that are not NULL */
    int num_patterns;
};

/* ---- The key, or the field of a key, that a pattern names for an element ---- */

static void need_hash_field(struct lightswap_walk *walk, const robj *hash, const char *field) {
    if (hash->encoding != OBJ_ENCODING_HT) {
        lightswap_need_block(walk, hash->ptr);
        return;
    }
    const sds name = sdsnew(field);
    dictEntry *entry = dictFind(hash->ptr, name);
    if (entry != NULL) {
        lightswap_need_sds(walk, dictGetVal(entry));
    }
    sdsfree(name);
}

/* As lookupKeyByPattern does. */
static void need_named(struct lightswap_walk *walk, const char *pattern, const char *element, size_t len) {
    const char *star = strchr(pattern, '*');
    if (star == NULL) {
        return;
    }
    const char *arrow = strstr(star + 1, "->");
    const bool is_field = arrow != NULL && arrow[2] != '\0';
    const size_t rest = is_field ? (size_t)(arrow - star - 1) : strlen(star + 1);
    sds name = sdscatlen(sdsnewlen(pattern, star - pattern), element, len);
    robj *const sorted_key = walk->key;
    robj *key = createObject(OBJ_STRING, sdscatlen(name, star + 1, rest));
    robj *value = lightswap_value(walk, key, is_field ? OBJ_HASH : OBJ_STRING);
    if (value != NULL && is_field) {
        need_hash_field(walk, value, arrow + 2);
    } else if (value != NULL) {
        lightswap_need_value(walk, value);
    }
    walk->key = sorted_key;
    decrRefCount(key);
}

static void need_patterns(struct lightswap_walk *walk, const struct sort_options *options, const char *element, size_t len) {
    for (int i = 0; i < options->num_patterns && !walk->is_over; i++) {
        need_named(walk, options->patterns[i]->ptr, element, len);
    }
}

static void need_patterns_of_number(struct lightswap_walk *walk, const struct sort_options *options, long long number) {
    char text[LONG_STR_SIZE];
    const int len = ll2string(text, sizeof(text), number);
    need_patterns(walk, options, text, (size_t)len);
}

/* ---- Elements ---- */

static void go_through_listpack(struct lightswap_walk *walk, const struct sort_options *options, unsigned char *listpack, bool has_scores) {
    unsigned char *at = lpFirst(listpack);
    while (at != NULL && !walk->is_over) {
        unsigned int len;
        long long number;
        const unsigned char *text = lpGetValue(at, &len, &number);
        if (text != NULL) {
            need_patterns(walk, options, (const char *)text, len);
        } else {
            need_patterns_of_number(walk, options, number);
        }
        at = lpNext(listpack, at);
        if (has_scores && at != NULL) {
            at = lpNext(listpack, at);
        }
    }
}

static void go_through_list(struct lightswap_walk *walk, const struct sort_options *options, const quicklist *list) {
    for (const quicklistNode *node = list->head; node != NULL && !walk->is_over; node = node->next) {
        /* Nothing is decompressed only to look at it. */
        if (!lightswap_can_read(walk, node->entry) || node->encoding != QUICKLIST_NODE_ENCODING_RAW) {
            continue;
        }
        if (node->container == QUICKLIST_NODE_CONTAINER_PLAIN) {
            need_patterns(walk, options, (const char *)node->entry, node->sz);
        } else {
            go_through_listpack(walk, options, node->entry, false);
        }
    }
}

static void go_through_intset(struct lightswap_walk *walk, const struct sort_options *options, intset *set) {
    int64_t number;
    for (uint32_t i = 0; intsetGet(set, i, &number) && !walk->is_over; i++) {
        need_patterns_of_number(walk, options, number);
    }
}

static void go_through_dict(struct lightswap_walk *walk, const struct sort_options *options, const dict *d) {
    for (int table = 0; table <= 1; table++) {
        for (unsigned long i = 0; i < DICTHT_SIZE(d->ht_size_exp[table]) && !walk->is_over; i++) {
            for (const dictEntry *entry = d->ht_table[table][i]; entry != NULL; entry = entry->next) {
                const sds element = dictGetKey(entry);
                need_patterns(walk, options, element, sdslen(element));
            }
        }
    }
}

static void go_through(struct lightswap_walk *walk, const struct sort_options *options, robj *value) {
    switch (value->encoding) {
        case OBJ_ENCODING_QUICKLIST:
            go_through_list(walk, options, value->ptr);
            break;
        case OBJ_ENCODING_LISTPACK:
            if (lightswap_can_read(walk, value->ptr)) {
                go_through_listpack(walk, options, value->ptr, true);
            }
            break;
        case OBJ_ENCODING_INTSET:
            if (lightswap_can_read(walk, value->ptr)) {
                go_through_intset(walk, options, value->ptr);
            }
            break;
        case OBJ_ENCODING_SKIPLIST:
            go_through_dict(walk, options, ((zset *)value->ptr)->dict);
            break;
        case OBJ_ENCODING_HT:
            go_through_dict(walk, options, value->ptr);
            break;
        default:
            break;
    }
}

/* SORT key [BY pattern] [LIMIT offset count] [GET pattern ...] [ASC | DESC] [ALPHA] [STORE destination] */
void lightswap_read_sort(struct lightswap_walk *walk) {
    robj *value = NULL;
    for (int type = OBJ_LIST; type <= OBJ_ZSET && value == NULL; type++) {
        value = lightswap_value(walk, walk->argv[1], type);
    }
    if (value == NULL) {
        return;
    }
    robj **patterns = zmalloc(sizeof(*patterns) * walk->argc);
    struct sort_options options = { .patterns = patterns };
    bool has_limit = false;
    for (int i = 2; i + 1 < walk->argc; i++) {
        has_limit = has_limit || !strcasecmp(walk->argv[i]->ptr, "limit");
    }
    for (int i = 2; i + 1 < walk->argc; i++) {
        /* With a limit it is not known whose GET will be asked for. */
        if (!strcasecmp(walk->argv[i]->ptr, "by") || (!has_limit && !strcasecmp(walk->argv[i]->ptr, "get"))) {
            patterns[options.num_patterns++] = walk->argv[++i];
        }
    }
    go_through(walk, &options, value);
    zfree(patterns);
}
