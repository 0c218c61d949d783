// ggemm.h - grouped matrix products: one product per expert, experts' rows contiguous.
//
// Group e uses rows [start[e], start[e]+count[e]) of the token matrices and the e-th stacked weight. A group
// without rows does nothing (its Wgrad adds exactly 0, or writes 0 without `acc`). Rows outside groups are
// neither read nor written. Arithmetic as in gemm.h. L = g.n groups.
//   ggemm_nt:  y [R,N] = a [R,K] b_e^T,   b [L*N,K] stacked
//   ggemm_nn:  y [R,K] = a [R,N] b_e,     b [L*N,K] stacked
//   ggemm_tn:  y_e [N,K] = a_e [.,N]^T b_e [.,K],  y [L*N,K] stacked, a [R,N], b [R,K]
//   ggemm_fp8_fprop: y [R,N] = a [R,K] 1x128,  w L x [N,K] 128x128
//   ggemm_fp8_dgrad: y [R,K] = a [R,N] 1x128,  w the same blocks, read transposed
//   ggemm_fp8_wgrad: y_e [N,K] = at [N,R], bt [K,R]; y [L*N,K] stacked; tiles restart per group (view.h)
//   ggemm_nn_pair, ggemm_fp8_dgrad_pair: pairs as in gemm.h, per group; room f32 like y; rows of y outside
//                    groups are unspecified
// Work is spread over experts and tiles together, so that many small groups keep all threads busy.
#pragma once
#include "view.h"
