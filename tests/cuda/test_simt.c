// test_simt.c - the fibers themselves: correct kernels give one result under every schedule, broken ones are noticed.
#include <math.h>

#include "child.h"

void probe_reverse(float *y, const float *x, int blocks, bool has_barrier);
void probe_sum(float *y, const float *x, int n, int threads);
void probe_divergent(float *y);
void probe_bad_mask(int *y);
void probe_same_key(int *y, const int *key);
void probe_stale(float *y);
void probe_unasked(float *y);

static void test_reverse(void **state) {
    (void)state;
    float x[1024], y[1024];
    int wrong_schedules = 0;
    for (int i = 0; i < 1024; i++) x[i] = (float)i;
    FOR_SCHEDULES(k) {
        probe_reverse(y, x, 4, true);
        for (int i = 0; i < 1024; i++) assert_true(y[i] == x[i / 256 * 256 + 255 - i % 256]);
        bool is_wrong = false;
        probe_reverse(y, x, 4, false); // the mutant without a barrier
        for (int i = 0; i < 1024; i++) is_wrong = is_wrong || y[i] != x[i / 256 * 256 + 255 - i % 256];
        wrong_schedules += is_wrong;
    }
    assert_true(wrong_schedules == SCHEDULES);
}

static void test_sum(void **state) {
    (void)state;
    float x[1000], first = 0.0f;
    for (int i = 0; i < 1000; i++) x[i] = (float)rng_normal(1, 2, (uint64_t)i);
    FOR_SCHEDULES(k) {
        float y;
        probe_sum(&y, x, 1000, 512);
        if (k == 0) first = y;
        assert_true(y == first);
    }
    double want = 0.0;
    for (int i = 0; i < 1000; i++) want += (double)x[i];
    assert_true(fabs((double)first - want) < 1e-3);
}

static void test_match(void **state) {
    (void)state;
    int key[64], y[64];
    for (int i = 0; i < 64; i++) key[i] = i * 7 % 5;
    FOR_SCHEDULES(k) {
        probe_same_key(y, key);
        for (int i = 0; i < 64; i++) {
            int want = 0;
            for (int j = i / 32 * 32; j < i; j++) want += key[j] == key[i];
            assert_int_equal(y[i], want);
        }
    }
}

static void test_stale(void **state) {
    (void)state;
    FOR_SCHEDULES(k) {
        float y[2];
        probe_stale(y);
        assert_true(y[0] == 1.0f && isnan(y[1]));
    }
}

// The child must abort and say `words` on stderr.
static void must_die(void (*run)(const void *), const char *words) {
    char said[512];
    assert_int_equal(child_ends(run, NULL, said, sizeof said), 256 + SIGABRT);
    if (!strstr(said, words)) fail_msg("'%s' not in '%s'", words, said);
}
static void run_divergent(const void *unused) {
    (void)unused;
    static float y[64];
    probe_divergent(y);
}
static void run_bad_mask(const void *unused) {
    (void)unused;
    static int y[32];
    probe_bad_mask(y);
}
static void run_unasked(const void *unused) {
    (void)unused;
    static float y[32];
    probe_unasked(y);
}
static void test_reports(void **state) {
    (void)state;
    FOR_SCHEDULES(k) {
        must_die(run_divergent, "divergent block (0,0,0)");
        must_die(run_bad_mask, "lane not in its own mask");
    }
    must_die(run_unasked, "49156 bytes of shared memory, which were not asked for");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reverse), cmocka_unit_test(test_sum),     cmocka_unit_test(test_match),
        cmocka_unit_test(test_stale),   cmocka_unit_test(test_reports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
