/* LWT-aware mutexes, put in the place of pthread's by the linker (--wrap), so that no call site changes.
 *
 * A connection's LWT may be suspended by a page fault while it holds a lock. If another LWT of the same worker then
 * blocked in pthread_mutex_lock, the holder could never go on. So an LWT that finds a mutex locked parks on its address,
 * and unlocking wakes one that parks. Ordinary threads block as ever. Condition variables are left alone: apart from
 * logger_stack_lock and lru_crawler_lock no mutex that goes with one is ever locked by an LWT. */
#include "memcached.h"

#include <errno.h>
#include <pthread.h>

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);

/* Of upstream's files. */
extern pthread_mutex_t logger_stack_lock;
extern pthread_mutex_t lru_crawler_lock;
extern pthread_mutex_t worker_hang_lock;

enum {
    SPINS = 32,                 /* most locks here are held for less than a microsecond */
    CONDITION_SLEEP_US = 100,
};

struct attempt {
    pthread_mutex_t *mutex;
    int result;                 /* of the last pthread_mutex_trylock */
};

/* Called by lsw_park when the LWT is queued: an unlock from here on wakes it, so the mutex has to be looked at again. */
static bool still_locked(void *arg) {
    struct attempt *attempt = arg;
    attempt->result = pthread_mutex_trylock(attempt->mutex);
    return attempt->result == EBUSY;
}

static int lock_on_lwt(pthread_mutex_t *mutex) {
    struct attempt attempt = { .mutex = mutex, .result = EBUSY };
    while (attempt.result == EBUSY) {
        if (mutex == &logger_stack_lock || mutex == &lru_crawler_lock) {
            /* Their threads release them inside pthread_cond_wait, which wakes no LWT. Only `watch` and `lru_crawler` get here. */
            if (still_locked(&attempt)) {
                lsw_sleep_us(CONDITION_SLEEP_US);
            }
        } else {
            lsw_park(mutex, still_locked, &attempt);
        }
    }
    return attempt.result;
}

/* A worker outside its LWTs (new connections, closing): the holder may be one of its own LWTs. */
static int lock_on_worker(pthread_mutex_t *mutex) {
    int result;
    while ((result = pthread_mutex_trylock(mutex)) == EBUSY) {
        lightswap_worker_help();
    }
    return result;
}

static int lock_contended(pthread_mutex_t *mutex) {
    for (int i = 0; i < SPINS; i++) {
        int result = pthread_mutex_trylock(mutex);
        if (result != EBUSY) {
            return result;
        }
    }
    if (lsw_on_lwt()) {
        return lock_on_lwt(mutex);
    }
    /* Whoever holds worker_hang_lock wants workers to stand still, their LWTs, too: the hash table is being replaced. */
    if (lightswap_on_worker() && mutex != &worker_hang_lock) {
        return lock_on_worker(mutex);
    }
    return __real_pthread_mutex_lock(mutex);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex) {
    if (likely(!lightswap_enabled)) {
        return __real_pthread_mutex_lock(mutex);
    }
    int result = pthread_mutex_trylock(mutex);
    return likely(result != EBUSY) ? result : lock_contended(mutex);
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex) {
    int result = __real_pthread_mutex_unlock(mutex);
    if (unlikely(lightswap_enabled)) {
        /* Fences first: either the LWT that is parking sees the mutex free, or this sees the LWT queued. */
        lsw_unpark_one(mutex);
    }
    return result;
}
