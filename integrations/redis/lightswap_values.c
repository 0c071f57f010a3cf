/* What goes into the region. */
#include "server.h"

static bool belongs_in_region(const char *s) {
    return lightswap_enabled && !zmalloc_is_swappable(s) && sdslen((sds)s) >= lightswap_settings.min_value_size;
}

char *lightswap_adopt_sds(char *s) {
    sds copy = belongs_in_region(s) ? sdsdupSwappable(s) : NULL;
    if (copy == NULL) {
        return s;
    }
    sdsfree(s);
    return copy;
}

char *lightswap_dup_sds(const char *s) {
    /* The value of another key may be in the region already. */
    bool is_large = lightswap_enabled && sdslen((sds)s) >= lightswap_settings.min_value_size;
    sds copy = is_large ? sdsdupSwappable((sds)s) : NULL;
    return copy != NULL ? copy : sdsdup((sds)s);
}

void *lightswap_adopt(void *ptr, size_t size) {
    void *copy = lightswap_enabled && !zmalloc_is_swappable(ptr) ? ztrymalloc_swappable(size) : NULL;
    if (copy == NULL) {
        return ptr;
    }
    memcpy(copy, ptr, size);
    zfree(ptr);
    return copy;
}

void lightswap_adopt_string(robj *o) {
    if (lightswap_enabled && o->type == OBJ_STRING && o->encoding == OBJ_ENCODING_RAW && o->refcount == 1) {
        o->ptr = lightswap_adopt_sds(o->ptr);
    }
}

robj *lightswap_retain_value(robj *o) {
    if (lightswap_enabled && o->type == OBJ_STRING && o->encoding == OBJ_ENCODING_RAW && belongs_in_region(o->ptr)) {
        sds copy = sdsdupSwappable(o->ptr);
        if (copy != NULL) {
            return createObject(OBJ_STRING, copy);
        }
    }
    incrRefCount(o);
    return o;
}
