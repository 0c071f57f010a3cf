/* Which keys a command reads. Upstream's key specs tell where they are, and not all that is needed here: TTL, EXPIRE and RENAME look at no value, GETRANGE
 * at a part of one. So commands for which that matters have a walker of their own, and the others read all of the keys that they do not just overwrite. */
#include "lightswap_walk.h"

enum {
    /* What is asked for of a list, a hash, ... that a script gets. */
    SCRIPT_GUESS_BYTES = 64 * 1024,
};

static robj *find_value(struct lightswap_walk *walk, robj *key) {
    walk->key = key;
    dictEntry *entry = dictFind(walk->db->dict, key->ptr);
    const bool is_there = entry != NULL && (lightswap_num_hidden == 0 || !lightswap_hides(walk->db, key));
    return is_there ? dictGetVal(entry) : NULL;
}

robj *lightswap_value(struct lightswap_walk *walk, robj *key, int type) {
    robj *value = find_value(walk, key);
    return value != NULL && value->type == type ? value : NULL;
}

bool lightswap_number(const struct lightswap_walk *walk, int arg, long long *number) {
    return arg < walk->argc && string2ll(walk->argv[arg]->ptr, sdslen(walk->argv[arg]->ptr), number);
}

static bool is_arg(const struct lightswap_walk *walk, int arg, const char *word) {
    return !strcasecmp(walk->argv[arg]->ptr, word);
}

/* A command that finds another type than it is for does not look at the value. */
static bool may_read(const struct redisCommand *cmd, unsigned type) {
    switch (cmd->group) {
        case COMMAND_GROUP_STRING:
        case COMMAND_GROUP_BITMAP:
        case COMMAND_GROUP_HYPERLOGLOG: return type == OBJ_STRING;
        case COMMAND_GROUP_LIST: return type == OBJ_LIST;
        case COMMAND_GROUP_SET: return type == OBJ_SET;
        case COMMAND_GROUP_HASH: return type == OBJ_HASH;
        case COMMAND_GROUP_GEO: return type == OBJ_ZSET;
        case COMMAND_GROUP_SORTED_SET: return type == OBJ_ZSET || type == OBJ_SET;
        case COMMAND_GROUP_STREAM: return type == OBJ_STREAM;
        default: return true;
    }
}

static void read_key(struct lightswap_walk *walk, int arg) {
    robj *value = find_value(walk, walk->argv[arg]);
    if (value != NULL && may_read(walk->cmd, value->type)) {
        lightswap_need_value(walk, value);
    }
}

static void read_none(struct lightswap_walk *walk) {
    UNUSED(walk);
}

static void read_all_args(struct lightswap_walk *walk) {
    for (int i = 1; i < walk->argc && !walk->is_over; i++) {
        read_key(walk, i);
    }
}

static void read_all_but_first_arg(struct lightswap_walk *walk) {
    for (int i = 2; i < walk->argc && !walk->is_over; i++) {
        read_key(walk, i);
    }
}

static void read_set(struct lightswap_walk *walk) {
    for (int i = 3; i < walk->argc; i++) {
        if (is_arg(walk, i, "get")) {
            lightswap_read_string(walk);
            return;
        }
    }
}

static void read_memory(struct lightswap_walk *walk) {
    if (walk->argc < 3 || !is_arg(walk, 1, "usage")) {
        return;
    }
    robj *value = lightswap_value(walk, walk->argv[2], OBJ_STREAM);
    if (value != NULL) {
        lightswap_need_value(walk, value);
    }
}

/* The subcommands that look at the values of keys, but for DIGEST, which has to read everything. */
static void read_debug(struct lightswap_walk *walk) {
    static const char *const subcommands[] = { "object", "sdslen", "listpack", "quicklist", "digest-value" };
    for (size_t i = 0; i < sizeof(subcommands) / sizeof(subcommands[0]); i++) {
        if (walk->argc >= 3 && is_arg(walk, 1, subcommands[i])) {
            const int end = is_arg(walk, 1, "digest-value") ? walk->argc : 3;
            for (int arg = 2; arg < end && !walk->is_over; arg++) {
                read_key(walk, arg);
            }
        }
    }
}

