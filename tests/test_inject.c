// test_inject.c - faults on demand: what --inject accepts and what wrong ones are told, that a fault happens once in a
// run directory, and which save meets which fault.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "inject.h"
#include "must.h"
#include "scratch_dir.h"

static void test_accepts(void **state) {
    (void)state;
    Inject in;
    const char *const texts[] = {"kill@step=30,rank=2",          "hang@rank=1,step=7,layer=12",
                                 "nan@step=3-9,rank=0",          "nan@step=3,rank=0,layer=2,in=gradient",
                                 "slow@step=5-2000,rank=1,factor=1.5", "slow@step=5,rank=1,seconds=0.25",
                                 "diskfull@save=2",              "corrupt@save=3,rank=1",
                                 "slow@step=5,rank=1,seconds=0.25,in=data"};
    assert_int_equal(inject_parse(&in, texts, 9), OK);
    assert_int_equal(in.n, 9);
    assert_true(in.fault[8].is_data && !in.fault[5].is_data);
    assert_int_equal(in.fault[0].kind, INJECT_KILL);
    assert_int_equal(in.fault[0].first, 30);
    assert_int_equal(in.fault[0].last, 30);
    assert_int_equal(in.fault[0].rank, 2);
    assert_int_equal(in.fault[0].layer, -1);
    assert_int_equal(in.fault[1].kind, INJECT_HANG);
    assert_int_equal(in.fault[1].layer, 12);
    assert_int_equal(in.fault[2].last, 9);
    assert_false(in.fault[2].is_gradient);
    assert_true(in.fault[3].is_gradient);
    assert_int_equal(in.fault[4].last, 2000);
    assert_true(in.fault[4].factor == 1.5 && in.fault[5].seconds == 0.25);
    assert_int_equal(in.fault[6].kind, INJECT_DISKFULL);
    assert_int_equal(in.fault[6].first, 2);
    assert_int_equal(in.fault[6].rank, 0);
    assert_int_equal(in.fault[7].kind, INJECT_CORRUPT);
    assert_int_equal(in.fault[7].rank, 1);
    assert_int_equal(inject_check(&in, 3, 13), OK);
    assert_int_equal(inject_check(&in, 2, 13), E_USAGE);
    assert_non_null(strstr(fail_message(), "there is no rank 2, there are 2"));
    assert_int_equal(inject_check(&in, 3, 12), E_USAGE);
    assert_non_null(strstr(fail_message(), "there is no layer 12, there are 12"));
    assert_int_equal(inject_parse(&in, NULL, 0), OK);
    assert_int_equal(inject_check(&in, 1, 1), OK);
}

static const struct Wrong {
    const char *text, *says;
} wrong[] = {
    {"", "is no fault"},
    {"kil@step=3,rank=0", "did you mean kill?"},
    {"zzzzzzzzzz@step=3", "there are kill, hang, nan, slow, diskfull and corrupt"},
    {"kill", "say where: kill@step=N,rank=R"},
    {"diskfull", "say where: diskfull@save=N"},
    {"kill@", "\"\" is no key"},
    {"kill@stepz=3,rank=0", "did you mean step?"},
    {"kill@step=3", "rank is missing"},
    {"kill@rank=3", "step is missing"},
    {"kill@step=3,rank=0,", "\"\" is no key"},
    {"kill@step=3,,rank=0", "\"\" is no key"},
    {"kill@step=3,rank=0,save=1", "kill has no save"},
    {"kill@step=3-4,rank=0", "step is a number from 1 on"},
    {"kill@step=3,step=4,rank=0", "step is there twice"},
    {"kill@step,rank=0", "step needs a value"},
    {"kill@step=,rank=0", "step is a number"},
    {"kill@step=0,rank=0", "step is a number from 1 on"},
    {"kill@step=-1,rank=0", "step is a number"},
    {"kill@step=3x,rank=0", "step is a number"},
    {"kill@step=99999999999999999999,rank=0", "step is a number"},
    {"kill@step=3,rank=-1", "rank is a number from 0 on"},
    {"kill@step=3,rank=1.5", "rank is a number"},
    {"nan@step=9-3,rank=0", "or a range like 5-20"},
    {"nan@step=3-,rank=0", "or a range like 5-20"},
    {"nan@step=1-65,rank=0", "at most 64 steps"},
    {"nan@step=3,rank=0,in=loss", "in is output or gradient"},
    {"slow@step=3,rank=0", "give either factor or seconds"},
    {"slow@step=3,rank=0,factor=2,seconds=1", "give either factor or seconds"},
    {"slow@step=3,rank=0,factor=1", "factor is a number above 1"},
    {"slow@step=3,rank=0,factor=nan", "factor is a number"},
    {"slow@step=3,rank=0,seconds=-1", "seconds is a number above 0"},
    {"slow@step=3,rank=0,factor=2,in=data", "late data have seconds"},
    {"slow@step=3,rank=0,seconds=2,in=gradient", "in is pass or data"},
    {"slow@step=3,rank=0,seconds=1s", "seconds is a number"},
    {"diskfull@step=3", "diskfull has no step"},
    {"corrupt@save=two", "save is a number from 1 on"},
};

