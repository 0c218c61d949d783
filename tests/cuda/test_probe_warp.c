// test_probe_warp.c - the probes of the warp's instructions under the fibers: they pass under every schedule; with one
// instruction left out they fail; broken uses are reported.
#include "child.h"

int probe_warp(int i, const char **name, const char **text);
void probe_warp_wrong(int how);
void tc_finish(void);
void tc_half_bits(int bits);

static bool all_pass(bool is_loud) {
    const char *name, *text;
    bool is_ok = true;
    for (int i = 0, ok; (ok = probe_warp(i, &name, &text)) >= 0; i++) {
        tc_finish();
        if (is_loud) print_message("%s %s%s%s\n", ok == 1 ? "PASS" : "FAIL", name, text[0] ? ": " : "", text);
        is_ok = is_ok && ok == 1;
    }
    return is_ok;
}
static void test_probes(void **state) {
    (void)state;
    FOR_SCHEDULES(i) assert_true(all_pass(i == 0));
    // Sums that are cut to 24 bits toward zero, as a GPU may have them, pass too.
    tc_half_bits(24);
    assert_true(all_pass(true));
    tc_half_bits(0);
}

static bool all_pass_quietly(void) {
    bool is_ok = true;
    FOR_SCHEDULES(i) is_ok = is_ok && all_pass(false);
    return is_ok;
}
static void test_mutants(void **state) {
    (void)state;
    check_sites(all_pass_quietly, 17, 17);
}

static void run_wrong(const void *arg) {
    probe_warp_wrong(*(const int *)arg);
    tc_finish();
}
static void test_reports(void **state) {
    (void)state;
    static const char *const words[] = {"a warp that is not full", "mask names an exited lane",
                                        "lanes of a warp are at different instructions", "a misaligned row",
                                        "a block ended before a cp.async was waited for"};
    for (int how = 0; how < 5; how++) FOR_SCHEDULES(i) {
            char said[512];
            assert_int_equal(child_ends(run_wrong, &how, said, sizeof said), 256 + SIGABRT);
            if (!strstr(said, words[how]) && !(how == 1 && strstr(said, "deadlock")))
                fail_msg("'%s' not in '%s'", words[how], said);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_probes), cmocka_unit_test(test_mutants),
                                       cmocka_unit_test(test_reports)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
