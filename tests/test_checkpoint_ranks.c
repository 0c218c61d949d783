// test_checkpoint_ranks.c - checkpoints across layouts, on real ranks: what any layout wrote, any
// other loads.
//
// Run with mpirun -n 1, 2, 4; every world tries every expert-parallel size that divides it and the
// four experts, and one rank alone. Failures of one rank must reach all.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_fixture.h"
#include "log.h"
#include "rank_tests.h"
#include "solo.h"

// Wide enough that one rank's largest tensors have several blocks, which readers of other layouts share.
#define HIDDEN 512

static char dir[256];

// All ranks must agree that it holds; rank 0 reports.
static void expect(bool is_true, const char *what, int a, int b) {
    int64_t bad = !is_true;
    Err err = comm_sum_i64(boot.world, &bad, 1);
    if (err == OK && bad == 0) return;
    failures++;
    if (boot.rank == 0)
        fprintf(stderr, "FAILED: %s (%d, %d): on %lld ranks: %s\n", what, a, b, (long long)bad,
                fail_message());
}

static Err open_layout(Fixture *f, int ep) {
    return fixture_open(f, &boot, ep, "fp8", HIDDEN, "");
}

// One rank alone, as a run without launcher.
static Err open_alone(Fixture *f, Comm *self) {
    Boot alone = {.nranks = 1, .local_nranks = 1, .world = self};
    return fixture_open(f, &alone, 1, "fp8", HIDDEN, "");
}

static void save_layout(int ep, int64_t step) {
    Fixture f;
    Err err = open_layout(&f, ep);
    fixture_all(&f, true, DT_BF16, true);
    CheckpointInfo info = fixture_info(step);
    if (err == OK) err = checkpoint_save(dir, f.params, &f.cx, &info, f.config, 3, 0);
    expect(err == OK, "save", ep, (int)step);
    fixture_close(&f);
}

static void load_layout(int ep, int64_t step) {
    Fixture f;
    char path[512];
    bool found = false;
    Err err = open_layout(&f, ep);
    fixture_spoil(&f);
    if (err == OK) err = checkpoint_find(path, sizeof path, &found, dir, step, &f.cx);
    expect(err == OK && found, "find", ep, (int)step);
    if (err == OK) err = checkpoint_load(path, f.params, &f.cx, true);
    expect(err == OK, "load", ep, (int)step);
    expect(fixture_all(&f, false, DT_BF16, true) == 0, "values", ep, (int)step);
    fixture_close(&f);
}

// Rank 0 alone saves or loads while the others wait.
static void alone(bool is_save, int64_t step) {
    Err err = OK;
    int64_t wrong = 0;
    if (boot.rank == 0) {
        Comm *self = NULL;
        Fixture f;
        char path[512];
        err = comm_self(&self, "world");
        if (err == OK) err = open_alone(&f, self);
        fixture_all(&f, true, DT_BF16, true);
        CheckpointInfo info = fixture_info(step);
        if (is_save) {
            if (err == OK) err = checkpoint_save(dir, f.params, &f.cx, &info, f.config, 3, 0);
        } else {
            fixture_spoil(&f);
            snprintf(path, sizeof path, "%s/step_%08lld", dir, (long long)step);
            if (err == OK) err = checkpoint_load(path, f.params, &f.cx, true);
            wrong = fixture_all(&f, false, DT_BF16, true);
        }
        fixture_close(&f);
        comm_destroy(&self);
    }
    expect(err == OK && wrong == 0, is_save ? "save alone" : "load alone", (int)step, (int)wrong);
}

// Rows of an entry in strips of `step`, which end where no piece and no block ends; returns the wrong elements.
static int64_t check_strips(const Weights *from, const Param *p, int64_t step) {
    int64_t wrong = 0, rows = p->nmat_all * p->rows;
    float *x = malloc((size_t)(step * p->cols) * sizeof *x);
    for (int64_t row = 0; row < rows; row += step) {
        int64_t n = min_i64(step, rows - row);
        if (from->rows(from->of, p, row, n, x) != OK) wrong++;
        for (int64_t i = 0; i < n * p->cols; i++) wrong += x[i] != fixture_value(p->name, 0, row * p->cols + i);
    }
    free(x);
    return wrong;
}

// One process reads the weights of all ranks strip by strip, with no memory for the model.
static void strips_of_all(int64_t step) {
    Err err = OK;
    int64_t wrong = 0;
    if (boot.rank == 0) {
        Config *c = NULL;
        Solo solo = {0};
        CkReader *r = NULL;
        char path[512];
        float bias[8];
        snprintf(path, sizeof path, "%s/step_%08lld", dir, (long long)step);
        err = fixture_config(&c, "fp8", HIDDEN, "");
        if (err == OK) err = solo_table(&solo, c, 1);
        if (err == OK) err = checkpoint_open(&r, path, solo.table, &solo.cx);
        Weights from = checkpoint_weights(r);
        for (int i = 0; err == OK && i < solo.table->n; i++) wrong += check_strips(&from, &solo.table->p[i], 37 + i);
        for (int64_t b = 0; err == OK && b < solo.table->nblocks; b++) {
            if (!solo.table->bias[b]) continue;
            err = from.bias(from.of, b, bias);
            for (int64_t e = 0; e < solo.table->E; e++) wrong += bias[e] != fixture_value("bias", (int)b, e);
        }
        checkpoint_close(&r);
        solo_close(&solo);
        config_free(c);
    }
    expect(err == OK && wrong == 0, "strips", (int)step, (int)wrong);
}

