// device.h - where memory is and how it moves: one of the program's three tables of functions.
//
// The trainer touches memory of a backend only through this table and through operations, so the same
// code runs where host pointers do not reach. On the CPU every call is a memcpy or nothing.
#pragma once
#include "view.h"

typedef struct Device {
    const char *name; // "cpu"
    // to_host / to_device: copy bytes, complete on return. Local.
    Err (*to_host)(void *host, const void *dev, size_t bytes);
    Err (*to_device)(void *dev, const void *host, size_t bytes);
    // zero: set bytes to 0. Local.
    Err (*zero)(void *dev, size_t bytes);
    // sync: wait for all work issued so far. Local.
    Err (*sync)(void);
} Device;

const Device *device_cpu(void);
// device_null: does nothing and returns OK; the device of measure mode.
const Device *device_null(void);
