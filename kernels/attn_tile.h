// attn_tile.h - causal attention of one (sequence, head) in blocks, written once for every
// instruction set with vector multiply-adds.
//
// The including file defines the vector as for gemm_tile.h: vf (VW floats), VW, MR, NV, KU, vload,
// vstore, vset1, vmul, vadd, vdot, vlanes_f32, vlanes_bf16, vjoin, vtranspose; and vsub, vmax (its
// second operand if one is NaN), vdiv, vfma(a, b, c) = a b + c, vexp2, vpick(x, other, lo, j, hi) =
// lo <= j <= hi ? x : other; for KU 2 also vpairs(a, b), units (a, b) rounded to BF16, and vrow(a,
// b): 2 VW floats rounded to BF16 in order. ATTN_ISA and ATTN_NAME name the table made here.
// DOT_UNITS(m, s, nu, a, lda, b), if it is there, adds the products of nu units to the sums
// s[m][NV]. TILE_REGISTERS: products are made by those of AMX.
//
// Scores are computed transposed: rows are positions j, columns (lanes) are queries i. Then the
// softmax runs down the columns without a sum across lanes, p is a panel for o^T = v^T p as it
// falls out, and ds one for dq^T = k^T ds, while its rows are the left side of dk = ds q and dv = p
// dout. Nothing of a block is ever transposed but o^T and dq^T, once per query block.
//
// A left side ("rows") is [row][unit] and is broadcast, a right side ("panel") [unit][NR] and is
// loaded; a unit is KU elements of the contraction in 32 bits. Every sum has one order.
#include <math.h>

#include "attn_engine.h"

#define INLINE static inline __attribute__((always_inline))
#define NR (VW * NV)
#define BI 96          // queries of a block of the backward
#define BJ 96          // positions of a block
#define SPAN (VW * KU) // elements of a vector of units
#define AHEAD 12       // rows
#define LOG2E 1.44269504088896341f

#if KU == 2
typedef uint16_t Elem;
#else
typedef float Elem;
#endif

// What becomes of a product's sums.
typedef enum Fin {
    FIN_SET,   // c = sum
    FIN_ADD,   // c = c + sum
    FIN_TIMES, // c = sum * by[column]
    FIN_LESS,  // c = sum - by[column]
    FIN_DECAY, // c = c * by[column] + sum
} Fin;

// product(c, ldc, a, lda, b, nu, rows, lead, fin, by): c [rows, NR] = a [rows, nu units] x panel b, and
// what `fin` says. Row r has only zeros before unit (r + lead) / KU; they may be left out. pad_panel(b,
// nu): what it wants of a panel that has been written to unit nu. task_begin, task_end: around a task.
#ifdef TILE_REGISTERS
#include "attn_product_amx.h"
#else
#include "attn_product.h"
#endif
#define NO_LEAD (-((int64_t)1 << 40))

// Ask for columns [c, c+n) of row r, if there is such a row. Rows of one head lie far apart, where
// no processor looks ahead by itself.
#define ASK(m, r, c, n, is_write)                                                                  \
    do {                                                                                           \
        int64_t size_ = (m).t == DT_F32 ? 4 : 2, bytes_ = (r) < (m).rows ? (n)*size_ : 0;          \
        const char *at_ = (const char *)(m).p + ((r) * (m).ld + (c)) * size_;                      \
        for (int64_t e_ = 0; e_ < bytes_; e_ += 64) __builtin_prefetch(at_ + e_, is_write, 2);     \
    } while (0)

// Columns [c, c+n) of row r as elements at dst.
INLINE void put_elems(Elem *dst, Mat m, int64_t r, int64_t c, int64_t n) {
    ASK(m, r + AHEAD, c, n, 0);
#if KU == 2
    memcpy(dst, (const uint16_t *)m.p + r * m.ld + c, (size_t)n * 2);
#else
    row_copy(dst, m, r, c, n);
#endif
}
INLINE void zero_elems(Elem *dst, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) dst[i] = 0;
}
// Rows [r0, r0+rows) of columns [c, c+n) as elements, row length ld, zero past n.
INLINE void stage(Elem *dst, int64_t ld, Mat m, int64_t r0, int64_t rows, int64_t c, int64_t n) {
    for (int64_t r = 0; r < rows; r++) {
        put_elems(dst + r * ld, m, r0 + r, c, n);
        zero_elems(dst + r * ld, n, ld);
    }
}

