// test_fused.c - the fused producers give the bits and the counters of the single operations, for every type of
// codes and scales, for empty groups and odd shapes, on any number of threads.
#include "reference.h"

#ifdef TESTS_CUDA
enum { CODE_TYPES = 1 }; // the CUDA backend has E4M3 only
#else
enum { CODE_TYPES = 2 };
#endif

static const QuantRule tiles = {SCOPE_TILE, 0.0f};

// A quantised matrix in memory of its own, poisoned.
typedef struct Codes {
    QuantOut out;
    QuantCount n;
    void *memory;
    size_t bytes;
} Codes;

static void codes_free(Codes *c) {
    free(c->memory);
}

static void codes_rows(Codes *c, ScaleType st, CodeType ct, int64_t rows, int64_t cols) {
    c->n = (QuantCount){.values = 3};
    c->bytes = (size_t)(rows * matq_row_bytes(st, cols));
    c->memory = malloc(c->bytes + 1);
    assert_non_null(c->memory);
    memset(c->memory, 0xFF, c->bytes + 1);
    c->out = (QuantOut){matq_wire(c->memory, st, ct, rows, cols), &c->n};
}

static void codes_cols(Codes *c, ScaleType st, CodeType ct, int64_t channels, int64_t tokens, int64_t groups) {
    int64_t ntiles = ceil_div(tokens, TILE) + groups, ld = ceil_div(tokens, 4) * 4;
    c->n = (QuantCount){.values = 3};
    c->bytes = (size_t)(channels * ld + channels * ntiles * 4);
    c->memory = malloc(c->bytes + 1);
    assert_non_null(c->memory);
    memset(c->memory, 0xFF, c->bytes + 1);
    MatQ q = {c->memory, (char *)c->memory + channels * ld, st, ct, channels, tokens, ld, 1, channels, 1, 1, 0, 0};
    c->out = (QuantOut){q, &c->n};
}

static void codes_same(const Codes *a, const Codes *b, const char *what) {
    if (memcmp(a->memory, b->memory, a->bytes) != 0) fail_msg("%s: bits differ", what);
    if (memcmp(&a->n, &b->n, sizeof a->n) != 0) fail_msg("%s: counters differ", what);
}

static void test_norm(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{0, 5}, {1, 1}, {33, 130}, {200, 256}, {7, 2100}};
    for (int k = 0; k < 5 * 4; k++) {
        int64_t T = shapes[k / 4][0], D = shapes[k / 4][1];
        ScaleType st = k & 1 ? SCALE_E8M0 : SCALE_F32;
        CodeType ct = (CodeType)(k / 2 % CODE_TYPES);
        OpCx cx = ref_cx(1);
        Mat x = ref_random(DT_BF16, T, D, 3, 2.0), w = ref_random(DT_F32, 1, D, 0, 1.0);
        Mat y = ref_mat(DT_BF16, T, D, 1), rstd = ref_mat(DT_F32, 1, T, 0);
        Codes want;
        codes_rows(&want, st, ct, T, D);
        MUST_OK(norm_rms_fwd_cpu(&cx, y, rstd.p, x, w.p, 1e-6f));
        MUST_OK(quant_tile_cpu(&cx, want.out.q, y, tiles, &want.n));
        for (int threads = 1; threads <= 3; threads++) {
            OpCx many = ref_cx(threads);
            Mat y2 = ref_mat(DT_BF16, T, D, 1), rstd2 = ref_mat(DT_F32, 1, T, 0);
            Codes got;
            codes_rows(&got, st, ct, T, D);
            bool is_kept = threads != 2;
            MUST_OK(norm_quant_fwd_cpu(&many, got.out, is_kept ? y2 : mat_none(), is_kept ? rstd2.p : NULL, x, w.p,
                                       1e-6f));
            codes_same(&want, &got, "norm_quant_fwd");
            if (is_kept) ref_same(y, y2, "normed"), ref_same(rstd, rstd2, "rstd");
            free(y2.p), free(rstd2.p), codes_free(&got);
        }
        free(x.p), free(w.p), free(y.p), free(rstd.p), codes_free(&want);
    }
}

