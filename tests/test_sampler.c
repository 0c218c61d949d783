// test_sampler.c - sample numbers: permutations are permutations, blending keeps its shares, and
// any order of asking gives the same answers as a plain replay.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "must.h"
#include "rng.h"
#include "sampler.h"

static void permutations(void **state) {
    (void)state;
    static const uint64_t sizes[] = {1,   2,   3,   4,   5,    7,    16,   17,
                                     100, 255, 256, 257, 1000, 4096, 4097, 50000};
    static uint8_t seen[50000];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (uint64_t epoch = 0; epoch < 3; epoch++) {
            uint64_t n = sizes[s], key = permute_key(42, 1, epoch);
            memset(seen, 0, n);
            for (uint64_t i = 0; i < n; i++) {
                uint64_t w = permute_index(n, 42, key, i);
                assert_true(w < n);
                assert_int_equal(seen[w], 0);
                seen[w] = 1;
            }
        }
    }
    uint64_t large = (1ull << 40) + 12345,
             key = permute_key(1, 0, 0); // only in range, and not constant
    assert_true(permute_index(large, 1, key, 0) < large);
    assert_true(permute_index(large, 1, key, 0) != permute_index(large, 1, key, 1));
}

// Computed by another program from the formulas in sampler.h: a run's order of samples must never
// change.
static void pinned(void **state) {
    (void)state;
    uint64_t key = permute_key(1234, 0, 0);
    static const uint64_t want[] = {614, 360, 172, 637, 416, 975, 215, 585};
    for (uint64_t i = 0; i < 8; i++) assert_int_equal(permute_index(1000, 1234, key, i), want[i]);
}

static void looks_random(void **state) {
    (void)state;
    // Serial correlation and position of a 10,000-permutation, mean over keys; and epochs differ.
    enum { N = 10000 };
    double worst = 0;
    int fixed = 0, same = 0;
    for (uint64_t e = 0; e < 8; e++) {
        uint64_t key = permute_key(7, 3, e), other = permute_key(7, 3, e + 1);
        double sum = 0, self = 0;
        double before = 0;
        for (uint64_t i = 0; i < N; i++) {
            double x = (double)permute_index(N, 7, key, i) / (N - 1) - 0.5;
            sum += x * before;
            self += x * ((double)i / (N - 1) - 0.5);
            before = x;
            fixed += permute_index(N, 7, key, i) == i;
            same += permute_index(N, 7, key, i) == permute_index(N, 7, other, i);
        }
        worst =
            fmax(worst, fmax(fabs(sum), fabs(self)) * 12 / N); // correlation, sd 1/sqrt(N) = 0.01
    }
    assert_true(worst < 0.05);
    assert_true(fixed < 30 && same < 30); // expected 8 each
}

static void windows(void **state) {
    (void)state;
    assert_int_equal(sampler_windows(0, 10, 1), 0);
    assert_int_equal(sampler_windows(11, 10, 1), 0);
    assert_int_equal(sampler_windows(12, 10, 1), 1);
    assert_int_equal(sampler_windows(21, 10, 1), 1);
    assert_int_equal(sampler_windows(22, 10, 1), 2);
    for (int64_t t = 0; t < 200; t++) { // the last window ends inside, one more would not
        int64_t s = sampler_windows(t, 7, 2);
        assert_true(s == 0 || (s - 1) * 7 + 7 + 2 < t);
        assert_true(s * 7 + 7 + 2 >= t);
    }
}

static void one_corpus(void **state) {
    (void)state;
    Sampler s;
    const int64_t w = 37;
    MUST_OK(sampler_init(&s, 99, 1, NULL, &w));
    uint8_t seen[37];
    for (int64_t e = 0; e < 4; e++) {
        memset(seen, 0, sizeof seen);
        for (int64_t p = 0; p < w; p++) {
            Sample a = sampler_at(&s, e * w + p);
            assert_int_equal(a.corpus, 0);
            assert_int_equal(a.epoch, e);
            assert_int_equal(seen[a.window], 0);
            seen[a.window] = 1;
        }
    }
    assert_int_equal(sampler_at(&s, 1000000000000ll).index, 1000000000000ll); // no replay
}

static void blending(void **state) {
    (void)state;
    const double weights[] = {6, 3, 0, 1};
    const int64_t windows_of[] = {50, 1000, 0, 8};
    Sampler s, t;
    MUST_OK(sampler_init(&s, 5, 4, weights, windows_of));
    MUST_OK(sampler_init(&t, 5, 4, weights, windows_of));
    enum { N = 5000 };
    static Sample all[N];
    int64_t n[4] = {0}, counts[4];
    for (int64_t g = 0; g < N; g++) {
        // The rule, written out again.
        int pick = -1;
        for (int k = 0; k < 4; k++) {
            if (weights[k] == 0) continue;
            double need = weights[k] / 10 * (double)(g ? g : 1) - (double)n[k];
            double best =
                pick < 0 ? -1e9 : weights[pick] / 10 * (double)(g ? g : 1) - (double)n[pick];
            if (need > best) pick = k;
        }
        all[g] = sampler_at(&s, g);
        assert_int_equal(all[g].corpus, pick);
        assert_int_equal(all[g].index, n[pick]);
        assert_int_equal(all[g].epoch, n[pick] / windows_of[pick]);
        n[pick]++;
        for (int k = 0; k < 4; k++) {
            assert_true(fabs((double)n[k] - weights[k] / 10 * (double)(g + 1)) < 1.0 + 1e-9);
        }
    }
    sampler_counts(&s, N, counts);
    assert_memory_equal(counts, n, sizeof n);
    for (uint64_t i = 0; i < 300; i++) { // any order
        int64_t g = philox(8, 8, i).v[0] % N;
        Sample a = sampler_at(&t, g);
        assert_int_equal(a.corpus, all[g].corpus);
        assert_int_equal(a.index, all[g].index);
        assert_int_equal(a.epoch, all[g].epoch);
        assert_int_equal(a.window, all[g].window);
    }
}

static void bad_weights(void **state) {
    (void)state;
    Sampler s;
    const int64_t w[] = {5, 5}, none[] = {5, 0};
    assert_int_equal(sampler_init(&s, 1, 2, (double[]){1, -1}, w), E_CONFIG);
    assert_int_equal(sampler_init(&s, 1, 2, (double[]){1, NAN}, w), E_CONFIG);
    assert_int_equal(sampler_init(&s, 1, 2, (double[]){1, INFINITY}, w), E_CONFIG);
    assert_int_equal(sampler_init(&s, 1, 2, (double[]){0, 0}, w), E_CONFIG);
    assert_int_equal(sampler_init(&s, 1, 2, (double[]){1, 1}, none), E_INPUT);
    MUST_OK(sampler_init(&s, 1, 2, (double[]){1, 0}, none));
    MUST_OK(sampler_init(&s, 1, 2, NULL, none));
    for (int g = 0; g < 20; g++) assert_int_equal(sampler_at(&s, g).corpus, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permutations), cmocka_unit_test(pinned),
        cmocka_unit_test(looks_random), cmocka_unit_test(windows),
        cmocka_unit_test(one_corpus),   cmocka_unit_test(blending),
        cmocka_unit_test(bad_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
