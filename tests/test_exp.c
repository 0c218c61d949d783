// test_exp.c - the exponential and the sigmoid of the kernels against double, over the whole range.
#include "reference.h"

#include "exp_core.h"

// Distance in units of the last place of the exact value's FP32 neighbourhood.
static double ulps(float got, double want) {
    int e = 0;
    frexp(want, &e);
    double ulp = ldexp(1.0, (e < -125 ? -125 : e) - 24);
    return fabs((double)got - want) / ulp;
}

static void test_exp_every_size(void **state) {
    (void)state;
    double worst = 0.0, worst_subnormal = 0.0;
    // Every 1021st float: all exponents, both signs, 4 million values.
    for (uint64_t u = 0; u <= 0xFFFFFFFFu; u += 1021) {
        float x = f32_from_bits((uint32_t)u);
        if (isnan(x)) continue;
        double want = exp((double)x);
        float got = exp_f32(x);
        if (want > 3.4028235677973366e38) {
            assert_true(isinf(got) && got > 0);
        } else if (want < 1.1754943508222875e-38) {
            worst_subnormal = fmax(worst_subnormal, ulps(got, want));
        } else {
            worst = fmax(worst, ulps(got, want));
        }
    }
    print_message("exp: %.3f ulp, subnormal results %.3f ulp\n", worst, worst_subnormal);
    assert_true(worst < 1.1);
    assert_true(worst_subnormal < 1.1);
}

static void test_exp_special(void **state) {
    (void)state;
    assert_true(exp_f32(0.0f) == 1.0f);
    assert_true(exp_f32(-0.0f) == 1.0f);
    assert_true(exp_f32(-INFINITY) == 0.0f);
    assert_true(exp_f32(INFINITY) == INFINITY);
    assert_true(isnan(exp_f32(NAN)));
    assert_true(isnan(exp_f32(-NAN)));
    assert_true(exp_f32(-1e30f) == 0.0f);
    assert_true(exp_f32(-103.0f) == 1.401298464324817e-45f); // the smallest subnormal
    assert_true(isfinite(exp_f32(88.72f)));
    assert_true(isinf(exp_f32(88.73f)));
}

static void test_sigmoid(void **state) {
    (void)state;
    double worst = 0.0;
    for (double x = -87.0; x < 40.0; x += 0.000317) {
        float f = (float)x;
        worst = fmax(worst, ulps(sigmoid_f32(f), 1.0 / (1.0 + exp(-(double)f))));
    }
    print_message("sigmoid: %.3f ulp\n", worst);
    assert_true(worst < 2.6);
    assert_true(sigmoid_f32(0.0f) == 0.5f);
    assert_true(sigmoid_f32(INFINITY) == 1.0f);
    assert_true(sigmoid_f32(-INFINITY) == 0.0f);
    assert_true(isnan(sigmoid_f32(NAN)));
    // Monotone where a router compares scores.
    float last = 0.0f;
    for (uint32_t u = f32_bits(0.5f); u < f32_bits(0.5f) + 200000; u++) {
        float s = sigmoid_f32(f32_from_bits(u));
        assert_true(s >= last - 2e-7f);
        last = s;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exp_every_size),
                                       cmocka_unit_test(test_exp_special),
                                       cmocka_unit_test(test_sigmoid)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
