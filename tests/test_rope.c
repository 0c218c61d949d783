// test_rope.c - rotation against complex multiplication in double, its inverse, and YaRN's
// published numbers.
#include "reference.h"

#include <complex.h>

static const YarnShape no_yarn = {0};
static const YarnShape v3 = {40, 4096, 32, 1, 1.0, 1.0};

static void test_table_plain(void **state) {
    (void)state;
    float t[100 * 8];
    rope_table(t, 100, 8, 10000.0, no_yarn);
    for (int s = 0; s < 100; s++)
        for (int i = 0; i < 4; i++) {
            double angle = s / pow(10000.0, 2.0 * i / 8.0);
            ref_near(t[(s * 4 + i) * 2], cos(angle), U32, "cos", s, i);
            ref_near(t[(s * 4 + i) * 2 + 1], sin(angle), U32, "sin", s, i);
        }
    assert_true(rope_softmax_scale(192, no_yarn) == 1.0 / sqrt(192.0));
}

// DeepSeek-V3: 64 rotated values, factor 40, original length 4096: pairs 0..10 keep their
// frequency, pairs 23..31 are slowed by 40, linear between; softmax scale 0.13524.
static void test_table_yarn(void **state) {
    (void)state;
    static float t[64 * 64];
    rope_table(t, 64, 64, 10000.0, v3);
    for (int i = 0; i < 32; i++) {
        double f = pow(10000.0, -i / 32.0);
        double ramp = i <= 10 ? 0.0 : i >= 23 ? 1.0 : (i - 10) / 13.0;
        f = f * (1.0 - ramp) + f / 40.0 * ramp;
        for (int s = 0; s < 64; s++) {
            ref_near(t[(s * 32 + i) * 2], cos(s * f), U32, "cos", s, i);
            ref_near(t[(s * 32 + i) * 2 + 1], sin(s * f), U32, "sin", s, i);
        }
    }
    ref_near(rope_softmax_scale(192, v3), 0.13524, 1e-5, "scale", 0, 0);
    double m = 0.1 * log(40.0) + 1.0;
    ref_near(m, 1.36889, 5e-6, "mscale", 0, 0);
    ref_near(rope_softmax_scale(192, v3), m * m / sqrt(192.0), 1e-15, "scale", 0, 1);
}

static void test_mscale_ratio(void **state) {
    (void)state;
    float t[2];
    YarnShape y = v3;
    y.mscale = 0.707;
    y.mscale_all_dim = 1.0;
    rope_table(t, 1, 2, 10000.0, y);
    ref_near(t[0], (0.0707 * log(40.0) + 1.0) / (0.1 * log(40.0) + 1.0), 2 * U32, "both", 0, 0);
    y.mscale_all_dim = 0.0;
    rope_table(t, 1, 2, 10000.0, y);
    ref_near(t[0], 0.1 * log(40.0) + 1.0, 2 * U32, "one missing", 0, 0);
    assert_true(rope_softmax_scale(64, y) == 0.125);
    y.factor = 1.0; // no stretch: every mscale is 1
    y.mscale_all_dim = 1.0;
    rope_table(t, 1, 2, 10000.0, y);
    assert_true(t[0] == 1.0f && rope_softmax_scale(64, y) == 0.125);
}

typedef struct Case {
    int64_t T, cols, pad;
    RopeShape s;
    DType t;
} Case;

static const Case cases[] = {
    {0, 8, 0, {4, 1, 8, 0, 8}, DT_F32},         {5, 8, 3, {5, 1, 8, 0, 8}, DT_F32},
    {12, 50, 1, {4, 3, 16, 5, 6}, DT_F32},      {33, 40, 2, {11, 2, 20, 14, 6}, DT_BF16},
    {90, 600, 0, {30, 4, 150, 86, 64}, DT_F32}, {7, 3000, 1, {7, 1, 0, 100, 2800}, DT_BF16},
};

