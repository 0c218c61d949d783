// test_quant_scopes.c - the coarser scalings: who shares a scale, by brute force; threads change
// nothing; what a static scale saturates; counters and their quantiles; what re-tiling costs.
#include "ops.h"
#include "quant_lanes.h"
#include "quant_reference.h"

static OpCx cx;
static const char *const isas[] = {"avx512", "avx2", "portable"};

static const QuantScope scopes[] = {SCOPE_TILE, SCOPE_BLOCK, SCOPE_ROW, SCOPE_TENSOR, SCOPE_STATIC};
// Calibrated: never a value, less than everything, too little, rightly, too much.
static const float static_amax[] = {0.0f, 1e-41f, 0.3f, 1.0f, 3e38f};

static const int64_t shapes[][2] = {{1, 1}, {5, 129}, {0, 5}, {290, 132}, {130, 324}};
enum { SHAPES = sizeof shapes / sizeof shapes[0], KEYS = 1 << 13 };

// Every scope, format of scales and codes and kind of values; instruction sets and the two large
// shapes take turns.
#define FOR_ALL_CASES                                                                              \
    for (int scope = 0; scope < 5; scope++)                                                        \
        for (int form = 0; form < 4; form++)                                                       \
            for (int kind = 0; kind <= FILL_COUNT; kind++)                                         \
                for (int shape = 0; shape < SHAPES; shape++)                                       \
                    if (shape < 3 || (shape + kind + form) % 2)

typedef struct Case {
    QuantRule rule;
    ScaleType st;
    CodeType ct;
    int64_t M, K;
    double *exact; // [M, K]
    Mat x;
} Case;

static Case make_case(int scope, int form, int kind, int shape, int64_t stack) {
    Case c = {{scopes[scope], static_amax[(kind + form) % 5]},
              form % 2,
              form / 2,
              shapes[shape][0],
              shapes[shape][1],
              NULL,
              {0}};
    int at = scope + kind + shape;
    while (!quant_select(isas[at % 3])) at++;
    cx.nthreads = 1 + (kind + form) % 3;
    c.exact = malloc((size_t)(stack * c.M * c.K) * sizeof *c.exact + 1);
    c.x = make_mat((kind + form) % 2 ? DT_F32 : DT_BF16, stack * c.M, c.K, kind, c.exact);
    return c;
}

static void free_case(Case *c) {
    free(c->exact);
    free(c->x.p);
}

// The largest finite magnitude by what shares a scale; key = any number for one such set.
static double shared[KEYS];

static void share(int64_t key, double v) {
    assert_true(key >= 0 && key < KEYS);
    if (isfinite(v) && fabs(v) > shared[key]) shared[key] = fabs(v);
}

static double amax_for(const Case *c, int64_t key) {
    return c->rule.scope == SCOPE_STATIC ? (double)c->rule.amax : shared[key];
}

// Element (r, c) of a matrix with `cols` columns, c in tile `tile` of part `part`.
static int64_t key_of(QuantScope scope, int64_t r, int64_t tile, int64_t part) {
    switch (scope) {
    case SCOPE_TILE: return r * 16 + tile;
    case SCOPE_BLOCK: return r / 128 * 16 + tile;
    case SCOPE_ROW: return r * 16 + part;
    default: return 0;
    }
}

static void rows_share(void **state) {
    (void)state;
    static RefTile ref;
    FOR_ALL_CASES {
        Case c = make_case(scope, form, kind, shape, 1);
        size_t mark = arena_mark(cx.scratch);
        MatQ y;
        assert_int_equal(
            arena_matq_rows(cx.scratch, &y, c.st, c.ct, c.M, ceil_div(c.K, 4) * 4, "y"), OK);
        y.cols = c.K;
        QuantCount got = {0}, want = {0};
        assert_int_equal(quant_tile_cpu(&cx, y, c.x, c.rule, &got), OK);
        memset(shared, 0, sizeof shared);
        for (int64_t i = 0; i < c.M * c.K; i++)
            share(key_of(c.rule.scope, i / c.K, i % c.K / 128, 0), c.exact[i]);
        for (int64_t r = 0; r < c.M; r++)
            for (int64_t k = 0; k < c.K; k += TILE) {
                double amax = amax_for(&c, key_of(c.rule.scope, r, k / 128, 0));
                int64_t n = min_i64(TILE, c.K - k);
                ref_tile_shared(&ref, c.exact + r * c.K + k, n, amax, c.st, c.ct, &want);
                assert_row(y, r, k, n, k / TILE, &ref);
            }
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free_case(&c);
    }
}

