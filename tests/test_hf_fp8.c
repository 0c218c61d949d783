// test_hf_fp8.c - exports with F8_E4M3 weights: what is FP8, every code and scale against the definition, and the way
// back.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "dump.h"
#include "hf_loaded.h"
#include "json_flat.h"
#include "log.h"

static int setup(void **state) {
    log_init(1, 2); // no lines
    return scratch_setup(state);
}

// By the published weights: projections of attention and FFNs, but not the one that joins an MTP module's inputs.
static bool is_fp8_name(const char *name) {
    return strstr(name, "_proj") && !strstr(name, "eh_proj") && !strstr(name, "_scale_inv");
}

// x rounded to BF16: to a multiple of 2^-7 of its binade, ties to even.
static double to_bf16(double x) {
    int e;
    if (x == 0) return 0;
    frexp(x, &e);
    return ldexp(nearbyint(ldexp(x, 8 - e)), e - 8);
}

// Half the distance of E4M3 numbers around x: 3 bits behind the leading one, below 2^-6 steps of 2^-9.
static double half_ulp(double x) {
    int e;
    frexp(x, &e);
    return ldexp(1.0, (x == 0 || e < -5 ? -5 : e) - 5);
}

typedef struct Matrix {
    const char *name;
    int64_t rows, cols;
    const float *master, *code, *scale;
} Matrix;

// One 128x128 block: its scale, and that each code is the nearest one.
static void check_block(const Matrix *x, int64_t r0, int64_t c0) {
    int64_t r1 = min_i64(r0 + 128, x->rows), c1 = min_i64(c0 + 128, x->cols);
    double amax = 0, largest = 0;
    float s = x->scale[r0 / 128 * ceil_div(x->cols, 128) + c0 / 128];
    for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) amax = fmax(amax, fabs(to_bf16((double)x->master[r * x->cols + c])));
    if (amax == 0) assert_true(s == 1.0f);
    else assert_true(s == (float)amax / 448.0f);
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t c = c0; c < c1; c++) {
            double m = (double)x->master[r * x->cols + c], q = (double)x->code[r * x->cols + c];
            double v = to_bf16(m) / (double)s;
            double nearest = half_ulp(v) * (1 + 0x1p-20); // v is rounded to FP32 before it is coded
            double whole = (nearest + fabs(v) * 0x1p-8) * (double)s;
            if (!(fabs(q - v) <= nearest) || !(fabs(q * (double)s - m) <= whole))
                fail_msg("%s [%lld, %lld]: master %.9g, code %.9g, scale %.9g", x->name, (long long)r, (long long)c, m,
                         q, (double)s);
            largest = fmax(largest, fabs(q));
        }
    }
    assert_true(largest == (amax == 0 ? 0 : 448)); // the whole range is used, nothing beyond
}

static void check_matrix(const Safetensors *st, const StTensor *t, const float *master) {
    char name[200];
    const StTensor *scale;
    snprintf(name, sizeof name, "%s_scale_inv", t->name);
    MUST_OK(safetensors_get(st, name, &scale));
    assert_int_equal(scale->dtype, ST_F32);
    assert_int_equal(scale->ndim, 2);
    assert_int_equal(scale->shape[0], ceil_div(t->rows, 128));
    assert_int_equal(scale->shape[1], ceil_div(t->cols, 128));
    assert_string_equal(scale->file, t->file);
    float *code = malloc((size_t)(t->rows * t->cols) * sizeof *code), *s = malloc(scale->bytes);
    MUST_OK(safetensors_read_f32(st, t->name, 0, t->rows, code));
    MUST_OK(safetensors_read_f32(st, name, 0, scale->rows, s));
    Matrix x = {t->name, t->rows, t->cols, master, code, s};
    for (int64_t r = 0; r < t->rows; r += 128)
        for (int64_t c = 0; c < t->cols; c += 128) check_block(&x, r, c);
    free(code);
    free(s);
}

static int64_t total_size(const char *index) {
    JsonFlat j;
    MUST_OK(json_flat_read(&j, index));
    int64_t n = strtoll(json_flat_find(&j, "metadata.total_size")->text, NULL, 10);
    json_flat_free(&j);
    return n;
}

