// test_adam.c - AdamW: bit-equal to the formula with one rounding per operation, near the formula
// in double, and sums of squares per block of 128 rows.
#include "reference.h"

// Every intermediate goes through a volatile, so that neither contraction nor wider registers can
// help.
static float rounded(double v) {
    volatile float f = (float)v;
    return f;
}

typedef struct Case {
    int64_t R, C, pad;
    DType m, v;
    AdamStep s;
} Case;

static const Case cases[] = {
    {0, 4, 0, DT_F32, DT_F32, {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 1.0f}},
    {1, 1, 0, DT_BF16, DT_BF16, {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 1.0f}},
    {7, 1100, 2, DT_BF16, DT_BF16, {3e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.271f, 0.142625f, 0.37f}},
    {130, 129, 1, DT_F32, DT_F32, {1e-2f, 0.9f, 0.999f, 1e-6f, 0.0f, 0.5f, 0.25f, 2.0f}},
    {33, 70, 0, DT_F32, DT_BF16, {1e-3f, 0.5f, 0.5f, 1e-8f, 0.01f, 1.0f, 1.0f, 1.0f}},
};

static void run_case(const Case *k) {
    Mat w = ref_random(DT_F32, k->R, k->C, k->pad, 0.1),
        g = ref_random(DT_F32, k->R, k->C, 0, 1e-2);
    Mat m = ref_random(k->m, k->R, k->C, k->pad, 1e-2), v = ref_mat(k->v, k->R, k->C, k->pad);
    for (int64_t r = 0; r < k->R; r++)
        for (int64_t c = 0; c < k->C; c++) ref_set(v, r, c, pow(ref_at(g, r, c), 2) * 0.7);
    if (k->R > 1)
        ref_set(g, 1, 0, 0.0), ref_set(v, 1, 0, 0.0), ref_set(m, 1, 0, 0.0); // untouched weight
    Mat w0 = ref_clone(w), m0 = ref_clone(m), v0 = ref_clone(v);
    OpCx cx = ref_cx(1);
    Mat copy = ref_mat(k->v, k->R, k->C, k->pad);
    MUST_OK(adam_step_cpu(&cx, w, m, v, g, copy, k->s));
    AdamStep s = k->s;
    double wd = (double)s.weight_decay;
    for (int64_t r = 0; r < k->R; r++)
        for (int64_t c = 0; c < k->C; c++) {
            double gs = ref_at(g, r, c) * (double)s.grad_scale, w1 = ref_at(w0, r, c);
            double m64 = (double)s.beta1 * ref_at(m0, r, c) + (1.0 - (double)s.beta1) * gs;
            double v64 = (double)s.beta2 * ref_at(v0, r, c) + (1.0 - (double)s.beta2) * gs * gs;
            double step = m64 / (double)s.bias1 / (sqrt(v64 / (double)s.bias2) + (double)s.eps);
            double want = w1 - (double)s.lr * (step + wd * w1);
            double mag =
                fabs((double)s.beta1 * ref_at(m0, r, c)) + fabs((1.0 - (double)s.beta1) * gs);
            ref_near(ref_at(m, r, c), m64, ref_unit(k->m) * fabs(m64) + 8 * U32 * mag, "m", r, c);
            ref_near(ref_at(v, r, c), v64, (ref_unit(k->v) + 8 * U32) * v64 + 1e-44, "v", r, c);
            // A step is m/sqrt(v): the absolute error of m passes through the quotient.
            double noise =
                8 * U32 * mag / (double)s.bias1 / (sqrt(v64 / (double)s.bias2) + (double)s.eps);
            ref_near(ref_at(w, r, c), want,
                     2 * U32 * fabs(w1) + (double)s.lr * (noise + 16 * U32 * fabs(step)), "w", r,
                     c);
            // To the bit: doubles hold every product and sum of two floats well enough to round
            // once.
            float gf = rounded(ref_at(g, r, c) * (double)s.grad_scale);
            float mf =
                rounded((double)rounded((double)s.beta1 * ref_at(m0, r, c)) +
                        (double)rounded((double)rounded(1.0 - (double)s.beta1) * (double)gf));
            float vf = rounded((double)rounded((double)s.beta2 * ref_at(v0, r, c)) +
                               (double)rounded((double)rounded(1.0 - (double)s.beta2) *
                                               (double)rounded((double)gf * (double)gf)));
            float root = rounded(sqrt((double)rounded((double)vf / (double)s.bias2)));
            float q = rounded((double)rounded((double)mf / (double)s.bias1) /
                              (double)rounded((double)root + (double)s.eps));
            float sum = rounded((double)q + (double)rounded(wd * w1));
            float wf = rounded(w1 - (double)rounded((double)s.lr * (double)sum));
            ref_near(ref_at(w, r, c), (double)wf, 0.0, "w bits", r, c);
            ref_near(ref_at(m, r, c), (double)(k->m == DT_BF16 ? bf16_round(mf) : mf), 0.0,
                     "m bits", r, c);
            ref_near(ref_at(v, r, c), (double)(k->v == DT_BF16 ? bf16_round(vf) : vf), 0.0,
                     "v bits", r, c);
            ref_near(ref_at(copy, r, c), (double)(k->v == DT_BF16 ? bf16_round(wf) : wf), 0.0,
                     "copy bits", r, c);
        }
    ref_pads(w, "w"), ref_pads(copy, "copy"), ref_pads(m, "m"), ref_pads(v, "v");
    for (int n = 2; n <= 3; n++) {
        cx = ref_cx(n);
        Mat w2 = ref_clone(w0), m2 = ref_clone(m0), v2 = ref_clone(v0);
        MUST_OK(adam_step_cpu(&cx, w2, m2, v2, g, mat_none(), k->s));
        ref_same(w, w2, "w, threads"), ref_same(m, m2, "m, threads"), ref_same(v, v2, "v, threads");
        free(w2.p), free(m2.p), free(v2.p);
    }
    free(w.p), free(g.p), free(m.p), free(v.p), free(w0.p), free(m0.p), free(v0.p), free(copy.p);
}

