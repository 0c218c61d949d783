// as_cuda.c - opens the device before the tests of a program begin, and waits after each operation.
#include <stdlib.h>

#include "device.h"

static const Device *device;

__attribute__((constructor)) static void open_device(void) {
    if (device_cuda_open(&device, 0) == OK) return;
    fail_report(stderr, "as_cuda", true);
    exit(70);
}

Err as_cuda(Err err);
Err as_cuda(Err err) {
    if (err != OK) return err;
    TRY(device->sync());
    return OK;
}
