// test_train_determinism.c - same config, same bits: run to run, for any number of threads, with evaluation in between,
// and across every kind of stop and resume; and the rules about which run may continue where.
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drive.h"

// The run that nothing disturbed: 8 steps on 2 ranks.
static const char *whole_run(void) {
    const char *dir = path_of("whole");
    if (!has_file(dir)) run_ok(2, "train %s --run-dir %s --steps 8 --set parallel.ep=2 %s", tiny(), dir, SHORT);
    return dir;
}

// Four steps of one rank, with a checkpoint at each of the last three.
static const char *base_run(void) {
    const char *dir = path_of("base");
    if (!has_file(dir)) {
        run_ok(1, "train %s --run-dir %s --steps 4 --set checkpoint.every=1 --set checkpoint.keep_last=3 %s",
               tiny(), dir,
               SHORT);
    }
    return dir;
}

static void test_two_runs(void **state) {
    (void)state;
    const char *a = whole_run(), *b = path_of("again");
    run_ok(2, "train %s --run-dir %s --steps 8 --set parallel.ep=2 %s", tiny(), b, SHORT);
    same_steps(a, b, 1, 8, BITS " maxvio a2a_dispatch_bytes a2a_combine_bytes a2a_meta_bytes fp8_underflow");
    Steps s = steps_read(a);
    assert_string_not_equal(step_text(&s, 1, "state_hash"), step_text(&s, 2, "state_hash"));
    assert_string_not_equal(step_text(&s, 1, "loss"), step_text(&s, 2, "loss"));
    steps_free(&s);
}

static void test_threads(void **state) {
    const char *mode = *state, *dir[4];
    for (int n = 1; n <= 3; n++) {
        dir[n] = path_of("threads-%s-%d", mode, n);
        run_ok(1,
               "train %s --run-dir %s --steps 4 --threads %d --set precision.mode=%s --set train.micro_batch=4 "
               "--set debug.state_hash=true",
               tiny(), dir[n], n, mode);
        same_steps(dir[1], dir[n], 1, 4, BITS);
    }
}

static void test_threads_on_ranks(void **state) {
    (void)state;
    const char *a = whole_run(), *b = path_of("threads-ranks");
    run_ok(2, "train %s --run-dir %s --steps 2 --set parallel.ep=2 %s --threads 2", tiny(), b,
           "--set train.seq_len=32 --set debug.state_hash=true");
    same_steps(a, b, 1, 2, BITS);
}

// A signal to mpirun reaches all ranks; one to a rank must stop all of them all the same.
static void stop_and_resume(const char *name, int signal_number, bool to_one_rank) {
    static Job j;
    const char *dir = path_of("%s", name);
    job_start(&j, 2, "train %s --run-dir %s --set parallel.ep=2 %s", tiny(), dir, SHORT);
    wait_for_step(&j, dir, 2, 120);
    if (to_one_rank) {
        pid_t rank = job_rank(&j, 1);
        assert_true(rank > 0);
        kill(rank, signal_number);
    } else {
        job_signal(&j, signal_number);
    }
    job_wait(&j, 120);
    assert_ends(&j, 75);
    Steps s = steps_read(dir);
    int at = s.n;
    steps_free(&s);
    char latest[300];
    snprintf(latest, sizeof latest, "%s/checkpoints/step_%08d", dir, at);
    if (!has_file(latest)) fail_msg("%s is not there after the signal", latest);
    int end = at < 7 ? 8 : at + 1; // on a slow machine the signal may come late
    run_ok(2, "train %s --run-dir %s --resume auto --steps %d --set parallel.ep=2 %s", tiny(), dir, end, SHORT);
    s = steps_read(dir);
    assert_int_equal(s.first, 1);
    assert_int_equal(s.n, end);
    steps_free(&s);
    same_steps(whole_run(), dir, 1, 8, BITS);
    same_steps(whole_run(), dir, 1, 8, "step lr maxvio");
}

static void test_sigusr1(void **state) {
    (void)state;
    stop_and_resume("usr1", SIGUSR1, false);
}

static void test_sigterm_to_one_rank(void **state) {
    (void)state;
    stop_and_resume("term", SIGTERM, true);
}

static void test_steps_then_resume(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("steps");
    run_ok(2, "train %s --run-dir %s --steps 3 --set parallel.ep=2 %s", tiny(), dir, SHORT);
    run(&j, 2, "train %s --run-dir %s --steps 8 --resume auto --set parallel.ep=2 %s", tiny(), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "step 3, samples [0, 24)");
    same_steps(whole_run(), dir, 1, 8, BITS);
}

