// test_quant.c - the quantisers, bit for bit and count for count, against a reference in double
// precision.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fp8.h"
#include "ops.h"
#include "quant_lanes.h"

static OpCx cx;
static const char *const isas[] = {"avx512", "avx2", "portable"};

// --- the reference: one tile as a list of values ---

static double magnitude_of(int code) {
    int e = code >> 3, m = code & 7;
    return e ? ldexp(1.0 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
}

static double value_of(uint8_t code) {
    if ((code & 0x7F) == 0x7F) return NAN;
    return code & 0x80 ? -magnitude_of(code & 0x7F) : magnitude_of(code);
}

static int nearest_code(double a) {
    int lo = 0, hi = 0x7E;
    if (a >= 448.0) return 0x7E;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (magnitude_of(mid) <= a)
            lo = mid;
        else
            hi = mid;
    }
    double d = a - magnitude_of(lo), u = magnitude_of(hi) - a;
    return d < u || (d == u && lo % 2 == 0) ? lo : hi;
}

// Nearest BF16, in double arithmetic.
static double to_bf16(double x) {
    if (!isfinite(x) || x == 0) return x;
    int e;
    frexp(x, &e);
    double unit = ldexp(1.0, e - 8 < -133 ? -133 : e - 8);
    double r = nearbyint(x / unit) * unit;
    return fabs(r) >= 0x1p128 ? copysign(INFINITY, x) : r;
}

typedef struct RefTile {
    uint8_t code[TILE * TILE];
    double scale;
} RefTile;

static void ref_tile(RefTile *t, const double *x, int64_t n, ScaleType st, QuantCount *count) {
    double amax = 0, s = 1;
    bool is_bad = false;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            is_bad = true;
        else if (fabs(x[i]) > amax)
            amax = fabs(x[i]);
    }
    if (amax > 0 && st == SCALE_F32) {
        s = (double)(float)(amax / 448.0);
        if (s < 0x1p-126) s = 0x1p-126;
    } else if (amax > 0) {
        int e;
        double m = 2 * frexp(amax, &e);
        s = ldexp(1.0, m <= 1.75 ? e - 9 : e - 8);
        if (s < 0x1p-126) s = 0x1p-126;
    }
    t->scale = s;
    for (int64_t i = 0; i < n; i++) {
        int sign = signbit(x[i]) ? 0x80 : 0;
        double q = isfinite(x[i]) ? (double)(float)(fabs(x[i]) / s) : 0;
        int code = isfinite(x[i]) ? nearest_code(q) : 0x7F;
        t->code[i] = (uint8_t)(sign | code);
        count->saturated += q > 448.0;
        count->underflow += code == 0 && x[i] != 0;
    }
    count->values += n;
    count->tiles++;
    count->nonfinite_tiles += is_bad;
}

// --- inputs ---

static uint32_t seed;
static uint32_t next_word(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 4 ^ seed << 11;
}

enum { FILL_NORMAL, FILL_WIDE, FILL_ZERO, FILL_TINY, FILL_HUGE, FILL_BAD, FILL_COUNT };

static float fill_value(int kind) {
    uint32_t w = next_word();
    float unit = (float)(int32_t)w / 2147483648.0f;
    switch (kind) {
    case FILL_NORMAL: return unit;
    case FILL_WIDE: return ldexpf(unit, (int)(next_word() >> 7) % 24 - 20);
    case FILL_ZERO: return w & 1 ? 0.0f : -0.0f;
    case FILL_TINY: return ldexpf(unit, -127 - (int)(next_word() >> 7) % 12);
    case FILL_HUGE: return ldexpf(unit, 128 - (int)(next_word() >> 7) % 4);
    default:
        if (w % 97 == 0) return NAN;
        if (w % 89 == 0) return w & 1024 ? INFINITY : -INFINITY;
        return unit;
    }
}

