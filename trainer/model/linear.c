// linear.c - the FP8 policy of one linear layer, and its BF16 and FP32 forms.
#include "linear.h"

#include "prof.h"
#include "shadow_gemm.h"

static QuantRule site_rule(const Shape *s, const Cx *cx, Site site) {
    return calibration_rule(cx->calibration, &s->recipe, cx->layer, site);
}

bool is_fused(const Shape *s, const Cx *cx) {
    bool is_plain = s->is_unfused || cx->shadow;
    return s->mode == MODE_FP8 && !is_plain && s->recipe.row[CLASS_ACTIVATION].scope == SCOPE_TILE &&
           s->recipe.row[CLASS_GRADIENT].scope == SCOPE_TILE;
}

Err operand_room(const Shape *s, Cx *cx, QuantOut *out, Arena *arena, int64_t rows, int64_t cols, Site site) {
    const RecipeRow *row = &s->recipe.row[site_class(site)];
    out->n = cx_count(cx, site);
    return arena_matq_rows(arena, &out->q, row->scale, row->code, rows, cols, "operand codes");
}

Err operand_make(const Shape *s, Cx *cx, Operand *o, Arena *arena, Mat x, Site site, bool keep_x) {
    Operand r = {0};
    if (s->mode != MODE_FP8) {
        r.x = x;
        *o = r;
        return OK;
    }
    QuantOut out;
    if (keep_x) r.x = x;
    TRY(operand_room(s, cx, &out, arena, x.rows, x.cols, site));
    r.q = out.q;
    prof_enter(PROF_QUANT);
    TRY(cx->ops->quant_tile(&cx->op, r.q, x, site_rule(s, cx, site), out.n));
    prof_leave();
    TRY(shadow_sample(cx, &r.sample, x));
    *o = r;
    return OK;
}

