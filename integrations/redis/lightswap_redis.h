/* Lightswap in Redis: what upstream's files see of it. Everything here costs one predictable branch when the server runs without
 * lightswap-memory. */
#ifndef LIGHTSWAP_REDIS_H
#define LIGHTSWAP_REDIS_H

#include <stdbool.h>
#include <stddef.h>

/* Set once, before data is loaded. */
extern bool lightswap_enabled;

#endif
