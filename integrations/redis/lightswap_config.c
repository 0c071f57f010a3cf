/* Directives, and opening what they ask for. */
#include "server.h"
#include "lightswap_internal.h"

#include <stdarg.h>

bool lightswap_enabled = false;
bool lightswap_has_sigbus = false;
struct lightswap_settings lightswap_settings;
lsw_instance *lightswap_instance;

/* Until the server runs, its log may be a file that nobody looks at. */
void lightswap_die(const char *format, ...) {
    char sentence[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(sentence, sizeof(sentence), format, ap);
    va_end(ap);
    fprintf(stderr, "redis-server: %s\n", sentence);
    if (server.logfile != NULL && server.logfile[0] != '\0') {
        serverLog(LL_WARNING, "%s", sentence);
    }
    exit(1);
}

/* Not for us, says the library. As upstream's set-up of handlers would have had it. */
static void on_sigbus(int sig, siginfo_t *info, void *context) {
    if (server.crashlog_enabled) {
        sigsegvHandler(sig, info, context);
        return;
    }
    /* The access is tried again, which ends the process; what was sent is sent again. */
    signal(sig, SIG_DFL);
    if (info->si_code <= 0) {
        raise(sig);
    }
}

/* The library puts its handler in front of the one it finds when it is first used. Nobody replaces that afterwards, so CONFIG SET
 * crash-log-enabled decides in ours. */
static void take_sigbus(void) {
    if (!lightswap_has_sigbus) {
        struct sigaction act = { .sa_flags = SA_NODEFER | SA_SIGINFO, .sa_sigaction = on_sigbus };
        sigemptyset(&act.sa_mask);
        sigaction(SIGBUS, &act, NULL);
        lightswap_has_sigbus = true;
    }
}

/* Several servers started with one configuration need a file each: %p in the backend's URL is this process's id. */
static char *expand_backend_url(const char *text) {
    sds url = sdsempty();
    for (const char *from = text; *from != '\0'; from++) {
        if (from[0] == '%' && from[1] == 'p') {
            url = sdscatprintf(url, "%ld", (long)getpid());
            from++;
        } else {
            url = sdscatlen(url, from, 1);
        }
    }
    return url;
}

/* Local memory is whole pages. */
static uint64_t whole_pages(unsigned long long num_bytes) {
    return num_bytes & ~(uint64_t)4095;
}

static void close_instance(void) {
    lsw_close(lightswap_instance);
    lightswap_instance = NULL;
}

/* A region that takes all the room of the backend. */
static lsw_region *make_region(void) {
    lsw_region *region = NULL;
    /* 0, too, is refused with a sentence. */
    if (lsw_region_create(lightswap_instance, lsw_room_bytes(lightswap_instance), LSW_TRANSPARENT, &region) != LSW_OK) {
        lightswap_die("lightswap-backend: %s", lsw_last_error());
    }
    return region;
}

static lsw_region *open_region(void) {
    take_sigbus();
    char *url = expand_backend_url(lightswap_settings.backend);
    const lsw_config config = {
        .local_memory_bytes = whole_pages(lightswap_settings.memory_bytes),
        .backend_url = url,
        .max_workers = 1,
        .snapshots = 1,     /* for BGSAVE and the like */
    };
    if (lsw_open(&config, &lightswap_instance) != LSW_OK) {
        lightswap_die("lightswap-memory, lightswap-backend: %s", lsw_last_error());
    }
    sdsfree(url);
    return make_region();
}

void lightswap_check(bool daemonize) {
    bool has_memory = lightswap_settings.memory_bytes != 0;
    bool has_backend = lightswap_settings.backend != NULL;
    if (!has_memory && !has_backend) {
        return;
    }
    if (server.sentinel_mode) {
        lightswap_die("lightswap-memory and lightswap-backend are not for sentinels, which have no values: take them out of the configuration");
    }
    if (!has_memory) {
        lightswap_die("lightswap-backend needs lightswap-memory, how much memory to keep values in: add lightswap-memory 1gb, say");
    }
    if (!has_backend) {
        lightswap_die("lightswap-memory needs lightswap-backend, the place for values that do not fit in it: add lightswap-backend file:/path?size=16GiB, say");
    }
    if (daemonize) {
        lsw_region_destroy(open_region());  /* first: a region keeps its instance */
        close_instance();
    }
}

void lightswap_start(void) {
    if (lightswap_settings.backend != NULL) {
        lightswap_memory_start(open_region());
        lightswap_enabled = true;
        lightswap_worker_start();
        serverLog(LL_NOTICE, "Lightswap: %llu MiB of local memory for values, %zu MiB in all", lightswap_settings.memory_bytes >> 20,
                  zmalloc_heap.len >> 20);
        if (lightswap_settings.memory_bytes > zmalloc_heap.len) {
            serverLog(LL_WARNING, "lightswap-memory is more than lightswap-backend has room for, which is half of its size: the rest is never used");
        }
    }
}

int lightswap_update_memory(const char **err) {
    static char sentence[512];
    if (!lightswap_enabled) {
        if (lightswap_settings.memory_bytes == 0) {
            return 1;
        }
        *err = "Lightswap is off: lightswap-memory and lightswap-backend have to be set before the server starts";
        return 0;
    }
    if (lsw_set_local_memory(lightswap_instance, whole_pages(lightswap_settings.memory_bytes)) != LSW_OK) {
        snprintf(sentence, sizeof(sentence), "%s", lsw_last_error());
        *err = sentence;
        return 0;
    }
    /* Values may have to go before the next turn of the event loop. */
    if (!lightswap_walks) {
        lightswap_look();
    }
    return 1;
}
