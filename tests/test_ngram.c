// test_ngram.c - the byte n-gram baseline against brute force on small texts, and on the sample
// texts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "must.h"
#include "ngram.h"
#include "rng.h"
#include "scratch_dir.h"

static const char *put(const char *name, const uint8_t *text, size_t n) {
    return scratch_write(at(name), text, n);
}

typedef struct Text {
    const uint8_t *p;
    int n;
} Text;

// P by the formula, counting in the texts afresh for every context.
static double brute(const Text *texts, int ntexts, const uint8_t *h, int k, uint8_t byte) {
    double lower = k == 0 ? 1.0 / 256 : brute(texts, ntexts, h + 1, k - 1, byte);
    int total = 0, hits = 0, distinct = 0;
    bool seen[256] = {false};
    for (int t = 0; t < ntexts; t++) {
        for (int i = k; i < texts[t].n; i++) {
            if (memcmp(texts[t].p + i - k, h, (size_t)k) != 0) continue;
            total++;
            hits += texts[t].p[i] == byte;
            distinct += !seen[texts[t].p[i]];
            seen[texts[t].p[i]] = true;
        }
    }
    return total == 0 ? lower : (hits + distinct * lower) / (total + distinct);
}

static void small_texts(void **state) {
    (void)state;
    uint8_t a[400], b[150], held[120];
    for (int i = 0; i < 400; i++)
        a[i] = (uint8_t)(philox(1, 1, (uint64_t)i).v[0] % 4 ? 'a' + i % 5 : 0);
    for (int i = 0; i < 150; i++) b[i] = (uint8_t)(200 + philox(1, 2, (uint64_t)i).v[0] % 3);
    for (int i = 0; i < 120; i++) held[i] = (uint8_t)(i % 9 == 8 ? 'z' : i < 60 ? a[3 * i] : b[i]);
    const Text texts[] = {{a, 400}, {b, 150}};
    const char *train[] = {put("a", a, 400), put("b", b, 150)}, *heldout = put("held", held, 120);
    for (int order = 0; order <= NGRAM_MAX_ORDER; order++) {
        double want = 0, got;
        for (int i = 0; i < 120; i++) {
            int k = i < order ? i : order;
            want -= log2(brute(texts, 2, held + i - k, k, held[i]));
        }
        MUST_OK(ngram_bits_per_byte(train, 2, heldout, order, &got));
        assert_true(fabs(got - want / 120) < 1e-12 * want);
    }
}

static void samples(void **state) {
    (void)state;
    const char *train[] = {"data/samples/emma.txt", "data/samples/pride_and_prejudice.txt",
                           "data/samples/sense_and_sensibility.txt"};
    double bits[3];
    MUST_OK(ngram_bits_per_byte(train, 3, "data/samples/persuasion_heldout.txt", 2, &bits[0]));
    MUST_OK(ngram_bits_per_byte(train, 3, "data/samples/persuasion_heldout.txt", 4, &bits[1]));
    MUST_OK(ngram_bits_per_byte(train, 1, "data/samples/persuasion_heldout.txt", 4, &bits[2]));
    print_message("order 2: %.4f, order 4: %.4f bits per byte\n", bits[0], bits[1]);
    assert_true(fabs(bits[0] - 2.88) < 0.01 && fabs(bits[1] - 2.18) < 0.01);
    assert_true(bits[2] > bits[1]); // less text is worse
}

static void bad_input(void **state) {
    (void)state;
    double bits;
    const char *good[] = {put("x", (const uint8_t *)"abcabc", 6)}, *absent[] = {"/no/such/text"};
    assert_int_equal(ngram_bits_per_byte(absent, 1, good[0], 2, &bits), E_INPUT);
    assert_int_equal(ngram_bits_per_byte(good, 1, absent[0], 2, &bits), E_INPUT);
    assert_non_null(strstr(fail_message(), "/no/such/text"));
    assert_int_equal(ngram_bits_per_byte(good, 1, put("e", (const uint8_t *)"", 0), 2, &bits),
                     E_INPUT);
    assert_int_equal(ngram_bits_per_byte(good, 1, good[0], 7, &bits), E_INTERNAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_texts),
        cmocka_unit_test(samples),
        cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