static void test_swiglu_fwd(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{0, 5}, {1, 1}, {33, 130}, {200, 256}};
    for (int k = 0; k < 4 * 4; k++) {
        int64_t M = shapes[k / 4][0], F = shapes[k / 4][1];
        ScaleType st = k & 1 ? SCALE_E8M0 : SCALE_F32;
        OpCx cx = ref_cx(1);
        Mat g = ref_random(DT_BF16, M, F, 3, 2.0), u = ref_random(DT_BF16, M, F, 0, 1.0);
        Mat gate = ref_random(DT_F32, 1, M, 0, 1.0), h = ref_mat(DT_BF16, M, F, 0);
        float *gp = k & 2 ? gate.p : NULL;
        Codes want[3];
        codes_rows(&want[0], st, CODE_E4M3, M, F);
        for (int i = 1; i < 3; i++) codes_rows(&want[i], SCALE_E8M0, CODE_E4M3, M, F);
        MUST_OK(swiglu_fwd_cpu(&cx, h, g, u, gp));
        MUST_OK(quant_tile_cpu(&cx, want[0].out.q, h, tiles, &want[0].n));
        MUST_OK(quant_tile_cpu(&cx, want[1].out.q, g, tiles, &want[1].n));
        MUST_OK(quant_tile_cpu(&cx, want[2].out.q, u, tiles, &want[2].n));
        for (int threads = 1; threads <= 3; threads++) {
            OpCx many = ref_cx(threads);
            Codes got[3];
            codes_rows(&got[0], st, CODE_E4M3, M, F);
            for (int i = 1; i < 3; i++) codes_rows(&got[i], SCALE_E8M0, CODE_E4M3, M, F);
            MUST_OK(swiglu_quant_fwd_cpu(&many, got[0].out, got[1].out, got[2].out, g, u, gp));
            for (int i = 0; i < 3; i++) codes_same(&want[i], &got[i], "swiglu_quant_fwd"), codes_free(&got[i]);
        }
        for (int i = 0; i < 3; i++) codes_free(&want[i]);
        free(g.p), free(u.p), free(gate.p), free(h.p);
    }
}

// The five outputs of the backward.
typedef struct BwdCodes {
    Codes c[5]; // dg, du, dg_t, du_t, h_t
    SwigluQuantBwd out;
} BwdCodes;

static void bwd_codes(BwdCodes *b, ScaleType st, CodeType ct, int64_t M, int64_t F, int64_t groups) {
    for (int i = 0; i < 2; i++) codes_rows(&b->c[i], st, ct, M, F);
    for (int i = 2; i < 5; i++) codes_cols(&b->c[i], st, i < 4 ? ct : CODE_E4M3, F, M, groups);
    b->out = (SwigluQuantBwd){b->c[0].out, b->c[1].out, b->c[2].out, b->c[3].out, b->c[4].out};
}

static void single_operations(const BwdCodes *b, OpCx *cx, float *dgate, Mat dh, MatQ g, MatQ u, const float *gate,
                              Groups groups) {
    int64_t M = dh.rows, F = dh.cols;
    Mat mg = ref_mat(DT_BF16, M, F, 0), mu = ref_mat(DT_BF16, M, F, 0), h = ref_mat(DT_BF16, M, F, 0);
    Codes hq;
    codes_rows(&hq, b->out.h_t.q.st, CODE_E4M3, M, F);
    MUST_OK(dequant_cpu(cx, mg, g));
    MUST_OK(dequant_cpu(cx, mu, u));
    MUST_OK(swiglu_fwd_cpu(cx, h, mg, mu, gate));
    MUST_OK(quant_tile_cpu(cx, hq.out.q, h, tiles, NULL));
    MUST_OK(requant_tile_t_cpu(cx, b->out.h_t.q, hq.out.q, groups, tiles, b->out.h_t.n));
    MUST_OK(swiglu_bwd_cpu(cx, mg, mu, dgate, dh, mg, mu, gate));
    MUST_OK(quant_tile_cpu(cx, b->out.dg.q, mg, tiles, b->out.dg.n));
    MUST_OK(quant_tile_cpu(cx, b->out.du.q, mu, tiles, b->out.du.n));
    MUST_OK(quant_tile_t_cpu(cx, b->out.dg_t.q, mg, groups, tiles, b->out.dg_t.n));
    MUST_OK(quant_tile_t_cpu(cx, b->out.du_t.q, mu, groups, tiles, b->out.du_t.n));
    free(mg.p), free(mu.p), free(h.p), codes_free(&hq);
}