// VW units of two rows (one for KU 1) across columns.
INLINE vf across(const Elem *p, int64_t ld) {
#if KU == 2
    return vjoin(vlanes_bf16(p), vlanes_bf16(p + ld));
#else
    (void)ld;
    return vload(p);
#endif
}
// Staged rows -> panel [unit along the row][NR]: NR rows are its columns.
INLINE void panel_of_rows(float *dst, const Elem *src, int64_t ld, int64_t nu) {
    for (int v = 0; v < NV; v++)
        for (int64_t u = 0; u < nu; u += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int i = 0; i < VW; i++)
                x[i] = vload((const float *)(const void *)(src + (v * VW + i) * ld + u * KU));
            vtranspose(x);
#pragma GCC unroll 16
            for (int i = 0; i < VW; i++) vstore(dst + (u + i) * NR + v * VW, x[i]);
        }
}
// Staged rows -> panels [ld / NR][rows / KU][NR]: the contraction goes down the rows (an even
// number).
INLINE void panels_down(float *dst, const Elem *src, int64_t ld, int64_t rows) {
    for (int64_t c = 0; c < ld; c += NR, dst += rows / KU * NR)
        for (int64_t u = 0; u < rows / KU; u++)
            for (int v = 0; v < NV; v++)
                vstore(dst + u * NR + v * VW, across(src + u * KU * ld + c + v * VW, ld));
}
// SPAN staged rows -> VW units of each of the columns: dst[column][ldd].
INLINE void rows_down(float *dst, int64_t ldd, const Elem *src, int64_t ld) {
    for (int64_t c = 0; c < ld; c += VW) {
        vf x[VW];
#pragma GCC unroll 16
        for (int i = 0; i < VW; i++) x[i] = across(src + i * KU * ld + c, ld);
        vtranspose(x);
#pragma GCC unroll 16
        for (int i = 0; i < VW; i++) vstore(dst + (c + i) * ldd, x[i]);
    }
}
// Columns of src [n, NR] as rows of dst [NR][ld], n up to a multiple of VW (src has the rows).
INLINE void rows_of_columns(float *dst, int64_t ld, const float *src, int64_t n) {
    for (int v = 0; v < NV; v++)
        for (int64_t c = 0; c < n; c += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int i = 0; i < VW; i++) x[i] = vload(src + (c + i) * NR + v * VW);
            vtranspose(x);
#pragma GCC unroll 16
            for (int i = 0; i < VW; i++) vstore(dst + (v * VW + i) * ld + c, x[i]);
        }
}

// Sizes: lengths of rows in elements (multiples of SPAN and NR) and in units.
typedef struct Dims {
    int64_t D, Dv;
    int64_t De, Ve; // staged rows
    int64_t Du, Vu; // units of a contraction over D, Dv
    int64_t Sp, Su; // positions padded to SPAN and a block; row length of what goes down positions
} Dims;

static Dims dims_of(AttnShape a) {
    Dims d = {.D = a.Dn + a.Dr, .Dv = a.Dv};
    d.De = attn_round_up(d.D, 32);
    d.Ve = attn_round_up(d.Dv, 32);
    d.Du = ceil_div(d.D, KU);
    d.Vu = ceil_div(d.Dv, KU);
    d.Sp = attn_round_up(a.S, 32);
    d.Su = d.Sp / KU + 16; // no power of two: rows share no cache set
    return d;
}

