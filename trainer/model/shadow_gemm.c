// shadow_gemm.c - FP8 products compared with BF16 ones. See shadow_gemm.h.
#include "shadow_gemm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fp8.h"
#include "prof.h"

enum { NUMBERS = 3, PIECE = 65536 }; // of a sample that ranks add; in one sum over ranks

Err shadow_create(Shadow **out, const Params *p) {
    Shadow *h = NULL;
    int64_t widest = 0;
    MEM_NEW(h, 1);
    *out = h;
    h->params = p;
    h->n = (int64_t)p->n * SHADOW_GEMMS;
    MEM_NEW(h->sum, h->n);
    MEM_NEW(h->packed, h->n * NUMBERS);
    MEM_NEW(h->row, h->n);
    for (int i = 0; i < p->n; i++) {
        if (p->p[i].kind == KIND_FP8) widest = max_i64(widest, max_i64(p->p[i].rows, p->p[i].cols));
    }
    for (int i = 0; i < 2; i++)
        TRY(mem_alloc(&h->host[i], (size_t)widest * sizeof(float), "shadow row"));
    return OK;
}

void shadow_free(Shadow **h) {
    if (!*h) return;
    mem_free((*h)->sum);
    mem_free((*h)->packed);
    mem_free((*h)->row);
    for (int i = 0; i < 2; i++) mem_free((*h)->host[i]);
    mem_free(*h);
    *h = NULL;
}

void shadow_begin(Shadow *h) {
    memset(h->sum, 0, (size_t)h->n * sizeof *h->sum);
    h->nrows = 0;
}

// ---- the rows -------------------------------------------------------------------------------------

static SiteLabel gemm_label(const Param *w, ShadowGemm gemm) {
    static const char *const linears[P_COUNT] = {
        [P_Q] = "q",
        [P_Q_A] = "q_a",
        [P_Q_B] = "q_b",
        [P_KV_A] = "kv_a",
        [P_KV_B] = "kv_b",
        [P_O] = "o",
        [P_GATE] = "ffn.gate",
        [P_UP] = "ffn.up",
        [P_DOWN] = "ffn.down",
        [P_SHARED_GATE] = "ffn.gate",
        [P_SHARED_UP] = "ffn.up",
        [P_SHARED_DOWN] = "ffn.down",
        [P_EXPERT_GATE] = "expert.gate",
        [P_EXPERT_UP] = "expert.up",
        [P_EXPERT_DOWN] = "expert.down",
    };
    static const char *const gemms[] = {"fprop", "dgrad", "wgrad"};
    const char *linear = linears[w->family] ? linears[w->family] : "linear";
    SiteLabel r;
    snprintf(r.s, sizeof r.s, "L%lld.%s.%s", (long long)w->layer, linear, gemms[gemm]);
    return r;
}

Err shadow_rows(Shadow *h, const Cx *cx) {
    const Params *p = h->params;
    int64_t n = 0;
    for (int64_t i = 0; i < h->n; i++) {
        if (p->p[i / SHADOW_GEMMS].kind != KIND_FP8) continue;
        h->packed[n++] = h->sum[i].error;
        h->packed[n++] = h->sum[i].reference;
        h->packed[n++] = h->sum[i].is_taken;
    }
    for (int64_t i = 0; i < n; i += PIECE)
        TRY(comm_sum(cx->world, h->packed + i, (int)min_i64(PIECE, n - i)));
    h->nrows = n = 0;
    for (int64_t i = 0; i < h->n; i++) {
        const Param *w = &p->p[i / SHADOW_GEMMS];
        if (w->kind != KIND_FP8) continue;
        double error = h->packed[n], reference = h->packed[n + 1];
        bool is_taken = h->packed[n + 2] > 0.0;
        n += NUMBERS;
        if (!is_taken) continue;
        double share = error == 0.0 ? 0.0 : sqrt(error / reference);
        ShadowRow r = {gemm_label(w, (ShadowGemm)(i % SHADOW_GEMMS)), isfinite(share) ? share : NAN};
        h->row[h->nrows++] = r;
    }
    return OK;
}

