// test_train_layouts.c - the number of ranks and how they share the experts do not change the training: the same
// samples at every step, FP32 losses equal to 1e-5 relative as long as no tie between experts falls otherwise, FP8 and
// BF16 losses equal up to quantisation noise.
//
// The widest layouts run the tests' config whole, 50 steps; the others the same model on short sequences.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "drive.h"

#define STEPS 50

typedef struct Layout {
    const char *mode;
    bool is_short; // sequences of 32 tokens
    int ranks, ep;
} Layout;

// The run of one layout; each is run once per program and compared with many.
static Steps train(const Layout *l) {
    const char *dir = path_of("%s-%d-%d-%d", l->mode, l->is_short, l->ranks, l->ep);
    char metrics[600];
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", dir);
    if (!has_file(metrics)) {
        run_ok(l->ranks,
               "train --config %s/configs/tiny.yaml --run-dir %s --steps %d --threads %d --set precision.mode=%s "
               "--set parallel.ep=%d --set log.every=10 --set debug.state_hash=true %s",
               drive_source(), dir, STEPS, l->ranks == 1 ? 2 : 1, l->mode, l->ep,
               l->is_short ? "--set train.seq_len=32" : "");
    }
    Steps s = steps_read(dir);
    assert_int_equal(s.first, 1);
    assert_int_equal(s.n, STEPS);
    return s;
}

// Steps of a layout before the first in which a token goes to other experts than on one rank: where two experts are as
// good as equal the last bit decides, and from then on biases and all that follows may differ.
static int alike_until(const Steps *want, const Steps *got) {
    int i = 0;
    while (i < STEPS && strcmp(step_text(want, i + 1, "route_hash"), step_text(got, i + 1, "route_hash")) == 0) i++;
    return i;
}

// compare_losses: of every step to 1e-5 relative while all tokens go to the same experts. The first step that routes a
// token otherwise (a few of a thousand have such a tie) is still near.
static void compare_losses(const Layout *l, const Steps *want, const Steps *got) {
    static const char *const keys[] = {"loss", "lm_loss", "mtp_loss"};
    int alike = alike_until(want, got);
    double worst[3] = {0};
    for (int k = 0; k < 3; k++) {
        for (int i = 1; i <= STEPS && i <= alike + 1; i++) {
            double a = atof(step_text(want, i, keys[k])), b = atof(step_text(got, i, keys[k]));
            double r = fabs(a - b) / fabs(a), most = i <= alike ? 1e-5 : 1e-3;
            if (i <= alike && !(r <= worst[k])) worst[k] = r;
            if (!(r <= most)) {
                fail_msg("step %d: %s is %.9g on one rank, %.9g on %d ranks with ep %d (relative %.2g; tokens go to "
                         "the same experts for %d steps)",
                         i, keys[k], a, b, l->ranks, l->ep, r, alike);
            }
        }
    }
    print_message("%d steps route alike; largest relative difference: loss %.2g, lm_loss %.2g, mtp_loss %.2g\n", alike,
                  worst[0], worst[1], worst[2]);
    assert_true(alike >= 10);
}

// compare_window: mean loss of the last ten steps to 5e-3 relative. Rounding alone moves this mean by up to 2.1e-3: FP8
// on one rank, three seeds, two sequences per pass instead of one.
static void compare_window(const Layout *l, const Steps *want, const Steps *got) {
    double a = steps_mean(want, "loss", 41, 50), b = steps_mean(got, "loss", 41, 50);
    if (!(fabs(a - b) <= 5e-3 * a)) {
        fail_msg("%s: mean loss of steps 41-50 is %.6f on one rank, %.6f on %d ranks with ep %d (relative %.2g)",
                 l->mode, a, b, l->ranks, l->ep, fabs(a - b) / a);
    }
}

static void compare(void **state) {
    const Layout *l = *state;
    Layout one = {l->mode, l->is_short, 1, 1};
    Steps want = train(&one), got = train(l);
    assert_same_steps(&want, &got, 1, STEPS, "step samples tokens global_batch lr");
    int64_t batch = l->is_short ? 8 * 32 : 8 * 128;
    assert_int_equal((int64_t)json_number(got.line[STEPS - 1], "tokens"), STEPS * batch);
    if (strcmp(l->mode, "fp32") == 0) compare_losses(l, &want, &got);
    compare_window(l, &want, &got);
    // Rows travel if and only if experts live elsewhere.
    double bytes = json_number(got.line[0], "a2a_dispatch_bytes");
    assert_true(l->ep > 1 ? bytes > 0.0 : bytes == 0.0);
    steps_free(&want);
    steps_free(&got);
}

