// test_norm.c - RMSNorm forward and backward against double and central differences; add and cast
// exact.
#include "reference.h"

typedef struct Case {
    int64_t T, D, pad;
    DType xt, yt;
    bool has_residual;
} Case;

static const Case cases[] = {
    {0, 5, 0, DT_F32, DT_F32, false},     {1, 1, 0, DT_F32, DT_F32, true},
    {3, 7, 2, DT_F32, DT_BF16, true},     {5, 37, 1, DT_BF16, DT_BF16, false},
    {130, 64, 0, DT_F32, DT_F32, true},   {300, 129, 3, DT_BF16, DT_F32, true},
    {4, 2500, 5, DT_BF16, DT_BF16, true}, {257, 512, 0, DT_F32, DT_F32, false},
};

typedef struct Problem {
    int64_t T, D;
    double *x, *w, *cot, eps;
    int64_t row; // -1: all rows; else only this row's part of the loss
} Problem;

static double row_loss(const Problem *p, int64_t t) {
    double ss = 0.0, sum = 0.0;
    for (int64_t c = 0; c < p->D; c++) ss += p->x[t * p->D + c] * p->x[t * p->D + c];
    double rstd = 1.0 / sqrt(ss / (double)p->D + p->eps);
    for (int64_t c = 0; c < p->D; c++)
        sum += p->cot[t * p->D + c] * p->x[t * p->D + c] * rstd * p->w[c];
    return sum;
}
static double loss(void *ctx) {
    const Problem *p = ctx;
    if (p->row >= 0) return row_loss(p, p->row);
    double sum = 0.0;
    for (int64_t t = 0; t < p->T; t++) sum += row_loss(p, t);
    return sum;
}

static void check_forward(const Case *k, Problem *p, Mat x, Mat w) {
    OpCx cx = ref_cx(1);
    Mat y = ref_mat(k->yt, k->T, k->D, k->pad), z = ref_clone(y);
    Mat rstd = ref_mat(DT_F32, 1, k->T, 0);
    MUST_OK(norm_rms_fwd_cpu(&cx, y, rstd.p, x, w.p, (float)p->eps));
    // A lane sums D/16 squares, all positive: relative error of that many roundings, and a few
    // more.
    double unit = ((double)k->D / 16 + 16) * U32;
    for (int64_t t = 0; t < k->T; t++) {
        double ss = 0.0;
        for (int64_t c = 0; c < k->D; c++) ss += p->x[t * k->D + c] * p->x[t * k->D + c];
        double want = 1.0 / sqrt(ss / (double)k->D + p->eps);
        ref_near(((float *)rstd.p)[t], want, unit * want, "rstd", t, 0);
        for (int64_t c = 0; c < k->D; c++) {
            double v = p->x[t * k->D + c] * want * p->w[c];
            ref_near(ref_at(y, t, c), v, (unit + ref_unit(k->yt)) * fabs(v), "y", t, c);
        }
    }
    ref_pads(y, "y");
    for (int n = 2; n <= 3; n++) { // rstd is optional
        cx = ref_cx(n);
        MUST_OK(norm_rms_fwd_cpu(&cx, z, NULL, x, w.p, (float)p->eps));
        ref_same(y, z, "y, threads");
    }
    free(y.p), free(z.p), free(rstd.p);
}

static void check_backward(const Case *k, Problem *p, Mat x, Mat w, Mat dy) {
    OpCx cx = ref_cx(1);
    Mat y = ref_mat(k->yt, k->T, k->D, 0), rstd = ref_mat(DT_F32, 1, k->T, 0);
    Mat res = k->has_residual ? ref_random(k->xt, k->T, k->D, k->pad + 1, 1.0) : mat_none();
    Mat dx = ref_mat(k->yt, k->T, k->D, k->pad), dw = ref_random(DT_F32, 1, k->D, 0, 1.0);
    Mat dw0 = ref_clone(dw);
    MUST_OK(norm_rms_fwd_cpu(&cx, y, rstd.p, x, w.p, (float)p->eps));
    MUST_OK(norm_rms_bwd_cpu(&cx, dx, dw.p, dy, x, w.p, rstd.p, res));
    double unit = ((double)k->D / 16 + 32) * U32;
    int64_t n = k->T * k->D, samples = n < 400 ? n : 150;
    for (int64_t s = 0; s < samples; s++) {
        int64_t i = ref_pick(s, samples, n), t = i / k->D, c = i % k->D;
        p->row = t;
        double slope = ref_slope(loss, p, p->x + i), r = res.p ? ref_at(res, t, c) : 0.0;
        double rs = ((float *)rstd.p)[t], mag = fabs(p->cot[i] * p->w[c]), mean = 0.0;
        for (int64_t j = 0; j < k->D; j++)
            mean += fabs(p->cot[t * k->D + j] * p->w[j] * p->x[t * k->D + j]) * rs / (double)k->D;
        mag = fabs(r) + rs * (mag + fabs(p->x[i]) * rs * mean);
        ref_near(ref_at(dx, t, c), r + slope, ref_unit(k->yt) * fabs(r + slope) + unit * mag, "dx",
                 t, c);
    }
    p->row = -1;
    for (int64_t s = 0; s < (k->D < 20 ? k->D : 20) && k->T > 0; s++) {
        int64_t c = ref_pick(s, 20, k->D);
        double mag = 1.0, slope = ref_slope(loss, p, p->w + c);
        for (int64_t t = 0; t < k->T; t++)
            mag += fabs(p->cot[t * k->D + c] * p->x[t * k->D + c] * ((float *)rstd.p)[t]);
        ref_near(ref_at(dw, 0, c), ref_at(dw0, 0, c) + slope, (130 + unit / U32) * U32 * mag, "dw",
                 0, c);
    }
    ref_pads(dx, "dx");
    // Threads, and dx in the memory of dy or of dres.
    for (int th = 2; th <= 3; th++) {
        Mat dw2 = ref_clone(dw0), in_place = ref_clone(th == 2 || !res.p ? dy : res);
        bool fits = in_place.t == k->yt;
        Mat to = fits ? in_place : ref_clone(dx);
        cx = ref_cx(th);
        MUST_OK(norm_rms_bwd_cpu(&cx, to, dw2.p, fits && (th == 2 || !res.p) ? to : dy, x, w.p,
                                 rstd.p, fits && th == 3 && res.p ? to : res));
        for (int64_t t = 0; t < k->T; t++)
            for (int64_t c = 0; c < k->D; c++)
                ref_near(ref_at(to, t, c), ref_at(dx, t, c), 0.0, "dx again", t, c);
        ref_same(dw, dw2, "dw, threads");
        if (!fits) free(to.p);
        free(in_place.p), free(dw2.p);
    }
    free(y.p), free(rstd.p), free(res.p), free(dx.p), free(dw.p), free(dw0.p);
}