// Buffers of one task; they begin on cache lines.
typedef struct Room {
    float *k, *v;              // rows [S][De], [S][Ve] of elements
    float *kt, *vt;            // [De][Su], [Ve][Su] units: the contraction goes down positions
    Elem *elems;               // staged rows
    float *q, *dout;           // panels of a query block, [BI / NR][De / KU][NR]
    float *q_down, *dout_down; // panels [De / NR][BI / KU][NR]
    float *s, *dp;             // scores and their gradients [BJ][NR]
    float *p_panel;            // fwd p, bwd ds: [BJ / KU][NR]
    float *p, *ds;             // rows [BJ][BI / KU]
    float *out;                // fwd o^T [Ve][NR]; bwd dq^T [BI / NR][De][NR]
    float *rows;               // [NR][max(De, Ve)]
    float *dk, *dv;            // [Sp][De], [Sp][Ve]
} Room;

static int64_t lay(Room *w, float *room, AttnShape a, bool is_bwd) {
    Dims d = dims_of(a);
    int64_t at = 0, most = max_i64(d.De, d.Ve);
    memset(w, 0, sizeof *w);
    w->k = attn_take(room, &at, d.Sp * d.De / KU);
    w->elems = (Elem *)(void *)attn_take(room, &at, BI * most / KU);
    w->q = attn_take(room, &at, BI * d.De / KU);
    w->s = attn_take(room, &at, BJ * NR);
    w->p_panel = attn_take(room, &at, BJ / KU * NR);
    w->out = attn_take(room, &at, BI * most);
    w->rows = attn_take(room, &at, NR * most);
    if (!is_bwd) {
        w->vt = attn_take(room, &at, d.Ve * d.Su);
        return at;
    }
    w->v = attn_take(room, &at, d.Sp * d.Ve / KU);
    w->kt = attn_take(room, &at, d.De * d.Su);
    w->dout = attn_take(room, &at, BI * d.Ve / KU);
    w->q_down = attn_take(room, &at, BI * d.De / KU);
    w->dout_down = attn_take(room, &at, BI * d.Ve / KU);
    w->dp = attn_take(room, &at, BJ * NR);
    w->p = attn_take(room, &at, BJ * BI / KU);
    w->ds = attn_take(room, &at, BJ * BI / KU);
    w->dk = attn_take(room, &at, d.Sp * d.De);
    w->dv = attn_take(room, &at, d.Sp * d.Ve);
    return at;
}

static int64_t room_of(AttnShape a, bool is_bwd) {
    Room w;
    return lay(&w, NULL, a, is_bwd);
}

// Keys of one head, positions [j0, j1), as rows [S][De]: [k_nope ; k_rope].
INLINE void load_keys(const Room *w, const AttnCall *c, const Dims *d, int64_t t0, int64_t h,
                      int64_t j0, int64_t j1) {
    AttnShape a = c->a;
    for (int64_t j = j0; j < j1; j++) {
        Elem *k = (Elem *)(void *)w->k + j * d->De;
        put_elems(k, c->kv, t0 + j, h * (a.Dn + a.Dv), a.Dn);
        put_elems(k + a.Dn, c->kr, t0 + j, 0, a.Dr);
        zero_elems(k, d->D, d->De);
    }
}

// Rows of elements [S][ld], positions [j0, j1) with j0 a multiple of SPAN, to dst [ld][Su]. The
// rows past j1 to a multiple of SPAN are taken for zero.
INLINE void load_down(const Room *w, float *dst, const Elem *src, int64_t ld, const Dims *d,
                      int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; j += SPAN) {
        const Elem *from = src + j * ld;
        int64_t n = min_i64(SPAN, j1 - j);
        if (n < SPAN) {
            memcpy(w->elems, from, (size_t)(n * ld) * sizeof(Elem));
            memset(w->elems + n * ld, 0, (size_t)((SPAN - n) * ld) * sizeof(Elem));
            from = w->elems;
        }
        rows_down(dst + j / KU, d->Su, from, ld);
    }
}

// What the columns of a chunk may see, as floats: positions first <= j <= last; none past the rows.
typedef struct Sight {
    float first[NR], last[NR];
    int64_t from, to; // a position in [from, to] is seen by all columns
} Sight;

