// device.h - where memory is and how it moves: one of the program's three tables of functions.
//
// The trainer touches memory of a backend only through this table and through operations, so the same
// code runs where host pointers do not reach. On the CPU every call is a memcpy or nothing.
#pragma once
#include "view.h"

typedef struct Device {
    const char *name; // "cpu", "cuda", "null"
    // to_host: copy bytes to the host, complete on return: waits for all work issued so far. Local.
    Err (*to_host)(void *host, const void *dev, size_t bytes);
    // to_device: copy bytes from the host, whose memory is free on return; work issued later sees them. Waits only
    // while the pinned memory that bytes pass through is full of earlier ones. Local.
    Err (*to_device)(void *dev, const void *host, size_t bytes);
    // zero: set bytes to 0. Local.
    Err (*zero)(void *dev, size_t bytes);
    // sync: wait for all work issued so far; reports what went wrong in it. Local.
    Err (*sync)(void);
    // alloc: memory of the device for an arena, aligned to 256 bytes, contents undefined; NULL where arenas use
    // address space of the host. Errors: E_INTERNAL naming `what` and the sizes. release: accepts NULL. Local.
    Err (*alloc)(void **out, size_t bytes, const char *what);
    void (*release)(void *p);
    // reserve, grow: an arena whose memory comes as it is used: `bytes` of the device's addresses, *have of them with
    // memory behind them (none, or all where the device cannot do it otherwise); then memory for the first `want` of
    // them at least. NULL where arenas use address space of the host. release takes these too. Errors: as alloc; grow
    // may also be E_PEER. Local.
    Err (*reserve)(void **out, size_t bytes, size_t *have, const char *what);
    Err (*grow)(void *p, size_t *have, size_t want, const char *what);
    // read: as to_host, but the bytes are only there after the next sync or to_host: many reads cost one wait. They
    // are of the moment of the call, whatever is issued between. Local.
    Err (*read)(void *host, const void *dev, size_t bytes);
    // copy: within memory of the device, in the order of the work issued; does not wait. Local.
    Err (*copy)(void *dst, const void *src, size_t bytes);
} Device;

const Device *device_cpu(void);
// device_null: does nothing and returns OK; the device of measure mode.
const Device *device_null(void);

// What device_cuda_info finds.
typedef struct DeviceInfo {
    bool is_built;       // this program has the CUDA backend
    int count;           // devices that can be used here
    int runtime, driver; // versions of CUDA, 1000 * major + 10 * minor; driver 0: there is none
    int major, minor;    // compute capability of the first device
    int multiprocessors; // of it
    size_t memory;       // bytes of it
    char name[128];      // of it
    char why[192];       // with count == 0: why, in words
} DeviceInfo;

// device_cuda_info: what of CUDA is built in and there. Never fails. Local.
void device_cuda_info(DeviceInfo *out);
// device_cuda_open: the CUDA device of this rank: number local_rank modulo the number of devices, with its stream
// and its pinned staging memory. Once per process; later calls return the same device. Errors: E_PEER where the
// backend is not built in or there is no device or driver. Local.
Err device_cuda_open(const Device **out, int local_rank);
// device_cuda_close: wait for the device and give stream and staging back. Harmless if none was opened. Local.
void device_cuda_close(void);
// device_cuda_id: what names the opened device for every process of this host ("0000:1b:00.0 GPU-4c3f6d2a"); "" before
// open. Local.
void device_cuda_id(char *out, size_t n);
// device_cuda_stream: the stream (cudaStream_t) that operations and copies are issued on; NULL before open.
void *device_cuda_stream(void);
// device_cuda_use: from now on they are issued on another stream; returns the one before. What waits for the device
// (sync, to_host, read, to_device) is only called on the device's own stream. Local.
void *device_cuda_use(void *stream);
// device_cuda_waits: how often this process has waited for the device so far. Local.
int64_t device_cuda_waits(void);
// device_cuda_place: which GPU of this node the device is, as text (its place on the bus); "" before open. Local.
void device_cuda_place(char *out, size_t n);

// Who must hear of long waits: the host looks after the groups of ranks whose messages it may be waiting for, so that
// a lost rank is an error and not a hang.
typedef struct DeviceWatch {
    Err (*look)(void *user, double waited); // about once a millisecond; `waited` seconds so far; an error ends the wait
    void (*drop)(void *user);               // give up what is under way: an error was found, here or by another
    void *user;
} DeviceWatch;
// device_cuda_watch, device_cuda_unwatch: add one (E_INTERNAL beyond 8), take it away. Local.
Err device_cuda_watch(DeviceWatch w) MUST_CHECK;
void device_cuda_unwatch(const void *user);

// What a kernel found wrong in values that only it can see. It lies in memory of the device; the next to_host,
// to_device or sync returns it as an error, so that no operation has to wait for the device.
typedef enum FaultCode {
    FAULT_NONE,
    FAULT_TOKEN,  // an input token outside the vocabulary: E_INPUT
    FAULT_TARGET, // a target outside the logits: E_INTERNAL
    FAULT_GROUP   // a group of rows outside the matrix: E_INTERNAL
} FaultCode;
typedef struct DeviceFault {
    int32_t code; // FaultCode
    int64_t value, at, limit;
} DeviceFault;
// device_cuda_fault: where kernels report; NULL before open.
DeviceFault *device_cuda_fault(void);
