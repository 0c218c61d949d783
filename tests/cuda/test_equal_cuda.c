// test_equal_cuda.c - the CUDA backend against the CPU's, bit for bit where operations are EXACT, under every
// schedule; and every operation gives the same bits under every schedule.
#include "on_cpu.h"
#include "e5m6.h"
#include "gemm_cuda_mma.h"
#include "gemm_cuda_sm90.h"

static const Device *dev;
static Arena *scratch;
static OpCx cx;
static uint64_t stream = 1;
static const QuantRule tiles_rule = {SCOPE_TILE, 0.0f};

// Normal numbers times a power of two per row, with some zeros, infinities and NaNs of both signs.
static Mat values(DType t, int64_t rows, int64_t cols, int64_t pad, bool has_bad) {
    Mat m = {calloc((size_t)(rows * (cols + pad) + 1), dtype_bytes(t)), t, rows, cols, cols + pad};
    assert_non_null(m.p);
    stream++;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            Philox w = philox(3, stream, (uint64_t)(r * cols + c));
            float v = (float)ldexp(rng_normal(5, stream, (uint64_t)(r * cols + c)), (int)(r % 60) - 30);
            if (w.v[0] % 50 == 0) v = 0.0f;
            if (has_bad && w.v[1] % 97 == 0)
                v = f32_from_bits((w.v[2] & 1 ? 0xFFC00000u : 0x7FC00000u) - (w.v[2] & 2 ? 0x400000u : 0));
            if (t == DT_F32)
                *(float *)mat_at(m, r, c) = v;
            else
                *(uint16_t *)mat_at(m, r, c) = bf16_from_f32(v);
        }
    return m;
}
static Mat like(Mat m) {
    Mat c = m;
    size_t bytes = (size_t)(m.rows * m.ld + 1) * dtype_bytes(m.t);
    c.p = malloc(bytes);
    assert_non_null(c.p);
    memcpy(c.p, m.p, bytes);
    return c;
}
static void same(Mat a, Mat b, const char *what) {
    for (int64_t r = 0; r < a.rows; r++)
        if (memcmp(mat_at(a, r, 0), mat_at(b, r, 0), (size_t)a.cols * dtype_bytes(a.t)))
            fail_msg("%s: row %lld differs", what, (long long)r);
}

// Codes and scales of one quantised matrix in memory of its own.
typedef struct Codes {
    MatQ m;
    size_t qbytes, sbytes;
} Codes;
static Codes codes(ScaleType st, int64_t rows, int64_t cols, int64_t tiles, int tile_rows, int64_t nmat) {
    Codes c = {{0}, (size_t)(nmat * rows * cols + 1), 0};
    int64_t srows = tile_rows == 1 ? rows : ceil_div(rows, TILE);
    c.sbytes = (size_t)(nmat * srows * tiles + 1) * (st == SCALE_F32 ? 4 : 1);
    c.m = (MatQ){malloc(c.qbytes), malloc(c.sbytes), st, CODE_E4M3, rows, cols, cols, tiles, 1, tile_rows, nmat,
                 rows * cols, srows * tiles};
    assert_true(c.m.q && c.m.s);
    memset(c.m.q, 0x55, c.qbytes); // what nobody writes must stay
    memset(c.m.s, 0x55, c.sbytes);
    return c;
}
static void same_codes(Codes a, Codes b, const char *what) {
    if (memcmp(a.m.q, b.m.q, a.qbytes)) fail_msg("%s: codes differ", what);
    if (memcmp(a.m.s, b.m.s, a.sbytes)) fail_msg("%s: scales differ", what);
}
static void free_codes(Codes c) {
    free(c.m.q);
    free(c.m.s);
}
static void same_counts(QuantCount a, QuantCount b) {
    assert_memory_equal(&a, &b, offsetof(QuantCount, amax_bits));
    assert_int_equal(a.amax_bits, b.amax_bits);
    assert_true(a.values > 0 && a.tiles > 0);
}

// The last two with rows at multiples of 16 bytes.
static const int64_t sizes[][2] = {{1, 1}, {3, 130}, {130, 257}, {65, 128}, {2, 1000}, {40, 384}, {9, 272}};
enum { SIZES = 7 };

