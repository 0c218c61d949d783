// test_shadow.c - FP8 products compared with BF16 ones during training: the error against a double reference, exact
// where nothing is lost, every product that is promised and no other, and not a bit of the training changed.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fp8.h"
#include "linear.h"
#include "log.h"
#include "model_memory.h"
#include "must.h"
#include "rng.h"
#include "step.h"

#define SHARD "data/samples/tiny.tokens.h5"

static const char *const base_sets[] = {
    "model.vocab_size=512",         "model.hidden_size=136",        "model.intermediate_size=140",
    "model.moe_intermediate_size=132", "model.num_hidden_layers=2", "model.num_attention_heads=3",
    "model.n_routed_experts=4",     "model.num_experts_per_tok=2",  "model.first_k_dense_replace=1",
    "model.q_lora_rank=132",        "model.kv_lora_rank=64",        "model.qk_nope_head_dim=20",
    "model.qk_rope_head_dim=8",     "model.v_head_dim=48",          "model.initializer_range=0.08",
    "model.num_nextn_predict_layers=1", "train.steps=10",           "train.seq_len=70",
    "train.global_batch=4",         "train.micro_batch=2",          "train.lr=1e-3",
    "precision.mode=fp8",
};
enum { BASE = sizeof base_sets / sizeof base_sets[0], MORE = 6 };

typedef struct Rig {
    Config *config;
    Boot boot;
    Mesh mesh;
    Shape shape;
    MemoryPlan plan;
    Cx cx;
    Model *model;
    Shadow *shadow;
    int32_t tokens[2 * 72];
} Rig;

static void open_rig(Rig *r, const char *const *more, const char *last) {
    const char *sets[BASE + MORE + 1];
    int n = BASE;
    memcpy(sets, base_sets, sizeof base_sets);
    for (; *more; more++) sets[n++] = *more;
    if (last) sets[n++] = last;
    memset(r, 0, sizeof *r);
    MUST_OK(config_load(&r->config, NULL, sets, n));
    r->boot.nranks = r->boot.local_nranks = 1;
    MUST_OK(comm_self(&r->boot.world, "world"));
    MUST_OK(comm_self(&r->boot.ep, "ep"));
    MUST_OK(comm_self(&r->boot.edp, "edp"));
    MUST_OK(mesh_build(&r->mesh, 1, 0, 1));
    MUST_OK(shape_from_config(&r->shape, r->config, &r->mesh));
    MUST_OK(memory_measure(&r->plan, &r->shape, &r->mesh, true, true));
    MUST_OK(cx_create(&r->cx, &r->boot, &r->mesh, &r->shape, &r->plan, 1));
    MUST_OK(model_create(&r->model, &r->shape, &r->cx, true, true));
    Params *p = model_params(r->model);
    MUST_OK(params_init(p, &r->shape, &r->cx));
    MUST_OK(params_publish(p, &r->shape, &r->cx));
    MUST_OK(params_zero_grad(p, &r->cx));
    MUST_OK(shadow_create(&r->shadow, p));
    for (int i = 0; i < 2 * 72; i++) r->tokens[i] = (int32_t)(philox(11, 0, (uint64_t)i).v[0] % 512);
}

static void close_rig(Rig *r) {
    shadow_free(&r->shadow);
    model_free(&r->model);
    cx_destroy(&r->cx);
    comm_destroy(&r->boot.world);
    comm_destroy(&r->boot.ep);
    comm_destroy(&r->boot.edp);
    config_free(r->config);
}

static const char *const no_sets[] = {NULL};
static const char *const every_step[] = {"fp8.shadow_every=1", NULL};

// error_of: of the product with this name, NAN if there is none.
static double error_of(Rig *r, const char *gemm) {
    MUST_OK(shadow_rows(r->shadow, &r->cx));
    for (int64_t i = 0; i < r->shadow->nrows; i++) {
        if (strcmp(r->shadow->row[i].gemm.s, gemm) == 0) return r->shadow->row[i].error;
    }
    return NAN;
}

// ---- one product ----------------------------------------------------------------------------------

static Mat bf16_new(Rig *r, int64_t rows, int64_t cols) {
    Mat m;
    MUST_OK(arena_mat(r->cx.acts, &m, DT_BF16, rows, cols, "matrix"));
    return m;
}

// Normal values; a few rows and channels far larger than the rest, so that tiles lose something.
static Mat random_new(Rig *r, int64_t rows, int64_t cols, uint64_t stream) {
    Mat m = bf16_new(r, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        double x = rng_normal(7, stream, (uint64_t)i);
        if (i / cols % 17 == 3) x *= 50.0;
        if (i % cols % 29 == 5) x *= 30.0;
        ((uint16_t *)m.p)[i] = bf16_from_f32((float)x);
    }
    return m;
}

