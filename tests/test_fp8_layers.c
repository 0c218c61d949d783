// test_fp8_layers.c - which operand every GEMM of a layer takes in fp8 mode, against double precision.
//
// The numbers contract (doc/architecture.md) says for each product whether an operand comes from the codes of the
// forward pass, from the codes that came over the wire, or fresh from BF16, and where tiles begin. A wrong choice is
// off by quantisation noise; products of the right operands agree to the rounding of FP32 sums.
// The quantiser and the GEMMs have tests of their own: here references are built from what a layer saved.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention.h"
#include "e5m6.h"
#include "fp8.h"
#include "layer_reference.h"
#include "log.h"
#include "moe.h"
#include "must.h"
#include "rng.h"
#include "solo.h"

#define TOKENS 400 // of two sequences: the experts' segments are longer than one tile, and ragged

// Two ways to the same values: experts and a shared one, and widths that leave partial tiles.
static const char *const sets[] = {
    "model.vocab_size=16",        "model.hidden_size=136",          "model.intermediate_size=140",
    "model.moe_intermediate_size=132", "model.num_hidden_layers=2", "model.num_attention_heads=3",
    "model.n_routed_experts=5",   "model.num_experts_per_tok=3",    "model.first_k_dense_replace=1",
    "model.q_lora_rank=132",      "model.kv_lora_rank=64",          "model.qk_nope_head_dim=20",
    "model.qk_rope_head_dim=8",   "model.v_head_dim=48",            "model.initializer_range=0.08",
    "train.steps=1",              "train.seq_len=200",              "train.global_batch=2",
    "train.micro_batch=2",        "precision.mode=fp8",
};
// What forward keeps: everything as it was, or the defaults (12 and 8 bits, the rest made again).
static const char *const kept_sets[] = {"fp8.cache_attn_out=codes", "fp8.cache_swiglu=bf16", "recompute.norm=false",
                                        "recompute.mla_up=false", "recompute.swiglu=false"};
enum { SETS = sizeof sets / sizeof sets[0], KEPT_SETS = sizeof kept_sets / sizeof kept_sets[0] };
// With power-of-two scales a code's value hardly depends on the tile it was made in, so a wrong choice shows only in
// under- and overflows; with FP32 scales it shows fully. Both are run.
static bool is_pow2;
// Cached formats: the backward's operands are others than the forward's.
static bool is_cached;
// A baseline: its settings, and what its classes share scales over.
typedef struct Variant {
    bool is_pow2, is_cached, is_pow2_weight, is_pow2_gradient, is_e5m2_gradient;
    const char *more[3]; // settings
    int all, gradients;  // Scaling.what, of gradients if it differs (else 0)
} Variant;
static const Variant *variant;
static void choose(void **state) {
    const Variant *v = variant = *state;
    is_pow2 = v->is_pow2;
    is_cached = v->is_cached;
    for (int c = 0; c < CLASS_COUNT; c++) scaling[c] = (Scaling){v->all, is_pow2, false};
    if (v->all == ROWS) scaling[CLASS_WEIGHT].what = WHOLE;
    if (v->gradients) scaling[CLASS_GRADIENT].what = v->gradients;
    scaling[CLASS_WEIGHT].is_pow2 = v->is_pow2_weight;
    if (v->is_pow2_gradient) scaling[CLASS_GRADIENT].is_pow2 = true;
    scaling[CLASS_GRADIENT].is_e5m2 = v->is_e5m2_gradient;
    scaling[CLASS_CACHE] = (Scaling){TILES, true, false};
}

typedef struct Rig {
    Config *config;
    Solo solo;
    const Shape *s;
    Cx *cx;
    Params *p;
    Mat x, y, dx, dy; // [TOKENS, D] bf16
    Arena *own;       // what the references need
} Rig;

static void fill(Mat m, uint64_t stream, double scale, bool uneven) {
    uint16_t *v = m.p;
    for (int64_t i = 0; i < m.rows * m.cols; i++) {
        double row = uneven ? exp(2.0 * rng_normal(9, stream + 100, (uint64_t)(i / m.cols))) : 1.0;
        v[i] = bf16_from_f32((float)(scale * row * rng_normal(9, stream, (uint64_t)i)));
    }
}

