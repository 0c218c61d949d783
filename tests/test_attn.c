// test_attn.c - blocked attention against softmax written out in double, and its gradient against
// central differences of that; document masks, odd widths, both types, every instruction set, any
// number of threads.
#include "attn_engine.h"
#include "gemm_engine.h"
#include "reference.h"

#ifdef TESTS_CUDA
// The operations are those of the CUDA backend: on the tensor cores, where they take the call, and the plain ones.
void attn_mma_choose(int is_on);
static const char *const isas[] = {"tensor cores", "plain"};
static bool select_isa(const char *name) {
    attn_mma_choose(name ? !strcmp(name, isas[0]) : -1);
    return true;
}
#else
static const char *const isas[] = {"amx", "avx512-bf16", "avx512", "avx2", "portable"};
static bool select_isa(const char *name) {
    return attn_select(name);
}
#endif
enum { ISAS = sizeof isas / sizeof isas[0] };

// Does this instruction set round p and ds to BF16 for their products?
static bool is_rounding(int isa, DType t) {
    static const char *const rounding[] = {"amx", "avx512-bf16", "tensor cores"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(isas[isa], rounding[i])) return t == DT_BF16;
    return false;
}

typedef struct Case {
    AttnShape a;
    DType t;
    int64_t pad;
    int docs; // 0: no mask; else documents begin at pseudo-random positions
} Case;

static const Case cases[] = {
    {{1, 1, 1, 1, 1, 1, 1.0f}, DT_F32, 0, 0},
    {{2, 5, 3, 4, 2, 3, 0.4f}, DT_F32, 3, 0},
    {{1, 49, 2, 7, 4, 5, 0.3f}, DT_F32, 1, 1},
    {{2, 65, 1, 16, 8, 16, 0.2f}, DT_F32, 0, 1},
    {{1, 200, 2, 24, 8, 20, 0.18f}, DT_F32, 2, 1},
    {{1, 130, 3, 5, 0, 9, -0.2f}, DT_F32, 0, 0},
    {{1, 47, 1, 0, 6, 17, 0.3f}, DT_F32, 0, 0},
    {{2, 97, 4, 32, 16, 32, 0.14f}, DT_BF16, 4, 0},
    {{3, 70, 5, 16, 8, 24, 0.2f}, DT_BF16, 0, 1},
    {{0, 8, 2, 4, 4, 4, 1.0f}, DT_F32, 0, 0},
    // Odd widths and lengths in pairs; blocks of positions of every alignment; one position.
    {{2, 1, 2, 3, 2, 5, 1.0f}, DT_BF16, 1, 0},
    {{1, 131, 2, 7, 4, 33, 0.3f}, DT_BF16, 1, 1},
    {{1, 259, 1, 31, 34, 40, 0.12f}, DT_BF16, 3, 0},
    {{2, 99, 1, 5, 0, 1, -0.4f}, DT_BF16, 0, 1},
    // Uncut with one thread, cut into pieces of rows with more.
    {{1, 395, 5, 6, 2, 3, 0.3f}, DT_F32, 0, 1},
    {{1, 395, 5, 6, 2, 3, 0.3f}, DT_BF16, 0, 0},
    // Widths and rows in eights, as the tensor cores of a GPU want them: each size of its tiles, full and padded.
    {{2, 1, 2, 8, 0, 8, 1.0f}, DT_BF16, 0, 0},
    {{1, 145, 1, 128, 64, 128, 0.0722f}, DT_BF16, 8, 1},
    {{2, 65, 1, 96, 40, 72, 0.0858f}, DT_BF16, 16, 0},
    {{1, 129, 2, 32, 32, 64, -0.1f}, DT_BF16, 0, 1},
    {{1, 150, 2, 0, 64, 64, 0.125f}, DT_BF16, 8, 0},
};

