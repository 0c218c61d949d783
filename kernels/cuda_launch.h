// cuda_launch.h - what every .cu file of this folder starts with: the CUDA runtime, or its stand-in on the CPU.
//
// nvcc sees the runtime; g++ sees tests/cuda/simt.h, which runs the same kernels as fibers. Shared memory is declared
// with SMEM and DYN_SMEM and kernels are started with LAUNCH, so that one text serves both. The C headers of the
// project come in with C linkage.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define LAUNCH(k, grid, block, smem, stream, ...) k<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__)
#define DYN_SMEM(T, name)                                                                          \
    extern __shared__ __align__(1024) unsigned char name##_raw[];                                  \
    T *name = reinterpret_cast<T *>(name##_raw)
#define SMEM(T, name, ...) __shared__ T name __VA_ARGS__
#define UNROLL_4 _Pragma("unroll 4") // before a loop: no more copies of its body than that
#define UNROLL _Pragma("unroll")     // all of them: for loops over what lies in registers
#else
#include "simt.h"
#define UNROLL_4
#define UNROLL
#endif

extern "C" {
#include "device.h"
#include "ops.h"
}

// device_major: the first number of this device's compute capability, -1 if nothing says it.
static inline int device_major(void) {
    int device = 0, major = 0;
    bool is_known = cudaGetDevice(&device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
    return is_known ? major : -1;
}

// is_hopper: a device of this compute capability (its first number) runs Hopper's own instructions, and this program
// has them: only code of sm_90a does (meson.build); kernels that use them trap in any other.
static inline bool is_hopper(int major) {
#if !defined(__CUDACC__) || defined(WITH_SM90A)
    return major == 9;
#else
    (void)major;
    return false;
#endif
}

// The stream all operations run on: held by the device (device_cuda.c).
extern "C" void *device_cuda_stream(void);
#define STREAM ((cudaStream_t)device_cuda_stream())

// TRY_CUDA: a call of the runtime. CHECK_LAUNCH: after a LAUNCH, whether the kernel could be started.
#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t cuda_ = (call);                                                                \
        CHECK(cuda_ == cudaSuccess, E_PEER, "%s: %s", #call, cudaGetErrorString(cuda_));           \
    } while (0)
#define CHECK_LAUNCH(op)                                                                           \
    do {                                                                                           \
        cudaError_t cuda_ = cudaPeekAtLastError();                                                 \
        CHECK(cuda_ == cudaSuccess, E_PEER, "%s: the kernel could not be started: %s", op,         \
              cudaGetErrorString(cuda_));                                                          \
    } while (0)
