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
    uint32_t fault_return;      /* LSW_FAULT_RETURN_... */
};

extern struct lightswap_settings lightswap_settings;

/* lsw_worker_enter on the server's instance. */
int lightswap_enter(void);

/* Pages that the LWT of a connection has pinned: of the item it looked up last. */
struct lightswap_pins {
    const char *addr;
    size_t len;                 /* 0: none */
};
void lightswap_drop_pins(struct lightswap_pins *pins);

/* Hands what lightswap_loss.c counts to `visit`. */
void lightswap_visit_losses(void (*visit)(void *arg, const char *name, uint64_t value), void *arg);
/* Ordinary memory that headers take. */
uint64_t lightswap_header_memory_bytes(void);

#endif
