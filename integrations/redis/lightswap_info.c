/* INFO lightswap. */
#include "server.h"
#include "lightswap_internal.h"

/* The library's counters that make up the first lines. */
struct overview {
    uint64_t resident_bytes;
    uint64_t heap_region_bytes;
    uint64_t heap_free_bytes;
    uint64_t heap_leaving_bytes;
};

static void note(void *arg, const char *name, uint64_t value) {
    struct overview *overview = arg;
    const struct {
        const char *name;
        uint64_t *value;
    } wanted[] = {
        { "resident_bytes", &overview->resident_bytes },
        { "heap_region_bytes", &overview->heap_region_bytes },
        { "heap_free_bytes", &overview->heap_free_bytes },
        { "heap_leaving_bytes", &overview->heap_leaving_bytes },
    };
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        if (strcmp(name, wanted[i].name) == 0) {
            *wanted[i].value = value;
        }
    }
}

static void cat_counter(void *arg, const char *name, uint64_t value) {
    sds *info = arg;
    *info = sdscatprintf(*info, "lightswap_%s:%llu\r\n", name, (unsigned long long)value);
}

char *lightswap_cat_info(char *info) {
    info = sdscatprintf(info, "# Lightswap\r\nlightswap_enabled:%d\r\n", lightswap_enabled);
    if (!lightswap_enabled) {
        return info;
    }
    struct overview overview = { 0 };
    lsw_stats_visit(lightswap_instance, note, &overview);
    lsw_heap_stats_visit(lightswap_heap, note, &overview);
    uint64_t used = overview.heap_region_bytes - overview.heap_free_bytes - overview.heap_leaving_bytes;
    cat_counter(&info, "capacity_bytes", overview.heap_region_bytes);
    cat_counter(&info, "used_bytes", used);
    cat_counter(&info, "swapped_bytes", used > overview.resident_bytes ? used - overview.resident_bytes : 0);
    lsw_stats_visit(lightswap_instance, cat_counter, &info);
    lsw_heap_stats_visit(lightswap_heap, cat_counter, &info);
    lightswap_memory_visit(cat_counter, &info);
    return info;
}