static double value(Mat m, int64_t r, int64_t c) {
    const void *p = mat_at(m, r, c);
    return m.t == DT_F32 ? (double)*(const float *)p : (double)f32_from_bf16(*(const uint16_t *)p);
}

static double code_value(MatQ q, int64_t r, int64_t c) { // 128x1, the first tile
    int64_t at = r * q.srow;
    float s = q.st == SCALE_F32 ? ((const float *)q.s)[at] : f32_from_e8m0(((const uint8_t *)q.s)[at]);
    return (double)f32_from_e4m3(q.q[r * q.ld + c]) * (double)s;
}

typedef struct Distance {
    double error, reference;
} Distance;

static void distance_add(Distance *d, double got, double want) {
    d->error += (got - want) * (got - want);
    d->reference += want * want;
}

static void expect_error(Rig *r, const char *gemm, Distance d) {
    double want = sqrt(d.error / d.reference), got = error_of(r, gemm);
    if (!(want > 0.003 && want < 0.2)) fail_msg("%s: an error of %g tests nothing", gemm, want);
    // BF16 products differ from double ones by a rounding here and there.
    if (!(fabs(got - want) <= 2e-3 * want)) fail_msg("%s: error %.9g, expected %.9g", gemm, got, want);
}

enum { M = 200 };

// Fprop: y of the first 128 rows as it stands, against the double product of the BF16 matrices, rounded.
static void fprop_error(Rig *r, const Operand *o, Mat x, Param *w, Groups g, DType t, const char *name) {
    Mat y;
    Distance d = {0};
    MUST_OK(arena_mat(r->cx.acts, &y, t, x.rows, w->rows, "y"));
    MUST_OK(linear_fprop(&r->shape, &r->cx, y, o, w, g));
    for (int64_t m = 0; m < 128; m++) {
        int64_t e = 0;
        while (e < g.n && !(m >= g.start[e] && m < g.start[e] + g.count[e])) e++;
        for (int64_t n = 0; n < w->rows; n++) {
            double sum = 0.0;
            for (int64_t k = 0; k < x.cols; k++) sum += value(x, m, k) * value(w->w, e * (g.n ? w->rows : 0) + n, k);
            distance_add(&d, value(y, m, n), t == DT_F32 ? sum : (double)bf16_round((float)sum));
        }
    }
    expect_error(r, name, d);
}

// Dgrad into `t`, or, with `other`, as a part of a pair's sum.
static void dgrad_error(Rig *r, const Operand *o, Mat dy, Param *w, DType t, Param *other, const char *name) {
    Mat dx;
    Distance d = {0};
    MUST_OK(arena_mat(r->cx.acts, &dx, t, dy.rows, w->cols, "dx"));
    if (other) {
        MUST_OK(linear_dgrad_pair(&r->shape, &r->cx, dx, o, other, o, w, groups_none()));
        MUST_OK(r->cx.ops->gemm_fp8_dgrad(&r->cx.op, dx, o->q, w->q, false));
    } else {
        MUST_OK(linear_dgrad(&r->shape, &r->cx, dx, o, w, groups_none()));
    }
    for (int64_t m = 0; m < 128; m++) {
        for (int64_t k = 0; k < w->cols; k++) {
            double sum = 0.0, got = value(dx, m, k);
            for (int64_t n = 0; n < w->rows; n++) sum += value(dy, m, n) * value(w->w, n, k);
            distance_add(&d, got, t == DT_F32 ? sum : (double)bf16_round((float)sum));
        }
    }
    expect_error(r, name, d);
}

static void wgrad_error(Rig *r, const Operand *o, Mat x, Mat dy, Param *w, const char *name) {
    Turned xt, dyt;
    Distance d = {0};
    MUST_OK(turn_codes(&r->shape, &r->cx, &xt, o, SITE_O_X_T, groups_none()));
    MUST_OK(turn_fresh(&r->shape, &r->cx, &dyt, r->cx.scratch, dy, SITE_O_DY_T, groups_none()));
    MUST_OK(linear_wgrad(&r->shape, &r->cx, w, &dyt, &xt, groups_none()));
    for (int64_t n = 0; n < 128; n++) { // w has more rows
        for (int64_t k = 0; k < w->cols; k++) {
            double got = 0.0, sum = 0.0;
            for (int64_t m = 0; m < 128; m++) {
                got += code_value(dyt.t, n, m) * code_value(xt.t, k, m);
                sum += value(dy, m, n) * value(x, m, k);
            }
            distance_add(&d, got, sum);
        }
    }
    expect_error(r, name, d);
}