static void rig_open(Rig *r) {
    const char *all[SETS + KEPT_SETS + 5];
    int n = SETS;
    memset(r, 0, sizeof *r);
    memcpy(all, sets, sizeof sets);
    all[n++] = is_pow2 ? "fp8.scale_format=pow2" : "fp8.scale_format=fp32";
    for (int i = 0; i < KEPT_SETS && !is_cached; i++) all[n++] = kept_sets[i];
    for (int i = 0; i < 3 && variant->more[i]; i++) all[n++] = variant->more[i];
    all[n++] = "debug.unfused=true"; // what layers keep is read here; test_cached.c compares with the fused operations
    MUST_OK(config_load(&r->config, NULL, all, n));
    MUST_OK(solo_open(&r->solo, r->config, true, variant->more[0] ? 1 : 2));
    r->s = &r->solo.shape;
    r->cx = &r->solo.cx;
    r->p = model_params(r->solo.model);
    MUST_OK(params_init(r->p, r->s, r->cx));
    Calibration *c = r->cx->calibration;
    assert_true((c != NULL) == (scaling[0].what == FIXED));
    for (int64_t i = 0; c && i < c->nblocks * SITE_COUNT; i++)
        c->amax[i] = fixed_amax[site_class((Site)(i % SITE_COUNT))];
    if (c) c->steps = 1000;
    MUST_OK(solo_publish(&r->solo));
    MUST_OK(params_zero_grad(r->p, r->cx));
    MUST_OK(arena_create(&r->own, "test", (size_t)64 << 20, false));
    Mat *m[] = {&r->x, &r->y, &r->dx, &r->dy};
    for (int i = 0; i < 4; i++) MUST_OK(arena_mat(r->own, m[i], DT_BF16, TOKENS, r->s->D, "test"));
    fill(r->x, 1, 1.0, false);
    fill(r->dy, 2, 1e-4, true); // gradients of very different tokens, as they are
}

static void rig_close(Rig *r) {
    arena_destroy(&r->own);
    solo_close(&r->solo);
    config_free(r->config);
}

// ---- checks -----------------------------------------------------------------------------------

// The gradient of matrix e of p is dy^T x, both in 128x1 tiles that begin at their row 0. Frees dy and x.
static void check_wgrad(const Param *p, int64_t e, Real dy, Real x) {
    tiles(dy, true, CLASS_GRADIENT);
    tiles(x, true, CLASS_ACTIVATION);
    Real want = real_new(p->rows, p->cols), got = real_mat(p->grad, e * p->rows, p->rows);
    for (int64_t t = 0; t < dy.rows; t++) {
        for (int64_t n = 0; n < p->rows; n++) {
            for (int64_t k = 0; k < p->cols; k++)
                want.v[n * p->cols + k] += dy.v[t * dy.cols + n] * x.v[t * x.cols + k];
        }
    }
    double d = distance(got, want);
    if (!(d <= 2e-6)) fail_msg("%s, matrix %lld: the weight gradient is off by %g", p->name, (long long)e, d);
    real_free(&want);
    real_free(&got);
    real_free(&dy);
    real_free(&x);
}

// m is the one BF16 rounding of `want`, up to the order of FP32 sums.
static void check_rounded(const char *what, Mat m, int64_t r0, Real want) {
    double rms = 0.0;
    for (int64_t i = 0; i < want.rows * want.cols; i++) rms += want.v[i] * want.v[i];
    rms = sqrt(rms / (double)(want.rows * want.cols));
    Real got = real_mat(m, r0, want.rows);
    for (int64_t i = 0; i < want.rows * want.cols; i++) {
        double e = fabs(got.v[i] - want.v[i]);
        if (!(e <= 0x1.02p-8 * fabs(want.v[i]) + 2e-6 * rms))
            fail_msg("%s, row %lld: %g, expected %g", what, (long long)(r0 + i / want.cols), got.v[i], want.v[i]);
    }
    real_free(&got);
}

// codes are those of the BF16 matrix m: the quantiser's own result, bit for bit.
static void check_codes(const char *what, MatQ codes, Mat m, TensorClass c) {
    Real want = real_mat(m, 0, m.rows), got = real_codes(codes, 0, codes.rows);
    tiles(want, false, c);
    if (distance(got, want) != 0.0) fail_msg("%s: codes differ", what);
    real_free(&want);
    real_free(&got);
}