// The tiles of y [K, M] with the scales of c.rule, from the values c.exact [M, K].
static void check_turned(const Case *c, MatQ y, Groups g, int64_t ng, const QuantCount *got) {
    static RefTile ref;
    QuantCount want = {0};
    memset(shared, 0, sizeof shared);
    for (int is_second = 0; is_second < 2; is_second++) {
        int64_t first = 0;
        for (int64_t e = 0; e < ng; e++)
            for (int64_t i = 0; i < g.count[e]; i += TILE, first++)
                for (int64_t k = 0; k < c->K; k++) {
                    double tile[TILE];
                    int64_t n = min_i64(TILE, g.count[e] - i), m0 = g.start[e] + i;
                    int64_t key = key_of(c->rule.scope, k, first, e);
                    for (int64_t j = 0; j < n; j++) tile[j] = c->exact[(m0 + j) * c->K + k];
                    if (!is_second) {
                        share(key, ref_amax(tile, n));
                        continue;
                    }
                    ref_tile_shared(&ref, tile, n, amax_for(c, key), y.st, y.ct, &want);
                    assert_row(y, k, m0, n, first, &ref);
                }
    }
    assert_counts(got, &want);
}

static void columns_share(void **state) {
    (void)state;
    FOR_ALL_CASES {
        Case c = make_case(scope, form, kind, shape, 1);
        int64_t start[5], count[5];
        Groups g;
        int64_t ng = make_groups(&g, start, count, c.M, (kind + shape) % 3 != 0);
        size_t mark = arena_mark(cx.scratch);
        MatQ y;
        assert_int_equal(arena_matq_cols(cx.scratch, &y, c.st, c.ct, c.K, c.M, 5, "y"), OK);
        QuantCount got = {0};
        assert_int_equal(quant_tile_t_cpu(&cx, y, c.x, g, c.rule, &got), OK);
        check_turned(&c, y, g, ng, &got);
        arena_release(cx.scratch, mark);
        free_case(&c);
    }
}

// From codes: the values are those of dequant in BF16; codes of the other format, other scales.
static void codes_share(void **state) {
    (void)state;
    FOR_ALL_CASES {
        Case c = make_case(scope, form, kind, shape, 1);
        int64_t start[5], count[5];
        Groups g;
        int64_t ng = make_groups(&g, start, count, c.M, true);
        size_t mark = arena_mark(cx.scratch);
        MatQ q, y;
        Mat d;
        QuantRule coarse = {SCOPE_BLOCK, 0};
        assert_int_equal(arena_matq_rows(cx.scratch, &q, kind % 2, (kind + form) % 2, c.M,
                                         ceil_div(c.K, 4) * 4, "q"),
                         OK);
        q.cols = c.K;
        assert_int_equal(arena_matq_cols(cx.scratch, &y, c.st, c.ct, c.K, c.M, 5, "y"), OK);
        assert_int_equal(arena_mat(cx.scratch, &d, DT_BF16, c.M, c.K, "d"), OK);
        assert_int_equal(quant_tile_cpu(&cx, q, c.x, coarse, NULL), OK);
        assert_int_equal(dequant_cpu(&cx, d, q), OK);
        for (int64_t i = 0; i < c.M * c.K; i++)
            c.exact[i] = (double)f32_from_bf16(((uint16_t *)d.p)[i]);
        QuantCount got = {0};
        assert_int_equal(requant_tile_t_cpu(&cx, y, q, g, c.rule, &got), OK);
        check_turned(&c, y, g, ng, &got);
        arena_release(cx.scratch, mark);
        free_case(&c);
    }
}

