// linear.c - the FP8 policy of one linear layer, and its BF16 and FP32 forms.
#include "linear.h"

#include "prof.h"
#include "shadow_gemm.h"

static QuantRule site_rule(const Shape *s, const Cx *cx, Site site) {
    return calibration_rule(cx->calibration, &s->recipe, cx->layer, site);
}

Err operand_make(const Shape *s, Cx *cx, Operand *o, Arena *arena, Mat x, Site site, bool keep_x) {
    Operand r = {0};
    if (s->mode != MODE_FP8) {
        r.x = x;
        *o = r;
        return OK;
    }
    if (keep_x) r.x = x;
    const RecipeRow *row = &s->recipe.row[site_class(site)];
    TRY(arena_matq_rows(arena, &r.q, row->scale, row->code, x.rows, x.cols, "operand codes"));
    prof_enter(PROF_QUANT);
    TRY(cx->ops->quant_tile(&cx->op, r.q, x, site_rule(s, cx, site), cx_count(cx, site)));
    prof_leave();
    TRY(shadow_sample(cx, &r.sample, x));
    *o = r;
    return OK;
}

Err operand_normed(const Shape *s, Cx *cx, Operand *o, float *rstd, Mat x, const Param *w, float eps, Site site) {
    bool is_temporary = s->mode == MODE_FP8;
    size_t mark = arena_mark(cx->scratch);
    Mat n;
    TRY(arena_mat(is_temporary || s->recompute_norm ? cx->scratch : cx->acts, &n, s->act, x.rows, x.cols, "normed"));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_fwd(&cx->op, n, rstd, x, w->w.p, eps));
    prof_leave();
    TRY(operand_make(s, cx, o, cx->acts, n, site, false));
    if (is_temporary) arena_release(cx->scratch, mark);
    return OK;
}

Err operand_restore(const Shape *s, Cx *cx, Operand *o, Mat x, const Param *w, float eps) {
    if (s->mode == MODE_FP8 || !s->recompute_norm) return OK;
    TRY(arena_mat(cx->scratch, &o->x, s->act, x.rows, x.cols, "normed again"));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_fwd(&cx->op, o->x, NULL, x, w->w.p, eps));
    prof_leave();
    return OK;
}

int64_t operand_row_bytes(const Shape *s, TensorClass c, int64_t cols) {
    return s->mode == MODE_FP8 ? matq_row_bytes(s->recipe.row[c].scale, cols) : cols * (int64_t)dtype_bytes(s->act);
}

Operand operand_wire(const Shape *s, TensorClass c, void *p, int64_t rows, int64_t cols) {
    Operand o = {0};
    if (s->mode == MODE_FP8) {
        o.q = matq_wire(p, s->recipe.row[c].scale, s->recipe.row[c].code, rows, cols);
    } else {
        o.x = mat(p, s->act, rows, cols);
    }
    return o;
}

void *operand_data(const Shape *s, const Operand *o) {
    return s->mode == MODE_FP8 ? (void *)o->q.q : o->x.p;
}

Err linear_fprop(const Shape *s, Cx *cx, Mat y, const Operand *x, const Param *w, Groups g) {
    prof_enter(g.n ? PROF_EXPERT : PROF_LINEAR);
    if (s->mode == MODE_FP8) {
        if (g.n) TRY(cx->ops->ggemm_fp8_fprop(&cx->op, y, x->q, w->q, g, false));
        else TRY(cx->ops->gemm_fp8_fprop(&cx->op, y, x->q, w->q, false));
    } else {
        if (g.n) TRY(cx->ops->ggemm_nt(&cx->op, y, x->x, w->w, g, false));
        else TRY(cx->ops->gemm_nt(&cx->op, y, x->x, w->w, false));
    }
    prof_leave();
    return shadow_fprop(cx, y, x->sample, w, g);
}

