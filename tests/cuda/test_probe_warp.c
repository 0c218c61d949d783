// test_probe_warp.c - the probes of the warp's instructions under the fibers: they pass under every schedule; with one
// instruction left out they fail; broken uses are reported.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "on_cpu.h"

int probe_warp(int i, const char **name, const char **text);
void probe_warp_wrong(int how);
void tc_finish(void);
void tc_sites(void);
int tc_site(int i, const char **what);
void tc_cut(const char *what, int line);
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

// How a child ended: its exit code, or 256 + the signal; what it said on stderr.
static int in_child(void (*run)(const void *), const void *arg, char *said, size_t size) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], 2);
        signal(SIGABRT, SIG_DFL); // cmocka catches them
        signal(SIGSEGV, SIG_DFL);
        alarm(60);
        run(arg);
        _exit(0);
    }
    close(ends[1]);
    size_t have = 0;
    for (ssize_t n; have + 1 < size && (n = read(ends[0], said + have, size - 1 - have)) > 0;) have += (size_t)n;
    said[have] = '\0';
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

typedef struct Site {
    const char *what;
    int line;
} Site;
static void run_cut(const void *arg) {
    const Site *s = arg;
    tc_cut(s->what, s->line);
    bool is_ok = true;
    FOR_SCHEDULES(i) is_ok = is_ok && all_pass(false);
    _exit(is_ok ? 0 : 1);
}
static void test_mutants(void **state) {
    (void)state;
    Site site[100];
    char said[512];
    int n = 0, survivors = 0;
    tc_sites();
    FOR_SCHEDULES(i) assert_true(all_pass(false));
    while (n < 100 && (site[n].line = tc_site(n, &site[n].what))) n++;
    tc_cut(NULL, 0);
    assert_true(n == 17);
    for (int i = 0; i < n; i++) {
        if (in_child(run_cut, &site[i], said, sizeof said) != 0) continue;
        print_message("line %d: %s can go\n", site[i].line, site[i].what);
        survivors++;
    }
    print_message("%d sites\n", n);
    assert_int_equal(survivors, 0);
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
            assert_int_equal(in_child(run_wrong, &how, said, sizeof said), 256 + SIGABRT);
            if (!strstr(said, words[how]) && !(how == 1 && strstr(said, "deadlock")))
                fail_msg("'%s' not in '%s'", words[how], said);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_probes), cmocka_unit_test(test_mutants),
                                       cmocka_unit_test(test_reports)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
