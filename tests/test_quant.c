// test_quant.c - the quantisers, bit for bit and count for count, against a reference in double
// precision.
#include "ops.h"
#include "quant_lanes.h"
#include "quant_reference.h"

static OpCx cx;
// Instruction sets, and from how many bytes on codes go past the caches (quant_far_select).
static const struct {
    const char *name;
    int64_t far;
} isas[] = {{"avx512-bf16", -1}, {"avx512", -1}, {"avx2", -1}, {"portable", -1}, {"avx512-bf16", 0}};
enum { ISAS = 5 };

static bool select_isa(int i) {
    quant_far_select(isas[i].far);
    return quant_select(isas[i].name);
}

static const int64_t shapes[][2] = {{1, 1},     {1, 128}, {3, 129}, {65, 256},
                                    {300, 130}, {0, 5},   {130, 64}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

#ifdef TESTS_CUDA
enum { CODE_TYPES = 1 }; // the CUDA backend has E4M3 only
#else
enum { CODE_TYPES = 2 };
#endif

// Every shape, kind of values, type, format of scales, instruction set and number of threads; the
// formats of the codes take turns.
#define FOR_ALL_CASES                                                                              \
    for (int isa = 0; isa < ISAS; isa++)                                                              \
        if (select_isa(isa))                                                                       \
            for (int shape = 0; shape < SHAPES; shape++)                                           \
                for (int kind = 0; kind <= FILL_COUNT; kind++)                                     \
                    for (int st = 0, ct = (isa + shape + kind) % CODE_TYPES; st < 2; st++)

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
        y = matq_wire(p, st, ct, M, K4);
        y.cols = K;
        QuantCount got = {.values = 5, .saturated = 5, .tiles = 5, .scales = {5}, .amax_bits = 5},
                   want = got;
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_cpu(&cx, y, x, (QuantRule){0}, &got), OK);
        static RefTile ref;
        for (int64_t r = 0; r < M; r++)
            for (int64_t c = 0; c < K; c += TILE) {
                int64_t n = min_i64(TILE, K - c);
                ref_tile(&ref, exact + r * K + c, n, st, ct, &want);
                assert_row(y, r, c, n, c / TILE, &ref);
            }
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
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
                ref_tile(&ref, tile, n, y.st, y.ct, want);
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
        assert_int_equal(arena_matq_cols(cx.scratch, &y, st, ct, K, M, 5, "y"), OK);
        QuantCount got = {0}, want = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_t_cpu(&cx, y, x, g, (QuantRule){0}, &got), OK);
        assert_transposed(y, exact, M, K, g, ng, &want);
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
}

// Codes and scales of a in memory that nobody has written to, and whether two such are the same.
static MatQ like_rows(MatQ a) {
    MatQ b;
    assert_int_equal(arena_matq_rows(cx.scratch, &b, a.st, a.ct, a.rows, a.cols, "b"), OK);
    return b;
}
static MatQ like_cols(MatQ a) {
    MatQ b;
    assert_int_equal(arena_matq_cols(cx.scratch, &b, a.st, a.ct, a.rows, a.cols, 5, "b"), OK);
    return b;
}
static void assert_same(MatQ a, MatQ b, int64_t tiles) {
    assert_memory_equal(a.q, b.q, (size_t)(a.rows * a.ld));
    for (int64_t r = 0; r < a.rows; r++)
        for (int64_t t = 0; t < tiles; t++) assert_true(scale_at(a, r, t) == scale_at(b, r, t));
}

