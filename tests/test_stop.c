// test_stop.c - when a run ends early: the deadline, its margin, what is warned of, what all ranks agree on.
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "log.h"
#include "stop.h"

static int no_signal(void) {
    return 0;
}

static int a_signal(void) {
    return SIGUSR2;
}

static void test_limits(void **state) {
    (void)state;
    double now = now_seconds();
    Stop s = {.signalled = no_signal};
    stop_limit(&s, now, 0.0, 0, 1000);
    assert_true(s.deadline == 0.0);
    assert_int_equal(stop_look(&s), 0);
    stop_limit(&s, now, 500.0, 0, 1000);
    assert_true(s.deadline == now + 500.0);
    assert_string_equal(s.limit_name, "--time-limit");
    // The nearer of two.
    stop_limit(&s, now, 500.0, 1300, 1000);
    assert_true(fabs(s.deadline - (now + 300.0)) < 5.0);
    assert_string_equal(s.limit_name, "SLURM_JOB_END_TIME");
    stop_limit(&s, now, 500.0, 1900, 1000);
    assert_true(s.deadline == now + 500.0);
    stop_limit(&s, now, 0.0, 1900, 1000);
    assert_true(fabs(s.deadline - (now + 900.0)) < 5.0);
    // Past, or so far away that it says nothing.
    stop_limit(&s, now, 0.0, 999, 1000);
    assert_true(s.deadline == 0.0);
    stop_limit(&s, now, 0.0, 1000 + 400 * 86400, 1000);
    assert_true(s.deadline == 0.0);
}

// The run stops when what is left is no more than one and a half of the slowest save and a step.
static void test_margin(void **state) {
    (void)state;
    Stop s = {.signalled = no_signal};
    stop_note_save(&s, 10.0);
    stop_note_save(&s, 4.0);
    stop_note_step(&s, 3.0);
    assert_true(stop_margin(&s) == 20.0);
    s.is_saving = true; // the last save has to wait for it
    assert_true(stop_margin(&s) == 30.0);
    s.is_saving = false;
    s.deadline = now_seconds() + 30.0;
    assert_int_equal(stop_look(&s), 0);
    s.deadline = now_seconds() + 19.0;
    assert_int_equal(stop_look(&s), STOP_TIME);
    s.signalled = a_signal; // names the reason that people sent
    assert_int_equal(stop_look(&s), SIGUSR2);
    assert_int_equal(stop_look(NULL), 0);
}

static void test_agree(void **state) {
    (void)state;
    Comm *world = NULL;
    assert_int_equal(comm_self(&world, "world"), OK);
    Stop s = {.signalled = no_signal};
    assert_int_equal(stop_agree(&s, world, OK), OK);
    assert_false(stop_is_due(&s));
    assert_int_equal(stop_agree(&s, world, E_INPUT), E_INPUT);
    s.signalled = a_signal;
    assert_int_equal(stop_agree(&s, world, E_INPUT), E_INPUT); // an error is more than a request
    assert_false(stop_is_due(&s));
    assert_int_equal(stop_agree(&s, world, OK), OK);
    assert_true(stop_is_due(&s));
    assert_string_equal(stop_reason(&s), "SIGUSR2");
    s.signalled = no_signal;
    assert_int_equal(stop_agree(&s, world, OK), OK);
    assert_true(stop_is_due(&s)); // stays
    assert_int_equal(stop_agree(NULL, world, OK), OK);
    assert_false(stop_is_due(NULL));
    Stop late = {.signalled = no_signal};
    stop_limit(&late, now_seconds(), 1.0, 0, 0);
    assert_int_equal(stop_agree(&late, world, OK), OK);
    assert_string_equal(stop_reason(&late), "the time limit (--time-limit)");
    comm_destroy(&world);
}

// warned: does a save of so many seconds warn? The warning goes to the log file.
static bool warned(Stop *s, double save) {
    char path[] = "/tmp/tessera-stop-XXXXXX", text[512] = "";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(log_open(path), OK);
    stop_note_save(s, save);
    log_close();
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    unlink(path);
    assert_true(n >= 0);
    if (n > 0) assert_non_null(strstr(text, "--grace is 60.0 s"));
    return n > 0;
}

static void settle(Stop *s) {
    Comm *world = NULL;
    assert_int_equal(comm_self(&world, "world"), OK);
    assert_int_equal(stop_settle(s, world), OK);
    comm_destroy(&world);
}

static void test_grace(void **state) {
    (void)state;
    log_init(0, 1);
    Stop s = {.signalled = no_signal, .grace = 60.0};
    settle(&s);
    assert_true(stop_wants_save(&s)); // in advance: measure one early
    stop_note_step(&s, 5.0);
    assert_false(warned(&s, 54.0));
    assert_false(stop_wants_save(&s));
    assert_true(warned(&s, 56.0));
    assert_false(warned(&s, 57.0)); // said already
    assert_true(warned(&s, 90.0));
    Stop none = {.signalled = no_signal};
    settle(&none);
    assert_false(stop_wants_save(&none));
    assert_false(warned(&none, 1e6));
    Stop limited = {.signalled = no_signal};
    stop_limit(&limited, now_seconds(), 100.0, 0, 0);
    settle(&limited);
    assert_true(stop_wants_save(&limited));
}

// Beside the training a signal may find one save at its beginning: that one and the last have to fit.
static void test_grace_for_two(void **state) {
    (void)state;
    Stop s = {.signalled = no_signal, .grace = 60.0, .is_beside = true};
    stop_note_step(&s, 5.0);
    assert_false(warned(&s, 27.0));
    assert_true(warned(&s, 28.0));
}

// Saves that fail are no measure; the tries come further and further apart.
static void test_failing_saves(void **state) {
    (void)state;
    Stop s = {.signalled = no_signal, .grace = 60.0};
    settle(&s);
    int tries = 0, at[8] = {0};
    for (int step = 1; step <= 100; step++) {
        stop_note_step(&s, 1.0);
        if (!stop_wants_save(&s)) continue;
        assert_true(tries < 8);
        at[tries++] = step;
        stop_note_failed_save(&s, step == 3 ? 7.0 : 0.0); // at once, or after a while
    }
    static const int want[] = {1, 3, 7, 15, 31, 63};
    assert_int_equal(tries, 6);
    assert_memory_equal(at, want, sizeof want);
    assert_true(s.save_s == 7.0); // one takes that long at least
    stop_note_save(&s, 8.0);
    for (int step = 0; step < 100; step++) {
        stop_note_step(&s, 1.0);
        assert_false(stop_wants_save(&s));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_limits), cmocka_unit_test(test_margin),
                                       cmocka_unit_test(test_agree), cmocka_unit_test(test_grace),
                                       cmocka_unit_test(test_grace_for_two), cmocka_unit_test(test_failing_saves)};
    return cmocka_run_group_tests_name("stop", tests, NULL, NULL);
}