// check_site: the largest magnitude that a site of this block has seen is that of the matrix.
static void check_site(const Rig *r, Site site, Mat m) {
    Real all = real_mat(m, 0, m.rows);
    float seen = f32_from_bits((uint32_t)r->cx->health[r->cx->layer * SITE_COUNT + site].amax_bits);
    if (seen != all.amax) fail_msg("%s: saw %g, expected %g", site_name(site), (double)seen, (double)all.amax);
    real_free(&all);
}
// check_sites: pairs of sites, the form for Fprop or Dgrad and the one for Wgrad, of the same matrix.
static void check_sites(const Rig *r, Site site, Site turned, Mat m) {
    check_site(r, site, m);
    check_site(r, turned, m);
}

// check_cache: codes of a cached matrix; their scales are powers of two of tiles whatever the others are.
static void check_cache(const char *what, MatQ codes, Mat m) {
    assert_int_equal(codes.st, SCALE_E8M0);
    check_codes(what, codes, m, CLASS_CACHE);
}

// check_weight: codes of every matrix of a weight.
static void check_weight(const Param *p) {
    assert_int_equal(p->q.st, scaling[CLASS_WEIGHT].is_pow2 ? SCALE_E8M0 : SCALE_F32);
    for (int64_t e = 0; e < p->nmat; e++) {
        Real want = real_mat(mat_rows(p->w, e * p->rows, p->rows), 0, p->rows), got = real_weight(p, e);
        tiles(want, false, CLASS_WEIGHT);
        if (distance(got, want) != 0.0) fail_msg("%s: codes of matrix %lld differ", p->name, (long long)e);
        real_free(&want);
        real_free(&got);
    }
}

// check_same: two BF16 matrices are the same to the bit.
static void check_same(const char *what, Mat a, Mat b) {
    assert_true(a.rows == b.rows && a.cols == b.cols);
    for (int64_t i = 0; i < a.rows; i++) {
        if (memcmp(mat_at(a, i, 0), mat_at(b, i, 0), (size_t)a.cols * 2) != 0)
            fail_msg("%s: row %lld differs", what, (long long)i);
    }
}

// fprop: rows of m = round(x W^T) from x's codes.
static void check_fprop(const char *what, Mat m, int64_t r0, int64_t n, MatQ x, const Param *p, int64_t e) {
    Real a = real_codes(x, r0, n), w = real_weight(p, e), want = real_new(n, p->rows);
    product(want, a, w, true);
    check_rounded(what, m, r0, want);
    real_free(&a);
    real_free(&w);
    real_free(&want);
}

// add_dgrad: sum += rows of dy W from r0 on, dy coded afresh.
static void add_dgrad(Real sum, Mat dy, int64_t r0, const Param *p, int64_t e) {
    Real a = real_mat(dy, 0, dy.rows), w = real_weight(p, e);
    tiles(a, false, CLASS_GRADIENT);
    Real part = {a.v + r0 * a.cols, sum.rows, a.cols, 0.0f};
    product(sum, part, w, false);
    real_free(&a);
    real_free(&w);
}

// check_norm_bwd: dx = dy + gradient of RMSNorm, from dn in double. dn was rounded to BF16 once; `parts`, if there
// are any, holds the sum of the magnitudes that were rounded on the way to it.
static void check_norm_bwd(const Rig *r, Mat x, const Param *norm, Real dn, Real parts) {
    Real xs = real_mat(x, 0, TOKENS), dy = real_mat(r->dy, 0, TOKENS), got = real_mat(r->dx, 0, TOKENS);
    const float *w = norm->w.p;
    int64_t D = r->s->D;
    for (int64_t t = 0; t < TOKENS; t++) {
        double sq = 0.0, mean = 0.0, size = 0.0;
        for (int64_t c = 0; c < D; c++) sq += xs.v[t * D + c] * xs.v[t * D + c];
        double rstd = 1.0 / sqrt(sq / (double)D + (double)r->s->eps);
        for (int64_t c = 0; c < D; c++) mean += dn.v[t * D + c] * w[c] * xs.v[t * D + c] * rstd / (double)D;
        for (int64_t c = 0; c < D; c++) size += dn.v[t * D + c] * dn.v[t * D + c] * rstd * rstd / (double)D;
        for (int64_t c = 0; c < D; c++) {
            int64_t i = t * D + c;
            double grad = rstd * (dn.v[i] * w[c] - xs.v[i] * rstd * mean), want = dy.v[i] + grad;
            double rounded = fabs(dn.v[i]) + (parts.v ? parts.v[i] : 0.0), xhat = fabs(xs.v[i]) * rstd;
            double bound = 0x1.04p-8 * (fabs(want) + rstd * fabs(w[c]) * rounded) + 0x1p-10 * (1 + xhat) * sqrt(size);
            if (!(fabs(got.v[i] - want) <= bound))
                fail_msg("dx, token %lld: %g, expected %g +- %g", (long long)t, got.v[i], want, bound);
        }
    }
    real_free(&xs);
    real_free(&dy);
    real_free(&got);
}

