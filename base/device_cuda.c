// device_cuda.c - one GPU as the device of this rank: its memory, its stream, and copies through pinned memory.
//
// Everything runs on one stream, so operations and copies follow each other in the order they were issued. Host
// memory of callers is pageable: copies go piece by piece through two pinned buffers, one being filled while the
// other is on its way.
#include <cuda_runtime_api.h>
#include <string.h>

#include "device.h"

#define PIECE ((size_t)4 << 20) // bytes of one pinned buffer

#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t cuda_ = (call);                                                                \
        CHECK(cuda_ == cudaSuccess, E_PEER, "%s: %s", #call, cudaGetErrorString(cuda_));           \
    } while (0)

static struct {
    bool is_open;
    cudaStream_t stream;
    char *pinned[2];
    cudaEvent_t sent[2]; // the copy that last used the buffer
    DeviceFault *fault;  // memory of the device
    DeviceFault *seen;   // its copy, pinned
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

// Wait for the stream, and return what kernels have reported, once.
static Err settle(void) {
    TRY_CUDA(cudaMemcpyAsync(gpu.seen, gpu.fault, sizeof *gpu.seen, cudaMemcpyDeviceToHost, gpu.stream));
    TRY_CUDA(cudaStreamSynchronize(gpu.stream));
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

static Err cuda_to_host(void *host, const void *dev, size_t bytes) {
    size_t npieces = (bytes + PIECE - 1) / PIECE;
    for (size_t i = 0; i < npieces + 1; i++) {
        // Piece i is sent while piece i-1 is taken out of its buffer.
        if (i < npieces) {
            size_t n = bytes - i * PIECE < PIECE ? bytes - i * PIECE : PIECE;
            TRY_CUDA(cudaMemcpyAsync(gpu.pinned[i % 2], (const char *)dev + i * PIECE, n, cudaMemcpyDeviceToHost,
                                     gpu.stream));
            TRY_CUDA(cudaEventRecord(gpu.sent[i % 2], gpu.stream));
        }
        if (i > 0) {
            size_t at = (i - 1) * PIECE, n = bytes - at < PIECE ? bytes - at : PIECE;
            TRY_CUDA(cudaEventSynchronize(gpu.sent[(i - 1) % 2]));
            memcpy((char *)host + at, gpu.pinned[(i - 1) % 2], n);
        }
    }
    TRY(settle());
    return OK;
}

static Err cuda_to_device(void *dev, const void *host, size_t bytes) {
    for (size_t i = 0, at = 0; at < bytes; i++, at += PIECE) {
        size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        TRY_CUDA(cudaEventSynchronize(gpu.sent[i % 2]));
        memcpy(gpu.pinned[i % 2], (const char *)host + at, n);
        TRY_CUDA(cudaMemcpyAsync((char *)dev + at, gpu.pinned[i % 2], n, cudaMemcpyHostToDevice, gpu.stream));
        TRY_CUDA(cudaEventRecord(gpu.sent[i % 2], gpu.stream));
    }
    TRY(settle());
    return OK;
}

static Err cuda_zero(void *dev, size_t bytes) {
    if (bytes) TRY_CUDA(cudaMemsetAsync(dev, 0, bytes, gpu.stream));
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

static void cuda_release(void *p) {
    if (p) cudaFree(p);
}

static const Device device = {"cuda", cuda_to_host, cuda_to_device, cuda_zero, cuda_sync, cuda_alloc, cuda_release};

static Err open_gpu(int local_rank) {
    DeviceInfo info;
    device_cuda_info(&info);
    CHECK(info.count > 0, E_PEER, "no CUDA device can be used here: %s; --device cpu computes on the processor",
          info.why);
    TRY_CUDA(cudaSetDevice(local_rank % info.count));
    TRY_CUDA(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaMalloc((void **)&gpu.fault, sizeof *gpu.fault));
    TRY_CUDA(cudaMemsetAsync(gpu.fault, 0, sizeof *gpu.fault, gpu.stream));
    TRY_CUDA(cudaMallocHost((void **)&gpu.seen, sizeof *gpu.seen));
    for (int i = 0; i < 2; i++) {
        TRY_CUDA(cudaMallocHost((void **)&gpu.pinned[i], PIECE));
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
    if (gpu.fault) cudaFree(gpu.fault);
    if (gpu.seen) cudaFreeHost(gpu.seen);
    if (gpu.stream) cudaStreamDestroy(gpu.stream);
    memset(&gpu, 0, sizeof gpu);
}

void *device_cuda_stream(void) {
    return gpu.stream;
}

DeviceFault *device_cuda_fault(void) {
    return gpu.fault;
}
