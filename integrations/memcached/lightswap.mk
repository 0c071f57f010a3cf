# Installed as GNUmakefile beside upstream's generated Makefile, which it extends: our own files and the library become
# part of memcached and memcached-debug. Needs LIGHTSWAP_LIBRARY and LIGHTSWAP_INCLUDE (lightswap.conf).
include Makefile
include lightswap.conf

lightswap_sources := $(wildcard lightswap_*.c)
lightswap_objects := $(lightswap_sources:%.c=memcached-%.o)
lightswap_debug_objects := $(lightswap_sources:%.c=memcached_debug-%.o)
lightswap_link := -Wl,--wrap=pthread_mutex_lock -Wl,--wrap=pthread_mutex_unlock $(LIGHTSWAP_LIBRARY) -lpthread -lm -ldl

CPPFLAGS += -I$(LIGHTSWAP_INCLUDE)

# The recipes are upstream's, which expand these only when they run.
memcached_LDADD += $(lightswap_objects) $(lightswap_link)
memcached_debug_LDADD += $(lightswap_debug_objects) $(lightswap_link)

memcached$(EXEEXT): $(lightswap_objects) $(LIGHTSWAP_LIBRARY)
memcached-debug$(EXEEXT): $(lightswap_debug_objects) $(LIGHTSWAP_LIBRARY)

memcached-lightswap_%.o: lightswap_%.c lightswap_memcached.h lightswap_settings.h $(LIGHTSWAP_INCLUDE)/lightswap.h
	$(CC) $(DEFS) $(DEFAULT_INCLUDES) $(CPPFLAGS) $(memcached_CPPFLAGS) $(CFLAGS) -Wextra -c -o $@ $<

memcached_debug-lightswap_%.o: lightswap_%.c lightswap_memcached.h lightswap_settings.h $(LIGHTSWAP_INCLUDE)/lightswap.h
	$(CC) $(DEFS) $(DEFAULT_INCLUDES) $(CPPFLAGS) $(memcached_debug_CPPFLAGS) $(memcached_debug_CFLAGS) $(CFLAGS) -Wextra -c -o $@ $<
