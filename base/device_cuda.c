// device_cuda.c - one GPU as the device of this rank: its memory, its stream, and copies through pinned memory.
//
// Operations and copies follow each other on one stream in the order they were issued; the groups of ranks have streams
// of their own (device_cuda_use). Host memory of callers is pageable: what goes to the device is first copied into one
// of two pinned halves, which are filled in turn, so that the host needs to wait for the device only when both are full
// of what has not left yet; what comes from it lies there until the host has waited.
//
// Every wait of the host for the device is await_event: one place, which counts, and looks after other ranks meanwhile.
#include <cuda_runtime_api.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "device_cuda_space.h"

#define HALF ((size_t)4 << 20) // bytes of a pinned half
#define ALIGN ((size_t)64)     // of what lies in it

enum { READS = 512, WATCHES = 8 };

#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t cuda_ = (call);                                                                \
        CHECK(cuda_ == cudaSuccess, E_PEER, "%s: %s", #call, cudaGetErrorString(cuda_));           \
    } while (0)

// What was read and waits in a half for the host to come for it.
typedef struct Read {
    void *host;
    const char *pinned;
    size_t bytes;
} Read;

static struct {
    bool is_open;
    int number; // of the device
    cudaStream_t stream, current;
    char *pinned[2];
    int half;            // the one that is being filled
    size_t used;         // bytes of it
    cudaEvent_t sent[2]; // everything that passed through the half
    cudaEvent_t now;     // what a wait is for
    Read read[READS];
    int nreads;
    int64_t waits;
    DeviceWatch watch[WATCHES];
    int nwatches;
    DeviceFault *fault; // memory of the device
    DeviceFault *seen;  // its copy, pinned
} gpu;

void device_cuda_info(DeviceInfo *out) {
    memset(out, 0, sizeof *out);
    out->is_built = true;
    cudaRuntimeGetVersion(&out->runtime);
    cudaDriverGetVersion(&out->driver);
    cudaError_t e = cudaGetDeviceCount(&out->count);
    if (e != cudaSuccess) {
        out->count = 0;
        cudaGetLastError(); // it was asked for, and is told here: later calls must not see it
        snprintf(out->why, sizeof out->why, "%s%s", cudaGetErrorString(e),
                 out->driver ? "" : " (there is no NVIDIA driver)");
        return;
    }
    if (out->count == 0) {
        snprintf(out->why, sizeof out->why, "no NVIDIA device is visible");
        return;
    }
    struct cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return;
    snprintf(out->name, sizeof out->name, "%.*s", (int)sizeof out->name - 1, p.name);
    out->major = p.major;
    out->minor = p.minor;
    out->multiprocessors = p.multiProcessorCount;
    out->memory = p.totalGlobalMem;
}

// ---- waits ------------------------------------------------------------------------------------

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// look_after: what the watches have to say; an error is one for all of them.
static Err look_after(double waited) {
    Err err = OK;
    for (int i = 0; i < gpu.nwatches && err == OK; i++) err = gpu.watch[i].look(gpu.watch[i].user, waited);
    if (err == OK) return OK;
    for (int i = 0; i < gpu.nwatches; i++) gpu.watch[i].drop(gpu.watch[i].user);
    return err;
}

// await_event: until the device has come to the event. Without a watch nothing but the device's own work can be in
// the way, which ends.
static Err await_event(cudaEvent_t e) {
    double start = seconds(), last = start;
    gpu.waits++;
    while (gpu.nwatches > 0) {
        cudaError_t is = cudaEventQuery(e);
        if (is != cudaErrorNotReady) break; // or an error, which the next call returns too
        double now = seconds();
        if (now - start > 2e-3) { // a short wait spins, a long one leaves the core to others
            struct timespec pause = {0, 50000};
            nanosleep(&pause, NULL);
        } else {
            sched_yield();
        }
        if (now - last < 1e-3) continue;
        last = now;
        TRY(look_after(now - start));
    }
    TRY_CUDA(cudaEventSynchronize(e));
    return OK;
}

// settle: wait for the stream; hand out what was read; return what kernels have reported, once.
static Err settle(void) {
    CHECK(gpu.current == gpu.stream, E_INTERNAL, "the host waits for the device while a group's stream is in use");
    TRY_CUDA(cudaMemcpyAsync(gpu.seen, gpu.fault, sizeof *gpu.seen, cudaMemcpyDeviceToHost, gpu.stream));
    TRY_CUDA(cudaEventRecord(gpu.now, gpu.stream));
    TRY(await_event(gpu.now));
    for (int i = 0; i < gpu.nreads; i++) memcpy(gpu.read[i].host, gpu.read[i].pinned, gpu.read[i].bytes);
    gpu.nreads = 0;
    gpu.used = 0; // everything that passed through this half has arrived
    const DeviceFault *f = gpu.seen;
    if (f->code == FAULT_NONE) return OK;
    TRY_CUDA(cudaMemsetAsync(gpu.fault, 0, sizeof *gpu.fault, gpu.stream));
    long long value = f->value, at = f->at, limit = f->limit;
    CHECK(f->code != FAULT_TOKEN, E_INPUT,
          "token %lld at position %lld of the micro-batch is outside the vocabulary of %lld: were the data prepared "
          "with another tokenizer?",
          value, at, limit);
    CHECK(f->code != FAULT_TARGET, E_INTERNAL, "xent: target %lld of row %lld is outside %lld logits", value, at,
          limit);
    FAIL(E_INTERNAL, "group %lld has rows up to %lld of %lld", at, value, limit);
}