// ---- layers -----------------------------------------------------------------------------------

static const Real none;

static Mat bf16_new(const Rig *r, int64_t rows, int64_t cols) {
    Mat m;
    MUST_OK(arena_mat(r->own, &m, DT_BF16, rows, cols, "test"));
    return m;
}

// A gated unit as this test works it out: g and u of forward, down's input in forward and for Wgrad.
typedef struct Mid {
    Mat g, u;
    MatQ h_fwd, h_bwd;
} Mid;

static MatQ mid_codes(const Rig *r, Mat g, Mat u, const float *gate) {
    Mat h = bf16_new(r, g.rows, g.cols);
    Operand o;
    MUST_OK(r->cx->ops->swiglu_fwd(&r->cx->op, h, g, u, gate));
    MUST_OK(operand_make(r->s, r->cx, &o, r->own, h, SITE_FFN_DOWN_X, false));
    check_codes("input of down", o.q, h, CLASS_ACTIVATION);
    return o.q;
}

// mid_of: the unit `a` whose linears read x; checks what was kept, and dg and du against dy, down's output gradient.
static Mid mid_of(const Rig *r, const Gated *a, const Operand *x, const DenseParams *p, Groups groups,
                  const Operand *dy, Mat dg, Mat du) {
    Mid m = {bf16_new(r, a->rows, a->cols), bf16_new(r, a->rows, a->cols), {0}, {0}};
    MUST_OK(linear_fprop(r->s, r->cx, m.g, x, p->gate, groups));
    MUST_OK(linear_fprop(r->s, r->cx, m.u, x, p->up, groups));
    m.h_fwd = m.h_bwd = mid_codes(r, m.g, m.u, a->gate);
    Mat g = m.g, u = m.u;
    if (is_cached) {
        assert_true(!a->g.p && !a->u.p && !a->h.q.q); // nothing but the codes
        check_cache("codes of g", a->gq, m.g);
        check_cache("codes of u", a->uq, m.u);
        g = bf16_new(r, a->rows, a->cols);
        u = bf16_new(r, a->rows, a->cols);
        MUST_OK(r->cx->ops->dequant(&r->cx->op, g, a->gq));
        MUST_OK(r->cx->ops->dequant(&r->cx->op, u, a->uq));
        m.h_bwd = mid_codes(r, g, u, a->gate);
    } else {
        check_same("g", a->g, m.g);
        check_same("u", a->u, m.u);
        assert_memory_equal(a->h.q.q, m.h_fwd.q, (size_t)(a->rows * a->h.q.ld));
    }
    Mat dh = bf16_new(r, a->rows, a->cols), want_dg = bf16_new(r, a->rows, a->cols);
    Mat want_du = bf16_new(r, a->rows, a->cols);
    float *dgate = malloc((size_t)a->rows * sizeof *dgate);
    MUST_OK(linear_dgrad(r->s, r->cx, dh, dy, p->down, groups));
    MUST_OK(r->cx->ops->swiglu_bwd(&r->cx->op, want_dg, want_du, a->gate ? dgate : NULL, dh, g, u, a->gate));
    check_same("dg", dg, want_dg);
    check_same("du", du, want_du);
    free(dgate);
    return m;
}

