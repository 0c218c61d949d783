// optimizer.c - norm, clip, AdamW, publish: the end of every step.
#include "optimizer.h"

#include <math.h>
#include <string.h>

#include "hash.h"
#include "prof.h"
#include "staging.h"

#define HASH_BYTES ((int64_t)4 << 20) // what is fetched from a device at once

// own_grad: this rank's rows of the summed gradient, in place in the gradient's own memory.
static Mat own_grad(const Param *p) {
    return mat_rows(p->grad, p->own.row0, p->own.nrows);
}

static int64_t own_blocks(const Param *p) {
    return ceil_div(p->own.nrows, TILE);
}

// tensor_squares: for the host, the sums of squares of all 128-row blocks of this rank, entry after entry, and how many
// values of every entry are not finite. One wait for the device.
static Err tensor_squares(Params *t, Cx *cx, const double **out, int64_t **nonfinite) {
    double *part = NULL;
    int64_t *bad = NULL, n = 0, at = 0;
    for (int i = 0; i < t->n; i++) n += own_blocks(&t->p[i]);
    ARENA_NEW(cx->scratch, part, n);
    ARENA_NEW(cx->scratch, bad, t->n);
    TRY(cx->dev->zero(bad, (size_t)t->n * sizeof *bad));
    for (int i = 0; i < t->n; i++) {
        int64_t blocks = own_blocks(&t->p[i]);
        if (blocks > 0) TRY(cx->ops->sumsq_blocks(&cx->op, part + at, &bad[i], own_grad(&t->p[i])));
        at += blocks;
    }
    TRY(staging_fetch(cx, (void **)out, part, (size_t)n * sizeof *part));
    return staging_read(cx, (void **)nonfinite, bad, (size_t)t->n * sizeof *bad);
}

// tensor_norms: sum of squares of every entry over all owners. A rank adds its own 128-row blocks in order, ranks are
// added in rank order, entries in table order: the same bits in the same layout.
static Err tensor_norms(Params *t, Cx *cx, OptResult *r) {
    CxMark mark = cx_mark_scratch(cx);
    double *sum = NULL;
    const double *part = NULL;
    int64_t *bad = NULL;
    ARENA_NEW(cx->host_scratch, sum, t->n);
    TRY(tensor_squares(t, cx, &part, &bad));
    for (int i = 0; i < t->n; i++) {
        sum[i] = 0.0;
        for (int64_t b = own_blocks(&t->p[i]); b > 0; b--) sum[i] += *part++;
    }
    TRY(comm_sum(cx->world, sum, t->n));
    double total = 0.0;
    for (int i = 0; i < t->n; i++) total += sum[i];
    r->grad_norm = sqrt(total);
    r->culprit[0] = '\0';
    TRY(comm_sum_i64(cx->world, bad, t->n));
    r->nonfinite = 0;
    for (int i = 0; i < t->n; i++) {
        if (bad[i] > 0 && r->nonfinite == 0) {
            snprintf(r->culprit, sizeof r->culprit, "gradient of %s (%lld values)", t->p[i].name, (long long)bad[i]);
        }
        r->nonfinite += bad[i];
    }
    cx_release_scratch(cx, mark);
    return OK;
}

Err optimizer_step(Params *t, const Shape *s, Cx *cx, const OptStep *o, OptResult *r) {
    prof_enter(PROF_OPTIMIZER);
    TRY(tensor_norms(t, cx, r));
    if (r->nonfinite > 0 || !isfinite(r->grad_norm)) {
        r->nonfinite = r->nonfinite > 0 ? r->nonfinite : 1;
        prof_leave();
        return OK;
    }
    AdamStep a = {0};
    a.lr = (float)o->lr;
    a.beta1 = (float)o->beta1;
    a.beta2 = (float)o->beta2;
    a.eps = (float)o->eps;
    a.bias1 = (float)(1.0 - pow(o->beta1, (double)o->step));
    a.bias2 = (float)(1.0 - pow(o->beta2, (double)o->step));
    a.grad_scale = o->clip > 0.0 && r->grad_norm > o->clip ? (float)(o->clip / r->grad_norm) : 1.0f;
    for (int i = 0; i < t->n; i++) {
        Param *p = &t->p[i];
        if (p->own.nrows == 0) continue;
        a.weight_decay = p->has_decay ? (float)o->weight_decay : 0.0f;
        for (int64_t row = 0, n; row < p->own.nrows; row += n) {
            n = params_piece(p, s, cx, row);
            Mat copy = mat_rows(p->w, p->own.row0 + row, n), grad = mat_rows(own_grad(p), row, n);
            Mat m = mat_rows(p->m, row, n), v = mat_rows(p->v, row, n);
            TRY(cx->ops->adam_step(&cx->op, mat_rows(p->master, row, n), m, v, grad, copy, a));
            TRY(params_prepare_piece(p, s, cx, row, n));
        }
    }
    prof_leave();
    return params_share(t, s, cx);
}

// hash_rows: *sum += over rows XXH3(row; seed = stream + global row), so that no layout changes the total.
static Err hash_rows(Cx *cx, uint64_t *sum, Mat m, uint64_t stream, int64_t row0) {
    size_t row = (size_t)m.cols * dtype_bytes(m.t), mark = arena_mark(cx->host_scratch);
    int64_t step = staging_is_host(cx) ? m.rows : max_i64(1, HASH_BYTES / (int64_t)(row + 1));
    for (int64_t r = 0, n; r < m.rows; r += n) {
        const char *host = NULL;
        n = min_i64(step, m.rows - r);
        TRY(staging_read(cx, (void **)&host, mat_at(m, r, 0), (size_t)n * row));
        for (int64_t i = 0; i < n; i++)
            *sum += hash64_seeded(host + (size_t)i * row, row, stream + (uint64_t)(row0 + r + i));
        arena_release(cx->host_scratch, mark);
    }
    return OK;
}

Err optimizer_hash(const Params *t, Cx *cx, uint64_t *hash) {
    uint64_t sum = 0;
    for (int i = 0; i < t->n; i++) {
        const Param *p = &t->p[i];
        int64_t row0 = p->mat0 * p->rows + p->own.row0;
        uint64_t stream = hash64(p->name, strlen(p->name));
        TRY(hash_rows(cx, &sum, p->master, stream, row0));
        if (!p->m.p) continue;
        TRY(hash_rows(cx, &sum, p->m, stream * 3, row0));
        TRY(hash_rows(cx, &sum, p->v, stream * 5, row0));
    }
    for (int64_t b = 0; b < t->nblocks && cx->world->rank == 0; b++) { // the same on all ranks: count them once
        if (t->bias[b]) TRY(hash_rows(cx, &sum, mat(t->bias[b], DT_F32, 1, t->E), (uint64_t)b, 0));
    }
    int64_t total = (int64_t)sum;
    TRY(comm_sum_i64(cx->world, &total, 1));
    *hash = (uint64_t)total;
    return OK;
}
