// test_attn_mma.c - attention on the tensor cores under the fibers, mma.sync and Hopper's forward: the same bits under
// every schedule and for any number of sequences at a time, near the plain kernels, no bank conflicts; and a test of
// the tests: one instruction left out must be noticed. (Its distance from double is what test_attn.c measures.)
#include <math.h>

#include "child.h"
#include "device.h"

void attn_mma_choose(int which);
enum { PLAIN, MMA, HOPPER };
void tc_finish(void);
void tc_half_bits(int bits);
void tc_conflicts(uint64_t *matrices, uint64_t *conflicts);

static OpCx cx;
static const Device *dev;
static Arena *scratch;

enum { OUTS = 5 }; // o, lse, dq, dkv, dkr
typedef struct Problem {
    AttnShape a;
    int32_t *doc; // NULL: no mask
    Mat q, kv, kr, dout, out[OUTS];
    bool is_forward; // only the first two are computed
} Problem;

static Mat random_bf16(int64_t rows, int64_t cols, uint64_t stream) {
    Mat m = mat(calloc((size_t)(rows * cols) + 8, 2), DT_BF16, rows, cols);
    assert_non_null(m.p);
    for (int64_t i = 0; i < rows * cols; i++)
        ((uint16_t *)m.p)[i] = bf16_from_f32((float)rng_normal(7, stream, (uint64_t)i));
    return m;
}
static Problem problem(AttnShape a, bool has_docs) {
    Problem p = {.a = a};
    int64_t T = a.nseq * a.S, D = a.Dn + a.Dr;
    p.q = random_bf16(T, a.H * D, 1);
    p.kv = random_bf16(T, a.H * (a.Dn + a.Dv), 2);
    p.kr = random_bf16(T, a.Dr, 3);
    p.dout = random_bf16(T, a.H * a.Dv, 4);
    p.out[0] = random_bf16(T, a.H * a.Dv, 5);
    p.out[1] = mat(calloc((size_t)(a.H * T), 4), DT_F32, a.H, T);
    p.out[2] = random_bf16(T, a.H * D, 6);
    p.out[3] = random_bf16(T, a.H * (a.Dn + a.Dv), 7);
    p.out[4] = random_bf16(T, a.Dr, 8);
    if (!has_docs) return p;
    p.doc = calloc((size_t)T, sizeof *p.doc);
    assert_non_null(p.doc);
    // Documents of any length; some rows say nonsense, which counts as the nearest that is possible.
    for (int64_t t = 0; t < T; t++) {
        int64_t i = t % a.S;
        bool starts = i == 0 || philox(3, 1, (uint64_t)t).v[0] % 41 == 0;
        p.doc[t] = starts ? (int32_t)i : p.doc[t - 1];
    }
    p.doc[T / 2] = -5;
    p.doc[T / 3] = (int32_t)a.S + 9;
    return p;
}
static void free_problem(Problem *p) {
    free(p->q.p), free(p->kv.p), free(p->kr.p), free(p->dout.p), free(p->doc);
    for (int i = 0; i < OUTS; i++) free(p->out[i].p);
}
static size_t bytes_of(Mat m) {
    return (size_t)(m.rows * m.cols) * dtype_bytes(m.t);
}
static void compute(Problem *p) {
    for (int i = 0; i < OUTS; i++) memset(p->out[i].p, 0xFF, bytes_of(p->out[i]));
    MUST_OK(attn_fwd_cuda(&cx, p->out[0], p->out[1].p, p->q, p->kv, p->kr, p->a, p->doc));
    if (!p->is_forward)
        MUST_OK(attn_bwd_cuda(&cx, p->out[2], p->out[3], p->out[4], p->dout, p->out[0], p->out[1].p, p->q, p->kv, p->kr,
                              p->a, p->doc));
    MUST_OK(dev->sync());
    tc_finish();
}
static bool is_same(const Problem *p, void *const *want) {
    bool is_ok = true;
    for (int i = 0; i < (p->is_forward ? 2 : OUTS); i++)
        is_ok = is_ok && !memcmp(p->out[i].p, want[i], bytes_of(p->out[i]));
    return is_ok;
}
static void keep(const Problem *p, void **to) {
    for (int i = 0; i < OUTS; i++) {
        to[i] = malloc(bytes_of(p->out[i]) + 1);
        assert_non_null(to[i]);
        memcpy(to[i], p->out[i].p, bytes_of(p->out[i]));
    }
}
static double value(Mat m, int64_t i) {
    return (double)(m.t == DT_F32 ? ((float *)m.p)[i] : f32_from_bf16(((uint16_t *)m.p)[i]));
}