static void errors_against_double(void **state) {
    (void)state;
    for (int way = 0; way < 2; way++) {
        Rig r;
        open_rig(&r, every_step, way ? "fp8.scale_format=fp32" : NULL);
        r.cx.shadow = r.shadow;
        Param *w = params_find(model_params(r.model), P_O, 0), *v = params_find(model_params(r.model), P_O, 1);
        Param *u = params_find(model_params(r.model), P_O, 2);
        Mat x = random_new(&r, M, w->cols, 1), dy = random_new(&r, M, w->rows, 2);
        Operand o, q;
        MUST_OK(operand_make(&r.shape, &r.cx, &o, r.cx.acts, x, SITE_O_X, false));
        MUST_OK(operand_make(&r.shape, &r.cx, &q, r.cx.acts, dy, SITE_O_DY, false));
        shadow_begin(r.shadow);
        fprop_error(&r, &o, x, w, groups_none(), DT_BF16, "L0.o.fprop");
        fprop_error(&r, &o, x, v, groups_none(), DT_F32, "L1.o.fprop");
        dgrad_error(&r, &q, dy, w, DT_BF16, NULL, "L0.o.dgrad");
        dgrad_error(&r, &q, dy, v, DT_F32, NULL, "L1.o.dgrad");
        dgrad_error(&r, &q, dy, u, DT_F32, v, "L2.o.dgrad");
        wgrad_error(&r, &o, x, dy, w, "L0.o.wgrad");
        assert_int_equal(r.shadow->nrows, 6);
        // Experts: three of them have rows, one has some beyond the sample.
        int64_t start[] = {0, 30, 30, 130}, count[] = {30, 0, 100, 20};
        Groups g = {start, count, 4};
        Param *down = params_find(model_params(r.model), P_EXPERT_DOWN, 1);
        Mat h = random_new(&r, 150, down->cols, 3);
        MUST_OK(operand_make(&r.shape, &r.cx, &o, r.cx.acts, h, SITE_EXPERT_DOWN_X, false));
        fprop_error(&r, &o, h, down, g, DT_BF16, "L1.expert.down.fprop");
        // Once more, with other values: the first stays.
        double first = error_of(&r, "L0.o.fprop");
        Mat other = random_new(&r, M, w->cols, 4), y = bf16_new(&r, M, w->rows);
        MUST_OK(operand_make(&r.shape, &r.cx, &o, r.cx.acts, other, SITE_O_X, false));
        MUST_OK(linear_fprop(&r.shape, &r.cx, y, &o, w, groups_none()));
        assert_true(error_of(&r, "L0.o.fprop") == first);
        shadow_begin(r.shadow);
        MUST_OK(linear_fprop(&r.shape, &r.cx, y, &o, w, groups_none()));
        assert_true(error_of(&r, "L0.o.fprop") != first && r.shadow->nrows == 1);
        close_rig(&r);
    }
}

