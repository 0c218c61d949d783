// test_train_faults.c - what goes wrong around a run ends with the right exit code and a message that names it, and
// never costs a checkpoint: bad settings, damaged inputs, killed ranks, full disks, non-finite losses, two runs in one
// folder.
#include <fcntl.h>
#include <hdf5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "drive.h"

static const char *sample(const char *name) {
    static char path[2][600];
    static int next;
    char *p = path[next++ % 2];
    snprintf(p, sizeof path[0], "%s/data/samples/%s", drive_source(), name);
    return p;
}

static void assert_no_run(const char *dir) {
    if (has_file(dir)) fail_msg("%s was created", dir);
}

static const char *write_text(const char *name, const char *text) {
    const char *path = path_of("%s", name);
    write_file(path, text, strlen(text));
    return path;
}

// The run that nothing disturbed: 8 steps on 2 ranks.
static const char *whole_run(void) {
    const char *dir = path_of("whole");
    if (!has_file(dir)) run_ok(2, "train %s --run-dir %s --steps 8 --set parallel.ep=2 %s", tiny(), dir, SHORT);
    return dir;
}

// ---- settings -----------------------------------------------------------------------------------

typedef struct Refusal {
    const char *name, *flags;
    int ranks, code;
    const char *says[2];
} Refusal;

static Refusal refusals[] = {
    {"unknown_key", "--set train.stepz=5", 1, 78, {"train.stepz", "did you mean train.steps"}},
    {"ep_and_world", "--set parallel.ep=3", 4, 78, {"parallel.ep (3) does not divide the world (4)"}},
    {"ep_and_experts", "--set parallel.ep=4 --set model.n_routed_experts=6", 4, 78,
     {"parallel.ep (4) does not divide model.n_routed_experts (6)"}},
    {"batch_and_world", "--set train.global_batch=6", 4, 78, {"train.global_batch (6)"}},
    {"out_of_range", "--set train.lr=-1", 1, 78, {"train.lr", "-1"}},
    {"not_a_number", "--set train.steps=many", 1, 78, {"train.steps", "many"}},
    {"odd_rope", "--set model.qk_rope_head_dim=15", 1, 78, {"model.qk_rope_head_dim (15)"}},
    {"comm_self_on_ranks", "--set parallel.comm=self", 2, 78, {"parallel.comm"}},
    {"unknown_flag", "--stepz 5", 1, 64, {"--stepz", "--steps"}},
    {"zero_steps", "--steps 0", 1, 64, {"--steps"}},
    {"resume_and_init", "--resume /tmp --init-from /tmp", 1, 64, {"--init-from", "--resume"}},
    {"device_cuda", "--device cuda", 2, 69, {"no CUDA device", "--device cpu"}},
    {"missing_shard", "--set data.train=nowhere.h5", 2, 65, {"nowhere.h5"}},
    {"missing_tokenizer", "--set data.tokenizer=nowhere.json", 1, 65, {"nowhere.json"}},
    {"missing_eval_shard", "--set data.eval=nowhere.h5", 1, 65, {"nowhere.h5"}},
    {"large_vocabulary", "--set model.vocab_size=511", 2, 65,
     {"tiny.tokens.h5: its tokenizer has 512 tokens", "model.vocab_size is 511"}},
    {"too_large", "--device cpu --set model.vocab_size=16000000 --set model.hidden_size=1048576", 1, 70,
     {"not enough memory: 1 rank here needs", "spread the model over more machines"}},
    {"missing_init", "--init-from /tmp/no-such-run", 1, 65, {"/tmp/no-such-run"}},
};

static void refused(void **state) {
    const Refusal *r = *state;
    DeviceInfo gpu;
    device_cuda_info(&gpu);
    if (gpu.count > 0 && strcmp(r->name, "device_cuda") == 0) skip(); // it is there
    static Job j;
    const char *dir = path_of("refused-%s", r->name);
    run(&j, r->ranks, "train %s --run-dir %s %s", tiny(), dir, r->flags);
    assert_ends(&j, r->code);
    for (int i = 0; i < 2 && r->says[i]; i++) assert_says(&j, r->says[i]);
    assert_no_run(dir);
}

