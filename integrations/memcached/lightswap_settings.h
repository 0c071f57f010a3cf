/* What Lightswap's own files share and upstream's do not see. */
#ifndef LIGHTSWAP_SETTINGS_H
#define LIGHTSWAP_SETTINGS_H

#include <stdint.h>

struct lightswap_settings {
    uint64_t memory_bytes;      /* local memory */
    const char *backend;        /* URL, as given */
    uint32_t notifier;          /* LSW_NOTIFIER_... */
    uint32_t waiting;           /* LSW_WAITING_... */
    uint32_t step_times;        /* 1: time the steps of swap-ins */
};

extern struct lightswap_settings lightswap_settings;

/* lsw_worker_enter on the server's instance. */
int lightswap_enter(void);

#endif
