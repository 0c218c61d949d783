// runtime_on_cpu.cpp - the few functions of the CUDA runtime that host code calls, over host memory.
//
// Linked into the cuda-on-cpu tests instead of libcudart, so that device table and launchers run as they are. Memory
// of the device comes filled with 0xFF and can only be touched by kernels, copies and memset: host code that follows a
// device's pointer ends with a segmentation fault, as it should. One device exists unless runtime_on_cpu_devices says
// otherwise.
#include "simt.h"
#include "streams_on_cpu.h"
#include <cuda.h>
#include <unistd.h>

static int device_count = 1;
static cudaError_t last_error = cudaSuccess;

// Blocks of device memory, without access outside of launches: the device's pointers. Copies, memset and messages
// between ranks reach the same pages through a second mapping.
enum { BLOCKS = 256, PINNED = 64 };
static struct {
    char *p, *alias;
    size_t bytes, room; // with memory behind them; of the mapping
} blocks[BLOCKS];
static size_t memory_left = (size_t)1 << 32; // of the device
static struct {
    char *p;
    size_t bytes;
} pinned[PINNED];
static void device_memory(bool is_open) {
    for (auto &b : blocks)
        if (b.p) mprotect(b.p, b.bytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
}
char *runtime_alias(const void *p, size_t bytes) {
    for (auto &b : blocks)
        if (b.p && (char *)p >= b.p && (char *)p + bytes <= b.p + b.bytes) return b.alias + ((char *)p - b.p);
    return nullptr;
}
// Memory as the runtime reaches it; other pointers are the host's, or end the program as they should.
static void *reach(const void *p, size_t bytes) {
    char *alias = runtime_alias(p, bytes);
    return alias ? alias : (void *)p;
}
static bool is_pinned(const void *p, size_t bytes) {
    for (auto &b : pinned)
        if (b.p && (char *)p >= b.p && (char *)p + bytes <= b.p + b.bytes) return true;
    return false;
}
static void on_stream(void *stream, const std::function<void()> &f) {
    streams::run((cudaStream_t)stream, f);
}
static char place[32];

// Programs that never choose a schedule run their launches in turn under all four.
__attribute__((constructor)) static void rotate() {
    simt::schedule(-1, 1);
    simt::device_memory = device_memory;
    simt::on_stream = on_stream;
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
// runtime_on_cpu_place: the GPU of this process, for cudaDeviceGetPCIBusId; "": one that no other process has.
void runtime_on_cpu_place(const char *name) {
    snprintf(place, sizeof place, "%s", name);
}
// runtime_on_cpu_blocks: calls so far in which the host waited for the device, however short.
uint64_t runtime_on_cpu_blocks(void) {
    return streams::blocking_calls;
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
    *free_bytes = memory_left;
    *total = (size_t)1 << 32;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int n, int device) {
    // Processes have a GPU each unless runtime_on_cpu_place says otherwise.
    if (place[0]) snprintf(text, (size_t)n, "%s:%d", place, device);
    else snprintf(text, (size_t)n, "%d:%d", (int)getpid(), device);
    return cudaSuccess;
}
// map_block: addresses, twice, without access for the host through the first.
static bool map_block(void **out, size_t size, size_t bytes) {
    for (auto &b : blocks) {
        if (b.p) continue;
        int fd = memfd_create("device", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, (off_t)size) != 0) return false;
        void *m = mmap(nullptr, size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        void *alias = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        close(fd);
        if (m == MAP_FAILED || alias == MAP_FAILED) return false;
        b.p = (char *)m;
        b.alias = (char *)alias;
        b.bytes = bytes;
        b.room = size;
        *out = m;
        return true;
    }
    return false;
}
static void poison(char *alias, size_t bytes) {
    if (bytes < ((size_t)256 << 20)) memset(alias, 0xFF, bytes); // large blocks are mostly never touched
}
cudaError_t cudaMalloc(void **p, size_t bytes) {
    size_t size = (bytes + 4095) & ~(size_t)4095;
    if (size > memory_left || !map_block(p, size, size)) return cudaErrorMemoryAllocation;
    memory_left -= size;
    poison(runtime_alias(*p, size), size);
    return cudaSuccess;
}
static bool unmap_block(void *p) {
    for (auto &b : blocks)
        if (p && b.p == p) {
            munmap(b.p, b.room);
            munmap(b.alias, b.room);
            memory_left += b.bytes;
            b.p = nullptr;
            return true;
        }
    return false;
}
cudaError_t cudaFree(void *p) {
    streams::finish_all();
    unmap_block(p);
    return cudaSuccess;
}

// The driver's calls for addresses that get their memory later.
static CUresult mem_granularity(size_t *bytes, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) {
    *bytes = (size_t)2 << 20;
    return CUDA_SUCCESS;
}
static CUresult mem_reserve(CUdeviceptr *p, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    return bytes % ((size_t)2 << 20) == 0 && map_block((void **)p, bytes, 0) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
static CUresult mem_create(CUmemGenericAllocationHandle *h, size_t bytes, const CUmemAllocationProp *, unsigned long long) {
    if (bytes == 0 || bytes % ((size_t)2 << 20)) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > memory_left) return CUDA_ERROR_OUT_OF_MEMORY;
    *h = bytes;
    return CUDA_SUCCESS;
}
static CUresult mem_map(CUdeviceptr p, size_t bytes, size_t, CUmemGenericAllocationHandle h, unsigned long long) {
    for (auto &b : blocks)
        if (b.p && (CUdeviceptr)b.p + b.bytes == p && h == bytes && b.bytes + bytes <= b.room) return CUDA_SUCCESS;
    return CUDA_ERROR_INVALID_VALUE;
}
static CUresult mem_access(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *d, size_t n) {
    for (auto &b : blocks)
        if (b.p && (CUdeviceptr)b.p + b.bytes == p && n == 1 && d->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
            poison(b.alias + b.bytes, bytes);
            b.bytes += bytes;
            memory_left -= bytes;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}
static CUresult mem_release(CUmemGenericAllocationHandle) {
    return CUDA_SUCCESS;
}
static CUresult mem_unmap(CUdeviceptr p, size_t bytes) {
    for (auto &b : blocks)
        if (b.p == (char *)p && b.bytes == bytes) return CUDA_SUCCESS;
    return CUDA_ERROR_INVALID_VALUE;
}
static CUresult mem_give_back(CUdeviceptr p, size_t bytes) {
    for (auto &b : blocks)
        if (b.p == (char *)p && b.room == bytes) return unmap_block(b.p) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    return CUDA_ERROR_INVALID_VALUE;
}
static bool has_spaces = true;
// runtime_on_cpu_memory: what the device has left, and whether its addresses can get their memory later.
size_t runtime_on_cpu_memory(void) {
    return memory_left;
}
void runtime_on_cpu_limit(size_t bytes, int spaces) {
    memory_left = bytes;
    has_spaces = spaces != 0;
}
void *runtime_driver(const char *name) {
    static const struct {
        const char *name;
        void *fn;
    } calls[] = {{"cuMemGetAllocationGranularity", (void *)mem_granularity}, {"cuMemAddressReserve", (void *)mem_reserve},
                 {"cuMemCreate", (void *)mem_create}, {"cuMemMap", (void *)mem_map}, {"cuMemSetAccess", (void *)mem_access},
                 {"cuMemRelease", (void *)mem_release}, {"cuMemUnmap", (void *)mem_unmap},
                 {"cuMemAddressFree", (void *)mem_give_back}};
    for (auto &c : calls)
        if (has_spaces && strcmp(c.name, name) == 0) return c.fn;
    return nullptr;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    for (auto &b : pinned) {
        if (b.p) continue;
        *p = aligned_alloc(256, (bytes + 255) & ~(size_t)255);
        b.p = (char *)*p;
        b.bytes = bytes;
        return *p ? cudaSuccess : cudaErrorMemoryAllocation;
    }
    return cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *p) {
    for (auto &b : pinned)
        if (p && b.p == p) b.p = nullptr;
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    const void *host = kind == cudaMemcpyDeviceToHost ? dst : kind == cudaMemcpyHostToDevice ? src : nullptr;
    bool is_blocking = host && bytes && !is_pinned(host, bytes); // the host waits for copies of pageable memory
    streams::run(stream, [=] {
        if (bytes) memcpy(reach(dst, bytes), reach(src, bytes), bytes);
    });
    return is_blocking ? cudaStreamSynchronize(stream) : cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    streams::run(stream, [=] {
        if (bytes) memset(reach(p, bytes), value, bytes);
    });
    return cudaSuccess;
}
// runtime_on_cpu_shared: the most shared memory that a block of this device can have; 0: Hopper's, as at the start.
void runtime_on_cpu_shared(size_t bytes) {
    simt::most_shared = bytes ? bytes : simt::DYN_LIMIT;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute what, int bytes) {
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize || bytes < 0 || (size_t)bytes > simt::most_shared)
        return last_error = cudaErrorInvalidValue;
    simt::asked[kernel] = (size_t)bytes;
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
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    default: return "an error of the CUDA runtime";
    }
}
}
