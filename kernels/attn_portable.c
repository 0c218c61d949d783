// attn_portable.c - attention in plain loops over vectors of the compiler, product and sum rounded
// apart: for any processor. Contract: attn.h.
//
// A task turns keys and values of its head into FP32 once: transposed panels of 64 positions for
// products whose columns are positions, plain rows for sums over positions. Queries go through in
// blocks of 48 rows. The forward keeps the scores of a block against all positions (48 x S), the
// backward goes panel by panel and recomputes the probabilities from the saved log-sum.
#include "attn_core.h"
#include "attn_engine.h"
#include "attn_gemm.h"

#define Q_ROWS 48 // rows of a query block, a multiple of AG_ROWS
#define PANEL 64  // positions of a panel, a multiple of ROW_LANES

// Buffers of one task. D = Dn+Dr. Widths ending in p are padded to 16 with zeros.
typedef struct AttnRoom {
    float *kt, *vt; // panels [S/64][D or Dv][64]
    float *k, *v;   // rows [S][Dp], [S][Vp]
    float *dk, *dv; // rows [S][Dp], [S][Vp]
    float *q, *dq,
        *o;        // query block [Q_ROWS][Dp], its gradient, output (or its gradient) [Q_ROWS][Vp]
    float *p, *ds; // probabilities and score gradients: fwd [Q_ROWS][Sp], bwd [Q_ROWS][PANEL]
} AttnRoom;

typedef struct AttnDims {
    const AttnCall *c;
    AttnShape a;
    int64_t D, Dp, Vp, Sp;
} AttnDims;

static AttnDims attn_dims(const AttnCall *c, AttnShape a) {
    AttnDims d = {c, a, a.Dn + a.Dr, 0, 0, 0};
    d.Dp = attn_round_up(d.D, ROW_LANES);
    d.Vp = attn_round_up(a.Dv, ROW_LANES);
    // Not a power of two: rows of scores share no cache set.
    d.Sp = attn_round_up(a.S, PANEL) + ROW_LANES;
    return d;
}

static int64_t attn_lay(AttnRoom *r, float *room, AttnDims d, bool bwd) {
    int64_t at = 0;
    memset(r, 0, sizeof *r);
    r->kt = attn_take(room, &at, d.Sp * d.D);
    r->k = attn_take(room, &at, d.a.S * d.Dp);
    r->q = attn_take(room, &at, Q_ROWS * d.Dp);
    r->o = attn_take(room, &at, Q_ROWS * d.Vp);
    r->p = attn_take(room, &at, Q_ROWS * (bwd ? PANEL : d.Sp));
    if (!bwd) {
        r->v = attn_take(room, &at, d.a.S * d.Vp);
        return at;
    }
    r->vt = attn_take(room, &at, d.Sp * d.a.Dv);
    r->dk = attn_take(room, &at, d.a.S * d.Dp);
    r->dv = attn_take(room, &at, d.a.S * d.Vp);
    r->dq = attn_take(room, &at, Q_ROWS * d.Dp);
    r->ds = attn_take(room, &at, Q_ROWS * PANEL);
    return at;
}

static int64_t room_of(AttnShape a, bool is_bwd) {
    AttnRoom r;
    return attn_lay(&r, NULL, attn_dims(NULL, a), is_bwd);
}

// Columns [c, c+n) of rows [r0, r0+rows) into dst[row][at ...], row length ld.
ROW_INLINE void load_block(float *dst, int64_t ld, int64_t at, Mat m, int64_t r0, int64_t rows,
                           int64_t c, int64_t n) {
    for (int64_t i = 0; i < rows; i++) row_copy(dst + i * ld + at, m, r0 + i, c, n);
}
ROW_INLINE void zero_pad(float *dst, int64_t ld, int64_t rows, int64_t used) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = used; c < ld; c++) dst[i * ld + c] = 0.0f;
}
// Rows [S][ld] to panels [S/64][n][64]; positions past S are zero.
ROW_INLINE void to_panels(float *dst, const float *src, int64_t ld, int64_t S, int64_t n) {
    for (int64_t j0 = 0; j0 < S; j0 += PANEL, dst += n * PANEL) {
        int64_t w = min_i64(PANEL, S - j0);
        for (int64_t d0 = 0; d0 < n; d0 += 16)
            for (int64_t j = 0; j < PANEL; j++)
                for (int64_t d = d0; d < min_i64(n, d0 + 16); d++)
                    dst[d * PANEL + j] = j < w ? src[(j0 + j) * ld + d] : 0.0f;
    }
}