static void test_config_files(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("no-config");
    run(&j, 1, "train --config %s --run-dir %s", write_text("empty.yaml", ""), dir);
    assert_ends(&j, 78);
    assert_says(&j, "model.hidden_size");
    run(&j, 1, "train --config %s --run-dir %s", write_text("part.yaml", "model:\n  hidden_size: 64\n"), dir);
    assert_ends(&j, 78);
    assert_says(&j, "train.seq_len");
    const char *key = write_text("key.yaml", "train:\n  seq_len: 64\n  warmup_step: 9\n");
    run(&j, 1, "train --config %s --run-dir %s", key, dir);
    assert_ends(&j, 78);
    assert_says(&j, "key.yaml:3");
    assert_says(&j, "train.warmup_steps");
    run(&j, 1, "train --config %s --run-dir %s", write_text("broken.yaml", "train:\n  seq_len: [64\n"), dir);
    assert_ends(&j, 78);
    assert_says(&j, "broken.yaml:");
    run(&j, 1, "train --config %s --run-dir %s", path_of("none.yaml"), dir);
    assert_true(j.code == 78 || j.code == 65);
    assert_says(&j, "none.yaml");
    assert_no_run(dir);
}

// ---- inputs -------------------------------------------------------------------------------------

// The bytes of the first chunks of /tokens lie behind the header: damage one of them.
static void test_damaged_shard(void **state) {
    (void)state;
    static Job j;
    const char *shard = path_of("damaged.h5"), *dir = path_of("damaged");
    size_t n = 0;
    char *data = read_file(sample("tiny.tokens.h5"), &n);
    hid_t file = H5Fopen(sample("tiny.tokens.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t tokens = H5Dopen2(file, "/tokens", H5P_DEFAULT), space = H5Dget_space(tokens);
    hsize_t chunks = 0, bytes = 0, offset[1];
    haddr_t at = HADDR_UNDEF;
    unsigned mask = 0;
    assert_true(file >= 0 && tokens >= 0);
    assert_true(H5Dget_num_chunks(tokens, space, &chunks) >= 0 && chunks > 1);
    for (hsize_t i = 0; i < chunks; i++) { // one bit in each
        assert_true(H5Dget_chunk_info(tokens, space, i, offset, &mask, &at, &bytes) >= 0);
        data[at + bytes / 2] ^= 0x10;
    }
    H5Sclose(space);
    H5Dclose(tokens);
    H5Fclose(file);
    write_file(shard, data, n);
    run(&j, 2, "train %s --run-dir %s --steps 3 --set parallel.ep=2 %s --set data.train=%s", tiny(), dir, SHORT, shard);
    assert_ends(&j, 65);
    assert_says(&j, "damaged.h5: chunk");
    assert_says(&j, "is damaged");
    write_file(shard, data, n / 2);
    run(&j, 1, "train %s --run-dir %s --steps 3 %s --set data.train=%s", tiny(), path_of("cut"), SHORT, shard);
    assert_ends(&j, 65);
    assert_says(&j, "damaged.h5");
    write_file(shard, "these are no tokens", 19);
    run(&j, 1, "train %s --run-dir %s --steps 3 %s --set data.train=%s", tiny(), path_of("cut"), SHORT, shard);
    assert_ends(&j, 65);
    assert_says(&j, "damaged.h5");
    assert_no_run(path_of("cut"));
    free(data);
}

static void test_damaged_tokenizer(void **state) {
    (void)state;
    static Job j;
    const char *path = path_of("tokenizer.json"), *dir = path_of("no-tokenizer");
    size_t n = 0;
    char *text = read_file(sample("tiny.tokenizer.json"), &n);
    write_file(path, text, n / 2);
    run(&j, 1, "train %s --run-dir %s --steps 3 %s --set data.tokenizer=%s", tiny(), dir, SHORT, path);
    assert_ends(&j, 65);
    assert_says(&j, "tokenizer.json");
    // A good one, but not the one that made the shards.
    text = realloc(text, n + 2);
    assert_non_null(text);
    text[n] = '\n';
    write_file(path, text, n + 1);
    run(&j, 1, "train %s --run-dir %s --steps 1 %s --set data.tokenizer=%s", tiny(), dir, SHORT, path);
    assert_ends(&j, 65);
    assert_says(&j, "hash");
    assert_no_run(dir);
    free(text);
}

// Held-out shards of another tokenizer are refused before the first step, and by `tessera eval`.
static void test_held_out_tokenizer(void **state) {
    (void)state;
    static Job j;
    const char *tokenizer = path_of("other.json"), *shards = path_of("other"), *dir = path_of("other-eval");
    size_t n = 0;
    char *text = read_file(sample("tiny.tokenizer.json"), &n);
    text = realloc(text, n + 2);
    assert_non_null(text);
    text[n] = '\n';
    write_file(tokenizer, text, n + 1);
    free(text);
    run_ok(1, "prepare --tokenizer %s --out %s %s", tokenizer, shards, write_text("held.txt", "Emma was handsome.\n"));
    run(&j, 1, "train %s --run-dir %s --steps 1 %s --set data.eval=%s", tiny(), dir, SHORT, shards);
    assert_ends(&j, 65);
    assert_says(&j, "data.eval");
    assert_says(&j, "make both with one tokenizer");
    assert_no_run(dir);
    run(&j, 1, "eval --checkpoint %s --data %s", whole_run(), shards);
    assert_ends(&j, 65);
    assert_says(&j, "step_00000008: step 8");
    assert_says(&j, "the checkpoint was trained with one of hash");
}

// A checkpoint that is not there: what is there instead.
static void test_which_checkpoint(void **state) {
    (void)state;
    static Job j;
    run(&j, 1, "eval --checkpoint %s@3 --copy 1", whole_run());
    assert_ends(&j, 65);
    assert_says(&j, "no checkpoint of step 3 there, only of 8");
    run(&j, 1, "eval --checkpoint %s-typo --copy 1", whole_run());
    assert_ends(&j, 65);
    assert_says(&j, "no such run or checkpoint directory");
    run(&j, 2, "train %s --run-dir %s %s --init-from %s", tiny(), path_of("init"), SHORT, drive_source());
    assert_ends(&j, 65);
    assert_says(&j, "no checkpoint there; expected a run directory");
    assert_no_run(path_of("init"));
}

// ---- checkpoints --------------------------------------------------------------------------------

// Two checkpoints, after steps 2 and 4 of one rank.
static void make_base(const char *dir) {
    run_ok(1, "train %s --run-dir %s --steps 4 --set checkpoint.every=2 %s", tiny(), dir, SHORT);
}

static void test_other_architecture(void **state) {
    (void)state;
    static Job j;
    const char *base = path_of("arch"), *dir = path_of("arch-new");
    make_base(base);
    run(&j, 1, "train %s --run-dir %s --resume %s --steps 6 %s --set model.moe_intermediate_size=64", tiny(), dir, base,
        SHORT);
    assert_ends(&j, 78);
    assert_says(&j, "model.moe_intermediate_size");
    assert_says(&j, "96");
    assert_says(&j, "64");
    assert_no_run(dir);
    run(&j, 2, "train %s --run-dir %s --init-from %s --steps 6 %s --set model.moe_intermediate_size=64", tiny(), dir,
        base, SHORT);
    assert_ends(&j, 65);
    assert_says(&j, "96");
    assert_says(&j, "64");
    assert_no_run(dir);
    run(&j, 1, "train %s --run-dir %s --init-from %s --steps 6 %s --set model.num_hidden_layers=4", tiny(), dir, base,
        SHORT);
    assert_ends(&j, 65);
    assert_no_run(dir);
}

static void flip_in_file(const char *path) {
    size_t n = 0;
    char *data = read_file(path, &n);
    data[n / 2] ^= 0x01;
    unlink(path); // it may be hard-linked or read-only
    write_file(path, data, n);
    free(data);
}

static void test_damaged_checkpoint(void **state) {
    (void)state;
    static Job j;
    const char *base = path_of("hurt"), *whole = path_of("one-rank");
    run_ok(1, "train %s --run-dir %s --steps 6 %s", tiny(), whole, SHORT);
    make_base(base);
    char shard[400];
    snprintf(shard, sizeof shard, "%s/checkpoints/step_00000004/shard_00000.h5", base);
    flip_in_file(shard);
    run(&j, 1, "train %s --run-dir %s --resume %s@4 --steps 6 %s", tiny(), path_of("hurt-new"), base, SHORT);
    assert_ends(&j, 65);
    assert_says(&j, "step_00000004");
    assert_no_run(path_of("hurt-new"));
    // auto: the older one, with a warning that says why.
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s", tiny(), base, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "step_00000004");
    assert_says(&j, "step 2, samples [0, 16)");
    same_steps(whole, base, 1, 6, BITS);
}

static void test_killed_rank(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("killed");
    job_start(&j, 2, "train %s --run-dir %s --set parallel.ep=2 --set checkpoint.every=2 %s", tiny(), dir, SHORT);
    wait_for_step(&j, dir, 5, 200); // the save of step 4 has begun, so that of step 2 is done
    pid_t rank = job_rank(&j, 1);
    assert_true(rank > 0);
    kill(rank, SIGKILL);
    job_wait(&j, 240); // the other rank must not hang
    assert_true(j.code != 0);
    Steps s = steps_read(dir);
    int end = s.n < 8 ? 8 : s.n + 1;
    steps_free(&s);
    run(&j, 2, "train %s --run-dir %s --resume auto --steps %d --set parallel.ep=2 %s", tiny(), dir, end, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "resume");
    s = steps_read(dir);
    assert_int_equal(s.first, 1);
    assert_int_equal(s.n, end);
    steps_free(&s);
    same_steps(whole_run(), dir, 1, 8, BITS);
}

// Killed again and again, at whatever it is doing (mostly saving), a requeued run still gets to its end.
static void test_killed_often(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("often"), *whole = path_of("whole-6");
    if (!has_file(whole)) run_ok(1, "train %s --run-dir %s --steps 6 %s", tiny(), whole, SHORT);
    for (int i = 0; i < 5; i++) {
        job_start(&j, 1, "train %s --run-dir %s --resume auto --set checkpoint.every=1 --steps 6 %s", tiny(), dir,
                  SHORT);
        wait_for_step(&j, dir, i + 1, 120);
        usleep((useconds_t)(i * 37000));
        job_signal(&j, SIGKILL);
        job_wait(&j, 60);
    }
    run_ok(1, "train %s --run-dir %s --resume auto --set checkpoint.every=1 --steps 6 %s", tiny(), dir, SHORT);
    same_steps(whole, dir, 1, 6, BITS);
    char partial[300];
    snprintf(partial, sizeof partial, "%s/checkpoints/step_00000006", dir);
    assert_true(has_file(partial));
}

// ---- outputs ------------------------------------------------------------------------------------

static void test_unwritable_run_dir(void **state) {
    (void)state;
    static Job j;
    const char *file = write_text("regular-file", "");
    run(&j, 1, "train %s --run-dir %s/run --steps 2 %s", tiny(), file, SHORT);
    assert_ends(&j, 74);
    assert_says(&j, "regular-file");
    run(&j, 2, "train %s --run-dir %s --steps 2 %s", tiny(), file, SHORT);
    assert_ends(&j, 74);
    run(&j, 1, "train %s --run-dir /proc/run --steps 2 %s", tiny(), SHORT);
    assert_ends(&j, 74);
    assert_says(&j, "/proc/run");
}

static void test_full_disk(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("full"), *whole = path_of("whole-6");
    if (!has_file(whole)) run_ok(1, "train %s --run-dir %s --steps 6 %s", tiny(), whole, SHORT);
    run_ok(1, "train %s --run-dir %s --steps 2 %s", tiny(), dir, SHORT);
    // The shard is some megabytes, everything else that a run writes is less than this.
    job_start_limited(&j, 500000, "train %s --run-dir %s --resume auto --steps 4 %s", tiny(), dir, SHORT);
    job_wait(&j, 120);
    assert_ends(&j, 74);
    assert_says(&j, "step_00000004");
    char path[400];
    snprintf(path, sizeof path, "%s/checkpoints/step_00000004", dir);
    assert_no_run(path);
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s", tiny(), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "step 2, samples [0, 16)");
    same_steps(whole, dir, 1, 6, BITS);
}

// ---- numbers ------------------------------------------------------------------------------------

// Weights that grow a hundredfold a step leave the range of FP32 after some ten of them.
static void test_not_finite(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("nan");
    run(&j, 2,
        "train %s --run-dir %s --steps 40 --set parallel.ep=2 --set checkpoint.every=1 --set train.lr=10 "
        "--set train.weight_decay=10 --set train.warmup_steps=0 %s",
        tiny(), dir, SHORT);
    assert_ends(&j, 80);
    assert_says(&j, "layer");
    assert_says(&j, "rank ");
    Steps s = steps_read(dir);
    char says[64], path[400];
    snprintf(says, sizeof says, "step %d", s.n + 1);
    assert_says(&j, says);
    for (int i = 1; i <= s.n + 1; i++) {
        snprintf(path, sizeof path, "%s/checkpoints/step_%08d", dir, i);
        assert_int_equal(has_file(path), i <= s.n && i > s.n - 2);
    }
    int saved = s.n; // in which step it runs away depends on the bits; the first is fine
    assert_true(saved > 0);
    steps_free(&s);
    // The last good one is whole.
    snprintf(path, sizeof path, "%s/checkpoints/step_%08d", dir, saved);
    run(&j, 1, "inspect %s", path);
    assert_ends(&j, 0);
}

// ---- two runs -----------------------------------------------------------------------------------

static void test_two_runs_in_one_folder(void **state) {
    (void)state;
    static Job first, second;
    const char *dir = path_of("shared");
    job_start(&first, 1, "train %s --run-dir %s %s", tiny(), dir, SHORT);
    wait_for_step(&first, dir, 1, 120);
    run(&second, 1, "train %s --run-dir %s --resume auto %s", tiny(), dir, SHORT);
    int code = second.code;
    run(&second, 1, "train %s --run-dir %s %s", tiny(), dir, SHORT);
    job_signal(&first, SIGTERM);
    job_wait(&first, 120);
    assert_ends(&first, 75);
    assert_ends(&second, 64);
    assert_int_equal(code, 69);
    Steps s = steps_read(dir);
    assert_true(s.n >= 1);
    steps_free(&s);
}

static void test_lock_names_its_holder(void **state) {
    (void)state;
    static Job first, second;
    const char *dir = path_of("held");
    char holder[64];
    job_start(&first, 1, "train %s --run-dir %s %s", tiny(), dir, SHORT);
    wait_for_step(&first, dir, 1, 120);
    snprintf(holder, sizeof holder, "process %d", (int)first.pid);
    run(&second, 2, "train %s --run-dir %s --resume auto --set parallel.ep=2 %s", tiny(), dir, SHORT);
    job_signal(&first, SIGKILL); // the lock dies with it
    job_wait(&first, 60);
    assert_ends(&second, 69);
    assert_says(&second, "in use");
    assert_says(&second, holder);
    // What a save that never finished left behind is removed, with a line, once the folder is this run's.
    char partial[400];
    snprintf(partial, sizeof partial, "%s/checkpoints/step_00000099.partial", dir);
    assert_int_equal(mkdir(partial, 0777), 0);
    run(&second, 1, "train %s --run-dir %s --resume auto --steps 2 %s", tiny(), dir, SHORT);
    assert_ends(&second, 0);
    assert_says(&second, "removed");
    assert_says(&second, "step_00000099.partial");
    assert_no_run(partial);
}

// The lock comes before the choice: a second run does not even look at the checkpoints.
static void test_lock_before_choice(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("chosen");
    make_base(dir);
    char shard[400], lock[300];
    snprintf(shard, sizeof shard, "%s/checkpoints/step_00000004/shard_00000.h5", dir);
    snprintf(lock, sizeof lock, "%s/lock", dir);
    flip_in_file(shard);
    int fd = open(lock, O_RDWR);
    assert_true(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s", tiny(), dir, SHORT);
    assert_ends(&j, 69);
    assert_null(strstr(j.out, "skipping"));
    close(fd);
    run(&j, 1, "train %s --run-dir %s --resume auto --steps 6 %s", tiny(), dir, SHORT);
    assert_ends(&j, 0);
    assert_says(&j, "skipping");
    assert_says(&j, "0 missing, 0 unexpected");
}

int main(int argc, char **argv) {
    enum { NREFUSALS = sizeof refusals / sizeof refusals[0] };
    const struct CMUnitTest rest[] = {
        cmocka_unit_test(test_config_files),       cmocka_unit_test(test_damaged_shard),
        cmocka_unit_test(test_damaged_tokenizer),  cmocka_unit_test(test_held_out_tokenizer),
        cmocka_unit_test(test_which_checkpoint),
        cmocka_unit_test(test_other_architecture), cmocka_unit_test(test_damaged_checkpoint),
        cmocka_unit_test(test_killed_rank),        cmocka_unit_test(test_killed_often),
        cmocka_unit_test(test_unwritable_run_dir), cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_not_finite),         cmocka_unit_test(test_two_runs_in_one_folder),
        cmocka_unit_test(test_lock_names_its_holder), cmocka_unit_test(test_lock_before_choice),
    };
    enum { NREST = sizeof rest / sizeof rest[0] };
    struct CMUnitTest tests[NREFUSALS + NREST];
    for (int i = 0; i < NREFUSALS; i++) {
        tests[i] = (struct CMUnitTest){refusals[i].name, refused, NULL, NULL, &refusals[i]};
    }
    memcpy(tests + NREFUSALS, rest, sizeof rest);
    drive_init(argc, argv);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return drive_done(cmocka_run_group_tests_name("train_faults", tests, NULL, NULL));
}
