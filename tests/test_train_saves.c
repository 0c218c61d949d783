// test_train_saves.c - saves beside the training: they hold the step they are of and change nothing, and when a disk
// fills up or a byte of a shard goes wrong, the run says which and no earlier checkpoint is lost.
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "drive.h"
#include "manifest.h"

// What `inspect` says of the logical tensors of a checkpoint: type, shape, hash and name of each.
static char *tensors_of(const char *dir, int step) {
    static Job j;
    run(&j, 1, "inspect %s/checkpoints/step_%08d/index.h5", dir, step);
    assert_ends(&j, 0);
    char *list = strstr(j.out, "tensors: type");
    assert_non_null(list);
    return strdup(list);
}

static bool has_step(const char *dir, int step) {
    char path[400];
    snprintf(path, sizeof path, "%s/checkpoints/step_%08d", dir, step);
    return has_file(path);
}

static bool has_partial(const char *dir, int step) {
    char path[400];
    snprintf(path, sizeof path, "%s/checkpoints/step_%08d.partial", dir, step);
    return has_file(path);
}

static char *events_of(const char *dir) {
    char path[400];
    size_t n = 0;
    snprintf(path, sizeof path, "%s/events.jsonl", dir);
    return read_file(path, &n);
}

// The run that nothing disturbed, which also tells where 7 steps end.
static const char *quiet_run(void) {
    const char *dir = path_of("quiet");
    if (!has_file(dir))
        run_ok(2, "train %s --run-dir %s --steps 7 --set parallel.ep=2 --set checkpoint.every=3 --set "
                  "checkpoint.async=false --set checkpoint.keep_last=9 %s",
               tiny(), dir, SHORT);
    return dir;
}

// Parameters move on while the checkpoint is written: it must hold those of its own step.
static void test_beside_the_training(void **state) {
    (void)state;
    const char *quiet = quiet_run(), *dir = path_of("beside");
    run_ok(2, "train %s --run-dir %s --steps 7 --set parallel.ep=2 --set checkpoint.every=3 --set "
              "checkpoint.keep_last=9 %s",
           tiny(), dir, SHORT);
    same_steps(quiet, dir, 1, 7, BITS);
    for (int step = 3; step <= 7; step += step == 6 ? 1 : 3) {
        char *a = tensors_of(quiet, step), *b = tensors_of(dir, step);
        assert_string_equal(a, b);
        free(a);
        free(b);
    }
    char *three = tensors_of(dir, 3), *six = tensors_of(dir, 6);
    assert_string_not_equal(three, six);
    free(three);
    free(six);
    char *events = events_of(dir), *at = events;
    for (int i = 0; i < 3; i++) {
        at = strstr(at, "\"event\":\"save\"");
        assert_non_null(at);
        double seconds = json_number(at, "seconds"), stall = json_number(at, "stall_s");
        assert_true(stall >= 0.0 && stall <= seconds + 1e-3);
        assert_true(json_number(at, "bytes") > 1e6);
        at++;
    }
    free(events);
}

// Told to stop while a save is under way, a run finishes that one and saves what came after it.
static void test_signal_meets_save(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("met");
    job_start(&j, 2, "train %s --run-dir %s --steps 100000 --set parallel.ep=2 --set checkpoint.every=3 %s", tiny(),
              dir, SHORT);
    wait_for_step(&j, dir, 4, 240);
    job_signal(&j, SIGUSR1); // mpirun kills its ranks a second after a SIGTERM
    job_wait(&j, 480);
    assert_ends(&j, 75);
    Steps s = steps_read(dir);
    int last = s.n;
    steps_free(&s);
    assert_true(last >= 4 && has_step(dir, last - last % 3) && has_step(dir, last));
    run(&j, 1, "inspect %s", dir);
    assert_ends(&j, 0);
}

