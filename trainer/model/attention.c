// attention.c - multi-head latent attention, forward and backward.
//
// Letters: T tokens, D width, H heads, Dn/Dr/Dv unrotated/rotated/value head widths, Rq/Rkv latent ranks.
#include "attention.h"

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

// rotate: q's heads and the shared key, in place.
static Err rotate(const Shape *s, Cx *cx, const AttentionSaved *a, Mat q, Mat kr, bool inverse) {
    RopeShape heads = {a->S, s->H, s->Dn + s->Dr, s->Dn, s->Dr};
    RopeShape key = {a->S, 1, s->Dr, 0, s->Dr};
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->rope(&cx->op, q, heads, a->rope, inverse));
    TRY(cx->ops->rope(&cx->op, kr, key, a->rope, inverse));
    prof_leave();
    return OK;
}

static Err query_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, int64_t T) {
    Groups all = groups_none();
    TRY(arena_mat(cx->acts, &a->q, s->act, T, s->H * (s->Dn + s->Dr), "attn.q"));
    if (s->Rq == 0) return linear_fprop(s, cx, a->q, &a->n, p->q, all);
    TRY(arena_mat(cx->acts, &a->cq_raw, s->act, T, s->Rq, "attn.cq_raw"));
    TRY(linear_fprop(s, cx, a->cq_raw, &a->n, p->q_a, all));
    ARENA_NEW(cx->acts, a->rstd_q, T);
    TRY(operand_normed(s, cx, &a->cq, a->rstd_q, a->cq_raw, p->q_a_norm, LATENT_EPS));
    return linear_fprop(s, cx, a->q, &a->cq, p->q_b, all);
}

static Err keyvalue_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, int64_t T) {
    Groups all = groups_none();
    TRY(arena_mat(cx->acts, &a->kva, s->act, T, s->Rkv + s->Dr, "attn.kva"));
    TRY(linear_fprop(s, cx, a->kva, &a->n, p->kv_a, all));
    ARENA_NEW(cx->acts, a->rstd_kv, T);
    TRY(operand_normed(s, cx, &a->ckv, a->rstd_kv, mat_cols(a->kva, 0, s->Rkv), p->kv_a_norm, LATENT_EPS));
    TRY(arena_mat(cx->acts, &a->kv, s->act, T, s->H * (s->Dn + s->Dv), "attn.kv"));
    return linear_fprop(s, cx, a->kv, &a->ckv, p->kv_b, all);
}

Err attention_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat y, Mat x,
                  int64_t nseq, int64_t S, const float *rope, const int32_t *doc_start) {
    int64_t T = nseq * S;
    AttentionSaved saved = {.nseq = nseq, .S = S, .rope = rope, .doc_start = doc_start, .x = x};
    *a = saved;
    ARENA_NEW(cx->acts, a->rstd, T);
    ARENA_NEW(cx->acts, a->lse, s->H * T);
    TRY(operand_normed(s, cx, &a->n, a->rstd, x, p->norm, s->eps));
    TRY(query_fwd(s, cx, p, a, T));
    TRY(keyvalue_fwd(s, cx, p, a, T));
    Mat kr = mat_cols(a->kva, s->Rkv, s->Dr);
    TRY(rotate(s, cx, a, a->q, kr, false));
    TRY(arena_mat(cx->acts, &a->o_x, s->act, T, s->H * s->Dv, "attn.o"));
    prof_enter(PROF_ATTENTION);
    TRY(cx->ops->attn_fwd(&cx->op, a->o_x, a->lse, a->q, a->kv, kr, attn_shape(s, a), doc_start));
    prof_leave();
    TRY(operand_make(s, cx, &a->o, cx->acts, a->o_x, false));
    size_t mark = arena_mark(cx->scratch);
    Mat out;
    TRY(arena_mat(cx->scratch, &out, s->act, T, s->D, "attn.out"));
    TRY(linear_fprop(s, cx, out, &a->o, p->o, groups_none()));
    prof_enter(PROF_ELEMENTWISE);
    TRY(cx->ops->add(&cx->op, y, x, out));
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}

