// checkpoint.c - saving: every rank writes its rows, rank 0 describes them, and nothing counts
// before it was read back.
//
// Everything happens in step_%08d.partial, which no reader looks at. It gets its name by one rename
// after all ranks have agreed that every value on disk has the hash it had in memory. Until then,
// and if anything fails, the older checkpoints are untouched.
#include "checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint_dir.h"
#include "checkpoint_table.h"
#include "log.h"
#include "manifest.h"
#include "prof.h"

#define INDEX_NAME "index.h5"

typedef struct ShardInfo {
    Hash128 hash; // of the file's bytes
    int64_t bytes;
} ShardInfo;

// What one rank's rows of a tensor must hash to (manifest.h): all of them, and the table of their blocks.
typedef struct RowsHash {
    Hash128 all, blocks;
} RowsHash;

typedef struct Save {
    const char *dir;
    char name[32], partial[CKDIR_PATH]; // "step_00000500", dir/step_00000500.partial
    Cx *cx;
    CkTable table;
    RowsHash *hashes;  // [world][table.n] of the rows each rank wrote
    ShardInfo *shards; // [world]
    int64_t serial;
} Save;

static void shard_name(char out[64], int rank) {
    snprintf(out, 64, "shard_%05d.h5", rank);
}

// ---- every rank: its rows ----------------------------------------------------------------------

// Rows of a tensor that are hashed, stored and read together: those of a chunk; 0 if that is all of them.
static int64_t block_rows(const CkTensor *t, int64_t rows) {
    int64_t n = tensorfile_chunk_rows(t->is.dtype, t->cols);
    return n < rows ? n : 0;
}

// The table of hashes by which a reader of another layout checks the part that it reads.
static Err write_blocks(TensorFile *f, const CkTensor *t, const void *values, int64_t rows, Hash128 *out) {
    char name[TENSOR_NAME + 16];
    int64_t step = block_rows(t, rows), n = step ? ceil_div(rows, step) : 0, shape[2] = {n, 2};
    size_t row_bytes = (size_t)t->cols * dtype_bytes(t->is.dtype);
    Hash128 *table = NULL;
    if (n == 0) return OK;
    MEM_NEW(table, n);
    for (int64_t b = 0; b < n; b++)
        table[b] = hash128((const char *)values + (size_t)(b * step) * row_bytes,
                           (size_t)min_i64(step, rows - b * step) * row_bytes);
    *out = hash128(table, (size_t)n * sizeof *table);
    snprintf(name, sizeof name, "%s%s", MANIFEST_BLOCKS, t->is.name);
    Err err = tensorfile_write(f, name, DT_U64, 2, shape, table);
    mem_free(table);
    TRY(err);
    return OK;
}

static Err write_rows(Save *s, TensorFile *f, void *stage) {
    Cx *cx = s->cx;
    RowsHash *mine = s->hashes + (int64_t)cx->world->rank * s->table.n;
    for (int64_t i = 0; i < s->table.n; i++) {
        const CkTensor *t = &s->table.t[i];
        int64_t first, rows;
        cktable_rows(t, &cx->mesh, cx->world->rank, &first, &rows);
        if (rows == 0) continue;
        CHECK(t->here.p && t->here.rows == rows && t->here.ld == t->cols, E_INTERNAL,
              "checkpoint: %s has %lld rows here, %lld expected", t->is.name,
              (long long)t->here.rows, (long long)rows);
        size_t bytes = (size_t)(rows * t->cols) * dtype_bytes(t->is.dtype);
        TRY(cx->dev->to_host(stage, t->here.p, bytes));
        mine[i].all = hash128(stage, bytes);
        TRY(write_blocks(f, t, stage, rows, &mine[i].blocks));
        int64_t shape[2] = {rows, t->cols};
        TRY(tensorfile_write(f, t->is.name, t->is.dtype, 2, shape, stage));
        TRY(tensorfile_set_int(f, t->is.name, "first_row", first));
    }
    return OK;
}