static void test_quant(void **state) {
    (void)state;
    for (int k = 0; k < SIZES * 4; k++) {
        int64_t M = sizes[k / 4][0], K = sizes[k / 4][1], pad = k / 4 < 5;
        DType t = k & 1 ? DT_BF16 : DT_F32;
        ScaleType st = k & 2 ? SCALE_E8M0 : SCALE_F32;
        Mat x = values(t, M, K, 3 * pad, true), y = values(t, M, K, pad, false), z = like(y);
        Codes a = codes(st, M, K, ceil_div(K, TILE), 1, 1), b = codes(st, M, K, ceil_div(K, TILE), 1, 1);
        QuantCount na = {0}, nb = {0};
        MUST_OK(quant_tile_cpu(&cx, a.m, x, tiles_rule, &na));
        MUST_OK(dequant_cpu(&cx, y, a.m));
        Mat e = {calloc((size_t)(M * e5m6_row_bytes(K) + 1), 1), DT_U8, M, e5m6_row_bytes(K), e5m6_row_bytes(K)};
        Mat f = like(e);
        MUST_OK(quant_e5m6_cpu(&cx, e, x, &na));
        FOR_SCHEDULES(i) {
            nb = (QuantCount){0};
            MUST_OK(quant_tile_cuda(&cx, b.m, x, tiles_rule, &nb));
            same_codes(a, b, "quant_tile");
            MUST_OK(dequant_cuda(&cx, z, b.m));
            same(y, z, "dequant");
            MUST_OK(quant_e5m6_cuda(&cx, f, x, &nb));
            same(e, f, "quant_e5m6");
            same_counts(na, nb);
        }
        MUST_OK(dequant_e5m6_cpu(&cx, y, e));
        MUST_OK(dequant_e5m6_cuda(&cx, z, f));
        same(y, z, "dequant_e5m6");
        free(x.p), free(y.p), free(z.p), free(e.p), free(f.p), free_codes(a), free_codes(b);
    }
}

static void test_quant_tokens(void **state) {
    (void)state;
    int64_t start[] = {0, 5, 5, 140, 300}, count[] = {3, 0, 130, 128, 1};
    for (int k = 0; k < 8; k++) {
        int64_t M = 310, K = k & 4 ? 70 : 33, tiles = ceil_div(M, TILE) + 5;
        ScaleType st = k & 1 ? SCALE_E8M0 : SCALE_F32;
        Groups g = {start, count, k & 2 ? 5 : 0};
        Mat x = values(DT_BF16, M, K, 0, true);
        Codes rows = codes(st, M, K, ceil_div(K, TILE), 1, 1), a = codes(st, K, M, tiles, 1, 1);
        Codes b = codes(st, K, M, tiles, 1, 1), c = codes(st, K, M, tiles, 1, 1), d = codes(st, K, M, tiles, 1, 1);
        QuantCount na = {0}, nb = {0};
        MUST_OK(quant_tile_cpu(&cx, rows.m, x, tiles_rule, NULL));
        MUST_OK(quant_tile_t_cpu(&cx, a.m, x, g, tiles_rule, &na));
        MUST_OK(requant_tile_t_cpu(&cx, c.m, rows.m, g, tiles_rule, &na));
        FOR_SCHEDULES(i) {
            nb = (QuantCount){0};
            MUST_OK(quant_tile_t_cuda(&cx, b.m, x, g, tiles_rule, &nb));
            same_codes(a, b, "quant_tile_t");
            MUST_OK(requant_tile_t_cuda(&cx, d.m, rows.m, g, tiles_rule, &nb));
            same_codes(c, d, "requant_tile_t");
            same_counts(na, nb);
            memset(d.m.q, 0x55, d.qbytes);
            MUST_OK(quant_tile_pair_cuda(&cx, rows.m, d.m, x, g, tiles_rule, tiles_rule, NULL, &nb));
            same_codes(a, d, "quant_tile_pair");
        }
        free(x.p), free_codes(rows), free_codes(a), free_codes(b), free_codes(c), free_codes(d);
    }
}

static void test_weights(void **state) {
    (void)state;
    for (int k = 0; k < 4; k++) {
        int64_t N = k & 1 ? 130 : 40, K = k & 1 ? 129 : 300, nmat = 2, tiles = ceil_div(K, TILE);
        Mat x = values(DT_BF16, nmat * N, K, 0, true);
        ScaleType st = k & 2 ? SCALE_E8M0 : SCALE_F32;
        Codes a = codes(st, N, K, tiles, TILE, nmat), b = codes(st, N, K, tiles, TILE, nmat);
        QuantCount na = {0}, nb = {0};
        MUST_OK(weight_prepare_cpu(&cx, a.m, x, tiles_rule, &na));
        FOR_SCHEDULES(i) {
            nb = (QuantCount){0};
            MUST_OK(weight_prepare_cuda(&cx, b.m, x, tiles_rule, &nb));
            same_codes(a, b, "weight_prepare");
            same_counts(na, nb);
        }
        free(x.p), free_codes(a), free_codes(b);
    }
}

