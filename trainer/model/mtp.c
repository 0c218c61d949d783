// mtp.c - a multi-token prediction module.
#include "mtp.h"

#include "prof.h"

MtpParams mtp_params(const Params *p, const Shape *s, int64_t k, int64_t *count) {
    int64_t layer = s->nlayers + k - 1;
    MtpParams m = {0};
    m.embed = params_find(p, P_EMBED, -1);
    m.enorm = params_find(p, P_ENORM, layer);
    m.hnorm = params_find(p, P_HNORM, layer);
    m.eh_proj = params_find(p, P_EH_PROJ, layer);
    m.norm = params_find(p, P_MTP_NORM, layer);
    m.block = block_make(p, s, layer, count);
    return m;
}

// joined: a->cat = [RMSNorm_e(e) ; RMSNorm_h(h)], with recompute.norm on scratch until the caller releases it. The
// reciprocal norms are written unless NULL.
static Err joined(const Shape *s, Cx *cx, const MtpParams *p, MtpSaved *a, float *rstd_e, float *rstd_h) {
    TRY(arena_mat(s->recompute_norm ? cx->scratch : cx->acts, &a->cat, s->act, a->e.rows, 2 * s->D, "mtp.cat"));
    TRY(cx->ops->norm_rms_fwd(&cx->op, mat_cols(a->cat, 0, s->D), rstd_e, a->e, p->enorm->w.p, s->eps));
    return cx->ops->norm_rms_fwd(&cx->op, mat_cols(a->cat, s->D, s->D), rstd_h, a->h, p->hnorm->w.p, s->eps);
}

Err mtp_fwd(const Shape *s, Cx *cx, const MtpParams *p, MtpSaved *a, Mat h, const int32_t *token, const BlockRun *run,
            double *balance) {
    int64_t T = h.rows;
    Mat x;
    a->token = token;
    a->h = h;
    TRY(arena_mat(cx->acts, &a->e, s->act, T, s->D, "mtp.e"));
    TRY(arena_mat(cx->acts, &x, s->act, T, s->D, "mtp.x"));
    ARENA_NEW(cx->acts, a->rstd_e, T);
    ARENA_NEW(cx->acts, a->rstd_h, T);
    prof_enter(PROF_EMBED);
    TRY(cx->ops->embed_fwd(&cx->op, a->e, p->embed->w, token));
    size_t mark = arena_mark(cx->scratch);
    TRY(joined(s, cx, p, a, a->rstd_e, a->rstd_h));
    TRY(cx->ops->gemm_nt(&cx->op, x, a->cat, p->eh_proj->w, false));
    arena_release(cx->scratch, mark);
    prof_leave();
    return block_fwd(s, cx, &p->block, &a->block, x, run, balance);
}

Err mtp_bwd(const Shape *s, Cx *cx, const MtpParams *p, MtpSaved *a, Mat dh, Mat tmp, Mat dy, Mat dres,
            const BlockRun *run) {
    TRY(block_bwd(s, cx, &p->block, &a->block, tmp, dy, run));
    size_t mark = arena_mark(cx->scratch);
    Mat dcat, de;
    TRY(arena_mat(cx->scratch, &dcat, s->act, dy.rows, 2 * s->D, "mtp.dcat"));
    TRY(arena_mat(cx->scratch, &de, s->act, dy.rows, s->D, "mtp.de"));
    prof_enter(PROF_EMBED);
    if (s->recompute_norm) TRY(joined(s, cx, p, a, NULL, NULL));
    TRY(cx->ops->gemm_tn(&cx->op, p->eh_proj->grad, tmp, a->cat, true));
    TRY(cx->ops->gemm_nn(&cx->op, dcat, tmp, p->eh_proj->w, false));
    TRY(cx->ops->norm_rms_bwd(&cx->op, de, p->enorm->grad.p, mat_cols(dcat, 0, s->D), a->e, p->enorm->w.p, a->rstd_e,
                              mat_none()));
    TRY(cx->ops->embed_bwd(&cx->op, p->embed->grad, de, a->token));
    TRY(cx->ops->norm_rms_bwd(&cx->op, dh, p->hnorm->grad.p, mat_cols(dcat, s->D, s->D), a->h, p->hnorm->w.p,
                              a->rstd_h, dres));
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}
