// runtime_on_cpu.cpp - the few functions of the CUDA runtime that host code calls, over host memory.
//
// Linked into the cuda-on-cpu tests instead of libcudart, so that device table and launchers run as they are. Memory
// of the device comes filled with 0xFF and can only be touched by kernels, copies and memset: host code that follows a
// device's pointer ends with a segmentation fault, as it should. One device exists unless runtime_on_cpu_devices says
// otherwise.
#include <time.h>

#include "simt.h"

static int device_count = 1;
static cudaError_t last_error = cudaSuccess;

// Blocks of device memory, without access outside of launches and copies.
enum { BLOCKS = 256 };
static struct {
    char *p;
    size_t bytes;
} blocks[BLOCKS];
static void device_memory(bool is_open) {
    for (auto &b : blocks)
        if (b.p) mprotect(b.p, b.bytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
}
namespace {
struct Open { // for the length of a copy
    Open() { device_memory(true); }
    ~Open() { device_memory(false); }
};
}

// Programs that never choose a schedule run their launches in turn under all four.
__attribute__((constructor)) static void rotate() {
    simt::schedule(-1, 1);
    simt::device_memory = device_memory;
}

extern "C" {
// runtime_on_cpu_devices: how many devices cudaGetDeviceCount reports; -1: there is no driver.
void runtime_on_cpu_devices(int n) {
    device_count = n;
}
// simt_schedule: simt::schedule for tests in C.
void simt_schedule(int order, uint64_t seed) {
    simt::schedule(order, seed);
}
uint64_t simt_launches(void) {
    return simt::launches;
}

cudaError_t cudaGetDeviceCount(int *n) {
    *n = device_count > 0 ? device_count : 0;
    if (device_count < 0) return cudaErrorInsufficientDriver;
    return device_count == 0 ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaSetDevice(int i) {
    return i >= 0 && i < device_count ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "fibers on the CPU");
    p->major = 9;
    p->multiProcessorCount = 4;
    p->l2CacheSize = 1 << 20;
    p->totalGlobalMem = (size_t)1 << 32;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v) {
    *v = device_count < 0 ? 0 : 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = *total = (size_t)1 << 32;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t bytes) {
    for (auto &b : blocks) {
        if (b.p) continue;
        size_t size = (bytes + 4095) & ~(size_t)4095;
        void *m = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return cudaErrorMemoryAllocation;
        if (size < ((size_t)256 << 20)) memset(m, 0xFF, size); // large arenas are mostly never touched
        b.p = (char *)m;
        b.bytes = size;
        mprotect(m, size, PROT_NONE);
        *p = m;
        return cudaSuccess;
    }
    return cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p) {
    for (auto &b : blocks)
        if (p && b.p == p) {
            munmap(b.p, b.bytes);
            b.p = nullptr;
        }
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = aligned_alloc(256, (bytes + 255) & ~(size_t)255);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    static char stream;
    *s = (cudaStream_t)&stream;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
// An event is the time at which it was recorded: work is done when it is issued.
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = (cudaEvent_t)calloc(1, sizeof(timespec));
    return *e ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free((void *)e);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
    clock_gettime(CLOCK_MONOTONIC, (timespec *)e);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    const timespec *a = (const timespec *)from, *b = (const timespec *)to;
    *ms = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) * 1e-6);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind, cudaStream_t) {
    Open open;
    if (bytes) memcpy(dst, src, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t) {
    Open open;
    if (bytes) memset(p, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, enum cudaFuncAttribute, int) {
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) {
    return last_error;
}
const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    default: return "an error of the CUDA runtime";
    }
}
}
