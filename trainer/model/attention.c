// attention.c - multi-head latent attention, forward and backward.
//
// Letters: T tokens, D width, H heads, Dn/Dr/Dv unrotated/rotated/value head widths, Rq/Rkv latent ranks.
#include "attention.h"

#include "attn_latent.h"
#include "e5m6.h"
#include "prof.h"

#define LATENT_EPS 1e-6f // the latent norms ignore rms_norm_eps, as the released code does

AttentionParams attention_params(const Params *p, int64_t layer) {
    AttentionParams a = {
        params_find(p, P_ATTN_NORM, layer), params_find(p, P_Q, layer),    params_find(p, P_Q_A, layer),
        params_find(p, P_Q_A_NORM, layer),  params_find(p, P_Q_B, layer),  params_find(p, P_KV_A, layer),
        params_find(p, P_KV_A_NORM, layer), params_find(p, P_KV_B, layer), params_find(p, P_O, layer),
    };
    return a;
}

static AttnShape attn_shape(const Shape *s, const AttentionSaved *a) {
    AttnShape r = {a->nseq, a->S, s->H, s->Dn, s->Dr, s->Dv, s->softmax_scale};
    return r;
}

static Err norm_bwd(Cx *cx, Mat dx, Mat dy, Mat x, const Param *w, const float *rstd, Mat dres) {
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_bwd(&cx->op, dx, w->grad.p, dy, x, w->w.p, rstd, dres));
    prof_leave();
    return OK;
}

// rotate: q's heads, in place. rotate_key: the shared key, in place.
static Err rotate(const Shape *s, Cx *cx, const AttentionSaved *a, Mat q, bool inverse) {
    RopeShape heads = {a->S, s->H, s->Dn + s->Dr, s->Dn, s->Dr};
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->rope(&cx->op, q, heads, a->rope, inverse));
    prof_leave();
    return OK;
}
static Err rotate_key(const Shape *s, Cx *cx, const AttentionSaved *a, Mat kr, bool inverse) {
    RopeShape key = {a->S, 1, s->Dr, 0, s->Dr};
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->rope(&cx->op, kr, key, a->rope, inverse));
    prof_leave();
    return OK;
}

// query_latent_fwd: the compressed query, raw and normed, if there is one.
static Err query_latent_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, int64_t T) {
    if (s->Rq == 0) return OK;
    TRY(arena_mat(cx->acts, &a->cq_raw, s->act, T, s->Rq, "attn.cq_raw"));
    TRY(linear_fprop(s, cx, a->cq_raw, &a->n, p->q_a, groups_none()));
    ARENA_NEW(cx->acts, a->rstd_q, T);
    return operand_normed(s, cx, &a->cq, a->rstd_q, a->cq_raw, p->q_a_norm, LATENT_EPS, SITE_Q_B_X);
}

// latents_fwd: the compressed query and key-value, raw and normed, and the rotated shared key.
static Err latents_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, int64_t T) {
    TRY(query_latent_fwd(s, cx, p, a, T));
    TRY(arena_mat(cx->acts, &a->kva, s->act, T, s->Rkv + s->Dr, "attn.kva"));
    TRY(linear_fprop(s, cx, a->kva, &a->n, p->kv_a, groups_none()));
    ARENA_NEW(cx->acts, a->rstd_kv, T);
    TRY(operand_normed(s, cx, &a->ckv, a->rstd_kv, mat_cols(a->kva, 0, s->Rkv), p->kv_a_norm, LATENT_EPS,
                       SITE_KV_B_X));
    return rotate_key(s, cx, a, mat_cols(a->kva, s->Rkv, s->Dr), false);
}

// queries_fwd: rotated queries from their latent, or from n, on `arena`.
static Err queries_fwd(const Shape *s, Cx *cx, const AttentionParams *p, const AttentionSaved *a, Arena *arena,
                       Mat *q) {
    TRY(arena_mat(arena, q, s->act, a->x.rows, s->H * (s->Dn + s->Dr), "attn.q"));
    TRY(linear_fprop(s, cx, *q, s->Rq > 0 ? &a->cq : &a->n, s->Rq > 0 ? p->q_b : p->q, groups_none()));
    return rotate(s, cx, a, *q, false);
}

// up_project: rotated queries, keys and values from the latents (queries without a latent from n), on `arena`.
static Err up_project(const Shape *s, Cx *cx, const AttentionParams *p, const AttentionSaved *a, Arena *arena, Mat *q,
                      Mat *kv) {
    TRY(queries_fwd(s, cx, p, a, arena, q));
    TRY(arena_mat(arena, kv, s->act, a->x.rows, s->H * (s->Dn + s->Dv), "attn.kv"));
    return linear_fprop(s, cx, *kv, &a->ckv, p->kv_b, groups_none());
}