const ShadowRow *shadow_worst(const Shadow *h) {
    const ShadowRow *w = h->nrows > 0 ? h->row : NULL;
    for (int64_t i = 1; i < h->nrows && !isnan(w->error); i++) {
        if (!(h->row[i].error <= w->error)) w = &h->row[i];
    }
    return w;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double shadow_median(const Shadow *h) {
    int64_t n = 0;
    for (int64_t i = 0; i < h->nrows; i++) {
        if (!isnan(h->row[i].error)) h->packed[n++] = h->row[i].error;
    }
    if (n == 0) return NAN;
    qsort(h->packed, (size_t)n, sizeof *h->packed, by_size);
    return 0.5 * (h->packed[(n - 1) / 2] + h->packed[n / 2]);
}

// ---- the samples ----------------------------------------------------------------------------------

Err shadow_sample(Cx *cx, Mat *sample, Mat x) {
    *sample = mat_none();
    if (!cx->shadow) return OK;
    int64_t rows = min_i64(x.rows, SHADOW_ROWS);
    TRY(arena_mat(cx->acts, sample, x.t, rows, x.cols, "shadow sample"));
    prof_enter(PROF_EVAL);
    TRY(cx->ops->cast(&cx->op, *sample, mat_rows(x, 0, rows)));
    prof_leave();
    return OK;
}

// slot_of: where this product's squares go; NULL if there is nothing to do. In measure mode any address.
static ShadowSum *slot_of(const Cx *cx, const Param *w, ShadowGemm gemm, Mat sample) {
    static ShadowSum measured;
    if (!cx->shadow || sample.rows == 0) return NULL;
    if (cx->is_measure) return &measured;
    ShadowSum *s = &cx->shadow->sum[(w - cx->shadow->params->p) * SHADOW_GEMMS + gemm];
    return s->is_taken ? NULL : s;
}

// row_on_host: row r of m as floats at h, by way of h itself.
static Err row_on_host(const Cx *cx, float *h, Mat m, int64_t r) {
    TRY(cx->dev->to_host(h, mat_at(m, r, 0), (size_t)m.cols * dtype_bytes(m.t)));
    if (m.t == DT_F32) return OK;
    const uint16_t *half = (const uint16_t *)h;
    for (int64_t c = m.cols - 1; c >= 0; c--) { // from the end: a float covers the halves behind it
        uint16_t bits;
        memcpy(&bits, half + c, sizeof bits);
        h[c] = f32_from_bf16(bits);
    }
    return OK;
}

// compare: rows [r0, r0+n) of y against those of `want`.
static Err compare(const Cx *cx, ShadowSum *s, Mat y, Mat want, int64_t r0, int64_t n) {
    float *const *row = (float *const *)cx->shadow->host;
    for (int64_t r = r0; r < r0 + n; r++) {
        TRY(row_on_host(cx, row[0], y, r));
        TRY(row_on_host(cx, row[1], want, r));
        for (int64_t c = 0; c < y.cols; c++) {
            double ref = (double)row[1][c], d = (double)row[0][c] - ref;
            s->error += d * d;
            s->reference += ref * ref;
        }
    }
    return OK;
}

// clip: the groups' rows among the first `rows`, on scratch.
static Err clip(Cx *cx, Groups *out, Groups g, int64_t rows) {
    int64_t *start = NULL, *count = NULL;
    ARENA_NEW(cx->scratch, start, g.n);
    ARENA_NEW(cx->scratch, count, g.n);
    for (int64_t e = 0; !cx->is_measure && e < g.n; e++) {
        start[e] = min_i64(g.start[e], rows);
        count[e] = min_i64(g.count[e], rows - start[e]);
    }
    Groups r = {start, count, g.n};
    *out = r;
    return OK;
}

// against: rows of y against the BF16 product of the sample x: x W^T (SHADOW_FPROP) or x W (SHADOW_DGRAD).
static Err against(Cx *cx, ShadowSum *s, ShadowGemm gemm, Mat y, Mat x, const Param *w, Groups g) {
    size_t mark = arena_mark(cx->scratch);
    Mat want;
    Groups part = g;
    prof_enter(PROF_EVAL);
    TRY(arena_mat(cx->scratch, &want, y.t, x.rows, y.cols, "shadow product"));
    if (g.n > 0) {
        TRY(clip(cx, &part, g, x.rows));
        if (gemm == SHADOW_FPROP) TRY(cx->ops->ggemm_nt(&cx->op, want, x, w->w, part, false));
        else TRY(cx->ops->ggemm_nn(&cx->op, want, x, w->w, part, false));
    } else {
        if (gemm == SHADOW_FPROP) TRY(cx->ops->gemm_nt(&cx->op, want, x, w->w, false));
        else TRY(cx->ops->gemm_nn(&cx->op, want, x, w->w, false));
    }
    if (!cx->is_measure) {
        if (g.n == 0) TRY(compare(cx, s, y, want, 0, x.rows));
        for (int64_t e = 0; e < part.n; e++)
            TRY(compare(cx, s, y, want, part.start[e], part.count[e]));
        s->is_taken = true;
    }
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}

Err shadow_fprop(Cx *cx, Mat y, Mat x, const Param *w, Groups g) {
    ShadowSum *s = slot_of(cx, w, SHADOW_FPROP, x);
    return s ? against(cx, s, SHADOW_FPROP, y, x, w, g) : OK;
}

Err shadow_dgrad(Cx *cx, Mat dx, Mat dy, const Param *w, Groups g) {
    ShadowSum *s = slot_of(cx, w, SHADOW_DGRAD, dy);
    return s ? against(cx, s, SHADOW_DGRAD, dx, dy, w, g) : OK;
}

Err shadow_dgrad_part(Cx *cx, MatQ codes, Mat dy, const Param *w, Groups g) {
    if (!slot_of(cx, w, SHADOW_DGRAD, dy)) return OK;
    size_t mark = arena_mark(cx->scratch);
    Mat part;
    MatQ rows = matq_rows(codes, 0, dy.rows);
    prof_enter(PROF_EVAL);
    TRY(arena_mat(cx->scratch, &part, DT_F32, dy.rows, w->cols, "shadow part"));
    if (g.n > 0) {
        Groups first;
        TRY(clip(cx, &first, g, dy.rows));
        TRY(cx->ops->ggemm_fp8_dgrad(&cx->op, part, rows, w->q, first, false));
    } else {
        TRY(cx->ops->gemm_fp8_dgrad(&cx->op, part, rows, w->q, false));
    }
    prof_leave();
    TRY(shadow_dgrad(cx, part, dy, w, g));
    arena_release(cx->scratch, mark);
    return OK;
}

// first_tokens: how many of the first `rows` rows belong to the first group that has any; 0 if padding comes first.
static int64_t first_tokens(const Cx *cx, Groups g, int64_t rows) {
    if (cx->is_measure || g.n == 0) return rows;
    for (int64_t e = 0; e < g.n; e++) {
        if (g.count[e] > 0) return g.start[e] == 0 ? min_i64(g.count[e], rows) : 0;
    }
    return 0;
}

Err shadow_wgrad(Cx *cx, const Param *w, MatQ dy_t, MatQ x_t, Mat dy, Mat x, Groups g) {
    ShadowSum *s = slot_of(cx, w, SHADOW_WGRAD, dy);
    if (!s || x.rows == 0) return OK;
    int64_t m = first_tokens(cx, g, min_i64(min_i64(dy.rows, x.rows), SHADOW_ROWS));
    int64_t n = min_i64(dy.cols, SHADOW_ROWS);
    if (m == 0) return OK;
    size_t mark = arena_mark(cx->scratch);
    Mat got, want;
    prof_enter(PROF_EVAL);
    TRY(arena_mat(cx->scratch, &got, DT_F32, n, x.cols, "shadow product"));
    TRY(arena_mat(cx->scratch, &want, DT_F32, n, x.cols, "shadow product"));
    dy_t.rows = n; // the first tile of the first n channels: groups before the first with rows have no tiles
    dy_t.cols = x_t.cols = m;
    TRY(cx->ops->gemm_fp8_wgrad(&cx->op, got, dy_t, x_t, false));
    TRY(cx->ops->gemm_tn(&cx->op, want, mat_cols(mat_rows(dy, 0, m), 0, n), mat_rows(x, 0, m), false));
    if (!cx->is_measure) {
        TRY(compare(cx, s, got, want, 0, n));
        s->is_taken = true;
    }
    prof_leave();
    arena_release(cx->scratch, mark);
    return OK;
}