static void test_resume_elsewhere(void **state) {
    (void)state;
    const char *flags = "--set precision.mode=fp32 --set train.seq_len=32 --threads 1";
    const char *whole = path_of("fp32"), *dir = path_of("layouts");
    run_ok(1, "train %s --run-dir %s --steps 9 %s", tiny(), whole, flags);
    run_ok(1, "train %s --run-dir %s --steps 3 %s", tiny(), dir, flags);
    run_ok(4, "train %s --run-dir %s --steps 6 --resume auto --set parallel.ep=4 %s", tiny(), dir, flags);
    run_ok(2, "train %s --run-dir %s --steps 9 --resume auto %s", tiny(), dir, flags);
    same_steps(whole, dir, 1, 9, "step samples tokens lr");
    same_steps(whole, dir, 1, 3, "loss grad_norm");
    Steps x = steps_read(whole), y = steps_read(dir);
    for (int i = 1; i <= 9; i++) {
        double a = atof(step_text(&x, i, "loss")), b = atof(step_text(&y, i, "loss"));
        if (!(fabs(a - b) <= 1e-5 * a)) fail_msg("step %d: loss %.9g, resumed in other layouts %.9g", i, a, b);
    }
    steps_free(&x);
    steps_free(&y);
}

static void test_evaluation_changes_nothing(void **state) {
    (void)state;
    const char *dir = path_of("evaluated");
    run_ok(2, "train %s --run-dir %s --steps 8 --set parallel.ep=2 --set data.eval=%s/data/samples/tiny.heldout.h5 "
              "--set eval.every=3 --set eval.max_sequences=5 %s",
           tiny(), dir, drive_source(), SHORT);
    same_steps(whole_run(), dir, 1, 8, BITS " fp8_underflow a2a_dispatch_bytes maxvio");
    char path[300];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    char *events = read_file(path, &n);
    int evaluations = 0;
    for (const char *at = events; (at = strstr(at, "\"event\":\"eval\"")); at++) evaluations++;
    assert_int_equal(evaluations, 3); // after steps 3, 6 and the last
    free(events);
}

static void test_saving_changes_nothing(void **state) {
    (void)state;
    const char *dir = path_of("saved");
    run_ok(2, "train %s --run-dir %s --steps 4 --set parallel.ep=2 --set checkpoint.every=1 %s", tiny(), dir, SHORT);
    same_steps(whole_run(), dir, 1, 4, BITS);
    char path[400];
    for (int i = 1; i <= 4; i++) { // keep_last is 2
        snprintf(path, sizeof path, "%s/checkpoints/step_%08d", dir, i);
        assert_int_equal(has_file(path), i > 2);
    }
}

static void test_nothing_to_do(void **state) {
    (void)state;
    static Job j;
    const char *dir = base_run();
    for (int n = 3; n <= 4; n++) {
        run(&j, 1, "train %s --run-dir %s --steps %d --resume auto %s", tiny(), dir, n, SHORT);
        assert_ends(&j, 0);
        assert_says(&j, "nothing to do");
        assert_says(&j, "step 4");
    }
    Steps s = steps_read(dir);
    assert_int_equal(s.n, 4);
    steps_free(&s);
}

static void test_occupied(void **state) {
    (void)state;
    static Job j;
    const char *dir = base_run(), *other = path_of("other-base");
    char metrics[300];
    size_t n = 0, m = 0;
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", dir);
    char *before = read_file(metrics, &n);
    static const char *const resume[] = {"", "--resume never"};
    for (int i = 0; i < 2; i++) {
        run(&j, 1, "train %s --run-dir %s --steps 6 %s %s", tiny(), dir, resume[i], SHORT);
        assert_ends(&j, 64);
        assert_says(&j, "--resume auto");
        assert_says(&j, dir);
    }
    // A fork needs an empty folder, too.
    run_ok(1, "train %s --run-dir %s --steps 1 %s", tiny(), other, SHORT);
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 %s", tiny(), other, dir, SHORT);
    assert_ends(&j, 64);
    run(&j, 1, "train %s --run-dir %s --init-from %s --steps 6 %s", tiny(), other, dir, SHORT);
    assert_ends(&j, 64);
    char *after = read_file(metrics, &m);
    assert_int_equal(n, m);
    assert_memory_equal(before, after, n);
    free(before);
    free(after);
}

