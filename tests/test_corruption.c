// test_corruption.c - the corruption matrix: the files of a checkpoint are truncated, flipped, zeroed, removed, grown
// or swapped with others, at random by seed; --resume auto must name the file and go on from the newest checkpoint
// that is whole, `inspect` must name it too.
//
// usage: test_corruption PROGRAM SOURCE [CASES [SEED]]; 20 cases in the tests, more by `launch/reliability corruption`.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "drive.h"
#include "rng.h"

#define RUN                                                                                                            \
    "--set checkpoint.keep_last=9 --set train.seq_len=32 --set debug.state_hash=true --threads 1"
// Each RANKS-th case is looked at by two ranks, which share out the work; each FULL-th is also trained to its end.
enum { LAST = 6, EVERY = 2, RANKS = 8, FULL = 40 };

typedef enum Damage { TRUNCATE, FLIP, ZERO, GROW, REMOVE, SWAP_STEP, SWAP_SHARD, DAMAGES } Damage;
static const char *const damage_names[DAMAGES] = {"truncated", "one bit flipped", "4 KiB zeroed", "grown",
                                                  "removed", "from another step", "another shard's"};
static const char *const files[] = {"manifest.json", "index.h5",    "shard_00000.h5",
                                    "shard_00001.h5", "config.yaml", "tokenizer.json"};
enum { NFILES = sizeof files / sizeof *files };

static int ncases = 20;
static uint64_t seed = 1, drawn;
static int count[DAMAGES], count_file[NFILES];

static uint64_t draw(uint64_t n) {
    Philox p = philox(seed, 77, drawn++);
    return ((uint64_t)p.v[0] << 32 | p.v[1]) % n;
}

static const char *common(void) {
    static char text[1300];
    const char *source = drive_source();
    snprintf(text, sizeof text,
             "--config %s/configs/tiny.yaml --set data.tokenizer=%s/data/samples/tiny.tokenizer.json " RUN, source,
             source);
    return text;
}

static void file_of(char out[500], const char *dir, int step, const char *name) {
    snprintf(out, 500, "%s/checkpoints/step_%08d/%s", dir, step, name);
}

static bool is_same(const char *path, const char *data, size_t n) {
    size_t m = 0;
    char *have = read_file(path, &m);
    bool same = m == n && memcmp(have, data, n) == 0;
    free(have);
    return same;
}

// The bytes of another file in the place of this one; false if they are the same.
static bool replace_by(const char *path, const char *other, const char *was, size_t n) {
    if (is_same(other, was, n)) return false;
    copy_file(other, path);
    return true;
}

// Damages a file in one way; false if that changes nothing there.
static bool damage(Damage kind, const char *dir, int step, const char *name, const char *path, char *was, size_t n) {
    char other[500];
    size_t at = draw(n);
    char *data = malloc(n + 64);
    assert_non_null(data);
    memcpy(data, was, n);
    bool done = true;
    switch (kind) {
    case TRUNCATE: write_file(path, data, draw(8) == 0 ? 0 : at); break;
    case FLIP:
        data[at] ^= (char)(1 << draw(8));
        write_file(path, data, n);
        break;
    case ZERO:
        at -= at % 4096;
        memset(data + at, 0, n - at < 4096 ? n - at : 4096);
        done = memcmp(data, was, n) != 0;
        if (done) write_file(path, data, n);
        break;
    case GROW:
        memset(data + n, (int)draw(256), 64);
        write_file(path, data, n + 1 + draw(64));
        break;
    case REMOVE: unlink(path); break;
    case SWAP_STEP:
        file_of(other, dir, step == EVERY ? LAST : EVERY, name);
        done = replace_by(path, other, was, n);
        break;
    case SWAP_SHARD:
        file_of(other, dir, step, strcmp(name, files[2]) == 0 ? files[3] : files[2]);
        done = strncmp(name, "shard", 5) == 0 && replace_by(path, other, was, n);
        break;
    case DAMAGES: done = false;
    }
    free(data);
    return done;
}

