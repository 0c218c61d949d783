// child.h - what ends a process is tried in a child of its own.
#pragma once
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "on_cpu.h"

// child_ends: run(arg) in a child, which then ends with 0 if run comes back. Returns its exit code, or 256 + the signal
// that ended it (SIGALRM after two minutes); said [size]: the beginning of what it wrote to stderr.
static inline int child_ends(void (*run)(const void *), const void *arg, char *said, size_t size) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[0]);
        dup2(ends[1], 2);
        signal(SIGABRT, SIG_DFL); // cmocka catches them
        signal(SIGSEGV, SIG_DFL);
        if (!freopen("/dev/null", "w", stdout)) _exit(2);
        alarm(120);
        run(arg);
        _exit(0);
    }
    close(ends[1]);
    size_t have = 0;
    char more[512];
    for (ssize_t n; (n = read(ends[0], more, sizeof more)) > 0;) { // to its end, so that the child can go on writing
        size_t take = (size_t)n < size - 1 - have ? (size_t)n : size - 1 - have;
        memcpy(said + have, more, take);
        have += take;
    }
    said[have] = '\0';
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

// ---- a test of the tests: kernels with one instruction of ptx.h left out (tc.h) -----------------

void tc_sites(void);
int tc_site(int i, const char **what);
void tc_cut(const char *what, int line);

typedef struct ChildCut {
    const char *what; // NULL: nothing is left out
    int line;
    bool (*is_right)(void);
} ChildCut;

static inline void child_run_cut(const void *arg) {
    const ChildCut *cut = arg;
    tc_cut(cut->what, cut->line);
    _exit(cut->is_right() ? 0 : 1);
}

// check_sites: is_right holds, and without the calls of any one of the sites that it comes through, which are `least`
// to `most` (below 200), it does not, or the process ends otherwise.
static inline void check_sites(bool (*is_right)(void), int least, int most) {
    ChildCut site[200], none = {NULL, 0, is_right};
    char said[512];
    int n = 0, survivors = 0;
    tc_sites();
    assert_true(is_right());
    while (n < 200 && (site[n].line = tc_site(n, &site[n].what))) site[n++].is_right = is_right;
    tc_cut(NULL, 0);
    assert_in_range(n, least, most);
    assert_true(n < 200);
    assert_int_equal(child_ends(child_run_cut, &none, said, sizeof said), 0); // the child itself is sound
    for (int i = 0; i < n; i++) {
        if (child_ends(child_run_cut, &site[i], said, sizeof said) != 0) continue;
        print_message("line %d: %s can go\n", site[i].line, site[i].what);
        survivors++;
    }
    print_message("%d sites\n", n);
    assert_int_equal(survivors, 0);
}
