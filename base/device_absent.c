// device_absent.c - the CUDA device of a program that was built without CUDA.
#include <string.h>

#include "device.h"

void device_cuda_info(DeviceInfo *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->why, sizeof out->why, "this program was built without CUDA (-Dcuda=enabled builds it in)");
}

Err device_cuda_open(const Device **out, int local_rank) {
    (void)local_rank;
    *out = NULL;
    FAIL(E_PEER, "no CUDA device: this program was built without CUDA; build it with -Dcuda=enabled, or use "
                 "--device cpu");
}

void device_cuda_close(void) {}

void *device_cuda_stream(void) {
    return NULL;
}

DeviceFault *device_cuda_fault(void) {
    return NULL;
}
