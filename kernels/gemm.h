// gemm.h - dense matrix products.
//
// Plain products (gemm_*): a, b and y may each be F32 or BF16; products and sums in FP32 over the
// whole of the contraction in a fixed order; `acc`: adds to y (y must be F32), else overwrites
// (rounded once).
//   gemm_nt: y [M,N] = a [M,K] b [N,K]^T        Fprop
//   gemm_nn: y [M,K] = a [M,N] b [N,K]          Dgrad
//   gemm_tn: y [N,K] = a [M,N]^T b [M,K]        Wgrad
//
// FP8 products (gemm_fp8_*): either operand has codes of either format (E4M3 and E5M2 may meet) and
// a scale every 128 elements of the contraction, in FP32 or as a power of two, and sa * sb, rounded
// to FP32, is the scale of a product. How the products are summed is OpCx.accumulate; see
// GemmAccumulate below.
//   gemm_fp8_fprop: y [M,N] = a [M,K] 1x128     w [N,K] 128x128 (weight_prepare), nmat 1
//   gemm_fp8_dgrad: y [M,K] = a [M,N] 1x128     w [N,K] the same blocks, read transposed
//   gemm_fp8_wgrad: y [N,K] = at [N,M] 1x128 along M,  bt [K,M] 1x128 along M (quant_tile_t)
//   y f32 or bf16; acc needs f32.
// Pairs: the sum of two products in one FP32 accumulator, rounded once:
//   gemm_nn_pair:        y [M,K] = a [M,N] b [N,K] + a2 [M,N2] b2 [N2,K]
//   gemm_fp8_dgrad_pair: the same as gemm_fp8_dgrad, N and N2 > 0
//   room f32 [M,K]: a backend may put the first sum there
// M, N or K of any size >= 0 (an empty contraction gives 0). The number of threads never changes a
// bit. Errors: E_INTERNAL if shapes disagree or OpCx asks for a sum that there is not. Class LOWP.
#pragma once
#include "view.h"

// How FP8 products are summed along the contraction (OpCx.accumulate): DeepSeek-V3 report 3.3.2,
// Fig. 7 (b), and 3.5.2. p = a * b is the product of two codes, exact in FP32; s = sa * sb. N_C is
// OpCx.promote_every, 0 = 128.
//
// GEMM_PROMOTE128: p is summed in FP32 over N_C elements, then the sum is multiplied by s and added
// to an FP32
//   total (promotion on the CUDA cores): y += (sum p) * s. With N_C = 128 the order inside the 128
//   is free and the instruction set's own, with any other N_C it is that of k, each step rounded.
// GEMM_FP32: one FP32 sum over the whole contraction in the order of k: y += p * s, both roundings
// to nearest. GEMM_HOPPER14: what the tensor cores of Hopper keep of a sum: 14 bits. For every 32
// elements, counted from the
//   start of the contraction, e = the largest exponent among the 32 values p * s (rounded to FP32)
//   and the running sum; each of the 33 is cut toward zero to a multiple of 2^(e-13), and their
//   exact sum is the new running sum. e is at least -113, so that no unit is below the smallest
//   normal number.
// GEMM_PROMOTE128_HOPPER14: the same for p without scales over N_C elements from a sum of zero,
// then promoted as in
//   GEMM_PROMOTE128.
//
// N_C is a multiple of 32; GEMM_FP32 and GEMM_HOPPER14 have none. An N_C that does not divide 128
// joins elements of different scales: p * s is summed, and the sum promoted as it is. With powers
// of two both ways give the same bits as long as nothing underflows. A value p * s that is not
// finite makes a 14-bit sum NaN.
typedef enum GemmAccumulate {
    GEMM_PROMOTE128,
    GEMM_FP32,
    GEMM_HOPPER14,
    GEMM_PROMOTE128_HOPPER14,
} GemmAccumulate;

// gemm_isa: name of the instruction set chosen for this processor: "amx", "avx512-bf16", "avx512",
// "avx2", "portable".
const char *gemm_isa(void);

// gemm_peak: floating-point operations per second that nthreads threads reach here with independent
// multiply-adds in registers, the best instruction set of the processor: FP32, and `half` for FP8
// and BF16 products (BF16 dot products where they are faster). Takes some 30 ms. Local.
typedef struct GemmPeak {
    double f32, half;
} GemmPeak;
GemmPeak gemm_peak(int nthreads);
