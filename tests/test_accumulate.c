// test_accumulate.c - the ways of summing FP8 products, bit for bit against a plain model in
// double, on every instruction set of this processor: dense and grouped, odd contractions, extreme
// scales, numbers that are not finite; and what the 14 bits cost with and without promotion.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "gemm.h"
#include "gemm_reference.h"
#include "ggemm.h"

static OpCx cx;

// ---- the model ----------------------------------------------------------------------------------

// One operand of a product: element (outer, k) and its scale.
typedef struct Side {
    MatQ m;
    bool is_turned;    // the contraction runs down the rows
    int64_t k0, tile0; // first column of the contraction, and its tile
} Side;

static double side_code(const Side *s, int64_t outer, int64_t k) {
    uint8_t code = s->is_turned ? s->m.q[k * s->m.ld + outer] : s->m.q[outer * s->m.ld + s->k0 + k];
    return ref_code_value(code, s->m.ct);
}

static double side_scale(const Side *s, int64_t outer, int64_t k) {
    int64_t row = (s->is_turned ? k : outer) / s->m.tile_rows;
    int64_t tile = s->is_turned ? outer / TILE : s->tile0 + k / TILE;
    int64_t at = row * s->m.srow + tile * s->m.scol;
    return s->m.st == SCALE_F32 ? (double)((float *)s->m.s)[at]
                                : ldexp(1.0, ((uint8_t *)s->m.s)[at] - 127);
}

// x cut toward zero to a multiple of 2^(e-13).
static double cut(double x, int e) {
    return ldexp(trunc(ldexp(x, 13 - e)), e - 13);
}

// The running sum and n values, added as a tensor core does.
static double add_cut(double sum, const double *v, int64_t n) {
    int e = sum != 0 ? ilogb(sum) : -113;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(v[i]) || !isfinite(sum)) return NAN;
        if (v[i] != 0 && ilogb(v[i]) > e) e = ilogb(v[i]);
    }
    if (e < -113) e = -113;
    sum = cut(sum, e);
    for (int64_t i = 0; i < n; i++) sum += cut(v[i], e);
    return sum;
}

// y = sum over k of p[k] s[k], as gemm.h says. Products and sums of two floats are exact in double,
// or rounded there so finely that rounding again changes nothing.
static double model_sum(GemmAccumulate how, int64_t every, const double *p, const double *s,
                        int64_t K) {
    bool is_cut = how == GEMM_HOPPER14 || how == GEMM_PROMOTE128_HOPPER14;
    bool is_whole = how == GEMM_HOPPER14 || how == GEMM_FP32;
    bool is_scaled = is_whole || 128 % every != 0;
    if (is_whole) every = K + 1;
    double total = 0;
    for (int64_t first = 0; first < K; first += every) {
        int64_t end = min_i64(first + every, K);
        double sum = 0;
        for (int64_t k = first; k < end;) {
            double v[32];
            int64_t n = 0;
            for (; n < 32 && k < end; n++, k++) v[n] = is_scaled ? (float)(p[k] * s[k]) : p[k];
            if (is_cut)
                sum = (float)add_cut(sum, v, n);
            else
                for (int64_t i = 0; i < n; i++) sum = (float)(sum + v[i]);
        }
        total = (float)(total + (is_scaled ? sum : (float)(sum * s[first])));
    }
    return total;
}

static double model_at(const Side *a, int64_t i, const Side *b, int64_t j, int64_t K) {
    double p[5000], s[5000];
    assert_true(K <= 5000);
    for (int64_t k = 0; k < K; k++) {
        p[k] = side_code(a, i, k) * side_code(b, j, k);
        s[k] = (float)(side_scale(a, i, k) * side_scale(b, j, k));
    }
    return model_sum(cx.accumulate, cx.promote_every ? cx.promote_every : 128, p, s, K);
}

static void assert_same(double got, double old, double expected, const Mat *y, int64_t K) {
    if (y->t == DT_BF16) expected = (double)bf16_round((float)expected);
    expected = (float)(old + expected);
    bool is_same = isfinite(expected) ? got == expected : !isfinite(got);
    if (!is_same)
        fail_msg("%s, accumulation %d every %d, K %lld: %.9g, expected %.9g", gemm_isa(),
                 (int)cx.accumulate, cx.promote_every, (long long)K, got, expected);
}

