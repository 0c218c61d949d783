// attn_cpu.c - causal attention on the CPU, one task per (sequence, head). Contract: attn.h.
//
// A task turns keys and values of its head into FP32 once: transposed panels of 64 positions for
// products whose columns are positions, plain rows for sums over positions. Queries go through in
// blocks of 48 rows. The forward keeps the scores of a block against all positions (48 x S), the
// backward goes panel by panel and recomputes the probabilities from the saved log-sum.
#include "attn.h"

#include <omp.h>

#include "attn_core.h"
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
    AttnShape a;
    int64_t D, Dp, Vp, Sp;
    const int32_t *doc_start;
} AttnDims;

static int64_t round_up(int64_t n, int64_t to) {
    return ceil_div(n, to) * to;
}

static AttnDims attn_dims(AttnShape a, const int32_t *doc_start) {
    AttnDims d = {a, a.Dn + a.Dr, 0, 0, 0, doc_start};
    d.Dp = round_up(d.D, ROW_LANES);
    d.Vp = round_up(a.Dv, ROW_LANES);
    d.Sp =
        round_up(a.S, PANEL) + ROW_LANES; // not a power of two: rows of scores share no cache set
    return d;
}

static Err attn_room(Arena *s, AttnRoom *r, AttnDims d, bool bwd) {
    memset(r, 0, sizeof *r);
    ARENA_NEW(s, r->kt, d.Sp * d.D);
    ARENA_NEW(s, r->k, d.a.S * d.Dp);
    ARENA_NEW(s, r->q, Q_ROWS * d.Dp);
    ARENA_NEW(s, r->o, Q_ROWS * d.Vp);
    ARENA_NEW(s, r->p, Q_ROWS * (bwd ? PANEL : d.Sp));
    if (!bwd) {
        ARENA_NEW(s, r->v, d.a.S * d.Vp);
        return OK;
    }
    ARENA_NEW(s, r->vt, d.Sp * d.a.Dv);
    ARENA_NEW(s, r->dk, d.a.S * d.Dp);
    ARENA_NEW(s, r->dv, d.a.S * d.Vp);
    ARENA_NEW(s, r->dq, Q_ROWS * d.Dp);
    ARENA_NEW(s, r->ds, Q_ROWS * PANEL);
    return OK;
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

// First position that a row of the sequence looks at.
ROW_INLINE int64_t doc_first(const AttnDims *d, int64_t t0, int64_t i) {
    if (!d->doc_start) return 0;
    int64_t j = d->doc_start[t0 + i];
    return j < 0 ? 0 : j > i ? i : j;
}
// First position that any of rows [i0, i1) looks at, down to a whole panel.
ROW_INLINE int64_t block_first(const AttnDims *d, int64_t t0, int64_t i0, int64_t i1) {
    int64_t first = i0;
    for (int64_t i = i0; i < i1; i++) first = min_i64(first, doc_first(d, t0, i));
    return first / PANEL * PANEL;
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

ROW_CLONES static void attn_fwd_task(Mat o, float *lse, Mat q, Mat kv, Mat kr, const AttnDims *d,
                                     int64_t s, int64_t h, const AttnRoom *w) {
    AttnShape a = d->a;
    int64_t t0 = s * a.S, D = d->D;
    float sum[Q_ROWS];
    load_keys(w->k, kv, kr, d, t0, h);
    to_panels(w->kt, w->k, d->Dp, a.S, D);
    load_values(w->v, kv, d, t0, h);
    for (int64_t i0 = 0; i0 < a.S; i0 += Q_ROWS) {
        int64_t rows = min_i64(Q_ROWS, a.S - i0), i1 = i0 + rows;
        int64_t lo = block_first(d, t0, i0, i1), hi = round_up(i1, ROW_LANES);
        load_block(w->q, d->Dp, 0, q, t0 + i0, rows, h * D, D);
        for (int64_t j0 = lo; j0 < i1; j0 += PANEL)
            ag_product(w->p + j0, d->Sp, w->q, d->Dp, 1, w->kt + j0 * D, PANEL, rows,
                       min_i64(PANEL, hi - j0), D, false);
        for (int64_t i = 0; i < rows; i++)
            lse[h * q.rows + t0 + i0 + i] = softmax_row(
                w->p + i * d->Sp, lo, doc_first(d, t0, i0 + i), i0 + i, hi, a.scale, sum + i);
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

static Err attn_check(Mat q, Mat kv, Mat kr, AttnShape a) {
    int64_t T = a.nseq * a.S;
    ROW_MAT(q, T, a.H * (a.Dn + a.Dr));
    ROW_MAT(kv, T, a.H * (a.Dn + a.Dv));
    ROW_MAT(kr, T, a.Dr);
    return OK;
}

// One room per thread that can be busy with `tasks` tasks.
static Err attn_rooms(OpCx *cx, AttnRoom **rooms, int *nthreads, int64_t tasks, AttnDims d,
                      bool bwd) {
    *nthreads = (int)max_i64(1, min_i64(row_threads(cx, tasks * d.a.S * d.a.S * d.D), tasks));
    ARENA_NEW(cx->scratch, *rooms, *nthreads);
    for (int i = 0; i < *nthreads; i++) TRY(attn_room(cx->scratch, *rooms + i, d, bwd));
    return OK;
}

Err attn_fwd_cpu(OpCx *cx, Mat o, float *lse, Mat q, Mat kv, Mat kr, AttnShape a,
                 const int32_t *doc_start) {
    TRY(attn_check(q, kv, kr, a));
    ROW_MAT(o, q.rows, a.H * a.Dv);
    AttnDims d = attn_dims(a, doc_start);
    int64_t tasks = a.nseq * a.H;
    if (tasks * a.S == 0) return OK;
    size_t mark = arena_mark(cx->scratch);
    AttnRoom *rooms = NULL;
    int nthreads = 1;
    TRY(attn_rooms(cx, &rooms, &nthreads, tasks, d, false));
#pragma omp parallel for schedule(dynamic) num_threads(nthreads)
    for (int64_t i = 0; i < tasks; i++)
        attn_fwd_task(o, lse, q, kv, kr, &d, i / a.H, i % a.H, rooms + omp_get_thread_num());
    arena_release(cx->scratch, mark);
    return OK;
}

typedef struct AttnGrads {
    Mat dq, dkv, dout, o, q, kv, kr;
    const float *lse;
} AttnGrads;

// Scores of rows [i0, i0+rows) against the panel at j0, then p and ds in place.
ROW_INLINE void bwd_scores(const AttnGrads *g, const AttnDims *d, const AttnRoom *w, int64_t t0,
                           int64_t h, int64_t i0, int64_t rows, int64_t j0, int64_t width,
                           const float *delta) {
    float scale = d->a.scale;
    ag_product(w->p, PANEL, w->q, d->Dp, 1, w->kt + j0 * d->D, PANEL, rows, width, d->D, false);
    ag_product(w->ds, PANEL, w->o, d->Vp, 1, w->vt + j0 * d->a.Dv, PANEL, rows, width, d->a.Dv,
               false);
    for (int64_t i = 0; i < rows; i++) {
        float *p = w->p + i * PANEL, *ds = w->ds + i * PANEL;
        float lse = g->lse[h * g->q.rows + t0 + i0 + i], dl = delta[i];
        int64_t from = max_i64(0, min_i64(width, doc_first(d, t0, i0 + i) - j0));
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
ROW_CLONES static void attn_bwd_task(const AttnGrads *g, float *dkr_part, const AttnDims *d,
                                     int64_t s, int64_t h, const AttnRoom *w) {
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
        int64_t lo = block_first(d, t0, i0, i1), hi = round_up(i1, ROW_LANES);
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

// dkr rows of n sequences from s0: the heads' parts [n][H][S][Dr] in head order.
ROW_CLONES static void sum_heads(Mat dkr, const float *part, AttnShape a, int64_t t) {
    float sum[ROW_CHUNK];
    const float *first = part + (t / a.S * a.H * a.S + t % a.S) * a.Dr;
    for (int64_t c = 0; c < a.Dr; c += ROW_CHUNK) {
        int64_t n = min_i64(a.Dr - c, ROW_CHUNK);
        for (int64_t i = 0; i < n; i++) sum[i] = first[c + i];
        for (int64_t h = 1; h < a.H; h++)
            for (int64_t i = 0; i < n; i++) sum[i] += first[h * a.S * a.Dr + c + i];
        row_put(dkr, t, c, n, sum);
    }
}

Err attn_bwd_cpu(OpCx *cx, Mat dq, Mat dkv, Mat dkr, Mat dout, Mat o, const float *lse, Mat q,
                 Mat kv, Mat kr, AttnShape a, const int32_t *doc_start) {
    TRY(attn_check(q, kv, kr, a));
    TRY(attn_check(dq, dkv, dkr, a));
    ROW_MAT(o, q.rows, a.H * a.Dv);
    ROW_MAT(dout, q.rows, a.H * a.Dv);
    AttnDims d = attn_dims(a, doc_start);
    if (a.nseq * a.H * a.S == 0) return OK;
    AttnGrads g = {dq, dkv, dout, o, q, kv, kr, lse};
    // As many sequences at a time as keep all threads busy, so that the heads' parts stay small.
    int64_t round = max_i64(1, min_i64(a.nseq, ceil_div(4 * (int64_t)cx->nthreads, a.H)));
    size_t mark = arena_mark(cx->scratch);
    AttnRoom *rooms = NULL;
    int nthreads = 1;
    float *part = NULL;
    TRY(attn_rooms(cx, &rooms, &nthreads, round * a.H, d, true));
    ARENA_NEW(cx->scratch, part, round * a.H * a.S * a.Dr);
    for (int64_t s0 = 0; s0 < a.nseq; s0 += round) {
        int64_t n = min_i64(round, a.nseq - s0);
#pragma omp parallel num_threads(nthreads)
        {
            const AttnRoom *room = rooms + omp_get_thread_num();
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < n * a.H; i++)
                attn_bwd_task(&g, part + i * a.S * a.Dr, &d, s0 + i / a.H, i % a.H, room);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < n * a.S; t++)
                sum_heads(mat_rows(dkr, s0 * a.S, n * a.S), part, a, t);
        }
    }
    arena_release(cx->scratch, mark);
    return OK;
}