typedef struct Problem {
    AttnShape a;
    const int32_t *doc;
    double *q, *kv, *kr, *cot; // cot: the gradient of o
    double *o, *lse;           // forward results; o of the double reference
    double *mag;               // [T, H*Dv] largest |v| a row looks at
    double *sum;               // [T, H*Dv] sum of p |v|
} Problem;

// The definition: every score, every exponential, in double. Returns sum of cot * o.
static double reference_forward(void *ctx) {
    Problem *p = ctx;
    AttnShape a = p->a;
    int64_t D = a.Dn + a.Dr, T = a.nseq * a.S;
    double *s = ref_zeros(a.S), total = 0.0;
    for (int64_t t = 0; t < T; t++) {
        int64_t t0 = t / a.S * a.S, i = t - t0, first = p->doc ? p->doc[t] : 0;
        for (int64_t h = 0; h < a.H; h++) {
            double max = -INFINITY, sum = 0.0;
            for (int64_t j = first; j <= i; j++) {
                double dot = 0.0;
                const double *q = p->q + (t * a.H + h) * D,
                             *k = p->kv + ((t0 + j) * a.H + h) * (a.Dn + a.Dv);
                for (int64_t c = 0; c < a.Dn; c++) dot += q[c] * k[c];
                for (int64_t c = 0; c < a.Dr; c++) dot += q[a.Dn + c] * p->kr[(t0 + j) * a.Dr + c];
                s[j] = dot * (double)a.scale;
                max = fmax(max, s[j]);
            }
            for (int64_t j = first; j <= i; j++) sum += exp(s[j] - max);
            p->lse[h * T + t] = max + log(sum);
            for (int64_t c = 0; c < a.Dv; c++) {
                double o = 0.0, mag = 0.0, abs = 0.0;
                for (int64_t j = first; j <= i; j++) {
                    double v = p->kv[((t0 + j) * a.H + h) * (a.Dn + a.Dv) + a.Dn + c];
                    o += exp(s[j] - max) / sum * v;
                    abs += exp(s[j] - max) / sum * fabs(v);
                    mag = fmax(mag, fabs(v));
                }
                p->o[(t * a.H + h) * a.Dv + c] = o;
                p->mag[(t * a.H + h) * a.Dv + c] = mag;
                p->sum[(t * a.H + h) * a.Dv + c] = abs;
                total += p->cot[(t * a.H + h) * a.Dv + c] * o;
            }
        }
    }
    free(s);
    return total;
}

typedef struct Run {
    Mat q, kv, kr, dout, o, dq, dkv, dkr, lse;
} Run;

static Run make_run(const Case *k) {
    AttnShape a = k->a;
    int64_t T = a.nseq * a.S;
    Run r;
    r.q = ref_random(k->t, T, a.H * (a.Dn + a.Dr), k->pad, 1.0);
    r.kv = ref_random(k->t, T, a.H * (a.Dn + a.Dv), k->pad, 1.0);
    r.kr = ref_random(k->t, T, a.Dr, k->pad, 1.0);
    r.dout = ref_random(k->t, T, a.H * a.Dv, k->pad, 1.0);
    r.o = ref_mat(k->t, T, a.H * a.Dv, k->pad);
    r.dq = ref_mat(k->t, T, a.H * (a.Dn + a.Dr), k->pad);
    r.dkv = ref_mat(k->t, T, a.H * (a.Dn + a.Dv), k->pad);
    r.dkr = ref_mat(k->t, T, a.Dr, k->pad);
    r.lse = ref_mat(DT_F32, a.H, T, 0);
    return r;
}
static void free_run(Run r) {
    free(r.q.p), free(r.kv.p), free(r.kr.p), free(r.dout.p), free(r.o.p);
    free(r.dq.p), free(r.dkv.p), free(r.dkr.p), free(r.lse.p);
}
static void compute(Run r, AttnShape a, const int32_t *doc, int nthreads) {
    OpCx cx = ref_cx(nthreads);
    MUST_OK(attn_fwd_cpu(&cx, r.o, r.lse.p, r.q, r.kv, r.kr, a, doc));
    MUST_OK(attn_bwd_cpu(&cx, r.dq, r.dkv, r.dkr, r.dout, r.o, r.lse.p, r.q, r.kv, r.kr, a, doc));
}

