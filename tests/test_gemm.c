// test_gemm.c - every dense product on every instruction set of this processor against double
// precision, with the bound that the number of FP32 additions gives; threads and position must not
// change a bit.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "gemm.h"
#include "gemm_reference.h"

static OpCx cx;

typedef enum Op { NT, NN, TN, FPROP, DGRAD, WGRAD, OP_COUNT } Op;

// The operands of one product of M x N outputs over K, however its operation stores them; FP8 codes
// are E4M3, or E5M2 by the bits of e5m2.
typedef struct Case {
    Op op;
    int64_t M, N, K;
    Mat a, b;
    MatQ qa, qb;
    double *va, *vb; // a(i, k) = va[i * ai + k * ak]
    int64_t ai, ak, bj, bk;
} Case;

static void case_make(Case *c, Op op, int64_t M, int64_t N, int64_t K, DType ta, DType tb,
                      ScaleType st, int e5m2) {
    *c = (Case){.op = op, .M = M, .N = N, .K = K, .ai = K, .ak = 1, .bj = K, .bk = 1};
    if (op == NN || op == TN || op == DGRAD) c->bj = 1, c->bk = N;
    if (op == TN) c->ai = 1, c->ak = M;
    bool is_b_across = c->bk != 1;
    if (op < FPROP) {
        c->a = op == TN ? ref_mat(ta, K, M, &c->va) : ref_mat(ta, M, K, &c->va);
        c->b = is_b_across ? ref_mat(tb, K, N, &c->vb) : ref_mat(tb, N, K, &c->vb);
        return;
    }
    bool is_wgrad = op == WGRAD;
    ScaleType sw = (M + N) % 2 ? st : SCALE_F32; // of a weight
    c->qa = ref_matq(st, 1, 1, M, K, ceil_div(K, TILE), is_wgrad);
    if (is_wgrad)
        c->qb = ref_matq(st, 1, 1, N, K, ceil_div(K, TILE), true);
    else if (is_b_across)
        c->qb = ref_matq(sw, TILE, 1, K, N, ceil_div(N, TILE), false);
    else
        c->qb = ref_matq(sw, TILE, 1, N, K, ceil_div(K, TILE), false);
    if (e5m2 & 1) ref_make_e5m2(&c->qa);
    if (e5m2 & 2) ref_make_e5m2(&c->qb);
    c->va = ref_values(c->qa);
    c->vb = ref_values(c->qb);
}

static void case_free(Case *c) {
    free(c->a.p), free(c->b.p), free(c->qa.q), free(c->qa.s), free(c->qb.q), free(c->qb.s);
    free(c->va), free(c->vb);
}

static Err case_run(const Case *c, Mat y, bool acc) {
    switch (c->op) {
    case NT: return gemm_nt_cpu(&cx, y, c->a, c->b, acc);
    case NN: return gemm_nn_cpu(&cx, y, c->a, c->b, acc);
    case TN: return gemm_tn_cpu(&cx, y, c->a, c->b, acc);
    case FPROP: return gemm_fp8_fprop_cpu(&cx, y, c->qa, c->qb, acc);
    case DGRAD: return gemm_fp8_dgrad_cpu(&cx, y, c->qa, c->qb, acc);
    default: return gemm_fp8_wgrad_cpu(&cx, y, c->qa, c->qb, acc);
    }
}

static Mat make_output(const Case *c, DType t, bool acc, double **old) {
    Mat y = ref_mat(t, c->M, c->N, old);
    if (!acc)
        for (int64_t i = 0; i < c->M * c->N; i++) (*old)[i] = 0;
    for (int64_t r = 0; r < c->M && !acc; r++)
        memset(mat_at(y, r, 0), 0xFF,
               (size_t)c->N * dtype_bytes(t)); // overwritten: what is there is NaN
    return y;
}

