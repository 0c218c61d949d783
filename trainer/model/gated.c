// gated.c - the gated unit and its memory. See gated.h.
#include "gated.h"

#include "prof.h"

Err gated_memory(const Shape *s, Cx *cx, Gated *a, GatedSites site, Mat *g, Mat *u, int64_t rows, int64_t cols) {
    Gated empty = {.site = site, .rows = rows, .cols = cols};
    Arena *arena = s->cache_swiglu_fp8 ? cx->scratch : cx->acts;
    *a = empty;
    TRY(arena_mat(arena, g, s->act, rows, cols, "gated.g"));
    return arena_mat(arena, u, s->act, rows, cols, "gated.u");
}

static Err swiglu(Cx *cx, Mat h, Mat g, Mat u, const float *gate) {
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->swiglu_fwd(&cx->op, h, g, u, gate));
    prof_leave();
    return OK;
}

static Err keep_codes(const Shape *s, Cx *cx, MatQ *q, Mat x, Site site) {
    Operand o;
    TRY(operand_make(s, cx, &o, cx->acts, x, site, false));
    *q = o.q;
    return OK;
}

// kept_inputs: g and u as the backward sees them, decoded onto scratch where only codes are kept.
static Err kept_inputs(const Shape *s, Cx *cx, const Gated *a, Mat *g, Mat *u) {
    *g = a->g;
    *u = a->u;
    if (!s->cache_swiglu_fp8) return OK;
    TRY(arena_mat(cx->scratch, g, s->act, a->rows, a->cols, "gated.g again"));
    TRY(arena_mat(cx->scratch, u, s->act, a->rows, a->cols, "gated.u again"));
    prof_enter(PROF_QUANT);
    TRY(cx->ops->dequant(&cx->op, *g, a->gq));
    TRY(cx->ops->dequant(&cx->op, *u, a->uq));
    prof_leave();
    return OK;
}

// kept_h: down's input from what is kept; its codes or, outside of fp8 mode, its matrix on `arena`, the rest on
// scratch. Forward's codes were counted as FP8 health, these are not.
static Err kept_h(const Shape *s, Cx *cx, const Gated *a, Operand *o, Arena *arena) {
    Mat g, u, h;
    QuantCount *health = cx->health;
    TRY(kept_inputs(s, cx, a, &g, &u));
    TRY(arena_mat(s->mode == MODE_FP8 ? cx->scratch : arena, &h, s->act, a->rows, a->cols, "gated.h again"));
    TRY(swiglu(cx, h, g, u, a->gate));
    cx->health = NULL;
    Err err = operand_make(s, cx, o, arena, h, a->site.h, false);
    cx->health = health;
    TRY(err);
    return OK;
}

// is_unit_fused: are h, and the codes of g and u from which the backward makes everything, all there is of the unit?
static bool is_unit_fused(const Shape *s, const Cx *cx) {
    return is_fused(s, cx) && s->cache_swiglu_fp8 && s->recompute_swiglu;
}

static Err fused_fwd(const Shape *s, Cx *cx, Gated *a, Operand *h, Mat g, Mat u) {
    QuantOut out, gk, uk;
    TRY(operand_room(s, cx, &out, cx->scratch, a->rows, a->cols, a->site.h));
    TRY(operand_room(s, cx, &gk, cx->acts, a->rows, a->cols, a->site.gate_kept));
    TRY(operand_room(s, cx, &uk, cx->acts, a->rows, a->cols, a->site.up_kept));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->swiglu_quant_fwd(&cx->op, out, gk, uk, g, u, a->gate));
    prof_leave();
    Operand r = {.q = out.q};
    *h = r;
    a->gq = gk.q;
    a->uq = uk.q;
    return OK;
}

