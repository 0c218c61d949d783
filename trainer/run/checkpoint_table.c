// checkpoint_table.c - see checkpoint_table.h.
#include "checkpoint_table.h"

#include <string.h>

static void add(CkTable *t, const Param *p, const char *part, Mat here, bool is_state) {
    CkTensor *e = &t->t[t->n++];
    memset(e, 0, sizeof *e);
    snprintf(e->is.name, sizeof e->is.name, "%s/%s", p->name, part);
    e->is.dtype = here.t;
    if (p->is_expert) e->is.shape[e->is.ndim++] = p->nmat_all;
    e->is.shape[e->is.ndim++] = p->rows;
    e->is.shape[e->is.ndim++] = p->cols;
    e->param = p;
    e->block = -1;
    e->here = here;
    e->cols = p->cols;
    e->is_state = is_state;
    t->stage_bytes = max_i64(t->stage_bytes, here.rows * here.cols * (int64_t)dtype_bytes(here.t));
}

static void add_bias(CkTable *t, int64_t block, float *bias, int64_t nexperts) {
    CkTensor *e = &t->t[t->n++];
    memset(e, 0, sizeof *e);
    snprintf(e->is.name, sizeof e->is.name, "model.layers.%lld.mlp.gate.e_score_correction_bias",
             (long long)block);
    e->is.dtype = DT_F32;
    e->is.ndim = 1;
    e->is.shape[0] = nexperts;
    e->block = block;
    e->here = mat(bias, DT_F32, nexperts, 1);
    e->cols = 1;
    t->stage_bytes = max_i64(t->stage_bytes, nexperts * 4);
}

#define CALIBRATION "fp8.static_"

// What all ranks have alike, f32, written by the first.
static void add_table(CkTable *t, const char *name, float *values, int64_t rows, int64_t cols) {
    CkTensor *e = &t->t[t->n++];
    memset(e, 0, sizeof *e);
    snprintf(e->is.name, sizeof e->is.name, "%s", name);
    e->is.dtype = DT_F32;
    e->is.ndim = cols > 1 ? 2 : 1;
    e->is.shape[0] = rows;
    if (cols > 1) e->is.shape[1] = cols;
    e->block = -1;
    e->here = mat(values, DT_F32, rows, cols);
    e->cols = cols;
    e->is_optional = true;
    t->stage_bytes = max_i64(t->stage_bytes, rows * cols * 4);
}

bool cktable_is_calibration(const char *name) {
    return strncmp(name, CALIBRATION, strlen(CALIBRATION)) == 0;
}

Err cktable_build(CkTable *t, const Params *p, Calibration *c, bool with_state) {
    memset(t, 0, sizeof *t);
    MEM_NEW(t->t, 3 * p->n + p->nblocks + 2);
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        add(t, e, "master", e->master, false);
        if (!with_state) continue;
        add(t, e, "m", e->m, true);
        add(t, e, "v", e->v, true);
    }
    for (int64_t b = 0; b < p->nblocks; b++) {
        if (p->bias[b]) add_bias(t, b, p->bias[b], p->E);
    }
    if (!c) return OK;
    add_table(t, CALIBRATION "amax", c->amax, c->nblocks, SITE_COUNT);
    add_table(t, CALIBRATION "steps", &c->steps, 1, 1);
    return OK;
}

void cktable_free(CkTable *t) {
    mem_free(t->t);
    t->t = NULL;
}

void cktable_rows(const CkTensor *t, const Mesh *m, int rank, int64_t *first, int64_t *rows) {
    const Param *p = t->param;
    if (!p) {
        *first = 0;
        *rows = rank == 0 ? t->is.shape[0] : 0;
    } else if (p->is_expert) {
        const ShardRange *r = &p->ranges[rank / m->ep];
        *first = (rank % m->ep) * p->nmat * p->rows + r->row0;
        *rows = r->nrows;
    } else {
        *first = p->ranges[rank].row0;
        *rows = p->ranges[rank].nrows;
    }
}

void cktable_shape_text(char *out, size_t n, const ManifestTensor *t) {
    size_t at = (size_t)snprintf(out, n, "[");
    for (int d = 0; d < t->ndim && at < n; d++) {
        at += (size_t)snprintf(out + at, n - at, d > 0 ? ", %lld" : "%lld", (long long)t->shape[d]);
    }
    if (at < n) snprintf(out + at, n - at, "]");
}