/* What upstream says about it. */
static void read_by_specs(struct lightswap_walk *walk) {
    if (!doesCommandHaveKeys(walk->cmd)) {
        return;
    }
    /* Not GETKEYS_RESULT_INIT, which clears 2 KiB. */
    getKeysResult keys;
    keys.keys = NULL;
    keys.numkeys = 0;
    keys.size = MAX_KEYS_BUFFER;
    const int num_keys = getKeysFromCommandWithSpecs(walk->cmd, walk->argv, walk->argc, GET_KEYSPEC_DEFAULT, &keys);
    for (int i = 0; i < num_keys && !walk->is_over; i++) {
        if ((keys.keys[i].flags & (CMD_KEY_OW | CMD_KEY_RM | CMD_KEY_NOT_KEY)) == 0) {
            read_key(walk, keys.keys[i].pos);
        }
    }
    getKeysFreeResult(&keys);
}

static void read_script(struct lightswap_walk *walk) {
    walk->guess_limit = SCRIPT_GUESS_BYTES;
    read_by_specs(walk);
    walk->guess_limit = 0;
}

static const struct {
    redisCommandProc *proc;
    lightswap_walker *walker;
} walkers[] = {
    {getCommand, lightswap_read_string}, {mgetCommand, read_all_args}, {setCommand, read_set},
    {setnxCommand, read_none}, {setexCommand, read_none}, {psetexCommand, read_none}, {msetCommand, read_none}, {msetnxCommand, read_none},
    {getexCommand, lightswap_read_string}, {getdelCommand, lightswap_read_string}, {getsetCommand, lightswap_read_string},
    {incrCommand, lightswap_read_string}, {decrCommand, lightswap_read_string}, {incrbyCommand, lightswap_read_string},
    {decrbyCommand, lightswap_read_string}, {incrbyfloatCommand, lightswap_read_string}, {appendCommand, lightswap_read_string},
    {strlenCommand, lightswap_read_strlen}, {getrangeCommand, lightswap_read_getrange}, {setrangeCommand, lightswap_read_setrange},
    {getbitCommand, lightswap_read_bit}, {setbitCommand, lightswap_read_bit},

    {delCommand, read_none}, {unlinkCommand, read_none}, {existsCommand, read_none}, {touchCommand, read_none}, {typeCommand, read_none},
    {ttlCommand, read_none}, {pttlCommand, read_none}, {expiretimeCommand, read_none}, {pexpiretimeCommand, read_none},
    {expireCommand, read_none}, {expireatCommand, read_none}, {pexpireCommand, read_none}, {pexpireatCommand, read_none}, {persistCommand, read_none},
    {renameCommand, read_none}, {renamenxCommand, read_none}, {moveCommand, read_none}, {restoreCommand, read_none}, {watchCommand, read_none},
    {objectCommand, read_none}, {memoryCommand, read_memory},
    {evalCommand, read_script}, {evalRoCommand, read_script}, {evalShaCommand, read_script}, {evalShaRoCommand, read_script},
    {fcallCommand, read_script}, {fcallroCommand, read_script},

    {hgetCommand, lightswap_read_field}, {hmgetCommand, lightswap_read_fields}, {hstrlenCommand, lightswap_read_strlen_of_field},
    {hincrbyCommand, lightswap_read_field}, {hincrbyfloatCommand, lightswap_read_field},
    {hsetCommand, lightswap_read_no_value}, {hsetnxCommand, lightswap_read_no_value}, {hdelCommand, lightswap_read_no_value},
    {hexistsCommand, lightswap_read_no_value}, {hkeysCommand, lightswap_read_no_value}, {hrandfieldCommand, lightswap_read_hrandfield},
    {hscanCommand, lightswap_read_hscan}, {hlenCommand, lightswap_read_size}, {scardCommand, lightswap_read_size}, {zcardCommand, lightswap_read_size},
    {sinterstoreCommand, read_all_but_first_arg}, {sunionstoreCommand, read_all_but_first_arg}, {sdiffstoreCommand, read_all_but_first_arg},

    {llenCommand, read_none}, {lpushCommand, lightswap_read_head}, {lpushxCommand, lightswap_read_head},
    {rpushCommand, lightswap_read_tail}, {rpushxCommand, lightswap_read_tail}, {lpopCommand, lightswap_read_lpop}, {rpopCommand, lightswap_read_rpop},
    {lmoveCommand, lightswap_read_lmove}, {blmoveCommand, lightswap_read_lmove},
    {rpoplpushCommand, lightswap_read_rpoplpush}, {brpoplpushCommand, lightswap_read_rpoplpush},
    {blpopCommand, lightswap_read_blpop}, {brpopCommand, lightswap_read_brpop}, {lmpopCommand, lightswap_read_lmpop}, {blmpopCommand, lightswap_read_blmpop},
    {lindexCommand, lightswap_read_index}, {lsetCommand, lightswap_read_index}, {lrangeCommand, lightswap_read_lrange}, {ltrimCommand, lightswap_read_ltrim},

    {xlenCommand, read_none}, {xackCommand, read_none}, {xpendingCommand, read_none}, {xgroupCommand, read_none},
    {xaddCommand, lightswap_read_xadd}, {xtrimCommand, lightswap_read_xtrim}, {xrangeCommand, lightswap_read_xrange},
    {xrevrangeCommand, lightswap_read_xrevrange}, {xreadCommand, lightswap_read_xread}, {xdelCommand, lightswap_read_ids},
    {xclaimCommand, lightswap_read_xclaim}, {xautoclaimCommand, lightswap_read_xautoclaim}, {xinfoCommand, lightswap_read_xinfo},
    {xsetidCommand, lightswap_read_last},

    {sortCommand, lightswap_read_sort}, {sortroCommand, lightswap_read_sort}, {debugCommand, read_debug},
};

