// tma_cuda.h - tensor maps: where a tensor lies and what box of it one copy of TMA moves. They are made anew for every
// launch (on the host, about a microsecond each) and travel as arguments of the kernel. Private to kernels/*_cuda*.
#pragma once
#include <cudaTypedefs.h>

#include "cuda_launch.h"
#include "ptx.h"

// The driver's encoder, found at run time: the program never links libcuda.
static inline Err encoder(PFN_cuTensorMapEncodeTiled_v12000 *fn) {
    static PFN_cuTensorMapEncodeTiled_v12000 known;
    if (!known) {
        void *p = NULL;
        cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
        TRY_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault, &found));
        CHECK(p && found == cudaDriverEntryPointSuccess, E_PEER,
              "this driver has no cuTensorMapEncodeTiled: CUDA 12 or later is needed for Hopper's kernels");
        known = (PFN_cuTensorMapEncodeTiled_v12000)p;
    }
    *fn = known;
    return OK;
}

// A stack of matrices in device memory, as TMA sees it.
typedef struct Stack {
    void *p;
    CUtensorMapDataType type;
    int bytes;                // of an element
    int64_t cols, rows, mats; // a box ends at each
    int64_t ld, step;         // elements from row to row, matrix to matrix
} Stack;

static inline CUtensorMapSwizzle swizzle_of(int width) {
    return width == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
           : width == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                         : CU_TENSOR_MAP_SWIZZLE_32B;
}

// Boxes of `width` bytes x `rows` rows, swizzled over their width.
static inline Err map_stack(TMap *map, Stack s, int width, int rows) {
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    TRY(encoder(&encode));
    cuuint64_t dim[3] = {(cuuint64_t)s.cols, (cuuint64_t)s.rows, (cuuint64_t)s.mats};
    cuuint64_t stride[2] = {(cuuint64_t)(s.ld * s.bytes), (cuuint64_t)(s.step * s.bytes)};
    cuuint32_t box[3] = {(cuuint32_t)(width / s.bytes), (cuuint32_t)rows, 1}, each[3] = {1, 1, 1};
    CUresult r = encode(map, s.type, 3, s.p, dim, stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(width),
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    CHECK(r == CUDA_SUCCESS, E_INTERNAL,
          "cuTensorMapEncodeTiled: error %d for %lld x %lld x %lld elements of %d bytes at %p, rows %lld apart",
          (int)r, (long long)s.mats, (long long)s.rows, (long long)s.cols, s.bytes, s.p, (long long)s.ld);
    return OK;
}

// Whether TMA can move boxes of it.
static inline bool is_regular(Stack s) {
    return (uintptr_t)s.p % 16 == 0 && s.ld * s.bytes % 16 == 0 && (s.mats == 1 || s.step * s.bytes % 16 == 0);
}