// Forgets the pages of a synced file, so that reading it back means reading the disk.
static void drop_pages(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static Err write_shard(Save *s) {
    char path[CKDIR_PATH + 80], name[64];
    int rank = s->cx->world->rank;
    shard_name(name, rank);
    snprintf(path, sizeof path, "%s/%s", s->partial, name);
    void *stage = NULL;
    TensorFile *f = NULL;
    Err err = OK;
    TRY_OR(mem_alloc(&stage, (size_t)s->table.stage_bytes, "checkpoint staging"), done);
    TRY_OR(tensorfile_create(&f, path), done);
    TRY_OR(write_rows(s, f, stage), done);
    TRY_OR(tensorfile_close(&f, true), done);
    drop_pages(path);
    ShardInfo *mine = &s->shards[rank];
    TRY_OR(hash_file(path, &mine->hash, &mine->bytes), done);
done:
    tensorfile_drop(&f);
    mem_free(stage);
    return err;
}

// ---- rank 0: what describes the rows -----------------------------------------------------------

static Err text_file(const Save *s, const char *name, const char *text, size_t n) {
    char path[CKDIR_PATH + 80];
    snprintf(path, sizeof path, "%s/%s", s->partial, name);
    FILE *f = fopen(path, "we");
    CHECK(f, E_OUTPUT, "cannot create %s: %s", path, strerror(errno));
    bool ok = fwrite(text, 1, n, f) == n && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int why = errno;
    if (fclose(f) != 0) ok = false;
    CHECK(ok, E_OUTPUT, "cannot write %s: %s", path, strerror(why));
    return OK;
}

static Err write_config(const Save *s, const Config *c) {
    char *text = NULL;
    TRY(config_dump(c, &text));
    Err err = text_file(s, "config.yaml", text, strlen(text));
    free(text);
    TRY(err);
    return OK;
}

// A tokenizer that went away during the run must not cost the run its checkpoints.
static Err copy_tokenizer(const Save *s, const Config *c, bool *is_there) {
    *is_there = false;
    const char *from = c->data.tokenizer;
    if (!from || !from[0]) return OK;
    FILE *f = fopen(from, "re");
    struct stat st;
    bool ok = f && fstat(fileno(f), &st) == 0 && S_ISREG(st.st_mode);
    char *text = ok ? malloc((size_t)st.st_size + 1) : NULL;
    ok = text && fread(text, 1, (size_t)st.st_size, f) == (size_t)st.st_size;
    if (f) fclose(f);
    Err err = ok ? text_file(s, "tokenizer.json", text, (size_t)st.st_size) : OK;
    free(text);
    TRY(err);
    if (!ok) log_warn("checkpoint without tokenizer: cannot read %s", from);
    *is_there = ok;
    return OK;
}

static int by_first(const void *a, const void *b) {
    const ManifestPiece *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

// The pieces of every tensor, in order of rows. out has room for all; returns their number.
static int64_t list_pieces(const Save *s, ManifestPiece *out) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->table.n; i++) {
        int64_t begin = n;
        for (int r = 0; r < s->cx->mesh.world; r++) {
            int64_t first, rows;
            cktable_rows(&s->table.t[i], &s->cx->mesh, r, &first, &rows);
            if (rows == 0) continue;
            RowsHash h = s->hashes[r * s->table.n + i];
            if (out) out[n] = (ManifestPiece){i, r, first, rows, h.all, block_rows(&s->table.t[i], rows), h.blocks};
            n++;
        }
        if (out) qsort(out + begin, (size_t)(n - begin), sizeof *out, by_first);
    }
    return n;
}