// The whole run, in a folder of its own, after a case: it must end as if nothing had happened.
static void train_to_the_end(const char *dir, const char *whole) {
    char command[1100];
    const char *copy = path_of("copy");
    snprintf(command, sizeof command, "rm -rf %s && cp -r %s %s", copy, dir, copy);
    assert_int_equal(system(command), 0);
    run_ok(2, "train %s --set parallel.ep=2 --run-dir %s --resume auto --steps %d", common(), copy, LAST);
    same_steps(whole, copy, 1, LAST, BITS);
}

// One case: `depth` checkpoints, from the last back, have a damaged file each.
static void one_case(int number, const char *dir, const char *whole) {
    static Job j;
    enum { DEPTH = 2 };
    char path[DEPTH][500], said[DEPTH][540], *was[DEPTH];
    size_t n[DEPTH];
    int depth = draw(10) == 0 ? 2 : 1;
    for (int i = 0; i < depth; i++) {
        int step = LAST - i * EVERY, f;
        Damage kind;
        do {
            f = (int)draw(NFILES);
            kind = (Damage)draw(DAMAGES);
            file_of(path[i], dir, step, files[f]);
            was[i] = read_file(path[i], &n[i]);
            if (damage(kind, dir, step, files[f], path[i], was[i], n[i])) break;
            free(was[i]);
        } while (true);
        count[kind]++;
        count_file[f]++;
        snprintf(said[i], sizeof said[i], "step_%08d/%s", step, files[f]);
        print_message("case %d: %s %s\n", number, said[i], damage_names[kind]);
    }
    // Asked for no step beyond what is there, it only says from which checkpoint it would go on.
    int ranks = number % RANKS == 0 ? 2 : 1;
    run(&j, ranks, "train %s --set parallel.ep=%d --run-dir %s --resume auto --steps 1", common(), ranks, dir);
    assert_ends(&j, 0);
    for (int i = 0; i < depth; i++) assert_says(&j, said[i]);
    char chosen[64];
    snprintf(chosen, sizeof chosen, "step_%08d is at step %d", LAST - depth * EVERY, LAST - depth * EVERY);
    assert_says(&j, chosen);
    run(&j, 1, "inspect %s/checkpoints/step_%08d", dir, LAST);
    if (strstr(said[0], "manifest.json") && !has_file(path[0])) {
        assert_true(j.code == 65); // a folder without a manifest is no checkpoint, and that is what it says
    } else {
        assert_ends(&j, 65);
    }
    assert_says(&j, strchr(said[0], '/') + 1);
    if (number % FULL == FULL - 1) train_to_the_end(dir, whole);
    for (int i = 0; i < depth; i++) {
        write_file(path[i], was[i], n[i]);
        free(was[i]);
    }
}

static void test_matrix(void **state) {
    (void)state;
    static Job j;
    const char *dir = path_of("run");
    struct timespec t0, t1;
    run_ok(2, "train %s --set parallel.ep=2 --run-dir %s --steps %d --set checkpoint.every=%d", common(), dir, LAST,
           EVERY);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < ncases; i++) one_case(i, dir, dir);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    run(&j, 1, "inspect %s", dir); // all is as it was
    assert_ends(&j, 0);
    printf("corruption: %d of %d cases detected, named and passed over, seed %llu, %.0f s\n", ncases, ncases,
           (unsigned long long)seed, (double)(t1.tv_sec - t0.tv_sec));
    for (int k = 0; k < DAMAGES; k++) printf("corruption: %4d %s\n", count[k], damage_names[k]);
    for (int f = 0; f < NFILES; f++) printf("corruption: %4d %s\n", count_file[f], files[f]);
}

int main(int argc, char **argv) {
    if (argc > 3) ncases = atoi(argv[3]);
    if (argc > 4) seed = strtoull(argv[4], NULL, 10);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_matrix)};
    drive_init(argc > 3 ? 3 : argc, argv);
    return drive_done(cmocka_run_group_tests_name("corruption", tests, NULL, NULL));
}
