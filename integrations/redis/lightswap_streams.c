/* Which listpacks of a stream a command accesses. The tree of them, the consumer groups and what is pending are in ordinary memory. */
#include "lightswap_walk.h"

/* Of t_stream.c; no header of upstream's has it. */
void streamEncodeID(void *buf, streamID *id);

enum {
    ID_BYTES = sizeof(streamID),
    /* XAUTOCLAIM looks at so many entries for each that it may claim (attempts_factor of t_stream.c). */
    ATTEMPTS_PER_CLAIM = 10,
};

static stream *stream_of(struct lightswap_walk *walk, robj *key) {
    const robj *value = lightswap_value(walk, key, OBJ_STREAM);
    return value != NULL ? value->ptr : NULL;
}

static bool is_arg(const struct lightswap_walk *walk, int arg, const char *word) {
    return arg < walk->argc && !strcasecmp(walk->argv[arg]->ptr, word);
}

/* Asks for a node. Its number of entries, if that can be read; else the average, and the walk is repeated when the node has come. Where it is not, as the
 * node is not pinned, rather too few. */
static long long need_node(struct lightswap_walk *walk, const stream *s, unsigned char *node) {
    unsigned int len;
    long long num_entries;
    if (lightswap_can_read(walk, node) && lpGetValue(lpFirst(node), &len, &num_entries) == NULL) {
        return num_entries;
    }
    const long long average = (long long)(s->length / raxSize(s->rax));
    return walk->is_loose || average < 1 ? 1 : average;
}

/* Entries from start to end, at most so many of them (0: all). */
static void need_entries(struct lightswap_walk *walk, stream *s, streamID start, streamID end, bool is_reverse, long long max_entries) {
    unsigned char first[ID_BYTES], last[ID_BYTES];
    streamEncodeID(first, &start);
    streamEncodeID(last, &end);
    raxIterator each;
    raxStart(&each, s->rax);
    raxSeek(&each, "<=", is_reverse ? last : first, ID_BYTES);
    if (raxEOF(&each) && !is_reverse) {
        raxSeek(&each, "^", NULL, 0);
    }
    /* In the first node the range may begin with its last entry. That an entry is outside of the range is seen when it is read, if need be in the next node. Trimming may leave
     * nodes of which all entries are deleted. */
    long long num_found = 0;
    bool is_first = true, is_behind = false;
    while (!is_behind && !walk->is_over && (max_entries == 0 || num_found < max_entries) && (is_reverse ? raxPrev(&each) : raxNext(&each))) {
        const bool is_outside = is_reverse ? memcmp(each.key, first, ID_BYTES) < 0 : memcmp(each.key, last, ID_BYTES) > 0;
        const long long in_node = need_node(walk, s, each.data);
        is_behind = is_outside && in_node > 0;
        num_found += is_first ? 0 : in_node;
        is_first = false;
    }
    raxStop(&each);
}

static void need_entry(struct lightswap_walk *walk, stream *s, streamID id) {
    need_entries(walk, s, id, id, false, 0);
}

/* Nodes from the beginning on that go when so many entries do, and the one behind them. */
static void need_oldest(struct lightswap_walk *walk, stream *s, long long num_entries) {
    raxIterator each;
    raxStart(&each, s->rax);
    raxSeek(&each, "^", NULL, 0);
    while (num_entries >= 0 && !walk->is_over && raxNext(&each)) {
        const long long in_node = need_node(walk, s, each.data);
        num_entries = num_entries < in_node ? -1 : num_entries - in_node;
    }
    raxStop(&each);
}

/* The last node with an entry, or the first one, and those beyond it. */
static void need_edge(struct lightswap_walk *walk, stream *s, bool is_last) {
    raxIterator each;
    raxStart(&each, s->rax);
    raxSeek(&each, is_last ? "$" : "^", NULL, 0);
    while (!walk->is_over && (is_last ? raxPrev(&each) : raxNext(&each)) && need_node(walk, s, each.data) == 0) {
    }
    raxStop(&each);
}