// What the backend does not have is refused by its name, whichever operand or kernel it is, and nothing is written.
static void test_refused(void **state) {
    (void)state;
    enum { N = 8 };
    static const char *const scopes[] = {"tile", "block", "row", "tensor", "static"};
    Mat x = values(DT_F32, N, N, 0, false), y = values(DT_F32, N, N, 0, false);
    Codes q = codes(SCALE_E8M0, N, N, 1, 1, 1), r = codes(SCALE_F32, N, N, 1, 1, 1);
    Codes w = codes(SCALE_F32, N, N, 1, TILE, 1), untouched = codes(SCALE_E8M0, N, N, 1, 1, 1);
    Groups g = {0};
    QuantCount n = {0};
    for (int scope = SCOPE_BLOCK; scope <= SCOPE_STATIC; scope++) {
        QuantRule rule = {(QuantScope)scope, 1.0f};
        MUST_FAIL(quant_tile_cuda(&cx, q.m, x, rule, &n), E_INTERNAL, scopes[scope]);
        MUST_FAIL(quant_tile_t_cuda(&cx, q.m, x, g, rule, &n), E_INTERNAL, scopes[scope]);
        MUST_FAIL(quant_tile_pair_cuda(&cx, q.m, q.m, x, g, tiles_rule, rule, &n, &n), E_INTERNAL, scopes[scope]);
        MUST_FAIL(requant_tile_t_cuda(&cx, q.m, r.m, g, rule, &n), E_INTERNAL, scopes[scope]);
        MUST_FAIL(weight_prepare_cuda(&cx, w.m, x, rule, &n), E_INTERNAL, scopes[scope]);
    }
    MUST_FAIL(quant_tile_cuda(&cx, q.m, x, (QuantRule){(QuantScope)7, 0.0f}, &n), E_INTERNAL, "no scope");
    MatQ half = q.m, weight = w.m;
    half.ct = weight.ct = CODE_E5M2;
    MUST_FAIL(quant_tile_cuda(&cx, half, x, tiles_rule, &n), E_INTERNAL,
              "scope 'tile' with E5M2 codes and E8M0 scales");
    MUST_FAIL(quant_tile_t_cuda(&cx, half, x, g, tiles_rule, &n), E_INTERNAL, "E5M2");
    MUST_FAIL(requant_tile_t_cuda(&cx, half, r.m, g, tiles_rule, &n), E_INTERNAL, "E5M2");
    MUST_FAIL(requant_tile_t_cuda(&cx, q.m, half, g, tiles_rule, &n), E_INTERNAL, "E5M2");
    MUST_FAIL(weight_prepare_cuda(&cx, weight, x, tiles_rule, &n), E_INTERNAL, "E5M2");
    MUST_FAIL(dequant_cuda(&cx, y, half), E_INTERNAL, "E5M2");
    int64_t start = 0, count = N;
    g = (Groups){&start, &count, 1};
    for (int sm90 = 0; sm90 < 2; sm90++) { // the plain kernel's check, then that of Hopper's
        gemm_sm90_choose(sm90);
        assert_int_equal(gemm_sm90_takes(&cx, half, w.m, true), sm90);
        MUST_FAIL(gemm_fp8_fprop_cuda(&cx, y, half, w.m, false), E_INTERNAL, "E5M2 and E4M3 codes");
        MUST_FAIL(gemm_fp8_dgrad_cuda(&cx, y, q.m, weight, false), E_INTERNAL, "E4M3 and E5M2 codes");
        MUST_FAIL(gemm_fp8_wgrad_cuda(&cx, y, half, half, false), E_INTERNAL, "E5M2 and E5M2 codes");
        MUST_FAIL(ggemm_fp8_fprop_cuda(&cx, y, q.m, weight, g, false), E_INTERNAL, "E4M3 and E5M2 codes");
        MUST_FAIL(ggemm_fp8_dgrad_cuda(&cx, y, half, w.m, g, false), E_INTERNAL, "E5M2 and E4M3 codes");
        MUST_FAIL(ggemm_fp8_wgrad_cuda(&cx, y, q.m, half, g, false), E_INTERNAL, "E4M3 and E5M2 codes");
    }
    gemm_sm90_choose(-1);
    MUST_OK(dev->sync());
    same_codes(q, untouched, "refused");
    assert_int_equal(n.values, 0);
    free(x.p), free(y.p), free_codes(q), free_codes(r), free_codes(w), free_codes(untouched);
}

