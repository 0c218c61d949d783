// test_schedule.c - learning rate phases, batch ramp and step-wise switches, against plain loops.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "schedule.h"

static Config base_config(void) {
    Config c;
    memset(&c, 0, sizeof c);
    c.train.steps = 200;
    c.train.global_batch = 8;
    c.train.batch_quantum = 1;
    c.train.lr = 1e-3;
    c.train.warmup_steps = 10;
    c.balance.gamma = 0.001;
    c.mtp.loss_weight = 0.3;
    c.mtp.loss_weight_late = 0.1;
    return c;
}

static void assert_near(double got, double want) {
    if (fabs(got - want) > 1e-12 * fabs(want) + 1e-300)
        fail_msg("got %.17g, want %.17g", got, want);
}

static void test_warmup_and_cosine(void **state) {
    (void)state;
    Config c = base_config();
    c.train.min_lr = 1e-4;
    assert_true(schedule_lr(&c, 0) == 0.0);
    assert_near(schedule_lr(&c, 1), 1e-4);
    assert_near(schedule_lr(&c, 5), 5e-4);
    assert_near(schedule_lr(&c, 10), 1e-3);
    assert_near(schedule_lr(&c, 10 + 95), 0.5 * (1e-3 + 1e-4)); // the middle of 190 cosine steps
    assert_near(schedule_lr(&c, 200), 1e-4);
    assert_near(schedule_lr(&c, 100000), 1e-4);
    for (int64_t s = 11; s < 200; s++) assert_true(schedule_lr(&c, s + 1) < schedule_lr(&c, s));
    c.train.warmup_steps = 0; // no warm-up: the first step is already on the cosine
    assert_true(schedule_lr(&c, 1) < 1e-3 && schedule_lr(&c, 1) > 0.999e-3);
}

static void test_constant_only(void **state) {
    (void)state;
    Config c = base_config();
    c.train.constant_steps = 190; // nothing is left for the cosine
    for (int64_t s = 10; s < 400; s++) assert_true(schedule_lr(&c, s) == 1e-3);
}

static void test_tails(void **state) {
    (void)state;
    Config c = base_config();
    int64_t steps[] = {20, 10};
    double lr[] = {2e-4, 5e-5};
    c.train.constant_steps = 30;
    c.train.min_lr = 2e-4;
    c.train.tail_steps = (IntList){2, steps};
    c.train.tail_lr = (RealList){2, lr};
    // 10 warm-up, 30 constant, 130 cosine, 20 + 10 tails
    assert_near(schedule_lr(&c, 40), 1e-3);
    assert_true(schedule_lr(&c, 41) < 1e-3);
    assert_near(schedule_lr(&c, 40 + 65), 0.5 * (1e-3 + 2e-4));
    for (int64_t s = 170; s <= 190; s++) assert_near(schedule_lr(&c, s), 2e-4);
    for (int64_t s = 191; s <= 230; s++) assert_near(schedule_lr(&c, s), 5e-5);
    c.train.decay_steps = 50; // an explicit length: the tails follow at once
    assert_near(schedule_lr(&c, 90), 2e-4);
    assert_near(schedule_lr(&c, 110), 2e-4);
    assert_near(schedule_lr(&c, 111), 5e-5);
}

// DeepSeek-V3: 3072 -> 15360 sequences of 4096 tokens over 469B tokens; 2000 steps of warm-up;
// constant to 10T tokens; cosine to 2.2e-5 over 4.3T; 2.2e-5 for 333B; 7.3e-6 for 167B.
static Config v3_config(int64_t *tail_steps, double *tail_lr) {
    Config c = base_config();
    c.train.lr = 2.2e-4;
    c.train.min_lr = 2.2e-5;
    c.train.warmup_steps = 2000;
    c.train.global_batch = 15360;
    c.train.batch_start = 3072;
    c.train.batch_quantum = 128;
    c.train.batch_ramp_samples = 469000000000 / 4096;
    double tokens_per_step = 15360.0 * 4096.0;
    int64_t at_10t = 0;
    while (schedule_samples(&c, at_10t) < 10000000000000 / 4096) at_10t++;
    c.train.constant_steps = at_10t - 2000;
    c.train.decay_steps = (int64_t)(4.3e12 / tokens_per_step);
    tail_steps[0] = (int64_t)(333e9 / tokens_per_step);
    tail_steps[1] = (int64_t)(167e9 / tokens_per_step);
    tail_lr[0] = 2.2e-5;
    tail_lr[1] = 7.3e-6;
    c.train.tail_steps = (IntList){2, tail_steps};
    c.train.tail_lr = (RealList){2, tail_lr};
    c.train.steps = at_10t + c.train.decay_steps + tail_steps[0] + tail_steps[1];
    return c;
}