/* "-", "+", "ms" or "ms-seq", with "(" before it or not. Whether the end belongs to the range makes no difference worth having here. */
static bool parse_id(const robj *arg, bool is_end, streamID *id) {
    const char *text = arg->ptr;
    text += *text == '(' ? 1 : 0;
    if (!strcmp(text, "-") || !strcmp(text, "+")) {
        id->ms = id->seq = *text == '-' ? 0 : UINT64_MAX;
        return true;
    }
    char *rest;
    id->ms = strtoull(text, &rest, 10);
    id->seq = is_end ? UINT64_MAX : 0;
    if (*rest == '-') {
        id->seq = strtoull(rest + 1, &rest, 10);
    }
    return *rest == '\0' && rest != text;
}

/* MAXLEN or MINID [= | ~] threshold, between the key and the ID of XADD: the nodes that go, or are cut. */
static void need_trimmed(struct lightswap_walk *walk, stream *s, long long num_added) {
    for (int i = 2; i < walk->argc - 1; i++) {
        const bool by_id = is_arg(walk, i, "minid");
        if (!by_id && !is_arg(walk, i, "maxlen")) {
            continue;
        }
        const int threshold = is_arg(walk, i + 1, "~") || is_arg(walk, i + 1, "=") ? i + 2 : i + 1;
        long long max_len;
        streamID min_id;
        if (threshold >= walk->argc) {
            return;
        }
        if (by_id && parse_id(walk->argv[threshold], false, &min_id)) {
            need_entries(walk, s, (streamID){0, 0}, min_id, false, 0);
        } else if (!by_id && lightswap_number(walk, threshold, &max_len) && max_len >= 0 && max_len < (long long)s->length + num_added) {
            need_oldest(walk, s, (long long)s->length + num_added - max_len);
        }
        return;
    }
}

void lightswap_read_xtrim(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    if (s != NULL) {
        need_trimmed(walk, s, 0);
    }
}

void lightswap_read_xadd(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    if (s != NULL) {
        need_edge(walk, s, true);
        need_trimmed(walk, s, 1);
    }
}

void lightswap_read_last(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    if (s != NULL) {
        need_edge(walk, s, true);
    }
}

static void read_range(struct lightswap_walk *walk, int start_arg, int end_arg, bool is_reverse) {
    stream *s = stream_of(walk, walk->argv[1]);
    streamID start, end;
    long long count = 0;
    if (s == NULL || !parse_id(walk->argv[start_arg], false, &start) || !parse_id(walk->argv[end_arg], true, &end)) {
        return;
    }
    const bool has_count = walk->argc >= 6 && is_arg(walk, 4, "count") && lightswap_number(walk, 5, &count);
    if (!has_count || count > 0) {
        need_entries(walk, s, start, end, is_reverse, has_count ? count : 0);
    }
}

void lightswap_read_xrange(struct lightswap_walk *walk) {
    read_range(walk, 2, 3, false);
}

void lightswap_read_xrevrange(struct lightswap_walk *walk) {
    read_range(walk, 3, 2, true);
}

/* Entries that were delivered and not acknowledged, from an ID on. */
static void need_pending(struct lightswap_walk *walk, stream *s, rax *pending, streamID start, long long count) {
    unsigned char key[ID_BYTES];
    streamEncodeID(key, &start);
    raxIterator each;
    raxStart(&each, pending);
    raxSeek(&each, ">=", key, ID_BYTES);
    for (long long i = 0; (count == 0 || i < count) && !walk->is_over && raxNext(&each); i++) {
        streamID id;
        streamDecodeID(each.key, &id);
        need_entry(walk, s, id);
    }
    raxStop(&each);
}