// Weights: ROW is TENSOR, each matrix of a stack by itself, never one scale for the stack.
static void weights_share(void **state) {
    (void)state;
    static RefTile ref;
    static double block[TILE * TILE];
    FOR_ALL_CASES {
        if (form / 2) continue; // weights are E4M3
        int64_t nmat = 1 + kind % 3;
        Case c = make_case(scope, form, kind, shape, nmat);
        bool is_whole = c.rule.scope == SCOPE_ROW || c.rule.scope == SCOPE_TENSOR;
        size_t mark = arena_mark(cx.scratch);
        void *p;
        assert_int_equal(arena_push(cx.scratch, &p, weight_bytes(nmat, c.M, c.K, c.st), "w"), OK);
        MatQ w = weight_view(p, nmat, c.M, c.K, c.st);
        QuantCount got = {0}, want = {0};
        assert_int_equal(weight_prepare_cpu(&cx, w, c.x, c.rule, &got), OK);
        for (int64_t e = 0; e < nmat; e++) {
            MatQ y = matq_mat(w, e);
            double whole = ref_amax(c.exact + e * c.M * c.K, c.M * c.K);
            for (int64_t i = 0; i < ceil_div(c.M, TILE) * ceil_div(c.K, TILE); i++) {
                int64_t r0 = i / ceil_div(c.K, TILE) * TILE, c0 = i % ceil_div(c.K, TILE) * TILE;
                int64_t nr = min_i64(TILE, c.M - r0), nc = min_i64(TILE, c.K - c0);
                for (int64_t j = 0; j < nr * nc; j++)
                    block[j] = c.exact[(e * c.M + r0 + j / nc) * c.K + c0 + j % nc];
                double amax = is_whole                       ? whole
                              : c.rule.scope == SCOPE_STATIC ? (double)c.rule.amax
                                                             : ref_amax(block, nr * nc);
                ref_tile_shared(&ref, block, nr * nc, amax, c.st, CODE_E4M3, &want);
                assert_true(scale_at(y, r0, c0 / TILE) == ref.scale);
                for (int64_t r = 0; r < nr; r++)
                    assert_memory_equal(y.q + (r0 + r) * y.ld + c0, ref.code + r * nc, (size_t)nc);
            }
        }
        assert_counts(&got, &want);
        arena_release(cx.scratch, mark);
        free_case(&c);
    }
}

// Tiles that are nothing but special, with numbers one can check by hand.
static void strange_tiles(void **state) {
    (void)state;
    enum { ROWS = 6 };
    static float x[ROWS * TILE];
    for (int c = 0; c < TILE; c++) {
        x[0 * TILE + c] = c == 3 ? NAN : c == 4 ? -INFINITY : 448.0f; // saturates exactly nothing
        x[1 * TILE + c] = 0.0f;
        x[2 * TILE + c] = f32_from_bf16((uint16_t)(1 + c % 127)); // subnormals
        x[3 * TILE + c] = c ? 1.0f : 450.0f;                      // 1.7578 * 2^8: beyond 1.75
        x[4 * TILE + c] = c % 2 ? NAN : INFINITY;
        x[5 * TILE + c] = 2.0f;
    }
    uint8_t wire[ROWS * (TILE + 16)];
    Mat m = mat(x, DT_F32, ROWS, TILE);
    MatQ y = matq_wire(wire, SCALE_E8M0, CODE_E4M3, ROWS, TILE);
    for (int i = 0; i < 5; i++) {
        QuantRule rule = {scopes[i], 1.0f};
        QuantCount n = {0};
        assert_int_equal(quant_tile_cpu(&cx, y, m, rule, &n), OK);
        bool is_alone = rule.scope == SCOPE_TILE || rule.scope == SCOPE_ROW;
        bool is_static = rule.scope == SCOPE_STATIC;
        assert_int_equal(n.tiles, ROWS);
        assert_int_equal(n.nonfinite_tiles, 2);
        assert_int_equal(n.amax_bits, f32_bits(450.0f));
        // With a scale of 2^-8 what lies above 1.75: 126 times 448, 450, 128 times 2.
        assert_int_equal(n.saturated, is_static ? 126 + 1 + 128 : 0);
        assert_int_equal(n.underflow, is_alone ? 0 : TILE); // the subnormals
        int64_t scales = 0;
        for (int b = 0; b < SCALE_BINS; b++) scales += n.scales[b];
        assert_int_equal(scales, 4); // neither the zeros nor the tile without a finite value
        assert_int_equal(y.q[3] & 0x7F, 0x7F);
        assert_int_equal(y.q[4], 0xFF);
        for (int c = 0; c < TILE; c++) {
            assert_int_equal(y.q[y.ld + c], 0);
            assert_int_equal(y.q[4 * y.ld + c] & 0x7F, 0x7F);
        }
        double one = scale_at(y, 1, 0);
        assert_true(one == (is_alone ? 1.0 : is_static ? 0x1p-8 : 2.0));
    }
    // A static scale far too small: quotients overflow to infinity and still saturate.
    QuantRule tiny = {SCOPE_STATIC, 1e-41f};
    float large[4] = {3e38f, -3e38f, NAN, 0.0f};
    QuantCount n = {0};
    y = matq_wire(wire, SCALE_F32, CODE_E5M2, 1, 4);
    assert_int_equal(quant_tile_cpu(&cx, y, mat(large, DT_F32, 1, 4), tiny, &n), OK);
    assert_int_equal(y.q[0], 0x7B);
    assert_int_equal(y.q[1], 0xFB);
    assert_int_equal(y.q[2], 0x7F);
    assert_int_equal(y.q[3], 0);
    assert_int_equal(n.saturated, 2);
}