// keep_out: o_x and its operand are kept as they are, or 12-bit codes instead (o's tiles with NaN were counted when
// its operand was made).
static Err keep_out(const Shape *s, Cx *cx, AttentionSaved *a, Mat o_x, Operand o) {
    if (!s->cache_o_e5m6) {
        a->o_x = o_x;
        a->o = o;
        return OK;
    }
    a->o.sample = o.sample;
    TRY(arena_mat(cx->acts, &a->o_packed, DT_U8, o_x.rows, e5m6_row_bytes(o_x.cols), "attn.o_packed"));
    prof_enter(PROF_QUANT);
    TRY(cx->ops->quant_e5m6(&cx->op, a->o_packed, o_x, NULL));
    prof_leave();
    return OK;
}

// kept_out: o_x as the backward sees it: what was kept, on scratch if it has to be decoded; then also Wgrad's form of
// the input of o, while it is there.
static Err kept_out(const Shape *s, Cx *cx, AttentionSaved *a, Mat *o_x) {
    *o_x = a->o_x;
    if (!s->cache_o_e5m6) return OK;
    TRY(arena_mat(cx->scratch, o_x, s->act, a->x.rows, s->H * s->Dv, "attn.o again"));
    prof_enter(PROF_QUANT);
    TRY(cx->ops->dequant_e5m6(&cx->op, *o_x, a->o_packed));
    prof_leave();
    TRY(turn_fresh(s, cx, &a->o_t, cx->acts, *o_x, SITE_O_X_T, groups_none()));
    a->o_t.sample = a->o.sample; // forward's, not the decoded one
    return OK;
}

// restored: a copy of `a` whose normed operands are there for the backward.
static Err restored(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *copy, const AttentionSaved *a) {
    *copy = *a;
    TRY(operand_restore(s, cx, &copy->n, a->x, p->norm, s->eps));
    if (s->Rq > 0) TRY(operand_restore(s, cx, &copy->cq, a->cq_raw, p->q_a_norm, LATENT_EPS));
    return operand_restore(s, cx, &copy->ckv, mat_cols(a->kva, 0, s->Rkv), p->kv_a_norm, LATENT_EPS);
}

// core_fwd: the attention itself: o_x and its operand, kept as the settings say. Their memory is acts or scratch.
static Err core_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Operand *o) {
    int64_t T = a->x.rows;
    Arena *up = s->recompute_up ? cx->scratch : cx->acts, *out = s->cache_o_e5m6 ? cx->scratch : cx->acts;
    Mat q, kv, o_x;
    TRY(up_project(s, cx, p, a, up, &q, &kv));
    cx_saved(cx, SAVED_ATTN_IN);
    if (!s->recompute_up) {
        a->q = q;
        a->kv = kv;
    }
    ARENA_NEW(cx->acts, a->lse, s->H * T);
    TRY(arena_mat(out, &o_x, s->act, T, s->H * s->Dv, "attn.o"));
    Mat kr = mat_cols(a->kva, s->Rkv, s->Dr);
    prof_enter(PROF_ATTENTION);
    TRY(cx->ops->attn_fwd(&cx->op, o_x, a->lse, q, kv, kr, attn_shape(s, a), a->doc_start));
    prof_leave();
    TRY(operand_make(s, cx, o, out, o_x, SITE_O_X, false));
    TRY(keep_out(s, cx, a, o_x, *o));
    cx_saved(cx, SAVED_ATTN_OUT);
    return OK;
}

// project_out: y = x + W_O o.
static Err project_out(const Shape *s, Cx *cx, const AttentionParams *p, Mat y, Mat x, const Operand *o) {
    Mat out;
    TRY(arena_mat(cx->scratch, &out, s->act, x.rows, s->D, "attn.out"));
    TRY(linear_fprop(s, cx, out, o, p->o, groups_none()));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->add(&cx->op, y, x, out));
    prof_leave();
    return OK;
}

Err attention_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat y, Mat x,
                  int64_t nseq, int64_t S, const float *rope, const int32_t *doc_start) {
    int64_t T = nseq * S;
    AttentionSaved saved = {.nseq = nseq, .S = S, .rope = rope, .doc_start = doc_start, .x = x};
    size_t mark = arena_mark(cx->scratch);
    Operand o;
    *a = saved;
    ARENA_NEW(cx->acts, a->rstd, T);
    cx_saved(cx, SAVED_NORM);
    TRY(operand_normed(s, cx, &a->n, a->rstd, x, p->norm, s->eps, SITE_ATTN_IN_X));
    cx_saved(cx, SAVED_ATTN_IN);
    TRY(latents_fwd(s, cx, p, a, T));
    cx_saved(cx, SAVED_LATENT);
    TRY(core_fwd(s, cx, p, a, &o));
    TRY(project_out(s, cx, p, y, x, &o));
    arena_release(cx->scratch, mark);
    return OK;
}

