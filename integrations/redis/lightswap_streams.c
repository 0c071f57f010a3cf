/* Which listpacks of a stream a command accesses. The tree of them, the consumer groups and what is pending are in ordinary memory. */
#include "lightswap_walk.h"

/* Of t_stream.c; no header of upstream's has them. */
void streamEncodeID(void *buf, streamID *id);
int lpGetEdgeStreamID(unsigned char *lp, int first, streamID *master_id, streamID *edge_id);

enum {
    ID_BYTES = sizeof(streamID),
    /* XAUTOCLAIM looks at so many entries for each that it is asked for. */
    CLAIM_ATTEMPTS = 10,
};

static stream *stream_of(struct lightswap_walk *walk, robj *key) {
    const robj *value = lightswap_value(walk, key, OBJ_STREAM);
    return value != NULL ? value->ptr : NULL;
}

static bool is_arg(const struct lightswap_walk *walk, int arg, const char *word) {
    return arg < walk->argc && !strcasecmp(walk->argv[arg]->ptr, word);
}

/* Nodes that so many entries probably lie in. */
static long long nodes_of(const stream *s, long long num_entries) {
    const uint64_t num_nodes = raxSize(s->rax) > 0 ? raxSize(s->rax) : 1;
    const uint64_t in_node = s->length / num_nodes > 0 ? s->length / num_nodes : 1;
    return num_entries / (long long)in_node + 2;
}

/* A node begins with the number of entries that are there, and of those that are only marked as deleted. */
static void count_entries(unsigned char *node, long long *num_there, long long *num_deleted) {
    unsigned int len;
    unsigned char *at = lpFirst(node);
    lpGetValue(at, &len, num_there);
    lpGetValue(lpNext(node, at), &len, num_deleted);
}

/* Upstream's iterator stops at an entry beyond the range. If this node may have none, it goes on to the next. */
static bool may_go_on(const raxIterator *each, streamID start, streamID end, bool is_reverse) {
    long long num_there, num_deleted;
    count_entries(each->data, &num_there, &num_deleted);
    streamID master, edge;
    streamDecodeID(each->key, &master);
    if (num_deleted > 0) {
        return true;
    }
    return is_reverse ? streamCompareID(&master, &start) >= 0 : !lpGetEdgeStreamID(each->data, 0, &master, &edge) || streamCompareID(&edge, &end) <= 0;
}

static long long entries_there(const raxIterator *each) {
    long long num_there, num_deleted;
    count_entries(each->data, &num_there, &num_deleted);
    return num_there;
}

/* What upstream's iterator reads that goes from start to end, and stops after so many entries (0: only at the end). What is in nodes that are swapped
 * out is not known before they have come: until then, it is what their nodes usually hold. */
static void need_entries(struct lightswap_walk *walk, stream *s, streamID start, streamID end, bool is_reverse, long long max_entries) {
    unsigned char first[ID_BYTES], last[ID_BYTES];
    streamEncodeID(first, &start);
    streamEncodeID(last, &end);
    raxIterator each;
    raxStart(&each, s->rax);
    raxSeek(&each, "<=", is_reverse ? last : first, ID_BYTES);
    if (raxEOF(&each)) {
        raxSeek(&each, is_reverse ? "$" : "^", NULL, 0);
    }
    long long num_found = 0;
    bool is_sure = true, is_reached = true, is_last = false;
    for (long long i = 0; !walk->is_over && (is_reverse ? raxPrev(&each) : raxNext(&each)); i++) {
        const bool is_beyond = is_reverse ? is_last : i > 0 && memcmp(each.key, last, ID_BYTES) > 0;
        const bool is_enough = max_entries > 0 && (num_found >= max_entries || (!is_sure && i >= nodes_of(s, max_entries)));
        if (is_enough || (is_beyond && !is_reached)) {
            break;
        }
        const bool is_there = lightswap_need_block_now(walk, each.data);
        if (is_beyond) {
            break;
        }
        const bool is_inside = is_reverse ? i > 0 && memcmp(each.key, last, ID_BYTES) <= 0 : memcmp(each.key, first, ID_BYTES) >= 0;
        num_found += is_there && is_inside ? entries_there(&each) : 0;
        is_sure = is_sure && is_there;
        is_reached = is_there && may_go_on(&each, start, end, is_reverse);
        is_last = is_reverse && memcmp(each.key, first, ID_BYTES) <= 0;
    }
    raxStop(&each);
}

static void need_entry(struct lightswap_walk *walk, stream *s, streamID id) {
    need_entries(walk, s, id, id, false, 0);
}

