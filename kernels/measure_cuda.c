// measure_cuda.c - events, copies and sizes of the CUDA device that device_cuda_open chose.
#include "measure_cuda.h"

#include <cuda_runtime_api.h>

#include "device.h"

#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t cuda_ = (call);                                                                \
        CHECK(cuda_ == cudaSuccess, E_PEER, "%s: %s", #call, cudaGetErrorString(cuda_));           \
    } while (0)

static cudaEvent_t marks[MEASURE_MARKS]; // made when first used, and kept

static cudaStream_t stream(void) {
    return (cudaStream_t)device_cuda_stream();
}

Err measure_mark(int i) {
    CHECK(i >= 0 && i < MEASURE_MARKS, E_INTERNAL, "mark %d of %d", i, MEASURE_MARKS);
    if (!marks[i]) TRY_CUDA(cudaEventCreateWithFlags(&marks[i], cudaEventDefault));
    TRY_CUDA(cudaEventRecord(marks[i], stream()));
    return OK;
}

Err measure_between(double *seconds, int from, int to) {
    float ms = 0.0f;
    CHECK(from >= 0 && from < MEASURE_MARKS && to >= 0 && to < MEASURE_MARKS && marks[from] && marks[to], E_INTERNAL,
          "no time between marks %d and %d", from, to);
    TRY_CUDA(cudaEventSynchronize(marks[to]));
    TRY_CUDA(cudaEventElapsedTime(&ms, marks[from], marks[to]));
    *seconds = (double)ms * 1e-3;
    return OK;
}

Err measure_copy(void *to, const void *from, size_t bytes) {
    if (bytes) TRY_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()));
    return OK;
}

Err measure_free(size_t *bytes) {
    size_t total = 0;
    TRY_CUDA(cudaMemGetInfo(bytes, &total));
    return OK;
}

Err measure_l2(size_t *bytes) {
    int device = 0;
    struct cudaDeviceProp p;
    TRY_CUDA(cudaGetDevice(&device));
    TRY_CUDA(cudaGetDeviceProperties(&p, device));
    *bytes = (size_t)p.l2CacheSize;
    return OK;
}