// quant_tile_pair = quant_tile and quant_tile_t, in every mixture of formats and scopes.
static void pairs_are_exact(void **state) {
    (void)state;
    FOR_ALL_CASES {
        int64_t M = shapes[shape][0], K = ceil_div(shapes[shape][1], 4) * 4, start[5], count[5];
        double *exact = malloc((size_t)(M * K) * sizeof *exact + 1);
        Mat x = make_mat((kind + shape) % 2 ? DT_F32 : DT_BF16, M, K, kind, exact);
        Groups g;
        make_groups(&g, start, count, M, (kind + shape) % 3 != 0);
        QuantRule rule = {SCOPE_TILE, 1.5f}, rule_t = rule;
#ifndef TESTS_CUDA
        rule.scope = (QuantScope)(kind % 4 == 0 ? (kind + shape + isa) % 5 : 0);
        rule_t.scope = (QuantScope)(kind % 4 == 1 ? (kind + shape + isa) % 5 : 0);
#endif
        size_t mark = arena_mark(cx.scratch);
        MatQ a, at;
        ScaleType st_t = (ScaleType)((st + kind / 2) % 2);
        CodeType ct_t = (CodeType)((ct + shape / 2) % CODE_TYPES);
        assert_int_equal(arena_matq_rows(cx.scratch, &a, st, ct, M, K, "a"), OK);
        assert_int_equal(arena_matq_cols(cx.scratch, &at, st_t, ct_t, K, M, 5, "at"), OK);
        MatQ b = like_rows(a), bt = like_cols(at);
        QuantCount one = {0}, one_t = {0}, two = {0}, two_t = {0}, both = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_cpu(&cx, a, x, rule, &one), OK);
        assert_int_equal(quant_tile_t_cpu(&cx, at, x, g, rule_t, &one_t), OK);
        assert_int_equal(quant_tile_pair_cpu(&cx, b, bt, x, g, rule, rule_t, &two, &two_t), OK);
        assert_same(a, b, ceil_div(K, TILE));
        assert_same(at, bt, groups_tiles(g, M));
        assert_counts(&two, &one);
        assert_counts(&two_t, &one_t);
        assert_int_equal(quant_tile_pair_cpu(&cx, b, bt, x, g, rule, rule_t, &both, &both), OK);
        quant_count_add(&one, &one_t);
        assert_counts(&both, &one);
        assert_int_equal(quant_tile_pair_cpu(&cx, b, bt, x, g, rule, rule_t, NULL, NULL), OK);
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
        CodeType coded = (kind + shape / 2) % CODE_TYPES ? CODE_E5M2 : CODE_E4M3;
        assert_int_equal(arena_matq_rows(cx.scratch, &q, from, coded, M, K, "q"), OK);
        assert_int_equal(arena_matq_cols(cx.scratch, &y, st, ct, K, M, 5, "y"), OK);
        assert_int_equal(arena_matq_cols(cx.scratch, &z, st, ct, K, M, 5, "z"), OK);
        assert_int_equal(arena_mat(cx.scratch, &d, DT_BF16, M, K, "d"), OK);
        QuantCount got = {0}, want = {0}, same = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(quant_tile_cpu(&cx, q, x, (QuantRule){0}, NULL), OK);
        // Codes and scales that no quantiser makes of such small values: products around and below
        // BF16's subnormals.
        for (int64_t i = 0; kind == FILL_TINY && i < M * K; i++) {
            int64_t r = i / K, c = i % K;
            q.q[r * q.ld + c] = (uint8_t)(next_word() % (uint32_t)(largest_code(coded) + 1));
            if (from == SCALE_E8M0 && c % TILE == 0)
                ((uint8_t *)q.s)[r * q.srow + c / TILE * q.scol] = (uint8_t)(1 + next_word() % 24);
        }
        assert_int_equal(requant_tile_t_cpu(&cx, y, q, g, (QuantRule){0}, &got), OK);
        for (int64_t r = 0; r < M; r++)
            for (int64_t c = 0; c < K; c++) {
                double v = value_of(q.q[r * q.ld + c], coded) * scale_at(q, r, c / TILE);
                if (isnan(v)) v = q.q[r * q.ld + c] & 0x80 ? -NAN : NAN;
                exact[r * K + c] = to_bf16(from == SCALE_F32 ? (double)(float)v : v);
            }
        assert_transposed(y, exact, M, K, g, ng, &want);
        assert_counts(&got, &want);
        assert_int_equal(dequant_cpu(&cx, d, q), OK);
        assert_int_equal(quant_tile_t_cpu(&cx, z, d, g, (QuantRule){0}, &same), OK);
        assert_memory_equal(y.q, z.q, (size_t)(K * M));
        assert_counts(&same, &want);
        arena_release(cx.scratch, mark);
        free(exact);
        free(x.p);
    }
}