// Types, codes and scales of an export of `l` in `dir`, against the masters.
static void check_export(const Loaded *l, const char *dir) {
    Safetensors *st = NULL;
    const Params *p = model_params(l->solo.model);
    int64_t ncoded = 0, nscales = 0, bytes = 0;
    MUST_OK(safetensors_open(&st, dir)); // an index must name every tensor where it is
    for (int64_t i = 0; i < safetensors_count(st); i++) {
        const StTensor *t = safetensors_at(st, i);
        bool is_f32 = strstr(t->name, "_scale_inv") || strstr(t->name, "e_score_correction_bias");
        assert_int_equal(t->dtype, is_f32 ? ST_F32 : is_fp8_name(t->name) ? ST_F8_E4M3 : ST_BF16);
        nscales += strstr(t->name, "_scale_inv") != NULL;
        bytes += (int64_t)t->bytes;
    }
    for (int i = 0; i < p->n; i++) {
        for (int64_t mat = 0; mat < p->p[i].nmat; mat++) {
            char name[128];
            const StTensor *t;
            params_hf_name(name, sizeof name, &p->p[i], mat);
            MUST_OK(safetensors_get(st, name, &t));
            if (!is_fp8_name(name)) continue;
            check_matrix(st, t, mat_at(p->p[i].master, mat * p->p[i].rows, 0));
            ncoded++;
        }
    }
    assert_true(ncoded > 0);
    assert_int_equal(ncoded, nscales);
    char index[600];
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    if (access(index, F_OK) == 0) assert_int_equal(total_size(index), bytes);
    safetensors_close(&st);
}

// A master of `family` in `layer` becomes 0 in one block and near the smallest codes in another.
static void make_extreme(Loaded *l, Family family, int64_t layer) {
    const Param *p = params_find(model_params(l->solo.model), family, layer);
    for (int64_t r = 0; r < min_i64(128, p->rows); r++) {
        for (int64_t c = 0; c < p->cols; c++) {
            float *x = mat_at(p->master, r, c);
            *x = c < 128 ? 0.0f : *x * ldexpf(1.0f, -(int)(r % 20)); // subnormal codes, codes of 0
        }
    }
}

static void every_code_is_the_nearest(void **state) {
    (void)state;
    const struct {
        const char *name;
        int64_t shard_bytes;
    } t[] = {{"wide", 0}, {"mtp2", 100000}, {"groups", 1}, {"tied", 30000}, {"v2_lite", 0}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        Loaded l;
        char from[256];
        clean();
        snprintf(from, sizeof from, GOLDEN "%s", t[i].name);
        MUST_OK(load(&l, from));
        if (i == 0) make_extreme(&l, P_KV_B, 0);
        MUST_OK(export(&l, at("out"), (HfExport){.dtype = HF_FP8, .shard_bytes = t[i].shard_bytes}));
        assert_int_equal(access(at("out/model.safetensors.index.json"), F_OK) == 0, t[i].shard_bytes > 0);
        check_export(&l, at("out"));
        unload(&l);
    }
}

// Matrices that are converted in several parts, with columns that no row of codes in memory ends with.
static void long_matrices(void **state) {
    (void)state;
    const char *sets[] = {"model.vocab_size=32",       "model.hidden_size=900",        "model.intermediate_size=4700",
                          "model.num_hidden_layers=1", "model.first_k_dense_replace=1", "model.num_attention_heads=1",
                          "model.kv_lora_rank=16",     "model.qk_nope_head_dim=16",    "model.qk_rope_head_dim=8",
                          "model.v_head_dim=16",       "train.steps=1",                "train.seq_len=8",
                          "train.global_batch=1",      "model.n_routed_experts=4",     "model.num_experts_per_tok=2",
                          "model.moe_intermediate_size=16"};
    Loaded l = {0};
    clean();
    MUST_OK(config_load(&l.c, NULL, sets, sizeof sets / sizeof *sets));
    MUST_OK(solo_open(&l.solo, l.c, false, 1));
    MUST_OK(params_init(model_params(l.solo.model), &l.solo.shape, &l.solo.cx));
    MUST_OK(export(&l, at("out"), (HfExport){.dtype = HF_FP8}));
    check_export(&l, at("out"));
    unload(&l);
}

// What comes back is code * scale, and goes out again as the same bytes.
static void the_way_back(void **state) {
    (void)state;
    static const char *const names[] = {"wide", "mtp1", "groups", "tied", "v2_groups"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Loaded l, again;
        char from[256];
        clean();
        snprintf(from, sizeof from, GOLDEN "%s", names[i]);
        MUST_OK(load(&l, from));
        MUST_OK(export(&l, at("once"), (HfExport){.dtype = HF_FP8}));
        MUST_OK(load(&again, at("once")));
        MUST_OK(export(&again, at("twice"), (HfExport){.dtype = HF_FP8, .shard_bytes = i == 1 ? 50000 : 0}));
        same_tensors(at("once"), at("twice"));
        // What FP8 training multiplies with is the same before and after.
        MUST_OK(solo_publish(&l.solo));
        MUST_OK(solo_publish(&again.solo));
        const Params *a = model_params(l.solo.model), *b = model_params(again.solo.model);
        for (int e = 0; e < a->n; e++) {
            const Param *x = &a->p[e], *y = &b->p[e];
            if (x->kind != KIND_FP8) continue;
            assert_memory_equal(x->q.s, y->q.s, (size_t)(x->nmat * x->q.sstep) * sizeof(float));
            for (int64_t r = 0; r < x->nmat * x->rows; r++)
                assert_memory_equal(x->q.q + r * x->q.ld, y->q.q + r * y->q.ld, (size_t)x->cols);
        }
        unload(&again);
        unload(&l);
    }
}

