// checkpoint_read.c - finding, checking and loading checkpoints, in any layout of ranks.
//
// Rows are read through the virtual tensors of index.h5, so the layout of the writer does not
// matter. Where this rank's rows are exactly a piece of the writer, the hash is taken of what was
// loaded; all other pieces are shared out among the ranks and read once more. Two guards therefore
// stand before a resume: checkpoint_find compares the bytes of files, checkpoint_load the values of
// tensors.
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

// ---- what it says about itself -----------------------------------------------------------------

Err checkpoint_read_info(const char *dir, CheckpointInfo *info) {
    Manifest *m = NULL;
    TRY(manifest_read(&m, dir));
    memset(info, 0, sizeof *info);
    info->step = m->step;
    info->samples = m->samples;
    info->tokens = m->tokens;
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
    TRY_OR(manifest_sizes(m, dir), done);
    TRY_OR(manifest_check_pieces(m, dir, NULL, 0, 1), done); // first: it can name the tensor
    TRY_OR(manifest_check_files(m, dir, 0, 1), done);
done:
    manifest_free(&m);
    return err;
}

// ---- loading -----------------------------------------------------------------------------------

typedef struct Load {
    const char *dir;
    Cx *cx;
    CkTable table;
    Manifest *m;
    int64_t *tensor; // [table.n] index in the manifest
    int64_t *piece0; // [m->ntensors + 1] first piece of each tensor
    bool *want;      // [npieces] not checked while loading
    TensorFile *index;
    void *stage, *converted;
} Load;

static Err shape_differs(const Load *l, const ManifestTensor *want, const ManifestTensor *have) {
    char a[96], b[96];
    cktable_shape_text(a, sizeof a, want);
    cktable_shape_text(b, sizeof b, have);
    FAIL(E_INPUT,
         "%s: tensor %s: expected shape %s (this model), found %s: a checkpoint of another "
         "architecture",
         l->dir, want->name, a, b);
}

// Every tensor of the model is in the checkpoint, with its shape; fills l->tensor.
static Err match_model(Load *l) {
    bool has_state = false;
    for (int64_t i = 0; i < l->m->ntensors && !has_state; i++) {
        const char *part = strrchr(l->m->tensors[i].name, '/');
        has_state = part && strcmp(part, "/m") == 0;
    }
    for (int64_t i = 0; i < l->table.n; i++) {
        const CkTensor *t = &l->table.t[i];
        char shape[96];
        cktable_shape_text(shape, sizeof shape, &t->is);
        CHECK(has_state || !t->is_state, E_INPUT,
              "%s holds weights but no optimizer state, so no run can be resumed from it (start "
              "one from its weights)",
              l->dir);
        int64_t at = l->tensor[i] = manifest_tensor(l->m, t->is.name);
        if (at < 0 && t->is_optional) continue;
        CHECK(
            at >= 0, E_INPUT,
            "%s: tensor %s: expected shape %s (this model), found no such tensor: a checkpoint of "
            "another architecture",
            l->dir, t->is.name, shape);
        const ManifestTensor *have = &l->m->tensors[at];
        bool is_same = have->ndim == t->is.ndim;
        for (int d = 0; is_same && d < have->ndim; d++) is_same = have->shape[d] == t->is.shape[d];
        if (!is_same) return shape_differs(l, &t->is, have);
        CHECK(t->is_state || have->dtype == DT_F32, E_INPUT,
              "%s: tensor %s: expected f32, found %s", l->dir, have->name, dtype_name(have->dtype));
    }
    return OK;
}

// The checkpoint holds nothing that the model lacks. Moments are left out if only weights are
// wanted, a calibration where scales are not static.
static Err match_extra(const Load *l, bool with_state) {
    bool *is_known = NULL;
    MEM_NEW(is_known, l->m->ntensors);
    for (int64_t i = 0; i < l->table.n; i++) {
        if (l->tensor[i] >= 0) is_known[l->tensor[i]] = true;
    }
    int64_t extra = -1;
    for (int64_t i = 0; i < l->m->ntensors && extra < 0; i++) {
        const char *part = strrchr(l->m->tensors[i].name, '/');
        bool is_state = part && (strcmp(part, "/m") == 0 || strcmp(part, "/v") == 0);
        bool is_left = (is_state && !with_state) || cktable_is_calibration(l->m->tensors[i].name);
        if (!is_known[i] && !is_left) extra = i;
    }
    mem_free(is_known);
    if (extra < 0) return OK;
    char shape[96];
    cktable_shape_text(shape, sizeof shape, &l->m->tensors[extra]);
    FAIL(E_INPUT,
         "%s: tensor %s: expected none (this model has no such tensor), found shape %s: a "
         "checkpoint of "
         "another architecture",
         l->dir, l->m->tensors[extra].name, shape);
}

// The piece of a tensor that is exactly these rows, -1 if none is.
static int64_t exact_piece(const Load *l, int64_t tensor, int64_t first, int64_t rows) {
    int64_t low = l->piece0[tensor], high = l->piece0[tensor + 1];
    while (low < high) {
        int64_t mid = (low + high) / 2;
        if (l->m->pieces[mid].first == first) return l->m->pieces[mid].rows == rows ? mid : -1;
        if (l->m->pieces[mid].first < first)
            low = mid + 1;
        else
            high = mid;
    }
    return -1;
}

