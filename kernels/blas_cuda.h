// blas_cuda.h - dense products of BF16 and FP32 matrices by cuBLASLt.
//
// Contract as gemm.h: products and sums in FP32 (CUBLAS_COMPUTE_32F: no TF32), y rounded once. Where one operand is
// BF16 and the other FP32 (the router's logits and their gradient), the BF16 one is first written as FP32 into scratch,
// so that the product is one of FP32 numbers with FP32 sums. An accumulation is beta = 1 into an FP32 y; the two
// products of a pair go into one FP32 matrix the same way (gemm_cuda.cu).
//
// The library is asked once for each shape (types, sizes, strides, alignments) which algorithm to take, and the answer
// stays for the life of the process; of split sums only those that add their parts in a fixed order are allowed. So a
// call has the same bits every time on one machine and version of the library. Workspace comes from the scratch arena.
// Nothing here waits for the device. Only this file and its source know the library (launch/lint).
#pragma once
#include "ops.h"

typedef enum BlasForm {
    BLAS_NT, // y [M,N] = a [M,K] b [N,K]^T
    BLAS_NN, // y [M,K] = a [M,N] b [N,K]
    BLAS_TN  // y [N,K] = a [M,N]^T b [M,K]
} BlasForm;

// blas_workspace_bytes: what one product pushes on scratch beside an operand in FP32: cuBLAS's recommendation for
// Hopper, 32 MiB, and the distance to a multiple of 256 bytes.
size_t blas_workspace_bytes(void);

// blas_run: compute the product, or say that the plain kernel has to (*is_done false, nothing issued): where
// blas_choose turned the library off, it has no algorithm for the shape, an operand needs FP32 and scratch has no room
// for it, or there is nothing to multiply. Without room for the workspace an algorithm that needs none is taken. Work
// is issued to the device's stream. Errors: E_INTERNAL if shapes or types disagree, E_PEER if the library refuses.
// Local.
Err blas_run(OpCx *cx, bool *is_done, const char *op, BlasForm form, Mat y, Mat a, Mat b, bool acc) MUST_CHECK;

// blas_choose: 1 uses the library, 0 does not, -1 (the start) does. For tests and comparisons.
void blas_choose(int is_on);
// blas_products: products computed by the library so far.
int64_t blas_products(void);