static void dense_layer(void **state) {
    choose(state);
    Rig r;
    rig_open(&r);
    r.cx->layer = 0;
    DenseParams p = dense_params(r.p, 0);
    DenseSaved a;
    MUST_OK(dense_fwd(r.s, r.cx, &p, &a, r.y, r.x));
    MUST_OK(dense_bwd_input(r.s, r.cx, &p, &a, r.dx, r.dy));
    MUST_OK(dense_bwd_weight(r.s, r.cx, &p, &a));
    check_sites(&r, SITE_FFN_OUT_DY, SITE_FFN_DOWN_DY_T, r.dy);
    check_sites(&r, SITE_FFN_GATE_DY, SITE_FFN_GATE_DY_T, a.mid.dg);
    check_sites(&r, SITE_FFN_UP_DY, SITE_FFN_UP_DY_T, a.mid.du);
    check_site(&r, SITE_FFN_GATE_W, p.gate->w);
    check_site(&r, SITE_FFN_UP_W, p.up->w);
    check_site(&r, SITE_FFN_DOWN_W, p.down->w);
    Operand dyq;
    MUST_OK(operand_make(r.s, r.cx, &dyq, r.own, r.dy, SITE_FFN_OUT_DY, false));
    Mid m = mid_of(&r, &a.mid, &a.n, &p, groups_none(), &dyq, a.mid.dg, a.mid.du);
    check_weight(p.down);
    check_codes("output gradient", dyq.q, r.dy, CLASS_GRADIENT);
    check_fprop("gate", m.g, 0, TOKENS, a.n.q, p.gate, 0);
    check_fprop("up", m.u, 0, TOKENS, a.n.q, p.up, 0);
    check_wgrad(p.down, 0, real_mat(r.dy, 0, TOKENS), real_codes(m.h_bwd, 0, TOKENS));
    check_wgrad(p.gate, 0, real_mat(a.mid.dg, 0, TOKENS), real_codes(a.n.q, 0, TOKENS));
    check_wgrad(p.up, 0, real_mat(a.mid.du, 0, TOKENS), real_codes(a.n.q, 0, TOKENS));
    Real dn = real_new(TOKENS, r.s->D);
    add_dgrad(dn, a.mid.dg, 0, p.gate, 0);
    add_dgrad(dn, a.mid.du, 0, p.up, 0);
    check_norm_bwd(&r, r.x, p.norm, dn, none);
    real_free(&dn);
    rig_close(&r);
}

// check_core: what was kept of queries, keys, values and o, and dq and dkv from it; returns o as Wgrad reads it.
static Real check_core(const Rig *r, const AttentionParams *p, const AttentionSaved *a, const float *rope) {
    const Shape *s = r->s;
    const Ops *ops = r->cx->ops;
    OpCx *op = &r->cx->op;
    AttnShape shape = {2, s->S, s->H, s->Dn, s->Dr, s->Dv, s->softmax_scale};
    RopeShape heads = {s->S, s->H, s->Dn + s->Dr, s->Dn, s->Dr};
    Mat q = bf16_new(r, TOKENS, s->H * (s->Dn + s->Dr)), kv = bf16_new(r, TOKENS, s->H * (s->Dn + s->Dv));
    Mat o = bf16_new(r, TOKENS, s->H * s->Dv), kr = mat_cols(a->kva, s->Rkv, s->Dr);
    float *lse = malloc((size_t)(s->H * TOKENS) * sizeof *lse);
    MUST_OK(linear_fprop(s, r->cx, q, &a->cq, p->q_b, groups_none()));
    MUST_OK(ops->rope(op, q, heads, rope, false));
    MUST_OK(linear_fprop(s, r->cx, kv, &a->ckv, p->kv_b, groups_none()));
    check_fprop("kv_b", kv, 0, TOKENS, a->ckv.q, p->kv_b, 0);
    MUST_OK(ops->attn_fwd(op, o, lse, q, kv, kr, shape, NULL));
    if (is_cached) {
        assert_true(!a->q.p && !a->kv.p && !a->o_x.p && !a->o.q.q); // nothing but 12 bits
        Mat packed;
        MUST_OK(arena_mat(r->own, &packed, DT_U8, TOKENS, e5m6_row_bytes(o.cols), "test"));
        MUST_OK(ops->quant_e5m6(op, packed, o, NULL));
        assert_memory_equal(packed.p, a->o_packed.p, (size_t)(packed.rows * packed.cols));
        MUST_OK(ops->dequant_e5m6(op, o, a->o_packed));
    } else {
        check_same("q", a->q, q);
        check_same("kv", a->kv, kv);
        check_same("o", a->o_x, o);
        check_codes("input of o", a->o.q, o, CLASS_ACTIVATION);
    }
    Mat dout = bf16_new(r, TOKENS, s->H * s->Dv), dq = bf16_new(r, TOKENS, q.cols);
    Mat dkv = bf16_new(r, TOKENS, kv.cols), dkr = bf16_new(r, TOKENS, s->Dr);
    Operand dyq;
    MUST_OK(operand_make(s, r->cx, &dyq, r->own, r->dy, SITE_O_DY, false));
    MUST_OK(linear_dgrad(s, r->cx, dout, &dyq, p->o, groups_none()));
    MUST_OK(ops->attn_bwd(op, dq, dkv, dkr, dout, o, lse, q, kv, kr, shape, NULL));
    MUST_OK(ops->rope(op, dq, heads, rope, true));
    check_same("dq", a->dq, dq);
    check_same("dkv", a->dkv, dkv);
    free(lse);
    return is_cached ? real_mat(o, 0, TOKENS) : real_codes(a->o.q, 0, TOKENS);
}

