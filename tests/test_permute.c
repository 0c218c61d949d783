// test_permute.c - rows to the wire and back: gather exact, sums in list order, against plain
// loops.
#include "reference.h"

static void test_gather(void **state) {
    (void)state;
    const int64_t sizes[] = {1, 3, 64, 333};
    for (int s = 0; s < 4; s++) {
        int64_t bytes = sizes[s], n = 700;
        uint8_t *src = malloc((size_t)(50 * bytes)), *dst = malloc((size_t)(n * bytes) + 8);
        int32_t *idx = malloc((size_t)n * sizeof *idx);
        for (int64_t i = 0; i < 50 * bytes; i++) src[i] = (uint8_t)philox(1, 2, (uint64_t)i).v[0];
        for (int64_t i = 0; i < n; i++) idx[i] = (int32_t)(philox(1, 3, (uint64_t)i).v[0] % 53) - 3;
        for (int th = 1; th <= 3; th++) {
            memset(dst, 0xFF, (size_t)(n * bytes) + 8);
            OpCx cx = ref_cx(th);
            MUST_OK(rows_gather_cpu(&cx, dst, src, idx, n, bytes));
            for (int64_t i = 0; i < n * bytes; i++)
                assert_int_equal(dst[i],
                                 idx[i / bytes] < 0 ? 0 : src[idx[i / bytes] * bytes + i % bytes]);
            for (int i = 0; i < 8; i++) assert_int_equal(dst[n * bytes + i], 0xFF);
        }
        OpCx cx = ref_cx(2);
        MUST_OK(rows_gather_cpu(&cx, dst, src, idx, 0, bytes));
        free(src), free(dst), free(idx);
    }
}

typedef struct Case {
    int64_t M, R, D, pad;
    DType x, y, add;
    int nadd;
} Case;

static const Case cases[] = {
    {0, 4, 3, 0, DT_F32, DT_F32, DT_F32, 0},       {1, 1, 1, 0, DT_F32, DT_F32, DT_F32, 1},
    {17, 30, 37, 2, DT_BF16, DT_BF16, DT_BF16, 2}, {80, 100, 300, 1, DT_F32, DT_BF16, DT_F32, 2},
    {20, 9, 1500, 0, DT_BF16, DT_F32, DT_BF16, 1}, {33, 40, 64, 3, DT_F32, DT_F32, DT_BF16, 0},
};

static void run_case(const Case *k) {
    Mat x = ref_random(k->x, k->R, k->D, k->pad, 1.0), y = ref_mat(k->y, k->M, k->D, k->pad);
    Mat a1 = k->nadd > 0 ? ref_random(k->add, k->M, k->D, 1, 1.0) : mat_none();
    Mat a2 = k->nadd > 1 ? ref_random(k->y, k->M, k->D, k->pad, 1.0) : mat_none();
    int32_t *first = malloc((size_t)(k->M + 1) * 4), *idx = malloc((size_t)(k->M * 8 + 1) * 4);
    first[0] = 0;
    for (int64_t m = 0; m < k->M; m++) { // 0 to 8 rows each, the first list empty
        int32_t n = m == 0 ? 0 : (int32_t)(philox(5, 5, (uint64_t)m).v[0] % 9);
        for (int32_t i = 0; i < n; i++)
            idx[first[m] + i] =
                (int32_t)(philox(6, (uint64_t)m, (uint64_t)i).v[0] % (uint64_t)k->R);
        first[m + 1] = first[m] + n;
    }
    OpCx cx = ref_cx(1);
    MUST_OK(rows_sum_cpu(&cx, y, x, first, idx, a1, a2));
    for (int64_t m = 0; m < k->M; m++)
        for (int64_t c = 0; c < k->D; c++) {
            float in_order = 0.0f; // the promised order, to the bit
            double exact = 0.0, mag = 0.0;
            if (a1.p)
                in_order += (float)ref_at(a1, m, c), exact += ref_at(a1, m, c), mag += fabs(exact);
            if (a2.p)
                in_order += (float)ref_at(a2, m, c), exact += ref_at(a2, m, c), mag += fabs(exact);
            for (int32_t i = first[m]; i < first[m + 1]; i++) {
                double v = ref_at(x, idx[i], c);
                in_order += (float)v, exact += v, mag += fabs(v);
            }
            if (k->y == DT_BF16) in_order = bf16_round(in_order);
            ref_near(ref_at(y, m, c), (double)in_order, 0.0, "order", m, c);
            ref_near(ref_at(y, m, c), exact, ref_unit(k->y) * fabs(exact) + 12 * U32 * mag, "sum",
                     m, c);
        }
    ref_pads(y, "y");
    for (int n = 2; n <= 3; n++) {
        cx = ref_cx(n);
        Mat y2 = ref_mat(k->y, k->M, k->D, k->pad);
        MUST_OK(rows_sum_cpu(&cx, y2, x, first, idx, a1, a2));
        ref_same(y, y2, "threads");
        free(y2.p);
    }
    if (a2.p) { // y may be one of the addends
        MUST_OK(rows_sum_cpu(&cx, a2, x, first, idx, a1, a2));
        ref_same(y, a2, "in place");
    }
    free(x.p), free(y.p), free(a1.p), free(a2.p), free(first), free(idx);
}

static void test_sum(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gather), cmocka_unit_test(test_sum)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