// remember: the latent, normed, and the rotated shared key of these positions as rows of the cache.
static Err remember(const Shape *s, Cx *cx, const AttentionParams *p, const AttentionSaved *a, Mat rows) {
    Mat kva, key = mat_cols(rows, s->Rkv, s->Dr);
    TRY(arena_mat(cx->scratch, &kva, s->act, rows.rows, s->Rkv + s->Dr, "attn.kva"));
    TRY(linear_fprop(s, cx, kva, &a->n, p->kv_a, groups_none()));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->norm_rms_fwd(&cx->op, mat_cols(rows, 0, s->Rkv), NULL, mat_cols(kva, 0, s->Rkv), p->kv_a_norm->w.p,
                              LATENT_EPS));
    TRY(cx->ops->cast(&cx->op, key, mat_cols(kva, s->Rkv, s->Dr)));
    prof_leave();
    return rotate_key(s, cx, a, key, false);
}

Err attention_cached(const Shape *s, Cx *cx, const AttentionParams *p, Mat y, Mat x, const LatentCache *c) {
    int64_t T = x.rows;
    AttentionSaved a = {.nseq = 1, .S = T, .rope = c->rope + c->n * s->Dr, .x = x};
    LatentShape shape = {c->n, s->H, s->Dn, s->Dr, s->Dv, s->Rkv, s->softmax_scale};
    Mat rows = c->row[cx->layer], q, o_x;
    Operand o;
    CxMark acts = cx_mark_acts(cx), scratch = cx_mark_scratch(cx);
    ARENA_NEW(cx->acts, a.rstd, T);
    TRY(operand_normed(s, cx, &a.n, a.rstd, x, p->norm, s->eps, SITE_ATTN_IN_X));
    TRY(query_latent_fwd(s, cx, p, &a, T));
    TRY(remember(s, cx, p, &a, mat_rows(rows, c->n, T)));
    TRY(queries_fwd(s, cx, p, &a, cx->scratch, &q));
    TRY(arena_mat(cx->scratch, &o_x, s->act, T, s->H * s->Dv, "attn.o"));
    prof_enter(PROF_ATTENTION);
    TRY(attn_latent_fwd_cpu(&cx->op, o_x, q, mat_rows(rows, 0, c->n + T), p->kv_b->w, shape));
    prof_leave();
    TRY(operand_make(s, cx, &o, cx->scratch, o_x, SITE_O_X, false));
    TRY(project_out(s, cx, p, y, x, &o));
    cx_release_scratch(cx, scratch);
    cx_release_acts(cx, acts);
    return OK;
}

// core_bwd: from the output gradient to dq, dkv and the shared key's part of dkva, which stay on scratch or acts.
static Err core_bwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat dy) {
    int64_t T = dy.rows;
    Arena *arena = gradient_arena(s, cx);
    TRY(arena_mat(arena, &a->dq, s->act, T, s->H * (s->Dn + s->Dr), "attn.dq"));
    TRY(arena_mat(arena, &a->dkv, s->act, T, s->H * (s->Dn + s->Dv), "attn.dkv"));
    TRY(arena_mat(arena, &a->dkva, s->act, T, s->Rkv + s->Dr, "attn.dkva"));
    size_t mark = arena_mark(cx->scratch);
    Operand dyq;
    Mat dout, q = a->q, kv = a->kv, o_x;
    if (s->recompute_up) {
        AttentionSaved in;
        TRY(restored(s, cx, p, &in, a));
        TRY(up_project(s, cx, p, &in, cx->scratch, &q, &kv));
    }
    TRY(kept_out(s, cx, a, &o_x));
    TRY(operand_pair(s, cx, &dyq, &a->dy_t, dy, SITE_O_DY, SITE_O_DY_T, groups_none()));
    TRY(arena_mat(cx->scratch, &dout, s->act, T, s->H * s->Dv, "attn.dout"));
    TRY(linear_dgrad(s, cx, dout, &dyq, p->o, groups_none()));
    Mat kr = mat_cols(a->kva, s->Rkv, s->Dr), dkr = mat_cols(a->dkva, s->Rkv, s->Dr);
    prof_enter(PROF_ATTENTION);
    TRY(cx->ops->attn_bwd(&cx->op, a->dq, a->dkv, dkr, dout, o_x, a->lse, q, kv, kr, attn_shape(s, a), a->doc_start));
    prof_leave();
    TRY(rotate(s, cx, a, a->dq, true));
    TRY(rotate_key(s, cx, a, dkr, true));
    arena_release(cx->scratch, mark);
    return OK;
}