// ---- copies -----------------------------------------------------------------------------------

// half_room: room for `bytes`, at most HALF. Where this half has none left, the other one is taken as soon as what
// passed through it is on its way no more; reads that still lie in it are handed out first.
static Err half_room(char **out, size_t bytes) {
    if (bytes > HALF - gpu.used) {
        if (gpu.nreads > 0) {
            TRY(settle());
        } else {
            TRY_CUDA(cudaEventRecord(gpu.sent[gpu.half], gpu.stream));
            gpu.half = 1 - gpu.half;
            gpu.used = 0;
            cudaError_t is = cudaEventQuery(gpu.sent[gpu.half]);
            if (is != cudaSuccess) TRY(await_event(gpu.sent[gpu.half]));
        }
    }
    *out = gpu.pinned[gpu.half] + gpu.used;
    gpu.used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return OK;
}

// read_long: more than a half holds: a piece is taken out of one half while the next one fills the other.
static Err read_long(void *host, const void *dev, size_t bytes) {
    TRY(settle()); // both halves are free then
    size_t npieces = (bytes + HALF - 1) / HALF;
    for (size_t i = 0; i < npieces + 1; i++) {
        if (i < npieces) {
            size_t n = bytes - i * HALF < HALF ? bytes - i * HALF : HALF;
            TRY_CUDA(cudaMemcpyAsync(gpu.pinned[i % 2], (const char *)dev + i * HALF, n, cudaMemcpyDeviceToHost,
                                     gpu.stream));
            TRY_CUDA(cudaEventRecord(gpu.sent[i % 2], gpu.stream));
        }
        if (i > 0) {
            size_t at = (i - 1) * HALF, n = bytes - at < HALF ? bytes - at : HALF;
            TRY(await_event(gpu.sent[(i - 1) % 2]));
            memcpy((char *)host + at, gpu.pinned[(i - 1) % 2], n);
        }
    }
    return OK;
}

static Err cuda_read(void *host, const void *dev, size_t bytes) {
    char *pinned = NULL;
    if (bytes == 0) return OK;
    if (bytes > HALF) return read_long(host, dev, bytes);
    if (gpu.nreads == READS) TRY(settle());
    TRY(half_room(&pinned, bytes));
    TRY_CUDA(cudaMemcpyAsync(pinned, dev, bytes, cudaMemcpyDeviceToHost, gpu.stream));
    gpu.read[gpu.nreads++] = (Read){host, pinned, bytes};
    return OK;
}

static Err cuda_to_host(void *host, const void *dev, size_t bytes) {
    TRY(cuda_read(host, dev, bytes));
    TRY(settle());
    return OK;
}

static Err cuda_to_device(void *dev, const void *host, size_t bytes) {
    for (size_t at = 0; at < bytes; at += HALF) {
        size_t n = bytes - at < HALF ? bytes - at : HALF;
        char *pinned = NULL;
        TRY(half_room(&pinned, n));
        memcpy(pinned, (const char *)host + at, n);
        TRY_CUDA(cudaMemcpyAsync((char *)dev + at, pinned, n, cudaMemcpyHostToDevice, gpu.stream));
    }
    return OK;
}

static Err cuda_copy(void *dst, const void *src, size_t bytes) {
    if (bytes) TRY_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, gpu.current));
    return OK;
}

static Err cuda_zero(void *dev, size_t bytes) {
    if (bytes) TRY_CUDA(cudaMemsetAsync(dev, 0, bytes, gpu.current));
    return OK;
}

static Err cuda_sync(void) {
    TRY(settle());
    TRY_CUDA(cudaGetLastError());
    return OK;
}

static Err cuda_alloc(void **out, size_t bytes, const char *what) {
    cudaError_t e = cudaMalloc(out, bytes ? bytes : 1);
    if (e == cudaSuccess) return OK;
    size_t left = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&left, &total);
    FAIL(E_INTERNAL, "%s: %.1f MiB of the GPU's memory: %s (%.1f of %.1f MiB are free)", what,
         (double)bytes / 1048576.0, cudaGetErrorString(e), (double)left / 1048576.0, (double)total / 1048576.0);
}

