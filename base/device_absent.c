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

void device_cuda_id(char *out, size_t n) {
    snprintf(out, n, "%s", "");
}

void *device_cuda_stream(void) {
    return NULL;
}

void *device_cuda_use(void *stream) {
    (void)stream;
    return NULL;
}

int64_t device_cuda_waits(void) {
    return 0;
}

void device_cuda_place(char *out, size_t n) {
    if (n) out[0] = '\0';
}

Err device_cuda_watch(DeviceWatch w) {
    (void)w;
    FAIL(E_PEER, "no CUDA device: this program was built without CUDA");
}

void device_cuda_unwatch(const void *user) {
    (void)user;
}

DeviceFault *device_cuda_fault(void) {
    return NULL;
}