static void test_rotation(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const Case *c = &cases[k];
        Mat x = ref_random(c->t, c->T, c->cols, c->pad, 1.0), y = ref_clone(x), z = ref_clone(x);
        float *table = malloc((size_t)(c->s.seq_len * c->s.rope_dim) * 4);
        rope_table(table, c->s.seq_len, c->s.rope_dim, 10000.0, no_yarn);
        OpCx cx = ref_cx(1), cx3 = ref_cx(3);
        MUST_OK(rope_cpu(&cx, y, c->s, table, false));
        MUST_OK(rope_cpu(&cx3, z, c->s, table, false));
        ref_same(y, z, "threads");
        Mat want = ref_clone(x);
        for (int64_t t = 0; t < c->T; t++)
            for (int64_t h = 0; h < c->s.heads; h++)
                for (int64_t i = 0; i < c->s.rope_dim / 2; i++) {
                    int64_t col = c->s.col + h * c->s.head_stride + 2 * i;
                    double angle = (double)(t % c->s.seq_len) *
                                   pow(10000.0, -2.0 * (double)i / (double)c->s.rope_dim);
                    double complex v =
                        (ref_at(x, t, col) + I * ref_at(x, t, col + 1)) * cexp(I * angle);
                    double tol = 4 * U32 * cabs(v);
                    ref_near(ref_at(y, t, col), creal(v), tol + ref_unit(c->t) * fabs(creal(v)),
                             "re", t, col);
                    ref_near(ref_at(y, t, col + 1), cimag(v), tol + ref_unit(c->t) * fabs(cimag(v)),
                             "im", t, col);
                    // Only rotated columns may change: copy them, then compare everything.
                    memcpy(mat_at(want, t, col), mat_at(y, t, col), 2 * dtype_bytes(c->t));
                }
        ref_same(y, want, "other columns");
        // The inverse is the transpose: the gradient of cot . rope(x) is inverse(cot), and it
        // undoes x.
        MUST_OK(rope_cpu(&cx, y, c->s, table, true));
        for (int64_t t = 0; t < c->T; t++)
            for (int64_t j = 0; j < c->cols; j++)
                ref_near(ref_at(y, t, j), ref_at(x, t, j),
                         (c->t == DT_BF16 ? 3 * UBF : 8 * U32) * (fabs(ref_at(x, t, j)) + 4.0),
                         "inverse", t, j);
        free(x.p), free(y.p), free(z.p), free(want.p), free(table);
    }
}

// Two products, one sum, each rounded: the same bits on every instruction set and backend.
static void test_bits(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    RopeShape s = {40, 3, 70, 2, 66};
    Mat x = ref_random(DT_F32, 40, 220, 0, 1.0), y = ref_clone(x);
    static float table[40 * 66];
    rope_table(table, 40, 66, 10000.0, no_yarn);
    MUST_OK(rope_cpu(&cx, y, s, table, false));
    for (int64_t t = 0; t < 40; t++)
        for (int64_t h = 0; h < 3; h++)
            for (int64_t i = 0; i < 33; i++) {
                int64_t col = 2 + h * 70 + 2 * i;
                float a = (float)ref_at(x, t, col), b = (float)ref_at(x, t, col + 1);
                float c = table[t * 66 + 2 * i], n = table[t * 66 + 2 * i + 1];
                volatile float ac = a * c, bs = b * n, as = a * n, bc = b * c;
                ref_near(ref_at(y, t, col), (double)(ac - bs), 0.0, "first", t, col);
                ref_near(ref_at(y, t, col + 1), (double)(as + bc), 0.0, "second", t, col);
            }
    free(x.p), free(y.p);
}

static void test_wrong_shapes(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    Mat x = ref_random(DT_F32, 2, 16, 0, 1.0);
    float table[16] = {0};
    RopeShape s = {2, 2, 8, 4, 8};
    assert_int_equal(rope_cpu(&cx, x, s, table, false), E_INTERNAL);
    s.rope_dim = 3;
    assert_int_equal(rope_cpu(&cx, x, s, table, false), E_INTERNAL);
    free(x.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_plain),  cmocka_unit_test(test_table_yarn),
        cmocka_unit_test(test_mscale_ratio), cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_bits),         cmocka_unit_test(test_wrong_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