Err operand_normed(const Shape *s, Cx *cx, Operand *o, float *rstd, Mat x, const Param *w, float eps, Site site) {
    bool is_temporary = s->mode == MODE_FP8;
    if (is_fused(s, cx)) {
        Operand r = {0};
        QuantOut out;
        TRY(operand_room(s, cx, &out, cx->acts, x.rows, x.cols, site));
        prof_enter(PROF_ELEMENTWISE);
        TRY(cx->ops->norm_quant_fwd(&cx->op, out, mat_none(), rstd, x, w->w.p, eps));
        prof_leave();
        r.q = out.q;
        *o = r;
        return OK;
    }
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

int64_t operand_payload_bytes(const Shape *s, TensorClass c, int64_t cols) {
    if (s->mode != MODE_FP8) return operand_row_bytes(s, c, cols);
    return matq_payload_bytes(s->recipe.row[c].scale, cols);
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

Err linear_dgrad(const Shape *s, Cx *cx, Mat dx, const Operand *dy, const Param *w, Groups g) {
    prof_enter(g.n ? PROF_EXPERT : PROF_LINEAR);
    if (s->mode == MODE_FP8) {
        if (g.n) TRY(cx->ops->ggemm_fp8_dgrad(&cx->op, dx, dy->q, w->q, g, false));
        else TRY(cx->ops->gemm_fp8_dgrad(&cx->op, dx, dy->q, w->q, false));
    } else {
        if (g.n) TRY(cx->ops->ggemm_nn(&cx->op, dx, dy->x, w->w, g, false));
        else TRY(cx->ops->gemm_nn(&cx->op, dx, dy->x, w->w, false));
    }
    prof_leave();
    return shadow_dgrad(cx, dx, dy->sample, w, g);
}

Err linear_dgrad_pair(const Shape *s, Cx *cx, Mat dx, const Operand *dya, const Param *wa, const Operand *dyb,
                      const Param *wb, Groups g) {
    size_t mark = arena_mark(cx->scratch);
    Mat room = dx;
    if (dx.t != DT_F32) TRY(arena_mat(cx->scratch, &room, DT_F32, dx.rows, dx.cols, "dgrad sum"));
    prof_enter(g.n ? PROF_EXPERT : PROF_LINEAR);
    if (s->mode == MODE_FP8) {
        if (g.n) TRY(cx->ops->ggemm_fp8_dgrad_pair(&cx->op, dx, dya->q, wa->q, dyb->q, wb->q, g, room));
        else TRY(cx->ops->gemm_fp8_dgrad_pair(&cx->op, dx, dya->q, wa->q, dyb->q, wb->q, room));
    } else {
        if (g.n) TRY(cx->ops->ggemm_nn_pair(&cx->op, dx, dya->x, wa->w, dyb->x, wb->w, g, room));
        else TRY(cx->ops->gemm_nn_pair(&cx->op, dx, dya->x, wa->w, dyb->x, wb->w, room));
    }
    prof_leave();
    arena_release(cx->scratch, mark);
    TRY(shadow_dgrad_part(cx, dya->q, dya->sample, wa, g));
    return shadow_dgrad_part(cx, dyb->q, dyb->sample, wb, g);
}

Err turned_room(const Shape *s, Cx *cx, QuantOut *out, Arena *arena, int64_t tokens, int64_t channels, Site site,
                Groups g) {
    int64_t n = g.n ? g.n : 1;
    const RecipeRow *row = &s->recipe.row[site_class(site)];
    out->n = cx_count(cx, site);
    return arena_matq_cols(arena, &out->q, row->scale, row->code, channels, tokens, n, "turned codes");
}

Err turn_codes(const Shape *s, Cx *cx, Turned *t, const Operand *o, Site site, Groups g) {
    Turned r = {0};
    r.x = o->x;
    r.sample = o->sample;
    if (s->mode == MODE_FP8) {
        QuantOut out;
        TRY(turned_room(s, cx, &out, cx->scratch, o->q.rows, o->q.cols, site, g));
        r.t = out.q;
        prof_enter(PROF_QUANT);
        TRY(cx->ops->requant_tile_t(&cx->op, r.t, o->q, g, site_rule(s, cx, site), out.n));
        prof_leave();
    }
    *t = r;
    return OK;
}

Err turn_fresh(const Shape *s, Cx *cx, Turned *t, Arena *arena, Mat x, Site site, Groups g) {
    Turned r = {0};
    r.x = x;
    if (cx->shadow) r.sample = x; // its first rows
    if (s->mode == MODE_FP8) {
        QuantOut out;
        TRY(turned_room(s, cx, &out, arena, x.rows, x.cols, site, g));
        r.t = out.q;
        prof_enter(PROF_QUANT);
        TRY(cx->ops->quant_tile_t(&cx->op, r.t, x, g, site_rule(s, cx, site), out.n));
        prof_leave();
    }
    *t = r;
    return OK;
}

Err operand_pair(const Shape *s, Cx *cx, Operand *o, Turned *t, Mat dy, Site site, Site site_t, Groups g) {
    Operand rows = {0};
    Turned cols = {0};
    if (s->mode != MODE_FP8) {
        rows.x = cols.x = dy;
    } else {
        QuantOut r, c;
        TRY(operand_room(s, cx, &r, cx->scratch, dy.rows, dy.cols, site));
        TRY(turned_room(s, cx, &c, cx->acts, dy.rows, dy.cols, site_t, g));
        rows.q = r.q;
        cols.t = c.q;
        prof_enter(PROF_QUANT);
        TRY(cx->ops->quant_tile_pair(&cx->op, r.q, c.q, dy, g, site_rule(s, cx, site), site_rule(s, cx, site_t), r.n,
                                     c.n));
        prof_leave();
        TRY(shadow_sample(cx, &rows.sample, dy));
        cols.sample = rows.sample;
    }
    *o = rows;
    *t = cols;
    return OK;
}

Arena *gradient_arena(const Shape *s, const Cx *cx) {
    return s->mode == MODE_FP8 && !s->is_unfused ? cx->scratch : cx->acts;
}

Err linear_wgrad(const Shape *s, Cx *cx, Param *w, const Turned *dy, const Turned *x, Groups g) {
    bool adds = !w->is_clear;
    w->is_clear = false;
    prof_enter(g.n ? PROF_EXPERT : PROF_LINEAR);
    if (s->mode == MODE_FP8) {
        if (g.n) TRY(cx->ops->ggemm_fp8_wgrad(&cx->op, w->grad, dy->t, x->t, g, adds));
        else TRY(cx->ops->gemm_fp8_wgrad(&cx->op, w->grad, dy->t, x->t, adds));
    } else {
        if (g.n) TRY(cx->ops->ggemm_tn(&cx->op, w->grad, dy->x, x->x, g, adds));
        else TRY(cx->ops->gemm_tn(&cx->op, w->grad, dy->x, x->x, adds));
    }
    prof_leave();
    return shadow_wgrad(cx, w, dy->t, x->t, dy->sample, x->sample, g);
}