// Probabilities of one row, unnormalised: positions [first, i] of p; all others of [lo, hi) become
// 0. Returns the log of the softmax denominator; *sum is the sum of the probabilities.
ROW_INLINE float softmax_row(float *p, int64_t lo, int64_t first, int64_t i, int64_t hi,
                             float scale, float *sum) {
    for (int64_t j = lo; j < first; j++) p[j] = 0.0f;
    for (int64_t j = i + 1; j < hi; j++) p[j] = 0.0f;
    for (int64_t j = first; j <= i; j++) p[j] *= scale;
    float max = row_max(p + first, i + 1 - first, -INFINITY);
    for (int64_t j = first; j <= i; j++) p[j] = exp_f32(p[j] - max);
    V16 acc = {0};
    v16_add(&acc, p + first, i + 1 - first);
    *sum = v16_sum(&acc);
    return (float)((double)max + log((double)*sum));
}

// Keys of one head as rows [S][Dp]: [k_nope ; k_rope].
ROW_INLINE void load_keys(float *k, Mat kv, Mat kr, const AttnDims *d, int64_t t0, int64_t h) {
    load_block(k, d->Dp, 0, kv, t0, d->a.S, h * (d->a.Dn + d->a.Dv), d->a.Dn);
    load_block(k, d->Dp, d->a.Dn, kr, t0, d->a.S, 0, d->a.Dr);
    zero_pad(k, d->Dp, d->a.S, d->D);
}
// Values of one head as rows [S][Vp].
ROW_INLINE void load_values(float *v, Mat kv, const AttnDims *d, int64_t t0, int64_t h) {
    load_block(v, d->Vp, 0, kv, t0, d->a.S, h * (d->a.Dn + d->a.Dv) + d->a.Dn, d->a.Dv);
    zero_pad(v, d->Vp, d->a.S, d->a.Dv);
}

ROW_CLONES static void fwd_rows(const AttnDims *d, int64_t s, int64_t h, int64_t from, int64_t to,
                                const AttnRoom *w) {
    AttnShape a = d->a;
    Mat o = d->c->o, q = d->c->q, kv = d->c->kv, kr = d->c->kr;
    float *lse = d->c->lse;
    int64_t t0 = s * a.S, D = d->D;
    float sum[Q_ROWS];
    load_keys(w->k, kv, kr, d, t0, h);
    to_panels(w->kt, w->k, d->Dp, a.S, D);
    load_values(w->v, kv, d, t0, h);
    for (int64_t i0 = from; i0 < to; i0 += Q_ROWS) {
        int64_t rows = min_i64(Q_ROWS, to - i0), i1 = i0 + rows;
        int64_t lo = attn_block_first(d->c, t0, i0, i1, PANEL), hi = attn_round_up(i1, ROW_LANES);
        load_block(w->q, d->Dp, 0, q, t0 + i0, rows, h * D, D);
        for (int64_t j0 = lo; j0 < i1; j0 += PANEL)
            ag_product(w->p + j0, d->Sp, w->q, d->Dp, 1, w->kt + j0 * D, PANEL, rows,
                       min_i64(PANEL, hi - j0), D, false);
        for (int64_t i = 0; i < rows; i++)
            lse[h * q.rows + t0 + i0 + i] = softmax_row(
                w->p + i * d->Sp, lo, attn_first(d->c, t0, i0 + i), i0 + i, hi, a.scale, sum + i);
        for (int64_t j0 = lo; j0 < i1; j0 += PANEL)
            ag_product(w->o, d->Vp, w->p + j0, d->Sp, 1, w->v + j0 * d->Vp, d->Vp, rows, d->Vp,
                       min_i64(PANEL, i1 - j0), j0 > lo);
        for (int64_t i = 0; i < rows; i++) {
            float *row = w->o + i * d->Vp;
            for (int64_t c = 0; c < a.Dv; c++) row[c] /= sum[i];
            row_put(o, t0 + i0 + i, h * a.Dv, a.Dv, row);
        }
    }
}

// Scores of rows [i0, i0+rows) against the panel at j0, then p and ds in place.
ROW_INLINE void bwd_scores(const AttnCall *g, const AttnDims *d, const AttnRoom *w, int64_t t0,
                           int64_t h, int64_t i0, int64_t rows, int64_t j0, int64_t width,
                           const float *delta) {
    float scale = d->a.scale;
    ag_product(w->p, PANEL, w->q, d->Dp, 1, w->kt + j0 * d->D, PANEL, rows, width, d->D, false);
    ag_product(w->ds, PANEL, w->o, d->Vp, 1, w->vt + j0 * d->a.Dv, PANEL, rows, width, d->a.Dv,
               false);
    for (int64_t i = 0; i < rows; i++) {
        float *p = w->p + i * PANEL, *ds = w->ds + i * PANEL;
        float lse = g->lse[h * g->q.rows + t0 + i0 + i], dl = delta[i];
        int64_t from = max_i64(0, min_i64(width, attn_first(d->c, t0, i0 + i) - j0));
        int64_t to = max_i64(from, min_i64(width, i0 + i + 1 - j0));
        for (int64_t j = 0; j < from; j++) p[j] = ds[j] = 0.0f;
        for (int64_t j = from; j < to; j++) {
            p[j] = attn_prob(p[j], scale, lse);
            ds[j] = attn_dscore(p[j], ds[j], dl, scale);
        }
        for (int64_t j = to; j < width; j++) p[j] = ds[j] = 0.0f;
    }
}

