// layer_reference.h - matrices in double for tests of whole layers, and a quantiser of the test's own that scales and
// codes them as any recipe says.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fp8.h"
#include "params.h"

// How a class is scaled and coded, as the test computes it.
typedef struct Scaling {
    enum { TILES, BLOCKS, ROWS, WHOLE, FIXED } what;
    bool is_pow2, is_e5m2;
} Scaling;
static Scaling scaling[CLASS_COUNT];

// FIXED: what calibration is made to have seen: some values lie beyond it.
static const float fixed_amax[CLASS_COUNT] = {
    [CLASS_ACTIVATION] = 1.3f, [CLASS_WEIGHT] = 0.11f, [CLASS_GRADIENT] = 1.7e-3f};

typedef struct Real {
    double *v; // [rows, cols]
    int64_t rows, cols;
    float amax; // of the whole matrix that the rows are of, rounded to BF16
} Real;

static inline Real real_new(int64_t rows, int64_t cols) {
    Real r = {calloc((size_t)(rows * cols) + 1, sizeof *r.v), rows, cols, 0.0f};
    return r;
}
static inline void real_free(Real *r) {
    free(r->v);
    r->v = NULL;
}

// real_mat: rows [r0, r0+n) of a plain matrix. real_codes: of row-quantised codes.
static inline Real real_mat(Mat m, int64_t r0, int64_t n) {
    Real r = real_new(n, m.cols);
    for (int64_t i = 0; i < n * m.cols; i++) {
        const void *at = mat_at(m, r0 + i / m.cols, i % m.cols);
        r.v[i] = m.t == DT_F32 ? (double)*(const float *)at : (double)f32_from_bf16(*(const uint16_t *)at);
    }
    for (int64_t i = 0; m.t == DT_BF16 && i < m.rows * m.cols; i++)
        r.amax = fmaxf(r.amax, fabsf(f32_from_bf16(*(const uint16_t *)mat_at(m, i / m.cols, i % m.cols))));
    return r;
}
static inline float code_value(MatQ m, uint8_t code, int64_t scale_at) {
    float s = m.st == SCALE_F32 ? ((const float *)m.s)[scale_at] : f32_from_e8m0(((const uint8_t *)m.s)[scale_at]);
    return (m.ct == CODE_E5M2 ? f32_from_e5m2(code) : f32_from_e4m3(code)) * s;
}
static inline Real real_codes(MatQ m, int64_t r0, int64_t n) {
    Real r = real_new(n, m.cols);
    for (int64_t i = 0; i < m.rows; i++) {
        for (int64_t c = 0; c < m.cols; c++) {
            float v = code_value(m, m.q[i * m.ld + c], i * m.srow + c / TILE * m.scol);
            r.amax = fmaxf(r.amax, fabsf(bf16_round(v)));
            if (i >= r0 && i < r0 + n) r.v[(i - r0) * m.cols + c] = (double)v;
        }
    }
    return r;
}
// real_weight: matrix e of a prepared weight.
static inline Real real_weight(const Param *p, int64_t e) {
    Real r = real_new(p->rows, p->cols);
    MatQ w = matq_mat(p->q, e);
    for (int64_t i = 0; i < w.rows; i++) {
        for (int64_t c = 0; c < w.cols; c++)
            r.v[i * w.cols + c] = (double)code_value(w, w.q[i * w.ld + c], i / TILE * w.srow + c / TILE * w.scol);
    }
    return r;
}

// coded: v as a code with the scale for amax.
static inline double coded(Scaling how, double v, float amax) {
    float x = bf16_round((float)v);
    if (how.is_e5m2) {
        float s = how.is_pow2 ? f32_from_e8m0(tile_scale_e5m2_e8m0(amax)) : tile_scale_e5m2_f32(amax);
        return (double)(f32_from_e5m2(e5m2_from_f32(x / s)) * s);
    }
    float t = how.is_pow2 ? f32_from_e8m0(tile_scale_e8m0(amax)) : tile_scale_f32(amax);
    return (double)(f32_from_e4m3(e4m3_from_f32(x / t)) * t);
}

// tiles: x through the quantiser, in place. What shares a scale is, for class c: tiles of 128 along the rows (128x1) or
// the columns (1x128), or what the baseline says: blocks of 128 each way, whole columns or rows, all of the matrix that
// x is a part of, a constant. Weights: blocks, or all.
static inline void tiles(Real x, bool along_rows, TensorClass c) {
    Scaling how = scaling[c];
    int64_t outer = along_rows ? x.cols : x.rows, inner = along_rows ? x.rows : x.cols;
    int64_t so = along_rows ? 1 : x.cols, si = along_rows ? x.cols : 1;
    int64_t high = how.what == BLOCKS || (c == CLASS_WEIGHT && how.what == TILES) ? TILE : 1;
    int64_t wide = how.what == ROWS ? inner : TILE;
    for (int64_t o = 0; o < outer; o += high) {
        for (int64_t t = 0; t < inner; t += wide) {
            float amax = how.what == WHOLE ? x.amax : how.what == FIXED ? 2.0f * fixed_amax[c] : 0.0f;
            bool is_own = how.what != WHOLE && how.what != FIXED;
            for (int64_t j = o; is_own && j < min_i64(outer, o + high); j++) {
                for (int64_t i = t; i < min_i64(inner, t + wide); i++)
                    amax = fmaxf(amax, fabsf(bf16_round((float)x.v[j * so + i * si])));
            }
            for (int64_t j = o; j < min_i64(outer, o + high); j++) {
                for (int64_t i = t; i < min_i64(inner, t + wide); i++) {
                    double *v = &x.v[j * so + i * si];
                    *v = coded(how, *v, amax);
                }
            }
        }
    }
}

// product: c [M,N] += a [M,K] b with b [N,K] transposed, or b [K,N].
static inline void product(Real c, Real a, Real b, bool b_transposed) {
    Real t = b_transposed ? real_new(b.cols, b.rows) : b;
    for (int64_t i = 0; b_transposed && i < b.rows * b.cols; i++) t.v[i % b.cols * b.rows + i / b.cols] = b.v[i];
    for (int64_t m = 0; m < c.rows; m++) {
        double *restrict sum = c.v + m * c.cols;
        for (int64_t k = 0; k < a.cols; k++) {
            double v = a.v[m * a.cols + k];
            const double *restrict row = t.v + k * c.cols;
            for (int64_t n = 0; n < c.cols; n++) sum[n] += v * row[n];
        }
    }
    if (b_transposed) real_free(&t);
}

static inline double distance(Real a, Real b) {
    double diff = 0.0, norm = 0.0;
    assert_int_equal(a.rows * a.cols, b.rows * b.cols);
    for (int64_t i = 0; i < a.rows * a.cols; i++) {
        diff += (a.v[i] - b.v[i]) * (a.v[i] - b.v[i]);
        norm += b.v[i] * b.v[i];
    }
    assert_true(norm > 0);
    return sqrt(diff / norm);
}