static void test_refuses(void **state) {
    (void)state;
    Inject in;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        Err err = inject_parse(&in, &wrong[i].text, 1);
        if (err != E_USAGE || !strstr(fail_message(), wrong[i].says))
            fail_msg("\"%s\": code %d, \"%s\", not \"%s\"", wrong[i].text, err, fail_message(), wrong[i].says);
        assert_non_null(strstr(fail_message(), "--inject"));
    }
    char longer[200];
    memset(longer, '1', sizeof longer - 1);
    memcpy(longer, "kill@step=", 10);
    longer[199] = '\0';
    const char *text = longer;
    assert_int_equal(inject_parse(&in, &text, 1), E_USAGE);
    const char *many[INJECT_MAX + 1];
    for (int i = 0; i <= INJECT_MAX; i++) many[i] = "kill@step=1,rank=0";
    assert_int_equal(inject_parse(&in, many, INJECT_MAX), OK);
    assert_int_equal(inject_parse(&in, many, INJECT_MAX + 1), E_USAGE);
}

// A process of a run: the same flags each time.
static void start(Inject *in, const char *dir, Comm *world, const char *const *texts, int n) {
    MUST_OK(inject_parse(in, texts, n));
    MUST_OK(inject_start(in, dir, world));
}

static bool has_taps(Inject *in) {
    InjectPass pass;
    return inject_taps(&pass, in, NULL, NULL, 0, NULL) != NULL;
}

// Each step of the range once in the directory, whatever order restarts bring; another directory knows nothing of it.
static void test_once(void **state) {
    (void)state;
    const char *dir = scratch_dir;
    char other[700];
    Comm *world = NULL;
    Inject in;
    const char *const texts[] = {"nan@step=3-4,rank=0", "nan@step=3-4,rank=1", "slow@step=3,rank=0,seconds=0.001"};
    MUST_OK(comm_self(&world, "world"));
    start(&in, dir, world, texts, 3);
    MUST_OK(inject_step(&in, 2));
    assert_false(has_taps(&in));
    MUST_OK(inject_step(&in, 3));
    assert_true(has_taps(&in)); // and in every pass of the step
    assert_true(has_taps(&in));
    assert_false(in.fault[1].is_due); // of another rank
    assert_true(in.fault[2].is_due);
    MUST_OK(inject_step(&in, 3)); // rolled back
    assert_false(has_taps(&in));
    start(&in, dir, world, texts, 3); // killed and restarted from step 2
    MUST_OK(inject_step(&in, 3));
    assert_false(has_taps(&in));
    assert_true(in.fault[2].is_due); // slow is no event
    MUST_OK(inject_step(&in, 4));
    assert_true(has_taps(&in));
    MUST_OK(inject_step(&in, 5));
    assert_false(has_taps(&in));
    start(&in, dir, world, texts, 3);
    MUST_OK(inject_step(&in, 4));
    assert_false(has_taps(&in));
    snprintf(other, sizeof other, "%s/other", dir);
    assert_int_equal(mkdir(other, 0777), 0);
    start(&in, other, world, texts, 3);
    MUST_OK(inject_step(&in, 4));
    assert_true(has_taps(&in));
    start(&in, "/nonexistent", world, texts, 1);
    assert_int_equal(inject_step(&in, 3), E_OUTPUT);
    comm_destroy(&world);
}

static void test_saves(void **state) {
    (void)state;
    const char *dir = scratch_dir;
    Comm *world = NULL;
    Inject in;
    InjectSave save;
    const char *const texts[] = {"diskfull@save=2", "corrupt@save=2", "corrupt@save=3,rank=1"};
    MUST_OK(comm_self(&world, "world"));
    start(&in, dir, world, texts, 3);
    MUST_OK(inject_save(&in, &save));
    assert_false(save.is_disk_full || save.is_corrupt);
    MUST_OK(inject_save(&in, &save));
    assert_true(save.is_disk_full && save.is_corrupt);
    MUST_OK(inject_save(&in, &save));
    assert_false(save.is_disk_full || save.is_corrupt);
    start(&in, dir, world, texts, 3);
    MUST_OK(inject_save(&in, &save));
    MUST_OK(inject_save(&in, &save));
    assert_false(save.is_disk_full || save.is_corrupt); // it was, before the restart
    MUST_OK(inject_save(NULL, &save));
    assert_false(save.is_disk_full || save.is_corrupt);
    comm_destroy(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test_setup_teardown(test_once, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_saves, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
