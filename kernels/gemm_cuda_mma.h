// gemm_cuda_mma.h - products on the tensor cores of any GPU from compute capability 8.0 on: BF16 x BF16, dense (where
// cuBLASLt does not take them) and grouped, and FP8 x FP8 where the kernels of Hopper (gemm_cuda_sm90.h) do not run.
// Private to kernels/*_cuda*.
//
// Arithmetic: products exact, sums of 16 in the tensor core, FP32 between them; FP8 as GEMM_PROMOTE128: the codes
// become BF16, exactly, and the sum of each 128 is multiplied by its scales in FP32.
#pragma once
#include "gemm_cuda.h"

// gemm_mma_takes: both operands BF16, or both E4M3 with promotion every 128, and gemm_mma_choose did not turn them off.
bool gemm_mma_takes(const GemmCall *c, bool is_promoted);
// gemm_mma_run: launch it; sizes and types are checked by gemm_cuda_run.
Err gemm_mma_run(const char *op, GemmCall c) MUST_CHECK;
// gemm_mma_choose: 0 leaves all products to the plain kernel. For tests and comparisons; on at the start.
void gemm_mma_choose(int is_on);
int64_t gemm_mma_products(void); // so far
