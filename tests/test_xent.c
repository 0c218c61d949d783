// test_xent.c - cross-entropy against log-sum-exp in double, its gradient against central
// differences.
#include "reference.h"

typedef struct Case {
    int64_t T, V, pad;
    DType dt;
    double size; // standard deviation of the logits
    float scale;
} Case;

static const Case cases[] = {
    {0, 3, 0, DT_F32, 1, 1},        {1, 1, 0, DT_F32, 1, 1},          {5, 7, 2, DT_BF16, 3, 0.5f},
    {9, 130, 1, DT_F32, 10, 2e-3f}, {30, 2500, 0, DT_BF16, 2, 1e-4f}, {3, 70001, 3, DT_F32, 4, 1},
};

typedef struct Row {
    double *l;
    int64_t V, target;
} Row;
static double row_loss(void *ctx) {
    const Row *r = ctx;
    double max = -INFINITY, sum = 0.0;
    for (int64_t v = 0; v < r->V; v++) max = fmax(max, r->l[v]);
    for (int64_t v = 0; v < r->V; v++) sum += exp(r->l[v] - max);
    return log(sum) + max - r->l[r->target];
}

static void run_case(const Case *k) {
    Mat l = ref_random(DT_F32, k->T, k->V, k->pad, k->size), d = ref_mat(k->dt, k->T, k->V, k->pad);
    Mat loss = ref_mat(DT_F32, 1, k->T, 0), keep = ref_clone(l);
    int32_t *target = malloc((size_t)(k->T + 1) * 4), *correct = malloc((size_t)(k->T + 1) * 4);
    double *l64 = ref_double(l);
    for (int64_t t = 0; t < k->T; t++) {
        target[t] = (int32_t)(philox(4, 4, (uint64_t)t).v[0] % (uint64_t)k->V);
        if (t % 5 == 3) target[t] = -1 - (int32_t)t;
        if (t % 5 == 4) // the largest
            for (int64_t v = 0; v < k->V; v++)
                if (l64[t * k->V + v] > l64[t * k->V + target[t]]) target[t] = (int32_t)v;
    }
    OpCx cx = ref_cx(1);
    MUST_OK(xent_fwd_bwd_cpu(&cx, loss.p, correct, d, l, target, k->scale));
    ref_same(l, keep, "logits");
    for (int64_t t = 0; t < k->T; t++) {
        Row row = {l64 + t * k->V, k->V, target[t]};
        if (target[t] < 0) {
            assert_true(((float *)loss.p)[t] == 0.0f && correct[t] == 0);
            for (int64_t v = 0; v < k->V; v++) assert_true(ref_at(d, t, v) == 0.0);
            continue;
        }
        double want = row_loss(&row), max = -INFINITY, err = (64.0 + 16) * U32;
        ref_near(((float *)loss.p)[t], want, U32 * fabs(want) + err, "loss", t, 0);
        int64_t best = 0;
        for (int64_t v = 0; v < k->V; v++)
            if (row.l[v] > max) max = row.l[v], best = v;
        assert_int_equal(correct[t], best == target[t]);
        // The gradient everywhere in closed form, and the closed form at some places by
        // differences.
        double total = 0.0;
        for (int64_t v = 0; v < k->V; v++) {
            double p = exp(row.l[v] - want - row.l[target[t]]),
                   g = (p - (v == target[t])) * (double)k->scale;
            total += ref_at(d, t, v);
            // exp of a difference of size |l - max|: its rounding is that many units.
            ref_near(ref_at(d, t, v), g,
                     ref_unit(k->dt) * fabs(g) + err * fabs(p * k->scale) +
                         2 * U32 * k->scale * (v == target[t]) + 1e-44,
                     "dlogits", t, v);
            if (v == target[t] || (k->V < 200 && v % 7 == 0)) {
                double slope = ref_slope(row_loss, &row, row.l + v) * (double)k->scale;
                ref_near(slope, g, 1e-7 * k->scale, "closed form", t, v);
            }
        }
        if (k->dt == DT_F32) ref_near(total, 0.0, 2 * err * k->scale, "sum of the gradient", t, 0);
    }
    ref_pads(d, "dlogits");
    for (int n = 2; n <= 3; n++) { // threads; loss only; gradient in the memory of the logits
        cx = ref_cx(n);
        Mat loss2 = ref_mat(DT_F32, 1, k->T, 0), in = ref_clone(l);
        MUST_OK(xent_fwd_bwd_cpu(&cx, loss2.p, NULL, mat_none(), in, target, k->scale));
        ref_same(loss, loss2, "loss alone");
        ref_same(l, in, "logits");
        MUST_OK(xent_fwd_bwd_cpu(&cx, loss2.p, NULL, k->dt == DT_F32 ? in : mat_none(), in, target,
                                 k->scale));
        ref_same(loss, loss2, "loss, in place");
        if (k->dt == DT_F32) ref_same(d, in, "dlogits in place");
        free(loss2.p), free(in.p);
    }
    free(l.p), free(d.p), free(loss.p), free(keep.p), free(target), free(correct), free(l64);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

static void test_ties_and_extremes(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float l[3][4] = {{1, 5, 5, 2}, {1, 5, 5, 2}, {-3e38f, 3e38f, 0, 0}}, loss[3];
    int32_t correct[3];
    const int32_t target[3] = {1, 2, 0};
    MUST_OK(xent_fwd_bwd_cpu(&cx, loss, correct, mat_none(), mat(l, DT_F32, 3, 4), target, 1.0f));
    assert_int_equal(correct[0], 1); // the lower index of two equal ones
    assert_int_equal(correct[1], 0);
    assert_true(isinf(loss[2]) || loss[2] > 3e38f); // 6e38 is beyond FP32
    l[0][3] = NAN;
    l[1][0] = INFINITY;
    MUST_OK(xent_fwd_bwd_cpu(&cx, loss, correct, mat_none(), mat(l, DT_F32, 3, 4), target, 1.0f));
    assert_true(isnan(loss[0]) && !isfinite(loss[1])); // never hidden
    const int32_t bad[3] = {0, 4, 0};
    assert_int_equal(xent_fwd_bwd_cpu(&cx, loss, NULL, mat_none(), mat(l, DT_F32, 3, 4), bad, 1.0f),
                     E_INTERNAL);
    assert_non_null(strstr(fail_message(), "target 4 of row 1"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases),
                                       cmocka_unit_test(test_ties_and_extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
