// checkpoint.c - saving: every rank writes its rows, rank 0 describes them, and nothing counts
// before it was read back.
//
// Everything happens in step_%08d.partial, which no reader looks at. It gets its name by one rename
// after all ranks have agreed that every value on disk has the hash it had in memory. Until then,
// and if anything fails, the older checkpoints are untouched.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "checkpoint_dir.h"
#include "checkpoint_table.h"
#include "checkpoint_write.h"
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

struct CkWrite {
    const char *dir;
    Cx *cx;
    const Config *config;
    int64_t keep_last, keep_every;
    CkTable table;
    RowsHash *hashes;  // [world][table.n] of the rows each rank wrote
    ShardInfo *shards; // [world]
    char *snapshot;    // own rows of all tensors, NULL: they are read where they are
    int64_t snapshot_bytes;
    const Weights *from; // not in memory at all: here they are; NULL: in memory
    bool is_refused;     // it did not give them
    Carried carried;     // from it
    // of the save at hand
    char name[32], partial[CKDIR_PATH]; // "step_00000500", dir/step_00000500.partial
    CheckpointInfo info;
    InjectSave fault;
    int64_t serial;
    Manifest *m; // what must be on disk, from ckwrite_share on
};

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
static Err write_blocks(TensorFile *f, const CkTensor *t, const Hash128 *table, int64_t n, Hash128 *out) {
    char name[TENSOR_NAME + 16];
    int64_t shape[2] = {n, 2};
    if (n == 0) return OK;
    *out = hash128(table, (size_t)n * sizeof *table);
    snprintf(name, sizeof name, "%s%s", MANIFEST_BLOCKS, t->is.name);
    return tensorfile_write(f, name, DT_U64, 2, shape, table);
}

// The bytes of this rank's rows of tensor i; *at: where they lie in the snapshot, moved on.
static size_t own_bytes(const CkWrite *s, int64_t i, int64_t *first, int64_t *rows) {
    const CkTensor *t = &s->table.t[i];
    cktable_rows(t, &s->cx->mesh, s->cx->world->rank, first, rows);
    return (size_t)(*rows * t->cols) * dtype_bytes(t->is.dtype);
}

static int64_t padded(size_t bytes) {
    return ceil_div((int64_t)bytes, ARENA_ALIGN) * ARENA_ALIGN;
}

static Err take_snapshot(CkWrite *s) {
    int64_t first, rows, at = 0;
    for (int64_t i = 0; s->snapshot && i < s->table.n; i++) {
        size_t bytes = own_bytes(s, i, &first, &rows);
        if (bytes > 0) TRY(s->cx->dev->to_host(s->snapshot + at, s->table.t[i].here.p, bytes));
        at += padded(bytes);
    }
    return OK;
}

// Rows that are hashed and written at a time.
static int64_t step_rows(const CkTensor *t, int64_t rows) {
    return strip_rows(rows, t->cols, tensorfile_chunk_rows(t->is.dtype, t->cols));
}

static Err make_stage(const CkWrite *s, void **stage) {
    int64_t first, rows, bytes = 1; // a rank may have nothing
    for (int64_t i = 0; i < s->table.n; i++) {
        const CkTensor *t = &s->table.t[i];
        own_bytes(s, i, &first, &rows);
        bytes = max_i64(bytes, step_rows(t, rows) * t->cols * (int64_t)dtype_bytes(t->is.dtype));
    }
    return mem_alloc(stage, (size_t)bytes, "checkpoint staging");
}

