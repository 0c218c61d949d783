// head.c - chunked head and loss.
#include "head.h"

#include "prof.h"

#define CHUNK_VALUES ((int64_t)8 << 20) // logits per chunk: 32 MiB

static int64_t chunk_rows(int64_t V) {
    int64_t rows = CHUNK_VALUES / V / 64 * 64;
    return rows < 64 ? 64 : rows;
}

// chunk_bwd: gradients of one chunk of rows.
static Err chunk_bwd(Cx *cx, Param *head, Mat dn, Mat n, Mat dlogits) {
    TRY(cx->ops->gemm_nn(&cx->op, dn, dlogits, head->w, false));
    TRY(cx->ops->gemm_tn(&cx->op, head->grad, dlogits, n, true));
    return OK;
}

Err head_loss(const Shape *s, Cx *cx, Param *head, Mat dn, Mat n, const int32_t *target,
              double scale, int mtp, const Taps *taps, float *host_loss, int32_t *host_correct) {
    int64_t T = n.rows, step = chunk_rows(s->V);
    size_t mark = arena_mark(cx->scratch);
    float *loss = NULL;
    int32_t *correct = NULL;
    Mat logits, dlogits = mat_none();
    ARENA_NEW(cx->scratch, loss, T);
    ARENA_NEW(cx->scratch, correct, T);
    TRY(arena_mat(cx->scratch, &logits, DT_F32, min_i64(step, T), s->V, "head.logits"));
    if (dn.p && s->act == DT_F32) dlogits = logits;
    else if (dn.p) TRY(arena_mat(cx->scratch, &dlogits, s->act, min_i64(step, T), s->V, "head.dlogits"));
    prof_enter(PROF_HEAD);
    for (int64_t r0 = 0; r0 < T; r0 += step) {
        int64_t rows = min_i64(step, T - r0);
        Mat part = mat_rows(logits, 0, rows), dpart = dn.p ? mat_rows(dlogits, 0, rows) : mat_none();
        TRY(cx->ops->gemm_nt(&cx->op, part, mat_rows(n, r0, rows), head->w, false));
        if (taps && taps->logits) TRY(taps->logits(taps->user, mtp, r0, part));
        TRY(cx->ops->xent_fwd_bwd(&cx->op, loss + r0, correct + r0, dpart, part, target + r0, (float)scale));
        if (dn.p) TRY(chunk_bwd(cx, head, mat_rows(dn, r0, rows), mat_rows(n, r0, rows), dpart));
        if (cx->is_measure) break; // the chunks are alike
    }
    prof_leave();
    TRY(cx->dev->to_host(host_loss, loss, (size_t)T * sizeof *loss));
    TRY(cx->dev->to_host(host_correct, correct, (size_t)T * sizeof *correct));
    arena_release(cx->scratch, mark);
    return OK;
}