// A matrix with ld > cols, kinds changing by row and column block, and its BF16-rounded values in
// double.
static Mat make_mat(DType t, int64_t rows, int64_t cols, int kind, double *exact) {
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

static double scale_at(MatQ y, int64_t r, int64_t tile) {
    int64_t at = r / y.tile_rows * y.srow + tile * y.scol;
    return y.st == SCALE_F32 ? (double)((float *)y.s)[at] : ldexp(1.0, ((uint8_t *)y.s)[at] - 127);
}

static void assert_counts(const QuantCount *got, const QuantCount *want) {
    assert_int_equal(got->values, want->values);
    assert_int_equal(got->tiles, want->tiles);
    assert_int_equal(got->saturated, want->saturated);
    assert_int_equal(got->underflow, want->underflow);
    assert_int_equal(got->nonfinite_tiles, want->nonfinite_tiles);
}

static void assert_row(MatQ y, int64_t r, int64_t c0, int64_t n, int64_t tile,
                       const RefTile *want) {
    assert_true(scale_at(y, r, tile) == want->scale);
    assert_memory_equal(y.q + r * y.ld + c0, want->code, (size_t)n);
}

static const int64_t shapes[][2] = {{1, 1},     {1, 128}, {3, 129}, {65, 256},
                                    {300, 130}, {0, 5},   {130, 64}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

// Every shape, kind of values, type, scale format, instruction set and number of threads.
#define FOR_ALL_CASES                                                                              \
    for (int isa = 0; isa < 3; isa++)                                                              \
        if (quant_select(isas[isa]))                                                               \
            for (int shape = 0; shape < SHAPES; shape++)                                           \
                for (int kind = 0; kind <= FILL_COUNT; kind++)                                     \
                    for (int st = 0; st < 2; st++)

static void rows_are_exact(void **state) {
    (void)state;
    FOR_ALL_CASES {
        int64_t M = shapes[shape][0], K = shapes[shape][1];
        DType t = (kind + st + shape) % 2 ? DT_F32 : DT_BF16;
        double *exact = malloc((size_t)(M * K) * sizeof *exact + 1);
        Mat x = make_mat(t, M, K, kind, exact);
        size_t mark = arena_mark(cx.scratch);
        MatQ y;
        void *p;
        int64_t K4 = ceil_div(K, 4) * 4;
        assert_int_equal(
            arena_push(cx.scratch, &p, (size_t)(M * matq_row_bytes(st, K4) + 4), "wire"), OK);
        y = matq_wire(p, st, M, K4);
        y.cols = K;
        QuantCount got = {5, 5, 5, 5, 5}, want = got;
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_cpu(&cx, y, x, &got), OK);
        static RefTile ref;
        for (int64_t r = 0; r < M; r++)
            for (int64_t c = 0; c < K; c += TILE) {
                int64_t n = min_i64(TILE, K - c);
                ref_tile(&ref, exact + r * K + c, n, st, &want);
                assert_row(y, r, c, n, c / TILE, &ref);
            }
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
}

// Groups of rows with gaps, empty ones and a ragged end; n == 0 is one group of all.
static int64_t make_groups(Groups *g, int64_t *start, int64_t *count, int64_t rows,
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

// y is checked against the tiles of `exact` [M,K]; bytes of rows outside groups must be 0xFF
// (poison).
static void assert_transposed(MatQ y, const double *exact, int64_t M, int64_t K, Groups g,
                              int64_t ng, QuantCount *want) {
    static RefTile ref;
    double tile[TILE];
    char *covered = calloc((size_t)M + 1, 1);
    int64_t first = 0;
    for (int64_t e = 0; e < ng; e++)
        for (int64_t i = 0; i < g.count[e]; i += TILE, first++) {
            int64_t n = min_i64(TILE, g.count[e] - i), m0 = g.start[e] + i;
            memset(covered + m0, 1, (size_t)n);
            for (int64_t c = 0; c < K; c++) {
                for (int64_t j = 0; j < n; j++) tile[j] = exact[(m0 + j) * K + c];
                ref_tile(&ref, tile, n, y.st, want);
                assert_row(y, c, m0, n, first, &ref);
            }
        }
    for (int64_t m = 0; m < M; m++)
        for (int64_t c = 0; c < K && !covered[m]; c++) assert_int_equal(y.q[c * y.ld + m], 0xFF);
    free(covered);
}

static void columns_are_exact(void **state) {
    (void)state;
    FOR_ALL_CASES {
        int64_t M = shapes[shape][0], K = shapes[shape][1], start[5], count[5];
        DType t = (kind + st + shape) % 2 ? DT_F32 : DT_BF16;
        double *exact = malloc((size_t)(M * K) * sizeof *exact + 1);
        Mat x = make_mat(t, M, K, kind, exact);
        Groups g;
        int64_t ng = make_groups(&g, start, count, M, (kind + shape) % 3 != 0);
        size_t mark = arena_mark(cx.scratch);
        MatQ y;
        assert_int_equal(arena_matq_cols(cx.scratch, &y, st, K, M, 5, "y"), OK);
        QuantCount got = {0}, want = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_t_cpu(&cx, y, x, g, &got), OK);
        assert_transposed(y, exact, M, K, g, ng, &want);
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
}

// requant_tile_t = quant_tile_t of the BF16-rounded dequantised values, for both formats on either
// side.
static void requant_is_exact(void **state) {
    (void)state;
    FOR_ALL_CASES {
        int64_t M = shapes[shape][0], K = ceil_div(shapes[shape][1], 4) * 4, start[5], count[5];
        double *exact = malloc((size_t)(M * K) * sizeof *exact + 1);
        Mat x = make_mat(DT_F32, M, K, kind, exact);
        Groups g;
        int64_t ng = make_groups(&g, start, count, M, true);
        size_t mark = arena_mark(cx.scratch);
        MatQ q, y, z;
        Mat d;
        ScaleType from = (kind + shape) % 2 ? SCALE_F32 : SCALE_E8M0;
        assert_int_equal(arena_matq_rows(cx.scratch, &q, from, M, K, "q"), OK);
        assert_int_equal(arena_matq_cols(cx.scratch, &y, st, K, M, 5, "y"), OK);
        assert_int_equal(arena_matq_cols(cx.scratch, &z, st, K, M, 5, "z"), OK);
        assert_int_equal(arena_mat(cx.scratch, &d, DT_BF16, M, K, "d"), OK);
        QuantCount got = {0}, want = {0}, same = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_cpu(&cx, q, x, NULL), OK);
        // Codes that no quantiser makes of such small values: products below BF16's subnormals.
        for (int64_t i = 0; kind == FILL_TINY && i < M * K; i++)
            q.q[i / K * q.ld + i % K] = (uint8_t)(next_word() % 0x7F);
        assert_int_equal(requant_tile_t_cpu(&cx, y, q, g, &got), OK);
        for (int64_t r = 0; r < M; r++)
            for (int64_t c = 0; c < K; c++) {
                double v = value_of(q.q[r * q.ld + c]) * scale_at(q, r, c / TILE);
                if (isnan(v)) v = q.q[r * q.ld + c] & 0x80 ? -NAN : NAN;
                exact[r * K + c] = to_bf16(from == SCALE_F32 ? (double)(float)v : v);
            }
        assert_transposed(y, exact, M, K, g, ng, &want);
        assert_counts(&got, &want);
        assert_int_equal(dequant_cpu(&cx, d, q), OK);
        assert_int_equal(quant_tile_t_cpu(&cx, z, d, g, &same), OK);
        assert_memory_equal(y.q, z.q, (size_t)(K * M));
        assert_counts(&same, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
}

// Weights: every matrix of a stack has its own grid; dequant gives code * scale in both types.
static void weights_are_exact(void **state) {
    (void)state;
    static RefTile ref;
    static double block[TILE * TILE];
    FOR_ALL_CASES {
        if (st) continue;
        int64_t N = shapes[shape][0], K = shapes[shape][1], nmat = 1 + kind % 3;
        double *exact = malloc((size_t)(nmat * N * K) * sizeof *exact + 1);
        Mat x = make_mat(kind % 2 ? DT_F32 : DT_BF16, nmat * N, K, kind, exact);
        size_t mark = arena_mark(cx.scratch);
        void *p;
        assert_int_equal(arena_push(cx.scratch, &p, weight_bytes(nmat, N, K), "w"), OK);
        MatQ w = weight_view(p, nmat, N, K);
        QuantCount got = {0}, want = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(weight_prepare_cpu(&cx, w, x, &got), OK);
        Mat f, h;
        assert_int_equal(arena_mat(cx.scratch, &f, DT_F32, N, K, "f"), OK);
        assert_int_equal(arena_mat(cx.scratch, &h, DT_BF16, N, K, "h"), OK);
        for (int64_t e = 0; e < nmat; e++) {
            assert_int_equal(dequant_cpu(&cx, f, matq_mat(w, e)), OK);
            assert_int_equal(dequant_cpu(&cx, h, matq_mat(w, e)), OK);
            for (int64_t r0 = 0; r0 < N; r0 += TILE)
                for (int64_t c0 = 0; c0 < K; c0 += TILE) {
                    int64_t nr = min_i64(TILE, N - r0), nc = min_i64(TILE, K - c0);
                    for (int64_t i = 0; i < nr * nc; i++)
                        block[i] = exact[(e * N + r0 + i / nc) * K + c0 + i % nc];
                    ref_tile(&ref, block, nr * nc, w.st, &want);
                    for (int64_t i = 0; i < nr * nc; i++) {
                        int64_t r = r0 + i / nc, c = c0 + i % nc;
                        float v = (float)(value_of(ref.code[i]) * ref.scale);
                        float gotv = *(float *)mat_at(f, r, c);
                        float goth = f32_from_bf16(*(uint16_t *)mat_at(h, r, c));
                        assert_true(isnan(v) ? isnan(gotv) && isnan(goth)
                                             : gotv == v && (double)goth == to_bf16((double)v));
                    }
                }
        }
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
}

static void wrong_shapes_are_refused(void **state) {
    (void)state;
    float x[4] = {0};
    uint8_t q[8], s[8];
    MatQ y = {.q = q,
              .s = s,
              .st = SCALE_E8M0,
              .rows = 2,
              .cols = 2,
              .ld = 2,
              .srow = 1,
              .scol = 1,
              .tile_rows = 1,
              .nmat = 1};
    int64_t start = 1, count = 2;
    Groups past_the_end = {&start, &count, 1}, all = {0};
    assert_int_equal(quant_tile_cpu(&cx, y, mat(x, DT_F32, 1, 4), NULL), E_INTERNAL);
    assert_int_equal(quant_tile_t_cpu(&cx, y, mat(x, DT_F32, 1, 4), all, NULL), E_INTERNAL);
    assert_int_equal(quant_tile_t_cpu(&cx, y, mat(x, DT_F32, 2, 2), past_the_end, NULL),
                     E_INTERNAL);
    assert_int_equal(dequant_cpu(&cx, mat(x, DT_F32, 1, 4), y), E_INTERNAL);
    assert_int_equal(weight_prepare_cpu(&cx, y, mat(x, DT_F32, 2, 2), NULL), E_INTERNAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_exact),           cmocka_unit_test(columns_are_exact),
        cmocka_unit_test(requant_is_exact),         cmocka_unit_test(weights_are_exact),
        cmocka_unit_test(wrong_shapes_are_refused),
    };
    if (arena_create(&cx.scratch, "scratch", 16 << 20, false) != OK) return 1;
    arena_poison(true);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&cx.scratch);
    return failed;
}
