// test_train_nonfinite.c - losses and gradients that are not finite: who is named, and what train.on_nonfinite does:
// the same state whatever it was that was not finite, however the batch was dropped, and from whichever checkpoint the
// run is resumed.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "drive.h"

static bool in_file(const char *dir, const char *name, const char *text) {
    char path[600];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    char *all = read_file(path, &n);
    bool is_there = strstr(all, text) != NULL;
    free(all);
    return is_there;
}

// One rank of four: layer, tensor and samples, of a loss and of a gradient; nothing is saved.
static void test_named(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("loss");
    run(&j, 4, "train %s --run-dir %s --steps 3 --set parallel.ep=2 --inject nan@step=2,rank=2,layer=1 %s", tiny(),
        dir, SHORT);
    assert_ends(&j, 80);
    assert_says(&j, "step 2: the loss is NaN: the output of layer 1 is not finite on rank 2: samples 12 to 12; ");
    assert_false(in_file(dir, "metrics.jsonl", "\"step\":2"));
    // The experts of rank 3 get the rows of rank 2 too: the rank that they came from is named.
    dir = path_of("gradient");
    run(&j, 4,
        "train %s --run-dir %s --steps 3 --set parallel.ep=2 --inject nan@step=2,rank=2,layer=2,in=gradient %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 80);
    assert_says(&j, "step 2: the gradient of model.layers.2.input_layernorm.weight is not finite on rank 2: sample");
    assert_false(in_file(dir, "metrics.jsonl", "\"step\":2"));
}

// Steps 1 to 5, the third batch dropped.
static void assert_skipped(const char *dir, const char *policy) {
    static const char *const samples[] = {"8", "16", "32", "40", "48"};
    char says[100];
    Steps s = steps_read(dir);
    assert_int_equal(s.first, 1);
    assert_int_equal(s.n, 5);
    for (int i = 0; i < 5; i++) assert_string_equal(step_text(&s, i + 1, "samples"), samples[i]);
    assert_string_equal(json_text(s.line[1], "skipped_samples"), "");
    assert_string_equal(step_text(&s, 5, "skipped_samples"), "8");
    steps_free(&s);
    snprintf(says, sizeof says, "\"event\":\"nonfinite\",\"step\":3,\"policy\":\"%s\"", policy);
    assert_true(in_file(dir, "events.jsonl", says));
    assert_true(in_file(dir, "events.jsonl", "\"skipped\":[16,24]"));
    assert_true(in_file(dir, "checkpoints/step_00000005/manifest.json", "[16, 24)"));
}

static void skip_on(int ranks, const char *layout) {
    static Job j;
    const char *dir = path_of("skip%d", ranks), *other = path_of("other%d", ranks), *more = path_of("more%d", ranks);
    int bad = ranks - 1;
    run(&j, ranks,
        "train %s --run-dir %s --steps 5 --set train.on_nonfinite=skip --set checkpoint.every=4 %s %s "
        "--inject nan@step=3,rank=%d,layer=1",
        tiny(), dir, layout, SHORT, bad);
    assert_ends(&j, 0);
    assert_says(&j, "the batch is skipped");
    assert_skipped(dir, "skip");
    // A gradient instead of a loss.
    run_ok(ranks,
           "train %s --run-dir %s --steps 5 --set train.on_nonfinite=skip %s %s "
           "--inject nan@step=3,rank=%d,layer=2,in=gradient",
           tiny(), other, layout, SHORT, bad);
    same_steps(dir, other, 1, 5, BITS);
    // From the checkpoint behind it.
    run(&j, ranks, "train %s --run-dir %s --resume %s@4 --steps 5 %s %s", tiny(), more, dir, layout, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "8 of them left no trace, their batches were not finite: [16, 24)");
    same_steps(dir, more, 5, 5, BITS);
}

// Back to the checkpoint just before it is the same as dropping it.
static void back_on(int ranks, const char *layout) {
    const char *dir = path_of("skip%d", ranks), *other = path_of("back%d", ranks);
    int bad = ranks - 1;
    if (!has_file(dir))
        run_ok(ranks,
               "train %s --run-dir %s --steps 5 --set train.on_nonfinite=skip %s %s "
               "--inject nan@step=3,rank=%d,layer=1",
               tiny(), dir, layout, SHORT, bad);
    run_ok(ranks,
           "train %s --run-dir %s --steps 5 --set train.on_nonfinite=rollback --set checkpoint.every=2 %s %s "
           "--inject nan@step=3,rank=%d,layer=1",
           tiny(), other, layout, SHORT, bad);
    assert_skipped(other, "rollback");
    same_steps(dir, other, 1, 5, BITS);
}

static void test_skip_alone(void **state) {
    (void)state;
    skip_on(1, "");
}

static void test_skip_on_ranks(void **state) {
    (void)state;
    skip_on(2, "--set parallel.ep=2");
    back_on(2, "--set parallel.ep=2");
}

// Two steps behind the checkpoint: one is taken again, with other samples, and each has one line.
static void test_rollback(void **state) {
    (void)state;
    const char *dir = path_of("far"), *whole = path_of("whole");
    run_ok(1, "train %s --run-dir %s --steps 3 %s", tiny(), whole, SHORT);
    run_ok(1,
           "train %s --run-dir %s --steps 4 --set train.on_nonfinite=rollback --set checkpoint.every=2 "
           "--inject nan@step=4,rank=0,in=gradient %s",
           tiny(), dir, SHORT);
    same_steps(whole, dir, 1, 2, BITS);
    Steps a = steps_read(whole), b = steps_read(dir);
    assert_int_equal(b.n, 4);
    assert_string_equal(step_text(&b, 3, "samples"), "40"); // behind [16, 32)
    assert_string_not_equal(step_text(&b, 3, "loss"), step_text(&a, 3, "loss"));
    assert_string_equal(step_text(&b, 4, "skipped_samples"), "16");
    steps_free(&a);
    steps_free(&b);
    assert_true(in_file(dir, "checkpoints/step_00000004/manifest.json", "[16, 32)"));
    assert_true(in_file(dir, "events.jsonl", "\"event\":\"save\",\"step\":4"));
}

// A run that goes on from before its newest checkpoint goes back to where it went on, not forward to that one.
static void test_rollback_of_resumed(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("before");
    run_ok(1, "train %s --run-dir %s --steps 4 --set checkpoint.every=2 %s", tiny(), dir, SHORT);
    run(&j, 1,
        "train %s --run-dir %s --resume %s@2 --steps 4 --set train.on_nonfinite=rollback --set checkpoint.every=2 "
        "--inject nan@step=3,rank=0 %s",
        tiny(), dir, dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "back to step 2, and on with sample 24");
    assert_true(in_file(dir, "checkpoints/step_00000004/manifest.json", "[16, 24)"));
}

// Static scales: a run that goes back to before its calibration calibrates again, as one does that begins there. That
// one is resumed from the same state with the same samples left out, a batch of twice the size.
static void test_rollback_of_calibration(void **state) {
    (void)state;
    static Job j;
    const char *plain = path_of("plain"), *back = path_of("recalibrated"), *other = path_of("calibrated");
    const char *events = path_of("calibrated/events.jsonl");
    const char *fixed = "--steps 5 --set fp8.scaling=static --set fp8.static_steps=1";
    run_ok(1, "train %s --run-dir %s --steps 2 %s", tiny(), plain, SHORT);
    run(&j, 1,
        "train %s --run-dir %s --resume %s@2 %s --set train.on_nonfinite=rollback --inject nan@step=4,rank=0 %s",
        tiny(), back, plain, fixed, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "back to step 2, and on with sample 32");
    job_start(&j, 1,
              "train %s --run-dir %s --resume %s@2 --steps 5 --set train.global_batch=16 --set train.on_nonfinite=skip "
              "--inject nan@step=3,rank=0 --inject slow@step=3,rank=0,seconds=0.2,in=data %s",
              tiny(), other, plain, SHORT);
    for (int i = 0; i < 3000 && !(has_file(events) && in_file(other, "events.jsonl", "\"nonfinite\"")); i++)
        usleep(20000);
    job_signal(&j, SIGUSR1);
    job_wait(&j, 60);
    assert_ends(&j, 75);
    assert_true(in_file(other, "checkpoints/step_00000002/manifest.json", "[16, 32)"));
    run_ok(1, "train %s --run-dir %s --resume auto %s %s", tiny(), other, fixed, SHORT);
    same_steps(back, other, 3, 5, BITS " skipped_samples");
}

static void test_limits(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("none");
    run(&j, 1, "train %s --run-dir %s --steps 4 --set train.on_nonfinite=rollback --inject nan@step=2,rank=0 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 80);
    assert_says(&j, "there is no checkpoint to go back to: set checkpoint.every");
    // Weights that have left the range stay there.
    dir = path_of("limit");
    run(&j, 2,
        "train %s --run-dir %s --steps 40 --set train.on_nonfinite=skip --set train.nonfinite_limit=3 --set "
        "parallel.ep=2 --set train.lr=10 --set train.weight_decay=10 --set model.initializer_range=10 --set "
        "train.warmup_steps=0 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 80);
    assert_says(&j, "3 batches in a row not finite (train.nonfinite_limit)");
    assert_says(&j, "16 samples in all have left no trace");
    // The step that it is said of was not finished.
    const char *at = strstr(j.err, "error: step ");
    assert_non_null(at);
    char line[64];
    snprintf(line, sizeof line, "\"step\":%d,", atoi(at + strlen("error: step ")));
    assert_false(in_file(dir, "metrics.jsonl", line));
    assert_true(in_file(dir, "metrics.jsonl", "\"step\":1,"));
}

int main(int argc, char **argv) {
    drive_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named),    cmocka_unit_test(test_skip_alone), cmocka_unit_test(test_skip_on_ranks),
        cmocka_unit_test(test_rollback), cmocka_unit_test(test_rollback_of_resumed), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_rollback_of_calibration),
    };
    return drive_done(cmocka_run_group_tests(tests, NULL, NULL));
}
