// test_train_hangs.c - a rank that stops, or is slow, is named in one sentence, whichever it is and whatever did it;
// the job with a stopped one ends with code 69 and leaves no process; what only waits is left alone.
#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "drive.h"
#include "ledger.h"
#include "must.h"

static LedgerHead head;
static LedgerEntry ring[LEDGER_RING];

// ledger_of: the rank's file of a run; false if there is none (yet).
static bool ledger_of(const char *dir, int rank) {
    char path[400];
    snprintf(path, sizeof path, "%s/ledger/rank_%05d.bin", dir, rank);
    bool ok = has_file(path) && ledger_read(path, &head, ring) == OK;
    fail_clear();
    return ok;
}

// processes_of: how many processes have this text in their command line.
static int processes_of(const char *text) {
    DIR *d = opendir("/proc");
    int n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[300], line[4096] = "";
        if (!isdigit((unsigned char)e->d_name[0]) || atoi(e->d_name) == getpid()) continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        size_t got = fread(line, 1, sizeof line - 1, f);
        fclose(f);
        for (size_t i = 0; i + 1 < got; i++)
            if (!line[i]) line[i] = ' ';
        n += strstr(line, text) != NULL;
    }
    closedir(d);
    return n;
}

static void assert_none_left(const char *dir) {
    for (int i = 0; i < 200 && processes_of(dir) > 0; i++) usleep(100000); // mpirun gives them some seconds
    assert_int_equal(processes_of(dir), 0);
}

// count: how often a text is in another.
static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p++) n++;
    return n;
}

// assert_one_sentence: said once, of this rank, and written down.
static void assert_one_sentence(const Job *j, const char *dir, const char *says) {
    char path[400];
    size_t n = 0;
    if (count(j->err, "hang       ") != 1) fail_msg("not one sentence: %s", j->err);
    assert_says(j, says);
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    char *events = read_file(path, &n);
    assert_int_equal(count(events, "\"event\":\"hang\""), 1);
    assert_non_null(strstr(events, says));
    free(events);
    snprintf(path, sizeof path, "%s/train.log", dir);
    char *log = read_file(path, &n);
    assert_int_equal(count(log, "hang       "), 1);
    free(log);
}

// A rank is stopped by a signal at some moment: its threads too, so it cannot say anything itself.
static void stop_one(int rank) {
    static Job j;
    char says[64], sentence[2000];
    const char *dir = path_of("stopped%d", rank);
    job_start(&j, 4, "train %s --run-dir %s --set parallel.ep=4 --set watchdog.step=3 --set watchdog.data=3 %s", tiny(),
              dir, SHORT);
    wait_for_step(&j, dir, 2, 120);
    assert_true(ledger_of(dir, rank));
    pid_t pid = head.pid;
    kill(pid, SIGSTOP);
    job_wait(&j, 120);
    assert_ends(&j, 69);
    snprintf(says, sizeof says, "rank %d (", rank);
    assert_one_sentence(&j, dir, says);
    snprintf(says, sizeof says, "it does not answer: process %d is stopped", (int)pid);
    assert_says(&j, says);
    snprintf(sentence, sizeof sentence, "\n%s", strstr(j.err, "hang       ") + 11);
    *strchr(sentence + 1, '\n') = '\0';
    assert_none_left(dir);
    // What everybody was in can be read afterwards, with what was said of it.
    run(&j, 1, "inspect %s/ledger", dir);
    assert_ends(&j, 0);
    assert_says(&j, sentence);
}

static void test_stopped(void **state) {
    (void)state;
    stop_one(2);
}

static void test_stopped_first_rank(void **state) {
    (void)state;
    stop_one(0);
}

// status_of: what a process ended with, as wait gives it, while nobody has waited for it yet; -1: it has not ended.
static int status_of(pid_t pid) {
    char path[64], text[1024], state = 0;
    int status = -1;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    char *at = strrchr(text, ')'), *last = strrchr(text, ' '); // state is the field behind the name, status the last
    if (at && last && sscanf(at + 1, " %c", &state) == 1 && state == 'Z') status = atoi(last + 1);
    return status;
}

// The launcher is stopped too, as a daemon on an overloaded host may be: the rank that spoke ends by itself, from
// inside MPI, with 69 and no other code.
static void test_launcher_stopped(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("launcher");
    job_start(&j, 2, "train %s --run-dir %s --set parallel.ep=2 --set watchdog.step=3 --set watchdog.data=3 %s", tiny(),
              dir, SHORT);
    wait_for_step(&j, dir, 2, 120);
    assert_true(ledger_of(dir, 0));
    pid_t first = head.pid;
    assert_true(ledger_of(dir, 1));
    kill(head.pid, SIGSTOP);
    job_signal(&j, SIGSTOP);
    int status = -1;
    for (int i = 0; i < 3000 && (status = status_of(first)) < 0; i++) usleep(10000);
    job_signal(&j, SIGCONT);
    job_wait(&j, 60);
    assert_int_equal(status, 69 << 8);
    assert_ends(&j, 69);
    assert_one_sentence(&j, dir, "rank 1 (");
    assert_none_left(dir);
}

