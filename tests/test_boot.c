// test_boot.c - a process without a launcher: which launchers are recognised, one rank without MPI,
// what wrong group kinds are told, signals, and the groups of one and of measure mode.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "boot.h"

static const char *const names[] = {"OMPI_COMM_WORLD_SIZE",
                                    "PMIX_RANK",
                                    "PMIX_NAMESPACE",
                                    "PMI_RANK",
                                    "PMI_SIZE",
                                    "PMI_FD",
                                    "PMI_JOBID",
                                    "SLURM_PROCID",
                                    "SLURM_NTASKS",
                                    "SLURM_STEP_ID",
                                    "SLURM_JOB_ID",
                                    "SLURM_STEP_NUM_TASKS",
                                    "PMI_CONTROL_PORT"};

static void clear_env(void) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

// launched: with these NAME=VALUE settings alone.
static bool launched(const char *const *set) {
    clear_env();
    for (; *set; set += 2) setenv(set[0], set[1], 1);
    bool is = boot_is_launched();
    clear_env();
    return is;
}
#define LAUNCHED(...) launched((const char *const[]){__VA_ARGS__, NULL})

static void test_launchers(void **state) {
    (void)state;
    clear_env();
    assert_false(boot_is_launched());
    assert_true(LAUNCHED("OMPI_COMM_WORLD_SIZE", "1"));
    assert_true(LAUNCHED("OMPI_COMM_WORLD_SIZE", "8"));
    assert_false(LAUNCHED("OMPI_COMM_WORLD_SIZE", "0"));
    assert_false(LAUNCHED("OMPI_COMM_WORLD_SIZE", ""));
    assert_false(LAUNCHED("OMPI_COMM_WORLD_SIZE", "many"));
    assert_true(LAUNCHED("PMIX_RANK", "0"));
    assert_true(LAUNCHED("PMI_RANK", "1", "PMI_SIZE", "2"));
    assert_false(LAUNCHED("PMI_RANK", "1"));
    assert_false(LAUNCHED("PMI_SIZE", "2"));
    // A batch script, a step without PMI, a step with PMIx.
    assert_false(LAUNCHED("SLURM_JOB_ID", "5", "SLURM_PROCID", "0", "SLURM_NTASKS", "4"));
    assert_false(LAUNCHED("SLURM_STEP_ID", "0", "SLURM_PROCID", "0", "SLURM_NTASKS", "4"));
    assert_true(LAUNCHED("SLURM_STEP_ID", "0", "SLURM_PROCID", "0", "SLURM_NTASKS", "4",
                         "PMIX_NAMESPACE", "x"));
}

static void test_one_rank(void **state) {
    (void)state;
    clear_env();
    Boot b;
    assert_int_equal(boot_init(&b), OK);
    assert_false(b.is_mpi);
    assert_int_equal(b.rank, 0);
    assert_int_equal(b.nranks, 1);
    assert_int_equal(b.local_rank, 0);
    assert_int_equal(b.local_nranks, 1);
    assert_true(strlen(b.host) > 0);
    assert_true(boot_cores() >= 1);
    assert_null(b.ep);
    Mesh m;
    assert_int_equal(mesh_build(&m, 1, 0, 1), OK);
    assert_int_equal(boot_groups(&b, &m, "mpi"), E_CONFIG);
    assert_non_null(strstr(fail_message(), "no launcher"));
    assert_int_equal(boot_groups(&b, &m, "nccl"), E_CONFIG);
    assert_non_null(strstr(fail_message(), "parallel.comm is nccl, but no launcher started"));
    fail_clear();
    assert_int_equal(boot_groups(&b, &m, "tcp"), E_CONFIG);
    assert_non_null(strstr(fail_message(), "\"tcp\"; it can be auto, self, mpi or nccl"));
    assert_int_equal(boot_groups(&b, &m, "self"), OK);
    assert_int_equal(boot_groups(&b, &m, "auto"), OK); // again: the old groups go
    assert_int_equal(b.ep->nranks, 1);
    assert_int_equal(b.edp->nranks, 1);
    Mesh other = {2, 0, 1, 0, 2, 0};
    assert_int_equal(boot_groups(&b, &other, "auto"), E_INTERNAL);
    boot_finish(&b);
    assert_null(b.world);
    boot_finish(&b); // twice is harmless
    fail_clear();
}

static void test_srun_without_pmi(void **state) {
    (void)state;
    clear_env();
    setenv("SLURM_STEP_ID", "0", 1);
    setenv("SLURM_PROCID", "2", 1);
    setenv("SLURM_NTASKS", "4", 1);
    Boot b;
    assert_int_equal(boot_init(&b), E_PEER);
    assert_non_null(strstr(fail_message(), "--mpi=pmix"));
    setenv("SLURM_NTASKS", "1", 1);
    assert_int_equal(boot_init(&b), OK);
    boot_finish(&b);
    clear_env();
    fail_clear();
}