static int32_t *make_docs(AttnShape a) {
    int32_t *doc = calloc((size_t)(a.nseq * a.S) + 1, sizeof *doc);
    assert_non_null(doc);
    for (int64_t t = 0; t < a.nseq * a.S; t++) {
        int64_t i = t % a.S;
        bool starts = i == 0 || philox(3, 1, (uint64_t)t).v[0] % 23 == 0;
        doc[t] = starts ? (int32_t)i : doc[t - 1];
    }
    return doc;
}

enum { SLOPES = 40 };
// Central differences by one input at a few places.
typedef struct Slopes {
    int64_t n, at[SLOPES];
    double want[SLOPES];
} Slopes;

static void find_slopes(Slopes *s, Problem *p, double *x, Mat g, int64_t samples) {
    int64_t n = g.rows * g.cols;
    s->n = min_i64(n, samples);
    for (int64_t i = 0; i < s->n; i++) {
        s->at[i] = ref_pick(i, samples, n);
        s->want[i] = ref_slope(reference_forward, p, x + s->at[i]);
    }
}

// `unit`: relative error of a stored value.
static void check_gradient(const Slopes *s, Mat g, double unit, const char *what) {
    int64_t n = g.rows * g.cols;
    double rms = 0.0;
    for (int64_t i = 0; i < n; i++) rms += pow(ref_at(g, i / g.cols, i % g.cols), 2);
    rms = sqrt(rms / fmax(1.0, (double)n));
    for (int64_t i = 0; i < s->n; i++) {
        int64_t r = s->at[i] / g.cols, c = s->at[i] % g.cols;
        ref_near(ref_at(g, r, c), s->want[i], unit * (fabs(s->want[i]) + 2.0 * rms), what, r, c);
    }
}

static void check_forward(const Problem *p, Run r, DType t_in, bool is_p_rounded) {
    AttnShape a = p->a;
    int64_t T = a.nseq * a.S, VH = a.H * a.Dv;
    // Scores are sums of D products; 64 units of FP32 cover their error through the exponential.
    // Where p is rounded to BF16 for its product, every term of o may be off by half a unit.
    for (int64_t t = 0; t < T; t++) {
        for (int64_t h = 0; h < a.H; h++)
            ref_near(((float *)r.lse.p)[h * T + t], p->lse[h * T + t],
                     64 * U32 * (4 + fabs(p->lse[h * T + t])), "lse", h, t);
        for (int64_t c = 0; c < VH; c++)
            ref_near(ref_at(r.o, t, c), p->o[t * VH + c],
                     ref_unit(t_in) * fabs(p->o[t * VH + c]) + 128 * U32 * p->mag[t * VH + c] +
                         (is_p_rounded ? UBF * p->sum[t * VH + c] * (1 + UBF) : 0.0),
                     "o", t, c);
    }
}

static void check_threads(const Case *k, Run r, const int32_t *doc) {
    AttnShape a = k->a;
    int64_t T = a.nseq * a.S, VH = a.H * a.Dv;
    for (int n = 2; n <= 3; n++) {
        Run b = r;
        b.o = ref_mat(k->t, T, VH, k->pad);
        b.dq = ref_mat(k->t, T, r.dq.cols, k->pad);
        b.dkv = ref_mat(k->t, T, r.dkv.cols, k->pad);
        b.dkr = ref_mat(k->t, T, r.dkr.cols, k->pad);
        b.lse = ref_mat(DT_F32, a.H, T, 0);
        compute(b, a, doc, n);
        ref_same(b.o, r.o, "o, threads"), ref_same(b.lse, r.lse, "lse, threads");
        ref_same(b.dq, r.dq, "dq, threads"), ref_same(b.dkv, r.dkv, "dkv, threads");
        ref_same(b.dkr, r.dkr, "dkr, threads");
        free(b.o.p), free(b.dq.p), free(b.dkv.p), free(b.dkr.p), free(b.lse.p);
    }
}