static void test_v3(void **state) {
    (void)state;
    int64_t tail_steps[2];
    double tail_lr[2];
    Config c = v3_config(tail_steps, tail_lr);
    assert_true(c.train.steps > 235000 &&
                c.train.steps < 245000); // "about 235K, slightly more with the ramp"
    double tokens = (double)schedule_samples(&c, c.train.steps) * 4096.0;
    assert_true(fabs(tokens - 14.8e12) < 0.01 * 14.8e12);
    int64_t constant_end = c.train.warmup_steps + c.train.constant_steps;
    int64_t cosine_end = constant_end + c.train.decay_steps;
    assert_near(schedule_lr(&c, 1000), 1.1e-4);
    assert_near(schedule_lr(&c, 2000), 2.2e-4);
    assert_near(schedule_lr(&c, constant_end), 2.2e-4);
    assert_near(schedule_lr(&c, cosine_end), 2.2e-5);
    assert_near(schedule_lr(&c, cosine_end + tail_steps[0]), 2.2e-5);
    assert_near(schedule_lr(&c, cosine_end + tail_steps[0] + 1), 7.3e-6);
    assert_near(schedule_lr(&c, c.train.steps), 7.3e-6);
    // continuous up to the last tail: no step moves more than the steepest slope of its phase
    double up = 2.2e-4 / 2000,
           down = 0.5 * acos(-1.0) * (2.2e-4 - 2.2e-5) / (double)c.train.decay_steps;
    for (int64_t s = 1; s < cosine_end + tail_steps[0]; s++) {
        double d = schedule_lr(&c, s + 1) - schedule_lr(&c, s);
        assert_true(d <= up * 1.000001 && d >= -down * 1.000001);
    }
}

static void test_v3_ramp(void **state) {
    (void)state;
    int64_t tail_steps[2];
    double tail_lr[2];
    Config c = v3_config(tail_steps, tail_lr);
    int64_t samples = 0, before = 0;
    for (int64_t s = 0; s < 30000; s++) {
        assert_int_equal(schedule_samples(&c, s), samples);
        int64_t b = schedule_batch(&c, samples);
        assert_true(b >= before && b % 128 == 0);
        if (s == 0) assert_int_equal(b, 3072);
        if (samples >= c.train.batch_ramp_samples) assert_int_equal(b, 15360);
        before = b;
        samples += b;
    }
    assert_int_equal(before, 15360);
}

// Odd ramps against a plain loop: a start that the quantum does not divide, ramps shorter than a
// step, one that ends between multiples.
static void test_ramps_against_loop(void **state) {
    (void)state;
    static const int64_t cases[][4] = {
        // start, full, ramp samples, quantum
        {4, 8, 100, 1},  {4, 8, 1, 4},     {1, 1000, 5000, 1},  {3, 17, 333, 5},
        {8, 8, 1000, 8}, {2, 64, 4096, 2}, {16, 24, 7, 8},      {5, 1000, 99991, 3},
        {0, 8, 0, 1},    {7, 1001, 12, 1}, {6, 600, 100000, 6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Config c = base_config();
        c.train.batch_start = cases[i][0];
        c.train.global_batch = cases[i][1];
        c.train.batch_ramp_samples = cases[i][2];
        c.train.batch_quantum = cases[i][3];
        int64_t samples = 0;
        for (int64_t s = 0; s < 3000; s++) {
            assert_int_equal(schedule_samples(&c, s), samples);
            int64_t want = c.train.global_batch;
            if (c.train.batch_start > 0 && samples < c.train.batch_ramp_samples) {
                double grown = floor((double)(c.train.global_batch - c.train.batch_start) *
                                     (double)samples / (double)c.train.batch_ramp_samples);
                want = (c.train.batch_start + (int64_t)grown) / c.train.batch_quantum *
                       c.train.batch_quantum;
                if (want < c.train.batch_start) want = c.train.batch_start;
            }
            assert_int_equal(schedule_batch(&c, samples), want);
            samples += want;
        }
    }
}

static void test_long_run_is_fast(void **state) {
    (void)state;
    Config c = base_config();
    c.train.global_batch = 15360;
    c.train.batch_start = 1;
    c.train.batch_ramp_samples = 1000000000000;
    int64_t all = schedule_samples(&c, 1000000000); // a loop over steps would take minutes
    double ramp_steps = 0; // every batch size b lasts for 10^12 / 15359 samples
    for (int b = 1; b < 15360; b++) ramp_steps += 1e12 / 15359.0 / b;
    double want = 1e12 + (1e9 - ramp_steps) * 15360.0;
    assert_true(fabs((double)all - want) < 1e-5 * want);
    c.train.global_batch = 1 << 24; // the product of batch and samples is above 2^63
    assert_int_equal(schedule_batch(&c, 500000000000), 1 + ((1 << 24) - 1) / 2);
}

static void test_gamma_and_mtp(void **state) {
    (void)state;
    Config c = base_config();
    assert_true(schedule_gamma(&c, 1) == 0.001 && schedule_gamma(&c, 1000000) == 0.001);
    c.balance.freeze_step = 50;
    assert_true(schedule_gamma(&c, 49) == 0.001 && schedule_gamma(&c, 50) == 0.0);
    c.balance.method = BALANCE_NONE;
    assert_true(schedule_gamma(&c, 1) == 0.0);
    assert_true(schedule_mtp_weight(&c, 1000000) == 0.3);
    c.mtp.late_step = 7;
    assert_true(schedule_mtp_weight(&c, 6) == 0.3 && schedule_mtp_weight(&c, 7) == 0.1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_warmup_and_cosine),
        cmocka_unit_test(test_constant_only),
        cmocka_unit_test(test_tails),
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_v3_ramp),
        cmocka_unit_test(test_ramps_against_loop),
        cmocka_unit_test(test_long_run_is_fast),
        cmocka_unit_test(test_gamma_and_mtp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