static void quantiles(void **state) {
    (void)state;
    QuantCount n = {0}, m = {0};
    assert_true(quant_count_scale_quantile(&n, 0.5) == 0);
    n.scales[-8 - SCALE_BIN_LOW] = 1;
    n.scales[-6 - SCALE_BIN_LOW] = 5;
    m.scales[-1 - SCALE_BIN_LOW] = 4;
    n.amax_bits = (int32_t)f32_bits(2.0f);
    m.amax_bits = (int32_t)f32_bits(3.0f);
    m.values = 7, m.saturated = 6, m.underflow = 5, m.tiles = 4, m.nonfinite_tiles = 3;
    quant_count_add(&n, &m);
    quant_count_add(&n, &(QuantCount){.values = 1, .amax_bits = 5});
    assert_int_equal(n.values, 8);
    assert_int_equal(n.saturated, 6);
    assert_int_equal(n.underflow, 5);
    assert_int_equal(n.tiles, 4);
    assert_int_equal(n.nonfinite_tiles, 3);
    assert_int_equal(n.amax_bits, f32_bits(3.0f));
    static const double at[][2] = {{0, -8},   {0.1, -8},  {0.11, -6}, {0.5, -6},
                                   {0.6, -6}, {0.61, -1}, {1, -1}};
    for (int i = 0; i < 7; i++)
        assert_true(quant_count_scale_quantile(&n, at[i][0]) == exp2(at[i][1]));
    // Beyond either end.
    memset(&n, 0, sizeof n);
    float x[2][TILE] = {{1e-38f}, {3e38f}};
    uint8_t wire[2 * (TILE + 16)];
    MatQ y = matq_wire(wire, SCALE_F32, CODE_E4M3, 2, TILE);
    assert_int_equal(quant_tile_cpu(&cx, y, mat(x, DT_F32, 2, TILE), (QuantRule){0}, &n), OK);
    assert_int_equal(n.scales[0], 1);
    assert_int_equal(n.scales[SCALE_BINS - 1], 1);
}