// FP8 weights of others, whose scales are not of BF16 values: the same codes, scales to half a BF16 unit.
static void codes_of_others_stay(void **state) {
    (void)state;
    Loaded l;
    Safetensors *was = NULL, *is = NULL;
    clean();
    MUST_OK(load(&l, GOLDEN "fp8"));
    MUST_OK(export(&l, at("out"), (HfExport){.dtype = HF_FP8}));
    MUST_OK(safetensors_open(&was, GOLDEN "fp8"));
    MUST_OK(safetensors_open(&is, at("out")));
    assert_int_equal(safetensors_count(was), safetensors_count(is));
    for (int64_t i = 0; i < safetensors_count(was); i++) {
        const StTensor *a = safetensors_at(was, i), *b = safetensors_at(is, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->dtype, b->dtype);
        if (!strstr(a->name, "_scale_inv")) {
            assert_memory_equal(a->data, b->data, a->bytes);
            continue;
        }
        assert_int_equal(a->bytes, b->bytes);
        const float *x = a->data, *y = b->data;
        for (size_t k = 0; k < a->bytes / sizeof *x; k++) assert_true(fabsf(x[k] - y[k]) <= x[k] * 0x1.01p-8f);
    }
    safetensors_close(&was);
    safetensors_close(&is);
    unload(&l);
}

static void says_what_it_is(void **state) {
    (void)state;
    static const char *const want[][2] = {{"quantization_config.activation_scheme", "dynamic"},
                                          {"quantization_config.fmt", "e4m3"},
                                          {"quantization_config.quant_method", "fp8"},
                                          {"quantization_config.weight_block_size", "[128,128]"},
                                          {"torch_dtype", "bfloat16"}};
    Loaded l;
    JsonFlat j;
    clean();
    MUST_OK(load(&l, GOLDEN "plain"));
    MUST_OK(export(&l, at("fp8"), (HfExport){.dtype = HF_FP8}));
    MUST_OK(export(&l, at("bf16"), (HfExport){0}));
    MUST_OK(json_flat_read(&j, at("fp8/config.json")));
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_string_equal(json_flat_find(&j, want[i][0])->text, want[i][1]);
    json_flat_free(&j);
    MUST_OK(json_flat_read(&j, at("bf16/config.json")));
    assert_null(json_flat_find(&j, want[0][0]));
    json_flat_free(&j);
    unload(&l);
}

// The mean loss of a case's tokens with the weights of `dir`.
static double loss_of(const char *name, const char *dir, int mode) {
    char path[300];
    Safetensors *expect = NULL;
    int32_t *tokens = NULL;
    int64_t B, S;
    Loaded l;
    LossSums sums = {0};
    snprintf(path, sizeof path, GOLDEN "%s/expect.safetensors", name);
    MUST_OK(safetensors_open(&expect, path));
    MUST_OK(dump_read_tokens(expect, path, &tokens, &B, &S));
    MUST_OK(load_as(&l, dir, mode, B, S));
    MUST_OK(solo_publish(&l.solo));
    Batch b = {.nseq = B, .S = S, .ld = S, .tokens = tokens, .is_main_only = true};
    MUST_OK(model_fwd(l.solo.model, &l.solo.cx, &b, &sums, NULL));
    unload(&l);
    mem_free(tokens);
    safetensors_close(&expect);
    return sums.lm / (double)sums.lm_targets;
}

// FP8 linears compute the same bits with either export; BF16 ones see the rounding.
static void loss_stays(void **state) {
    (void)state;
    static const char *const names[] = {"wide", "fp8", "dense2", "yarn"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Loaded l;
        char from[256];
        clean();
        snprintf(from, sizeof from, GOLDEN "%s", names[i]);
        MUST_OK(load(&l, from));
        MUST_OK(export(&l, at("bf16"), (HfExport){0}));
        MUST_OK(export(&l, at("fp8"), (HfExport){.dtype = HF_FP8}));
        unload(&l);
        assert_true(loss_of(names[i], at("bf16"), MODE_FP8) == loss_of(names[i], at("fp8"), MODE_FP8));
        double a = loss_of(names[i], at("bf16"), MODE_BF16), b = loss_of(names[i], at("fp8"), MODE_BF16);
        print_message("%s: loss %.6f with BF16 weights, %.6f with FP8\n", names[i], a, b);
        assert_true(fabs(a - b) < 0.02 * a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_is_the_nearest), cmocka_unit_test(long_matrices),
        cmocka_unit_test(the_way_back),              cmocka_unit_test(codes_of_others_stay),
        cmocka_unit_test(says_what_it_is),           cmocka_unit_test(loss_stays),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
