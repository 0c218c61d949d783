// quant_reference.h - what the quantisers should write and count, in double precision, and matrices
// of every kind of number to try them on. Shared by test_quant.c and test_quant_scopes.c.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fp8.h"
#include "quant.h"

// --- the reference: one tile as a list of values ---

// Value of a magnitude code by the definition of its format; looked up, as it is asked for often.
static inline double defined_magnitude(int code, CodeType ct) {
    int bits = ct == CODE_E4M3 ? 3 : 2, bias = ct == CODE_E4M3 ? 7 : 15;
    int e = code >> bits;
    double m = (code & ((1 << bits) - 1)) / (double)(1 << bits);
    return e ? ldexp(1.0 + m, e - bias) : ldexp(m, 1 - bias);
}

static inline double magnitude_of(int code, CodeType ct) {
    static double table[2][128];
    if (table[ct][1] == 0)
        for (int c = 0; c < 128; c++) table[ct][c] = defined_magnitude(c, ct);
    return table[ct][code];
}

static inline int largest_code(CodeType ct) {
    return ct == CODE_E4M3 ? 0x7E : 0x7B;
}

static inline double value_of(uint8_t code, CodeType ct) {
    if ((code & 0x7F) > largest_code(ct)) return NAN;
    return code & 0x80 ? -magnitude_of(code & 0x7F, ct) : magnitude_of(code & 0x7F, ct);
}

static inline int nearest_code(double a, CodeType ct) {
    int lo = 0, hi = largest_code(ct);
    if (a >= magnitude_of(hi, ct)) return hi;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (magnitude_of(mid, ct) <= a)
            lo = mid;
        else
            hi = mid;
    }
    double d = a - magnitude_of(lo, ct), u = magnitude_of(hi, ct) - a;
    return d < u || (d == u && lo % 2 == 0) ? lo : hi;
}

// Nearest BF16, in double arithmetic.
static inline double to_bf16(double x) {
    if (!isfinite(x) || x == 0) return x;
    int e;
    frexp(x, &e);
    double unit = ldexp(1.0, e - 8 < -133 ? -133 : e - 8);
    double r = nearbyint(x / unit) * unit;
    return fabs(r) >= 0x1p128 ? copysign(INFINITY, x) : r;
}

// The scale of an amax.
static inline double ref_scale(double amax, ScaleType st, CodeType ct) {
    double most = magnitude_of(largest_code(ct), ct), s = 1;
    if (amax > 0 && st == SCALE_F32) {
        s = (double)(float)(amax / most);
    } else if (amax > 0) {
        int e, top;
        double m = 2 * frexp(amax, &e), edge = 2 * frexp(most, &top); // amax = m * 2^(e-1)
        s = ldexp(1.0, m <= edge ? e - top : e - top + 1);
    }
    return s < 0x1p-126 ? 0x1p-126 : s;
}

typedef struct RefTile {
    uint8_t code[TILE * TILE];
    double scale;
} RefTile;

static inline double ref_amax(const double *x, int64_t n) {
    double amax = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i])) amax = fmax(amax, fabs(x[i]));
    return amax;
}

// The tile of n values whose scale is that of `shared`, and what it adds to the counters.
static inline void ref_tile_shared(RefTile *t, const double *x, int64_t n, double shared,
                                   ScaleType st, CodeType ct, QuantCount *count) {
    double amax = ref_amax(x, n), s = ref_scale(shared, st, ct);
    bool is_bad = false;
    t->scale = s;
    for (int64_t i = 0; i < n; i++) {
        int sign = signbit(x[i]) ? 0x80 : 0;
        double q = isfinite(x[i]) ? (double)(float)(fabs(x[i]) / s) : 0;
        int code = isfinite(x[i]) ? nearest_code(q, ct) : 0x7F;
        t->code[i] = (uint8_t)(sign | code);
        count->saturated += q > magnitude_of(largest_code(ct), ct);
        count->underflow += code == 0 && x[i] != 0;
        is_bad = is_bad || !isfinite(x[i]);
    }
    count->values += n;
    count->tiles++;
    count->nonfinite_tiles += is_bad;
    if (amax == 0) return;
    int bin = ilogb(s) - SCALE_BIN_LOW;
    count->scales[bin < 0 ? 0 : bin > SCALE_BINS - 1 ? SCALE_BINS - 1 : bin]++;
    if (amax > (double)f32_from_bits((uint32_t)count->amax_bits))
        count->amax_bits = (int32_t)f32_bits((float)amax);
}

