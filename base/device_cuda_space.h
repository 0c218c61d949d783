// device_cuda_space.h - ranges of the GPU's addresses whose memory comes as it is used; for device_cuda.c alone.
#pragma once
#include "fail.h"

// space_open: find the driver's functions; false: it has them not. Local.
bool space_open(int device);
// space_reserve: *out = `bytes` of address space without memory; false: not possible. Local.
bool space_reserve(void **out, size_t bytes);
// space_grow: memory for the first `want` bytes of it at least; *have: how many there are then. Errors: E_INTERNAL,
// naming `what` and sizes, where the device has not that much; E_PEER. Local.
Err space_grow(int device, void *p, size_t *have, size_t want, const char *what) MUST_CHECK;
// space_release: memory and addresses; false: no such space. The device must be done with it. Local.
bool space_release(void *p);
