// fused.h - producers that quantise what they make while it is in cache.
//
// Each operation is exactly the single operations named, with the same bits and the same counters; what lies between
// them never exists as a whole. All codes are in 1x128 tiles (SCOPE_TILE), transposed ones (Q...t) in 128x1 tiles that
// restart at each group (quant.h); formats are those of the outputs. Matrices between two operations are BF16, which
// changes nothing: the quantiser rounds to BF16 first. DeepSeek-V3 report 3.3.1 to 3.3.3. Class REDUCE.
//
// norm_quant_fwd: y = norm_rms_fwd(x), q = quant_tile(y).
//   q    [T,D] MatQ out;  y [T,D] bf16 out, mat_none() if nobody reads it;  rstd, x, w, eps as in norm.h
//
// swiglu_quant_fwd: h = quant_tile(swiglu_fwd(g, u, gate)), g_kept = quant_tile(g), u_kept = quant_tile(u).
//   h, g_kept, u_kept [M,F] MatQ out;  g, u [M,F] bf16;  gate [M] f32 or NULL
//
// swiglu_quant_bwd: from the kept codes of g and u, which are decoded (dequant):
//   h_t = requant_tile_t(quant_tile(swiglu_fwd(g, u, gate)))   quant_tile in the formats of h_t, uncounted
//   dg, du, dgate = swiglu_bwd(dh, g, u, gate), then dg, dg_t = quant_tile_pair(dg) and du, du_t likewise
//   dg, du       [M,F] MatQ out: for Dgrad. Rows outside groups are unspecified.
//   dg_t, du_t, h_t [F,M] MatQ out: for Wgrad
//   dgate [M] f32 out, NULL if gate is NULL
//   dh [M,F] bf16;  g, u [M,F] MatQ
//   groups       groups of rows (n == 0: one)
//
// All: errors E_INTERNAL (shapes). Local.
#pragma once
#include "quant.h"

// One quantised output: where it goes, and its counters (added to; NULL: uncounted).
typedef struct QuantOut {
    MatQ q;
    QuantCount *n;
} QuantOut;

typedef struct SwigluQuantBwd {
    QuantOut dg, du, dg_t, du_t, h_t;
} SwigluQuantBwd;

// fused_scratch_bytes: upper bound of what one of these operations pushes on the scratch arena, for rows of at most
// `cols` elements.
size_t fused_scratch_bytes(int nthreads, int64_t cols);
