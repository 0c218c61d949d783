// reduce.c - gradients to the ranks that own them, beside the last backward of a step.
#include "reduce.h"

#include "prof.h"

// final_after: the layer of Taps.grads that says that nothing more is added to this gradient.
static int64_t final_after(const Params *p, const Param *e) {
    return e->family == P_HEAD ? p->nblocks : e->layer;
}

static Err group_start(ReduceGroup *g, const Params *p, Cx *cx, bool is_expert, Comm *group) {
    Arena *scratch = cx->host_scratch;
    ARENA_NEW(scratch, g->t, p->n);
    ARENA_NEW(scratch, g->layer, p->n);
    g->n = g->ready = 0;
    for (int64_t layer = p->nblocks; layer >= -1; layer--) {
        for (int i = 0; i < p->n; i++) {
            const Param *e = &p->p[i];
            if (final_after(p, e) != layer || e->is_expert != is_expert) continue;
            ZeroTensor t = {.rows = e->grad.rows, .cols = e->cols, .range = e->ranges, .grad = e->grad.p};
            t.grad_shard = t.grad + e->own.row0 * e->cols; // in place
            g->layer[g->n] = layer;
            g->t[g->n++] = t;
        }
    }
    ZeroRows rows = cx_zero_rows(cx);
    TRY(zero_start(&g->zero, group, cx->dev, g->t, g->n, false, scratch, cx_bucket_bytes(group), &rows));
    return OK;
}

Err reduce_start(Reduce *r, const Params *p, Cx *cx) {
    r->cx = cx;
    r->mark = arena_mark(cx->host_scratch);
    TRY(group_start(&r->dense, p, cx, false, cx->world));
    TRY(group_start(&r->experts, p, cx, true, cx->edp));
    cx->reduce[0] = &r->dense.zero;
    cx->reduce[1] = &r->experts.zero;
    return OK;
}

Err reduce_block(void *user, int64_t layer) {
    Reduce *r = user;
    ReduceGroup *groups[] = {&r->dense, &r->experts};
    for (int i = 0; i < 2; i++) {
        ReduceGroup *g = groups[i];
        while (g->ready < g->n && g->layer[g->ready] >= layer) g->ready++;
        zero_ready(&g->zero, g->ready);
    }
    return cx_progress(r->cx);
}

void reduce_drop(Reduce *r) {
    r->cx->reduce[0] = r->cx->reduce[1] = NULL;
}

Err reduce_end(Reduce *r) {
    reduce_drop(r); // zero_end sends the rest
    prof_enter(PROF_REDUCE);
    TRY(zero_end(&r->experts.zero));
    TRY(zero_end(&r->dense.zero));
    prof_leave();
    arena_release(r->cx->host_scratch, r->mark);
    return OK;
}