// ---- products -----------------------------------------------------------------------------------

typedef enum Op { FPROP, DGRAD, WGRAD, OP_COUNT } Op;
typedef enum Scales { SCALES_USUAL, SCALES_TINY, SCALES_WIDE } Scales;

// Scales of every size: TINY makes products vanish, WIDE overflows too.
static void set_scales(MatQ m, Scales how) {
    for (int64_t i = 0; i < m.nmat * m.sstep && how != SCALES_USUAL; i++) {
        int e = how == SCALES_TINY ? -70 + (int)(ref_word() % 20) : -60 + (int)(ref_word() % 130);
        if (m.st == SCALE_F32)
            ((float *)m.s)[i] = ldexpf(1.5f + 0.4f * ref_float(), e);
        else
            ((uint8_t *)m.s)[i] = (uint8_t)(127 + e);
    }
}

// Small codes among large ones, and many zeros: what is cut away matters.
static void spread_codes(MatQ m) {
    for (int64_t r = 0; r < m.nmat * m.rows; r++)
        for (int64_t c = 0; c < m.cols; c++)
            if (ref_word() % 5 == 0) m.q[r * m.ld + c] &= 0x80;
}

static Err dense(Op op, Mat y, MatQ a, MatQ b, bool acc) {
    return op == FPROP   ? gemm_fp8_fprop_cpu(&cx, y, a, b, acc)
           : op == DGRAD ? gemm_fp8_dgrad_cpu(&cx, y, a, b, acc)
                         : gemm_fp8_wgrad_cpu(&cx, y, a, b, acc);
}

// y [m, n] from a contraction of K; bits of e5m2: which operands.
static void check_dense(Op op, int64_t m, int64_t n, int64_t K, ScaleType st, int e5m2,
                        Scales scales, DType t, bool acc) {
    int64_t tiles = ceil_div(K, TILE);
    double *old = NULL;
    Side a = {.m = ref_matq(st, 1, 1, m, K, tiles, op == WGRAD)}, b = {.is_turned = op == DGRAD};
    b.m = op == FPROP   ? ref_matq(SCALE_F32, TILE, 1, n, K, tiles, false)
          : op == DGRAD ? ref_matq(SCALE_F32, TILE, 1, K, n, ceil_div(n, TILE), false)
                        : ref_matq(st, 1, 1, n, K, tiles, true);
    if (e5m2 & 1) ref_make_e5m2(&a.m);
    if (e5m2 & 2) ref_make_e5m2(&b.m);
    spread_codes(a.m);
    set_scales(a.m, scales);
    set_scales(b.m, scales);
    Mat y = ref_mat(acc ? DT_F32 : t, m, n, &old);
    assert_int_equal(dense(op, y, a.m, b.m, acc), OK);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            assert_same(ref_get(y, i, j), acc ? old[i * n + j] : 0, model_at(&a, i, &b, j, K), &y,
                        K);
    free(a.m.q), free(a.m.s), free(b.m.q), free(b.m.s), free(y.p), free(old);
}

// The accumulations and intervals that do not go to the tile functions.
static const struct {
    GemmAccumulate how;
    int every;
} sums[] = {{GEMM_FP32, 0},
            {GEMM_HOPPER14, 0},
            {GEMM_PROMOTE128_HOPPER14, 0},
            {GEMM_PROMOTE128_HOPPER14, 32},
            {GEMM_PROMOTE128_HOPPER14, 96},
            {GEMM_PROMOTE128_HOPPER14, 256},
            {GEMM_PROMOTE128, 64},
            {GEMM_PROMOTE128, 384}};
enum { SUMS = sizeof sums / sizeof sums[0] };

static void set_sum(int i, int nthreads) {
    cx.accumulate = sums[i].how;
    cx.promote_every = sums[i].every;
    cx.nthreads = nthreads;
}

