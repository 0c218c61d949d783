// checkpoint_read.c - finding, checking and loading checkpoints, in any layout of ranks.
//
// Rows come from the pieces of whatever layout wrote them, and every value that is loaded is part of
// something whose hash was compared after the read: a piece, or the blocks of it that this rank needs.
// Two guards therefore stand before a resume: checkpoint_find compares the bytes of files,
// checkpoint_load the values of tensors. index.h5 is for other programs; only its hash is checked.
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint.h"
#include "checkpoint_dir.h"
#include "checkpoint_table.h"
#include "fp8.h"
#include "log.h"
#include "manifest.h"
#include "prof.h"

static bool is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool has_manifest(const char *dir) {
    char path[CKDIR_PATH + 16];
    snprintf(path, sizeof path, "%s/%s", dir, MANIFEST_NAME);
    return access(path, F_OK) == 0;
}

// ---- finding -----------------------------------------------------------------------------------

// One candidate after the other, the same on all ranks.
typedef struct Search {
    char dir[CKDIR_PATH]; // the folder of checkpoints
    CkEntry *list;        // candidates, newest first
    int n;
    bool is_exact; // the user named this one: damage is an error, nothing else is tried
} Search;

// Splits "PATH@STEP" if PATH alone does not exist; *step stays if there is none.
static void split_step(char *path, int64_t *step) {
    struct stat st;
    char *at = strrchr(path, '@');
    if (!at || !at[1] || stat(path, &st) == 0 || strspn(at + 1, "0123456789") != strlen(at + 1))
        return;
    *step = strtoll(at + 1, NULL, 10);
    *at = '\0';
}

// Rank 0: what may be meant by `path`.
static Err search_begin(Search *s, const char *given, int64_t step) {
    char path[CKDIR_PATH];
    CHECK(strlen(given) < sizeof path - 64, E_INPUT, "path too long: %s", given);
    snprintf(path, sizeof path, "%s", given);
    if (step <= 0) step = -1;
    split_step(path, &step);
    if (step < 0 && has_manifest(path)) { // a checkpoint itself; `latest` becomes what it points at
        s->list = calloc(1, sizeof *s->list);
        CHECK(s->list && realpath(path, s->dir), E_INPUT, "cannot read %s: %s", path,
              strerror(errno));
        s->n = 1;
        s->is_exact = true;
        return OK;
    }
    char sub[CKDIR_PATH + 16];
    snprintf(sub, sizeof sub, "%s/checkpoints", path);
    snprintf(s->dir, sizeof s->dir, "%s", is_dir(sub) ? sub : path);
    TRY(ckdir_list(s->dir, &s->list, &s->n));
    if (step < 0) return OK;
    int kept = 0;
    for (int i = 0; i < s->n; i++) {
        if (s->list[i].step == step) s->list[kept++] = s->list[i];
    }
    s->n = kept;
    s->is_exact = true;
    return OK;
}

// All files of a candidate, shared out among the ranks. Collective over world.
static Err check_candidate(const char *dir, Comm *w) {
    Manifest *m = NULL;
    Err err = OK;
    TRY_OR(manifest_read(&m, dir), done);
    TRY_OR(ckdir_expect_step(dir, m->step), done);
    if (w->rank == 0) TRY_OR(manifest_sizes(m, dir), done);
    TRY_OR(manifest_check_files(m, dir, w->rank, w->nranks), done);
done:
    manifest_free(&m);
    return comm_agree(w, err);
}

typedef struct Candidate {
    int32_t is_there, is_exact;
    char dir[CKDIR_PATH + 64];
} Candidate;

static Err search_run(Search *s, Comm *w, char *out, size_t n, bool *found) {
    for (int i = 0;; i++) {
        Candidate c = {0};
        if (w->rank == 0 && i < s->n) {
            c.is_there = 1;
            c.is_exact = s->is_exact;
            snprintf(c.dir, sizeof c.dir, s->list[i].name[0] ? "%s/%s" : "%s", s->dir,
                     s->list[i].name);
        }
        TRY(w->broadcast(w, &c, sizeof c, 0));
        if (!c.is_there) return OK;
        Err err = check_candidate(c.dir, w);
        if (err == OK) {
            CHECK(strlen(c.dir) < n, E_INTERNAL, "checkpoint_find: room for %zu characters", n);
            snprintf(out, n, "%s", c.dir);
            *found = true;
            return OK;
        }
        if (c.is_exact || err != E_INPUT) return err;
        log_warn("skipping a checkpoint: %s", fail_message());
        fail_clear();
    }
}

