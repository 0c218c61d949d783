// staging.c - copies between the host and arenas that are memory of a device. See staging.h.
#include "staging.h"

Err staging_read(Cx *cx, void **host, const void *from, size_t bytes) {
    *host = (void *)from;
    if (staging_is_host(cx)) return OK;
    TRY(arena_push(cx->host_scratch, host, bytes, "staging"));
    return cx->dev->to_host(*host, from, bytes);
}

Err staging_fetch(Cx *cx, void **host, const void *from, size_t bytes) {
    *host = (void *)from;
    if (staging_is_host(cx)) return OK;
    TRY(arena_push(cx->host_scratch, host, bytes, "staging"));
    return cx->dev->read(*host, from, bytes);
}

Err staging_room(Cx *cx, void **host, void *to, size_t bytes) {
    *host = to;
    return staging_is_host(cx) ? OK : arena_push(cx->host_scratch, host, bytes, "staging");
}

Err staging_write(const Cx *cx, void *to, const void *host, size_t bytes) {
    return to == host ? OK : cx->dev->to_device(to, host, bytes);
}

Err staging_push(const Cx *cx, Arena *on, void **out, const void *host, size_t bytes, const char *what) {
    *out = (void *)host;
    if (staging_is_host(cx)) return OK;
    TRY(arena_push(on, out, bytes, what));
    return cx->dev->to_device(*out, host, bytes);
}