static void need_edge(struct lightswap_walk *walk, stream *s, const char *edge) {
    raxIterator each;
    raxStart(&each, s->rax);
    raxSeek(&each, edge, NULL, 0);
    if (raxNext(&each)) {
        lightswap_need_block(walk, each.data);
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
static void need_trimmed(struct lightswap_walk *walk, stream *s) {
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
        } else if (!by_id && lightswap_number(walk, threshold, &max_len) && max_len >= 0 && (uint64_t)max_len <= s->length) {
            /* One that XADD adds, and the one that is the first afterwards. */
            need_entries(walk, s, (streamID){0, 0}, s->last_id, false, (long long)s->length - max_len + 2);
        }
        return;
    }
}

void lightswap_read_xtrim(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    if (s != NULL) {
        need_trimmed(walk, s);
    }
}

void lightswap_read_xadd(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    if (s != NULL) {
        need_edge(walk, s, "$");
        need_trimmed(walk, s);
    }
}

void lightswap_read_last(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    if (s != NULL) {
        need_edge(walk, s, "$");
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

/* Entries that were delivered and not acknowledged, from an ID on: so many, not counting those that were delivered less than min_idle_ms ago. */
static void need_pending(struct lightswap_walk *walk, stream *s, rax *pending, streamID start, long long count, long long min_idle_ms) {
    unsigned char key[ID_BYTES];
    streamEncodeID(key, &start);
    raxIterator each;
    raxStart(&each, pending);
    raxSeek(&each, ">=", key, ID_BYTES);
    long long num_left = count, num_attempts = count * CLAIM_ATTEMPTS;
    while ((count == 0 || (num_left > 0 && num_attempts-- > 0)) && !walk->is_over && raxNext(&each)) {
        streamID id;
        streamDecodeID(each.key, &id);
        need_entry(walk, s, id);
        const streamNACK *delivered = each.data;
        num_left -= mstime() - delivered->delivery_time >= min_idle_ms ? 1 : 0;
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
        /* Is there something new? */
        need_edge(walk, s, "$");
        if (streamCompareID(&s->last_id, &group->last_id) > 0) {
            need_entries(walk, s, group->last_id, s->last_id, false, count > 0 ? count : 0);
        }
        return;
    }
    streamConsumer *consumer = streamLookupConsumer(group, consumer_name->ptr, SLC_NO_REFRESH);
    if (consumer != NULL && parse_id(from, false, &start)) {
        need_pending(walk, s, consumer->pel, start, count, 0);
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
        if (s == NULL) {
            continue;
        }
        if (group > 0) {
            read_group(walk, s, walk->argv[group], walk->argv[group + 1], from, count);
            continue;
        }
        need_edge(walk, s, "$");
        if (parse_id(from, false, &start) && s->length > 0 && streamCompareID(&s->last_id, &start) > 0) {
            need_entries(walk, s, start, s->last_id, false, count > 0 ? count : 0);
        }
    }
}

static void need_ids(struct lightswap_walk *walk, int first_arg) {
    stream *s = stream_of(walk, walk->argv[1]);
    streamID id;
    for (int i = first_arg; s != NULL && i < walk->argc && !walk->is_over && parse_id(walk->argv[i], false, &id); i++) {
        need_entry(walk, s, id);
    }
}

/* XDEL key id [id ...] */
void lightswap_read_ids(struct lightswap_walk *walk) {
    need_ids(walk, 2);
    stream *s = stream_of(walk, walk->argv[1]);
    streamID id;
    for (int i = 2; s != NULL && i < walk->argc && !walk->is_over && parse_id(walk->argv[i], false, &id); i++) {
        if (streamCompareID(&id, &s->first_id) == 0) {
            /* Which one is the first then? */
            need_entries(walk, s, (streamID){0, 0}, s->last_id, false, walk->argc - 1);
            return;
        }
    }
}

/* XCLAIM key group consumer min-idle-time id [id ...] */
void lightswap_read_xclaim(struct lightswap_walk *walk) {
    need_ids(walk, 5);
}

/* XAUTOCLAIM key group consumer min-idle-time start [COUNT count] */
void lightswap_read_xautoclaim(struct lightswap_walk *walk) {
    stream *s = stream_of(walk, walk->argv[1]);
    streamCG *group = s != NULL ? streamLookupCG(s, walk->argv[2]->ptr) : NULL;
    long long count = 100, min_idle_ms;
    streamID start;
    if (is_arg(walk, 6, "count") && (!lightswap_number(walk, 7, &count) || count > LLONG_MAX / CLAIM_ATTEMPTS)) {
        return;
    }
    if (group != NULL && count > 0 && lightswap_number(walk, 4, &min_idle_ms) && parse_id(walk->argv[5], false, &start)) {
        need_pending(walk, s, group->pel, start, count, min_idle_ms);
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
        need_edge(walk, s, "^");
        need_edge(walk, s, "$");
    } else if (!is_arg(walk, 4, "count") || lightswap_number(walk, 5, &count)) {
        need_entries(walk, s, (streamID){0, 0}, s->last_id, false, count > 0 ? count : 0);
    }
}