// Rows [at, at + n) of this rank's rows of a tensor, from where they are.
static Err take_rows(CkWrite *s, const CkTensor *t, int64_t at, int64_t n, void *out) {
    int64_t row_bytes = t->cols * (int64_t)dtype_bytes(t->is.dtype);
    const char *here = (const char *)t->here.p + at * row_bytes;
    if (!s->from) return s->cx->dev->to_host(out, here, (size_t)(n * row_bytes));
    CHECK(t->param || (t->block >= 0 && n == t->here.rows), E_INTERNAL, "checkpoint: no source of %s", t->is.name);
    Err err = t->param ? s->from->rows(s->from->of, t->param, at, n, out) : s->from->bias(s->from->of, t->block, out);
    s->is_refused = err != OK;
    if (err == OK) carried_add(&s->carried, (double)(n * row_bytes));
    return err;
}

// All of this rank's rows of a tensor, hashed in memory. kept: where they are in the snapshot; NULL: by way of `stage`.
static Err write_tensor(CkWrite *s, TensorFile *f, int64_t i, const char *kept, void *stage) {
    const CkTensor *t = &s->table.t[i];
    RowsHash *out = s->hashes + (int64_t)s->cx->world->rank * s->table.n + i;
    int64_t first, rows, row_bytes = t->cols * (int64_t)dtype_bytes(t->is.dtype);
    own_bytes(s, i, &first, &rows);
    int64_t step = step_rows(t, rows), block = block_rows(t, rows), n = block ? ceil_div(rows, block) : 0;
    int64_t shape[2] = {rows, t->cols};
    HashStream *all = NULL;
    Hash128 *blocks = NULL;
    Err err = OK;
    TRY_OR(hash_stream_new(&all), done);
    TRY_OR(mem_alloc((void **)&blocks, (size_t)(n + 1) * sizeof *blocks, "hashes"), done);
    TRY_OR(tensorfile_declare(f, t->is.name, t->is.dtype, 2, shape), done);
    for (int64_t at = 0; at < rows; at += step) {
        int64_t here = min_i64(step, rows - at);
        const char *values = kept ? kept + at * row_bytes : stage;
        if (!kept) TRY_OR(take_rows(s, t, at, here, stage), done);
        hash_stream_add(all, values, (size_t)(here * row_bytes));
        for (int64_t r = 0; block && r < here; r += block)
            blocks[(at + r) / block] = hash128(values + r * row_bytes, (size_t)(min_i64(block, here - r) * row_bytes));
        TRY_OR(tensorfile_write_rows(f, t->is.name, at, here, values), done);
    }
    out->all = hash_stream_end(all);
    TRY_OR(tensorfile_set_int(f, t->is.name, "first_row", first), done);
    TRY_OR(write_blocks(f, t, blocks, n, &out->blocks), done);
done:
    hash_stream_free(&all);
    mem_free(blocks);
    return err;
}