static void test_norm(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Case *k = &cases[i];
        Mat x = ref_random(k->xt, k->T, k->D, k->pad, 1.5),
            dy = ref_random(k->yt, k->T, k->D, k->pad, 1.0);
        Mat w = ref_random(DT_F32, 1, k->D, 0, 1.0);
        Problem p = {k->T, k->D, ref_double(x), ref_double(w), ref_double(dy), (double)1e-6f, -1};
        check_forward(k, &p, x, w);
        check_backward(k, &p, x, w, dy);
        free(x.p), free(dy.p), free(w.p), free(p.x), free(p.w), free(p.cot);
    }
}

// A row of zeros: rstd = 1/sqrt(eps), output 0, nothing non-finite.
static void test_zero_row(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float x[8] = {0}, y[8], dx[8], w[8], dy[8], dw[8] = {0}, rstd;
    for (int i = 0; i < 8; i++) w[i] = 2.0f, dy[i] = (float)i;
    Mat mx = mat(x, DT_F32, 1, 8);
    MUST_OK(norm_rms_fwd_cpu(&cx, mat(y, DT_F32, 1, 8), &rstd, mx, w, 1e-6f));
    MUST_OK(norm_rms_bwd_cpu(&cx, mat(dx, DT_F32, 1, 8), dw, mat(dy, DT_F32, 1, 8), mx, w, &rstd,
                             mat_none()));
    for (int i = 0; i < 8; i++) {
        assert_true(y[i] == 0.0f && dw[i] == 0.0f);
        ref_near(dx[i], 2000.0 * i, 0.01, "dx", 0, i);
    }
}

static void test_add_cast(void **state) {
    (void)state;
    const DType types[] = {DT_F32, DT_BF16};
    for (int v = 0; v < 8; v++) {
        DType ta = types[v & 1], tb = types[v >> 1 & 1], ty = types[v >> 2];
        Mat a = ref_random(ta, 30, 1100, 1, 1.0), b = ref_random(tb, 30, 1100, 0, 1.0);
        Mat y = ref_mat(ty, 30, 1100, 2), y3 = ref_clone(y), c = ref_mat(ty, 30, 1100, 3);
        OpCx cx = ref_cx(1), cx3 = ref_cx(3);
        MUST_OK(add_cpu(&cx, y, a, b));
        MUST_OK(add_cpu(&cx3, y3, a, b));
        MUST_OK(cast_cpu(&cx3, c, a));
        ref_same(y, y3, "add, threads");
        for (int64_t r = 0; r < 30; r++)
            for (int64_t k = 0; k < 1100; k++) {
                float want = (float)ref_at(a, r, k) + (float)ref_at(b, r, k),
                      id = (float)ref_at(a, r, k);
                if (ty == DT_BF16) want = bf16_round(want), id = bf16_round(id);
                assert_true(ref_at(y, r, k) == (double)want && ref_at(c, r, k) == (double)id);
            }
        ref_pads(y, "add"), ref_pads(c, "cast");
        if (ta == ty) {
            MUST_OK(add_cpu(&cx, a, a, b)); // in place
            for (int64_t r = 0; r < 30; r++)
                for (int64_t k = 0; k < 1100; k++) assert_true(ref_at(a, r, k) == ref_at(y, r, k));
        }
        free(a.p), free(b.p), free(y.p), free(y3.p), free(c.p);
    }
}

static void test_wrong_shapes(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    Mat a = ref_random(DT_F32, 4, 4, 0, 1.0), b = ref_random(DT_F32, 4, 3, 0, 1.0);
    assert_int_equal(add_cpu(&cx, a, a, b), E_INTERNAL);
    assert_non_null(strstr(fail_message(), "b is f32 [4, 3]"));
    Mat i = a;
    i.t = DT_I32;
    assert_int_equal(cast_cpu(&cx, i, a), E_INTERNAL);
    free(a.p), free(b.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm), cmocka_unit_test(test_zero_row),
                                       cmocka_unit_test(test_add_cast),
                                       cmocka_unit_test(test_wrong_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
