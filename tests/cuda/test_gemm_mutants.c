// test_gemm_mutants.c - a test of the tests: Hopper's FP8 products with one instruction left out must fail.
//
// Every call of ptx.h in the text of the kernels is a site (tc.h). A run of all forms notes the sites; then each is
// cut in a child of its own, and some schedule must show it: a wrong number, a report, or a deadlock.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gemm_sm90_cases.h"

void tc_sites(void);
int tc_site(int i, const char **what);
void tc_cut(const char *what, int line);

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

// Whether a run without the calls of the site ends well.
static bool survives(const char *what, int line) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL); // cmocka catches them
        signal(SIGSEGV, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout)) _exit(2);
        alarm(60);
        tc_cut(what, line);
        _exit(is_right_in_all_schedules() ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void test_mutants(void **state) {
    (void)state;
    struct {
        const char *what;
        int line;
    } site[200];
    int n = 0, survivors = 0;
    tc_sites();
    assert_true(is_right_in_all_schedules());
    while (n < 200 && (site[n].line = tc_site(n, &site[n].what))) n++;
    tc_cut(NULL, 0);
    assert_true(n > 30 && n < 200);
    assert_true(survives(NULL, 0)); // the child itself is sound
    for (int i = 0; i < n; i++) {
        if (!survives(site[i].what, site[i].line)) continue;
        print_message("line %d: %s can go\n", site[i].line, site[i].what);
        survivors++;
    }
    print_message("%d sites\n", n);
    assert_int_equal(survivors, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutants)};
    return cmocka_run_group_tests(tests, case_setup, case_teardown);
}
