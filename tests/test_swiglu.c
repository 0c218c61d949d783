// test_swiglu.c - the gated unit against double and central differences, gated and not, in place or
// not.
#include "reference.h"

typedef struct Case {
    int64_t M, F, pad;
    DType t, ht; // of g, u (and dg, du); of h and dh
    bool gated;
    double scale;
} Case;

static const Case cases[] = {
    {0, 3, 0, DT_F32, DT_F32, true, 1},     {1, 1, 0, DT_F32, DT_F32, false, 1},
    {5, 37, 3, DT_F32, DT_BF16, true, 2},   {9, 130, 1, DT_BF16, DT_BF16, true, 1},
    {70, 96, 0, DT_F32, DT_F32, true, 6},   {3, 2100, 2, DT_BF16, DT_F32, false, 1},
    {40, 64, 0, DT_F32, DT_F32, false, 30},
};

static double unit(double g, double u) {
    return g / (1.0 + exp(-g)) * u;
}
typedef struct Point {
    double g, u;
} Point;
static double point_loss(void *ctx) {
    const Point *p = ctx;
    return unit(p->g, p->u);
}

static void run_case(const Case *k) {
    OpCx cx = ref_cx(1);
    // g and u as the halves of one matrix, as the fused projection gives them.
    Mat gu = ref_random(k->t, k->M, 2 * k->F, k->pad, k->scale), keep = ref_clone(gu);
    Mat g = mat_cols(gu, 0, k->F), u = mat_cols(gu, k->F, k->F);
    Mat dh = ref_random(k->ht, k->M, k->F, k->pad, 1.0), h = ref_mat(k->ht, k->M, k->F, k->pad);
    Mat gate = ref_random(DT_F32, 1, k->M, 0, 1.0), dgate = ref_mat(DT_F32, 1, k->M, 0);
    Mat d = ref_mat(k->t, k->M, 2 * k->F, k->pad);
    Mat dg = mat_cols(d, 0, k->F), du = mat_cols(d, k->F, k->F);
    float *gp = k->gated ? gate.p : NULL, *dgp = k->gated ? dgate.p : NULL;
    MUST_OK(swiglu_fwd_cpu(&cx, h, g, u, gp));
    MUST_OK(swiglu_bwd_cpu(&cx, dg, du, dgp, dh, g, u, gp));
    for (int64_t r = 0; r < k->M; r++) {
        double w = k->gated ? ((float *)gate.p)[r] : 1.0, dot = 0.0, mag = 0.0;
        for (int64_t c = 0; c < k->F; c++) {
            Point p = {ref_at(g, r, c), ref_at(u, r, c)};
            double v = unit(p.g, p.u), e = ref_at(dh, r, c);
            // Below 2^-126 the sigmoid is a subnormal with an absolute error of 2^-149.
            double tiny = 2e-45 * (1.0 + fabs(w * p.g * p.u));
            ref_near(ref_at(h, r, c), v * w, (8 * U32 + ref_unit(k->ht)) * fabs(v * w) + tiny, "h",
                     r, c);
            double want_g = e * w * ref_slope(point_loss, &p, &p.g);
            double want_u = e * w * ref_slope(point_loss, &p, &p.u);
            // silu' = s (1 + g (1-s)) is a difference near its zero: noise of its two terms.
            double noise = fabs(e * w * p.u);
            ref_near(ref_at(dg, r, c), want_g, ref_unit(k->t) * fabs(want_g) + 16 * U32 * noise,
                     "dg", r, c);
            ref_near(ref_at(du, r, c), want_u,
                     (ref_unit(k->t) + 16 * U32) * fabs(want_u) + 1e-10 * fabs(e * w), "du", r, c);
            dot += e * v;
            mag += fabs(e * v);
        }
        if (k->gated)
            ref_near(((float *)dgate.p)[r], dot, ((double)k->F / 16 + 16) * U32 * mag, "dgate", r,
                     0);
    }
    ref_pads(h, "h"), ref_pads(d, "dg du");
    ref_same(gu, keep, "inputs");
    for (int n = 2; n <= 3; n++) { // threads; gradients in the memory of g and u
        cx = ref_cx(n);
        Mat h2 = ref_mat(k->ht, k->M, k->F, k->pad), in = ref_clone(gu);
        Mat gate2 = ref_mat(DT_F32, 1, k->M, 0);
        Mat g2 = mat_cols(in, 0, k->F), u2 = mat_cols(in, k->F, k->F);
        MUST_OK(swiglu_fwd_cpu(&cx, h2, g2, u2, gp));
        MUST_OK(swiglu_bwd_cpu(&cx, g2, u2, k->gated ? gate2.p : NULL, dh, g2, u2, gp));
        ref_same(h, h2, "h, threads"), ref_same(d, in, "dg du in place");
        if (k->gated) ref_same(dgate, gate2, "dgate, threads");
        free(h2.p), free(in.p), free(gate2.p);
    }
    free(gu.p), free(keep.p), free(dh.p), free(h.p), free(gate.p), free(dgate.p), free(d.p);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

// Far out, silu is 0 or the identity, and a NaN stays one.
static void test_extremes(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float g[4] = {-200.0f, 200.0f, -88.0f, NAN}, u[4] = {3, 3, 3, 3}, h[4], dg[4], du[4],
          dh[4] = {1, 1, 1, 1};
    Mat mg = mat(g, DT_F32, 1, 4), mu = mat(u, DT_F32, 1, 4);
    MUST_OK(swiglu_fwd_cpu(&cx, mat(h, DT_F32, 1, 4), mg, mu, NULL));
    MUST_OK(swiglu_bwd_cpu(&cx, mat(dg, DT_F32, 1, 4), mat(du, DT_F32, 1, 4), NULL,
                           mat(dh, DT_F32, 1, 4), mg, mu, NULL));
    assert_true(fabsf(h[0]) < 1e-40f && h[1] == 600.0f && isnan(h[3]));
    assert_true(fabsf(dg[0]) < 1e-40f && dg[1] == 3.0f && isnan(dg[3]) && du[1] == 200.0f);
    ref_near(h[2], -88.0 * exp(-88.0) * 3.0, 264 * 2e-45, "subnormal region", 0, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases),
                                       cmocka_unit_test(test_extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