static void test_fork(void **state) {
    (void)state;
    static Job j;
    const char *base = base_run(), *whole = path_of("one-rank");
    const char *fork_a = path_of("fork-a"), *fork_b = path_of("fork-b");
    run_ok(1, "train %s --run-dir %s --steps 6 %s", tiny(), whole, SHORT);
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 %s", tiny(), fork_a, base, SHORT);
    assert_ends(&j, 0);
    same_steps(whole, fork_a, 5, 6, BITS);
    run_ok(1, "train %s --run-dir %s --resume %s@2 --steps 4 %s", tiny(), fork_b, base, SHORT);
    same_steps(base, fork_b, 3, 4, BITS);
    Steps s = steps_read(base);
    assert_int_equal(s.n, 4);
    steps_free(&s);
    run(&j, 1, "train %s --run-dir %s --resume %s@1 --steps 4 %s", tiny(), path_of("fork-c"), base, SHORT);
    assert_ends(&j, 65); // pruned
    assert_false(has_file(path_of("fork-c")));
    // One that dies before its first checkpoint may be started again as it was, and only so.
    const char *fork_d = path_of("fork-d");
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 --inject kill@step=6,rank=0 %s", tiny(), fork_d, base,
        SHORT);
    assert_true(j.code != 0);
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 %s", tiny(), fork_d, whole, SHORT);
    assert_ends(&j, 64);
    for (int i = 0; i < 2; i++) {
        run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 %s", tiny(), fork_d, base, SHORT);
        assert_ends(&j, i == 0 ? 0 : 64);
    }
    same_steps(whole, fork_d, 5, 6, BITS);
    // The fork alone is now a run of its own.
    run_ok(1, "train %s --resume %s --steps 6 %s", tiny(), fork_b, SHORT);
    same_steps(whole, fork_b, 3, 6, BITS);
    // A checkpoint named by its own path belongs to the run that holds it.
    run_ok(1, "train %s --resume %s/checkpoints/latest --steps 7 %s", tiny(), fork_a, SHORT);
    s = steps_read(fork_a);
    assert_int_equal(s.first + s.n, 8);
    steps_free(&s);
}

static void test_init_from(void **state) {
    (void)state;
    const char *base = base_run(), *dir = path_of("init");
    run_ok(1, "train %s --run-dir %s --init-from %s --steps 2 %s", tiny(), dir, base, SHORT);
    Steps a = steps_read(base), b = steps_read(dir);
    assert_int_equal(b.first, 1);
    assert_true(atof(step_text(&b, 1, "loss")) < atof(step_text(&a, 1, "loss")) - 0.02);
    assert_string_equal(step_text(&b, 1, "samples"), "8");
    steps_free(&a);
    steps_free(&b);
}

static void test_missing_checkpoint(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("never-made");
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 %s", tiny(), dir, path_of("nowhere"), SHORT);
    assert_ends(&j, 65);
    assert_says(&j, "nowhere");
    run(&j, 2, "train %s --run-dir %s --resume %s@99 --steps 6 %s", tiny(), dir, base_run(), SHORT);
    assert_ends(&j, 65);
    assert_says(&j, "99");
    assert_false(has_file(dir));
    // A requeued job that never saved starts from the beginning.
    run_ok(1, "train %s --run-dir %s --resume auto --steps 2 %s", tiny(), dir, SHORT);
    same_steps(base_run(), dir, 1, 2, BITS);
}

static void test_changed_model(void **state) {
    (void)state;
    static Job j;
    const char *dir = base_run();
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s --set model.intermediate_size=384",
        tiny(), dir, SHORT);
    assert_ends(&j, 78);
    assert_says(&j, "model.intermediate_size");
    assert_says(&j, "320");
    assert_says(&j, "384");
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s --set train.seed=2", tiny(), dir, SHORT);
    assert_ends(&j, 78);
    assert_says(&j, "train.seed");
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 5 %s --set train.lr=2e-3",
        tiny(), path_of("new-lr"), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "train.lr changed: 0.001 -> 0.002");
}

static void test_changed_data(void **state) {
    (void)state;
    static Job j;
    const char *dir = base_run(), *moved = path_of("elsewhere.h5");
    char shard[600];
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s --set data.train=%s/data/samples/tiny.heldout.h5",
        tiny(),
        dir, SHORT, drive_source());
    assert_ends(&j, 65);
    assert_says(&j, "other data");
    // The same data at another place are the same data.
    snprintf(shard, sizeof shard, "%s/data/samples/tiny.tokens.h5", drive_source());
    copy_file(shard, moved);
    run_ok(1, "train %s --run-dir %s --resume %s@2 --steps 4 %s --set data.train=%s",
           tiny(), path_of("moved-data"), dir,
           SHORT, moved);
    same_steps(dir, path_of("moved-data"), 3, 4, BITS);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_runs),
        {"test_threads_fp32", test_threads, NULL, NULL, "fp32"},
        {"test_threads_bf16", test_threads, NULL, NULL, "bf16"},
        {"test_threads_fp8", test_threads, NULL, NULL, "fp8"},
        cmocka_unit_test(test_threads_on_ranks),
        cmocka_unit_test(test_sigusr1),
        cmocka_unit_test(test_sigterm_to_one_rank),
        cmocka_unit_test(test_steps_then_resume),
        cmocka_unit_test(test_resume_elsewhere),
        cmocka_unit_test(test_evaluation_changes_nothing),
        cmocka_unit_test(test_saving_changes_nothing),
        cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_occupied),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_init_from),
        cmocka_unit_test(test_missing_checkpoint),
        cmocka_unit_test(test_changed_model),
        cmocka_unit_test(test_changed_data),
    };
    drive_init(argc, argv);
    return drive_done(cmocka_run_group_tests_name("train_determinism", tests, NULL, NULL));
}
