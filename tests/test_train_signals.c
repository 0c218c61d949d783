// test_train_signals.c - one signal to one rank, whatever the run is doing: all ranks agree, the unfinished step is
// dropped, the last finished one is on disk and verified, the code is 75, and the resumed run is the undisturbed one to
// the bit. Time limits, second signals, output that nobody reads.
//
// Alone it runs a case of every phase; with the word "all" behind the source folder every signal in every phase, to one
// process, to one rank of two and (SIGUSR1, SIGUSR2) to mpirun: launch/reliability signals.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "drive.h"
#include "ledger.h"

#define STEPS 12

typedef enum Phase { STARTUP, DATA, STEP, EVAL, SAVE, PHASES } Phase;
typedef enum Target { ALONE, ONE_RANK, LAUNCHER } Target;
static const char *const phase_names[PHASES] = {"start-up", "data", "step", "eval", "save"};
static const char *const target_names[] = {"process", "rank", "mpirun"};

typedef struct Case {
    Phase phase;
    int sig;
    Target target;
    char name[48];
} Case;

static int world_of(Target t) {
    return t == ALONE ? 1 : 2;
}

static const char *whole_run(int ranks) {
    const char *dir = path_of("whole-%d", ranks);
    if (!has_file(dir)) {
        run_ok(ranks, "train %s --run-dir %s --steps %d --set parallel.ep=%d %s", tiny(), dir, STEPS, ranks, SHORT);
    }
    return dir;
}

static void nap(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

// catches: does the process have a handler for the signal? Before that it would only be killed. mpirun's own handlers,
// which its children have until they become the program, do not count.
static bool catches(pid_t pid, int sig) {
    char path[64], line[256], exe[512] = "";
    unsigned long long caught = 0;
    snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
    if (readlink(path, exe, sizeof exe - 1) < 0 || !strstr(exe, "tessera")) return false;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "SigCgt: %llx", &caught) == 1) break;
    }
    if (f) fclose(f);
    return caught >> (sig - 1) & 1;
}

// rank_of: the process that gets the signal, as soon as it takes signals.
static pid_t rank_of(Job *j, Target target, int sig) {
    for (int i = 0; i < 60000; i++, nap(0.001)) {
        pid_t pid = target == ALONE ? j->pid : job_rank(j, 1);
        if (pid > 0 && catches(pid, sig)) return pid;
    }
    fail_msg("no rank that takes the signal");
    return 0;
}

// wait_for_file: a folder's entry appears and the job goes on.
static void wait_for_file(const char *path) {
    for (int i = 0; i < 120000; i++, nap(0.001)) {
        if (has_file(path)) return;
    }
    fail_msg("%s did not appear", path);
}

// wait_for_eval: this process evaluates after this step, as its ledger says.
static void wait_for_eval(const char *dir, int step, pid_t pid) {
    static LedgerHead head;
    static LedgerEntry ring[LEDGER_RING];
    char path[600];
    for (int i = 0; i < 60000; i++, nap(0.001)) {
        snprintf(path, sizeof path, "%s/ledger/rank_%05d.bin", dir, i % 2);
        bool ok = has_file(path) && ledger_read(path, &head, ring) == OK;
        fail_clear();
        if (ok && head.pid == pid && head.step == step && head.phase == PHASE_EVAL) return;
    }
    fail_msg("no evaluation");
}

// What makes the phase last. The signal comes after step 3.
static const char *phase_flags(Phase p) {
    switch (p) {
    case DATA: return "--inject slow@step=4-2000,rank=0,seconds=0.4,in=data";
    case STEP: return "--inject slow@step=4-2000,rank=0,seconds=0.2";
    case EVAL: return "--set data.eval=data/samples/tiny.tokens.h5 --set eval.every=3";
    case SAVE: return "--set checkpoint.every=4";
    default: return "";
    }
}

// hit: waits for the phase and sends the signal.
static void hit(Job *j, const Case *c, const char *dir) {
    pid_t pid = rank_of(j, c->target, c->sig);
    char partial[600];
    snprintf(partial, sizeof partial, "%s/checkpoints/step_00000004.partial", dir);
    if (c->phase == SAVE) {
        wait_for_file(partial);
    } else if (c->phase != STARTUP) {
        wait_for_step(j, dir, 3, 120);
        if (c->phase == EVAL) nap(0.1);
        if (c->phase == DATA || c->phase == STEP) nap(0.3);
    }
    if (c->target == LAUNCHER) pid = j->pid;
    assert_int_equal(kill(pid, c->sig), 0);
}

static const char *signal_name(int sig) {
    return sig == SIGUSR1 ? "SIGUSR1" : sig == SIGUSR2 ? "SIGUSR2" : sig == SIGTERM ? "SIGTERM"
           : sig == SIGINT ? "SIGINT" : "SIGHUP";
}

