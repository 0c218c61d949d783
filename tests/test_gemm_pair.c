// test_gemm_pair.c - pairs of products against one contraction in double: plain and FP8, dense and grouped, both
// output types, every instruction set; threads change no bit.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "gemm_reference.h"
#include "ggemm.h"
#include "must.h"

static OpCx cx;

// Rows of a and of a2, columns of the output, the two contractions; experts.
typedef struct Case {
    int64_t M, K, N, N2, L;
} Case;
static const Case cases[] = {{1, 1, 1, 1, 1},        {77, 130, 128, 60, 1},   {300, 300, 200, 640, 1},
                             {5, 520, 1100, 130, 1}, {260, 256, 96, 96, 1},   {520, 70, 400, 500, 1},
                             {150, 70, 129, 256, 3}, {90, 300, 64, 1100, 4}, {250, 32, 256, 128, 2}};
enum { CASES = sizeof cases / sizeof cases[0], MAX_L = 4 };

// One side of the pair, in the form that the kind of the products wants, and its values.
typedef struct Side {
    Mat a, w;
    MatQ qa, qw;
    double *va, *vw; // [M][n], [L*n][K]
    int64_t n;
} Side;

static Side side_make(const Case *c, int64_t n, bool is_fp8, DType t) {
    Side s = {.n = n};
    if (!is_fp8) {
        s.a = ref_mat(t, c->M, n, &s.va);
        s.w = ref_mat(t, c->L * n, c->K, &s.vw);
        return s;
    }
    s.qa = ref_matq(t == DT_F32 ? SCALE_F32 : SCALE_E8M0, 1, 1, c->M, n, ceil_div(n, TILE), false);
    s.qw = ref_matq(SCALE_F32, TILE, c->L, n, c->K, ceil_div(c->K, TILE), false);
    s.va = ref_values(s.qa);
    s.vw = malloc((size_t)(c->L * n * c->K) * sizeof *s.vw);
    for (int64_t e = 0; e < c->L; e++) {
        double *one = ref_values(matq_mat(s.qw, e));
        memcpy(s.vw + e * n * c->K, one, (size_t)(n * c->K) * sizeof *one);
        free(one);
    }
    return s;
}

static void side_free(Side *s) {
    free(s->a.p), free(s->w.p), free(s->qa.q), free(s->qa.s), free(s->qw.q), free(s->qw.s), free(s->va), free(s->vw);
}

static Err run(const Case *c, Mat y, const Side *s, const Side *t, bool is_fp8, Groups g, Mat room) {
    if (c->L > 1) {
        if (is_fp8) return ggemm_fp8_dgrad_pair_cpu(&cx, y, s->qa, s->qw, t->qa, t->qw, g, room);
        return ggemm_nn_pair_cpu(&cx, y, s->a, s->w, t->a, t->w, g, room);
    }
    if (is_fp8) return gemm_fp8_dgrad_pair_cpu(&cx, y, s->qa, s->qw, t->qa, t->qw, room);
    return gemm_nn_pair_cpu(&cx, y, s->a, s->w, t->a, t->w, room);
}

// What the sides give for (r, j), whose row belongs to expert e, and how far an FP32 sum may be from it: promotion adds
// up 128 products and then slices, of both contractions (gemm_reference.h).
static void expected(const Case *c, const Side *const sides[2], int64_t e, int64_t r, int64_t j, bool is_fp8,
                     double *want, double *bound) {
    double sum = 0.0, size = 0.0;
    int64_t steps = is_fp8 ? TILE + 8 : 4;
    for (int k = 0; k < 2; k++) {
        const Side *s = sides[k];
        for (int64_t i = 0; i < s->n; i++) {
            double p = s->va[r * s->n + i] * s->vw[(e * s->n + i) * c->K + j];
            sum += p;
            size += fabs(p);
        }
        steps += is_fp8 ? ceil_div(s->n, TILE) : s->n;
    }
    *want = sum;
    *bound = (double)steps * 0x1p-24 * size * 1.01;
}

static void check_case(const Case *c, bool is_fp8, DType t, DType out) {
    int64_t start[MAX_L] = {0}, count[MAX_L] = {0}, at = 0;
    for (int64_t e = 0; e < c->L; e++) { // the second group has no rows
        start[e] = at;
        count[e] = e == 1 && c->L > 2 ? 0 : e + 1 == c->L ? c->M - at : min_i64(c->M / 2, c->M - at);
        at += count[e];
    }
    Side s = side_make(c, c->N, is_fp8, t), u = side_make(c, c->N2, is_fp8, t);
    const Side *const sides[2] = {&s, &u};
    double *unused;
    Mat y = ref_mat(out, c->M, c->K, &unused), z = y, room = ref_mat(DT_F32, c->M, c->K, &unused);
    z.p = malloc((size_t)(c->M * y.ld + 1) * dtype_bytes(out));
    memcpy(z.p, y.p, (size_t)(c->M * y.ld) * dtype_bytes(out));
    cx.nthreads = 1;
    MUST_OK(run(c, y, &s, &u, is_fp8, (Groups){start, count, c->L}, out == DT_F32 ? y : room));
    for (int64_t e = 0; e < c->L; e++)
        for (int64_t r = start[e]; r < start[e] + count[e]; r++)
            for (int64_t j = 0; j < c->K; j++) {
                double want, bound, got = ref_get(y, r, j);
                expected(c, sides, e, r, j, is_fp8, &want, &bound);
                if (out == DT_BF16) bound += (fabs(want) + bound) * 0x1p-8;
                if (!(fabs(got - want) <= bound))
                    fail_msg("(%lld, %lld): %g, expected %g +- %g", (long long)r, (long long)j, got, want, bound);
            }
    for (int n = 2; n <= 3; n++) {
        cx.nthreads = n;
        MUST_OK(run(c, z, &s, &u, is_fp8, (Groups){start, count, c->L}, out == DT_F32 ? z : room));
        assert_memory_equal(y.p, z.p, (size_t)(c->M * y.ld) * dtype_bytes(out));
    }
    side_free(&s), side_free(&u), free(y.p), free(z.p), free(room.p);
}

static void pairs_are_right(void **state) {
    (void)state;
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int i = 0; i < CASES; i++)
            for (int k = 0; k < 6; k++) { // FP8 with both kinds of scales, BF16, FP32
                bool is_fp8 = k < 4;
                check_case(&cases[i], is_fp8, k % 2 ? DT_F32 : DT_BF16, k / 2 % 2 && k != 5 ? DT_BF16 : DT_F32);
            }
#ifdef TESTS_CUDA
        break; // the operations are not the CPU's
#endif
    }
    gemm_select(NULL);
}

static void wrong_calls_are_refused(void **state) {
    (void)state;
    const Case c = {4, 8, 16, 16, 1};
    Side s = side_make(&c, 16, false, DT_F32), u = side_make(&c, 12, false, DT_F32);
    double *unused;
    Mat y = ref_mat(DT_F32, 4, 8, &unused);
    u.a.cols = 16;
    MUST_FAIL(gemm_nn_pair_cpu(&cx, y, s.a, s.w, u.a, u.w, y), E_INTERNAL, "shapes disagree");
    side_free(&s), side_free(&u), free(y.p);
}

int main(void) {
    cx.nthreads = 1;
    MUST_OK(arena_create(&cx.scratch, "scratch", gemm_scratch_bytes(3, MAX_L) + sizeof(GemmProblem) * MAX_L, false));
    const struct CMUnitTest tests[] = {cmocka_unit_test(pairs_are_right), cmocka_unit_test(wrong_calls_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