Err checkpoint_find(char *out, size_t n, bool *found, const char *path, int64_t step, Cx *cx) {
    *found = false;
    out[0] = '\0';
    Search s = {.n = 0};
    prof_enter(PROF_CHECKPOINT);
    Err err = comm_agree(cx->world, cx->world->rank == 0 ? search_begin(&s, path, step) : OK);
    if (err == OK) err = search_run(&s, cx->world, out, n, found);
    prof_leave();
    free(s.list);
    return err;
}

// explain_none: rank 0 found no checkpoint that could be meant: why, and what would be one.
static Err explain_none(const char *what, const char *given, int64_t step) {
    char path[CKDIR_PATH], sub[CKDIR_PATH + 16], steps[160] = "";
    CkEntry *list = NULL;
    int n = 0, at = 0;
    snprintf(path, sizeof path, "%s", given);
    if (step <= 0) step = -1;
    split_step(path, &step);
    bool is_there = access(path, F_OK) == 0;
    CHECK(is_there || errno != ENOENT, E_INPUT, "%s %s: no such run or checkpoint directory", what, path);
    CHECK(is_there, E_INPUT, "%s %s: cannot look into it: %s", what, path, strerror(errno));
    CHECK(is_dir(path), E_INPUT, "%s %s: a file; expected a run directory, or a checkpoint (a folder step_...)", what,
          path);
    snprintf(sub, sizeof sub, "%s/checkpoints", path);
    TRY(ckdir_list(is_dir(sub) ? sub : path, &list, &n));
    for (int i = 0; i < n && i < 8; i++) {
        at += snprintf(steps + at, sizeof steps - (size_t)at, "%s%lld", i > 0 ? ", " : "", (long long)list[i].step);
    }
    free(list);
    CHECK(n > 0, E_INPUT,
          "%s %s: no checkpoint there; expected a run directory (with checkpoints/step_...), or a checkpoint", what,
          path);
    CHECK(step < 0, E_INPUT, "%s %s: no checkpoint of step %lld there, only of %s%s", what, path, (long long)step,
          steps, n > 8 ? " and others" : "");
    FAIL(E_INPUT, "%s %s: none of the checkpoints there verifies (steps %s%s); the warnings above say why", what, path,
         steps, n > 8 ? " and others" : "");
}

Err checkpoint_need(char *out, size_t n, const char *what, const char *path, int64_t step, Cx *cx) {
    bool found = false;
    TRY(comm_agree(cx->world, checkpoint_find(out, n, &found, path, step, cx)));
    if (found) return OK;
    return comm_agree(cx->world, cx->world->rank == 0 ? explain_none(what, path, step) : OK);
}

// ---- what it says about itself -----------------------------------------------------------------

Err checkpoint_read_info(const char *dir, CheckpointInfo *info) {
    Manifest *m = NULL;
    TRY(manifest_read(&m, dir));
    memset(info, 0, sizeof *info);
    info->step = m->step;
    info->samples = m->samples;
    info->tokens = m->tokens;
    info->skipped = m->skipped;
    memcpy(info->skipped_ranges, m->skipped_ranges, sizeof info->skipped_ranges);
    info->seed = m->seed;
    info->read = (ReadProof){m->read_samples, m->read_hash};
    info->world = m->world;
    info->ep = m->ep;
    memcpy(info->data_fingerprint, m->data_fingerprint, sizeof info->data_fingerprint);
    memcpy(info->tokenizer_hash, m->tokenizer_hash, sizeof info->tokenizer_hash);
    manifest_free(&m);
    return OK;
}

// The hash of one file by name; a file that the manifest does not know is damage too.
static Err check_named(const Manifest *m, const char *dir, const char *name) {
    for (int64_t i = 0; i < m->nfiles; i++) {
        if (strcmp(m->files[i].name, name) == 0) return manifest_check_file(m, dir, i);
    }
    FAIL(E_INPUT, "%s/%s does not list %s", dir, MANIFEST_NAME, name);
}

Err checkpoint_read_config(const char *dir, Config **out) {
    *out = NULL;
    Manifest *m = NULL;
    TRY(manifest_read(&m, dir));
    Err err = check_named(m, dir, "config.yaml");
    manifest_free(&m);
    TRY(err);
    char path[CKDIR_PATH + 16];
    snprintf(path, sizeof path, "%s/config.yaml", dir);
    err = config_load(out, path, NULL, 0);
    if (err == E_CONFIG) { // written by us, so the user cannot have made the mistake
        return fail_at(E_INPUT, __FILE__, __LINE__, "%s", fail_message());
    }
    TRY(err);
    return OK;
}

