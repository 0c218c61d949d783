// gemm_ends.h - what comes before and after the arithmetic of an output tile, whoever computes it:
// the scales of its rows and columns, and the rounding of its sums into the output. Inside kernels/
// only.
#pragma once
#include <string.h>

#include "fp8.h"
#include "gemm_engine.h"

// The at-th scale of an FP8 operand.
static inline float scale_at(const GemmOperand *o, int64_t at) {
    return o->st == SCALE_F32 ? ((const float *)o->s)[at]
                              : f32_from_e8m0(((const uint8_t *)o->s)[at]);
}

// The scales of n outer indices in the slice at k0.
static inline void pack_scales(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0,
                               float *dst) {
    int64_t slice = k0 / TILE * o->s_k;
    if (o->s_tile == 1 && o->s_outer == 1 && o->st == SCALE_E8M0) { // the compiler's vectors
        const uint8_t *s = (const uint8_t *)o->s + outer + slice;
        for (int64_t i = 0; i < n; i++) dst[i] = f32_from_e8m0(s[i]);
        return;
    }
    if (o->s_tile == 1) {
        for (int64_t i = 0; i < n; i++) dst[i] = scale_at(o, (outer + i) * o->s_outer + slice);
        return;
    }
    for (int64_t i = 0; i < n;) {
        int64_t block = (outer + i) / TILE, end = min_i64(n, (block + 1) * TILE - outer);
        float s = scale_at(o, block * o->s_outer + slice);
        while (i < end) dst[i++] = s;
    }
}

// n sums into y(row, col ...): added to it, or rounded once.
static inline void store_row(const GemmProblem *p, int64_t row, int64_t col, int64_t n,
                             const float *c) {
    if (p->y.t == DT_BF16) {
        uint16_t *y = (uint16_t *)p->y.p + row * p->y.ld + col;
        for (int64_t j = 0; j < n; j++) y[j] = bf16_from_f32(c[j]);
        return;
    }
    float *y = (float *)p->y.p + row * p->y.ld + col;
    if (p->acc)
        for (int64_t j = 0; j < n; j++) y[j] += c[j];
    else
        memcpy(y, c, (size_t)n * sizeof *y);
}