static void dense_products_are_the_model(void **state) {
    (void)state;
    static const int64_t ks[] = {0, 1, 31, 32, 33, 128, 129, 200, 557};
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int i = 0; i < SUMS; i++) {
            set_sum(i, 1 + i % 3);
            for (int op = 0; op < OP_COUNT; op++) {
                for (int k = 0; k < (int)(sizeof ks / sizeof ks[0]); k++)
                    check_dense((Op)op, 5 + k, 37 - k, ks[k], (k + op) % 2 ? SCALE_F32 : SCALE_E8M0,
                                (k / 2 + i) % 4, k % 3 == 1 ? SCALES_TINY : SCALES_USUAL,
                                (k + i) % 2 ? DT_F32 : DT_BF16, k % 4 == 2);
                check_dense((Op)op, 7, 18, 300, SCALE_F32, i % 4, SCALES_WIDE, DT_F32, false);
            }
            check_dense((Op)(i % OP_COUNT), 131, 270, 45, SCALE_E8M0, 3 - i % 4, SCALES_USUAL,
                        DT_F32, false);
        }
    }
    gemm_select(NULL);
}

// Groups of tokens: rows of the output, or the contraction.
static void grouped_products_are_the_model(void **state) {
    (void)state;
    enum { L = 4, N = 21, K = 150 };
    int64_t start[L] = {1, 40, 40, 180}, count[L] = {33, 0, 137, 5}, R = 190;
    Groups g = {start, count, L};
    for (int i = 0; i < SUMS; i++) {
        set_sum(i, 2);
        for (int op = 0; op < OP_COUNT; op++) {
            bool is_wgrad = op == WGRAD;
            double *old = NULL;
            int64_t kin = op == DGRAD ? N : K, nout = op == DGRAD ? K : N,
                    tiles = groups_tiles(g, R);
            MatQ a = is_wgrad ? ref_matq(SCALE_F32, 1, 1, N, R, tiles, true)
                              : ref_matq(SCALE_E8M0, 1, 1, R, kin, ceil_div(kin, TILE), false);
            MatQ b = is_wgrad ? ref_matq(SCALE_F32, 1, 1, K, R, tiles, true)
                              : ref_matq(SCALE_F32, TILE, L, N, K, ceil_div(K, TILE), false);
            if (op != FPROP && i % 2) ref_make_e5m2(&a); // gradients of the hybrid recipe
            Mat y = is_wgrad ? ref_mat(DT_F32, L * N, K, &old) : ref_mat(DT_F32, R, nout, &old);
            assert_int_equal(op == FPROP   ? ggemm_fp8_fprop_cpu(&cx, y, a, b, g, false)
                             : op == DGRAD ? ggemm_fp8_dgrad_cpu(&cx, y, a, b, g, false)
                                           : ggemm_fp8_wgrad_cpu(&cx, y, a, b, g, true),
                             OK);
            for (int64_t e = 0, tile = 0; e < L; e++) {
                Side sa = {.m = a, .k0 = start[e], .tile0 = tile},
                     sb = {.m = b, .k0 = start[e], .tile0 = tile};
                if (!is_wgrad) {
                    sa = (Side){.m = matq_rows(a, start[e], count[e])};
                    sb = (Side){.m = matq_mat(b, e), .is_turned = op == DGRAD};
                }
                int64_t m = is_wgrad ? N : count[e], n = is_wgrad ? K : nout,
                        k = is_wgrad ? count[e] : kin;
                int64_t row0 = is_wgrad ? e * N : start[e];
                for (int64_t r = 0; r < m; r++)
                    for (int64_t j = 0; j < n; j++)
                        assert_same(ref_get(y, row0 + r, j), is_wgrad ? old[(row0 + r) * n + j] : 0,
                                    model_at(&sa, r, &sb, j, k), &y, k);
                tile += ceil_div(count[e], TILE);
            }
            free(a.q), free(a.s), free(b.q), free(b.s), free(y.p), free(old);
        }
    }
}

// ---- properties ---------------------------------------------------------------------------------