Err checkpoint_verify(const char *dir) {
    Manifest *m = NULL;
    Err err = OK;
    TRY_OR(manifest_read(&m, dir), done);
    TRY_OR(ckdir_expect_step(dir, m->step), done);
    TRY_OR(manifest_sizes(m, dir), done);
    TRY_OR(manifest_check_pieces(m, dir, 0, 1), done); // first: it can name the tensor
    TRY_OR(manifest_check_files(m, dir, 0, 1), done);
done:
    manifest_free(&m);
    return err;
}

// ---- reading its tensors -----------------------------------------------------------------------

struct CkReader {
    const char *dir;
    Cx *cx;
    CkTable table;
    Manifest *m;
    int64_t *tensor;   // [table.n] index in the manifest
    int64_t *piece0;   // [m->ntensors + 1] first piece of each tensor
    TensorFile *shard; // that was read last
    int64_t shard_file;
};

static Err shape_differs(const CkReader *r, const ManifestTensor *want, const ManifestTensor *have) {
    char a[96], b[96];
    cktable_shape_text(a, sizeof a, want);
    cktable_shape_text(b, sizeof b, have);
    FAIL(E_INPUT,
         "%s: tensor %s: expected shape %s (this model), found %s: a checkpoint of another "
         "architecture",
         r->dir, want->name, a, b);
}

// Every tensor of the model is in the checkpoint, with its shape; fills r->tensor.
static Err match_model(CkReader *r) {
    bool has_state = false;
    for (int64_t i = 0; i < r->m->ntensors && !has_state; i++) {
        const char *part = strrchr(r->m->tensors[i].name, '/');
        has_state = part && strcmp(part, "/m") == 0;
    }
    for (int64_t i = 0; i < r->table.n; i++) {
        const CkTensor *t = &r->table.t[i];
        char shape[96];
        cktable_shape_text(shape, sizeof shape, &t->is);
        CHECK(has_state || !t->is_state, E_INPUT,
              "%s holds weights but no optimizer state, so no run can be resumed from it (start "
              "one from its weights)",
              r->dir);
        int64_t at = r->tensor[i] = manifest_tensor(r->m, t->is.name);
        if (at < 0 && t->is_optional) continue;
        CHECK(
            at >= 0, E_INPUT,
            "%s: tensor %s: expected shape %s (this model), found no such tensor: a checkpoint of "
            "another architecture",
            r->dir, t->is.name, shape);
        const ManifestTensor *have = &r->m->tensors[at];
        bool is_same = have->ndim == t->is.ndim;
        for (int d = 0; is_same && d < have->ndim; d++) is_same = have->shape[d] == t->is.shape[d];
        if (!is_same) return shape_differs(r, &t->is, have);
        CHECK(t->is_state || have->dtype == DT_F32, E_INPUT,
              "%s: tensor %s: expected f32, found %s", r->dir, have->name, dtype_name(have->dtype));
    }
    return OK;
}

// The checkpoint holds nothing that the model lacks. Moments are left out if only weights are
// wanted, a calibration where scales are not static.
static Err match_extra(const CkReader *r, bool with_state) {
    bool *is_known = NULL;
    MEM_NEW(is_known, r->m->ntensors);
    for (int64_t i = 0; i < r->table.n; i++) {
        if (r->tensor[i] >= 0) is_known[r->tensor[i]] = true;
    }
    int64_t extra = -1;
    for (int64_t i = 0; i < r->m->ntensors && extra < 0; i++) {
        const char *part = strrchr(r->m->tensors[i].name, '/');
        bool is_state = part && (strcmp(part, "/m") == 0 || strcmp(part, "/v") == 0);
        bool is_left = (is_state && !with_state) || cktable_is_calibration(r->m->tensors[i].name);
        if (!is_known[i] && !is_left) extra = i;
    }
    mem_free(is_known);
    if (extra < 0) return OK;
    char shape[96];
    cktable_shape_text(shape, sizeof shape, &r->m->tensors[extra]);
    FAIL(E_INPUT,
         "%s: tensor %s: expected none (this model has no such tensor), found shape %s: a "
         "checkpoint of "
         "another architecture",
         r->dir, r->m->tensors[extra].name, shape);
}