INLINE void look(Sight *g, const AttnCall *c, int64_t t0, int64_t i0, int64_t rows) {
    g->from = 0;
    g->to = rows < NR ? -1 : i0;
    for (int64_t i = 0; i < NR; i++) {
        int64_t first = i < rows ? attn_first(c, t0, i0 + i) : 0;
        g->first[i] = (float)first;
        g->last[i] = i < rows ? (float)(i0 + i) : -1.0f;
        g->from = max_i64(g->from, first);
    }
}
INLINE bool all_seen(const Sight *g, int64_t j0, int64_t n) {
    return j0 >= g->from && j0 + n - 1 <= g->to;
}
INLINE vf seen_or(vf x, float other, const Sight *g, int v, int64_t j) {
    return vpick(x, vset1(other), vload(g->first + v * VW), vset1((float)j),
                 vload(g->last + v * VW));
}

// Running softmax of a chunk's columns, in powers of two.
typedef struct Running {
    float max[NR], sum[NR], decay[NR];
} Running;

// n rows of scores (times log2 e) to a panel of 2^(s - max); decay: by what earlier sums shrink.
INLINE void softmax_rows(float *panel, float *s, int64_t n, int64_t j0, const Sight *g,
                         const bool is_masked, Running *run) {
    vf max[NV], sum[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) max[v] = vload(run->max + v * VW);
    for (int64_t j = 0; j < n; j++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            vf x = vload(s + j * NR + v * VW);
            if (is_masked) {
                x = seen_or(x, -INFINITY, g, v, j0 + j);
                vstore(s + j * NR + v * VW, x);
            }
            max[v] = vmax(x, max[v]);
        }
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
        vf decay = vexp2(vsub(vload(run->max + v * VW), max[v]));
        vstore(run->max + v * VW, max[v]);
        vstore(run->decay + v * VW, decay);
        sum[v] = vmul(vload(run->sum + v * VW), decay);
    }
    for (int64_t j = 0; j < n; j += KU)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            vf p = vexp2(vsub(vload(s + j * NR + v * VW), max[v]));
            sum[v] = vadd(sum[v], p);
#if KU == 2
            vf next = vset1(0.0f);
            if (j + 1 < n) next = vexp2(vsub(vload(s + (j + 1) * NR + v * VW), max[v]));
            sum[v] = vadd(sum[v], next);
            p = vpairs(p, next);
#endif
            vstore(panel + j / KU * NR + v * VW, p);
        }
    pad_panel(panel, ceil_div(n, KU));
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) vstore(run->sum + v * VW, sum[v]);
}

// One chunk of at most NR queries against all it sees.
static void fwd_chunk(const AttnCall *c, const Dims *d, const Room *w, int64_t t0, int64_t h,
                      int64_t i0, int64_t rows) {
    AttnShape a = c->a;
    Sight g;
    Running run;
    float times[NR];
    look(&g, c, t0, i0, rows);
    stage(w->elems, d->De, c->q, t0 + i0, rows, h * d->D, d->D);
    memset(w->elems + rows * d->De, 0, (size_t)((NR - rows) * d->De) * sizeof(Elem));
    panel_of_rows(w->q, w->elems, d->De, d->Du);
    for (int i = 0; i < NR; i++) {
        run.max[i] = -3e38f; // below every score, and finite: nothing seen is no NaN
        run.sum[i] = 0.0f;
        times[i] = a.scale * LOG2E;
    }
    int64_t lo = attn_block_first(c, t0, i0, i0 + rows, BJ);
    for (int64_t i = 0; i < rows; i++) ASK(c->o, t0 + i0 + i, h * a.Dv, a.Dv, 1);
    for (int64_t j0 = lo; j0 < i0 + rows; j0 += BJ) {
        int64_t n = min_i64(BJ, i0 + rows - j0);
        product(w->s, NR, w->k + j0 * d->De / KU, d->De / KU, w->q, d->Du, n, NO_LEAD, FIN_TIMES,
                times);
        if (all_seen(&g, j0, n))
            softmax_rows(w->p_panel, w->s, n, j0, &g, false, &run);
        else
            softmax_rows(w->p_panel, w->s, n, j0, &g, true, &run);
        product(w->out, NR, w->vt + j0 / KU, d->Su, w->p_panel, ceil_div(n, KU), d->Dv, NO_LEAD,
                j0 == lo ? FIN_SET : FIN_DECAY, run.decay);
    }
    for (int64_t r = 0; r < d->Dv; r++)
        for (int v = 0; v < NV; v++) {
            float *o = w->out + r * NR + v * VW;
            vstore(o, vdiv(vload(o), vload(run.sum + v * VW)));
        }
    rows_of_columns(w->rows, d->Ve, w->out, d->Dv);
    for (int64_t i = 0; i < rows; i++) {
        row_put(c->o, t0 + i0 + i, h * a.Dv, a.Dv, w->rows + i * d->Ve);
        c->lse[h * c->q.rows + t0 + i0 + i] =
            (float)((double)run.max[i] / (double)LOG2E + log((double)run.sum[i]));
    }
}

