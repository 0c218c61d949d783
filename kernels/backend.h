// backend.h - which operations on which device: the two tables that belong together.
#pragma once
#include "device.h"
#include "ops.h"

typedef struct Backend {
    const Ops *ops;
    const Device *dev;
    char why[256]; // of a choice that was left to the program: "" or a reason for people
} Backend;

// backend_cpu: the processor.
Backend backend_cpu(void);
// backend_choose: `want` is "cpu", "cuda" or "auto" (CUDA where a device can be used, else the CPU, with `why`);
// local_rank picks the GPU of this rank. Errors: E_PEER if "cuda" is not built in or there is no device. Local.
Err backend_choose(Backend *out, const char *want, int local_rank) MUST_CHECK;