static inline void ref_tile(RefTile *t, const double *x, int64_t n, ScaleType st, CodeType ct,
                            QuantCount *count) {
    ref_tile_shared(t, x, n, ref_amax(x, n), st, ct, count);
}

// --- inputs ---

static uint32_t seed;
static inline uint32_t next_word(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 4 ^ seed << 11;
}

enum {
    FILL_NORMAL,
    FILL_WIDE,
    FILL_ZERO,
    FILL_TINY,
    FILL_HUGE,
    FILL_EDGE, // a few values around 1.75 * 2^e, where the scale of a power of two steps
    FILL_BAD,
    FILL_COUNT // all of them, by row and column block
};

static inline float fill_value(int kind) {
    static const float edges[] = {448.0f,   446.0f,   450.0f, 480.0f,
                                  57344.0f, 57600.0f, 1.75f,  0.875f};
    uint32_t w = next_word();
    float unit = (float)(int32_t)w / 2147483648.0f;
    switch (kind) {
    case FILL_NORMAL: return unit;
    case FILL_WIDE: return ldexpf(unit, (int)(next_word() >> 7) % 24 - 20);
    case FILL_ZERO: return w & 1 ? 0.0f : -0.0f;
    case FILL_TINY: return ldexpf(unit, -127 - (int)(next_word() >> 7) % 12);
    case FILL_HUGE: return ldexpf(unit, 128 - (int)(next_word() >> 7) % 4);
    case FILL_EDGE: return w % 50 ? unit : unit < 0 ? -edges[w / 64 % 8] : edges[w / 64 % 8];
    default:
        if (w % 97 == 0) return NAN;
        if (w % 89 == 0) return w & 1024 ? INFINITY : -INFINITY;
        return unit;
    }
}

// A matrix with ld > cols, kinds changing by row and column block, and its BF16-rounded values in
// double.
static inline Mat make_mat(DType t, int64_t rows, int64_t cols, int kind, double *exact) {
    Mat m = {NULL, t, rows, cols, cols + 3};
    m.p = malloc((size_t)(rows * m.ld) * dtype_bytes(t) + 1);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            float v = fill_value(kind == FILL_COUNT ? (int)((r / 7 + c / 128) % FILL_COUNT) : kind);
            double b = to_bf16((double)v);
            if (t == DT_F32)
                *(float *)mat_at(m, r, c) = v;
            else
                *(uint16_t *)mat_at(m, r, c) = bf16_from_f32((float)b);
            exact[r * cols + c] = b;
        }
    return m;
}

// --- comparing ---

static inline double scale_at(MatQ y, int64_t r, int64_t tile) {
    int64_t at = r / y.tile_rows * y.srow + tile * y.scol;
    return y.st == SCALE_F32 ? (double)((float *)y.s)[at] : ldexp(1.0, ((uint8_t *)y.s)[at] - 127);
}

static inline void assert_counts(const QuantCount *got, const QuantCount *want) {
    assert_int_equal(got->values, want->values);
    assert_int_equal(got->tiles, want->tiles);
    assert_int_equal(got->saturated, want->saturated);
    assert_int_equal(got->underflow, want->underflow);
    assert_int_equal(got->nonfinite_tiles, want->nonfinite_tiles);
    assert_int_equal(got->amax_bits, want->amax_bits);
    for (int i = 0; i < SCALE_BINS; i++) assert_int_equal(got->scales[i], want->scales[i]);
}

static inline void assert_row(MatQ y, int64_t r, int64_t c0, int64_t n, int64_t tile,
                              const RefTile *want) {
    assert_true(scale_at(y, r, tile) == want->scale);
    assert_memory_equal(y.q + r * y.ld + c0, want->code, (size_t)n);
}

// Groups of rows with gaps, empty ones and a ragged end; not grouped: n == 0, one group of all.
static inline int64_t make_groups(Groups *g, int64_t *start, int64_t *count, int64_t rows,
                                  bool is_grouped) {
    *g = (Groups){start, count, is_grouped ? 5 : 0};
    int64_t at = 0;
    for (int e = 0; e < 5; e++) {
        start[e] = at + (e == 2 ? min_i64(3, rows - at) : 0);
        count[e] = e == 1 || e == 3 ? 0 : e == 4 ? rows - start[e] : (rows - start[e]) / 2;
        at = start[e] + count[e];
    }
    if (!is_grouped) start[0] = 0, count[0] = rows;
    return is_grouped ? 5 : 1;
}
