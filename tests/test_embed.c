// test_embed.c - rows of the embedding table: copies exact, gradients in token order, bad tokens
// named.
#include "reference.h"

typedef struct Case {
    int64_t T, V, D, pad;
    DType x, table;
} Case;

static const Case cases[] = {
    {0, 3, 4, 0, DT_F32, DT_F32},       {1, 1, 1, 0, DT_F32, DT_BF16},
    {50, 7, 33, 2, DT_BF16, DT_BF16},   {200, 30, 300, 1, DT_BF16, DT_F32},
    {64, 100, 1029, 0, DT_F32, DT_F32},
};

static void run_case(const Case *k) {
    Mat table = ref_random(k->table, k->V, k->D, k->pad, 1.0),
        x = ref_mat(k->x, k->T, k->D, k->pad + 1);
    Mat dx = ref_random(k->x, k->T, k->D, k->pad, 1.0),
        dt = ref_random(DT_F32, k->V, k->D, k->pad, 1.0);
    Mat dt0 = ref_clone(dt);
    int32_t *token = malloc((size_t)(k->T + 1) * 4);
    for (int64_t t = 0; t < k->T; t++)
        token[t] = (int32_t)(philox(8, 1, (uint64_t)t).v[0] % (uint64_t)(k->V + 1)) - 1;
    OpCx cx = ref_cx(1);
    MUST_OK(embed_fwd_cpu(&cx, x, table, token));
    MUST_OK(embed_bwd_cpu(&cx, dt, dx, token));
    for (int64_t t = 0; t < k->T; t++)
        for (int64_t c = 0; c < k->D; c++) {
            double want = token[t] < 0 ? 0.0 : ref_at(table, token[t], c);
            if (k->x == DT_BF16) want = (double)bf16_round((float)want);
            ref_near(ref_at(x, t, c), want, 0.0, "x", t, c);
        }
    for (int64_t v = 0; v < k->V; v++)
        for (int64_t c = 0; c < k->D; c++) {
            float sum = (float)ref_at(dt0, v, c); // one order: that of the tokens
            for (int64_t t = 0; t < k->T; t++)
                if (token[t] == v) sum += (float)ref_at(dx, t, c);
            ref_near(ref_at(dt, v, c), (double)sum, 0.0, "dtable", v, c);
        }
    ref_pads(x, "x"), ref_pads(dt, "dtable");
    for (int n = 2; n <= 3; n++) {
        cx = ref_cx(n);
        Mat x2 = ref_mat(k->x, k->T, k->D, k->pad + 1), dt2 = ref_clone(dt0);
        MUST_OK(embed_fwd_cpu(&cx, x2, table, token));
        MUST_OK(embed_bwd_cpu(&cx, dt2, dx, token));
        ref_same(x, x2, "x, threads"), ref_same(dt, dt2, "dtable, threads");
        free(x2.p), free(dt2.p);
    }
    free(table.p), free(x.p), free(dx.p), free(dt.p), free(dt0.p), free(token);
}

static void test_cases(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

static void test_bad_token(void **state) {
    (void)state;
    OpCx cx = ref_cx(1);
    Mat table = ref_random(DT_F32, 5, 4, 0, 1.0), x = ref_mat(DT_F32, 3, 4, 0), x0 = ref_clone(x);
    Mat table0 = ref_clone(table);
    const int32_t token[] = {4, -1, 5};
    assert_int_equal(embed_fwd_cpu(&cx, x, table, token), E_INPUT);
    assert_non_null(strstr(fail_message(), "token 5 at position 2"));
    assert_non_null(strstr(fail_message(), "vocabulary of 5"));
    assert_int_equal(embed_bwd_cpu(&cx, table, x, token), E_INPUT);
    ref_same(x, x0, "untouched"), ref_same(table, table0, "untouched");
    Mat bf = ref_mat(DT_BF16, 5, 4, 0);
    assert_int_equal(embed_bwd_cpu(&cx, bf, x, token), E_INTERNAL);
    free(table.p), free(x.p), free(x0.p), free(table0.p), free(bf.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases),
                                       cmocka_unit_test(test_bad_token)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
