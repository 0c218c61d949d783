// test_reshape.c - the reshape matrix: what any number of ranks wrote with any expert-parallel size, any other number
// loads with any other, and every logical tensor, moment, bias, calibration and counter is the same to the bit.
//
// usage, under mpirun: test_reshape save|load FOLDER. `save` writes one checkpoint for each parallel.ep that divides
// the ranks; `load` loads every one in the folder, for each of its own. tests/reshape runs worlds against worlds.
#include <dirent.h>
#include <unistd.h>

#include "checkpoint_fixture.h"
#include "log.h"

enum { EXPERTS = 8, HIDDEN = 512 }; // tensors of several blocks, which readers of other layouts share

static Boot boot;
static int64_t nsaved, nloaded, nwrong;

static Err open_layout(Fixture *f, int ep) {
    fixture_experts = EXPERTS;
    fixture_more = "fp8.scaling=static";
    return fixture_open(f, &boot, ep, "fp8", HIDDEN, "");
}

// The calibration, filled or counted where it is not what it should be.
static int64_t calibration_all(Fixture *f, bool is_fill) {
    Calibration *c = f->cx.calibration;
    int64_t wrong = 0;
    for (int64_t i = 0; i < c->nblocks * SITE_COUNT; i++) {
        float want = fixture_value("amax", 0, i);
        if (is_fill) c->amax[i] = want;
        wrong += c->amax[i] != want;
    }
    if (is_fill) c->steps = 7;
    return wrong + (c->steps != 7);
}

static CheckpointInfo info_of(void) {
    CheckpointInfo i = fixture_info(640);
    i.seed = 11;
    i.read = (ReadProof){i.samples, 0xFEDCBA9876543210ull};
    return i;
}

static int64_t wrong_info(const CheckpointInfo *a) {
    CheckpointInfo b = info_of();
    return (a->step != b.step) + (a->samples != b.samples) + (a->tokens != b.tokens) + (a->seed != b.seed) +
           (a->read.samples != b.read.samples) + (a->read.hash != b.read.hash) +
           (strcmp(a->data_fingerprint, b.data_fingerprint) != 0) + (strcmp(a->tokenizer_hash, b.tokenizer_hash) != 0);
}

static Err save(const char *folder, int ep) {
    Fixture f;
    char dir[400];
    snprintf(dir, sizeof dir, "%s/world%d_ep%d", folder, boot.nranks, ep);
    CheckpointInfo info = info_of();
    TRY(open_layout(&f, ep));
    fixture_all(&f, true, DT_BF16, true);
    calibration_all(&f, true);
    Err err = checkpoint_save(dir, f.params, &f.cx, &info, f.config, 1, 0);
    fixture_close(&f);
    nsaved++;
    return err;
}

static Err load(const char *folder, const char *name, int ep) {
    Fixture f;
    CheckpointInfo info;
    char dir[700], found[800];
    bool is_found = false;
    snprintf(dir, sizeof dir, "%s/%s", folder, name);
    TRY(open_layout(&f, ep));
    fixture_spoil(&f);
    Err err = checkpoint_find(found, sizeof found, &is_found, dir, -1, &f.cx);
    if (err == OK) err = checkpoint_read_info(found, &info);
    if (err == OK) err = checkpoint_load(found, f.params, &f.cx, true);
    int64_t wrong = err != OK;
    if (err == OK) wrong = fixture_all(&f, false, DT_BF16, true) + calibration_all(&f, false) + wrong_info(&info);
    fixture_close(&f);
    TRY(err);
    TRY(comm_sum_i64(boot.world, &wrong, 1));
    if (wrong && boot.rank == 0)
        fprintf(stderr, "FAILED: %s -> world %d, ep %d: %lld values differ\n", name, boot.nranks, ep, (long long)wrong);
    nwrong += wrong != 0;
    nloaded++;
    return OK;
}

// The checkpoints in the folder, as rank 0 sees them.
static int list(const char *folder, char names[64][64]) {
    int n = 0;
    DIR *d = boot.rank == 0 ? opendir(folder) : NULL;
    for (struct dirent *e; d && n < 64 && (e = readdir(d));) {
        if (strncmp(e->d_name, "world", 5) == 0) snprintf(names[n++], 64, "%.63s", e->d_name);
    }
    if (d) closedir(d);
    int64_t found = n;
    if (comm_max_i64(boot.world, &found, 1) != OK || boot.world->broadcast(boot.world, names, 64 * 64, 0) != OK)
        return 0;
    return (int)found;
}

static Err all(bool is_save, const char *folder) {
    char names[64][64] = {{0}};
    int n = is_save ? 0 : list(folder, names);
    for (int ep = 1; ep <= EXPERTS; ep *= 2) {
        if (boot.nranks % ep != 0) continue;
        if (is_save) TRY(save(folder, ep));
        for (int i = 0; i < n; i++) TRY(load(folder, names[i], ep));
    }
    return OK;
}

int main(int argc, char **argv) {
    if (argc != 3 || boot_init(&boot) != OK) return 2;
    bool is_save = strcmp(argv[1], "save") == 0;
    log_init(boot.rank == 0 ? 1 : boot.rank, boot.nranks); // what a load says is not wanted here
    Err err = all(is_save, argv[2]);
    if (err != OK) log_error();
    if (boot.rank == 0)
        printf("%s: world %d: %lld checkpoints, %lld wrong\n", is_save ? "saved" : "loaded", boot.nranks,
               (long long)(is_save ? nsaved : nloaded), (long long)nwrong);
    boot_finish(&boot);
    return err != OK || nwrong || (!is_save && nloaded == 0);
}