// Any codes, with exponents of their rows that lie close together or not, near the ends of the range too: every
// instruction set turns them as the portable loops do.
static void requant_of_any_codes(void **state) {
    (void)state;
    enum { M = 200, K = 192 };
    static const int spreads[] = {1, 2, 6, 24, 200}, lowest[] = {1, 9, 20, 100, 222};
    int64_t start[] = {0, 9}, count[] = {5, 190};
    Groups g = {start, count, 2};
    for (int i = 0; i < 100; i++) {
        size_t mark = arena_mark(cx.scratch);
        int spread = spreads[i % 5], low = lowest[i / 5 % 5];
        uint32_t smallest = i / 25 == 3 ? 40 : 0; // the last ones: no low codes before they move
        MatQ q, y, z;
        assert_int_equal(arena_matq_rows(cx.scratch, &q, SCALE_E8M0, CODE_E4M3, M, K, "q"), OK);
        assert_int_equal(arena_matq_cols(cx.scratch, &z, SCALE_E8M0, CODE_E4M3, K, M, 2, "z"), OK);
        for (int64_t r = 0; r < M; r++) {
            for (int64_t c = 0; c < K; c++)
                q.q[r * q.ld + c] = (uint8_t)(smallest + next_word() % (0x7F - smallest) + (next_word() & 0x80));
            for (int64_t c = 0; c < K; c += TILE)
                ((uint8_t *)q.s)[r * q.srow + c / TILE * q.scol] =
                    (uint8_t)(low + (int)(next_word() % (uint32_t)spread) % (255 - low));
        }
        if (i / 25 == 2) q.q[50 * q.ld + 3] = 0x7F, q.q[100 * q.ld + 70] = 0xFF; // NaN
        if (i / 25 == 1) // columns of zeros
            for (int64_t r = 0; r < M; r++) q.q[r * q.ld + 5] = q.q[r * q.ld + 120] = 0;
        cx.nthreads = 1;
        QuantCount want = {0};
        assert_true(quant_select("portable"));
        assert_int_equal(requant_tile_t_cpu(&cx, z, q, g, (QuantRule){0}, &want), OK);
        for (int isa = 0; isa < ISAS; isa++) {
            if (!select_isa(isa)) continue;
            QuantCount got = {0};
            assert_int_equal(arena_matq_cols(cx.scratch, &y, SCALE_E8M0, CODE_E4M3, K, M, 2, "y"), OK);
            memset(y.q, 0, (size_t)(y.rows * y.ld));
            assert_int_equal(requant_tile_t_cpu(&cx, y, q, g, (QuantRule){0}, &got), OK);
            for (int64_t c = 0; c < K; c++) {
                for (int e = 0; e < 2; e++)
                    assert_memory_equal(y.q + c * y.ld + start[e], z.q + c * z.ld + start[e], (size_t)count[e]);
                for (int64_t tile = 0; tile < 3; tile++) assert_true(scale_at(y, c, tile) == scale_at(z, c, tile));
            }
            assert_counts(&got, &want);
        }
        arena_release(cx.scratch, mark);
    }
}

// Weights: every matrix of a stack has its own grid; dequant gives code * scale in both types.
static void weights_are_exact(void **state) {
    (void)state;
    static RefTile ref;
    static double block[TILE * TILE];
    FOR_ALL_CASES {
        (void)ct; // weights are E4M3
        int64_t N = shapes[shape][0], K = shapes[shape][1], nmat = 1 + kind % 3;
        double *exact = malloc((size_t)(nmat * N * K) * sizeof *exact + 1);
        Mat x = make_mat(kind % 2 ? DT_F32 : DT_BF16, nmat * N, K, kind, exact);
        size_t mark = arena_mark(cx.scratch);
        void *p;
        assert_int_equal(arena_push(cx.scratch, &p, weight_bytes(nmat, N, K, st), "w"), OK);
        MatQ w = weight_view(p, nmat, N, K, st);
        QuantCount got = {0}, want = {0};
        cx.nthreads = 1 + kind % 3;
        assert_int_equal(weight_prepare_cpu(&cx, w, x, (QuantRule){0}, &got), OK);
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
                    ref_tile(&ref, block, nr * nc, w.st, w.ct, &want);
                    for (int64_t i = 0; i < nr * nc; i++) {
                        int64_t r = r0 + i / nc, c = c0 + i % nc;
                        float v = (float)(value_of(ref.code[i], w.ct) * ref.scale);
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
    assert_int_equal(quant_tile_cpu(&cx, y, mat(x, DT_F32, 1, 4), (QuantRule){0}, NULL),
                     E_INTERNAL);
    assert_int_equal(quant_tile_t_cpu(&cx, y, mat(x, DT_F32, 1, 4), all, (QuantRule){0}, NULL),
                     E_INTERNAL);
    assert_int_equal(
        quant_tile_t_cpu(&cx, y, mat(x, DT_F32, 2, 2), past_the_end, (QuantRule){0}, NULL),
        E_INTERNAL);
    QuantRule tiles = {0};
    Mat square = mat(x, DT_F32, 2, 2), flat = mat(x, DT_F32, 1, 4);
    assert_int_equal(quant_tile_pair_cpu(&cx, y, y, flat, all, tiles, tiles, NULL, NULL),
                     E_INTERNAL);
    assert_int_equal(quant_tile_pair_cpu(&cx, y, y, square, past_the_end, tiles, tiles, NULL, NULL),
                     E_INTERNAL);
    assert_int_equal(dequant_cpu(&cx, mat(x, DT_F32, 1, 4), y), E_INTERNAL);
    assert_int_equal(weight_prepare_cpu(&cx, y, mat(x, DT_F32, 2, 2), (QuantRule){0}, NULL),
                     E_INTERNAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_exact),   cmocka_unit_test(columns_are_exact),
        cmocka_unit_test(requant_is_exact), cmocka_unit_test(requant_of_any_codes),
        cmocka_unit_test(weights_are_exact),
        cmocka_unit_test(pairs_are_exact),  cmocka_unit_test(wrong_shapes_are_refused),
    };
    if (arena_create(&cx.scratch, "scratch", 16 << 20, false) != OK) return 1;
    arena_poison(true);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&cx.scratch);
    return failed;
}