static void check_output(const Case *c, Mat y, const double *old) {
    for (int64_t i = 0; i < c->M; i++) {
        for (int64_t j = 0; j < c->N; j++) {
            bool is_close =
                ref_is_close(ref_get(y, i, j), old[i * c->N + j], c->va + i * c->ai, c->ak,
                             c->vb + j * c->bj, c->bk, c->K, c->op >= FPROP, y.t == DT_BF16);
            if (!is_close)
                fail_msg("%s op %d %lldx%lldx%lld at (%lld, %lld): %g", gemm_isa(), c->op,
                         (long long)c->M, (long long)c->N, (long long)c->K, (long long)i,
                         (long long)j, ref_get(y, i, j));
        }
        for (int64_t j = c->N; j < y.ld; j++) assert_true(isnan(ref_get(y, i, j))); // not touched
    }
}

static const int64_t sizes[][3] = {
    {0, 3, 5},       {5, 0, 7},      {7, 9, 0},      {1, 1, 1},       {2, 3, 127},
    {12, 32, 128},   {13, 33, 389},  {1, 300, 130},  {300, 17, 64},   {65, 70, 257},
    {257, 261, 133}, {17, 128, 576}, {33, 530, 300}, {19, 300, 1411}, {250, 40, 1100},
    {37, 64, 16},    {6, 96, 77},    {530, 17, 600}, {270, 520, 130}, {20, 1100, 200},
    {600, 40, 1100}, {257, 513, 520},
};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void products_are_right(void **state) {
    (void)state;
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int op = 0; op < OP_COUNT; op++)
            for (int i = 0; i < SIZES; i++) {
                // Types, accumulation, scale format and threads vary with the size; all pairs
                // occur.
                int mix = i + op + isa;
                DType ta = mix % 2 ? DT_BF16 : DT_F32, tb = mix / 2 % 2 ? DT_BF16 : DT_F32;
                DType ty = mix % 3 == 0 ? DT_BF16 : DT_F32;
                bool acc = mix % 3 == 1;
                Case c;
                case_make(&c, op, sizes[i][0], sizes[i][1], sizes[i][2], ta, tb,
                          mix % 2 ? SCALE_F32 : SCALE_E8M0, (i / 2 + op) % 4);
                double *old;
                Mat y = make_output(&c, ty, acc, &old);
                cx.nthreads = 1 + mix % 3;
                assert_int_equal(case_run(&c, y, acc), OK);
                check_output(&c, y, old);
                free(y.p), free(old);
                case_free(&c);
            }
    }
    gemm_select(NULL);
}

// 1, 2 and 3 threads (which also change the tiles) and a single row alone give the same bits.
static void threads_and_place_change_nothing(void **state) {
    (void)state;
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int i = 0; i < 2 * OP_COUNT; i++) {
            Op op = (Op)(i / 2);
            Case c; // the longer contraction does not fit the panels
            case_make(&c, op, 301, 203, i % 2 ? 1300 : 300, DT_BF16, op == NN ? DT_F32 : DT_BF16,
                      SCALE_E8M0, op % 4);
            Mat y[3];
            double *old;
            for (int t = 0; t < 3; t++) {
                y[t] = make_output(&c, DT_F32, false, &old);
                free(old);
                cx.nthreads = t + 1;
                assert_int_equal(case_run(&c, y[t], false), OK);
                assert_memory_equal(y[0].p, y[t].p, (size_t)(c.M * y[0].ld) * 4);
            }
            if (op != TN) {
                Case one = c;
                one.M = 1;
                one.a = mat_rows(c.a, 200, 1);
                if (op >= FPROP) one.qa = matq_rows(c.qa, 200, 1);
                Mat y1 = make_output(&one, DT_F32, false, &old);
                free(old);
                assert_int_equal(case_run(&one, y1, false), OK);
                assert_memory_equal(mat_at(y[0], 200, 0), y1.p, (size_t)c.N * 4);
                free(y1.p);
            }
            for (int t = 0; t < 3; t++) free(y[t].p);
            case_free(&c);
        }
    }
    gemm_select(NULL);
}

// The same rows in memory, a large power of two apart.
static void *spread(const void *p, int64_t rows, int64_t row_bytes, int64_t ld_bytes) {
    enum { FAR_BYTES = 4096 };
    char *far = malloc((size_t)(rows * FAR_BYTES));
    memset(far, 0xFF, (size_t)(rows * FAR_BYTES));
    for (int64_t r = 0; r < rows; r++)
        memcpy(far + r * FAR_BYTES, (const char *)p + r * ld_bytes, (size_t)row_bytes);
    return far;
}

