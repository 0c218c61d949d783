// test_ggemm.c - grouped products, on every instruction set of this processor, against double
// precision: empty experts, everything on one, counts that no tile divides, and NaN in all rows
// outside groups.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "gemm.h"
#include "gemm_reference.h"
#include "ggemm.h"

static OpCx cx;

typedef enum Op { NT, NN, TN, FPROP, DGRAD, WGRAD, OP_COUNT } Op;
enum { L = 4, N = 70, K = 133, GAP = 2 }; // weights are [N, K]

static const int64_t layouts[][L] = {
    {5, 0, 300, 1}, {0, 0, 77, 0}, {0, 0, 0, 0}, {128, 130, 3, 64}, {1, 2, 3, 4}};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

// GAP rows before every group, and after the last.
static int64_t make_groups(Groups *g, int64_t *start, const int64_t *count) {
    int64_t at = GAP;
    for (int e = 0; e < L; e++) {
        start[e] = at;
        at += count[e] + GAP;
    }
    *g = (Groups){start, count, L};
    return at;
}

static bool is_padding(Groups g, int64_t row) {
    for (int64_t e = 0; e < g.n; e++)
        if (row >= g.start[e] && row < g.start[e] + g.count[e]) return false;
    return true;
}

static void poison_rows(Mat m, Groups g) {
    for (int64_t r = 0; r < m.rows; r++)
        if (is_padding(g, r)) memset(mat_at(m, r, 0), 0xFF, (size_t)m.cols * dtype_bytes(m.t));
}

static void assert_near(Op op, double got, double old, const double *a, int64_t ak, const double *b,
                        int64_t bk, int64_t n, DType t) {
    if (!ref_is_close(got, old, a, ak, b, bk, n, op >= FPROP, t == DT_BF16))
        fail_msg("%s op %d: %g", gemm_isa(), op, got);
}

// nt, nn, fprop, dgrad: rows of tokens times the expert's weight.
static void check_rows(Op op, Groups g, int64_t R, DType t, bool acc) {
    bool is_nn = op == NN || op == DGRAD;
    int64_t kin = is_nn ? N : K, nout = is_nn ? K : N;
    double *va = NULL, *vb = NULL, *old = NULL;
    Mat a = {0}, b = {0}, y = ref_mat(acc ? DT_F32 : t, R, nout, &old);
    MatQ qa = {0}, w = {0};
    if (op < FPROP) {
        a = ref_mat(t, R, kin, &va);
        b = ref_mat(t, L * N, K, &vb);
        poison_rows(a, g);
    } else {
        qa = ref_matq(t == DT_F32 ? SCALE_F32 : SCALE_E8M0, 1, 1, R, kin, ceil_div(kin, TILE),
                      false);
        w = ref_matq(SCALE_F32, TILE, L, N, K, ceil_div(K, TILE), false);
        if (acc) ref_make_e5m2(&qa);
        va = ref_values(qa);
        vb = malloc(L * N * K * sizeof *vb);
        for (int64_t e = 0; e < L; e++) {
            double *one = ref_values(matq_mat(w, e));
            memcpy(vb + e * N * K, one, N * K * sizeof *one);
            free(one);
        }
        poison_rows(mat(qa.q, DT_U8, R, qa.ld), g);
    }
    if (!acc)
        for (int64_t r = 0; r < R; r++)
            if (!is_padding(g, r)) memset(mat_at(y, r, 0), 0xFF, (size_t)nout * dtype_bytes(y.t));
    Err err = op == NT      ? ggemm_nt_cpu(&cx, y, a, b, g, acc)
              : op == NN    ? ggemm_nn_cpu(&cx, y, a, b, g, acc)
              : op == FPROP ? ggemm_fp8_fprop_cpu(&cx, y, qa, w, g, acc)
                            : ggemm_fp8_dgrad_cpu(&cx, y, qa, w, g, acc);
    assert_int_equal(err, OK);
    for (int64_t e = 0; e < L; e++)
        for (int64_t r = g.start[e]; r < g.start[e] + g.count[e]; r++)
            for (int64_t j = 0; j < nout; j++)
                assert_near(op, ref_get(y, r, j), acc ? old[r * nout + j] : 0, va + r * kin, 1,
                            vb + e * N * K + (is_nn ? j : j * K), is_nn ? K : 1, kin, y.t);
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; j < nout && is_padding(g, r); j++)
            assert_true(ref_get(y, r, j) == old[r * nout + j]); // not written
    free(a.p), free(b.p), free(y.p), free(qa.q), free(qa.s), free(w.q), free(w.s), free(va),
        free(vb), free(old);
}