static Err write_index(const Save *s, const Manifest *m, const Config *c) {
    char path[CKDIR_PATH + 80];
    snprintf(path, sizeof path, "%s/%s", s->partial, INDEX_NAME);
    TensorFile *f = NULL;
    TensorPiece *pieces = NULL;
    Err err = OK;
    TRY_OR(mem_alloc((void **)&pieces, (size_t)m->nfiles * sizeof *pieces, "pieces"), done);
    TRY_OR(tensorfile_create(&f, path), done);
    TRY_OR(tensorfile_set_text(f, NULL, "format", "tessera-checkpoint"), done);
    TRY_OR(tensorfile_set_int(f, NULL, "step", m->step), done);
    RecipeText recipe = recipe_text(c);
    TRY_OR(tensorfile_set_text(f, NULL, "precision", recipe.classes), done);
    for (int64_t i = 0, at = 0; i < m->ntensors; i++) {
        const ManifestTensor *t = &m->tensors[i];
        int64_t n = 0;
        for (; at < m->npieces && m->pieces[at].tensor == i; at++) {
            const ManifestPiece *p = &m->pieces[at];
            pieces[n++] = (TensorPiece){m->files[p->file].name, t->name, p->first, p->rows};
        }
        TRY_OR(tensorfile_virtual(f, t->name, t->dtype, t->ndim, t->shape, pieces, n), done);
    }
    TRY_OR(tensorfile_close(&f, true), done);
done:
    tensorfile_drop(&f);
    mem_free(pieces);
    return err;
}

// Name, size and hash of a file that rank 0 wrote, as the next entry of the manifest.
static Err add_file(const Save *s, Manifest *m, const char *name) {
    char path[CKDIR_PATH + 80];
    snprintf(path, sizeof path, "%s/%s", s->partial, name);
    ManifestFile *f = &m->files[m->nfiles++];
    snprintf(f->name, sizeof f->name, "%s", name);
    TRY(hash_file(path, &f->hash, &f->bytes));
    return OK;
}

