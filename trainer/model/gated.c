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

Err gated_fwd(const Shape *s, Cx *cx, Gated *a, Operand *h, Mat g, Mat u, const float *gate) {
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

Err gated_bwd(const Shape *s, Cx *cx, const Gated *a, Mat dg, Mat du, float *dgate, Mat dh) {
    size_t mark = arena_mark(cx->scratch);
    Mat g, u;
    TRY(kept_inputs(s, cx, a, &g, &u));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->swiglu_bwd(&cx->op, dg, du, dgate, dh, g, u, a->gate));
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}

Err gated_turned(const Shape *s, Cx *cx, const Gated *a, Turned *t, Groups groups) {
    Operand h = a->h;
    if (s->recompute_swiglu) TRY(kept_h(s, cx, a, &h, cx->scratch));
    h.sample = a->sample;
    return turn_codes(s, cx, t, &h, a->site.h_t, groups);
}
