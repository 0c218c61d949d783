// test_gemm_mutants.c - a test of the tests: Hopper's FP8 products with one instruction left out must fail.
//
// Every call of ptx.h in the text of the kernels is a site (tc.h). A run of all forms notes the sites; then each is
// cut in a child of its own, and some schedule must show it: a wrong number, a report, or a deadlock.
#include "child.h"
#include "gemm_sm90_cases.h"

// All paths of the kernels in few products: both kinds of scales, stores and additions by TMA and by hand, groups
// that end anywhere, several tiles per block.
static bool is_all_right(void) {
    static const int counts[4] = {130, 0, 70, 129};
    bool is_ok = true;
    for (int f = 0; f <= 4 && is_ok; f++) {
        Options o = {.form = f == 0 || f == 3 ? FPROP
                             : f == 1         ? DGRAD
                                              : WGRAD,
                     .layout = f == 1 ? WIRE : ALIGNED,
                     .st = SCALE_E8M0,
                     .out = f == 2 || f == 3 ? DT_F32 : DT_BF16,
                     .acc = f == 2 || f == 3,
                     .gap = 2,
                     .seed = f};
        Case c = f == 1 || f == 3 ? case_dense(o, (Shape3){200, 150, 300}) : case_grouped(o, counts, 144, 160);
        case_run(&c);
        is_ok = case_is_right(&c);
        case_free(&c);
    }
    return is_ok;
}
static bool is_right_in_all_schedules(void) {
    bool is_ok = true;
    FOR_SCHEDULES(i) {
        tc_multiprocessors(1 + i % 2);
        is_ok = is_ok && is_all_right();
    }
    return is_ok;
}

static void test_mutants(void **state) {
    (void)state;
    check_sites(is_right_in_all_schedules, 31, 199);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutants)};
    return cmocka_run_group_tests(tests, case_setup, case_teardown);
}