// Values that codes hold exactly, with power-of-two scales: both products are exact, the error is 0.
static void nothing_lost_is_zero(void **state) {
    (void)state;
    Rig r;
    open_rig(&r, every_step, NULL);
    r.cx.shadow = r.shadow;
    Params *p = model_params(r.model);
    Param *w = params_find(p, P_O, 0);
    for (int64_t i = 0; i < w->rows * w->cols; i++)
        ((uint16_t *)w->w.p)[i] = bf16_from_f32(ldexpf(i % 7 ? 1.75f : -1.75f, -(int)(i % 5)));
    MUST_OK(params_prepare(p, &r.shape, &r.cx));
    Mat x = bf16_new(&r, M, w->cols), dy = bf16_new(&r, M, w->rows), y, dx;
    for (int64_t i = 0; i < M * w->cols; i++) ((uint16_t *)x.p)[i] = bf16_from_f32((float)(i * i % 11) - 5.0f);
    for (int64_t i = 0; i < M * w->rows; i++) ((uint16_t *)dy.p)[i] = bf16_from_f32((float)(i * i % 13) - 6.0f);
    Operand o, q;
    Turned xt, dyt;
    MUST_OK(arena_mat(r.cx.acts, &y, DT_F32, M, w->rows, "y"));
    MUST_OK(arena_mat(r.cx.acts, &dx, DT_F32, M, w->cols, "dx"));
    MUST_OK(operand_make(&r.shape, &r.cx, &o, r.cx.acts, x, SITE_O_X, false));
    MUST_OK(operand_make(&r.shape, &r.cx, &q, r.cx.acts, dy, SITE_O_DY, false));
    MUST_OK(linear_fprop(&r.shape, &r.cx, y, &o, w, groups_none()));
    MUST_OK(linear_dgrad(&r.shape, &r.cx, dx, &q, w, groups_none()));
    MUST_OK(turn_codes(&r.shape, &r.cx, &xt, &o, SITE_O_X_T, groups_none()));
    MUST_OK(turn_fresh(&r.shape, &r.cx, &dyt, r.cx.scratch, dy, SITE_O_DY_T, groups_none()));
    MUST_OK(linear_wgrad(&r.shape, &r.cx, w, &dyt, &xt, groups_none()));
    MUST_OK(shadow_rows(r.shadow, &r.cx));
    assert_int_equal(r.shadow->nrows, 3);
    for (int i = 0; i < 3; i++) assert_true(r.shadow->row[i].error == 0.0);
    // A NaN in the sample: not a number, and the worst of all.
    shadow_begin(r.shadow);
    MUST_OK(linear_dgrad(&r.shape, &r.cx, dx, &q, w, groups_none()));
    ((uint16_t *)x.p)[5 * w->cols + 7] = 0x7FC0;
    MUST_OK(operand_make(&r.shape, &r.cx, &o, r.cx.acts, x, SITE_O_X, false));
    MUST_OK(linear_fprop(&r.shape, &r.cx, y, &o, w, groups_none()));
    assert_true(isnan(error_of(&r, "L0.o.fprop")) && r.shadow->nrows == 2);
    assert_string_equal(shadow_worst(r.shadow)->gemm.s, "L0.o.fprop");
    assert_true(shadow_median(r.shadow) == 0.0);
    close_rig(&r);
}

// ---- the model ------------------------------------------------------------------------------------

typedef struct Outcome {
    float *grad;
    int64_t n;
    LossSums sums;
    size_t acts, scratch; // high water
} Outcome;

static Outcome pass(Rig *r) {
    Outcome out = {0};
    Params *p = model_params(r->model);
    Batch b = {.nseq = 2, .S = 70, .ld = 72, .tokens = r->tokens, .is_complete = true};
    LossScale scale = {.lm = 0.01, .mtp = 0.003, .balance = 0.005};
    arena_reset_high(r->cx.acts);
    MUST_OK(model_fwd_bwd(r->model, &r->cx, &b, &scale, &out.sums, NULL));
    out.acts = arena_high(r->cx.acts);
    assert_int_equal(arena_mark(r->cx.acts), 0);
    assert_int_equal(arena_mark(r->cx.scratch), 0);
    for (int i = 0; i < p->n; i++) out.n += p->p[i].grad.rows * p->p[i].grad.cols;
    out.grad = malloc((size_t)out.n * sizeof *out.grad);
    int64_t at = 0;
    for (int i = 0; i < p->n; i++) {
        int64_t k = p->p[i].grad.rows * p->p[i].grad.cols;
        memcpy(out.grad + at, p->p[i].grad.p, (size_t)k * sizeof *out.grad);
        at += k;
    }
    return out;
}

// Which products have a row: all but those of dispatched rows.
static bool is_covered(Family f, int gemm) {
    switch (f) {
    case P_EXPERT_GATE:
    case P_EXPERT_UP: return gemm == SHADOW_DGRAD;
    case P_EXPERT_DOWN: return gemm == SHADOW_FPROP;
    default: return true;
    }
}