// latent_bwd: through an up projection and its norm: from dup [T,.] to draw, the gradient of the raw latent.
static Err latent_bwd(const Shape *s, Cx *cx, Mat draw, const Operand *dup, const Param *up, Mat raw, const Param *norm,
                      const float *rstd) {
    size_t mark = arena_mark(cx->scratch);
    Mat dlatent;
    TRY(arena_mat(cx->scratch, &dlatent, s->act, raw.rows, raw.cols, "attn.dlatent"));
    TRY(linear_dgrad(s, cx, dlatent, dup, up, groups_none()));
    TRY(norm_bwd(cx, draw, dlatent, raw, norm, rstd, mat_none()));
    arena_release(cx->scratch, mark);
    return OK;
}

Err attention_bwd_input(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat dx, Mat dy) {
    Groups all = groups_none();
    size_t mark = arena_mark(cx->scratch);
    TRY(core_bwd(s, cx, p, a, dy));
    Operand dq, dkv, dqa, dkva;
    TRY(operand_pair(s, cx, &dkv, &a->dkv_t, a->dkv, SITE_KV_B_DY, SITE_KV_B_DY_T, all));
    TRY(latent_bwd(s, cx, mat_cols(a->dkva, 0, s->Rkv), &dkv, p->kv_b, mat_cols(a->kva, 0, s->Rkv), p->kv_a_norm,
                   a->rstd_kv));
    TRY(operand_pair(s, cx, &dkva, &a->dkva_t, a->dkva, SITE_KV_A_DY, SITE_KV_A_DY_T, all));
    const Param *first = p->q; // the linear that shares its input with kv_a
    if (s->Rq > 0) {
        TRY(operand_pair(s, cx, &dq, &a->dq_t, a->dq, SITE_Q_B_DY, SITE_Q_B_DY_T, all));
        TRY(arena_mat(gradient_arena(s, cx), &a->dcq_raw, s->act, dy.rows, s->Rq, "attn.dcq_raw"));
        TRY(latent_bwd(s, cx, a->dcq_raw, &dq, p->q_b, a->cq_raw, p->q_a_norm, a->rstd_q));
        TRY(operand_pair(s, cx, &dqa, &a->dq_a_t, a->dcq_raw, SITE_Q_A_DY, SITE_Q_A_DY_T, all));
        first = p->q_a;
    } else {
        TRY(operand_pair(s, cx, &dqa, &a->dq_a_t, a->dq, SITE_Q_DY, SITE_Q_DY_T, all));
    }
    Mat dn;
    TRY(arena_mat(cx->scratch, &dn, s->act, dy.rows, s->D, "attn.dn"));
    TRY(linear_dgrad_pair(s, cx, dn, &dqa, first, &dkva, p->kv_a, groups_none()));
    TRY(norm_bwd(cx, dx, dn, a->x, p->norm, a->rstd, dy));
    arena_release(cx->scratch, mark);
    return OK;
}

Err attention_bwd_weight(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a) {
    Groups all = groups_none();
    size_t mark = arena_mark(cx->scratch);
    Turned x;
    if (s->cache_o_e5m6) x = a->o_t;
    else TRY(turn_codes(s, cx, &x, &a->o, SITE_O_X_T, all));
    TRY(linear_wgrad(s, cx, p->o, &a->dy_t, &x, all));
    arena_release(cx->scratch, mark);
    AttentionSaved in;
    TRY(restored(s, cx, p, &in, a));
    size_t inner = arena_mark(cx->scratch);
    TRY(turn_codes(s, cx, &x, &in.ckv, SITE_KV_B_X_T, all));
    TRY(linear_wgrad(s, cx, p->kv_b, &a->dkv_t, &x, all));
    arena_release(cx->scratch, inner);
    if (s->Rq > 0) {
        TRY(turn_codes(s, cx, &x, &in.cq, SITE_Q_B_X_T, all));
        TRY(linear_wgrad(s, cx, p->q_b, &a->dq_t, &x, all));
        arena_release(cx->scratch, inner);
    }
    TRY(turn_codes(s, cx, &x, &in.n, SITE_ATTN_IN_X_T, all));
    TRY(linear_wgrad(s, cx, s->Rq > 0 ? p->q_a : p->q, &a->dq_a_t, &x, all));
    TRY(linear_wgrad(s, cx, p->kv_a, &a->dkva_t, &x, all));
    arena_release(cx->scratch, mark);
    return OK;
}