static void manifest_head(const Save *s, Manifest *m, const CheckpointInfo *info) {
    m->step = info->step;
    m->samples = info->samples;
    m->tokens = info->tokens;
    m->skipped = info->skipped;
    snprintf(m->skipped_ranges, sizeof m->skipped_ranges, "%s", info->skipped_ranges);
    m->serial = s->serial;
    m->world = s->cx->mesh.world;
    m->ep = s->cx->mesh.ep;
    snprintf(m->data_fingerprint, sizeof m->data_fingerprint, "%s", info->data_fingerprint);
    snprintf(m->tokenizer_hash, sizeof m->tokenizer_hash, "%s", info->tokenizer_hash);
    time_t now = time(NULL);
    struct tm utc;
    strftime(m->created, sizeof m->created, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
}

static Err write_descriptions(const Save *s, Manifest *m, const CheckpointInfo *info,
                              const Config *config) {
    char path[CKDIR_PATH + 80];
    bool has_tokenizer;
    manifest_head(s, m, info);
    for (int64_t i = 0; i < s->table.n; i++) m->tensors[i] = s->table.t[i].is;
    list_pieces(s, m->pieces);
    m->nfiles = s->cx->mesh.world; // the shards come first: a piece's file is its rank
    for (int r = 0; r < s->cx->mesh.world; r++) {
        shard_name(m->files[r].name, r);
        m->files[r].bytes = s->shards[r].bytes;
        m->files[r].hash = s->shards[r].hash;
    }
    TRY(write_index(s, m, config));
    TRY(write_config(s, config));
    TRY(copy_tokenizer(s, config, &has_tokenizer));
    TRY(add_file(s, m, INDEX_NAME));
    TRY(add_file(s, m, "config.yaml"));
    if (has_tokenizer) TRY(add_file(s, m, "tokenizer.json"));
    snprintf(path, sizeof path, "%s/%s", s->partial, MANIFEST_NAME);
    return manifest_write(path, m);
}

static Err describe(const Save *s, const CheckpointInfo *info, const Config *config) {
    Manifest *m = NULL;
    Err err = manifest_new(&m, s->cx->mesh.world + 3, s->table.n, list_pieces(s, NULL));
    if (err == OK) err = write_descriptions(s, m, info, config);
    manifest_free(&m);
    return err;
}

// ---- all together ------------------------------------------------------------------------------

// rank 0: the folder, without what earlier runs left, and the serial number of this save.
static Err prepare(Save *s) {
    CkEntry *list = NULL;
    int n = 0;
    TRY(ckdir_make(s->dir));
    ckdir_clean(s->dir);
    TRY(ckdir_list(s->dir, &list, &n));
    for (int i = 0; i < n; i++) s->serial = max_i64(s->serial, list[i].serial);
    s->serial++;
    free(list);
    CHECK(mkdir(s->partial, 0777) == 0, E_OUTPUT, "cannot create %s: %s", s->partial,
          strerror(errno));
    return OK;
}

// Reads back a share of what was written: that of the next rank, so that caches of this node do not
// answer.
static Err read_back(const Save *s) {
    Manifest *m = NULL;
    Comm *w = s->cx->world;
    Err err = OK;
    TRY_OR(manifest_read(&m, s->partial), done);
    if (w->rank == 0) TRY_OR(manifest_sizes(m, s->partial), done);
    TRY_OR(manifest_check_pieces(m, s->partial, (w->rank + 1) % w->nranks, w->nranks), done);
done:
    manifest_free(&m);
    return err;
}

// The hashes and file sizes of all ranks, on all ranks.
static Err gather(Save *s) {
    Comm *w = s->cx->world;
    int64_t n = s->table.n;
    RowsHash *mine = NULL;
    ShardInfo shard = s->shards[w->rank];
    MEM_NEW(mine, n);
    memcpy(mine, s->hashes + w->rank * n, (size_t)n * sizeof *mine);
    Err err = w->all_gather(w, s->hashes, mine, (size_t)n * sizeof *mine);
    mem_free(mine);
    TRY(err);
    TRY(w->all_gather(w, s->shards, &shard, sizeof shard));
    return OK;
}

static Err save_steps(Save *s, const CheckpointInfo *info, const Config *config) {
    Comm *w = s->cx->world;
    bool is_first = w->rank == 0;
    TRY(comm_agree(w, is_first ? prepare(s) : OK));
    TRY(comm_agree(w, write_shard(s)));
    TRY(gather(s));
    TRY(comm_agree(w, is_first ? describe(s, info, config) : OK));
    TRY(comm_agree(w, read_back(s)));
    TRY(comm_agree(w, is_first ? ckdir_commit(s->dir, s->name) : OK));
    return OK;
}

static Err save_all(Save *s, const Params *p, const CheckpointInfo *info, const Config *config) {
    bool has_state = p->n > 0 && p->p[0].m.p;
    TRY(cktable_build(&s->table, p, s->cx->calibration, has_state));
    MEM_NEW(s->hashes, s->cx->mesh.world * s->table.n);
    MEM_NEW(s->shards, s->cx->mesh.world);
    Err err = save_steps(s, info, config);
    if (err == E_INPUT) { // reading what was just written: the fault is the output's
        err = fail_at(E_OUTPUT, __FILE__, __LINE__,
                      "the checkpoint did not read back as written: %s", fail_message());
    }
    if (err == OK || s->cx->world->rank != 0) return err;
    char why[1024];
    snprintf(why, sizeof why, "%s", fail_message());
    if (ckdir_remove(s->partial) != OK) log_warn("%s", fail_message());
    return fail_at(err, __FILE__, __LINE__, "%s", why);
}

Err checkpoint_save(const char *dir, const Params *p, Cx *cx, const CheckpointInfo *info,
                    const Config *config, int64_t keep_last, int64_t keep_every) {
    Save s = {.dir = dir, .cx = cx};
    snprintf(s.name, sizeof s.name, "step_%08lld", (long long)info->step);
    CHECK(strlen(dir) < CKDIR_PATH - 64, E_OUTPUT, "path too long: %s", dir);
    snprintf(s.partial, sizeof s.partial, "%s/%s.partial", dir, s.name);
    prof_enter(PROF_CHECKPOINT);
    Err err = save_all(&s, p, info, config);
    if (err == OK && cx->world->rank == 0) ckdir_prune(dir, keep_last, keep_every);
    prof_leave();
    mem_free(s.hashes);
    mem_free(s.shards);
    cktable_free(&s.table);
    return err;
}
