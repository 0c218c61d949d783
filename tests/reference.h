// reference.h - what every test of a kernel family needs: matrices with odd leading dimensions,
// double copies, derivatives by central differences, and comparison by derived bounds.
//
// Matrices made here have `pad` columns between rows, filled with 0xFF (NaN); ref_pads() checks
// that nobody wrote there. Bounds: an operation of class REDUCE may be off by a few FP32 roundings
// of the magnitudes it summed (the test computes that magnitude in double) plus half a unit of the
// stored type.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fp8.h"
#include "must.h"
#include "ops.h"
#include "rng.h"

#define U32 5.9604644775390625e-8 // 2^-24, half a unit in the last place of FP32
#define UBF 0.00390625            // 2^-8, the same of BF16

static uint64_t ref_seed = 1;

static inline Mat ref_mat(DType t, int64_t rows, int64_t cols, int64_t pad) {
    Mat m = mat(NULL, t, rows, cols);
    m.ld = cols + pad;
    size_t bytes = (size_t)(rows * m.ld + 1) * dtype_bytes(t);
    m.p = malloc(bytes);
    assert_non_null(m.p);
    memset(m.p, 0xFF, bytes);
    return m;
}
static inline size_t ref_bytes(Mat m) {
    return (size_t)(m.rows * m.ld) * dtype_bytes(m.t);
}
static inline Mat ref_clone(Mat m) {
    Mat c = ref_mat(m.t, m.rows, m.cols, m.ld - m.cols);
    memcpy(c.p, m.p, ref_bytes(m));
    return c;
}
static inline double ref_at(Mat m, int64_t r, int64_t c) {
    const void *p = mat_at(m, r, c);
    return m.t == DT_F32 ? (double)*(const float *)p : (double)f32_from_bf16(*(const uint16_t *)p);
}
static inline void ref_set(Mat m, int64_t r, int64_t c, double v) {
    if (m.t == DT_F32)
        *(float *)mat_at(m, r, c) = (float)v;
    else
        *(uint16_t *)mat_at(m, r, c) = bf16_from_f32((float)v);
}
// ref_fill: N(0, scale^2), a new stream at each call.
static inline void ref_fill(Mat m, double scale) {
    uint64_t stream = ref_seed++;
    for (int64_t r = 0; r < m.rows; r++)
        for (int64_t c = 0; c < m.cols; c++)
            ref_set(m, r, c, scale * rng_normal(7, stream, (uint64_t)(r * m.cols + c)));
}
static inline Mat ref_random(DType t, int64_t rows, int64_t cols, int64_t pad, double scale) {
    Mat m = ref_mat(t, rows, cols, pad);
    ref_fill(m, scale);
    return m;
}
// ref_double: a dense double copy [rows, cols].
static inline double *ref_double(Mat m) {
    double *d = calloc((size_t)(m.rows * m.cols) + 1, sizeof *d);
    assert_non_null(d);
    for (int64_t r = 0; r < m.rows; r++)
        for (int64_t c = 0; c < m.cols; c++) d[r * m.cols + c] = ref_at(m, r, c);
    return d;
}
static inline double *ref_zeros(int64_t n) {
    double *d = calloc((size_t)n + 1, sizeof *d);
    assert_non_null(d);
    return d;
}
// ref_pads: the columns between rows are as ref_mat left them.
static inline void ref_pads(Mat m, const char *what) {
    for (int64_t r = 0; r < m.rows; r++) {
        const uint8_t *p = (const uint8_t *)m.p + (size_t)(r * m.ld + m.cols) * dtype_bytes(m.t);
        for (size_t i = 0; i < (size_t)(m.ld - m.cols) * dtype_bytes(m.t); i++)
            if (p[i] != 0xFF)
                fail_msg("%s: padding after row %lld was written", what, (long long)r);
    }
}
// ref_same: the same bits (padding included).
static inline void ref_same(Mat a, Mat b, const char *what) {
    assert_true(a.t == b.t && a.rows == b.rows && a.ld == b.ld);
    if (memcmp(a.p, b.p, ref_bytes(a)) != 0) fail_msg("%s: bits differ", what);
}
static inline void ref_near(double got, double want, double tol, const char *what, int64_t r,
                            int64_t c) {
    if (!(fabs(got - want) <= tol))
        fail_msg("%s (%lld, %lld): got %.9g, expected %.9g, off by %.3g, allowed %.3g", what,
                 (long long)r, (long long)c, got, want, fabs(got - want), tol);
}
// ref_unit: relative rounding of the stored type.
static inline double ref_unit(DType t) {
    return t == DT_BF16 ? UBF : U32;
}

// ref_cx: a context with poisoned scratch. One arena for the whole program.
static inline OpCx ref_cx(int nthreads) {
    static Arena *scratch;
    if (!scratch) {
        MUST_OK(arena_create(&scratch, "scratch", (size_t)1 << 30, false));
        arena_poison(true);
    }
    assert_int_equal(arena_mark(scratch), 0); // every operation released what it took
    OpCx cx = {scratch, nthreads};
    return cx;
}

// ref_slope: d loss / d x by a five-point central difference; x points into ctx's doubles.
typedef double (*RefLoss)(void *ctx);
static inline double ref_slope(RefLoss loss, void *ctx, double *x) {
    double x0 = *x, h = 1e-3 * (fabs(x0) > 1.0 ? fabs(x0) : 1.0), f[4];
    static const double at[4] = {1, -1, 2, -2};
    for (int i = 0; i < 4; i++) {
        *x = x0 + at[i] * h;
        f[i] = loss(ctx);
    }
    *x = x0;
    return (8.0 * (f[0] - f[1]) - (f[2] - f[3])) / (12.0 * h);
}
// ref_pick: the i-th of `samples` indices spread over n in a scrambled order (all of them if n <=
// samples).
static inline int64_t ref_pick(int64_t i, int64_t samples, int64_t n) {
    if (n <= samples) return i;
    return (int64_t)(philox(99, (uint64_t)n, (uint64_t)i).v[0] % (uint64_t)n);
}
