// test_checkpoint.c - saving, finding, loading and damaging checkpoints on one rank.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint_fixture.h"
#include "manifest.h"
#include "must.h"
#include "run_dir.h"
#include "scratch_dir.h"
#include "tensorfile.h"

static char checkpoints[128];
static Comm *world;
static Fixture fp8;
static char tokenizer[128];

static int folder_errno;  // what fsync says of folders, 0: the truth
static int folders_first; // after so many of them

// fsync in the place of the library's, for this program.
int fsync(int fd) {
    struct stat st;
    if (folder_errno && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) && folders_first-- <= 0) {
        errno = folder_errno;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

static void run(const char *fmt, ...) {
    char command[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    assert_int_equal(system(command), 0);
}

static void open_one(Fixture *f, const char *mode, int64_t hidden) {
    Boot b = {.nranks = 1, .local_nranks = 1, .world = world};
    MUST_OK(fixture_open(f, &b, 1, mode, hidden, tokenizer));
}

static int setup(void **state) {
    assert_int_equal(scratch_setup(state), 0);
    snprintf(checkpoints, sizeof checkpoints, "%s/run/checkpoints", scratch_dir);
    snprintf(tokenizer, sizeof tokenizer, "%s/tokenizer.json", scratch_dir);
    run("echo '{\"a\": 1}' > %s", tokenizer);
    MUST_OK(comm_self(&world, "world"));
    open_one(&fp8, "fp8", 128);
    fixture_all(&fp8, true, DT_BF16, true);
    return 0;
}

static int teardown(void **state) {
    fixture_close(&fp8);
    comm_destroy(&world);
    return scratch_teardown(state);
}

static Err save(int64_t step, int64_t keep_last, int64_t keep_every) {
    CheckpointInfo info = fixture_info(step);
    return checkpoint_save(checkpoints, fp8.params, &fp8.cx, &info, fp8.config, keep_last,
                           keep_every);
}

static void dir_of(char out[256], int64_t step) {
    snprintf(out, 256, "%s/step_%08lld", checkpoints, (long long)step);
}

// The names in the folder of checkpoints, in order.
static void expect_listing(const char *want) {
    char command[256], got[512] = "";
    snprintf(command, sizeof command, "ls -1 %s | tr '\\n' ' '", checkpoints);
    FILE *p = popen(command, "r");
    got[fread(got, 1, sizeof got - 1, p)] = '\0';
    pclose(p);
    assert_string_equal(got, want);
}

static void expect_found(const char *path, int64_t step, int64_t want) {
    char out[512], dir[256];
    bool found;
    MUST_OK(checkpoint_find(out, sizeof out, &found, path, step, &fp8.cx));
    assert_int_equal(found, want >= 0);
    if (!found) return;
    dir_of(dir, want);
    assert_string_equal(out, dir);
}

static void test_save_and_load(void **state) {
    (void)state;
    char dir[256];
    MUST_OK(save(500, 2, 0));
    expect_listing("latest step_00000500 ");
    dir_of(dir, 500);
    MUST_OK(checkpoint_verify(dir));
    fixture_spoil(&fp8);
    MUST_OK(checkpoint_load(dir, fp8.params, &fp8.cx, true));
    assert_int_equal(fixture_all(&fp8, false, DT_BF16, true), 0);
    CheckpointInfo info, want = fixture_info(500);
    MUST_OK(checkpoint_read_info(dir, &info));
    assert_int_equal(info.step, 500);
    assert_int_equal(info.samples, want.samples);
    assert_int_equal(info.tokens, want.tokens);
    assert_string_equal(info.data_fingerprint, want.data_fingerprint);
    assert_string_equal(info.tokenizer_hash, want.tokenizer_hash);
    assert_int_equal(info.world, 1);
    Config *c;
    MUST_OK(checkpoint_read_config(dir, &c));
    assert_int_equal(c->model.vocab_size, 900);
    config_free(c);
    run("cmp %s %s/tokenizer.json", tokenizer, dir);
}

// What other programs see: whole logical tensors in index.h5.
static void test_index_shows_logical_tensors(void **state) {
    (void)state;
    char path[300], dir[256];
    MUST_OK(save(500, 2, 0));
    dir_of(dir, 500);
    snprintf(path, sizeof path, "%s/index.h5", dir);
    TensorFile *f;
    TensorInfo info;
    MUST_OK(tensorfile_open(&f, path));
    const char *expert = "model.layers.1.mlp.experts.down_proj.weight";
    char name[TENSOR_NAME];
    snprintf(name, sizeof name, "%s/master", expert);
    MUST_OK(tensorfile_info(f, name, &info));
    assert_int_equal(info.ndim, 3);
    assert_int_equal(info.shape[0], 4);
    assert_int_equal(info.shape[1], 128);
    assert_int_equal(info.shape[2], 160);
    assert_true(info.is_virtual);
    float row[160];
    MUST_OK(tensorfile_read_rows(f, name, DT_F32, 3 * 128 + 5, 1, row));
    for (int i = 0; i < 160; i++)
        assert_true(row[i] == fixture_value(expert, 0, (3 * 128 + 5) * 160 + i));
    MUST_OK(tensorfile_info(f, "model.layers.2.eh_proj.weight/v", &info));
    assert_int_equal(info.dtype, DT_BF16);
    assert_int_equal(info.shape[1], 256);
    float bias[4];
    MUST_OK(tensorfile_read(f, "model.layers.1.mlp.gate.e_score_correction_bias", DT_F32, 4, bias));
    for (int e = 0; e < 4; e++) assert_true(bias[e] == fixture_value("bias", 1, e));
    assert_false(tensorfile_has(f, "model.layers.0.mlp.gate.e_score_correction_bias"));
    MUST_OK(tensorfile_close(&f, false));
}

// fp8 -> fp32 and back: moments change their type, masters do not.
static void test_moments_change_type(void **state) {
    (void)state;
    char dir[256];
    Fixture fp32;
    MUST_OK(save(500, 2, 0));
    dir_of(dir, 500);
    open_one(&fp32, "fp32", 128);
    fixture_spoil(&fp32);
    MUST_OK(checkpoint_load(dir, fp32.params, &fp32.cx, true));
    assert_int_equal(fp32.params->p[0].m.t, DT_F32);
    assert_int_equal(fixture_all(&fp32, false, DT_BF16, true), 0);
    fixture_all(&fp32, true, DT_F32, true);
    CheckpointInfo info = fixture_info(600);
    MUST_OK(checkpoint_save(checkpoints, fp32.params, &fp32.cx, &info, fp32.config, 2, 0));
    dir_of(dir, 600);
    fixture_spoil(&fp8);
    MUST_OK(checkpoint_load(dir, fp8.params, &fp8.cx, true));
    assert_int_equal(fixture_all(&fp8, false, DT_F32, true), 0);
    // weights alone: the moments stay as they are
    fixture_spoil(&fp32);
    MUST_OK(checkpoint_load(dir, fp32.params, &fp32.cx, false));
    assert_int_equal(fixture_all(&fp32, false, DT_F32, false), 0);
    assert_true(isnan(((float *)fp32.params->p[0].m.p)[0]));
    fixture_close(&fp32);
}

// A checkpoint without calibration leaves none: not that of a run that went on from it and comes back.
static void test_no_calibration(void **state) {
    (void)state;
    char dir[256];
    Fixture fixed;
    MUST_OK(save(500, 2, 0));
    dir_of(dir, 500);
    fixture_more = "fp8.scaling=static";
    open_one(&fixed, "fp8", 128);
    fixture_more = NULL;
    Calibration *c = fixed.cx.calibration;
    assert_non_null(c);
    for (int64_t i = 0; i < c->nblocks * SITE_COUNT; i++) c->amax[i] = 1.0f + (float)i;
    c->steps = 7.0f;
    c->unseen = 3;
    c->is_warned = true;
    MUST_OK(checkpoint_load(dir, fixed.params, &fixed.cx, true));
    assert_true(c->steps == 0.0f && c->unseen == 0 && !c->is_warned);
    for (int64_t i = 0; i < c->nblocks * SITE_COUNT; i++) assert_true(c->amax[i] == 0.0f);
    fixture_close(&fixed);
}

static void test_weights_only(void **state) {
    (void)state;
    char dir[256];
    Mat was[256][2]; // as an import writes it: no moments anywhere
    for (int i = 0; i < fp8.params->n; i++) {
        Param *p = &fp8.params->p[i];
        was[i][0] = p->m;
        was[i][1] = p->v;
        p->m = p->v = mat_none();
    }
    MUST_OK(save(0, 2, 0));
    for (int i = 0; i < fp8.params->n; i++) {
        fp8.params->p[i].m = was[i][0];
        fp8.params->p[i].v = was[i][1];
    }
    dir_of(dir, 0);
    MUST_OK(checkpoint_load(dir, fp8.params, &fp8.cx, false));
    assert_int_equal(fixture_all(&fp8, false, DT_BF16, false), 0);
    assert_int_equal(checkpoint_load(dir, fp8.params, &fp8.cx, true), E_INPUT);
    assert_non_null(strstr(fail_message(), "no optimizer state"));
    char path[300];
    snprintf(path, sizeof path, "%s/run@0", scratch_dir);
    expect_found(path, -1, 0);
}

static void test_another_architecture(void **state) {
    (void)state;
    char dir[256];
    Fixture wide;
    MUST_OK(save(500, 2, 0));
    dir_of(dir, 500);
    open_one(&wide, "fp8", 192);
    assert_int_equal(checkpoint_load(dir, wide.params, &wide.cx, true), E_INPUT);
    assert_non_null(strstr(fail_message(), "model.embed_tokens.weight/master"));
    assert_non_null(strstr(fail_message(), "expected shape [900, 192]"));
    assert_non_null(strstr(fail_message(), "found [900, 128]"));
    fixture_close(&wide);
    Param *head = params_find(fp8.params, P_HEAD, -1);
    strcpy(head->name, "lm_head.other"); // the model has it, the checkpoint does not
    assert_int_equal(checkpoint_load(dir, fp8.params, &fp8.cx, true), E_INPUT);
    assert_non_null(strstr(fail_message(), "lm_head.other/master"));
    assert_non_null(strstr(fail_message(), "found no such tensor"));
    strcpy(head->name, "lm_head.weight");
    fp8.params->n--; // and the other way round
    assert_int_equal(checkpoint_load(dir, fp8.params, &fp8.cx, true), E_INPUT);
    assert_non_null(strstr(fail_message(), "lm_head.weight/master: expected none"));
    fp8.params->n++;
}

static void test_find(void **state) {
    (void)state;
    char path[300];
    snprintf(path, sizeof path, "%s/run", scratch_dir);
    expect_found(path, -1, -1); // nothing there yet
    for (int64_t step = 100; step <= 300; step += 100) MUST_OK(save(step, 9, 0));
    expect_found(path, -1, 300);
    expect_found(checkpoints, -1, 300);
    expect_found(path, 200, 200);
    expect_found(path, 250, -1);
    snprintf(path, sizeof path, "%s/run@100", scratch_dir);
    expect_found(path, -1, 100);
    snprintf(path, sizeof path, "%s/latest", checkpoints);
    expect_found(path, -1, 300);
    dir_of(path, 200);
    expect_found(path, -1, 200);
    // a run that went back to 100 and saved 150 goes on from 150, not from the abandoned 300
    MUST_OK(save(150, 9, 0));
    snprintf(path, sizeof path, "%s/run", scratch_dir);
    expect_found(path, -1, 150);
}

static void test_keep(void **state) {
    (void)state;
    run("mkdir -p %s/step_00000007.partial && touch %s/step_00000007.partial/shard_00000.h5",
        checkpoints, checkpoints);
    for (int64_t step = 100; step <= 500; step += 100) MUST_OK(save(step, 2, 200));
    expect_listing("latest step_00000200 step_00000400 step_00000500 ");
    MUST_OK(save(500, 2, 0)); // the same step again
    expect_listing("latest step_00000400 step_00000500 ");
    expect_found(checkpoints, -1, 500);
    MUST_OK(save(450, 1, 0));
    expect_listing("latest step_00000450 ");
    run("rm %s/latest && mkdir %s/latest", checkpoints, checkpoints); // as a copy that follows links makes it
    MUST_OK(save(475, 1, 0));
    expect_listing("latest step_00000475 ");
    expect_found(checkpoints, -1, 475);
}

static void expect_damage(int64_t step, const char *what) {
    char dir[256], out[512];
    bool found;
    dir_of(dir, step);
    assert_int_equal(checkpoint_verify(dir), E_INPUT);
    if (!strstr(fail_message(), what)) fail_msg("'%s' does not name %s", fail_message(), what);
    assert_int_equal(checkpoint_find(out, sizeof out, &found, dir, -1, &fp8.cx), E_INPUT);
    if (!strstr(fail_message(), what)) fail_msg("'%s' does not name %s", fail_message(), what);
    expect_found(checkpoints, -1, 100); // the newest that is whole
}

static void test_damage_is_found_and_older_used(void **state) {
    (void)state;
    static const char *const files[] = {"manifest.json", "index.h5", "shard_00000.h5",
                                        "config.yaml", "tokenizer.json"};
    char dir[256];
    MUST_OK(save(100, 9, 0));
    MUST_OK(save(200, 9, 0));
    dir_of(dir, 200);
    run("cp -r %s %s/whole", dir, scratch_dir);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[400];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        run("rm %s", path);
        if (i > 0)
            expect_damage(200, files[i]);
        else
            expect_found(checkpoints, -1, 100);
        run("cp %s/whole/%s %s && truncate -s -1 %s", scratch_dir, files[i], path, path);
        expect_damage(200, files[i]);
        assert_int_equal(stat(path, &st), 0);
        for (int k = 0; k < 4; k++) { // one flipped bit somewhere
            long long at = (long long)(st.st_size * (2 * k + 1) / 8);
            run("cp %s/whole/%s %s", scratch_dir, files[i], path);
            FILE *f = fopen(path, "r+");
            fseek(f, (long)at, SEEK_SET);
            int c = fgetc(f);
            fseek(f, (long)at, SEEK_SET);
            fputc(c ^ 4, f);
            fclose(f);
            expect_damage(200, files[i]);
        }
        run("cp %s/whole/%s %s", scratch_dir, files[i], path);
    }
    expect_found(checkpoints, -1, 200);
}

// Damage that comes between finding and loading is seen by the values, and named by tensor.
static void test_load_checks_values(void **state) {
    (void)state;
    char dir[256], path[300];
    MUST_OK(save(100, 9, 0));
    dir_of(dir, 100);
    snprintf(path, sizeof path, "%s/shard_00000.h5", dir);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    int seen = 0;
    for (int k = 1; k < 8; k++) {
        run("cp %s %s/copy", path, scratch_dir);
        FILE *f = fopen(path, "r+");
        fseek(f, (long)(st.st_size * k / 8), SEEK_SET);
        fwrite("\x5a\xa5\x5a\xa5\x5a\xa5\x5a\xa5", 1, 8, f);
        fclose(f);
        Err err = checkpoint_load(dir, fp8.params, &fp8.cx, true);
        assert_true(err == E_INPUT || err == OK); // OK: no value lies there
        if (err == E_INPUT && strstr(fail_message(), "model.") && strstr(fail_message(), ".h5"))
            seen++;
        run("cp %s/copy %s", scratch_dir, path);
    }
    assert_true(seen >= 4);
    MUST_OK(checkpoint_load(dir, fp8.params, &fp8.cx, true));
}

static void test_no_room(void **state) {
    (void)state;
    MUST_OK(save(100, 9, 0));
    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    static const rlim_t limits[] = {3000, 100000, 1000000}; // early, in the middle, late
    for (int i = 0; i < 3; i++) {
        tight = old;
        tight.rlim_cur = limits[i];
        setrlimit(RLIMIT_FSIZE, &tight);
        Err err = save(200, 9, 0);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(err, E_OUTPUT);
        assert_non_null(strstr(fail_message(), "step_00000200.partial/"));
        expect_listing("latest step_00000100 ");
        expect_found(checkpoints, -1, 100);
    }
    MUST_OK(save(200, 9, 0));
    expect_found(checkpoints, -1, 200);
}

static void test_no_rights(void **state) {
    (void)state;
    MUST_OK(save(100, 9, 0));
    run("rm -rf %s/step_00000200.partial; touch %s/blocked", checkpoints, scratch_dir);
    char was[128];
    strcpy(was, checkpoints);
    snprintf(checkpoints, sizeof checkpoints, "%s/blocked/checkpoints", scratch_dir);
    assert_int_equal(save(200, 9, 0), E_OUTPUT);
    strcpy(checkpoints, was);
    expect_found(checkpoints, -1, 100);
}

// Some file systems cannot sync folders: saves work there all the same. One that can and fails is a disk's fault, at
// whichever of a save's folders it happens: earlier checkpoints stay, that of the same step too.
static void test_folders_without_sync(void **state) {
    (void)state;
    static const int without[] = {EINVAL, ENOTSUP, ENOSYS, EBADF};
    for (int i = 0; i < 4; i++) {
        folder_errno = without[i];
        folders_first = 0;
        Err err = save(100 + i, 9, 0);
        folder_errno = 0;
        assert_int_equal(err, OK);
        expect_found(checkpoints, -1, 100 + i);
    }
    int failed = 0;
    for (int64_t step = 103; step <= 104; step++) { // one that is there, and a new one
        for (int first = 0; first < 10; first++) {
            bool found = false;
            char out[512];
            folder_errno = EIO;
            folders_first = first;
            Err err = save(step, 9, 0);
            folder_errno = 0;
            failed += err != OK;
            if (err != OK) assert_int_equal(err, E_OUTPUT);
            if (err != OK) assert_non_null(strstr(fail_message(), strerror(EIO)));
            for (int64_t old = 100; old <= 103; old++) expect_found(checkpoints, old, old);
            MUST_OK(checkpoint_find(out, sizeof out, &found, checkpoints, -1, &fp8.cx));
            assert_true(found);
        }
    }
    assert_true(failed >= 6);
    run("rm -rf %s", checkpoints); // the folders of a new run
    folder_errno = EIO;
    folders_first = 0;
    Err err = save(100, 9, 0);
    folder_errno = 0;
    assert_int_equal(err, E_OUTPUT);
}

// A tokenizer that vanished costs a warning, not the checkpoint.
static void test_tokenizer_gone(void **state) {
    (void)state;
    run("rm %s", tokenizer);
    MUST_OK(save(100, 9, 0));
    expect_found(checkpoints, -1, 100);
}

static void test_run_dir(void **state) {
    (void)state;
    char run_path[128], path[200];
    snprintf(run_path, sizeof run_path, "%s/a/b/run", scratch_dir);
    assert_false(run_dir_is_occupied(run_path));
    MUST_OK(run_dir_make(run_path));
    MUST_OK(run_dir_make(run_path));
    assert_false(run_dir_is_occupied(run_path));
    RunLock *lock, *second;
    MUST_OK(run_lock_take(&lock, run_path));
    assert_false(run_dir_is_occupied(run_path)); // the lock alone is no run
    assert_int_equal(run_lock_take(&second, run_path), E_PEER);
    char pid[32];
    snprintf(pid, sizeof pid, "process %d on ", (int)getpid());
    assert_non_null(strstr(fail_message(), pid));
    run_lock_drop(&lock);
    MUST_OK(run_lock_take(&lock, run_path));
    run_lock_drop(&lock);
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_path);
    run("touch %s", path);
    assert_true(run_dir_is_occupied(run_path));
    assert_int_equal(run_dir_refuse(run_path), E_USAGE);
    assert_non_null(strstr(fail_message(), "--resume auto"));
    snprintf(path, sizeof path, "%s/metrics.jsonl/x", run_path);
    assert_int_equal(run_dir_make(path), E_OUTPUT);
    snprintf(path, sizeof path, "%s/closed", scratch_dir);
    run("mkdir %s; ln -s checkpoints %s/checkpoints", path, path); // a link to itself: nobody can look into it
    assert_true(run_dir_is_occupied(path));
    assert_int_equal(run_dir_refuse(path), E_OUTPUT);
    assert_non_null(strstr(fail_message(), "cannot be used: cannot read"));
}