Err linear_dgrad(const Shape *s, Cx *cx, Mat dx, const Operand *dy, const Param *w, Groups g, bool acc) {
    size_t mark = arena_mark(cx->scratch);
    Mat before = mat_none();
    if (acc) TRY(shadow_before(cx, &before, dx, dy->sample, w));
    prof_enter(g.n ? PROF_EXPERT : PROF_LINEAR);
    if (s->mode == MODE_FP8) {
        if (g.n) TRY(cx->ops->ggemm_fp8_dgrad(&cx->op, dx, dy->q, w->q, g, acc));
        else TRY(cx->ops->gemm_fp8_dgrad(&cx->op, dx, dy->q, w->q, acc));
    } else {
        if (g.n) TRY(cx->ops->ggemm_nn(&cx->op, dx, dy->x, w->w, g, acc));
        else TRY(cx->ops->gemm_nn(&cx->op, dx, dy->x, w->w, acc));
    }
    prof_leave();
    TRY(shadow_dgrad(cx, dx, before, dy->sample, w, g));
    arena_release(cx->scratch, mark);
    return OK;
}

Err linear_dgrad_pair(const Shape *s, Cx *cx, Mat dx, const Operand *dya, const Param *wa, const Operand *dyb,
                      const Param *wb, Groups g) {
    size_t mark = arena_mark(cx->scratch);
    Mat sum;
    TRY(arena_mat(cx->scratch, &sum, DT_F32, dx.rows, dx.cols, "dgrad sum"));
    TRY(linear_dgrad(s, cx, sum, dya, wa, g, false));
    TRY(linear_dgrad(s, cx, sum, dyb, wb, g, true));
    TRY(cx->ops->cast(&cx->op, dx, sum));
    arena_release(cx->scratch, mark);
    return OK;
}

// turned_codes_memory: room for the 128x1 form of [tokens, channels].
static Err turned_memory(const Shape *s, Cx *cx, Turned *t, int64_t tokens, int64_t channels, Site site, Groups g) {
    int64_t n = g.n ? g.n : 1;
    const RecipeRow *row = &s->recipe.row[site_class(site)];
    return arena_matq_cols(cx->scratch, &t->t, row->scale, row->code, channels, tokens, n, "turned codes");
}

Err turn_codes(const Shape *s, Cx *cx, Turned *t, const Operand *o, Site site, Groups g) {
    Turned r = {0};
    r.x = o->x;
    r.sample = o->sample;
    if (s->mode == MODE_FP8) {
        TRY(turned_memory(s, cx, &r, o->q.rows, o->q.cols, site, g));
        prof_enter(PROF_QUANT);
        TRY(cx->ops->requant_tile_t(&cx->op, r.t, o->q, g, site_rule(s, cx, site), cx_count(cx, site)));
        prof_leave();
    }
    *t = r;
    return OK;
}

Err turn_fresh(const Shape *s, Cx *cx, Turned *t, Mat x, Site site, Groups g) {
    Turned r = {0};
    r.x = x;
    if (cx->shadow) r.sample = x; // its first rows
    if (s->mode == MODE_FP8) {
        TRY(turned_memory(s, cx, &r, x.rows, x.cols, site, g));
        prof_enter(PROF_QUANT);
        TRY(cx->ops->quant_tile_t(&cx->op, r.t, x, g, site_rule(s, cx, site), cx_count(cx, site)));
        prof_leave();
    }
    *t = r;
    return OK;
}

Err linear_wgrad(const Shape *s, Cx *cx, Param *w, const Turned *dy, const Turned *x, Groups g) {
    prof_enter(g.n ? PROF_EXPERT : PROF_LINEAR);
    if (s->mode == MODE_FP8) {
        if (g.n) TRY(cx->ops->ggemm_fp8_wgrad(&cx->op, w->grad, dy->t, x->t, g, true));
        else TRY(cx->ops->gemm_fp8_wgrad(&cx->op, w->grad, dy->t, x->t, true));
    } else {
        if (g.n) TRY(cx->ops->ggemm_tn(&cx->op, w->grad, dy->x, x->x, g, true));
        else TRY(cx->ops->gemm_tn(&cx->op, w->grad, dy->x, x->x, true));
    }
    prof_leave();
    return shadow_wgrad(cx, w, dy->t, x->t, dy->sample, x->sample, g);
}