static void fwd_task(const AttnCall *c, int64_t s, int64_t h, int64_t i0, int64_t i1, float *room) {
    Dims d = dims_of(c->a);
    Room w;
    int64_t t0 = s * c->a.S, lo = attn_block_first(c, t0, i0, i1, BJ);
    task_begin();
    lay(&w, room, c->a, false);
    load_keys(&w, c, &d, t0, h, lo, i1);
    for (int64_t j = lo; j < i1; j += SPAN) {
        int64_t n = min_i64(SPAN, i1 - j);
        stage(w.elems, d.Ve, c->kv, t0 + j, n, h * (c->a.Dn + c->a.Dv) + c->a.Dn, d.Dv);
        memset(w.elems + n * d.Ve, 0, (size_t)((SPAN - n) * d.Ve) * sizeof(Elem));
        rows_down(w.vt + j / KU, d.Su, w.elems, d.Ve);
    }
    for (int64_t i = i0; i < i1; i += NR) fwd_chunk(c, &d, &w, t0, h, i, min_i64(NR, i1 - i));
    task_end();
}

// What the backward knows of a chunk's columns.
typedef struct Columns {
    Sight g;
    float lse[NR]; // times -log2 e
    float delta[NR];
} Columns;

// n rows of q . k and of dp - delta to p and ds, which lacks the scale: as rows (this chunk's
// columns of them) and ds as a panel.
INLINE void grad_rows(const Room *w, float *p_rows, float *ds_rows, int64_t n, int64_t j0,
                      const Columns *k, const bool is_masked, float scale) {
    for (int64_t j = 0; j < n; j += KU) {
        vf p[KU][NV], ds[KU][NV];
#pragma GCC unroll 2
        for (int i = 0; i < KU; i++)
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) {
                p[i][v] = ds[i][v] = vset1(0.0f);
                if (i > 0 && j + i >= n) continue;
                vf x = vload(w->s + (j + i) * NR + v * VW);
                p[i][v] = vexp2(vfma(x, vset1(scale * LOG2E), vload(k->lse + v * VW)));
                ds[i][v] = vmul(p[i][v], vload(w->dp + (j + i) * NR + v * VW));
                if (!is_masked) continue;
                p[i][v] = seen_or(p[i][v], 0.0f, &k->g, v, j0 + j + i);
                ds[i][v] = seen_or(ds[i][v], 0.0f, &k->g, v, j0 + j + i);
            }
#if KU == 2
        vf even = vrow(ds[0][0], ds[0][1]), odd = vrow(ds[1][0], ds[1][1]);
        vstore(p_rows + j * (BI / 2), vrow(p[0][0], p[0][1]));
        vstore(ds_rows + j * (BI / 2), even);
        if (j + 1 < n) {
            vstore(p_rows + (j + 1) * (BI / 2), vrow(p[1][0], p[1][1]));
            vstore(ds_rows + (j + 1) * (BI / 2), odd);
        }
        vstore(w->p_panel + j / 2 * NR, vzip_low(even, odd));
        vstore(w->p_panel + j / 2 * NR + VW, vzip_high(even, odd));
#else
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            vstore(p_rows + j * BI + v * VW, p[0][v]);
            vstore(ds_rows + j * BI + v * VW, ds[0][v]);
            vstore(w->p_panel + j * NR + v * VW, ds[0][v]);
        }