static void test_step(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

static void test_sumsq(void **state) {
    (void)state;
    const int64_t rows[] = {0, 1, 127, 128, 129, 700}, cols[] = {1, 5, 40, 1500, 3, 64};
    for (int k = 0; k < 6; k++) {
        for (int b = 0; b < 2; b++) {
            Mat x = ref_random(b ? DT_BF16 : DT_F32, rows[k], cols[k], k % 3, 3.0);
            int64_t nblocks = ceil_div(rows[k], 128), bad = 5;
            double out[8], out3[8];
            memset(out, 0xFF, sizeof out), memset(out3, 0xFF, sizeof out3);
            OpCx cx = ref_cx(1), cx3 = ref_cx(3);
            MUST_OK(sumsq_blocks_cpu(&cx, out, &bad, x));
            MUST_OK(sumsq_blocks_cpu(&cx3, out3, &bad, x));
            assert_memory_equal(out, out3,
                                sizeof out); // the tail after the last block untouched too
            assert_int_equal(bad, 5);
            for (int64_t i = 0; i < nblocks; i++) {
                double sum = 0.0, off = 0.0; // left to right, row after row: the same bits
                for (int64_t r = 128 * i; r < min_i64(rows[k], 128 * i + 128); r++)
                    for (int64_t c = 0; c < cols[k]; c++) sum += ref_at(x, r, c) * ref_at(x, r, c);
#ifdef TESTS_CUDA // another order of as many roundings
                off = 128.0 * (double)cols[k] * 0x1p-52 * sum;
#endif
                ref_near(out[i], sum, off, "sum", i, 0);
            }
            for (int64_t i = nblocks; i < 8; i++) assert_true(isnan(out[i]));
            free(x.p);
        }
    }
}

static void test_sumsq_nonfinite(void **state) {
    (void)state;
    Mat x = ref_random(DT_F32, 300, 10, 1, 1.0);
    ref_set(x, 0, 3, NAN), ref_set(x, 200, 0, INFINITY), ref_set(x, 201, 9, -INFINITY);
    ref_set(x, 299, 1, 3e38); // large but finite: its square fits a double
    int64_t bad = 0;
    double out[3];
    OpCx cx = ref_cx(2);
    MUST_OK(sumsq_blocks_cpu(&cx, out, &bad, x));
    assert_int_equal(bad, 3);
    assert_true(isnan(out[0]) && isinf(out[1]) && isfinite(out[2]) && out[2] > 8e76);
    free(x.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_step), cmocka_unit_test(test_sumsq),
                                       cmocka_unit_test(test_sumsq_nonfinite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
