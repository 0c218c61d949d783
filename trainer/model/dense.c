// dense.c - the gated FFN of dense blocks and of the shared expert.
#include "dense.h"

#include "prof.h"

DenseParams dense_params(const Params *p, int64_t layer) {
    DenseParams d = {params_find(p, P_FFN_NORM, layer), params_find(p, P_GATE, layer), params_find(p, P_UP, layer),
                     params_find(p, P_DOWN, layer)};
    return d;
}

Err ffn_fwd(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Mat y, const Operand *n, int64_t T) {
    static const GatedSites sites = {SITE_FFN_GATE_KEPT, SITE_FFN_UP_KEPT,     SITE_FFN_DOWN_X, SITE_FFN_DOWN_X_T,
                                     SITE_FFN_GATE_DY,   SITE_FFN_GATE_DY_T, SITE_FFN_UP_DY,  SITE_FFN_UP_DY_T};
    Groups all = groups_none();
    size_t mark = arena_mark(cx->scratch);
    Mat g, u;
    Operand h;
    TRY(gated_memory(s, cx, &a->mid, sites, &g, &u, T, p->gate->rows));
    TRY(linear_fprop(s, cx, g, n, p->gate, all));
    TRY(linear_fprop(s, cx, u, n, p->up, all));
    TRY(cx_progress(cx)); // the shared expert: rows are on their way meanwhile
    TRY(gated_fwd(s, cx, &a->mid, &h, g, u, NULL));
    TRY(linear_fprop(s, cx, y, &h, p->down, all));
    arena_release(cx->scratch, mark);
    return OK;
}

Err ffn_bwd_core(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Operand *dg, Operand *du,
                 const Operand *dyq) {
    Mat dh;
    TRY(arena_mat(cx->scratch, &dh, s->act, a->mid.rows, a->mid.cols, "ffn.dh"));
    TRY(linear_dgrad(s, cx, dh, dyq, p->down, groups_none()));
    TRY(cx_progress(cx));
    return gated_bwd(s, cx, &a->mid, dg, du, NULL, dh, groups_none());
}

Err ffn_bwd_weight(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, const Turned *n) {
    Groups all = groups_none();
    size_t mark = arena_mark(cx->scratch);
    Turned h;
    TRY(gated_turned(s, cx, &a->mid, &h, all));
    TRY(linear_wgrad(s, cx, p->down, &a->dy_t, &h, all));
    arena_release(cx->scratch, mark);
    TRY(linear_wgrad(s, cx, p->gate, &a->mid.dg_t, n, all));
    return linear_wgrad(s, cx, p->up, &a->mid.du_t, n, all);
}

Err dense_fwd(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Mat y, Mat x) {
    DenseSaved saved = {.x = x};
    *a = saved;
    size_t mark = arena_mark(cx->scratch);
    Mat out;
    ARENA_NEW(cx->acts, a->rstd, x.rows);
    cx_saved(cx, SAVED_NORM);
    TRY(operand_normed(s, cx, &a->n, a->rstd, x, p->norm, s->eps, SITE_FFN_IN_X));
    cx_saved(cx, SAVED_FFN_IN);
    TRY(arena_mat(cx->scratch, &out, s->act, x.rows, s->D, "dense.out"));
    TRY(ffn_fwd(s, cx, p, a, out, &a->n, x.rows));
    cx_saved(cx, SAVED_SWIGLU);
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->add(&cx->op, y, x, out));
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}

Err dense_bwd_input(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Mat dx, Mat dy) {
    size_t mark = arena_mark(cx->scratch);
    Operand dyq, dg, du;
    Mat dn;
    TRY(operand_pair(s, cx, &dyq, &a->dy_t, dy, SITE_FFN_OUT_DY, SITE_FFN_DOWN_DY_T, groups_none()));
    TRY(ffn_bwd_core(s, cx, p, a, &dg, &du, &dyq));
    TRY(arena_mat(cx->scratch, &dn, s->act, dy.rows, s->D, "dense.dn"));
    TRY(linear_dgrad_pair(s, cx, dn, &dg, p->gate, &du, p->up, groups_none()));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_bwd(&cx->op, dx, p->norm->grad.p, dn, a->x, p->norm->w.p, a->rstd, dy));
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}

Err dense_bwd_weight(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a) {
    size_t mark = arena_mark(cx->scratch);
    Turned n;
    Operand in = a->n;
    TRY(operand_restore(s, cx, &in, a->x, p->norm, s->eps));
    TRY(turn_codes(s, cx, &n, &in, SITE_FFN_IN_X_T, groups_none()));
    TRY(ffn_bwd_weight(s, cx, p, a, &n));
    arena_release(cx->scratch, mark);
    return OK;
}