Err gated_fwd(const Shape *s, Cx *cx, Gated *a, Operand *h, Mat g, Mat u, const float *gate) {
    if (is_unit_fused(s, cx)) {
        a->gate = gate;
        return fused_fwd(s, cx, a, h, g, u);
    }
    // Forward's h is also the backward's only where g and u are kept as they are.
    bool is_kept = !s->recompute_swiglu && !s->cache_swiglu_fp8;
    Arena *arena = is_kept ? cx->acts : cx->scratch;
    Mat m;
    a->gate = gate;
    TRY(arena_mat(s->mode == MODE_FP8 ? cx->scratch : arena, &m, s->act, a->rows, a->cols, "gated.h"));
    TRY(swiglu(cx, m, g, u, gate));
    TRY(operand_make(s, cx, h, arena, m, a->site.h, false));
    if (is_kept) a->h = *h;
    a->sample = h->sample;
    if (s->cache_swiglu_fp8) {
        TRY(keep_codes(s, cx, &a->gq, g, a->site.gate_kept));
        TRY(keep_codes(s, cx, &a->uq, u, a->site.up_kept));
        if (!s->recompute_swiglu) TRY(kept_h(s, cx, a, &a->h, cx->acts));
    } else {
        a->g = g;
        a->u = u;
    }
    return OK;
}

static Err fused_bwd(const Shape *s, Cx *cx, Gated *a, Operand *dg, Operand *du, float *dgate, Mat dh, Groups groups) {
    SwigluQuantBwd out;
    TRY(operand_room(s, cx, &out.dg, cx->scratch, a->rows, a->cols, a->site.dg));
    TRY(operand_room(s, cx, &out.du, cx->scratch, a->rows, a->cols, a->site.du));
    TRY(turned_room(s, cx, &out.dg_t, cx->acts, a->rows, a->cols, a->site.dg_t, groups));
    TRY(turned_room(s, cx, &out.du_t, cx->acts, a->rows, a->cols, a->site.du_t, groups));
    TRY(turned_room(s, cx, &out.h_t, cx->acts, a->rows, a->cols, a->site.h_t, groups));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->swiglu_quant_bwd(&cx->op, out, dgate, dh, a->gq, a->uq, a->gate, groups));
    prof_leave();
    Operand g = {.q = out.dg.q}, u = {.q = out.du.q};
    Turned g_t = {.t = out.dg_t.q}, u_t = {.t = out.du_t.q}, h_t = {.t = out.h_t.q};
    *dg = g;
    *du = u;
    a->dg_t = g_t;
    a->du_t = u_t;
    a->h_t = h_t;
    return OK;
}

Err gated_bwd(const Shape *s, Cx *cx, Gated *a, Operand *dg, Operand *du, float *dgate, Mat dh, Groups groups) {
    if (is_unit_fused(s, cx)) return fused_bwd(s, cx, a, dg, du, dgate, dh, groups);
    Mat g, u;
    Arena *arena = gradient_arena(s, cx);
    TRY(arena_mat(arena, &a->dg, s->act, a->rows, a->cols, "gated.dg"));
    TRY(arena_mat(arena, &a->du, s->act, a->rows, a->cols, "gated.du"));
    size_t mark = arena_mark(cx->scratch);
    TRY(kept_inputs(s, cx, a, &g, &u));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->swiglu_bwd(&cx->op, a->dg, a->du, dgate, dh, g, u, a->gate));
    prof_leave();
    arena_release(cx->scratch, mark);
    TRY(operand_pair(s, cx, dg, &a->dg_t, a->dg, a->site.dg, a->site.dg_t, groups));
    return operand_pair(s, cx, du, &a->du_t, a->du, a->site.du, a->site.du_t, groups);
}

Err gated_turned(const Shape *s, Cx *cx, const Gated *a, Turned *t, Groups groups) {
    if (a->h_t.t.q) {
        *t = a->h_t;
        return OK;
    }
    Operand h = a->h;
    if (s->recompute_swiglu) TRY(kept_h(s, cx, a, &h, cx->scratch));
    h.sample = a->sample;
    return turn_codes(s, cx, t, &h, a->site.h_t, groups);
}
