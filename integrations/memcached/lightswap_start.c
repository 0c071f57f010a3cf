/* Opening and closing Lightswap, and its statistics. */
#include "memcached.h"
#include "lightswap_settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

/* File descriptors that the instance holds beside those of its workers. */
enum { FDS_OF_INSTANCE = 8 };

bool lightswap_enabled = false;
bool lightswap_asks_first = true;

static lsw_instance *instance;

static void die(void) {
    fprintf(stderr, "memcached: %s\n", lsw_last_error());
    exit(EXIT_FAILURE);
}

/* Several servers started with one environment need a file each: %p in the backend's URL is this process's id. */
static char *expand_backend_url(const char *text) {
    char pid[16];
    snprintf(pid, sizeof(pid), "%ld", (long)getpid());
    char *url = malloc(strlen(text) * sizeof(pid) + 1);
    if (url == NULL) {
        fprintf(stderr, "memcached: no memory\n");
        exit(EXIT_FAILURE);
    }
    char *to = url;
    for (const char *from = text; *from != '\0'; from++) {
        if (from[0] == '%' && from[1] == 'p') {
            to = stpcpy(to, pid);
            from++;
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
    return url;
}

static lsw_region *open_region(void) {
    char *url = expand_backend_url(lightswap_settings.backend);
    const lsw_config config = {
        .local_memory_bytes = lightswap_settings.memory_bytes,
        .backend_url = url,
        .max_workers = settings.num_threads,
        .lwt_stack_bytes = 0,
        .notifier = lightswap_settings.notifier,
        .waiting = lightswap_settings.waiting,
        .step_times = lightswap_settings.step_times,
        .fault_return = lightswap_settings.fault_return,
    };
    lsw_region *region = NULL;
    if (lsw_open(&config, &instance) != LSW_OK ||
        lsw_region_create(instance, lightswap_region_bytes(settings.maxbytes), LSW_COOPERATIVE, &region) != LSW_OK) {
        die();
    }
    free(url);
    return region;
}

static void close_instance(void) {
    if (lsw_close(instance) != LSW_OK) {
        fprintf(stderr, "memcached: %s\n", lsw_last_error());
    }
    instance = NULL;
}

void lightswap_rehearse(void) {
    if (lightswap_enabled) {
        lsw_region_destroy(open_region());  /* first: a region keeps its instance */
        close_instance();
    }
}

void lightswap_start(void) {
    if (lightswap_enabled) {
        lsw_region *region = open_region();
        lightswap_memory_init(lsw_region_base(region), lsw_region_len(region));
        if (!lightswap_headers_init(lsw_region_base(region), lsw_region_len(region))) {
            fprintf(stderr, "memcached: no address space for the headers of %zu bytes of items\n", lsw_region_len(region));
            exit(EXIT_FAILURE);
        }
        STATS_LOCK();
        stats_state.reserved_fds += FDS_OF_INSTANCE;
        STATS_UNLOCK();
    }
}

void lightswap_stop(void) {
    if (lightswap_enabled) {
        close_instance();
    }
}

int lightswap_enter(void) {
    return lsw_worker_enter(instance);
}

struct stats_sink {
    ADD_STAT add_stats;
    void *c;
};

static void add_counter(void *arg, const char *name, uint64_t value) {
    const struct stats_sink *sink = arg;
    ADD_STAT add_stats = sink->add_stats;
    conn *c = sink->c;
    APPEND_STAT(name, "%llu", (unsigned long long)value);
}

void lightswap_stats(ADD_STAT add_stats, void *c) {
    APPEND_STAT("lightswap", "%s", lightswap_enabled ? "on" : "off");
    if (lightswap_enabled) {
        struct stats_sink sink = { add_stats, c };
        lsw_stats_visit(instance, add_counter, &sink);
        add_counter(&sink, "item_header_bytes", lightswap_header_memory_bytes());
        lightswap_visit_losses(add_counter, &sink);
    }
    add_stats(NULL, 0, NULL, 0, c);
}
