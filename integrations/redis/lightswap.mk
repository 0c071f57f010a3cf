# Installed as src/GNUmakefile beside upstream's Makefile, which it extends: our own files and the library become part of redis-server.
# Needs LIGHTSWAP_LIBRARY and LIGHTSWAP_INCLUDE (lightswap.conf).
include Makefile
include lightswap.conf

lightswap_sources := $(wildcard lightswap_*.c)
lightswap_objects := $(lightswap_sources:%.c=%.o)

# Upstream's recipe links all prerequisites, these after its own objects.
$(REDIS_SERVER_NAME): $(lightswap_objects) $(LIGHTSWAP_LIBRARY)

lightswap_%.o: lightswap_%.c .make-prerequisites
	$(REDIS_CC) -Wextra -I$(LIGHTSWAP_INCLUDE) -MMD -o $@ -c $<

-include $(lightswap_objects:%.o=%.d)
