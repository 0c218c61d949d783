// rank_tests.h - what test programs on real ranks share: started by mpirun with any number of
// ranks, or once without a launcher.
//
// Everything that any rank sends is a pure function of (rank, token, ...), so each rank computes
// what it must receive by itself, from everybody's data: the gather-everything reference. A check
// that fails on any rank fails the test on all; rank 0 prints the summary, as cmocka does.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot.h"
#include "rng.h"

static Boot boot;
static int64_t failures; // of this rank, in this test

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond) && failures++ < 5) {                                                           \
            fprintf(stderr, "rank %d: %s:%d: %s\n", boot.rank, __FILE__, __LINE__, #cond);         \
        }                                                                                          \
    } while (0)

// MUST: a failed collective leaves the ranks out of step; end the job.
static inline void must_at(Err err, const char *file, int line) {
    if (err == OK) return;
    fprintf(stderr, "rank %d: %s:%d: %s\n", boot.rank, file, line, fail_message());
    boot_abort(&boot, err);
    exit(err);
}
#define MUST(call) must_at((call), __FILE__, __LINE__)

static inline uint32_t draw(uint64_t stream, uint64_t i) {
    return philox(11, stream, i).v[0];
}

static inline void *zeroed(int64_t bytes) {
    void *p = calloc(1, (size_t)bytes + 1);
    if (!p) MUST(fail_at(E_INTERNAL, __FILE__, __LINE__, "out of memory"));
    return p;
}

// groups: make the expert groups of size ep.
static inline void groups(int ep) {
    Mesh m;
    MUST(mesh_build(&m, boot.nranks, boot.rank, ep));
    MUST(boot_groups(&boot, &m, "auto"));
}

typedef struct RankTest {
    const char *name;
    void (*run)(void);
} RankTest;

// rank_tests_run: all of them, one after the other, on all ranks; returns how many failed.
static inline int rank_tests_run(const RankTest *tests, int n) {
    bool is_first = boot.rank == 0;
    int failed = 0;
    if (is_first) printf("[==========] Running %d test(s).\n", n);
    for (int i = 0; i < n; i++) {
        if (is_first) printf("[ RUN      ] %s (%d ranks)\n", tests[i].name, boot.nranks);
        fflush(stdout);
        failures = 0;
        tests[i].run();
        int64_t all[64] = {0}; // not comm_agree or comm_sum: those are under test
        int64_t total = 0;
        MUST(boot.world->all_gather(boot.world, all, &failures, sizeof failures));
        for (int r = 0; r < boot.nranks; r++) total += all[r];
        failed += total > 0;
        if (is_first) printf("[ %s ] %s\n", total > 0 ? " FAILED " : "      OK", tests[i].name);
        fflush(stdout);
    }
    if (is_first) {
        printf("[==========] %d test(s) run.\n[  PASSED  ] %d test(s).\n", n, n - failed);
        if (failed) printf("[  FAILED  ] %d test(s)\n", failed);
        fflush(stdout);
    }
    return failed;
}
