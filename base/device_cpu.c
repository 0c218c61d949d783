// device_cpu.c - the host as a device, and the device of measure mode that touches nothing.
#include <string.h>

#include "device.h"

static Err cpu_copy(void *dst, const void *src, size_t bytes) {
    if (bytes) memcpy(dst, src, bytes);
    return OK;
}
static Err cpu_zero(void *dev, size_t bytes) {
    if (bytes) memset(dev, 0, bytes);
    return OK;
}
static Err cpu_sync(void) {
    return OK;
}
static Err null_copy(void *dst, const void *src, size_t bytes) {
    (void)dst, (void)src, (void)bytes;
    return OK;
}
static Err null_zero(void *dev, size_t bytes) {
    (void)dev, (void)bytes;
    return OK;
}

const Device *device_cpu(void) {
    static const Device d = {"cpu", cpu_copy, cpu_copy, cpu_zero, cpu_sync, NULL, NULL, NULL, NULL, cpu_copy, cpu_copy};
    return &d;
}

const Device *device_null(void) {
    static const Device d = {"null", null_copy, null_copy, null_zero, cpu_sync, NULL,
                             NULL,   NULL,      NULL,      null_copy, null_copy};
    return &d;
}