// The three modes are three different computations of the same thing.
static void test_modes(void **state) {
    (void)state;
    Layout fp32 = {"fp32", false, 1, 1}, bf16 = {"bf16", false, 1, 1}, fp8 = {"fp8", false, 1, 1};
    Steps a = train(&fp32), b = train(&bf16), c = train(&fp8);
    double x = steps_mean(&a, "loss", 41, 50), y = steps_mean(&b, "loss", 41, 50), z = steps_mean(&c, "loss", 41, 50);
    assert_true(x != y && y != z);
    assert_true(fabs(x - y) < 0.01 * x);
    assert_true(fabs(x - z) < 0.02 * x);
    assert_true(json_number(c.line[0], "fp8_underflow") >= 0.0);
    steps_free(&a);
    steps_free(&b);
    steps_free(&c);
}

// first_health: fp8_health of step 1 of a layout's run; the caller's to json_decref.
static json_t *first_health(const Layout *l) {
    Steps s = train(l);
    json_t *all = json_loads(s.line[0], 0, NULL);
    assert_non_null(all);
    json_t *h = json_incref(json_object_get(all, "fp8_health"));
    assert_int_equal(json_object_size(h), 8);
    json_decref(all);
    assert_null(strstr(s.line[1], "fp8_health")); // log.every is 10
    assert_non_null(strstr(s.line[9], "fp8_health"));
    steps_free(&s);
    return h;
}

// FP8 health counts what all ranks quantise: until the first experts' sums step 1 is the same in every layout, and so
// are the numbers of its sites whose tiles lie along channels.
static void test_health(void **state) {
    (void)state;
    static const char *const sites[] = {
        "L0.attn_in.x", "L0.q_b.x", "L0.kv_b.x", "L0.o.x", "L0.ffn_in.x", "L0.ffn.gate.kept", "L0.ffn.up.kept",
        "L0.ffn.down.x", "L1.attn_in.x", "L1.q_b.x", "L1.kv_b.x", "L1.o.x", "L1.ffn_in.x", "L1.ffn.gate.kept",
        "L1.expert.gate.kept", "L1.expert.up.kept", "L1.expert.down.x"};
    Layout layouts[] = {{"fp8", false, 1, 1}, {"fp8", false, 2, 2}, {"fp8", false, 4, 2}, {"fp8", false, 8, 8}};
    json_t *one = first_health(&layouts[0]);
    for (int l = 1; l < 4; l++) {
        json_t *other = first_health(&layouts[l]), *names = json_object_get(one, "site"), *values;
        const char *key;
        assert_true(json_equal(names, json_object_get(other, "site")));
        size_t seen = 0;
        for (size_t i = 0; i < json_array_size(names); i++) {
            const char *name = json_string_value(json_array_get(names, i));
            if (seen == sizeof sites / sizeof sites[0] || strcmp(name, sites[seen]) != 0) continue;
            seen++;
            json_object_foreach(one, key, values) {
                assert_int_equal(json_array_size(values), json_array_size(names));
                if (!json_equal(json_array_get(values, i), json_array_get(json_object_get(other, key), i)))
                    fail_msg("%s: %s differs on %d ranks with ep %d", name, key, layouts[l].ranks, layouts[l].ep);
            }
        }
        assert_int_equal(seen, sizeof sites / sizeof sites[0]);
        json_decref(other);
    }
    json_decref(one);
}

#define LAYOUT(name, ...)                                                                          \
    static Layout name = {__VA_ARGS__};

LAYOUT(fp32_2_2, "fp32", false, 2, 2)
LAYOUT(fp32_4_2, "fp32", false, 4, 2)
LAYOUT(fp32_8_1, "fp32", false, 8, 1)
LAYOUT(fp32_8_8, "fp32", false, 8, 8)
LAYOUT(short_2_1, "fp32", true, 2, 1)
LAYOUT(short_4_1, "fp32", true, 4, 1)
LAYOUT(short_4_4, "fp32", true, 4, 4)
LAYOUT(short_8_2, "fp32", true, 8, 2)
LAYOUT(short_8_4, "fp32", true, 8, 4)
LAYOUT(bf16_2_2, "bf16", false, 2, 2)
LAYOUT(bf16_8_8, "bf16", false, 8, 8)
LAYOUT(fp8_2_2, "fp8", false, 2, 2)
LAYOUT(fp8_4_2, "fp8", false, 4, 2)
LAYOUT(fp8_8_8, "fp8", false, 8, 8)

#define CASE(name) {#name, compare, NULL, NULL, &name}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        CASE(fp32_2_2), CASE(fp32_4_2),  CASE(fp32_8_1),  CASE(fp32_8_8), CASE(short_2_1), CASE(short_4_1),
        CASE(short_4_4), CASE(short_8_2), CASE(short_8_4), CASE(bf16_2_2), CASE(bf16_8_8),
        CASE(fp8_2_2),  CASE(fp8_4_2),   CASE(fp8_8_8),   cmocka_unit_test(test_modes), cmocka_unit_test(test_health),
    };
    drive_init(argc, argv);
    return drive_done(cmocka_run_group_tests_name("train_layouts", tests, NULL, NULL));
}
