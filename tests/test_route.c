// test_route.c - the router: selection against sorting, ties, groups and negative biased scores,
// gates and balance loss in double, gradients against central differences; the V3 and the V2 form.
#include "reference.h"

typedef struct Case {
    RouteShape s;
    int64_t nseq, pad;
    bool has_bias;
    int levels; // 0: normal logits; else logits take so few values that ties are everywhere
} Case;

static const Case cases[] = {
    // T, E, K, ngroup, topk_group, sigmoid, normalise, scale, seqbal_scale
    {{12, 8, 2, 1, 1, true, true, 2.5f, 0.3f}, 3, 0, true, 0},
    {{60, 16, 4, 4, 2, true, true, 2.5f, 0.1f}, 2, 1, true, 0},
    {{60, 16, 4, 4, 2, true, true, 1.0f, 0.1f}, 1, 0, true, 3},
    {{300, 256, 8, 8, 4, true, true, 2.5f, 1e-4f}, 2, 0, true, 0},
    {{40, 12, 3, 3, 2, true, true, 1.0f, 0.0f},
     1,
     2,
     false,
     4}, // sigmoid without bias: group maximum
    {{64, 160, 6, 8, 3, false, false, 16.0f, 0.2f}, 2, 0, false, 0}, // V2
    {{30, 64, 6, 1, 1, false, false, 1.0f, 0.2f}, 3, 0, false, 2},   // V2-Lite
    {{10, 6, 6, 1, 1, true, true, 2.5f, 0.5f}, 2, 0, true, 0},       // all experts
    {{10, 6, 6, 3, 3, false, true, 1.0f, 0.5f},
     2,
     0,
     false,
     0}, // all, in groups, softmax normalised
    {{9, 1, 1, 1, 1, true, true, 1.0f, 0.5f}, 3, 0, true, 0},
    {{20, 8, 2, 8, 4, true, false, 3.0f, 0.5f}, 4, 0, true, 2}, // groups of one expert
    {{0, 8, 2, 1, 1, true, true, 1.0f, 0.5f}, 1, 0, true, 0},
};

