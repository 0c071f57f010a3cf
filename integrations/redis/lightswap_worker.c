/* The main thread as a Lightswap worker: its event loop sees to completions and ready LWTs. */
#include "server.h"
#include "lightswap_internal.h"

static bool has_work = false;

/* beforeSleep polls in every turn, so being woken is all there is to do. */
static void on_wake(aeEventLoop *el, int fd, void *data, int mask) {
    UNUSED(el);
    UNUSED(fd);
    UNUSED(data);
    UNUSED(mask);
}

void lightswap_worker_start(void) {
    if (lsw_worker_enter(lightswap_instance) != LSW_OK) {
        lightswap_die("cannot start Lightswap's worker: %s", lsw_last_error());
    }
    if (aeCreateFileEvent(server.el, lsw_worker_fd(), AE_READABLE, on_wake, NULL) == AE_ERR) {
        lightswap_die("cannot watch for page completions: %s; raise maxclients", strerror(errno));
    }
}

void lightswap_before_sleep(void) {
    /* A thread of a module that has Redis's lock may process events, too. */
    if (!lightswap_enabled || !pthread_equal(server.main_thread_id, pthread_self())) {
        return;
    }
    /* What timers and the like have allocated; commands have released theirs. */
    lightswap_release_new();
    if (!server.loading) {
        lightswap_memory_loaded();
    }
    int num_ready = lsw_worker_poll();
    if (num_ready < 0) {
        serverPanic("Lightswap's worker failed: %s", lsw_last_error());
    }
    has_work = num_ready > 0;
}

bool lightswap_has_work(void) {
    return has_work;
}