static void test_elements(void **state) {
    (void)state;
    for (int k = 0; k < 4; k++) {
        DType t = k & 1 ? DT_BF16 : DT_F32, u = k & 2 ? DT_BF16 : DT_F32;
        Mat a = values(t, 37, 61, 2, false), b = values(u, 37, 61, 0, false), y = values(u, 37, 61, 5, false);
        Mat z = like(y), bad = values(t, 37, 61, 0, true);
        Mat w = values(DT_F32, 37, 61, 0, false), m = values(t, 37, 61, 0, false), v = values(t, 37, 61, 0, false);
        for (int64_t i = 0; i < 37 * 61; i++) // second moments are not negative
            if (t == DT_F32)
                ((float *)v.p)[i] = fabsf(((float *)v.p)[i]);
            else
                ((uint16_t *)v.p)[i] &= 0x7FFF;
        Mat g = values(DT_F32, 37, 61, 0, false), w2 = like(w), m2 = like(m), v2 = like(v);
        AdamStep s = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 0.7f};
        FOR_SCHEDULES(i) {
            MUST_OK(add_cpu(&cx, y, a, b));
            MUST_OK(add_cuda(&cx, z, a, b));
            same(y, z, "add");
            MUST_OK(cast_cpu(&cx, y, bad));
            MUST_OK(cast_cuda(&cx, z, bad));
            same(y, z, "cast");
            MUST_OK(adam_step_cpu(&cx, w, m, v, g, mat_none(), s));
            MUST_OK(adam_step_cuda(&cx, w2, m2, v2, g, mat_none(), s));
            same(w, w2, "weights"), same(m, m2, "first moments"), same(v, v2, "second moments");
        }
        free(a.p), free(b.p), free(y.p), free(z.p), free(bad.p), free(w.p), free(m.p), free(v.p), free(g.p);
        free(w2.p), free(m2.p), free(v2.p);
    }
}

static void test_rows(void **state) {
    (void)state;
    int32_t idx[50], first[12] = {0, 0, 3, 4, 4, 9, 20, 21, 30, 40, 50, 50}, token[64];
    for (int i = 0; i < 50; i++) idx[i] = (i * 29 + 7) % 23;
    for (int i = 0; i < 64; i++) token[i] = i % 9 == 8 ? -1 : (i * i) % 23;
    for (int64_t bytes = 5; bytes <= 136; bytes += 131) { // bytes, then words
        uint8_t src[23 * 136], a[50 * 136], b[50 * 136];
        for (size_t i = 0; i < sizeof src; i++) src[i] = (uint8_t)(i * 7 + i / 256);
        idx[11] = -1;
        MUST_OK(rows_gather_cpu(&cx, a, src, idx, 50, bytes));
        FOR_SCHEDULES(i) {
            memset(b, 0, sizeof b);
            MUST_OK(rows_gather_cuda(&cx, b, src, idx, 50, bytes));
            assert_memory_equal(a, b, (size_t)(50 * bytes));
        }
        idx[11] = 1;
    }
    Mat x = values(DT_BF16, 23, 70, 1, false), add = values(DT_F32, 11, 70, 0, false);
    Mat y = values(DT_BF16, 11, 70, 0, false), z = like(y);
    Mat e = values(DT_BF16, 64, 70, 0, false), f = like(e), d = values(DT_F32, 23, 70, 0, false);
    MUST_OK(rows_sum_cpu(&cx, y, x, first, idx, add, mat_none()));
    MUST_OK(embed_fwd_cpu(&cx, e, x, token));
    FOR_SCHEDULES(i) {
        MUST_OK(rows_sum_cuda(&cx, z, x, first, idx, add, mat_none()));
        same(y, z, "rows_sum");
        MUST_OK(embed_fwd_cuda(&cx, f, x, token));
        same(e, f, "embed_fwd");
        Mat d1 = like(d), d2 = like(d);
        MUST_OK(embed_bwd_cpu(&cx, d1, e, token));
        MUST_OK(embed_bwd_cuda(&cx, d2, e, token));
        same(d1, d2, "embed_bwd");
        free(d1.p), free(d2.p);
    }
    free(x.p), free(add.p), free(y.p), free(z.p), free(e.p), free(f.p), free(d.p);
}

