// staging.h - what the trainer's own code reads and writes, where arenas are memory of a device (device.h).
//
// The host never follows a pointer into `acts`, `scratch`, `params` or `state`: it asks here for what it wants to read
// and says here what it has written. Where these arenas are memory of the host (the CPU backend, and measure mode)
// everything here is a view: no byte is copied and nothing is pushed, so the CPU pays nothing for it.
#pragma once
#include "cx.h"

// staging_is_host: may the host follow pointers into the arenas? Local, pure.
static inline bool staging_is_host(const Cx *cx) {
    return !cx->dev->alloc;
}

// staging_read: *host = `bytes` at `from` for the host to read, on host_scratch. Waits for the device. Local.
Err staging_read(Cx *cx, void **host, const void *from, size_t bytes) MUST_CHECK;
// staging_fetch: the same, but the bytes are only there after the next sync or read: many of them cost one wait. Local.
Err staging_fetch(Cx *cx, void **host, const void *from, size_t bytes) MUST_CHECK;
// staging_room: *host = room for what staging_write takes to `to`, on host_scratch. Local.
Err staging_room(Cx *cx, void **host, void *to, size_t bytes) MUST_CHECK;
// staging_write: the bytes at `host` to `to`; nothing where they are the same memory. Local.
Err staging_write(const Cx *cx, void *to, const void *host, size_t bytes) MUST_CHECK;
// staging_push: *out = a copy of the bytes at `host` for operations, on `on`. Local.
Err staging_push(const Cx *cx, Arena *on, void **out, const void *host, size_t bytes, const char *what) MUST_CHECK;