// Where rows lie in memory changes no bit.
static void rows_far_apart_change_nothing(void **state) {
    (void)state;
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int i = 0; i < 3 * OP_COUNT; i++) {
            Op op = (Op)(i % OP_COUNT);
            Case c;
            case_make(&c, op, 45, 70, 100 + 93 * (i / OP_COUNT), DT_BF16, DT_BF16, SCALE_E8M0,
                      i % 4);
            Case far = c;
            far.a.p = spread(c.a.p, c.a.rows, 2 * c.a.cols, 2 * c.a.ld);
            far.b.p = spread(c.b.p, c.b.rows, 2 * c.b.cols, 2 * c.b.ld);
            far.qa.q = spread(c.qa.q, c.qa.rows, c.qa.cols, c.qa.ld);
            far.qb.q = spread(c.qb.q, c.qb.rows, c.qb.cols, c.qb.ld);
            far.a.ld = far.b.ld = 2048;
            far.qa.ld = far.qb.ld = 4096;
            double *old;
            Mat near_y = make_output(&c, DT_F32, false, &old);
            free(old);
            Mat far_y = make_output(&c, DT_F32, false, &old);
            free(old);
            cx.nthreads = 1;
            assert_int_equal(case_run(&c, near_y, false), OK);
            assert_int_equal(case_run(&far, far_y, false), OK);
            assert_memory_equal(near_y.p, far_y.p, (size_t)(c.M * near_y.ld) * 4);
            free(near_y.p), free(far_y.p);
            free(far.a.p), free(far.b.p), free(far.qa.q), free(far.qb.q);
            case_free(&c);
        }
    }
    gemm_select(NULL);
}

// A NaN code reaches the outputs of its row, and no other.
static void nan_codes_are_not_hidden(void **state) {
    (void)state;
    for (int isa = 0; gemm_isa_name(isa); isa++) {
        if (!gemm_select(gemm_isa_name(isa))) continue;
        for (int op = FPROP; op < OP_COUNT; op++) {
            Case c;
            case_make(&c, op, 20, 40, 200, DT_F32, DT_F32, SCALE_F32, isa % 4);
            c.qa.q[3 * c.qa.ld + 150] = isa % 2 ? 0x7F : 0xFF;
            double *old;
            Mat y = make_output(&c, DT_F32, false, &old);
            assert_int_equal(case_run(&c, y, false), OK);
            for (int64_t i = 0; i < c.M; i++)
                for (int64_t j = 0; j < c.N; j++) assert_true(isnan(ref_get(y, i, j)) == (i == 3));
            free(y.p), free(old);
            case_free(&c);
        }
    }
    gemm_select(NULL);
}