static void test_route(void **state) {
    (void)state;
    for (int k = 0; k < 8; k++) {
        RouteShape s = {24, 40, 6, k & 1 ? 8 : 1, k & 1 ? 3 : 1, k & 2, k & 4, 2.5f, 0.3f};
        Mat logits = values(DT_F32, s.T, s.E, 2, false), bias = values(DT_F32, 1, s.E, 0, false);
        for (int64_t i = 0; i < s.T * logits.ld; i++) ((float *)logits.p)[i] = (float)(i * 37 % 23) / 8.0f; // many ties
        int32_t a[24 * 6], b[24 * 6];
        float ga[24 * 6], gb[24 * 6], sa[24 * 40], sb[24 * 40], ca[3 * 40], cb[3 * 40];
        int64_t na[40] = {0}, nb[40];
        double la = 0.5, lb;
        const float *with = k & 1 ? bias.p : NULL;
        Mat da = like(logits), db = like(logits);
        MUST_OK(route_fwd_cpu(&cx, a, ga, sa, na, logits, with, s));
        MUST_OK(route_seqbal_cpu(&cx, &la, ca, sa, s, 3));
        MUST_OK(route_bwd_cpu(&cx, da, ga, ga, sa, a, ca, s, 3));
        FOR_SCHEDULES(i) {
            memset(nb, 0, sizeof nb);
            lb = 0.5;
            MUST_OK(route_fwd_cuda(&cx, b, gb, sb, nb, logits, with, s));
            assert_memory_equal(a, b, sizeof a);
            assert_memory_equal(ga, gb, sizeof ga);
            assert_memory_equal(sa, sb, sizeof sa);
            assert_memory_equal(na, nb, sizeof na);
            MUST_OK(route_seqbal_cuda(&cx, &lb, cb, sb, s, 3));
            assert_true(la == lb);
            assert_memory_equal(ca, cb, sizeof ca);
            MUST_OK(route_bwd_cuda(&cx, db, gb, gb, sb, b, cb, s, 3));
            same(da, db, "route_bwd");
        }
        free(logits.p), free(bias.p), free(da.p), free(db.p);
    }
}

static Mat ramp(int64_t rows, int64_t cols, int64_t period) {
    Mat m = values(DT_F32, rows, cols, 0, false);
    for (int64_t i = 0; i < rows * cols; i++) ((float *)m.p)[i] = (float)(i % period) / (float)period - 0.4f;
    return m;
}

// Operations whose sums have an order of their own: the same bits under every schedule. (Their distance from double
// is what the unit tests measure.) Sizes: more than one slice of a product, more than one panel of keys.
enum { STEADY = 8 };
static void steady_run(Mat *out, double *sum, const Mat *in, Groups g, AttnShape s) {
    Mat x = in[0], kv = in[1], kr = in[2], w = in[3];
    float rstd[150], lse[300];
    int64_t bad = 0;
    MUST_OK(ggemm_nt_cuda(&cx, out[0], kv, w, g, false));
    MUST_OK(norm_rms_fwd_cuda(&cx, out[1], rstd, x, w.p, 1e-6f));
    MUST_OK(norm_rms_bwd_cuda(&cx, out[2], out[7].p, out[1], x, w.p, rstd, x));
    MUST_OK(attn_fwd_cuda(&cx, out[3], lse, x, kv, kr, s, NULL));
    MUST_OK(attn_bwd_cuda(&cx, out[4], out[5], out[6], out[3], out[3], lse, x, kv, kr, s, NULL));
    MUST_OK(sumsq_blocks_cuda(&cx, sum, &bad, mat_rows(out[5], 0, 128)));
    MUST_OK(sumsq_blocks_cuda(&cx, sum + 1, &bad, mat_rows(out[4], 0, 128)));
    assert_int_equal(bad, 0);
}
static void test_steady(void **state) {
    (void)state;
    int64_t start[] = {0, 70, 70}, count[] = {66, 0, 9};
    Groups g = {start, count, 3};
    AttnShape s = {1, 150, 2, 8, 4, 30, 0.25f};
    const int64_t cols[STEADY] = {70, 24, 24, 60, 24, 76, 4, 24};
    Mat in[4] = {ramp(150, 24, 13), ramp(150, 76, 17), ramp(150, 4, 7), ramp(3 * 70, 76, 11)};
    Mat first[STEADY];
    double sum[2], first_sum[2] = {0};
    FOR_SCHEDULES(i) {
        Mat out[STEADY];
        for (int k = 0; k < STEADY; k++) {
            out[k] = ramp(150, cols[k], 3);
            memset(out[k].p, 0, (size_t)(150 * cols[k]) * 4);
        }
        steady_run(out, sum, in, g, s);
        if (i == 0) memcpy(first_sum, sum, sizeof sum);
        assert_true(sum[0] > 0 && memcmp(first_sum, sum, sizeof sum) == 0);
        for (int k = 0; k < STEADY; k++) {
            if (i == 0)
                first[k] = out[k];
            else
                same(first[k], out[k], "another schedule"), free(out[k].p);
        }
    }
    for (int k = 0; k < STEADY; k++) free(first[k].p);
    for (int k = 0; k < 4; k++) free(in[k].p);
}