static void model_is_covered_and_unchanged(void **state) {
    (void)state;
    static const char *const formats[][MORE] = {
        {NULL},
        {"recompute.norm=false", "recompute.mla_up=false", "recompute.swiglu=false"},
        {"fp8.cache_attn_out=codes", "fp8.cache_swiglu=bf16", "recompute.swiglu=false"},
        {"fp8.cache_attn_out=codes", "fp8.scale_format=fp32", "model.n_shared_experts=0"},
    };
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        Rig plain, r;
        open_rig(&plain, formats[f], NULL);
        Outcome want = pass(&plain);
        arena_poison(true);
        open_rig(&r, formats[f], "fp8.shadow_every=1");
        shadow_begin(r.shadow);
        r.cx.shadow = r.shadow;
        Outcome got = pass(&r);
        r.cx.shadow = NULL;
        arena_poison(false);
        if (memcmp(got.grad, want.grad, (size_t)got.n * sizeof *got.grad) != 0)
            fail_msg("format %d: gradients differ", (int)f);
        assert_memory_equal(&got.sums, &want.sums, sizeof got.sums);
        size_t counters = (size_t)r.cx.nblocks * SITE_COUNT * sizeof(QuantCount);
        assert_memory_equal(r.cx.health, plain.cx.health, counters);
        assert_true(got.acts == r.plan.acts && want.acts == plain.plan.acts && got.acts > want.acts);
        MUST_OK(shadow_rows(r.shadow, &r.cx));
        Params *p = model_params(r.model);
        int64_t row = 0;
        for (int i = 0; i < p->n * SHADOW_GEMMS; i++) {
            const Param *w = &p->p[i / SHADOW_GEMMS];
            if (w->kind != KIND_FP8 || !is_covered(w->family, i % SHADOW_GEMMS)) continue;
            assert_true(row < r.shadow->nrows);
            const ShadowRow *s = &r.shadow->row[row++];
            static const char *const ends[] = {".fprop", ".dgrad", ".wgrad"};
            char layer[24];
            snprintf(layer, sizeof layer, "L%d.", (int)w->layer);
            assert_true(strncmp(s->gemm.s, layer, strlen(layer)) == 0 && strstr(s->gemm.s, ends[i % SHADOW_GEMMS]));
            if (!(s->error > 0.005 && s->error < 0.12)) fail_msg("%s: error %g", s->gemm.s, s->error);
            for (int64_t k = 0; k < row - 1; k++) assert_string_not_equal(r.shadow->row[k].gemm.s, s->gemm.s);
        }
        assert_int_equal(row, r.shadow->nrows);
        const ShadowRow *worst = shadow_worst(r.shadow);
        int below = 0;
        for (int64_t k = 0; k < row; k++) {
            assert_true(r.shadow->row[k].error <= worst->error);
            below += r.shadow->row[k].error < shadow_median(r.shadow);
        }
        assert_int_equal(below, row / 2);
        // The outputs of the first layer's first linear, told apart: quantisation alone costs a few percent.
        Outcome again = pass(&r); // without: the samples stay
        double first = r.shadow->row[0].error;
        MUST_OK(shadow_rows(r.shadow, &r.cx));
        assert_true(r.shadow->row[0].error == first && r.shadow->nrows == row);
        free(again.grad);
        free(got.grad);
        free(want.grad);
        close_rig(&r);
        close_rig(&plain);
    }
}

// Four steps of two micro-batches; the state's hash, and which steps had rows as bits.
static uint64_t steps(const char *every, int *had_rows, double *error) {
    Rig r;
    open_rig(&r, no_sets, every);
    LoaderCorpus corpus = {SHARD, 0.0};
    LoaderSpec spec = {.corpora = &corpus, .ncorpora = 1, .seq_len = 70, .mtp_depth = 1, .vocab_size = 512, .seed = 1};
    Loader *l = NULL;
    MUST_OK(loader_open(&l, &spec));
    int64_t samples = 0, allocations = 0;
    *had_rows = 0;
    for (int step = 1; step <= 4; step++) {
        StepInput in = {.config = r.config, .loader = l, .step = step, .samples = samples, .tokens = r.tokens,
                        .shadow = r.shape.shadow_every > 0 ? r.shadow : NULL};
        StepOutput out;
        MUST_OK(step_train(r.model, &r.cx, &in, &out));
        assert_null(r.cx.shadow);
        samples = out.m.samples;
        if (out.m.shadow) {
            *had_rows |= 1 << step;
            assert_true(out.m.shadow->nrows > 40);
            *error = shadow_worst(out.m.shadow)->error;
        }
        if (step == 1) allocations = mem_count();
    }
    assert_int_equal(mem_count(), allocations);
    uint64_t hash = 0;
    MUST_OK(optimizer_hash(model_params(r.model), &r.cx, &hash));
    loader_close(&l);
    close_rig(&r);
    return hash;
}

static void steps_are_unchanged(void **state) {
    (void)state;
    int had = 0;
    double every_second = 0.0, every = 0.0, none = 0.0;
    uint64_t hash = steps(NULL, &had, &none);
    assert_int_equal(had, 0);
    assert_true(steps("fp8.shadow_every=2", &had, &every_second) == hash);
    assert_int_equal(had, 1 << 2 | 1 << 4);
    assert_true(steps("fp8.shadow_every=1", &had, &every) == hash);
    assert_int_equal(had, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4);
    assert_true(every == every_second && every > 0.0); // step 4, either way
    steps("precision.mode=bf16", &had, &none);
    assert_int_equal(had, 0);
}

int main(void) {
    log_init(1, 2); // no lines
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_against_double),
        cmocka_unit_test(nothing_lost_is_zero),
        cmocka_unit_test(model_is_covered_and_unchanged),
        cmocka_unit_test(steps_are_unchanged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
