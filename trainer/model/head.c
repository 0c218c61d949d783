// head.c - chunked head and loss.
//
// The FP32 logits of a few rows lie in cache between their product and the loss; their gradients are collected for as
// many rows as the gradient of the head, which every product with them reads and writes, is worth. A device has no such
// cache: there as many rows as fill it, and as make the product over them worth its 8 bytes of gradient, are one chunk.
#include "head.h"

#include "prof.h"
#include "staging.h"

#define LOGITS ((int64_t)2 << 20)          // at a time: 8 MiB
#define PARTS 4                            // as many logits give one matrix of gradients
#define DEVICE_LOGITS ((int64_t)256 << 20) // at a time on a device: 1 GiB
#define DEVICE_ROWS ((int64_t)4096)        // and no more rows

static int64_t chosen;
void head_choose_rows(int64_t rows) {
    chosen = rows;
}

static int64_t rows_at_once(int64_t V, bool on_device) {
    if (chosen) return chosen;
    if (on_device) return max_i64(min_i64(DEVICE_LOGITS / V, DEVICE_ROWS) / TILE * TILE, TILE);
    int64_t rows = LOGITS / V / 64 * 64;
    return rows < 64 ? 64 : rows;
}

size_t head_device_bytes(const Shape *s) {
    int64_t rows = min_i64(rows_at_once(s->V, true), s->B * s->S);
    size_t gradient = s->act == DT_F32 ? 0 : dtype_bytes(s->act);
    return (size_t)(rows * s->V) * (sizeof(float) + gradient);
}

// chunk_bwd: gradients of one chunk of rows.
static Err chunk_bwd(Cx *cx, Param *head, Mat dn, Mat n, Mat dlogits) {
    TRY(cx->ops->gemm_nn(&cx->op, dn, dlogits, head->w, false));
    bool adds = !head->is_clear;
    head->is_clear = false;
    return cx->ops->gemm_tn(&cx->op, head->grad, dlogits, n, adds);
}

// Room for one chunk. Without a backward there are no dlogits; in FP32 the logits become their gradients in place.
typedef struct Chunk {
    int64_t rows, part; // rows of dlogits, of logits
    Mat logits, dlogits;
    float *loss;
    int32_t *correct;
} Chunk;

static Err chunk_make(const Shape *s, Cx *cx, Chunk *c, int64_t T, bool with_grad) {
    bool on_device = !staging_is_host(cx);
    c->part = min_i64(rows_at_once(s->V, on_device), T);
    c->rows = with_grad && !on_device ? min_i64(PARTS * c->part, T) : c->part;
    c->logits = c->dlogits = mat_none();
    ARENA_NEW(cx->scratch, c->loss, T);
    ARENA_NEW(cx->scratch, c->correct, T);
    if (!with_grad || s->act != DT_F32) TRY(arena_mat(cx->scratch, &c->logits, DT_F32, c->part, s->V, "head.logits"));
    if (with_grad) TRY(arena_mat(cx->scratch, &c->dlogits, s->act, c->rows, s->V, "head.dlogits"));
    return OK;
}

// What the loss of one head needs; rows are those of the micro-batch.
typedef struct HeadCall {
    Param *head;
    Mat n;
    const int32_t *target;
    float scale;
    int mtp;
    const Taps *taps;
} HeadCall;

// chunk_loss: losses of rows [r0, r0+rows), and the gradients of their logits from row `at` of dlogits on.
static Err chunk_loss(Cx *cx, const HeadCall *h, const Chunk *c, int64_t r0, int64_t rows, int64_t at) {
    Mat d = c->dlogits.p ? mat_rows(c->dlogits, at, rows) : mat_none();
    Mat logits = c->logits.p ? mat_rows(c->logits, 0, rows) : d;
    TRY(cx->ops->gemm_nt(&cx->op, logits, mat_rows(h->n, r0, rows), h->head->w, false));
    if (h->taps && h->taps->logits) TRY(h->taps->logits(h->taps->user, h->mtp, r0, logits));
    return cx->ops->xent_fwd_bwd(&cx->op, c->loss + r0, c->correct + r0, d, logits, h->target + r0, h->scale);
}

Err head_loss(const Shape *s, Cx *cx, Param *head, Mat dn, Mat n, const int32_t *target,
              double scale, int mtp, const Taps *taps, float *host_loss, int32_t *host_correct) {
    int64_t T = n.rows;
    size_t mark = arena_mark(cx->scratch);
    HeadCall h = {head, n, target, (float)scale, mtp, taps};
    Chunk c;
    TRY(chunk_make(s, cx, &c, T, dn.p != NULL));
    prof_enter(PROF_HEAD);
    for (int64_t r0 = 0; r0 < T; r0 += c.rows) {
        int64_t rows = min_i64(c.rows, T - r0);
        for (int64_t at = 0; at < rows; at += c.part)
            TRY(chunk_loss(cx, &h, &c, r0 + at, min_i64(c.part, rows - at), at));
        if (dn.p) TRY(chunk_bwd(cx, head, mat_rows(dn, r0, rows), mat_rows(n, r0, rows), mat_rows(c.dlogits, 0, rows)));
        if (cx->is_measure) break; // the chunks are alike
    }
    prof_leave();
    TRY(cx->dev->read(host_loss, c.loss, (size_t)T * sizeof *c.loss));
    TRY(cx->dev->read(host_correct, c.correct, (size_t)T * sizeof *c.correct));
    arena_release(cx->scratch, mark);
    return OK;
}
