// quant.h - FP8 quantisation: 1x128 tiles, their transposed form for Wgrad, 128x128 weight blocks, and the
// coarser scalings of the literature to compare with.
//
// Bit for bit on every backend: the input is rounded to BF16 first, s = scale of the largest finite
// magnitude of what shares it (fp8.h), q = code of x / s with an IEEE division, value = q * s. What shares a
// scale and is all zero has s = 1 and codes 0. NaN and infinity become the NaN code, the scale comes from
// the finite values, and the tile is counted. A short last tile has its own scale. DeepSeek-V3 report 3.3.2.
#pragma once
#include "view.h"

// Which elements share one scale. Whatever it is, every tile has its scale in memory (view.h): a coarser
// scope writes the same scale into all tiles it covers, so that products and exchanges need not know it.
typedef enum QuantScope {
    SCOPE_TILE,   // 1x128 tiles (weights: 128x128 blocks): the framework's own
    SCOPE_BLOCK,  // 128x128 blocks of the matrix being coded (y), whose rows start at 0, columns at each group
    SCOPE_ROW,    // a row of y: a token; in the transposed form a channel, for each group by itself
    SCOPE_TENSOR, // the whole matrix; in the transposed form all rows inside groups
    SCOPE_STATIC  // a scale fixed beforehand: that of rule.amax; what lies beyond saturates and is counted
} QuantScope;

// How an operation scales; zero = 1x128 tiles. The format of the scales is y.st, that of the codes y.ct.
typedef struct QuantRule {
    QuantScope scope;
    float amax; // SCOPE_STATIC: finite, >= 0 (0: s = 1)
} QuantRule;

// Bins of the histogram of scales: bin i counts 2^(SCALE_BIN_LOW + i) <= s < twice that; the first and the
// last bin hold what lies beyond them too.
enum { SCALE_BINS = 64, SCALE_BIN_LOW = -56 };

// Health counters, in the backend's memory; integers, so that threads and ranks can merge them in any order.
// All are added to, but amax_bits, which is the larger one. Tiles are those of memory, whatever shares their
// scale.
typedef struct QuantCount {
    int64_t values;             // values quantised
    int64_t saturated;          // finite values whose quotient lies above 448 (E5M2: 57344) before rounding (a
                                // rounding or the floor of the scale; a static scale)
    int64_t underflow;          // non-zero values whose code is zero
    int64_t tiles;              // tiles (or blocks)
    int64_t nonfinite_tiles;    // tiles with a NaN or an infinity
    int64_t scales[SCALE_BINS]; // scales of the tiles that hold a finite value other than zero
    int32_t amax_bits;          // largest finite magnitude (rounded to BF16), the bits of the float
} QuantCount;

// quant_count_add: merge `from` into `to`. Local.
void quant_count_add(QuantCount *to, const QuantCount *from);
// quant_count_scale_quantile: the scale (a power of two, the lower end of its bin) that the share q of the
// counted scales does not exceed: q = 0 the smallest, 0.5 the median, 1 the largest. 0 if none was counted.
double quant_count_scale_quantile(const QuantCount *count, double q);

// quant_tile: row-quantise x in 1x128 tiles along the columns.
//   y [M,K] MatQ tile_rows 1   out: codes and scales (y.st: format of the scales, y.ct: of the codes)
//   x [M,K] f32 or bf16
//   rule     what shares a scale
//   n        added to; may be NULL.  Class EXACT.
//
// quant_tile_t: the same values in 128x1 tiles along the tokens, stored transposed, for Wgrad.
//   y [K,M] MatQ tile_rows 1   out: y(k, m) = code of x(m, k); tiles restart at each group's start (view.h)
//   x [M,K] f32 or bf16
//   g        groups of rows of x (n == 0: one). Rows outside groups are neither read nor written.
//
// quant_tile_pair: quant_tile(y, x, rule, n) and quant_tile_t(yt, x, g, rule_t, n_t) together, the same bits and
// counters; all rows of x go into y, those inside groups into yt. Class EXACT.
//   y [M,K], yt [K,M] MatQ tile_rows 1  out: each with its own formats
//   n, n_t   added to; may be NULL, may be the same
//
// requant_tile_t: from row-quantised codes to the transposed form: value = code * scale, rounded to BF16
// (exact with power-of-two scales), then as quant_tile_t.
//   y [K,M] MatQ  out
//   x [M,K] MatQ row-quantised; its formats may differ from y's
//
// dequant: y = code * scale, rounded to y's type. x may be an activation or (tile_rows 128) one weight.
//   y [M,K] f32 or bf16  out
//
// weight_prepare: quantise nmat stacked weights in 128x128 blocks, each matrix with its own block grid.
//   w nmat x [N,K] MatQ tile_rows 128  out. Memory from weight_bytes/weight_view; read by products and by exports.
//   x [nmat*N, K] bf16 or f32 (rounded to BF16 first)
//   rule     TILE and BLOCK are 128x128; ROW and TENSOR each matrix: the same codes serve Fprop and Dgrad,
//            so that no scale per output channel could be taken out of both sums
//
// All: errors E_INTERNAL (shapes, groups, a rule that is none; on the CUDA backend also a scope other than
// SCOPE_TILE and codes other than E4M3, which it does not have). Local.

// quant_e5m6: x in 12-bit codes with a power-of-two scale per 1x128 tile, packed (base/e5m6.h); the
// input is rounded to BF16 first, NaN and infinity as above.
//   y [M, e5m6_row_bytes(K)] u8  out, padding included
//   x [M,K] f32 or bf16
//   n        added to; may be NULL.  Class EXACT.
// dequant_e5m6: y = code * scale, rounded to y's type (exact in BF16 above its subnormals).
//   y [M,K] f32 or bf16  out;  x [M, e5m6_row_bytes(K)] u8

// weight_bytes: bytes that nmat prepared [N,K] weights need.
size_t weight_bytes(int64_t nmat, int64_t N, int64_t K, ScaleType st);
// weight_view: the prepared weights (E4M3) that live at p (weight_bytes bytes, 64-byte aligned).
MatQ weight_view(void *p, int64_t nmat, int64_t N, int64_t K, ScaleType st);