// Against the plain kernels: p and ds are rounded to BF16 (half a unit of 2^-8 in every term), results once more. A sum
// of n terms that are off by independent roundings is off by far less than each term; what is asserted is the sum of
// all: no matrix is off by more than a unit of BF16 of its largest numbers, and on average by an eighth of that.
static void must_be_near(const Problem *p, void *const *want) {
    for (int i = 0; i < (p->is_forward ? 2 : OUTS); i++) {
        Mat m = p->out[i], w = m;
        w.p = want[i];
        double most = 0.0, worst = 0.0, sum = 0.0;
        int64_t n = m.rows * m.cols;
        for (int64_t k = 0; k < n; k++) {
            most = fmax(most, fabs(value(w, k)));
            worst = fmax(worst, fabs(value(m, k) - value(w, k)));
            sum += fabs(value(m, k) - value(w, k));
            assert_true(isfinite(value(m, k)));
        }
        double unit = m.t == DT_F32 ? 64.0 / (1 << 24) : 1.0 / 128;
        if (worst > unit * most || sum > unit / 8 * most * (double)n)
            fail_msg("output %d: off by %g, on average %g; largest number %g", i, worst, sum / (double)n, most);
    }
}

typedef struct Case {
    AttnShape a;
    int which;
} Case;
static const Case cases[] = {
    {{2, 150, 2, 32, 16, 40, 0.14f}, MMA},    {{1, 70, 1, 88, 8, 128, -0.1f}, MMA},
    {{1, 131, 1, 128, 64, 128, 0.0722f}, MMA}, {{3, 33, 2, 64, 0, 8, 0.125f}, MMA},
    {{1, 90, 1, 64, 32, 64, 0.1f}, MMA},      {{2, 135, 2, 128, 64, 128, 0.0722f}, HOPPER},
    {{1, 300, 1, 128, 0, 128, -0.09f}, HOPPER},
};
enum { CASES = sizeof cases / sizeof *cases };

static void check_case(const Case *k, bool has_docs) {
    Problem p = problem(k->a, has_docs);
    void *plain[OUTS], *first[OUTS];
    attn_mma_choose(PLAIN);
    compute(&p);
    keep(&p, plain);
    attn_mma_choose(k->which);
    uint64_t matrices, conflicts, launches = simt_launches();
    p.is_forward = k->which == HOPPER; // its backward is the other's
    tc_conflicts(&matrices, &conflicts);
    FOR_SCHEDULES(i) {
        compute(&p);
        if (i == 0) keep(&p, first);
        assert_true(is_same(&p, first));
    }
    assert_true(simt_launches() > launches);
    tc_conflicts(&matrices, &conflicts);
    assert_true((matrices > 1000) == (k->which == MMA) && conflicts == 0);
    must_be_near(&p, plain);
    tc_half_bits(24); // sums cut toward zero, as a GPU may have them
    compute(&p);
    must_be_near(&p, plain);
    tc_half_bits(0);
    for (int i = 0; i < OUTS; i++) free(plain[i]), free(first[i]);
    free_problem(&p);
}
static void test_schedules(void **state) {
    (void)state;
    for (int k = 0; k < 2 * CASES; k++) check_case(&cases[k / 2], k % 2);
}