// The first piece of tensor t that ends behind row `first`.
static int64_t piece_at(const CkReader *r, int64_t t, int64_t first) {
    int64_t low = r->piece0[t], high = r->piece0[t + 1];
    while (low < high) {
        int64_t mid = (low + high) / 2;
        if (r->m->pieces[mid].first + r->m->pieces[mid].rows <= first)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static Err open_shard(CkReader *r, int64_t file) {
    char path[CKDIR_PATH + 80];
    if (r->shard && r->shard_file == file) return OK;
    tensorfile_drop(&r->shard);
    snprintf(path, sizeof path, "%s/%s", r->dir, r->m->files[file].name);
    TRY(tensorfile_open(&r->shard, path));
    r->shard_file = file;
    return OK;
}

// Rows [first, first + n) of a tensor that piece i holds, checked.
static Err read_piece(CkReader *r, int64_t i, int64_t first, int64_t n, void *out) {
    TRY(open_shard(r, r->m->pieces[i].file));
    return manifest_read_piece(r->m, r->dir, r->shard, i, first, n, out);
}

static Err reader_open(CkReader *r, const Params *p, bool with_state) {
    TRY(manifest_read(&r->m, r->dir));
    TRY(ckdir_expect_step(r->dir, r->m->step));
    if (r->cx->world->rank == 0) {
        TRY(manifest_sizes(r->m, r->dir));
        TRY(check_named(r->m, r->dir, "index.h5"));
    }
    TRY(cktable_build(&r->table, p, r->cx->calibration, with_state));
    MEM_NEW(r->tensor, r->table.n);
    MEM_NEW(r->piece0, r->m->ntensors + 1);
    TRY(match_model(r));
    TRY(match_extra(r, with_state));
    for (int64_t t = 0, at = 0; t < r->m->ntensors; t++) {
        while (at < r->m->npieces && r->m->pieces[at].tensor == t) at++;
        r->piece0[t + 1] = at;
    }
    return OK;
}

static void reader_close(CkReader *r) {
    tensorfile_drop(&r->shard);
    manifest_free(&r->m);
    cktable_free(&r->table);
    mem_free(r->tensor);
    mem_free(r->piece0);
}

Err checkpoint_open(CkReader **out, const char *dir, const Params *p, Cx *cx) {
    MEM_NEW(*out, 1);
    (*out)->dir = dir;
    (*out)->cx = cx;
    return reader_open(*out, p, false);
}

void checkpoint_close(CkReader **r) {
    if (!*r) return;
    reader_close(*r);
    mem_free(*r);
    *r = NULL;
}

// Rows [first, first + n) of tensor i of the manifest, which is F32, out of all pieces that hold some.
static Err read_rows(CkReader *r, int64_t i, int64_t first, int64_t n, float *out) {
    int64_t cols = manifest_cols(r->m, i);
    for (int64_t p = piece_at(r, i, first); p < r->piece0[i + 1]; p++) {
        const ManifestPiece *piece = &r->m->pieces[p];
        int64_t from = max_i64(first, piece->first), to = min_i64(first + n, piece->first + piece->rows);
        if (from >= to) break;
        TRY(read_piece(r, p, from, to - from, out + (from - first) * cols));
    }
    return OK;
}

static Err master_rows(void *of, const Param *p, int64_t first, int64_t n, float *out) {
    CkReader *r = of;
    for (int64_t i = 0; i < r->table.n; i++) {
        if (r->table.t[i].param == p) return read_rows(r, r->tensor[i], first, n, out);
    }
    FAIL(E_INTERNAL, "checkpoint: %s is of another table", p->name);
}

static Err bias_of(void *of, int64_t block, float *out) {
    CkReader *r = of;
    for (int64_t i = 0; i < r->table.n; i++) {
        if (r->table.t[i].block == block) return read_rows(r, r->tensor[i], 0, r->table.t[i].is.shape[0], out);
    }
    FAIL(E_INTERNAL, "checkpoint: block %lld has no bias", (long long)block);
}

Weights checkpoint_weights(CkReader *r) {
    return (Weights){r, master_rows, bias_of};
}

// ---- loading -----------------------------------------------------------------------------------

// The rows of one piece that this rank holds of tensor `entry` of the table.
typedef struct Part {
    int64_t file, piece, entry, first, rows;
} Part;

typedef struct Load {
    CkReader r;
    Part *parts; // what this rank loads, by file
    int64_t nparts;
    void *stage, *converted;
} Load;

// Moments change their type with the precision mode.
static const void *convert(Load *l, DType to, DType from, int64_t n) {
    if (to == from) return l->stage;
    if (to == DT_F32) {
        const uint16_t *a = l->stage;
        float *b = l->converted;
        for (int64_t i = 0; i < n; i++) b[i] = f32_from_bf16(a[i]);
    } else {
        const float *a = l->stage;
        uint16_t *b = l->converted;
        for (int64_t i = 0; i < n; i++) b[i] = bf16_from_f32(a[i]);
    }
    return l->converted;
}

static int by_file(const void *a, const void *b) {
    const Part *x = a, *y = b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->piece < y->piece ? -1 : x->piece > y->piece;
}

// Every piece that holds rows of this rank, file by file, so that each file is opened once. out NULL: only counts.
static Err list_parts(Load *l, Part *out) {
    l->nparts = 0;
    for (int64_t i = 0; i < l->r.table.n; i++) {
        const CkTensor *t = &l->r.table.t[i];
        int64_t first, rows, tensor = l->r.tensor[i];
        // What all ranks have alike, all of them read.
        cktable_rows(t, &l->r.cx->mesh, t->param ? l->r.cx->world->rank : 0, &first, &rows);
        if (tensor < 0 || rows == 0) continue;
        CHECK(t->here.p && t->here.rows == rows && t->here.ld == t->cols, E_INTERNAL,
              "checkpoint: %s has %lld rows here, %lld expected", t->is.name, (long long)t->here.rows,
              (long long)rows);
        for (int64_t p = piece_at(&l->r, tensor, first); p < l->r.piece0[tensor + 1]; p++) {
            const ManifestPiece *piece = &l->r.m->pieces[p];
            int64_t from = max_i64(first, piece->first), to = min_i64(first + rows, piece->first + piece->rows);
            if (from >= to) break;
            if (out) out[l->nparts] = (Part){piece->file, p, i, from, to - from};
            l->nparts++;
        }
    }
    if (out) qsort(out, (size_t)l->nparts, sizeof *out, by_file);
    return OK;
}

static Err load_part(Load *l, const Part *part) {
    const CkTensor *t = &l->r.table.t[part->entry];
    const ManifestTensor *have = &l->r.m->tensors[l->r.tensor[part->entry]];
    int64_t first, rows, n = part->rows * t->cols;
    TRY(read_piece(&l->r, part->piece, part->first, part->rows, l->stage));
    const void *values = convert(l, t->is.dtype, have->dtype, n);
    cktable_rows(t, &l->r.cx->mesh, t->param ? l->r.cx->world->rank : 0, &first, &rows);
    size_t item = dtype_bytes(t->is.dtype), at = (size_t)((part->first - first) * t->cols) * item;
    return l->r.cx->dev->to_device((char *)t->here.p + at, values, (size_t)n * item);
}

static Err load_local(Load *l, const Params *p, bool with_state) {
    TRY(reader_open(&l->r, p, with_state));
    TRY(list_parts(l, NULL));
    MEM_NEW(l->parts, l->nparts);
    TRY(list_parts(l, l->parts));
    // twice the room: the stored type may be the wider one
    TRY(mem_alloc(&l->stage, (size_t)l->r.table.stage_bytes * 2, "checkpoint staging"));
    TRY(mem_alloc(&l->converted, (size_t)l->r.table.stage_bytes, "checkpoint conversion"));
    for (int64_t i = 0; i < l->nparts; i++) TRY(load_part(l, &l->parts[i]));
    return OK;
}

// report: what a resumed run was given, for people.
static void report(const Load *l) {
    int64_t nparts = 0, nothers = 0;
    for (int64_t i = 0; i < l->r.table.n; i++) {
        if (l->r.tensor[i] < 0) continue;
        if (l->r.table.t[i].param) nparts++;
        else nothers++;
    }
    log_line("loaded     %lld parameters x {master, m, v} and %lld tables of biases and scales: 0 missing, 0 "
             "unexpected, every value has the hash it had in memory",
             (long long)(nparts / 3), (long long)nothers);
}

Err checkpoint_load(const char *dir, Params *p, Cx *cx, bool with_state) {
    Load l = {.r = {.dir = dir, .cx = cx}};
    prof_enter(PROF_CHECKPOINT);
    if (cx->calibration) calibration_reset(cx->calibration); // that of a later step is not the checkpoint's
    Err err = load_local(&l, p, with_state);
    err = comm_agree(cx->world, err);
    if (err == OK && with_state) report(&l);
    prof_leave();
    reader_close(&l.r);
    mem_free(l.parts);
    mem_free(l.stage);
    mem_free(l.converted);
    return err;
}