static void read_group(struct lightswap_walk *walk, stream *s, robj *group_name, robj *consumer_name, const robj *from, long long count) {
    streamCG *group = streamLookupCG(s, group_name->ptr);
    if (group == NULL) {
        return;
    }
    streamID start;
    if (!strcmp(from->ptr, ">")) {
        if (streamCompareID(&s->last_id, &group->last_id) > 0) {
            need_entries(walk, s, group->last_id, s->last_id, false, count > 0 ? count : 0);
        }
        return;
    }
    streamConsumer *consumer = streamLookupConsumer(group, consumer_name->ptr, SLC_NO_REFRESH);
    if (consumer != NULL && parse_id(from, false, &start)) {
        need_pending(walk, s, consumer->pel, start, count);
    }
}

/* XREAD, XREADGROUP */
void lightswap_read_xread(struct lightswap_walk *walk) {
    long long count = 0;
    int group = 0, first_key = 0;
    for (int i = 1; i < walk->argc && first_key == 0; i++) {
        if (is_arg(walk, i, "streams")) {
            first_key = i + 1;
        } else if (is_arg(walk, i, "count") && lightswap_number(walk, i + 1, &count)) {
            i++;
        } else if (is_arg(walk, i, "block")) {
            i++;
        } else if (is_arg(walk, i, "group")) {
            group = i + 1;
            i += 2;
        }
    }
    const int num_keys = (walk->argc - first_key) / 2;
    if (first_key == 0 || (walk->argc - first_key) % 2 != 0) {
        return;
    }
    for (int i = first_key; i < first_key + num_keys && !walk->is_over; i++) {
        stream *s = stream_of(walk, walk->argv[i]);
        const robj *from = walk->argv[i + num_keys];
        streamID start;
        if (s == NULL || s->length == 0) {
            continue;
        }
        /* It looks for the ID of the last entry first. */
        need_edge(walk, s, true);
        if (group > 0) {
            read_group(walk, s, walk->argv[group], walk->argv[group + 1], from, count);
        } else if (parse_id(from, false, &start) && streamCompareID(&s->last_id, &start) > 0) {
            need_entries(walk, s, start, s->last_id, false, count > 0 ? count : 0);
        }
    }
}

static void need_ids(struct lightswap_walk *walk, stream *s, int first_arg) {
    streamID id;
    for (int i = first_arg; s != NULL && i < walk->argc && !walk->is_over && parse_id(walk->argv[i], false, &id); i++) {
        need_entry(walk, s, id);
    }
}

/* XDEL key id [id ...] */
void lightswap_read_ids(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    need_ids(walk, s, 2);
    /* If the first entry goes, it looks which one is the first then. */
    if (s != NULL) {
        need_oldest(walk, s, walk->argc - 2);
    }
}

/* XCLAIM key group consumer min-idle-time id [id ...] */
void lightswap_read_xclaim(struct lightswap_walk *walk) {
    need_ids(walk, stream_of(walk, walk->argv[1]), 5);
}

/* XAUTOCLAIM key group consumer min-idle-time start [COUNT count] */
void lightswap_read_xautoclaim(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    streamCG *group = s != NULL ? streamLookupCG(s, walk->argv[2]->ptr) : NULL;
    long long count = 100;
    streamID start;
    if (is_arg(walk, 6, "count") && !lightswap_number(walk, 7, &count)) {
        return;
    }
    if (group != NULL && count > 0 && count < LLONG_MAX / ATTEMPTS_PER_CLAIM && parse_id(walk->argv[5], false, &start)) {
        need_pending(walk, s, group->pel, start, count * ATTEMPTS_PER_CLAIM);
    }
}

/* XINFO STREAM key [FULL [COUNT count]] */
void lightswap_read_xinfo(struct lightswap_walk *walk) {
    stream *s = walk->argc >= 3 && is_arg(walk, 1, "stream") ? stream_of(walk, walk->argv[2]) : NULL;
    if (s == NULL) {
        return;
    }
    long long count = 10;
    if (!is_arg(walk, 3, "full")) {
        need_edge(walk, s, false);
        need_edge(walk, s, true);
    } else if (!is_arg(walk, 4, "count") || lightswap_number(walk, 5, &count)) {
        need_entries(walk, s, (streamID){0, 0}, s->last_id, false, count > 0 ? count : 0);
    }
}