// Bytes of shared memory that a block can have with compute capability 8.6, 8.9 or 12.0, and 8.0.
enum { SMALL_BLOCK = 99 << 10, AMPERE_BLOCK = 163 << 10 };

// The gated unit's backward, fused and not, in large blocks and small ones: the same bits under every schedule, and
// those of each other.
static void test_gated(void **state) {
    (void)state;
    enum { M = 300, F = 300, TILES = 3 + 3 };
    int64_t start[] = {0, 70, 70}, count[] = {66, 0, 230};
    Groups g = {start, count, 3};
    Mat dh = values(DT_BF16, M, F, 0, true), gu = values(DT_BF16, M, 2 * F, 0, false);
    Mat gate = values(DT_F32, 1, M, 0, false);
    Codes kept = codes(SCALE_E8M0, M, 2 * F, ceil_div(2 * F, TILE), 1, 1), first[5];
    float dgate[2][M] = {0}, single[M] = {0};
    QuantCount counts[2][5];
    MUST_OK(quant_tile_cuda(&cx, kept.m, gu, tiles_rule, NULL));
    MatQ qg = kept.m, qu = matq_cols(kept.m, 2 * TILE, F, 2);
    qg.cols = F;
    Mat a = values(DT_BF16, M, F, 0, false), b = like(a);
    MUST_OK(dequant_cuda(&cx, a, qg));
    MUST_OK(dequant_cuda(&cx, b, qu));
    MUST_OK(swiglu_bwd_cuda(&cx, a, b, single, dh, a, b, gate.p));
    FOR_SCHEDULES(i) {
        Codes out[5];
        Mat again = values(DT_BF16, M, F, 0, false), other = like(again);
        for (int k = 0; k < 5; k++)
            out[k] = k < 2 ? codes(SCALE_E8M0, M, F, 3, 1, 1) : codes(SCALE_F32, F, M, TILES, 1, 1);
        SwigluQuantBwd to = {{out[0].m, NULL}, {out[1].m, NULL}, {out[2].m, NULL}, {out[3].m, NULL}, {out[4].m, NULL}};
        for (int k = 0; k < 5; k++) counts[i % 2][k] = (QuantCount){0};
        to.dg.n = &counts[i % 2][0], to.du.n = &counts[i % 2][1], to.dg_t.n = &counts[i % 2][2];
        to.du_t.n = &counts[i % 2][3], to.h_t.n = &counts[i % 2][4];
        runtime_on_cpu_shared(i % 2 ? SMALL_BLOCK : 0);
        MUST_OK(swiglu_quant_bwd_cuda(&cx, to, dgate[i != 0], dh, qg, qu, gate.p, g));
        runtime_on_cpu_shared(0);
        for (int k = 0; k < 5 && i > 0; k++) same_counts(counts[0][k], counts[i % 2][k]);
        MUST_OK(dequant_cuda(&cx, again, qg));
        MUST_OK(dequant_cuda(&cx, other, qu));
        float sums[M];
        MUST_OK(swiglu_bwd_cuda(&cx, again, other, sums, dh, again, other, gate.p));
        same(a, again, "dg"), same(b, other, "du");
        assert_memory_equal(sums, single, sizeof sums);
        for (int r = 0; r < M; r++) // nobody's rows are left alone
            assert_true(r >= 66 && r < 70 ? dgate[0][r] == 0.0f : !memcmp(&sums[r], &dgate[0][r], 4));
        assert_memory_equal(dgate[0], dgate[i != 0], sizeof sums);
        for (int k = 0; k < 5; k++) {
            if (i == 0)
                first[k] = out[k];
            else
                same_codes(first[k], out[k], "gated backward"), free_codes(out[k]);
        }
        free(again.p), free(other.p);
    }
    for (int k = 0; k < 5; k++) free_codes(first[k]);
    free(dh.p), free(gu.p), free(gate.p), free(a.p), free(b.p), free_codes(kept);
}