// The lock goes with the process, also when it is killed.
static void test_lock_dies_with_process(void **state) {
    (void)state;
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        RunLock *lock;
        char c = run_lock_take(&lock, scratch_dir) == OK;
        if (write(ready[1], &c, 1) != 1) _exit(1);
        pause();
        _exit(0);
    }
    char c = 0;
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_int_equal(c, 1);
    RunLock *lock;
    assert_int_equal(run_lock_take(&lock, scratch_dir), E_PEER);
    kill(child, SIGKILL);
    for (int i = 0; i < 500 && run_lock_take(&lock, scratch_dir) != OK; i++) usleep(10000);
    assert_non_null(lock);
    run_lock_drop(&lock);
    close(ready[0]);
    close(ready[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_save_and_load),
        TEST(test_index_shows_logical_tensors),
        TEST(test_moments_change_type),
        TEST(test_no_calibration),
        TEST(test_weights_only),
        TEST(test_another_architecture),
        TEST(test_find),
        TEST(test_keep),
        TEST(test_damage_is_found_and_older_used),
        TEST(test_load_checks_values),
        TEST(test_no_room),
        TEST(test_no_rights),
        TEST(test_folders_without_sync),
        TEST(test_tokenizer_gone),
        TEST(test_run_dir),
        TEST(test_lock_dies_with_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
