/* Pages that turn out to be lost while a command runs. What a command will access is looked at before it begins, and a command that cannot have all of it is
 * refused then. But some find out late what they read (SORT with BY and GET, a few fields of a hash at random, DEBUG DIGEST), some read more than can be
 * pinned, and SAVE reads everything. Those run in a try block: where they meet a page that is lost they are left, what they have replied so far is
 * taken back, and the answer is an error.
 *
 * Only what changes nothing before its last read may be left so. What it has allocated by then leaks; that is bounded, as the next such command is
 * mostly refused before it begins. */
#include "lightswap_park.h"
#include "lightswap_internal.h"

/* ---- Which commands ---- */

/* Writers that read all they need before they change anything. */
static redisCommandProc *const reads_first[] = { sortCommand, copyCommand, bitopCommand, migrateCommand };
/* They read only, but by way of an interpreter; what they call may be left. */
static redisCommandProc *const interpreters[] = { evalRoCommand, evalShaRoCommand, fcallroCommand };
/* Subcommands of DEBUG that look at values and do nothing else. */
static const char *const debug_readers[] = { "digest", "digest-value", "object", "sdslen", "listpack", "quicklist" };

static bool is_among(redisCommandProc *proc, redisCommandProc *const *procs, size_t num_procs) {
    for (size_t i = 0; i < num_procs; i++) {
        if (procs[i] == proc) {
            return true;
        }
    }
    return false;
}

static bool is_debug_reader(const client *c) {
    for (size_t i = 0; c->argc >= 2 && i < sizeof(debug_readers) / sizeof(debug_readers[0]); i++) {
        if (!strcasecmp(c->argv[1]->ptr, debug_readers[i])) {
            return true;
        }
    }
    return false;
}

bool lightswap_may_be_left(const client *c) {
    const struct redisCommand *cmd = c->cmd;
    if (cmd->flags & CMD_MODULE) {
        return false;
    }
    if (cmd->flags & CMD_READONLY) {
        return !is_among(cmd->proc, interpreters, sizeof(interpreters) / sizeof(interpreters[0]));
    }
    return is_among(cmd->proc, reads_first, sizeof(reads_first) / sizeof(reads_first[0])) || (cmd->proc == debugCommand && is_debug_reader(c));
}

/* ---- Iterators that are left ---- */

/* A safe iterator stops the rehashing of its dictionary until it is released. Those over the keys of a database are the only ones here. HSCAN does the same while it
 * looks at a bucket. */
static dict *scanned_hash(const client *c) {
    dictEntry *entry = c->cmd->proc == hscanCommand ? dictFind(c->db->dict, c->argv[1]->ptr) : NULL;
    const robj *value = entry != NULL ? dictGetVal(entry) : NULL;
    return value != NULL && value->type == OBJ_HASH && value->encoding == OBJ_ENCODING_HT ? value->ptr : NULL;
}

static int16_t *note_rehashing(void) {
    int16_t *paused = zmalloc(sizeof(*paused) * server.dbnum);
    for (int i = 0; i < server.dbnum; i++) {
        paused[i] = server.db[i].dict->pauserehash;
    }
    return paused;
}

static void restore_rehashing(const int16_t *paused) {
    for (int i = 0; i < server.dbnum; i++) {
        server.db[i].dict->pauserehash = paused[i];
    }
}

/* ---- Commands ---- */

/* Where the replies to a client end. */
struct end_of_replies {
    size_t buf_bytes;
    listNode *last;
    size_t last_bytes;
};

static clientReplyBlock *block_of(const listNode *node) {
    return node != NULL ? listNodeValue(node) : NULL;
}

static struct end_of_replies note_replies(const client *c) {
    listNode *last = listLast(c->reply);
    const clientReplyBlock *block = block_of(last);
    return (struct end_of_replies){ .buf_bytes = c->bufpos, .last = last, .last_bytes = block != NULL ? block->used : 0 };
}

static void take_back_replies(client *c, const struct end_of_replies *end) {
    while (listLast(c->reply) != end->last) {
        const clientReplyBlock *block = block_of(listLast(c->reply));
        c->reply_bytes -= block != NULL ? block->size : 0;
        listDelNode(c->reply, listLast(c->reply));
    }
    if (block_of(end->last) != NULL) {
        block_of(end->last)->used = end->last_bytes;
    }
    c->bufpos = end->buf_bytes;
}

static void fail(client *c, uint8_t cause) {
    lightswap_park_counters.failed_runs++;
    if (!lightswap_refuse_master(c, cause)) {
        addReplyErrorSds(c, sdscatprintf(sdsempty(), "-LSWERR page of a key that the command reads is lost: %s", lightswap_cause_text(cause)));
    }
}

/* Not inlined: a try block belongs to the function it is in. */
static __attribute__((noinline)) void run_guarded(client *c) {
    const struct end_of_replies end = note_replies(c);
    /* Of the commands that may be left, DEBUG DIGEST is the one that goes through whole databases and reads values. */
    int16_t *const paused = c->cmd->proc == debugCommand ? note_rehashing() : NULL;
    dict *const scanned = scanned_hash(c);
    const int16_t scanned_paused = scanned != NULL ? scanned->pauserehash : 0;
    lsw_try block;
    LSW_TRY(&block) {
        c->cmd->proc(c);
    } LSW_CATCH(&block, error) {
        take_back_replies(c, &end);
        if (paused != NULL) {
            restore_rehashing(paused);
        }
        /* It is where it was: HSCAN has not ended, and deletes nothing but an expired key, of which it reads nothing. */
        if (scanned != NULL) {
            scanned->pauserehash = scanned_paused;
        }
        fail(c, (uint8_t)error->cause);
    }
    zfree(paused);
}

void lightswap_run(client *c) {
    if (lightswap_may_be_left(c)) {
        run_guarded(c);
    } else {
        c->cmd->proc(c);
    }
}

/* ---- SAVE ---- */

static __attribute__((noinline)) int save_guarded(int req, rio *rdb, int *error_number, int rdbflags, rdbSaveInfo *rsi) {
    volatile int result = C_ERR;
    int16_t *const paused = note_rehashing();
    lightswap_dumped_key = NULL;
    lsw_try block;
    LSW_TRY(&block) {
        result = rdbSaveRio(req, rdb, error_number, rdbflags, rsi);
    } LSW_CATCH(&block, error) {
        restore_rehashing(paused);
        const sds key = lightswap_dumped_key != NULL ? sdscatrepr(sdsempty(), lightswap_dumped_key, sdslen((sds)lightswap_dumped_key)) : sdsnew("a value");
        serverLog(LL_WARNING, "Cannot save the data: page of key %.200s is lost: %s", key, lightswap_cause_text((uint8_t)error->cause));
        sdsfree(key);
        *error_number = EIO;
        result = C_ERR;
    }
    zfree(paused);
    return result;
}

int lightswap_save(int req, rio *rdb, int *error_number, int rdbflags, rdbSaveInfo *rsi) {
    return lightswap_enabled ? save_guarded(req, rdb, error_number, rdbflags, rsi) : rdbSaveRio(req, rdb, error_number, rdbflags, rsi);
}