#endif
    }
    pad_panel(w->p_panel, ceil_div(n, KU));
}

// Queries and output gradients of a block, in both forms, and what the columns need.
static void bwd_queries(const AttnCall *c, const Dims *d, const Room *w, int64_t t0, int64_t h,
                        int64_t i0, int64_t rows, Columns *k) {
    float x[ROW_CHUNK], y[ROW_CHUNK];
    AttnShape a = c->a;
    stage(w->elems, d->De, c->q, t0 + i0, rows, h * d->D, d->D);
    memset(w->elems + rows * d->De, 0, (size_t)((BI - rows) * d->De) * sizeof(Elem));
    panels_down(w->q_down, w->elems, d->De, BI);
    for (int64_t i = 0; i < BI; i += NR)
        panel_of_rows(w->q + i * d->De / KU, w->elems + i * d->De, d->De, d->Du);
    stage(w->elems, d->Ve, c->dout, t0 + i0, rows, h * a.Dv, d->Dv);
    memset(w->elems + rows * d->Ve, 0, (size_t)((BI - rows) * d->Ve) * sizeof(Elem));
    panels_down(w->dout_down, w->elems, d->Ve, BI);
    for (int64_t i = 0; i < BI; i += NR)
        panel_of_rows(w->dout + i * d->Ve / KU, w->elems + i * d->Ve, d->Ve, d->Vu);
    for (int64_t i = 0; i < BI; i++) {
        V16 dot = {0};
        ASK(c->o, t0 + i0 + i + AHEAD, h * a.Dv, a.Dv, 0);
        for (int64_t e = 0; e < a.Dv && i < rows; e += ROW_CHUNK) {
            int64_t n = min_i64(a.Dv - e, ROW_CHUNK);
            const float *o = row_get(c->o, t0 + i0 + i, h * a.Dv + e, n, x);
            v16_dot(&dot, o, row_get(c->dout, t0 + i0 + i, h * a.Dv + e, n, y), n);
        }
        k[i / NR].delta[i % NR] = v16_sum(&dot);
        k[i / NR].lse[i % NR] = i < rows ? c->lse[h * c->q.rows + t0 + i0 + i] * -LOG2E : 0.0f;
    }
    for (int64_t i = 0; i < BI; i += NR)
        look(&k[i / NR].g, c, t0, i0 + i, max_i64(0, min_i64(NR, rows - i)));
}

// The chunk of queries [i, i+NR) against positions [j0, j0+n): p and ds, and what they add to dq.
static void bwd_chunk(const AttnCall *c, const Dims *d, const Room *w, const Columns *k, int64_t i,
                      int64_t j0, int64_t n, bool is_first) {
    product(w->s, NR, w->k + j0 * d->De / KU, d->De / KU, w->q + i * d->De / KU, d->Du, n, NO_LEAD,
            FIN_SET, NULL);
    product(w->dp, NR, w->v + j0 * d->Ve / KU, d->Ve / KU, w->dout + i * d->Ve / KU, d->Vu, n,
            NO_LEAD, FIN_LESS, k->delta);
    if (all_seen(&k->g, j0, n))
        grad_rows(w, w->p + i / KU, w->ds + i / KU, n, j0, k, false, c->a.scale);
    else
        grad_rows(w, w->p + i / KU, w->ds + i / KU, n, j0, k, true, c->a.scale);
    product(w->out + i * d->De, NR, w->kt + j0 / KU, d->Su, w->p_panel, ceil_div(n, KU), d->D,
            NO_LEAD, is_first ? FIN_SET : FIN_ADD, NULL);
}

INLINE void scale_rows(float *x, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i += VW) vstore(x + i, vmul(vload(x + i), vset1(scale)));
}