static void test_swiglu_bwd(void **state) {
    (void)state;
    static const int64_t start[] = {0, 3, 3, 133, 261}, count[] = {3, 0, 130, 128, 39};
    static const char *const names[] = {"dg", "du", "dg_t", "du_t", "h_t"};
    for (int k = 0; k < 16; k++) {
        int64_t M = k & 8 ? 300 : 70, F = k & 8 ? 130 : 256;
        ScaleType st = k & 1 ? SCALE_E8M0 : SCALE_F32;
        CodeType ct = (CodeType)(k / 2 % CODE_TYPES);
        Groups groups = {start, count, k & 8 ? 5 : 0};
        OpCx cx = ref_cx(1);
        Mat m = ref_random(DT_BF16, M, F, 0, 2.0), dh = ref_random(DT_BF16, M, F, 2, 1.0);
        Mat gate = ref_random(DT_F32, 1, M, 0, 1.0), dgate = ref_mat(DT_F32, 1, M, 0);
        float *gp = k & 4 ? gate.p : NULL;
        Codes g, u;
        BwdCodes want;
        codes_rows(&g, SCALE_E8M0, CODE_E4M3, M, F), codes_rows(&u, SCALE_E8M0, CODE_E4M3, M, F);
        MUST_OK(quant_tile_cpu(&cx, g.out.q, m, tiles, NULL));
        ref_fill(m, 1.0);
        MUST_OK(quant_tile_cpu(&cx, u.out.q, m, tiles, NULL));
        bwd_codes(&want, st, ct, M, F, 5);
        single_operations(&want, &cx, gp ? dgate.p : NULL, dh, g.out.q, u.out.q, gp, groups);
        for (int threads = 1; threads <= 3; threads++) {
            OpCx many = ref_cx(threads);
            Mat dgate2 = ref_mat(DT_F32, 1, M, 0);
            BwdCodes got;
            bwd_codes(&got, st, ct, M, F, 5);
            MUST_OK(swiglu_quant_bwd_cpu(&many, got.out, gp ? dgate2.p : NULL, dh, g.out.q, u.out.q, gp, groups));
            for (int i = 0; i < 5; i++) codes_same(&want.c[i], &got.c[i], names[i]), codes_free(&got.c[i]);
            if (gp) ref_same(dgate, dgate2, "dgate");
            free(dgate2.p);
        }
        for (int i = 0; i < 5; i++) codes_free(&want.c[i]);
        free(m.p), free(dh.p), free(gate.p), free(dgate.p), codes_free(&g), codes_free(&u);
    }
}

static void test_shapes(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    Codes q;
    codes_rows(&q, SCALE_E8M0, CODE_E4M3, 4, 130);
    Mat x = ref_random(DT_BF16, 4, 128, 0, 1.0);
    float w[128] = {0};
    MUST_FAIL(norm_quant_fwd_cpu(&cx, q.out, mat_none(), NULL, x, w, 1e-6f), E_INTERNAL, "shapes disagree");
    free(x.p), codes_free(&q);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm), cmocka_unit_test(test_swiglu_fwd),
                                       cmocka_unit_test(test_swiglu_bwd), cmocka_unit_test(test_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