static Err cuda_reserve(void **out, size_t bytes, size_t *have, const char *what) {
    *have = 0;
    if (space_reserve(out, bytes ? bytes : 1)) return OK;
    *have = bytes;
    return cuda_alloc(out, bytes, what);
}

static Err cuda_grow(void *p, size_t *have, size_t want, const char *what) {
    return space_grow(gpu.number, p, have, want, what);
}

// Memory that the device may still work with is not taken from under it.
static void cuda_release(void *p) {
    if (p && gpu.stream) cudaStreamSynchronize(gpu.stream);
    if (p && !space_release(p)) cudaFree(p);
}

static const Device device = {"cuda",       cuda_to_host, cuda_to_device, cuda_zero, cuda_sync, cuda_alloc,
                              cuda_release, cuda_reserve, cuda_grow,      cuda_read, cuda_copy};

static Err open_gpu(int local_rank) {
    DeviceInfo info;
    device_cuda_info(&info);
    CHECK(info.count > 0, E_PEER, "no CUDA device can be used here: %s; --device cpu computes on the processor",
          info.why);
    gpu.number = local_rank % info.count;
    TRY_CUDA(cudaSetDevice(gpu.number));
    space_open(gpu.number);
    TRY_CUDA(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
    gpu.current = gpu.stream;
    TRY_CUDA(cudaEventCreateWithFlags(&gpu.now, cudaEventDisableTiming));
    TRY_CUDA(cudaMalloc((void **)&gpu.fault, sizeof *gpu.fault));
    TRY_CUDA(cudaMemsetAsync(gpu.fault, 0, sizeof *gpu.fault, gpu.stream));
    TRY_CUDA(cudaMallocHost((void **)&gpu.seen, sizeof *gpu.seen));
    for (int i = 0; i < 2; i++) {
        TRY_CUDA(cudaMallocHost((void **)&gpu.pinned[i], HALF));
        TRY_CUDA(cudaEventCreateWithFlags(&gpu.sent[i], cudaEventDisableTiming));
    }
    return OK;
}

Err device_cuda_open(const Device **out, int local_rank) {
    *out = NULL;
    if (!gpu.is_open) {
        Err err = open_gpu(local_rank);
        if (err != OK) {
            device_cuda_close();
            TRY(err);
        }
        gpu.is_open = true;
    }
    *out = &device;
    return OK;
}

void device_cuda_close(void) {
    if (gpu.stream) cudaStreamSynchronize(gpu.stream);
    for (int i = 0; i < 2; i++) {
        if (gpu.sent[i]) cudaEventDestroy(gpu.sent[i]);
        if (gpu.pinned[i]) cudaFreeHost(gpu.pinned[i]);
    }
    if (gpu.now) cudaEventDestroy(gpu.now);
    if (gpu.fault) cudaFree(gpu.fault);
    if (gpu.seen) cudaFreeHost(gpu.seen);
    if (gpu.stream) cudaStreamDestroy(gpu.stream);
    memset(&gpu, 0, sizeof gpu);
}

void device_cuda_id(char *out, size_t n) {
    struct cudaDeviceProp p;
    int ordinal = 0;
    snprintf(out, n, "%s", "");
    if (!gpu.is_open || cudaGetDevice(&ordinal) != cudaSuccess) return;
    if (cudaGetDeviceProperties(&p, ordinal) != cudaSuccess) return;
    // Parts of one GPU (MIG) have an own UUID each.
    const unsigned char *id = (const unsigned char *)p.uuid.bytes;
    snprintf(out, n, "%04x:%02x:%02x.0 GPU-%02x%02x%02x%02x", (unsigned)p.pciDomainID, (unsigned)p.pciBusID,
             (unsigned)p.pciDeviceID, id[0], id[1], id[2], id[3]);
}

void *device_cuda_stream(void) {
    return gpu.current;
}

void *device_cuda_use(void *stream) {
    void *before = gpu.current;
    gpu.current = stream;
    return before;
}

int64_t device_cuda_waits(void) {
    return gpu.waits;
}

void device_cuda_place(char *out, size_t n) {
    if (n) out[0] = '\0';
    if (gpu.is_open && cudaDeviceGetPCIBusId(out, (int)n, gpu.number) != cudaSuccess)
        snprintf(out, n, "device %d", gpu.number);
}

Err device_cuda_watch(DeviceWatch w) {
    CHECK(gpu.nwatches < WATCHES, E_INTERNAL, "%d watches look after waits already", WATCHES);
    gpu.watch[gpu.nwatches++] = w;
    return OK;
}

void device_cuda_unwatch(const void *user) {
    int n = 0;
    for (int i = 0; i < gpu.nwatches; i++)
        if (gpu.watch[i].user != user) gpu.watch[n++] = gpu.watch[i];
    gpu.nwatches = n;
}

DeviceFault *device_cuda_fault(void) {
    return gpu.fault;
}