static Err write_rows(CkWrite *s, TensorFile *f, const char *path, void *stage) {
    int64_t first, rows, at = 0;
    for (int64_t i = 0; i < s->table.n; i++) {
        const CkTensor *t = &s->table.t[i];
        size_t bytes = own_bytes(s, i, &first, &rows);
        if (rows == 0) continue;
        CHECK(t->here.p && t->here.rows == rows && t->here.ld == t->cols, E_INTERNAL,
              "checkpoint: %s has %lld rows here, %lld expected", t->is.name,
              (long long)t->here.rows, (long long)rows);
        CHECK(!s->fault.is_disk_full || i < s->table.n / 2, E_OUTPUT, "%s: cannot write tensor %s: %s (injected)", path,
              t->is.name, strerror(ENOSPC));
        TRY(write_tensor(s, f, i, s->snapshot ? s->snapshot + at : NULL, stage));
        at += padded(bytes);
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

// For --inject corrupt: one byte on disk is not what was written.
static Err flip_byte(const char *path, int64_t at) {
    unsigned char c = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    bool ok = fd >= 0 && pread(fd, &c, 1, at) == 1;
    c ^= 0x10;
    ok = ok && pwrite(fd, &c, 1, at) == 1 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    CHECK(ok, E_OUTPUT, "cannot change %s: %s", path, strerror(errno));
    return OK;
}

Err ckwrite_shard(CkWrite *s) {
    char path[CKDIR_PATH + 80], name[64];
    int rank = s->cx->world->rank;
    shard_name(name, rank);
    snprintf(path, sizeof path, "%s/%s", s->partial, name);
    void *stage = NULL;
    TensorFile *f = NULL;
    Err err = OK;
    if (!s->snapshot) TRY_OR(make_stage(s, &stage), done);
    TRY_OR(tensorfile_create(&f, path), done);
    TRY_OR(write_rows(s, f, path, stage), done);
    TRY_OR(tensorfile_close(&f, true), done);
    // What the system was given, still in its memory: whoever reads it back compares that with the disk.
    ShardInfo *mine = &s->shards[rank];
    TRY_OR(hash_file(path, &mine->hash, &mine->bytes), done);
    if (s->fault.is_corrupt) TRY_OR(flip_byte(path, mine->bytes / 2), done);
    drop_pages(path);
done:
    tensorfile_drop(&f);
    mem_free(stage);
    return err;
}

// ---- rank 0: what describes the rows -----------------------------------------------------------

static Err text_file(const CkWrite *s, const char *name, const char *text, size_t n) {
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

static Err write_config(const CkWrite *s, const Config *c) {
    char *text = NULL;
    TRY(config_dump(c, &text));
    Err err = text_file(s, "config.yaml", text, strlen(text));
    free(text);
    TRY(err);
    return OK;
}

// A tokenizer that went away during the run must not cost the run its checkpoints.
static Err copy_tokenizer(const CkWrite *s, const Config *c, bool *is_there) {
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
static int64_t list_pieces(const CkWrite *s, ManifestPiece *out) {
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

static Err write_index(const CkWrite *s, const Manifest *m, const Config *c) {
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
static Err add_file(const CkWrite *s, Manifest *m, const char *name) {
    char path[CKDIR_PATH + 80];
    snprintf(path, sizeof path, "%s/%s", s->partial, name);
    ManifestFile *f = &m->files[m->nfiles++];
    snprintf(f->name, sizeof f->name, "%s", name);
    TRY(hash_file(path, &f->hash, &f->bytes));
    return OK;
}

static void manifest_head(const CkWrite *s, Manifest *m) {
    const CheckpointInfo *info = &s->info;
    m->step = info->step;
    m->samples = info->samples;
    m->tokens = info->tokens;
    m->skipped = info->skipped;
    snprintf(m->skipped_ranges, sizeof m->skipped_ranges, "%s", info->skipped_ranges);
    m->seed = info->seed;
    m->read_samples = info->read.samples;
    m->read_hash = info->read.hash;
    m->serial = s->serial;
    m->world = s->cx->mesh.world;
    m->ep = s->cx->mesh.ep;
    snprintf(m->data_fingerprint, sizeof m->data_fingerprint, "%s", info->data_fingerprint);
    snprintf(m->tokenizer_hash, sizeof m->tokenizer_hash, "%s", info->tokenizer_hash);
    time_t now = time(NULL);
    struct tm utc;
    strftime(m->created, sizeof m->created, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
}

// The files that only rank 0 writes, and the manifest, read back as every later reader will.
static Err describe(const CkWrite *s) {
    char path[CKDIR_PATH + 80];
    bool has_tokenizer;
    Manifest *m = s->m, *again = NULL;
    TRY(write_index(s, m, s->config));
    TRY(write_config(s, s->config));
    TRY(copy_tokenizer(s, s->config, &has_tokenizer));
    TRY(add_file(s, m, INDEX_NAME));
    TRY(add_file(s, m, "config.yaml"));
    if (has_tokenizer) TRY(add_file(s, m, "tokenizer.json"));
    snprintf(path, sizeof path, "%s/%s", s->partial, MANIFEST_NAME);
    TRY(manifest_write(path, m));
    drop_pages(path);
    TRY(manifest_read(&again, s->partial));
    Err err = manifest_sizes(again, s->partial);
    for (int64_t i = s->cx->mesh.world; i < again->nfiles && err == OK; i++)
        err = manifest_check_file(again, s->partial, i);
    manifest_free(&again);
    TRY(err);
    return OK;
}

// ---- the parts of a save -----------------------------------------------------------------------

Err ckwrite_create(CkWrite **out, const char *dir, const Params *p, Cx *cx, const Config *config, int64_t keep_last,
                   int64_t keep_every, bool has_snapshot) {
    *out = NULL;
    CkWrite *s = NULL;
    CHECK(strlen(dir) < CKDIR_PATH - 64, E_OUTPUT, "path too long: %s", dir);
    MEM_NEW(s, 1);
    *out = s;
    s->dir = dir;
    s->cx = cx;
    s->config = config;
    s->keep_last = keep_last;
    s->keep_every = keep_every;
    TRY(cktable_build(&s->table, p, cx->calibration, p->n > 0 && p->p[0].m.p));
    MEM_NEW(s->hashes, cx->mesh.world * s->table.n);
    MEM_NEW(s->shards, cx->mesh.world);
    int64_t first, rows;
    for (int64_t i = 0; i < s->table.n; i++) s->snapshot_bytes += padded(own_bytes(s, i, &first, &rows));
    if (!has_snapshot) return OK;
    return mem_alloc((void **)&s->snapshot, (size_t)max_i64(s->snapshot_bytes, 1), "checkpoint snapshot");
}

void ckwrite_free(CkWrite **w) {
    CkWrite *s = *w;
    if (!s) return;
    manifest_free(&s->m);
    cktable_free(&s->table);
    mem_free(s->hashes);
    mem_free(s->shards);
    mem_free(s->snapshot);
    mem_free(s);
    *w = NULL;
}

// rank 0: the folder, without what earlier runs left, and the serial number of this save.
static Err prepare(CkWrite *s) {
    CkEntry *list = NULL;
    int n = 0;
    TRY(ckdir_make(s->dir));
    ckdir_clean(s->dir);
    TRY(ckdir_list(s->dir, &list, &n));
    s->serial = 0;
    for (int i = 0; i < n; i++) s->serial = max_i64(s->serial, list[i].serial);
    s->serial++;
    free(list);
    CHECK(mkdir(s->partial, 0777) == 0, E_OUTPUT, "cannot create %s: %s", s->partial,
          strerror(errno));
    return OK;
}

Err ckwrite_begin(CkWrite *s, const CheckpointInfo *info, InjectSave fault) {
    Comm *w = s->cx->world;
    s->info = *info;
    s->fault = fault;
    snprintf(s->name, sizeof s->name, "step_%08lld", (long long)info->step);
    snprintf(s->partial, sizeof s->partial, "%s/%s.partial", s->dir, s->name);
    manifest_free(&s->m);
    Err err = w->rank == 0 ? prepare(s) : OK;
    if (err == OK) err = take_snapshot(s);
    return comm_agree(w, err);
}

// The hashes and file sizes of all ranks, on all ranks.
static Err gather(CkWrite *s) {
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

Err ckwrite_share(CkWrite *s) {
    int world = s->cx->mesh.world;
    TRY(gather(s));
    TRY(manifest_new(&s->m, world + 3, s->table.n, list_pieces(s, NULL)));
    Manifest *m = s->m;
    manifest_head(s, m);
    for (int64_t i = 0; i < s->table.n; i++) m->tensors[i] = s->table.t[i].is;
    list_pieces(s, m->pieces);
    m->nfiles = world; // the shards come first: a piece's file is its rank
    for (int r = 0; r < world; r++) {
        shard_name(m->files[r].name, r);
        m->files[r].bytes = s->shards[r].bytes;
        m->files[r].hash = s->shards[r].hash;
    }
    return OK;
}

// The shard of the next rank, so that caches of this node do not answer: its bytes, then its values.
Err ckwrite_check(CkWrite *s) {
    Comm *w = s->cx->world;
    int next = (w->rank + 1) % w->nranks;
    if (w->rank == 0) TRY(describe(s));
    TRY(manifest_check_pieces(s->m, s->partial, next, w->nranks)); // first: it names the tensor
    TRY(manifest_check_file(s->m, s->partial, next));
    return OK;
}

Err ckwrite_commit(CkWrite *s) {
    if (s->cx->world->rank != 0) return OK;
    TRY(ckdir_commit(s->dir, s->name));
    ckdir_prune(s->dir, s->keep_last, s->keep_every);
    return OK;
}

Err ckwrite_abandon(CkWrite *s, Err err) {
    char why[1024], room[CKDIR_PATH + 128] = "";
    struct statvfs disk;
    snprintf(why, sizeof why, "%s", fail_message());
    // Reading what was just written: the fault is the output's.
    bool is_read = err == E_INPUT && !s->is_refused, is_output = is_read || err == E_OUTPUT;
    if (is_output && statvfs(s->dir, &disk) == 0 && disk.f_bavail < disk.f_blocks / 20)
        snprintf(room, sizeof room, " (%s of %s are free on the disk of %s)",
                 text_bytes((double)disk.f_bavail * (double)disk.f_frsize).s,
                 text_bytes((double)disk.f_blocks * (double)disk.f_frsize).s, s->dir);
    if (s->cx->world->rank == 0 && ckdir_remove(s->partial) != OK) log_warn("%s", fail_message());
    return fail_at(is_read ? E_OUTPUT : err, __FILE__, __LINE__, "%s%s%s",
                   is_read ? "the checkpoint did not read back as written: " : "", why, room);
}

int64_t ckwrite_bytes(const CkWrite *s) {
    int64_t bytes = 0;
    for (int64_t i = 0; s->m && i < s->m->nfiles; i++) bytes += s->m->files[i].bytes;
    return bytes;
}

int64_t ckwrite_snapshot_bytes(const CkWrite *s) {
    return s->snapshot ? s->snapshot_bytes : 0;
}

// ---- all of it at once -------------------------------------------------------------------------

static Err save_parts(CkWrite *s, const CheckpointInfo *info) {
    Comm *w = s->cx->world;
    TRY(ckwrite_begin(s, info, (InjectSave){false, false}));
    TRY(comm_agree(w, ckwrite_shard(s)));
    TRY(ckwrite_share(s));
    if (s->from && s->carried.said > s->carried.start) log_line("all is written; now it is read back and compared");
    TRY(comm_agree(w, ckwrite_check(s)));
    return comm_agree(w, ckwrite_commit(s));
}

static Err save_all(const char *dir, const Params *p, const Weights *from, Cx *cx, const CheckpointInfo *info,
                    const Config *config, int64_t keep_last, int64_t keep_every) {
    CkWrite *s = NULL;
    prof_enter(PROF_CHECKPOINT);
    Err err = comm_agree(cx->world, ckwrite_create(&s, dir, p, cx, config, keep_last, keep_every, false));
    if (err == OK) {
        s->from = from;
        s->carried = carried_begin("imported", (double)s->snapshot_bytes);
        err = save_parts(s, info);
        if (err != OK) err = ckwrite_abandon(s, err);
    }
    prof_leave();
    ckwrite_free(&s);
    return err;
}

Err checkpoint_save(const char *dir, const Params *p, Cx *cx, const CheckpointInfo *info,
                    const Config *config, int64_t keep_last, int64_t keep_every) {
    return save_all(dir, p, NULL, cx, info, config, keep_last, keep_every);
}

Err checkpoint_save_from(const char *dir, const Params *p, const Weights *from, Cx *cx, const CheckpointInfo *info,
                         const Config *config) {
    return save_all(dir, p, from, cx, info, config, 1, 0);
}
