// gemm_reference.h - operands for the tests of matrix products, and what the product should be.
//
// An operand is made with its value of every (outer, k) in double, so that one plain triple loop is
// the reference of all products. Memory between rows (ld > cols) is NaN: reading it shows in the
// result.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fp8.h"
#include "gemm_engine.h"

static uint32_t ref_seed = 1;
static inline uint32_t ref_word(void) {
    ref_seed = ref_seed * 1664525u + 1013904223u;
    return ref_seed >> 4 ^ ref_seed << 11;
}
static inline float ref_float(void) {
    return (float)(int32_t)ref_word() / 2147483648.0f;
}

// A plain matrix with NaN between its rows; value[r * cols + c] = its elements.
static inline Mat ref_mat(DType t, int64_t rows, int64_t cols, double **value) {
    Mat m = {NULL, t, rows, cols, cols + 5};
    m.p = malloc((size_t)(rows * m.ld + 1) * dtype_bytes(t));
    memset(m.p, 0xFF, (size_t)(rows * m.ld + 1) * dtype_bytes(t));
    *value = malloc((size_t)(rows * cols + 1) * sizeof **value);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            float v = t == DT_BF16 ? bf16_round(ref_float()) : ref_float();
            if (t == DT_F32)
                *(float *)mat_at(m, r, c) = v;
            else
                *(uint16_t *)mat_at(m, r, c) = bf16_from_f32(v);
            (*value)[r * cols + c] = (double)v;
        }
    return m;
}

// Random codes and scales. tiles = columns of tiles; scales of [tile_rows x 128] tiles. NaN codes
// between rows.
static inline MatQ ref_matq(ScaleType st, int tile_rows, int64_t nmat, int64_t rows, int64_t cols,
                            int64_t tiles, bool is_tile_major) {
    MatQ m = {
        .st = st, .rows = rows, .cols = cols, .ld = cols + 5, .tile_rows = tile_rows, .nmat = nmat};
    int64_t srows = ceil_div(rows, tile_rows);
    m.srow = is_tile_major ? 1 : tiles;
    m.scol = is_tile_major ? srows : 1;
    m.qstep = rows * m.ld;
    m.sstep = srows * tiles;
    m.q = malloc((size_t)(nmat * m.qstep + 1));
    memset(m.q, 0xFF, (size_t)(nmat * m.qstep + 1));
    m.s = malloc((size_t)(nmat * m.sstep + 1) * 4);
    for (int64_t i = 0; i < nmat * m.sstep; i++) {
        if (st == SCALE_F32)
            ((float *)m.s)[i] = 0.002f * (1.5f + ref_float());
        else
            ((uint8_t *)m.s)[i] = (uint8_t)(116 + ref_word() % 4);
    }
    for (int64_t r = 0; r < nmat * rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            uint8_t code = (uint8_t)(ref_word() >> 7);
            m.q[r * m.ld + c] = (code & 0x7F) == 0x7F ? 0x7E : code;
        }
    return m;
}

// The same codes read as E5M2; those that are no finite numbers become the largest. Nothing where the CUDA
// backend is tested: it refuses E5M2 (test_equal_cuda.c).
static inline void ref_make_e5m2(MatQ *m) {
#ifdef TESTS_CUDA
    return;
#endif
    m->ct = CODE_E5M2;
    for (int64_t r = 0; r < m->nmat * m->rows; r++)
        for (int64_t c = 0; c < m->cols; c++) {
            uint8_t *code = &m->q[r * m->ld + c];
            if ((*code & 0x7F) > 0x7B) *code = (uint8_t)((*code & 0x80) | 0x7B);
        }
}

// Value of a code by the definition of its format.
static inline double ref_code_value(uint8_t code, CodeType ct) {
    int bits = ct == CODE_E4M3 ? 3 : 2, bias = ct == CODE_E4M3 ? 7 : 15;
    int mag = code & 0x7F, e = mag >> bits;
    double m = (mag & ((1 << bits) - 1)) / (double)(1 << bits);
    double v = e ? ldexp(1.0 + m, e - bias) : ldexp(m, 1 - bias);
    if (ct == CODE_E4M3 ? mag == 0x7F : mag > 0x7C) v = NAN;
    if (ct == CODE_E5M2 && mag == 0x7C) v = INFINITY;
    return code & 0x80 ? -v : v;
}

// Value of (r, c) if the scale's tile is `tile`.
static inline double ref_value(MatQ m, int64_t r, int64_t c, int64_t tile) {
    int64_t at = r / m.tile_rows * m.srow + tile * m.scol;
    double s =
        m.st == SCALE_F32 ? (double)((float *)m.s)[at] : ldexp(1.0, ((uint8_t *)m.s)[at] - 127);
    return ref_code_value(m.q[r * m.ld + c], m.ct) * s;
}

static inline double *ref_values(MatQ m) {
    double *value = malloc((size_t)(m.rows * m.cols + 1) * sizeof *value);
    for (int64_t r = 0; r < m.rows; r++)
        for (int64_t c = 0; c < m.cols; c++) value[r * m.cols + c] = ref_value(m, r, c, c / TILE);
    return value;
}

static inline double ref_get(Mat y, int64_t r, int64_t c) {
    return y.t == DT_F32 ? (double)*(float *)mat_at(y, r, c)
                         : (double)f32_from_bf16(*(uint16_t *)mat_at(y, r, c));
}

// Is y(i, j) = old + sum over k of a(i, k) b(j, k) within rounding? An FP32 sum of n terms errs by
// at most n u sum|ab|, u = 2^-24. Promotion makes that 128 terms, their number of slices, and three
// products more. a(i, k) = a[i * ai + k * ak].
static inline bool ref_is_close(double got, double old, const double *a, int64_t ak,
                                const double *b, int64_t bk, int64_t K, bool is_fp8,
                                bool is_bf16_out) {
    double sum = 0, abs_sum = 0;
    for (int64_t k = 0; k < K; k++) {
        sum += a[k * ak] * b[k * bk];
        abs_sum += fabs(a[k * ak] * b[k * bk]);
    }
    int64_t steps = is_fp8 ? min_i64(K, TILE) + ceil_div(K, TILE) + 4 : K + 2;
    double bound = (double)steps * 0x1p-24 * abs_sum * 1.01 + 0x1p-23 * fabs(old);
    sum += old;
    if (is_bf16_out) bound += (fabs(sum) + bound) * 0x1p-8; // half a unit of 8 bits
    return fabs(got - sum) <= bound;                        // false for NaN too
}