// Blocks with less shared memory than Hopper's: the same bits; a row that they cannot hold is refused.
static void test_small_blocks(void **state) {
    (void)state;
    enum { T = 20, D = 7168 };
    static const size_t most[] = {0, AMPERE_BLOCK, SMALL_BLOCK};
    Mat x = values(DT_BF16, T, D, 0, false), dy = like(x), first = mat_none();
    Mat w = values(DT_F32, 1, D, 0, false), rstd = values(DT_F32, 1, T, 0, false);
    static float dw[3][D];
    for (int i = 0; i < 3; i++) {
        Mat dx = like(x);
        runtime_on_cpu_shared(most[i]);
        MUST_OK(norm_rms_bwd_cuda(&cx, dx, dw[i], dy, x, w.p, rstd.p, mat_none()));
        assert_memory_equal(dw[0], dw[i], sizeof dw[0]);
        if (i == 0) first = dx;
        else same(first, dx, "norm_rms_bwd"), free(dx.p);
    }
#ifndef ON_DEVICE
    Mat wide = {NULL, DT_BF16, 1, 30000, 30000}; // never touched
    MUST_FAIL(norm_rms_bwd_cuda(&cx, wide, NULL, wide, wide, NULL, NULL, mat_none()), E_INTERNAL, "this device");
#endif
    runtime_on_cpu_shared(0);
    free(x.p), free(dy.p), free(w.p), free(rstd.p), free(first.p);
}

// Products of BF16 and of codes on the tensor cores of any GPU: the same bits under every schedule. Their distance from
// double is what the unit tests measure.
static void test_mma(void **state) {
    (void)state;
    int64_t start[] = {0, 70, 70, 80}, count[] = {66, 0, 9, 60};
    Groups g = {start, count, 4};
    Mat x = values(DT_BF16, 150, 200, 0, false), w = values(DT_BF16, 4 * 72, 200, 0, false), first[4];
    Mat d = values(DT_BF16, 150, 72, 0, false);
    Codes qx = codes(SCALE_E8M0, 150, 200, 2, 1, 1), qw = codes(SCALE_F32, 72, 200, 2, TILE, 4);
    int64_t products = gemm_mma_products();
    MUST_OK(quant_tile_cuda(&cx, qx.m, x, tiles_rule, NULL));
    MUST_OK(weight_prepare_cuda(&cx, qw.m, w, tiles_rule, NULL));
    gemm_sm90_choose(0);
    FOR_SCHEDULES(i) {
        Mat out[4] = {values(DT_F32, 150, 72, 0, false), values(DT_BF16, 150, 200, 0, false),
                      values(DT_F32, 4 * 72, 200, 0, false), values(DT_F32, 150, 72, 0, false)};
        for (int k = 0; k < 4; k++) memset(out[k].p, 0, (size_t)(out[k].rows * out[k].cols) * dtype_bytes(out[k].t));
        MUST_OK(ggemm_nt_cuda(&cx, out[0], x, w, g, false));
        MUST_OK(ggemm_nn_cuda(&cx, out[1], d, w, g, false));
        MUST_OK(ggemm_tn_cuda(&cx, out[2], d, x, g, true));
        MUST_OK(ggemm_fp8_fprop_cuda(&cx, out[3], qx.m, qw.m, g, true));
        for (int k = 0; k < 4; k++) {
            if (i == 0)
                first[k] = out[k];
            else
                same(first[k], out[k], "tensor cores"), free(out[k].p);
        }
    }
    gemm_sm90_choose(-1);
    assert_int_equal(gemm_mma_products() - products, 4 * SCHEDULES);
    for (int k = 0; k < 4; k++) free(first[k].p);
    free(x.p), free(w.p), free(d.p), free_codes(qx), free_codes(qw);
}

