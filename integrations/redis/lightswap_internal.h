/* What Lightswap's own files share and upstream's do not see. */
#ifndef LIGHTSWAP_INTERNAL_H
#define LIGHTSWAP_INTERNAL_H

#include "lightswap.h"

extern lsw_instance *lightswap_instance;
extern lsw_heap *lightswap_heap;

/* Ends the process with a sentence, on stderr and in the log. */
void lightswap_die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* Takes over the region: zmalloc's second heap from now on. */
void lightswap_memory_start(lsw_region *region);
/* Data is loaded: no room is an answer to a client from now on, no longer the end. */
void lightswap_memory_loaded(void);
/* Makes the calling thread a worker, and the event loop watch its descriptor. */
void lightswap_worker_start(void);

/* The command that ran has ended: what it has allocated may be evicted from now on. */
void lightswap_release_new(void);
/* Brings memory in, for an access that follows at once; a status of the library's. */
int lightswap_settle(const void *addr, size_t len);

/* The key whose value is being dumped. */
extern const char *lightswap_dumped_key;

/* Hands what lightswap_memory.c counts to `visit`. */
void lightswap_memory_visit(void (*visit)(void *arg, const char *name, uint64_t value), void *arg);

/* The same for parked clients. */
void lightswap_park_visit(void (*visit)(void *arg, const char *name, uint64_t value), void *arg);

#endif
