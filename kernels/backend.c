// backend.c - the choice between the processor and the GPU.
#include "backend.h"

#include <string.h>

Backend backend_cpu(void) {
    Backend b = {ops_cpu(), device_cpu(), ""};
    return b;
}

Err backend_choose(Backend *out, const char *want, int local_rank) {
    *out = backend_cpu();
    if (strcmp(want, "cpu") == 0) return OK;
    if (strcmp(want, "auto") == 0) {
        DeviceInfo info;
        device_cuda_info(&info);
        if (info.count == 0) { // a program without the backend has nothing to say about it
            if (info.is_built) snprintf(out->why, sizeof out->why, "%s", info.why);
            return OK;
        }
    }
    TRY(device_cuda_open(&out->dev, local_rank));
    out->ops = ops_cuda();
    return OK;
}
