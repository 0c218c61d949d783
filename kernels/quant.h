// quant.h - FP8 quantisation: 1x128 tiles, their transposed form for Wgrad, 128x128 weight blocks.
//
// Bit for bit on every backend: the input is rounded to BF16 first, s = scale of the tile's largest finite
// magnitude (fp8.h), q = e4m3(x / s) with an IEEE division, value = q * s. An all-zero tile has s = 1 and
// codes 0. NaN and infinity become the NaN code, the scale comes from the finite values, and the tile is
// counted. A short last tile has its own scale. DeepSeek-V3 report 3.3.2.
#pragma once
#include "view.h"

// Health counters, in the backend's memory; integers, so that threads and ranks can add them in any order. All are
// added to.
typedef struct QuantCount {
    int64_t values;          // values quantised
    int64_t saturated;       // finite values whose quotient lies above 448 before rounding (scale floor, rounding)
    int64_t underflow;       // non-zero values whose code is zero
    int64_t tiles;           // tiles (or blocks)
    int64_t nonfinite_tiles; // tiles with a NaN or an infinity
} QuantCount;

// quant_tile: row-quantise x in 1x128 tiles along the columns.
//   y [M,K] MatQ tile_rows 1   out: codes and scales (y.st chooses the scale format)
//   x [M,K] f32 or bf16
//   n        added to; may be NULL.  Class EXACT.
//
// quant_tile_t: the same values in 128x1 tiles along the tokens, stored transposed, for Wgrad.
//   y [K,M] MatQ tile_rows 1   out: y(k, m) = code of x(m, k); tiles restart at each group's start (view.h)
//   x [M,K] f32 or bf16
//   g        groups of rows of x (n == 0: one). Rows outside groups are not written.
//
// requant_tile_t: from row-quantised codes to the transposed form: value = code * scale, rounded to BF16
// (exact with power-of-two scales), then as quant_tile_t.
//   y [K,M] MatQ  out
//   x [M,K] MatQ row-quantised
//
// dequant: y = code * scale, rounded to y's type. x may be an activation or (tile_rows 128) one weight.
//   y [M,K] f32 or bf16  out
//
// weight_prepare: quantise nmat stacked weights in 128x128 blocks, each matrix with its own block grid.
//   w nmat x [N,K] MatQ tile_rows 128  out. Memory from weight_bytes/weight_view; nobody else looks inside.
//   x [nmat*N, K] bf16 or f32 (rounded to BF16 first)

// quant_e5m6: x in 12-bit codes with a power-of-two scale per 1x128 tile, packed (base/e5m6.h); the
// input is rounded to BF16 first, NaN and infinity as above.
//   y [M, e5m6_row_bytes(K)] u8  out, padding included
//   x [M,K] f32 or bf16
//   n        added to; may be NULL.  Class EXACT.
// dequant_e5m6: y = code * scale, rounded to y's type (exact in BF16 above its subnormals).
//   y [M,K] f32 or bf16  out;  x [M, e5m6_row_bytes(K)] u8

// weight_bytes: bytes that nmat prepared [N,K] weights need.
size_t weight_bytes(int64_t nmat, int64_t N, int64_t K);
// weight_view: the prepared weights that live at p (weight_bytes bytes, 64-byte aligned).
MatQ weight_view(void *p, int64_t nmat, int64_t N, int64_t K);