// stopped_at: steps that are finished, and on disk if there are any.
static int stopped_at(const char *dir) {
    static Job j;
    Steps s = steps_read(dir);
    int n = s.n;
    char path[600], says[64];
    steps_free(&s);
    if (n == 0) return 0;
    snprintf(path, sizeof path, "%s/checkpoints/step_%08d", dir, n);
    run(&j, 1, "inspect %s", path); // reads everything back
    assert_ends(&j, 0);
    snprintf(says, sizeof says, "step %d", n);
    assert_says(&j, says);
    return n;
}

static void one_case(void **state) {
    const Case *c = *state;
    static Job j;
    int world = world_of(c->target), steps = 0;
    char dir[400], says[96];
    snprintf(dir, sizeof dir, "%s", path_of("%s", c->name));
    job_start(&j, world, "train %s --run-dir %s --steps 2000 --set parallel.ep=%d %s %s", tiny(), dir, world, SHORT,
              phase_flags(c->phase));
    hit(&j, c, dir);
    job_wait(&j, 120);
    assert_ends(&j, 75);
    if (c->phase == STARTUP) {
        snprintf(says, sizeof says, "stopped by %s during the start: nothing was trained or saved",
                 signal_name(c->sig));
        assert_says(&j, says);
        assert_null(strstr(j.err, "error"));
        assert_false(has_file(dir));
    } else {
        steps = stopped_at(dir);
        snprintf(says, sizeof says, "stopped by %s after step %d", signal_name(c->sig), steps);
        assert_says(&j, says);
        // Nothing of the step that was on its way, and no step more.
        assert_in_range(steps, 3, c->phase == SAVE ? 5 : 4);
        if (c->phase == EVAL) {
            assert_int_equal(steps, 3);
            assert_says(&j, "held-out   step 3: given up");
        }
        if (c->phase == SAVE) assert_says(&j, "saved      step 4, verified");
    }
    run_ok(world, "train %s --run-dir %s --resume auto --steps %d --set parallel.ep=%d %s", tiny(), dir, STEPS, world,
           SHORT);
    Steps a = steps_read(whole_run(world)), b = steps_read(dir);
    assert_int_equal(b.n, STEPS);
    assert_same_steps(&a, &b, 1, STEPS, BITS);
    steps_free(&a);
    steps_free(&b);
}

// evals_of: the losses of the evaluations that were made, in order.
static int evals_of(const char *dir, char loss[][32], int most) {
    char path[600];
    size_t size = 0;
    int n = 0;
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    char *text = read_file(path, &size);
    for (char *at = text; (at = strstr(at, "\"event\":\"eval\",")) && n < most; at++)
        snprintf(loss[n++], 32, "%s", json_text(at, "loss"));
    free(text);
    return n;
}

// A run is complete with the evaluation of its last step: one that is given up ends it with 75, and the resume makes
// it, that one only. Evaluations on the way are made by a resume too.
static void test_evaluation_given_up(void **state) {
    (void)state;
    static Job j;
    const char *flags = "--set parallel.ep=2 --set data.eval=data/samples/tiny.tokens.h5 --set eval.every=2 "
                        "--set eval.max_sequences=400";
    char dir[400], whole[400], got[8][32], want[8][32];
    snprintf(dir, sizeof dir, "%s", path_of("evals"));
    snprintf(whole, sizeof whole, "%s", path_of("whole-evals"));
    run_ok(2, "train %s --run-dir %s --steps 3 %s %s", tiny(), whole, flags, SHORT);
    assert_int_equal(evals_of(whole, want, 8), 2);
    for (int step = 2; step <= 3; step++) {
        for (int turn = 0; turn < 2; turn++) { // the resume's evaluation is interrupted too
            char says[96];
            job_start(&j, 2, "train %s --run-dir %s --resume auto --steps 3 %s %s", tiny(), dir, flags, SHORT);
            pid_t pid = rank_of(&j, ONE_RANK, SIGTERM);
            wait_for_eval(dir, step, pid);
            assert_int_equal(kill(pid, SIGTERM), 0);
            job_wait(&j, 120);
            assert_ends(&j, 75);
            snprintf(says, sizeof says, "held-out   step %d: given up", step);
            assert_says(&j, says);
            assert_int_equal(stopped_at(dir), step);
            assert_int_equal(evals_of(dir, got, 8), step - 2);
        }
    }
    run(&j, 2, "train %s --run-dir %s --resume auto --steps 3 %s %s", tiny(), dir, flags, SHORT);
    assert_ends(&j, 0);
    assert_int_equal(evals_of(dir, got, 8), 2);
    for (int i = 0; i < 2; i++) assert_string_equal(got[i], want[i]);
    same_steps(whole, dir, 1, 3, BITS);
    run(&j, 2, "train %s --run-dir %s --resume auto --steps 3 %s %s", tiny(), dir, flags, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "nothing to do");
}

