// test_probe_sm90.c - the probes of the first minutes on a GPU, under the fibers: here they must all pass, so that a
// FAIL on a GPU is a difference between the hardware and tc.h.
#include "on_cpu.h"

int probe_sm90(int i, const char **name, const char **text);
void tc_sum_bits(int bits);
void tc_finish(void);

static void test_probes(void **state) {
    (void)state;
    const char *name, *text;
    tc_sum_bits(14);
    for (int i = 0; probe_sm90(i, &name, &text) >= 0; i++) {
        schedule_at(i % SCHEDULES);
        int ok = probe_sm90(i, &name, &text);
        tc_finish();
        print_message("%s %s%s%s\n", ok == 1 ? "PASS" : "FAIL", name, text[0] ? ": " : "", text);
        assert_int_equal(ok, 1);
    }
    tc_sum_bits(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_probes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