// One product of a given accumulation into fresh memory.
static float *product(MatQ a, MatQ w, GemmAccumulate how, int every, int nthreads) {
    float *y = calloc((size_t)(a.rows * w.rows), sizeof *y);
    cx.accumulate = how;
    cx.promote_every = every;
    cx.nthreads = nthreads;
    assert_int_equal(gemm_fp8_fprop_cpu(&cx, mat(y, DT_F32, a.rows, w.rows), a, w, false), OK);
    return y;
}

static void threads_and_neutral_settings_change_nothing(void **state) {
    (void)state;
    enum { M = 150, N = 90, K = 333 };
    size_t bytes = (size_t)M * N * sizeof(float);
    MatQ a = ref_matq(SCALE_E8M0, 1, 1, M, K, 3, false),
         w = ref_matq(SCALE_E8M0, TILE, 1, N, K, 3, false);
    for (int i = 0; i < SUMS; i++) {
        float *y[3];
        for (int t = 0; t < 3; t++) {
            y[t] = product(a, w, sums[i].how, sums[i].every, t + 1);
            assert_memory_equal(y[t], y[0], bytes);
        }
        for (int t = 0; t < 3; t++) free(y[t]);
    }
    // The same thing asked for in two ways; with powers of two it does not matter when scales come
    // in.
    static const struct {
        GemmAccumulate a, b;
        int every_a, every_b;
        bool is_same;
    } pairs[] = {{GEMM_PROMOTE128, GEMM_PROMOTE128, 0, 128, true},
                 {GEMM_PROMOTE128_HOPPER14, GEMM_PROMOTE128_HOPPER14, 0, 128, true},
                 {GEMM_HOPPER14, GEMM_PROMOTE128_HOPPER14, 0, 352, true},
                 {GEMM_HOPPER14, GEMM_HOPPER14, 0, 64, true},
                 {GEMM_FP32, GEMM_PROMOTE128, 0, 352, true},
                 {GEMM_FP32, GEMM_PROMOTE128, 0, 0, false},
                 {GEMM_HOPPER14, GEMM_PROMOTE128_HOPPER14, 0, 0, false},
                 {GEMM_HOPPER14, GEMM_FP32, 0, 0, false}};
    for (int i = 0; i < (int)(sizeof pairs / sizeof pairs[0]); i++) {
        float *x = product(a, w, pairs[i].a, pairs[i].every_a, 2);
        float *y = product(a, w, pairs[i].b, pairs[i].every_b, 2);
        if ((memcmp(x, y, bytes) == 0) != pairs[i].is_same) fail_msg("pair %d", i);
        free(x);
        free(y);
    }
    free(a.q), free(a.s), free(w.q), free(w.s);
}

static void zeros_and_nan_codes(void **state) {
    (void)state;
    enum { M = 3, N = 20, K = 200 };
    MatQ a = ref_matq(SCALE_F32, 1, 1, M, K, 2, false),
         w = ref_matq(SCALE_F32, TILE, 1, N, K, 2, false);
    memset(a.q + a.ld, 0x80, K);      // row 1: negative zeros
    w.q[7 * w.ld + 150] = E4M3_NAN;   // column 7
    w.q[9 * w.ld + 40] = 0x80 | 0x7F; // column 9, in the first slice: later sums keep it
    for (int i = 0; i < SUMS; i++) {
        float *y = product(a, w, sums[i].how, sums[i].every, 1);
        for (int r = 0; r < M; r++)
            for (int j = 0; j < N; j++)
                if (isnan(y[r * N + j]) != (j == 7 || j == 9) ||
                    (r == 1 && j != 7 && j != 9 && y[r * N + j] != 0))
                    fail_msg("accumulation %d every %d: y(%d, %d) = %g", (int)sums[i].how,
                             sums[i].every, r, j, (double)y[r * N + j]);
        free(y);
    }
    free(a.q), free(a.s), free(w.q), free(w.s);
}

