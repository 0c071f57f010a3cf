/* Sums an array that is four times local memory, on 32 lightweight threads, and prints the statistics.
 *
 *     cargo build --release -p lightswap
 *     cc -std=c11 -O2 -I lightswap/include lightswap/examples/scan.c target/release/liblightswap.a -lpthread -lm -ldl -o scan
 *     ./scan [file:/path/to/swap?size=64MiB]
 */
#include "lightswap.h"
#include <inttypes.h>
#include <stdio.h>

enum { NUM_LWTS = 32, NUM_WORDS = 8 << 20, CHUNK = 4096 };

static uint64_t *array, total;

static void fail(const char *what) {
    fprintf(stderr, "scan: %s: %s\n", what, lsw_last_error());
}

static void fill(void *arg) {
    for (size_t i = (size_t)arg * CHUNK; i < NUM_WORDS; i += (size_t)NUM_LWTS * CHUNK)
        for (size_t j = i; j < i + CHUNK; j++)
            array[j] = j;
}

static void sum(void *arg) {
    for (size_t i = (size_t)arg * CHUNK; i < NUM_WORDS; i += (size_t)NUM_LWTS * CHUNK) {
        if (lsw_touch(array + i, CHUNK * sizeof *array) != LSW_OK) { /* all pages of the chunk at once, instead of a fault for each */
            fail("cannot read");
            return;
        }
        /* Not right into `total`: an access to a region may run other LWTs, which would add to it between its load and its store. */
        uint64_t part = 0;
        for (size_t j = i; j < i + CHUNK; j++)
            part += array[j];
        total += part;
        lsw_yield();
    }
}

static int on_lwts(void (*entry)(void *)) {
    for (size_t i = 0; i < NUM_LWTS; i++)
        if (lsw_lwt_start(entry, (void *)i) < 0)
            return -1;
    return lsw_worker_run();
}

static void print(void *ctx, const char *name, uint64_t value) {
    if (value > 0)
        fprintf(ctx, "%24s %" PRIu64 "\n", name, value);
}

int main(int argc, char **argv) {
    lsw_config config = {.local_memory_bytes = 16 << 20, .backend_url = argc > 1 ? argv[1] : "memory:?size=64MiB"};
    lsw_instance *instance;
    lsw_region *region;
    if (lsw_open(&config, &instance) != LSW_OK)
        return fail("cannot open"), 1;
    if (lsw_region_create(instance, NUM_WORDS * sizeof *array, LSW_TRANSPARENT, &region) != LSW_OK || lsw_worker_enter(instance) != LSW_OK)
        return fail("cannot set up"), 1;
    array = lsw_region_base(region);
    if (on_lwts(fill) != LSW_OK || on_lwts(sum) != LSW_OK)
        return fail("cannot run"), 1;
    printf("sum %" PRIu64 ", expected %" PRIu64 "\n", total, (uint64_t)NUM_WORDS * (NUM_WORDS - 1) / 2);
    lsw_stats_visit(instance, print, stdout);
    lsw_worker_leave();
    lsw_region_destroy(region);
    return lsw_close(instance) != LSW_OK || total != (uint64_t)NUM_WORDS * (NUM_WORDS - 1) / 2;
}