// in_child: raise two signals (0 = none) in a child; its exit status: the flag, or 128 + the signal.
static int in_child(int first, int second) {
    pid_t pid = fork();
    if (pid == 0) {
        boot_signals();
        if (boot_signalled() != 0) _exit(99);
        if (first) raise(first);
        if (second) raise(second);
        _exit(boot_signalled());
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_signals(void **state) {
    (void)state;
    static const int all[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP};
    unsetenv("SLURM_JOB_ID");
    assert_int_equal(in_child(0, 0), 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(in_child(all[i], 0), all[i]);
        assert_int_equal(in_child(all[i], all[i]), 128 + all[i]);
        for (int k = 1; k < 5; k++) assert_int_equal(in_child(all[i], all[(i + k) % 5]), all[i]); // no second one
    }
    assert_int_equal(in_child(SIGPIPE, 0), 0);
    signal(SIGHUP, SIG_IGN); // nohup
    assert_int_equal(in_child(SIGHUP, SIGHUP), 0);
    signal(SIGHUP, SIG_DFL);
    setenv("SLURM_JOB_ID", "17", 1); // Slurm repeats SIGTERM
    assert_int_equal(in_child(SIGTERM, SIGTERM), SIGTERM);
    assert_int_equal(in_child(SIGUSR1, SIGUSR1), 128 + SIGUSR1);
    assert_int_equal(in_child(SIGINT, SIGINT), 128 + SIGINT);
    unsetenv("SLURM_JOB_ID");
    assert_string_equal(boot_signal_name(SIGUSR2), "SIGUSR2");
}

static void test_end_time(void **state) {
    (void)state;
    unsetenv("SLURM_JOB_END_TIME");
    assert_int_equal(boot_end_time(), 0);
    setenv("SLURM_JOB_END_TIME", "1790000000", 1);
    assert_int_equal(boot_end_time(), 1790000000);
    setenv("SLURM_JOB_END_TIME", "soon", 1);
    assert_int_equal(boot_end_time(), 0);
    unsetenv("SLURM_JOB_END_TIME");
}

static void test_self(void **state) {
    (void)state;
    Comm *c = NULL;
    assert_int_equal(comm_self(&c, "ep"), OK);
    int32_t src[4] = {1, 2, 3, 4}, dst[4] = {0};
    assert_int_equal(c->barrier(c), OK);
    assert_int_equal(c->all_gather(c, dst, src, sizeof src), OK);
    assert_memory_equal(dst, src, sizeof src);
    memset(dst, 0, sizeof dst);
    assert_int_equal(c->all_to_all(c, dst, src, sizeof src), OK);
    assert_memory_equal(dst, src, sizeof src);
    memset(dst, 0, sizeof dst);
    int64_t count = 2, from = 1, to = 2, three = 3;
    assert_int_equal(c->all_to_all_v(c, dst, &count, &to, src, &count, &from, 4), OK);
    const int32_t want[4] = {0, 0, 2, 3};
    assert_memory_equal(dst, want, sizeof want);
    assert_int_equal(c->all_to_all_v(c, dst, &three, &to, src, &count, &from, 4), E_INTERNAL);
    int request = -1;
    memset(dst, 0, sizeof dst);
    assert_int_equal(comm_start_all_to_all_v(c, &request, dst, &count, &to, src, &count, &from, 4),
                     OK);
    assert_int_equal(comm_progress(c), OK);
    assert_int_equal(comm_wait(c, &request), OK);
    assert_int_equal(request, -1);
    assert_memory_equal(dst, want, sizeof want);
    assert_int_equal(comm_wait(c, &request), E_INTERNAL);
    assert_int_equal(comm_start_all_to_all_v(c, &request, dst, &three, &to, src, &count, &from, 4),
                     E_INTERNAL);
    assert_int_equal(request, -1);
    assert_int_equal(c->broadcast(c, src, 4, 0), OK);
    assert_int_equal(c->broadcast(c, src, 4, 1), E_INTERNAL);
    double x[2] = {1.5, -2.5};
    assert_int_equal(comm_sum(c, x, 2), OK);
    assert_true(x[0] == 1.5 && x[1] == -2.5);
    assert_int_equal(comm_sum(c, x, 65537), E_INTERNAL);
    assert_int_equal(comm_agree(c, OK), OK);
    assert_int_equal(comm_agree(c, fail_at(E_INPUT, __FILE__, __LINE__, "no such file")), E_INPUT);
    assert_string_equal(fail_message(), "no such file");
    comm_destroy(&c);
    assert_null(c);
    comm_destroy(&c);
    fail_clear();
}

static void test_null(void **state) {
    (void)state;
    Comm *c = NULL;
    assert_int_equal(comm_null(&c, "ep", 3, 8), OK);
    assert_true(c->is_null);
    assert_int_equal(c->rank, 3);
    assert_int_equal(c->nranks, 8);
    void *wild = (void *)4096; // never mapped: touching it crashes
    assert_int_equal(c->barrier(c), OK);
    assert_int_equal(c->all_gather(c, wild, wild, 100), OK);
    assert_int_equal(c->all_to_all(c, wild, wild, 100), OK);
    int request = -1;
    assert_int_equal(c->all_to_all_v(c, wild, wild, wild, wild, wild, wild, 100), OK);
    assert_int_equal(comm_start_all_to_all_v(c, &request, wild, wild, wild, wild, wild, wild, 100),
                     OK);
    assert_int_equal(comm_progress(c), OK);
    assert_int_equal(comm_wait(c, &request), OK);
    assert_int_equal(c->broadcast(c, wild, 100, 0), OK);
    assert_int_equal(comm_sum(c, wild, 100), OK);
    assert_int_equal(comm_max_i64(c, wild, 100), OK);
    assert_int_equal(comm_agree(c, OK), OK);
    comm_destroy(&c);
    assert_int_equal(comm_null(&c, "ep", 8, 8), E_INTERNAL);
    fail_clear();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_launchers),
        cmocka_unit_test(test_one_rank),
        cmocka_unit_test(test_srun_without_pmi),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_end_time),
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