/* By the command's ID. Commands of modules come later, have higher ones, and no walker. */
static lightswap_walker **walker_of;
static int num_walkers;

static lightswap_walker *find_walker(const struct redisCommand *cmd) {
    for (size_t i = 0; i < sizeof(walkers) / sizeof(walkers[0]); i++) {
        if (walkers[i].proc == cmd->proc) {
            return walkers[i].walker;
        }
    }
    return read_by_specs;
}

static void add_commands(dict *commands) {
    dictIterator *each = dictGetIterator(commands);
    dictEntry *entry;
    while ((entry = dictNext(each)) != NULL) {
        const struct redisCommand *cmd = dictGetVal(entry);
        if (cmd->id >= num_walkers) {
            const int new_num = cmd->id + 1;
            walker_of = zrealloc(walker_of, sizeof(*walker_of) * new_num);
            while (num_walkers < new_num) {
                walker_of[num_walkers++] = read_by_specs;
            }
        }
        walker_of[cmd->id] = find_walker(cmd);
        if (cmd->subcommands_dict != NULL) {
            add_commands(cmd->subcommands_dict);
        }
    }
    dictReleaseIterator(each);
}

void lightswap_keys_init(void) {
    add_commands(server.commands);
}

void lightswap_walk_one(struct lightswap_walk *walk) {
    const int id = walk->cmd->id;
    (id < num_walkers ? walker_of[id] : read_by_specs)(walk);
}

static void walk_transaction(struct lightswap_walk *walk, client *c) {
    /* It will not run, or would stop being one that may. */
    if ((c->flags & CLIENT_MULTI) == 0 || (c->flags & (CLIENT_DIRTY_CAS | CLIENT_DIRTY_EXEC)) != 0 || isWatchedKeyExpired(c)) {
        return;
    }
    for (int i = 0; i < c->mstate.count && !walk->is_over; i++) {
        const multiCmd *queued = &c->mstate.commands[i];
        walk->cmd = queued->cmd;
        walk->argv = queued->argv;
        walk->argc = queued->argc;
        long long db;
        if (queued->cmd->proc != selectCommand) {
            lightswap_walk_one(walk);
        } else if (lightswap_number(walk, 1, &db) && db >= 0 && db < server.dbnum) {
            walk->db = server.db + db;
        }
    }
}

void lightswap_walk_command(struct lightswap_walk *walk, client *c) {
    *walk = (struct lightswap_walk){ .db = c->db, .cmd = c->cmd, .argv = c->argv, .argc = c->argc };
    if (c->cmd->proc == execCommand) {
        walk_transaction(walk, c);
    } else {
        lightswap_walk_one(walk);
    }
}