// It goes on in time: nothing is said.
static void test_goes_on(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("goes-on");
    job_start(&j, 2, "train %s --run-dir %s --set parallel.ep=2 --set watchdog.step=60 --steps 4 %s", tiny(), dir,
              SHORT);
    wait_for_step(&j, dir, 1, 120);
    assert_true(ledger_of(dir, 1));
    pid_t pid = head.pid;
    kill(pid, SIGSTOP);
    usleep(1500000);
    kill(pid, SIGCONT);
    job_wait(&j, 120);
    assert_ends(&j, 0);
    assert_int_equal(count(j.err, "hang"), 0);
    assert_true(ledger_of(dir, 1));
    assert_int_equal(head.is_closed, 1);
}

// One of two expert groups loses a rank between two blocks: the very operation is named.
static void test_injected(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("injected");
    run(&j, 4,
        "train %s --run-dir %s --set parallel.ep=2 --set watchdog.step=3 --inject hang@step=2,rank=3,layer=1 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 69);
    assert_says(&j, "INJECTED");
    assert_one_sentence(&j, dir, "rank 3 (");
    assert_says(&j, ") never entered all-to-all of block 2 (counts, forward, sequence ");
    assert_says(&j, " of ep), that rank 2 waits in since ");
    assert_says(&j, "its last: left all-to-all of block 1 (combine, forward, sequence ");
    assert_says(&j, "phase step, step 2, in block 1 forward; no sign of life since ");
    assert_none_left(dir);
    // Again: it has happened.
    run(&j, 4,
        "train %s --run-dir %s --set parallel.ep=2 --set watchdog.step=60 --inject hang@step=2,rank=3,layer=1 "
        "--steps 2 --resume auto %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 0);
}

static void test_alone(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("alone");
    run(&j, 1, "train %s --run-dir %s --set watchdog.step=2 --inject hang@step=2,rank=0 %s", tiny(), dir, SHORT);
    assert_ends(&j, 69);
    assert_one_sentence(&j, dir, "rank 0 (");
    assert_says(&j, "stands still and nobody waits for it");
    run(&j, 1, "inspect %s/ledger/rank_00000.bin", dir);
    assert_ends(&j, 0);
    assert_says(&j, "step 2, phase step");
}

// One of two ranks takes longer for some steps: named once, and once more when it is over.
static void test_slow(void **state) {
    (void)state;
    static Job j;
    char path[400];
    size_t n = 0;
    const char *dir = path_of("slow");
    run(&j, 2,
        "train %s --run-dir %s --set parallel.ep=2 --set straggler.factor=1.5 --set straggler.steps=3 --steps 6 "
        "--inject slow@step=2-5,rank=1,seconds=0.4 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "slow: rank 1 (");
    assert_says(&j, "times as long as the median rank, 3 steps in a row");
    assert_says(&j, "| unsaved 5 steps ");
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    char *events = read_file(path, &n);
    char *first = strstr(events, "\"event\":\"straggler\"");
    assert_non_null(first);
    assert_int_equal(count(events, "\"event\":\"straggler\""), 1);
    assert_true(json_number(first, "rank") == 1.0);
    assert_true(json_number(first, "factor") >= 1.5);
    free(events);
    Steps s = steps_read(dir);
    for (int i = 2; i <= 5; i++) assert_string_equal(step_text(&s, i, "slow_rank"), "1");
    steps_free(&s);
}

// A fault that one rank cannot note down ends all of them, not that one alone.
static void test_not_noted(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("unnoted"), *injected = path_of("unnoted/injected");
    assert_true(mkdir(dir, 0777) == 0 && mkdir(injected, 0777) == 0);
    run(&j, 2, "train %s --run-dir %s --set parallel.ep=2 --steps 4 --inject nan@step=2,rank=1 %s", tiny(), dir, SHORT);
    assert_ends(&j, 74);
    assert_says(&j, "rank 1: cannot write ");
}

int main(int argc, char **argv) {
    drive_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stopped),  cmocka_unit_test(test_stopped_first_rank), cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_launcher_stopped),
        cmocka_unit_test(test_injected), cmocka_unit_test(test_alone),    cmocka_unit_test(test_slow),
        cmocka_unit_test(test_not_noted),
    };
    return drive_done(cmocka_run_group_tests(tests, NULL, NULL));
}
