// gemm_cuda.h - the plain tiled GEMM of the CUDA backend: any types, shapes and architectures; the on-device
// reference of the fast ones. Private to kernels/*_cuda.cu.
//
// One kernel does dense and grouped products, as the CPU's engine does: c(i, j) = sum over k of a(i, k) b(j, k), each
// operand in whatever type and orientation it has in memory. See GemmOperand in gemm_engine.h.
#pragma once
#include "device.h"
#include "gemm_engine.h"

// How the token dimension is cut into groups.
typedef enum GemmGroups {
    GEMM_DENSE,       // no groups
    GEMM_ROW_GROUPS,  // rows of a and y; b is stacked (Fprop, Dgrad)
    GEMM_DEPTH_GROUPS // the contraction; y is stacked (Wgrad)
} GemmGroups;

typedef struct GemmCall {
    GemmProblem p;           // m, n, k: of the whole; with row groups m, with depth groups k is that of all groups
    GemmGroups kind;
    Groups g;                // arrays in the memory of the device
    DeviceFault *fault;      // where a group outside of the matrix is reported
    int64_t b_step, bs_step; // elements and scales from one stacked b to the next (row groups)
} GemmCall;

// gemm_cuda_run: launch it. Errors: E_INTERNAL if types or sizes disagree, codes are E5M2 or OpCx asks for a sum that
// only the CPU has (hopper14, other promotion intervals).
Err gemm_cuda_run(OpCx *cx, const char *op, GemmCall call) MUST_CHECK;
// gemm_cuda_plain_codes: FP8 products that this kernel has computed so far; on a GPU with tensor cores for them, in
// training, none.
int64_t gemm_cuda_plain_codes(void);