// Which pieces no rank will have loaded as a whole: the same answer on all ranks.
static void mark_unchecked(Load *l) {
    int64_t at = 0;
    for (int64_t t = 0; t < l->m->ntensors; t++) {
        l->piece0[t] = at;
        while (at < l->m->npieces && l->m->pieces[at].tensor == t) at++;
    }
    l->piece0[l->m->ntensors] = at;
    for (int64_t i = 0; i < l->table.n; i++) {
        int64_t t = l->tensor[i];
        if (t < 0) continue;
        for (int64_t p = l->piece0[t]; p < l->piece0[t + 1]; p++) l->want[p] = true;
        for (int r = 0; r < l->cx->mesh.world; r++) {
            int64_t first, rows;
            cktable_rows(&l->table.t[i], &l->cx->mesh, r, &first, &rows);
            int64_t p = rows > 0 ? exact_piece(l, t, first, rows) : -1;
            if (p >= 0) l->want[p] = false;
        }
    }
}

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

// Rows that cannot be read through index.h5: which shard is to blame? Its error if one is, else the
// one at hand.
static Err blame(const Load *l, int64_t tensor, int64_t first, int64_t rows, Err err) {
    char why[1024];
    snprintf(why, sizeof why, "%s", fail_message());
    bool *want = NULL;
    MEM_NEW(want, l->m->npieces);
    for (int64_t p = l->piece0[tensor]; p < l->piece0[tensor + 1]; p++) {
        const ManifestPiece *piece = &l->m->pieces[p];
        want[p] = piece->first < first + rows && piece->first + piece->rows > first;
    }
    Err better = manifest_check_pieces(l->m, l->dir, want, 0, 1);
    mem_free(want);
    return better != OK ? better : fail_at(err, __FILE__, __LINE__, "%s", why);
}

static Err load_tensor(Load *l, int64_t i) {
    const CkTensor *t = &l->table.t[i];
    if (l->tensor[i] < 0) return OK;
    const ManifestTensor *have = &l->m->tensors[l->tensor[i]];
    int64_t first, rows;
    cktable_rows(t, &l->cx->mesh, t->param ? l->cx->world->rank : 0, &first,
                 &rows); // biases: all ranks, all rows
    if (rows == 0) return OK;
    CHECK(t->here.p && t->here.rows == rows && t->here.ld == t->cols, E_INTERNAL,
          "checkpoint: %s has %lld rows here, %lld expected", t->is.name, (long long)t->here.rows,
          (long long)rows);
    int64_t n = rows * t->cols;
    Err err = tensorfile_read_rows(l->index, have->name, have->dtype, first, rows, l->stage);
    if (err != OK) return blame(l, l->tensor[i], first, rows, err);
    int64_t piece = exact_piece(l, l->tensor[i], first, rows);
    if (piece >= 0) {
        Hash128 found = hash128(l->stage, (size_t)n * dtype_bytes(have->dtype));
        TRY(manifest_piece_expect(l->m, l->dir, piece, found));
    }
    const void *values = convert(l, t->is.dtype, have->dtype, n);
    TRY(l->cx->dev->to_device(t->here.p, values, (size_t)n * dtype_bytes(t->is.dtype)));
    return OK;
}

static Err load_local(Load *l, const Params *p, bool with_state) {
    char path[CKDIR_PATH + 16];
    Comm *w = l->cx->world;
    TRY(manifest_read(&l->m, l->dir));
    if (w->rank == 0) {
        TRY(manifest_sizes(l->m, l->dir));
        TRY(check_named(l->m, l->dir, "index.h5"));
    }
    TRY(cktable_build(&l->table, p, l->cx->calibration, with_state));
    MEM_NEW(l->tensor, l->table.n);
    MEM_NEW(l->piece0, l->m->ntensors + 1);
    MEM_NEW(l->want, l->m->npieces);
    TRY(match_model(l));
    TRY(match_extra(l, with_state));
    mark_unchecked(l);
    // twice the room: the stored type may be the wider one
    TRY(mem_alloc(&l->stage, (size_t)l->table.stage_bytes * 2, "checkpoint staging"));
    TRY(mem_alloc(&l->converted, (size_t)l->table.stage_bytes, "checkpoint conversion"));
    snprintf(path, sizeof path, "%s/index.h5", l->dir);
    TRY(tensorfile_open(&l->index, path));
    for (int64_t i = 0; i < l->table.n; i++) TRY(load_tensor(l, i));
    return manifest_check_pieces(l->m, l->dir, l->want, w->rank, w->nranks);
}

Err checkpoint_load(const char *dir, Params *p, Cx *cx, bool with_state) {
    Load l = {.dir = dir, .cx = cx};
    prof_enter(PROF_CHECKPOINT);
    Err err = load_local(&l, p, with_state);
    tensorfile_drop(&l.index);
    err = comm_agree(cx->world, err);
    prof_leave();
    manifest_free(&l.m);
    cktable_free(&l.table);
    mem_free(l.tensor);
    mem_free(l.piece0);
    mem_free(l.want);
    mem_free(l.stage);
    mem_free(l.converted);
    return err;
}