// The second signal of a kind does not wait for anything.
static void test_second_signal(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("twice");
    job_start(&j, 1, "train %s --run-dir %s --steps 2000 %s --inject slow@step=3,rank=0,seconds=60", tiny(), dir,
              SHORT);
    wait_for_step(&j, dir, 2, 120);
    nap(0.2);
    job_signal(&j, SIGINT);
    nap(0.2);
    job_signal(&j, SIGINT);
    job_wait(&j, 30);
    assert_ends(&j, 128 + SIGINT);
    assert_int_equal(steps_read(dir).n, 2);
}

// `tessera train | tee log` and Ctrl-C, which ends tee as well: nobody reads the lines any more, the save is made.
static void test_reader_gone(void **state) {
    (void)state;
    static Job j;
    char dir[400], line[1600], path[500];
    snprintf(dir, sizeof dir, "%s", path_of("no-reader"));
    snprintf(path, sizeof path, "%s", path_of("no-reader-code"));
    snprintf(line, sizeof line, "{ %s train %s --run-dir %s --steps %d %s; echo $? >%s; } | head -n 1 >%s",
             drive_program(), tiny(), dir, STEPS, SHORT, path, path_of("first-line"));
    assert_int_equal(system(line), 0);
    size_t n;
    char *code = read_file(path, &n);
    assert_string_equal(code, "0\n");
    free(code);
    run(&j, 1, "inspect %s/checkpoints/step_%08d", dir, STEPS);
    assert_ends(&j, 0);
    same_steps(whole_run(1), dir, 1, STEPS, BITS);
}

// A time limit ends the run by itself, before the limit, with a save; and measures a save after the first step.
static void test_time_limit(void **state) {
    (void)state;
    static Job j;
    char dir[400], path[500];
    snprintf(dir, sizeof dir, "%s", path_of("limit"));
    run(&j, 2, "train %s --run-dir %s --steps 100000 --time-limit 0:12 --set parallel.ep=2 %s", tiny(), dir, SHORT);
    assert_ends(&j, 75);
    assert_says(&j, "saved      step 1,");
    assert_says(&j, "stopped by the time limit (--time-limit) after step");
    assert_true(j.seconds < 25.0); // 12 s, and what mpirun needs besides
    int n = stopped_at(dir);
    assert_true(n >= 1);
    // The batch system's word counts like it; the nearer of both.
    char now[64];
    snprintf(now, sizeof now, "%lld", (long long)time(NULL) + 8);
    setenv("SLURM_JOB_END_TIME", now, 1);
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 100000 --time-limit 1h %s", tiny(), dir, SHORT);
    unsetenv("SLURM_JOB_END_TIME");
    assert_ends(&j, 75);
    assert_says(&j, "the time limit (SLURM_JOB_END_TIME)");
    assert_true(stopped_at(dir) >= n);
    // No time for anything: nothing is made.
    snprintf(path, sizeof path, "%s", path_of("no-time"));
    run(&j, 2, "train %s --run-dir %s --time-limit 1 --set parallel.ep=2 %s", tiny(), path, SHORT);
    assert_ends(&j, 75);
    assert_false(has_file(path));
    run(&j, 1, "train %s --run-dir %s --time-limit soon %s", tiny(), path, SHORT);
    assert_ends(&j, 64);
    assert_says(&j, "--time-limit must be a duration");
}

static struct CMUnitTest tests[128];
static Case cases[128];
static int ntests;

static void add_case(Phase phase, int sig, Target target) {
    Case *c = &cases[ntests];
    c->phase = phase;
    c->sig = sig;
    c->target = target;
    snprintf(c->name, sizeof c->name, "%s-%s-%s", phase_names[phase], signal_name(sig), target_names[target]);
    tests[ntests++] = (struct CMUnitTest){c->name, one_case, NULL, NULL, c};
}

static void add_all(void) {
    static const int signals[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP};
    for (int p = 0; p < PHASES; p++) {
        for (int s = 0; s < 5; s++) {
            add_case((Phase)p, signals[s], ALONE);
            add_case((Phase)p, signals[s], ONE_RANK);
            // mpirun hands only these two on; and before its ranks are there it has nobody to hand them to.
            if (s < 2 && p != STARTUP) add_case((Phase)p, signals[s], LAUNCHER);
        }
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest rest[] = {cmocka_unit_test(test_second_signal), cmocka_unit_test(test_time_limit),
                                      cmocka_unit_test(test_reader_gone), cmocka_unit_test(test_evaluation_given_up)};
    if (argc == 4 && strcmp(argv[3], "all") == 0) {
        argc = 3;
        add_all();
    } else {
        add_case(STARTUP, SIGTERM, ONE_RANK);
        add_case(DATA, SIGUSR2, ONE_RANK);
        add_case(STEP, SIGINT, ALONE);
        add_case(DATA, SIGHUP, ALONE);
        add_case(EVAL, SIGTERM, ONE_RANK);
        add_case(SAVE, SIGUSR1, LAUNCHER);
    }
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) tests[ntests++] = rest[i];
    drive_init(argc, argv);
    return drive_done(_cmocka_run_group_tests("train_signals", tests, (size_t)ntests, NULL, NULL));
}