static void attention_layer(void **state) {
    choose(state);
    Rig r;
    rig_open(&r);
    r.cx->layer = 0;
    AttentionParams p = attention_params(r.p, 0);
    AttentionSaved a;
    float *rope = malloc((size_t)(r.s->S * r.s->Dr) * sizeof *rope);
    rope_table(rope, r.s->S, r.s->Dr, r.s->rope_theta, r.s->yarn);
    MUST_OK(attention_fwd(r.s, r.cx, &p, &a, r.y, r.x, 2, r.s->S, rope, NULL));
    MUST_OK(attention_bwd_input(r.s, r.cx, &p, &a, r.dx, r.dy));
    MUST_OK(attention_bwd_weight(r.s, r.cx, &p, &a));
    check_sites(&r, SITE_O_DY, SITE_O_DY_T, r.dy);
    check_sites(&r, SITE_Q_B_DY, SITE_Q_B_DY_T, a.dq);
    check_sites(&r, SITE_Q_A_DY, SITE_Q_A_DY_T, a.dcq_raw);
    check_sites(&r, SITE_KV_B_DY, SITE_KV_B_DY_T, a.dkv);
    check_sites(&r, SITE_KV_A_DY, SITE_KV_A_DY_T, a.dkva);
    if (!is_cached) check_site(&r, SITE_O_X, a.o_x);
    check_fprop("q_a", a.cq_raw, 0, TOKENS, a.n.q, p.q_a, 0);
    Real o = check_core(&r, &p, &a, rope);
    check_wgrad(p.o, 0, real_mat(r.dy, 0, TOKENS), o);
    check_wgrad(p.kv_b, 0, real_mat(a.dkv, 0, TOKENS), real_codes(a.ckv.q, 0, TOKENS));
    check_wgrad(p.q_b, 0, real_mat(a.dq, 0, TOKENS), real_codes(a.cq.q, 0, TOKENS));
    check_wgrad(p.q_a, 0, real_mat(a.dcq_raw, 0, TOKENS), real_codes(a.n.q, 0, TOKENS));
    check_wgrad(p.kv_a, 0, real_mat(a.dkva, 0, TOKENS), real_codes(a.n.q, 0, TOKENS));
    Real dn = real_new(TOKENS, r.s->D);
    add_dgrad(dn, a.dcq_raw, 0, p.q_a, 0);
    add_dgrad(dn, a.dkva, 0, p.kv_a, 0);
    check_norm_bwd(&r, r.x, p.norm, dn, none);
    real_free(&dn);
    free(rope);
    rig_close(&r);
}

// scatter: rows of pairs added to their tokens' rows, and their magnitudes to parts.
static void scatter(Real sum, Real parts, const ExPlan *plan, Real pairs, int64_t r0) {
    for (int64_t i = 0; i < pairs.rows; i++) {
        int64_t t = plan->send_tok[plan->pair_recv[r0 + i]];
        for (int64_t c = 0; c < sum.cols; c++) {
            sum.v[t * sum.cols + c] += pairs.v[i * sum.cols + c];
            parts.v[t * sum.cols + c] += 2 * fabs(pairs.v[i * sum.cols + c]); // each, and their sum
        }
    }
}

// One expert's segment: forward, and every weight gradient; adds to the layer's output and input gradient.
static void check_expert(const Rig *r, const MoeParams *p, const MoeSaved *a, const Mid *m, int64_t e, Real out,
                         Real dn, Real parts[2]) {
    const ExPlan *plan = &a->plan;
    int64_t r0 = plan->start[e], n = plan->count[e];
    assert_true(n > TILE && n % TILE != 0);
    check_fprop("expert gate", m->g, r0, n, a->xe.q, p->gate, e);
    check_fprop("expert up", m->u, r0, n, a->xe.q, p->up, e);
    check_wgrad(p->down, e, real_codes(a->dye.q, r0, n), real_codes(m->h_bwd, r0, n));
    check_wgrad(p->gate, e, real_mat(a->mid.dg, r0, n), real_codes(a->xe.q, r0, n));
    check_wgrad(p->up, e, real_mat(a->mid.du, r0, n), real_codes(a->xe.q, r0, n));
    Real h = real_codes(m->h_fwd, r0, n), w = real_weight(p->down, e), pairs = real_new(n, r->s->D);
    product(pairs, h, w, true);
    scatter(out, parts[0], plan, pairs, r0);
    Real back = real_new(n, r->s->D);
    add_dgrad(back, a->mid.dg, r0, p->gate, e);
    add_dgrad(back, a->mid.du, r0, p->up, e);
    scatter(dn, parts[1], plan, back, r0);
    real_free(&h);
    real_free(&w);
    real_free(&pairs);
    real_free(&back);
}