// FP8 products whose sums stay in FP32 have one order, the CPU's.
static void test_fp32_sums(void **state) {
    (void)state;
    int64_t start[] = {0, 70, 70, 80}, count[] = {66, 0, 9, 60};
    Groups g = {start, count, 4};
    Mat x = values(DT_BF16, 150, 200, 0, false), w = values(DT_BF16, 4 * 72, 200, 0, false);
    Mat y = values(DT_F32, 150, 72, 0, false), z = like(y), dx = values(DT_F32, 150, 200, 0, false), dz = like(dx);
    Codes qx = codes(SCALE_E8M0, 150, 200, 2, 1, 1), qw = codes(SCALE_F32, 72, 200, 2, TILE, 4);
    Codes qd = codes(SCALE_F32, 150, 72, 1, 1, 1);
    MUST_OK(quant_tile_cpu(&cx, qx.m, x, tiles_rule, NULL));
    MUST_OK(quant_tile_cpu(&cx, qd.m, z, tiles_rule, NULL));
    MUST_OK(weight_prepare_cpu(&cx, qw.m, w, tiles_rule, NULL));
    cx.accumulate = GEMM_FP32;
    MUST_OK(ggemm_fp8_fprop_cpu(&cx, z, qx.m, qw.m, g, true));
    MUST_OK(ggemm_fp8_fprop_cuda(&cx, y, qx.m, qw.m, g, true));
    MUST_OK(ggemm_fp8_dgrad_cpu(&cx, dz, qd.m, qw.m, g, false));
    MUST_OK(ggemm_fp8_dgrad_cuda(&cx, dx, qd.m, qw.m, g, false));
    same(y, z, "FP32 sums, Fprop"), same(dx, dz, "FP32 sums, Dgrad");
    MUST_OK(ggemm_fp8_fprop_cuda(&cx, y, qx.m, qw.m, g, false));
    cx.accumulate = GEMM_PROMOTE128;
    MUST_OK(ggemm_fp8_fprop_cuda(&cx, z, qx.m, qw.m, g, false));
    assert_true(memcmp(y.p, z.p, (size_t)(66 * 72) * sizeof(float)) != 0); // or the setting would not matter here
    free(x.p), free(w.p), free(y.p), free(z.p), free(dx.p), free(dz.p);
    free_codes(qx), free_codes(qw), free_codes(qd);
}

// A row longer than a block takes at once.
static void test_gated_wide(void **state) {
    (void)state;
    Mat d = values(DT_BF16, 2, 8300, 0, false), a = values(DT_BF16, 2, 8300, 0, false);
    Mat b = values(DT_BF16, 2, 8300, 0, false), x = like(a), y = like(a), x0 = like(a), y0 = like(a);
    float first[2], sum[2];
    MUST_OK(swiglu_bwd_cuda(&cx, x0, y0, first, d, a, b, NULL));
    FOR_SCHEDULES(i) {
        MUST_OK(swiglu_bwd_cuda(&cx, x, y, sum, d, a, b, NULL));
        same(x, x0, "dg"), same(y, y0, "du");
        assert_memory_equal(sum, first, sizeof sum);
    }
    free(d.p), free(a.p), free(b.p), free(x.p), free(y.p), free(x0.p), free(y0.p);
}

// In place (dlogits in the memory of logits) and apart: the same bits, under every schedule.
static void test_xent(void **state) {
    (void)state;
    int32_t target[] = {0, 299, 150, -1, 7};
    Mat logits = values(DT_F32, 5, 300, 0, false), apart = like(logits);
    for (int64_t i = 0; i < 5 * 300; i++) ((float *)logits.p)[i] = (float)(i * 31 % 101) / 20.0f;
    float loss[5], want[5];
    int32_t correct[5];
    MUST_OK(xent_fwd_bwd_cuda(&cx, want, correct, apart, logits, target, 0.5f));
    FOR_SCHEDULES(i) {
        Mat here = like(logits);
        MUST_OK(xent_fwd_bwd_cuda(&cx, loss, correct, here, here, target, 0.5f));
        assert_memory_equal(loss, want, sizeof loss);
        same(apart, here, "in place");
        free(here.p);
    }
    free(logits.p), free(apart.p);
}

// An argument names the tests to run ("test_route*"): the mutants need one each.
int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (device_cuda_open(&dev, 0) != OK || arena_create(&scratch, "scratch", (size_t)64 << 20, false) != OK) return 70;
    arena_poison(true);
    cx = (OpCx){.scratch = scratch, .nthreads = 1};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quant),    cmocka_unit_test(test_quant_tokens), cmocka_unit_test(test_weights),
        cmocka_unit_test(test_elements), cmocka_unit_test(test_rows),         cmocka_unit_test(test_route),
        cmocka_unit_test(test_steady),   cmocka_unit_test(test_xent),         cmocka_unit_test(test_gated),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_gated_wide),   cmocka_unit_test(test_mma),
        cmocka_unit_test(test_fp32_sums), cmocka_unit_test(test_small_blocks),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&scratch);
    device_cuda_close();
    return failed;
}
