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

// Bits to slots and back, zeros of both signs and NaN among them, from rows of several places per token.
static void test_slots(void **state) {
    (void)state;
    enum { T = 37, P = 3, K = 5 };
    int32_t first[T + 1], idx[T * P], row[T * K], slot[T * K];
    float x[T * K], y[T * K + 1], want[T * K];
    uint32_t rows[T * P * K + 1];
    int32_t nrows = 0, n = 0;
    for (int t = 0; t < T; t++) { // slot k of the token lies in one of its rows; the rows are numbered from the back
        first[t] = nrows;
        for (int p = 0; p < P; p++, nrows++) idx[nrows] = T * P - 1 - nrows;
        for (int k = 0; k < K; k++) {
            uint32_t bits = philox(1, 9, (uint64_t)(t * K + k)).v[0];
            bits = bits % 5 == 0 ? 0x80000000u : bits % 5 == 1 ? 0x7FC12345u : bits % 5 == 2 ? 0 : bits;
            want[t * K + k] = f32_from_bits(bits);
            if (bits == 0 && k % 2) continue; // a slot that nobody fills
            row[n] = idx[first[t] + k % P];
            slot[n] = k;
            x[n++] = f32_from_bits(bits);
        }
    }
    first[T] = nrows;
    OpCx cx = ref_cx(1);
    memset(rows, 0xFF, sizeof rows);
    memset(y, 0xFF, sizeof y);
    MUST_OK(slots_spread_cpu(&cx, rows, x, row, slot, nrows, K, n));
    assert_int_equal(rows[T * P * K], 0xFFFFFFFFu);
    for (int i = 0; i < n; i++) assert_memory_equal(&rows[row[i] * K + slot[i]], &x[i], 4);
    int64_t filled = 0, nonzero = 0;
    for (int i = 0; i < T * P * K; i++) filled += rows[i] != 0;
    for (int i = 0; i < n; i++) nonzero += f32_bits(x[i]) != 0;
    assert_int_equal(filled, nonzero);
    MUST_OK(slots_join_cpu(&cx, y, rows, first, idx, T, K));
    assert_memory_equal(y, want, sizeof want);
    assert_int_equal(f32_bits(y[T * K]), 0xFFFFFFFFu);
    MUST_OK(slots_spread_cpu(&cx, rows, x, row, slot, 0, K, 0));
    MUST_OK(slots_join_cpu(&cx, y, rows, first, idx, 0, K));
}

// Vectors summed in order, each of them in turn being the one that lies apart; -0 + -0 stays -0.
static void test_parts(void **state) {
    (void)state;
    enum { N = 700, STRIDE = 731, MOST = 5 };
    static float all[MOST][N], parts[MOST * STRIDE], want[N], y[N + 1];
    for (int n = 1; n <= MOST; n++) {
        for (int r = 0; r < n; r++)
            for (int i = 0; i < N; i++)
                all[r][i] = i == 3 ? -0.0f : (float)(int32_t)philox(2, (uint64_t)r, (uint64_t)i).v[0] * 1e-3f;
        for (int i = 0; i < N; i++) {
            want[i] = all[0][i];
            for (int r = 1; r < n; r++) want[i] += all[r][i];
        }
        for (int own = 0; own < n; own++) {
            for (int r = 0, at = 0; r < n; r++)
                if (r != own) memcpy(parts + at++ * STRIDE, all[r], sizeof all[r]);
            OpCx cx = ref_cx(1 + own % 3);
            memset(y, 0xFF, sizeof y);
            MUST_OK(parts_sum_cpu(&cx, y, all[own], own, parts, STRIDE, n, N));
            assert_memory_equal(y, want, sizeof want);
            assert_int_equal(f32_bits(y[N]), 0xFFFFFFFFu);
            memcpy(y, all[own], sizeof all[own]);
            MUST_OK(parts_sum_cpu(&cx, y, y, own, parts, STRIDE, n, N)); // in place
            assert_memory_equal(y, want, sizeof want);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gather), cmocka_unit_test(test_sum),
                                       cmocka_unit_test(test_slots), cmocka_unit_test(test_parts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