// A sequence alone has the bits it has among others.
static void test_alone(void **state) {
    (void)state;
    Problem p = problem(cases[0].a, true);
    void *all[OUTS];
    attn_mma_choose(MMA);
    compute(&p);
    keep(&p, all);
    int64_t S = p.a.S, T = 2 * S;
    Problem one = p;
    one.a.nseq = 1;
    one.doc = p.doc + S;
    one.q = mat_rows(p.q, S, S), one.kv = mat_rows(p.kv, S, S), one.kr = mat_rows(p.kr, S, S);
    one.dout = mat_rows(p.dout, S, S);
    for (int i = 0; i < OUTS; i++)
        if (i != 1) one.out[i] = mat_rows(p.out[i], S, S);
    one.out[1] = mat(p.out[1].p, DT_F32, p.a.H, S);
    compute(&one);
    for (int64_t h = 0; h < p.a.H; h++)
        assert_memory_equal((float *)one.out[1].p + h * S, (float *)all[1] + h * T + S, (size_t)S * 4);
    for (int i = 0; i < OUTS; i++)
        if (i != 1) assert_memory_equal(one.out[i].p, (char *)all[i] + bytes_of(one.out[i]), bytes_of(one.out[i]));
    for (int i = 0; i < OUTS; i++) free(all[i]);
    free_problem(&p);
}

// What the tensor cores do not take goes to the plain kernels, and its numbers with it.
static void test_refused(void **state) {
    (void)state;
    static const AttnShape odd[] = {
        {1, 20, 1, 12, 8, 16, 0.2f}, {1, 20, 1, 8, 8, 12, 0.2f}, {1, 9, 1, 192, 8, 8, 0.1f}};
    for (int k = 0; k < 3; k++) {
        Problem p = problem(odd[k], false);
        void *plain[OUTS];
        attn_mma_choose(PLAIN);
        compute(&p);
        keep(&p, plain);
        attn_mma_choose(MMA);
        compute(&p);
        assert_true(is_same(&p, plain));
        for (int i = 0; i < OUTS; i++) free(plain[i]);
        free_problem(&p);
    }
}

static Problem mutant_problem;
static void *mutant_want[OUTS];
static bool is_right_in_all_schedules(void) {
    bool is_ok = true;
    FOR_SCHEDULES(i) {
        if (!is_ok) break;
        compute(&mutant_problem);
        is_ok = is_same(&mutant_problem, mutant_want);
    }
    return is_ok;
}
static void check_mutants(int which, AttnShape a) {
    attn_mma_choose(which);
    mutant_problem = problem(a, which == MMA);
    mutant_problem.is_forward = which == HOPPER;
    compute(&mutant_problem);
    keep(&mutant_problem, mutant_want);
    check_sites(is_right_in_all_schedules, 20, 99);
    for (int i = 0; i < OUTS; i++) free(mutant_want[i]);
    free_problem(&mutant_problem);
}
static void test_mutants(void **state) {
    (void)state;
    check_mutants(MMA, (AttnShape){1, 140, 1, 32, 16, 40, 0.14f});
}
// Three blocks of keys, so that the ring of two comes around.
static void test_hopper_mutants(void **state) {
    (void)state;
    check_mutants(HOPPER, (AttnShape){1, 290, 1, 64, 64, 128, 0.09f});
}

int main(void) {
    if (device_cuda_open(&dev, 0) != OK || arena_create(&scratch, "scratch", (size_t)64 << 20, false) != OK) return 70;
    arena_poison(true);
    cx = (OpCx){.scratch = scratch, .nthreads = 1};
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules), cmocka_unit_test(test_alone),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_mutants),
                                       cmocka_unit_test(test_hopper_mutants)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&scratch);
    device_cuda_close();
    return failed;
}
