/* Lightswap in Redis: what upstream's files see of it. Everything here costs one predictable branch when the server runs without
 * lightswap-memory. server.h includes it, so it says nothing of Lightswap's own types. */
#ifndef LIGHTSWAP_REDIS_H
#define LIGHTSWAP_REDIS_H

#include "dict.h"

#include <stdbool.h>
#include <stddef.h>

struct redisObject;

/* Set once, before data is loaded. */
extern bool lightswap_enabled;

/* ---- Directives (lightswap_config.c) ---- */

enum { LIGHTSWAP_IO_ERROR, LIGHTSWAP_IO_MISS };
/* Bounds of lightswap-min-value-size. Below, strings are embedded in their objects. */
#define LIGHTSWAP_MIN_VALUE_SIZE 64
#define LIGHTSWAP_MAX_VALUE_SIZE (1<<20)

/* As config.c sets them. */
struct lightswap_settings {
    unsigned long long memory_bytes;    /* 0: off */
    char *backend;                      /* URL; NULL: off */
    size_t min_value_size;
    int io_error_policy;
};
extern struct lightswap_settings lightswap_settings;

/* Ends the process with a sentence if the directives cannot work. A daemon cannot report errors once it is detached: with `daemonize`
 * everything is opened once and closed again. */
void lightswap_check(bool daemonize);
/* Opens the backend, makes the region and its heap, and makes the calling thread a worker; ends the process with a sentence when that fails.
 * After the last fork of the start-up. */
void lightswap_start(void);
/* CONFIG SET lightswap-memory. */
int lightswap_update_memory(const char **err);
/* SIGBUS is Lightswap's, which passes on what is not for it: nobody else sets a handler. */
extern bool lightswap_has_sigbus;

/* ---- Memory (lightswap_memory.c) ---- */

/* Is there no room for a command of so many bytes? */
bool lightswap_is_full(size_t num_bytes);
/* The answer then: that of maxmemory, with the reason if it is the region. */
struct redisObject *lightswap_oom_error(void);
/* For active defragmentation: the object at another place, where it helps, or NULL. What is swapped out stays where it is. */
void *lightswap_defrag(void *ptr);
bool lightswap_overlaps(const void *start, size_t len);

/* ---- Values (lightswap_values.c) ----
 * To adopt something is to move it into the region; it stays where it is if it is small, if it is there already, or if there is no room. */

char *lightswap_adopt_sds(char *s);
char *lightswap_dup_sds(const char *s);
/* An object of zmalloc's. */
void *lightswap_adopt(void *ptr, size_t size);
/* The content of a value that nobody else refers to. */
void lightswap_adopt_string(struct redisObject *o);
/* A reference to the value for the keyspace, or to a copy of it in the region. Others may still have a pointer to the content of this one. */
struct redisObject *lightswap_retain_value(struct redisObject *o);

/* ---- Worker (lightswap_worker.c) ---- */

/* Once in each turn of the event loop. */
void lightswap_before_sleep(void);
/* Is there more to do at once, so that the event loop must not sleep? */
bool lightswap_has_work(void);

/* ---- Look-ahead (lightswap_fork.c) ---- */

/* Asks for values before an iterator over the same dictionary comes to them, as far as they are swapped out. Whoever dumps a data set reads most of
 * it from the backend, and would wait for each value otherwise. */
struct lightswap_ahead {
    dictIterator iterator;      /* not a safe one: the other is, or nothing changes meanwhile */
    bool of_objects;            /* values are objects of keys; otherwise they are strings */
    int num_ahead;              /* entries that the other iterator has yet to come to */
};
void lightswap_ahead_start(struct lightswap_ahead *ahead, dict *d, bool of_objects);
/* The other iterator has come to this entry. */
void lightswap_ahead_step(struct lightswap_ahead *ahead, const dictEntry *de);

/* ---- Parking (lightswap_admit.c, lightswap_park.c): a command runs when all that it will access is in memory ---- */

struct client;

/* Data may be swapped out, so commands have to be let in one by one. */
extern bool lightswap_walks;
/* What has been allocated in the region since it was last looked whether that is so, and when to look again. */
extern size_t lightswap_new_bytes, lightswap_look_bytes;
bool lightswap_look(void);
/* Of the thread that executes commands, between two of them. */
static inline bool lightswap_must_admit(void) {
    return lightswap_walks || (__builtin_expect(__atomic_load_n(&lightswap_new_bytes, __ATOMIC_RELAXED) > lightswap_look_bytes, 0) && lightswap_look());
}
/* Before the command runs. False: it must not, the client is parked or has its answer. */
bool lightswap_admit(struct client *c);
/* Commands that were let in and have not ended. */
extern int lightswap_num_admitted;
/* After it has run. */
void lightswap_release(void);
/* The same for a command that a script or a module calls: nobody is parked then. NULL, or an error for the caller. `outer` is for the release, which
 * is to follow if there is no error. */
char *lightswap_admit_inner(struct client *c, size_t *outer);
void lightswap_release_inner(size_t outer);
/* The same for a command of a transaction: an earlier one may have moved a value that EXEC did not find where this one does. False: it has its answer. */
bool lightswap_admit_queued(struct client *c, size_t *outer);
/* processCommand is over, whether the command has run or not. */
void lightswap_command_processed(struct client *c);
/* The client goes away. */
void lightswap_forget(struct client *c);
/* In each turn of the event loop: unblocks clients whose pages are in, before those that were unblocked go on; */
void lightswap_unpark(void);
/* and, after that, asks for what was found to be missing. */
void lightswap_ask(void);

/* ---- Values that cannot be read back (lightswap_admit.c, lightswap_guard.c, lightswap_late.c) ---- */

struct redisDb;
struct _rio;
struct rdbSaveInfo;

/* Keys that the command that runs is not to find, although they are there. */
extern int lightswap_num_hidden;
bool lightswap_hides(const struct redisDb *db, const struct redisObject *key);
/* Executes the command of a client. One that only reads is left, with an error, where it meets a page that is lost. */
void lightswap_run(struct client *c);
/* rdbSaveRio(), which fails if a page is lost. */
int lightswap_save(int req, struct _rio *rdb, int *error, int rdbflags, struct rdbSaveInfo *rsi);
/* Code that is not a command's is about to access a value. Brings it in; false: some of it is lost. */
bool lightswap_check_value(struct redisDb *db, struct redisObject *key, struct redisObject *value);
/* The same for a blocked client that is about to be served; false: it has got an error instead. */
bool lightswap_check_served(struct client *c);

/* ---- INFO (lightswap_info.c) ---- */

char *lightswap_cat_info(char *info);

#endif