typedef struct Entry {
    float v;
    int i;
} Entry;
static int by_value(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    if (x->v != y->v) return x->v > y->v ? -1 : 1;
    return x->i - y->i;
}
static int by_index(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

// The definition by sorting: groups by score, experts by value, lower index first among equals.
static void select_by_sorting(int *out, const float *score, const float *bias, RouteShape s) {
    Entry e[256], g[64];
    int64_t per = s.E / s.ngroup;
    for (int64_t i = 0; i < s.ngroup; i++) {
        Entry in[256];
        for (int64_t j = 0; j < per; j++) {
            int64_t x = i * per + j;
            in[j].v = bias ? score[x] + bias[x] : score[x];
            in[j].i = (int)j;
        }
        qsort(in, (size_t)per, sizeof *in, by_value);
        g[i].v = bias && per > 1 ? in[0].v + in[1].v : in[0].v;
        g[i].i = (int)i;
    }
    qsort(g, (size_t)s.ngroup, sizeof *g, by_value);
    for (int64_t i = 0; i < s.E; i++) {
        bool kept = false;
        for (int64_t k = 0; k < s.topk_group; k++) kept = kept || g[k].i == i / per;
        e[i].v = !kept ? -INFINITY : bias ? score[i] + bias[i] : score[i];
        e[i].i = (int)i;
    }
    qsort(e, (size_t)s.E, sizeof *e, by_value);
    for (int64_t k = 0; k < s.K; k++) out[k] = e[k].i;
    qsort(out, (size_t)s.K, sizeof *out, by_index);
}

typedef struct Problem {
    RouteShape s;
    int64_t nseq, row; // row: the token whose part of the loss is wanted, or -1
    double *logits;
    const int32_t *idx;
    const double *cot;
    const float *coef;
    double score[256];
} Problem;

static void scores64(const Problem *p, int64_t t, double *score) {
    const double *l = p->logits + t * p->s.E;
    double max = -INFINITY, sum = 0.0;
    for (int64_t e = 0; e < p->s.E; e++) max = fmax(max, l[e]);
    for (int64_t e = 0; e < p->s.E; e++) {
        score[e] = p->s.is_sigmoid ? 1.0 / (1.0 + exp(-l[e])) : exp(l[e] - max);
        sum += score[e];
    }
    if (!p->s.is_sigmoid)
        for (int64_t e = 0; e < p->s.E; e++) score[e] /= sum;
}
// One token's part: cot . gate + seqbal_scale / S * sum_e f_e score_e / sum score; the selection
// stays.
static double token_loss(void *ctx) {
    Problem *p = ctx;
    int64_t t = p->row;
    double sum = 0.0, all = 0.0, total = 0.0, balance = 0.0;
    scores64(p, t, p->score);
    const int32_t *idx = p->idx + t * p->s.K;
    for (int64_t k = 0; k < p->s.K; k++) sum += p->score[idx[k]];
    for (int64_t k = 0; k < p->s.K; k++)
        total += p->cot[t * p->s.K + k] * p->score[idx[k]] / (p->s.normalise ? sum + 1e-20 : 1.0) *
                 (double)p->s.scale;
    for (int64_t e = 0; e < p->s.E; e++) all += p->score[e];
    int64_t S = p->s.T / p->nseq;
    for (int64_t e = 0; e < p->s.E; e++)
        balance += (double)p->coef[t / S * p->s.E + e] * p->score[e] / all;
    return total + (double)p->s.seqbal_scale / (double)S * balance;
}

typedef struct Run {
    int32_t *idx;
    int64_t *count;
    Mat logits, gate, score, coef, dgate, dlogits;
    double loss;
} Run;

static Run make_run(const Case *k) {
    RouteShape s = k->s;
    Run r;
    r.idx = malloc((size_t)(s.T * s.K + 1) * 4);
    r.count = malloc((size_t)s.E * 8);
    r.logits = ref_random(DT_F32, s.T, s.E, k->pad, 1.0);
    for (int64_t t = 0; k->levels && t < s.T; t++)
        for (int64_t e = 0; e < s.E; e++)
            ref_set(r.logits, t, e,
                    (double)(philox(2, (uint64_t)t, (uint64_t)e).v[1] % (uint64_t)k->levels));
    r.gate = ref_mat(DT_F32, s.T, s.K, 0);
    r.score = ref_mat(DT_F32, s.T, s.E, 0);
    r.coef = ref_mat(DT_F32, k->nseq, s.E, 0);
    r.dgate = ref_random(DT_F32, s.T, s.K, 0, 1.0);
    r.dlogits = ref_mat(DT_F32, s.T, s.E, k->pad);
    return r;
}
static void compute(Run *r, const Case *k, const float *bias, int nthreads) {
    OpCx cx = ref_cx(nthreads);
    for (int64_t e = 0; e < k->s.E; e++) r->count[e] = 1000 * e; // counts are added to
    r->loss = 7.0;
    MUST_OK(route_fwd_cpu(&cx, r->idx, r->gate.p, r->score.p, r->count, r->logits, bias, k->s));
    MUST_OK(route_seqbal_cpu(&cx, &r->loss, r->coef.p, r->score.p, k->s, k->nseq));
    MUST_OK(route_bwd_cpu(&cx, r->dlogits, r->dgate.p, r->gate.p, r->score.p, r->idx, r->coef.p,
                          k->s, k->nseq));
}
static void free_run(Run *r) {
    free(r->idx), free(r->count), free(r->logits.p), free(r->gate.p), free(r->score.p);
    free(r->coef.p), free(r->dgate.p), free(r->dlogits.p);
}

static void check_forward(const Run *r, const Case *k, const float *bias, Problem *p) {
    RouteShape s = k->s;
    int64_t count[256];
    for (int64_t e = 0; e < s.E; e++) count[e] = 1000 * e;
    for (int64_t t = 0; t < s.T; t++) {
        const float *score = (const float *)r->score.p + t * s.E;
        int want[256];
        double sum = 0.0;
        scores64(p, t, p->score);
        for (int64_t e = 0; e < s.E; e++)
            ref_near(score[e], p->score[e], 24 * U32 * p->score[e], "score", t, e);
        select_by_sorting(want, score, bias, s);
        for (int64_t i = 0; i < s.K; i++) {
            assert_int_equal(r->idx[t * s.K + i], want[i]);
            sum += p->score[want[i]];
            count[want[i]]++;
        }
        for (int64_t i = 0; i < s.K; i++) {
            double g = p->score[want[i]] * (double)s.scale / (s.normalise ? sum : 1.0);
            ref_near(ref_at(r->gate, t, i), g, 48 * U32 * g, "gate", t, i);
        }
    }
    for (int64_t e = 0; e < s.E; e++) assert_int_equal(r->count[e], count[e]);
}

static void check_balance(const Run *r, const Case *k, Problem *p) {
    RouteShape s = k->s;
    if (s.T == 0) return;
    int64_t S = s.T / k->nseq;
    RouteShape plain = s;
    plain.ngroup = plain.topk_group = 1;
    double total = 7.0;
    for (int64_t q = 0; q < k->nseq; q++) {
        double f[256] = {0}, prob[256] = {0};
        for (int64_t t = q * S; t < (q + 1) * S; t++) {
            int top[256];
            double all = 0.0;
            select_by_sorting(top, (const float *)r->score.p + t * s.E, NULL, plain);
            for (int64_t i = 0; i < s.K; i++) f[top[i]] += (double)s.E / (double)(s.K * S);
            scores64(p, t, p->score);
            for (int64_t e = 0; e < s.E; e++) all += p->score[e];
            for (int64_t e = 0; e < s.E; e++) prob[e] += p->score[e] / all / (double)S;
        }
        for (int64_t e = 0; e < s.E; e++) {
            ref_near(ref_at(r->coef, q, e), f[e], 2 * U32 * f[e], "f", q, e);
            total += f[e] * prob[e];
        }
    }
    ref_near(r->loss, total, 40 * U32 * total, "balance loss", 0, 0);
}

// Size of what is summed for the gradient of the logit of expert e: FP32 noise is a few units of
// it.
static double grad_size(const Problem *p, int64_t t, int64_t e) {
    RouteShape s = p->s;
    const int32_t *idx = p->idx + t * s.K;
    const double *cot = p->cot + t * s.K;
    double ds[256], sum = 0.0, dot = 0.0, all = 0.0, mean = 0.0, spread = 0.0, score[256];
    int64_t S = s.T / p->nseq;
    const float *f = p->coef + t / S * s.E;
    scores64(p, t, score);
    for (int64_t k = 0; k < s.K; k++) sum += s.normalise ? score[idx[k]] : 1.0 / (double)s.K;
    for (int64_t k = 0; k < s.K; k++) dot += s.normalise ? fabs(cot[k]) * score[idx[k]] / sum : 0.0;
    for (int64_t j = 0; j < s.E; j++) all += score[j];
    for (int64_t j = 0; j < s.E; j++) mean += (double)f[j] * score[j] / all;
    for (int64_t j = 0; j < s.E; j++)
        ds[j] = (double)s.seqbal_scale / (double)S * ((double)f[j] + mean) / all;
    for (int64_t k = 0; k < s.K; k++) ds[idx[k]] += (double)s.scale * (fabs(cot[k]) + dot) / sum;
    for (int64_t j = 0; j < s.E; j++) spread += s.is_sigmoid ? 0.0 : ds[j] * score[j];
    return score[e] * (ds[e] + spread);
}

static void check_backward(const Run *r, const Case *k, Problem *p) {
    RouteShape s = k->s;
    int64_t n = s.T * s.E, samples = n < 1200 ? n : 400;
    for (int64_t i = 0; i < samples; i++) {
        int64_t x = ref_pick(i, samples, n), t = x / s.E;
        p->row = t;
        double want = ref_slope(token_loss, p, p->logits + x),
               tol = 32 * U32 * grad_size(p, t, x % s.E) + 2e-11;
        ref_near(ref_at(r->dlogits, t, x % s.E), want, tol, "dlogits", t, x % s.E);
    }
    ref_pads(r->dlogits, "dlogits");
}

static void run_case(const Case *k) {
    Run r = make_run(k);
    Mat bias = ref_random(DT_F32, 1, k->s.E, 0, k->levels ? 0.0 : 0.5);
    for (int64_t e = 0; k->levels && e < k->s.E; e++) ref_set(bias, 0, e, -0.5 * (double)(e % 2));
    float *b = k->has_bias ? bias.p : NULL;
    compute(&r, k, b, 1);
    double *logits = ref_double(r.logits), *cot = ref_double(r.dgate);
    Problem p = {k->s, k->nseq, -1, logits, r.idx, cot, r.coef.p, {0}};
    check_forward(&r, k, b, &p);
    check_balance(&r, k, &p);
    check_backward(&r, k, &p);
    for (int n = 2; n <= 3; n++) {
        Run z = r;
        z.idx = malloc((size_t)(k->s.T * k->s.K + 1) * 4);
        z.count = malloc((size_t)k->s.E * 8);
        z.gate = ref_mat(DT_F32, k->s.T, k->s.K, 0), z.score = ref_mat(DT_F32, k->s.T, k->s.E, 0);
        z.coef = ref_mat(DT_F32, k->nseq, k->s.E, 0),
        z.dlogits = ref_mat(DT_F32, k->s.T, k->s.E, k->pad);
        compute(&z, k, b, n);
        assert_memory_equal(z.idx, r.idx, (size_t)(k->s.T * k->s.K) * 4);
        assert_memory_equal(z.count, r.count, (size_t)k->s.E * 8);
        assert_true(z.loss == r.loss);
        ref_same(z.gate, r.gate, "gate"), ref_same(z.score, r.score, "score");
        ref_same(z.coef, r.coef, "coef"), ref_same(z.dlogits, r.dlogits, "dlogits");
        free(z.idx), free(z.count), free(z.gate.p), free(z.score.p), free(z.coef.p),
            free(z.dlogits.p);
    }
    free(logits), free(cot), free(bias.p);
    free_run(&r);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

// Masking with 0 instead of -infinity would choose an expert of a group that is not kept.
static void test_negative_biased_scores(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float logits[4] = {0, 0, 0, 0}, bias[4] = {-0.6f, -0.7f, -0.8f, -0.9f}, gate[2], score[4];
    int32_t idx[2];
    int64_t count[4] = {0};
    RouteShape s = {1, 4, 2, 2, 1, true, true, 1.0f, 0.0f};
    MUST_OK(route_fwd_cpu(&cx, idx, gate, score, count, mat(logits, DT_F32, 1, 4), bias, s));
    assert_true(idx[0] == 0 && idx[1] == 1 && count[0] == 1 && count[1] == 1 && count[2] == 0);
    bias[0] = -5.0f; // now the second group, although both its sums are negative
    MUST_OK(route_fwd_cpu(&cx, idx, gate, score, count, mat(logits, DT_F32, 1, 4), bias, s));
    assert_true(idx[0] == 2 && idx[1] == 3 && gate[0] == 0.5f && gate[1] == 0.5f);
}

// "No bias" and "zero bias" differ: maximum of a group against the sum of its two largest.
static void test_group_score_forms(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float logits[4] = {2, -4, 1, 1}, zero[4] = {0}, gate, score[4];
    int32_t idx;
    int64_t count[4] = {0};
    RouteShape s = {1, 4, 1, 2, 1, true, true, 1.0f, 0.0f};
    MUST_OK(route_fwd_cpu(&cx, &idx, &gate, score, count, mat(logits, DT_F32, 1, 4), NULL, s));
    assert_int_equal(idx, 0);
    MUST_OK(route_fwd_cpu(&cx, &idx, &gate, score, count, mat(logits, DT_F32, 1, 4), zero, s));
    assert_int_equal(idx, 2);
}

// Non-finite logits must never give an index outside the experts, or the same expert twice.
static void test_nonfinite_logits(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float logits[2][4] = {{NAN, NAN, NAN, NAN}, {NAN, -INFINITY, INFINITY, NAN}}, gate[6], score[8];
    int32_t idx[6];
    int64_t count[4] = {0};
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        RouteShape s = {2, 4, 3, 2, 2, sigmoid, true, 1.0f, 0.0f};
        MUST_OK(route_fwd_cpu(&cx, idx, gate, score, count, mat(logits, DT_F32, 2, 4), NULL, s));
        for (int t = 0; t < 2; t++)
            for (int k = 0; k < 3; k++)
                assert_true(idx[t * 3 + k] >= 0 && idx[t * 3 + k] < 4 &&
                            (k == 0 || idx[t * 3 + k] > idx[t * 3 + k - 1]));
    }
}

static void test_wrong_shapes(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    float logits[8] = {0}, gate[8], score[8];
    int32_t idx[8];
    int64_t count[8] = {0};
    const RouteShape bad[] = {{1, 8, 9, 1, 1, true, true, 1, 0},
                              {1, 8, 2, 3, 1, true, true, 1, 0},
                              {1, 8, 2, 4, 5, true, true, 1, 0},
                              {1, 8, 5, 4, 2, true, true, 1, 0}};
    for (int i = 0; i < 4; i++)
        assert_int_equal(
            route_fwd_cpu(&cx, idx, gate, score, count, mat(logits, DT_F32, 1, 8), NULL, bad[i]),
            E_INTERNAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_negative_biased_scores),
        cmocka_unit_test(test_group_score_forms),
        cmocka_unit_test(test_nonfinite_logits),
        cmocka_unit_test(test_wrong_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