// core_bwd: from the output gradient to dq, dkv and the shared key's part of dkva.
static Err core_bwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat dy) {
    int64_t T = dy.rows;
    TRY(arena_mat(cx->acts, &a->dq, s->act, T, s->H * (s->Dn + s->Dr), "attn.dq"));
    TRY(arena_mat(cx->acts, &a->dkv, s->act, T, s->H * (s->Dn + s->Dv), "attn.dkv"));
    TRY(arena_mat(cx->acts, &a->dkva, s->act, T, s->Rkv + s->Dr, "attn.dkva"));
    size_t mark = arena_mark(cx->scratch);
    Operand dyq;
    Mat dout;
    TRY(operand_make(s, cx, &dyq, cx->scratch, dy, false));
    TRY(arena_mat(cx->scratch, &dout, s->act, T, s->H * s->Dv, "attn.dout"));
    TRY(linear_dgrad(s, cx, dout, &dyq, p->o, groups_none(), false));
    Mat kr = mat_cols(a->kva, s->Rkv, s->Dr), dkr = mat_cols(a->dkva, s->Rkv, s->Dr);
    prof_enter(PROF_ATTENTION);
    TRY(cx->ops->attn_bwd(&cx->op, a->dq, a->dkv, dkr, dout, a->o_x, a->lse, a->q, a->kv, kr, attn_shape(s, a),
                          a->doc_start));
    prof_leave();
    TRY(rotate(s, cx, a, a->dq, dkr, true));
    arena_release(cx->scratch, mark);
    return OK;
}

// latent_bwd: through an up projection and its norm: from dup [T,.] to draw, the gradient of the raw latent.
static Err latent_bwd(const Shape *s, Cx *cx, Mat draw, const Operand *dup, const Param *up, Mat raw, const Param *norm,
                      const float *rstd) {
    size_t mark = arena_mark(cx->scratch);
    Mat dlatent;
    TRY(arena_mat(cx->scratch, &dlatent, s->act, raw.rows, raw.cols, "attn.dlatent"));
    TRY(linear_dgrad(s, cx, dlatent, dup, up, groups_none(), false));
    TRY(norm_bwd(cx, draw, dlatent, raw, norm, rstd, mat_none()));
    arena_release(cx->scratch, mark);
    return OK;
}

Err attention_bwd_input(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat dx, Mat dy) {
    a->dy = dy;
    TRY(core_bwd(s, cx, p, a, dy));
    size_t mark = arena_mark(cx->scratch);
    Operand dq, dkv, dqa, dkva;
    TRY(operand_make(s, cx, &dkv, cx->scratch, a->dkv, false));
    TRY(latent_bwd(s, cx, mat_cols(a->dkva, 0, s->Rkv), &dkv, p->kv_b, mat_cols(a->kva, 0, s->Rkv), p->kv_a_norm,
                   a->rstd_kv));
    TRY(operand_make(s, cx, &dkva, cx->scratch, a->dkva, false));
    TRY(operand_make(s, cx, &dq, cx->scratch, a->dq, false));
    const Param *first = p->q; // the linear that shares its input with kv_a
    dqa = dq;
    if (s->Rq > 0) {
        TRY(arena_mat(cx->acts, &a->dcq_raw, s->act, dy.rows, s->Rq, "attn.dcq_raw"));
        TRY(latent_bwd(s, cx, a->dcq_raw, &dq, p->q_b, a->cq_raw, p->q_a_norm, a->rstd_q));
        TRY(operand_make(s, cx, &dqa, cx->scratch, a->dcq_raw, false));
        first = p->q_a;
    }
    Mat dn;
    TRY(arena_mat(cx->scratch, &dn, s->act, dy.rows, s->D, "attn.dn"));
    TRY(linear_dgrad_pair(s, cx, dn, &dqa, first, &dkva, p->kv_a, groups_none()));
    TRY(norm_bwd(cx, dx, dn, a->x, p->norm, a->rstd, dy));
    arena_release(cx->scratch, mark);
    return OK;
}

static Err wgrad_one(const Shape *s, Cx *cx, Param *w, Mat dy, const Turned *x) {
    Turned t;
    size_t mark = arena_mark(cx->scratch);
    TRY(turn_fresh(s, cx, &t, dy, groups_none()));
    TRY(linear_wgrad(s, cx, w, &t, x, groups_none()));
    arena_release(cx->scratch, mark);
    return OK;
}

Err attention_bwd_weight(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a) {
    Groups all = groups_none();
    size_t mark = arena_mark(cx->scratch);
    Turned x;
    TRY(turn_codes(s, cx, &x, &a->o, all));
    TRY(wgrad_one(s, cx, p->o, a->dy, &x));
    arena_release(cx->scratch, mark);
    TRY(turn_codes(s, cx, &x, &a->ckv, all));
    TRY(wgrad_one(s, cx, p->kv_b, a->dkv, &x));
    arena_release(cx->scratch, mark);
    if (s->Rq > 0) {
        TRY(turn_codes(s, cx, &x, &a->cq, all));
        TRY(wgrad_one(s, cx, p->q_b, a->dq, &x));
        arena_release(cx->scratch, mark);
    }
    TRY(turn_codes(s, cx, &x, &a->n, all));
    TRY(wgrad_one(s, cx, s->Rq > 0 ? p->q_a : p->q, s->Rq > 0 ? a->dcq_raw : a->dq, &x));
    TRY(wgrad_one(s, cx, p->kv_a, a->dkva, &x));
    arena_release(cx->scratch, mark);
    return OK;
}
