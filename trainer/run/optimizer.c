// optimizer.c - norm, clip, AdamW, publish: the end of every step.
#include "optimizer.h"

#include <math.h>
#include <string.h>

#include "hash.h"
#include "prof.h"

// own_grad: this rank's rows of the summed gradient, in place in the gradient's own memory.
static Mat own_grad(const Param *p) {
    return mat_rows(p->grad, p->own.row0, p->own.nrows);
}

// tensor_norms: sum of squares of every entry over all owners. A rank adds its own 128-row blocks in order, ranks are
// added in rank order, entries in table order: the same bits in the same layout.
static Err tensor_norms(Params *t, Cx *cx, OptResult *r) {
    size_t mark = arena_mark(cx->scratch);
    double *sum = NULL;
    int64_t *bad = NULL;
    ARENA_NEW(cx->scratch, sum, t->n);
    ARENA_NEW(cx->scratch, bad, t->n);
    for (int i = 0; i < t->n; i++) {
        Mat g = own_grad(&t->p[i]);
        int64_t blocks = ceil_div(g.rows, TILE);
        size_t inner = arena_mark(cx->scratch);
        double *part = NULL;
        ARENA_NEW(cx->scratch, part, blocks);
        bad[i] = 0;
        sum[i] = 0.0;
        if (blocks > 0) TRY(cx->ops->sumsq_blocks(&cx->op, part, &bad[i], g));
        for (int64_t b = 0; b < blocks; b++) sum[i] += part[b];
        arena_release(cx->scratch, inner);
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
    arena_release(cx->scratch, mark);
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
        Mat own_w = mat_rows(p->w, p->own.row0, p->own.nrows);
        TRY(cx->ops->adam_step(&cx->op, p->master, p->m, p->v, own_grad(p), own_w, a));
        TRY(params_prepare_own(p, s, cx));
    }
    prof_leave();
    return params_share(t, s, cx);
}

// hash_rows: sum over rows of XXH3(row; seed = stream + global row), so that no layout changes the total.
static uint64_t hash_rows(Mat m, uint64_t stream, int64_t row0) {
    uint64_t sum = 0;
    for (int64_t r = 0; r < m.rows; r++) {
        sum += hash64_seeded(mat_at(m, r, 0), (size_t)m.cols * dtype_bytes(m.t), stream + (uint64_t)(row0 + r));
    }
    return sum;
}

Err optimizer_hash(const Params *t, Cx *cx, uint64_t *hash) {
    uint64_t sum = 0;
    for (int i = 0; i < t->n; i++) {
        const Param *p = &t->p[i];
        int64_t row0 = p->mat0 * p->rows + p->own.row0;
        uint64_t stream = hash64(p->name, strlen(p->name));
        sum += hash_rows(p->master, stream, row0);
        if (p->m.p) sum += hash_rows(p->m, stream * 3, row0) + hash_rows(p->v, stream * 5, row0);
    }
    for (int64_t b = 0; b < t->nblocks && cx->world->rank == 0; b++) { // the same on all ranks: count them once
        if (t->bias[b]) sum += hash64_seeded(t->bias[b], (size_t)t->E * sizeof(float), (uint64_t)b);
    }
    int64_t total = (int64_t)sum;
    TRY(comm_sum_i64(cx->world, &total, 1));
    *hash = (uint64_t)total;
    return OK;
}
