// test_train_report.c - the report of real runs: with evaluations, saves, a bad step, a rollback and a resume; beside
// another run; of one that is still going on.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drive.h"
#include "xml_check.h"

static char *page_of(const char *path) {
    size_t n;
    char *page = read_file(path, &n);
    assert_int_equal(strlen(page), n);
    assert_xml(page);
    return page;
}

// has_value: a figure of metrics.jsonl or events.jsonl as the table shows it.
static void assert_value(const char *page, const char *name, const char *line, const char *key, int step) {
    char text[160];
    snprintf(text, sizeof text, "<th>%s</th><td>%.4f (step %d)</td>", name, json_number(line, key), step);
    assert_has(page, text);
}

static void test_whole_run(void **state) {
    (void)state;
    static Job j;
    static const char common[] = "--set train.on_nonfinite=rollback --set checkpoint.every=4 --set log.every=2 "
                                 "--set eval.every=6 --set eval.max_sequences=4 --set fp8.shadow_every=5";
    const char *dir = path_of("run"), *events;
    run(&j, 2,
        "train %s --run-dir %s --steps 8 --set parallel.ep=2 --set data.eval=%s/data/samples/tiny.heldout.h5 %s %s "
        "--inject nan@step=6,rank=1,layer=1",
        tiny(), dir, drive_source(), common, SHORT);
    assert_ends(&j, 0);
    run_ok(1, "train %s --run-dir %s --steps 14 --resume auto --set data.eval=%s/data/samples/tiny.heldout.h5 %s %s",
           tiny(), dir, drive_source(), common, SHORT);
    run(&j, 1, "report %s", dir);
    assert_ends(&j, 0);
    assert_says(&j, "report.html");
    assert_null(strstr(j.out, "warning"));
    char *page = page_of(path_of("run/report.html"));
    Steps s = steps_read(dir);
    assert_value(page, "loss of the next token, last", s.line[13], "lm_loss", 14);
    assert_value(page, "total loss, last", s.line[13], "loss", 14);
    size_t n;
    char *text = read_file(path_of("run/events.jsonl"), &n);
    events = strstr(text, "\"event\":\"eval\",\"step\":14");
    assert_non_null(events);
    assert_value(page, "held-out loss, last", events, "loss", 14);
    int evals = times(text, "\"event\":\"eval\""), saves = times(text, "\"event\":\"save\"");
    static const char *const says[] = {"3 layers, width 256",
                                       "8 experts top-2",
                                       "<th>steps</th><td>14 of 200 (7%)</td>",
                                       "2, 1 of them resumed",
                                       "1, 1 rollback, ",
                                       "1 = 1 expert-parallel x 1 data-parallel, 1 thread each",
                                       "policy rollback, rank 1, layer 1",
                                       "aria-label=\"Loss\"",
                                       "aria-label=\"Held-out loss\"",
                                       "aria-label=\"Gradient norm\"",
                                       "aria-label=\"Learning rate\"",
                                       "aria-label=\"Throughput\"",
                                       "aria-label=\"MFU\"",
                                       "aria-label=\"Step time\"",
                                       "aria-label=\"Slowest rank\"",
                                       "aria-label=\"MaxVio\"",
                                       "aria-label=\"Dead experts\"",
                                       "aria-label=\"FP8 underflow\"",
                                       "aria-label=\"Memory\"",
                                       "aria-label=\"Error of FP8 products\"",
                                       "aria-label=\"Expert exchange\"",
                                       "aria-label=\"Saves\"",
                                       "aria-label=\"FP8 underflow by site\"",
                                       "aria-label=\"Router biases\"",
                                       "checkpoint of step 14",
                                       "hidden_size: 256"};
    for (size_t i = 0; i < sizeof says / sizeof *says; i++) assert_has(page, says[i]);
    // Marks: one bad step and one restart in each figure over steps and in the legend, some saves and evaluations.
    int heats = times(page, "by site\">") + times(page, "aria-label=\"Router biases\""),
        curves = times(page, "class=\"plot\"") - heats;
    assert_int_equal(heats, 3);
    assert_int_equal(times(page, "<path class=\"cross m3\" d="), curves + 1);
    assert_int_equal(times(page, "<path class=\"cross m2\""), curves + 1);
    assert_int_equal(times(page, "<path class=\"cross m1\""), evals * curves + 1);
    assert_int_equal(times(page, "<path class=\"m0\""), saves * curves + 1);
    free(page);
    free(text);
    steps_free(&s);
}

// A run that is going on, and the one before beside it.
static void test_several(void **state) {
    (void)state;
    static Job other, j;
    const char *dir = path_of("run"), *second = path_of("second"), *out = path_of("two.html");
    job_start(&other, 1, "train %s --run-dir %s --set precision.mode=bf16 %s --inject slow@step=5,rank=0,seconds=60",
              tiny(), second, SHORT);
    wait_for_step(&other, second, 4, 60);
    run(&j, 1, "report %s %s --out %s --smooth 3", dir, second, out);
    assert_ends(&j, 0);
    job_signal(&other, SIGKILL);
    job_wait(&other, 60);
    char *page = page_of(out);
    assert_has(page, "<title>run, second</title>");
    assert_has(page, "<th>steps</th><td>14 of 200 (7%)</td><td>4 of 200 (2%)</td>");
    assert_has(page, "<tr><th>precision.mode</th><td>fp8</td><td>bf16</td></tr>");
    free(page);
}

int main(int argc, char **argv) {
    drive_init(argc, argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_whole_run), cmocka_unit_test(test_several)};
    return drive_done(cmocka_run_group_tests(tests, NULL, NULL));
}