// The last rank has no room: every rank gets the same code, nothing of the save stays, the older
// one is valid.
static void no_room_on_last(int ep) {
    Fixture f;
    Err err = open_layout(&f, ep);
    fixture_all(&f, true, DT_BF16, true);
    CheckpointInfo info = fixture_info(900);
    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    tight = old;
    tight.rlim_cur = 20000;
    signal(SIGXFSZ, SIG_IGN);
    if (boot.rank == boot.nranks - 1) setrlimit(RLIMIT_FSIZE, &tight);
    if (err == OK) err = checkpoint_save(dir, f.params, &f.cx, &info, f.config, 3, 0);
    setrlimit(RLIMIT_FSIZE, &old);
    char shard[32], path[300];
    snprintf(shard, sizeof shard, "shard_%05d.h5", boot.nranks - 1);
    expect(err == E_OUTPUT && strstr(fail_message(), shard),
           "no room: E_OUTPUT naming the shard everywhere", ep, (int)err);
    struct stat st;
    snprintf(path, sizeof path, "%s/step_00000900.partial", dir);
    expect(stat(path, &st) != 0, "no room: nothing stays", ep, 0);
    fail_clear();
    fixture_close(&f);
}

// A shard is damaged between finding and loading: every rank refuses, whoever wrote it.
static void damaged_shard(int ep, int64_t step, int number) {
    Fixture f;
    Err err = open_layout(&f, ep);
    char path[300], shard[400];
    snprintf(path, sizeof path, "%s/step_%08lld", dir, (long long)step);
    snprintf(shard, sizeof shard, "%s/shard_%05d.h5", path, number);
    if (boot.rank == 0) {
        struct stat st;
        FILE *file = stat(shard, &st) == 0 ? fopen(shard, "r+") : NULL;
        for (int k = 1; file && k < 16; k++) {
            fseek(file, (long)(st.st_size * k / 16), SEEK_SET);
            fputs("damage", file);
        }
        if (file) fclose(file);
    }
    if (err == OK) err = boot.world->barrier(boot.world);
    if (err == OK) err = checkpoint_load(path, f.params, &f.cx, true);
    expect(err == E_INPUT && strstr(fail_message(), "shard_"), "damage is refused everywhere", ep,
           (int)err);
    fail_clear();
    fixture_close(&f);
}

static int sizes[3], nsizes; // expert-parallel sizes that fit this world

static void test_from_one_rank(void) {
    alone(true, 100);
    for (int i = 0; i < nsizes; i++) load_layout(sizes[i], 100);
}

static void test_every_layout(void) {
    for (int i = 0; i < nsizes; i++) {
        save_layout(sizes[i], 200 + i);
        for (int j = 0; j < nsizes; j++) load_layout(sizes[j], 200 + i);
        alone(false, 200 + i);
        strips_of_all(200 + i);
    }
}

static void test_no_room(void) {
    no_room_on_last(sizes[nsizes - 1]);
    load_layout(sizes[0], 200);
}

static void test_damage(void) {
    damaged_shard(sizes[nsizes - 1], 200 + nsizes - 1, boot.nranks - 1);
    alone(true, 700);
    damaged_shard(sizes[0], 700, 0);
}

static const RankTest tests[] = {{"test_from_one_rank", test_from_one_rank},
                                 {"test_every_layout", test_every_layout},
                                 {"test_no_room", test_no_room},
                                 {"test_damage", test_damage}};

int main(void) {
    if (boot_init(&boot) != OK) return 1;
    bool is_first = boot.rank == 0;
    log_init(boot.rank, boot.nranks);
    strcpy(dir, "/tmp/test_checkpoint_ranks_XXXXXX");
    if (is_first && !mkdtemp(dir)) boot_abort(&boot, 1);
    if (boot.world->broadcast(boot.world, dir, sizeof dir, 0) != OK) return 1;
    for (int ep = 1; ep <= 4; ep *= 2) {
        if (boot.nranks % ep == 0) sizes[nsizes++] = ep;
    }
    int failed = rank_tests_run(tests, sizeof tests / sizeof *tests);
    if (is_first) {
        char command[300];
        snprintf(command, sizeof command, "rm -rf %s", dir);
        if (system(command) != 0) failed++;
    }
    boot_finish(&boot);
    return failed ? 1 : 0;
}