// check_rows: pair rows hold exactly the codes of their tokens, in token order inside an expert.
static void check_rows(const char *what, const ExPlan *plan, MatQ pairs, MatQ tokens) {
    Real got = real_codes(pairs, 0, plan->npair), want = real_codes(tokens, 0, tokens.rows);
    for (int64_t i = 0; i < plan->npair; i++) {
        int64_t t = plan->send_tok[plan->pair_recv[i]];
        if (memcmp(got.v + i * got.cols, want.v + t * want.cols, (size_t)got.cols * sizeof *got.v) != 0)
            fail_msg("%s: pair row %lld is not token %lld", what, (long long)i, (long long)t);
    }
    real_free(&got);
    real_free(&want);
}

static void moe_layer(void **state) {
    choose(state);
    Rig r;
    int64_t count[5] = {0};
    double balance = 0.0;
    rig_open(&r);
    r.cx->layer = 1;
    MoeParams p = moe_params(r.p, 1, count);
    MoeSaved a;
    MUST_OK(moe_fwd(r.s, r.cx, &p, &a, r.y, r.x, 2, r.s->S, true, &balance));
    MUST_OK(moe_bwd_input(r.s, r.cx, &p, &a, r.dx, r.dy, 1e-6));
    MUST_OK(moe_bwd_weight(r.s, r.cx, &p, &a));
    check_site(&r, SITE_FFN_OUT_DY, r.dy);
    check_site(&r, SITE_FFN_DOWN_DY_T, r.dy);
    check_sites(&r, SITE_EXPERT_GATE_DY, SITE_EXPERT_GATE_DY_T, a.mid.dg);
    check_sites(&r, SITE_EXPERT_UP_DY, SITE_EXPERT_UP_DY_T, a.mid.du);
    check_sites(&r, SITE_FFN_GATE_DY, SITE_FFN_GATE_DY_T, a.shared.mid.dg);
    check_sites(&r, SITE_FFN_UP_DY, SITE_FFN_UP_DY_T, a.shared.mid.du);
    check_site(&r, SITE_EXPERT_GATE_W, p.gate->w);
    check_site(&r, SITE_EXPERT_UP_W, p.up->w);
    check_site(&r, SITE_EXPERT_DOWN_W, p.down->w);
    Mat n = bf16_new(&r, TOKENS, r.s->D);
    MUST_OK(r.cx->ops->norm_rms_fwd(&r.cx->op, n, NULL, r.x, p.norm->w.p, r.s->eps));
    check_codes("normalised input", a.nq.q, n, CLASS_ACTIVATION);
    check_weight(p.gate);
    check_rows("inputs", &a.plan, a.xe.q, a.nq.q);
    Operand dyq;
    MUST_OK(operand_make(r.s, r.cx, &dyq, r.own, r.dy, SITE_FFN_OUT_DY, false));
    check_rows("output gradients", &a.plan, a.dye.q, dyq.q);
    DenseParams experts = {NULL, p.gate, p.up, p.down};
    Groups g = {a.plan.start, a.plan.count, a.plan.L};
    Mid m = mid_of(&r, &a.mid, &a.xe, &experts, g, &a.dye, a.mid.dg, a.mid.du);
    Mid shared = mid_of(&r, &a.shared.mid, &a.nq, &p.shared, groups_none(), &dyq, a.shared.mid.dg, a.shared.mid.du);
    Real router = real_new(r.s->E, r.s->D), router_got = real_mat(p.router->grad, 0, r.s->E);
    for (int64_t t = 0; t < TOKENS; t++) { // the router's gradient reads n, kept or made again
        for (int64_t i = 0; i < r.s->E * r.s->D; i++)
            router.v[i] += (double)*(const float *)mat_at(a.dlogits, t, i / r.s->D) *
                           (double)f32_from_bf16(*(const uint16_t *)mat_at(n, t, i % r.s->D));
    }
    assert_true(distance(router_got, router) <= 2e-6);
    real_free(&router);
    real_free(&router_got);

    Real out = real_new(TOKENS, r.s->D), dn = real_new(TOKENS, r.s->D);
    Real parts[2] = {real_new(TOKENS, r.s->D), real_new(TOKENS, r.s->D)};
    for (int64_t e = 0; e < r.s->L; e++) check_expert(&r, &p, &a, &m, e, out, dn, parts);
    // The shared expert reads the same codes; its part and the router's join in FP32.
    check_fprop("shared gate", shared.g, 0, TOKENS, a.nq.q, p.shared.gate, 0);
    check_wgrad(p.shared.down, 0, real_mat(r.dy, 0, TOKENS), real_codes(shared.h_bwd, 0, TOKENS));
    check_wgrad(p.shared.gate, 0, real_mat(a.shared.mid.dg, 0, TOKENS), real_codes(a.nq.q, 0, TOKENS));
    check_wgrad(p.shared.up, 0, real_mat(a.shared.mid.du, 0, TOKENS), real_codes(a.nq.q, 0, TOKENS));
    Real hs = real_codes(shared.h_fwd, 0, TOKENS), ws = real_weight(p.shared.down, 0);
    product(out, hs, ws, true);
    add_dgrad(dn, a.shared.mid.dg, 0, p.shared.gate, 0);
    add_dgrad(dn, a.shared.mid.du, 0, p.shared.up, 0);
    Real dl = real_mat(a.dlogits, 0, TOKENS), wr = real_mat(p.router->w, 0, r.s->E);
    product(dn, dl, wr, false);
    check_norm_bwd(&r, r.x, p.norm, dn, parts[1]);
    Real x = real_mat(r.x, 0, TOKENS), y = real_mat(r.y, 0, TOKENS);
    for (int64_t i = 0; i < TOKENS * r.s->D; i++) { // roundings: pairs, their sum, the layer's sum, the residual
        double want = x.v[i] + out.v[i], bound = 0x1.04p-8 * (fabs(want) + fabs(out.v[i]) + parts[0].v[i]) + 1e-5;
        if (!(fabs(y.v[i] - want) <= bound)) fail_msg("y: %g, expected %g +- %g", y.v[i], want, bound);
    }
    Real *all[] = {&parts[0], &parts[1], &out, &dn, &hs, &ws, &dl, &wr, &x, &y};
    for (int i = 0; i < 10; i++) real_free(all[i]);
    rig_close(&r);
}