static void test_full_disk_and_on(void **state) {
    (void)state;
    static Job j;
    const char *quiet = quiet_run(), *dir = path_of("on");
    run(&j, 2,
        "train %s --run-dir %s --steps 7 --set parallel.ep=2 --set checkpoint.every=2 --set checkpoint.keep_last=9 "
        "--set checkpoint.on_error=continue --inject diskfull@save=2,rank=1 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "step 4 was not saved: rank 1: ");
    assert_says(&j, "step_00000004.partial/shard_00001.h5");
    assert_says(&j, strerror(ENOSPC));
    assert_says(&j, "the last checkpoint is that of step 2");
    assert_true(has_step(dir, 2) && !has_step(dir, 4) && !has_partial(dir, 4) && has_step(dir, 6) && has_step(dir, 7));
    char *events = events_of(dir);
    assert_non_null(strstr(events, "\"event\":\"save_failed\",\"step\":4,\"why\":\"rank 1: "));
    free(events);
    same_steps(quiet, dir, 1, 7, BITS);
}

// The save of the last step has to succeed, whatever checkpoint.on_error says; the first may fail.
static void test_last_save_must_succeed(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("last");
    run(&j, 1,
        "train %s --run-dir %s --steps 6 --set checkpoint.every=2 --set checkpoint.on_error=continue --inject "
        "diskfull@save=1 --inject diskfull@save=3 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 74);
    assert_says(&j, strerror(ENOSPC));
    assert_says(&j, "(checkpoint.on_error continue), it has no checkpoint yet");
    assert_true(!has_step(dir, 2) && has_step(dir, 4) && !has_step(dir, 6) && !has_partial(dir, 6));
    run_ok(1, "train %s --run-dir %s --resume auto --steps 6 %s", tiny(), dir, SHORT);
    assert_true(has_step(dir, 6));
}

// A byte that is wrong on the disk is found before the checkpoint counts, and its place is named.
static void test_wrong_byte(void **state) {
    (void)state;
    static Job j;
    const char *quiet = quiet_run(), *dir = path_of("byte");
    for (int sync = 0; sync < 2; sync++) {
        run(&j, 2,
            "train %s --run-dir %s%d --steps 7 --set parallel.ep=2 --set checkpoint.every=3 --set checkpoint.async=%s "
            "--inject corrupt@save=2,rank=1 %s",
            tiny(), dir, sync, sync ? "false" : "true", SHORT);
        assert_ends(&j, 74);
        assert_says(&j, "did not read back as written");
        assert_says(&j, "step_00000006.partial/shard_00001.h5");
        assert_says(&j, "model.");
        char here[400];
        snprintf(here, sizeof here, "%s%d", dir, sync);
        assert_true(has_step(here, 3) && !has_step(here, 6) && !has_partial(here, 6));
        run(&j, 2, "train %s --run-dir %s --resume auto --steps 7 --set parallel.ep=2 %s", tiny(), here, SHORT);
        assert_ends(&j, 0);
        assert_says(&j, "step 3, samples [0, 24)");
        same_steps(quiet, here, 1, 7, BITS);
    }
}

// small_disk: an empty folder that is a disk of its own, for this process and its children. Needs the right to mount.
static bool small_disk(const char *dir, const char *size) {
    static bool is_apart;
    bool ok = mkdir(dir, 0777) == 0;
    if (ok && !is_apart)
        is_apart = unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    ok = ok && is_apart && mount("tmpfs", dir, "tmpfs", 0, size) == 0;
    if (!ok) print_message("skipped: no disk of its own can be mounted here (%s)\n", strerror(errno));
    return ok;
}

#define THREE "--steps 7 --set parallel.ep=2 --set checkpoint.every=2"

// The whole run lies on a disk that two checkpoints fit on, not three.
static void test_small_disk(void **state) {
    (void)state;
    static Job j;
    const char *disk = path_of("disk"), *dir = path_of("disk/run");
    if (!small_disk(disk, "size=50m")) skip();
    run(&j, 2, "train %s --run-dir %s --set checkpoint.keep_last=9 " THREE " %s", tiny(), dir, SHORT);
    assert_ends(&j, 74);
    assert_says(&j, disk);
    assert_says(&j, strerror(ENOSPC));
    assert_true(has_step(dir, 2) && has_step(dir, 4) && !has_step(dir, 6) && !has_partial(dir, 6));
    run(&j, 1, "inspect %s", dir);
    assert_ends(&j, 0);
    // Still no room: the checkpoints stay. With room: it goes on from the last one.
    run(&j, 2, "train %s --run-dir %s --resume auto --set checkpoint.keep_last=1 " THREE " %s", tiny(), dir, SHORT);
    assert_ends(&j, 74);
    assert_true(has_step(dir, 2) && has_step(dir, 4));
    char command[400];
    snprintf(command, sizeof command, "rm -r %s/checkpoints/step_00000002", dir);
    assert_int_equal(system(command), 0);
    run(&j, 2, "train %s --run-dir %s --resume auto --set checkpoint.keep_last=1 " THREE " %s", tiny(), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "step 4, samples [0, 32)");
    assert_true(has_step(dir, 7) && !has_step(dir, 4));
    same_steps(quiet_run(), dir, 1, 7, BITS);
    umount2(disk, MNT_DETACH);
}

// Only the checkpoints do: the run goes on without them, until the last.
static void test_small_disk_and_on(void **state) {
    (void)state;
    static Job j;
    const char *disk = path_of("saves"), *dir = path_of("apart");
    if (!small_disk(disk, "size=50m")) skip();
    char link[400];
    snprintf(link, sizeof link, "%s/checkpoints", dir);
    assert_int_equal(mkdir(dir, 0777), 0);
    assert_int_equal(symlink(disk, link), 0);
    run(&j, 2, "train %s --run-dir %s --set checkpoint.keep_last=9 --set checkpoint.on_error=continue " THREE " %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 74);
    assert_says(&j, "step 6 was not saved");
    assert_says(&j, strerror(ENOSPC));
    assert_says(&j, "are free on the disk of");
    assert_says(&j, "step_00000007.partial/");
    assert_true(has_step(dir, 2) && has_step(dir, 4) && !has_partial(dir, 6) && !has_partial(dir, 7));
    same_steps(quiet_run(), dir, 1, 7, BITS);
    umount2(disk, MNT_DETACH);
}

// A disk without room for a folder, a time limit that wants a save measured: tried after the first step, and then less
// and less often.
static void test_failing_measure(void **state) {
    (void)state;
    static Job j;
    const char *disk = path_of("none"), *dir = path_of("unmeasured");
    if (!small_disk(disk, "size=4k,nr_inodes=1")) skip();
    char link[400], says[64];
    snprintf(link, sizeof link, "%s/checkpoints", dir);
    assert_int_equal(mkdir(dir, 0777), 0);
    assert_int_equal(symlink(disk, link), 0);
    run(&j, 1, "train %s --run-dir %s --steps 8 --time-limit 1h --set checkpoint.on_error=continue %s", tiny(), dir,
        SHORT);
    assert_ends(&j, 74);
    for (int step = 1; step < 8; step++) {
        snprintf(says, sizeof says, "step %d was not saved", step);
        bool is_tried = strstr(j.err, says) || strstr(j.out, says);
        if (is_tried != (step == 1 || step == 3 || step == 7)) fail_msg("step %d: %d\n%s", step, is_tried, j.err);
    }
    umount2(disk, MNT_DETACH);
}

// The job resumed exactly the state that the run had after that step.
static void says_state_of(const Job *j, const char *dir, int step) {
    char says[64];
    Steps s = steps_read(dir);
    snprintf(says, sizeof says, "state hash %.16s", step_text(&s, step, "state_hash") + 1);
    steps_free(&s);
    assert_says(j, says);
}

// Whatever changes between two starts of a run, its samples are the first ones of the data order, each once; that
// is computed, so a checkpoint that says it read others is refused.
static void test_consumed(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("consumed");
    const char *ramp = "--set train.batch_start=4 --set train.batch_ramp_samples=32 --set train.batch_quantum=4";
    run_ok(2, "train %s --run-dir %s --steps 3 --set parallel.ep=2 %s %s", tiny(), dir, ramp, SHORT);
    // 4 + 4 + 4 samples; then other ranks, another ramp, another length.
    run(&j, 4,
        "train %s --run-dir %s --resume auto --steps 5 --set parallel.ep=2 --set train.steps=40 --set "
        "train.global_batch=16 %s %s",
        tiny(), dir, ramp, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "consumed   [0, 12) gap-free: 12 samples were read");
    says_state_of(&j, dir, 3);
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 --set train.global_batch=12 %s", tiny(), dir, SHORT);
    assert_ends(&j, 0);
    says_state_of(&j, dir, 5);
    Steps s = steps_read(dir);
    char says[64];
    snprintf(says, sizeof says, "consumed   [0, %s) gap-free", step_text(&s, 5, "samples"));
    assert_says(&j, says);
    steps_free(&s);
    Manifest *m = NULL;
    char checkpoint[400], manifest[420];
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoints/step_00000006", dir);
    snprintf(manifest, sizeof manifest, "%s/%s", checkpoint, MANIFEST_NAME);
    assert_int_equal(manifest_read(&m, checkpoint), OK);
    m->read_hash ^= 1; // as if one sample had been another
    assert_int_equal(manifest_write(manifest, m), OK);
    manifest_free(&m);
    run(&j, 2, "train %s --run-dir %s --resume auto --steps 8 --set parallel.ep=2 %s", tiny(), dir, SHORT);
    assert_ends(&j, 65);
    assert_says(&j, "of this data order");
    assert_says(&j, "step_00000006");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beside_the_training),   cmocka_unit_test(test_signal_meets_save),
        cmocka_unit_test(test_full_disk_and_on),      cmocka_unit_test(test_last_save_must_succeed),
        cmocka_unit_test(test_wrong_byte),            cmocka_unit_test(test_consumed),
        cmocka_unit_test(test_small_disk),            cmocka_unit_test(test_small_disk_and_on),
        cmocka_unit_test(test_failing_measure),
    };
    drive_init(argc, argv);
    return drive_done(cmocka_run_group_tests_name("train_saves", tests, NULL, NULL));
}