static void run_case(const Case *k) {
    AttnShape a = k->a;
    int64_t T = a.nseq * a.S, VH = a.H * a.Dv;
    Run r = make_run(k);
    int32_t *doc = k->docs ? make_docs(a) : NULL;
    Problem p = {a,
                 doc,
                 ref_double(r.q),
                 ref_double(r.kv),
                 ref_double(r.kr),
                 ref_double(r.dout),
                 ref_zeros(T * VH),
                 ref_zeros(a.H * T),
                 ref_zeros(T * VH),
                 ref_zeros(T * VH)};
    int64_t samples = T * a.S * a.H > 20000 || a.Dn > 64 ? 10 : SLOPES;
    Slopes dq, dkv, dkr;
    find_slopes(&dq, &p, p.q, r.dq, samples);
    find_slopes(&dkv, &p, p.kv, r.dkv, samples);
    find_slopes(&dkr, &p, p.kr, r.dkr, samples);
    reference_forward(&p);
    // BF16: o enters the backward rounded, an error of one rounding of |dout . o| per score.
    double unit = k->t == DT_BF16 ? 4 * UBF : 512 * U32;
    for (int isa = 0; isa < ISAS; isa++) {
        if (!select_isa(isas[isa])) continue;
        compute(r, a, doc, 1);
        check_forward(&p, r, k->t, is_rounding(isa, k->t));
        check_gradient(&dq, r.dq, unit, "dq");
        check_gradient(&dkv, r.dkv, unit, "dkv");
        check_gradient(&dkr, r.dkr, unit, "dkr");
        ref_pads(r.o, "o"), ref_pads(r.dq, "dq"), ref_pads(r.dkv, "dkv"), ref_pads(r.dkr, "dkr");
        check_threads(k, r, doc);
    }
    select_isa(NULL);
    free(p.q), free(p.kv), free(p.kr), free(p.cot), free(p.o), free(p.lse), free(p.mag),
        free(p.sum), free(doc);
    free_run(r);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

// What a row may not see cannot change it: later positions, earlier documents, other sequences.
static void one_mask_hides(void) {
    Case k = {{2, 100, 2, 8, 8, 8, 0.25f}, DT_F32, 0, 0};
    int64_t T = 200;
    Run a = make_run(&k), b = a;
    int32_t *doc = calloc((size_t)T, sizeof *doc);
    for (int64_t t = 0; t < T; t++) doc[t] = t % 100 < 37 ? 0 : t % 100 < 70 ? 37 : 70;
    compute(a, k.a, doc, 1);
    b.q = ref_clone(a.q), b.kv = ref_clone(a.kv), b.kr = ref_clone(a.kr);
    b.o = ref_clone(a.o), b.lse = ref_clone(a.lse);
    // Change everything but rows 137..160 (sequence 1, document 2, its first part).
    for (int64_t t = 0; t < T; t++) {
        if (t >= 137 && t <= 160) continue;
        for (int64_t c = 0; c < b.kv.cols; c++) ref_set(b.kv, t, c, 100.0 + (double)c);
        for (int64_t c = 0; c < b.kr.cols; c++) ref_set(b.kr, t, c, -50.0);
    }
    OpCx cx = ref_cx(2);
    MUST_OK(attn_fwd_cpu(&cx, b.o, b.lse.p, b.q, b.kv, b.kr, k.a, doc));
    for (int64_t t = 137; t <= 160; t++)
        for (int64_t c = 0; c < b.o.cols; c++)
            ref_near(ref_at(b.o, t, c), ref_at(a.o, t, c), 0.0, "o", t, c);
    // The first row of a document sees itself alone: its output is its value, its lse its score.
    for (int64_t h = 0; h < 2; h++)
        for (int64_t c = 0; c < 8; c++)
            ref_near(ref_at(b.o, 137, h * 8 + c), ref_at(a.kv, 137, h * 16 + 8 + c), 0.0, "alone",
                     h, c);
    free(b.q.p), free(b.kv.p), free(b.kr.p), free(b.o.p), free(b.lse.p), free(doc);
    free_run(a);
}

// Scores far apart: the softmax is one-hot, nothing overflows, gradients stay finite; also where a
// unit in the last place of a score is worth thousands of exponents.
static void one_extreme_scores(DType type, double size) {
    Case k = {{1, 80, 1, 4, 0, 4, 30.0f}, type, 0, 0};
    Run r = make_run(&k);
    ref_fill(r.q, size), ref_fill(r.kv, size);
    compute(r, k.a, NULL, 1);
    for (int64_t t = 0; t < 80; t++)
        for (int64_t c = 0; c < 4; c++) {
            assert_true(isfinite(ref_at(r.o, t, c)));
            assert_true(isfinite(ref_at(r.dq, t, c)));
            assert_true(isfinite(ref_at(r.dkv, t, c)));
        }
    free_run(r);
}

static void test_mask_hides(void **state) {
    (void)state;
    for (int isa = 0; isa < ISAS; isa++)
        if (select_isa(isas[isa])) one_mask_hides();
    select_isa(NULL);
}
static void test_extreme_scores(void **state) {
    (void)state;
    for (int isa = 0; isa < ISAS; isa++)
        for (int k = 0; k < 4 && select_isa(isas[isa]); k++)
            one_extreme_scores(k % 2 ? DT_BF16 : DT_F32, k < 2 ? 30.0 : 3e6);
    select_isa(NULL);
}

#ifndef TESTS_CUDA
// Names are those of the products; without a name it is the products' own.
static void test_select(void **state) {
    (void)state;
    assert_false(attn_select("mmx"));
    for (int i = 0; gemm_isa_name(i); i++) {
        bool is_there = gemm_select(gemm_isa_name(i));
        assert_int_equal(attn_select(gemm_isa_name(i)), is_there);
        gemm_select(NULL);
    }
    Case k = {{1, 50, 2, 8, 4, 8, 0.3f}, DT_BF16, 0, 0};
    Run a = make_run(&k), b = a;
    b.o = ref_clone(a.o), b.lse = ref_clone(a.lse);
    OpCx cx = ref_cx(1);
    assert_true(select_isa(NULL));
    MUST_OK(attn_fwd_cpu(&cx, a.o, a.lse.p, a.q, a.kv, a.kr, k.a, NULL));
    assert_true(select_isa(gemm_isa()));
    MUST_OK(attn_fwd_cpu(&cx, b.o, b.lse.p, b.q, b.kv, b.kr, k.a, NULL));
    ref_same(a.o, b.o, "o"), ref_same(a.lse, b.lse, "lse");
    assert_true(select_isa(NULL));
    free(b.o.p), free(b.lse.p);
    free_run(a);
}
#endif

static void test_wrong_shapes(void **state) {
    (void)state;
    Case k = {{1, 8, 2, 4, 4, 4, 1.0f}, DT_F32, 0, 0};
    Run r = make_run(&k);
    OpCx cx = ref_cx(1);
    Mat bad = mat_cols(r.kv, 0, 15);
    assert_int_equal(attn_fwd_cpu(&cx, r.o, r.lse.p, r.q, bad, r.kr, k.a, NULL), E_INTERNAL);
    assert_non_null(strstr(fail_message(), "kv is f32 [8, 15]"));
    free_run(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases), cmocka_unit_test(test_mask_hides),
        cmocka_unit_test(test_extreme_scores), cmocka_unit_test(test_wrong_shapes),
#ifndef TESTS_CUDA
        cmocka_unit_test(test_select),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