// Largest error against double, relative to the root mean square of the results.
static double max_rel_err(MatQ a, MatQ w, GemmAccumulate how) {
    float *y = product(a, w, how, 0, 2);
    Side sa = {.m = a}, sw = {.m = w};
    double worst = 0, squares = 0;
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < w.rows; j++) {
            double sum = 0;
            for (int64_t k = 0; k < a.cols; k++) sum += side_code(&sa, i, k) * side_code(&sw, j, k);
            sum *= side_scale(&sa, 0, 0) * side_scale(&sw, 0, 0);
            worst = fmax(worst, fabs((double)y[i * w.rows + j] - sum));
            squares += sum * sum;
        }
    free(y);
    return worst / sqrt(squares / (double)(a.rows * w.rows));
}

// [rows, cols] of N(0, 1), quantised with one scale.
static MatQ normal_matq(int tile_rows, int64_t rows, int64_t cols) {
    MatQ m = ref_matq(SCALE_F32, tile_rows, 1, rows, cols, ceil_div(cols, TILE), false);
    float *x = malloc((size_t)(rows * cols) * sizeof *x), amax = 0;
    for (int64_t i = 0; i < rows * cols; i++) {
        double u = (1.0 + (double)ref_float()) / 2 * 0.999 + 0.0005,
               turn = M_PI * (double)ref_float();
        x[i] = (float)(sqrt(-2 * log(u)) * cos(turn));
        amax = fmaxf(amax, fabsf(x[i]));
    }
    for (int64_t i = 0; i < m.sstep; i++) ((float *)m.s)[i] = tile_scale_f32(amax);
    for (int64_t i = 0; i < rows * cols; i++)
        m.q[i / cols * m.ld + i % cols] = e4m3_from_f32(x[i] / tile_scale_f32(amax));
    free(x);
    return m;
}

// DeepSeek-V3 report, 3.3.2: two random matrices, K = 4096, limited accumulation: errors of up to
// about 2 %.
static void promotion_repairs_what_14_bits_lose(void **state) {
    (void)state;
    MatQ a = normal_matq(1, 32, 4096), w = normal_matq(TILE, 32, 4096);
    double lost = max_rel_err(a, w, GEMM_HOPPER14),
           repaired = max_rel_err(a, w, GEMM_PROMOTE128_HOPPER14);
    double fp32 = max_rel_err(a, w, GEMM_FP32), usual = max_rel_err(a, w, GEMM_PROMOTE128);
    print_message("K 4096: hopper14 %.2e, promote128_hopper14 %.2e, fp32 %.2e, promote128 %.2e\n",
                  lost, repaired, fp32, usual);
    assert_true(lost > 2e-3 && lost < 5e-2);
    assert_true(lost >= 10 * repaired);
    assert_true(repaired > 10 * usual);
    assert_true(fp32 > usual && fp32 < 1e-5);
    free(a.q), free(a.s), free(w.q), free(w.s);
}

static void unknown_sums_are_refused(void **state) {
    (void)state;
    MatQ a = ref_matq(SCALE_F32, 1, 1, 2, 8, 1, false),
         w = ref_matq(SCALE_F32, TILE, 1, 2, 8, 1, false);
    float y[4];
    static const int wrong[][2] = {
        {4, 0}, {-1, 0}, {GEMM_PROMOTE128, 33}, {GEMM_PROMOTE128_HOPPER14, -32}};
    for (int i = 0; i < 4; i++) {
        cx.accumulate = (GemmAccumulate)wrong[i][0];
        cx.promote_every = wrong[i][1];
        assert_int_equal(gemm_fp8_fprop_cpu(&cx, mat(y, DT_F32, 2, 2), a, w, false), E_INTERNAL);
    }
    assert_int_equal(arena_mark(cx.scratch), 0);
    free(a.q), free(a.s), free(w.q), free(w.s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_products_are_the_model),
        cmocka_unit_test(grouped_products_are_the_model),
        cmocka_unit_test(threads_and_neutral_settings_change_nothing),
        cmocka_unit_test(zeros_and_nan_codes),
        cmocka_unit_test(promotion_repairs_what_14_bits_lose),
        cmocka_unit_test(unknown_sums_are_refused),
    };
    if (arena_create(&cx.scratch, "scratch", gemm_scratch_bytes(3, 8), false) != OK) return 1;
    int failed = cmocka_run_group_tests_name("accumulate", tests, NULL, NULL);
    arena_destroy(&cx.scratch);
    return failed;
}