// dkr_part [S, Dr]: this head's part of the gradient of the shared key.
ROW_CLONES static void bwd_rows(const AttnCall *g, float *dkr_part, const AttnDims *d, int64_t s,
                                int64_t h, const AttnRoom *w) {
    AttnShape a = d->a;
    int64_t t0 = s * a.S, D = d->D;
    float delta[Q_ROWS], buf[ROW_CHUNK];
    load_keys(w->k, g->kv, g->kr, d, t0, h);
    to_panels(w->kt, w->k, d->Dp, a.S, D);
    load_values(w->dv, g->kv, d, t0, h); // values are only needed as panels: dv lends its rows
    to_panels(w->vt, w->dv, d->Vp, a.S, a.Dv);
    memset(w->dk, 0, (size_t)(a.S * d->Dp) * 4);
    memset(w->dv, 0, (size_t)(a.S * d->Vp) * 4);
    zero_pad(w->q, d->Dp, Q_ROWS, D);
    zero_pad(w->o, d->Vp, Q_ROWS, a.Dv);
    for (int64_t i0 = 0; i0 < a.S; i0 += Q_ROWS) {
        int64_t rows = min_i64(Q_ROWS, a.S - i0), i1 = i0 + rows;
        int64_t lo = attn_block_first(d->c, t0, i0, i1, PANEL), hi = attn_round_up(i1, ROW_LANES);
        load_block(w->q, d->Dp, 0, g->q, t0 + i0, rows, h * D, D);
        load_block(w->o, d->Vp, 0, g->dout, t0 + i0, rows, h * a.Dv, a.Dv);
        for (int64_t i = 0; i < rows; i++) {
            V16 acc = {0};
            for (int64_t c = 0; c < a.Dv; c += ROW_CHUNK) {
                int64_t n = min_i64(a.Dv - c, ROW_CHUNK);
                v16_dot(&acc, w->o + i * d->Vp + c,
                        row_get(g->o, t0 + i0 + i, h * a.Dv + c, n, buf), n);
            }
            delta[i] = v16_sum(&acc);
        }
        for (int64_t j0 = lo; j0 < i1; j0 += PANEL) {
            int64_t n = min_i64(PANEL, i1 - j0), width = min_i64(PANEL, hi - j0);
            bwd_scores(g, d, w, t0, h, i0, rows, j0, width, delta);
            ag_product(w->dq, d->Dp, w->ds, PANEL, 1, w->k + j0 * d->Dp, d->Dp, rows, d->Dp, n,
                       j0 > lo);
            ag_product(w->dv + j0 * d->Vp, d->Vp, w->p, 1, PANEL, w->o, d->Vp, n, d->Vp, rows,
                       true);
            ag_product(w->dk + j0 * d->Dp, d->Dp, w->ds, 1, PANEL, w->q, d->Dp, n, d->Dp, rows,
                       true);
        }
        for (int64_t i = 0; i < rows; i++) row_put(g->dq, t0 + i0 + i, h * D, D, w->dq + i * d->Dp);
    }
    int64_t col = h * (a.Dn + a.Dv);
    for (int64_t j = 0; j < a.S; j++) {
        row_put(g->dkv, t0 + j, col, a.Dn, w->dk + j * d->Dp);
        row_put(g->dkv, t0 + j, col + a.Dn, a.Dv, w->dv + j * d->Vp);
        memcpy(dkr_part + j * a.Dr, w->dk + j * d->Dp + a.Dn, (size_t)a.Dr * 4);
    }
}

static void fwd_task(const AttnCall *c, int64_t s, int64_t h, int64_t i0, int64_t i1, float *room) {
    AttnDims d = attn_dims(c, c->a);
    AttnRoom w;
    attn_lay(&w, room, d, false);
    fwd_rows(&d, s, h, i0, i1, &w);
}

static void bwd_task(const AttnCall *c, int64_t s, int64_t h, float *dkr_part, float *room) {
    AttnDims d = attn_dims(c, c->a);
    AttnRoom w;
    attn_lay(&w, room, d, true);
    bwd_rows(c, dkr_part, &d, s, h, &w);
}

const AttnIsa attn_portable = {"portable", room_of, fwd_task, bwd_task};