// One block of at most BI queries: dq is final, dk and dv get their part.
static void bwd_block(const AttnCall *c, const Dims *d, const Room *w, int64_t t0, int64_t h,
                      int64_t i0, int64_t rows) {
    Columns k[BI / NR];
    int64_t lo = attn_block_first(c, t0, i0, i0 + rows, BJ), nu = ceil_div(rows, KU);
    bwd_queries(c, d, w, t0, h, i0, rows, k);
    for (int64_t i = 0; i < rows; i++) ASK(c->dq, t0 + i0 + i, h * d->D, d->D, 1);
    for (int64_t j0 = lo; j0 < i0 + rows; j0 += BJ) {
        int64_t n = min_i64(BJ, i0 + rows - j0);
        for (int64_t i = 0; i < rows; i += NR) {
            // Later positions than the last query of the chunk have p = ds = 0.
            int64_t seen = max_i64(0, min_i64(n, i0 + i + NR - j0));
            if (seen > 0) bwd_chunk(c, d, w, &k[i / NR], i, j0, seen, j0 == lo);
            for (int64_t j = seen; j < n; j++) {
                memset(w->p + (j * BI + i) / KU, 0, NR / KU * sizeof(float));
                memset(w->ds + (j * BI + i) / KU, 0, NR / KU * sizeof(float));
            }
        }
        for (int64_t e = 0; e < d->D; e += NR)
            product(w->dk + j0 * d->De + e, d->De, w->ds, BI / KU, w->q_down + e * BI / KU, nu, n,
                    j0 - i0, FIN_ADD, NULL);
        for (int64_t e = 0; e < d->Dv; e += NR)
            product(w->dv + j0 * d->Ve + e, d->Ve, w->p, BI / KU, w->dout_down + e * BI / KU, nu, n,
                    j0 - i0, FIN_ADD, NULL);
    }
    for (int64_t i = 0; i < rows; i += NR) {
        rows_of_columns(w->rows, d->De, w->out + i * d->De, d->D);
        scale_rows(w->rows, min_i64(NR, rows - i) * d->De, c->a.scale);
        for (int64_t r = 0; r < min_i64(NR, rows - i); r++)
            row_put(c->dq, t0 + i0 + i + r, h * d->D, d->D, w->rows + r * d->De);
    }
}

static void bwd_task(const AttnCall *c, int64_t s, int64_t h, float *dkr_part, float *room) {
    Dims d = dims_of(c->a);
    Room w;
    AttnShape a = c->a;
    int64_t t0 = s * a.S, col = h * (a.Dn + a.Dv);
    task_begin();
    lay(&w, room, a, true);
    load_keys(&w, c, &d, t0, h, 0, a.S);
    stage((Elem *)(void *)w.v, d.Ve, c->kv, t0, a.S, col + a.Dn, a.Dv);
    load_down(&w, w.kt, (const Elem *)(const void *)w.k, d.De, &d, 0, a.S);
    memset(w.dk, 0, (size_t)(a.S * d.De) * sizeof(float));
    memset(w.dv, 0, (size_t)(a.S * d.Ve) * sizeof(float));
    for (int64_t i0 = 0; i0 < a.S; i0 += BI) bwd_block(c, &d, &w, t0, h, i0, min_i64(BI, a.S - i0));
    scale_rows(w.dk, a.S * d.De, a.scale);
    for (int64_t j = 0; j < a.S; j++) {
        ASK(c->dkv, t0 + j + AHEAD, col, a.Dn + a.Dv, 1);
        row_put(c->dkv, t0 + j, col, a.Dn, w.dk + j * d.De);
        row_put(c->dkv, t0 + j, col + a.Dn, a.Dv, w.dv + j * d.Ve);
        memcpy(dkr_part + j * a.Dr, w.dk + j * d.De + a.Dn, (size_t)a.Dr * sizeof(float));
    }
    task_end();
}

const AttnIsa ATTN_ISA = {ATTN_NAME, room_of, fwd_task, bwd_task};