int main(void) {
    log_init(1, 2); // no lines
    static const Variant v[] = {
        {.is_pow2 = true},
        {.is_pow2 = false},
        {.is_pow2 = true, .is_cached = true},
        {.is_pow2 = false, .is_cached = true},
        // baselines, with scales that show what shared them
        {.more = {"fp8.scaling=row"}, .all = ROWS},
        {.more = {"fp8.scaling=tensor"}, .is_cached = true, .all = WHOLE},
        {.more = {"fp8.scaling=static", "fp8.static_steps=1000"}, .is_cached = true, .all = FIXED},
        {.more = {"fp8.grad_tile=128x128"}, .gradients = BLOCKS},
        {.more = {"fp8.grad_format=e5m2", "fp8.grad_scale_format=pow2", "fp8.weight_scale_format=pow2"},
         .is_cached = true, .is_pow2_weight = true, .is_pow2_gradient = true, .is_e5m2_gradient = true},
    };
    enum { N = sizeof v / sizeof v[0] };
    static void (*const layers[])(void **) = {dense_layer, attention_layer, moe_layer};
    static const char *const names[] = {"dense", "attention", "moe"};
    static char name[3 * N][64];
    struct CMUnitTest tests[3 * N];
    for (int i = 0; i < 3 * N; i++) {
        const Variant *a = &v[i % N];
        snprintf(name[i], sizeof name[i], "%s %s%s %s", names[i / N], a->is_pow2 ? "pow2" : "fp32",
                 a->is_cached ? " cached" : "", a->more[0] ? a->more[0] : "");
        struct CMUnitTest t = {.name = name[i], .test_func = layers[i / N], .initial_state = (void *)a};
        tests[i] = t;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