// Every code of both formats, wherever the contraction lies in memory and at several places of it:
// the product with 1 is its value, infinity and NaN included.
static void every_code_is_decoded(void **state) {
    (void)state;
    enum { K = 37 };
    static const int places[] = {0, 1, 17, 36};
    float scale[256], y[256];
    for (int i = 0; i < 256; i++) scale[i] = 1.0f;
    for (int at = 0; at < 4 * 3 * 2 * 8; at++) {
        Op op = (Op)(FPROP + at / 4 % 3);
        CodeType ct = at / 12 % 2, other = at % 2 ? CODE_E4M3 : CODE_E5M2;
        const char *isa = gemm_isa_name(at / 24);
        if (!isa || !gemm_select(isa)) continue;
#ifdef TESTS_CUDA // it has E4M3 only
        if (ct != CODE_E4M3 || other != CODE_E4M3) continue;
#endif
        static uint8_t codes[256 * K], ones[K];
        bool is_across = op == DGRAD; // codes [K, 256], else [256, K]
        memset(codes, 0, sizeof codes);
        memset(ones, other == CODE_E4M3 ? 0x38 : 0x3C, sizeof ones);
        for (int c = 0; c < 256; c++)
            codes[is_across ? places[at % 4] * 256 + c : c * K + places[at % 4]] = (uint8_t)c;
        MatQ all = {.q = codes, .s = scale, .ct = ct, .tile_rows = 1, .nmat = 1, .srow = 1};
        all.scol = 256;
        all.rows = is_across ? K : 256;
        all.cols = all.ld = is_across ? 256 : K;
        MatQ one = {.q = ones, .s = scale, .ct = other, .rows = 1, .cols = K, .ld = K};
        one.tile_rows = 1, one.nmat = 1, one.srow = 1, one.scol = 1;
        if (is_across) all.tile_rows = TILE, all.srow = 2, all.scol = 1;
        Mat row = mat(y, DT_F32, 1, 256), column = mat(y, DT_F32, 256, 1);
        cx.nthreads = 1;
        assert_int_equal(op == FPROP   ? gemm_fp8_wgrad_cpu(&cx, column, all, one, false)
                         : op == DGRAD ? gemm_fp8_dgrad_cpu(&cx, row, one, all, false)
                                       : gemm_fp8_wgrad_cpu(&cx, row, one, all, false),
                         OK);
        for (int c = 0; c < 256; c++) {
            double want = ref_code_value((uint8_t)c, ct);
            bool is_same = isnan(want) ? isnan(y[c]) : (double)y[c] == want;
            if (!is_same)
                fail_msg("%s op %d format %d place %d: code %02x is %g", isa, op, ct,
                         places[at % 4], (unsigned)c, (double)y[c]);
        }
    }
    gemm_select(NULL);
}

static void wrong_calls_are_refused(void **state) {
    (void)state;
    float x[16] = {0};
    Mat m22 = mat(x, DT_F32, 2, 2), m23 = mat(x, DT_F32, 2, 3), h = mat(x, DT_BF16, 2, 2);
    assert_int_equal(gemm_nt_cpu(&cx, m22, m22, m23, false), E_INTERNAL);
    assert_int_equal(gemm_nn_cpu(&cx, m22, m22, m23, false), E_INTERNAL);
    assert_int_equal(gemm_tn_cpu(&cx, m23, m23, m22, false), E_INTERNAL);
    assert_int_equal(gemm_nt_cpu(&cx, h, m22, m22, true), E_INTERNAL); // BF16 cannot be added to
#ifndef TESTS_CUDA // the CUDA backend needs no scratch
    Arena *small;
    assert_int_equal(arena_create(&small, "small", 4096, false), OK);
    OpCx tight = {small, 1};
    assert_int_equal(gemm_nt_cpu(&tight, m22, m22, m22, false), E_INTERNAL);
    arena_destroy(&small);
#endif
    assert_false(gemm_select("abacus"));
}

// What --isa does: products and quantiser change together, or nothing does.
static void isa_is_chosen_by_name(void **state) {
    (void)state;
    const char *usual = ops_cpu()->isa;
    char list[160];
    ops_isa_list(list, sizeof list);
    assert_string_equal(ops_cpu()->isa, usual);
    assert_non_null(strstr(list, "portable"));
    assert_null(strstr(list, "portable (not here)"));
    assert_int_equal(ops_isa_select("abacus"), E_USAGE);
    assert_string_equal(ops_cpu()->isa, usual);
    for (int i = 0; gemm_isa_name(i); i++) {
        bool is_usable = gemm_select(gemm_isa_name(i));
        gemm_select(usual);
        assert_int_equal(ops_isa_select(gemm_isa_name(i)), is_usable ? OK : E_USAGE);
        assert_string_equal(ops_cpu()->isa, is_usable ? gemm_isa_name(i) : usual);
        gemm_select(usual);
    }
    assert_int_equal(ops_isa_select(usual), OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(threads_and_place_change_nothing),
        cmocka_unit_test(rows_far_apart_change_nothing),
        cmocka_unit_test(nan_codes_are_not_hidden),
        cmocka_unit_test(every_code_is_decoded),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(isa_is_chosen_by_name),
    };
    // Exactly what the header promises to be enough.
    if (arena_create(&cx.scratch, "scratch", gemm_scratch_bytes(3, 1), false) != OK) return 1;
    arena_poison(true);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&cx.scratch);
    return failed;
}