// Re-tiling from 1x128 to 128x1. With powers of two a value whose new code is a normal one comes
// out as it went in; with FP32 scales most values move.
static void retiling(void **state) {
    (void)state;
    enum { M = 256, K = 128 };
    for (int ct = 0; ct < 2; ct++)
        for (int st = 0; st < 2; st++) {
            double *exact = malloc(sizeof *exact * M * K), normal = ct ? 0x1p-14 : 0x1p-6;
            Mat x = make_mat(DT_F32, M, K, FILL_WIDE, exact);
            for (int64_t r = 0; r < M; r++) // rows of different sizes, so that scales differ
                for (int64_t c = 0; c < K; c++) *(float *)mat_at(x, r, c) *= (float)(1 + r % 13);
            size_t mark = arena_mark(cx.scratch);
            MatQ q, y;
            Mat before, after;
            assert_int_equal(arena_matq_rows(cx.scratch, &q, st, ct, M, K, "q"), OK);
            assert_int_equal(arena_matq_cols(cx.scratch, &y, st, ct, K, M, 1, "y"), OK);
            assert_int_equal(arena_mat(cx.scratch, &before, DT_F32, M, K, "before"), OK);
            assert_int_equal(arena_mat(cx.scratch, &after, DT_F32, K, M, "after"), OK);
            assert_int_equal(quant_tile_cpu(&cx, q, x, (QuantRule){0}, NULL), OK);
            assert_int_equal(requant_tile_t_cpu(&cx, y, q, (Groups){0}, (QuantRule){0}, NULL), OK);
            assert_int_equal(dequant_cpu(&cx, before, q), OK);
            double sum = 0, sum_low = 0, all = 0;
            int64_t large = 0, moved = 0;
            for (int64_t c = 0; c < K; c++)
                for (int64_t m = 0; m < M; m++) {
                    double s = scale_at(y, c, m / TILE), v = *(float *)mat_at(before, m, c);
                    double e = value_of(y.q[c * y.ld + m], ct) * s - v;
                    all += v * v;
                    if (fabs(v) < normal * s) {
                        // Half a unit of the subnormal codes, and the rounding of the value to
                        // BF16.
                        assert_true(fabs(e) <= normal * s / (ct ? 8 : 16) + 0x1p-8 * fabs(v));
                        sum_low += e * e;
                        continue;
                    }
                    sum += e * e;
                    large++;
                    moved += e != 0;
                }
            assert_true(large > M * K / 2);
            if (st == SCALE_E8M0) {
                assert_int_equal(moved, 0);
                assert_true(ct == CODE_E5M2 || sum_low > 0); // what does underflow is no illusion
            } else {
                assert_true(moved > large / 2);
                assert_true(sqrt(sum / all) > (ct ? 0.02 : 0.01) && sqrt(sum / all) < 0.1);
            }
            arena_release(cx.scratch, mark);
            free(exact);
            free(x.p);
        }
}

static void wrong_rules_are_refused(void **state) {
    (void)state;
    static const QuantRule wrong[] = {{(QuantScope)5, 0},
                                      {(QuantScope)-1, 0},
                                      {SCOPE_STATIC, -1.0f},
                                      {SCOPE_STATIC, NAN},
                                      {SCOPE_STATIC, INFINITY}};
    float x[4] = {1, 2, 3, 4};
    uint8_t q[64];
    void *p;
    size_t mark = arena_mark(cx.scratch);
    MatQ rows = matq_wire(q, SCALE_E8M0, CODE_E4M3, 1, 4), cols;
    assert_int_equal(arena_matq_cols(cx.scratch, &cols, SCALE_E8M0, CODE_E4M3, 4, 1, 1, "cols"),
                     OK);
    assert_int_equal(arena_push(cx.scratch, &p, weight_bytes(1, 1, 4, SCALE_E8M0), "w"), OK);
    MatQ w = weight_view(p, 1, 1, 4, SCALE_E8M0);
    Mat m = mat(x, DT_F32, 1, 4);
    assert_int_equal(quant_tile_cpu(&cx, rows, m, (QuantRule){0}, NULL), OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(quant_tile_cpu(&cx, rows, m, wrong[i], NULL), E_INTERNAL);
        assert_int_equal(quant_tile_t_cpu(&cx, cols, m, (Groups){0}, wrong[i], NULL), E_INTERNAL);
        assert_int_equal(requant_tile_t_cpu(&cx, cols, rows, (Groups){0}, wrong[i], NULL),
                         E_INTERNAL);
        assert_int_equal(weight_prepare_cpu(&cx, w, m, wrong[i], NULL), E_INTERNAL);
    }
    arena_release(cx.scratch, mark);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_share),    cmocka_unit_test(columns_share),
        cmocka_unit_test(codes_share),   cmocka_unit_test(weights_share),
        cmocka_unit_test(strange_tiles), cmocka_unit_test(quantiles),
        cmocka_unit_test(retiling),      cmocka_unit_test(wrong_rules_are_refused),
    };
    if (arena_create(&cx.scratch, "scratch", 16 << 20, false) != OK) return 1;
    arena_poison(true);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&cx.scratch);
    return failed;
}
