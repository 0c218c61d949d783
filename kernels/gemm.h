// gemm.h - dense matrix products.
//
// Plain products (gemm_*): a, b and y may each be F32 or BF16; products and sums in FP32 over the whole of
// the contraction in a fixed order; `acc`: adds to y (y must be F32), else overwrites (rounded once).
//   gemm_nt: y [M,N] = a [M,K] b [N,K]^T        Fprop
//   gemm_nn: y [M,K] = a [M,N] b [N,K]          Dgrad
//   gemm_tn: y [N,K] = a [M,N]^T b [M,K]        Wgrad
//
// FP8 products (gemm_fp8_*): both operands carry a scale every 128 elements of the contraction. The 128
// products are summed in FP32, multiplied by the product of the two scales and added to an FP32 sum
// (promotion, N_C = 128): y += p * (sa * sb). DeepSeek-V3 report 3.3.2, eq. in Fig. 7.
//   gemm_fp8_fprop: y [M,N] = a [M,K] 1x128     w [N,K] 128x128 (weight_prepare), nmat 1
//   gemm_fp8_dgrad: y [M,K] = a [M,N] 1x128     w [N,K] the same blocks, read transposed
//   gemm_fp8_wgrad: y [N,K] = at [N,M] 1x128 along M,  bt [K,M] 1x128 along M (quant_tile_t)
//   y f32 or bf16; acc needs f32.
// M, N or K of any size >= 0 (an empty contraction gives 0). The number of threads never changes a bit.
// Class LOWP.
#pragma once
#include "view.h"

// gemm_isa: name of the instruction set chosen for this processor: "avx512-bf16", "avx512", "avx2", "portable".
const char *gemm_isa(void);

// gemm_peak: floating-point operations per second that nthreads threads reach here with independent multiply-adds in
// registers, the best instruction set of the processor: FP32, and `half` for FP8 and BF16 products (BF16 dot
// products where they are faster). Takes some 30 ms. Local.
typedef struct GemmPeak {
    double f32, half;
} GemmPeak;
GemmPeak gemm_peak(int nthreads);