// tn, wgrad: the tokens are the contraction; every expert has an output.
static void check_weights(Op op, Groups g, int64_t R, DType t, bool acc) {
    double *va = NULL, *vb = NULL, *old = NULL;
    Mat a = {0}, b = {0}, y = ref_mat(DT_F32, L * N, K, &old);
    MatQ at = {0}, bt = {0};
    int64_t ai = 1, ak = N, bj = 1, bk = K, tiles = groups_tiles(g, R);
    if (op == TN) {
        a = ref_mat(t, R, N, &va);
        b = ref_mat(t, R, K, &vb);
        poison_rows(a, g);
        poison_rows(b, g);
    } else {
        ScaleType st = t == DT_F32 ? SCALE_F32 : SCALE_E8M0;
        at = ref_matq(st, 1, 1, N, R, tiles, true);
        bt = ref_matq(st, 1, 1, K, R, tiles, true);
        if (!acc) ref_make_e5m2(&at);
        va = calloc((size_t)(N * R), sizeof *va);
        vb = calloc((size_t)(K * R), sizeof *vb);
        ai = bj = R, ak = bk = 1;
        int64_t first = 0;
        for (int64_t e = 0; e < L; e++) {
            for (int64_t i = 0; i < g.count[e]; i++) {
                int64_t m = g.start[e] + i;
                for (int64_t r = 0; r < N; r++)
                    va[r * R + m] = ref_value(at, r, m, first + i / TILE);
                for (int64_t r = 0; r < K; r++)
                    vb[r * R + m] = ref_value(bt, r, m, first + i / TILE);
            }
            first += ceil_div(g.count[e], TILE);
        }
        for (int64_t m = 0; m < R; m++) {
            if (!is_padding(g, m)) continue;
            for (int64_t r = 0; r < N; r++) at.q[r * at.ld + m] = 0x7F;
            for (int64_t r = 0; r < K; r++) bt.q[r * bt.ld + m] = 0x7F;
        }
    }
    assert_int_equal(op == TN ? ggemm_tn_cpu(&cx, y, a, b, g, acc)
                              : ggemm_fp8_wgrad_cpu(&cx, y, at, bt, g, acc),
                     OK);
    for (int64_t e = 0; e < L; e++)
        for (int64_t r = 0; r < N; r++)
            for (int64_t c = 0; c < K; c++) {
                double before = acc ? old[(e * N + r) * K + c] : 0, got = ref_get(y, e * N + r, c);
                if (g.count[e] == 0)
                    assert_true(got == before);
                else
                    assert_near(op, got, before, va + r * ai + g.start[e] * ak, ak,
                                vb + c * bj + g.start[e] * bk, bk, g.count[e], DT_F32);
            }
    free(a.p), free(b.p), free(y.p), free(at.q), free(at.s), free(bt.q), free(bt.s), free(va),
        free(vb), free(old);
}

static void grouped_products_are_right(void **state) {
    (void)state;
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int op = 0; op < OP_COUNT; op++)
            for (int i = 0; i < LAYOUTS; i++) {
                Groups g;
                int64_t start[L], R = make_groups(&g, start, layouts[i]);
                cx.nthreads = 1 + (i + op) % 3;
                (op == TN || op == WGRAD ? check_weights : check_rows)(
                    (Op)op, g, R, (i + op) % 2 ? DT_F32 : DT_BF16, i % 3 == 0);
            }
    }
    gemm_select(NULL);
}

static void threads_change_nothing(void **state) {
    (void)state;
    Groups g;
    int64_t start[L], R = make_groups(&g, start, layouts[0]);
    double *va, *vb, *vy;
    Mat a = ref_mat(DT_BF16, R, K, &va), b = ref_mat(DT_BF16, L * N, K, &vb), y[3];
    for (int t = 0; t < 3; t++) {
        y[t] = ref_mat(DT_F32, R, N, &vy);
        memset(y[t].p, 0, (size_t)(R * y[t].ld) * 4);
        free(vy);
        cx.nthreads = t + 1;
        assert_int_equal(ggemm_nt_cpu(&cx, y[t], a, b, g, false), OK);
        assert_memory_equal(y[0].p, y[t].p, (size_t)(R * y[0].ld) * 4);
    }
    for (int t = 0; t < 3; t++) free(y[t].p);
    free(a.p), free(b.p), free(va), free(vb);
}

static void wrong_calls_are_refused(void **state) {
    (void)state;
    float x[64] = {0};
    int64_t start = 1, count = 2, zero = 0, one = 1;
    Groups past_the_end = {&start, &count, 1}, fine = {&zero, &one, 1}, none = {0};
    Mat m22 = mat(x, DT_F32, 2, 2), m23 = mat(x, DT_F32, 2, 3);
    assert_int_equal(ggemm_nt_cpu(&cx, m22, m22, m22, past_the_end, false), E_INTERNAL);
    assert_int_equal(ggemm_nt_cpu(&cx, m22, m22, m23, fine, false), E_INTERNAL);
    assert_int_equal(ggemm_nt_cpu(&cx, m22, m22, m22, none, false), E_INTERNAL);
    assert_int_equal(ggemm_tn_cpu(&cx, m22, m23, m22, fine, false), E_INTERNAL);
    assert_int_equal(arena_mark(cx.scratch), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grouped_products_are_right),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(wrong_calls_are_refused),
    };
    if (arena_create(&cx.scratch, "scratch", gemm_scratch_bytes(3, L), false) != OK) return 1;
    arena_poison(true);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&cx.scratch);
    return failed;
}
