// test_straggler.c - who is slow: persistently, by how much, named once and once more when it is over.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "must.h"
#include "straggler.h"

enum { N = 4 };

// steps: so many in which rank 2 takes `two` seconds and the others about 1; *news: how often something changed.
static StragglerNews steps(Straggler *s, int n, double two, int *news) {
    StragglerNews last = {.rank = -1};
    for (int i = 0; i < n; i++) {
        double t[N] = {1.0 + 0.01 * (i % 3), 0.99, two, 1.02}, factor = 0.0;
        int slowest = -1;
        straggler_step(s, t, &slowest, &factor);
        if (two > 1.1) assert_int_equal(slowest, 2);
        for (StragglerNews x; (x = straggler_news(s)).rank >= 0;) {
            last = x;
            (*news)++;
        }
    }
    return last;
}

static void test_hysteresis(void **state) {
    (void)state;
    Straggler *s = NULL;
    StragglerNews x;
    int news = 0;
    MUST_OK(straggler_create(&s, N, 1.2, 10));
    steps(s, 50, 1.0, &news);
    for (int i = 0; i < 20; i++) { // now and then: nothing
        steps(s, 9, 1.5, &news);
        steps(s, 1, 1.0, &news);
    }
    assert_int_equal(news, 0);
    x = steps(s, 10, 1.5, &news);
    assert_int_equal(news, 1);
    assert_int_equal(x.rank, 2);
    assert_false(x.is_over);
    assert_true(x.factor > 1.45 && x.factor < 1.55);
    assert_true(x.seconds == 1.5 && x.median >= 1.0 && x.median <= 1.02);
    steps(s, 100, 1.5, &news); // once
    steps(s, 100, 1.15, &news); // below the factor, not half as slow
    assert_int_equal(news, 1);
    x = steps(s, 10, 1.05, &news);
    assert_int_equal(news, 2);
    assert_true(x.rank == 2 && x.is_over && x.factor < 1.1);
    steps(s, 10, 2.0, &news);
    assert_int_equal(news, 3);
    straggler_free(&s);
}

static void test_two_and_none(void **state) {
    (void)state;
    Straggler *s = NULL;
    double t[2] = {1.0, 2.0}, factor = 0.0;
    int slowest = -1;
    MUST_OK(straggler_create(&s, 2, 1.5, 1));
    straggler_step(s, t, &slowest, &factor);
    assert_int_equal(slowest, 1);
    assert_true(factor == 2.0);
    assert_int_equal(straggler_news(s).rank, 1);
    assert_int_equal(straggler_news(s).rank, -1);
    straggler_free(&s);
    MUST_OK(straggler_create(&s, 2, 1.5, 0)); // never named
    for (int i = 0; i < 100; i++) straggler_step(s, t, &slowest, &factor);
    assert_int_equal(straggler_news(s).rank, -1);
    straggler_free(&s);
    straggler_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hysteresis),
        cmocka_unit_test(test_two_and_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
