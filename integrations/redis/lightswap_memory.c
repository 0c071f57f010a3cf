/* The heap over the region, behind zmalloc. */
#include "server.h"

bool lightswap_enabled = false;
